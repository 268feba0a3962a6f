//! The session store: one trait, whose every call is one atomic step for one session.
//!
//! What each call does is defined by the pure function of the same name in `chatgateway_core::log`. An implementation adds
//! where the state is kept and how it is reached; the conformance suite in `tests/` holds them all to the same behaviour.

mod memory;
pub mod redis;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use chatgateway_core::{
    limiter::{
        Rules,
        table::{Op, Outcome},
    },
    log::{Entry, PodId, Reply, Request, SessionKey},
};

pub use memory::MemoryStore;

/// Why a call's outcome is unknown: it may have happened or not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No answer in time.
    #[error("the session store did not answer within {0} ms")]
    Timeout(u64),
    /// The connection broke, or the store answered with an error that says nothing about the session.
    #[error("the session store is not available: {0}")]
    Unavailable(String),
}

/// A store's answer, and over which connection it came. What was asked over an earlier connection verifies nothing.
#[derive(Debug)]
pub struct Answer {
    /// The reply, or why the outcome is unknown.
    pub result: Result<Reply, StoreError>,
    /// Counts the store's connections: it changes whenever anything may have been lost in between.
    pub connection: u64,
    /// How many other pods follow the session, where the call found out (begin, claim, check, finish and reset do, in a
    /// shared store).
    pub followers: Option<u32>,
}

/// A call under way. Dropping it does not undo it.
pub enum Call {
    /// The answer is there.
    Ready(Option<Answer>),
    /// The answer will come.
    Pending(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

impl Future for Call {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        match &mut *self {
            Self::Ready(answer) => match answer.take() {
                Some(answer) => Poll::Ready(answer),
                None => Poll::Pending,
            },
            Self::Pending(future) => future.as_mut().poll(cx),
        }
    }
}

/// Where sessions live.
pub trait Store: Send + Sync + 'static {
    /// Carries out one request for one session.
    fn call(&self, session: &SessionKey, request: Request) -> Call;

    /// Which connection the next call for the session goes over.
    fn connection(&self, session: &SessionKey) -> u64;

    /// Sessions it holds, where it knows.
    fn sessions(&self) -> Option<u64>;

    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// Why it cannot be used now, as far as is known.
    fn trouble(&self) -> Option<String>;

    /// What it counted since its start.
    fn counts(&self) -> Vec<Count>;

    /// The other pods on this store, if there can be any: then sessions outlive this process, and another one can go on with
    /// them.
    fn peers(&self) -> Option<&dyn Peers>;

    /// Where pods share their rate limits, if they can.
    fn limits(&self) -> Option<&dyn Limits> {
        None
    }
}

/// The buckets of rate limits that pods share.
pub trait Limits: Send + Sync {
    /// Carries steps out for a gateway, in their order and all in one round trip. `then` hears what came of them, in any case, and
    /// may not block.
    fn decide(&self, gateway: &str, rules: &Rules, steps: Vec<Op>, then: Decided);
}

/// Who hears what came of steps: what came of each, and the steps.
pub type Decided = Box<dyn FnOnce(Vec<Op>, Result<Vec<Outcome>, StoreError>) + Send>;

/// A figure that only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Its name among the metrics, after `store_`.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// How many.
    pub value: u64,
}

/// What pods on one store tell each other. All of it is hints, and may be lost: what counts is in the log.
///
/// Nothing here waits, except for what returns a future.
pub trait Peers: Send + Sync {
    /// Tells the pods that follow a session of an entry that is committed. In order with what is called for the session
    /// after it.
    fn publish(&self, session: &SessionKey, news: News);

    /// Tells one pod something about a session.
    fn notify(&self, pod: PodId, session: &SessionKey, notice: Notice);

    /// Hears of a session's entries from now on, until it is unfollowed. [`PeerEvent::Following`] comes when that is
    /// so, and again after each time it was not.
    fn follow(&self, session: &SessionKey);

    /// Hears no more of it.
    fn unfollow(&self, session: &SessionKey);

    /// Notes that this process lives (`leaving`: that it goes away, and owns nothing that it will go on with). Returns what
    /// is known of the others.
    fn beat(&self, leaving: bool) -> Pending<Beat>;

    /// Some of the sessions that a pod process may own, beginning after `cursor` (`0` at first). The cursor that is returned is `0` at
    /// the end.
    fn index_of(&self, pod: PodId, cursor: u64) -> Pending<(u64, Vec<SessionKey>)>;

    /// This process no longer owns the session that a begin or a claim gave it.
    fn disown(&self, session: &SessionKey);

    /// Takes a session out of another process' index: it is not that one's any more.
    fn forget_session(&self, pod: PodId, session: &SessionKey);

    /// Takes another process, whose index is empty, out of the list of those that are known.
    fn forget_pod(&self, pod: PodId);
}

/// Something that comes later, or not.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// What the followers of a session are told.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// This entry is committed.
    Entry(Arc<Entry>),
    /// Something may be committed that is not told: read the log.
    Reread,
    /// The session was deleted.
    Deleted,
}

/// What a pod is told of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The session's owner should look at it: a turn was cancelled, the session deleted, a reader met a break, somebody
    /// follows.
    Look,
    /// The session's lease is over: claim it.
    Claim,
}

/// What a sign of life tells in return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// The other pods.
    pub peers: Vec<Peer>,
    /// For how long there was no silence: all that time some pod gave signs of life, so the store could be reached.
    pub steady: Duration,
}

/// Another pod process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which.
    pub pod: PodId,
    /// How long ago it gave a sign of life, on the store's clock. [`Duration::MAX`] if it said that it goes away.
    pub silent: Duration,
}

/// What comes from other pods, and from the connection over which they are heard.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerEvent {
    /// From now on everything that followers of the session are told is heard here.
    Following(SessionKey),
    /// What followers of these sessions are told is not heard any more; `Following` will come again. Or there are other signs that
    /// the store is not what it was.
    Suspect(Vec<SessionKey>),
    /// Followers of the session are told this.
    News(SessionKey, News),
    /// This pod is told this.
    Notice(SessionKey, Notice),
}
