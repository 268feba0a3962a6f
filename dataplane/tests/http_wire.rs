//! The HTTP listener byte by byte, on real connections.

#![allow(clippy::unwrap_used)]

mod harness;

use std::net::SocketAddr;

use harness::{PATIENCE, QUICK, Server, start};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

/// What the server says to these bytes, up to its end.
async fn say(to: SocketAddr, bytes: &str, half_close: bool) -> String {
    let mut socket = TcpStream::connect(to).await.unwrap();
    socket.write_all(bytes.as_bytes()).await.unwrap();
    if half_close {
        socket.shutdown().await.unwrap();
    }
    let mut answer = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("the server closes").unwrap();
    String::from_utf8(answer).unwrap()
}

fn post(path: &str, more: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{more}\r\n{body}")
}

const TURNS: &str = "/v1/sessions/s/turns";
const TURN: &str = r#"{"turn":"t","text":"hello"}"#;

#[tokio::test]
async fn bodies_that_are_cut_off_or_garbled_are_refused_and_the_connection_ends() {
    let server = start(QUICK);
    for (more, body) in [("content-length: 100\r\n", TURN), ("transfer-encoding: chunked\r\n", "1b\r\n{\"turn\"")] {
        let answer = say(server.http, &post(TURNS, more, body), true).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("application/problem+json") && answer.contains("invalid_request"), "{answer}");
    }
    let answer = say(server.http, &post(TURNS, "transfer-encoding: chunked\r\n", "zz\r\n"), false).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn a_body_that_is_announced_too_large_is_refused_before_it_is_sent() {
    let server = start(QUICK);
    let head = post(TURNS, "content-length: 99999999\r\nexpect: 100-continue\r\n", "");
    let answer = say(server.http, &head, false).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("\"too_large\""), "{answer}");

    let more = format!("content-length: {}\r\nexpect: 100-continue\r\nconnection: close\r\n", TURN.len());
    let answer = say(server.http, &post(TURNS, &more, TURN), false).await;
    assert!(answer.starts_with("HTTP/1.1 100 ") && answer.contains("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn requests_on_one_connection_are_answered_in_order_also_after_an_error() {
    let server = start(QUICK);
    let length = format!("content-length: {}\r\n", TURN.len());
    let bytes = [
        "GET /v1/sessions/nobody HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        post(TURNS, &length, TURN),
        "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned(),
    ];
    let answer = say(server.http, &bytes.concat(), false).await;
    let statuses: Vec<_> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["404", "200", "200"], "{answer}");
}

/// A gateway whose answers take some seconds, and whose drains so long at most.
fn slow(answer_bytes: usize, drain_timeout: &str) -> Server {
    start(&format!(
        "upstreams: [{{name: demo, type: Demo, demo: {{tokenDelay: 10ms, answerBytes: {answer_bytes}}}}}]\n\
         drain: {{acceptFloor: 0s, reconnectSpread: 100ms, timeout: {drain_timeout}}}"
    ))
}

/// Asks for a stream of events: of a turn where there is a body, else of a session.
async fn open(server: &Server, path: &str, body: Option<&str>) -> BufReader<TcpStream> {
    let mut socket = TcpStream::connect(server.http).await.unwrap();
    let head = match body {
        Some(body) => post(path, &format!("accept: text/event-stream\r\ncontent-length: {}\r\n", body.len()), body),
        None => format!("GET {path} HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n"),
    };
    socket.write_all(head.as_bytes()).await.unwrap();
    BufReader::new(socket)
}

async fn ends(mut socket: BufReader<TcpStream>) {
    timeout(PATIENCE, socket.read_to_end(&mut Vec::new())).await.expect("the connection ends").unwrap();
}

#[tokio::test]
async fn a_drain_ends_idle_streams_and_lets_answers_finish() {
    let server = slow(1_500, "20s");
    let mut idle = open(&server, "/v1/sessions/other/events", None).await;
    until(&mut idle, "id: 0").await;
    let mut answering = open(&server, TURNS, Some(TURN)).await;
    until(&mut answering, "event: delta").await;

    server.gateway.start_drain();
    until(&mut idle, "event: go_away").await;
    until(&mut idle, "retry: ").await;
    ends(idle).await;
    until(&mut answering, "event: go_away").await;
    until(&mut answering, "event: done").await;
    ends(answering).await;
    timeout(PATIENCE, server.serving).await.expect("the drain is over").unwrap();
}

#[tokio::test]
async fn an_answer_that_outlasts_the_drain_is_let_go_with_a_word() {
    let server = slow(100_000, "2s");
    let mut answering = open(&server, TURNS, Some(TURN)).await;
    until(&mut answering, "event: delta").await;
    server.gateway.start_drain();
    until(&mut answering, "event: go_away").await;
    until(&mut answering, "retry: ").await;
    ends(answering).await;
    timeout(PATIENCE, server.serving).await.expect("the drain is over").unwrap();
}

/// Reads lines up to one that begins so.
async fn until(socket: &mut BufReader<TcpStream>, begin: &str) {
    let mut line = String::new();
    loop {
        line.clear();
        let read = timeout(PATIENCE, socket.read_line(&mut line)).await.expect("something comes").unwrap();
        assert!(read > 0, "the stream ended before {begin:?}");
        if line.starts_with(begin) {
            return;
        }
    }
}
