//! What happens to pods.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill as signal},
    unistd::Pid,
};
use serde_json::json;

use crate::{
    cluster::{Cluster, Pod, READY, wait_until},
    crowd::{Demand, under_load},
};

/// How long the cluster may take to notice something.
const NOTICE: Duration = Duration::from_secs(60);

/// How long one try of a drain may take: the disruption budget stops it before.
const DRAIN: &str = "--timeout=20s";

/// Tries of a drain: one pod goes with each at least, and is replaced before the next.
const DRAINS_MAX: usize = 8;

/// Every pod is replaced by one with another image.
pub async fn rollout(cluster: &Cluster) -> anyhow::Result<()> {
    let image = cluster.arguments.other_image.clone().context("needs --other-image")?;
    let before = cluster.serving().await?;
    let seen = under_load(cluster, Demand::NoRefusedConnection, || async {
        cluster.edit(&json!({"spec": {"image": image}})).await?;
        all_replaced(cluster, &before).await
    })
    .await?;
    anyhow::ensure!(seen.figures.lost_connections > 0, "nobody had to connect again: no pod was replaced");
    Ok(())
}

/// Waits until none of these pods is left, and as many others serve.
async fn all_replaced(cluster: &Cluster, before: &[Pod]) -> anyhow::Result<()> {
    let old: BTreeSet<&str> = before.iter().map(|pod| pod.uid.as_str()).collect();
    wait_until(READY, "every pod is another one", async || {
        let pods = cluster.pods().await?;
        Ok(pods.len() == old.len() && pods.iter().all(|pod| pod.ready && !old.contains(pod.uid.as_str())))
    })
    .await?;
    cluster.settled().await
}

/// One pod is deleted without a drain, the process of another one is killed.
pub async fn kill(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.serving().await?;
    let [deleted, killed, ..] = before.as_slice() else { anyhow::bail!("needs two pods, and a third that stays") };
    let seen = under_load(cluster, Demand::Lossless, || async {
        cluster.kubectl(&["delete", "pod", &deleted.name, "--grace-period=0", "--force"]).await?;
        kill_process(killed)?;
        wait_until(NOTICE, "the killed container was started again", async || {
            Ok(cluster.pods().await?.iter().any(|pod| pod.uid == killed.uid && pod.restarts > killed.restarts))
        })
        .await?;
        cluster.settled().await
    })
    .await?;
    anyhow::ensure!(seen.figures.takeovers > 0, "no answer was taken over: nothing was killed in the middle of one");
    Ok(())
}

/// Kills what runs in a pod's container. That is on this machine: pods of a node elsewhere cannot be killed so.
fn kill_process(pod: &Pod) -> anyhow::Result<()> {
    let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
    let group = roots.iter().find_map(|root| find_group(root, &pod.container));
    let group = group.with_context(|| format!("the container of {} is not on this machine", pod.name))?;
    let processes = std::fs::read_to_string(group.join("cgroup.procs"))?;
    anyhow::ensure!(!processes.trim().is_empty(), "no process runs in the container of {}", pod.name);
    for process in processes.lines() {
        signal(Pid::from_raw(process.parse()?), Signal::SIGKILL).with_context(|| format!("process {process}"))?;
    }
    Ok(())
}

/// The control group of a container, by its id.
fn find_group(root: &Path, container: &str) -> Option<PathBuf> {
    let folders =
        std::fs::read_dir(root).ok()?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).find_map(|path| {
        let right = path.file_name().is_some_and(|name| name.to_string_lossy().contains(container));
        if right { Some(path) } else { find_group(&path, container) }
    })
}

/// To one pod and back.
pub async fn scale(cluster: &Cluster) -> anyhow::Result<()> {
    let gateway = cluster.arguments.gateway.as_str();
    let replicas = cluster.serving().await?.len();
    under_load(cluster, Demand::NoRefusedConnection, || async {
        for wanted in [1, replicas] {
            cluster.kubectl(&["scale", "cgw", gateway, &format!("--replicas={wanted}")]).await?;
            cluster.ready(wanted).await?;
        }
        Ok(())
    })
    .await
    .map(drop)
}

/// The pod of Redis goes, and comes back with its volume.
pub async fn redis(cluster: &Cluster) -> anyhow::Result<()> {
    let pod = format!("{}-redis-0", cluster.arguments.gateway);
    let uid = async || anyhow::Ok(cluster.json(&["get", "pod", &pod]).await?["metadata"]["uid"].clone());
    let old = uid().await?;
    under_load(cluster, Demand::Lossless, || async {
        cluster.kubectl(&["delete", "pod", &pod, "--wait=false"]).await?;
        wait_until(NOTICE, "another pod of Redis is there", async || Ok(uid().await? != old)).await?;
        cluster.kubectl_for(READY, &["wait", "--for=condition=Ready", "--timeout=120s", "pod", &pod], None).await?;
        cluster.settled().await
    })
    .await
    .map(drop)
}

/// The node is drained again and again, until every pod was evicted; after each time its place is given back.
pub async fn drain(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.serving().await?;
    let nodes = cluster.json(&["get", "nodes"]).await?;
    let node = nodes["items"][0]["metadata"]["name"].as_str().context("no node")?.to_owned();
    let selector =
        format!("app.kubernetes.io/instance={},app.kubernetes.io/component=gateway", cluster.arguments.gateway);
    let selector = format!("--pod-selector={selector}");
    let drained = under_load(cluster, Demand::NoRefusedConnection, || async {
        for _ in 0..DRAINS_MAX {
            let args = ["drain", &node, "--ignore-daemonsets", "--delete-emptydir-data", &selector, DRAIN];
            // The budget holds it up while a pod's place is empty, and on a single node it always is.
            let done = cluster.kubectl_for(NOTICE, &args, None).await;
            let serving = cluster.serving().await?.len();
            anyhow::ensure!(
                serving + 1 >= before.len(),
                "{serving} pods were left by a drain: the budget allows one less"
            );
            cluster.kubectl(&["uncordon", &node]).await?;
            cluster.settled().await?;
            let left =
                cluster.serving().await?.iter().filter(|pod| before.iter().any(|old| old.uid == pod.uid)).count();
            if left == 0 {
                return Ok(());
            }
            if let Err(error) = done {
                let budget =
                    format!("{error:#}").contains("disruption budget") || format!("{error:#}").contains("timed out");
                anyhow::ensure!(budget || format!("{error:#}").contains("timeout"), "a drain failed: {error:#}");
            }
        }
        anyhow::bail!("pods are left after {DRAINS_MAX} drains")
    })
    .await;
    // Whatever happened, others may use the node again.
    cluster.kubectl(&["uncordon", &node]).await?;
    drained.map(drop)
}

/// The operator goes while pods are replaced, and comes back.
pub async fn operator(cluster: &Cluster) -> anyhow::Result<()> {
    let before = cluster.serving().await?;
    let system = ["--namespace", cluster.arguments.system.as_str()];
    let operators = cluster.json(&[system[0], system[1], "get", "deployment", "chatgateway-operator"]).await?;
    let count = operators["spec"]["replicas"].as_u64().unwrap_or(1).to_string();
    let scale = async |to: &str| {
        let replicas = format!("--replicas={to}");
        cluster.kubectl(&[system[0], system[1], "scale", "deployment", "chatgateway-operator", &replicas]).await
    };
    under_load(cluster, Demand::NoRefusedConnection, || async {
        let stamp = format!("{:x}", rand::random::<u32>());
        cluster.edit(&json!({"spec": {"pod": {"annotations": {"e2e": stamp}}}})).await?;
        wait_until(NOTICE, "a new pod is there", async || Ok(cluster.pods().await?.len() > before.len())).await?;
        scale("0").await?;
        wait_until(NOTICE, "no operator is left", async || {
            let selector = "app.kubernetes.io/name=chatgateway-operator";
            let pods = cluster.json(&[system[0], system[1], "get", "pods", "--selector", selector]).await?;
            Ok(pods["items"].as_array().is_some_and(Vec::is_empty))
        })
        .await?;
        // With an edit that nobody sees until it is back.
        cluster.edit(&json!({"spec": {"pod": {"annotations": {"e2e": "again"}}}})).await?;
        scale(&count).await?;
        all_replaced(cluster, &before).await
    })
    .await
    .map(drop)
}
