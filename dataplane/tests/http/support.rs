//! A gateway in the test's own process, and small readers of what it answers.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, BodyDataStream, Bytes},
    http::{HeaderMap, Method, Request, StatusCode},
};
use chatgateway_config::{Settings, UpstreamKind};
use chatgateway_dataplane::{gateway::Gateway, transport::http::router};
use futures_util::StreamExt;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

/// A gateway and its routes.
#[derive(Clone)]
pub struct Server {
    pub gateway: Arc<Gateway>,
    pub router: Router,
}

/// Settings with the Demo upstream: so long between two words, and so long an answer.
pub fn demo(token_delay: Duration, answer_bytes: Option<usize>) -> Settings {
    let mut settings = Settings::default();
    settings.upstreams[0].kind = UpstreamKind::Demo { token_delay, answer_bytes };
    settings
}

/// An answer that takes more than a minute of (paused) time, and less than a model server may take.
pub fn slow() -> Settings {
    demo(Duration::from_millis(100), Some(4_000))
}

impl Server {
    /// Answers at once.
    pub fn quick() -> Self {
        Self::new(demo(Duration::ZERO, None))
    }

    pub fn new(settings: Settings) -> Self {
        let gateway = Gateway::start(settings).unwrap();
        Self { router: router(gateway.clone()), gateway }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(ask(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(with(ask(Method::GET, path), headers).body(Body::empty()).unwrap()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_with(path, &[], body).await
    }

    pub async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let request = with(ask(Method::POST, path), headers).header("content-type", "application/json");
        self.send(request.body(body.to_string().into()).unwrap()).await
    }

    /// A turn with a JSON answer.
    pub async fn turn(&self, session: &str, turn: &str, text: &str) -> Value {
        let answer = self.post(&format!("/v1/sessions/{session}/turns"), json!({"turn": turn, "text": text})).await;
        answer.json(StatusCode::OK).await
    }

    /// A turn as a stream.
    pub async fn turn_stream(&self, session: &str, turn: &str, text: &str) -> Sse {
        let body = json!({"turn": turn, "text": text});
        self.post_with(&format!("/v1/sessions/{session}/turns"), &[("accept", "text/event-stream")], body).await.sse()
    }

    /// The session's log after a position, as a stream.
    pub async fn events(&self, session: &str, after: &str) -> Sse {
        self.get_with(&format!("/v1/sessions/{session}/events?after={after}"), &[("accept", "text/event-stream")])
            .await
            .sse()
    }

    /// The session's log after a position, as far as it is there.
    pub async fn poll(&self, session: &str, after: &str, wait: &str) -> Value {
        self.get(&format!("/v1/sessions/{session}/events?after={after}&wait={wait}")).await.json(StatusCode::OK).await
    }

    pub async fn delete(&self, session: &str) -> StatusCode {
        self.send(ask(Method::DELETE, &format!("/v1/sessions/{session}")).body(Body::empty()).unwrap()).await.status
    }

    pub async fn cancel(&self, session: &str, turn: &str) -> Answer {
        let path = format!("/v1/sessions/{session}/turns/{turn}/cancel");
        self.send(ask(Method::POST, &path).body(Body::empty()).unwrap()).await
    }
}

pub fn ask(method: Method, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(path)
}

pub fn with(mut request: http::request::Builder, headers: &[(&str, &str)]) -> http::request::Builder {
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
}

/// What came back.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Body,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    pub async fn bytes(self) -> Bytes {
        self.body.collect().await.unwrap().to_bytes()
    }

    /// The body, which has to come under this status.
    pub async fn json(self, status: StatusCode) -> Value {
        let (got, kind) = (self.status, self.header("content-type").to_owned());
        let body = self.bytes().await;
        assert_eq!(got, status, "{}", String::from_utf8_lossy(&body));
        assert!(kind.starts_with("application/"), "{kind}");
        serde_json::from_slice(&body).unwrap()
    }

    /// The problem, which has to have this code and status.
    pub async fn problem(self, status: u16, code: &str) -> Value {
        assert_eq!(self.header("content-type"), "application/problem+json");
        let body = self.json(StatusCode::from_u16(status).unwrap()).await;
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["status"], status);
        for field in ["type", "title", "detail"] {
            assert!(body[field].as_str().is_some_and(|s| !s.is_empty()), "{field}: {body}");
        }
        assert!(body["retryable"].is_boolean());
        body
    }

    /// OpenAI's error, which has to have this code and status.
    pub async fn openai_error(self, status: u16, code: &str) -> Value {
        let mut body = self.json(StatusCode::from_u16(status).unwrap()).await;
        let error = body["error"].take();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().is_some_and(|s| !s.is_empty()), "{error}");
        assert!(error["type"].is_string() && error.get("param").is_some(), "{error}");
        error
    }

    /// The body as a stream of events.
    pub fn sse(self) -> Sse {
        assert_eq!(self.status, StatusCode::OK);
        assert_eq!(self.header("content-type"), "text/event-stream");
        assert_eq!(self.header("cache-control"), "no-store");
        assert_eq!(self.header("x-accel-buffering"), "no");
        Sse { body: self.body.into_data_stream(), buffer: Vec::new() }
    }
}

/// One event, or one comment, of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    pub event: String,
    pub id: Option<String>,
    pub data: Option<String>,
    pub retry: Option<u64>,
    pub comment: Option<String>,
}

impl Event {
    pub fn json(&self) -> Value {
        serde_json::from_str(self.data.as_deref().unwrap_or("null")).unwrap()
    }
}

/// A stream of events as it comes in.
pub struct Sse {
    body: BodyDataStream,
    buffer: Vec<u8>,
}

impl Sse {
    /// The next block, or `None` at the end.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(parse(std::str::from_utf8(&block).unwrap()));
            }
            match self.body.next().await {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.unwrap()),
                None => {
                    assert!(self.buffer.is_empty(), "the stream ended inside an event");
                    return None;
                }
            }
        }
    }

    /// The next block, which has to be of this kind.
    pub async fn expect(&mut self, event: &str) -> Event {
        let next = self.next().await.unwrap_or_else(|| panic!("the stream ended before {event}"));
        assert_eq!(next.event, event, "{next:?}");
        next
    }

    /// Everything up to the end.
    pub async fn rest(mut self) -> Vec<Event> {
        let mut all = Vec::new();
        while let Some(event) = self.next().await {
            all.push(event);
        }
        all
    }

    /// Everything up to and including the first event of this kind. An error on the way is none to wait behind.
    pub async fn until(&mut self, event: &str) -> Vec<Event> {
        let mut all = Vec::new();
        loop {
            let next = self.next().await.unwrap_or_else(|| panic!("the stream ended before {event}: {all:?}"));
            let found = next.event == event;
            assert!(found || next.event != "error", "{next:?}");
            all.push(next);
            if found {
                return all;
            }
        }
    }
}

fn parse(block: &str) -> Event {
    let mut event = Event::default();
    for line in block.lines().filter(|line| !line.is_empty()) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => event.comment = Some(value.to_owned()),
            "event" => event.event = value.to_owned(),
            "id" => event.id = Some(value.to_owned()),
            "data" => {
                assert!(event.data.is_none(), "data on one line only: {block}");
                event.data = Some(value.to_owned());
            }
            "retry" => event.retry = Some(value.parse().unwrap()),
            other => panic!("a field {other:?}: {block}"),
        }
    }
    event
}

/// The answer's text in a list of events of one turn.
pub fn text_of(events: &[Event]) -> String {
    let deltas = events.iter().filter(|e| e.event == "delta");
    deltas.map(|e| e.json()["text"].as_str().unwrap().to_owned()).collect()
}

/// The kinds of events, with repeats as one.
pub fn kinds(events: &[Event]) -> Vec<&str> {
    let mut kinds: Vec<_> = events.iter().filter(|e| !e.event.is_empty()).map(|e| e.event.as_str()).collect();
    kinds.dedup();
    kinds
}

/// What the Demo upstream answers.
pub fn demo_answer(text: &str) -> String {
    format!("You said: {text}\nThis is the demo model: it says the same every time.")
}
