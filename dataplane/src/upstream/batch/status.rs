//! How batching shows in `/status` and in the metrics.

use std::sync::atomic::Ordering::Relaxed;

use chatgateway_core::batch::BatchView;
use serde::Serialize;

use super::Batching;

/// The batches of one upstream, as `/status` shows them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BatchingStatus {
    /// Turns that wait to be sent.
    pub waiting: u64,
    /// Calls sent, of one turn or more.
    pub calls: u64,
    /// Turns sent with them.
    pub turns: u64,
    /// Turns of a call, on average.
    pub mean_size: f64,
    /// Turns of the last call.
    pub last_size: u64,
    /// Turns of one call at most, at present.
    pub max_size: u64,
    /// How long turns are held back at most to fill a batch, at present.
    pub window_ms: f64,
    /// Calls that the model server does at once, as far as is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub useful_calls: Option<u64>,
    /// Batches that were refused, and whose turns were asked one by one.
    pub split_alone: u64,
    /// Turns that were given up before they were sent.
    pub left: u64,
}

impl Batching {
    pub(in crate::upstream) fn status(&self) -> BatchingStatus {
        let BatchView { waiting, calls, asks, last_size, left, cap, window, useful_calls, .. } =
            self.inner.lock().batcher.view();
        BatchingStatus {
            waiting: waiting as u64,
            calls,
            turns: asks,
            mean_size: if calls == 0 { 0.0 } else { asks as f64 / calls as f64 },
            last_size: last_size as u64,
            max_size: cap as u64,
            window_ms: window.as_secs_f64() * 1_000.0,
            useful_calls: useful_calls.map(|calls| calls as u64),
            split_alone: self.split_alone.load(Relaxed),
            left,
        }
    }
}
