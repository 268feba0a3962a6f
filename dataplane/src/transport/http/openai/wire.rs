//! The objects of OpenAI's API, as its official clients take them.

use std::time::{SystemTime, UNIX_EPOCH};

use chatgateway_core::log::Usage;
use serde::Serialize;

use crate::transport::http::{answer::CANCELLED, problem::Problem};

/// Which of the two endpoints an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Text,
}

/// What all objects of one answer have in common.
#[derive(Clone, Debug)]
pub struct Wire {
    /// The answer's id.
    pub id: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The model that the client asked for.
    pub model: String,
    /// Which endpoint.
    pub kind: Kind,
    /// Whether the stream ends with what the answer cost (`stream_options.include_usage`).
    pub include_usage: bool,
}

/// One finished answer.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The text.
    pub text: String,
    /// Why the model stopped.
    pub finish_reason: String,
    /// What it cost.
    pub usage: Usage,
}

impl Wire {
    /// An answer that begins now. `key` makes its id.
    pub fn new(kind: Kind, key: &str, model: String, include_usage: bool) -> Self {
        let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self { id: format!("{prefix}-{key}"), created, model, kind, include_usage }
    }

    /// The whole answer as one object.
    pub fn whole(&self, answers: &[Finished]) -> Vec<u8> {
        let mut usage = Usage::default();
        for one in answers.iter().map(|a| a.usage) {
            usage.prompt_tokens += one.prompt_tokens;
            usage.completion_tokens += one.completion_tokens;
            usage.total_tokens += one.total_tokens;
        }
        let choices = answers.iter().enumerate().map(|(index, answer)| {
            let end = Some(finish_reason(&answer.finish_reason));
            match self.kind {
                Kind::Chat => {
                    let message = Message { role: "assistant", content: &answer.text, refusal: None };
                    Choice {
                        index,
                        message: Some(message),
                        delta: None,
                        text: None,
                        logprobs: None,
                        finish_reason: end,
                    }
                }
                Kind::Text => Choice::text(index, &answer.text, end),
            }
        });
        let object = if self.kind == Kind::Chat { "chat.completion" } else { "text_completion" };
        let mut out = Vec::new();
        write_json(&mut out, &self.object(object, choices.collect(), Some(Some(usage))));
        out
    }

    /// What a stream begins with: the role, before any text.
    pub fn write_first(&self, out: &mut Vec<u8>, index: usize) {
        if self.kind == Kind::Chat {
            self.write_chunk(out, Choice::delta(index, Some("assistant"), Some(""), None));
        }
    }

    /// A piece of text.
    pub fn write_text(&self, out: &mut Vec<u8>, index: usize, text: &str) {
        self.write_chunk(
            out,
            match self.kind {
                Kind::Chat => Choice::delta(index, None, Some(text), None),
                Kind::Text => Choice::text(index, text, None),
            },
        );
    }

    /// The end of one answer.
    pub fn write_end(&self, out: &mut Vec<u8>, index: usize, reason: &str) {
        let end = Some(finish_reason(reason));
        self.write_chunk(
            out,
            match self.kind {
                Kind::Chat => Choice::delta(index, None, None, end),
                Kind::Text => Choice::text(index, "", end),
            },
        );
    }

    /// The end of the stream.
    pub fn write_done(&self, out: &mut Vec<u8>, usage: Usage) {
        if self.include_usage {
            write_event(out, &self.object(self.chunk_object(), Vec::new(), Some(Some(usage))));
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn write_chunk(&self, out: &mut Vec<u8>, choice: Choice<'_>) {
        // With include_usage every chunk has the field, and only the last one has it filled.
        let usage = self.include_usage.then_some(None);
        write_event(out, &self.object(self.chunk_object(), vec![choice], usage));
    }

    fn chunk_object(&self) -> &'static str {
        if self.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" }
    }

    fn object<'a>(
        &'a self,
        object: &'static str,
        choices: Vec<Choice<'a>>,
        usage: Option<Option<Usage>>,
    ) -> Object<'a> {
        Object { id: &self.id, object, created: self.created, model: &self.model, choices, usage }
    }
}

/// Ends a stream with an error: OpenAI's clients raise it.
pub fn write_error(out: &mut Vec<u8>, problem: &Problem) {
    write_event(out, &problem.openai_object());
}

/// OpenAI knows no cancelled answer; for its clients the model was stopped.
fn finish_reason(reason: &str) -> &str {
    if reason == CANCELLED || reason.is_empty() { "stop" } else { reason }
}

fn write_json(out: &mut Vec<u8>, value: &impl Serialize) {
    // Numbers and text into memory: cannot fail.
    let _ = serde_json::to_writer(out, value);
}

fn write_event(out: &mut Vec<u8>, value: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    write_json(out, value);
    out.extend_from_slice(b"\n\n");
}

#[derive(Serialize)]
struct Object<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<Delta<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    logprobs: Option<()>,
    finish_reason: Option<&'a str>,
}

impl<'a> Choice<'a> {
    fn delta(index: usize, role: Option<&'static str>, content: Option<&'a str>, end: Option<&'a str>) -> Self {
        let delta = Some(Delta { role, content });
        Self { index, message: None, delta, text: None, logprobs: None, finish_reason: end }
    }

    fn text(index: usize, text: &'a str, end: Option<&'a str>) -> Self {
        Self { index, message: None, delta: None, text: Some(text), logprobs: None, finish_reason: end }
    }
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// A model, as `/v1/models` lists it.
#[derive(Serialize)]
pub struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'a str,
}

impl<'a> Model<'a> {
    /// A model of an upstream.
    pub fn new(id: &'a str, upstream: &'a str) -> Self {
        // Nobody knows when a model server's model was made; clients only want a number.
        Self { id, object: "model", created: 0, owned_by: upstream }
    }
}

/// A list of objects.
#[derive(Serialize)]
pub struct List<T> {
    object: &'static str,
    data: Vec<T>,
}

impl<T> List<T> {
    /// A list that is complete.
    pub fn new(data: Vec<T>) -> Self {
        Self { object: "list", data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(kind: Kind, include_usage: bool) -> Wire {
        Wire { created: 7, ..Wire::new(kind, "k", "m".into(), include_usage) }
    }

    const USAGE: Usage = Usage { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 };

    #[test]
    fn a_chat_stream_is_role_text_end_usage_done() {
        let (wire, mut out) = (wire(Kind::Chat, true), Vec::new());
        wire.write_first(&mut out, 0);
        wire.write_text(&mut out, 0, "hi");
        wire.write_end(&mut out, 0, "stop");
        wire.write_done(&mut out, USAGE);
        let head = r#"data: {"id":"chatcmpl-k","object":"chat.completion.chunk","created":7,"model":"m","choices":["#;
        let want = [
            r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{"content":"hi"},"logprobs":null,"finish_reason":null}],"usage":null}"#,
            r#"{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}"#,
            r#"],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#,
        ];
        let want: String = want.iter().map(|w| format!("{head}{w}\n\n")).collect();
        assert_eq!(String::from_utf8(out).unwrap(), want + "data: [DONE]\n\n");
    }

    #[test]
    fn a_text_stream_has_no_role_and_no_usage_unless_asked() {
        let (wire, mut out) = (wire(Kind::Text, false), Vec::new());
        wire.write_first(&mut out, 0);
        assert!(out.is_empty());
        wire.write_text(&mut out, 1, "hi");
        wire.write_done(&mut out, USAGE);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "data: {\"id\":\"cmpl-k\",\"object\":\"text_completion\",\"created\":7,\"model\":\"m\",\"choices\":\
             [{\"index\":1,\"text\":\"hi\",\"logprobs\":null,\"finish_reason\":null}]}\n\ndata: [DONE]\n\n"
        );
    }

    #[test]
    fn whole_answers_add_their_usage_up() {
        let one = Finished { text: "a".into(), finish_reason: CANCELLED.into(), usage: USAGE };
        let two = Finished { finish_reason: "length".into(), ..one.clone() };
        let value: serde_json::Value =
            serde_json::from_slice(&wire(Kind::Text, false).whole(&[one.clone(), two])).unwrap();
        assert_eq!(value["usage"]["total_tokens"], 6);
        assert_eq!(value["choices"][0]["finish_reason"], "stop");
        assert_eq!(value["choices"][1]["index"], 1);
        assert_eq!(value["choices"][1]["finish_reason"], "length");
        let chat: serde_json::Value = serde_json::from_slice(&wire(Kind::Chat, false).whole(&[one])).unwrap();
        assert_eq!(chat["object"], "chat.completion");
        assert_eq!(chat["choices"][0]["message"]["content"], "a");
    }
}
