//! Subprotocol `chatgateway.v1`.

use std::{sync::Arc, task::Poll};

use chatgateway_core::{
    drain::DrainPlan,
    error::{CloseCode, ErrorCode, Refusal},
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    End, Step,
    socket::{Incoming, Socket},
};
use crate::{
    clock::{self, millis},
    gateway::{Caller, Gateway},
    leaving::Leaving,
    readers::{ReaderEvent, Readers},
    transport::frame::{self, ClientFrame, SUBPROTOCOL, SendFrame, ServerFrame},
};

/// Frames that are written before the socket is flushed and the client heard again.
const BURST: usize = 64;

struct Connection<'a, S> {
    gateway: &'a Arc<Gateway>,
    socket: &'a mut Socket<S>,
    readers: Readers,
    leaving: Leaving,
    /// When a client that was told to go is closed.
    close_at: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

/// Serves one connection until it ends.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: &Arc<Gateway>,
    caller: Caller,
    socket: &mut Socket<S>,
) -> End {
    let connection = Connection {
        gateway,
        socket,
        readers: gateway.readers(caller),
        leaving: gateway.departure.leaving(),
        close_at: None,
    };
    match connection.run().await {
        Ok(end) | Err(end) => end,
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    async fn run(mut self) -> Result<End, End> {
        self.hello().await?;
        loop {
            match self.step().await {
                Step::Incoming(Incoming::Text(text)) => self.frame(&text).await?,
                Step::Incoming(Incoming::Binary(_)) => {
                    return Ok(End::Close(CloseCode::Unsupported, "binary frames are not understood"));
                }
                Step::Incoming(Incoming::Closed) => return Ok(End::Close(CloseCode::Normal, "")),
                Step::Incoming(Incoming::Violation(code, reason)) => return Ok(End::Close(code, reason)),
                Step::Event(event) => self.event(event).await?,
                Step::Leave if self.leaving.recalled() => return Ok(End::Close(CloseCode::Restart, "reconnect")),
                Step::Leave => self.go_away().await?,
                Step::CloseNow => return Ok(End::Close(CloseCode::Restart, "draining")),
            }
            for _ in 0..BURST {
                let Some(event) = self.readers.try_next() else { break };
                self.event(event).await?;
            }
            self.socket.flush().await?;
            if self.close_at.is_some() && !self.readers.answering() {
                self.hasten();
            }
        }
    }

    async fn step(&mut self) -> Step {
        std::future::poll_fn(|cx| {
            if let Poll::Ready(event) = self.readers.poll_next(cx) {
                return Poll::Ready(Step::Event(event));
            }
            if let Poll::Ready(incoming) = self.socket.poll_incoming(cx) {
                return Poll::Ready(Step::Incoming(incoming));
            }
            if self.leaving.poll_told(cx).is_ready() {
                return Poll::Ready(Step::Leave);
            }
            match &mut self.close_at {
                Some(timer) => timer.as_mut().poll(cx).map(|()| Step::CloseNow),
                None => Poll::Pending,
            }
        })
        .await
    }

    async fn put(&mut self, frame: &ServerFrame<'_>) -> Result<(), End> {
        Ok(self.socket.feed(frame.to_json()).await?)
    }

    async fn hello(&mut self) -> Result<(), End> {
        let settings = self.gateway.settings();
        self.put(&ServerFrame::Hello {
            protocol: SUBPROTOCOL,
            revision: &settings.gateway.revision,
            ping_interval_ms: millis(settings.keepalive.ping_interval),
            max_message_bytes: settings.limits.max_message_bytes as u64,
        })
        .await?;
        Ok(self.socket.flush().await?)
    }

    async fn event(&mut self, event: ReaderEvent) -> Result<(), End> {
        match event {
            ReaderEvent::Entry { session, entry } => self.put(&ServerFrame::entry(&session, &entry)).await,
            ReaderEvent::Resumed { session, recovered, position } => {
                self.put(&ServerFrame::Resumed { session: session.as_str(), recovered, position }).await
            }
            ReaderEvent::Gone { session } => {
                let gone = Refusal::new(ErrorCode::NotFound, "the session was deleted");
                self.put(&ServerFrame::refusal(&gone, Some(session.as_str()), None)).await
            }
            ReaderEvent::Slow { .. } => Err(End::Close(CloseCode::Slow, "slow")),
        }
    }

    async fn frame(&mut self, text: &str) -> Result<(), End> {
        match ClientFrame::parse(text) {
            Ok(ClientFrame::Send(send)) => self.send(send).await,
            Ok(ClientFrame::Resume { session, after }) => {
                let resumed = match (frame::session_id(&session), after.parse()) {
                    (Ok(id), Ok(after)) => self.readers.resume(id, after),
                    (Err(refusal), _) => Err(refusal),
                    // A position that is none cannot be resumed: said in the words for that.
                    (Ok(_), Err(_)) => {
                        let position = chatgateway_core::log::EntryId::ZERO;
                        let session: &str = &session;
                        return self.put(&ServerFrame::Resumed { session, recovered: false, position }).await;
                    }
                };
                self.told(resumed, Some(&session), None).await
            }
            Ok(ClientFrame::Cancel { session, turn }) => {
                let cancelled = match (frame::session_id(&session), frame::turn_id(&turn)) {
                    (Ok(session), Ok(turn)) => {
                        self.gateway.cancel(self.readers.caller(), &session, &turn).await.map(|_| ())
                    }
                    (Err(refusal), _) | (_, Err(refusal)) => Err(refusal),
                };
                self.told(cancelled, Some(&session), Some(&turn)).await
            }
            Ok(ClientFrame::Ping { t }) => self.put(&ServerFrame::Pong { t }).await,
            Err(refusal) => {
                let refusal = self.gateway.refused(refusal);
                self.put(&ServerFrame::refusal(&refusal, None, None)).await
            }
        }
    }

    async fn send(&mut self, send: SendFrame<'_>) -> Result<(), End> {
        let (session, turn) = (send.session.clone(), send.turn.clone());
        let accepted = if self.leaving.heard() {
            let message = "this pod is going away; connect anew to reach another one";
            Err(self.gateway.refused(Refusal::new(ErrorCode::Draining, message).retry_after_ms(1_000)))
        } else {
            match send.into_turn() {
                Ok(turn) => self.readers.send(turn).await,
                Err(refusal) => Err(self.gateway.refused(refusal)),
            }
        };
        match accepted {
            Ok(receipt) => self.put(&ServerFrame::accepted(&receipt)).await,
            Err(refusal) => self.told(Err(refusal), Some(&session), Some(&turn)).await,
        }
    }

    /// Tells a refusal, if it is one.
    async fn told(
        &mut self,
        outcome: Result<(), Refusal>,
        session: Option<&str>,
        turn: Option<&str>,
    ) -> Result<(), End> {
        match outcome {
            Ok(()) => Ok(()),
            Err(refusal) => self.put(&ServerFrame::refusal(&refusal, session, turn)).await,
        }
    }

    async fn go_away(&mut self) -> Result<(), End> {
        let now = clock::now();
        let close_at = self.gateway.close_at(now, self.readers.answering());
        self.close_at = Some(Box::pin(tokio::time::sleep_until(close_at.into())));
        self.put(&ServerFrame::GoAway {
            reconnect_after_ms: millis(DrainPlan::reconnect_after(rand::random())),
            time_left_ms: millis(close_at - now),
        })
        .await
    }

    /// The answers of a connection that was told are finished: it need not last until the deadline.
    fn hasten(&mut self) {
        let now = clock::now();
        let soon = self.gateway.close_at(now, false);
        if let Some(timer) = &mut self.close_at
            && timer.deadline() > soon.into()
        {
            timer.as_mut().reset(soon.into());
        }
    }
}
