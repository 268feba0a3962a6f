//! The data plane's Deployment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, ExecAction, HTTPGetAction, KeyToPath, Lifecycle,
    LifecycleHandler, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile,
    SecretVolumeSource, SecurityContext, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::names::{ADMIN_PORT, CONFIG_FILE, CONFIG_FOLDER, Component, GRPC_PORT, HTTP_PORT};
use super::{COLD_HASH, Scope};
use crate::plan::config::{Place, Rendered};

/// The data plane's program in its image.
const PROGRAM: &str = "/chatgateway-dataplane";

/// What a pod has beyond its drain until it is killed: the drain command's own time, and the exit.
const GRACE_MARGIN: Duration = Duration::from_secs(15);

/// How long a new pod must be ready before the next one is replaced: one that dies at its first chats is noticed.
const MIN_READY_SECONDS: i32 = 5;

/// How long a rollout may stand still before it is called failed.
const PROGRESS_DEADLINE_SECONDS: i32 = 600;

/// What a pod requests where nothing is said. An autoscaler on CPU needs a request to measure against.
const CPU: &str = "250m";
const MEMORY: &str = "128Mi";

/// The user of the containers, as images without users have it.
pub(super) const USER: i64 = 65_532;

pub(super) fn deployment(scope: &Scope<'_>, rendered: &Rendered) -> Deployment {
    let gateway = scope.gateway;
    // An autoscaler's number is its own.
    let replicas = gateway.autoscaling().is_none().then(|| i32::try_from(gateway.replicas()).unwrap_or(i32::MAX));
    Deployment {
        metadata: scope.metadata(gateway.name(), Component::Gateway),
        spec: Some(DeploymentSpec {
            replicas,
            selector: scope.selector(Component::Gateway),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::String("25%".to_owned())),
                }),
            }),
            min_ready_seconds: Some(MIN_READY_SECONDS),
            progress_deadline_seconds: Some(PROGRESS_DEADLINE_SECONDS),
            revision_history_limit: Some(3),
            template: template(scope, rendered),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

fn template(scope: &Scope<'_>, rendered: &Rendered) -> PodTemplateSpec {
    let pod = scope.gateway.spec().pod.clone().unwrap_or_default();
    let mut all = pod.labels.clone();
    all.extend(scope.names.labels(Component::Gateway));
    let mut annotations = pod.annotations.clone();
    annotations.insert(COLD_HASH.to_owned(), rendered.settings.cold_hash());
    let spread = if pod.topology_spread_constraints.is_empty() {
        vec![TopologySpreadConstraint {
            max_skew: 1,
            topology_key: "kubernetes.io/hostname".to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(scope.selector(Component::Gateway)),
            ..TopologySpreadConstraint::default()
        }]
    } else {
        pod.topology_spread_constraints.clone()
    };
    let (volumes, mounts) = volumes(scope);
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(all), annotations: Some(annotations), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![container(scope, &pod, mounts)],
            volumes: Some(volumes),
            service_account_name: Some(scope.gateway.name().to_owned()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(pod_security()),
            termination_grace_period_seconds: Some(grace_seconds(rendered)),
            node_selector: (!pod.node_selector.is_empty()).then_some(pod.node_selector),
            tolerations: (!pod.tolerations.is_empty()).then_some(pod.tolerations),
            topology_spread_constraints: Some(spread),
            ..PodSpec::default()
        }),
    }
}

/// How long a pod has from the first word of its end to its kill: the drain, and the floor before which load balancers may
/// not know yet.
pub(super) fn grace_seconds(rendered: &Rendered) -> i64 {
    let drain = &rendered.settings.drain;
    let grace = drain.timeout + drain.accept_floor + GRACE_MARGIN;
    i64::try_from(grace.as_millis().div_ceil(1_000)).unwrap_or(i64::MAX)
}

fn container(scope: &Scope<'_>, pod: &chatgateway_api::Pod, mounts: Vec<VolumeMount>) -> Container {
    let place = Place::cluster();
    let port = |name: &str, number: u16| ContainerPort {
        name: Some(name.to_owned()),
        container_port: number.into(),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let probe = |path: &str, period: i32, failures: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ADMIN_PORT.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(2),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    let drain = ExecAction { command: Some(vec![PROGRAM.to_owned(), "drain".to_owned()]) };
    Container {
        name: "gateway".to_owned(),
        image: Some(scope.gateway.spec().image.clone().unwrap_or_else(|| scope.release.image.clone())),
        command: Some(vec![PROGRAM.to_owned()]),
        args: Some(vec!["run".to_owned(), "--config".to_owned(), format!("{CONFIG_FOLDER}/{CONFIG_FILE}")]),
        ports: Some(vec![
            port(HTTP_PORT, place.http_port),
            port(GRPC_PORT, place.grpc_port),
            port(ADMIN_PORT, place.admin_port),
        ]),
        // A process that never reached its store is not ready, and not dead either.
        startup_probe: Some(probe("/livez", 1, 60)),
        readiness_probe: Some(probe("/readyz", 2, 1)),
        liveness_probe: Some(probe("/livez", 10, 6)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler { exec: Some(drain), ..LifecycleHandler::default() }),
            ..Lifecycle::default()
        }),
        resources: Some(pod.resources.clone().unwrap_or_else(|| requests(CPU, MEMORY))),
        security_context: Some(security()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

/// Requests of a container, as quantities.
pub(super) fn requests(cpu: &str, memory: &str) -> ResourceRequirements {
    let requests = [("cpu", cpu), ("memory", memory)];
    let requests = requests.into_iter().map(|(key, value)| (key.to_owned(), Quantity(value.to_owned()))).collect();
    ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() }
}

/// The configuration, and each Secret with the keys that are used. Files, so that a changed one needs no restart.
fn volumes(scope: &Scope<'_>) -> (Vec<Volume>, Vec<VolumeMount>) {
    let config = Volume {
        name: "config".to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: scope.names.config.clone(),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    };
    let mount = |name: &str, path: String| VolumeMount {
        name: name.to_owned(),
        mount_path: path,
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let (mut volumes, mut mounts) = (vec![config], vec![mount("config", CONFIG_FOLDER.to_owned())]);
    let place = Place::cluster();
    for (index, (secret, keys)) in secrets(scope).into_iter().enumerate() {
        let name = format!("secret-{index}");
        mounts.push(mount(&name, place.secrets.join(&secret).to_string_lossy().into_owned()));
        let items = keys.into_iter().map(|key| KeyToPath { path: key.clone(), key, mode: None }).collect();
        volumes.push(Volume {
            name,
            secret: Some(SecretVolumeSource {
                secret_name: Some(secret),
                items: Some(items),
                default_mode: Some(0o440),
                optional: None,
            }),
            ..Volume::default()
        });
    }
    (volumes, mounts)
}

/// The Secrets by name, with their keys.
fn secrets(scope: &Scope<'_>) -> BTreeMap<String, BTreeSet<String>> {
    let mut secrets = BTreeMap::<_, BTreeSet<_>>::new();
    for used in scope.gateway.secrets() {
        secrets.entry(used.secret.name).or_default().insert(used.secret.key);
    }
    if scope.gateway.managed_redis().is_some() {
        let password = super::redis::PASSWORD_KEY.to_owned();
        secrets.entry(scope.names.redis.clone()).or_default().insert(password);
    }
    secrets
}

/// What the `restricted` Pod Security Standard asks of a pod.
pub(super) fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}

/// The same of a container.
pub(super) fn security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}
