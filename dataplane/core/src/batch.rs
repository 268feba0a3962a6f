//! Which asks go to a model server as one call, and when.
//!
//! Asks of the same [group](Batcher::ask) may share a call. They wait in turn between sessions: one session with 500 asks
//! delays another's single one by one call. What a call carries is decided when there is a place for it at the model server
//! ([`Batcher::take`]) and not before, so nobody is stuck in a batch that cannot go, and who leaves before that was never in it.
//!
//! * [`BatchPolicy::Fixed`]: a batch goes when it is full or its oldest ask has waited for the delay, whichever comes first
//!   (as in Clipper, Crankshaw et al., NSDI 2017, section 4.3).
//! * [`BatchPolicy::Adaptive`]: while the model server has room, an ask goes at once and alone. While it has none, asks gather,
//!   and go together when a call ends: the more load, the larger the batches, without a timer (the group commit of databases,
//!   and Nagle's algorithm, RFC 896, with a call's end in place of the acknowledgement). How many calls run before there is no
//!   room is measured, see the module `room`; how large batches are at most, and how long a place is held back to fill one, is
//!   moved to hold a target for the time to the first token, see the module `target`.
//!
//! The shell carries out [`Batcher::step`] whenever an ask comes, leaves or a call ends; it gets a place where it is told to,
//! and then asks [`Batcher::take`] for what to send.

mod gather;
mod room;
mod share;
mod target;

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

pub use self::share::split;
use self::{
    gather::Gather,
    room::Room,
    target::{Target, Took},
};
use crate::limits::{BATCH_BUSY, BATCH_BUSY_ASKS, RETRY_AFTER_MAX, RETRY_AFTER_MIN};

/// How asks become calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchPolicy {
    /// One ask, one call.
    Off,
    /// A full batch or a delay, whichever comes first.
    Fixed {
        /// Asks of one call.
        max_size: usize,
        /// How long an ask waits for others.
        max_delay: Duration,
    },
    /// Gather only while the model server has no room.
    Adaptive {
        /// Asks of one call at most.
        max_size: usize,
        /// How long a place may be held back at most.
        max_delay: Duration,
        /// The time from an ask to its first token that 99 of 100 are to keep.
        first_token_target: Duration,
    },
}

impl BatchPolicy {
    fn max_size(self) -> usize {
        match self {
            Self::Off => 1,
            Self::Fixed { max_size, .. } | Self::Adaptive { max_size, .. } => max_size.max(1),
        }
    }
}

/// Who may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Calls at once that there are places for.
    pub max_concurrent: usize,
    /// Asks that wait; as many as fill one batch always may.
    pub max_queued: usize,
    /// How long one waits at most.
    pub timeout: Duration,
}

/// An ask that waits. In the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(u64);

/// An ask that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// By which it is known.
    pub ask: AskId,
    /// When it has waited too long; the caller then lets it [leave](Batcher::leave).
    pub deadline: Instant,
    /// This one had to leave for it, to be told so.
    pub pushed_out: Option<AskId>,
}

/// A call that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(u64);

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: nobody waits.
    Idle,
    /// Nothing before that time, unless something happens; without a time, before something happens.
    Wait(Option<Instant>),
    /// A place is to be got at the model server, and [`Batcher::take`] to be asked with it.
    Place,
}

/// What goes over a place that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Take<G> {
    /// These asks, as one call.
    Send(Batch<G>),
    /// Nothing yet: the place is held back until then, or until an ask comes or leaves.
    Hold(Instant),
    /// Nothing any more; the place is not needed.
    Nothing,
}

/// The asks of one call, oldest turn first. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<G> {
    /// The call. It runs until [`Batcher::ended`].
    pub call: CallId,
    /// What they have in common.
    pub group: G,
    /// Whose turn it was.
    pub asks: Vec<AskId>,
}

/// Where batching stands, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchView {
    /// Asks that wait.
    pub waiting: usize,
    /// Calls that run.
    pub running: usize,
    /// Calls sent.
    pub calls: u64,
    /// Asks sent with them.
    pub asks: u64,
    /// Asks of the last call.
    pub last_size: usize,
    /// Asks that left before they were sent.
    pub left: u64,
    /// Asks of one call at most, at present.
    pub cap: usize,
    /// How long a place is held back at most, at present.
    pub window: Duration,
    /// Calls that the model server does at once, as far as is known.
    pub useful_calls: Option<usize>,
}

/// A call under way.
#[derive(Debug)]
struct Sent {
    at: Instant,
    size: usize,
    /// Calls that ran when it was sent, itself included.
    running: usize,
    /// Since when its place was there, where it was held back.
    held_since: Option<Instant>,
    /// When its asks came. One is taken out when its first token has come.
    came: HashMap<AskId, Instant>,
    begun: bool,
}

/// Gathers asks and decides what goes when.
#[derive(Debug)]
pub struct Batcher<S, G> {
    policy: BatchPolicy,
    limits: BatchLimits,
    gather: Gather<S, G>,
    calls: HashMap<CallId, Sent>,
    room: Room,
    target: Target,
    /// When the place that is held back came.
    held_since: Option<Instant>,
    /// The model server takes no batches until then.
    alone_until: Option<Instant>,
    /// How much of the room was taken when the latest asks came, on average.
    busy: f64,
    /// Smoothed time between two asks sent while others wait.
    pace: Option<Duration>,
    last_sent: Option<Instant>,
    next_call: u64,
    view: BatchView,
}

impl<S: Clone + Eq + Hash, G: Clone + Eq + Hash> Batcher<S, G> {
    /// Nobody waits, nothing is known of the model server.
    #[must_use]
    pub fn new(policy: BatchPolicy, limits: BatchLimits) -> Self {
        Self {
            policy,
            limits,
            gather: Gather::default(),
            calls: HashMap::new(),
            room: Room::default(),
            target: Target::new(policy),
            held_since: None,
            alone_until: None,
            busy: 0.0,
            pace: None,
            last_sent: None,
            next_call: 0,
            view: BatchView::default(),
        }
    }

    /// Goes on by another policy and other limits. Who waits stays; what is known of the model server too.
    pub fn change(&mut self, policy: BatchPolicy, limits: BatchLimits) {
        if policy != self.policy {
            self.target = Target::new(policy);
        }
        self.policy = policy;
        self.limits = limits;
    }

    /// An ask comes. Those of one group may share a call.
    ///
    /// # Errors
    /// Too many wait; when it may go better.
    pub fn ask(&mut self, session: &S, group: &G, now: Instant) -> Result<Taken, Duration> {
        self.door(session)?;
        let pushed_out = if self.is_crowded() { self.gather.push_out() } else { None };
        let taken = self.calls.len() as f64 / self.room() as f64;
        self.busy += (taken.min(1.0) - self.busy) / BATCH_BUSY_ASKS;
        let ask = self.gather.push(session, group, now);
        Ok(Taken { ask, deadline: now + self.limits.timeout, pushed_out })
    }

    /// Whether an ask of `session` would be taken in. Where as many wait as may, it is if it puts one of a session out that has
    /// more, as in a [queue](crate::queue) without batches.
    ///
    /// # Errors
    /// Too many wait for that, or so many that it would only time out; when it may go better.
    pub fn door(&self, session: &S) -> Result<(), Duration> {
        let full = self.is_crowded() && !self.gather.may_push_out(session);
        if full || self.gather.len() > self.policy.max_size() && self.wait() > self.limits.timeout {
            return Err(self.retry_after());
        }
        Ok(())
    }

    /// Whether as many wait as may.
    fn is_crowded(&self) -> bool {
        self.gather.len() >= self.limits.max_queued.max(self.policy.max_size())
    }

    /// When those who wait now will have been served, as clients are told.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        self.wait().clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }

    /// So many calls may run at once from now on.
    pub fn places(&mut self, places: usize) {
        self.limits.max_concurrent = places.max(1);
    }

    /// A waiting ask is given up; whether it still waited.
    pub fn leave(&mut self, ask: AskId) -> bool {
        let waited = self.gather.remove(ask).is_some();
        self.view.left += u64::from(waited);
        waited
    }

    /// What is to be done now.
    pub fn step(&mut self, now: Instant) -> Step {
        let Some(oldest) = self.gather.oldest() else { return Step::Idle };
        match self.policy {
            _ if self.alone(now) => Step::Place,
            BatchPolicy::Off => Step::Place,
            BatchPolicy::Fixed { max_size, max_delay } => {
                let due = oldest + max_delay;
                let any = now >= due || self.gather.largest_group() >= max_size;
                if any { Step::Place } else { Step::Wait(Some(due)) }
            }
            BatchPolicy::Adaptive { .. } if self.is_full() => Step::Wait(None),
            BatchPolicy::Adaptive { .. } => Step::Place,
        }
    }

    /// Whose turn it is, where anybody waits: a place for the next call is got in this one's name.
    #[must_use]
    pub fn next_session(&self) -> Option<&S> {
        self.gather.next_session()
    }

    /// There is no place: takes out the ask whose turn it is, to be told so.
    pub fn refuse(&mut self) -> Option<AskId> {
        let leader = self.gather.leader(|_| true)?.ask;
        self.gather.remove(leader);
        Some(leader)
    }

    /// A place is there, and so many more are free: what goes over it.
    pub fn take(&mut self, free: usize, now: Instant) -> Take<G> {
        let alone = self.alone(now);
        let leader = match self.policy {
            BatchPolicy::Fixed { max_size, max_delay } if !alone => {
                self.gather.leader(|group| group.len() >= max_size || now >= group.oldest() + max_delay)
            }
            _ => self.gather.leader(|_| true),
        };
        let Some(leader) = leader else {
            self.held_since = None;
            return Take::Nothing;
        };
        let size = match self.policy {
            _ if alone => 1,
            BatchPolicy::Adaptive { .. } => {
                if let Some(until) = self.hold(leader.group_len, now) {
                    return Take::Hold(until);
                }
                // Where each may have a place of its own, none waits for the others' tokens.
                let room = self.room().saturating_sub(self.calls.len()).min(free + 1).max(1);
                let share = if self.is_busy() { leader.group_len } else { leader.group_len.div_ceil(room) };
                self.target.cap().min(share)
            }
            policy => policy.max_size(),
        };
        Take::Send(self.send(&leader.group, leader.ask, size, now))
    }

    /// The first token of an ask's answer has come.
    pub fn first_token(&mut self, call: CallId, ask: AskId, now: Instant) {
        let Some(sent) = self.calls.get_mut(&call) else { return };
        let Some(came) = sent.came.remove(&ask) else { return };
        let since_sent = now.saturating_duration_since(sent.at);
        if !sent.begun {
            sent.begun = true;
            self.room.observe(sent.size, sent.running, since_sent, self.limits.max_concurrent, now);
        }
        let held = sent.held_since.map_or(Duration::ZERO, |since| sent.at.saturating_duration_since(since.max(came)));
        // What is longer than the best time of such a call was a wait, only inside the model server.
        let own = self.room.best(sent.size).map_or(Duration::ZERO, |best| best.min(since_sent));
        let took = Took {
            total: now.saturating_duration_since(came),
            held,
            own,
            size: sent.size,
            queue: self.gather.len() > self.target.cap(),
        };
        self.target.observe(took, self.is_busy());
    }

    /// A call is over.
    pub fn ended(&mut self, call: CallId) {
        self.calls.remove(&call);
    }

    /// The model server takes no batches: until then each ask goes alone.
    pub fn alone_until(&mut self, until: Instant) {
        self.alone_until = Some(until);
    }

    /// Where it stands.
    #[must_use]
    pub fn view(&self) -> BatchView {
        let (cap, window) = match self.policy {
            BatchPolicy::Adaptive { .. } => (self.target.cap(), self.target.window()),
            BatchPolicy::Fixed { max_size, max_delay } => (max_size, max_delay),
            BatchPolicy::Off => (1, Duration::ZERO),
        };
        let (waiting, running) = (self.gather.len(), self.calls.len());
        BatchView { waiting, running, cap, window, useful_calls: self.room.known(), ..self.view }
    }

    fn alone(&self, now: Instant) -> bool {
        self.alone_until.is_some_and(|until| now < until)
    }

    /// Whether another call would only wait inside the model server.
    fn is_full(&self) -> bool {
        self.calls.len() >= self.room()
    }

    /// Whether the model server is so busy that fuller batches would serve more.
    fn is_busy(&self) -> bool {
        self.busy >= BATCH_BUSY
    }

    /// Calls that may run.
    fn room(&self) -> usize {
        self.room.limit(self.limits.max_concurrent).min(self.limits.max_concurrent).max(1)
    }

    /// Until when the place that is there is held back to fill the batch.
    fn hold(&mut self, group_len: usize, now: Instant) -> Option<Instant> {
        // A full batch goes at once, and so does everybody while the model server is not busy.
        if group_len >= self.target.cap() || !self.is_busy() {
            return None;
        }
        let since = *self.held_since.get_or_insert(now);
        let until = since + self.target.window();
        (now < until).then_some(until)
    }

    fn send(&mut self, group: &G, leader: AskId, size: usize, now: Instant) -> Batch<G> {
        let taken = self.gather.take(group, leader, size);
        let call = CallId(self.next_call);
        self.next_call += 1;
        let asks: Vec<AskId> = taken.iter().map(|(ask, _)| *ask).collect();
        self.measure(asks.len(), now);
        let sent = Sent {
            at: now,
            size: asks.len(),
            running: self.calls.len() + 1,
            held_since: self.held_since.take(),
            came: taken.into_iter().collect(),
            begun: false,
        };
        self.calls.insert(call, sent);
        self.room.sent(self.calls.len());
        self.view.calls += 1;
        self.view.asks += asks.len() as u64;
        self.view.last_size = asks.len();
        Batch { call, group: group.clone(), asks }
    }

    fn measure(&mut self, asks: usize, now: Instant) {
        let last = self.last_sent.replace(now);
        if self.gather.is_empty() {
            // How fast those were served says nothing of the next ones.
            (self.last_sent, self.pace) = (None, None);
        } else if let Some(last) = last {
            let gap = now.saturating_duration_since(last) / u32::try_from(asks.max(1)).unwrap_or(1);
            self.pace = Some(self.pace.map_or(gap, |pace| pace * 7 / 8 + gap / 8));
        }
    }

    /// How long those who wait now will take to be served, at the present pace.
    fn wait(&self) -> Duration {
        let ahead = u32::try_from(self.gather.len()).unwrap_or(u32::MAX);
        self.pace.map_or(Duration::ZERO, |pace| pace.saturating_mul(ahead))
    }
}

#[cfg(test)]
mod tests;
