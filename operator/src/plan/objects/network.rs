//! Who may reach the pods.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Scope;
use super::names::{ADMIN_PORT, Component, GRPC_PORT, HTTP_PORT, REDIS_PORT};

/// Clients come from anywhere; the admin port is for pods of the cluster: the operator, and who collects metrics. Where the
/// gateway calls is not restricted, since model servers can be anywhere.
pub(super) fn gateway(scope: &Scope<'_>) -> NetworkPolicy {
    let clients = NetworkPolicyIngressRule { ports: Some(ports(&[HTTP_PORT, GRPC_PORT])), from: None };
    let anybody_here =
        NetworkPolicyPeer { namespace_selector: Some(LabelSelector::default()), ..NetworkPolicyPeer::default() };
    let admin = NetworkPolicyIngressRule { ports: Some(ports(&[ADMIN_PORT])), from: Some(vec![anybody_here]) };
    policy(scope, scope.gateway.name(), Component::Gateway, vec![clients, admin], &["Ingress"])
}

/// Only the gateway's pods; and Redis calls nobody.
pub(super) fn redis(scope: &Scope<'_>) -> NetworkPolicy {
    let pods = Some(scope.selector(Component::Gateway));
    let from = NetworkPolicyPeer { pod_selector: pods, ..NetworkPolicyPeer::default() };
    let rule = NetworkPolicyIngressRule { ports: Some(ports(&[REDIS_PORT])), from: Some(vec![from]) };
    policy(scope, &scope.names.redis, Component::Redis, vec![rule], &["Ingress", "Egress"])
}

fn ports(names: &[&str]) -> Vec<NetworkPolicyPort> {
    let port = |name: &&str| NetworkPolicyPort {
        port: Some(IntOrString::String((*name).to_owned())),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    };
    names.iter().map(port).collect()
}

fn policy(
    scope: &Scope<'_>,
    name: &str,
    component: Component,
    ingress: Vec<NetworkPolicyIngressRule>,
    types: &[&str],
) -> NetworkPolicy {
    NetworkPolicy {
        metadata: scope.metadata(name, component),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(scope.selector(component)),
            ingress: Some(ingress),
            policy_types: Some(types.iter().map(|kind| (*kind).to_owned()).collect()),
            ..NetworkPolicySpec::default()
        }),
    }
}
