//! What the simulator was asked and what became of it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::prefix::Found;

/// Calls remembered one by one, unless the settings say otherwise; older ones are only counted.
pub const CALLS_REMEMBERED: usize = 1_000;

/// Largest request body remembered with its call.
pub const BODY_REMEMBERED_BYTES: usize = 64 * 1024;

/// How a call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Not ended yet.
    Running,
    /// Answered to the end.
    Completed,
    /// The client left before the end.
    Cancelled,
    /// Ended by a fault or a refusal that was asked for, or by a full queue.
    Failed,
}

/// One call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CallRecord {
    /// Number of the call since the simulator's start, from 0.
    pub number: u64,
    /// Path of the request.
    pub path: String,
    /// Model asked for.
    pub model: String,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// What was asked: the last user message, or each prompt.
    pub texts: Vec<String>,
    /// The part of the answer that the call had already and that is to be continued; empty where there was none.
    pub prefix: String,
    /// The request's `authorization` header.
    pub authorization: Option<String>,
    /// The request's body; null where it is larger than [`BODY_REMEMBERED_BYTES`].
    pub body: Value,
    /// Tokens sent, over all prompts.
    pub tokens: u64,
    /// How it stands.
    pub outcome: Outcome,
}

/// Counts since the last reset, and the last calls.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Calls {
    /// Calls begun.
    pub count: u64,
    /// Calls not ended.
    pub in_flight: u64,
    /// Most calls that were in flight together.
    pub max_in_flight: u64,
    /// Calls answered to the end.
    pub completed: u64,
    /// Calls whose client left before the end.
    pub cancelled: u64,
    /// Calls ended by a fault, a refusal or a full queue.
    pub failed: u64,
    /// Prompts of the calls.
    pub prompts: u64,
    /// Blocks of prompts that were remembered, and those that were not; 0 where there is no room for any.
    pub prefix_hits: u64,
    /// See `prefix_hits`.
    pub prefix_misses: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Connections open now.
    pub open_connections: u64,
    /// The last calls, oldest first.
    pub calls: VecDeque<CallRecord>,
    /// Number of the next call. A reset leaves it, so that a call of before never ends one of after.
    #[serde(skip)]
    next_number: u64,
}

impl Calls {
    /// Everything asked in the remembered calls, oldest first.
    pub fn texts(&self) -> Vec<&str> {
        self.calls.iter().flat_map(|call| call.texts.iter().map(String::as_str)).collect()
    }
}

/// The simulator's memory of its calls.
#[derive(Clone)]
pub struct Recorder {
    calls: Arc<Mutex<Calls>>,
    remembered: usize,
}

impl Recorder {
    /// A memory of so many calls.
    pub fn new(remembered: usize) -> Self {
        Self { calls: Arc::default(), remembered: remembered.max(1) }
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted until now.
    pub fn calls(&self) -> Calls {
        self.lock().clone()
    }

    /// Forgets the calls; those in flight and the open connections still count.
    pub fn reset(&self) {
        let mut calls = self.lock();
        *calls = Calls {
            in_flight: calls.in_flight,
            max_in_flight: calls.in_flight,
            open_connections: calls.open_connections,
            next_number: calls.next_number,
            ..Calls::default()
        };
    }

    /// Counts a connection until the guard is dropped.
    pub fn connected(&self) -> ConnectionGuard {
        let mut calls = self.lock();
        calls.connections += 1;
        calls.open_connections += 1;
        drop(calls);
        ConnectionGuard { recorder: self.clone() }
    }

    /// Counts what was remembered of a call's prompts.
    pub fn found(&self, found: Found) {
        let mut calls = self.lock();
        calls.prefix_hits += found.hits;
        calls.prefix_misses += found.misses;
    }

    /// Begins a call. It counts as cancelled unless the guard is told otherwise before its drop.
    pub fn begin(&self, mut record: CallRecord) -> CallGuard {
        let mut calls = self.lock();
        record.number = calls.next_number;
        calls.next_number += 1;
        calls.count += 1;
        calls.prompts += record.texts.len() as u64;
        calls.in_flight += 1;
        calls.max_in_flight = calls.max_in_flight.max(calls.in_flight);
        if calls.calls.len() >= self.remembered {
            calls.calls.pop_front();
        }
        let number = record.number;
        calls.calls.push_back(record);
        drop(calls);
        CallGuard { recorder: self.clone(), number, tokens: 0, outcome: Outcome::Cancelled }
    }
}

/// An open connection.
pub struct ConnectionGuard {
    recorder: Recorder,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        let mut calls = self.recorder.lock();
        calls.open_connections = calls.open_connections.saturating_sub(1);
    }
}

/// A call in flight.
pub struct CallGuard {
    recorder: Recorder,
    number: u64,
    /// Tokens sent until now.
    pub tokens: u64,
    outcome: Outcome,
}

impl CallGuard {
    /// Number of the call, from 0.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Sets how the call has ended.
    pub fn ended(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        let mut calls = self.recorder.lock();
        calls.in_flight = calls.in_flight.saturating_sub(1);
        match self.outcome {
            Outcome::Completed => calls.completed += 1,
            Outcome::Cancelled => calls.cancelled += 1,
            Outcome::Failed | Outcome::Running => calls.failed += 1,
        }
        let first = calls.calls.front().map_or(u64::MAX, |call| call.number);
        let place = self.number.checked_sub(first).and_then(|place| usize::try_from(place).ok());
        if let Some(record) = place.and_then(|place| calls.calls.get_mut(place)) {
            record.outcome = self.outcome;
            record.tokens = self.tokens;
        }
    }
}
