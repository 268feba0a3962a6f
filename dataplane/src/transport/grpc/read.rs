//! `Send` and `Read`: one session's events, down only.

use std::{sync::Arc, task::Poll};

use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limits::RESUME_TIMEOUT,
    log::{EntryId, SessionId, TurnId, TurnState},
};
use tokio::time::timeout;
use tonic::Status;

use super::{
    message,
    outbox::{Messages, Outbox, Source, stream},
    parting::{Parting, Word},
    status,
};
use crate::{
    gateway::{Gateway, Receipt, draining},
    readers::{ReaderEvent, Readers},
};

/// What readers are told of a session that was deleted.
pub(super) const DELETED: &str = "the session was deleted";

/// What a reader is told that fell behind the log.
pub(super) const SLOW: &str =
    "the client read too slowly, and the log no longer reaches back; GetSession tells where to go on";

const NOT_RESUMABLE: &str = "the log does not continue from that position; GetSession tells where to go on";

const NOT_KEPT: &str = "the turn has ended and its entries are no longer kept; GetSession tells its answer";

struct Reading {
    gateway: Arc<Gateway>,
    readers: Readers,
    /// The turn to whose end is read; without one it is the session, until one side leaves.
    turn: Option<TurnId>,
    parting: Parting,
    out: Outbox,
}

/// A turn's receipt, and its events to its end.
///
/// # Errors
/// Where the turn has ended so long ago that its entries are gone.
pub(super) async fn turn(gateway: &Arc<Gateway>, mut readers: Readers, receipt: Receipt) -> Result<Messages, Status> {
    let not_kept = || status::refused(gateway, ErrorCode::NotResumable, NOT_KEPT);
    let mut first = None;
    if matches!(receipt.state, TurnState::Ended(_) | TurnState::Deleted) {
        if receipt.from.is_none() {
            return Err(not_kept());
        }
        // Whether the entries are there decides the status.
        first = match timeout(RESUME_TIMEOUT, readers.next()).await {
            Ok(ReaderEvent::Resumed { recovered: false, .. } | ReaderEvent::Slow { .. }) => return Err(not_kept()),
            Ok(event) => Some(event),
            Err(_) => return Err(no_answer(gateway)),
        };
    }
    let out = Outbox::new([message::accepted(&receipt)]);
    let parting = Parting::new(gateway);
    let mut reading = Reading { gateway: gateway.clone(), readers, turn: Some(receipt.turn), parting, out };
    if let Some(first) = first {
        reading.event(first);
    }
    Ok(stream(reading))
}

/// A session's events after a position, until the client leaves or the pod does.
///
/// # Errors
/// Where the position is not one of the log.
pub(super) async fn session(
    gateway: &Arc<Gateway>,
    mut readers: Readers,
    session: SessionId,
    after: EntryId,
) -> Result<Messages, Status> {
    readers.resume(session.clone(), after).map_err(|r| status::status(&r))?;
    let position = match timeout(RESUME_TIMEOUT, readers.next()).await {
        Ok(ReaderEvent::Resumed { recovered: true, position, .. }) => position,
        Ok(ReaderEvent::Gone { .. }) => return Err(status::refused(gateway, ErrorCode::NotFound, DELETED)),
        // An entry cannot come before the outcome.
        Ok(_) => return Err(status::refused(gateway, ErrorCode::NotResumable, NOT_RESUMABLE)),
        Err(_) => return Err(no_answer(gateway)),
    };
    let out = Outbox::new([message::resumed(&session, true, position)]);
    let parting = Parting::new(gateway);
    Ok(stream(Reading { gateway: gateway.clone(), readers, turn: None, parting, out }))
}

fn no_answer(gateway: &Gateway) -> Status {
    let refusal = Refusal::new(ErrorCode::StoreUnavailable, "the session store does not answer; try again soon");
    status::status(&gateway.refused(refusal))
}

enum Step {
    Event(ReaderEvent),
    Parting(Word),
}

impl Source for Reading {
    fn out(&mut self) -> &mut Outbox {
        &mut self.out
    }

    async fn step(&mut self) {
        let step = std::future::poll_fn(|cx| match self.readers.poll_next(cx) {
            Poll::Ready(event) => Poll::Ready(Step::Event(event)),
            Poll::Pending => self.parting.poll(cx).map(Step::Parting),
        });
        match step.await {
            Step::Event(event) => self.event(event),
            Step::Parting(Word::Leave) => {
                let go_away = self.parting.go_away(self.answering());
                self.out.put(go_away);
            }
            Step::Parting(Word::Close) => self.out.end(Err(status::status(&draining()))),
        }
    }
}

impl Reading {
    fn answering(&self) -> bool {
        self.turn.is_some() || self.readers.answering()
    }

    fn event(&mut self, event: ReaderEvent) {
        match event {
            ReaderEvent::Entry { session, entry } => {
                let ends = entry.kind.end().is_some();
                match &self.turn {
                    // Turns before it in the session.
                    Some(turn) if entry.turn != *turn => return,
                    Some(_) if ends => {
                        self.out.put(message::entry(&session, &entry));
                        return self.out.end(Ok(()));
                    }
                    _ => self.out.put(message::entry(&session, &entry)),
                }
                if ends && self.parting.told() && !self.answering() {
                    self.parting.hasten();
                }
            }
            ReaderEvent::Resumed { recovered: true, .. } => {}
            ReaderEvent::Resumed { recovered: false, .. } => self.end(ErrorCode::NotResumable, NOT_RESUMABLE),
            ReaderEvent::Gone { .. } => self.end(ErrorCode::NotFound, DELETED),
            ReaderEvent::Slow { .. } => self.end(ErrorCode::NotResumable, SLOW),
        }
    }

    fn end(&mut self, code: ErrorCode, message: &str) {
        self.out.end(Err(status::refused(&self.gateway, code, message)));
    }
}
