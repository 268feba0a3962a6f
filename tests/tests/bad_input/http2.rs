//! HTTP/2 that is cut off, garbled or abusive, and gRPC messages that are none.

use bytes::Bytes;
use chatgateway_proto::v1::{
    ClientMessage, SendRequest, chat_service_client::ChatServiceClient, client_message::Message,
};
use chatgateway_tests::client::{grpc_event, in_time};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::ground::{Ground, Raw};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn opening() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// `GET http://x/` in HPACK's static table, the authority as a literal.
const GET_ROOT: &[u8] = &[0x82, 0x86, 0x84, 0x01, 0x01, b'x'];

/// The error codes of the GOAWAY frames in what the server said.
fn goaways(mut said: &[u8]) -> Vec<u32> {
    let mut codes = Vec::new();
    while said.len() >= 9 {
        let length = u32::from_be_bytes([0, said[0], said[1], said[2]]) as usize;
        let Some(payload) = said.get(9..9 + length) else { break };
        if said[3] == GOAWAY {
            codes.push(u32::from_be_bytes([payload[4], payload[5], payload[6], payload[7]]));
        }
        said = &said[9 + length..];
    }
    codes
}

#[tokio::test]
async fn http2_that_is_cut_off_is_let_go_of() {
    let ground = Ground::new().await;
    let mut sent = 0;
    let request = frame(HEADERS, 0x5, 1, GET_ROOT);
    let whole = [opening(), request].concat();
    let mut cut_off = tokio::task::JoinSet::new();
    for port in [ground.http(), ground.grpc()] {
        for cut in 1..whole.len() {
            let mut raw = Raw::connect(port).await;
            raw.send(&whole[..cut]).await;
            tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await.unwrap();
            sent += raw.sent;
            cut_off.spawn(async move { raw.rest().await });
        }
    }
    for said in cut_off.join_all().await {
        assert!(!said.starts_with(b"HTTP/1"), "{said:?}");
    }
    ground.finish(sent).await;
}

#[tokio::test]
async fn http2_that_is_garbled_ends_in_goaway() {
    const PROTOCOL_ERROR: u32 = 1;
    const FRAME_SIZE_ERROR: u32 = 6;
    const COMPRESSION_ERROR: u32 = 9;
    const ENHANCE_YOUR_CALM: u32 = 11;
    let ground = Ground::new().await;
    let mut sent = 0;
    let huge = [vec![0xff, 0xff, 0xff, HEADERS, 0x5], 1_u32.to_be_bytes().to_vec()].concat();
    let endless_header =
        [frame(HEADERS, 0, 1, GET_ROOT), frame(CONTINUATION, 0, 1, &[0; 8_000]).repeat(2_000)].concat();
    let resets: Vec<u8> = (0..2_000_u32)
        .flat_map(|i| [frame(HEADERS, 0x4, 2 * i + 1, GET_ROOT), frame(RST_STREAM, 0, 2 * i + 1, &8_u32.to_be_bytes())])
        .flatten()
        .collect();
    let cases: [(&str, Vec<u8>, &[u32]); 6] = [
        ("a stream of the server's", frame(HEADERS, 0x5, 2, GET_ROOT), &[PROTOCOL_ERROR]),
        ("a frame above the bound", huge, &[FRAME_SIZE_ERROR]),
        ("settings of no size", frame(SETTINGS, 0, 0, b"abc"), &[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
        (
            "broken compression",
            frame(HEADERS, 0x5, 1, &[0xff, 0xff, 0xff, 0xff, 0xff]),
            &[COMPRESSION_ERROR, PROTOCOL_ERROR],
        ),
        ("a header that never ends", endless_header, &[PROTOCOL_ERROR, COMPRESSION_ERROR, ENHANCE_YOUR_CALM]),
        ("streams reset as soon as opened", resets, &[ENHANCE_YOUR_CALM, PROTOCOL_ERROR]),
    ];
    for port in [ground.http(), ground.grpc()] {
        for (what, bytes, codes) in &cases {
            let mut raw = Raw::connect(port).await;
            raw.send(opening()).await;
            raw.send(bytes).await;
            let told = goaways(&raw.rest().await);
            assert!(told.iter().any(|code| codes.contains(code)), "{what}: {told:?}");
            sent += raw.sent;
        }
    }
    ground.finish(sent).await;
}

#[tokio::test]
async fn http1_on_the_grpc_port_is_told_what_the_port_speaks() {
    let ground = Ground::new().await;
    let mut raw = Raw::connect(ground.grpc()).await;
    raw.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    let answer = raw.rest_text().await;
    assert!(answer.starts_with("HTTP/1.1 415 ") && answer.contains("speaks gRPC"), "{answer}");
    ground.finish(raw.sent).await;
}

/// A call whose body is these bytes, as the gRPC status number that it ends with, or the HTTP status where it has none.
async fn call(ground: &Ground, path: &str, content_type: &str, body: Vec<u8>) -> (u16, Option<u16>, String) {
    let stream = TcpStream::connect(ground.grpc()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}{path}", ground.grpc()))
        .header("content-type", content_type)
        .header("te", "trailers")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = in_time("the answer", sender.send_request(request)).await.unwrap().unwrap();
    let (head, body) = response.into_parts();
    let collected = in_time("the end", body.collect()).await.unwrap().unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let find = |name: &str| head.headers.get(name).or(trailers.get(name)).and_then(|value| value.to_str().ok());
    let status = find("grpc-status").map(|status| status.parse().unwrap());
    let message = find("grpc-message").unwrap_or_default().to_owned();
    drop(sender);
    connection.abort();
    (head.status.as_u16(), status, message)
}

/// A gRPC message frame.
fn message(bytes: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

#[tokio::test]
async fn grpc_messages_that_are_none_are_refused() {
    let ground = Ground::new().await;
    let grpc = "application/grpc";
    let bad_utf8 = message(b"\x0a\x02\xff\xfe\x12\x01t\x22\x01x");
    for path in ["/chat.v1.ChatService/Send", "/chat.v1.ChatService/GetSession", "/chat.v1.ChatService/Read"] {
        for (what, body) in [
            ("no protobuf", message(&[0xff; 20])),
            ("invalid UTF-8", bad_utf8.clone()),
            ("compressed without a name", [&[1][..], &message(b"x")[1..]].concat()),
            ("a reserved flag", [&[7][..], &message(b"x")[1..]].concat()),
            ("half a message", message(b"\x0a\x05hello")[..7].to_vec()),
            ("nothing", Vec::new()),
        ] {
            let (http, status, told) = call(&ground, path, grpc, body).await;
            assert_eq!(http, 200, "{path}, {what}");
            let status = Code::from_i32(i32::from(status.unwrap()));
            let right = [Code::InvalidArgument, Code::Unimplemented];
            assert!(right.contains(&status) && !told.is_empty(), "{path}, {what}: {status:?} {told}");
        }
    }
    let (_, status, _) = call(&ground, "/chat.v1.ChatService/Nothing", grpc, message(b"")).await;
    assert_eq!(status, Some(Code::Unimplemented as u16));
    let (http, ..) = call(&ground, "/chat.v1.ChatService/Send", "text/plain", message(b"")).await;
    assert_eq!(http, 415);
    ground.finish(10_000).await;
}

async fn client(ground: &Ground) -> ChatServiceClient<Channel> {
    let channel = Channel::from_shared(format!("http://{}", ground.grpc())).unwrap();
    ChatServiceClient::new(channel.connect().await.unwrap())
}

fn send(text: &str, session: &str) -> SendRequest {
    SendRequest {
        session: session.to_owned(),
        turn: "t".to_owned(),
        text: Some(text.to_owned()),
        ..SendRequest::default()
    }
}

fn assert_status(status: &Status, code: Code, reason: &str) {
    assert_eq!(status.code(), code, "{status:?}");
    assert_eq!(status.get_details_error_info().map(|info| info.reason).as_deref(), Some(reason), "{status:?}");
    assert!(status.message().len() > 10, "{status:?}");
}

#[tokio::test]
async fn an_oversized_grpc_message_is_resource_exhausted() {
    let ground = Ground::new().await;
    let mut client = client(&ground).await;
    let text = "x".repeat(512 * 1024);
    let status = client.send(Request::new(send(&text, "s"))).await.err().unwrap();
    assert_status(&status, Code::ResourceExhausted, "too_large");
    let first = ClientMessage { message: Some(Message::Send(send(&text, "s"))) };
    let mut messages = client.chat(tokio_stream::once(first)).await.unwrap().into_inner();
    let status = loop {
        match in_time("a message", messages.message()).await.unwrap() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended well"),
            Err(status) => break status,
        }
    };
    assert_status(&status, Code::ResourceExhausted, "too_large");
    ground.finish(2 * text.len() as u64).await;
}

/// Numbers of fields: of a turn, of an entry of a Struct, of a Value and of a ListValue.
const OPTIONS: u32 = 7;
const KEY: u32 = 1;
const VALUE: u32 = 2;
const LIST_OF_VALUE: u32 = 6;
const VALUE_OF_LIST: u32 = 1;

/// A protobuf field with a length.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut field = Vec::new();
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut field);
    prost::encoding::encode_varint(bytes.len() as u64, &mut field);
    field.extend_from_slice(bytes);
    field
}

#[tokio::test]
async fn refusals_carry_their_code() {
    let ground = Ground::new().await;
    let mut client = client(&ground).await;
    let nested = (0..10_000).fold(Vec::new(), |inner, _| field(LIST_OF_VALUE, &field(VALUE_OF_LIST, &inner)));
    let entry = [field(KEY, b"a"), field(VALUE, &nested)].concat();
    let deep = [field(1, b"s"), field(2, b"t"), field(4, b"x"), field(OPTIONS, &field(1, &entry))].concat();
    let sent = deep.len() as u64;
    let (_, status, told) = call(&ground, "/chat.v1.ChatService/Send", "application/grpc", message(&deep)).await;
    assert_eq!(status, Some(Code::InvalidArgument as u16), "{told}");
    let status = client.send(send("x", "..")).await.err().unwrap();
    assert_status(&status, Code::InvalidArgument, "invalid_request");
    let status = client.send(SendRequest { text: None, ..send("", "s") }).await.err().unwrap();
    assert_status(&status, Code::InvalidArgument, "invalid_request");
    // In a Chat the same is told by a message, and the stream goes on.
    let first = ClientMessage { message: Some(Message::Send(send("x", ".."))) };
    let empty = ClientMessage { message: None };
    let good = ClientMessage { message: Some(Message::Send(send("x", "s"))) };
    let mut messages = client.chat(tokio_stream::iter([first, empty, good])).await.unwrap().into_inner();
    let mut kinds = Vec::new();
    while let Some(message) = in_time("a message", messages.message()).await.unwrap().unwrap() {
        kinds.push(grpc_event(message).unwrap());
    }
    let kinds: Vec<&str> =
        kinds.iter().map(|event| if event.kind() == "error" { event.field("code") } else { event.kind() }).collect();
    assert_eq!(kinds[..3], ["hello", "invalid_request", "invalid_request"], "{kinds:?}");
    assert_eq!(kinds.last(), Some(&"done"), "{kinds:?}");
    ground.finish(sent).await;
}
