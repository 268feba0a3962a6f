//! The session store: one trait, whose every call is one atomic step for one session.
//!
//! What each call does is defined by the pure function of the same name in `chatgateway_core::log`. An implementation adds
//! where the state is kept and how it is reached; the conformance suite in `tests/` holds
//! them all to the same behaviour.

mod memory;

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use chatgateway_core::log::{Reply, Request, SessionKey};

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

    /// Which connection the next call goes over.
    fn connection(&self) -> u64;

    /// Sessions it holds, where it knows.
    fn sessions(&self) -> Option<u64>;

    /// Its name, for people.
    fn name(&self) -> &'static str;

    /// Whether sessions outlive this process: then another one can go on with them.
    fn shared(&self) -> bool;
}
