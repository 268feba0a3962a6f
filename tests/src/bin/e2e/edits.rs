//! What people change.

use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, wait_until},
    crowd::{Demand, under_load},
};

/// How long an edit may take to be in every pod: the kubelet looks at its files every minute or so.
const HOT: Duration = Duration::from_secs(90);

/// How long the operator may take to say what is wrong.
const SAY: Duration = Duration::from_secs(60);

/// Calls that are looked at for their key: so many that every pod has made some of them.
const LAST_CALLS: usize = 200;

/// A rate limit is edited.
pub async fn hot(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.pods().await?;
    let limits = cluster.gateway().await?["spec"]["rateLimits"].clone();
    let edited = json!([{"per": "Gateway", "requestsPerSecond": 3_000, "burst": 6_000}]);
    for rate_limits in [edited, limits] {
        under_load(cluster, Demand::NoRefusedConnection, || async {
            let old = cluster.gateway().await?["status"]["configHash"].clone();
            cluster.edit(&json!({"spec": {"rateLimits": rate_limits}})).await?;
            wait_until(HOT, "Programmed, with another configuration", async || {
                let hash = cluster.gateway().await?["status"]["configHash"].clone();
                Ok(hash != old && cluster.condition("Programmed").await?.is_true())
            })
            .await?;
            // The operator says so; the pods are asked, too.
            let hash = cluster.gateway().await?["status"]["configHash"].clone();
            for pod in cluster.serving().await? {
                let applied = applied(cluster, &pod.name).await?;
                anyhow::ensure!(applied == hash, "{} runs {applied}, and Programmed is true for {hash}", pod.name);
            }
            Ok(())
        })
        .await?;
    }
    anyhow::ensure!(cluster.pods().await? == before, "a pod was replaced or restarted");
    Ok(())
}

/// The hash of the configuration that a pod runs.
async fn applied(cluster: &Cluster, pod: &str) -> anyhow::Result<Value> {
    let path = format!("/api/v1/namespaces/{}/pods/{pod}:8081/proxy/status", cluster.arguments.namespace);
    let status: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", &path]).await?)?;
    let hash = &status["config_hash"];
    anyhow::ensure!(hash.is_string(), "no config_hash in {status}");
    Ok(hash.clone())
}

/// An unknown Secret, an image that is not there; each is mended.
pub async fn bad(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.pods().await?;
    let gateway = cluster.gateway().await?;
    let (upstreams, image) = (gateway["spec"]["upstreams"].clone(), gateway["spec"]["image"].clone());
    let mut unknown = upstreams.clone();
    unknown[0]["openAI"]["apiKeySecretRef"] = json!({"name": "nobody-made-this", "key": "api-key"});
    let done = under_load(cluster, Demand::NoRefusedConnection, || async {
        cluster.edit(&json!({"spec": {"upstreams": unknown}})).await?;
        wait_until(SAY, "ResolvedRefs is false and names the Secret", async || {
            let refs = cluster.condition("ResolvedRefs").await?;
            Ok(refs.is_false() && refs.says().contains("nobody-made-this"))
        })
        .await?;
        println!("   it says: {}", cluster.condition("Ready").await?.says());
        same_pods_serve(cluster, &before).await?;
        cluster.edit(&json!({"spec": {"upstreams": upstreams}})).await?;
        cluster.settled().await?;

        cluster.edit(&json!({"spec": {"image": "chatgateway-dataplane:nobody-made-this"}})).await?;
        wait_until(SAY, "Ready is false and says why", async || {
            let ready = cluster.condition("Ready").await?;
            Ok(ready.is_false() && ready.says().contains("does not start") && ready.says().contains("nobody-made-this"))
        })
        .await?;
        println!("   it says: {}", cluster.condition("Ready").await?.says());
        same_pods_serve(cluster, &before).await?;
        cluster.edit(&json!({"spec": {"image": image}})).await?;
        cluster.settled().await
    })
    .await;
    // Whatever happened, others find it as it was.
    cluster.edit(&json!({"spec": {"upstreams": upstreams, "image": image}})).await?;
    done?;
    cluster.settled().await?;
    same_pods_serve(cluster, &before).await
}

async fn same_pods_serve(cluster: &Cluster, before: &[crate::cluster::Pod]) -> anyhow::Result<()> {
    let serving = cluster.serving().await?;
    let gone = before.iter().find(|old| !serving.iter().any(|pod| pod.uid == old.uid && pod.restarts == old.restarts));
    gone.map_or(Ok(()), |pod| Err(anyhow::anyhow!("{} does not serve any more", pod.name)))
        .context("an edit that is refused")
}

/// The key of the model server is in a Secret, and changes there.
pub async fn secret(cluster: &Cluster) -> anyhow::Result<()> {
    let upstreams = cluster.gateway().await?["spec"]["upstreams"].clone();
    let mut with_key = upstreams.clone();
    with_key[0]["openAI"]["apiKeySecretRef"] = json!({"name": "e2e-model", "key": "api-key"});
    put_key(cluster, "first").await?;
    cluster.edit(&json!({"spec": {"upstreams": with_key}})).await?;
    cluster.settled().await?;
    let before = cluster.pods().await?;
    under_load(cluster, Demand::NoRefusedConnection, || async {
        wait_until(SAY, "calls have the first key", async || only_key(cluster, "first").await).await?;
        put_key(cluster, "second").await?;
        // All of the last calls, which are of every pod.
        wait_until(HOT + SAY, "calls have the second key", async || only_key(cluster, "second").await).await
    })
    .await?;
    anyhow::ensure!(cluster.pods().await? == before, "a pod was replaced or restarted");
    cluster.edit(&json!({"spec": {"upstreams": upstreams}})).await?;
    cluster.kubectl(&["delete", "secret", "e2e-model"]).await?;
    cluster.settled().await
}

async fn put_key(cluster: &Cluster, key: &str) -> anyhow::Result<()> {
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "e2e-model"}, "stringData": {"api-key": key}});
    cluster.kubectl_for(SAY, &["apply", "-f", "-"], Some(&secret)).await.map(drop)
}

/// Whether the model server's last calls all had this key.
async fn only_key(cluster: &Cluster, key: &str) -> anyhow::Result<bool> {
    let calls = cluster.calls().await?.calls;
    let wanted = format!("Bearer {key}");
    let last = calls.iter().rev().take(LAST_CALLS);
    Ok(calls.len() >= LAST_CALLS && last.into_iter().all(|call| call.authorization.as_deref() == Some(wanted.as_str())))
}
