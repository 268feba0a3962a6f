//! The `ChatGateway` resource, as users write it. Types and schema only; what a resource means is decided elsewhere.
//!
//! What the configuration file of the data plane has too (pool, timeouts, drain, …) are the same types
//! ([`chatgateway_config::parts`]). Rules that the API server can check are CEL rules here; everything is checked again by
//! the operator, which tells all violations at once.

#![allow(clippy::duplicated_attributes, reason = "each printed column has its own `type_` and `priority`")]

mod crd;
mod pod;
mod scaling;
mod sessions;
mod status;
mod upstream;

use std::collections::BTreeMap;

use chatgateway_config::parts::{Drain, Keepalive, Limits, Log, RateLimit};
use kube::{CustomResource, KubeSchema};
use schemars::Schema;
use serde::{Deserialize, Serialize};

pub use crd::crd;
pub use pod::{Pod, Service, ServiceType};
pub use scaling::{Autoscaling, Metric, MetricType};
pub use sessions::{
    DeletionPolicy, ExternalRedis, ManagedRedis, RedisAuth, RedisAuthSecret, RedisStore, RedisTls, Sessions, Store,
    TLS_CERTIFICATE_KEY, TLS_KEY_KEY,
};
pub use status::ChatGatewayStatus;
pub use upstream::{OpenAi, SecretKey, Upstream};

/// What the gateway is to be.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "chatgateway.dev",
    version = "v1alpha1",
    kind = "ChatGateway",
    plural = "chatgateways",
    shortname = "cgw",
    category = "chat",
    doc = "A chat gateway: WebSocket, gRPC, SSE and OpenAI-compatible endpoints in front of language models.",
    namespaced,
    status = "ChatGatewayStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Store", type_ = "string", json_path = ".spec.sessions.store.type"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1
    ),
    printcolumn(name = "Config", type_ = "string", json_path = ".status.configHash", priority = 1)
)]
#[x_kube(validation = Rule::new("!(has(self.replicas) && has(self.autoscaling))")
    .message("replicas and autoscaling exclude each other: give one of them"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChatGatewaySpec {
    /// The data plane's container image. By default that of the operator's own release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// How many pods. 1 by default. Not together with `autoscaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000))]
    pub replicas: Option<i32>,
    /// How the number of pods follows the load. Not together with `replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Nothing is changed while this is true, and what runs goes on. False by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// How the gateway is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Model servers, the preferred one first.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub upstreams: Vec<Upstream>,
    /// Sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Sessions>,
    /// Rate limits. A turn must pass all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub rate_limits: Vec<RateLimit>,
    /// How dead connections are found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Keepalive>,
    /// How a pod leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// What one client and all together may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What is logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Log>,
    /// Settings of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// A JSON merge patch for each kind of child object, by the kind's name: `Deployment`, `Service`, …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "free_form")]
    pub overrides: BTreeMap<String, serde_json::Value>,
}

/// An object of any shape.
fn free_form(_: &mut schemars::SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "object", "maxProperties": 16, "x-kubernetes-preserve-unknown-fields": true })
}

/// A bounded map of short strings: labels, annotations, a node selector.
fn string_map(_: &mut schemars::SchemaGenerator) -> Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "type": "string", "maxLength": 4096 },
    })
}
