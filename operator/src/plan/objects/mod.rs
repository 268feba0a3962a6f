//! The objects of a gateway in a cluster: all of them, as they are to be.
//!
//! A pure function of the gateway and of what was observed; the same input gives the same objects, byte by byte. Fields that
//! others write (replicas under an autoscaler, a Service's addresses) are left out, so that applying them takes nothing from
//! anybody.

mod deployment;
mod names;
mod network;
mod overrides;
mod redis;
mod scaling;
mod service;

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

use chatgateway_config::ConfigErrors;

pub use names::{Component, Names};
pub use overrides::check as check_override;

use crate::manifest;
use crate::plan::config::{Place, Rendered, render};
use crate::validate::Validated;

/// The annotation with the hash of what an object is to be: what is as it was is not written again.
pub const APPLIED_HASH: &str = "chatgateway.dev/applied-hash";

/// Kinds with pods, which are replaced when what they are made from changes.
const WITH_PODS: [&str; 2] = ["Deployment", "StatefulSet"];

/// The annotation of a ConfigMap with the hash that pods report once they run its configuration.
pub const CONFIG_HASH: &str = "chatgateway.dev/config-hash";

/// The annotation of a pod template with the hash of the settings that only a new process takes over.
pub const COLD_HASH: &str = "chatgateway.dev/cold-config-hash";

/// What runs where a gateway does not say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Image of the data plane.
    pub image: String,
    /// Image of a managed Redis.
    pub redis_image: String,
}

impl Default for Release {
    fn default() -> Self {
        let image = concat!("chatgateway-dataplane:", env!("CARGO_PKG_VERSION"));
        Self { image: image.to_owned(), redis_image: "redis:7.4".to_owned() }
    }
}

/// What was seen in the cluster, as far as it matters for what is to be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The gateway's namespace. None: in a file, where none is written.
    pub namespace: Option<String>,
    /// The gateway's own uid: its objects go with it. None: in a file.
    pub uid: Option<String>,
    /// The Deployment's number of replicas now, and whether it was this operator that wrote it.
    pub replicas: Option<LiveReplicas>,
    /// The password of the managed Redis: the one that is there, or a new one. None: in a file.
    pub redis_password: Option<String>,
    /// Whether the cluster knows PodMonitors.
    pub pod_monitors: bool,
}

/// The number of replicas that a Deployment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveReplicas {
    /// How many.
    pub count: i32,
    /// Whether the operator wrote it, so that leaving it out would take it away.
    pub ours: bool,
}

/// One object as it is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its kind.
    pub kind: &'static str,
    /// Its API group and version.
    pub api_version: &'static str,
    /// Its name.
    pub name: String,
    /// All of it, as JSON.
    pub value: Value,
}

/// An object that would be there for another gateway, and is not for this one. It goes if this gateway owns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unwanted {
    /// Its kind.
    pub kind: &'static str,
    /// Its API group and version.
    pub api_version: &'static str,
    /// Its name.
    pub name: String,
}

/// What is to be in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// The objects, in the order in which they are applied.
    pub objects: Vec<Object>,
    /// What must not be there.
    pub unwanted: Vec<Unwanted>,
    /// The number of replicas that must be held on to under another name before the Deployment is applied without one: an
    /// autoscaler is about to take it over.
    pub hand_off: Option<i32>,
    /// The configuration in them.
    pub rendered: Rendered,
}

/// What is to be in the cluster for a gateway.
///
/// # Errors
/// Where the configuration cannot be rendered, or an override does not fit its object.
pub fn plan(gateway: &Validated, observed: &Observed, release: &Release) -> Result<Planned, ConfigErrors> {
    let rendered = render(gateway, &Place::cluster())?;
    let scope = Scope { gateway, names: Names::new(gateway.name()), observed, release };
    let mut objects = vec![scope.object(scope.service_account()), scope.object(scope.config_map(&rendered))];
    if let Some(managed) = gateway.managed_redis() {
        objects.extend(redis::objects(&scope, managed));
    }
    objects.push(scope.object(network::gateway(&scope)));
    objects.push(scope.object(deployment::deployment(&scope, &rendered)));
    objects.extend([scope.object(service::main(&scope)), scope.object(service::headless(&scope))]);
    objects.extend(gateway.autoscaling().map(|autoscaling| scope.object(scaling::autoscaler(&scope, autoscaling))));
    objects.push(scope.object(scaling::disruption_budget(&scope)));
    if observed.pod_monitors {
        objects.push(scope.pod_monitor());
    }
    overrides::apply(&gateway.spec().overrides, gateway.name(), &mut objects)?;
    objects.iter_mut().for_each(Object::seal);
    let hand_off = observed.replicas.filter(|live| gateway.autoscaling().is_some() && live.ours).map(|live| live.count);
    Ok(Planned { unwanted: unwanted(&scope), objects, hand_off, rendered })
}

/// What only some gateways have, and this one has not.
fn unwanted(scope: &Scope<'_>) -> Vec<Unwanted> {
    let mut unwanted = Vec::new();
    let mut add = |kind, api_version, name: &str| unwanted.push(Unwanted { kind, api_version, name: name.to_owned() });
    if scope.gateway.autoscaling().is_none() {
        add("HorizontalPodAutoscaler", "autoscaling/v2", scope.gateway.name());
    }
    if scope.gateway.managed_redis().is_none() {
        // The volume and the password stay: who comes back to a managed Redis finds the sessions.
        for (kind, api_version) in
            [("StatefulSet", "apps/v1"), ("Service", "v1"), ("NetworkPolicy", "networking.k8s.io/v1")]
        {
            add(kind, api_version, &scope.names.redis);
        }
    }
    unwanted
}

/// What the objects of one gateway are made from.
struct Scope<'a> {
    gateway: &'a Validated,
    names: Names,
    observed: &'a Observed,
    release: &'a Release,
}

impl Scope<'_> {
    /// Metadata of an object of the gateway.
    fn metadata(&self, name: &str, component: Component) -> ObjectMeta {
        let owner = self.observed.uid.as_ref().map(|uid| OwnerReference {
            api_version: manifest::API_VERSION.to_owned(),
            kind: manifest::KIND.to_owned(),
            name: self.gateway.name().to_owned(),
            uid: uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        });
        ObjectMeta {
            name: Some(name.to_owned()),
            namespace: self.observed.namespace.clone(),
            labels: Some(self.names.labels(component)),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }

    /// What selects the pods of a component.
    fn selector(&self, component: Component) -> LabelSelector {
        LabelSelector { match_labels: Some(self.names.selector(component)), ..LabelSelector::default() }
    }

    fn object<K: k8s_openapi::Metadata<Ty = ObjectMeta> + Serialize>(&self, object: K) -> Object {
        let name = object.metadata().name.clone().unwrap_or_default();
        // Named fields and strings: there always is a JSON form.
        let value = serde_json::to_value(&object).unwrap_or_default();
        Object { kind: K::KIND, api_version: K::API_VERSION, name, value }
    }

    fn service_account(&self) -> ServiceAccount {
        ServiceAccount {
            metadata: self.metadata(self.gateway.name(), Component::Gateway),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        }
    }

    fn config_map(&self, rendered: &Rendered) -> ConfigMap {
        let mut metadata = self.metadata(&self.names.config, Component::Gateway);
        metadata.annotations = Some(BTreeMap::from([(CONFIG_HASH.to_owned(), rendered.settings.hash.clone())]));
        ConfigMap {
            metadata,
            data: Some(BTreeMap::from([(names::CONFIG_FILE.to_owned(), rendered.text.clone())])),
            ..ConfigMap::default()
        }
    }

    /// Where the cluster has the Prometheus operator.
    fn pod_monitor(&self) -> Object {
        let metadata = serde_json::to_value(self.metadata(self.gateway.name(), Component::Gateway)).unwrap_or_default();
        let value = json!({
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": self.names.selector(Component::Gateway)},
                "podMetricsEndpoints": [{"port": names::ADMIN_PORT, "path": "/metrics"}],
            },
        });
        let name = self.gateway.name().to_owned();
        Object { kind: "PodMonitor", api_version: "monitoring.coreos.com/v1", name, value }
    }
}

impl Object {
    /// Whether it has pods, and an operator wrote it last from something else: `annotations` are those of the object that is
    /// there.
    #[must_use]
    pub fn replaces_pods(&self, annotations: &BTreeMap<String, String>) -> bool {
        WITH_PODS.contains(&self.kind) && annotations.get(APPLIED_HASH).is_some_and(|hash| hash != self.hash())
    }

    /// Notes the hash of what the object is to be on it.
    fn seal(&mut self) {
        let hash = crate::plan::sha256(&self.value);
        self.value["metadata"]["annotations"][APPLIED_HASH] = Value::String(hash);
    }

    /// The hash of what it is to be.
    #[must_use]
    pub fn hash(&self) -> &str {
        self.value["metadata"]["annotations"][APPLIED_HASH].as_str().unwrap_or_default()
    }
}
