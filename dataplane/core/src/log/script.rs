//! What is asked of the store, and what it answers. One request is one atomic step for one session.
//!
//! The names are those of the scripts in `docs/session-log.md`; each request's rules stand with the pure function that
//! carries it out. `now` is always the store's clock.

use std::sync::Arc;

use super::{EndKind, Entry, EntryId, PodId, TurnId};

/// The store's clock: microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoreTime(pub u64);

/// The mark of one request for ownership: random, kept by a repeat of that very request and by nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nonce(pub u64);

/// The outcome of a request is not known: it was lost, its reply was, or the store could not say. It may have been carried
/// out, it may yet be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store did not say what became of the request")]
pub struct Unknown;

/// A request to the store about one session.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Accept a turn: own the session, queue the turn, or recognise it.
    Begin(Begin),
    /// Append one entry of the caller's epoch, if it is above the end and the log exists. Knows no owner.
    Append(Arc<Entry>),
    /// Renew the lease, and look.
    Check(Check),
    /// End the running turn; go on with the next one, or release the session.
    Finish(Finish),
    /// Take a session whose lease is over, or start anew after the store lost entries.
    Claim(Claim),
    /// Void the running turn's text.
    Reset(Reset),
    /// Give the lease up: it is over now.
    EndLease {
        /// Who.
        pod: PodId,
        /// Its epoch.
        epoch: u64,
    },
    /// Mark a turn as cancelled.
    Cancel {
        /// Which.
        turn: TurnId,
    },
    /// Entries after a position.
    Read {
        /// The position.
        after: EntryId,
        /// At most so many.
        count: usize,
    },
    /// The session's history and where its log goes on from there.
    Snapshot,
    /// Remove the session.
    Delete,
}

impl Request {
    /// The same request for a further copy, after the outcome of the one before remained unknown. It recognises itself; only
    /// the random step is new.
    #[must_use]
    pub fn again(mut self, jump: u32) -> Self {
        match &mut self {
            Self::Begin(begin) => begin.jump = jump,
            Self::Claim(claim) => claim.jump = jump,
            _ => {}
        }
        self
    }
}

/// Times and bounds that a script needs and that are the gateway's settings, not the session's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long a session lives after its last turn, in milliseconds.
    pub ttl_ms: u64,
    /// How long a lease lasts, in milliseconds.
    pub lease_ms: u64,
    /// How many ended turns keep their entries in the log, and their texts in the history.
    pub keep_turns: usize,
}

/// See [`Request::Begin`].
#[derive(Clone, Debug, PartialEq)]
pub struct Begin {
    /// The caller.
    pub pod: PodId,
    /// Fresh, and kept when this request is sent again.
    pub nonce: Nonce,
    /// The turn.
    pub turn: TurnId,
    /// The number the client expects it to get.
    pub seq: Option<u64>,
    /// What the user said.
    pub body: Arc<TurnBody>,
    /// Random in 0..2^20: lifts the new epoch where the store's clock is behind. Fresh for every copy that is sent, also
    /// where the nonce is kept: the store may have carried out the copy before and forgotten it.
    pub jump: u32,
    /// Settings.
    pub terms: Terms,
}

/// What a turn asks.
#[derive(Clone, Debug, PartialEq)]
pub struct TurnBody {
    /// The user's text: what the log and the history show.
    pub text: Arc<str>,
    /// Everything else the upstream needs (messages, model, options), as one JSON object, or empty.
    pub extra: Arc<str>,
    /// Digest of all of it, by which a repeat is recognised.
    pub hash: [u8; 16],
}

impl TurnBody {
    /// A body with its digest (SHA-256, cut to 128 bits; the text's length separates the parts).
    #[must_use]
    pub fn new(text: Arc<str>, extra: Arc<str>) -> Self {
        use sha2::{Digest, Sha256};
        let mut digest = Sha256::new();
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text.as_bytes());
        digest.update(extra.as_bytes());
        let full: [u8; 32] = digest.finalize().into();
        let mut hash = [0; 16];
        hash.copy_from_slice(&full[..16]);
        Self { text, extra, hash }
    }
}

/// The state of a turn that is known to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TurnState {
    /// Waits for the turns before it.
    Queued,
    /// Is being answered.
    Running,
    /// Has ended.
    Ended(EndKind),
    /// Belonged to a session that was deleted.
    Deleted,
}

impl TurnState {
    /// Its name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Ended(EndKind::Done) => "done",
            Self::Ended(EndKind::Failed) => "failed",
            Self::Ended(EndKind::Cancelled) => "cancelled",
            Self::Deleted => "deleted",
        }
    }
}

/// An ownership that a begin, a claim or a finish gave: the turn to run now.
#[derive(Clone, Debug, PartialEq)]
pub struct Ownership {
    /// Its epoch.
    pub epoch: u64,
    /// The log's end.
    pub end: EntryId,
    /// The log's length, in entries.
    pub len: u64,
    /// The turn that runs.
    pub turn: TurnId,
    /// Its number.
    pub seq: u64,
    /// What it asks.
    pub body: Arc<TurnBody>,
    /// The id of its `turn` entry. [`EntryId::ZERO`] if the log that held it is lost.
    pub start: EntryId,
    /// Whether a client has cancelled it.
    pub cancel: bool,
    /// How often it was taken over.
    pub tries: u32,
    /// What this very request appended, for delivery (empty where the request was a repeat).
    pub appended: Vec<Arc<Entry>>,
}

/// Answer to [`Request::Begin`].
#[derive(Clone, Debug, PartialEq)]
pub enum BeginReply {
    /// The caller owns the session and runs the turn. `from` is the predecessor of the turn's entry.
    Owner {
        /// What is owned.
        own: Ownership,
        /// The position just before the turn's entry.
        from: EntryId,
    },
    /// The turn waits behind others.
    Queued {
        /// Its number.
        seq: u64,
        /// How many run or wait before it.
        place: u32,
        /// The log's end.
        end: EntryId,
        /// Who owns the session.
        owner: PodId,
        /// How long that lease lasts. 0: over, the caller calls claim.
        lease_left_ms: u64,
    },
    /// The turn is a repeat.
    Known(KnownTurn),
    /// The turn's id was used with another body.
    Conflict,
    /// The session was deleted with this turn in it.
    Gone,
    /// The expected number is not the next one.
    SeqGap {
        /// The next one.
        expected: u64,
    },
    /// As many turns wait as may.
    Busy,
}

/// A turn that is sent again.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownTurn {
    /// Where it stands.
    pub state: TurnState,
    /// Its number.
    pub seq: u64,
    /// How many run or wait before it, if it is queued.
    pub place: u32,
    /// The position just before its `turn` entry, if it has one.
    pub from: Option<EntryId>,
    /// The id of its last entry, if it has ended.
    pub ended_at: Option<EntryId>,
    /// The log's end.
    pub end: EntryId,
}

/// See [`Request::Check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The caller.
    pub pod: PodId,
    /// Its epoch.
    pub epoch: u64,
    /// Settings.
    pub terms: Terms,
}

/// Answer to [`Request::Check`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReply {
    /// Whether owner and epoch are the caller's. The lease is renewed if so, even if it had run out unclaimed.
    pub mine: bool,
    /// The log's end. `None`: there is no log.
    pub end: Option<EntryId>,
    /// The log's length.
    pub len: u64,
    /// Whether the running turn is cancelled.
    pub cancel: bool,
    /// How many turns wait.
    pub queued: u32,
}

/// See [`Request::Finish`].
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// The caller.
    pub pod: PodId,
    /// Its epoch.
    pub epoch: u64,
    /// The log's end as the caller knows it.
    pub follows: EntryId,
    /// The log's length as the caller knows it.
    pub len: u64,
    /// The entry that ends the turn.
    pub entry: Arc<Entry>,
    /// The answer's text for the history (whole for done, partial for cancelled, unused for failed).
    pub answer: Arc<str>,
    /// Settings.
    pub terms: Terms,
}

/// Answer to [`Request::Finish`].
#[derive(Clone, Debug, PartialEq)]
pub enum FinishReply {
    /// The turn has ended with the caller's entry.
    Ended {
        /// The end entry, and the next turn's `turn` entry if there is one.
        appended: Vec<Arc<Entry>>,
        /// The next turn, if one waited (its `appended` is empty: see above). Otherwise the session has no owner now.
        next: Option<Ownership>,
    },
    /// The turn had ended before (a repeat, or another's end).
    Already {
        /// The turn that runs now, if the session is still the caller's.
        next: Option<Ownership>,
    },
    /// Owner, epoch, end or length are not what the caller says.
    Refused,
}

/// See [`Request::Claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The caller.
    pub pod: PodId,
    /// Fresh, and kept when this request is sent again.
    pub nonce: Nonce,
    /// Why.
    pub why: ClaimReason,
    /// As in [`Begin`].
    pub jump: u32,
    /// Settings.
    pub terms: Terms,
}

/// Why a session is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimReason {
    /// Its lease is over.
    Expired,
    /// It is the caller's, under this epoch, and the store has lost entries of it.
    Loss {
        /// The caller's epoch.
        epoch: u64,
    },
}

/// Answer to [`Request::Claim`].
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimReply {
    /// The caller owns the session.
    Owner(Ownership),
    /// Nothing to own: no session, no owner, a lease that still runs, or nothing to do.
    Nothing,
}

/// See [`Request::Reset`].
#[derive(Clone, Debug, PartialEq)]
pub struct Reset {
    /// The caller.
    pub pod: PodId,
    /// Its epoch.
    pub epoch: u64,
    /// The log's end as the caller knows it.
    pub follows: EntryId,
    /// The log's length as the caller knows it.
    pub len: u64,
    /// The `reset` entry.
    pub entry: Arc<Entry>,
}

/// Answer to [`Request::Cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReply {
    /// The turn is marked. `owner` should hear of it.
    Marked {
        /// Whether it runs or waits.
        state: TurnState,
        /// Who owns the session.
        owner: Option<PodId>,
    },
    /// It has ended before.
    Ended(EndKind),
    /// The store does not know it.
    NotFound,
}

/// Answer to [`Request::Read`].
#[derive(Clone, Debug, PartialEq)]
pub struct ReadReply {
    /// Whether the session exists.
    pub exists: bool,
    /// Entries after the position, in order.
    pub entries: Vec<Arc<Entry>>,
    /// The predecessor of the first entry that is kept at all: a position trimmed away just before it is still good.
    pub first: EntryId,
    /// The log's end.
    pub end: EntryId,
    /// Where the log begins to tell the running turn completely; in an idle session its end.
    pub base: EntryId,
    /// Whether a turn runs or waits.
    pub unfinished: bool,
    /// Who owns the session.
    pub owner: Option<PodId>,
    /// How long the owner's lease lasts, 0 if it is over or there is no owner.
    pub lease_left_ms: u64,
}

/// Answer to [`Request::Snapshot`].
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotReply {
    /// Whether the session exists.
    pub exists: bool,
    /// From where the log tells what the texts below do not.
    pub position: EntryId,
    /// Ended turns that are kept, by `seq`, then the running one.
    pub turns: Vec<HistoryTurn>,
}

/// A turn as the history has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryTurn {
    /// Its id.
    pub turn: TurnId,
    /// Its number.
    pub seq: u64,
    /// Where it stands.
    pub state: TurnState,
    /// The user's text.
    pub text: Arc<str>,
    /// The answer's text; empty while it runs, partial where it was cancelled.
    pub answer: Arc<str>,
    /// As the model server said; empty unless the turn is done.
    pub finish_reason: Arc<str>,
    /// What it cost.
    pub usage: super::Usage,
}

/// The store's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// To [`Request::Begin`].
    Begin(BeginReply),
    /// To [`Request::Append`]: whether the entry was taken. `false` says nothing about ownership.
    Append(bool),
    /// To [`Request::Check`].
    Check(CheckReply),
    /// To [`Request::Finish`].
    Finish(FinishReply),
    /// To [`Request::Claim`].
    Claim(ClaimReply),
    /// To [`Request::Reset`]: whether the entry was taken.
    Reset(bool),
    /// To [`Request::EndLease`]: whether there was a lease of the caller's to end.
    EndLease(bool),
    /// To [`Request::Cancel`].
    Cancel(CancelReply),
    /// To [`Request::Read`].
    Read(ReadReply),
    /// To [`Request::Snapshot`].
    Snapshot(SnapshotReply),
    /// To [`Request::Delete`]: who owned it, if anyone.
    Delete(Option<PodId>),
}
