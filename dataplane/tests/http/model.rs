//! A small model server that does what the last user message says.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use chatgateway_config::{Settings, UpstreamKind};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

/// See the module. It stops with the test's runtime.
pub struct Model {
    url: String,
    state: Arc<Seen>,
}

struct Seen {
    calls: AtomicUsize,
    bodies: Mutex<Vec<Value>>,
    /// Lets an answer die.
    kill: Notify,
    /// How many calls their clients have left before the end.
    abandoned: watch::Sender<usize>,
}

impl Model {
    pub async fn start() -> Self {
        let state = Arc::new(Seen {
            calls: AtomicUsize::new(0),
            bodies: Mutex::default(),
            kill: Notify::new(),
            abandoned: watch::Sender::new(0),
        });
        let router = Router::new()
            .route("/v1/chat/completions", post(chat))
            .route("/v1/completions", post(text))
            .with_state(state.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, state }
    }

    /// Settings of a gateway in front of it.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.upstreams[0].name = "local".into();
        settings.upstreams[0].kind = UpstreamKind::OpenAi {
            url: self.url.clone(),
            model: "tiny/model".into(),
            api_key_file: None,
            prefill: false,
            prompt_format: None,
        };
        settings
    }

    pub fn calls(&self) -> usize {
        self.state.calls.load(Ordering::SeqCst)
    }

    /// What it was asked last.
    pub fn last_body(&self) -> Value {
        self.state.bodies.lock().last().cloned().unwrap_or_default()
    }

    /// Lets an answer die that waits for it.
    pub fn kill(&self) {
        self.state.kill.notify_one();
    }

    /// Waits until a client has left a call before its end.
    pub async fn abandoned(&self) {
        let mut abandoned = self.state.abandoned.subscribe();
        let left = abandoned.wait_for(|count| *count > 0);
        tokio::time::timeout(Duration::from_secs(10), left)
            .await
            .expect("the call goes on without its client")
            .unwrap();
    }
}

async fn chat(State(seen): State<Arc<Seen>>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let messages = body["messages"].as_array().cloned().unwrap_or_default();
    let last = messages.iter().rev().find(|m| m["role"] == "user").cloned().unwrap_or_default();
    let said = last["content"].as_str().unwrap_or_default().to_owned();
    seen.answer(body, &said, true)
}

async fn text(State(seen): State<Arc<Seen>>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let said = body["prompt"].as_str().unwrap_or_default().to_owned();
    seen.answer(body, &said, false)
}

impl Seen {
    fn answer(self: &Arc<Self>, body: Value, said: &str, chat: bool) -> Response {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.bodies.lock().push(body.clone());
        if let Some(status) = said.strip_prefix("status ") {
            let error = json!({"error": {"message": "as you wish", "type": "odd", "param": null, "code": "wished"}});
            return (StatusCode::from_u16(status.parse().unwrap()).unwrap(), axum::Json(error)).into_response();
        }
        if body["stream"] != json!(true) {
            // Spaces and an unknown field: what passes through untouched keeps them.
            let message =
                if chat { r#""message":{"role":"assistant","content":"whole"}"# } else { r#""text":"whole""# };
            let body = format!(
                r#"{{"id":"x",  "object":"chat.completion","created":1,"model":"tiny/model","odd":[1, 2],"choices":[{{"index":0,{message},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}}}"#
            );
            return ([(header::CONTENT_TYPE, "application/json")], body).into_response();
        }
        // A part of an answer at the end is to be continued.
        let continues =
            body["messages"].as_array().and_then(|list| list.last()).is_some_and(|m| m["role"] == "assistant");
        let answer = if continues { " and so on" } else { said };
        let mut chunks: Vec<String> = answer.split_inclusive(' ').map(|word| chunk(word, chat)).collect();
        let breaks_off = said.starts_with("break") && self.calls.load(Ordering::SeqCst) == 1;
        let (hangs, dies) = (said.starts_with("hang"), said.starts_with("die") || breaks_off);
        if !hangs && !dies {
            chunks.push(
                r#"{"id":"x","odd":true,"choices":[{"index":0,"delta":{},"text":"","finish_reason":"stop"}]}"#.into(),
            );
            if body["stream_options"]["include_usage"] == json!(true) {
                chunks.push(
                    r#"{"id":"x","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}"#
                        .into(),
                );
            }
            chunks.push("[DONE]".into());
        }
        let guard = Abandoned { seen: self.clone(), complete: false };
        let chunks = stream::iter(chunks.into_iter().map(Some));
        let seen = self.clone();
        let tail = stream::once(async move {
            if dies {
                seen.kill.notified().await;
            }
            if hangs {
                std::future::pending::<()>().await;
            }
            None
        });
        let inside = said == "die inside";
        let data = chunks.chain(tail).scan(guard, move |guard, chunk| {
            guard.complete |= chunk.is_none();
            let piece = match chunk {
                Some(chunk) => Some(Ok(format!("data: {chunk}{}", if inside { "" } else { "\n\n" }))),
                None => dies.then(|| Err(io::Error::other("killed"))),
            };
            std::future::ready(piece)
        });
        ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(data)).into_response()
    }
}

fn chunk(word: &str, chat: bool) -> String {
    let choice = if chat { json!({"index": 0, "delta": {"content": word}}) } else { json!({"index": 0, "text": word}) };
    json!({"id": "x", "object": "chunk", "odd": true, "choices": [choice]}).to_string()
}

/// Counts an answer that is dropped before its end.
struct Abandoned {
    seen: Arc<Seen>,
    complete: bool,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if !self.complete {
            self.seen.abandoned.send_modify(|count| *count += 1);
        }
    }
}
