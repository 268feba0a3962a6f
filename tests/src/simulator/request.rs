//! What a request asks for, whichever of the protocols it speaks.

use anyhow::Context as _;
use serde_json::Value;

use super::behaviour::Behaviour;

/// How a call is asked and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`, one prompt or an array of them.
    Completions,
    /// `POST /chat`: `{"prompt", "max_tokens"}` gives `{"text"}`.
    Simple,
    /// `POST /chat/batch`: `{"prompts": […]}` gives `{"texts": […]}`.
    SimpleBatch,
}

impl Protocol {
    /// The protocol spoken at a path, if it is one for calls.
    pub fn at(path: &str) -> Option<Self> {
        match path {
            "/v1/chat/completions" => Some(Self::Chat),
            "/v1/completions" => Some(Self::Completions),
            "/chat" => Some(Self::Simple),
            "/chat/batch" => Some(Self::SimpleBatch),
            _ => None,
        }
    }
}

/// A parsed request.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The protocol it came in.
    pub protocol: Protocol,
    /// The model asked for; empty in the `Simple` protocol.
    pub model: String,
    /// Whether the answer is a stream of events, which the `Simple` protocol has not.
    pub stream: bool,
    /// Whether the stream ends with a usage chunk.
    pub include_usage: bool,
    /// What is asked: the last user message, or each prompt.
    pub prompts: Vec<String>,
    /// The part of the answer that the call has already: a last message of the assistant.
    pub prefix: String,
    /// Answers to each prompt.
    pub answers: usize,
    /// Most tokens of an answer.
    pub max_tokens: Option<u32>,
    /// Words of everything asked, the count of prompt tokens.
    pub prompt_tokens: usize,
    /// The whole body.
    pub body: Value,
}

/// Most answers one call may ask for, over all prompts.
const ANSWERS_MAX: usize = 256;

impl Ask {
    /// Reads a request's body. The error is for the client, with status 400.
    pub fn parse(protocol: Protocol, body: &[u8]) -> anyhow::Result<Self> {
        let body: Value = serde_json::from_slice(body).context("the body is not JSON")?;
        let (prompts, prefix) = match protocol {
            Protocol::Chat => chat_prompt(&body)?,
            Protocol::Completions | Protocol::Simple => (prompts(&body["prompt"]).context("prompt")?, String::new()),
            Protocol::SimpleBatch => (prompts(&body["prompts"]).context("prompts")?, String::new()),
        };
        let answers = body["n"].as_u64().map_or(1, |n| usize::try_from(n).unwrap_or(usize::MAX));
        anyhow::ensure!(
            answers > 0 && answers.saturating_mul(prompts.len()) <= ANSWERS_MAX,
            "a call asks for 1 to {ANSWERS_MAX} answers"
        );
        let max_tokens = body["max_completion_tokens"].as_u64().or(body["max_tokens"].as_u64());
        Ok(Self {
            protocol,
            model: body["model"].as_str().unwrap_or_default().to_owned(),
            stream: matches!(protocol, Protocol::Chat | Protocol::Completions) && body["stream"] == true,
            include_usage: body["stream_options"]["include_usage"].as_bool().unwrap_or(false),
            prefix,
            answers,
            max_tokens: max_tokens.map(|tokens| u32::try_from(tokens).unwrap_or(u32::MAX)),
            prompt_tokens: words_asked(&body),
            prompts,
            body,
        })
    }

    /// `default` with what the call itself changes: by its model's name, by its text, by the field `sim` of its body, or
    /// by its header `x-sim`, the later ones winning. What the text says of the simulator is taken out of the text.
    pub fn behaviour(&mut self, default: &Behaviour, header: Option<&str>) -> anyhow::Result<Behaviour> {
        let mut behaviour = default.clone();
        if let Some(changes) = self.model.strip_prefix("sim:") {
            behaviour = behaviour.with(&serde_json::from_str(changes).context("model name")?)?;
        }
        if let [prompt] = self.prompts.as_mut_slice()
            && let Some((changes, text)) = leading_changes(prompt)
        {
            behaviour = behaviour.with(&changes)?;
            *prompt = text;
        }
        if let Some(changes) = self.body.get("sim") {
            behaviour = behaviour.with(changes)?;
        }
        if let Some(changes) = header {
            behaviour = behaviour.with(&serde_json::from_str(changes).context("header x-sim")?)?;
        }
        Ok(behaviour)
    }
}

/// Splits `sim:{…} text`, so that the behaviour can be set through every transport, plain text too.
fn leading_changes(prompt: &str) -> Option<(Value, String)> {
    let rest = prompt.strip_prefix("sim:")?;
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    let changes = values.next()?.ok()?;
    let text = rest.get(values.byte_offset()..).unwrap_or_default();
    Some((changes, text.trim_start().to_owned()))
}

fn chat_prompt(body: &Value) -> anyhow::Result<(Vec<String>, String)> {
    let messages = body["messages"].as_array().filter(|messages| !messages.is_empty());
    let messages = messages.context("messages: a list of at least one message")?;
    let text_of = |role: &str| {
        let message = messages.iter().rev().find(|message| message["role"] == role);
        message.map(|message| content_text(&message["content"])).unwrap_or_default()
    };
    let continues = messages.last().is_some_and(|last| last["role"] == "assistant");
    let prefix = if continues { text_of("assistant") } else { String::new() };
    Ok((vec![text_of("user")], prefix))
}

/// A message's text, whether it is a string or a list of parts.
pub fn content_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

fn prompts(value: &Value) -> anyhow::Result<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a string is missing");
    match value {
        Value::Array(values) if !values.is_empty() => values.iter().map(text).collect(),
        value => Ok(vec![text(value)?]),
    }
}

/// Words in every text of the request: a stand-in for a tokenizer.
fn words_asked(body: &Value) -> usize {
    let words = |text: &str| text.split_whitespace().count();
    let messages = body["messages"].as_array().into_iter().flatten();
    let said: usize = messages.map(|message| words(&content_text(&message["content"]))).sum();
    let prompts = [&body["prompt"], &body["prompts"]].into_iter().filter_map(|value| prompts(value).ok()).flatten();
    said + prompts.map(|prompt| words(&prompt)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ask(protocol: Protocol, body: &Value) -> anyhow::Result<Ask> {
        Ask::parse(protocol, body.to_string().as_bytes())
    }

    #[test]
    fn the_last_user_message_is_asked_and_a_last_answer_is_continued() {
        let body = json!({"model": "m", "max_tokens": 3, "messages": [
            {"role": "user", "content": "first"},
            {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "0 1 "}]});
        let ask = ask(Protocol::Chat, &body).unwrap();
        assert_eq!((ask.prompts, ask.prefix.as_str()), (vec!["one two".to_owned()], "0 1 "));
        assert_eq!((ask.max_tokens, ask.prompt_tokens), (Some(3), 5));
    }

    #[test]
    fn changes_of_the_call_win_in_order_and_leave_the_text() {
        let body = json!({"model": "sim:{\"tokens\": 1, \"status\": 500}", "sim": {"tokens": 3},
            "messages": [{"role": "user", "content": "sim:{\"tokens\": 2, \"stamp\": true} hello"}]});
        let mut ask = ask(Protocol::Chat, &body).unwrap();
        let behaviour = ask.behaviour(&Behaviour::default(), Some("{\"fault\": \"die\"}")).unwrap();
        assert_eq!((behaviour.tokens, behaviour.status, behaviour.stamp), (3, Some(500), true));
        assert!(behaviour.fault.is_some());
        assert_eq!(ask.prompts, ["hello"]);
    }

    #[test]
    fn bad_bodies_are_refused() {
        assert!(ask(Protocol::Chat, &json!({"messages": []})).is_err());
        assert!(ask(Protocol::Completions, &json!({"prompt": [1, 2]})).is_err());
        assert!(ask(Protocol::SimpleBatch, &json!({"prompts": vec!["a"; 257]})).is_err());
        assert!(Ask::parse(Protocol::Simple, b"{").is_err());
    }
}
