//! `Send` and `Read`: one session's events, down only.

use std::{collections::VecDeque, sync::Arc, task::Poll};

use chatgateway_core::{
    drain::DrainPlan,
    error::ErrorCode,
    log::{EntryId, SessionId, TurnId},
};
use chatgateway_proto::v1::{self, ServerMessage, server_message::Message};
use futures_util::{Stream, stream};
use tonic::Status;

use super::{gone, message, status};
use crate::{
    clock,
    gateway::{Gateway, Receipt},
    leaving::Leaving,
    readers::{ReaderEvent, Readers},
};

/// A turn's receipt, and its events to its end.
pub(super) fn turn(readers: Readers, receipt: Receipt) -> impl Stream<Item = Result<ServerMessage, Status>> {
    let first = message::accepted(&receipt);
    let state = (readers, receipt.turn, Some(first), false);
    stream::unfold(state, |(mut readers, turn, first, over)| async move {
        if let Some(first) = first {
            return Some((Ok(first), (readers, turn, None, false)));
        }
        if over {
            return None;
        }
        let (item, over) = next_of_turn(&mut readers, &turn).await;
        Some((item, (readers, turn, None, over)))
    })
}

/// The turn's next event, and whether it is the last.
async fn next_of_turn(readers: &mut Readers, turn: &TurnId) -> (Result<ServerMessage, Status>, bool) {
    loop {
        match readers.next().await {
            ReaderEvent::Entry { session, entry } if entry.turn == *turn => {
                return (Ok(message::entry(&session, &entry)), entry.kind.end().is_some());
            }
            // Turns before it in the session.
            ReaderEvent::Entry { .. } | ReaderEvent::Resumed { recovered: true, .. } => {}
            ReaderEvent::Resumed { .. } => return (Err(not_resumable()), true),
            ReaderEvent::Gone { .. } => return (Err(gone()), true),
            ReaderEvent::Slow { .. } => return (Err(slow()), true),
        }
    }
}

/// Where a `Read` begins.
pub(super) async fn resumed(readers: &mut Readers) -> Result<ServerMessage, Status> {
    match readers.next().await {
        ReaderEvent::Resumed { session, recovered: true, position } => Ok(resumed_message(&session, position)),
        _ => Err(not_resumable()),
    }
}

fn resumed_message(session: &SessionId, position: EntryId) -> ServerMessage {
    let position = position.to_string();
    message::message(Message::Resumed(v1::Resumed { session: session.to_string(), recovered: true, position }))
}

fn not_resumable() -> Status {
    let message = "the log no longer reaches back to that position; GetSession tells where to go on";
    status::error(ErrorCode::NotResumable, message)
}

fn slow() -> Status {
    status::error(ErrorCode::NotResumable, "the client read too slowly, and the log no longer reaches back")
}

struct Reading {
    gateway: Arc<Gateway>,
    readers: Readers,
    leaving: Leaving,
    out: VecDeque<ServerMessage>,
    /// How the stream ends, once `out` is empty.
    end: Option<Option<Status>>,
}

/// A session's events until the client leaves or the pod does.
pub(super) fn session(
    gateway: Arc<Gateway>,
    readers: Readers,
    leaving: Leaving,
    first: ServerMessage,
) -> impl Stream<Item = Result<ServerMessage, Status>> {
    let state = Reading { gateway, readers, leaving, out: VecDeque::from([first]), end: None };
    stream::unfold(state, |mut state| async move {
        loop {
            if let Some(message) = state.out.pop_front() {
                return Some((Ok(message), state));
            }
            match state.end.take() {
                Some(Some(status)) => {
                    state.end = Some(None);
                    return Some((Err(status), state));
                }
                Some(None) => return None,
                None => state.step().await,
            }
        }
    })
}

impl Reading {
    async fn step(&mut self) {
        let event = std::future::poll_fn(|cx| match self.readers.poll_next(cx) {
            Poll::Ready(event) => Poll::Ready(Some(event)),
            Poll::Pending => self.leaving.poll_told(cx).map(|()| None),
        });
        match event.await {
            Some(ReaderEvent::Entry { session, entry }) => {
                self.out.push_back(message::entry(&session, &entry));
                if self.leaving.heard() && !self.readers.answering() {
                    self.end = Some(None);
                }
            }
            Some(ReaderEvent::Resumed { recovered: true, .. }) => {}
            Some(ReaderEvent::Resumed { .. }) => self.end = Some(Some(not_resumable())),
            Some(ReaderEvent::Gone { .. }) => self.end = Some(Some(gone())),
            Some(ReaderEvent::Slow { .. }) => self.end = Some(Some(slow())),
            None => {
                let answering = self.readers.answering();
                self.out.push_back(go_away(&self.gateway, answering));
                // An answer that runs is told to its end first.
                if !answering {
                    self.end = Some(None);
                }
            }
        }
    }
}

/// The word that the pod goes away.
pub(super) fn go_away(gateway: &Gateway, answering: bool) -> ServerMessage {
    let now = clock::now();
    let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    message::message(Message::GoAway(v1::GoAway {
        reconnect_after_ms: millis(DrainPlan::reconnect_after(rand::random())),
        time_left_ms: millis(gateway.start_drain().close_at(now, answering) - now),
    }))
}
