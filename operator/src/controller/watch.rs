//! What is watched, and whom a change concerns.

use std::fmt::Debug;
use std::pin::Pin;

use chatgateway_api::ChatGateway;
use futures_util::{FutureExt, Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Pod, PodSpec, PodStatus, PodTemplateSpec, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{Predicate, WatchStreamExt, predicates, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::manifest;

/// What the operator's own objects are found by.
const OURS: &str = "app.kubernetes.io/managed-by=chatgateway-operator";

/// The label with the gateway's name.
const INSTANCE: &str = "app.kubernetes.io/instance";

/// What `kubectl apply` leaves on an object: all of it once more.
pub(super) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Objects asked for at a time when all of a kind are listed: a page is in memory as it came, and as objects.
const PAGE: u32 = 100;

/// Changes of objects of one kind.
pub(super) type Changes<K> = Pin<Box<dyn Stream<Item = Result<K, watcher::Error>> + Send>>;

/// What is known of the cluster.
pub(super) struct Stores {
    pub(super) gateways: Store<ChatGateway>,
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
    pub(super) gateways: Changes<ChatGateway>,
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

/// A change, for the controller. What goes wrong with a watch is told to people only. It begins again by itself, after pauses of its
/// own; to the controller, an error of one would be a reason to listen to none of them for a while, and with a dozen of them that
/// adds up to minutes.
fn told<K: Resource<DynamicType = ()>>(change: Result<K, watcher::Error>) -> Option<Result<K, watcher::Error>> {
    change.map(Ok).map_err(|error| tracing::warn!(kind = %K::kind(&()), "watch: {error}")).ok()
}

/// Watches one kind: fills the store, and tells of what changed. Objects lose what nobody here looks at before they are kept.
fn reflected<K>(api: Api<K>, config: watcher::Config, trim: fn(&mut K)) -> (Store<K>, Changes<K>)
where
    K: Resource<DynamicType = ()> + ResourceExt + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (reader, writer) = store();
    let changes = watcher(api, config.page_size(PAGE))
        .modify(move |object| {
            object.meta_mut().managed_fields = None;
            object.annotations_mut().remove(LAST_APPLIED);
            trim(object);
        })
        .default_backoff()
        .reflect(writer)
        .touched_objects()
        .predicate_filter(predicates::resource_version, Default::default())
        .filter_map(|change| async move { told(change) });
    (reader, Box::pin(changes))
}

/// The gateways themselves. What is only said of one, its status above all, is no reason to look at it again.
fn gateways(client: &Client, namespace: Option<&str>) -> (Store<ChatGateway>, Changes<ChatGateway>) {
    let (reader, writer) = store();
    let changes = watcher(api::<ChatGateway>(client, namespace), watcher::Config::default().page_size(PAGE))
        .modify(|gateway| {
            gateway.metadata.managed_fields = None;
            gateway.annotations_mut().remove(LAST_APPLIED);
        })
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .predicate_filter(predicates::generation.combine(predicates::finalizers), Default::default())
        .filter_map(|change| async move { told(change) });
    (reader, Box::pin(changes))
}

/// Of a Deployment: how many pods, and what [`super::reconcile`] compares to say why they are replaced.
fn trim_deployment(deployment: &mut Deployment) {
    let Some(spec) = &mut deployment.spec else { return };
    let template = std::mem::take(&mut spec.template);
    let pod = template.spec.map(|pod| PodSpec {
        termination_grace_period_seconds: pod.termination_grace_period_seconds,
        containers: pod.containers.into_iter().map(trim_container).collect(),
        ..PodSpec::default()
    });
    let annotations = template.metadata.and_then(|metadata| metadata.annotations);
    *spec = DeploymentSpec {
        replicas: spec.replicas,
        template: PodTemplateSpec { metadata: Some(ObjectMeta { annotations, ..ObjectMeta::default() }), spec: pod },
        ..DeploymentSpec::default()
    };
}

fn trim_container(container: Container) -> Container {
    let Container { name, image, resources, volume_mounts, .. } = container;
    Container { name, image, resources, volume_mounts, ..Container::default() }
}

/// Of a StatefulSet: whether its pod is ready.
fn trim_stateful_set(set: &mut StatefulSet) {
    set.spec = None;
}

/// Of a pod: whether it runs, where it can be asked, and why it does not start.
fn trim_pod(pod: &mut Pod) {
    pod.spec = None;
    let Some(status) = &mut pod.status else { return };
    let PodStatus { conditions, container_statuses, phase, pod_ip, .. } = std::mem::take(status);
    *status = PodStatus { conditions, container_statuses, phase, pod_ip, ..PodStatus::default() };
}

/// Of a Secret: its version, and whose it is. What people write beside its content may be as secret as that is.
fn trim_secret(secret: &mut PartialObjectMeta<Secret>) {
    secret.metadata.annotations = None;
    secret.metadata.labels = None;
}

/// The same for children, of which only whose they are matters.
fn children<K>(
    client: &Client,
    namespace: Option<&str>,
    all: &mut Vec<Changes<PartialObjectMeta<ChatGateway>>>,
    trim: fn(&mut K),
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
    let (reader, changes) = reflected(api::<K>(client, namespace), watcher::Config::default().labels(OURS), trim);
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
    let (pods, changed_pods) = reflected(api::<Pod>(client, namespace), pods, trim_pod);
    // Anybody's Secret may be named by a gateway. Their contents are not kept.
    let secrets = api::<PartialObjectMeta<Secret>>(client, namespace);
    let (secrets, changed_secrets) = reflected(secrets, watcher::Config::default(), trim_secret);
    let (gateways, changed_gateways) = gateways(client, namespace);
    let stores = Stores {
        gateways,
        deployments: children(client, namespace, &mut all, trim_deployment),
        stateful_sets: children(client, namespace, &mut all, trim_stateful_set),
        config_maps: children(client, namespace, &mut all, |_| {}),
        services: children(client, namespace, &mut all, |_| {}),
        service_accounts: children(client, namespace, &mut all, |_| {}),
        autoscalers: children(client, namespace, &mut all, |_| {}),
        budgets: children(client, namespace, &mut all, |_| {}),
        policies: children(client, namespace, &mut all, |_| {}),
        pods,
        secrets,
    };
    Watched { stores, gateways: changed_gateways, children: all, pods: changed_pods, secrets: changed_secrets }
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
            pod.metadata.namespace.as_deref() == Some(namespace)
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
