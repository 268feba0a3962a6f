//! One ask's place in a batch: what the task that reads the call puts in, its reader takes out. What is not yet taken out has
//! a bound, so a reader that pauses holds up nobody else of its batch and costs no more memory than an answer may.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::AcqRel},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use chatgateway_core::{batch::AskId, error::ErrorCode, limits::ANSWER_MAX_BYTES, log::Usage};
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Batching, Lone};
use crate::upstream::{UpstreamEvent, failure::Failure, pool::Place, stop};

/// What a call says to one of its asks.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Piece {
    /// Text of a turn's answer. Never empty.
    Text(String),
    /// A part of a body that passes through. Never empty.
    Bytes(Bytes),
    /// A turn's answer is complete.
    End { finish_reason: Arc<str>, usage: Usage },
    /// A body that passes through is complete.
    Done,
    /// There will be no more of it.
    Failed(Failure),
}

impl From<Piece> for UpstreamEvent {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Text(text) => Self::Text(text),
            Piece::End { finish_reason, usage } => Self::End { finish_reason, usage },
            Piece::Failed(failure) => failure.into(),
            // Bodies that pass through have readers of their own.
            Piece::Bytes(_) | Piece::Done => Self::End { finish_reason: stop(), usage: Usage::default() },
        }
    }
}

impl Piece {
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::End { .. } | Self::Done | Self::Failed(_) => 0,
        }
    }

    pub(super) fn is_last(&self) -> bool {
        matches!(self, Self::End { .. } | Self::Done | Self::Failed(_))
    }
}

/// A call under way, as its asks know it.
#[derive(Debug, Default)]
pub(super) struct Ride {
    /// Asks whose readers are there.
    riders: AtomicUsize,
    /// Told when there are none.
    pub(super) empty: Notify,
    /// The media type of an answer that passes through.
    pub(super) content_type: OnceLock<HeaderValue>,
}

impl Ride {
    pub(super) fn new(riders: usize) -> Self {
        Self { riders: AtomicUsize::new(riders), ..Self::default() }
    }

    fn leave(&self) {
        if self.riders.fetch_sub(1, AcqRel) == 1 {
            self.empty.notify_one();
        }
    }
}

/// How an ask stands.
enum Stand {
    /// It waits to be sent.
    Waits,
    /// It is to make its call itself: with this place, or with one of its own.
    Alone(Option<Box<(Place, Lone)>>),
    /// It is part of a call.
    Rides(Arc<Ride>),
    /// Its reader has gone, or has heard all.
    Over,
}

struct State {
    stand: Stand,
    pieces: VecDeque<Piece>,
    bytes: usize,
    waker: Option<Waker>,
}

/// One ask's place.
pub(super) struct Seat {
    pub(super) prompt: String,
    /// Spaces at the beginning of the answer are not its own.
    pub(super) trim: bool,
    state: Mutex<State>,
}

impl Seat {
    pub(super) fn new(prompt: String, trim: bool) -> Arc<Self> {
        let state = State { stand: Stand::Waits, pieces: VecDeque::new(), bytes: 0, waker: None };
        Arc::new(Self { prompt, trim, state: Mutex::new(state) })
    }

    /// It becomes part of a call, unless its reader has gone.
    pub(super) fn ride(&self, ride: &Arc<Ride>) {
        let mut state = self.state.lock();
        if matches!(state.stand, Stand::Over) {
            drop(state);
            ride.leave();
        } else {
            state.stand = Stand::Rides(ride.clone());
        }
    }

    /// It is to make its call itself.
    pub(super) fn alone(&self, with: Option<Box<(Place, Lone)>>) {
        let mut state = self.state.lock();
        if !matches!(state.stand, Stand::Over) {
            state.stand = Stand::Alone(with);
            wake(state);
        }
    }

    /// Puts in a piece; whether more of them have a use.
    pub(super) fn push(&self, piece: Piece) -> bool {
        let mut state = self.state.lock();
        if matches!(state.stand, Stand::Over) || state.pieces.back().is_some_and(Piece::is_last) {
            return false;
        }
        if state.bytes + piece.bytes() > ANSWER_MAX_BYTES {
            state.pieces.clear();
            state.bytes = 0;
            let what = format!("an answer of a batch was read too slowly, or is longer than {ANSWER_MAX_BYTES} bytes");
            state.pieces.push_back(Piece::Failed(Failure::request(ErrorCode::TooLarge, what)));
            wake(state);
            return false;
        }
        state.bytes += piece.bytes();
        match (state.pieces.back_mut(), piece) {
            (Some(Piece::Text(text)), Piece::Text(more)) => text.push_str(&more),
            (_, piece) => state.pieces.push_back(piece),
        }
        wake(state);
        true
    }
}

fn wake(mut state: parking_lot::MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// What a reader finds.
pub(super) enum Found {
    Alone(Option<Box<(Place, Lone)>>),
    Piece(Piece),
}

/// An ask's reader. Dropping it takes the ask out of the batch, or out of the call.
pub(in crate::upstream) struct Rider {
    pub(super) seat: Arc<Seat>,
    pub(super) ask: AskId,
    pub(super) batching: Arc<Batching>,
}

impl Rider {
    /// What comes next; nothing after the last piece.
    pub(in crate::upstream) fn poll(&mut self, cx: &Context<'_>) -> Poll<Option<Piece>> {
        match std::task::ready!(self.poll_found(cx)) {
            Some(Found::Piece(piece)) => Poll::Ready(Some(piece)),
            Some(Found::Alone(_)) | None => Poll::Ready(None),
        }
    }

    pub(super) fn poll_found(&mut self, cx: &Context<'_>) -> Poll<Option<Found>> {
        let mut state = self.seat.state.lock();
        if let Some(piece) = state.pieces.pop_front() {
            state.bytes -= piece.bytes();
            if piece.is_last() {
                finish(state);
            }
            return Poll::Ready(Some(Found::Piece(piece)));
        }
        match &mut state.stand {
            Stand::Alone(with) => {
                let with = with.take();
                state.stand = Stand::Over;
                Poll::Ready(Some(Found::Alone(with)))
            }
            Stand::Over => Poll::Ready(None),
            Stand::Waits | Stand::Rides(_) => {
                match &mut state.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => state.waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }

    /// Whether it still waits to be sent.
    pub(super) fn waits(&self) -> bool {
        matches!(self.seat.state.lock().stand, Stand::Waits)
    }

    /// The media type of the answer, once something of it has come.
    pub(in crate::upstream) fn content_type(&self) -> Option<HeaderValue> {
        match &self.seat.state.lock().stand {
            Stand::Rides(ride) => ride.content_type.get().cloned(),
            _ => None,
        }
    }
}

/// Nothing more is read here.
fn finish(mut state: parking_lot::MutexGuard<'_, State>) {
    let stand = std::mem::replace(&mut state.stand, Stand::Over);
    state.pieces.clear();
    state.bytes = 0;
    state.waker = None;
    drop(state);
    // Places are given back without this lock.
    if let Stand::Rides(ride) = stand {
        ride.leave();
    }
}

impl Drop for Rider {
    fn drop(&mut self) {
        let state = self.seat.state.lock();
        let waited = matches!(state.stand, Stand::Waits);
        finish(state);
        if waited {
            self.batching.leave(self.ask);
        }
    }
}
