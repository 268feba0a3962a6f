//! The Services.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use chatgateway_api::ServiceType;

use super::Scope;
use super::names::{ADMIN_PORT, Component, GRPC_PORT, HTTP_PORT};
use crate::plan::config::Place;

/// The one that clients use.
pub(super) fn main(scope: &Scope<'_>) -> Service {
    let wanted = scope.gateway.spec().service.clone().unwrap_or_default();
    let kind = match wanted.kind.unwrap_or(ServiceType::ClusterIP) {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    let mut metadata = scope.metadata(scope.gateway.name(), Component::Gateway);
    if !wanted.annotations.is_empty() {
        metadata.annotations = Some(wanted.annotations);
    }
    let spec = ServiceSpec { type_: Some(kind.to_owned()), ports: Some(ports(false)), ..selected(scope) };
    Service { metadata, spec: Some(spec), ..Service::default() }
}

/// The one that resolves to each pod: for gRPC clients that balance by themselves, and for those who ask the pods.
pub(super) fn headless(scope: &Scope<'_>) -> Service {
    let metadata = scope.metadata(&scope.names.headless, Component::Gateway);
    let spec = ServiceSpec { cluster_ip: Some("None".to_owned()), ports: Some(ports(true)), ..selected(scope) };
    Service { metadata, spec: Some(spec), ..Service::default() }
}

fn selected(scope: &Scope<'_>) -> ServiceSpec {
    ServiceSpec { selector: Some(scope.names.selector(Component::Gateway)), ..ServiceSpec::default() }
}

fn ports(admin: bool) -> Vec<ServicePort> {
    let place = Place::cluster();
    let port = |name: &str, number: u16, protocol: Option<&str>| ServicePort {
        name: Some(name.to_owned()),
        port: number.into(),
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        app_protocol: protocol.map(str::to_owned),
        ..ServicePort::default()
    };
    let mut ports = vec![
        port(HTTP_PORT, place.http_port, Some("http")),
        port(GRPC_PORT, place.grpc_port, Some("kubernetes.io/h2c")),
    ];
    if admin {
        ports.push(port(ADMIN_PORT, place.admin_port, Some("http")));
    }
    ports
}
