//! What upstreams count, and how `/status` shows it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::Serialize;

/// What one upstream counts. Plain atomics, each on its own: a reader may see one turn half counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// Calls under way.
    pub in_flight: AtomicU64,
    /// Turns that wait for a call.
    pub waiting: AtomicU64,
    /// Calls made.
    pub calls: AtomicU64,
    /// Calls that failed, for whatever reason.
    pub failures: AtomicU64,
    /// Turns refused because too many waited.
    pub overflows: AtomicU64,
    /// Turns that waited too long for a call.
    pub queue_timeouts: AtomicU64,
    /// Calls that ran into the connect, first-token, between-tokens or total timeout.
    pub timeouts: AtomicU64,
}

/// One upstream, as `/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// What it speaks: `openai`, `simple` or `demo`.
    pub kind: &'static str,
    /// Its model, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Calls under way.
    pub in_flight: u64,
    /// Turns that wait for a call.
    pub waiting: u64,
    /// Calls made.
    pub calls: u64,
    /// Calls that failed, for whatever reason.
    pub failures: u64,
    /// Turns refused because too many waited.
    pub overflows: u64,
    /// Turns that waited too long for a call.
    pub queue_timeouts: u64,
    /// Calls that ran into a timeout of the upstream.
    pub timeouts: u64,
}

impl Counters {
    pub(super) fn status(&self, name: &str, kind: &'static str, model: Option<&str>) -> UpstreamStatus {
        UpstreamStatus {
            name: name.to_owned(),
            kind,
            model: model.map(str::to_owned),
            in_flight: self.in_flight.load(Relaxed),
            waiting: self.waiting.load(Relaxed),
            calls: self.calls.load(Relaxed),
            failures: self.failures.load(Relaxed),
            overflows: self.overflows.load(Relaxed),
            queue_timeouts: self.queue_timeouts.load(Relaxed),
            timeouts: self.timeouts.load(Relaxed),
        }
    }
}

/// One call under way, counted as long as this lives.
#[derive(Debug)]
pub(super) struct Gauge(Arc<Counters>);

impl Gauge {
    pub(super) fn new(counters: &Arc<Counters>) -> Self {
        counters.calls.fetch_add(1, Relaxed);
        counters.in_flight.fetch_add(1, Relaxed);
        Self(counters.clone())
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
