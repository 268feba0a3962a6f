//! How the simulator answers a call: the pace, the text, and what goes wrong.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a call may be told to do wrong. The faults of an answer under way happen before token `fault_after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The connection is closed without an answer.
    Refuse,
    /// The answer stops and never goes on; the connection stays.
    Stall,
    /// The connection is closed in the middle of the answer.
    Die,
    /// The answer goes on with bytes that are neither events nor JSON nor UTF-8.
    Garbage,
    /// The answer goes on with one event of `huge_line_bytes`.
    HugeLine,
    /// The answer ends in good order but too early: no finish reason, no `[DONE]`.
    Truncate,
    /// The answer goes on with an error object in place of a chunk, and ends.
    ErrorEvent,
}

/// How one call is answered. Every field can be set by flag, at run time, or by the call itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// From the start of the call (a worker took it) to its first token.
    pub first_token_ms: f64,
    /// What each further prompt of the same call adds to that.
    pub first_token_per_extra_ms: f64,
    /// Pace of the tokens after the first one; 0: all at once. Without effect where `total_ms` is set.
    pub tokens_per_second: f64,
    /// From the start of the call to its end; the tokens are spread evenly.
    pub total_ms: Option<f64>,
    /// What each further prompt of the same call adds to that.
    pub total_per_extra_ms: f64,
    /// Tokens an answer has; `max_tokens` of the call cuts it.
    pub tokens: u32,
    /// Tokens are filled with `x` to this size. Without effect where `answer` or `stamp` is set.
    pub token_bytes: usize,
    /// The answer word by word, `{text}` standing for what was asked. Without it, token i is the number i and a space.
    pub answer: Option<String>,
    /// Tokens are send times: see [`super::stamps`].
    pub stamp: bool,
    /// Part of the time to the first token that a prompt saves which is remembered from its start to its end, 0 to 1; one that
    /// is remembered in part saves so much less. Needs room for blocks in the settings.
    pub prefix_saving: f64,
    /// Refuse the call with this HTTP status.
    pub status: Option<u16>,
    /// `retry-after` of such a refusal.
    pub retry_after_s: Option<u64>,
    /// Further headers of such a refusal, such as `x-ratelimit-reset-requests`.
    pub refusal_headers: BTreeMap<String, String>,
    /// Body of such a refusal; without it, OpenAI's error object.
    pub error_body: Option<String>,
    /// A prompt of more words than this makes the whole call fail, with OpenAI's error of a context that is too long.
    pub context_words: Option<usize>,
    /// A prompt that contains this text ends alone after `fault_after` tokens, with `failing_reason`; the others of its call go on.
    pub failing: Option<String>,
    /// Finish reason of such an end.
    pub failing_reason: String,
    /// What goes wrong.
    pub fault: Option<Fault>,
    /// Tokens sent before it does.
    pub fault_after: u32,
    /// Size of the line of [`Fault::HugeLine`].
    pub huge_line_bytes: usize,
    /// Every byte of the answer is written alone.
    pub one_byte: bool,
    /// The body of the answer, piece by piece at the pace of tokens, in place of one made here.
    pub raw: Option<Vec<String>>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            first_token_ms: 0.0,
            first_token_per_extra_ms: 0.0,
            tokens_per_second: 0.0,
            total_ms: None,
            total_per_extra_ms: 0.0,
            tokens: 10,
            token_bytes: 0,
            answer: None,
            stamp: false,
            status: None,
            prefix_saving: 0.0,
            retry_after_s: None,
            refusal_headers: BTreeMap::new(),
            error_body: None,
            context_words: None,
            failing: None,
            failing_reason: "error".to_owned(),
            fault: None,
            fault_after: 2,
            huge_line_bytes: 10 * 1024 * 1024,
            one_byte: false,
            raw: None,
        }
    }
}

impl Behaviour {
    /// A model server that gains by batching: a call alone has its first token after 80 ms and ends after 200, a batch of
    /// four after 140 and 348.
    pub fn batching_server() -> Self {
        Self {
            first_token_ms: 80.0,
            first_token_per_extra_ms: 20.0,
            total_ms: Some(200.0),
            total_per_extra_ms: 148.0 / 3.0,
            ..Self::default()
        }
    }

    /// This behaviour with the fields that `changes`, a JSON object, names.
    pub fn with(&self, changes: &Value) -> anyhow::Result<Self> {
        let changes = changes.as_object().context("a behaviour is a JSON object")?;
        let mut merged = serde_json::to_value(self)?;
        if let Some(fields) = merged.as_object_mut() {
            fields.extend(changes.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        let merged: Self = serde_json::from_value(merged).context("simulator behaviour")?;
        merged.check()?;
        Ok(merged)
    }

    fn check(&self) -> anyhow::Result<()> {
        let times =
            [self.first_token_ms, self.first_token_per_extra_ms, self.tokens_per_second, self.total_per_extra_ms];
        let bounded = |value: f64| (0.0..=3_600_000.0).contains(&value);
        anyhow::ensure!(
            times.into_iter().chain(self.total_ms).all(bounded),
            "times and rates of the simulator go from 0 to 3,600,000"
        );
        anyhow::ensure!((0.0..=1.0).contains(&self.prefix_saving), "prefix_saving goes from 0 to 1");
        for (name, value) in &self.refusal_headers {
            anyhow::ensure!(
                HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok(),
                "refusal_headers: {name:?}: {value:?} is no header"
            );
        }
        Ok(())
    }

    /// This behaviour towards a call of whose prompts that share, 0 to 1, is remembered.
    pub fn remembering(mut self, share: f64) -> Self {
        let saved = self.prefix_saving * share;
        let (first_ms, extra_ms) = (self.first_token_ms * saved, self.first_token_per_extra_ms * saved);
        self.first_token_ms -= first_ms;
        self.first_token_per_extra_ms -= extra_ms;
        self.total_ms = self.total_ms.map(|total_ms| (total_ms - first_ms).max(0.0));
        self.total_per_extra_ms = (self.total_per_extra_ms - extra_ms).max(0.0);
        self
    }

    /// When token `index` of `tokens` is due after the start of a call of `prompts` prompts.
    pub fn due(&self, index: usize, tokens: usize, prompts: usize) -> Duration {
        let extra = prompts.saturating_sub(1) as f64;
        let first_ms = self.first_token_ms + self.first_token_per_extra_ms * extra;
        let due_ms = match self.total_ms {
            Some(_) if tokens > 1 => {
                let spread_ms = (self.total(prompts).as_secs_f64() * 1_000.0 - first_ms).max(0.0);
                first_ms + spread_ms * index as f64 / (tokens - 1) as f64
            }
            None if self.tokens_per_second > 0.0 => first_ms + 1_000.0 * index as f64 / self.tokens_per_second,
            Some(_) | None => first_ms,
        };
        Duration::from_secs_f64(due_ms / 1_000.0)
    }

    /// When a call of `prompts` prompts ends at the earliest.
    pub fn total(&self, prompts: usize) -> Duration {
        let extra = prompts.saturating_sub(1) as f64;
        let total_ms = self.total_ms.map_or(0.0, |total_ms| total_ms + self.total_per_extra_ms * extra);
        Duration::from_secs_f64(total_ms / 1_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batching_server_has_its_four_times() {
        let server = Behaviour::batching_server();
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        for (prompts, first, end) in [(1, 80.0, 200.0), (4, 140.0, 348.0)] {
            assert!((ms(server.due(0, 10, prompts)) - first).abs() < 0.001, "{prompts} prompts: first token");
            assert!((ms(server.due(9, 10, prompts)) - end).abs() < 0.001, "{prompts} prompts: last token");
            assert!((ms(server.total(prompts)) - end).abs() < 0.001, "{prompts} prompts: end");
        }
    }

    #[test]
    fn what_is_remembered_saves_its_share_of_the_first_token() {
        let server = Behaviour { prefix_saving: 0.5, ..Behaviour::batching_server() }.remembering(0.5);
        assert_eq!((server.due(0, 10, 1), server.total(1)), (Duration::from_millis(60), Duration::from_millis(180)));
        assert_eq!((server.due(0, 10, 4), server.total(4)), (Duration::from_millis(105), Duration::from_millis(313)));
    }

    #[test]
    fn rate_paces_after_the_first_token() {
        let behaviour = Behaviour { first_token_ms: 30.0, tokens_per_second: 50.0, ..Behaviour::default() };
        assert_eq!(behaviour.due(0, 100, 1), Duration::from_millis(30));
        assert_eq!(behaviour.due(5, 100, 1), Duration::from_millis(130));
    }

    #[test]
    fn changes_name_fields_and_unknown_ones_are_refused() {
        let changed = Behaviour::default().with(&serde_json::json!({"tokens": 3, "fault": "stall"})).unwrap();
        assert_eq!((changed.tokens, changed.fault), (3, Some(Fault::Stall)));
        assert!(Behaviour::default().with(&serde_json::json!({"tokns": 3})).is_err());
        assert!(Behaviour::default().with(&serde_json::json!({"first_token_ms": -1.0})).is_err());
        assert!(Behaviour::default().with(&serde_json::json!([])).is_err());
        assert!(Behaviour::default().with(&serde_json::json!({"prefix_saving": 2})).is_err());
        assert!(Behaviour::default().with(&serde_json::json!({"refusal_headers": {"a b": "c"}})).is_err());
    }
}
