//! From settings and requests to limits and what counts against them.

use chatgateway_config::{LimitPer, LimitUnit, OnStoreFailure, Settings, UpstreamKind};
use chatgateway_core::{
    limiter::{
        Limit, Per, Rule, Rules, Unit,
        meter::tokens_of,
        verdict::{Demand, answer_chunk},
    },
    log::TurnBody,
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

/// The limits of a configuration.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    pub(super) rules: Rules,
    /// What each of them does while the store is away.
    pub(super) failure: Vec<OnStoreFailure>,
    /// Tokens that are taken ahead for an answer of unknown length. `None`: tokens are not limited.
    pub(super) chunk: Option<u64>,
    /// The most tokens of an answer whose request names no number, where the model server is told one.
    bound: Option<u64>,
}

impl RuleSet {
    pub(super) fn new(settings: &Settings) -> Self {
        let rule = |limit: &chatgateway_config::RateLimitSettings| Rule {
            per: match limit.per {
                LimitPer::Session => Per::Session,
                LimitPer::User => Per::User,
                LimitPer::Address => Per::Address,
                LimitPer::Gateway => Per::Gateway,
            },
            unit: match limit.unit {
                LimitUnit::Requests => Unit::Requests,
                LimitUnit::Tokens => Unit::Tokens,
            },
            limit: Limit { per_minute: limit.per_minute, burst: limit.burst },
        };
        let rules = Rules(settings.rate_limits.iter().map(rule).collect());
        let bound = settings.upstreams.first().and_then(|upstream| match upstream.kind {
            UpstreamKind::Simple { max_tokens, .. } => Some(u64::from(max_tokens)),
            _ => None,
        });
        Self {
            failure: settings.rate_limits.iter().map(|limit| limit.on_store_failure).collect(),
            chunk: rules.least_tokens().map(answer_chunk),
            rules,
            bound,
        }
    }

    /// What a turn takes, without the history before it.
    pub(super) fn of_turn(&self, body: &TurnBody) -> Demand {
        #[derive(Deserialize)]
        struct Extra<'a> {
            #[serde(default, borrow)]
            messages: Option<&'a RawValue>,
            #[serde(default)]
            options: Option<Bounds>,
        }
        if self.chunk.is_none() {
            return Demand { prompt: 0, answer: None };
        }
        let extra = serde_json::from_str(&body.extra).unwrap_or(Extra { messages: None, options: None });
        let bytes = extra.messages.map_or(body.text.len(), |messages| messages.get().len());
        Demand { prompt: tokens_of(bytes), answer: extra.options.and_then(|bounds| bounds.tokens()).or(self.bound) }
    }

    /// What a request to OpenAI's API takes, by its body.
    pub(super) fn of_request(&self, body: &[u8]) -> Demand {
        #[derive(Default, Deserialize)]
        struct Request<'a> {
            #[serde(default, borrow)]
            messages: Option<&'a RawValue>,
            #[serde(default, borrow)]
            prompt: Option<&'a RawValue>,
            #[serde(default)]
            n: Option<Value>,
            #[serde(flatten)]
            bounds: Bounds,
        }
        if self.chunk.is_none() {
            return Demand { prompt: 0, answer: None };
        }
        let request = serde_json::from_slice::<Request<'_>>(body).unwrap_or_default();
        let bytes = [request.messages, request.prompt].iter().flatten().map(|json| json.get().len()).sum::<usize>();
        let prompts = request.prompt.map_or(1, |prompt| {
            // A list of texts, or of lists of tokens, is as many prompts; a list of tokens is one.
            let list = serde_json::from_str::<Vec<&RawValue>>(prompt.get()).unwrap_or_default();
            list.iter().filter(|one| one.get().starts_with(['"', '['])).count().max(1)
        });
        let choices = request.n.and_then(|n| n.as_u64()).unwrap_or(1).max(1).saturating_mul(prompts as u64);
        let answer = request.bounds.tokens().or(self.bound).map(|answer| answer.saturating_mul(choices));
        Demand { prompt: tokens_of(bytes).max(1), answer }
    }
}

/// How long an answer may be, as clients say it.
#[derive(Default, Deserialize)]
struct Bounds {
    #[serde(default)]
    max_completion_tokens: Option<Value>,
    #[serde(default)]
    max_tokens: Option<Value>,
}

impl Bounds {
    fn tokens(&self) -> Option<u64> {
        [&self.max_completion_tokens, &self.max_tokens].into_iter().flatten().find_map(Value::as_u64)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn set(limits: &str) -> RuleSet {
        RuleSet::new(&Settings::parse(&format!("rateLimits: {limits}")).unwrap())
    }

    fn tokens() -> RuleSet {
        set("[{per: User, tokensPerMinute: 60000}]")
    }

    #[test]
    fn settings_become_rules() {
        let set = set(
            "[{per: Gateway, requestsPerSecond: 2000, burst: 4000, onStoreFailure: Closed}, {per: User, tokensPerMinute: 600}]",
        );
        let limit = |per_minute, burst| Limit { per_minute, burst };
        assert_eq!(
            set.rules.0,
            [
                Rule { per: Per::Gateway, unit: Unit::Requests, limit: limit(120_000, 4_000) },
                Rule { per: Per::User, unit: Unit::Tokens, limit: limit(600, 600) }
            ]
        );
        assert_eq!(set.failure, [OnStoreFailure::Closed, OnStoreFailure::LocalShare]);
        assert_eq!(set.chunk, Some(150));
        assert_eq!(tokens().chunk, Some(256));
    }

    #[test]
    fn a_turn_takes_its_text_or_its_messages_and_what_its_answer_may_have() {
        let turn = |text: &str, extra: &str| tokens().of_turn(&TurnBody::new(text.into(), extra.into()));
        assert_eq!(turn("12345678", ""), Demand { prompt: 2, answer: None });
        let messages = r#"{"messages":[{"role":"user","content":"hi"}],"options":{"max_tokens":7}}"#;
        assert_eq!(turn("hi", messages), Demand { prompt: 8, answer: Some(7) });
        let both = r#"{"options":{"max_tokens":7,"max_completion_tokens":9}}"#;
        assert_eq!(turn("hi", both).answer, Some(9));
        assert_eq!(turn("hi", r#"{"options":{"max_tokens":"many"}}"#).answer, None);
        let requests = set("[{per: User, requestsPerMinute: 60}]");
        assert_eq!(requests.of_turn(&TurnBody::new("hi".into(), "".into())).prompt, 0, "nobody counts");
    }

    #[test]
    fn a_request_takes_for_each_prompt_and_choice() {
        let request = |body: &str| tokens().of_request(body.as_bytes());
        let chat = r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":10,"n":3}"#;
        assert_eq!(request(chat), Demand { prompt: 9, answer: Some(30) });
        assert_eq!(request(r#"{"prompt":["a","b"],"max_tokens":10}"#).answer, Some(20));
        assert_eq!(request(r#"{"prompt":[1,2,3],"max_tokens":10}"#).answer, Some(10));
        assert_eq!(request(r#"{"prompt":[[1,2],[3]],"max_tokens":10}"#).answer, Some(20));
        assert_eq!(request(r#"{"prompt":"12345678"}"#), Demand { prompt: 3, answer: None });
        assert_eq!(request("no json"), Demand { prompt: 1, answer: None });
    }

    #[test]
    fn a_server_that_is_told_a_number_keeps_to_it() {
        let text = "{upstreams: [{name: s, type: Simple, simple: {url: 'http://s', maxTokens: 64}}], rateLimits: [{per: User, tokensPerMinute: 600}]}";
        let set = RuleSet::new(&Settings::parse(text).unwrap());
        assert_eq!(set.of_turn(&TurnBody::new("hi".into(), "".into())).answer, Some(64));
    }
}
