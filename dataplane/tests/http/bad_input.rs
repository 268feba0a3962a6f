//! Requests that are wrong, and those that only look so.

use std::{convert::Infallible, io, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{Method, StatusCode},
};
use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Answer, Server, ask, demo, with};

const TURNS: &str = "/v1/sessions/s/turns";

async fn post_raw(server: &Server, path: &str, kind: Option<&str>, body: impl Into<Body>) -> Answer {
    let headers: Vec<_> = kind.map(|k| ("content-type", k)).into_iter().collect();
    server.send(with(ask(Method::POST, path), &headers).body(body.into()).unwrap()).await
}

#[tokio::test(start_paused = true)]
async fn only_json_is_taken() {
    let server = Server::quick();
    let body = r#"{"turn": "t", "text": "hello"}"#;
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("multipart/form-data")] {
        let problem = post_raw(&server, TURNS, kind, body).await.problem(415, "invalid_request").await;
        assert!(problem["detail"].as_str().unwrap().contains("application/json"), "{problem}");
    }
    post_raw(&server, "/v1/chat/completions", Some("text/plain"), body)
        .await
        .openai_error(415, "invalid_request")
        .await;
    let answer = post_raw(&server, TURNS, Some("application/json; charset=utf-8"), body).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn malformed_bodies_are_refused() {
    let server = Server::quick();
    let deep = format!(r#"{{"turn":"t","text":"x","options":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let bodies: [&[u8]; 9] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\"text\"",
        br#"{"turn":"t","text":"x"} more"#,
        br#"{"turn":"t","turn":"u","text":"x"}"#,
        b"{\"turn\":\"t\",\"text\":\"\xff\"}",
        deep.as_bytes(),
    ];
    for body in bodies {
        for path in [TURNS, "/chat.Stream/chat"] {
            let answer = post_raw(&server, path, Some("application/json"), body.to_vec()).await;
            answer.problem(400, "invalid_request").await;
        }
        let answer = post_raw(&server, "/v1/chat/completions", Some("application/json"), body.to_vec()).await;
        answer.openai_error(400, "invalid_request").await;
    }
    server.get("/v1/sessions/s").await.problem(404, "not_found").await;
}

#[tokio::test(start_paused = true)]
async fn bodies_are_bounded_whether_announced_or_not() {
    let mut settings = demo(Duration::ZERO, None);
    settings.limits.max_body_bytes = 2_000;
    let server = Server::new(settings);
    let body = |size: usize| {
        let frame = json!({"turn": "t", "text": ""}).to_string();
        frame.replace(r#""text":"""#, &format!(r#""text":"{}""#, "x".repeat(size - frame.len())))
    };
    assert_eq!(post_raw(&server, TURNS, Some("application/json"), body(2_000)).await.status, StatusCode::OK);
    let whole = post_raw(&server, TURNS, Some("application/json"), body(2_001)).await;
    whole.problem(413, "too_large").await;
    let pieces = stream::iter(body(2_001).into_bytes().chunks(100).map(Bytes::copy_from_slice).collect::<Vec<_>>());
    let piecewise = Body::from_stream(pieces.map(Ok::<_, Infallible>));
    post_raw(&server, TURNS, Some("application/json"), piecewise).await.problem(413, "too_large").await;

    // A body without end is read on for a moment only.
    let start = Instant::now();
    let endless = Body::from_stream(
        stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b' '; 1000]))).then(async |piece| {
            tokio::time::sleep(Duration::from_millis(1)).await;
            piece
        }),
    );
    let answer = post_raw(&server, "/v1/chat/completions", Some("application/json"), endless).await;
    answer.openai_error(413, "too_large").await;
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn bodies_that_stop_in_the_middle_are_given_up() {
    let server = Server::quick();
    let start = Instant::now();
    let head = stream::once(std::future::ready(Ok::<_, io::Error>(Bytes::from_static(b"{\"turn\":"))));
    let stalled = Body::from_stream(head.chain(stream::pending()));
    post_raw(&server, TURNS, Some("application/json"), stalled).await.problem(408, "invalid_request").await;
    assert_eq!(start.elapsed(), Duration::from_secs(10));

    // One byte every few seconds does not get around it.
    let start = Instant::now();
    let drip = Body::from_stream(stream::repeat(()).then(|()| async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok::<_, io::Error>(Bytes::from_static(b" "))
    }));
    post_raw(&server, TURNS, Some("application/json"), drip).await.problem(408, "invalid_request").await;
    assert_eq!(start.elapsed(), Duration::from_secs(60));

    let broken = stream::iter([Ok(Bytes::from_static(b"{\"turn\":")), Err(io::Error::other("connection lost"))]);
    let answer = post_raw(&server, TURNS, Some("application/json"), Body::from_stream(broken)).await;
    answer.problem(400, "invalid_request").await;
}

#[tokio::test(start_paused = true)]
async fn a_path_says_what_it_takes() {
    let server = Server::quick();
    for (method, path, allow) in [
        (Method::GET, TURNS, "POST"),
        (Method::PUT, "/v1/sessions/s", "GET,HEAD,DELETE"),
        (Method::POST, "/v1/sessions/s/events", "GET,HEAD"),
        (Method::GET, "/v1/sessions/s/turns/t/cancel", "POST"),
        (Method::DELETE, "/chat.Stream/chat", "POST"),
    ] {
        let answer = server.send(ask(method.clone(), path).body(Body::empty()).unwrap()).await;
        assert_eq!(answer.header("allow"), allow, "{method} {path}");
        answer.problem(405, "invalid_request").await;
        let options = server.send(ask(Method::OPTIONS, path).body(Body::empty()).unwrap()).await;
        assert_eq!((options.status, options.header("allow")), (StatusCode::NO_CONTENT, allow));
    }
    for path in ["/nothing", "/v1/sessions", "/v1/sessions/s/other", "/v1/sessions/s/turns/t", "/v1/sessions/a/b/c/d/e"]
    {
        server.get(path).await.problem(404, "not_found").await;
    }
}

#[tokio::test(start_paused = true)]
async fn other_sites_pages_may_do_what_is_configured_and_no_more() {
    let mut settings = demo(Duration::ZERO, None);
    settings.limits.allowed_origins = vec!["https://chat.example".into()];
    let server = Server::new(settings);
    let preflight = async |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,x-session-id"),
        ];
        server.send(with(ask(Method::OPTIONS, TURNS), &headers).body(Body::empty()).unwrap()).await
    };
    let good = preflight("https://chat.example").await;
    assert_eq!(good.status, StatusCode::NO_CONTENT);
    assert_eq!(good.header("access-control-allow-origin"), "https://chat.example");
    assert_eq!(good.header("access-control-allow-headers"), "content-type,x-session-id");
    assert!(good.header("access-control-allow-methods").contains("POST"));
    let bad = preflight("https://evil.example").await;
    assert!(!bad.headers.contains_key("access-control-allow-origin"));
    assert!(!bad.headers.contains_key("access-control-allow-methods"));

    let read = async |origin: &str| server.get_with("/v1/models", &[("origin", origin)]).await;
    let good = read("https://chat.example").await;
    assert_eq!(good.header("access-control-allow-origin"), "https://chat.example");
    assert_eq!(good.header("vary"), "origin");
    assert!(!read("https://evil.example").await.headers.contains_key("access-control-allow-origin"));
    // Errors can be read too.
    let error = server.get_with("/v1/sessions/none", &[("origin", "https://chat.example")]).await;
    assert_eq!(error.header("access-control-allow-origin"), "https://chat.example");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_says_when_to_try_again() {
    let server = Server::new(crate::support::slow());
    for i in 0..9 {
        let answer = server
            .post_with(TURNS, &[("prefer", "respond-async")], json!({"turn": format!("t{i}"), "text": "much"}))
            .await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
    }
    let busy = server.post(TURNS, json!({"turn": "t9", "text": "much"})).await;
    let seconds: u64 = busy.header("retry-after").parse().unwrap();
    let problem = busy.problem(429, "session_busy").await;
    assert_eq!(problem["retryable"], true);
    assert_eq!(problem["retry_after_ms"].as_u64().unwrap().div_ceil(1_000), seconds);
}
