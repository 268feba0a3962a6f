//! Secrets that gateways name: whether they are there, with the keys that are asked for. Their contents are looked at, and
//! not kept.

use std::collections::{BTreeSet, HashMap, HashSet};

use chatgateway_api::ChatGateway;
use chatgateway_config::Violation;
use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;

use super::{Error, call};
use crate::validate::Validated;

/// A Secret, by its namespace and name.
type Key = (String, String);

/// What is known of Secrets.
pub(super) struct Secrets {
    client: Client,
    store: Store<PartialObjectMeta<Secret>>,
    /// The keys that a Secret had at a resource version.
    keys: Mutex<HashMap<Key, (String, BTreeSet<String>)>>,
    /// Which gateways name a Secret.
    users: Mutex<HashMap<Key, HashSet<String>>>,
}

impl Secrets {
    pub(super) fn new(client: Client, store: Store<PartialObjectMeta<Secret>>) -> Self {
        Self { client, store, keys: Mutex::default(), users: Mutex::default() }
    }

    /// The gateways that a changed Secret concerns.
    pub(super) fn users(&self, secret: &PartialObjectMeta<Secret>) -> Vec<ObjectRef<ChatGateway>> {
        let Some(namespace) = secret.namespace() else { return Vec::new() };
        let users = self.users.lock();
        let names = users.get(&(namespace.clone(), secret.name_any()));
        names.into_iter().flatten().map(|name| ObjectRef::new(name).within(&namespace)).collect()
    }

    /// Notes which Secrets a gateway names now; none, once it is gone.
    pub(super) fn note(&self, namespace: &str, gateway: &str, named: Option<&Validated>) {
        let now: HashSet<Key> = named
            .into_iter()
            .flat_map(Validated::secrets)
            .map(|used| (namespace.to_owned(), used.secret.name))
            .collect();
        let mut users = self.users.lock();
        users.retain(|key, names| {
            if key.0 == namespace && !now.contains(key) {
                names.remove(gateway);
            }
            !names.is_empty()
        });
        for key in now {
            users.entry(key).or_default().insert(gateway.to_owned());
        }
        let used: HashSet<Key> = users.keys().cloned().collect();
        drop(users);
        self.keys.lock().retain(|key, _| used.contains(key));
    }

    /// What of the named Secrets is not there, each with the path of the field that names it.
    pub(super) async fn missing(&self, namespace: &str, gateway: &Validated) -> Result<Vec<Violation>, Error> {
        let mut missing = Vec::new();
        for used in gateway.secrets() {
            let (name, key) = (&used.secret.name, &used.secret.key);
            match self.keys_of(namespace, name).await? {
                None => {
                    let message =
                        format!("Secret {name} is not in namespace {namespace}; create it with the key `{key}`");
                    missing.push(Violation::new(&used.path, message));
                }
                Some(keys) if !keys.contains(key) => {
                    let has = keys.into_iter().collect::<Vec<_>>().join(", ");
                    let message = format!("Secret {name} has no key `{key}`; it has: {has}");
                    missing.push(Violation::new(&used.path, message));
                }
                Some(_) => {}
            }
        }
        Ok(missing)
    }

    async fn keys_of(&self, namespace: &str, name: &str) -> Result<Option<BTreeSet<String>>, Error> {
        let Some(known) = self.store.get(&ObjectRef::new(name).within(namespace)) else { return Ok(None) };
        let version = known.resource_version().unwrap_or_default();
        let key = (namespace.to_owned(), name.to_owned());
        if let Some((at, keys)) = self.keys.lock().get(&key)
            && *at == version
        {
            return Ok(Some(keys.clone()));
        }
        let secrets = Api::<Secret>::namespaced(self.client.clone(), namespace);
        let Some(secret) = call(&format!("get Secret {name}"), secrets.get_opt(name)).await? else { return Ok(None) };
        let version = secret.resource_version().unwrap_or_default();
        let keys: BTreeSet<String> = secret.data.unwrap_or_default().into_keys().collect();
        self.keys.lock().insert(key, (version, keys.clone()));
        Ok(Some(keys))
    }
}
