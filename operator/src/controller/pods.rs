//! What pods say of themselves, on their admin ports. Who does not answer in time has said nothing.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::Deserialize;

use crate::plan::Place;
use crate::status::{PodReport, PodSeen};

/// How long a pod may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Pods of one gateway that are asked at a time.
const ASKED_AT_ONCE: usize = 16;

/// Largest answer.
const ANSWER_MAX_BYTES: usize = 256 * 1024;

/// Asks pods.
pub(super) struct Asker {
    client: Client<HttpConnector, Empty<Bytes>>,
}

/// Of `/status`, what matters here.
#[derive(Deserialize)]
struct Answer {
    config_hash: String,
    config_error: Option<String>,
    store_trouble: Option<String>,
    connections: i64,
    leases: i64,
    draining: bool,
}

impl Asker {
    pub(super) fn new() -> Self {
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(ASK_TIMEOUT));
        Self { client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(http) }
    }

    /// What is seen of pods, with what they say.
    pub(super) async fn look(&self, pods: Vec<std::sync::Arc<Pod>>) -> Vec<PodSeen> {
        let seen = stream::iter(pods).map(|pod| async move { self.seen(&pod).await });
        let mut seen: Vec<_> = seen.buffer_unordered(ASKED_AT_ONCE).collect().await;
        seen.sort_by(|a, b| a.name.cmp(&b.name));
        seen
    }

    async fn seen(&self, pod: &Pod) -> PodSeen {
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        let running = status.and_then(|status| status.phase.as_deref()) == Some("Running");
        let ip = status.and_then(|status| status.pod_ip.clone()).filter(|_| running);
        let report = match ip {
            Some(ip) => tokio::time::timeout(ASK_TIMEOUT, self.ask(&ip)).await.ok().flatten(),
            None => None,
        };
        PodSeen {
            name: pod.name_any(),
            ready,
            leaving: pod.metadata.deletion_timestamp.is_some(),
            waiting: waiting(pod),
            report,
        }
    }

    async fn ask(&self, ip: &str) -> Option<PodReport> {
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let uri = format!("http://{host}:{}/status", Place::cluster().admin_port).parse().ok()?;
        let answer = self.client.get(uri).await.ok()?;
        let body = Limited::new(answer.into_body(), ANSWER_MAX_BYTES).collect().await.ok()?.to_bytes();
        let answer: Answer = serde_json::from_slice(&body).ok()?;
        Some(PodReport {
            config_hash: answer.config_hash,
            config_error: answer.config_error,
            store_trouble: answer.store_trouble,
            connections: answer.connections,
            turns: answer.leases,
            draining: answer.draining,
        })
    }
}

/// Why the pod's container does not run.
fn waiting(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref()).find_map(|waiting| {
        let reason = waiting.reason.as_deref().filter(|reason| *reason != "ContainerCreating")?;
        Some(waiting.message.as_ref().map_or_else(|| reason.to_owned(), |message| format!("{reason}: {message}")))
    });
    waiting.or_else(|| {
        let unscheduled =
            status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
        unscheduled.message.clone()
    })
}
