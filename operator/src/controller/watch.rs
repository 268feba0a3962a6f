//! What is watched, and whom a change concerns.

use std::fmt::Debug;
use std::pin::Pin;

use chatgateway_api::ChatGateway;
use futures_util::{FutureExt, Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt, predicates, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::manifest;

/// What the operator's own objects are found by.
const OURS: &str = "app.kubernetes.io/managed-by=chatgateway-operator";

/// The label with the gateway's name.
const INSTANCE: &str = "app.kubernetes.io/instance";

/// Changes of objects of one kind.
pub(super) type Changes<K> = Pin<Box<dyn Stream<Item = Result<K, watcher::Error>> + Send>>;

/// What is known of the cluster.
pub(super) struct Stores {
    pub(super) deployments: Store<Deployment>,
    pub(super) stateful_sets: Store<StatefulSet>,
    pub(super) pods: Store<Pod>,
    pub(super) secrets: Store<PartialObjectMeta<Secret>>,
    config_maps: Store<PartialObjectMeta<ConfigMap>>,
    services: Store<PartialObjectMeta<Service>>,
    service_accounts: Store<PartialObjectMeta<ServiceAccount>>,
    autoscalers: Store<PartialObjectMeta<HorizontalPodAutoscaler>>,
    budgets: Store<PartialObjectMeta<PodDisruptionBudget>>,
    policies: Store<PartialObjectMeta<NetworkPolicy>>,
}

/// The stores, and the changes that fill them. Nothing happens unless the changes are read.
pub(super) struct Watched {
    pub(super) stores: Stores,
    pub(super) gateways: (Store<ChatGateway>, Changes<ChatGateway>),
    pub(super) children: Vec<Changes<PartialObjectMeta<ChatGateway>>>,
    pub(super) pods: Changes<Pod>,
    pub(super) secrets: Changes<PartialObjectMeta<Secret>>,
}

/// The objects of a kind in one namespace, or in all.
pub(super) fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// Watches one kind: fills the store, and tells of what changed.
///
/// What goes wrong with a watch is told to people only. It begins again by itself, after pauses of its own; to the controller, an
/// error of one would be a reason to listen to none of them for a while, and with a dozen of them that adds up to minutes.
fn reflected<K>(api: Api<K>, config: watcher::Config) -> (Store<K>, Changes<K>)
where
    K: Resource<DynamicType = ()> + ResourceExt + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (reader, writer) = store();
    let changes = watcher(api, config)
        .modify(|object| {
            object.managed_fields_mut().clear();
        })
        .default_backoff()
        .reflect(writer)
        .touched_objects()
        .predicate_filter(predicates::resource_version, Default::default())
        .filter_map(|change| async move {
            change.map(Ok).map_err(|error| tracing::warn!(kind = %K::kind(&()), "watch: {error}")).ok()
        });
    (reader, Box::pin(changes))
}

/// The same for children, of which only whose they are matters.
fn children<K>(
    client: &Client,
    namespace: Option<&str>,
    all: &mut Vec<Changes<PartialObjectMeta<ChatGateway>>>,
) -> Store<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + ResourceExt
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    let (reader, changes) = reflected(api::<K>(client, namespace), watcher::Config::default().labels(OURS));
    all.push(Box::pin(changes.map(|change| {
        change.map(|object| {
            let metadata = ObjectMeta {
                // Triggers are named in logs.
                name: object.meta().name.clone(),
                namespace: object.meta().namespace.clone(),
                owner_references: object.meta().owner_references.clone(),
                ..ObjectMeta::default()
            };
            PartialObjectMeta { types: None, metadata, _phantom: std::marker::PhantomData }
        })
    })));
    reader
}

/// Begins to watch.
pub(super) fn start(client: &Client, namespace: Option<&str>) -> Watched {
    let mut all = Vec::new();
    let pods = watcher::Config::default().labels(&format!("{OURS},app.kubernetes.io/component=gateway"));
    let (pods, changed_pods) = reflected(api::<Pod>(client, namespace), pods);
    // Anybody's Secret may be named by a gateway. Their contents are not kept.
    let secrets = api::<PartialObjectMeta<Secret>>(client, namespace);
    let (secrets, changed_secrets) = reflected(secrets, watcher::Config::default());
    let stores = Stores {
        deployments: children(client, namespace, &mut all),
        stateful_sets: children(client, namespace, &mut all),
        config_maps: children(client, namespace, &mut all),
        services: children(client, namespace, &mut all),
        service_accounts: children(client, namespace, &mut all),
        autoscalers: children(client, namespace, &mut all),
        budgets: children(client, namespace, &mut all),
        policies: children(client, namespace, &mut all),
        pods,
        secrets,
    };
    let gateways = reflected(api::<ChatGateway>(client, namespace), watcher::Config::default());
    Watched { stores, gateways, children: all, pods: changed_pods, secrets: changed_secrets }
}

impl Stores {
    /// Whether everything that was there at the start is known. Nobody may wait for it in a reconciliation: as many of them as
    /// may run at a time would keep the controller from reading what fills the stores.
    pub(super) fn are_filled(&self) -> bool {
        let filled = futures_util::future::join_all([
            self.deployments.wait_until_ready().boxed(),
            self.stateful_sets.wait_until_ready().boxed(),
            self.pods.wait_until_ready().boxed(),
            self.secrets.wait_until_ready().boxed(),
            self.config_maps.wait_until_ready().boxed(),
            self.services.wait_until_ready().boxed(),
            self.service_accounts.wait_until_ready().boxed(),
            self.autoscalers.wait_until_ready().boxed(),
            self.budgets.wait_until_ready().boxed(),
            self.policies.wait_until_ready().boxed(),
        ]);
        filled.now_or_never().is_some_and(|all| all.iter().all(Result::is_ok))
    }

    /// Whether objects of a kind are watched.
    pub(super) fn holds(kind: &str) -> bool {
        // Its API may come and go.
        kind != "PodMonitor"
    }

    /// What is known of an object of the operator's own.
    pub(super) fn meta(&self, kind: &str, namespace: &str, name: &str) -> Option<ObjectMeta> {
        fn of<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<ObjectMeta>
        where
            K: Resource<DynamicType = ()> + Clone + 'static,
        {
            store.get(&ObjectRef::new(name).within(namespace)).map(|object| object.meta().clone())
        }
        match kind {
            "ConfigMap" => of(&self.config_maps, namespace, name),
            "Deployment" => of(&self.deployments, namespace, name),
            "HorizontalPodAutoscaler" => of(&self.autoscalers, namespace, name),
            "NetworkPolicy" => of(&self.policies, namespace, name),
            "PodDisruptionBudget" => of(&self.budgets, namespace, name),
            "Secret" => of(&self.secrets, namespace, name),
            "Service" => of(&self.services, namespace, name),
            "ServiceAccount" => of(&self.service_accounts, namespace, name),
            "StatefulSet" => of(&self.stateful_sets, namespace, name),
            _ => None,
        }
    }

    /// The pods of a gateway.
    pub(super) fn pods_of(&self, namespace: &str, gateway: &str) -> Vec<std::sync::Arc<Pod>> {
        self.pods.state_filter(|pod| {
            pod.namespace().as_deref() == Some(namespace)
                && pod.labels().get(INSTANCE).is_some_and(|instance| instance == gateway)
        })
    }
}

/// The gateway that a child belongs to.
pub(super) fn owner(child: PartialObjectMeta<ChatGateway>) -> Option<ObjectRef<ChatGateway>> {
    let owners = child.metadata.owner_references.unwrap_or_default();
    let owner = owners.into_iter().find(|owner| owner.kind == manifest::KIND && owner.controller == Some(true))?;
    Some(ObjectRef::new(&owner.name).within(child.metadata.namespace.as_deref()?))
}

/// The gateway that a pod belongs to.
pub(super) fn gateway_of_pod(pod: Pod) -> Option<ObjectRef<ChatGateway>> {
    Some(ObjectRef::new(pod.labels().get(INSTANCE)?).within(pod.metadata.namespace.as_deref()?))
}
