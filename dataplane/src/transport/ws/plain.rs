//! Plain text: one text frame in is one turn, one text frame out is the whole answer (or, with `?stream=true`, a frame a
//! delta and an empty one at the end). There is no error channel: an error closes the connection with its code as reason.

use std::{collections::VecDeque, sync::Arc, task::Poll};

use chatgateway_core::{
    error::{CloseCode, ErrorCode, Refusal},
    limits::PLAIN_TURNS_MAX,
    log::{Entry, EntryKind, SessionId, TurnId},
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    End, Step,
    socket::{Incoming, Socket},
};
use crate::{
    gateway::{Caller, Gateway, SendTurn},
    leaving::Leaving,
    readers::{ReaderEvent, Readers},
    transport::frame,
};

struct Connection<'a, S> {
    socket: &'a mut Socket<S>,
    readers: Readers,
    leaving: Leaving,
    session: SessionId,
    stream: bool,
    /// This connection's turns that have not ended, in order. The session's other turns are not answered here.
    turns: VecDeque<TurnId>,
    /// The answer of the first of them so far.
    answer: String,
}

/// Serves one connection until it ends.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: &Arc<Gateway>,
    caller: Caller,
    socket: &mut Socket<S>,
    session: SessionId,
    stream: bool,
) -> End {
    let connection = Connection {
        socket,
        readers: gateway.readers(caller),
        leaving: gateway.departure.leaving(),
        session,
        stream,
        turns: VecDeque::new(),
        answer: String::new(),
    };
    match connection.run().await {
        Ok(end) | Err(end) => end,
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    async fn run(mut self) -> Result<End, End> {
        loop {
            match self.step().await {
                Step::Incoming(Incoming::Text(text)) => self.turn(&text).await?,
                Step::Incoming(Incoming::Binary(_)) => {
                    return Ok(End::Close(CloseCode::Unsupported, "binary frames are not understood"));
                }
                Step::Incoming(Incoming::Closed) => return Ok(End::Close(CloseCode::Normal, "")),
                Step::Incoming(Incoming::Violation(code, reason)) => return Ok(End::Close(code, reason)),
                Step::Event(event) => self.event(event).await?,
                Step::Leave | Step::CloseNow => {}
            }
            while let Some(event) = self.readers.try_next() {
                self.event(event).await?;
            }
            self.socket.flush().await?;
            // Plain-text clients cannot be told to reconnect: their answers are finished first.
            if self.leaving.heard() && self.turns.is_empty() {
                return Ok(End::Close(CloseCode::Restart, ErrorCode::Draining.as_str()));
            }
        }
    }

    async fn step(&mut self) -> Step {
        std::future::poll_fn(|cx| {
            if let Poll::Ready(event) = self.readers.poll_next(cx) {
                return Poll::Ready(Step::Event(event));
            }
            // Who sends ahead of the answers waits in the socket, not in memory.
            if self.turns.len() < PLAIN_TURNS_MAX
                && let Poll::Ready(incoming) = self.socket.poll_incoming(cx)
            {
                return Poll::Ready(Step::Incoming(incoming));
            }
            self.leaving.poll_told(cx).map(|()| Step::Leave)
        })
        .await
    }

    async fn turn(&mut self, text: &str) -> Result<(), End> {
        let turn = frame::turn_id(&uuid::Uuid::new_v4().to_string()).map_err(|r| refused(&r))?;
        let send = SendTurn {
            session: self.session.clone(),
            turn: turn.clone(),
            seq: None,
            text: Some(text.to_owned()),
            messages: None,
            model: None,
            options: None,
        };
        self.readers.send(send).await.map_err(|refusal| refused(&refusal))?;
        self.turns.push_back(turn);
        Ok(())
    }

    async fn event(&mut self, event: ReaderEvent) -> Result<(), End> {
        match event {
            ReaderEvent::Entry { entry, .. } if self.turns.front() == Some(&entry.turn) => self.entry(&entry).await,
            ReaderEvent::Entry { .. } | ReaderEvent::Resumed { recovered: true, .. } => Ok(()),
            ReaderEvent::Resumed { .. } => Err(close(ErrorCode::NotResumable)),
            ReaderEvent::Gone { .. } => Err(close(ErrorCode::NotFound)),
            ReaderEvent::Slow { .. } => Err(End::Close(CloseCode::Slow, "slow")),
        }
    }

    async fn entry(&mut self, entry: &Entry) -> Result<(), End> {
        match &entry.kind {
            EntryKind::Delta { text } if self.stream => Ok(self.socket.feed(text.to_string()).await?),
            EntryKind::Delta { text } => {
                self.answer.push_str(text);
                Ok(())
            }
            // What was streamed cannot be taken back.
            EntryKind::Reset if self.stream => Err(close(ErrorCode::Internal)),
            EntryKind::Reset => {
                self.answer.clear();
                Ok(())
            }
            EntryKind::Done { .. } | EntryKind::Cancelled => {
                self.turns.pop_front();
                let answer = std::mem::take(&mut self.answer);
                Ok(self.socket.feed(answer).await?)
            }
            EntryKind::Failed { code, .. } => Err(close(*code)),
            EntryKind::Turn { .. } | EntryKind::Takeover { .. } => Ok(()),
        }
    }
}

fn close(code: ErrorCode) -> End {
    End::Close(CloseCode::for_error(code), code.as_str())
}

fn refused(refusal: &Refusal) -> End {
    close(refusal.code)
}
