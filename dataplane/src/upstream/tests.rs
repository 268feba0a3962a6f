//! Upstreams against servers on loopback that do exactly what a test wants, byte by byte.

mod answers;
mod attempts;
mod batch;
mod demo;
mod endpoints;
mod faults;
mod forward;
mod load;
mod reload;

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use chatgateway_config::{RetrySettings, Settings, UpstreamKind, UpstreamSettings};
use chatgateway_core::{
    error::ErrorCode,
    log::{SessionId, SessionKey, TurnBody},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;

/// Longer than anything a test waits for.
const SOON: Duration = Duration::from_secs(10);

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// One call as the server meets it.
struct Met {
    /// Which call it is, from 0.
    number: usize,
    head: String,
    body: Value,
    socket: TcpStream,
}

impl Met {
    /// Writes; whether the other side still took it.
    async fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.socket.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Writes one HTTP chunk.
    async fn chunk(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let bytes = bytes.as_ref();
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.write(chunk).await
    }

    /// Writes a word of a streamed answer.
    async fn word(&mut self, text: &str) -> bool {
        self.chunk(event(text)).await
    }

    /// Ends a streamed answer as it should be.
    async fn finish(&mut self) {
        self.chunk(finish_event("stop")).await;
        self.chunk("data: [DONE]\n\n").await;
        self.write("0\r\n\r\n").await;
    }

    /// A whole answer.
    async fn answer(&mut self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        self.write(format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\n\r\n{body}")).await;
    }

    /// Waits until the other side has closed; what it sent before is dropped.
    async fn closed(&mut self) {
        let mut rest = [0; 1_024];
        while matches!(self.socket.read(&mut rest).await, Ok(1..)) {}
    }
}

fn event(text: &str) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]}))
}

fn finish_event(reason: &str) -> String {
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5});
    format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": usage}))
}

/// A server on loopback.
struct Fake {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Fake {
    /// A server that gives each call to `serve`. A connection goes on as long as `serve` gives the call back.
    async fn start<F, R>(serve: F) -> Self
    where
        F: Fn(Met) -> R + Clone + Send + 'static,
        R: Future<Output = Option<Met>> + Send,
    {
        Self::start_at(([127, 0, 0, 1], 0).into(), serve).await
    }

    async fn start_at<F, R>(address: SocketAddr, serve: F) -> Self
    where
        F: Fn(Met) -> R + Clone + Send + 'static,
        R: Future<Output = Option<Met>> + Send,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (calls, connections) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let counts = (calls.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                counts.1.fetch_add(1, SeqCst);
                let (serve, calls) = (serve.clone(), counts.0.clone());
                tokio::spawn(async move {
                    while let Some((head, body)) = read_request(&mut socket).await {
                        let number = calls.fetch_add(1, SeqCst);
                        match serve(Met { number, head, body, socket }).await {
                            Some(met) => socket = met.socket,
                            None => return,
                        }
                    }
                });
            }
        });
        Self { address, calls, connections }
    }

    fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
}

async fn read_request(socket: &mut TcpStream) -> Option<(String, Value)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4_096];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return Some((head, serde_json::from_slice(&bytes[end + 4..]).unwrap_or_default()));
            }
        }
        match socket.read(&mut piece).await {
            Ok(read @ 1..) => bytes.extend_from_slice(&piece[..read]),
            _ => return None,
        }
    }
}

fn openai(url: &str) -> UpstreamSettings {
    let kind = UpstreamKind::OpenAi {
        url: url.to_owned(),
        model: "qwen".into(),
        api_key_file: None,
        prefill: true,
        prompt_format: None,
    };
    // One attempt, so that a failure is seen; further ones have tests of their own.
    let retries = RetrySettings { max_attempts: 1, budget_percent: 10 };
    UpstreamSettings { name: "m".into(), kind, retries, ..UpstreamSettings::default() }
}

/// As above, with timeouts that a test can wait for.
fn hasty(url: &str) -> UpstreamSettings {
    let mut settings = openai(url);
    settings.timeouts.connect = Duration::from_millis(200);
    settings.timeouts.first_token = Duration::from_millis(300);
    settings.timeouts.between_tokens = Duration::from_millis(300);
    settings
}

/// One upstream of several equal servers.
fn equal(urls: &[String]) -> UpstreamSettings {
    let mut settings = openai(&urls[0]);
    settings.endpoints.further = urls[1..].to_vec();
    settings.retries.max_attempts = 3;
    settings
}

/// Says `word` in full.
async fn say(mut met: Met, word: &str) -> Option<Met> {
    met.write(STREAM).await;
    met.word(word).await;
    met.finish().await;
    Some(met)
}

/// The breaker of each endpoint of the first upstream.
fn breakers(upstreams: &Upstreams) -> Vec<&'static str> {
    upstreams.status()[0].endpoints.iter().map(|endpoint| endpoint.breaker).collect()
}

fn upstreams(list: impl IntoIterator<Item = UpstreamSettings>) -> Upstreams {
    Upstreams::new(&Settings { upstreams: list.into_iter().collect(), ..Settings::default() }).unwrap()
}

fn ask_of(session: &str, text: &str) -> Ask {
    Ask {
        session: SessionKey::new("t", "p", &SessionId::parse(session).unwrap()),
        history: Vec::new(),
        body: Arc::new(TurnBody::new(text.into(), "".into())),
        prefix: None,
    }
}

fn ask() -> Ask {
    ask_of("s", "hello")
}

/// The answer's text and how it ended.
async fn read(mut stream: UpstreamStream) -> (String, UpstreamEvent) {
    let mut text = String::new();
    let reading = async {
        loop {
            match stream.next().await {
                Some(UpstreamEvent::Text(piece)) => {
                    assert!(!piece.is_empty());
                    text.push_str(&piece);
                }
                Some(end) => return end,
                None => panic!("no end after {text:?}"),
            }
        }
    };
    let end = tokio::time::timeout(SOON, reading).await.unwrap();
    assert_eq!(stream.next().await, None);
    (text, end)
}

/// How a call failed.
async fn failure(stream: UpstreamStream) -> (ErrorCode, String) {
    match read(stream).await {
        (_, UpstreamEvent::Failed { code, message, .. }) => (code, message),
        other => panic!("{other:?}"),
    }
}

fn done(reason: &str) -> UpstreamEvent {
    let usage = Usage { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 };
    UpstreamEvent::End { finish_reason: reason.into(), usage }
}

async fn text(stream: &mut UpstreamStream) -> String {
    match tokio::time::timeout(SOON, stream.next()).await.unwrap() {
        Some(UpstreamEvent::Text(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// Waits for something that comes by itself.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// No place is taken, nobody waits.
async fn all_free(upstreams: &Upstreams) {
    eventually("all places free", || upstreams.status().iter().all(|s| s.in_flight == 0 && s.waiting == 0)).await;
}
