//! Clients that never read. What they do not take waits in the log and in the kernel, not in the gateway's memory, and
//! nobody else waits.

use std::time::Duration;

use chatgateway_tests::client::{HttpClient, SseStream, WsClient};
use serde_json::json;

use super::{
    ground::{Ground, Raw},
    websocket::{RawSocket, frame},
};

const FIN_TEXT: u8 = 0x81;
const FIN_PING: u8 = 0x89;

/// Clients that do so together, so that what each costs shows.
const CLIENTS: usize = 8;

/// Long enough to see that the server takes no more.
const STUCK: Duration = Duration::from_millis(700);

#[tokio::test]
async fn turns_whose_answers_are_never_read_stop_being_taken() {
    let ground = Ground::new().await;
    let mut sent = 0;
    let mut held = Vec::new();
    for client in 0..CLIENTS {
        let mut socket = RawSocket::json(&ground).await;
        for number in 0..40 {
            let text = "x".repeat(100_000);
            let turn = json!({"type": "send", "session": format!("{client}-{number}"), "turn": "t", "text": text});
            let turn = frame(FIN_TEXT, turn.to_string().as_bytes());
            let most = socket.raw.sent + turn.len() as u64;
            socket.raw.send_until_stuck(&turn, most, STUCK).await;
            if socket.raw.sent < most {
                break;
            }
        }
        sent += socket.raw.sent;
        held.push(socket);
    }
    ground.finish(sent).await;
}

#[tokio::test]
async fn pings_whose_pongs_are_never_read_cost_nothing() {
    let ground = Ground::new().await;
    let mut sent = 0;
    let mut held = Vec::new();
    let pings = frame(FIN_PING, &[b'p'; 125]).repeat(100);
    let json_pings = frame(FIN_TEXT, br#"{"type":"ping","t":"0123456789"}"#).repeat(100);
    for flood in [&pings, &json_pings] {
        for _ in 0..2 {
            let mut socket = RawSocket::json(&ground).await;
            socket.raw.send_until_stuck(flood, 32 * 1024 * 1024, STUCK).await;
            sent += socket.raw.sent;
            held.push(socket);
        }
    }
    // The floods were many megabytes; that they were answered into the void must not have been.
    ground.finish(sent / 100).await;
}

#[tokio::test]
async fn an_event_stream_that_is_never_read_costs_its_own_buffers_only() {
    let ground = Ground::new().await;
    let mut readers = Vec::new();
    for _ in 0..4 * CLIENTS {
        let mut raw = Raw::connect(ground.http()).await;
        raw.send("GET /v1/sessions/loud/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n").await;
        raw.until(b"\r\n\r\n").await;
        readers.push(raw);
    }
    let mut speaker = WsClient::connect(ground.http()).await.unwrap();
    let text = "x".repeat(200_000);
    let mut sent = 0;
    for _ in 0..40 {
        let turn = speaker.ask("loud", &text).await.unwrap();
        assert_eq!(turn.end().unwrap().kind(), "done");
        sent += text.len() as u64;
    }
    // Were each turn kept for each reader, it would be 500 MB.
    ground.finish(sent).await;
}

#[tokio::test]
async fn a_slow_reader_gets_everything_or_is_told() {
    let ground = Ground::new().await;
    let client = HttpClient::new(ground.http());
    let mut slow: SseStream = client.get_sse("/v1/sessions/loud/events", None).await.unwrap();
    let mut speaker = WsClient::connect(ground.http()).await.unwrap();
    let text = "x".repeat(100_000);
    for _ in 0..20 {
        speaker.ask("loud", &text).await.unwrap();
    }
    // It reads only now: from the log, in order and without a hole, as far as the log reaches.
    let mut done = 0;
    while let Some(event) = slow.next().await.unwrap() {
        match event.event.as_str() {
            "done" => done += 1,
            "error" => {
                assert_eq!(event.json().unwrap().field("code"), "not_resumable");
                break;
            }
            _ => {}
        }
        if done == 20 {
            break;
        }
    }
    assert!(done > 0, "it was told of no turn");
    ground.finish(20 * text.len() as u64).await;
}
