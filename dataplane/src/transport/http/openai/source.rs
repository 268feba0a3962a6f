//! Where an answer comes from: a turn of a session, or a model server asked for this request alone.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use chatgateway_core::{
    error::ErrorCode,
    log::{EntryKind, Usage},
};
use parking_lot::Mutex;

use super::wire::Finished;
use crate::{
    gateway::Receipt,
    limiter::Account,
    readers::{ReaderEvent, Readers},
    transport::http::{answer, answer::CANCELLED, problem::Problem, sse},
    upstream::{UpstreamEvent, UpstreamStream},
};

/// What a source tells.
pub enum Piece {
    /// More text.
    Text(Arc<str>),
    /// All text so far is void.
    Restart,
    /// The answer is complete.
    End {
        /// Why the model stopped.
        finish_reason: Arc<str>,
        /// What it cost.
        usage: Usage,
    },
    /// There will be no answer.
    Failed(Problem),
}

/// See the module.
pub enum Source {
    /// A turn that a reader follows. Dropping it does not stop the turn.
    Turn {
        /// The reader.
        readers: Box<Readers>,
        /// Which turn.
        receipt: Box<Receipt>,
        /// The client named the turn, so a repeat would meet this very turn.
        named: bool,
    },
    /// A call. Dropping it stops the model server.
    Call(Box<Metered>),
}

/// A call whose tokens are counted, where they are limited. The calls of one request share an account.
pub struct Metered {
    /// The call.
    pub call: UpstreamStream,
    /// The account of its request.
    pub account: Option<Arc<Mutex<Account>>>,
}

impl Metered {
    async fn next(&mut self) -> Option<UpstreamEvent> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn try_next(&mut self) -> Option<UpstreamEvent> {
        match self.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => event,
            Poll::Pending => None,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<UpstreamEvent>> {
        let Some(account) = &self.account else { return self.call.poll_next(cx) };
        let mut account = account.lock();
        if let Poll::Ready(message) = account.poll_stop(cx) {
            let code = ErrorCode::RateLimited;
            return Poll::Ready(Some(UpstreamEvent::Failed { code, message, retry_after_ms: None }));
        }
        if account.waits() {
            return Poll::Pending;
        }
        let event = std::task::ready!(self.call.poll_next(cx));
        match &event {
            Some(UpstreamEvent::Text(text)) => account.text(text.len()),
            Some(UpstreamEvent::End { usage, .. }) => account.end(*usage),
            Some(UpstreamEvent::Failed { .. }) => account.call_failed(),
            None => {}
        }
        Poll::Ready(event)
    }
}

impl Source {
    /// The next piece. May be dropped and called again.
    pub async fn next(&mut self) -> Piece {
        loop {
            let piece = match self {
                Self::Turn { readers, receipt, named } => turn_piece(readers.next().await, receipt, *named),
                Self::Call(call) => Some(call_piece(call.next().await)),
            };
            if let Some(piece) = piece {
                return piece;
            }
        }
    }

    /// The next piece, if it is there.
    pub fn try_next(&mut self) -> Option<Piece> {
        loop {
            let piece = match self {
                Self::Turn { readers, receipt, named } => turn_piece(readers.try_next()?, receipt, *named),
                Self::Call(call) => Some(call_piece(Some(call.try_next()?))),
            };
            if piece.is_some() {
                return piece;
            }
        }
    }

    /// The first piece that settles the status: text, the end, or why there will be none.
    pub async fn first(&mut self) -> Piece {
        loop {
            match self.next().await {
                Piece::Restart => {}
                piece => return piece,
            }
        }
    }

    /// The whole answer.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn whole(mut self) -> Result<Finished, Problem> {
        let mut text = String::new();
        loop {
            match self.next().await {
                Piece::Text(more) => text.push_str(&more),
                Piece::Restart => text.clear(),
                Piece::End { finish_reason, usage } => {
                    return Ok(Finished { text, finish_reason: finish_reason.as_ref().to_owned(), usage });
                }
                Piece::Failed(problem) => return Err(problem),
            }
        }
    }
}

fn turn_piece(event: ReaderEvent, receipt: &Receipt, named: bool) -> Option<Piece> {
    let entry = match event {
        ReaderEvent::Entry { entry, .. } if entry.turn == receipt.turn => entry,
        ReaderEvent::Entry { .. } | ReaderEvent::Resumed { recovered: true, .. } => return None,
        ReaderEvent::Gone { .. } => return Some(Piece::Failed(Problem::new(ErrorCode::NotFound, sse::DELETED))),
        ReaderEvent::Resumed { recovered: false, .. } | ReaderEvent::Slow { .. } => {
            return Some(Piece::Failed(answer::not_kept(receipt)));
        }
    };
    match &entry.kind {
        EntryKind::Turn { .. } | EntryKind::Takeover { .. } => None,
        EntryKind::Delta { text } => Some(Piece::Text(text.clone())),
        EntryKind::Reset => Some(Piece::Restart),
        EntryKind::Done { finish_reason, usage } => {
            Some(Piece::End { finish_reason: finish_reason.clone(), usage: *usage })
        }
        EntryKind::Cancelled => Some(Piece::End { finish_reason: CANCELLED.into(), usage: Usage::default() }),
        EntryKind::Failed { code, message } => {
            let problem = Problem::new(*code, message.as_ref());
            Some(Piece::Failed(if named { problem.last_word() } else { problem }))
        }
    }
}

fn call_piece(event: Option<UpstreamEvent>) -> Piece {
    match event {
        Some(UpstreamEvent::Text(text)) => Piece::Text(text.into()),
        Some(UpstreamEvent::End { finish_reason, usage }) => Piece::End { finish_reason, usage },
        Some(UpstreamEvent::Failed { code, message, retry_after_ms }) => {
            let mut problem = Problem::new(code, message);
            problem.refusal.retry_after_ms = retry_after_ms;
            Piece::Failed(problem)
        }
        None => Piece::Failed(Problem::new(ErrorCode::UpstreamUnavailable, "the model server's answer broke off")),
    }
}
