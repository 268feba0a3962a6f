//! How many pods there are, and how many may be away.

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler,
    HorizontalPodAutoscalerBehavior, HorizontalPodAutoscalerSpec, MetricSpec, MetricTarget, ResourceMetricSource,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use chatgateway_api::{Autoscaling, MetricType};

use super::Scope;
use super::names::Component;

/// Percent of the requested CPU that pods should use where nothing is said.
const CPU_PERCENT: i32 = 65;

/// How long the load must have been low before pods go. Long connections come back in waves.
const SCALE_DOWN_WINDOW_SECONDS: i32 = 300;

pub(super) fn autoscaler(scope: &Scope<'_>, autoscaling: &Autoscaling) -> HorizontalPodAutoscaler {
    let cpu = |percent: i32| MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource {
            name: "cpu".to_owned(),
            target: MetricTarget {
                type_: "Utilization".to_owned(),
                average_utilization: Some(percent),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    };
    // Other metrics are refused before.
    let wanted = autoscaling.metrics.iter().filter(|metric| metric.kind == MetricType::Cpu).map(|metric| metric.target);
    let mut metrics: Vec<_> = wanted.map(cpu).collect();
    if metrics.is_empty() {
        metrics.push(cpu(CPU_PERCENT));
    }
    HorizontalPodAutoscaler {
        metadata: scope.metadata(scope.gateway.name(), Component::Gateway),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: "Deployment".to_owned(),
                name: scope.gateway.name().to_owned(),
            },
            min_replicas: Some(autoscaling.min_replicas.unwrap_or(1)),
            max_replicas: autoscaling.max_replicas,
            metrics: Some(metrics),
            behavior: Some(autoscaling.behavior.clone().unwrap_or_else(behavior)),
        }),
        ..HorizontalPodAutoscaler::default()
    }
}

/// Up at once; down slowly, since each pod that goes moves its connections to the others.
fn behavior() -> HorizontalPodAutoscalerBehavior {
    let policy =
        |type_: &str, value, period_seconds| HPAScalingPolicy { type_: type_.to_owned(), value, period_seconds };
    HorizontalPodAutoscalerBehavior {
        scale_up: Some(HPAScalingRules {
            stabilization_window_seconds: Some(0),
            select_policy: Some("Max".to_owned()),
            policies: Some(vec![policy("Percent", 100, 15), policy("Pods", 4, 15)]),
            ..HPAScalingRules::default()
        }),
        scale_down: Some(HPAScalingRules {
            stabilization_window_seconds: Some(SCALE_DOWN_WINDOW_SECONDS),
            select_policy: Some("Max".to_owned()),
            policies: Some(vec![policy("Percent", 10, 60), policy("Pods", 1, 60)]),
            ..HPAScalingRules::default()
        }),
    }
}

/// One pod may be away at a time; one that is not ready never holds up a node's drain.
pub(super) fn disruption_budget(scope: &Scope<'_>) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: scope.metadata(scope.gateway.name(), Component::Gateway),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(scope.selector(Component::Gateway)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        ..PodDisruptionBudget::default()
    }
}
