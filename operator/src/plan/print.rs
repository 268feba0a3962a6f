//! The objects of a plan, as they are printed.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::plan::config::Rendered;
use crate::validate::Validated;

/// The file's name in the ConfigMap, and where it is mounted.
const FILE: &str = "config.yaml";

/// The ConfigMap with the data plane's configuration.
#[must_use]
pub fn config_map(gateway: &Validated, namespace: Option<&str>, rendered: &Rendered) -> ConfigMap {
    let labels = [
        ("app.kubernetes.io/name", "chatgateway"),
        ("app.kubernetes.io/instance", gateway.name()),
        ("app.kubernetes.io/managed-by", "chatgateway-operator"),
    ];
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(format!("{}-config", gateway.name())),
            namespace: namespace.map(str::to_owned),
            labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()),
            annotations: Some(BTreeMap::from([(
                "chatgateway.dev/config-hash".to_owned(),
                rendered.settings.hash.clone(),
            )])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(FILE.to_owned(), rendered.text.clone())])),
        ..ConfigMap::default()
    }
}
