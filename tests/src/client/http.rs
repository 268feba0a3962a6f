//! A plain HTTP client: JSON requests, SSE, long polling.

use std::net::SocketAddr;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

use super::{Event, SseEvent, SseStream, Turn, in_time};

/// A whole response.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("{} with body {:?}", self.status, self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// What a long poll gave.
#[derive(Clone, Debug)]
pub struct Polled {
    /// Entries after the position asked for.
    pub events: Vec<Event>,
    /// Where to go on.
    pub position: String,
}

/// A client of one server, HTTP/1.1 with kept connections.
#[derive(Clone)]
pub struct HttpClient {
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    headers: Vec<(String, String)>,
}

impl HttpClient {
    /// A client of the server at that address.
    pub fn new(address: SocketAddr) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { address, client: Client::builder(TokioExecutor::new()).build(connector), headers: Vec::new() }
    }

    /// With a header on every request.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A request to that path, with this client's headers.
    pub fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        self.headers.iter().fold(request, |request, (name, value)| request.header(name, value))
    }

    /// Sends a request and gives the response as soon as its head is there.
    pub async fn open(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        let what = format!("{} {}", request.method(), request.uri());
        in_time(&what, self.client.request(request)).await?.with_context(|| format!("{what} failed"))
    }

    /// Sends a request and reads the response to its end.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Reply> {
        let (head, body) = self.open(request).await?.into_parts();
        let body = in_time("the end of a body", body.collect()).await?.context("the body broke off")?.to_bytes();
        Ok(Reply { status: head.status, headers: head.headers, body })
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> anyhow::Result<Reply> {
        self.send(self.request(Method::GET, path).body(Full::default())?).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> anyhow::Result<Reply> {
        self.send(self.request(Method::DELETE, path).body(Full::default())?).await
    }

    /// `POST` of a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Reply> {
        self.send(self.json_request(path, body)?).await
    }

    fn json_request(&self, path: &str, body: &Value) -> anyhow::Result<Request<Full<Bytes>>> {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        Ok(request.body(Full::from(body.to_string()))?)
    }

    /// `POST` of a JSON body, answered by events.
    pub async fn post_sse(&self, path: &str, body: &Value) -> anyhow::Result<SseStream> {
        let mut request = self.json_request(path, body)?;
        request.headers_mut().insert("accept", http::HeaderValue::from_static("text/event-stream"));
        sse(self.open(request).await?).await
    }

    /// `GET` answered by events, from after a position where one is given.
    pub async fn get_sse(&self, path: &str, after: Option<&str>) -> anyhow::Result<SseStream> {
        let mut request = self.request(Method::GET, path).header("accept", "text/event-stream");
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        sse(self.open(request.body(Full::default())?).await?).await
    }

    /// Sends a turn and collects its events over SSE.
    pub async fn ask_sse(&self, session: &str, turn: &str, text: &str) -> anyhow::Result<Turn> {
        let body = serde_json::json!({"turn": turn, "text": text});
        let mut stream = self.post_sse(&format!("/v1/sessions/{session}/turns"), &body).await?;
        let mut seen = Turn::default();
        while let Some(event) = stream.next().await? {
            if !event.data.is_empty() && seen.add(event.json()?, turn) {
                break;
            }
        }
        Ok(seen)
    }

    /// One long poll.
    pub async fn poll(&self, session: &str, after: &str, wait: &str) -> anyhow::Result<Polled> {
        let reply = self.get(&format!("/v1/sessions/{session}/events?after={after}&wait={wait}")).await?;
        anyhow::ensure!(reply.status == StatusCode::OK, "{}: {}", reply.status, reply.text());
        let body = reply.json()?;
        let events = body["events"].as_array().context("no `events`")?.iter().cloned().map(Event).collect();
        let position = body["position"].as_str().context("no `position`")?.to_owned();
        Ok(Polled { events, position })
    }

    /// Polls until a turn ends; its entries.
    pub async fn poll_turn(&self, session: &str, turn: &str, after: &str) -> anyhow::Result<Turn> {
        let mut seen = Turn::default();
        let mut position = after.to_owned();
        for _ in 0..1_000 {
            let polled = self.poll(session, &position, "5s").await?;
            position = polled.position;
            for event in polled.events {
                if event.field("turn") == turn && seen.add(event, turn) {
                    return Ok(seen);
                }
            }
        }
        anyhow::bail!("turn {turn} did not end in 1,000 polls")
    }
}

async fn sse(response: Response<Incoming>) -> anyhow::Result<SseStream> {
    let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if response.status() == StatusCode::OK && content_type.starts_with("text/event-stream") {
        return Ok(SseStream::new(response.into_body()));
    }
    let (status, content_type) = (response.status(), content_type.to_owned());
    let body = response.into_body().collect().await?.to_bytes();
    anyhow::bail!("no events but {status} {content_type}: {}", String::from_utf8_lossy(&body))
}

/// The data of OpenAI's events: each is JSON, the last is `[DONE]`, and nothing else is there.
pub fn openai_chunks(events: &[SseEvent]) -> anyhow::Result<Vec<Value>> {
    let (last, chunks) = events.split_last().context("no events")?;
    anyhow::ensure!(last.data == "[DONE]", "the last event is {last:?}");
    let chunk = |event: &SseEvent| {
        anyhow::ensure!(event.event.is_empty() && event.id.is_none(), "an OpenAI chunk is only data: {event:?}");
        serde_json::from_str(&event.data).with_context(|| format!("chunk {:?}", event.data))
    };
    chunks.iter().map(chunk).collect()
}
