//! The resource's definition, as it is installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use crate::ChatGateway;

/// The definition of `ChatGateway`.
#[must_use]
pub fn crd() -> CustomResourceDefinition {
    ChatGateway::crd()
}

/// The definition as a JSON value, for printing.
///
/// # Errors
/// Never for the definition that is compiled in; serialising is fallible by its type.
pub fn crd_yaml_value() -> serde_json::Result<serde_json::Value> {
    serde_json::to_value(crd())
}
