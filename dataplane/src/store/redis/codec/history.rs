//! Rows of the history: `<seq> <bytes of meta> <bytes of text> <bytes of answer>`, a line feed, then those three.

use chatgateway_core::log::{EntryKind, Finish, HistoryTurn, SessionKey, Usage};
use serde::{Deserialize, Serialize};

use super::{entry, value::Broken};

/// What a row says beside the texts. It names its session, so that a row can never be taken for another session's.
#[derive(Serialize, Deserialize)]
struct Meta<'a> {
    #[serde(borrow)]
    session: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    turn: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    state: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    finish_reason: std::borrow::Cow<'a, str>,
    usage: Usage,
}

/// The meta data of the row that a finish writes.
pub(super) fn meta(session: &SessionKey, request: &Finish) -> String {
    let (finish_reason, usage) = match &request.entry.kind {
        EntryKind::Done { finish_reason, usage } => (&**finish_reason, *usage),
        _ => ("", Usage::default()),
    };
    let meta = Meta {
        session: session.as_str().into(),
        turn: request.entry.turn.as_str().into(),
        state: request.entry.kind.end().map_or("", entry::end_name).into(),
        finish_reason: finish_reason.into(),
        usage,
    };
    serde_json::to_string(&meta).unwrap_or_default()
}

/// A row as it was written.
pub(super) fn turn(session: &SessionKey, row: &str) -> Result<HistoryTurn, Broken> {
    let broken = || Broken::new("a row of the history that is none");
    let (head, rest) = row.split_once('\n').ok_or_else(broken)?;
    let mut numbers = head.split(' ');
    let mut number = || entry::number::<usize>(numbers.next().unwrap_or_default());
    let (seq, meta_len, text_len, answer_len) = (number()?, number()?, number()?, number()?);
    let (meta, texts) = rest.split_at_checked(meta_len).ok_or_else(broken)?;
    let (text, answer) = texts.split_at_checked(text_len).ok_or_else(broken)?;
    if answer.len() != answer_len {
        return Err(broken());
    }
    let meta: Meta<'_> = serde_json::from_str(meta).map_err(|error| Broken::new(format!("history: {error}")))?;
    if meta.session != session.as_str() {
        return Err(Broken::foreign(session, &meta.session));
    }
    Ok(HistoryTurn {
        turn: entry::turn(&meta.turn)?,
        seq: seq as u64,
        state: entry::state(&meta.state)?,
        text: text.into(),
        answer: answer.into(),
        finish_reason: (&*meta.finish_reason).into(),
        usage: meta.usage,
    })
}
