//! How a pod leaves: what it still takes, when each client is told, and when it is over.
//!
//! ```text
//! start ── accept floor ──┬── reconnect spread ──┬───────────────────┬─ timeout
//! not ready, works on     │ each client is told  │ answers finish,   │ what still runs is handed to other pods,
//!                         │ at a moment of its   │ told clients      │ where there are any; whatever is left is
//!                         └ own                  └ leave             └ closed at the timeout
//! ```

use std::time::{Duration, Instant};

use crate::limits::{DRAIN_LAST_WORDS, GO_AWAY_GRACE, HAND_OVER_TIME, RECONNECT_AFTER_MAX};

/// The times of one drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainPlan {
    /// When it began.
    pub started: Instant,
    /// Until here everything is accepted as before: load balancers still send new clients.
    pub floor: Instant,
    /// Until here every client is told to reconnect elsewhere.
    pub told: Instant,
    /// From here on turns that still run are handed to another pod, if there is one.
    pub hand_over: Instant,
    /// Here it is over, whatever still runs.
    pub deadline: Instant,
}

/// What is left in a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Client connections.
    pub connections: u64,
    /// Turns that run here.
    pub turns: u64,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Work as before, but not ready.
    Accepting,
    /// Take nothing new; wait for what is left.
    Leaving,
    /// Nothing is left: exit.
    Done,
    /// Time is up: close what is left, exit.
    Expired,
}

impl DrainPlan {
    /// The plan of a drain that starts `now`.
    #[must_use]
    pub fn new(now: Instant, accept_floor: Duration, reconnect_spread: Duration, timeout: Duration) -> Self {
        let floor = now + accept_floor.min(timeout);
        let deadline = now + timeout;
        let told = (floor + reconnect_spread).min(deadline);
        let last = deadline.checked_sub(HAND_OVER_TIME).unwrap_or(told);
        Self { started: now, floor, told, hand_over: last.max(told + (deadline - told) / 2), deadline }
    }

    /// When a client is told, for a random number in 0..=1: spread evenly, so that its like do not all reconnect at once.
    #[must_use]
    pub fn go_away_at(&self, random: f64) -> Instant {
        self.floor + (self.told - self.floor).mul_f64(random.clamp(0.0, 1.0))
    }

    /// How long a client that is told should wait before it connects anew.
    #[must_use]
    pub fn reconnect_after(random: f64) -> Duration {
        RECONNECT_AFTER_MAX.mul_f64(random.clamp(0.0, 1.0))
    }

    /// When the connection of a client that is told `now` is closed at the latest: soon if it is idle, at the deadline if an
    /// answer still runs on it.
    #[must_use]
    pub fn close_at(&self, now: Instant, answering: bool) -> Instant {
        if answering { self.deadline.max(now) } else { (now + GO_AWAY_GRACE).min(self.deadline).max(now) }
    }

    /// When the last words are to be said, so that they are heard before it is over.
    #[must_use]
    pub fn last_words(&self) -> Instant {
        self.deadline.checked_sub(DRAIN_LAST_WORDS).map_or(self.deadline, |at| at.max(self.floor))
    }

    /// What to do `now` with so much left.
    #[must_use]
    pub fn phase(&self, now: Instant, left: Left) -> Phase {
        if now >= self.deadline {
            Phase::Expired
        } else if now < self.floor {
            Phase::Accepting
        } else if left == Left::default() {
            Phase::Done
        } else {
            Phase::Leaving
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn clients_are_told_between_floor_and_spread() {
        let t = Instant::now();
        let plan = DrainPlan::new(t, 5 * S, 10 * S, 60 * S);
        assert_eq!(plan.go_away_at(0.0), t + 5 * S);
        assert_eq!(plan.go_away_at(0.5), t + 10 * S);
        assert_eq!(plan.go_away_at(1.0), t + 15 * S);
    }

    #[test]
    fn a_timeout_shorter_than_the_rest_bounds_everything() {
        let t = Instant::now();
        let plan = DrainPlan::new(t, 5 * S, 10 * S, 3 * S);
        assert_eq!((plan.floor, plan.told, plan.deadline), (t + 3 * S, t + 3 * S, t + 3 * S));
        assert_eq!(plan.close_at(t + 4 * S, true), t + 4 * S);
    }

    #[test]
    fn what_runs_is_handed_over_in_good_time() {
        let t = Instant::now();
        assert_eq!(DrainPlan::new(t, 5 * S, 10 * S, 60 * S).hand_over, t + 50 * S);
        assert_eq!(DrainPlan::new(t, S, S, 10 * S).hand_over, t + 6 * S);
        assert_eq!(DrainPlan::new(t, S, S, S).hand_over, t + S);
    }

    #[test]
    fn it_ends_when_nothing_is_left_but_not_before_the_floor() {
        let t = Instant::now();
        let plan = DrainPlan::new(t, 5 * S, 10 * S, 60 * S);
        let one = Left { connections: 1, turns: 0 };
        assert_eq!(plan.phase(t + S, Left::default()), Phase::Accepting);
        assert_eq!(plan.phase(t + 6 * S, one), Phase::Leaving);
        assert_eq!(plan.phase(t + 6 * S, Left { connections: 0, turns: 1 }), Phase::Leaving);
        assert_eq!(plan.phase(t + 6 * S, Left::default()), Phase::Done);
        assert_eq!(plan.phase(t + 60 * S, one), Phase::Expired);
    }

    #[test]
    fn last_words_are_said_before_the_deadline_and_not_before_the_floor() {
        let t = Instant::now();
        assert_eq!(DrainPlan::new(t, 5 * S, 10 * S, 60 * S).last_words(), t + 60 * S - DRAIN_LAST_WORDS);
        assert_eq!(DrainPlan::new(t, 5 * S, 10 * S, 5 * S).last_words(), t + 5 * S);
    }

    #[test]
    fn an_idle_client_is_closed_soon_and_an_answering_one_at_the_deadline() {
        let t = Instant::now();
        let plan = DrainPlan::new(t, 5 * S, 10 * S, 60 * S);
        assert_eq!(plan.close_at(t + 6 * S, false), t + 6 * S + GO_AWAY_GRACE);
        assert_eq!(plan.close_at(t + 6 * S, true), t + 60 * S);
        assert_eq!(plan.close_at(t + 59 * S, false), t + 60 * S);
    }
}
