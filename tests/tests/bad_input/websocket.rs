//! Frames that break the protocol, or are not what a client of the gateway may say.

use chatgateway_tests::client::{Closed, Incoming, PlainClient, WsClient, WsOptions};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio_tungstenite::tungstenite::Message;

use super::ground::{Ground, Raw};

/// The default of `limits.maxMessageBytes`.
const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// A WebSocket whose frames are written by hand.
pub struct RawSocket {
    pub raw: Raw,
}

const FIN: u8 = 0x80;
const TEXT: u8 = 1;
const CONTINUATION: u8 = 0;
const PING: u8 = 9;

impl RawSocket {
    pub async fn open(ground: &Ground, protocol: Option<&str>) -> Self {
        let mut raw = Raw::connect(ground.http()).await;
        let protocol = protocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n")).unwrap_or_default();
        raw.send(format!(
            "GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{protocol}\r\n"
        ))
        .await;
        let head = String::from_utf8(raw.until(b"\r\n\r\n").await).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self { raw }
    }

    pub async fn json(ground: &Ground) -> Self {
        let mut socket = Self::open(ground, Some("chatgateway.v1")).await;
        let (first, hello) = socket.frame().await;
        assert_eq!(first, FIN | TEXT, "{hello:?}");
        socket
    }

    /// One frame from the server: its first byte and its payload.
    pub async fn frame(&mut self) -> (u8, Vec<u8>) {
        let stream = &mut self.raw.stream;
        let read = async {
            let (first, second) = (stream.read_u8().await?, stream.read_u8().await?);
            let length = match second {
                126 => u64::from(stream.read_u16().await?),
                127 => stream.read_u64().await?,
                length => u64::from(length),
            };
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            stream.read_exact(&mut payload).await?;
            std::io::Result::Ok((first, payload))
        };
        chatgateway_tests::client::in_time("a frame", read).await.unwrap().unwrap()
    }

    /// The close that follows, whatever comes before it.
    pub async fn close(&mut self) -> Closed {
        loop {
            let (first, payload) = self.frame().await;
            if first == FIN | 8 {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                return Closed { code, reason: String::from_utf8(payload[2..].to_vec()).unwrap() };
            }
        }
    }

    pub async fn send(&mut self, first: u8, payload: &[u8]) -> bool {
        self.raw.send(frame(first, payload)).await
    }
}

/// A masked frame.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = head(first, payload.len() as u64);
    let mask = [0x5a, 0xa5, 0x3c, 0xc3];
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]));
    frame
}

/// The head of a masked frame that announces so many bytes, without the mask.
fn head(first: u8, length: u64) -> Vec<u8> {
    let mut head = vec![first];
    match length {
        0..=125 => head.push(0x80 | u8::try_from(length).unwrap()),
        126..=0xffff => {
            head.push(0x80 | 126);
            head.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend_from_slice(&length.to_be_bytes());
        }
    }
    head
}

fn closed(code: u16, reason: &str) -> Closed {
    Closed { code, reason: reason.to_owned() }
}

/// A `send` frame of exactly that many bytes.
fn send_of(bytes: usize) -> String {
    let frame = |text: &str| json!({"type": "send", "session": "s", "turn": "large", "text": text}).to_string();
    frame(&"x".repeat(bytes - frame("").len()))
}

#[tokio::test]
async fn an_oversized_message_ends_in_1009_and_the_largest_allowed_is_answered() {
    let ground = Ground::new().await;
    let mut sent = 0;
    for mode in [Some("chatgateway.v1"), None] {
        // In one frame, announced honestly and sent whole.
        let mut socket = RawSocket::open(&ground, mode).await;
        socket.send(FIN | TEXT, &vec![b'x'; MAX_MESSAGE_BYTES + 1]).await;
        assert_eq!(socket.close().await, closed(1009, "too_large"), "{mode:?}");
        sent += socket.raw.sent;
        // Announced only: nobody waits for four exabytes, and nobody makes room for them.
        for announced in [MAX_MESSAGE_BYTES as u64 + 1, 1 << 40, (1 << 63) - 1] {
            let mut socket = RawSocket::open(&ground, mode).await;
            socket.raw.send([head(FIN | TEXT, announced), vec![0; 4]].concat()).await;
            assert_eq!(socket.close().await, closed(1009, "too_large"), "{announced} announced");
            sent += socket.raw.sent;
        }
    }
    let mut client = WsClient::connect(ground.http()).await.unwrap();
    let largest = send_of(MAX_MESSAGE_BYTES);
    client.send_text(&largest).await.unwrap();
    let turn = client.turn("large").await.unwrap();
    assert_eq!(turn.end().unwrap().kind(), "done");
    ground.finish(sent + largest.len() as u64).await;
}

#[tokio::test]
async fn frames_that_break_the_protocol_end_in_1002() {
    let ground = Ground::new().await;
    let mut sent = 0;
    let unmasked = b"\x81\x05hello".to_vec();
    let cases = [
        ("unmasked", unmasked),
        ("a reserved bit", frame(FIN | 0x40 | TEXT, b"x")),
        ("a reserved opcode", frame(FIN | 3, b"x")),
        ("a reserved control opcode", frame(FIN | 0xb, b"x")),
        ("a fragmented ping", frame(PING, b"x")),
        ("a long ping", frame(FIN | PING, &[b'x'; 126])),
        ("a continuation of nothing", frame(FIN | CONTINUATION, b"x")),
        ("a message within a message", [frame(TEXT, b"x"), frame(FIN | TEXT, b"y")].concat()),
        ("a close with one byte", frame(FIN | 8, b"x")),
    ];
    for (what, bytes) in cases {
        let mut socket = RawSocket::json(&ground).await;
        socket.raw.send(bytes).await;
        let closed = socket.close().await;
        assert_eq!(closed.code, 1002, "{what}: {closed:?}");
        sent += socket.raw.sent;
    }
    ground.finish(sent).await;
}

#[tokio::test]
async fn text_that_is_not_utf8_ends_in_1007() {
    let ground = Ground::new().await;
    let mut sent = 0;
    let cases = [
        frame(FIN | TEXT, b"\xff"),
        frame(FIN | TEXT, b"{\"type\":\"ping\",\"t\":\"\xc3\"}"),
        // A surrogate, and a character cut by the end of the message.
        frame(FIN | TEXT, b"\xed\xa0\x80"),
        [frame(TEXT, b"a\xe2\x82"), frame(FIN | CONTINUATION, b"")].concat(),
    ];
    for bytes in cases {
        let mut socket = RawSocket::json(&ground).await;
        socket.raw.send(&bytes).await;
        assert_eq!(socket.close().await, closed(1007, "text must be UTF-8"), "{bytes:x?}");
        sent += socket.raw.sent;
    }
    ground.finish(sent).await;
}

#[tokio::test]
async fn a_turn_in_fragments_of_one_byte_written_byte_by_byte_is_answered() {
    let ground = Ground::new().await;
    let mut socket = RawSocket::json(&ground).await;
    let text = json!({"type": "send", "session": "f", "turn": "fragments", "text": "ä€😀"}).to_string();
    let mut first = TEXT;
    for byte in text.as_bytes() {
        for piece in frame(first, &[*byte]) {
            socket.raw.send([piece]).await;
        }
        first = CONTINUATION;
    }
    socket.send(FIN | CONTINUATION, b"").await;
    let mut answer = String::new();
    loop {
        let (_, payload) = socket.frame().await;
        let event: Value = serde_json::from_slice(&payload).unwrap();
        match event["type"].as_str().unwrap() {
            "accepted" | "turn" => {}
            "delta" => answer.push_str(event["text"].as_str().unwrap()),
            kind => {
                assert_eq!(kind, "done", "{event}");
                break;
            }
        }
    }
    assert!(answer.starts_with("You said: ä€😀\n"), "{answer}");
    ground.finish(socket.raw.sent).await;
}

#[tokio::test]
async fn what_is_no_frame_is_refused_and_the_connection_stays() {
    let ground = Ground::new().await;
    let mut client = WsClient::connect(ground.http()).await.unwrap();
    let mut sent = 0;
    let deep = |frame: &str| frame.replace("DEEP", &format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)));
    let cases = [
        ("", "EOF"),
        ("hello", "chatgateway.v1"),
        ("[]", ""),
        ("{\"type\":\"send\"", "EOF"),
        ("{\"type\":\"shout\"}", "type"),
        ("{\"type\":7}", "type"),
        ("{}", "type"),
        ("{\"type\":\"send\",\"session\":\"s\",\"text\":\"x\"}", "turn"),
        ("{\"type\":\"send\",\"session\":\"s\",\"turn\":\"t\"}", "text"),
        ("{\"type\":\"send\",\"session\":\"s\",\"turn\":\"t\",\"text\":7}", ""),
        ("{\"type\":\"send\",\"session\":\"s\",\"turn\":\"t\",\"text\":\"x\",\"seq\":-1}", ""),
        ("{\"type\":\"send\",\"session\":\"s\",\"turn\":\"t\",\"messages\":\"x\"}", "messages"),
        ("{\"type\":\"send\",\"session\":\"s\",\"turn\":\"t\",\"text\":\"x\",\"options\":[]}", "options"),
        ("{\"type\":\"send\",\"session\":\"\",\"turn\":\"t\",\"text\":\"x\"}", "session"),
        ("{\"type\":\"send\",\"session\":\"..\",\"turn\":\"t\",\"text\":\"x\"}", "session"),
        ("{\"type\":\"send\",\"session\":\"a\\u0000b\",\"turn\":\"t\",\"text\":\"x\"}", "session"),
        ("{\"type\":\"send\",\"session\":\"s\",\"turn\":\"\",\"text\":\"x\"}", "turn"),
        ("{\"type\":\"resume\",\"session\":\"s\"}", "after"),
        ("{\"type\":\"cancel\",\"session\":\"s\"}", "turn"),
        ("{\"type\":\"ping\",\"t\":DEEP}", "nested"),
        ("{\"type\":\"send\",\"session\":\"s\",\"turn\":\"t\",\"text\":\"x\",\"options\":{\"a\":DEEP}}", "nested"),
        ("{\"type\":\"send\",\"session\":\"s\",\"turn\":\"t\",\"messages\":DEEP}", ""),
    ];
    for (frame, named) in cases {
        let frame = deep(frame);
        sent += frame.len() as u64;
        client.send_text(&frame).await.unwrap();
        let error = client.next().await.unwrap();
        let frame = &frame[..frame.len().min(90)];
        assert_eq!((error.kind(), error.field("code")), ("error", "invalid_request"), "{frame}: {error:?}");
        assert_eq!(error.0["retryable"], false, "{frame}: {error:?}");
        let message = error.field("message");
        assert!(message.len() > 10 && message.contains(named), "{frame}: {message}");
    }
    let long = json!({"type": "send", "session": "s".repeat(257), "turn": "t", "text": "x"});
    client.send_frame(&long).await.unwrap();
    assert_eq!(client.next().await.unwrap().field("code"), "invalid_request");
    // It is still good for a turn, and what is unknown in a frame is passed over, however deep.
    client.send_text(&deep("{\"type\":\"ping\",\"t\":7,\"unknown\":DEEP}")).await.unwrap();
    assert_eq!(client.next().await.unwrap().0, json!({"type": "pong", "t": 7}));
    let unknown = json!({"type": "send", "session": "s", "turn": "t", "text": "x", "unknown": {"a": [1]}});
    client.send_frame(&unknown).await.unwrap();
    assert_eq!(client.turn("t").await.unwrap().end().unwrap().kind(), "done");
    ground.finish(sent).await;
}

#[tokio::test]
async fn an_unknown_session_or_turn_or_position_is_said_to_be_unknown() {
    let ground = Ground::new().await;
    let mut client = WsClient::connect(ground.http()).await.unwrap();
    client.cancel("nobody", "nothing").await.unwrap();
    let error = client.next().await.unwrap();
    assert_eq!((error.kind(), error.field("code")), ("error", "not_found"), "{error:?}");
    assert_eq!((error.field("session"), error.field("turn")), ("nobody", "nothing"));
    for (after, recovered) in [("0", true), ("7-7", false), ("18446744073709551615-1", false), ("now", false)] {
        client.resume("nobody", after).await.unwrap();
        let resumed = client.next().await.unwrap();
        assert_eq!(resumed.kind(), "resumed", "{after}: {resumed:?}");
        assert_eq!(resumed.0["recovered"], recovered, "{after}: {resumed:?}");
    }
    ground.finish(0).await;
}

#[tokio::test]
async fn plain_text_connections_end_with_the_right_code() {
    let ground = Ground::new().await;
    let mut client = PlainClient::connect(ground.http(), None).await.unwrap();
    client.send_message(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert!(matches!(client.incoming().await.unwrap(), Incoming::Closed(Closed { code: 1003, .. })));

    let offers = WsOptions { protocols: vec!["soap".to_owned(), "chatgateway.v9".to_owned()], ..WsOptions::default() };
    let refused = PlainClient::connect_with(ground.http(), &offers).await.err().unwrap().to_string();
    assert!(refused.contains("400") && refused.contains("chatgateway.v1"), "{refused}");

    let bad_ids = ["..".to_owned(), "x".repeat(257)];
    for id in bad_ids {
        let refused = PlainClient::connect(ground.http(), Some(&id)).await.err().unwrap().to_string();
        assert!(refused.contains("400") && refused.contains("session"), "{refused}");
    }
    let odd = WsOptions { query: "stream=perhaps".to_owned(), ..WsOptions::default() };
    let refused = PlainClient::connect_with(ground.http(), &odd).await.err().unwrap().to_string();
    assert!(refused.contains("400") && refused.contains("stream"), "{refused}");

    let foreign = WsOptions::json().header("origin", "https://elsewhere.example");
    let refused = WsClient::connect_with(ground.http(), &foreign).await.err().unwrap().to_string();
    assert!(refused.contains("403") && refused.contains("allowedOrigins"), "{refused}");
    ground.finish(1_000).await;
}

#[tokio::test]
async fn a_get_of_ws_that_is_no_handshake_says_so() {
    let ground = Ground::new().await;
    let mut raw = Raw::connect(ground.http()).await;
    raw.send("GET /ws HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await;
    let answer = raw.rest_text().await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("handshake"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("upgrade: websocket"), "{answer}");
    ground.finish(raw.sent).await;
}
