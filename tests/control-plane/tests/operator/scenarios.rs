//! What is done to gateways, and what must come of it.

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use chatgateway_api::ChatGateway;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Event, PersistentVolumeClaim, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::support::{EARLY_GATEWAYS, Ground, Namespace, until};

type Running = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;
pub type Scenario = fn(Namespace) -> Running;

/// All that can run beside each other, by the names of their namespaces.
pub fn all() -> Vec<(&'static str, Scenario)> {
    vec![
        ("creation", |ns| Box::pin(creation(ns))),
        ("redis", |ns| Box::pin(redis(ns))),
        ("edits", |ns| Box::pin(edits(ns))),
        ("scaling", |ns| Box::pin(scaling(ns))),
        ("handed-over", |ns| Box::pin(handed_over(ns))),
        ("references", |ns| Box::pin(references(ns))),
        ("rotation", |ns| Box::pin(rotation(ns))),
        ("nonsense", |ns| Box::pin(nonsense(ns))),
        ("hands-on", |ns| Box::pin(hands_on(ns))),
        ("foreign", |ns| Box::pin(foreign(ns))),
        ("paused", |ns| Box::pin(paused(ns))),
        ("figures", |ns| Box::pin(super::pods::figures(ns))),
        ("deletion", |ns| Box::pin(deletion(ns))),
        ("rules", |ns| Box::pin(rules(ns))),
    ]
}

fn demo() -> Value {
    json!({"upstreams": [{"name": "demo", "type": "Demo"}]})
}

fn with(changes: Value) -> Value {
    let mut spec = demo();
    for (name, value) in changes.as_object().cloned().unwrap_or_default() {
        spec[name] = value;
    }
    spec
}

fn shared_store(rest: Value) -> Value {
    let mut spec = with(rest);
    spec["sessions"] = json!({"store": {"type": "Redis", "redis": {"external": {"endpoints": ["redis:6379"]}}}});
    spec
}

fn is_there(object: &Value) -> bool {
    !object.is_null()
}

async fn creation(ns: Namespace) -> anyhow::Result<()> {
    ns.apply("a", demo()).await?;
    let deployment = ns.see::<Deployment>("a Deployment", "a", is_there).await?;
    ensure!(deployment["spec"]["replicas"] == 1, "{deployment}");
    ensure!(deployment["metadata"]["ownerReferences"][0]["kind"] == "ChatGateway", "{deployment}");
    ns.see::<ConfigMap>("a ConfigMap", "a-config", is_there).await?;
    ns.see::<Service>("a Service", "a", is_there).await?;
    ns.see::<Service>("a headless Service", "a-pods", |s| s["spec"]["clusterIP"] == "None").await?;
    ns.see::<ServiceAccount>("a ServiceAccount", "a", is_there).await?;
    ns.see::<NetworkPolicy>("a NetworkPolicy", "a", is_there).await?;
    ns.see::<PodDisruptionBudget>("a PodDisruptionBudget", "a", is_there).await?;
    ns.condition("a", "Accepted", "True", "Valid").await?;
    // There is no node: no pod ever runs, and that is told.
    ns.condition("a", "Available", "False", "NoPodAvailable").await?;
    ns.condition("a", "Reconciling", "True", "NoPods").await?;
    let columns = ns.plane.kubectl(&["-n", &ns.name, "get", "cgw", "a", "-o", "wide"])?;
    ensure!(columns.contains("READY") && columns.contains("Unknown"), "{columns}");
    Ok(())
}

async fn redis(ns: Namespace) -> anyhow::Result<()> {
    let mut spec = with(json!({"replicas": 2}));
    spec["sessions"] = json!({"store": {"type": "Redis", "redis": {"managed": {"storage": "2Gi"}}}});
    ns.apply("a", spec.clone()).await?;
    let secret = ns.see::<Secret>("a password", "a-redis", |s| s["data"]["password"].is_string()).await?;
    ns.see::<StatefulSet>("a Redis", "a-redis", is_there).await?;
    ns.see::<Service>("its Service", "a-redis", is_there).await?;
    ns.see::<NetworkPolicy>("its NetworkPolicy", "a-redis", is_there).await?;
    let claims = || async { ns.api::<PersistentVolumeClaim>().list(&ListParams::default()).await };
    until("a volume claim", || async { claims().await.is_ok_and(|claims| claims.items.len() == 1) }).await?;
    ns.condition("a", "SessionStoreReady", "False", "RedisNotReady").await?;
    // The password is made once.
    spec["replicas"] = json!(3);
    ns.apply("a", spec).await?;
    ns.see::<Deployment>("three replicas", "a", |d| d["spec"]["replicas"] == 3).await?;
    ensure!(ns.get::<Secret>("a-redis").await["data"] == secret["data"], "the password has changed");
    // Another store: this Redis goes, its volume stays.
    ns.apply("a", demo()).await?;
    ns.see::<StatefulSet>("no Redis", "a-redis", Value::is_null).await?;
    ensure!(claims().await?.items.len() == 1, "the volume is gone");
    Ok(())
}

/// Events of a gateway with this reason.
async fn events(ns: &Namespace, reason: &str) -> Vec<String> {
    let all = ns.api::<Event>().list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
    let about = all.into_iter().filter(|event| event.reason.as_deref() == Some(reason));
    about.filter_map(|event| event.message).collect()
}

async fn edits(ns: Namespace) -> anyhow::Result<()> {
    ns.apply("a", demo()).await?;
    let before = ns.see::<Deployment>("a Deployment", "a", is_there).await?;
    ns.condition("a", "Accepted", "True", "Valid").await?;
    // A hot edit reaches the ConfigMap and no template.
    ns.apply("a", with(json!({"keepalive": {"pingInterval": "20s"}}))).await?;
    ns.see::<ConfigMap>("the new configuration", "a-config", |c| c["data"]["config.yaml"].to_string().contains("20s"))
        .await?;
    until("an event", || async { !events(&ns, "ConfigReloaded").await.is_empty() }).await?;
    let after = ns.get::<Deployment>("a").await;
    ensure!(after["spec"]["template"] == before["spec"]["template"], "a hot edit changed the template");
    // A cold one rolls.
    ns.apply("a", with(json!({"image": "other:2"}))).await?;
    let image = |d: &Value| d["spec"]["template"]["spec"]["containers"][0]["image"] == "other:2";
    ns.see::<Deployment>("the new image", "a", image).await?;
    until("an event", || async { events(&ns, "RolloutStarted").await.iter().any(|note| note.contains("the image")) })
        .await?;
    // So does a setting that only new processes take over.
    ns.apply("a", with(json!({"image": "other:2", "limits": {"maxMessageBytes": 2048}}))).await?;
    until("an event", || async { events(&ns, "RolloutStarted").await.iter().any(|note| note.contains("settings")) })
        .await?;
    // What others write into the template stays.
    ns.plane.kubectl(&["-n", &ns.name, "rollout", "restart", "deployment/a"])?;
    ns.apply("a", with(json!({"image": "other:3"}))).await?;
    let image = |d: &Value| d["spec"]["template"]["spec"]["containers"][0]["image"] == "other:3";
    let deployment = ns.see::<Deployment>("the next image", "a", image).await?;
    let restarted = &deployment["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"];
    ensure!(restarted.is_string(), "kubectl rollout restart was undone");
    Ok(())
}

async fn scaling(ns: Namespace) -> anyhow::Result<()> {
    ns.apply("a", shared_store(json!({"replicas": 2}))).await?;
    ns.see::<Deployment>("two replicas", "a", |d| d["spec"]["replicas"] == 2).await?;
    ns.plane.kubectl(&["-n", &ns.name, "scale", "cgw", "a", "--replicas=5"])?;
    ns.see::<Deployment>("five replicas", "a", |d| d["spec"]["replicas"] == 5).await?;
    let selected =
        |g: &Value| g["status"]["selector"].to_string().contains("instance=a") && g["status"]["replicas"] == 5;
    ns.see::<ChatGateway>("the scale subresource's figures", "a", selected).await?;
    Ok(())
}

async fn handed_over(ns: Namespace) -> anyhow::Result<()> {
    ns.apply("a", shared_store(json!({"replicas": 4}))).await?;
    ns.see::<Deployment>("four replicas", "a", |d| d["spec"]["replicas"] == 4).await?;
    // To the autoscaler: the number never dips.
    ns.plane.kubectl(&[
        "-n",
        &ns.name,
        "patch",
        "cgw",
        "a",
        "--type=merge",
        "-p",
        r#"{"spec":{"replicas":null,"autoscaling":{"minReplicas":2,"maxReplicas":9}}}"#,
    ])?;
    ns.see::<HorizontalPodAutoscaler>("an autoscaler", "a", is_there).await?;
    ns.condition("a", "Accepted", "True", "Valid").await?;
    let deployment = ns.get::<Deployment>("a").await;
    ensure!(deployment["spec"]["replicas"] == 4, "{}", deployment["spec"]["replicas"]);
    let scaled = events(&ns, "ScalingReplicaSet").await;
    ensure!(!scaled.iter().any(|note| note.contains("down")), "the number changed and came back: {scaled:?}");
    // What it sets stays.
    ns.plane.kubectl(&["-n", &ns.name, "scale", "deployment", "a", "--replicas=7"])?;
    ns.plane.kubectl(&[
        "-n",
        &ns.name,
        "patch",
        "cgw",
        "a",
        "--type=merge",
        "-p",
        r#"{"spec":{"image":"other:1"}}"#,
    ])?;
    let image = |d: &Value| d["spec"]["template"]["spec"]["containers"][0]["image"] == "other:1";
    let deployment = ns.see::<Deployment>("the new image", "a", image).await?;
    ensure!(deployment["spec"]["replicas"] == 7, "{}", deployment["spec"]["replicas"]);
    // And back.
    ns.plane.kubectl(&[
        "-n",
        &ns.name,
        "patch",
        "cgw",
        "a",
        "--type=merge",
        "-p",
        r#"{"spec":{"replicas":3,"autoscaling":null}}"#,
    ])?;
    ns.see::<Deployment>("three replicas", "a", |d| d["spec"]["replicas"] == 3).await?;
    ns.see::<HorizontalPodAutoscaler>("no autoscaler", "a", Value::is_null).await?;
    Ok(())
}

async fn references(ns: Namespace) -> anyhow::Result<()> {
    let openai =
        json!({"url": "http://vllm:8000/v1", "model": "m", "apiKeySecretRef": {"name": "vllm", "key": "api-key"}});
    let spec = json!({"upstreams": [{"name": "vllm", "type": "OpenAI", "openAI": openai}]});
    ns.apply("a", spec.clone()).await?;
    let message = ns.condition("a", "ResolvedRefs", "False", "NotFound").await?;
    ensure!(message.contains("spec.upstreams[0].openAI.apiKeySecretRef: Secret vllm is not in namespace"), "{message}");
    ns.condition("a", "Stalled", "True", "NotFound").await?;
    ensure!(ns.get::<Deployment>("a").await.is_null(), "pods that cannot start were made");
    // Mended in two steps.
    let secret = serde_json::from_value(json!({"metadata": {"name": "vllm"}, "stringData": {"other": "x"}}))?;
    ns.api::<Secret>().create(&PostParams::default(), &secret).await?;
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !ns.condition("a", "ResolvedRefs", "False", "NotFound").await?.contains("has no key `api-key`; it has: other")
    {
        ensure!(std::time::Instant::now() < deadline, "the missing key is not told");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let key = Patch::Merge(json!({"stringData": {"api-key": "the-first-key"}}));
    ns.api::<Secret>().patch("vllm", &PatchParams::default(), &key).await?;
    ns.condition("a", "ResolvedRefs", "True", "Resolved").await?;
    let before = ns.see::<Deployment>("a Deployment", "a", is_there).await?;
    // A rotated one changes nothing: pods read the file.
    let key = Patch::Merge(json!({"stringData": {"api-key": "the-second-key"}}));
    ns.api::<Secret>().patch("vllm", &PatchParams::default(), &key).await?;
    // One that is gone stalls, and what runs stays.
    ns.api::<Secret>().delete("vllm", &DeleteParams::default()).await?;
    let message = ns.condition("a", "ResolvedRefs", "False", "NotFound").await?;
    ensure!(message.contains("what runs stays as it was"), "{message}");
    let after = ns.get::<Deployment>("a").await;
    ensure!(
        after["metadata"]["generation"] == before["metadata"]["generation"],
        "a rotated Secret changed the Deployment"
    );
    let shown = ns.get::<ConfigMap>("a-config").await.to_string() + &after.to_string();
    ensure!(!shown.contains("first-key") && !shown.contains("second-key"), "a key stands where it should not");
    Ok(())
}

/// Passwords of Redis that are replaced: what runs reads the files, and nothing is rolled or put back.
async fn rotation(ns: Namespace) -> anyhow::Result<()> {
    let secret = serde_json::from_value(json!({"metadata": {"name": "theirs"}, "stringData": {"password": "first"}}))?;
    ns.api::<Secret>().create(&PostParams::default(), &secret).await?;
    let external = json!({"endpoints": ["redis:6379"], "auth": {"secretRef": {"name": "theirs"}}});
    let stores = [("a", json!({"external": external})), ("b", json!({"managed": {}}))];
    let spec = |redis: &Value, rest: Value| {
        let mut spec = with(rest);
        spec["sessions"] = json!({"store": {"type": "Redis", "redis": redis}});
        spec
    };
    let mut before = Vec::new();
    for (name, redis) in &stores {
        ns.apply(name, spec(redis, json!({}))).await?;
        ns.condition(name, "ResolvedRefs", "True", "Resolved").await?;
        before.push(ns.see::<Deployment>("a Deployment", name, is_there).await?);
    }
    let redis = ns.see::<StatefulSet>("a Redis", "b-redis", is_there).await?;
    for secret in ["theirs", "b-redis"] {
        let patch = Patch::Merge(json!({"stringData": {"password": "second"}}));
        ns.api::<Secret>().patch(secret, &PatchParams::default(), &patch).await?;
    }
    // An edit that comes later is seen later.
    for ((name, redis), before) in stores.iter().zip(before) {
        ns.apply(name, spec(redis, json!({"keepalive": {"pingInterval": "20s"}}))).await?;
        let edited = |config: &Value| config["data"]["config.yaml"].to_string().contains("20s");
        ns.see::<ConfigMap>("the edit", &format!("{name}-config"), edited).await?;
        ns.condition(name, "Accepted", "True", "Valid").await?;
        let after = ns.get::<Deployment>(name).await;
        ensure!(after["spec"] == before["spec"], "another password changed the Deployment {name}");
    }
    ensure!(ns.get::<StatefulSet>("b-redis").await["spec"] == redis["spec"], "another password changed the Redis");
    let second = |secret: &Value| secret["data"]["password"] == "c2Vjb25k";
    ensure!(second(&ns.get::<Secret>("b-redis").await), "the author's password was put back");
    // One that is gone is made anew.
    ns.api::<Secret>().delete("b-redis", &DeleteParams::default()).await?;
    let made = |secret: &Value| secret["data"]["password"].is_string() && !second(secret);
    ns.see::<Secret>("a new password", "b-redis", made).await?;
    Ok(())
}

async fn nonsense(ns: Namespace) -> anyhow::Result<()> {
    ns.apply("a", demo()).await?;
    let before = ns.see::<Deployment>("a Deployment", "a", is_there).await?;
    // The API server refuses what its rules know; what they do not is told in the status.
    let refused = ns.apply("a", with(json!({"replicas": 2, "autoscaling": {"maxReplicas": 3}}))).await;
    ensure!(refused.is_err_and(|error| error.to_string().contains("exclude each other")), "the rule was not applied");
    ns.apply("a", with(json!({"replicas": 2}))).await?;
    let message = ns.condition("a", "Accepted", "False", "Invalid").await?;
    ensure!(message.contains("spec.replicas: 2 replicas need a store that they share"), "{message}");
    ensure!(message.ends_with("what runs stays as it was"), "{message}");
    let after = ns.get::<Deployment>("a").await;
    ensure!(after["spec"] == before["spec"], "what runs was changed");
    ns.apply("a", demo()).await?;
    ns.condition("a", "Accepted", "True", "Valid").await?;
    Ok(())
}

async fn hands_on(ns: Namespace) -> anyhow::Result<()> {
    ns.apply("a", demo()).await?;
    ns.see::<PodDisruptionBudget>("the last object", "a", is_there).await?;
    ns.condition("a", "Accepted", "True", "Valid").await?;
    // Put back, each.
    let patch = |what: Value| Patch::Merge(what);
    let edit = patch(json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}}));
    ns.api::<Deployment>().patch("a", &PatchParams::default(), &edit).await?;
    let grace = |d: &Value| d["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 80;
    ns.see::<Deployment>("the time for drains", "a", grace).await?;
    let edit = patch(json!({"data": {"config.yaml": "upstreams: []"}}));
    ns.api::<ConfigMap>().patch("a-config", &PatchParams::default(), &edit).await?;
    ns.see::<ConfigMap>("the configuration", "a-config", |c| c["data"]["config.yaml"].to_string().contains("demo"))
        .await?;
    ns.api::<Service>().delete("a", &DeleteParams::default()).await?;
    ns.see::<Service>("the Service", "a", is_there).await?;
    Ok(())
}

async fn foreign(ns: Namespace) -> anyhow::Result<()> {
    let theirs = serde_json::from_value(json!({"metadata": {"name": "a-config"}, "data": {"mine": "yes"}}))?;
    ns.api::<ConfigMap>().create(&PostParams::default(), &theirs).await?;
    ns.apply("a", demo()).await?;
    let message = ns.condition("a", "Accepted", "False", "NameConflict").await?;
    ensure!(message.starts_with("ConfigMap a-config is there and belongs to somebody else"), "{message}");
    let config = ns.get::<ConfigMap>("a-config").await;
    ensure!(config["data"] == json!({"mine": "yes"}) && config["metadata"]["ownerReferences"].is_null(), "{config}");
    ns.api::<ConfigMap>().delete("a-config", &DeleteParams::default()).await?;
    ns.condition("a", "Accepted", "True", "Valid").await?;
    Ok(())
}

async fn paused(ns: Namespace) -> anyhow::Result<()> {
    ns.apply("a", demo()).await?;
    ns.see::<Deployment>("a Deployment", "a", is_there).await?;
    ns.apply("a", with(json!({"paused": true, "image": "other:1"}))).await?;
    ns.condition("a", "Stalled", "True", "Paused").await?;
    let image = |d: &Value| d["spec"]["template"]["spec"]["containers"][0]["image"] == "other:1";
    ensure!(!image(&ns.get::<Deployment>("a").await), "a paused gateway was changed");
    ns.apply("a", with(json!({"image": "other:1"}))).await?;
    ns.see::<Deployment>("the new image", "a", image).await?;
    Ok(())
}

/// Gateways that were there before the operator began.
pub async fn early(ground: &Ground) -> anyhow::Result<()> {
    for index in 0..EARLY_GATEWAYS {
        ground.early.condition(&format!("g{index}"), "Available", "False", "NoPodAvailable").await?;
    }
    Ok(())
}

/// What the rules are tried with here and where they are evaluated without a server.
#[derive(serde::Deserialize)]
struct Rule {
    says: String,
    good: Vec<Value>,
    bad: Vec<Value>,
}

/// Each rule of the definition, with a resource that keeps it and one that does not. Nothing is stored.
async fn rules(ns: Namespace) -> anyhow::Result<()> {
    let gateways = ns.api::<ChatGateway>();
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let object = |spec: &Value| json!({"apiVersion": "chatgateway.dev/v1alpha1", "kind": "ChatGateway", "metadata": {"name": "r"}, "spec": spec});
    let upstream = |upstream: Value| json!({"upstreams": [upstream]});
    // The schema's own bounds.
    let bounds = [
        (json!({"upstreams": []}), "should have at least 1 items"),
        (with(json!({"replicas": -1})), "greater than or equal to 0"),
        (upstream(json!({"name": "A b", "type": "Demo"})), "should match"),
        (with(json!({"nonsense": 1})), "unknown field"),
    ];
    let mut bad: Vec<_> = bounds.into_iter().map(|(spec, says)| (spec, says.to_owned())).collect();
    let rules: Vec<Rule> = serde_saphyr::from_str(include_str!("../../../../operator/api/tests/rules.yaml"))?;
    ensure!(!rules.is_empty(), "there are rules");
    for rule in rules {
        for spec in rule.good {
            let good = serde_json::from_value(object(&spec))?;
            gateways.create(&params, &good).await.with_context(|| spec.to_string())?;
        }
        bad.extend(rule.bad.into_iter().map(|spec| (spec, rule.says.clone())));
    }
    for (spec, says) in bad {
        // As text: the types here would not even let some of them be written.
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), object(&spec).to_string())?;
        let path = file.path().to_string_lossy().into_owned();
        let refused = ns.plane.kubectl(&["-n", &ns.name, "create", "--dry-run=server", "-f", &path]);
        let said = refused.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(said.contains(&says), "{spec}: `{said}` does not contain `{says}`");
    }
    Ok(())
}

async fn deletion(ns: Namespace) -> anyhow::Result<()> {
    let mut spec = demo();
    spec["sessions"] = json!({"store": {"type": "Redis", "redis": {"managed": {}}}});
    for _ in 0..2 {
        ns.apply("a", spec.clone()).await?;
        ns.see::<Deployment>("a Deployment", "a", is_there).await?;
        ns.see::<StatefulSet>("a Redis", "a-redis", is_there).await?;
        ns.delete("a").await?;
        ns.see::<ChatGateway>("no gateway", "a", Value::is_null).await?;
        ns.see::<Deployment>("no Deployment", "a", Value::is_null).await?;
        ns.see::<StatefulSet>("no Redis", "a-redis", Value::is_null).await?;
        ns.see::<Service>("no Service", "a", Value::is_null).await?;
    }
    // Its data stay.
    let claims = ns.api::<PersistentVolumeClaim>().list(&ListParams::default()).await?;
    ensure!(claims.items.len() == 1, "{} volumes", claims.items.len());
    Ok(())
}

/// Nothing is written while nothing changes; and one of two operators acts, the other one when that is gone.
pub async fn leases(ground: &Ground) -> anyhow::Result<()> {
    // Several looks at every gateway, once the last scenario's pods have settled.
    let quiet = Duration::from_secs(20);
    let mut written = Vec::new();
    while written.last() != Some(&0) {
        ensure!(written.len() < 3, "{written:?} writes, each in {quiet:?} in which nothing happened");
        let before = ground.writes()?;
        tokio::time::sleep(quiet).await;
        written.push(ground.writes()? - before);
    }
    let other = ground.cluster.operator()?;
    until("the other one waits", || async { other.said("another operator acts; this one waits") }).await?;
    ensure!(!other.acts(), "both act");
    ground.operator().process().signal(Signal::SIGTERM)?;
    let status = ground.operator().process().wait(Duration::from_secs(20))?;
    ensure!(status.is_some_and(|status| status.success()), "the first one exited with {status:?}");
    until("the other one acts", || async { other.acts() }).await?;
    let ns = ground.cluster.namespace("after").await?;
    ns.apply("a", demo()).await?;
    ns.see::<Deployment>("a Deployment", "a", is_there).await?;
    Ok(())
}
