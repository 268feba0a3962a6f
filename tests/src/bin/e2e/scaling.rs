//! The number of pods follows the load.

use std::{
    sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context as _;
use serde_json::json;

use crate::{
    cluster::{Cluster, wait_until},
    crowd::{Demand, under, under_load},
};

/// How long the autoscaler may take to have all pods, or only one: figures come every ten seconds, and pods have to start or drain.
const FOLLOW: Duration = Duration::from_secs(240);

/// Clients that stay when most have left.
const FEW: u32 = 12;

/// An autoscaler on CPU takes the number over, and gives it back.
pub async fn autoscaling(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.edit(&json!({"spec": {"replicas": 1}})).await?;
    cluster.ready(1).await?;
    let down =
        json!({"stabilizationWindowSeconds": 15, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 15}]});
    let autoscaling = json!({
        "minReplicas": 1, "maxReplicas": 3, "metrics": [{"type": "CPU", "target": 30}], "behavior": {"scaleDown": down},
    });
    let done = follow(cluster, &autoscaling).await;
    // Whatever happened, the number is as it was.
    cluster.edit(&json!({"spec": {"autoscaling": null, "replicas": 3}})).await?;
    cluster.ready(3).await?;
    done
}

async fn follow(cluster: &Cluster, autoscaling: &serde_json::Value) -> anyhow::Result<()> {
    under_load(cluster, Demand::NoRefusedConnection, || async {
        cluster.edit(&json!({"spec": {"replicas": null, "autoscaling": autoscaling}})).await?;
        reaches(cluster, 3).await
    })
    .await?;
    under(cluster, FEW, Demand::NoRefusedConnection, || reaches(cluster, 1)).await.map(drop)
}

/// Waits until so many pods are wanted and serve. On the way the number never goes the other way: nobody else writes it.
async fn reaches(cluster: &Cluster, wanted: i64) -> anyhow::Result<()> {
    let number = async || {
        let deployment = cluster.json(&["get", "deployment", &cluster.arguments.gateway]).await?;
        deployment["spec"]["replicas"].as_i64().context("a Deployment without a number of pods")
    };
    let last = AtomicI64::new(number().await?);
    let up = wanted > last.load(Relaxed);
    let went_back = AtomicBool::new(false);
    wait_until(FOLLOW, &format!("{wanted} pods"), async || {
        let now = number().await?;
        let before = last.swap(now, Relaxed);
        went_back.fetch_or(if up { now < before } else { now > before }, Relaxed);
        let pods = cluster.pods().await?;
        Ok(now == wanted && i64::try_from(pods.len())? == wanted && pods.iter().all(|pod| pod.ready))
    })
    .await?;
    anyhow::ensure!(!went_back.load(Relaxed), "the number of pods went to and fro");
    Ok(())
}
