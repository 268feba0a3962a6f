//! Names, labels and ports: what objects know each other by.

use std::collections::BTreeMap;

/// The label with the name of the software.
pub(super) const NAME: &str = "app.kubernetes.io/name";
/// The label with the gateway's name.
pub(super) const INSTANCE: &str = "app.kubernetes.io/instance";
/// The label with the part that an object belongs to.
pub(super) const COMPONENT: &str = "app.kubernetes.io/component";
/// The label with who looks after it.
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// The configuration's name in its ConfigMap.
pub(super) const CONFIG_FILE: &str = "config.yaml";
/// Where the ConfigMap is mounted.
pub(super) const CONFIG_FOLDER: &str = "/etc/chatgateway/config";

/// The port of WebSocket, HTTP and the page, by name.
pub(super) const HTTP_PORT: &str = "http";
/// The port of gRPC, by name.
pub(super) const GRPC_PORT: &str = "grpc";
/// The port of health, metrics and drain, by name.
pub(super) const ADMIN_PORT: &str = "admin";
/// The port of a managed Redis, by name.
pub(super) const REDIS_PORT: &str = "redis";

/// A part of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// The data plane.
    Gateway,
    /// Its managed Redis.
    Redis,
}

/// Names of the objects of one gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    gateway: String,
    /// The ConfigMap.
    pub config: String,
    /// The Service by which each pod is found.
    pub headless: String,
    /// Everything of the managed Redis.
    pub redis: String,
}

impl Names {
    /// The names for a gateway.
    #[must_use]
    pub fn new(gateway: &str) -> Self {
        Self {
            gateway: gateway.to_owned(),
            config: format!("{gateway}-config"),
            headless: format!("{gateway}-pods"),
            redis: format!("{gateway}-redis"),
        }
    }

    /// What selects the pods of a component. Never changes while a gateway lives: a Deployment's selector cannot.
    #[must_use]
    pub fn selector(&self, component: Component) -> BTreeMap<String, String> {
        let component = match component {
            Component::Gateway => "gateway",
            Component::Redis => "redis",
        };
        let labels = [(NAME, "chatgateway"), (INSTANCE, &self.gateway), (COMPONENT, component)];
        labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// The labels of an object.
    #[must_use]
    pub fn labels(&self, component: Component) -> BTreeMap<String, String> {
        let mut labels = self.selector(component);
        labels.insert(MANAGED_BY.to_owned(), "chatgateway-operator".to_owned());
        labels
    }

    /// The selector as text, for the scale subresource.
    #[must_use]
    pub fn selector_text(&self) -> String {
        let labels = self.selector(Component::Gateway);
        labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
    }
}
