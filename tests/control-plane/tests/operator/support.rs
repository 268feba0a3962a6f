//! A control plane with an operator, and what scenarios ask of it.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use chatgateway_api::ChatGateway;
use chatgateway_control_plane::{ControlPlane, Operator};
use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use tempfile::TempDir;

/// How long anything may take to become true.
const WAIT: Duration = Duration::from_secs(60);

/// Pause between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The namespace of the gateways that are there before the operator.
pub const EARLY: &str = "early";

/// How many those are.
pub const EARLY_GATEWAYS: usize = 40;

/// The control plane, with the definition installed and one operator.
pub struct Ground {
    pub plane: Arc<ControlPlane>,
    pub client: Client,
    operator: Operator,
    dir: TempDir,
}

impl Ground {
    pub async fn start() -> anyhow::Result<Self> {
        let plane = Arc::new(tokio::task::spawn_blocking(ControlPlane::start).await??);
        let client = plane.client().await?;
        let dir = tempfile::tempdir()?;
        // The operator comes first: it waits for the definition.
        let operator = Operator::start(&plane, dir.path())?;
        let crd = concat!(env!("CARGO_MANIFEST_DIR"), "/../../crds/chatgateways.yaml");
        if plane.is_own() {
            let misses = || async { operator.said("is the definition installed") };
            until("the operator misses the definition", misses).await?;
        }
        plane.kubectl(&["apply", "-f", crd])?;
        // There are more than are reconciled at a time before the operator acts for the first time.
        let early = Namespace { name: EARLY.to_owned(), client: client.clone(), plane: plane.clone() };
        plane.kubectl(&["create", "namespace", EARLY])?;
        for index in 0..EARLY_GATEWAYS {
            early
                .apply(&format!("g{index}"), serde_json::json!({"upstreams": [{"name": "demo", "type": "Demo"}]}))
                .await?;
        }
        until("the operator acts", || async { operator.acts() }).await?;
        Ok(Self { plane, client, operator, dir })
    }

    /// A namespace for a scenario.
    pub async fn namespace(&self, name: &str) -> anyhow::Result<Namespace> {
        let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(self.client.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        namespaces.create(&PostParams::default(), &object).await?;
        Ok(Namespace { name: name.to_owned(), client: self.client.clone(), plane: self.plane.clone() })
    }

    /// One more operator.
    pub fn another(&self) -> anyhow::Result<Operator> {
        Operator::start(&self.plane, self.dir.path())
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
}

impl Namespace {
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
