//! A managed Redis: one server that keeps its data on a volume.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, EnvVarSource, ExecAction, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PodSpec, PodTemplateSpec, Probe, Secret, SecretKeySelector, SecretVolumeSource, Service, ServicePort, ServiceSpec,
    TCPSocketAction, Volume, VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use chatgateway_api::{DeletionPolicy, ManagedRedis};

use super::names::{Component, REDIS_PORT};
use super::{Object, Scope, deployment, network};
use crate::plan::config;

/// The key of the Secret with the password.
pub(super) const PASSWORD_KEY: &str = "password";
/// The key of the Secret with the server's configuration, which holds the password too.
const CONFIG_KEY: &str = "redis.conf";
/// Where the Secret is mounted.
const CONFIG_FOLDER: &str = "/etc/redis";
/// Where the data are.
const DATA_FOLDER: &str = "/data";
/// Size of the volume where nothing is said.
const STORAGE: &str = "1Gi";
/// What its pod requests where nothing is said.
const CPU: &str = "100m";
const MEMORY: &str = "128Mi";
/// How long a Redis may take for its last write to the disk.
const GRACE_SECONDS: i64 = 60;

pub(super) fn objects(scope: &Scope<'_>, managed: &ManagedRedis) -> Vec<Object> {
    let secret = scope.observed.redis_password.as_ref().map(|password| scope.object(secret(scope, password)));
    let rest =
        [scope.object(service(scope)), scope.object(stateful_set(scope, managed)), scope.object(network::redis(scope))];
    secret.into_iter().chain(rest).collect()
}

fn secret(scope: &Scope<'_>, password: &str) -> Secret {
    let config = format!(
        "dir {DATA_FOLDER}\nappendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\nsave \"\"\n\
         tcp-keepalive 60\nprotected-mode no\nrequirepass {password}\n"
    );
    let data = [(PASSWORD_KEY, password.to_owned()), (CONFIG_KEY, config)];
    let data = data.into_iter().map(|(key, text)| (key.to_owned(), k8s_openapi::ByteString(text.into_bytes())));
    Secret {
        metadata: scope.metadata(&scope.names.redis, Component::Redis),
        type_: Some("Opaque".to_owned()),
        data: Some(data.collect()),
        ..Secret::default()
    }
}

fn service(scope: &Scope<'_>) -> Service {
    let port = ServicePort {
        name: Some(REDIS_PORT.to_owned()),
        port: config::REDIS_PORT.into(),
        target_port: Some(IntOrString::String(REDIS_PORT.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    Service {
        metadata: scope.metadata(&scope.names.redis, Component::Redis),
        spec: Some(ServiceSpec {
            selector: Some(scope.names.selector(Component::Redis)),
            ports: Some(vec![port]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn stateful_set(scope: &Scope<'_>, managed: &ManagedRedis) -> StatefulSet {
    let when_deleted = match managed.deletion_policy.unwrap_or_default() {
        DeletionPolicy::Retain => "Retain",
        DeletionPolicy::Delete => "Delete",
    };
    StatefulSet {
        metadata: scope.metadata(&scope.names.redis, Component::Redis),
        spec: Some(StatefulSetSpec {
            service_name: Some(scope.names.redis.clone()),
            replicas: Some(1),
            selector: scope.selector(Component::Redis),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some(when_deleted.to_owned()),
                when_scaled: Some("Retain".to_owned()),
            }),
            volume_claim_templates: Some(vec![claim(managed)]),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(scope.names.labels(Component::Redis)),
                    ..ObjectMeta::default()
                }),
                spec: Some(pod(scope, managed)),
            },
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn claim(managed: &ManagedRedis) -> PersistentVolumeClaim {
    let size = managed.storage.clone().unwrap_or_else(|| Quantity(STORAGE.to_owned()));
    PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some("data".to_owned()), ..ObjectMeta::default() },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([("storage".to_owned(), size)])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

fn pod(scope: &Scope<'_>, managed: &ManagedRedis) -> PodSpec {
    let config = Volume {
        name: "config".to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(scope.names.redis.clone()),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    PodSpec {
        containers: vec![container(scope, managed)],
        volumes: Some(vec![config]),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(deployment::pod_security()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        ..PodSpec::default()
    }
}

fn container(scope: &Scope<'_>, managed: &ManagedRedis) -> Container {
    let password = EnvVar {
        name: "REDISCLI_AUTH".to_owned(),
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: scope.names.redis.clone(),
                key: PASSWORD_KEY.to_owned(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    };
    let mount = |name: &str, path: &str, read_only: Option<bool>| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only,
        ..VolumeMount::default()
    };
    // `-e`: an error, such as that the data are still being read, is an exit code.
    let ping = ["redis-cli", "-e", "ping"].map(str::to_owned).to_vec();
    Container {
        name: "redis".to_owned(),
        image: Some(managed.image.clone().unwrap_or_else(|| scope.release.redis_image.clone())),
        command: Some(vec!["redis-server".to_owned(), format!("{CONFIG_FOLDER}/{CONFIG_KEY}")]),
        env: Some(vec![password]),
        ports: Some(vec![ContainerPort {
            name: Some(REDIS_PORT.to_owned()),
            container_port: config::REDIS_PORT.into(),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(Probe {
            exec: Some(ExecAction { command: Some(ping) }),
            period_seconds: Some(5),
            timeout_seconds: Some(3),
            ..Probe::default()
        }),
        // Reading a large file at the start must not get it killed: only a dead listener does.
        liveness_probe: Some(Probe {
            tcp_socket: Some(TCPSocketAction {
                port: IntOrString::String(REDIS_PORT.to_owned()),
                ..TCPSocketAction::default()
            }),
            period_seconds: Some(10),
            failure_threshold: Some(6),
            ..Probe::default()
        }),
        resources: Some(managed.resources.clone().unwrap_or_else(|| deployment::requests(CPU, MEMORY))),
        security_context: Some(deployment::security()),
        volume_mounts: Some(vec![mount("data", DATA_FOLDER, None), mount("config", CONFIG_FOLDER, Some(true))]),
        ..Container::default()
    }
}
