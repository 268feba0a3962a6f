//! Writing objects: by server-side apply, only what is not as it is to be, and never what belongs to somebody else.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;

use super::watch::{LAST_APPLIED, Stores};
use super::{Error, FIELD_MANAGER, NOT_FOUND, call};
use crate::plan::objects::{Object, Unwanted};

/// The field manager that holds a number of replicas until an autoscaler takes it over.
const HAND_OFF_MANAGER: &str = "chatgateway-operator-hand-off";

/// An object as the operator left it: digests of what was asked for, and of what tells whether somebody has changed it since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    asked: u64,
    version: u64,
}

/// A digest: there are thousands of these, and the texts are long.
fn digest(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// What changes when somebody changes an object. Of kinds whose status changes by itself that is the generation of what is
/// asked for, with labels, annotations and owners; of all others the resource version.
fn version(meta: &ObjectMeta) -> u64 {
    let Some(generation) = meta.generation else { return digest(&meta.resource_version) };
    // The Deployment's controller numbers its rollouts in an annotation; and what is watched is kept without the other one.
    let others = |key: &str| key.starts_with("deployment.kubernetes.io/") || key == LAST_APPLIED;
    let annotations: Vec<_> = meta.annotations.iter().flatten().filter(|(key, _)| !others(key)).collect();
    let owners: Vec<_> = meta.owner_references.iter().flatten().map(|owner| (&owner.uid, owner.controller)).collect();
    digest((generation, &meta.labels, annotations, owners))
}

/// What the operator has written since its start.
#[derive(Default)]
pub(super) struct Written {
    left: Mutex<HashMap<(&'static str, String, String), Left>>,
}

/// What came of applying an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// It was as it is to be.
    Same,
    /// It was written.
    Written,
    /// It belongs to somebody else, and was left alone.
    Foreign,
}

fn api(client: &Client, kind: &str, api_version: &str, namespace: &str) -> Api<DynamicObject> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(client.clone(), namespace, &resource)
}

/// Whether the gateway with this uid owns it.
pub(super) fn is_owned(meta: &ObjectMeta, uid: &str) -> bool {
    meta.owner_references.iter().flatten().any(|owner| owner.uid == uid)
}

impl Written {
    /// Makes one object what it is to be.
    pub(super) async fn apply(
        &self,
        client: &Client,
        stores: &Stores,
        namespace: &str,
        uid: &str,
        object: &Object,
    ) -> Result<Applied, Error> {
        let key = (object.kind, namespace.to_owned(), object.name.clone());
        let known = stores.meta(object.kind, namespace, &object.name);
        let left = self.left.lock().get(&key).copied();
        let asked = digest(object.hash());
        let same = match (&known, &left) {
            (Some(known), Some(left)) => left.asked == asked && left.version == version(known),
            // What is not watched is trusted to be as it was left.
            (None, Some(left)) => left.asked == asked && !Stores::holds(object.kind),
            _ => false,
        };
        if same {
            return Ok(Applied::Same);
        }
        let what = format!("apply {} {}", object.kind, object.name);
        let objects = api(client, object.kind, object.api_version, namespace);
        if !known.is_some_and(|known| is_owned(&known, uid)) {
            // What is not labelled as ours is not watched. A newer answer than that of the watch also tells of races.
            let there = call(&what, objects.get_metadata_opt(&object.name)).await?;
            if there.is_some_and(|there| !is_owned(&there.metadata, uid)) {
                return Ok(Applied::Foreign);
            }
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = call(&what, objects.patch(&object.name, &params, &Patch::Apply(&object.value))).await?;
        let version = version(&written.metadata);
        let changed = left.is_none_or(|left| left.version != version);
        self.left.lock().insert(key, Left { asked, version });
        Ok(if changed { Applied::Written } else { Applied::Same })
    }

    /// Forgets a gateway's objects.
    pub(super) fn forget(&self, namespace: &str, names: &[&str]) {
        self.left.lock().retain(|(_, of, name), _| of != namespace || !names.contains(&name.as_str()));
    }
}

/// An object's metadata as they are now, whatever its watch has told.
pub(super) async fn seen(
    client: &Client,
    kind: &str,
    api_version: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<ObjectMeta>, Error> {
    let objects = api(client, kind, api_version, namespace);
    let there = call(&format!("get {kind} {name}"), objects.get_metadata_opt(name)).await?;
    Ok(there.map(|there| there.metadata))
}

/// Holds the Deployment's number of replicas under another name, so that leaving it out does not take it away.
pub(super) async fn hand_off(client: &Client, namespace: &str, name: &str, replicas: i32) -> Result<(), Error> {
    let held = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": replicas},
    });
    let params = PatchParams::apply(HAND_OFF_MANAGER).force();
    let deployments = api(client, "Deployment", "apps/v1", namespace);
    let what = format!("hand the replicas of Deployment {name} over");
    call(&what, deployments.patch(name, &params, &Patch::Apply(&held))).await.map(drop)
}

/// Removes an object that must not be there, if it is the gateway's. Whether there was one.
pub(super) async fn remove(
    client: &Client,
    stores: &Stores,
    namespace: &str,
    uid: &str,
    gone: &Unwanted,
) -> Result<bool, Error> {
    let owned = stores.meta(gone.kind, namespace, &gone.name).is_some_and(|meta| is_owned(&meta, uid));
    if !owned {
        return Ok(false);
    }
    delete(client, gone.kind, gone.api_version, namespace, &gone.name, &DeleteParams::background()).await?;
    Ok(true)
}

/// Deletes an object. One that is gone is deleted.
pub(super) async fn delete(
    client: &Client,
    kind: &str,
    api_version: &str,
    namespace: &str,
    name: &str,
    params: &DeleteParams,
) -> Result<(), Error> {
    let what = format!("delete {kind} {name}");
    match call(&what, api(client, kind, api_version, namespace).delete(name, params)).await {
        Err(error) if error.code() == Some(NOT_FOUND) => Ok(()),
        done => done.map(drop),
    }
}

/// Whether the operator itself wrote the number of replicas, so that leaving it out would take it away.
pub(super) fn wrote_replicas(deployment: &DynamicObject) -> bool {
    deployment.managed_fields().iter().any(|entry| {
        let ours = entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.subresource.is_none();
        ours && entry.fields_v1.as_ref().is_some_and(|fields| fields.0["f:spec"].get("f:replicas").is_some())
    })
}

/// The Deployment as it is now, with who wrote what.
pub(super) async fn deployment(client: &Client, namespace: &str, name: &str) -> Result<Option<DynamicObject>, Error> {
    let deployments = api(client, "Deployment", "apps/v1", namespace);
    call(&format!("get Deployment {name}"), deployments.get_opt(name)).await
}
