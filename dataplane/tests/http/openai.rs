//! OpenAI's API, stateless and within sessions.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::{
    model::Model,
    support::{Answer, Server, Sse, ask, demo, demo_answer, slow, with},
};

const CHAT: &str = "/v1/chat/completions";

fn hello(extra: Value) -> Value {
    let mut body = json!({"model": "demo", "messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// The chunks of a stream, which has to end with `[DONE]`.
async fn chunks(stream: Sse) -> Vec<Value> {
    let mut events = stream.rest().await;
    events.retain(|e| e.comment.is_none());
    assert_eq!(events.pop().unwrap().data.as_deref(), Some("[DONE]"));
    events.iter().map(crate::support::Event::json).collect()
}

fn content(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_chat_completion_is_one_object() {
    let server = Server::quick();
    let answer = server.post(CHAT, hello(json!({"temperature": 0.1, "odd": {"x": 1}}))).await;
    assert!(!answer.header("x-request-id").is_empty());
    let answer = answer.json(StatusCode::OK).await;
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!("demo")));
    assert!(answer["created"].as_u64().unwrap() > 1_600_000_000);
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], demo_answer("hello"));
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("stop")));
    let usage = &answer["usage"];
    let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
}

#[tokio::test(start_paused = true)]
async fn a_chat_completion_is_streamed() {
    let server = Server::new(demo(Duration::from_millis(10), None));
    let body = hello(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let chunks = chunks(server.post(CHAT, body).await.sse()).await;
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(content(&chunks), demo_answer("hello"));
    assert!(chunks.len() > 5, "it came word by word");
    let ids: std::collections::HashSet<_> = chunks.iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1);
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk"));
    let (usage, rest) = chunks.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert!(usage["usage"]["total_tokens"].as_u64().unwrap() > 0);
    assert!(rest.iter().all(|c| c["usage"].is_null()));
    assert_eq!(rest.last().unwrap()["choices"][0]["finish_reason"], "stop");

    let plain = self::chunks(server.post(CHAT, hello(json!({"stream": true}))).await.sse()).await;
    assert!(plain.iter().all(|c| c.get("usage").is_none()), "nobody asked for usage");
}

#[tokio::test(start_paused = true)]
async fn text_completions_take_one_prompt_or_more() {
    let server = Server::quick();
    let body = json!({"model": "demo", "prompt": ["one", "two"]});
    let answer = server.post("/v1/completions", body.clone()).await.json(StatusCode::OK).await;
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["text"], demo_answer("one"));
    assert_eq!(
        (&answer["choices"][1]["text"], &answer["choices"][1]["index"]),
        (&json!(demo_answer("two")), &json!(1))
    );

    let mut body = body;
    body["stream"] = true.into();
    let chunks = chunks(server.post("/v1/completions", body).await.sse()).await;
    for (index, text) in [(0, "one"), (1, "two")] {
        let mut of = chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == index);
        let said: String = of.clone().filter_map(|c| c["text"].as_str()).collect();
        assert_eq!(said, demo_answer(text));
        assert_eq!(of.next_back().unwrap()["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn models_are_listed_and_unknown_ones_refused() {
    let server = Server::quick();
    let list = server.get("/v1/models").await.json(StatusCode::OK).await;
    assert_eq!(list["object"], "list");
    assert_eq!((&list["data"][0]["id"], &list["data"][0]["object"]), (&json!("demo"), &json!("model")));
    assert_eq!(server.get("/v1/models/demo").await.json(StatusCode::OK).await, list["data"][0]);
    server.get("/v1/models/a/b").await.openai_error(404, "not_found").await;

    let model = Model::start().await;
    let server = Server::new(model.settings());
    let one = server.get("/v1/models/tiny/model").await.json(StatusCode::OK).await;
    assert_eq!((&one["id"], &one["owned_by"]), (&json!("tiny/model"), &json!("local")));
    let unknown = hello(json!({"model": "other"}));
    let refused = server.post(CHAT, unknown.clone()).await;
    assert_eq!(refused.header("x-should-retry"), "false");
    assert_eq!(refused.openai_error(404, "not_found").await["param"], "model");
    server.post_with(CHAT, &[("x-session-id", "s")], unknown).await.openai_error(404, "not_found").await;
    server.get("/v1/sessions/s").await.problem(404, "not_found").await;
    assert_eq!(model.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn wrong_requests_have_openais_error() {
    let server = Server::quick();
    for (path, body, param) in [
        (CHAT, json!({"model": "demo"}), json!("messages")),
        (CHAT, json!({"model": "demo", "messages": []}), json!("messages")),
        (CHAT, json!({"model": "demo", "messages": "x"}), json!("messages")),
        (CHAT, hello(json!({"n": 2})), json!("n")),
        (CHAT, hello(json!({"stream": "yes"})), Value::Null),
        ("/v1/completions", json!({"model": "demo"}), json!("prompt")),
        ("/v1/completions", json!({"model": "demo", "prompt": [1, 2]}), json!("prompt")),
    ] {
        let answer = server.post(path, body.clone()).await;
        assert_eq!(answer.header("x-should-retry"), "false");
        let error = answer.openai_error(400, "invalid_request").await;
        assert_eq!((&error["param"], &error["type"]), (&param, &json!("invalid_request_error")), "{body}");
    }
    server.get("/v1/embeddings").await.openai_error(404, "not_found").await;
    server.get("/v1").await.openai_error(404, "not_found").await;
    let wrong = server.get(CHAT).await;
    assert_eq!(wrong.header("allow"), "POST");
    wrong.openai_error(405, "invalid_request").await;
}

async fn in_session(server: &Server, headers: &[(&str, &str)], extra: Value) -> Answer {
    let mut all = vec![("x-session-id", "s")];
    all.extend_from_slice(headers);
    server.post_with(CHAT, &all, hello(extra)).await
}

#[tokio::test(start_paused = true)]
async fn with_a_session_the_last_user_message_joins_it() {
    let server = Server::quick();
    let answer = in_session(&server, &[("idempotency-key", "k1")], json!({})).await;
    assert_eq!(answer.header("x-session-id"), "s");
    let first = answer.json(StatusCode::OK).await;
    assert_eq!(first["choices"][0]["message"]["content"], demo_answer("hello"));
    assert_eq!(first["id"], "chatcmpl-k1");

    // The same key is the same turn, another one is a new turn, none is a fresh one.
    let again = in_session(&server, &[("idempotency-key", "k1")], json!({})).await.json(StatusCode::OK).await;
    assert_eq!(again["choices"], first["choices"]);
    let other = in_session(&server, &[("idempotency-key", "k1")], json!({"temperature": 1})).await;
    assert_eq!(other.header("x-should-retry"), "false");
    other.openai_error(409, "turn_conflict").await;
    let streamed = chunks(in_session(&server, &[], json!({"stream": true})).await.sse()).await;
    assert_eq!(content(&streamed), demo_answer("hello"));

    let snapshot = server.get("/v1/sessions/s").await.json(StatusCode::OK).await;
    let turns = snapshot["turns"].as_array().unwrap();
    assert_eq!(turns.len(), 2);
    assert_eq!((&turns[0]["turn"], &turns[0]["text"]), (&json!("k1"), &json!("hello")));

    // A stream of a turn that has ended is told from the log.
    let replay = in_session(&server, &[("idempotency-key", "k1")], json!({"stream": true})).await;
    assert_eq!(content(&chunks(replay.sse()).await), demo_answer("hello"));
}

#[tokio::test(start_paused = true)]
async fn a_session_takes_neither_tools_nor_several_choices() {
    let server = Server::quick();
    for (extra, param) in [(json!({"tools": [{"type": "function"}]}), "tools"), (json!({"n": 2}), "n")] {
        let error = in_session(&server, &[], extra).await.openai_error(400, "invalid_request").await;
        assert_eq!(error["param"], param);
    }
    for wrong in [".", "", "a\tb"] {
        let answer = server.post_with(CHAT, &[("x-session-id", wrong)], hello(json!({}))).await;
        answer.openai_error(400, "invalid_request").await;
    }
    server.get("/v1/sessions/s").await.problem(404, "not_found").await;
}

#[tokio::test(start_paused = true)]
async fn within_a_session_the_answer_survives_the_client() {
    let server = Server::new(demo(Duration::from_millis(10), Some(2_000)));
    let mut stream = in_session(&server, &[("idempotency-key", "k")], json!({"stream": true})).await.sse();
    stream.next().await.unwrap();
    drop(stream);
    let events = server.events("s", "0").await.until("done").await;
    assert_eq!(crate::support::text_of(&events).len(), 2_000);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_answer_ends_as_stopped_and_a_deleted_one_with_an_error() {
    let server = Server::new(slow());
    let mut stream = in_session(&server, &[("idempotency-key", "k")], json!({"stream": true})).await.sse();
    stream.next().await.unwrap();
    server.cancel("s", "k").await.json(StatusCode::ACCEPTED).await;
    let chunks = chunks(stream).await;
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");

    let mut stream = in_session(&server, &[("idempotency-key", "k2")], json!({"stream": true})).await.sse();
    stream.next().await.unwrap();
    server.delete("s").await;
    let last = stream.rest().await.pop().unwrap();
    assert_eq!(last.json()["error"]["code"], "not_found");
}

#[tokio::test]
async fn what_the_model_server_says_passes_through_untouched() {
    let model = Model::start().await;
    let server = Server::new(model.settings());
    let body = json!({
        "model": "tiny/model", "messages": [{"role": "user", "content": "hello"}],
        "tools": [{"type": "function"}], "logprobs": true, "n": 2, "odd": {"x": [1]},
    });
    let answer = server.post(CHAT, body.clone()).await;
    assert_eq!(answer.status, StatusCode::OK);
    let text = String::from_utf8(answer.bytes().await.to_vec()).unwrap();
    assert!(
        text.starts_with(r#"{"id":"x",  "object":"chat.completion""#) && text.contains(r#""odd":[1, 2]"#),
        "{text}"
    );
    assert_eq!(model.last_body(), body);

    let mut streamed = body;
    streamed["stream"] = true.into();
    let events = server.post(CHAT, streamed.clone()).await.sse().rest().await;
    assert_eq!(
        events[0].data.as_deref().unwrap(),
        r#"{"choices":[{"delta":{"content":"hello"},"index":0}],"id":"x","object":"chunk","odd":true}"#
    );
    assert_eq!(events.last().unwrap().data.as_deref(), Some("[DONE]"));
    assert_eq!(model.last_body(), streamed);

    let text = json!({"model": "tiny/model", "prompt": "hello", "echo": false});
    let answer = server.post("/v1/completions", text.clone()).await;
    assert!(String::from_utf8(answer.bytes().await.to_vec()).unwrap().contains(r#""text":"whole""#));
    assert_eq!(model.last_body(), text);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_call() {
    let model = Model::start().await;
    let server = Server::new(model.settings());
    let body = json!({"model": "tiny/model", "stream": true, "messages": [{"role": "user", "content": "hang on"}]});
    let mut stream = server.post(CHAT, body).await.sse();
    stream.next().await.unwrap();
    drop(stream);
    model.abandoned().await;
}

#[tokio::test]
async fn a_model_server_that_dies_in_the_middle_is_told_in_the_stream() {
    let model = Model::start().await;
    let server = Server::new(model.settings());
    let ask =
        |text: &str| json!({"model": "tiny/model", "stream": true, "messages": [{"role": "user", "content": text}]});
    let mut stream = server.post(CHAT, ask("die between events")).await.sse();
    for word in ["die ", "between ", "events"] {
        assert_eq!(stream.next().await.unwrap().json()["choices"][0]["delta"]["content"], word);
    }
    model.kill();
    let rest = stream.rest().await;
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!(rest[0].json()["error"]["code"], "upstream_unavailable");

    // Inside an event nothing can be told; the client sees that its answer is cut off.
    let mut answer = server.post(CHAT, ask("die inside")).await;
    assert_eq!(answer.status, StatusCode::OK);
    answer.body.frame().await.unwrap().unwrap();
    model.kill();
    answer.body.collect().await.unwrap_err();
}

#[tokio::test]
async fn a_model_server_that_cannot_answer_is_told_in_the_status() {
    let model = Model::start().await;
    let server = Server::new(model.settings());
    let wished = async |text: &str, stream: bool| {
        let body = json!({"model": "tiny/model", "stream": stream, "messages": [{"role": "user", "content": text}]});
        server.post(CHAT, body).await
    };
    for stream in [false, true] {
        wished("status 500", stream).await.openai_error(502, "upstream_unavailable").await;
    }
    // In a session as well; a client without a key may try again, one with a key would meet the same turn.
    let body = json!({"model": "tiny/model", "messages": [{"role": "user", "content": "status 500"}]});
    let free = server.post_with(CHAT, &[("x-session-id", "s")], body.clone()).await;
    assert_eq!(free.header("x-should-retry"), "");
    free.openai_error(502, "upstream_unavailable").await;
    let named = server.post_with(CHAT, &[("x-session-id", "s"), ("idempotency-key", "k")], body).await;
    assert_eq!(named.header("x-should-retry"), "false");
    named.openai_error(502, "upstream_unavailable").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_leaves_takes_no_calls() {
    let server = Server::quick();
    server.gateway.start_drain();
    server.post(CHAT, hello(json!({}))).await.json(StatusCode::OK).await;
    tokio::time::advance(Duration::from_secs(6)).await;
    let refused = server.post(CHAT, hello(json!({}))).await;
    assert_eq!(refused.header("retry-after"), "1");
    refused.openai_error(503, "draining").await;
    let request = with(ask(Method::GET, "/v1/models"), &[]).body(axum::body::Body::empty()).unwrap();
    assert_eq!(server.send(request).await.status, StatusCode::OK);
}
