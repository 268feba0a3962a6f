//! Between the contract's messages and the gateway's: the same events as on every transport, one to one.

use chatgateway_core::{
    error::{ErrorCode, Refusal},
    log::{Entry, EntryId, EntryKind, SessionId, SnapshotReply, Usage},
};
use chatgateway_proto::v1::{self, server_message::Message};

use super::json;
use crate::{
    gateway::{Receipt, SendTurn},
    transport::frame,
};

/// A message with this content.
pub(super) fn message(message: Message) -> v1::ServerMessage {
    v1::ServerMessage { message: Some(message) }
}

/// The receipt of a send.
pub(super) fn accepted(receipt: &Receipt) -> v1::ServerMessage {
    message(Message::Accepted(v1::Accepted {
        session: receipt.session.to_string(),
        turn: receipt.turn.to_string(),
        seq: receipt.seq,
        state: receipt.state.as_str().into(),
        place: receipt.place,
        duplicate: receipt.duplicate,
    }))
}

/// A refusal, with what it was about where that is known.
pub(super) fn refusal(refusal: &Refusal, session: Option<String>, turn: Option<String>) -> v1::ServerMessage {
    message(Message::Error(v1::Error {
        code: refusal.code.as_str().into(),
        message: refusal.message.clone(),
        retryable: refusal.code.retryable(),
        retry_after_ms: refusal.retry_after_ms,
        expected: refusal.expected,
        session,
        turn,
        id: None,
    }))
}

/// The outcome of a resume.
pub(super) fn resumed(session: &SessionId, recovered: bool, position: EntryId) -> v1::ServerMessage {
    let (session, position) = (session.to_string(), position.to_string());
    message(Message::Resumed(v1::Resumed { session, recovered, position }))
}

/// An entry of a session's log.
pub(super) fn entry(session: &SessionId, entry: &Entry) -> v1::ServerMessage {
    let (session, turn, id) = (session.to_string(), entry.turn.to_string(), entry.id.to_string());
    message(match &entry.kind {
        EntryKind::Turn { seq, text } => {
            Message::Turn(v1::Turn { session, turn, id, seq: *seq, text: text.to_string() })
        }
        EntryKind::Delta { text } => Message::Delta(v1::Delta { session, turn, id, text: text.to_string() }),
        EntryKind::Reset => Message::Reset(v1::Reset { session, turn, id }),
        EntryKind::Takeover { .. } => Message::Takeover(v1::Takeover { session, turn, id }),
        EntryKind::Cancelled => Message::Cancelled(v1::Cancelled { session, turn, id }),
        EntryKind::Done { finish_reason, usage } => Message::Done(v1::Done {
            session,
            turn,
            id,
            finish_reason: finish_reason.to_string(),
            usage: Some(tokens(*usage)),
        }),
        EntryKind::Failed { code, message } => Message::Error(v1::Error {
            code: code.as_str().into(),
            message: message.to_string(),
            retryable: false,
            retry_after_ms: None,
            expected: None,
            session: Some(session),
            turn: Some(turn),
            id: Some(id),
        }),
    })
}

fn tokens(usage: Usage) -> v1::Usage {
    v1::Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: usage.total_tokens,
    }
}

/// A session's history.
pub(super) fn session(session: &SessionId, snapshot: SnapshotReply) -> v1::Session {
    let turns = snapshot.turns.into_iter().map(|turn| v1::HistoryTurn {
        turn: turn.turn.to_string(),
        seq: turn.seq,
        state: turn.state.as_str().into(),
        text: turn.text.to_string(),
        answer: turn.answer.to_string(),
    });
    v1::Session { session: session.to_string(), position: snapshot.position.to_string(), turns: turns.collect() }
}

/// The turn that a request asks for.
pub(super) fn turn(request: v1::SendRequest) -> Result<SendTurn, Refusal> {
    let invalid =
        |field: &str, error: serde_json::Error| Refusal::new(ErrorCode::InvalidRequest, format!("{field}: {error}"));
    let session = frame::session_id(&request.session)?;
    let turn = frame::turn_id(&request.turn)?;
    let messages = match request.messages.as_slice() {
        [] => None,
        messages => Some(json::list(messages).map_err(|e| invalid("messages", e))?),
    };
    let options = request.options.as_ref().map(json::object).transpose().map_err(|e| invalid("options", e))?;
    Ok(SendTurn { session, turn, seq: request.seq, text: request.text, messages, model: request.model, options })
}

/// The position that a request names; none is the log's beginning.
pub(super) fn position(after: &str) -> Result<EntryId, Refusal> {
    if after.is_empty() { Ok(EntryId::ZERO) } else { frame::position(after) }
}
