//! Holds a target for the time to the first token by moving the size of batches and the window in which they fill.
//!
//! Both are moved by additive increase and multiplicative decrease, as TCP's congestion window (Chiu and Jain, 1989) and as
//! Clipper moves the size of its batches (Crankshaw et al., NSDI 2017, section 4.3.1). What is decreased is what the target
//! was missed by: the size where the batch's own time takes most of the target, the window where places were held back for longer
//! than asks waited for them. Where asks missed it because they waited for a place, more of them must share each place (a smaller
//! batch would only make the wait longer): then both increase,
//! as they do while the target is kept and the model server is busy. Without that the window closes.

use std::{collections::VecDeque, time::Duration};

use super::BatchPolicy;
use crate::limits::{TARGET_STEP_ASKS, TARGET_WINDOW_ASKS};

/// Of 100 asks, those that may miss the target.
const MISSES_PERCENT: usize = 1;

/// Misses below which nothing follows from them.
const MISSES_MIN: usize = 3;

/// The window grows by this part of its ceiling.
const WINDOW_STEPS: u32 = 5;

/// How long an ask's first token took, and what of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    /// From the ask to its first token.
    pub(super) total: Duration,
    /// A place was there, and held back.
    pub(super) held: Duration,
    /// The model server's own time for the batch, without waits inside it.
    pub(super) own: Duration,
    /// Asks of the call.
    pub(super) size: usize,
    /// More wait than fit into a call.
    pub(super) queue: bool,
}

/// How an ask fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fared {
    Kept,
    /// The batch was too large.
    MissedBySize,
    /// The place was held back too long.
    MissedByWindow,
    /// There was no place.
    MissedByWait,
}

/// The present size and window.
#[derive(Debug)]
pub(super) struct Target {
    max_size: usize,
    max_delay: Duration,
    target: Duration,
    cap: usize,
    window: Duration,
    recent: VecDeque<Fared>,
    since_step: usize,
}

impl Target {
    pub(super) fn new(policy: BatchPolicy) -> Self {
        let (max_size, max_delay, target) = match policy {
            BatchPolicy::Adaptive { max_size, max_delay, first_token_target } => {
                (max_size.max(1), max_delay, first_token_target)
            }
            BatchPolicy::Fixed { .. } | BatchPolicy::Off => (1, Duration::ZERO, Duration::MAX),
        };
        let (cap, window, recent) = (max_size, Duration::ZERO, VecDeque::new());
        Self { max_size, max_delay, target, cap, window, recent, since_step: 0 }
    }

    /// Asks of one call at most.
    pub(super) fn cap(&self) -> usize {
        self.cap
    }

    /// How long a place is held back at most.
    pub(super) fn window(&self) -> Duration {
        self.window
    }

    /// The first token of an ask has come. `busy`: fuller batches would serve more.
    pub(super) fn observe(&mut self, took: Took, busy: bool) {
        self.recent.push_back(self.fared(took));
        if self.recent.len() > TARGET_WINDOW_ASKS {
            self.recent.pop_front();
        }
        self.since_step += 1;
        if self.since_step < TARGET_STEP_ASKS {
            return;
        }
        self.since_step = 0;
        let count = |what| self.recent.iter().filter(|fared| **fared == what).count();
        let (size, window) = (count(Fared::MissedBySize), count(Fared::MissedByWindow));
        let missed = size + window + count(Fared::MissedByWait);
        let is_missed = missed >= MISSES_MIN && missed * 100 > self.recent.len() * MISSES_PERCENT;
        if is_missed && size * 2 > missed {
            self.cap = (self.cap / 2).max(1);
        } else if is_missed && window * 2 > missed {
            self.window /= 2;
        } else {
            self.increase(busy);
            return;
        }
        // What was measured before says nothing of what is now.
        self.recent.clear();
    }

    fn fared(&self, took: Took) -> Fared {
        if took.total <= self.target {
            Fared::Kept
        } else if took.size > 1 && !took.queue && took.own * 3 > self.target * 2 {
            Fared::MissedBySize
        } else if took.held * 2 > took.total.saturating_sub(took.own) {
            Fared::MissedByWindow
        } else {
            Fared::MissedByWait
        }
    }

    fn increase(&mut self, busy: bool) {
        self.cap = (self.cap + 1).min(self.max_size);
        let step = self.max_delay / WINDOW_STEPS;
        self.window = match busy {
            true => (self.window + step).min(self.max_delay),
            false if self.window > step => self.window / 2,
            false => Duration::ZERO,
        };
    }
}

#[cfg(test)]
mod tests;
