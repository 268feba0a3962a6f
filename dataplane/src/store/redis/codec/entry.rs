//! Log entries as fields of a stream entry.
//!
//! The names are short because each entry of the log holds them: `k` kind, `t` turn, `p` what it follows (the first entry of an
//! epoch only), then by kind: `t` turn: `s` number, `x` text · `d` delta: `x` text · `r` reset · `e` done: `r` finish reason, `u`
//! tokens · `f` failed: `c` code, `m` message · `c` cancelled · `o` takeover: `w` why.

use std::sync::Arc;

use chatgateway_core::{
    error::ErrorCode,
    log::{EndKind, Entry, EntryId, EntryKind, TakeoverReason, TurnId, TurnState, Usage},
};

use super::value::Broken;

/// Gives an entry's fields, name and value, in their order.
pub(super) fn fields(entry: &Entry, mut field: impl FnMut(&'static str, &str)) {
    let kind = match &entry.kind {
        EntryKind::Turn { .. } => "t",
        EntryKind::Delta { .. } => "d",
        EntryKind::Reset => "r",
        EntryKind::Done { .. } => "e",
        EntryKind::Failed { .. } => "f",
        EntryKind::Cancelled => "c",
        EntryKind::Takeover { .. } => "o",
    };
    field("k", kind);
    field("t", entry.turn.as_str());
    if let Some(after) = entry.after {
        field("p", &after.to_string());
    }
    match &entry.kind {
        EntryKind::Turn { seq, text } => {
            field("s", &seq.to_string());
            field("x", text);
        }
        EntryKind::Delta { text } => field("x", text),
        EntryKind::Done { finish_reason, usage } => {
            field("r", finish_reason);
            field("u", &usage_text(*usage));
        }
        EntryKind::Failed { code, message } => {
            field("c", code.as_str());
            field("m", message);
        }
        EntryKind::Takeover { reason } => field("w", reason.as_str()),
        EntryKind::Reset | EntryKind::Cancelled => {}
    }
}

/// An entry from its fields.
pub(super) fn entry<'a>(
    id: EntryId,
    fields: impl Iterator<Item = Result<(&'a str, &'a str), Broken>>,
) -> Result<Arc<Entry>, Broken> {
    let mut values = [None; FIELDS.len()];
    for field in fields {
        let (name, value) = field?;
        // What a later version adds is not for this one.
        if let Some(place) = FIELDS.iter().position(|known| *known == name) {
            values[place] = Some(value);
        }
    }
    let get = |name: &str| {
        let value = FIELDS.iter().position(|known| *known == name).and_then(|place| values[place]);
        value.ok_or_else(|| Broken::new(format!("entry {id} has no field {name:?}")))
    };
    let kind = match get("k")? {
        "t" => EntryKind::Turn { seq: number(get("s")?)?, text: get("x")?.into() },
        "d" => EntryKind::Delta { text: get("x")?.into() },
        "r" => EntryKind::Reset,
        "e" => EntryKind::Done { finish_reason: get("r")?.into(), usage: usage(get("u")?)? },
        "f" => {
            let name = get("c")?;
            let code = ErrorCode::from_name(name).ok_or_else(|| Broken::new(format!("error code {name:?}")))?;
            EntryKind::Failed { code, message: get("m")?.into() }
        }
        "c" => EntryKind::Cancelled,
        "o" => EntryKind::Takeover { reason: takeover_reason(get("w")?)? },
        other => return Err(Broken::new(format!("entry {id} is of a kind {other:?}"))),
    };
    let after = values[FIELDS.iter().position(|known| *known == "p").unwrap_or_default()];
    Ok(Arc::new(Entry { id, after: after.map(self::id).transpose()?, turn: turn(get("t")?)?, kind }))
}

const FIELDS: [&str; 10] = ["k", "t", "x", "p", "s", "r", "u", "c", "m", "w"];

pub(super) fn id(text: &str) -> Result<EntryId, Broken> {
    text.parse().map_err(|_| Broken::new(format!("entry id {text:?}")))
}

pub(super) fn turn(text: &str) -> Result<TurnId, Broken> {
    TurnId::parse(text).map_err(|error| Broken::new(format!("turn id: {error}")))
}

pub(super) fn number<T: std::str::FromStr>(text: &str) -> Result<T, Broken> {
    text.parse().map_err(|_| Broken::new(format!("number {text:?}")))
}

pub(super) fn end_name(end: EndKind) -> &'static str {
    TurnState::Ended(end).as_str()
}

pub(super) fn state(name: &str) -> Result<TurnState, Broken> {
    let all = [
        TurnState::Queued,
        TurnState::Running,
        TurnState::Ended(EndKind::Done),
        TurnState::Ended(EndKind::Failed),
        TurnState::Ended(EndKind::Cancelled),
        TurnState::Deleted,
    ];
    all.into_iter().find(|state| state.as_str() == name).ok_or_else(|| Broken::new(format!("turn state {name:?}")))
}

fn takeover_reason(name: &str) -> Result<TakeoverReason, Broken> {
    let all = [TakeoverReason::Expired, TakeoverReason::Loss];
    let reason = all.into_iter().find(|reason| reason.as_str() == name);
    reason.ok_or_else(|| Broken::new(format!("takeover reason {name:?}")))
}

fn usage_text(usage: Usage) -> String {
    format!("{} {} {}", usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
}

fn usage(text: &str) -> Result<Usage, Broken> {
    let mut parts = text.split(' ').map(number);
    let mut next = || parts.next().unwrap_or_else(|| Err(Broken::new(format!("usage {text:?}"))));
    Ok(Usage { prompt_tokens: next()?, completion_tokens: next()?, total_tokens: next()? })
}
