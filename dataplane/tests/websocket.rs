//! The WebSocket, both modes, on a gateway in this process.

#![allow(clippy::unwrap_used, clippy::panic)]

mod harness;

use futures_util::SinkExt;
use harness::{Client, PATIENCE, QUICK, SLOW, answer, kinds, start};
use serde_json::json;
use tokio_tungstenite::tungstenite::{Error, Message};

#[tokio::test]
async fn a_turn_is_received_and_told_to_its_end() {
    let server = start(QUICK);
    let mut client = Client::json(&server).await;
    client.turn("s", "t", "hello").await;
    let frames = client.until("done").await;
    assert_eq!(kinds(&frames), ["accepted", "turn", "delta", "done"]);
    assert_eq!((frames[0]["seq"].as_u64(), frames[0]["duplicate"].as_bool()), (Some(1), Some(false)));
    assert!(answer(&frames).contains("hello"), "{frames:?}");
}

#[tokio::test]
async fn a_repeat_gets_its_receipt_and_nothing_again() {
    let server = start(QUICK);
    let mut client = Client::json(&server).await;
    client.turn("s", "t", "hello").await;
    client.until("done").await;
    client.turn("s", "t", "hello").await;
    client.send(json!({"type": "ping", "t": [1, "x"]})).await;
    let frames = client.until("pong").await;
    assert_eq!(kinds(&frames), ["accepted", "pong"]);
    assert_eq!((frames[0]["state"].as_str(), frames[0]["duplicate"].as_bool()), (Some("done"), Some(true)));
    assert_eq!(frames[1]["t"], json!([1, "x"]));
    client.turn("s", "t", "other words").await;
    assert_eq!(client.frame().await["code"], "turn_conflict");
    client.send(json!({"type": "send", "session": "s", "turn": "u", "seq": 7, "text": "x"})).await;
    let gap = client.frame().await;
    assert_eq!((gap["code"].as_str(), gap["expected"].as_u64()), (Some("seq_gap"), Some(2)));
}

#[tokio::test]
async fn a_repeat_on_another_connection_is_told_all_of_it() {
    let server = start(QUICK);
    let mut first = Client::json(&server).await;
    first.turn("s", "t", "hello").await;
    let told = first.until("done").await;
    let mut second = Client::json(&server).await;
    second.turn("s", "t", "hello").await;
    let again = second.until("done").await;
    assert_eq!(again[0]["duplicate"], true);
    assert_eq!(told[1..], again[1..]);
}

#[tokio::test]
async fn every_position_of_a_log_can_be_resumed() {
    let server = start(SLOW);
    let mut writer = Client::json(&server).await;
    writer.turn("s", "t", "hello").await;
    let mut early = writer.until("delta").await;
    early.remove(0);
    writer.send(json!({"type": "cancel", "session": "s", "turn": "t"})).await;
    let rest = writer.until("cancelled").await;
    let all: Vec<_> = early.into_iter().chain(rest).collect();
    let mut reader = Client::json(&server).await;
    let mut after = "0".to_owned();
    for (i, entry) in all.iter().enumerate() {
        reader.send(json!({"type": "resume", "session": "s", "after": after})).await;
        let told = reader.until("cancelled").await;
        assert_eq!(told[0], json!({"type": "resumed", "session": "s", "recovered": true, "position": after}));
        assert_eq!(told[1..], all[i..]);
        after = entry["id"].as_str().unwrap().to_owned();
    }
    for unknown in ["1-1", "9999999999999999-0", "nonsense"] {
        reader.send(json!({"type": "resume", "session": "s", "after": unknown})).await;
        assert_eq!(reader.frame().await["recovered"], false, "{unknown}");
    }
}

#[tokio::test]
async fn two_clients_see_the_same() {
    let server = start(QUICK);
    let (mut a, mut b) = (Client::json(&server).await, Client::json(&server).await);
    b.send(json!({"type": "resume", "session": "s", "after": "0"})).await;
    assert_eq!(b.frame().await["recovered"], true);
    a.turn("s", "1", "from a").await;
    let mut seen = b.until("done").await;
    b.turn("s", "2", "from b").await;
    seen.extend(b.until("done").await.into_iter().filter(|f| f["type"] != "accepted"));
    let mut own = a.until("done").await;
    own.extend(a.until("done").await);
    own.retain(|f| f["type"] != "accepted");
    assert_eq!(own, seen);
}

#[tokio::test]
async fn turns_of_a_session_wait_for_each_other_and_are_bounded() {
    let server = start(SLOW);
    let mut client = Client::json(&server).await;
    for i in 0..10 {
        client.turn("s", &format!("t{i}"), "x").await;
    }
    let mut receipts = Vec::new();
    while receipts.len() < 10 {
        let frame = client.frame().await;
        if ["accepted", "error"].contains(&frame["type"].as_str().unwrap()) {
            receipts.push(frame);
        }
    }
    assert_eq!(receipts[0]["state"], "running");
    for (place, receipt) in receipts[1..9].iter().enumerate() {
        assert_eq!((receipt["state"].as_str(), receipt["place"].as_u64()), (Some("queued"), Some(place as u64 + 1)));
    }
    assert_eq!((receipts[9]["code"].as_str(), receipts[9]["retryable"].as_bool()), (Some("session_busy"), Some(true)));
    for i in 0..9 {
        client.send(json!({"type": "cancel", "session": "s", "turn": format!("t{i}")})).await;
    }
    let mut ended = Vec::new();
    while ended.len() < 9 {
        let frame = client.frame().await;
        if frame["type"] == "cancelled" {
            ended.push(frame["turn"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(ended, (0..9).map(|i| format!("t{i}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_closed_socket_cancels_nothing() {
    let server = start("upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 1ms, answerBytes: 400}}]");
    let mut first = Client::json(&server).await;
    first.turn("s", "t", "hello").await;
    first.until("delta").await;
    drop(first);
    let mut second = Client::json(&server).await;
    second.send(json!({"type": "resume", "session": "s", "after": "0"})).await;
    let told = second.until("done").await;
    assert_eq!(answer(&told).len(), 400);
}

#[tokio::test]
async fn a_deleted_session_is_gone_for_its_readers() {
    let server = start(SLOW);
    let mut client = Client::json(&server).await;
    client.turn("s", "t", "hello").await;
    client.until("delta").await;
    let mut admin = tokio::net::TcpStream::connect(server.http).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut admin, b"DELETE /v1/sessions/s HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let last = client.until("error").await.pop().unwrap();
    assert_eq!((last["code"].as_str(), last["session"].as_str()), (Some("not_found"), Some("s")));
    client.turn("s", "t", "hello").await;
    assert_eq!(client.frame().await["code"], "not_found");
    client.turn("s", "u", "anew").await;
    assert_eq!(client.frame().await["seq"], 1);
}

#[tokio::test]
async fn wrong_frames_are_answered_and_the_connection_stays() {
    let server = start(QUICK);
    let mut client = Client::json(&server).await;
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let nested = format!(r#"{{"type":"send","session":"s","turn":"t","messages":{deep}}}"#);
    let wrong = [
        "nonsense",
        "[]",
        "{}",
        r#"{"type":"nonsense"}"#,
        r#"{"type":"send","session":"s"}"#,
        r#"{"type":"send","session":"s","turn":"t"}"#,
        r#"{"type":"send","session":"","turn":"t","text":"x"}"#,
        r#"{"type":"send","session":"s","turn":"t","text":""}"#,
        r#"{"type":"send","session":"s","turn":"t","text":5}"#,
        r#"{"type":"send","session":"s","turn":"t","text":"x","messages":[]}"#,
        r#"{"type":"send","session":"s","turn":"t","messages":[{"role":"system","content":"x"}]}"#,
        r#"{"type":"cancel","session":"s"}"#,
        &nested,
    ];
    for text in wrong {
        client.socket.send_text(text).await;
        let frame = client.frame().await;
        assert_eq!(
            (frame["type"].as_str(), frame["code"].as_str()),
            (Some("error"), Some("invalid_request")),
            "{text:.80}"
        );
    }
    for unknown in ["{\"a\":[1]}", &deep] {
        client.socket.send_text(&format!(r#"{{"unknown":{unknown},"type":"ping"}}"#)).await;
        assert_eq!(client.frame().await, json!({"type": "pong"}));
    }
    client.send(json!({"type": "cancel", "session": "s", "turn": "none"})).await;
    assert_eq!(client.frame().await["code"], "not_found");
}

trait SendText {
    async fn send_text(&mut self, text: &str);
}

impl<S: futures_util::Sink<Message, Error = Error> + Unpin> SendText for S {
    async fn send_text(&mut self, text: &str) {
        futures_util::SinkExt::send(self, Message::text(text.to_owned())).await.unwrap();
    }
}

#[tokio::test]
async fn connections_end_with_the_right_code() {
    let server = start("limits: {maxMessageBytes: 4096}");
    let mut client = Client::json(&server).await;
    futures_util::SinkExt::send(&mut client.socket, Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(client.close_code().await, 1003);
    let mut client = Client::json(&server).await;
    client.turn("s", "t", &"x".repeat(5_000)).await;
    assert_eq!(client.close_code().await, 1009);
}

#[tokio::test]
async fn handshakes_that_cannot_be_served_are_refused() {
    let server = start(QUICK);
    let attempt = async |headers: &[(&'static str, &str)]| {
        use tokio_tungstenite::tungstenite::{client::IntoClientRequest, http::HeaderValue};
        let mut request = format!("ws://{}/ws", server.http).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        match tokio_tungstenite::connect_async(request).await {
            Err(Error::Http(response)) => response.status().as_u16(),
            Ok(_) => 101,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(attempt(&[("sec-websocket-protocol", "mqtt, soap")]).await, 400);
    assert_eq!(attempt(&[("origin", "https://elsewhere.example")]).await, 403);
    assert_eq!(attempt(&[("origin", &format!("http://{}", server.http))]).await, 101);
    assert_eq!(attempt(&[("x-session-id", "..")]).await, 400);
}

#[tokio::test]
async fn plain_text_goes_in_and_the_answer_comes_out() {
    let server = start(QUICK);
    let mut client = Client::connect(&server, "/ws?session=plain", &[]).await;
    for text in ["one", "two"] {
        client.socket.send_text(text).await;
        let Message::Text(answer) = client.message().await else { panic!("text") };
        assert!(answer.contains(text), "{answer}");
    }
    let mut reader = Client::json(&server).await;
    reader.send(json!({"type": "resume", "session": "plain", "after": "0"})).await;
    reader.until("done").await;
    reader.until("done").await;
}

#[tokio::test]
async fn plain_text_can_be_streamed() {
    let server = start("upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 1ms, answerBytes: 200}}]");
    let mut client = Client::connect(&server, "/ws?stream=true", &[("x-session-id", "p")]).await;
    client.socket.send_text("hello").await;
    let mut whole = String::new();
    loop {
        let Message::Text(piece) = client.message().await else { panic!("text") };
        if piece.is_empty() {
            break;
        }
        whole.push_str(&piece);
    }
    assert_eq!(whole.len(), 200);
}

#[tokio::test]
async fn long_answers_arrive_whole() {
    let server = start("upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 0s, answerBytes: 300000}}]");
    let mut json = Client::json(&server).await;
    json.turn("s", "t", "hello").await;
    assert_eq!(answer(&json.until("done").await).len(), 300_000);
    let mut plain = Client::connect(&server, "/ws", &[]).await;
    plain.socket.send_text("hello").await;
    let Message::Text(answer) = plain.message().await else { panic!("text") };
    assert_eq!(answer.len(), 300_000);
}

#[tokio::test]
async fn a_drain_tells_clients_finishes_answers_and_ends() {
    let server = start(
        "upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 2ms, answerBytes: 1500}}]\n\
        drain: {acceptFloor: 0s, reconnectSpread: 50ms, timeout: 20s}",
    );
    let mut busy = Client::json(&server).await;
    let mut idle = Client::json(&server).await;
    busy.turn("s", "t", "hello").await;
    busy.until("delta").await;
    server.gateway.start_drain();
    let away = idle.frame().await;
    assert_eq!(away["type"], "go_away");
    idle.turn("s2", "t", "x").await;
    assert_eq!(idle.frame().await["code"], "draining");
    drop(idle);
    let frames = busy.until("done").await;
    assert!(kinds(&frames).contains(&"go_away"), "{:?}", kinds(&frames));
    busy.socket.close(None).await.unwrap();
    drop(busy);
    tokio::time::timeout(PATIENCE, server.serving).await.expect("the drain ends").unwrap();
}

#[tokio::test]
async fn a_client_that_was_told_and_stays_is_closed_for_a_restart() {
    let server = start("drain: {acceptFloor: 0s, reconnectSpread: 0s, timeout: 300ms}");
    let mut client = Client::json(&server).await;
    let mut plain = Client::connect(&server, "/ws", &[]).await;
    server.gateway.start_drain();
    assert_eq!(client.frame().await["type"], "go_away");
    assert_eq!(client.close_code().await, 1012);
    assert_eq!(plain.close_code().await, 1012);
}

#[tokio::test]
async fn a_client_without_a_sign_of_life_is_given_up() {
    let server = start("keepalive: {pingInterval: 1s, pongTimeout: 1s}");
    let mut stream = tokio::net::TcpStream::connect(server.http).await.unwrap();
    let handshake = "GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, handshake.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut all);
    tokio::time::timeout(PATIENCE, read).await.expect("the server closes").unwrap();
    let ping = all.windows(2).position(|w| w == [0x89, 0]).expect("a ping");
    let close = &all[ping + 2..];
    assert_eq!(close[0], 0x88);
    assert_eq!(u16::from_be_bytes([close[2], close[3]]), 3012);
}

/// A demo that answers at once, and two turns for each session.
const LIMITED: &str = "upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 0s}}]\n\
    rateLimits: [{per: Session, requestsPerMinute: 60, burst: 2}, {per: User, tokensPerMinute: 60, burst: 1000}]";

#[tokio::test]
async fn limits_are_in_receipts_and_refusals_say_when() {
    let server = start(LIMITED);
    let mut client = Client::json(&server).await;
    client.turn("s", "1", "hello").await;
    let first = client.until("done").await;
    assert_eq!(first[0]["rate_limits"]["requests"], json!({"limit": 2, "remaining": 1, "reset_ms": 1_000}));
    assert_eq!(first[0]["rate_limits"]["tokens"]["limit"], 1_000);
    client.turn("s", "2", "hello").await;
    client.until("done").await;
    client.turn("s", "3", "hello").await;
    let refused = client.frame().await;
    assert_eq!((refused["type"].as_str(), refused["code"].as_str()), (Some("error"), Some("rate_limited")));
    assert_eq!((refused["turn"].as_str(), refused["retryable"].as_bool()), (Some("3"), Some(true)));
    let wait = refused["retry_after_ms"].as_u64().unwrap();
    assert!((1..=1_000).contains(&wait), "{refused}");
    // A repeat of an admitted turn is no new one.
    client.turn("s", "1", "hello").await;
    let repeat = client.frame().await;
    assert_eq!((repeat["type"].as_str(), repeat["duplicate"].as_bool()), (Some("accepted"), Some(true)));
    tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
    client.turn("s", "3", "hello").await;
    assert_eq!(client.frame().await["type"], "accepted");
}

#[tokio::test]
async fn without_limits_a_receipt_says_nothing_of_them() {
    let server = start(QUICK);
    let mut client = Client::json(&server).await;
    client.turn("s", "1", "hello").await;
    assert!(client.frame().await.get("rate_limits").is_none());
}

#[tokio::test]
async fn a_plain_connection_past_its_limit_is_told_to_come_later() {
    let server = start(LIMITED);
    let mut client = Client::connect(&server, "/ws?session=plain", &[]).await;
    for _ in 0..3 {
        client.socket.send(Message::text("hello")).await.unwrap();
    }
    let mut reason = String::new();
    let code = loop {
        if let Message::Close(Some(frame)) = client.message().await {
            reason.push_str(&frame.reason);
            break u16::from(frame.code);
        }
    };
    assert_eq!((code, reason.as_str()), (1013, "rate_limited"));
}
