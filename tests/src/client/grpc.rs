//! A gRPC client whose events look like those of the other transports.

use std::net::SocketAddr;

use anyhow::Context as _;
use chatgateway_proto::v1::{
    ClientMessage, Resume, SendRequest, ServerMessage, chat_service_client::ChatServiceClient, client_message,
    server_message::Message,
};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::{Event, Turn, in_time};

/// Messages that wait to be sent.
const UNSENT_MAX: usize = 16;

/// Connects to the gateway's gRPC port.
pub async fn grpc(address: SocketAddr) -> anyhow::Result<ChatServiceClient<Channel>> {
    let channel = Channel::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    let channel = in_time("a gRPC connection", channel.connect()).await?.context("cannot connect")?;
    Ok(ChatServiceClient::new(channel))
}

/// A `Chat` call.
pub struct GrpcChat {
    sender: Option<mpsc::Sender<ClientMessage>>,
    messages: Streaming<ServerMessage>,
}

impl GrpcChat {
    /// Opens a `Chat` on a connection of its own, and takes the `hello`.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let mut chat = Self::open(grpc(address).await?).await?;
        let hello = chat.next().await?;
        anyhow::ensure!(hello.kind() == "hello", "the first message is {hello:?}");
        Ok(chat)
    }

    /// Opens a `Chat` on a connection that may have others, and takes nothing.
    pub async fn open(mut client: ChatServiceClient<Channel>) -> anyhow::Result<Self> {
        let (sender, receiver) = mpsc::channel(UNSENT_MAX);
        let opened = in_time("the head of Chat", client.chat(ReceiverStream::new(receiver))).await?;
        Ok(Self { sender: Some(sender), messages: opened?.into_inner() })
    }

    /// Sends a message.
    pub async fn send_message(&mut self, message: client_message::Message) -> anyhow::Result<()> {
        let sender = self.sender.as_ref().context("this call was half-closed")?;
        let sent = in_time("room to send", sender.send(ClientMessage { message: Some(message) })).await?;
        sent.ok().context("the call has ended")
    }

    /// Sends a turn.
    pub async fn send(&mut self, session: &str, turn: &str, text: &str) -> anyhow::Result<()> {
        self.send_message(client_message::Message::Send(SendRequest {
            session: session.to_owned(),
            turn: turn.to_owned(),
            text: Some(text.to_owned()),
            ..SendRequest::default()
        }))
        .await
    }

    /// Reads a session from after a position.
    pub async fn resume(&mut self, session: &str, after: &str) -> anyhow::Result<()> {
        let (session, after) = (session.to_owned(), after.to_owned());
        self.send_message(client_message::Message::Resume(Resume { session, after })).await
    }

    /// Says that nothing more will be sent.
    pub fn half_close(&mut self) {
        self.sender = None;
    }

    /// The next message as it came; nothing at the end.
    pub async fn message(&mut self) -> anyhow::Result<Option<ServerMessage>> {
        Ok(in_time("a message", self.messages.message()).await??)
    }

    /// The next message as an event.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        event(self.message().await?.context("the call has ended")?)
    }

    /// Sends a turn under that id and collects its events.
    pub async fn ask(&mut self, session: &str, turn: &str, text: &str) -> anyhow::Result<Turn> {
        self.send(session, turn, text).await?;
        let mut seen = Turn::default();
        while !seen.add(self.next().await?, turn) {}
        Ok(seen)
    }
}

/// A message as the frame of the JSON protocol that says the same.
pub fn event(message: ServerMessage) -> anyhow::Result<Event> {
    let (kind, fields) = match message.message.context("an empty message")? {
        Message::Hello(hello) => (
            "hello",
            json!({"protocol": hello.protocol, "revision": hello.revision, "ping_interval_ms": hello.ping_interval_ms,
                "max_message_bytes": hello.max_message_bytes}),
        ),
        Message::Accepted(accepted) => (
            "accepted",
            json!({"session": accepted.session, "turn": accepted.turn, "seq": accepted.seq, "state": accepted.state,
                "place": accepted.place, "duplicate": accepted.duplicate}),
        ),
        Message::Resumed(resumed) => (
            "resumed",
            json!({"session": resumed.session, "recovered": resumed.recovered, "position": resumed.position}),
        ),
        Message::Turn(turn) => (
            "turn",
            json!({"session": turn.session, "turn": turn.turn, "id": turn.id, "seq": turn.seq, "text": turn.text}),
        ),
        Message::Delta(delta) => {
            ("delta", json!({"session": delta.session, "turn": delta.turn, "id": delta.id, "text": delta.text}))
        }
        Message::Reset(entry) => ("reset", plain_entry(entry.session, entry.turn, entry.id)),
        Message::Takeover(entry) => ("takeover", plain_entry(entry.session, entry.turn, entry.id)),
        Message::Cancelled(entry) => ("cancelled", plain_entry(entry.session, entry.turn, entry.id)),
        Message::Done(done) => {
            let usage = done.usage.map(|usage| {
                json!({"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
                    "total_tokens": usage.total_tokens})
            });
            let mut fields = plain_entry(done.session, done.turn, done.id);
            fields["finish_reason"] = json!(done.finish_reason);
            fields["usage"] = json!(usage);
            ("done", fields)
        }
        Message::Error(error) => (
            "error",
            json!({"code": error.code, "message": error.message, "retryable": error.retryable,
                "retry_after_ms": error.retry_after_ms, "expected": error.expected, "session": error.session,
                "turn": error.turn, "id": error.id}),
        ),
        Message::GoAway(away) => {
            ("go_away", json!({"reconnect_after_ms": away.reconnect_after_ms, "time_left_ms": away.time_left_ms}))
        }
        Message::Pong(pong) => ("pong", json!({"t": pong.t})),
    };
    let mut frame = Map::from_iter([("type".to_owned(), json!(kind))]);
    if let Value::Object(fields) = fields {
        // The JSON protocol leaves out what is not there.
        frame.extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
    }
    Ok(Event(Value::Object(frame)))
}

fn plain_entry(session: String, turn: String, id: String) -> Value {
    json!({"session": session, "turn": turn, "id": id})
}
