use serde_json::json;

use super::*;

const STREAM: Dialect = Dialect::Pass { stream: true, usage: true };

fn split(dialect: Dialect, prompts: &[usize]) -> Split {
    Split::new("m".into(), dialect, prompts.iter().map(|bytes| (*bytes, false)))
}

fn event(split: &mut Split, event: &Value) {
    split.event(&event.to_string()).unwrap();
}

fn choice(index: usize, text: &str, reason: Option<&str>) -> Value {
    json!({"choices": [{"index": index, "text": text, "finish_reason": reason}]})
}

fn ends(split: &mut Split) -> Vec<(usize, Usage)> {
    split.finish();
    let end = |(index, piece)| match piece {
        Piece::End { usage, .. } => Some((index, usage)),
        _ => None,
    };
    split.take().into_iter().filter_map(end).collect()
}

#[test]
fn the_usage_is_shared_by_what_each_asked_and_got() {
    let mut turns = split(Dialect::Turns, &[30, 10]);
    for text in ["a", "b", "c"] {
        event(&mut turns, &choice(0, text, None));
    }
    event(&mut turns, &choice(1, "d", Some("stop")));
    assert!(!turns.is_done() && !turns.is_finished());
    event(&mut turns, &choice(0, "", Some("stop")));
    assert!(turns.is_finished() && !turns.is_done(), "what it cost is still to come");
    event(
        &mut turns,
        &json!({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}}),
    );
    assert!(turns.is_done());
    let usage = |prompt_tokens, completion_tokens| Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens: prompt_tokens + completion_tokens,
    };
    assert_eq!(ends(&mut turns), [(0, usage(7, 4)), (1, usage(2, 1))]);
}

#[test]
fn what_was_not_answered_fails_alone() {
    let mut turns = split(Dialect::Turns, &[1, 1]);
    event(&mut turns, &choice(0, "a", Some("stop")));
    turns.event("[DONE]").unwrap();
    turns.finish();
    let pieces = turns.take();
    assert!(matches!(&pieces[1], (0, Piece::End { .. })), "{pieces:?}");
    assert!(matches!(&pieces[2], (1, Piece::Failed(failure)) if failure.message.contains("no answer to one prompt")));
}

#[test]
fn choices_of_nobody_are_ignored() {
    let mut turns = split(Dialect::Turns, &[1]);
    event(&mut turns, &choice(7, "x", None));
    assert!(turns.take().is_empty());
    turns.left(0);
    event(&mut turns, &choice(0, "x", None));
    assert!(turns.take().is_empty() && turns.is_done());
}

#[test]
fn an_error_for_all_is_one_and_nonsense_too() {
    let mut turns = split(Dialect::Turns, &[1, 1]);
    assert!(turns.event(r#"{"error":{"message":"the engine died"}}"#).unwrap_err().message.contains("the engine died"));
    assert!(turns.event("{").unwrap_err().message.contains("no completion"));
    assert!(split(Dialect::Simple, &[1]).whole(b"{\"text\":\"x\"}").is_err());
    assert!(split(STREAM, &[1]).whole(b"\xff").is_err());
}

#[test]
fn fields_that_the_gateway_does_not_know_pass_through() {
    let mut pass = split(STREAM, &[1, 1]);
    let big =
        r#"{"id":"c","system_fingerprint":"f","n":1e400,"choices":[{"index":1,"text":"x","logprobs":{"a":[1]}}]}"#;
    pass.event(big).unwrap();
    let [(1, Piece::Bytes(bytes))] = &pass.take()[..] else { panic!("one piece") };
    let text = std::str::from_utf8(bytes).unwrap();
    for part in ["\"id\":\"c-1\"", "\"system_fingerprint\":\"f\"", "1e400", "\"index\":0", "\"logprobs\":{\"a\":[1]}"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(text.starts_with("data: {") && text.ends_with("}\n\n"));
}
