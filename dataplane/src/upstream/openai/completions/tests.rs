use std::sync::Arc;

use chatgateway_core::log::{SessionId, SessionKey, TurnBody};
use serde_json::{Value, json};

use super::*;

fn completion(extra: &str, prefix: Option<&str>, format: PromptFormat) -> Completion {
    let ask = Ask {
        session: SessionKey::new("t", "p", &SessionId::parse("s").unwrap()),
        history: Vec::new(),
        body: Arc::new(TurnBody::new("say \"hi\"".into(), extra.into())),
        prefix: prefix.map(str::to_owned),
    };
    Completion::new(&ask, "qwen", format).unwrap()
}

fn body(completion: &Completion) -> Value {
    serde_json::from_slice(&completion.body()).unwrap()
}

#[test]
fn a_turn_is_a_streamed_completion_that_stops_where_the_format_does() {
    let plain = completion("", None, PromptFormat::Plain);
    assert_eq!(
        body(&plain),
        json!({"model": "qwen", "prompt": "User: say \"hi\"\nAssistant:", "stream": true,
            "stream_options": {"include_usage": true}, "stop": "\nUser:"})
    );
    assert!(plain.trim && !completion("", Some("I"), PromptFormat::Plain).trim);
    let marks = completion("", None, PromptFormat::ChatML);
    assert_eq!((&body(&marks)["stop"], marks.trim), (&json!("<|im_end|>"), false));
}

#[test]
fn options_are_passed_on_but_not_what_would_change_the_answers_number() {
    let extra = r#"{"options":{"temperature":0,"stop":["x"],"max_completion_tokens":7,"n":3,"best_of":2,"echo":true,
        "stream":false,"prompt":"y","model":"z"}}"#;
    let body = body(&completion(extra, None, PromptFormat::Plain));
    assert_eq!((&body["stop"], &body["max_tokens"], &body["temperature"]), (&json!(["x"]), &json!(7), &json!(0)));
    assert_eq!((&body["model"], &body["stream"]), (&json!("qwen"), &json!(true)));
    for gone in ["n", "best_of", "echo", "max_completion_tokens"] {
        assert!(body.get(gone).is_none(), "{gone}");
    }
}

#[test]
fn equal_options_are_equal_whatever_their_order() {
    let rest = |extra| completion(extra, None, PromptFormat::Plain).rest;
    assert_eq!(rest(r#"{"options":{"temperature":0,"top_p":1}}"#), rest(r#"{"options":{"top_p":1,"temperature":0}}"#));
    assert_ne!(rest(r#"{"options":{"temperature":0}}"#), rest(r#"{"options":{"temperature":1}}"#));
}
