//! Pods that seem to run. There is no node: what pods would say on their admin ports is said by this process, each on a loopback
//! address of its own, since the port is the same for all.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The port on which pods are asked.
const ADMIN_PORT: u16 = 8081;

/// What a pod says; nothing, where it takes connections and never answers.
type Words = Arc<Mutex<Option<Value>>>;

/// The admin port of one pod. It closes when this is dropped.
pub struct Admin {
    address: Ipv4Addr,
    words: Words,
    _tasks: JoinSet<()>,
}

impl Admin {
    /// Opens one that says this on `/status`; or never answers.
    ///
    /// # Errors
    /// Where no loopback address has the port free.
    pub async fn open(words: Option<Value>) -> anyhow::Result<Self> {
        let mut tries = 0;
        let (address, listener) = loop {
            let [a, b, c] = rand::random::<[u8; 3]>();
            let address = Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254));
            tries += 1;
            match TcpListener::bind((address, ADMIN_PORT)).await {
                Ok(listener) => break (address, listener),
                Err(error) if tries >= 20 => {
                    return Err(anyhow::Error::new(error).context(format!("{address}:{ADMIN_PORT} cannot be bound")));
                }
                Err(_) => {}
            }
        };
        let words: Words = Arc::new(Mutex::new(words));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, words.clone()));
        Ok(Self { address, words, _tasks: tasks })
    }

    /// What it says from now on.
    pub fn say(&self, words: Value) {
        *self.words.lock().unwrap_or_else(PoisonError::into_inner) = Some(words);
    }

    /// Tells the API server that a pod runs at this address, and whether it is ready.
    ///
    /// # Errors
    /// Where the pod is not there.
    pub async fn belongs_to(&self, pods: &Api<Pod>, name: &str, ready: bool) -> anyhow::Result<()> {
        let since = k8s_openapi::jiff::Timestamp::now().to_string();
        let condition =
            json!({"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": since});
        let ip = self.address.to_string();
        let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [condition]});
        let patch = Patch::Strategic(json!({"status": status}));
        pods.patch_status(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

async fn serve(listener: TcpListener, words: Words) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { continue };
        let words = words.clone();
        connections.spawn(async move {
            let service = service_fn(move |_: Request<Incoming>| {
                let said = words.lock().unwrap_or_else(PoisonError::into_inner).clone();
                async move {
                    match said {
                        Some(said) => Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(said.to_string())))),
                        None => std::future::pending().await,
                    }
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// What a data plane that is well says, as far as the operator looks at it.
pub fn well(config_hash: &str, connections: u64, turns: u64) -> Value {
    json!({"config_hash": config_hash, "connections": connections, "leases": turns, "draining": false})
}
