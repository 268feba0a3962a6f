//! What pods say of themselves, on their admin ports. Who does not answer in time has said nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use parking_lot::Mutex;
use serde::Deserialize;

use crate::plan::Place;
use crate::status::{PodReport, PodSeen};

/// How long all pods of a gateway may take: a reconciliation waits for that.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

/// Pods of one gateway that are asked at a time.
const ASKED_AT_ONCE: usize = 64;

/// How long a pod that did not answer in time is not asked again. Each further time is twice as long: where no pod can be reached,
/// reconciliations must not wait for all of them all the time.
const SILENCE_MIN: Duration = Duration::from_secs(2);

/// Longest such time.
const SILENCE_MAX: Duration = Duration::from_secs(256);

/// Largest answer.
const ANSWER_MAX_BYTES: usize = 256 * 1024;

/// Asks pods.
pub(super) struct Asker {
    client: Client<HttpConnector, Empty<Bytes>>,
    /// Pods that did not answer in time, by their uid.
    silent: Mutex<HashMap<String, Silence>>,
}

/// A pod that did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Silence {
    /// Until when it is not asked.
    until: Instant,
    /// How long that is from the last time on.
    pause: Duration,
}

impl Silence {
    /// What comes of one more question without an answer.
    fn after(before: Option<Self>, now: Instant) -> Self {
        let pause = before.map_or(SILENCE_MIN, |before| SILENCE_MAX.min(before.pause * 2));
        Self { until: now + pause, pause }
    }

    /// Whether it is so long ago that the pod may be asked as any other.
    fn is_over(&self, now: Instant) -> bool {
        now >= self.until + SILENCE_MAX
    }
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
        // Thousands of pods are asked, each seldom: connections that wait would cost more than new ones.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(http);
        Self { client, silent: Mutex::default() }
    }

    /// What is seen of pods, with what they say.
    pub(super) async fn look(&self, pods: Vec<std::sync::Arc<Pod>>) -> Vec<PodSeen> {
        let deadline = Instant::now() + ASK_TIMEOUT;
        let seen = stream::iter(pods).map(|pod| async move { self.seen(&pod, deadline).await });
        let mut seen: Vec<_> = seen.buffer_unordered(ASKED_AT_ONCE).collect().await;
        seen.sort_by(|a, b| a.name.cmp(&b.name));
        seen
    }

    async fn seen(&self, pod: &Pod, deadline: Instant) -> PodSeen {
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        let running = status.and_then(|status| status.phase.as_deref()) == Some("Running");
        let report = match status.and_then(|status| status.pod_ip.as_deref()) {
            Some(ip) if running => self.report(pod.metadata.uid.as_deref().unwrap_or_default(), ip, deadline).await,
            _ => None,
        };
        PodSeen {
            name: pod.name_any(),
            ready,
            running,
            leaving: pod.metadata.deletion_timestamp.is_some(),
            waiting: waiting(pod),
            report,
        }
    }

    /// What a pod says. Who refuses at once may be asked at any time; who is silent, only after a while.
    async fn report(&self, uid: &str, ip: &str, deadline: Instant) -> Option<PodReport> {
        let now = Instant::now();
        let before = self.silent.lock().get(uid).copied();
        if now >= deadline || before.is_some_and(|silence| now < silence.until) {
            return None;
        }
        let answer = tokio::time::timeout_at(deadline.into(), self.ask(ip)).await;
        let mut silent = self.silent.lock();
        match answer {
            Ok(report) => {
                silent.remove(uid);
                report
            }
            Err(_) => {
                let now = Instant::now();
                silent.retain(|_, silence| !silence.is_over(now));
                silent.insert(uid.to_owned(), Silence::after(before, now));
                None
            }
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use serde_json::json;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    /// Answers, or takes connections and says nothing, on an address of its own: all pods have the same port.
    async fn admin(answer: Option<&'static str>, tasks: &mut JoinSet<()>) -> String {
        let listener = loop {
            let [a, b, c] = rand::random::<[u8; 3]>();
            let address = Ipv4Addr::new(127, a.max(1), b, c.clamp(1, 254));
            if let Ok(listener) = TcpListener::bind((address, Place::cluster().admin_port)).await {
                break listener;
            }
        };
        let ip = listener.local_addr().expect("bound").ip().to_string();
        tasks.spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let Some(answer) = answer else {
                    open.push(stream);
                    continue;
                };
                let service = service_fn(move |request: Request<Incoming>| {
                    assert_eq!(request.uri().path(), "/status");
                    std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(
                        answer.as_bytes(),
                    )))))
                });
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        });
        ip
    }

    fn pod(name: &str, ip: &str) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": name, "uid": name},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    const WELL: &str = r#"{"config_hash": "h", "connections": 7, "leases": 2, "draining": true, "more": []}"#;

    #[tokio::test]
    async fn pods_that_answer_are_heard_though_others_never_do() {
        let mut tasks = JoinSet::new();
        let pods = vec![
            pod("a", &admin(Some(WELL), &mut tasks).await),
            pod("b", &admin(None, &mut tasks).await),
            pod("c", &admin(Some("not JSON"), &mut tasks).await),
        ];
        let asker = Asker::new();
        let began = Instant::now();
        let seen = asker.look(pods.clone()).await;
        // Twice the timeout: machines are slow at times.
        assert!(began.elapsed() < ASK_TIMEOUT * 2, "{:?}", began.elapsed());
        let report = seen[0].report.as_ref().expect("an answer");
        assert_eq!((report.config_hash.as_str(), report.connections, report.turns, report.draining), ("h", 7, 2, true));
        assert!(seen[1].report.is_none() && seen[1].ready && seen[1].running);
        assert!(seen[2].report.is_none());
        // Only the silent one is left alone for a while.
        let known: Vec<_> = asker.silent.lock().keys().cloned().collect();
        assert_eq!(known, ["b"]);
        let silence = asker.silent.lock()["b"];
        asker.look(pods).await;
        assert_eq!(asker.silent.lock()["b"], silence, "it was not asked again");
    }

    #[tokio::test]
    async fn a_hundred_silent_pods_take_no_longer_than_one() {
        let mut tasks = JoinSet::new();
        let ip = admin(None, &mut tasks).await;
        let pods = (0..100).map(|index| pod(&format!("p{index}"), &ip)).collect();
        let began = Instant::now();
        let seen = Asker::new().look(pods).await;
        assert!(began.elapsed() < ASK_TIMEOUT * 2, "{:?}", began.elapsed());
        assert!(seen.iter().all(|pod| pod.report.is_none()));
    }

    #[test]
    fn silence_is_answered_with_longer_pauses() {
        let now = Instant::now();
        let first = Silence::after(None, now);
        assert_eq!(first, Silence { until: now + SILENCE_MIN, pause: SILENCE_MIN });
        let mut last = first;
        for _ in 0..20 {
            last = Silence::after(Some(last), now);
        }
        assert_eq!(last.pause, SILENCE_MAX);
        assert!(!first.is_over(first.until) && first.is_over(first.until + SILENCE_MAX));
    }
}
