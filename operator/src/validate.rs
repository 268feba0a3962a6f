//! Whether a `ChatGateway` makes sense: everything that is wrong with it, at once.
//!
//! What the data plane must make sense of too is checked by the data plane's own code, on the configuration that would be
//! rendered; so nothing that passes here is refused there.

use std::collections::{BTreeMap, BTreeSet};

use chatgateway_api::{
    Autoscaling, ChatGateway, ChatGatewaySpec, ExternalRedis, ManagedRedis, MetricType, RedisAuth, RedisStore,
    SecretKey, TLS_CERTIFICATE_KEY, TLS_KEY_KEY,
};
use chatgateway_config::parts::StoreType;
use chatgateway_config::{ConfigErrors, Settings, Violation};

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::plan::objects::check_override;
use crate::plan::{Place, config};

/// Longest name of a gateway: its Redis is a StatefulSet with six characters more, whose pods carry that name and eleven more
/// as a label, and labels have 63 at most.
const NAME_MAX_BYTES: usize = 46;

/// Most replicas of one gateway.
const REPLICAS_MAX: i32 = 1_000;

/// The path of a Redis that is there already.
const EXTERNAL_REDIS: &str = "spec.sessions.store.redis.external";

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

    /// How many pods; with an autoscaler, the fewest.
    #[must_use]
    pub fn replicas(&self) -> usize {
        let replicas = self.autoscaling().map_or(self.spec.replicas, |autoscaling| autoscaling.min_replicas);
        usize::try_from(replicas.unwrap_or(1)).unwrap_or(0)
    }

    /// How the number of pods follows the load, where it does.
    #[must_use]
    pub fn autoscaling(&self) -> Option<&Autoscaling> {
        self.spec.autoscaling.as_ref()
    }

    /// Whether nothing is to be changed now.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.spec.paused.unwrap_or(false)
    }

    /// The Redis that is to be run for the gateway, where one is.
    #[must_use]
    pub fn managed_redis(&self) -> Option<&ManagedRedis> {
        redis(&self.spec)?.managed.as_ref()
    }

    /// Whether sessions are kept in Redis, a managed one or another.
    #[must_use]
    pub fn uses_redis(&self) -> bool {
        redis(&self.spec).is_some()
    }

    /// The Secrets that the data plane needs.
    #[must_use]
    pub fn secrets(&self) -> Vec<SecretUse> {
        secrets(&self.spec)
    }
}

/// A key of a Secret that the data plane needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretUse {
    /// The path of the field that asks for it.
    pub path: String,
    /// The Secret and its key.
    pub secret: SecretKey,
    /// The path of the Secret's name.
    name_path: String,
    /// The path of the key, where the resource names it.
    key_path: Option<String>,
}

impl SecretUse {
    fn of(path: &str, secret: &SecretKey) -> Self {
        Self {
            path: path.to_owned(),
            secret: secret.clone(),
            name_path: format!("{path}.name"),
            key_path: Some(format!("{path}.key")),
        }
    }
}

fn redis(spec: &ChatGatewaySpec) -> Option<&RedisStore> {
    spec.sessions.as_ref()?.store.as_ref()?.redis.as_ref()
}

fn secrets(spec: &ChatGatewaySpec) -> Vec<SecretUse> {
    let keys = spec.upstreams.iter().enumerate().filter_map(|(index, upstream)| {
        let key = upstream.openai.as_ref()?.api_key_secret_ref.as_ref()?;
        Some(SecretUse::of(&format!("spec.upstreams[{index}].openAI.apiKeySecretRef"), key))
    });
    let external = redis(spec).and_then(|redis| redis.external.as_ref());
    keys.chain(external.map(redis_secrets).unwrap_or_default()).collect()
}

fn redis_secrets(redis: &ExternalRedis) -> Vec<SecretUse> {
    let mut uses = Vec::new();
    if let Some(RedisAuth { secret_ref }) = &redis.auth {
        let path = format!("{EXTERNAL_REDIS}.auth.secretRef");
        let mut add = |field: &str, key: &str, named: bool| {
            uses.push(SecretUse {
                path: path.clone(),
                secret: SecretKey { name: secret_ref.name.clone(), key: key.to_owned() },
                name_path: format!("{path}.name"),
                key_path: named.then(|| format!("{path}.{field}")),
            });
        };
        add("passwordKey", secret_ref.password_key(), secret_ref.password_key.is_some());
        if let Some(key) = &secret_ref.username_key {
            add("usernameKey", key, true);
        }
    }
    if let Some(ca) = redis.tls.as_ref().and_then(|tls| tls.ca_secret_ref.as_ref()) {
        uses.push(SecretUse::of(&format!("{EXTERNAL_REDIS}.tls.caSecretRef"), ca));
    }
    if let Some(name) = redis.tls.as_ref().and_then(|tls| tls.client_secret_name.as_ref()) {
        let path = format!("{EXTERNAL_REDIS}.tls.clientSecretName");
        uses.extend([TLS_CERTIFICATE_KEY, TLS_KEY_KEY].map(|key| SecretUse {
            path: path.clone(),
            secret: SecretKey { name: name.clone(), key: key.to_owned() },
            name_path: path.clone(),
            key_path: None,
        }));
    }
    uses
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
        violations.extend(errors.into_iter().map(in_resource));
    }
    if violations.is_empty() { Ok(Validated { name, spec: spec.clone() }) } else { Err(ConfigErrors::from(violations)) }
}

/// What is wrong with the configuration, as the resource has it.
fn in_resource(violation: Violation) -> Violation {
    let path = match violation.path.strip_prefix("sessions.store.redis.") {
        Some(rest) => format!("{EXTERNAL_REDIS}.{rest}"),
        None => format!("spec.{}", violation.path),
    };
    Violation { path, ..violation }
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
    if spec.replicas.is_some() && spec.autoscaling.is_some() {
        let message = "replicas and autoscaling exclude each other: give one of them";
        violations.push(Violation::new("spec.replicas", message));
    }
    if let Some(autoscaling) = &spec.autoscaling {
        check_autoscaling(spec, autoscaling, violations);
        check_shared_store(spec, autoscaling.max_replicas, "spec.autoscaling.maxReplicas", violations);
    }
    let Some(replicas) = spec.replicas else { return };
    check_range(replicas, 0, "spec.replicas", violations);
    check_shared_store(spec, replicas, "spec.replicas", violations);
}

fn check_range(replicas: i32, least: i32, path: &str, violations: &mut Vec<Violation>) {
    if !(least..=REPLICAS_MAX).contains(&replicas) {
        let message = format!("{replicas} is out of range; it must be {least} to {REPLICAS_MAX}");
        violations.push(Violation::new(path, message));
    }
}

fn check_shared_store(spec: &ChatGatewaySpec, replicas: i32, path: &str, violations: &mut Vec<Violation>) {
    let store = spec.sessions.as_ref().and_then(|sessions| sessions.store.as_ref());
    if replicas > 1 && store.is_none_or(|store| store.kind == StoreType::Memory) {
        let message = format!(
            "{replicas} replicas need a store that they share; with `sessions.store.type: Memory` a session lives in one \
             process and the others do not know it. Use 1, or `type: Redis`"
        );
        violations.push(Violation::new(path, message));
    }
}

fn check_autoscaling(spec: &ChatGatewaySpec, autoscaling: &Autoscaling, violations: &mut Vec<Violation>) {
    let (least, most) = (autoscaling.min_replicas.unwrap_or(1), autoscaling.max_replicas);
    check_range(least, 1, "spec.autoscaling.minReplicas", violations);
    check_range(most, 1, "spec.autoscaling.maxReplicas", violations);
    if least > most {
        let message = format!("{least} exceeds maxReplicas, which is {most}");
        violations.push(Violation::new("spec.autoscaling.minReplicas", message));
    }
    let mut seen = BTreeSet::new();
    for (index, metric) in autoscaling.metrics.iter().enumerate() {
        let path = format!("spec.autoscaling.metrics[{index}]");
        if metric.kind != MetricType::Cpu {
            let message = format!("{:?} is not available in this release; use CPU", metric.kind);
            violations.push(Violation::new(format!("{path}.type"), message));
        }
        if !seen.insert(metric.kind as u8) {
            violations.push(Violation::new(&path, "this metric is there already; write each once"));
        }
        if metric.target < 1 {
            violations.push(Violation::new(format!("{path}.target"), "must be at least 1"));
        }
    }
    // Percent of a request that is not there cannot be measured: the autoscaler would stand still.
    let resources = spec.pod.as_ref().and_then(|pod| pod.resources.as_ref());
    let requests = |resources: &ResourceRequirements| {
        let named =
            |list: &Option<BTreeMap<String, Quantity>>| list.as_ref().is_some_and(|list| list.contains_key("cpu"));
        named(&resources.requests) || named(&resources.limits)
    };
    if resources.is_some_and(|resources| !requests(resources)) {
        let message = "has no `cpu`, of which an autoscaler counts percent; add `requests: {cpu: 250m}`";
        violations.push(Violation::new("spec.pod.resources", message));
    }
}

fn check_store(spec: &ChatGatewaySpec, violations: &mut Vec<Violation>) {
    // A Redis that is missing or does not fit the type is the configuration's own affair.
    let Some(redis) = redis(spec) else { return };
    let message = match (&redis.managed, &redis.external) {
        (None, None) => "give `managed` for a small Redis that the operator runs, or `external` for one that is there",
        (Some(_), Some(_)) => "`managed` and `external` exclude each other: give one of them",
        _ => return,
    };
    violations.push(Violation::new("spec.sessions.store.redis", message));
}

/// Names and keys of Secrets become paths of files.
fn check_secrets(spec: &ChatGatewaySpec, violations: &mut Vec<Violation>) {
    let mut told = BTreeSet::new();
    for SecretUse { secret, name_path, key_path, .. } in secrets(spec) {
        for (field, text, path) in [("name", secret.name, Some(name_path)), ("key", secret.key, key_path)] {
            let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            let good = !text.is_empty() && text.len() <= 253 && plain && !text.starts_with("..") && text != ".";
            // One name may be there for several keys.
            if let Some(path) = path.filter(|path| !good && told.insert(path.clone())) {
                let message = format!("`{text}` is no {field} of a Secret; use letters, digits, `-`, `_` and `.`");
                violations.push(Violation::new(path, message));
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
        } else if let Some((field, message)) = check_override(patch) {
            violations.push(Violation::new(format!("{path}.{field}"), message));
        }
    }
}
