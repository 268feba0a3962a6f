//! Secrets that gateways name: whether they are there, with the keys that are asked for. Their contents are looked at, and
//! not kept.

use std::collections::{BTreeSet, HashMap};

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
    index: Mutex<Index>,
}

/// Who names which Secrets.
#[derive(Default)]
struct Index {
    /// The gateways that name a Secret.
    users: HashMap<Key, BTreeSet<String>>,
    /// The Secrets that a gateway names. Most name none, and are not in here.
    named: HashMap<Key, BTreeSet<String>>,
}

impl Index {
    /// Notes what a gateway names now. The Secrets that nobody names any more.
    fn note(&mut self, namespace: &str, gateway: &str, now: BTreeSet<String>) -> Vec<Key> {
        let key = (namespace.to_owned(), gateway.to_owned());
        // Each reconciliation comes here, and hardly any changes anything.
        if self.named.get(&key).map_or_else(|| now.is_empty(), |before| *before == now) {
            return Vec::new();
        }
        let mut unused = Vec::new();
        for secret in self.named.remove(&key).into_iter().flatten().filter(|secret| !now.contains(secret)) {
            let secret = (namespace.to_owned(), secret);
            let Some(users) = self.users.get_mut(&secret) else { continue };
            users.remove(gateway);
            if users.is_empty() {
                self.users.remove(&secret);
                unused.push(secret);
            }
        }
        for secret in &now {
            self.users.entry((namespace.to_owned(), secret.clone())).or_default().insert(gateway.to_owned());
        }
        if !now.is_empty() {
            self.named.insert(key, now);
        }
        unused
    }
}

impl Secrets {
    pub(super) fn new(client: Client, store: Store<PartialObjectMeta<Secret>>) -> Self {
        Self { client, store, keys: Mutex::default(), index: Mutex::default() }
    }

    /// The gateways that a changed Secret concerns.
    pub(super) fn users(&self, secret: &PartialObjectMeta<Secret>) -> Vec<ObjectRef<ChatGateway>> {
        let Some(namespace) = secret.namespace() else { return Vec::new() };
        let index = self.index.lock();
        let names = index.users.get(&(namespace.clone(), secret.name_any()));
        names.into_iter().flatten().map(|name| ObjectRef::new(name).within(&namespace)).collect()
    }

    /// Notes which Secrets a gateway names now; none, once it is gone.
    pub(super) fn note(&self, namespace: &str, gateway: &str, named: Option<&Validated>) {
        let now = named.into_iter().flat_map(Validated::secrets).map(|used| used.secret.name).collect();
        let unused = self.index.lock().note(namespace, gateway, now);
        if !unused.is_empty() {
            self.keys.lock().retain(|key, _| !unused.contains(key));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_knows_who_names_a_secret_and_forgets_what_nobody_names() {
        let mut index = Index::default();
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let key = |name: &str| ("n".to_owned(), name.to_owned());
        assert!(index.note("n", "a", named(&["s", "t"])).is_empty());
        assert!(index.note("n", "b", named(&["s"])).is_empty());
        assert!(index.note("other", "a", named(&["s"])).is_empty());
        assert_eq!(index.users[&key("s")], named(&["a", "b"]));
        assert!(index.note("n", "a", named(&["s", "t"])).is_empty(), "nothing has changed");
        assert_eq!(index.note("n", "a", named(&["s", "u"])), [key("t")]);
        assert!(index.note("n", "a", named(&[])).contains(&key("u")), "`b` still names `s`");
        assert_eq!(index.users[&key("s")], named(&["b"]));
        assert_eq!(index.note("n", "b", named(&[])), [key("s")]);
        assert_eq!((index.users.len(), index.named.len()), (1, 1), "the other namespace's");
    }
}
