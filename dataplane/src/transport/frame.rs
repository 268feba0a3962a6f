//! The JSON frames of subprotocol `chatgateway.v1`, in both directions. SSE's `data` and the long poll's `events` are the
//! same objects.

use std::borrow::Cow;

use chatgateway_core::{
    error::{ErrorCode, Refusal},
    log::{Entry, EntryId, EntryKind, SessionId, TurnId, Usage},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{nesting, standing::RateLimits};
use crate::gateway::{Receipt, SendTurn};

/// The subprotocol's name.
pub const SUBPROTOCOL: &str = "chatgateway.v1";

/// A frame from the client. Unknown fields are ignored, unknown types are refused.
#[derive(Debug)]
pub enum ClientFrame<'a> {
    /// A turn.
    Send(SendFrame<'a>),
    /// Read a session's log after an entry.
    Resume {
        /// The session.
        session: Cow<'a, str>,
        /// An entry's id, or `0`.
        after: Cow<'a, str>,
    },
    /// Stop a turn.
    Cancel {
        /// The session.
        session: Cow<'a, str>,
        /// The turn.
        turn: Cow<'a, str>,
    },
    /// The client's own sign of life.
    Ping {
        /// Given back as it came.
        t: Option<&'a RawValue>,
    },
}

/// The fields of `send`.
#[derive(Debug)]
pub struct SendFrame<'a> {
    /// The session.
    pub session: Cow<'a, str>,
    /// The turn's id, made by the client.
    pub turn: Cow<'a, str>,
    /// The number the client expects the turn to get.
    pub seq: Option<u64>,
    /// What the user says.
    pub text: Option<Cow<'a, str>>,
    /// Or a list of messages, the last of which is the user's.
    pub messages: Option<&'a RawValue>,
    /// The model.
    pub model: Option<Cow<'a, str>>,
    /// Options for the model server.
    pub options: Option<&'a RawValue>,
}

/// The fields of all frames: read in one pass, whatever their order.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    session: Option<Cow<'a, str>>,
    #[serde(borrow)]
    turn: Option<Cow<'a, str>>,
    seq: Option<u64>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow)]
    options: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<Cow<'a, str>>,
    #[serde(borrow)]
    t: Option<&'a RawValue>,
}

impl<'a> ClientFrame<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`]: not JSON, an unknown type, a field that is missing or of the wrong kind.
    pub fn parse(text: &'a str) -> Result<Self, Refusal> {
        let invalid = |message: String| Refusal::new(ErrorCode::InvalidRequest, message);
        let fields: Fields<'a> =
            serde_json::from_str(text).map_err(|e| invalid(format!("not a frame of {SUBPROTOCOL}: {e}")))?;
        let needed = |field: Option<Cow<'a, str>>, name: &str| {
            field.ok_or_else(|| invalid(format!("a {:?} frame needs the field {name:?}", fields.kind)))
        };
        match &*fields.kind {
            "send" => Ok(Self::Send(SendFrame {
                session: needed(fields.session, "session")?,
                turn: needed(fields.turn, "turn")?,
                seq: fields.seq,
                text: fields.text,
                messages: fields.messages,
                model: fields.model,
                options: fields.options,
            })),
            "resume" => {
                Ok(Self::Resume { session: needed(fields.session, "session")?, after: needed(fields.after, "after")? })
            }
            "cancel" => {
                Ok(Self::Cancel { session: needed(fields.session, "session")?, turn: needed(fields.turn, "turn")? })
            }
            "ping" => {
                if let Some(t) = fields.t {
                    nesting::check("t", t.get().as_bytes())?;
                }
                Ok(Self::Ping { t: fields.t })
            }
            _ => Err(invalid("unknown type of frame; clients send send, resume, cancel and ping".into())),
        }
    }
}

impl SendFrame<'_> {
    /// The turn it asks for.
    ///
    /// # Errors
    /// [`Refusal`] where an id is not one.
    pub fn into_turn(self) -> Result<SendTurn, Refusal> {
        Ok(SendTurn {
            session: session_id(&self.session)?,
            turn: turn_id(&self.turn)?,
            seq: self.seq,
            text: self.text.map(Cow::into_owned),
            messages: self.messages.map(ToOwned::to_owned),
            model: self.model.map(Cow::into_owned),
            options: self.options.map(ToOwned::to_owned),
        })
    }
}

/// Takes a session's id from a client.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`].
pub fn session_id(text: &str) -> Result<SessionId, Refusal> {
    SessionId::parse(text).map_err(|e| Refusal::new(ErrorCode::InvalidRequest, format!("session: {e}")))
}

/// Takes a turn's id from a client.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`].
pub fn turn_id(text: &str) -> Result<TurnId, Refusal> {
    TurnId::parse(text).map_err(|e| Refusal::new(ErrorCode::InvalidRequest, format!("turn: {e}")))
}

/// Takes a position from a client.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`].
pub fn position(text: &str) -> Result<EntryId, Refusal> {
    text.parse().map_err(|e| Refusal::new(ErrorCode::InvalidRequest, format!("position {text:?}: {e}")))
}

/// Ids go out as text.
pub(crate) fn as_text<T: std::fmt::Display, S: serde::Serializer>(id: &T, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(id)
}

/// A frame from the server.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerFrame<'a> {
    /// The first frame of a connection.
    Hello {
        /// The subprotocol.
        protocol: &'static str,
        /// The gateway's build and configuration, so that clients can tell old pods from new ones.
        revision: &'a str,
        /// How often the server pings.
        ping_interval_ms: u64,
        /// The largest message it takes.
        max_message_bytes: u64,
    },
    /// The receipt of a `send`.
    Accepted {
        /// The session.
        session: &'a str,
        /// The turn.
        turn: &'a str,
        /// The turn's number.
        seq: u64,
        /// Where it stands.
        state: &'static str,
        /// How many run or wait before it.
        #[serde(skip_serializing_if = "Option::is_none")]
        place: Option<u32>,
        /// Whether the turn was known before.
        duplicate: bool,
        /// How the rate limits stand, where there are any.
        #[serde(skip_serializing_if = "Option::is_none")]
        rate_limits: Option<RateLimits>,
    },
    /// The outcome of a `resume`.
    Resumed {
        /// The session.
        session: &'a str,
        /// Whether every later entry follows. If not, none does: take the snapshot.
        recovered: bool,
        /// The reader's position.
        #[serde(serialize_with = "as_text")]
        position: EntryId,
    },
    /// A turn was accepted.
    Turn {
        /// The session.
        session: &'a str,
        /// The turn.
        turn: &'a str,
        /// The entry.
        #[serde(serialize_with = "as_text")]
        id: EntryId,
        /// The turn's number.
        seq: u64,
        /// What the user said.
        text: &'a str,
    },
    /// A piece of the answer.
    Delta {
        /// The session.
        session: &'a str,
        /// The turn.
        turn: &'a str,
        /// The entry.
        #[serde(serialize_with = "as_text")]
        id: EntryId,
        /// The text that is added.
        text: &'a str,
    },
    /// The turn's text so far is void.
    Reset {
        /// The session.
        session: &'a str,
        /// The turn.
        turn: &'a str,
        /// The entry.
        #[serde(serialize_with = "as_text")]
        id: EntryId,
    },
    /// Another owner goes on with the turn.
    Takeover {
        /// The session.
        session: &'a str,
        /// The turn.
        turn: &'a str,
        /// The entry.
        #[serde(serialize_with = "as_text")]
        id: EntryId,
    },
    /// The turn was stopped.
    Cancelled {
        /// The session.
        session: &'a str,
        /// The turn.
        turn: &'a str,
        /// The entry.
        #[serde(serialize_with = "as_text")]
        id: EntryId,
    },
    /// The answer is complete.
    Done {
        /// The session.
        session: &'a str,
        /// The turn.
        turn: &'a str,
        /// The entry.
        #[serde(serialize_with = "as_text")]
        id: EntryId,
        /// Why the model stopped.
        finish_reason: &'a str,
        /// What it cost.
        usage: Usage,
    },
    /// A refusal, or with an `id` a turn's `failed` entry.
    Error {
        /// What went wrong.
        code: &'static str,
        /// For a person.
        message: &'a str,
        /// Whether the same request may succeed later.
        retryable: bool,
        /// When.
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        /// The `seq` that would be right.
        #[serde(skip_serializing_if = "Option::is_none")]
        expected: Option<u64>,
        /// The session.
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<&'a str>,
        /// The turn.
        #[serde(skip_serializing_if = "Option::is_none")]
        turn: Option<&'a str>,
        /// The entry.
        #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_optional_text")]
        id: Option<EntryId>,
    },
    /// The server goes away.
    GoAway {
        /// How long the client should wait before it connects anew.
        reconnect_after_ms: u64,
        /// When the server closes at the latest.
        time_left_ms: u64,
    },
    /// The answer to a `ping`.
    Pong {
        /// As it came.
        #[serde(skip_serializing_if = "Option::is_none")]
        t: Option<&'a RawValue>,
    },
}

fn as_optional_text<S: serde::Serializer>(id: &Option<EntryId>, s: S) -> Result<S::Ok, S::Error> {
    match id {
        Some(id) => s.collect_str(id),
        None => s.serialize_none(),
    }
}

impl<'a> ServerFrame<'a> {
    /// An entry of a session's log.
    #[must_use]
    pub fn entry(session: &'a SessionId, entry: &'a Entry) -> Self {
        let (session, turn, id) = (session.as_str(), entry.turn.as_str(), entry.id);
        match &entry.kind {
            EntryKind::Turn { seq, text } => Self::Turn { session, turn, id, seq: *seq, text },
            EntryKind::Delta { text } => Self::Delta { session, turn, id, text },
            EntryKind::Reset => Self::Reset { session, turn, id },
            EntryKind::Takeover { .. } => Self::Takeover { session, turn, id },
            EntryKind::Cancelled => Self::Cancelled { session, turn, id },
            EntryKind::Done { finish_reason, usage } => Self::Done { session, turn, id, finish_reason, usage: *usage },
            EntryKind::Failed { code, message } => Self::Error {
                code: code.as_str(),
                message,
                retryable: false,
                retry_after_ms: None,
                expected: None,
                session: Some(session),
                turn: Some(turn),
                id: Some(id),
            },
        }
    }

    /// The receipt of a `send`.
    #[must_use]
    pub fn accepted(receipt: &'a Receipt) -> Self {
        Self::Accepted {
            session: receipt.session.as_str(),
            turn: receipt.turn.as_str(),
            seq: receipt.seq,
            state: receipt.state.as_str(),
            place: receipt.place,
            duplicate: receipt.duplicate,
            rate_limits: receipt.standings.as_deref().map(RateLimits::from),
        }
    }

    /// A refusal, with what it was about where that is known.
    #[must_use]
    pub fn refusal(refusal: &'a Refusal, session: Option<&'a str>, turn: Option<&'a str>) -> Self {
        Self::Error {
            code: refusal.code.as_str(),
            message: &refusal.message,
            retryable: refusal.code.retryable(),
            retry_after_ms: refusal.retry_after_ms,
            expected: refusal.expected,
            session,
            turn,
            id: None,
        }
    }

    /// The SSE event name, which is also the frame's `type`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Accepted { .. } => "accepted",
            Self::Resumed { .. } => "resumed",
            Self::Turn { .. } => "turn",
            Self::Delta { .. } => "delta",
            Self::Reset { .. } => "reset",
            Self::Takeover { .. } => "takeover",
            Self::Cancelled { .. } => "cancelled",
            Self::Done { .. } => "done",
            Self::Error { .. } => "error",
            Self::GoAway { .. } => "go_away",
            Self::Pong { .. } => "pong",
        }
    }

    /// The frame as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Numbers and text always can be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}
