//! What a user changes in the objects, by JSON merge patches (RFC 7386).

use std::collections::BTreeMap;

use chatgateway_config::{ConfigErrors, Violation};
use serde_json::Value;

use super::names::{COMPONENT, INSTANCE, MANAGED_BY, NAME};
use super::{APPLIED_HASH, COLD_HASH, CONFIG_HASH, Object};

/// What no patch may touch: by these the objects find each other, and the operator finds them.
const FIXED: [&[&str]; 20] = [
    &["apiVersion"],
    &["kind"],
    &["status"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "ownerReferences"],
    &["metadata", "uid"],
    &["metadata", "labels", NAME],
    &["metadata", "labels", INSTANCE],
    &["metadata", "labels", COMPONENT],
    &["metadata", "labels", MANAGED_BY],
    &["metadata", "annotations", APPLIED_HASH],
    &["metadata", "annotations", CONFIG_HASH],
    &["spec", "selector"],
    &["spec", "podSelector"],
    &["spec", "scaleTargetRef"],
    &["spec", "template", "metadata", "labels", NAME],
    &["spec", "template", "metadata", "labels", INSTANCE],
    &["spec", "template", "metadata", "labels", COMPONENT],
    &["spec", "template", "metadata", "annotations", COLD_HASH],
];

/// How many pods there are is the gateway's own field, or its autoscaler's.
const REPLICAS: &[&str] = &["spec", "replicas"];

/// Why a patch may not be, if so: the path of the field, and what to do.
#[must_use]
pub fn check(patch: &Value) -> Option<(String, &'static str)> {
    let fixed = FIXED
        .iter()
        .find_map(|path| touched(patch, path))
        .map(|at| (at, "is fixed: objects are found by it; remove it from the patch"));
    fixed.or_else(|| {
        let at = touched(patch, REPLICAS)?;
        Some((at, "is not for patches: set `spec.replicas` or `spec.autoscaling` of the gateway"))
    })
}

/// Where a patch changes what is at a path: there, or above it, where it removes or replaces the whole.
fn touched(patch: &Value, path: &[&str]) -> Option<String> {
    let mut at = patch;
    for (depth, part) in path.iter().enumerate() {
        let Value::Object(fields) = at else { return Some(path[..depth].join(".")) };
        at = fields.get(*part)?;
    }
    Some(path.join("."))
}

/// Patches the objects. A patch is for the object of its kind that has the gateway's name, or for the only one.
pub(super) fn apply(
    patches: &BTreeMap<String, Value>,
    gateway: &str,
    objects: &mut [Object],
) -> Result<(), ConfigErrors> {
    let mut violations = Vec::new();
    for (kind, patch) in patches {
        let own = objects.iter().position(|object| object.kind == kind && object.name == gateway);
        let Some(at) = own.or_else(|| objects.iter().position(|object| object.kind == kind)) else {
            // There is none now, as without the API of PodMonitors.
            continue;
        };
        merge(&mut objects[at].value, patch);
        if !objects[at].value["spec"].is_object() && patch.get("spec").is_some() {
            violations.push(Violation::new(format!("spec.overrides.{kind}.spec"), "must be an object"));
        }
    }
    if violations.is_empty() { Ok(()) } else { Err(ConfigErrors::from(violations)) }
}

/// RFC 7386: null removes, objects merge, everything else replaces.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(into) = target else { return };
    for (name, value) in fields {
        if value.is_null() {
            into.remove(name);
        } else {
            merge(into.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patches_merge_as_the_standard_says() {
        // The examples of RFC 7386, appendix A, that objects can meet.
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut merged = target;
            merge(&mut merged, &patch);
            assert_eq!(merged, expected);
        }
    }

    #[test]
    fn what_objects_are_found_by_is_not_patched() {
        assert_eq!(check(&json!({"metadata": {"name": "b"}})).expect("refused").0, "metadata.name");
        assert_eq!(check(&json!({"spec": {"selector": {}}})).expect("refused").0, "spec.selector");
        // Nor what they are in.
        for (patch, at) in [
            (json!({"metadata": null}), "metadata"),
            (json!({"metadata": {"annotations": "a"}}), "metadata.annotations"),
            (json!({"spec": {"template": {"metadata": {"labels": null}}}}), "spec.template.metadata.labels"),
            (json!({"spec": {"template": []}}), "spec.template"),
            (json!({"spec": {"replicas": 1}}), "spec.replicas"),
        ] {
            assert_eq!(check(&patch).expect("refused").0, at);
        }
        assert!(check(&json!({"metadata": {"labels": {"a": "b"}}, "spec": {"paused": true}})).is_none());
    }
}
