//! The owner: runs the turns of one ownership, one after the other, until the session is idle or another's.
//!
//! A state machine without I/O. What happens goes into [`Owner::handle`], what is to be done comes out as effects, and
//! [`Owner::timeout`] says when it wants to be woken. It commits before it delivers, has one call to the store at a time
//! (a check may follow an append without waiting for it), and whenever an outcome is not known it looks at the log before
//! it goes on: nothing here relies on the lease.

mod settle;
mod turn;

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use self::turn::{Stage, Turn};
use super::{
    Check, Claim, ClaimReason, Entry, EntryId, EntryKind, Finish, Nonce, Ownership, PodId, Reply, Request, Reset,
    Terms, TurnBody, TurnId, Unknown, Usage,
};
use crate::{
    error::ErrorCode,
    limits::{CHECK_INTERVAL, END_LEASE_ATTEMPTS, READ_PAGE_ENTRIES, STORE_RETRY_MAX, STORE_RETRY_MIN},
    random::Random,
};

/// What an owner is told once.
#[derive(Clone, Debug)]
pub struct OwnerConfig {
    /// The pod process it belongs to.
    pub pod: PodId,
    /// Settings for the store's scripts.
    pub terms: Terms,
    /// Whether the model server can continue a partial answer.
    pub prefill: bool,
    /// How long one turn may take here, from start or takeover to its end.
    pub turn_deadline: Duration,
}

/// How an ownership came about.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The number of the store connection that is in use now.
    pub connection: u64,
    /// Whether the reply that gave the ownership came to a request sent over that very connection. If not, the owner checks
    /// before it writes.
    pub verified: bool,
}

/// What an owner hears.
#[derive(Debug)]
pub enum OwnerInput {
    /// The outcome of the outstanding call, and the number of the connection it was sent over.
    Reply {
        /// What the store said, if that is known.
        result: Result<Reply, Unknown>,
        /// The connection it was sent over.
        connection: u64,
    },
    /// The outcome of the check that was sent behind an append. Never comes before the append's.
    Looked {
        /// What the store said, if that is known.
        result: Result<Reply, Unknown>,
        /// The connection it was sent over.
        connection: u64,
    },
    /// The store is now reached over this connection, or there are signs that it is another store than before.
    Connection(u64),
    /// The model said something.
    Text(String),
    /// The model is done.
    UpstreamEnd {
        /// Why it stopped.
        finish_reason: Arc<str>,
        /// What it cost.
        usage: Usage,
    },
    /// The model server failed, and nothing more comes.
    UpstreamFailed {
        /// How.
        code: ErrorCode,
        /// For a person.
        message: String,
        /// Whether it makes sense to ask again, if some of the answer was told: the request is not at fault.
        again: bool,
    },
    /// A hint that something about the session is worth a look: a cancel, a break in the log that a reader met.
    Cancel,
    /// The pod goes away, and another one can go on with the session.
    Drain(Leave),
    /// Time has passed.
    Tick,
}

/// When an owner leaves its session to another pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// When the turn that runs has ended: those that wait are run elsewhere.
    AfterThisTurn,
    /// In the middle of the turn.
    Now,
}

/// What an owner wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnerEffect {
    /// Send this to the store, and bring the outcome, whatever it is. Never more than one at a time.
    Call(Request),
    /// Send this check right behind the append that was given just before, and bring the outcome after that one's. Nothing else is
    /// called before both are there.
    Look(Check),
    /// The entry is committed: give it to readers.
    Deliver(Arc<Entry>),
    /// Something may be committed that was not delivered: local readers should look at the log.
    Reread,
    /// Ask the model.
    Ask {
        /// The turn.
        turn: TurnId,
        /// What it asks.
        body: Arc<TurnBody>,
        /// The beginning of the answer, to be continued.
        prefix: Option<String>,
    },
    /// Give the model's answer up.
    StopUpstream,
    /// Read no more of the model's answer for now.
    PauseUpstream,
    /// Read on.
    ResumeUpstream,
    /// The ownership is over. The last effect.
    Released(Release),
}

/// How an ownership ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// All turns have ended.
    Idle,
    /// The session is another pod's, or it is gone.
    NotMine,
    /// The lease was ended in the middle of a turn; another pod goes on with it.
    Drained,
}

/// A request that was sent, with what is needed to settle it.
#[derive(Clone, Debug)]
enum Sent {
    Append { entry: Arc<Entry>, bytes: usize },
    Check,
    Read,
    Finish(Finish),
    Claim(Claim),
    Reset(Reset),
    EndLease,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upstream {
    Off,
    On,
    Paused,
}

/// Runs the turns of one ownership. See the module.
#[derive(Debug)]
pub struct Owner {
    config: OwnerConfig,
    random: Random,
    connection: u64,
    /// Whether the log was seen to end where it is believed to end, over the present connection.
    verified: bool,
    epoch: u64,
    end: EntryId,
    len: u64,
    turn: Turn,
    upstream: Upstream,
    /// The one outstanding call.
    call: Option<Sent>,
    /// Whether a check is under way behind it.
    looking: bool,
    /// Sent, outcome not known.
    doubt: Option<Sent>,
    /// Calls in a row that came to nothing.
    attempts: u32,
    retry_at: Option<Instant>,
    next_check: Instant,
    /// Whether to check before anything else: the hint may be about a cancel, after which no more text is told.
    hinted: bool,
    leave: Option<Leave>,
    released: bool,
}

impl Owner {
    /// Starts or takes over the turn of `own`. `seed` is random.
    pub fn new(
        own: Ownership,
        config: OwnerConfig,
        link: Link,
        seed: u64,
        now: Instant,
        out: &mut Vec<OwnerEffect>,
    ) -> Self {
        let mut owner = Self {
            random: Random::new(seed),
            connection: link.connection,
            verified: link.verified,
            epoch: own.epoch,
            end: own.end,
            len: own.len,
            turn: Turn::new(&own, now + config.turn_deadline),
            config,
            upstream: Upstream::Off,
            call: None,
            looking: false,
            doubt: None,
            attempts: 0,
            retry_at: None,
            next_check: now + CHECK_INTERVAL,
            hinted: false,
            leave: None,
            released: false,
        };
        if own.appended.is_empty() {
            // A repeat gave the ownership: what its first copy appended was delivered to nobody.
            out.push(OwnerEffect::Reread);
        }
        owner.deliver(&own.appended, out);
        owner.start_turn(own, now, out);
        owner.pump(now, out);
        owner
    }

    /// The turn that runs.
    #[must_use]
    pub fn turn(&self) -> &TurnId {
        &self.turn.id
    }

    /// The ownership's epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether it is over: nothing more comes out of it.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.released
    }

    /// When it wants a [`OwnerInput::Tick`] at the latest.
    #[must_use]
    pub fn timeout(&self) -> Option<Instant> {
        if self.released {
            return None;
        }
        let call = if self.waits() { None } else { Some(self.retry_at.unwrap_or(self.next_check)) };
        let deadline = if self.turn.outcome.is_none() { Some(self.turn.deadline) } else { None };
        [call, deadline].into_iter().flatten().min()
    }

    /// Takes one input. What is to be done is added to `out`.
    pub fn handle(&mut self, input: OwnerInput, now: Instant, out: &mut Vec<OwnerEffect>) {
        if self.released {
            return;
        }
        match input {
            OwnerInput::Text(text) => self.on_text(&text, out),
            OwnerInput::Reply { result, connection } => self.settle(result, connection, now, out),
            OwnerInput::Looked { result, connection } => self.looked(result, connection, now, out),
            OwnerInput::Connection(connection) => {
                if connection != self.connection {
                    self.connection = connection;
                    self.verified = false;
                    self.retry_at = None;
                }
            }
            OwnerInput::UpstreamEnd { finish_reason, usage } => {
                self.on_upstream_over(EntryKind::Done { finish_reason, usage });
            }
            OwnerInput::UpstreamFailed { code, message, again } => {
                if !(again && self.ask_again(out)) {
                    self.on_upstream_over(EntryKind::Failed { code, message: message.into() });
                }
            }
            // A hint may be late or wrong; what counts is what the store says.
            OwnerInput::Cancel => self.hinted = true,
            OwnerInput::Drain(Leave::AfterThisTurn) => self.leave = self.leave.or(Some(Leave::AfterThisTurn)),
            OwnerInput::Drain(Leave::Now) => {
                self.leave = Some(Leave::Now);
                if self.turn.outcome.is_none() {
                    self.stop_upstream(out);
                }
            }
            OwnerInput::Tick => {}
        }
        if self.released {
            return;
        }
        if self.turn.outcome.is_none() && now >= self.turn.deadline {
            let message = "the turn took longer than a turn may take in total; send it again as a new turn";
            self.fail(ErrorCode::UpstreamTimeout, message, out);
        }
        self.pump(now, out);
    }

    /// Sends what is next, if nothing is outstanding.
    fn pump(&mut self, now: Instant, out: &mut Vec<OwnerEffect>) {
        if self.released || self.waits() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        let Some(sent) = self.next_call(now, out) else {
            // Nothing is to be done, so nothing fails.
            self.attempts = 0;
            return;
        };
        let pod = self.config.pod;
        // Text does not wait until the lease is renewed: that would be one round trip more.
        self.looking = matches!(sent, Sent::Append { .. }) && now >= self.next_check;
        let request = match &sent {
            Sent::Append { entry, .. } => Request::Append(Arc::clone(entry)),
            Sent::Check => Request::Check(self.next_look(now)),
            Sent::Read => Request::Read { after: self.turn.recovered_to(), count: READ_PAGE_ENTRIES },
            Sent::Finish(finish) => Request::Finish(finish.clone()),
            Sent::Claim(claim) => Request::Claim(claim.clone()),
            Sent::Reset(reset) => Request::Reset(reset.clone()),
            Sent::EndLease => Request::EndLease { pod, epoch: self.epoch },
        };
        self.call = Some(sent);
        out.push(OwnerEffect::Call(request));
        if self.looking {
            out.push(OwnerEffect::Look(self.next_look(now)));
        }
    }

    fn next_look(&mut self, now: Instant) -> Check {
        self.next_check = now + CHECK_INTERVAL;
        self.hinted = false;
        Check { pod: self.config.pod, epoch: self.epoch, terms: self.config.terms }
    }

    /// Whether a call is under way.
    fn waits(&self) -> bool {
        self.call.is_some() || self.looking
    }

    fn next_call(&mut self, now: Instant, out: &mut Vec<OwnerEffect>) -> Option<Sent> {
        match self.doubt.take() {
            // Its outcome shows in the log: look first.
            Some(append @ Sent::Append { .. }) => {
                if self.verified && !self.handing_over() {
                    return Some(append);
                }
                self.doubt = Some(append);
                return Some(Sent::Check);
            }
            // These recognise themselves. Only the random step is new: the copy before may have been carried out and
            // forgotten by the store, and its epoch must not be given again.
            Some(Sent::Claim(mut claim)) => {
                claim.jump = self.next_jump();
                return Some(Sent::Claim(claim));
            }
            Some(again) => return Some(again),
            None => {}
        }
        if self.handing_over() {
            return Some(Sent::EndLease);
        }
        if !self.verified || self.hinted {
            return Some(Sent::Check);
        }
        let text = if matches!(self.turn.stage, Stage::Answer) { self.next_text(out) } else { None };
        if text.is_some() {
            return text;
        }
        if now >= self.next_check {
            return Some(Sent::Check);
        }
        match self.turn.stage {
            Stage::Recover { .. } => Some(Sent::Read),
            Stage::Reset { .. } => Some(Sent::Reset(Reset {
                pod: self.config.pod,
                epoch: self.epoch,
                follows: self.end,
                len: self.len,
                entry: self.entry(EntryKind::Reset),
            })),
            Stage::Answer => self.next_finish(),
        }
    }

    /// Whether the turn is to be left to another pod. What has come to its end is ended here.
    fn handing_over(&self) -> bool {
        self.leaves_now() && self.turn.outcome.is_none()
    }

    fn leaves_now(&self) -> bool {
        self.leave == Some(Leave::Now)
    }

    /// The epoch's next entry. The same end and kind give the same entry: no id is ever sent with two contents.
    fn entry(&self, kind: EntryKind) -> Arc<Entry> {
        let id = EntryId::new(self.epoch, self.end.n + 1);
        Arc::new(Entry { id, after: None, turn: self.turn.id.clone(), kind })
    }

    fn next_finish(&self) -> Option<Sent> {
        let outcome = self.turn.outcome.clone()?;
        let answer = if matches!(outcome, EntryKind::Failed { .. }) { "" } else { self.turn.text.as_str() };
        Some(Sent::Finish(Finish {
            pod: self.config.pod,
            epoch: self.epoch,
            follows: self.end,
            len: self.len,
            answer: answer.into(),
            entry: self.entry(outcome),
            terms: self.config.terms,
        }))
    }

    /// The epoch, and where its log ends. A repeat of the request that gave the ownership may find an end that is not of its
    /// epoch: a writer that the store has forgotten wrote after it. Nothing can follow that but a new epoch.
    fn adopt(&mut self, own: &Ownership) {
        self.epoch = own.epoch;
        self.end = own.end;
        self.len = own.len;
        if own.end.epoch != own.epoch {
            self.doubt = Some(self.claim_after_loss());
        }
    }

    /// The store has lost entries: a new epoch, with which the turn's text is told again.
    fn claim_after_loss(&mut self) -> Sent {
        Sent::Claim(Claim {
            pod: self.config.pod,
            nonce: Nonce(self.random.number()),
            why: ClaimReason::Loss { epoch: self.epoch },
            jump: self.next_jump(),
            terms: self.config.terms,
        })
    }

    /// Waits before the next call: twice as long each time, and never as long as others do.
    fn back_off(&mut self, now: Instant) {
        let pause = STORE_RETRY_MIN.saturating_mul(1 << self.attempts.min(10)).min(STORE_RETRY_MAX);
        let share = (self.random.number() >> 54) as u32; // 0..1024
        self.retry_at = Some(now + pause / 2 + pause / 2 * share / 1024);
    }

    /// 0..2^20.
    fn next_jump(&mut self) -> u32 {
        (self.random.number() >> 44) as u32
    }

    fn deliver(&self, entries: &[Arc<Entry>], out: &mut Vec<OwnerEffect>) {
        out.extend(entries.iter().map(|entry| OwnerEffect::Deliver(Arc::clone(entry))));
    }

    fn release(&mut self, why: Release, out: &mut Vec<OwnerEffect>) {
        self.stop_upstream(out);
        if why == Release::NotMine {
            out.push(OwnerEffect::Reread);
        }
        self.released = true;
        out.push(OwnerEffect::Released(why));
    }

    /// Whether the lease's end was sent often enough.
    fn gives_up_ending(&self) -> bool {
        self.attempts >= END_LEASE_ATTEMPTS
    }
}
