//! Who may call a model server now, who waits, and who is refused.
//!
//! At most so many calls run at once. Of those that wait, sessions take turns: a session with 500 asks delays another's
//! single one by one call, not by 500. An ask that, at the present pace, would wait too long is refused at once, and so is
//! everybody beyond a bound; but a full queue takes a session with few asks in by putting out the newest ask of the session
//! that has the most.
//!
//! Whenever somebody waits, every place is taken. The shell holds an ask's [`Ticket`], asks [`FairQueue::poll`] when it is
//! woken or the deadline is there, and calls [`FairQueue::free`] when its call is over, then [`FairQueue::grant`]. Each step
//! takes a time that grows with the logarithm of those that wait; only the door counts the asks that are to be served before
//! a new one, and no further than to the first that would be too late.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    time::{Duration, Instant},
};

use self::pace::Pace;
use crate::limits::{RETRY_AFTER_MAX, RETRY_AFTER_MIN};

mod pace;

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

/// An ask that waits. Given back by [`FairQueue::poll`] or [`FairQueue::give_up`], once.
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
        /// This one had to leave for it: wake it.
        pushed_out: Option<Ticket>,
    },
    /// It is refused.
    Refused(NoRoom),
}

/// Why an ask is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// What happened.
    pub why: Why,
    /// When it may go better.
    pub retry_after: Duration,
}

/// What happened to an ask that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Too many wait.
    Full,
    /// It would wait longer than it may.
    TooSlow,
    /// It had to leave for another session's ask.
    PushedOut,
    /// It has waited too long, or is not known.
    TimedOut,
    /// Nobody is served any more.
    Closed,
}

/// Where a waiting ask stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It waits.
    Waiting,
    /// It may call now; the ticket is used up.
    Granted,
    /// It is refused; the ticket is used up.
    Refused(NoRoom),
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
    /// It is out of the queue, and has not heard of it.
    Out(Why),
}

/// The waiting asks of one session.
#[derive(Debug)]
struct Line {
    /// When it is the session's turn: the smaller the sooner.
    turn: u64,
    /// Oldest first. Never empty.
    tickets: BTreeSet<Ticket>,
}

/// The bounded concurrency and the fair, bounded queue of one upstream.
#[derive(Debug)]
pub struct FairQueue<S> {
    limits: QueueLimits,
    /// Calls that run, with those granted and not yet picked up.
    running: usize,
    asked: HashMap<Ticket, Asked<S>>,
    sessions: HashMap<S, Line>,
    /// Those sessions by their turns.
    order: BTreeMap<u64, S>,
    /// And by how many of their asks wait.
    longest: BTreeSet<(usize, u64)>,
    /// How many sessions have more than so many waiting asks: the asks of each round.
    rounds: Vec<usize>,
    waiting: usize,
    next_ticket: u64,
    next_turn: u64,
    pace: Pace,
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
            order: BTreeMap::new(),
            longest: BTreeSet::new(),
            rounds: Vec::new(),
            waiting: 0,
            next_ticket: 0,
            next_turn: 0,
            pace: Pace::default(),
        }
    }

    /// Other bounds from now on. Where there is more room, [`FairQueue::grant`] says whose turn it is; nobody is put out where
    /// there is less.
    pub fn set_limits(&mut self, limits: QueueLimits) {
        self.limits = limits;
    }

    /// So many may run from now on, see [`FairQueue::set_limits`].
    pub fn set_capacity(&mut self, max_concurrent: usize) {
        self.limits.max_concurrent = max_concurrent;
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
        if let Err(refused) = self.door(session, 0, now) {
            return Admission::Refused(refused);
        }
        let pushed_out = if self.waiting >= self.limits.max_queued { self.push_out() } else { None };
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let deadline = now + self.limits.timeout;
        self.asked.insert(ticket, Asked { session: session.clone(), deadline, state: AskedState::Waiting });
        self.enter(session, ticket);
        Admission::Wait { ticket, deadline, pushed_out }
    }

    /// Whether an ask of `session` would be taken in now, if `expected` others came before it.
    ///
    /// # Errors
    /// Why not.
    pub fn door(&self, session: &S, expected: usize, now: Instant) -> Result<(), NoRoom> {
        if self.running + expected < self.limits.max_concurrent {
            return Ok(());
        }
        let own = self.sessions.get(session).map_or(0, |line| line.tickets.len());
        let refused = |why| Err(NoRoom { why, retry_after: self.retry_after(now) });
        if self.waiting + expected >= self.limits.max_queued {
            let longest = self.longest.last().map_or(0, |(count, _)| *count);
            // Only where the other still has more than this one afterwards: else the two would put each other out for ever.
            if longest < own + 2 {
                return refused(Why::Full);
            }
        }
        let Some(pace) = self.pace.at(now) else { return Ok(()) };
        // With its own it is served when as many rounds are over: one ask of each session that still has one.
        let in_time = self.limits.timeout.as_nanos() / pace.as_nanos().max(1);
        let mut before = expected as u128;
        for asks in self.rounds.iter().take(own + 1) {
            before += *asks as u128;
            if before > in_time {
                return refused(Why::TooSlow);
            }
        }
        Ok(())
    }

    /// Where a waiting ask stands.
    pub fn poll(&mut self, ticket: Ticket, now: Instant) -> Standing {
        let retry_after = self.retry_after(now);
        let refused = |why| Standing::Refused(NoRoom { why, retry_after });
        let Some(asked) = self.asked.get(&ticket) else { return refused(Why::TimedOut) };
        match asked.state {
            AskedState::Waiting if now < asked.deadline => Standing::Waiting,
            AskedState::Waiting => {
                self.forget(ticket);
                refused(Why::TimedOut)
            }
            AskedState::Granted => {
                self.asked.remove(&ticket);
                Standing::Granted
            }
            AskedState::Out(why) => {
                self.asked.remove(&ticket);
                refused(why)
            }
        }
    }

    /// A waiting ask is given up. Whether it held a place already; then [`FairQueue::grant`] says whose turn it is.
    pub fn give_up(&mut self, ticket: Ticket) -> bool {
        let Some(asked) = self.asked.get(&ticket) else { return false };
        let granted = asked.state == AskedState::Granted;
        self.forget(ticket);
        if granted {
            self.running = self.running.saturating_sub(1);
        }
        granted
    }

    /// A call is over.
    pub fn free(&mut self, now: Instant) {
        self.pace.served(now, self.waiting > 0);
        self.running = self.running.saturating_sub(1);
    }

    /// Whose turn it is, where there is room: wake it. To be repeated while there is.
    pub fn grant(&mut self, now: Instant) -> Option<Ticket> {
        if self.running >= self.limits.max_concurrent {
            return None;
        }
        while let Some((_, session)) = self.order.first_key_value() {
            let session = session.clone();
            let ticket = *self.sessions.get(&session)?.tickets.first()?;
            let in_time = self.asked.get(&ticket).is_some_and(|asked| now < asked.deadline);
            // One that is too late leaves its turn to its session.
            self.leave(&session, ticket, in_time);
            let Some(asked) = self.asked.get_mut(&ticket) else { continue };
            if in_time {
                asked.state = AskedState::Granted;
                self.running += 1;
                return Some(ticket);
            }
            asked.state = AskedState::Out(Why::TimedOut);
        }
        None
    }

    /// Nobody is served any more: all that wait are refused. Wake them.
    pub fn close(&mut self) -> Vec<Ticket> {
        let mut out = Vec::with_capacity(self.waiting);
        for line in std::mem::take(&mut self.sessions).into_values() {
            out.extend(line.tickets);
        }
        for ticket in &out {
            if let Some(asked) = self.asked.get_mut(ticket) {
                asked.state = AskedState::Out(Why::Closed);
            }
        }
        self.order.clear();
        self.longest.clear();
        self.rounds.clear();
        self.waiting = 0;
        out
    }

    /// The newest ask of the session with the most leaves.
    fn push_out(&mut self) -> Option<Ticket> {
        let (_, turn) = *self.longest.last()?;
        let session = self.order.get(&turn)?.clone();
        let ticket = *self.sessions.get(&session)?.tickets.last()?;
        self.leave(&session, ticket, false);
        self.asked.get_mut(&ticket)?.state = AskedState::Out(Why::PushedOut);
        Some(ticket)
    }

    /// Takes an ask out of everything.
    fn forget(&mut self, ticket: Ticket) {
        let Some(asked) = self.asked.remove(&ticket) else { return };
        if asked.state == AskedState::Waiting {
            self.leave(&asked.session, ticket, false);
        }
    }

    /// Puts an ask into its session's line, which begins behind all others.
    fn enter(&mut self, session: &S, ticket: Ticket) {
        let line = match self.sessions.get_mut(session) {
            Some(line) => line,
            None => {
                let turn = self.next_turn;
                self.next_turn += 1;
                self.order.insert(turn, session.clone());
                self.sessions.entry(session.clone()).or_insert(Line { turn, tickets: BTreeSet::new() })
            }
        };
        let before = line.tickets.len();
        line.tickets.insert(ticket);
        self.longest.remove(&(before, line.turn));
        self.longest.insert((before + 1, line.turn));
        if self.rounds.len() <= before {
            self.rounds.resize(before + 1, 0);
        }
        self.rounds[before] += 1;
        self.waiting += 1;
    }

    /// Takes an ask out of its session's line. `served`: the session then is behind all others.
    fn leave(&mut self, session: &S, ticket: Ticket, served: bool) {
        let Some(line) = self.sessions.get_mut(session) else { return };
        let before = line.tickets.len();
        if !line.tickets.remove(&ticket) {
            return;
        }
        self.waiting -= 1;
        self.rounds[before - 1] -= 1;
        if self.rounds.last() == Some(&0) {
            self.rounds.pop();
        }
        self.longest.remove(&(before, line.turn));
        if before == 1 {
            self.order.remove(&line.turn);
            self.sessions.remove(session);
            return;
        }
        if served {
            self.order.remove(&line.turn);
            line.turn = self.next_turn;
            self.next_turn += 1;
            self.order.insert(line.turn, session.clone());
        }
        self.longest.insert((before - 1, line.turn));
    }

    /// When those who wait now will have been served, at the present pace.
    fn retry_after(&self, now: Instant) -> Duration {
        let ahead = u32::try_from(self.waiting).unwrap_or(u32::MAX);
        let pace = self.pace.at(now).unwrap_or(RETRY_AFTER_MIN);
        pace.saturating_mul(ahead).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }
}

#[cfg(test)]
mod tests;
