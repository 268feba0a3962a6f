//! Reading a `ChatGateway` from a file, so that every mistake is named with its path and its place.

use chatgateway_api::{ChatGateway, ChatGatewaySpec};
use chatgateway_config::yaml::{self, Positions, join};
use chatgateway_config::{ConfigErrors, Violation};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The resource's `apiVersion`.
pub const API_VERSION: &str = "chatgateway.dev/v1alpha1";
/// The resource's `kind`.
pub const KIND: &str = "ChatGateway";

/// A manifest as it stands in a file.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Manifest {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: ObjectMeta,
    spec: ChatGatewaySpec,
    /// What `kubectl get -o yaml` prints too. Nobody's to write, so it is not looked at.
    #[serde(default)]
    status: Value,
}

/// Only what tells what kind of object a text is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
}

/// Reads one `ChatGateway`, and where its parts stand.
///
/// # Errors
/// What is wrong with the text, with path, line and column.
pub fn read(text: &str) -> Result<(ChatGateway, Positions), ConfigErrors> {
    let positions = Positions::of(text);
    if text.lines().all(|line| matches!(line.trim(), "" | "---" | "...") || line.trim_start().starts_with('#')) {
        let message = format!("the file is empty; it must hold one {KIND} (apiVersion {API_VERSION})");
        return Err(ConfigErrors::from(vec![Violation::new("", message)]));
    }
    let (header, _) = yaml::read::<Header>(text)?;
    let expected = [("apiVersion", header.api_version, API_VERSION), ("kind", header.kind, KIND)];
    for (path, given, expected) in expected {
        let message = match given {
            Some(given) if given == expected => continue,
            Some(given) => format!("this is `{given}`; only `{expected}` is understood"),
            None => format!("is missing; write `{path}: {expected}`"),
        };
        return Err(positions.locate(ConfigErrors::from(vec![Violation::new(path, message)])));
    }
    let (manifest, _) = yaml::read::<Manifest>(text)?;
    let unknown = unknown_fields(text, &manifest)?;
    if !unknown.is_empty() {
        return Err(positions.locate(ConfigErrors::from(unknown)));
    }
    let mut gateway = ChatGateway::new("", manifest.spec);
    gateway.metadata = manifest.metadata;
    Ok((gateway, positions))
}

/// Fields that were read but not kept: Kubernetes' own types ignore what they do not know.
fn unknown_fields(text: &str, manifest: &Manifest) -> Result<Vec<Violation>, ConfigErrors> {
    let (given, _) = yaml::read::<Value>(text)?;
    let kept = serde_json::to_value(manifest).unwrap_or_default();
    let mut unknown = Vec::new();
    compare(&given, &kept, "", &mut unknown);
    Ok(unknown)
}

fn compare(given: &Value, kept: &Value, path: &str, unknown: &mut Vec<Violation>) {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            for (key, value) in given {
                let path = join(path, key);
                match kept.get(key) {
                    Some(kept) => compare(value, kept, &path, unknown),
                    None if is_empty(value) => {}
                    None => unknown.push(Violation::new(path, format!("unknown field `{key}`"))),
                }
            }
        }
        (Value::Array(given), Value::Array(kept)) => {
            for (index, (given, kept)) in given.iter().zip(kept).enumerate() {
                compare(given, kept, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

/// What is left out again when it is written.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
