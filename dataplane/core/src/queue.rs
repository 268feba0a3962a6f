//! Who may call a model server now, who waits, and who is refused.
//!
//! At most so many calls run at once. Of those that wait, sessions take turns: a session with 500 asks delays another's
//! single one by one call, not by 500. Whoever waits too long is refused, and so is everybody beyond a bound.
//!
//! Whenever somebody waits, every place is taken. The shell holds an ask's [`Ticket`], asks [`FairQueue::poll`] when it is
//! woken or the deadline is there, and calls [`FairQueue::release`] when its call is over.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

use crate::limits::{RETRY_AFTER_MAX, RETRY_AFTER_MIN};

/// How many at once, and who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Calls at once.
    pub max_concurrent: usize,
    /// Asks that wait.
    pub max_queued: usize,
    /// How long one waits at most.
    pub timeout: Duration,
}

/// An ask that waits. Given back by [`FairQueue::poll`] or [`FairQueue::cancel`], once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What becomes of an ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may call now.
    Run,
    /// It waits, at most until `deadline`.
    Wait {
        /// By which it asks further.
        ticket: Ticket,
        /// When it has waited too long.
        deadline: Instant,
    },
    /// Too many wait.
    Full {
        /// When it may go better.
        retry_after: Duration,
    },
}

/// Where a waiting ask stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It waits.
    Waiting,
    /// It may call now; the ticket is used up.
    Granted,
    /// It has waited too long, or is not known; the ticket is used up.
    TimedOut {
        /// When it may go better.
        retry_after: Duration,
    },
}

#[derive(Debug)]
struct Asked<S> {
    session: S,
    deadline: Instant,
    state: AskedState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AskedState {
    Waiting,
    Granted,
    TimedOut,
}

/// The bounded concurrency and the fair, bounded queue of one model server.
#[derive(Debug)]
pub struct FairQueue<S> {
    limits: QueueLimits,
    /// Calls that run, with those granted and not yet picked up.
    running: usize,
    asked: HashMap<Ticket, Asked<S>>,
    /// The waiting asks of each session, oldest first. Never an empty one.
    sessions: HashMap<S, VecDeque<Ticket>>,
    /// Those sessions, the one whose turn it is first.
    order: VecDeque<S>,
    waiting: usize,
    next_ticket: u64,
    last_release: Option<Instant>,
    /// Smoothed time between two releases while somebody waits.
    pace: Option<Duration>,
}

impl<S: Clone + Eq + Hash> FairQueue<S> {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            running: 0,
            asked: HashMap::new(),
            sessions: HashMap::new(),
            order: VecDeque::new(),
            waiting: 0,
            next_ticket: 0,
            last_release: None,
            pace: None,
        }
    }

    /// Calls that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    /// Asks that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// A session asks for a call.
    pub fn ask(&mut self, session: &S, now: Instant) -> Admission {
        if self.running < self.limits.max_concurrent {
            self.running += 1;
            return Admission::Run;
        }
        if self.waiting >= self.limits.max_queued {
            return Admission::Full { retry_after: self.retry_after() };
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let deadline = now + self.limits.timeout;
        self.asked.insert(ticket, Asked { session: session.clone(), deadline, state: AskedState::Waiting });
        let queue = self.sessions.entry(session.clone()).or_default();
        if queue.is_empty() {
            self.order.push_back(session.clone());
        }
        queue.push_back(ticket);
        self.waiting += 1;
        Admission::Wait { ticket, deadline }
    }

    /// Where a waiting ask stands.
    pub fn poll(&mut self, ticket: Ticket, now: Instant) -> Standing {
        let timed_out = Standing::TimedOut { retry_after: self.retry_after() };
        let Some(asked) = self.asked.get(&ticket) else { return timed_out };
        match asked.state {
            AskedState::Waiting if now < asked.deadline => Standing::Waiting,
            AskedState::Waiting => {
                self.leave(ticket);
                timed_out
            }
            AskedState::Granted => {
                self.asked.remove(&ticket);
                Standing::Granted
            }
            AskedState::TimedOut => {
                self.asked.remove(&ticket);
                timed_out
            }
        }
    }

    /// A waiting ask is given up. Somebody to wake, where it held a place already.
    pub fn cancel(&mut self, ticket: Ticket, now: Instant) -> Option<Ticket> {
        match self.asked.get(&ticket)?.state {
            AskedState::Waiting => {
                self.leave(ticket);
                None
            }
            AskedState::Granted => {
                self.asked.remove(&ticket);
                self.release(now)
            }
            AskedState::TimedOut => {
                self.asked.remove(&ticket);
                None
            }
        }
    }

    /// A call is over. Whose turn it is now: wake it.
    pub fn release(&mut self, now: Instant) -> Option<Ticket> {
        self.measure(now);
        self.running = self.running.saturating_sub(1);
        while let Some(session) = self.order.pop_front() {
            let Some(ticket) = self.sessions.get_mut(&session).and_then(VecDeque::pop_front) else { continue };
            self.waiting -= 1;
            let more = self.sessions.get(&session).is_some_and(|queue| !queue.is_empty());
            if !more {
                self.sessions.remove(&session);
            }
            let Some(asked) = self.asked.get_mut(&ticket) else { continue };
            if now < asked.deadline {
                asked.state = AskedState::Granted;
                self.running += 1;
                if more {
                    self.order.push_back(session);
                }
                return Some(ticket);
            }
            // Too late for this one; its session keeps its turn.
            asked.state = AskedState::TimedOut;
            if more {
                self.order.push_front(session);
            }
        }
        None
    }

    /// Takes a waiting ask out of the queue.
    fn leave(&mut self, ticket: Ticket) {
        let Some(Asked { session, .. }) = self.asked.remove(&ticket) else { return };
        self.waiting -= 1;
        let Some(queue) = self.sessions.get_mut(&session) else { return };
        queue.retain(|waiting| *waiting != ticket);
        if queue.is_empty() {
            self.sessions.remove(&session);
            self.order.retain(|waiting| *waiting != session);
        }
    }

    fn measure(&mut self, now: Instant) {
        let last = self.last_release.replace(now);
        if self.waiting == 0 {
            self.last_release = None;
            return;
        }
        if let Some(last) = last {
            let gap = now.saturating_duration_since(last);
            self.pace = Some(self.pace.map_or(gap, |pace| pace * 7 / 8 + gap / 8));
        }
    }

    /// When those who wait now will have been served, at the present pace.
    fn retry_after(&self) -> Duration {
        let ahead = u32::try_from(self.waiting).unwrap_or(u32::MAX);
        let pace = self.pace.unwrap_or(RETRY_AFTER_MIN);
        pace.saturating_mul(ahead).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }
}

#[cfg(test)]
mod tests;
