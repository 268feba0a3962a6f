//! Stops the calls of a model server that fails too often, and finds out when it is well again.
//!
//! Closed, it looks at the last calls. Once enough of them have failed, or were slow, it opens: no call is made for a while.
//! Then a few calls probe, and when all of those are judged it closes or opens again. Results of calls that began before a
//! change of state say nothing about the state after it, and are not counted.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// When a breaker opens, and how it closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Calls that are looked at.
    pub window: usize,
    /// Calls before it judges; at most the window.
    pub min_calls: usize,
    /// Percentage of failures at which it opens.
    pub failure_percent: u32,
    /// Percentage of slow calls at which it opens.
    pub slow_percent: u32,
    /// How long it stays open before it probes.
    pub open_for: Duration,
    /// Calls that probe.
    pub probes: usize,
}

/// Whether calls may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// All may.
    Closed,
    /// None may.
    Open,
    /// Some may, to see what becomes of them.
    HalfOpen,
}

impl BreakerState {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// Its name in status and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It says something about the model server.
    Judged {
        /// It failed, by the model server's fault.
        failed: bool,
        /// Its first word took too long.
        slow: bool,
    },
    /// It was given up, or failed by its own fault: it says nothing.
    Nothing,
}

/// Leave to make one call. Brought back once, by [`Breaker::record`].
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    /// The state in which it was given, by number.
    generation: u64,
    probe: bool,
}

impl Permit {
    /// Whether the call probes. What is asked of such a call is whether the model server answers again, so it is judged at its
    /// first word: long answers would otherwise keep the breaker half open for minutes.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

#[derive(Debug)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { under_way: usize },
}

/// The circuit breaker of one endpoint.
#[derive(Debug)]
pub struct Breaker {
    config: BreakerConfig,
    state: State,
    /// Counts changes of state.
    generation: u64,
    /// The calls of this state, oldest first: failed, slow. In the half-open state the probes.
    seen: VecDeque<(bool, bool)>,
    failed: usize,
    slow: usize,
    /// How often it has opened.
    opened: u64,
}

impl Breaker {
    /// A closed breaker that has seen nothing.
    #[must_use]
    pub fn new(config: BreakerConfig) -> Self {
        Self { config, state: State::Closed, generation: 0, seen: VecDeque::new(), failed: 0, slow: 0, opened: 0 }
    }

    /// Other thresholds from now on. What it has seen and its state stay.
    pub fn configure(&mut self, config: BreakerConfig) {
        self.config = config;
        while self.seen.len() > config.window {
            self.forget_oldest();
        }
    }

    /// Where it stands, as of the last [`Breaker::advance`].
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// How often it has opened.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Until when it is open, where it is.
    #[must_use]
    pub fn open_until(&self) -> Option<Instant> {
        match self.state {
            State::Open { until } => Some(until),
            _ => None,
        }
    }

    /// Time has passed: an open one begins to probe when its time is over.
    pub fn advance(&mut self, now: Instant) {
        if let State::Open { until } = self.state
            && now >= until
        {
            self.change(State::HalfOpen { under_way: 0 });
        }
    }

    /// How many calls may be begun now.
    #[must_use]
    pub fn room(&self) -> usize {
        match self.state {
            State::Closed => usize::MAX,
            State::Open { .. } => 0,
            State::HalfOpen { under_way } => self.config.probes.saturating_sub(under_way + self.seen.len()),
        }
    }

    /// Leave to make a call, if one may be made.
    pub fn begin(&mut self) -> Option<Permit> {
        if self.room() == 0 {
            return None;
        }
        let mut probe = false;
        if let State::HalfOpen { under_way } = &mut self.state {
            *under_way += 1;
            probe = true;
        }
        Some(Permit { generation: self.generation, probe })
    }

    /// What became of a call.
    pub fn record(&mut self, permit: &Permit, outcome: Outcome, now: Instant) {
        if permit.generation != self.generation {
            return;
        }
        if let State::HalfOpen { under_way } = &mut self.state {
            *under_way = under_way.saturating_sub(1);
        }
        let Outcome::Judged { failed, slow } = outcome else { return };
        self.seen.push_back((failed, slow));
        self.failed += usize::from(failed);
        self.slow += usize::from(slow);
        match self.state {
            State::Closed => {
                if self.seen.len() > self.config.window {
                    self.forget_oldest();
                }
                if self.seen.len() >= self.config.min_calls && self.is_bad(self.seen.len()) {
                    self.open(now);
                }
            }
            // It may be clear before the last probe is back that it opens; not that it closes.
            State::HalfOpen { .. } if self.is_bad(self.config.probes.max(self.seen.len())) => self.open(now),
            State::HalfOpen { .. } if self.seen.len() >= self.config.probes => self.change(State::Closed),
            State::HalfOpen { .. } | State::Open { .. } => {}
        }
    }

    /// Whether what was seen is too much of `calls` calls.
    fn is_bad(&self, calls: usize) -> bool {
        let reaches = |bad: usize, percent: u32| bad > 0 && bad * 100 >= percent as usize * calls;
        reaches(self.failed, self.config.failure_percent) || reaches(self.slow, self.config.slow_percent)
    }

    fn open(&mut self, now: Instant) {
        self.opened += 1;
        self.change(State::Open { until: now + self.config.open_for });
    }

    fn change(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
        self.seen.clear();
        self.failed = 0;
        self.slow = 0;
    }

    fn forget_oldest(&mut self) {
        if let Some((failed, slow)) = self.seen.pop_front() {
            self.failed -= usize::from(failed);
            self.slow -= usize::from(slow);
        }
    }
}

#[cfg(test)]
mod tests;
