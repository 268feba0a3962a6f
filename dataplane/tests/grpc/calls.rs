//! The calls beside `Chat`.

use chatgateway_config::Settings;
use chatgateway_proto::v1::{self, server_message::Message};
use prost_types::{ListValue, Struct, Value, value::Kind};
use tonic::{Code, Request, Status, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt;

use crate::harness::*;

async fn refused(pod: &Pod, request: v1::SendRequest) -> Status {
    pod.send(request).await.err().expect("a refusal")
}

#[tokio::test]
async fn send_tells_one_turn_and_ends() {
    let pod = Pod::start(STEADY).await;
    let mut first = pod.send(turn_of("s", "t1", "a")).await.unwrap();
    let mut second = pod.send(turn_of("s", "t2", "b")).await.unwrap();
    let (second, end) = second.rest().await;
    end.unwrap();
    let (first, end) = first.rest().await;
    end.unwrap();
    for (messages, turn) in [(&first, "t1"), (&second, "t2")] {
        let told = all_told(messages);
        assert!(told[0].starts_with(&format!("accepted {turn}")), "{told:?}");
        assert!(told[1..].iter().all(|m| m.split(' ').nth(1) == Some(turn)), "{told:?}");
        assert_eq!(told.last().unwrap(), &format!("done {turn} stop"));
    }

    let (again, end) = pod.send(turn_of("s", "t1", "a")).await.unwrap().rest().await;
    end.unwrap();
    assert_eq!(again[1..], first[1..]);
    let Message::Accepted(receipt) = &again[0] else { panic!("no receipt") };
    assert_eq!((receipt.duplicate, receipt.state.as_str()), (true, "done"));
}

#[tokio::test]
async fn refusals_are_statuses_with_the_code_as_reason() {
    let pod = Pod::start(&format!("{FAST}limits: {{maxMessageBytes: 2048}}\n")).await;
    let gap = refused(&pod, v1::SendRequest { seq: Some(4), ..turn_of("s", "t1", "a") }).await;
    assert_refused(&gap, Code::FailedPrecondition, "seq_gap");
    assert_eq!(gap.get_details_error_info().unwrap().metadata["expected"], "1");
    assert!(gap.get_details_retry_info().is_none(), "{gap:?}");

    assert_refused(&refused(&pod, turn_of("", "t1", "a")).await, Code::InvalidArgument, "invalid_request");
    assert_refused(&refused(&pod, turn_of("s", "a\nb", "a")).await, Code::InvalidArgument, "invalid_request");
    let nothing = v1::SendRequest { text: None, ..turn_of("s", "t1", "") };
    assert_refused(&refused(&pod, nothing).await, Code::InvalidArgument, "invalid_request");

    pod.send(turn_of("s", "t1", "a")).await.unwrap().rest().await.1.unwrap();
    assert_refused(&refused(&pod, turn_of("s", "t1", "b")).await, Code::AlreadyExists, "turn_conflict");

    let large = "a".repeat(4_000);
    assert_refused(&refused(&pod, turn_of("s", "t2", &large)).await, Code::ResourceExhausted, "too_large");
    let cancel = v1::CancelTurnRequest { session: large.clone(), turn: "t".into() };
    let status = pod.client().cancel_turn(cancel).await.unwrap_err();
    assert_refused(&status, Code::ResourceExhausted, "too_large");
    assert!(pod.counted("chatgateway_limit_hits_total{limit=\"message_bytes\"} 2"));
}

#[tokio::test]
async fn a_full_session_says_when_to_try_again() {
    let pod = Pod::start(ENDLESS).await;
    let chat = pod.chat().await;
    for turn in 0..9 {
        chat.send("s", &format!("t{turn}"), "a").await;
    }
    let mut chat = chat;
    let mut receipts = 0;
    while receipts < 9 {
        receipts += usize::from(matches!(chat.next().await, Message::Accepted(_)));
    }
    let status = refused(&pod, turn_of("s", "t9", "a")).await;
    assert_refused(&status, Code::ResourceExhausted, "session_busy");
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
}

#[tokio::test]
async fn the_bound_of_messages_follows_the_settings() {
    let pod = Pod::start(FAST).await;
    let text = "a".repeat(3_000);
    pod.send(turn_of("s", "t1", &text)).await.unwrap().rest().await.1.unwrap();
    let settings = Settings::parse(&format!("{FAST}limits: {{maxMessageBytes: 2048}}\n")).unwrap();
    pod.gateway.apply(settings).unwrap();
    assert_refused(&refused(&pod, turn_of("s", "t2", &text)).await, Code::ResourceExhausted, "too_large");
}

#[tokio::test]
async fn messages_and_options_are_plain_json() {
    let text = |text: &str| Value { kind: Some(Kind::StringValue(text.into())) };
    let object = |fields: &[(&str, Value)]| Struct {
        fields: fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
    };
    let part = object(&[("type", text("text")), ("text", text("in parts"))]);
    let parts = ListValue { values: vec![Value { kind: Some(Kind::StructValue(part)) }] };
    let request = v1::SendRequest {
        text: None,
        messages: vec![
            object(&[("role", text("user")), ("content", text("first"))]),
            object(&[("role", text("user")), ("content", Value { kind: Some(Kind::ListValue(parts)) })]),
        ],
        options: Some(object(&[("max_tokens", Value { kind: Some(Kind::NumberValue(9.0)) })])),
        ..turn_of("s", "t1", "")
    };
    let pod = Pod::start(FAST).await;
    for state in ["running", "done"] {
        let (messages, end) = pod.send(request.clone()).await.unwrap().rest().await;
        end.unwrap();
        assert_eq!(told(&messages[0]), format!("accepted t1 1 {state}"));
        assert_eq!(told(&messages[1]), "turn t1 1 in parts");
    }
    let status = refused(&pod, v1::SendRequest { text: Some("and text".into()), ..request }).await;
    assert_refused(&status, Code::InvalidArgument, "invalid_request");
}

#[tokio::test]
async fn reading_needs_a_position_of_the_log() {
    let pod = Pod::start(FAST).await;
    let (turn, _) = pod.send(turn_of("s", "t1", "a")).await.unwrap().rest().await;

    let mut reading = pod.read("s", id_of(&turn[1]).unwrap()).await.unwrap();
    let Message::Resumed(resumed) = reading.next().await else { panic!("not resumed") };
    assert_eq!((resumed.session.as_str(), resumed.recovered), ("s", true));
    assert_eq!(resumed.position, id_of(&turn[1]).unwrap());
    assert_eq!(reading.until_end_of("t1").await, turn[2..]);

    for nowhere in ["999-1", "1-77"] {
        let status = pod.read("s", nowhere).await.err().expect("a refusal");
        assert_refused(&status, Code::OutOfRange, "not_resumable");
    }
    let status = pod.read("unknown", "1-1").await.err().expect("a refusal");
    assert_refused(&status, Code::OutOfRange, "not_resumable");
    for wrong in ["1", "-", "1-", "01-1", "a-b"] {
        let status = pod.read("s", wrong).await.err().expect("a refusal");
        assert_refused(&status, Code::InvalidArgument, "invalid_request");
    }
    let status = pod.read("", "0").await.err().expect("a refusal");
    assert_refused(&status, Code::InvalidArgument, "invalid_request");

    // A session that is yet to come can be waited for.
    let mut early = pod.read("later", "").await.unwrap();
    let Message::Resumed(resumed) = early.next().await else { panic!("not resumed") };
    assert_eq!((resumed.recovered, resumed.position.as_str()), (true, "0"));
    let (turn, _) = pod.send(turn_of("later", "t1", "a")).await.unwrap().rest().await;
    assert_eq!(early.until_end_of("t1").await, entries(&turn));
}

#[tokio::test]
async fn a_turn_whose_entries_are_gone_cannot_be_told_again() {
    let pod = Pod::start(&format!("{FAST}sessions: {{history: {{maxTurns: 1}}}}\n")).await;
    for turn in ["t1", "t2", "t3", "t4"] {
        pod.send(turn_of("s", turn, "a")).await.unwrap().rest().await.1.unwrap();
    }
    assert_refused(&refused(&pod, turn_of("s", "t1", "a")).await, Code::OutOfRange, "not_resumable");
}

#[tokio::test]
async fn a_session_is_looked_at_stopped_and_deleted() {
    let pod = Pod::start(ENDLESS).await;
    let mut client = pod.client();
    let request = || v1::GetSessionRequest { session: "s".into() };
    let status = client.get_session(request()).await.unwrap_err();
    assert_refused(&status, Code::NotFound, "not_found");

    let cancel = |turn: &str| v1::CancelTurnRequest { session: "s".into(), turn: turn.into() };
    assert_refused(&client.cancel_turn(cancel("t1")).await.unwrap_err(), Code::NotFound, "not_found");

    let mut sent = pod.send(turn_of("s", "t1", "hello")).await.unwrap();
    while !matches!(sent.next().await, Message::Delta(_)) {}
    let running = client.get_session(request()).await.unwrap().into_inner();
    assert_eq!(running.session, "s");
    assert_eq!((running.turns[0].state.as_str(), running.turns[0].text.as_str()), ("running", "hello"));
    let mut reading = pod.read("s", &running.position).await.unwrap();
    assert_eq!(told(&reading.next().await), "resumed true");

    let stopped = client.cancel_turn(cancel("t1")).await.unwrap().into_inner();
    assert_eq!((stopped.turn.as_str(), stopped.state.as_str()), ("t1", "running"));
    let (messages, end) = sent.rest().await;
    end.unwrap();
    assert_eq!(all_told(&messages), ["cancelled t1"]);
    assert_eq!(reading.until_end_of("t1").await.last(), messages.last());
    assert_eq!(client.cancel_turn(cancel("t1")).await.unwrap().into_inner().state, "cancelled");
    let ended = client.get_session(request()).await.unwrap().into_inner();
    assert_eq!((ended.turns[0].seq, ended.turns[0].state.as_str()), (1, "cancelled"));

    for _ in 0..2 {
        client.delete_session(v1::DeleteSessionRequest { session: "s".into() }).await.unwrap();
    }
    let (_, end) = reading.rest().await;
    assert_refused(&end.unwrap_err(), Code::NotFound, "not_found");
    assert_eq!(client.get_session(request()).await.unwrap_err().code(), Code::NotFound);
}

/// A call of any path with a message of any type.
async fn call<T: prost::Message + Default + 'static>(pod: &Pod, path: &'static str, message: T) -> Status {
    let mut grpc = tonic::client::Grpc::new(pod.channel.clone());
    grpc.ready().await.unwrap();
    let codec = ProstCodec::<T, v1::Session>::default();
    grpc.unary(Request::new(message), PathAndQuery::from_static(path), codec).await.unwrap_err()
}

#[tokio::test]
async fn what_is_no_message_or_no_call_is_said_to_be_none() {
    let pod = Pod::start(FAST).await;
    // Field 1 is a number here and a string there.
    let number = v1::Usage { prompt_tokens: 5, ..Default::default() };
    let status = call(&pod, "/chat.v1.ChatService/GetSession", number).await;
    assert_refused(&status, Code::InvalidArgument, "invalid_request");
    for path in ["/chat.v1.ChatService/Nonsense", "/chat.v9.ChatService/Send", "/"] {
        let status = call(&pod, path, v1::Session::default()).await;
        assert_eq!(status.code(), Code::Unimplemented, "{path}: {status:?}");
    }
}

#[tokio::test]
async fn limits_are_metadata_and_refusals_say_when() {
    let pod = Pod::start(&format!("{FAST}rateLimits: [{{per: Session, requestsPerMinute: 60, burst: 1}}]\n")).await;
    let told = |metadata: &tonic::metadata::MetadataMap, name: &str| {
        metadata.get(format!("x-ratelimit-{name}-requests")).map(|value| value.to_str().unwrap().to_owned())
    };
    let first = pod.client().send(turn_of("s", "1", "hello")).await.unwrap();
    assert_eq!(told(first.metadata(), "limit").as_deref(), Some("1"));
    assert_eq!(told(first.metadata(), "remaining").as_deref(), Some("0"));
    assert_eq!(told(first.metadata(), "reset").as_deref(), Some("1s"));
    let status = refused(&pod, turn_of("s", "2", "hello")).await;
    assert_refused(&status, Code::ResourceExhausted, "rate_limited");
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(wait.as_millis() > 0 && wait.as_millis() <= 1_000, "{wait:?}");
    assert_eq!(told(status.metadata(), "remaining").as_deref(), Some("0"));
    // On a chat the same refusal is a message.
    let mut chat = pod.chat().await;
    chat.send("s", "2", "hello").await;
    let Message::Error(error) = chat.next().await else { panic!("no refusal") };
    assert_eq!((error.code.as_str(), error.retryable, error.id), ("rate_limited", true, None));
    tokio::time::sleep(std::time::Duration::from_millis(error.retry_after_ms.unwrap())).await;
    chat.send("s", "2", "hello").await;
    assert!(matches!(chat.next().await, Message::Accepted(_)));
    let plain = Pod::start(FAST).await.client().send(turn_of("s", "1", "hello")).await.unwrap();
    assert_eq!(told(plain.metadata(), "limit"), None);
}
