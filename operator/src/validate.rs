//! Whether a `ChatGateway` makes sense: everything that is wrong with it, at once.
//!
//! What the data plane must make sense of too is checked by the data plane's own code, on the configuration that would be
//! rendered; so nothing that passes here is refused there.

use chatgateway_api::{ChatGateway, ChatGatewaySpec, RedisStore, SecretKey};
use chatgateway_config::parts::StoreType;
use chatgateway_config::{ConfigErrors, Settings, Violation};

use crate::plan::{Place, config};

/// Longest name of a gateway: objects made for it have longer ones, and a name of Kubernetes has 63 at most.
const NAME_MAX_BYTES: usize = 50;

/// Most replicas of one gateway.
const REPLICAS_MAX: i32 = 1_000;

/// Kinds of objects that `overrides` may name: those that are made for a gateway.
const CHILD_KINDS: [&str; 9] = [
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "PodMonitor",
    "Service",
    "ServiceAccount",
    "StatefulSet",
];

/// A gateway that was checked. Only [`validate`] makes one.
#[derive(Clone, Debug, PartialEq)]
pub struct Validated {
    name: String,
    spec: ChatGatewaySpec,
}

impl Validated {
    /// The gateway's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was asked for.
    #[must_use]
    pub fn spec(&self) -> &ChatGatewaySpec {
        &self.spec
    }

    /// How many pods.
    #[must_use]
    pub fn replicas(&self) -> usize {
        usize::try_from(self.spec.replicas.unwrap_or(1)).unwrap_or(0)
    }

    /// The Secrets that the data plane needs, each with the path of the field that names it.
    #[must_use]
    pub fn secrets(&self) -> Vec<(String, &SecretKey)> {
        secrets(&self.spec)
    }
}

fn secrets(spec: &ChatGatewaySpec) -> Vec<(String, &SecretKey)> {
    let keys = spec.upstreams.iter().enumerate().filter_map(|(index, upstream)| {
        let key = upstream.openai.as_ref()?.api_key_secret_ref.as_ref()?;
        Some((format!("spec.upstreams[{index}].openAI.apiKeySecretRef"), key))
    });
    keys.collect()
}

/// Checks a gateway.
///
/// # Errors
/// Everything that is wrong with it, each with its path.
pub fn validate(gateway: &ChatGateway) -> Result<Validated, ConfigErrors> {
    let name = gateway.metadata.name.clone().unwrap_or_default();
    let spec = &gateway.spec;
    let mut violations = Vec::new();
    check_name(&name, &mut violations);
    check_replicas(spec, &mut violations);
    check_store(spec, &mut violations);
    check_secrets(spec, &mut violations);
    check_overrides(spec, &mut violations);
    if spec.upstreams.is_empty() {
        let message = "is missing; give at least one, for a start `[{name: demo, type: Demo}]`";
        violations.push(Violation::new("spec.upstreams", message));
    }
    // The name is judged above, and by stricter rules.
    let file = config::file("gateway", spec, &Place::cluster());
    if let Err(errors) = Settings::resolve(&file) {
        violations.extend(errors.into_iter().map(|v| Violation { path: format!("spec.{}", v.path), ..v }));
    }
    if violations.is_empty() { Ok(Validated { name, spec: spec.clone() }) } else { Err(ConfigErrors::from(violations)) }
}

fn check_name(name: &str, violations: &mut Vec<Violation>) {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    let message = if name.is_empty() {
        "is missing; give the gateway a name".to_owned()
    } else if !plain || !starts || name.ends_with('-') {
        format!("`{name}` is no name; use lower-case letters, digits and `-`, a letter first and no `-` at the end")
    } else if name.len() > NAME_MAX_BYTES {
        format!("`{name}` is too long; at most {NAME_MAX_BYTES} characters, since names of objects are made of it")
    } else {
        return;
    };
    violations.push(Violation::new("metadata.name", message));
}

fn check_replicas(spec: &ChatGatewaySpec, violations: &mut Vec<Violation>) {
    if spec.autoscaling.is_some() {
        let message = "autoscaling is not available in this release; use replicas";
        violations.push(Violation::new("spec.autoscaling", message));
        if spec.replicas.is_some() {
            let message = "replicas and autoscaling exclude each other: give one of them";
            violations.push(Violation::new("spec.replicas", message));
        }
    }
    let Some(replicas) = spec.replicas else { return };
    if !(0..=REPLICAS_MAX).contains(&replicas) {
        let message = format!("{replicas} is out of range; it must be 0 to {REPLICAS_MAX}");
        violations.push(Violation::new("spec.replicas", message));
    }
    let store = spec.sessions.as_ref().and_then(|sessions| sessions.store.as_ref());
    if replicas > 1 && store.is_none_or(|store| store.kind == StoreType::Memory) {
        let message = format!(
            "{replicas} replicas need a store that they share; with `sessions.store.type: Memory` a session lives in one \
             process and the others do not know it. Use 1"
        );
        violations.push(Violation::new("spec.replicas", message));
    }
}

fn check_store(spec: &ChatGatewaySpec, violations: &mut Vec<Violation>) {
    let Some(store) = spec.sessions.as_ref().and_then(|sessions| sessions.store.as_ref()) else { return };
    let message = match (store.kind, &store.redis) {
        (StoreType::Redis, None) => "is missing; `type: Redis` needs it",
        (StoreType::Redis, Some(RedisStore { managed: None, external: None })) => {
            "give `managed` for a small Redis that the operator runs, or `external` for one that is there"
        }
        (StoreType::Redis, Some(RedisStore { managed: Some(_), external: Some(_) })) => {
            "`managed` and `external` exclude each other: give one of them"
        }
        _ => return,
    };
    violations.push(Violation::new("spec.sessions.store.redis", message));
}

/// Names and keys of Secrets become paths of files.
fn check_secrets(spec: &ChatGatewaySpec, violations: &mut Vec<Violation>) {
    for (path, SecretKey { name, key }) in secrets(spec) {
        for (field, text) in [("name", name), ("key", key)] {
            let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            if text.is_empty() || text.len() > 253 || !plain || text.starts_with("..") || text == "." {
                let message = format!("`{text}` is no {field} of a Secret; use letters, digits, `-`, `_` and `.`");
                violations.push(Violation::new(format!("{path}.{field}"), message));
            }
        }
    }
}

fn check_overrides(spec: &ChatGatewaySpec, violations: &mut Vec<Violation>) {
    for (kind, patch) in &spec.overrides {
        let path = format!("spec.overrides.{kind}");
        if !CHILD_KINDS.contains(&kind.as_str()) {
            let message = format!("`{kind}` is not made for a gateway; known are {}", CHILD_KINDS.join(", "));
            violations.push(Violation::new(path, message));
        } else if !patch.is_object() {
            violations.push(Violation::new(path, "must be an object: a JSON merge patch"));
        }
    }
}
