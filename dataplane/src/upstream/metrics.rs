//! What `/metrics` shows of model servers. Labels are the names of upstreams and endpoints, which come from the configuration
//! and the name service; never from a client.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use chatgateway_core::breaker::BreakerState;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::{BatchingStatus, EndpointStatus, UpstreamStatus, Upstreams};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabel {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabel {
    upstream: String,
    endpoint: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BreakerLabel {
    upstream: String,
    endpoint: String,
    state: &'static str,
}

/// Name, help, value.
type Metric<T> = (&'static str, &'static str, fn(&T) -> u64);

/// What is counted of an upstream.
const COUNTERS: [Metric<UpstreamStatus>; 11] = [
    ("calls", "Calls made", |s| s.calls),
    ("failures", "Calls that failed", |s| s.failures),
    ("timeouts", "Calls that ran into a timeout", |s| s.timeouts),
    ("overflows", "Turns refused because too many waited, or too slowly", |s| s.overflows),
    ("queue_timeouts", "Turns that waited too long for a call", |s| s.queue_timeouts),
    ("door_refusals", "Turns refused before they were accepted", |s| s.door_refusals),
    ("pushed_out", "Turns put out of the queue for other sessions", |s| s.pushed_out),
    ("circuit_refusals", "Turns refused because no endpoint could be called", |s| s.circuit_refusals),
    ("retries", "Calls made again", |s| s.retries),
    ("budget_refusals", "Calls not made again because too many were", |s| s.budget_refusals),
    ("resumed_answers", "Answers that broke off and were asked for again", |s| s.resumed_answers),
];

/// What goes up and down of an upstream.
const GAUGES: [Metric<UpstreamStatus>; 2] =
    [("in_flight", "Calls under way", |s| s.in_flight), ("waiting", "Turns that wait for a call", |s| s.waiting)];

/// What is counted of an upstream's batches.
const BATCH_COUNTERS: [Metric<BatchingStatus>; 4] = [
    ("calls", "Calls sent that turns may share", |s| s.calls),
    ("turns", "Turns sent with them", |s| s.turns),
    ("split_alone", "Batches that were refused, and whose turns were asked one by one", |s| s.split_alone),
    ("left", "Turns given up before they were sent", |s| s.left),
];

/// What goes up and down of them.
const BATCH_GAUGES: [Metric<BatchingStatus>; 4] = [
    ("waiting", "Turns that wait to be sent", |s| s.waiting),
    ("last_size", "Turns of the last call", |s| s.last_size),
    ("max_size", "Turns of one call at most, at present", |s| s.max_size),
    ("window_milliseconds", "How long turns are held back at most to fill a call, at present", |s| s.window_ms as u64),
];

/// What the model servers in force say of themselves, asked when the metrics are.
pub struct OfUpstreams(pub Arc<ArcSwap<Upstreams>>);

impl fmt::Debug for OfUpstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OfUpstreams").field(&self.0.load()).finish()
    }
}

impl Collector for OfUpstreams {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let status = self.0.load().status();
        let upstreams: Vec<_> = status.iter().map(|s| (s.name.as_str(), s)).collect();
        let batching: Vec<_> = status.iter().filter_map(|s| Some((s.name.as_str(), s.batching.as_ref()?))).collect();
        let endpoints: Vec<_> = status.iter().flat_map(|s| s.endpoints.iter().map(|e| (s.name.as_str(), e))).collect();
        of_each(&mut encoder, "upstream", (&COUNTERS, &GAUGES), &upstreams)?;
        of_each(&mut encoder, "upstream_batch", (&BATCH_COUNTERS, &BATCH_GAUGES), &batching)?;
        endpoint_metrics(&mut encoder, &endpoints)
    }
}

/// The same counters and gauges of each upstream.
fn of_each<T>(
    encoder: &mut DescriptorEncoder<'_>,
    prefix: &str,
    (counters, gauges): (&[Metric<T>], &[Metric<T>]),
    upstreams: &[(&str, &T)],
) -> Result<(), fmt::Error> {
    let kinds = [(MetricType::Counter, counters), (MetricType::Gauge, gauges)];
    let metrics = kinds.into_iter().flat_map(|(kind, metrics)| metrics.iter().map(move |metric| (kind, metric)));
    for (kind, (name, help, value)) in metrics {
        let name = format!("{prefix}_{name}");
        let mut family = encoder.encode_descriptor(&name, help, None, kind)?;
        for (upstream, status) in upstreams {
            let label = UpstreamLabel { upstream: (*upstream).to_owned() };
            let metric = family.encode_family(&label)?;
            match kind {
                MetricType::Gauge => ConstGauge::new(signed(value(status))).encode(metric)?,
                _ => ConstCounter::new(value(status)).encode(metric)?,
            }
        }
    }
    Ok(())
}

fn endpoint_metrics(
    encoder: &mut DescriptorEncoder<'_>,
    endpoints: &[(&str, &EndpointStatus)],
) -> Result<(), fmt::Error> {
    let label = |upstream: &str, endpoint: &EndpointStatus| EndpointLabel {
        upstream: upstream.to_owned(),
        endpoint: endpoint.endpoint.clone(),
    };
    let help = "Calls under way at one endpoint";
    let mut family = encoder.encode_descriptor("upstream_endpoint_in_flight", help, None, MetricType::Gauge)?;
    for (upstream, endpoint) in endpoints {
        let label = label(upstream, endpoint);
        ConstGauge::new(signed(endpoint.in_flight)).encode(family.encode_family(&label)?)?;
    }
    let help = "Where the circuit breaker of an endpoint stands: 1 for its state";
    let mut family = encoder.encode_descriptor("upstream_endpoint_breaker", help, None, MetricType::Gauge)?;
    for (upstream, endpoint) in endpoints {
        for state in BreakerState::ALL.map(BreakerState::as_str) {
            let EndpointLabel { upstream, endpoint: name } = label(upstream, endpoint);
            let label = BreakerLabel { upstream, endpoint: name, state };
            ConstGauge::new(i64::from(endpoint.breaker == state)).encode(family.encode_family(&label)?)?;
        }
    }
    let help = "How often the circuit breaker of an endpoint has opened";
    let mut family = encoder.encode_descriptor("upstream_endpoint_opened", help, None, MetricType::Counter)?;
    for (upstream, endpoint) in endpoints {
        ConstCounter::new(endpoint.opened).encode(family.encode_family(&label(upstream, endpoint))?)?;
    }
    Ok(())
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
