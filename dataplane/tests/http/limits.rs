//! Rate limits as clients of the HTTP routes meet them.

use std::time::Duration;

use axum::http::StatusCode;
use chatgateway_config::Settings;
use serde_json::{Value, json};

use crate::{
    model::Model,
    support::{Answer, Server, demo, kinds, text_of},
};

const CHAT: &str = "/v1/chat/completions";

fn limited(mut settings: Settings, limits: &str) -> Settings {
    settings.rate_limits = Settings::parse(&format!("rateLimits: {limits}")).unwrap().rate_limits;
    settings
}

/// Answers at once, within limits.
fn quick(limits: &str) -> Server {
    Server::new(limited(demo(Duration::ZERO, None), limits))
}

async fn turn(server: &Server, session: &str, turn: &str, options: Value) -> Answer {
    let body = json!({"turn": turn, "text": "hello", "options": options});
    server.post(&format!("/v1/sessions/{session}/turns"), body).await
}

/// What is left of a unit, as an answer tells.
fn left(answer: &Answer, unit: &str) -> u64 {
    answer.header(&format!("x-ratelimit-remaining-{unit}")).parse().unwrap()
}

/// What is left of the tokens for now. (Asking takes one request, and no tokens but those of one prompt and one answer.)
async fn tokens_left(server: &Server) -> u64 {
    let answer = turn(server, "ask", &uuid::Uuid::new_v4().to_string(), json!({"max_tokens": 1})).await;
    assert_eq!(answer.status, StatusCode::OK);
    left(&answer, "tokens")
}

fn counter(server: &Server, name: &str) -> u64 {
    let text = server.gateway.metrics.to_text();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("chatgateway_rate_limit_{name} ")));
    line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn without_limits_nothing_is_told() {
    let answer = turn(&Server::quick(), "s", "t", json!({})).await;
    assert!(answer.headers.keys().all(|name| !name.as_str().contains("ratelimit")));
}

#[tokio::test(start_paused = true)]
async fn a_limit_refuses_says_when_and_keeps_its_word() {
    let server = quick("[{per: User, requestsPerMinute: 60, burst: 2}]");
    let first = turn(&server, "s", "1", json!({})).await;
    assert_eq!(first.status, StatusCode::OK);
    assert_eq!(first.header("x-ratelimit-limit-requests"), "2");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    assert_eq!(first.header("x-ratelimit-reset-requests"), "1s");
    assert_eq!(first.header("x-ratelimit-limit-tokens"), "");
    assert_eq!(turn(&server, "s", "2", json!({})).await.status, StatusCode::OK);
    tokio::time::advance(Duration::from_millis(400)).await;
    let refused = turn(&server, "s", "3", json!({})).await;
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
    assert_eq!(refused.header("x-ratelimit-reset-requests"), "1.6s");
    let problem = refused.problem(429, "rate_limited").await;
    assert_eq!(
        (&problem["retry_after_ms"], &problem["turn"], &problem["retryable"]),
        (&json!(600), &json!("3"), &json!(true))
    );
    assert!(problem["detail"].as_str().unwrap().contains("1 requests of a user a second"), "{problem}");
    // A refused turn is not in the log; after the time that was told it is admitted under the same id.
    let history = server.get("/v1/sessions/s").await.json(StatusCode::OK).await;
    assert_eq!(history["turns"].as_array().unwrap().len(), 2);
    tokio::time::advance(Duration::from_millis(600)).await;
    assert_eq!(turn(&server, "s", "3", json!({})).await.status, StatusCode::OK);
    assert_eq!(counter(&server, "refusals_total{per=\"user\",unit=\"requests\"}"), 1);
    assert_eq!(counter(&server, "decisions_total"), 4);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_repeated_is_neither_counted_nor_refused() {
    let server = quick("[{per: User, requestsPerMinute: 60, burst: 2}]");
    for _ in 0..5 {
        let answer = turn(&server, "s", "1", json!({})).await;
        assert_eq!((answer.status, left(&answer, "requests")), (StatusCode::OK, 1));
    }
    turn(&server, "s", "2", json!({})).await;
    let repeat = turn(&server, "s", "1", json!({})).await;
    assert_eq!((repeat.status, left(&repeat, "requests")), (StatusCode::OK, 0));
    assert_eq!(turn(&server, "s", "3", json!({})).await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_ended_before_anybody_remembers_is_not_counted_again() {
    let mut settings = limited(demo(Duration::ZERO, None), "[{per: User, requestsPerMinute: 1, burst: 10}]");
    settings.sessions.ttl = Duration::from_secs(3_600);
    let server = Server::new(settings);
    turn(&server, "s", "1", json!({})).await;
    tokio::time::advance(Duration::from_secs(1_200)).await;
    let repeat = turn(&server, "s", "1", json!({})).await.json(StatusCode::OK).await;
    assert_eq!(repeat["duplicate"], true);
    assert_eq!(left(&turn(&server, "s", "2", json!({})).await, "requests"), 9);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_is_known_from_long_ago_is_found_where_new_ones_are_refused() {
    let mut settings = limited(demo(Duration::ZERO, None), "[{per: User, requestsPerMinute: 1, burst: 1}]");
    settings.sessions.ttl = Duration::from_secs(3_600);
    let server = Server::new(settings);
    turn(&server, "s", "1", json!({})).await;
    tokio::time::advance(Duration::from_secs(1_200)).await;
    assert_eq!(turn(&server, "s", "2", json!({})).await.status, StatusCode::OK);
    let repeat = turn(&server, "s", "1", json!({})).await.json(StatusCode::OK).await;
    assert_eq!(repeat["duplicate"], true);
    let refused = turn(&server, "s", "3", json!({})).await;
    assert_eq!((left(&refused, "requests"), refused.header("retry-after")), (0, "60"));
    refused.problem(429, "rate_limited").await;
}

#[tokio::test(start_paused = true)]
async fn what_the_store_refuses_gives_its_tokens_back() {
    let server = quick("[{per: User, tokensPerMinute: 1, burst: 100}, {per: User, requestsPerMinute: 1, burst: 100}]");
    let before = tokens_left(&server).await;
    let gap = json!({"turn": "t", "text": "hello", "seq": 7, "options": {"max_tokens": 50}});
    let refused = server.post("/v1/sessions/s/turns", gap).await;
    assert!(left(&refused, "tokens") < before - 40, "this is how it stood when it was asked");
    refused.problem(409, "seq_gap").await;
    assert!(tokens_left(&server).await > before - 40);
}

#[tokio::test(start_paused = true)]
async fn several_limits_are_all_or_none_and_the_strictest_is_shown() {
    let server = quick(
        "[{per: Gateway, requestsPerMinute: 60, burst: 5}, {per: Session, requestsPerMinute: 60, burst: 2}, \
          {per: Address, requestsPerMinute: 60, burst: 50}]",
    );
    for n in 0..2 {
        let answer = turn(&server, "a", &n.to_string(), json!({})).await;
        assert_eq!((left(&answer, "requests"), answer.header("x-ratelimit-limit-requests")), (1 - n, "2"));
    }
    for _ in 0..10 {
        assert_eq!(turn(&server, "a", "2", json!({})).await.status, StatusCode::TOO_MANY_REQUESTS);
    }
    // The refused ones took nothing from the gateway's.
    for n in 0..2 {
        assert_eq!(turn(&server, "b", &n.to_string(), json!({})).await.status, StatusCode::OK);
    }
    let last = turn(&server, "c", "0", json!({})).await;
    assert_eq!((left(&last, "requests"), last.header("x-ratelimit-limit-requests")), (0, "5"));
    let problem = turn(&server, "c", "1", json!({})).await.problem(429, "rate_limited").await;
    assert!(problem["detail"].as_str().unwrap().starts_with("the limit of 1 requests a second is"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_whose_tokens_are_used_up_stops_and_keeps_what_it_said() {
    let settings = demo(Duration::from_millis(20), Some(8_000));
    let server = Server::new(limited(settings, "[{per: User, tokensPerMinute: 60, burst: 200}]"));
    let mut stream = server.turn_stream("s", "t", "hello").await;
    let mut told = Vec::new();
    while let Some(event) = stream.next().await {
        told.push(event);
    }
    let told: Vec<_> = told.into_iter().filter(|event| !event.event.is_empty()).collect();
    assert_eq!(kinds(&told), ["accepted", "turn", "delta", "error"]);
    let end = told.last().unwrap();
    assert!(end.id.is_some(), "it is the turn's own end");
    assert_eq!(end.json()["code"], "rate_limited");
    assert!(end.json()["message"].as_str().unwrap().contains("the limit on tokens"), "{end:?}");
    // Words are a token or more, and some came in meanwhile.
    let words = text_of(&told).split_whitespace().count();
    assert!((100..=220).contains(&words), "{words} words of 200 tokens");
    assert_eq!(server.gateway.running_turns(), 0);
    assert_eq!(counter(&server, "stopped_answers_total"), 1);
    // Another turn is refused, and admitted when tokens have come in.
    let refused = turn(&server, "s", "u", json!({"max_tokens": 50})).await;
    let wait = refused.problem(429, "rate_limited").await["retry_after_ms"].as_u64().unwrap();
    assert!((40_000..60_000).contains(&wait), "about fifty at one a second: {wait} ms");
    tokio::time::advance(Duration::from_millis(wait)).await;
    assert_eq!(server.turn_stream("s", "u", "again").await.until("delta").await.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_answer_is_a_failed_turn_for_who_waits_for_all_of_it() {
    let settings = demo(Duration::from_millis(1), Some(8_000));
    let server = Server::new(limited(settings, "[{per: User, tokensPerMinute: 60, burst: 200}]"));
    let problem = turn(&server, "s", "t", json!({})).await.problem(429, "rate_limited").await;
    assert_eq!(problem["retryable"], false, "that turn has ended");
}

#[tokio::test(start_paused = true)]
async fn what_an_answer_did_not_use_comes_back_however_it_ends() {
    let settings = demo(Duration::from_millis(100), Some(4_000));
    let server = Server::new(limited(settings, "[{per: User, tokensPerMinute: 1, burst: 10000}]"));
    let body = json!({"turn": "t", "text": "hello", "options": {"max_tokens": 5_000}});
    let path = "/v1/sessions/s/turns";
    let mut stream = server.post_with(path, &[("accept", "text/event-stream")], body).await.sse();
    stream.until("delta").await;
    let taken = turn(&server, "other", "refused", json!({"max_tokens": 6_000})).await;
    assert!(left(&taken, "tokens") < 5_000);
    taken.problem(429, "rate_limited").await;
    server.cancel("s", "t").await;
    stream.until("cancelled").await;
    let after = turn(&server, "other", "admitted", json!({"max_tokens": 6_000})).await;
    // Its own 6,000 are spent, until it ends.
    assert!((3_900..4_000).contains(&left(&after, "tokens")), "{}", left(&after, "tokens"));
}

#[tokio::test(start_paused = true)]
async fn what_a_turn_used_is_what_the_model_server_counted() {
    let model = Model::start().await;
    let server = Server::new(limited(model.settings(), "[{per: User, tokensPerMinute: 1, burst: 1000}]"));
    let ask = |n: u32| json!({"turn": n.to_string(), "text": "some words", "options": {"max_tokens": 1}});
    let before = server.post("/v1/sessions/s/turns", ask(0)).await;
    let after = server.post("/v1/sessions/u/turns", ask(1)).await;
    assert_eq!(before.status, StatusCode::OK);
    // Seven by its count; three of the prompt and one of the answer were taken.
    assert_eq!(left(&before, "tokens") - left(&after, "tokens"), 7);
}

#[tokio::test(start_paused = true)]
async fn more_than_any_bucket_holds_is_too_large() {
    let server = quick("[{per: User, tokensPerMinute: 600, burst: 100}]");
    let problem = turn(&server, "s", "t", json!({"max_tokens": 100})).await.problem(413, "too_large").await;
    assert!(problem["detail"].as_str().unwrap().contains("max_tokens"), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn the_dialog_path_has_limits_too() {
    let server = quick("[{per: Session, requestsPerMinute: 60, burst: 1}]");
    let chat = |seq: u64| server.post("/chat.Stream/chat", json!({"dialogId": "d", "seq": seq, "text": "hello"}));
    let first = chat(1).await;
    assert_eq!((first.status, left(&first, "requests")), (StatusCode::OK, 0));
    assert_eq!(chat(1).await.status, StatusCode::OK, "a retry of it");
    let refused = chat(2).await;
    assert_eq!((refused.header("retry-after"), left(&refused, "requests")), ("1", 0));
    refused.problem(429, "rate_limited").await;
}

fn hello(extra: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hello there"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test(start_paused = true)]
async fn stateless_requests_are_limited_in_openais_words() {
    let server =
        quick("[{per: Address, requestsPerMinute: 60, burst: 2}, {per: Gateway, tokensPerMinute: 60, burst: 1000}]");
    let first = server.post(CHAT, hello(json!({"max_tokens": 100}))).await;
    assert_eq!(first.status, StatusCode::OK);
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    assert_eq!((first.header("x-ratelimit-limit-tokens"), left(&first, "tokens")), ("1000", 889));
    drop(first);
    let streamed = server.post(CHAT, hello(json!({"stream": true, "max_tokens": 100}))).await;
    assert_eq!(left(&streamed, "requests"), 0);
    // What the first one did not use has come back: it had 10 words by the model's count, and two of the prompt.
    assert!((865..889).contains(&left(&streamed, "tokens")), "{}", left(&streamed, "tokens"));
    streamed.sse().rest().await;
    let refused = server.post(CHAT, hello(json!({}))).await;
    assert_eq!((refused.header("retry-after"), refused.header("x-should-retry")), ("1", ""));
    let error = refused.openai_error(429, "rate_limited").await;
    assert_eq!(error["type"], "rate_limit_error");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(server.post(CHAT, hello(json!({}))).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_turn_of_openais_path_has_its_headers() {
    let server = quick("[{per: Session, requestsPerMinute: 60, burst: 1}]");
    let headers = [("x-session-id", "s"), ("idempotency-key", "k")];
    for _ in 0..2 {
        let answer = server.post_with(CHAT, &headers, hello(json!({}))).await;
        assert_eq!((answer.status, left(&answer, "requests")), (StatusCode::OK, 0));
    }
    let other = [("x-session-id", "s")];
    server.post_with(CHAT, &other, hello(json!({"stream": true}))).await.openai_error(429, "rate_limited").await;
}

#[tokio::test(start_paused = true)]
async fn a_stateless_stream_ends_with_an_error_when_its_tokens_are_used_up() {
    let settings = demo(Duration::from_millis(1), Some(8_000));
    let server = Server::new(limited(settings, "[{per: User, tokensPerMinute: 60, burst: 200}]"));
    let events = server.post(CHAT, hello(json!({"stream": true}))).await.sse().rest().await;
    let last = events.last().unwrap().json();
    assert_eq!(last["error"]["code"], "rate_limited", "{last}");
    assert!(events.len() > 50);
    let whole = server.post(CHAT, hello(json!({"max_tokens": 100}))).await;
    whole.openai_error(429, "rate_limited").await;
}

#[tokio::test]
async fn what_passes_through_is_counted_by_the_model_servers_word() {
    let model = Model::start().await;
    let server = Server::new(limited(model.settings(), "[{per: User, tokensPerMinute: 1, burst: 1000}]"));
    let ask = |extra: Value| server.post(CHAT, hello(extra));
    let whole = ask(json!({"max_tokens": 100})).await;
    let before = left(&whole, "tokens");
    assert_eq!(whole.status, StatusCode::OK);
    whole.bytes().await;
    // Two were used, of 10 and 100 that were taken.
    let streamed = ask(json!({"max_tokens": 100, "stream": true, "stream_options": {"include_usage": true}})).await;
    assert_eq!(left(&streamed, "tokens"), before - 2);
    streamed.sse().rest().await;
    let next = ask(json!({"max_tokens": 100})).await;
    assert_eq!(left(&next, "tokens"), before - 2 - 7);
    next.bytes().await;
    // An error of the model server costs nothing.
    let before = left(&ask(json!({"max_tokens": 100})).await, "tokens");
    let failed = json!({"messages": [{"role": "user", "content": "status 400"}], "max_tokens": 100});
    assert_eq!(server.post(CHAT, failed).await.status, StatusCode::BAD_REQUEST);
    let after = left(&ask(json!({"max_tokens": 100})).await, "tokens");
    assert!(before - after <= 20, "{before} {after}");
}

#[tokio::test]
async fn a_client_that_leaves_gets_the_rest_back() {
    let model = Model::start().await;
    let server = Server::new(limited(model.settings(), "[{per: User, tokensPerMinute: 1, burst: 1000}]"));
    let body = json!({"messages": [{"role": "user", "content": "hang on a while"}], "stream": true, "max_tokens": 900});
    let mut stream = server.post(CHAT, body).await.sse();
    stream.next().await.unwrap();
    server.post(CHAT, hello(json!({"max_tokens": 500}))).await.openai_error(429, "rate_limited").await;
    drop(stream);
    model.abandoned().await;
    let after = server.post(CHAT, hello(json!({"max_tokens": 500}))).await;
    assert_eq!(after.status, StatusCode::OK);
    assert!(left(&after, "tokens") > 450, "{}", left(&after, "tokens"));
}

#[tokio::test]
async fn what_passes_through_stops_when_its_tokens_are_used_up() {
    let model = Model::start().await;
    let server = Server::new(limited(model.settings(), "[{per: User, tokensPerMinute: 1, burst: 90}]"));
    let words = "word ".repeat(40);
    let body = json!({"messages": [{"role": "user", "content": words}], "stream": true});
    // Some sixty of the prompt leave thirty for the answer, which has forty.
    let events = server.post(CHAT, body.clone()).await;
    assert_eq!(events.status, StatusCode::OK);
    let events = events.sse().rest().await;
    assert_eq!(events.last().unwrap().json()["error"]["code"], "rate_limited");
    assert!((1..40).contains(&events.len()), "{}", events.len());
}

#[tokio::test(start_paused = true)]
async fn limits_that_change_apply_at_once() {
    let server = quick("[{per: User, requestsPerMinute: 60, burst: 10}]");
    for n in 0..4 {
        turn(&server, "s", &n.to_string(), json!({})).await;
    }
    let change = |limits: &str| server.gateway.apply(limited(demo(Duration::ZERO, None), limits)).unwrap();
    change("[{per: User, requestsPerMinute: 60, burst: 3}]");
    let answer = turn(&server, "s", "a", json!({})).await;
    assert_eq!((left(&answer, "requests"), answer.header("x-ratelimit-limit-requests")), (2, "3"));
    change("[{per: User, requestsPerMinute: 60, burst: 100}]");
    assert_eq!(left(&turn(&server, "s", "b", json!({})).await, "requests"), 1);
    change("[]");
    assert_eq!(turn(&server, "s", "c", json!({})).await.header("x-ratelimit-limit-requests"), "");
}
