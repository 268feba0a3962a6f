//! A control plane with an operator, and what scenarios ask of it.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chatgateway_api::ChatGateway;
use chatgateway_control_plane::{ControlPlane, Operator};
use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use tempfile::TempDir;

/// How long anything may take to become true.
const WAIT: Duration = Duration::from_secs(60);

/// Lines of an operator that are shown of one with which something is wrong.
const LAST_LINES: usize = 20;

/// Pause between two looks.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How many gateways are there before the operator.
pub const EARLY_GATEWAYS: usize = 40;

/// A label of the namespaces that tests make.
const RUN_LABEL: &str = "chatgateway.dev/test-run";

/// A control plane: one's own and new, or that of the environment's `KUBECONFIG`.
pub struct Cluster {
    pub plane: Arc<ControlPlane>,
    pub client: Client,
    run: String,
    dir: TempDir,
    /// Two tests cannot use the same cluster at a time: there, each would be the other one's foreign operator.
    _alone: Option<tokio::sync::MutexGuard<'static, ()>>,
}

impl Cluster {
    pub async fn start() -> anyhow::Result<Arc<Self>> {
        static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let plane = Arc::new(tokio::task::spawn_blocking(ControlPlane::start).await??);
        let alone = if plane.is_own() { None } else { Some(ALONE.lock().await) };
        let (client, dir) = (plane.client().await?, tempfile::tempdir()?);
        Ok(Arc::new(Self { plane, client, run: format!("{:08x}", rand::random::<u32>()), dir, _alone: alone }))
    }

    /// Installs the definition, and waits until it is known.
    pub async fn define(&self) -> anyhow::Result<()> {
        let crd = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crds/chatgateways.yaml");
        self.plane.kubectl(&["apply", "-f", crd])?;
        let gateways = Api::<ChatGateway>::all(self.client.clone());
        until("the definition is known", || async { gateways.list(&ListParams::default()).await.is_ok() }).await
    }

    /// A namespace for a scenario.
    pub async fn namespace(&self, scenario: &str) -> anyhow::Result<Namespace> {
        let name = match self.plane.is_own() {
            true => scenario.to_owned(),
            false => format!("chatgateway-test-{scenario}-{}", self.run),
        };
        let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(self.client.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": name, "labels": {RUN_LABEL: self.run}}}))?;
        namespaces.create(&PostParams::default(), &object).await?;
        let logs = Arc::new(tempfile::tempdir()?);
        Ok(Namespace { name, client: self.client.clone(), plane: self.plane.clone(), logs })
    }

    /// One more operator.
    pub fn operator(&self) -> anyhow::Result<Operator> {
        Operator::start(&self.plane, self.dir.path())
    }

    /// Removes from somebody's cluster what was made there; but not the definition.
    pub async fn clean_up(&self) -> anyhow::Result<()> {
        if self.plane.is_own() {
            return Ok(());
        }
        // Gateways go only where one looks after them.
        let _operator = self.operator()?;
        let (plane, selector) = (self.plane.clone(), format!("{RUN_LABEL}={}", self.run));
        let removed = move || plane.kubectl(&["delete", "namespace", "-l", &selector, "--timeout=180s"]);
        tokio::task::spawn_blocking(removed).await?.map(drop)
    }
}

/// A cluster with the definition and one operator for everything.
pub struct Ground {
    pub cluster: Arc<Cluster>,
    /// Gateways that were there before the operator.
    pub early: Namespace,
    operator: Operator,
}

impl Ground {
    pub async fn start(cluster: &Arc<Cluster>) -> anyhow::Result<Self> {
        // The operator comes first: it waits for the definition.
        let operator = cluster.operator()?;
        if cluster.plane.is_own() {
            let misses = || async { operator.said("is the definition installed") };
            until("the operator misses the definition", misses).await?;
        }
        cluster.define().await?;
        // There are more than are reconciled at a time before the operator acts for the first time.
        let early = cluster.namespace("early").await?;
        for index in 0..EARLY_GATEWAYS {
            early.apply(&format!("g{index}"), json!({"upstreams": [{"name": "demo", "type": "Demo"}]})).await?;
        }
        until("the operator acts", || async { operator.acts() }).await?;
        Ok(Self { cluster: cluster.clone(), early, operator })
    }

    pub fn operator(&self) -> &Operator {
        &self.operator
    }

    pub fn last_words(&self) -> String {
        self.operator.process().last_words()
    }

    /// Objects that the operator has written.
    pub fn writes(&self) -> anyhow::Result<u64> {
        self.operator.metric("chatgateway_operator_writes_total")
    }
}

/// Waits until something is so.
pub async fn until<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) -> anyhow::Result<()> {
    let deadline = Instant::now() + WAIT;
    while !is_so().await {
        anyhow::ensure!(Instant::now() < deadline, "not within {} s: {what}", WAIT.as_secs());
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// A scenario's own namespace.
#[derive(Clone)]
pub struct Namespace {
    pub name: String,
    pub client: Client,
    pub plane: Arc<ControlPlane>,
    /// What its own operators say, where it has such.
    pub logs: Arc<TempDir>,
}

impl Namespace {
    /// The last lines of the newest of its operators.
    pub fn last_words(&self) -> String {
        let files = std::fs::read_dir(self.logs.path()).into_iter().flatten().flatten();
        let logs = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
        let newest = logs.max_by_key(|file| file.metadata().and_then(|data| data.modified()).ok());
        let text = newest.and_then(|file| std::fs::read_to_string(file.path()).ok()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Makes a gateway, or changes it, as its author would.
    pub async fn apply(&self, name: &str, spec: Value) -> anyhow::Result<ChatGateway> {
        let gateway = json!({
            "apiVersion": "chatgateway.dev/v1alpha1", "kind": "ChatGateway", "metadata": {"name": name}, "spec": spec,
        });
        let params = PatchParams::apply("author").force();
        Ok(self.api::<ChatGateway>().patch(name, &params, &Patch::Apply(&gateway)).await?)
    }

    pub async fn delete(&self, name: &str) -> anyhow::Result<()> {
        self.api::<ChatGateway>().delete(name, &DeleteParams::background()).await?;
        Ok(())
    }

    /// An object as JSON; null where it is not there.
    pub async fn get<K>(&self, name: &str) -> Value
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug
            + serde::Serialize,
    {
        match self.api::<K>().get_opt(name).await {
            Ok(Some(object)) => serde_json::to_value(object).unwrap_or_default(),
            _ => Value::Null,
        }
    }

    /// Waits until an object is as it should be.
    pub async fn see<K>(&self, what: &str, name: &str, is_so: impl Fn(&Value) -> bool) -> anyhow::Result<Value>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug
            + serde::Serialize,
    {
        let last = std::sync::Mutex::new(Value::Null);
        let waited = until(what, || async {
            let object = self.get::<K>(name).await;
            let good = is_so(&object);
            if let Ok(mut last) = last.lock() {
                *last = object;
            }
            good
        });
        let waited = waited.await;
        let last = last.into_inner().unwrap_or_default();
        waited.with_context(|| format!("it is {last}"))?;
        Ok(last)
    }

    /// Waits until a condition of a gateway has a status and a reason. Its message.
    pub async fn condition(&self, name: &str, kind: &str, status: &str, reason: &str) -> anyhow::Result<String> {
        let of = |gateway: &Value| {
            let conditions = gateway["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let current = gateway["status"]["observedGeneration"] == gateway["metadata"]["generation"];
            conditions
                .into_iter()
                .find(|c| current && c["type"] == kind && c["status"] == status && c["reason"] == reason)
        };
        let what = format!("{kind} is {status} {reason}");
        let gateway = self.see::<ChatGateway>(&what, name, |gateway| of(gateway).is_some()).await?;
        Ok(of(&gateway).and_then(|c| c["message"].as_str().map(str::to_owned)).unwrap_or_default())
    }
}
