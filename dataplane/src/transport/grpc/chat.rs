//! `Chat`: a whole connection in one stream, the twin of the WebSocket.

use std::{pin::Pin, sync::Arc, task::Poll};

use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limits::GRPC_EVENTS_BURST,
    log::{SessionId, TurnId, TurnState},
};
use chatgateway_proto::v1::{self, client_message, server_message::Message};
use futures_util::Stream;
use tonic::{Status, Streaming};

use super::{
    PROTOCOL, message,
    outbox::{Messages, Outbox, Source, stream},
    parting::{Parting, Word},
    read, status,
};
use crate::{
    clock::millis,
    gateway::{Gateway, draining},
    readers::{ReaderEvent, Readers},
    transport::frame,
};

struct Chat {
    gateway: Arc<Gateway>,
    readers: Readers,
    /// `None` once the client has half-closed.
    incoming: Option<Streaming<v1::ClientMessage>>,
    /// Turns that were sent here and whose end has not been told yet: seldom more than one. Between two turns of a session its
    /// reader does not know of the second one.
    open: Vec<(SessionId, TurnId)>,
    parting: Parting,
    out: Outbox,
    /// Events since the client was last listened to.
    burst: usize,
}

enum Step {
    Client(Option<Result<v1::ClientMessage, Status>>),
    Event(ReaderEvent),
    Parting(Word),
    /// The client has half-closed, and all that it waits for was told.
    Finished,
}

/// Serves one stream until it ends.
pub(super) fn serve(gateway: Arc<Gateway>, readers: Readers, incoming: Streaming<v1::ClientMessage>) -> Messages {
    let settings = gateway.settings();
    let hello = message::message(Message::Hello(v1::Hello {
        protocol: PROTOCOL.into(),
        revision: settings.gateway.revision.clone(),
        ping_interval_ms: millis(settings.keepalive.ping_interval),
        max_message_bytes: settings.limits.max_message_bytes as u64,
    }));
    let parting = Parting::new(&gateway);
    let (incoming, out) = (Some(incoming), Outbox::new([hello]));
    stream(Chat { gateway, readers, incoming, open: Vec::new(), parting, out, burst: 0 })
}

impl Source for Chat {
    fn out(&mut self) -> &mut Outbox {
        &mut self.out
    }

    async fn step(&mut self) {
        match self.wait().await {
            // Boxed: accepting a turn has a large state, which would be moved about with every message from the server.
            Step::Client(Some(Ok(message))) => Box::pin(self.client(message)).await,
            Step::Client(Some(Err(error))) => self.out.end(Err(status::not_taken(&self.gateway, error))),
            Step::Client(None) => self.incoming = None,
            Step::Event(event) => self.event(event),
            Step::Parting(Word::Leave) => {
                let go_away = self.parting.go_away(self.answering());
                self.out.put(go_away);
            }
            Step::Parting(Word::Close) => self.out.end(Err(status::status(&draining()))),
            Step::Finished => self.out.end(Ok(())),
        }
    }
}

impl Chat {
    async fn wait(&mut self) -> Step {
        std::future::poll_fn(|cx| {
            // A fast answer must not keep the client from being heard: it may want to stop it.
            if self.burst < GRPC_EVENTS_BURST
                && let Poll::Ready(event) = self.readers.poll_next(cx)
            {
                self.burst += 1;
                return Poll::Ready(Step::Event(event));
            }
            let burst = std::mem::take(&mut self.burst);
            if let Some(incoming) = &mut self.incoming
                && let Poll::Ready(message) = Pin::new(incoming).poll_next(cx)
            {
                return Poll::Ready(Step::Client(message));
            }
            if burst == GRPC_EVENTS_BURST
                && let Poll::Ready(event) = self.readers.poll_next(cx)
            {
                return Poll::Ready(Step::Event(event));
            }
            if self.incoming.is_none() && self.open.is_empty() && self.readers.at_rest() {
                return Poll::Ready(Step::Finished);
            }
            self.parting.poll(cx).map(Step::Parting)
        })
        .await
    }

    fn answering(&self) -> bool {
        !self.open.is_empty() || self.readers.answering()
    }

    async fn client(&mut self, message: v1::ClientMessage) {
        match message.message {
            Some(client_message::Message::Send(request)) => self.send(request).await,
            Some(client_message::Message::Resume(v1::Resume { session, after })) => self.resume(session, &after),
            Some(client_message::Message::Cancel(request)) => self.cancel(request).await,
            Some(client_message::Message::Ping(v1::Ping { t })) => {
                self.out.put(message::message(Message::Pong(v1::Pong { t })));
            }
            None => {
                let message = "a ClientMessage needs one of send, resume, cancel and ping";
                self.refuse(Refusal::new(ErrorCode::InvalidRequest, message), None, None);
            }
        }
    }

    async fn send(&mut self, request: v1::SendRequest) {
        if self.parting.told() {
            return self.refuse(draining(), Some(request.session), Some(request.turn));
        }
        let (session, turn) = (request.session.clone(), request.turn.clone());
        let send = match message::turn(request) {
            Ok(send) => send,
            Err(refusal) => return self.refuse(refusal, Some(session), Some(turn)),
        };
        match self.readers.send(send).await {
            Ok(receipt) => {
                self.out.put(message::accepted(&receipt));
                let open = (receipt.session, receipt.turn);
                if matches!(receipt.state, TurnState::Running | TurnState::Queued) && !self.open.contains(&open) {
                    self.open.push(open);
                }
            }
            Err(refusal) => self.out.put(message::refusal(&refusal, Some(session), Some(turn))),
        }
    }

    fn resume(&mut self, session: String, after: &str) {
        let id = match frame::session_id(&session) {
            Ok(id) => id,
            Err(refusal) => return self.refuse(refusal, Some(session), None),
        };
        // A position that is none cannot be resumed: said in the words for that.
        let Ok(after) = message::position(after) else {
            return self.out.put(message::resumed(&id, false, chatgateway_core::log::EntryId::ZERO));
        };
        // From its new place the reader knows by itself what runs.
        self.open.retain(|(of, _)| *of != id);
        if let Err(refusal) = self.readers.resume(id, after) {
            self.out.put(message::refusal(&refusal, Some(session), None));
        }
    }

    async fn cancel(&mut self, request: v1::CancelTurnRequest) {
        let v1::CancelTurnRequest { session, turn } = request;
        let (id, of) = match (frame::turn_id(&turn), frame::session_id(&session)) {
            (Ok(id), Ok(of)) => (id, of),
            (Err(refusal), _) | (_, Err(refusal)) => return self.refuse(refusal, Some(session), Some(turn)),
        };
        if let Err(refusal) = self.gateway.cancel(self.readers.caller(), &of, &id).await {
            self.out.put(message::refusal(&refusal, Some(session), Some(turn)));
        }
    }

    /// Tells a refusal that is made here, counted.
    fn refuse(&mut self, refusal: Refusal, session: Option<String>, turn: Option<String>) {
        let refusal = self.gateway.refused(refusal);
        self.out.put(message::refusal(&refusal, session, turn));
    }

    fn event(&mut self, event: ReaderEvent) {
        match event {
            ReaderEvent::Entry { session, entry } => {
                self.out.put(message::entry(&session, &entry));
                if entry.kind.end().is_some() {
                    self.open.retain(|(of, turn)| *turn != entry.turn || *of != session);
                    if self.parting.told() && !self.answering() {
                        self.parting.hasten();
                    }
                }
            }
            ReaderEvent::Resumed { session, recovered, position } => {
                self.out.put(message::resumed(&session, recovered, position));
                if !recovered {
                    self.open.retain(|(of, _)| *of != session);
                }
            }
            ReaderEvent::Gone { session } => {
                self.open.retain(|(of, _)| *of != session);
                self.refuse(Refusal::new(ErrorCode::NotFound, read::DELETED), Some(session.to_string()), None);
            }
            ReaderEvent::Slow { .. } => {
                self.out.end(Err(status::refused(&self.gateway, ErrorCode::NotResumable, read::SLOW)));
            }
        }
    }
}
