//! What is read of a request to OpenAI's API. Everything else in it is passed on.

use std::borrow::Cow;

use chatgateway_core::limits::PROMPTS_MAX;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use super::wire::Kind;
use crate::transport::http::{problem::Problem, request::parse};

/// The fields that the gateway itself acts on.
#[derive(Deserialize)]
pub struct Asked<'a> {
    /// The model; the gateway's default where it is missing.
    #[serde(default, borrow)]
    pub model: Option<Cow<'a, str>>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    n: Option<u64>,
    #[serde(default, borrow)]
    tools: Option<&'a RawValue>,
    #[serde(default, borrow)]
    functions: Option<&'a RawValue>,
    /// The conversation, of chat completions.
    #[serde(default, borrow)]
    pub messages: Option<&'a RawValue>,
    #[serde(default, borrow)]
    prompt: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

/// What the gateway does itself and does not tell the model server again.
const OWN_FIELDS: [&str; 10] = [
    "model",
    "messages",
    "prompt",
    "stream",
    "stream_options",
    "n",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
];

impl<'a> Asked<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// No JSON object, or a field of the wrong type.
    pub fn parse(body: &'a [u8]) -> Result<Self, Problem> {
        parse(body)
    }

    /// Whether the answer is to be a stream.
    pub fn stream(&self) -> bool {
        self.stream == Some(true)
    }

    /// Whether a stream ends with what it cost.
    pub fn include_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|o| o.include_usage) == Some(true)
    }

    /// Refuses what only a model server with OpenAI's API can do.
    ///
    /// # Errors
    /// `n` above 1.
    pub fn one_choice(&self, why: &str) -> Result<(), Problem> {
        match self.n {
            None | Some(1) => Ok(()),
            Some(n) => Err(Problem::invalid(format!("n is {n}: {why}")).param("n")),
        }
    }

    /// Refuses what a session cannot keep.
    ///
    /// # Errors
    /// Tools, or `n` above 1.
    pub fn fit_for_session(&self) -> Result<(), Problem> {
        let why = "with x-session-id there is one answer a turn";
        self.one_choice(why)?;
        for (name, list) in [("tools", self.tools), ("functions", self.functions)] {
            if list.is_some_and(|list| !matches!(list.get(), "null" | "[]")) {
                let message =
                    format!("{name}: with x-session-id a turn's answer is text; leave {name} or the header out");
                return Err(Problem::invalid(message).param(name));
            }
        }
        Ok(())
    }

    /// The turn's text, or the message it is in where that holds more than text.
    ///
    /// # Errors
    /// No user message, no prompt.
    pub fn turn_text(&self, kind: Kind) -> Result<TurnText, Problem> {
        match kind {
            Kind::Text => match <[String; 1]>::try_from(self.prompts()?) {
                Ok([text]) => Ok(TurnText::Text(text)),
                Err(_) => Err(Problem::invalid("prompt: with x-session-id it must be one string").param("prompt")),
            },
            Kind::Chat => last_user_message(self.required_messages()?),
        }
    }

    /// The conversation.
    ///
    /// # Errors
    /// There is none.
    pub fn required_messages(&self) -> Result<&'a RawValue, Problem> {
        self.messages.ok_or_else(|| Problem::invalid("messages: missing; give a list of messages").param("messages"))
    }

    /// The prompts: one string, or a list of them.
    ///
    /// # Errors
    /// None, too many, or token numbers, which only the model itself understands.
    pub fn prompts(&self) -> Result<Vec<String>, Problem> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Prompts {
            One(String),
            More(Vec<String>),
        }
        let wrong = |message: String| Problem::invalid(message).param("prompt");
        let prompt = self.prompt.ok_or_else(|| wrong("prompt: missing; give a string or a list of strings".into()))?;
        let prompts = match serde_json::from_str(prompt.get()) {
            Ok(Prompts::One(prompt)) => vec![prompt],
            Ok(Prompts::More(prompts)) => prompts,
            Err(_) => return Err(wrong("prompt: must be a string or a list of strings".into())),
        };
        if prompts.is_empty() || prompts.len() > PROMPTS_MAX {
            return Err(wrong(format!("prompt: 1 to {PROMPTS_MAX} strings, here are {}", prompts.len())));
        }
        if prompts.iter().any(String::is_empty) {
            return Err(wrong("prompt: an empty string asks nothing".into()));
        }
        Ok(prompts)
    }
}

/// Everything of a body that goes on to the model server as options, as one JSON object.
///
/// # Errors
/// The body is no JSON object.
pub fn options(body: &[u8]) -> Result<Option<Box<RawValue>>, Problem> {
    let mut fields: Map<String, Value> = parse(body)?;
    for own in OWN_FIELDS {
        fields.remove(own);
    }
    if fields.is_empty() {
        return Ok(None);
    }
    serde_json::value::to_raw_value(&fields).map(Some).map_err(|e| Problem::invalid(format!("the body: {e}")))
}

/// What a turn of a session says.
#[derive(Debug)]
pub enum TurnText {
    /// Plain text.
    Text(String),
    /// A message with parts, as a list of one.
    Message(Box<RawValue>),
}

/// The last message of the user: the session has the ones before it.
fn last_user_message(messages: &RawValue) -> Result<TurnText, Problem> {
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow)]
        role: Cow<'a, str>,
        #[serde(default, borrow)]
        content: Option<&'a RawValue>,
    }
    let wrong = |message: String| Problem::invalid(message).param("messages");
    let messages: Vec<&RawValue> =
        serde_json::from_str(messages.get()).map_err(|e| wrong(format!("messages: must be a list ({e})")))?;
    for raw in messages.into_iter().rev() {
        let message: Message<'_> = serde_json::from_str(raw.get())
            .map_err(|e| wrong(format!("messages: each needs a role and content ({e})")))?;
        let Some(content) = message.content.filter(|_| message.role == "user") else { continue };
        if let Ok(text) = serde_json::from_str::<String>(content.get()) {
            return Ok(TurnText::Text(text));
        }
        let list = RawValue::from_string(format!("[{}]", raw.get()));
        return list.map(TurnText::Message).map_err(|e| wrong(format!("messages: {e}")));
    }
    Err(wrong("messages: none is the user's; the last message with role \"user\" joins the session".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(body: &str) -> Asked<'_> {
        Asked::parse(body.as_bytes()).unwrap()
    }

    #[test]
    fn the_last_user_message_joins() {
        let text = asked(r#"{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b\n"},{"role":"assistant","content":"c"}]}"#)
            .turn_text(Kind::Chat)
            .unwrap();
        assert!(matches!(text, TurnText::Text(t) if t == "b\n"));
        let parts = asked(r#"{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}]}"#);
        let TurnText::Message(list) = parts.turn_text(Kind::Chat).unwrap() else { unreachable!("it has parts") };
        assert_eq!(list.get(), r#"[{"role":"user","content":[{"type":"text","text":"x"}]}]"#);
        for wrong in
            [r#"{}"#, r#"{"messages":[]}"#, r#"{"messages":{}}"#, r#"{"messages":[{"role":"system","content":"x"}]}"#]
        {
            assert!(asked(wrong).turn_text(Kind::Chat).is_err(), "{wrong}");
        }
    }

    #[test]
    fn prompts_are_strings() {
        assert_eq!(asked(r#"{"prompt":"a"}"#).prompts().unwrap(), ["a"]);
        assert_eq!(asked(r#"{"prompt":["a","b"]}"#).prompts().unwrap(), ["a", "b"]);
        for wrong in [r#"{}"#, r#"{"prompt":[]}"#, r#"{"prompt":[1,2]}"#, r#"{"prompt":""}"#, r#"{"prompt":7}"#] {
            assert!(asked(wrong).prompts().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_known_goes_on_as_options() {
        let body = br#"{"model":"m","messages":[],"stream":true,"n":1,"temperature":0.5,"x":{"y":[1]}}"#;
        assert_eq!(options(body).unwrap().unwrap().get(), r#"{"temperature":0.5,"x":{"y":[1]}}"#);
        assert!(options(br#"{"model":"m"}"#).unwrap().is_none());
    }

    #[test]
    fn sessions_take_neither_tools_nor_choices() {
        assert!(asked(r#"{"tools":[],"n":1,"functions":null}"#).fit_for_session().is_ok());
        assert!(asked(r#"{"tools":[{}]}"#).fit_for_session().is_err());
        assert!(asked(r#"{"functions":[{}]}"#).fit_for_session().is_err());
        assert!(asked(r#"{"n":2}"#).fit_for_session().is_err());
    }
}
