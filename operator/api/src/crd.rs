//! The resource's definition, as it is installed.

use kube::CustomResourceExt;
use serde_json::Value;

use crate::ChatGateway;

/// Fields of Kubernetes' own types. Their long texts are in Kubernetes' reference; here they would be half the definition.
const FOREIGN: [&str; 5] = ["behavior", "conditions", "resources", "tolerations", "topologySpreadConstraints"];

/// The definition of `ChatGateway`, as a JSON value.
///
/// # Errors
/// Never for the definition that is compiled in; serialising is fallible by its type.
pub fn crd() -> serde_json::Result<Value> {
    let mut crd = serde_json::to_value(ChatGateway::crd())?;
    shorten(&mut crd);
    Ok(crd)
}

/// Takes the descriptions out of what is below the fields of Kubernetes' own types.
fn shorten(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                if FOREIGN.contains(&key.as_str()) {
                    let own = value.get("description").cloned();
                    strip(value);
                    if let (Some(own), Value::Object(value)) = (own, value) {
                        value.insert("description".to_owned(), own);
                    }
                } else {
                    shorten(value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(shorten),
        _ => {}
    }
}

fn strip(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("description").is_some_and(Value::is_string) {
                map.remove("description");
            }
            map.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}
