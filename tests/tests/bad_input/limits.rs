//! Clients that send without end.

use chatgateway_tests::client::{Closed, PlainClient, WsClient};
use serde_json::json;

use super::{
    ground::{Ground, Raw},
    websocket::{RawSocket, frame},
};

const TEXT: u8 = 1;
const CONTINUATION: u8 = 0;

#[tokio::test]
async fn a_message_that_never_ends_ends_in_1009() {
    let ground = Ground::new().await;
    let mut sent = 0;
    for protocol in [Some("chatgateway.v1"), None] {
        let mut socket = RawSocket::open(&ground, protocol).await;
        socket.send(TEXT, b"{").await;
        let fragment = frame(CONTINUATION, &[b' '; 4_000]);
        // It stops being taken long before this.
        while socket.raw.sent < 4 * 1024 * 1024 && socket.raw.send(&fragment).await {}
        sent += socket.raw.sent;
    }
    // A client that looks after the bound sees why.
    let mut socket = RawSocket::json(&ground).await;
    socket.send(TEXT, &[b' '; 200_000]).await;
    socket.send(CONTINUATION, &[b' '; 200_000]).await;
    assert_eq!(socket.close().await, Closed { code: 1009, reason: "too_large".to_owned() });
    ground.finish(sent + socket.raw.sent).await;
}

#[tokio::test]
async fn fragments_of_nothing_for_ever_cost_nothing() {
    let ground = Ground::new().await;
    let mut socket = RawSocket::json(&ground).await;
    socket.send(TEXT, b"").await;
    let fragments = frame(CONTINUATION, b"").repeat(1_000);
    for _ in 0..500 {
        assert!(socket.raw.send(&fragments).await);
    }
    let sent = socket.raw.sent;
    ground.finish(sent / 100).await;
}

#[tokio::test]
async fn turns_without_end_are_refused_with_session_busy_and_the_queue_is_answered() {
    let ground = Ground::with(json!({
        "upstreams": [{"name": "demo", "type": "Demo", "demo": {"tokenDelay": "2ms"}}],
    }))
    .await;
    let mut client = WsClient::connect(ground.http()).await.unwrap();
    let turns = 50;
    for number in 0..turns {
        client.send("flood", &format!("t{number}"), "x").await.unwrap();
    }
    let (mut accepted, mut refused, mut done) = (0, 0, 0);
    while accepted + refused < turns || done < accepted {
        let event = client.next().await.unwrap();
        match event.kind() {
            "accepted" => accepted += 1,
            "error" => {
                assert_eq!(event.field("code"), "session_busy", "{event:?}");
                assert_eq!(event.0["retryable"], true, "{event:?}");
                assert!(event.field("turn").starts_with('t'), "{event:?}");
                refused += 1;
            }
            "done" => done += 1,
            _ => {}
        }
    }
    // One runs and eight wait; some may have ended while the flood came in.
    assert!(accepted >= 9 && refused > 0, "{accepted} accepted, {refused} refused");
    ground.finish(10_000).await;
}

#[tokio::test]
async fn a_plain_text_client_that_sends_ahead_waits_and_gets_every_answer() {
    let ground = Ground::new().await;
    let mut client = PlainClient::connect(ground.http(), Some("ahead")).await.unwrap();
    for number in 0..60 {
        client.send(&format!("number {number}")).await.unwrap();
    }
    for number in 0..60 {
        match client.incoming().await.unwrap() {
            chatgateway_tests::client::Incoming::Text(text) => {
                assert!(text.starts_with(&format!("You said: number {number}\n")), "{text}");
            }
            closed => panic!("after {number} answers: {closed:?}"),
        }
    }
    ground.finish(10_000).await;
}

#[tokio::test]
async fn more_sessions_than_a_connection_may_read_are_refused() {
    let ground = Ground::new().await;
    let mut client = WsClient::connect(ground.http()).await.unwrap();
    let sessions = chatgateway_core::limits::SESSIONS_PER_CONNECTION_MAX;
    for number in 0..sessions {
        client.resume(&format!("s{number}"), "0").await.unwrap();
        assert_eq!(client.next().await.unwrap().kind(), "resumed");
    }
    client.resume("one too many", "0").await.unwrap();
    let error = client.next().await.unwrap();
    assert_eq!(error.kind(), "error", "{error:?}");
    assert!(error.field("message").contains(&sessions.to_string()), "{error:?}");
    ground.finish(50 * sessions as u64).await;
}

#[tokio::test]
async fn connections_above_the_bound_are_told_so() {
    let ground = Ground::with(json!({"limits": {"maxConnections": 20, "headerTimeout": "5s"}})).await;
    let mut held = Vec::new();
    for _ in 0..30 {
        let mut raw = Raw::connect(ground.http()).await;
        raw.send("GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").await;
        let head = String::from_utf8(raw.until(b"\r\n\r\n").await).unwrap();
        held.push((raw, head));
    }
    let refused: Vec<_> = held.iter().filter(|(_, head)| !head.starts_with("HTTP/1.1 200 ")).collect();
    assert!(refused.len() >= 10, "{} were refused", refused.len());
    for (_, head) in refused {
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 503 ") && head.contains("retry-after: "), "{head}");
    }
    ground.finish(10_000).await;
}
