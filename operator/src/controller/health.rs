//! `/livez`, `/readyz` and `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

/// Longest time the head of a request may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest reconciliation: all of its calls at their timeouts. One that takes longer hangs, and the process with it.
const RECONCILE_MAX: Duration = Duration::from_secs(300);

/// Connections at a time: probes and who collects metrics.
const CONNECTIONS_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: &'static str,
}

/// How the operator is, and what it counts.
pub(super) struct Health {
    registry: Registry,
    reconciled: Family<Outcome, Counter>,
    writes: Family<Write, Counter>,
    duration: Histogram,
    leader: Gauge,
    crd_missing: Gauge,
    installed: AtomicBool,
    waits: Mutex<Option<String>>,
    /// Reconciliations under way, and when each began.
    running: Mutex<Vec<(u64, Instant)>>,
    next: AtomicU64,
}

impl Default for Health {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("chatgateway_operator");
        let health = Self {
            reconciled: Family::default(),
            writes: Family::default(),
            duration: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            leader: Gauge::default(),
            crd_missing: Gauge::default(),
            installed: AtomicBool::new(false),
            waits: Mutex::default(),
            running: Mutex::default(),
            next: AtomicU64::new(0),
            registry: Registry::default(),
        };
        registry.register("reconcile", "Reconciliations by their result", health.reconciled.clone());
        registry.register("writes", "Objects written, by kind", health.writes.clone());
        registry.register("reconcile_duration_seconds", "How long reconciliations took", health.duration.clone());
        registry.register("leader", "1 while this operator acts", health.leader.clone());
        registry.register("crd_missing", "1 while the cluster does not know the resource", health.crd_missing.clone());
        Self { registry, ..health }
    }
}

/// A reconciliation under way.
pub(super) struct Running<'a> {
    health: &'a Health,
    number: u64,
    began: Instant,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.health.running.lock().retain(|(number, _)| *number != self.number);
        self.health.duration.observe(self.began.elapsed().as_secs_f64());
    }
}

impl Health {
    pub(super) fn leads(&self) {
        self.leader.set(1);
    }

    pub(super) fn installed(&self) {
        self.crd_missing.set(0);
        *self.waits.lock() = None;
        self.installed.store(true, Relaxed);
    }

    pub(super) fn waits(&self, why: String) {
        self.crd_missing.set(1);
        *self.waits.lock() = Some(why);
    }

    pub(super) fn count(&self, result: &'static str) {
        self.reconciled.get_or_create(&Outcome { result }).inc();
    }

    pub(super) fn wrote(&self, kind: &'static str) {
        self.writes.get_or_create(&Write { kind }).inc();
    }

    pub(super) fn begin(&self) -> Running<'_> {
        let (number, began) = (self.next.fetch_add(1, Relaxed), Instant::now());
        self.running.lock().push((number, began));
        Running { health: self, number, began }
    }

    fn answer(&self, path: &str) -> (StatusCode, String) {
        match path {
            "/livez" => match self.running.lock().iter().map(|(_, began)| began.elapsed()).max() {
                Some(longest) if longest > RECONCILE_MAX => {
                    (StatusCode::SERVICE_UNAVAILABLE, format!("a reconciliation hangs for {longest:?}\n"))
                }
                _ => (StatusCode::OK, "ok\n".to_owned()),
            },
            "/readyz" if self.installed.load(Relaxed) => (StatusCode::OK, "ok\n".to_owned()),
            "/readyz" => {
                let why = self.waits.lock().clone().unwrap_or_else(|| "the API server was not reached yet".to_owned());
                (StatusCode::SERVICE_UNAVAILABLE, why + "\n")
            }
            "/metrics" => {
                let mut text = String::new();
                match encode(&mut text, &self.registry) {
                    Ok(()) => (StatusCode::OK, text),
                    Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
                }
            }
            _ => (StatusCode::NOT_FOUND, "there are /livez, /readyz and /metrics\n".to_owned()),
        }
    }
}

/// Answers for as long as the process lives.
pub(super) async fn serve(listener: TcpListener, health: Arc<Health>) {
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let health = health.clone();
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let (status, text) = health.answer(request.uri().path());
                let mut response = Response::new(Full::new(bytes::Bytes::from(text)));
                *response.status_mut() = status;
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}
