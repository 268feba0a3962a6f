use chatgateway_core::log::{EndKind, HistoryTurn, SessionId, SessionKey, TurnBody, TurnId, TurnState};
use serde_json::{Value, json};

use super::*;

fn turn(seq: u64, text: &str, answer: &str, end: EndKind) -> HistoryTurn {
    HistoryTurn {
        turn: TurnId::parse("t").unwrap(),
        seq,
        state: TurnState::Ended(end),
        text: text.into(),
        answer: answer.into(),
        finish_reason: "".into(),
        usage: Usage::default(),
    }
}

fn ask(text: &str, extra: &str) -> Ask {
    Ask {
        session: SessionKey::new("t", "p", &SessionId::parse("s").unwrap()),
        history: Vec::new(),
        body: Arc::new(TurnBody::new(text.into(), extra.into())),
        prefix: None,
    }
}

fn body(ask: &Ask) -> Value {
    serde_json::from_slice(&request(ask, "qwen").unwrap()).unwrap()
}

#[test]
fn a_turn_follows_its_history() {
    let mut ask = ask("and \"now\"?\n", "");
    ask.history = vec![
        turn(1, "hi", "hello", EndKind::Done),
        turn(2, "broken", "", EndKind::Failed),
        turn(3, "long", "cut", EndKind::Cancelled),
    ];
    let expected = json!({
        "model": "qwen",
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "long"},
            {"role": "assistant", "content": "cut"},
            {"role": "user", "content": "and \"now\"?\n"},
        ],
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    assert_eq!(body(&ask), expected);
}

#[test]
fn messages_and_options_are_passed_on_but_not_what_is_the_gateways() {
    let extra = json!({
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": [{"type": "text", "text": "x"}]}],
        "model": "other",
        "options": {"temperature": 0.5, "stream": false, "n": 3, "model": "evil", "stop": ["\n"], "big": 12345678901234567890_u64},
    });
    let sent = body(&ask("x", &extra.to_string()));
    assert_eq!(sent["messages"], extra["messages"]);
    assert_eq!((&sent["model"], &sent["stream"], sent.get("n")), (&json!("qwen"), &json!(true), None));
    assert_eq!((&sent["temperature"], &sent["stop"]), (&json!(0.5), &json!(["\n"])));
    assert_eq!(sent["big"], json!(12345678901234567890_u64));
}

#[test]
fn a_partial_answer_is_continued() {
    let mut ask = ask("count", "");
    ask.prefix = Some("one two".into());
    let sent = body(&ask);
    assert_eq!(sent["messages"][1], json!({"role": "assistant", "content": "one two"}));
    assert_eq!((&sent["continue_final_message"], &sent["add_generation_prompt"]), (&json!(true), &json!(false)));
}

#[test]
fn malformed_extras_are_refused() {
    assert!(request(&ask("x", "{\"messages\": 5}"), "m").is_err());
}

fn read(pieces: &[&str]) -> Result<Told, Failure> {
    let mut told = Told::default();
    let mut stream = ChatStream::new();
    for piece in pieces {
        stream.read("m", piece.as_bytes(), &mut told)?;
    }
    Ok(told)
}

#[test]
fn chunks_give_text_reason_and_usage() {
    let told = read(&[
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"Gr\\u00fc\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"ße\\n\"}}]}\n\n",
        ": keep-alive\n\ndata: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\",\"content\":null},\"finish_reason\":\"length\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5,\"details\":{}}}\n\n",
        "data: [DONE]\n\ndata: what comes after is not read\n\n",
    ])
    .unwrap();
    assert_eq!((told.text.as_str(), told.finish_reason.as_deref(), told.done), ("Grüße\n", Some("length"), true));
    assert_eq!(told.usage, Usage { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 });
}

#[test]
fn only_the_first_choice_is_read() {
    let told =
        read(&["data: {\"choices\":[{\"delta\":{\"content\":\"a\"}},{\"delta\":{\"content\":\"b\"}}]}\n\n"]).unwrap();
    assert_eq!(told.text, "a");
}

#[test]
fn what_is_no_chunk_is_named() {
    let failure = read(&["data: <html>\n\n"]).unwrap_err();
    assert!(failure.message.contains("<html>"), "{}", failure.message);
    assert!(read(&["data: {\"choices\":\"none\"}\n\n"]).is_err());
    let nested = format!("data: {}\n\n", "[".repeat(10_000));
    assert!(read(&[&nested]).unwrap_err().message.len() < 1_000);
}

#[test]
fn errors_in_the_stream_are_failures() {
    for event in [
        "data: {\"error\":{\"message\":\"out of memory\",\"code\":500}}\n\n",
        "event: error\ndata: {\"message\":\"out of memory\"}\n\n",
        "event: error\ndata: out of memory\n\n",
    ] {
        let failure = read(&[event]).unwrap_err();
        assert!(failure.message.ends_with("out of memory"), "{}", failure.message);
    }
    assert!(read(&["data: {\"error\":null,\"choices\":[]}\n\n"]).is_ok());
}

#[test]
fn a_whole_answer_is_read_too() {
    let mut told = Told::default();
    let body = json!({"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}});
    whole("m", body.to_string().as_bytes(), &mut told).unwrap();
    assert_eq!((told.text.as_str(), told.finish_reason.as_deref(), told.usage.total_tokens), ("hi", Some("stop"), 2));
    assert!(whole("m", b"{}", &mut Told::default()).is_err());
}
