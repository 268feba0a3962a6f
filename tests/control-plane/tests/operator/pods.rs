//! What pods say of themselves, and what the operator makes of it. The pods seem to run: see [`Admin`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use chatgateway_api::ChatGateway;
use chatgateway_control_plane::pods::{Admin, well};
use chatgateway_control_plane::{Operator, Start};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::{Value, json};

use super::support::{LOOK_INTERVAL, Namespace, until};

/// The names of a gateway's pods, once there are so many.
async fn pods(ns: &Namespace, gateway: &str, count: usize) -> anyhow::Result<Vec<String>> {
    let of = ListParams::default().labels(&format!("app.kubernetes.io/instance={gateway}"));
    let list = || async { ns.api::<Pod>().list_metadata(&of).await.map(|list| list.items).unwrap_or_default() };
    until("the pods", || async { list().await.len() == count }).await?;
    Ok(list().await.iter().map(ResourceExt::name_any).collect())
}

/// The hash that pods are to report.
async fn hash(ns: &Namespace, gateway: &str) -> String {
    ns.get::<ChatGateway>(gateway).await["status"]["configHash"].as_str().unwrap_or_default().to_owned()
}

/// Figures and words of pods reach the status; one that never answers holds up nothing.
pub async fn figures(ns: Namespace) -> anyhow::Result<()> {
    if !ns.plane.is_own() {
        // Where there are nodes, pods say what they say.
        return Ok(());
    }
    let store = json!({"type": "Redis", "redis": {"external": {"endpoints": ["redis:6379"]}}});
    let spec = json!({
        "replicas": 2, "upstreams": [{"name": "demo", "type": "Demo"}], "sessions": {"store": store},
    });
    ns.apply("a", spec.clone()).await?;
    let names = pods(&ns, "a", 2).await?;
    ns.condition("a", "Programmed", "Unknown", "NoPods").await?;
    let old = hash(&ns, "a").await;
    let talks = Admin::open(Some(well(&old, 7, 2))).await?;
    let silent = Admin::open(None).await?;
    talks.belongs_to(&ns.api(), &names[0], true).await?;
    silent.belongs_to(&ns.api(), &names[1], true).await?;
    let message = ns.condition("a", "Programmed", "False", "Pending").await?;
    ensure!(message.starts_with("1 of 2 ready pods run the newest configuration (1 could not be asked)"), "{message}");
    let sums = |connections: i64, turns: i64| {
        move |g: &Value| g["status"]["connections"] == connections && g["status"]["activeTurns"] == turns
    };
    ns.see::<ChatGateway>("the figures of the one that talks", "a", sums(7, 2)).await?;
    // It finds its voice.
    silent.say(well(&old, 5, 1));
    ns.condition("a", "Programmed", "True", "Programmed").await?;
    ns.see::<ChatGateway>("the figures of both", "a", sums(12, 3)).await?;
    let well_and_done = |g: &Value| {
        let conditions = g["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is = |kind: &str| conditions.iter().any(|c| c["type"] == kind && c["status"] == "True");
        is("Ready") && !is("Reconciling") && !is("Stalled") && g["status"]["programmedReplicas"] == 2
    };
    ns.see::<ChatGateway>("a gateway that is well", "a", well_and_done).await?;
    // A hot edit is done when all of them say so.
    let mut edited = spec;
    edited["keepalive"] = json!({"pingInterval": "20s"});
    ns.apply("a", edited).await?;
    ns.condition("a", "Programmed", "False", "Pending").await?;
    let new = hash(&ns, "a").await;
    ensure!(new != old, "the hash is as it was");
    talks.say(well(&new, 7, 2));
    ns.see::<ChatGateway>("one that has it", "a", |g| g["status"]["programmedReplicas"] == 1).await?;
    let refuses =
        json!({"config_hash": old, "config_error": "line 3", "connections": 5, "leases": 1, "draining": true});
    silent.say(refuses);
    let message = ns.condition("a", "Programmed", "False", "Refused").await?;
    ensure!(message.contains("line 3"), "{message}");
    ns.see::<ChatGateway>("one that drains", "a", |g| g["status"]["drainingReplicas"] == 1).await?;
    silent.say(well(&new, 0, 0));
    ns.condition("a", "Ready", "True", "Ready").await?;
    Ok(())
}

/// Pods that run, by their names.
type Running = HashMap<String, Admin>;

/// Lets all pods of a namespace run that do not yet.
async fn run_pods(ns: &Namespace, running: &mut Running) -> anyhow::Result<()> {
    for pod in ns.api::<Pod>().list_metadata(&ListParams::default()).await?.items {
        let name = pod.name_any();
        if running.contains_key(&name) {
            continue;
        }
        let gateway = pod.labels().get("app.kubernetes.io/instance").cloned().unwrap_or_default();
        let admin = Admin::open(Some(well(&hash(ns, &gateway).await, 1, 0))).await?;
        // It may be gone already.
        if admin.belongs_to(&ns.api(), &name, true).await.is_ok() {
            running.insert(name, admin);
        }
    }
    Ok(())
}

/// How long all of an upgrade may take.
const UPGRADE_WAIT: Duration = Duration::from_secs(120);

const UPGRADED: [&str; 3] = ["a", "b", "c"];

/// Which gateways have the new image, and how many say that they are being upgraded.
async fn upgraded(ns: &Namespace) -> (Vec<&'static str>, usize) {
    let (mut new, mut busy) = (Vec::new(), 0);
    for name in UPGRADED {
        let deployment = ns.get::<Deployment>(name).await;
        if deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "release:2" {
            new.push(name);
        }
        let conditions =
            ns.get::<ChatGateway>(name).await["status"]["conditions"].as_array().cloned().unwrap_or_default();
        busy += usize::from(conditions.iter().any(|condition| condition["reason"] == "Upgrading"));
    }
    (new, busy)
}

/// A new release with another default image replaces the pods of one gateway at a time, also where it is started again meanwhile.
pub async fn upgrades(ns: Namespace) -> anyhow::Result<()> {
    if !ns.plane.is_own() {
        // Where there are nodes, pods say what they say.
        return Ok(());
    }
    let start = |image: &str| {
        let start =
            Start { kubeconfig: ns.plane.kubeconfig(), namespace: Some(&ns.name), lease_namespace: Some(&ns.name) };
        Operator::start_with(&start, ns.logs.path(), &["--upgrades-at-once", "1", "--dataplane-image", image])
    };
    let first = start("release:1")?;
    let mut running = Running::new();
    for name in UPGRADED {
        ns.apply(name, json!({"upstreams": [{"name": "demo", "type": "Demo"}]})).await?;
        pods(&ns, name, 1).await?;
        ns.condition(name, "Accepted", "True", "Valid").await?;
    }
    run_pods(&ns, &mut running).await?;
    for name in UPGRADED {
        ns.condition(name, "Ready", "True", "Ready").await?;
    }
    drop(first);
    for _ in 0..2 {
        let next = start("release:2")?;
        until("the next release acts", || async { next.acts() }).await?;
        until("one is being upgraded", || async { upgraded(&ns).await.1 == 1 }).await?;
        until("one has new pods", || async { upgraded(&ns).await.0.len() == 1 }).await?;
        let (new, _) = upgraded(&ns).await;
        for waits in UPGRADED.into_iter().filter(|name| !new.contains(name)) {
            let message = ns.condition(waits, "Reconciling", "True", "UpgradeWaits").await?;
            ensure!(message.contains("1 other gateways come first"), "{message}");
            ns.condition(waits, "Ready", "True", "Ready").await?;
        }
        ensure!(upgraded(&ns).await == (new, 1), "a second one did not wait");
    }
    // An author's own edit waits for nobody.
    let next = start("release:2")?;
    let (new, _) = upgraded(&ns).await;
    let waits = UPGRADED.into_iter().find(|name| !new.contains(name)).unwrap_or_default();
    ns.apply(waits, json!({"upstreams": [{"name": "demo", "type": "Demo"}], "drain": {"timeout": "30s"}})).await?;
    until("the edited one is new", || async { upgraded(&ns).await.0.contains(&waits) }).await?;
    // Once the new pods run, the others follow.
    let deadline = Instant::now() + UPGRADE_WAIT;
    loop {
        run_pods(&ns, &mut running).await?;
        let (new, busy) = upgraded(&ns).await;
        ensure!(busy <= 1, "{busy} at a time");
        if new.len() == UPGRADED.len() && busy == 0 {
            break;
        }
        ensure!(Instant::now() < deadline, "{new:?} are new, {busy} on their way");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    for name in UPGRADED {
        ns.condition(name, "Ready", "True", "Ready").await?;
    }
    drop(next);
    Ok(())
}
