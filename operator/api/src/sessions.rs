//! Sessions and their store.

use chatgateway_config::parts::{DurationText, History, RedisMode, StoreType};
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::upstream::SecretKey;

/// Sessions.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.ttl) || duration(self.ttl) >= duration('16s')")
    .message("ttl must be at least 16s"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sessions {
    /// How long a session outlives its last turn. `15m` by default, at least `16s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<DurationText>,
    /// What is kept of a session for the next prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
    /// Where sessions are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Store>,
}

/// Where sessions are kept.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("(self.type == 'Redis') == has(self.redis)")
    .message("`redis` is needed with type Redis, and only with it"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Store {
    /// In the process, with one replica, or in Redis.
    #[serde(rename = "type")]
    pub kind: StoreType,
    /// With `type: Redis`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisStore>,
}

/// A Redis: one that the operator runs, or another.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("has(self.managed) != has(self.external)")
    .message("give either `managed` or `external`"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisStore {
    /// One small Redis that the operator runs for this gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedRedis>,
    /// A Redis that is there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalRedis>,
}

/// A Redis that the operator runs: one server that keeps its data on a volume. For small installations.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedRedis {
    /// Size of its volume. `1Gi` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Quantity>,
    /// Its container image, Redis 7.0 or later. By default that of the operator's settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// What its container requests and may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// What becomes of its volume when the gateway is deleted. `Retain` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
}

/// What becomes of data when what it belongs to is deleted.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeletionPolicy {
    /// It stays.
    #[default]
    Retain,
    /// It goes, too.
    Delete,
}

/// A Redis that is there already. Version 7.0 or later, with `maxmemory-policy noeviction`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalRedis {
    /// How it is set up. `Standalone` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<RedisMode>,
    /// Addresses, `host:port`: of the server, of the sentinels, or of some nodes of the cluster.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 262)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub endpoints: Vec<String>,
    /// The primary's name, with `mode: Sentinel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub primary_name: Option<String>,
    /// Who the gateway is to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<RedisAuth>,
    /// How the connection is secured. Plain by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
}

/// Who the gateway is to Redis.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisAuth {
    /// The Secret with the password. A new password needs no restart.
    pub secret_ref: RedisAuthSecret,
}

/// A Secret with a password and, for a user of its own, a name.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisAuthSecret {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The key with the password. `password` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub password_key: Option<String>,
    /// The key with the user's name, where the user is not the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub username_key: Option<String>,
}

impl RedisAuthSecret {
    /// The key with the password.
    #[must_use]
    pub fn password_key(&self) -> &str {
        self.password_key.as_deref().unwrap_or("password")
    }
}

/// The key with the certificate in a Secret of type `kubernetes.io/tls`.
pub const TLS_CERTIFICATE_KEY: &str = "tls.crt";

/// The key with the certificate's key in a Secret of type `kubernetes.io/tls`.
pub const TLS_KEY_KEY: &str = "tls.key";

/// How the connection to Redis is secured. An empty object: TLS with the public certificate authorities.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisTls {
    /// The certificates that are trusted, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKey>,
    /// The name of a Secret of type `kubernetes.io/tls` with the gateway's certificate and key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub client_secret_name: Option<String>,
}
