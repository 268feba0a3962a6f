//! All that there is in a namespace, without what differs from one cluster, hour and namespace to the next.

use kube::api::{DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Map, Value};

/// Kinds that operators and their gateways have something to do with, as group, version and kind.
const KINDS: [(&str, &str, &str); 12] = [
    ("chatgateway.dev", "v1alpha1", "ChatGateway"),
    ("", "v1", "ConfigMap"),
    ("", "v1", "Secret"),
    ("", "v1", "Service"),
    ("", "v1", "ServiceAccount"),
    ("", "v1", "PersistentVolumeClaim"),
    ("apps", "v1", "Deployment"),
    ("apps", "v1", "ReplicaSet"),
    ("apps", "v1", "StatefulSet"),
    ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    ("policy", "v1", "PodDisruptionBudget"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
];

/// Objects that Kubernetes itself makes in every namespace.
const KUBERNETES: [&str; 2] = ["ConfigMap kube-root-ca.crt", "ServiceAccount default"];

/// Objects as text that is the same for the same, by kind and name.
pub type Snapshot = std::collections::BTreeMap<String, String>;

/// What is there now.
pub async fn take(client: &Client, namespace: &str) -> anyhow::Result<Snapshot> {
    let mut all = Snapshot::new();
    for (group, version, kind) in KINDS {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let objects = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource);
        for object in objects.list(&ListParams::default()).await? {
            let mut key = format!("{kind} {}", object.metadata.name.as_deref().unwrap_or_default());
            if KUBERNETES.contains(&key.as_str()) {
                continue;
            }
            if kind == "ReplicaSet" {
                // Old ones stay, for a rollback: as many as there were rollouts.
                key = format!("ReplicaSet of revision {}", revision(&object));
            }
            let owners = object.metadata.owner_references.clone().unwrap_or_default();
            let plain = plain(kind, serde_json::to_value(object)?);
            // Who owns which fields is told with uids in it.
            let text = serde_json::to_string_pretty(&plain)?;
            all.insert(key, owners.iter().fold(text, |text, owner| text.replace(&owner.uid, &owner.name)));
        }
    }
    Ok(all)
}

fn revision(object: &DynamicObject) -> &str {
    let annotations = object.metadata.annotations.as_ref();
    annotations.and_then(|all| all.get("deployment.kubernetes.io/revision")).map_or("none", String::as_str)
}

/// An object without times, versions, and what the cluster chose.
fn plain(kind: &str, mut object: Value) -> Value {
    let fields = |names: &[&str], of: &mut Value| {
        if let Some(map) = of.as_object_mut() {
            names.iter().for_each(|name| drop(map.remove(*name)));
        }
    };
    if kind == "ReplicaSet" {
        // Their controller's own.
        return object["spec"]["template"]["spec"]["containers"].take();
    }
    let metadata = &mut object["metadata"];
    fields(&["resourceVersion", "uid", "creationTimestamp", "namespace", "generation"], metadata);
    // The hash of what was applied, the owner's uid included.
    fields(&["chatgateway.dev/applied-hash"], &mut metadata["annotations"]);
    for owner in metadata["ownerReferences"].as_array_mut().into_iter().flatten() {
        fields(&["uid"], owner);
    }
    if let Some(entries) = metadata["managedFields"].as_array_mut() {
        entries.retain(|entry| entry["manager"].as_str().is_some_and(|name| name.starts_with("chatgateway-operator")));
        entries.iter_mut().for_each(|entry| fields(&["time"], entry));
        entries.sort_by_key(|entry| entry["manager"].to_string() + &entry["operation"].to_string());
    }
    match kind {
        "ChatGateway" => {
            for condition in object["status"]["conditions"].as_array_mut().into_iter().flatten() {
                fields(&["lastTransitionTime", "observedGeneration"], condition);
            }
            fields(&["observedGeneration"], &mut object["status"]);
        }
        // What provisions volumes writes into their claims.
        "PersistentVolumeClaim" => {
            fields(&["annotations", "finalizers"], &mut object["metadata"]);
            fields(&["volumeName"], &mut object["spec"]);
        }
        // Chance is what makes a password.
        "Secret" => {
            let keys = object["data"].as_object().map(|data| data.keys().cloned().collect::<Vec<_>>());
            object["data"] = keys.into();
        }
        "Service" => {
            let spec = &mut object["spec"];
            if spec["clusterIP"] != "None" {
                fields(&["clusterIP", "clusterIPs"], spec);
            }
            for port in spec["ports"].as_array_mut().into_iter().flatten() {
                fields(&["nodePort"], port);
            }
        }
        _ => {}
    }
    if kind != "ChatGateway" {
        fields(&["status"], &mut object);
    }
    object
}

/// How two differ, for people: the first line of each object that does.
pub fn difference(expected: &Snapshot, is: &Snapshot) -> String {
    let mut said = Map::new();
    for (key, text) in expected {
        match is.get(key) {
            None => drop(said.insert(key.clone(), "is not there".into())),
            Some(other) if other == text => {}
            Some(other) => {
                let line = text.lines().zip(other.lines()).find(|(a, b)| a != b);
                let (a, b) = line.unwrap_or(("the end", "the end"));
                said.insert(key.clone(), format!("`{}` should be `{}`", b.trim(), a.trim()).into());
            }
        }
    }
    for key in is.keys().filter(|key| !expected.contains_key(*key)) {
        said.insert(key.clone(), "should not be there".into());
    }
    Value::Object(said).to_string()
}
