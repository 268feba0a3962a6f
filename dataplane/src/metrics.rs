//! What a pod counts. No label comes from what a client sends.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use chatgateway_core::{
    error::{CloseCode, ErrorCode},
    limiter::Rule,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use crate::{
    store::Store,
    upstream::{OfUpstreams, Upstreams},
};

/// How clients are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Transport {
    /// An HTTP connection, whatever runs over it.
    Http,
    /// A WebSocket.
    WebSocket,
    /// A gRPC connection.
    Grpc,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransportLabel {
    transport: Transport,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CloseLabel {
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabel {
    end: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabel {
    per: &'static str,
    unit: &'static str,
}

/// What the rate limits count.
#[derive(Clone, Default)]
pub struct LimitCounts {
    /// Requests that were decided on.
    pub decisions: Counter,
    refusals: Family<RuleLabel, Counter>,
    /// Calls of the store that came to nothing, or not in time.
    pub failures: Counter,
    /// Requests that this pod decided on alone since the store did not.
    pub local: Counter,
    /// Answers that were stopped for want of tokens.
    pub stopped: Counter,
    /// What found no room among what waits for the store.
    pub overflows: Counter,
}

impl LimitCounts {
    /// Counts a refusal by the limit that it was for.
    pub fn refused(&self, rule: &Rule) {
        self.refusals.get_or_create(&RuleLabel { per: rule.per.label(), unit: rule.unit.label() }).inc();
    }

    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("rate_limit");
        registry.register("decisions", "Requests decided on by rate limits", self.decisions.clone());
        registry.register("refusals", "Requests refused by rate limits, by limit", self.refusals.clone());
        registry.register(
            "store_failures",
            "Calls of the store of rate limits that came to nothing",
            self.failures.clone(),
        );
        registry.register("local_decisions", "Requests decided on without the store", self.local.clone());
        registry.register("stopped_answers", "Answers stopped for want of tokens", self.stopped.clone());
        registry.register(
            "queue_overflows",
            "Steps of rate limits for which there was no room",
            self.overflows.clone(),
        );
    }
}

/// A pod's counters.
pub struct Metrics {
    registry: Registry,
    connections: Family<TransportLabel, Gauge>,
    open: Arc<AtomicU64>,
    /// Turns taken in, running or queued.
    pub turns_accepted: Counter,
    turns_ended: Family<EndLabel, Counter>,
    refusals: Family<CodeLabel, Counter>,
    closes: Family<CloseLabel, Counter>,
    limits: Family<LimitLabel, Counter>,
    /// Sessions taken over from an owner that fell silent.
    pub takeovers: Counter,
    /// From the start of a turn to its first committed text.
    pub first_token: Histogram,
    /// Of the rate limits.
    pub rate_limits: LimitCounts,
}

impl Metrics {
    /// Counters at zero, and what the store and the model servers' pools count by themselves.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, upstreams: Arc<ArcSwap<Upstreams>>) -> Self {
        let mut registry = Registry::with_prefix("chatgateway");
        registry.register_collector(Box::new(OfStore(store)));
        registry.register_collector(Box::new(OfUpstreams(upstreams)));
        let connections = Family::<TransportLabel, Gauge>::default();
        let turns_accepted = Counter::default();
        let turns_ended = Family::<EndLabel, Counter>::default();
        let refusals = Family::<CodeLabel, Counter>::default();
        let closes = Family::<CloseLabel, Counter>::default();
        let limits = Family::<LimitLabel, Counter>::default();
        let takeovers = Counter::default();
        let first_token = Histogram::new([0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
        registry.register("connections", "Open client connections", connections.clone());
        registry.register("turns_accepted", "Turns taken in", turns_accepted.clone());
        registry.register("turns_ended", "Turns that ended here, by how", turns_ended.clone());
        registry.register("refusals", "Requests refused, by code", refusals.clone());
        registry.register("websocket_closes", "WebSockets closed by the server, by code", closes.clone());
        registry.register("limit_hits", "How often a bound was hit", limits.clone());
        registry.register("takeovers", "Sessions taken over from a silent owner", takeovers.clone());
        registry.register_with_unit(
            "first_token",
            "From the start of a turn to its first committed text",
            Unit::Seconds,
            first_token.clone(),
        );
        let rate_limits = LimitCounts::default();
        rate_limits.register(&mut registry);
        Self {
            registry,
            connections,
            open: Arc::new(AtomicU64::new(0)),
            turns_accepted,
            turns_ended,
            refusals,
            closes,
            limits,
            takeovers,
            first_token,
            rate_limits,
        }
    }

    /// Counts a connection until the guard is dropped.
    pub fn connection(&self, transport: Transport) -> OpenConnection {
        let gauge = self.connections.get_or_create(&TransportLabel { transport }).clone();
        gauge.inc();
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection { gauge, open: self.open.clone() }
    }

    /// Connections that are open.
    pub fn connections_open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts a refusal.
    pub fn refused(&self, code: ErrorCode) {
        self.refusals.get_or_create(&CodeLabel { code: code.as_str() }).inc();
    }

    /// Counts a WebSocket that the server closes.
    pub fn closed(&self, code: CloseCode) {
        self.closes.get_or_create(&CloseLabel { code: code.number().into() }).inc();
    }

    /// Counts a bound that was hit.
    pub fn limit_hit(&self, limit: &'static str) {
        self.limits.get_or_create(&LimitLabel { limit }).inc();
    }

    /// Counts a turn's end.
    pub fn turn_ended(&self, end: &'static str) {
        self.turns_ended.get_or_create(&EndLabel { end }).inc();
    }

    /// Everything, in the OpenMetrics text format.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing into memory cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// What the store says of itself, asked when the metrics are.
struct OfStore(Arc<dyn Store>);

impl std::fmt::Debug for OfStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OfStore").field(&self.0.name()).finish()
    }
}

impl Collector for OfStore {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let reachable = ConstGauge::new(i64::from(self.0.trouble().is_none()));
        let help = "Whether the session store can be used, 0 or 1";
        reachable.encode(encoder.encode_descriptor("store_reachable", help, None, reachable.metric_type())?)?;
        for count in self.0.counts() {
            let counter = ConstCounter::new(count.value);
            let name = format!("store_{}", count.name);
            counter.encode(encoder.encode_descriptor(&name, count.help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

/// A connection that is counted as open.
pub struct OpenConnection {
    gauge: Gauge,
    open: Arc<AtomicU64>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.gauge.dec();
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}
