//! From what a client sends to what a turn asks, and from the store's word to the client's.

use std::sync::Arc;

use chatgateway_core::{
    error::{ErrorCode, Refusal},
    log::{BeginReply, TurnBody, TurnId},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{gateway::SendTurn, transport::nesting};

/// What a turn says beside its text, as its body keeps it.
#[derive(Default, Serialize)]
pub(crate) struct Extra<'a> {
    /// The whole list of messages, where the client sent one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<&'a RawValue>,
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
    /// Options for the model server, an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<&'a RawValue>,
}

impl Extra<'_> {
    /// As JSON; empty where it says nothing.
    pub fn to_json(&self) -> Result<Arc<str>, Refusal> {
        if self.messages.is_none() && self.model.is_none() && self.options.is_none() {
            return Ok(Arc::from(""));
        }
        Ok(serde_json::to_string(self).map_err(|e| invalid(e.to_string()))?.into())
    }
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: Option<String>,
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::InvalidRequest, message)
}

/// The text of the last user message.
pub(crate) fn last_user_text(messages: &RawValue) -> Result<String, Refusal> {
    let messages: Vec<Message> = serde_json::from_str(messages.get())
        .map_err(|e| invalid(format!("messages: each needs a role, and content as text or parts ({e})")))?;
    let last = messages.into_iter().rev().find(|m| m.role == "user").and_then(|m| m.content);
    match last {
        Some(Content::Text(text)) => Ok(text),
        Some(Content::Parts(parts)) => Ok(parts.into_iter().filter_map(|p| p.text).collect::<Vec<_>>().join("\n")),
        None => Err(invalid("messages: none has role \"user\" and content; the last such message is the turn's text")),
    }
}

/// What a turn asks.
///
/// # Errors
/// `invalid_request` where it asks nothing, or twice.
pub fn body(send: &SendTurn) -> Result<TurnBody, Refusal> {
    let text = match (&send.text, &send.messages) {
        (Some(_), Some(_)) => return Err(invalid("give text or messages, not both")),
        (None, None) => return Err(invalid("text: missing; say what the user said, or give messages")),
        (Some(text), None) => text.clone(),
        (None, Some(messages)) => last_user_text(messages)?,
    };
    if text.is_empty() {
        return Err(invalid("text: empty; a turn needs at least one character"));
    }
    if send.options.as_ref().is_some_and(|o| !o.get().trim_start().starts_with('{')) {
        return Err(invalid("options: must be an object"));
    }
    for (name, json) in [("messages", &send.messages), ("options", &send.options)] {
        if let Some(json) = json {
            nesting::check(name, json.get().as_bytes())?;
        }
    }
    let extra =
        Extra { messages: send.messages.as_deref(), model: send.model.as_deref(), options: send.options.as_deref() };
    Ok(TurnBody::new(text.into(), extra.to_json()?))
}

/// Why the store did not take a turn.
#[must_use]
pub fn refusal(reply: &BeginReply, turn: &TurnId) -> Refusal {
    match reply {
        BeginReply::Conflict => Refusal::new(
            ErrorCode::TurnConflict,
            format!("turn {turn} was sent before with another text; a new turn needs a new id"),
        ),
        BeginReply::Gone => Refusal::new(
            ErrorCode::NotFound,
            format!("turn {turn} belonged to a session that was deleted; a new turn needs a new id"),
        ),
        BeginReply::SeqGap { expected } => Refusal {
            expected: Some(*expected),
            ..Refusal::new(ErrorCode::SeqGap, format!("seq: the session's next turn is number {expected}"))
        },
        BeginReply::Busy => Refusal::new(
            ErrorCode::SessionBusy,
            "too many turns wait in this session; send this one again when some have ended",
        )
        .retry_after_ms(1_000),
        BeginReply::Owner { .. } | BeginReply::Queued { .. } | BeginReply::Known(_) => {
            Refusal::new(ErrorCode::Internal, "an accepted turn is no refusal")
        }
    }
}
