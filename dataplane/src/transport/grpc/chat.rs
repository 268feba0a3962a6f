//! `Chat`: a whole connection in one stream, the twin of the WebSocket.

use std::{collections::VecDeque, pin::Pin, sync::Arc, task::Poll};

use chatgateway_core::error::{ErrorCode, Refusal};
use chatgateway_proto::v1::{self, ServerMessage, client_message, server_message::Message};
use futures_util::{Stream, stream};
use tokio::time::Sleep;
use tonic::{Code, Status, Streaming};

use super::{message, read, status};
use crate::{
    clock,
    gateway::{Gateway, draining},
    leaving::Leaving,
    readers::{ReaderEvent, Readers},
    transport::frame::{self, SUBPROTOCOL},
};

/// Messages gathered before they are handed to the codec, which sends them in one go.
const BURST: usize = 64;

struct Chat {
    gateway: Arc<Gateway>,
    readers: Readers,
    /// `None` once the client has half-closed.
    incoming: Option<Streaming<v1::ClientMessage>>,
    leaving: Leaving,
    close_at: Option<Pin<Box<Sleep>>>,
    out: VecDeque<ServerMessage>,
    end: Option<Option<Status>>,
}

enum Step {
    Client(Option<Result<v1::ClientMessage, Status>>),
    Event(ReaderEvent),
    Leave,
    CloseNow,
}

/// Serves one stream until it ends.
pub(super) fn serve(
    gateway: Arc<Gateway>,
    readers: Readers,
    incoming: Streaming<v1::ClientMessage>,
) -> impl Stream<Item = Result<ServerMessage, Status>> {
    let settings = gateway.settings();
    let hello = message::message(Message::Hello(v1::Hello {
        protocol: SUBPROTOCOL.into(),
        revision: settings.gateway.revision.clone(),
        ping_interval_ms: u64::try_from(settings.keepalive.ping_interval.as_millis()).unwrap_or(u64::MAX),
        max_message_bytes: settings.limits.max_message_bytes as u64,
    }));
    let leaving = gateway.departure.leaving();
    let out = VecDeque::from([hello]);
    let chat = Chat { gateway, readers, incoming: Some(incoming), leaving, close_at: None, out, end: None };
    stream::unfold(chat, |mut chat| async move {
        loop {
            if let Some(message) = chat.out.pop_front() {
                return Some((Ok(message), chat));
            }
            match chat.end.take() {
                Some(Some(status)) => {
                    chat.end = Some(None);
                    return Some((Err(status), chat));
                }
                Some(None) => return None,
                None => chat.turn_around().await,
            }
        }
    })
}

impl Chat {
    async fn turn_around(&mut self) {
        match self.step().await {
            Step::Client(Some(Ok(message))) => self.client(message).await,
            Step::Client(Some(Err(error))) => self.broken(error),
            Step::Client(None) => self.incoming = None,
            Step::Event(event) => self.event(event),
            Step::Leave => self.go_away(),
            Step::CloseNow => self.end = Some(Some(status::status(&draining()))),
        }
        for _ in 0..BURST {
            let Some(event) = self.readers.try_next() else { break };
            self.event(event);
        }
        let over = self.incoming.is_none() || self.leaving.heard();
        if over && self.end.is_none() && !self.readers.answering() {
            self.end = Some(None);
        }
    }

    async fn step(&mut self) -> Step {
        std::future::poll_fn(|cx| {
            if let Poll::Ready(event) = self.readers.poll_next(cx) {
                return Poll::Ready(Step::Event(event));
            }
            if let Some(incoming) = &mut self.incoming
                && let Poll::Ready(message) = Pin::new(incoming).poll_next(cx)
            {
                return Poll::Ready(Step::Client(message));
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

    async fn client(&mut self, message: v1::ClientMessage) {
        match message.message {
            Some(client_message::Message::Send(request)) => self.send(request).await,
            Some(client_message::Message::Resume(v1::Resume { session, after })) => {
                let resumed = match (frame::session_id(&session), after.parse()) {
                    (Ok(id), Ok(after)) => self.readers.resume(id, after),
                    (Err(refusal), _) => Err(self.gateway.refused(refusal)),
                    (Ok(_), Err(_)) => {
                        let resumed = v1::Resumed { session, recovered: false, position: "0".into() };
                        return self.out.push_back(message::message(Message::Resumed(resumed)));
                    }
                };
                self.told(resumed, Some(session), None);
            }
            Some(client_message::Message::Cancel(v1::CancelTurnRequest { session, turn })) => {
                let cancelled = match (frame::session_id(&session), frame::turn_id(&turn)) {
                    (Ok(session), Ok(turn)) => {
                        self.gateway.cancel(self.readers.caller(), &session, &turn).await.map(|_| ())
                    }
                    (Err(refusal), _) | (_, Err(refusal)) => Err(self.gateway.refused(refusal)),
                };
                self.told(cancelled, Some(session), Some(turn));
            }
            Some(client_message::Message::Ping(v1::Ping { t })) => {
                self.out.push_back(message::message(Message::Pong(v1::Pong { t })));
            }
            None => {
                let message = "a message needs one of send, resume, cancel and ping";
                self.told(Err(self.gateway.refused(Refusal::new(ErrorCode::InvalidRequest, message))), None, None);
            }
        }
    }

    async fn send(&mut self, request: v1::SendRequest) {
        let (session, turn) = (request.session.clone(), request.turn.clone());
        let accepted = if self.leaving.heard() {
            Err(self.gateway.refused(draining()))
        } else {
            match message::turn(request) {
                Ok(turn) => self.readers.send(turn).await,
                Err(refusal) => Err(self.gateway.refused(refusal)),
            }
        };
        match accepted {
            Ok(receipt) => self.out.push_back(message::accepted(&receipt)),
            Err(refusal) => self.told(Err(refusal), Some(session), Some(turn)),
        }
    }

    fn told(&mut self, outcome: Result<(), Refusal>, session: Option<String>, turn: Option<String>) {
        if let Err(refusal) = outcome {
            self.out.push_back(message::refusal(&refusal, session, turn));
        }
    }

    fn event(&mut self, event: ReaderEvent) {
        match event {
            ReaderEvent::Entry { session, entry } => self.out.push_back(message::entry(&session, &entry)),
            ReaderEvent::Resumed { session, recovered, position } => {
                let resumed = v1::Resumed { session: session.to_string(), recovered, position: position.to_string() };
                self.out.push_back(message::message(Message::Resumed(resumed)));
            }
            ReaderEvent::Gone { session } => {
                let gone = Refusal::new(ErrorCode::NotFound, "the session was deleted");
                self.out.push_back(message::refusal(&gone, Some(session.to_string()), None));
            }
            ReaderEvent::Slow { .. } => {
                let message = "the client read too slowly, and the log no longer reaches back";
                self.end = Some(Some(status::error(ErrorCode::NotResumable, message)));
            }
        }
    }

    /// The client's side of the stream broke, or a message of it was none or too large.
    fn broken(&mut self, error: Status) {
        self.incoming = None;
        let told = status::of_codec(&error).unwrap_or(error);
        if told.code() == Code::ResourceExhausted {
            self.gateway.metrics.limit_hit("message_bytes");
        }
        self.end = Some(Some(told));
    }

    fn go_away(&mut self) {
        let answering = self.readers.answering();
        let close_at = self.gateway.start_drain().close_at(clock::now(), answering);
        self.close_at = Some(Box::pin(tokio::time::sleep_until(close_at.into())));
        self.out.push_back(read::go_away(&self.gateway, answering));
    }
}
