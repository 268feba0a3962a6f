//! A gateway in this process, on ports of its own, and a WebSocket client that says what it means.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use chatgateway_config::Settings;
use chatgateway_dataplane::{
    gateway::Gateway,
    run::{self, Listeners},
};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

/// How long a test waits for something that has to come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running gateway.
pub struct Server {
    pub gateway: Arc<Gateway>,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    /// Ends when the gateway was drained.
    pub serving: JoinHandle<()>,
}

/// Runs a gateway with this configuration, whose ports are chosen by the system.
pub fn start(config: &str) -> Server {
    let mut settings = Settings::parse(config).unwrap();
    settings.listeners.http_port = 0;
    settings.listeners.grpc_port = 0;
    settings.listeners.admin_port = 0;
    let listeners = Listeners::bind(&settings).unwrap();
    let [http, grpc, admin] = listeners.addresses().unwrap();
    let gateway = Gateway::start(settings).unwrap();
    let serving = tokio::spawn({
        let gateway = gateway.clone();
        async move { run::serve(&gateway, listeners).await }
    });
    Server { gateway, http, grpc, admin, serving }
}

/// A demo that answers at once.
pub const QUICK: &str = "upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 0s}}]\n\
    drain: {acceptFloor: 0s, reconnectSpread: 100ms, timeout: 20s}";

/// A demo that takes its time: half a minute for an answer.
pub const SLOW: &str = "upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 20ms, answerBytes: 8000}}]\n\
    drain: {acceptFloor: 0s, reconnectSpread: 100ms, timeout: 20s}";

/// A WebSocket client.
pub struct Client {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    /// Connects with the JSON subprotocol and takes the `hello`.
    pub async fn json(server: &Server) -> Self {
        let mut client = Self::connect(server, "/ws", &[("sec-websocket-protocol", "chatgateway.v1")]).await;
        assert_eq!(client.frame().await["type"], "hello");
        client
    }

    /// Connects to a path with headers.
    pub async fn connect(server: &Server, path: &str, headers: &[(&'static str, &str)]) -> Self {
        let mut request = format!("ws://{}{path}", server.http).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        let (socket, _) = connect_async(request).await.unwrap();
        Self { socket }
    }

    /// Sends a JSON frame.
    pub async fn send(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// Sends a turn.
    pub async fn turn(&mut self, session: &str, turn: &str, text: &str) {
        self.send(json!({"type": "send", "session": session, "turn": turn, "text": text})).await;
    }

    /// The next message that is not a ping.
    pub async fn message(&mut self) -> Message {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next()).await.expect("a message in time");
            match message.expect("a message before the end").unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                other => return other,
            }
        }
    }

    /// The next JSON frame.
    pub async fn frame(&mut self) -> Value {
        match self.message().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("not a text frame: {other:?}"),
        }
    }

    /// Frames up to and including one of this type.
    pub async fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut frames = Vec::new();
        loop {
            let frame = self.frame().await;
            let last = frame["type"] == kind;
            frames.push(frame);
            if last {
                return frames;
            }
        }
    }

    /// The close code the server ends with; other frames before it are passed over.
    pub async fn close_code(&mut self) -> u16 {
        loop {
            if let Message::Close(Some(frame)) = self.message().await {
                return frame.code.into();
            }
        }
    }
}

/// The answer's text that frames tell.
pub fn answer(frames: &[Value]) -> String {
    frames.iter().filter(|f| f["type"] == "delta").map(|f| f["text"].as_str().unwrap()).collect()
}

/// The frames' types.
pub fn kinds(frames: &[Value]) -> Vec<&str> {
    frames.iter().map(|f| f["type"].as_str().unwrap()).collect()
}
