//! The tokens of an answer that passes through as it is.

use axum::body::Bytes;
use chatgateway_core::{limits::LIMIT_USAGE_TAIL_BYTES, log::Usage};
use http_body::Frame;

use crate::limiter::Account;

/// Counts events, and looks for the model server's own count at the end. Dropped, it settles.
pub struct Counted {
    /// The request's account.
    pub account: Account,
    /// Whether the answer comes as events: then each is a token, about.
    events: bool,
    /// The last bytes of the answer.
    tail: Vec<u8>,
}

impl Counted {
    /// An answer of this request.
    pub fn new(account: Account, events: bool) -> Self {
        Self { account, events, tail: Vec::new() }
    }

    /// A piece passes.
    pub fn read(&mut self, frame: &Frame<Bytes>) {
        let Some(data) = frame.data_ref() else { return };
        if self.events {
            let events = data.windows(5).filter(|window| window == b"data:").count();
            // What stands around the text of an event is much longer than the text.
            self.account.pieces(0, events as u64);
        } else {
            self.account.pieces(data.len(), 0);
        }
        let kept = data.len().min(LIMIT_USAGE_TAIL_BYTES);
        self.tail.extend_from_slice(&data[data.len() - kept..]);
        let more = self.tail.len().saturating_sub(LIMIT_USAGE_TAIL_BYTES);
        self.tail.drain(..more);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.account.end(usage_in(&self.tail));
    }
}

/// What the last `usage` in an answer's end says. Nothing, where there is none.
fn usage_in(tail: &[u8]) -> Usage {
    let tail = String::from_utf8_lossy(tail);
    let found = tail.rfind("\"usage\"").and_then(|at| tail[at + 7..].trim_start().strip_prefix(':'));
    let mut values = serde_json::Deserializer::from_str(found.unwrap_or("null")).into_iter::<serde_json::Value>();
    let Some(Ok(usage)) = values.next() else { return Usage::default() };
    let number = |name: &str| usage[name].as_u64().unwrap_or_default();
    Usage {
        prompt_tokens: number("prompt_tokens"),
        completion_tokens: number("completion_tokens"),
        total_tokens: number("total_tokens"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_servers_count_is_found_at_the_end() {
        let usage = r#"data: {"choices":[],"usage":null}

data: {"choices":[],"usage": {"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"details":{"x":1}},"odd":1}

data: [DONE]

"#;
        assert_eq!(usage_in(usage.as_bytes()).total_tokens, 7);
        let whole = r#"{"choices":[{"text":"say \"usage\""}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#;
        assert_eq!(usage_in(whole.as_bytes()).completion_tokens, 1);
        for none in ["", "data: [DONE]", r#""usage":null}"#, r#""usage":{"total"#, "\u{fffd}"] {
            assert_eq!(usage_in(none.as_bytes()), Usage::default(), "{none}");
        }
    }
}
