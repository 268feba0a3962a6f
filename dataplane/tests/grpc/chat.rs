//! `Chat`: one stream for everything.

use chatgateway_core::limits::READ_PAGE_ENTRIES;
use chatgateway_proto::v1::{self, ClientMessage, client_message, server_message::Message};
use prost_types::{Struct, Value, value::Kind};
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn a_turn_is_its_receipt_and_its_entries() {
    let pod = Pod::start(FAST).await;
    let mut chat = pod.raw_chat().await;
    let Message::Hello(hello) = chat.next().await else { panic!("the first message is no hello") };
    let settings = pod.gateway.settings();
    assert_eq!((hello.protocol.as_str(), &hello.revision), ("chat.v1", &settings.gateway.revision));
    assert_eq!((hello.ping_interval_ms, hello.max_message_bytes), (30_000, 256 * 1024));

    chat.send("s", "t1", "How are you?").await;
    let messages = chat.down.until_end_of("t1").await;
    assert_eq!(all_told(&messages), ["accepted t1 1 running", "turn t1 1 How are you?", "delta t1", "done t1 stop"]);
    assert!(answer(&messages).starts_with("You said: How are you?\n"), "{messages:?}");
    let ids: Vec<(u64, u64)> = messages.iter().filter_map(id_of).map(numbers).collect();
    assert_eq!(ids, [(ids[0].0, 0), (ids[0].0, 1), (ids[0].0, 2)]);
    let Some(Message::Done(done)) = messages.last() else { panic!("not done") };
    let usage = done.usage.unwrap();
    assert_eq!(usage.prompt_tokens, 3);
    assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
}

fn numbers(id: &str) -> (u64, u64) {
    let (epoch, n) = id.split_once('-').unwrap();
    (epoch.parse().unwrap(), n.parse().unwrap())
}

#[tokio::test]
async fn a_client_that_half_closes_at_once_gets_the_answers_of_waiting_turns_too() {
    let pod = Pod::start(STEADY).await;
    let mut chat = pod.chat().await;
    for turn in ["t1", "t2", "t3"] {
        chat.send("s", turn, "a").await;
    }
    chat.send("other", "t1", "b").await;
    chat.half_close();
    let (messages, end) = chat.down.rest().await;
    end.unwrap();
    let receipts: Vec<_> = all_told(&messages).into_iter().filter(|m| m.starts_with("accepted")).collect();
    let want = ["accepted t1 1 running", "accepted t2 2 queued", "accepted t3 3 queued", "accepted t1 1 running"];
    assert_eq!(receipts, want);
    let ends = messages.iter().filter(|m| matches!(m, Message::Done(_))).count();
    assert_eq!(ends, 4, "{:?}", all_told(&messages));
}

#[tokio::test]
async fn a_client_that_half_closes_after_a_resume_gets_what_is_there() {
    let pod = Pod::start(FAST).await;
    let mut all = Vec::new();
    for i in 0..40 {
        let (messages, end) = pod.send(turn_of("s", &format!("t{i}"), "a")).await.unwrap().rest().await;
        end.unwrap();
        all.extend(entries(&messages));
    }
    assert!(all.len() > READ_PAGE_ENTRIES, "the log has to be more than one page");
    let mut chat = pod.chat().await;
    chat.resume("s", id_of(&all[0]).unwrap()).await;
    chat.half_close();
    let (messages, end) = chat.down.rest().await;
    end.unwrap();
    assert_eq!(told(&messages[0]), "resumed true");
    assert_eq!(messages[1..], all[1..]);

    let mut early = pod.chat().await;
    early.resume("new", "0").await;
    early.half_close();
    let (messages, end) = early.down.rest().await;
    end.unwrap();
    assert_eq!(all_told(&messages), ["resumed true"]);
}

#[tokio::test]
async fn half_closing_an_idle_chat_ends_it() {
    let pod = Pod::start(FAST).await;
    let mut chat = pod.chat().await;
    chat.half_close();
    let (messages, end) = chat.down.rest().await;
    end.unwrap();
    assert!(messages.is_empty(), "{messages:?}");
}

#[tokio::test]
async fn any_stream_can_cancel_and_all_readers_are_told() {
    let pod = Pod::start(ENDLESS).await;
    let (mut one, two) = (pod.chat().await, pod.chat().await);
    one.send("s", "t1", "hello").await;
    one.send("s", "t2", "again").await;
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(Message::Delta(_))) {
        seen.push(one.next().await);
    }
    two.cancel("s", "t2").await;
    two.cancel("s", "t1").await;
    let rest = one.down.until_end_of("t2").await;
    let entries: Vec<_> = all_told(&entries(&rest));
    assert_eq!(entries, ["cancelled t1", "turn t2 2 again", "cancelled t2"], "{rest:?}");
}

#[tokio::test]
async fn refusals_are_messages_and_the_stream_goes_on() {
    let pod = Pod::start(FAST).await;
    let mut chat = pod.chat().await;

    chat.put_raw(ClientMessage { message: None }).await;
    let error = chat.error().await;
    assert_eq!((error.code.as_str(), error.session, error.retryable), ("invalid_request", None, false));

    chat.send("..", "t1", "a").await;
    let error = chat.error().await;
    assert_eq!((error.code.as_str(), error.session.as_deref()), ("invalid_request", Some("..")));
    assert_eq!(error.id, None);

    chat.send("s", &"t".repeat(129), "a").await;
    assert_eq!(chat.error().await.code, "invalid_request");

    chat.send("s", "t1", "").await;
    assert_eq!(chat.error().await.code, "invalid_request");

    let gap = v1::SendRequest { seq: Some(7), ..turn_of("s", "t1", "a") };
    chat.put(client_message::Message::Send(gap)).await;
    let error = chat.error().await;
    assert_eq!((error.code.as_str(), error.expected, error.turn.as_deref()), ("seq_gap", Some(1), Some("t1")));

    let number = Value { kind: Some(Kind::NumberValue(f64::NAN)) };
    let options = Some(Struct { fields: [("temperature".to_owned(), number)].into() });
    chat.put(client_message::Message::Send(v1::SendRequest { options, ..turn_of("s", "t1", "a") })).await;
    assert_eq!(chat.error().await.code, "invalid_request");

    chat.cancel("s", "t9").await;
    assert_eq!(chat.error().await.code, "not_found");

    chat.send("s", "t1", "good").await;
    let messages = chat.down.until_end_of("t1").await;
    assert_eq!(told(&messages[0]), "accepted t1 1 running");

    chat.send("s", "t1", "another text").await;
    assert_eq!(chat.error().await.code, "turn_conflict");
    assert!(pod.counted("chatgateway_refusals_total{code=\"turn_conflict\"} 1"));
    assert!(pod.counted("chatgateway_refusals_total{code=\"invalid_request\"} 5"));
}

#[tokio::test]
async fn a_resume_goes_on_exactly_where_the_client_stands() {
    let pod = Pod::start(FAST).await;
    let mut chat = pod.chat().await;
    for turn in ["t1", "t2"] {
        chat.send("s", turn, "a").await;
        chat.down.until_end_of(turn).await;
    }
    chat.resume("s", "").await;
    let resumed = chat.next().await;
    assert_eq!(told(&resumed), "resumed true");
    let all = chat.down.until_end_of("t2").await;
    assert_eq!(all.len(), 6);
    for (i, message) in all.iter().enumerate() {
        let id = id_of(message).unwrap();
        chat.resume("s", id).await;
        let Message::Resumed(resumed) = chat.next().await else { panic!("not resumed") };
        assert_eq!((resumed.recovered, resumed.position.as_str()), (true, id));
        for later in &all[i + 1..] {
            assert_eq!(&chat.next().await, later);
        }
    }
    for nowhere in ["9-9", "1-2-3", "x"] {
        chat.resume("s", nowhere).await;
        assert_eq!(told(&chat.next().await), "resumed false", "{nowhere}");
    }
}

#[tokio::test]
async fn readers_of_a_session_are_told_the_same() {
    let pod = Pod::start(STEADY).await;
    let (mut one, mut two) = (pod.chat().await, pod.chat().await);
    two.resume("s", "0").await;
    assert_eq!(told(&two.next().await), "resumed true");
    let mut three = pod.read("s", "0").await.unwrap();
    assert_eq!(told(&three.next().await), "resumed true");

    one.send("s", "t1", "a b c").await;
    let sender = entries(&one.down.until_end_of("t1").await);
    assert!(sender.len() > 2, "{sender:?}");
    assert_eq!(two.down.until_end_of("t1").await, sender);
    assert_eq!(three.until_end_of("t1").await, sender);
}

#[tokio::test]
async fn a_repeated_send_is_a_receipt_where_it_was_read_and_the_whole_turn_elsewhere() {
    let pod = Pod::start(FAST).await;
    let mut chat = pod.chat().await;
    chat.send("s", "t1", "a").await;
    let first = chat.down.until_end_of("t1").await;
    chat.send("s", "t1", "a").await;
    let Message::Accepted(again) = chat.next().await else { panic!("no receipt") };
    assert_eq!((again.duplicate, again.state.as_str(), again.seq), (true, "done", 1));
    let t = "7".to_owned();
    chat.put(client_message::Message::Ping(v1::Ping { t: t.clone() })).await;
    assert_eq!(chat.next().await, Message::Pong(v1::Pong { t }), "nothing comes between");

    let mut other = pod.chat().await;
    other.send("s", "t1", "a").await;
    other.half_close();
    let (messages, end) = other.down.rest().await;
    end.unwrap();
    assert_eq!(entries(&messages), entries(&first));
}

#[tokio::test]
async fn readers_hear_that_their_session_was_deleted() {
    let pod = Pod::start(ENDLESS).await;
    let mut chat = pod.chat().await;
    chat.send("s", "t1", "a").await;
    while !matches!(chat.next().await, Message::Delta(_)) {}
    pod.client().delete_session(v1::DeleteSessionRequest { session: "s".into() }).await.unwrap();
    let error = loop {
        if let Message::Error(error) = chat.next().await {
            break error;
        }
    };
    assert_eq!((error.code.as_str(), error.session.as_deref(), error.id), ("not_found", Some("s"), None));
    chat.half_close();
    chat.down.rest().await.1.unwrap();
}

#[tokio::test]
async fn a_message_above_the_bound_ends_the_stream() {
    let pod = Pod::start(&format!("{FAST}limits: {{maxMessageBytes: 2048}}\n")).await;
    let mut chat = pod.chat().await;
    chat.send("s", "t1", &"a".repeat(1_900)).await;
    chat.down.until_end_of("t1").await;
    chat.send("s", "t2", &"a".repeat(2_100)).await;
    let (messages, end) = chat.down.rest().await;
    assert!(messages.is_empty(), "{messages:?}");
    let status = end.unwrap_err();
    assert_refused(&status, Code::ResourceExhausted, "too_large");
    assert!(status.message().contains("2048 bytes"), "{status:?}");
    assert!(pod.counted("chatgateway_limit_hits_total{limit=\"message_bytes\"} 1"));
}
