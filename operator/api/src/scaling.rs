//! How the number of pods follows the load.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerBehavior;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the number of pods follows the load.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!has(self.minReplicas) || self.minReplicas <= self.maxReplicas")
    .message("minReplicas must not exceed maxReplicas"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Autoscaling {
    /// Never fewer pods. 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub min_replicas: Option<i32>,
    /// Never more pods.
    #[schemars(range(min = 1, max = 1_000))]
    pub max_replicas: i32,
    /// What is measured. The metric that asks for the most pods wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub metrics: Vec<Metric>,
    /// How fast the number changes, as in a HorizontalPodAutoscaler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<HorizontalPodAutoscalerBehavior>,
}

/// One metric and its target.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metric {
    /// What is measured.
    #[serde(rename = "type")]
    pub kind: MetricType,
    /// What each pod should have of it: percent of its CPU request, connections, or turns that run.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub target: i32,
}

/// What can be measured.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetricType {
    /// CPU, in percent of what the pod requests.
    #[serde(rename = "CPU")]
    Cpu,
    /// Client connections.
    Connections,
    /// Turns that run.
    ActiveTurns,
}
