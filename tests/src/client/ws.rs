//! WebSocket clients: the JSON protocol and plain text.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderName, HeaderValue, Response};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message, client::IntoClientRequest as _, protocol::CloseFrame},
};

use super::{Event, Turn, in_time};

/// The JSON protocol's name.
pub const SUBPROTOCOL: &str = "chatgateway.v1";

/// How a connection is opened.
#[derive(Clone, Debug, Default)]
pub struct WsOptions {
    /// Subprotocols offered.
    pub protocols: Vec<String>,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// Query of the path, without `?`.
    pub query: String,
}

impl WsOptions {
    /// The JSON protocol.
    pub fn json() -> Self {
        Self { protocols: vec![SUBPROTOCOL.to_owned()], ..Self::default() }
    }

    /// With a further header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// How a connection was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The close code; 1006 where no close frame came.
    pub code: u16,
    /// The reason given.
    pub reason: String,
}

/// What arrives on a connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A text frame.
    Text(String),
    /// The end.
    Closed(Closed),
}

/// An open WebSocket.
struct Socket {
    stream: WebSocketStream<TcpStream>,
    response: Response<Option<Vec<u8>>>,
}

impl Socket {
    async fn open(address: SocketAddr, options: &WsOptions) -> anyhow::Result<Self> {
        let mark = if options.query.is_empty() { "" } else { "?" };
        let mut request = format!("ws://{address}/ws{mark}{}", options.query).into_client_request()?;
        if !options.protocols.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", options.protocols.join(", ").parse()?);
        }
        for (name, value) in &options.headers {
            request.headers_mut().append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
        }
        let opened = in_time("the WebSocket handshake", async {
            let stream = TcpStream::connect(address).await.context("cannot connect")?;
            stream.set_nodelay(true)?;
            anyhow::Ok(client_async(request, stream).await)
        });
        match opened.await?? {
            Ok((stream, response)) => Ok(Self { stream, response }),
            Err(tungstenite::Error::Http(response)) => {
                let body = String::from_utf8_lossy(response.body().as_deref().unwrap_or_default()).into_owned();
                bail!("the handshake was answered with {}: {body}", response.status())
            }
            Err(error) => Err(error).context("the WebSocket handshake failed"),
        }
    }

    async fn send(&mut self, message: Message) -> anyhow::Result<()> {
        in_time("room to send a frame", self.stream.send(message)).await?.context("cannot send a frame")
    }

    async fn next(&mut self) -> anyhow::Result<Incoming> {
        loop {
            let closed = |code, reason: &str| Incoming::Closed(Closed { code, reason: reason.to_owned() });
            return Ok(match in_time("a frame", self.stream.next()).await? {
                Some(Ok(Message::Text(text))) => Incoming::Text(text.as_str().to_owned()),
                Some(Ok(Message::Binary(_))) => bail!("a binary frame came"),
                Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => closed(code.into(), reason.as_str()),
                Some(Ok(Message::Close(None))) => closed(1005, ""),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Err(error)) => closed(1006, &error.to_string()),
                None => closed(1006, "the connection ended"),
            });
        }
    }

    async fn close(mut self) -> anyhow::Result<Closed> {
        self.stream.close(None).await?;
        loop {
            if let Incoming::Closed(closed) = self.next().await? {
                return Ok(closed);
            }
        }
    }
}

/// A client of the JSON protocol.
pub struct WsClient {
    socket: Socket,
    hello: Event,
}

impl WsClient {
    /// Connects and takes the `hello`.
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        Self::connect_with(address, &WsOptions::json()).await
    }

    /// The same with further headers or another list of subprotocols.
    pub async fn connect_with(address: SocketAddr, options: &WsOptions) -> anyhow::Result<Self> {
        let socket = Socket::open(address, options).await?;
        let chosen = socket.response.headers().get("sec-websocket-protocol");
        anyhow::ensure!(chosen.is_some_and(|chosen| chosen == SUBPROTOCOL), "subprotocol {chosen:?} was chosen");
        let mut client = Self { socket, hello: Event(Value::Null) };
        let hello = client.next().await?;
        anyhow::ensure!(hello.kind() == "hello", "the first frame is {hello:?}");
        client.hello = hello;
        Ok(client)
    }

    /// The server's `hello`.
    pub fn hello(&self) -> &Event {
        &self.hello
    }

    /// Sends one frame, whatever it says.
    pub async fn send_frame(&mut self, frame: &Value) -> anyhow::Result<()> {
        self.send_text(&frame.to_string()).await
    }

    /// Sends one text frame as it is.
    pub async fn send_text(&mut self, text: &str) -> anyhow::Result<()> {
        self.socket.send(Message::text(text)).await
    }

    /// Sends any WebSocket message.
    pub async fn send_message(&mut self, message: Message) -> anyhow::Result<()> {
        self.socket.send(message).await
    }

    /// Sends a turn.
    pub async fn send(&mut self, session: &str, turn: &str, text: &str) -> anyhow::Result<()> {
        self.send_frame(&json!({"type": "send", "session": session, "turn": turn, "text": text})).await
    }

    /// Reads a session from after a position.
    pub async fn resume(&mut self, session: &str, after: &str) -> anyhow::Result<()> {
        self.send_frame(&json!({"type": "resume", "session": session, "after": after})).await
    }

    /// Cancels a turn.
    pub async fn cancel(&mut self, session: &str, turn: &str) -> anyhow::Result<()> {
        self.send_frame(&json!({"type": "cancel", "session": session, "turn": turn})).await
    }

    /// The next frame. A close is an error here.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        match self.incoming().await? {
            Incoming::Text(text) => {
                Ok(Event(serde_json::from_str(&text).with_context(|| format!("a frame {text:?}"))?))
            }
            Incoming::Closed(closed) => bail!("closed with {}: {}", closed.code, closed.reason),
        }
    }

    /// The next frame, or the close.
    pub async fn incoming(&mut self) -> anyhow::Result<Incoming> {
        self.socket.next().await
    }

    /// The next frame of that type; others are passed over.
    pub async fn next_of(&mut self, kind: &str) -> anyhow::Result<Event> {
        loop {
            let event = self.next().await?;
            if event.kind() == kind {
                return Ok(event);
            }
        }
    }

    /// Collects a turn's events until it ends or is refused.
    pub async fn turn(&mut self, turn: &str) -> anyhow::Result<Turn> {
        let mut seen = Turn::default();
        loop {
            let event = self.next().await?;
            if ["hello", "pong", "go_away", "resumed"].contains(&event.kind()) {
                continue;
            }
            let of_this_turn = event.0["turn"].as_str().is_none_or(|of| of == turn);
            if of_this_turn && seen.add(event, turn) {
                return Ok(seen);
            }
        }
    }

    /// Sends a turn under a fresh id and collects its events.
    pub async fn ask(&mut self, session: &str, text: &str) -> anyhow::Result<Turn> {
        let turn = uuid::Uuid::new_v4().to_string();
        self.send(session, &turn, text).await?;
        self.turn(&turn).await
    }

    /// Frames until the close.
    pub async fn until_closed(&mut self) -> anyhow::Result<(Vec<Event>, Closed)> {
        let mut events = Vec::new();
        loop {
            match self.incoming().await? {
                Incoming::Text(text) => events.push(Event(serde_json::from_str(&text)?)),
                Incoming::Closed(closed) => return Ok((events, closed)),
            }
        }
    }

    /// Closes in good order.
    pub async fn close(self) -> anyhow::Result<Closed> {
        self.socket.close().await
    }
}

/// A client of the plain-text protocol.
pub struct PlainClient {
    socket: Socket,
}

impl PlainClient {
    /// Connects; without a session the gateway makes one.
    pub async fn connect(address: SocketAddr, session: Option<&str>) -> anyhow::Result<Self> {
        let options = WsOptions::default();
        let options = match session {
            Some(session) => options.header("x-session-id", session),
            None => options,
        };
        Self::connect_with(address, &options).await
    }

    /// Connects with a query, say `stream=true`, or further headers.
    pub async fn connect_with(address: SocketAddr, options: &WsOptions) -> anyhow::Result<Self> {
        Ok(Self { socket: Socket::open(address, options).await? })
    }

    /// The session that the handshake's answer names.
    pub fn session(&self) -> Option<&str> {
        self.socket.response.headers().get("x-session-id")?.to_str().ok()
    }

    /// Sends a text frame.
    pub async fn send(&mut self, text: &str) -> anyhow::Result<()> {
        self.socket.send(Message::text(text)).await
    }

    /// Sends any WebSocket message.
    pub async fn send_message(&mut self, message: Message) -> anyhow::Result<()> {
        self.socket.send(message).await
    }

    /// The next frame, or the close.
    pub async fn incoming(&mut self) -> anyhow::Result<Incoming> {
        self.socket.next().await
    }

    /// Sends a turn and takes its answer, one frame.
    pub async fn ask(&mut self, text: &str) -> anyhow::Result<String> {
        self.send(text).await?;
        match self.incoming().await? {
            Incoming::Text(text) => Ok(text),
            Incoming::Closed(closed) => bail!("closed with {}: {}", closed.code, closed.reason),
        }
    }

    /// With `stream=true`: the frames of one answer, without the empty one that ends it.
    pub async fn answer_frames(&mut self) -> anyhow::Result<Vec<String>> {
        let mut frames = Vec::new();
        loop {
            match self.incoming().await? {
                Incoming::Text(text) if text.is_empty() => return Ok(frames),
                Incoming::Text(text) => frames.push(text),
                Incoming::Closed(closed) => bail!("closed with {}: {}", closed.code, closed.reason),
            }
        }
    }

    /// Closes in good order.
    pub async fn close(self) -> anyhow::Result<Closed> {
        self.socket.close().await
    }
}
