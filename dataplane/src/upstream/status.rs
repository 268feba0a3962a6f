//! What upstreams count, and how `/status` shows it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use chatgateway_core::pool::EndpointView;
use serde::Serialize;

use super::BatchingStatus;

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
    /// Turns refused at the door, before they were accepted.
    pub door_refusals: AtomicU64,
    /// Turns that were put out of the queue for other sessions' turns.
    pub pushed_out: AtomicU64,
    /// Turns refused because no endpoint could be called.
    pub circuit_refusals: AtomicU64,
    /// Calls made again.
    pub retries: AtomicU64,
    /// Calls not made again because too many were.
    pub budget_refusals: AtomicU64,
    /// Answers that broke off and were asked for again.
    pub resumed_answers: AtomicU64,
}

/// One upstream, as `/status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
    /// Turns refused at the door, before they were accepted.
    pub door_refusals: u64,
    /// Turns that were put out of the queue for other sessions' turns.
    pub pushed_out: u64,
    /// Turns refused because no endpoint could be called.
    pub circuit_refusals: u64,
    /// Calls made again.
    pub retries: u64,
    /// Calls not made again because too many were.
    pub budget_refusals: u64,
    /// Answers that broke off and were asked for again.
    pub resumed_answers: u64,
    /// Its batches, where calls are shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batching: Option<BatchingStatus>,
    /// Its endpoints.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointStatus>,
}

/// One endpoint of an upstream, as `/status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointStatus {
    /// Its URL, and its address where the URL's host has several.
    pub endpoint: String,
    /// Calls under way.
    pub in_flight: u64,
    /// Where its circuit breaker stands: `closed`, `open` or `half_open`.
    pub breaker: &'static str,
    /// How often that has opened.
    pub opened: u64,
    /// It is no longer one of the upstream's, and only ends the calls that it has.
    pub leaving: bool,
}

impl From<EndpointView> for EndpointStatus {
    fn from(view: EndpointView) -> Self {
        Self {
            endpoint: view.name.to_string(),
            in_flight: view.in_flight as u64,
            breaker: view.state.as_str(),
            opened: view.opened,
            leaving: view.leaving,
        }
    }
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
            door_refusals: self.door_refusals.load(Relaxed),
            pushed_out: self.pushed_out.load(Relaxed),
            circuit_refusals: self.circuit_refusals.load(Relaxed),
            retries: self.retries.load(Relaxed),
            budget_refusals: self.budget_refusals.load(Relaxed),
            resumed_answers: self.resumed_answers.load(Relaxed),
            batching: None,
            endpoints: Vec::new(),
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
