//! Answers as replies.

use std::sync::Arc;

use chatgateway_core::log::{
    Begin, BeginReply, CancelReply, CheckReply, Claim, ClaimReason, ClaimReply, Entry, EntryId, EntryKind, Finish,
    FinishReply, HistoryTurn, KnownTurn, Ownership, PodId, ReadReply, Reply, Request, SessionKey, SnapshotReply,
    StoreTime, TakeoverReason, TurnBody, TurnId, TurnState, Usage,
};
use redis::Value;

use super::{
    Decoded, entry, history, keys,
    value::{Broken, Items, text},
};
use crate::store::StoreError;

/// What a server answered to a request's [`super::command`], unless that was an error.
///
/// # Errors
/// [`StoreError::Unavailable`] for what is not an answer to this request, above all for another session's.
pub(in crate::store::redis) fn decode(
    session: &SessionKey,
    request: &Request,
    value: Value,
) -> Result<Decoded, StoreError> {
    decoded(session, request, &value)
        .map_err(|broken| StoreError::Unavailable(format!("an answer that cannot be understood: {broken}")))
}

fn decoded(session: &SessionKey, request: &Request, value: &Value) -> Result<Decoded, Broken> {
    if let Request::Append(entry) = request {
        return Ok(Decoded { reply: Reply::Append(appended(entry, value)?), now: None, receivers: None });
    }
    let mut items = Items::of(value)?;
    let [_, root, _] = keys(session);
    let named = items.text()?;
    if named != root {
        return Err(Broken::foreign(session, named));
    }
    let now = StoreTime(items.number()?);
    let receivers = u32::try_from(items.number::<i64>()?).ok();
    let reply = match request {
        Request::Begin(request) => Reply::Begin(begin(request, &mut items)?),
        Request::Append(_) => return Err(Broken::new("an append is no script")),
        Request::Check(_) => Reply::Check(check(&mut items)?),
        Request::Finish(request) => Reply::Finish(finish(request, &mut items)?),
        Request::Claim(request) => Reply::Claim(claim(request, &mut items)?),
        Request::Reset(_) => Reply::Reset(items.flag()?),
        Request::EndLease { .. } => Reply::EndLease(items.flag()?),
        Request::Cancel { .. } => Reply::Cancel(cancel(&mut items)?),
        Request::Read { .. } => Reply::Read(read(&mut items)?),
        Request::Snapshot => Reply::Snapshot(snapshot(session, &mut items)?),
        Request::Delete => Reply::Delete(pod(items.text()?)?),
    };
    Ok(Decoded { reply, now: Some(now), receivers })
}

/// Whether an entry was taken. The answer names it: another id belongs to another request.
fn appended(entry: &Entry, value: &Value) -> Result<bool, Broken> {
    if *value == Value::Nil {
        return Ok(false);
    }
    let id = entry::id(text(value)?)?;
    if id == entry.id { Ok(true) } else { Err(Broken::new(format!("entry {id} was added instead of {}", entry.id))) }
}

fn pod(text: &str) -> Result<Option<PodId>, Broken> {
    if text.is_empty() {
        return Ok(None);
    }
    let pod = u128::from_str_radix(text, 16).map_err(|_| Broken::new(format!("pod process {text:?}")))?;
    Ok(Some(PodId(pod)))
}

fn optional_id(text: &str) -> Result<Option<EntryId>, Broken> {
    (!text.is_empty()).then(|| entry::id(text)).transpose()
}

fn begin(request: &Begin, items: &mut Items<'_>) -> Result<BeginReply, Broken> {
    Ok(match items.text()? {
        "owner" => began(request, items)?,
        "queued" => BeginReply::Queued {
            seq: items.number()?,
            place: items.number()?,
            end: entry::id(items.text()?)?,
            owner: pod(items.text()?)?.ok_or_else(|| Broken::new("queued without an owner"))?,
            lease_left_ms: items.number()?,
        },
        "known" => BeginReply::Known(KnownTurn {
            state: entry::state(items.text()?)?,
            seq: items.number()?,
            place: items.number()?,
            from: optional_id(items.text()?)?,
            ended_at: optional_id(items.text()?)?,
            end: entry::id(items.text()?)?,
        }),
        "conflict" => BeginReply::Conflict,
        "gone" => BeginReply::Gone,
        "seq_gap" => BeginReply::SeqGap { expected: items.number()? },
        "busy" => BeginReply::Busy,
        other => return Err(Broken::new(format!("begin: {other:?}"))),
    })
}

fn began(request: &Begin, items: &mut Items<'_>) -> Result<BeginReply, Broken> {
    let epoch = items.number()?;
    let end = entry::id(items.text()?)?;
    let (len, seq) = (items.number()?, items.number()?);
    let start = entry::id(items.text()?)?;
    let (cancel, tries) = (items.flag()?, items.number()?);
    let from = entry::id(items.text()?)?;
    let mut appended = Vec::new();
    if items.flag()? {
        let kind = EntryKind::Turn { seq, text: Arc::clone(&request.body.text) };
        appended.push(Arc::new(Entry { id: start, after: Some(from), turn: request.turn.clone(), kind }));
    }
    let (turn, body) = (request.turn.clone(), Arc::clone(&request.body));
    let own = Ownership { epoch, end, len, turn, seq, body, start, cancel, tries, appended };
    Ok(BeginReply::Owner { own, from })
}

/// An ownership, as `work` of the scripts tells it.
fn ownership(items: &mut Items<'_>) -> Result<Ownership, Broken> {
    let epoch = items.number()?;
    let end = entry::id(items.text()?)?;
    let len = items.number()?;
    let turn = entry::turn(items.text()?)?;
    let seq = items.number()?;
    let (text, extra) = (items.text()?.into(), items.text()?.into());
    let hash = u128::from_str_radix(items.text()?, 16).map_err(|_| Broken::new("a digest that is none"))?;
    let body = Arc::new(TurnBody { text, extra, hash: hash.to_be_bytes() });
    let start = entry::id(items.text()?)?;
    let (cancel, tries) = (items.flag()?, items.number()?);
    Ok(Ownership { epoch, end, len, turn, seq, body, start, cancel, tries, appended: Vec::new() })
}

fn check(items: &mut Items<'_>) -> Result<CheckReply, Broken> {
    Ok(CheckReply {
        mine: items.flag()?,
        end: optional_id(items.text()?)?,
        len: items.number()?,
        cancel: items.flag()?,
        queued: items.number()?,
    })
}

fn finish(request: &Finish, items: &mut Items<'_>) -> Result<FinishReply, Broken> {
    let outcome = items.text()?;
    let next = if items.is_empty() { None } else { Some(ownership(items)?) };
    Ok(match outcome {
        "ended" => {
            let mut appended = vec![Arc::clone(&request.entry)];
            appended.extend(next.as_ref().map(|own| started(own, None)));
            FinishReply::Ended { appended, next }
        }
        "already" => FinishReply::Already { next },
        "refused" => FinishReply::Refused,
        other => return Err(Broken::new(format!("finish: {other:?}"))),
    })
}

/// The entry with which a waiting turn started.
fn started(own: &Ownership, after: Option<EntryId>) -> Arc<Entry> {
    let kind = EntryKind::Turn { seq: own.seq, text: Arc::clone(&own.body.text) };
    Arc::new(Entry { id: own.end, after, turn: own.turn.clone(), kind })
}

fn claim(request: &Claim, items: &mut Items<'_>) -> Result<ClaimReply, Broken> {
    match items.text()? {
        "nothing" => return Ok(ClaimReply::Nothing),
        "owner" => {}
        other => return Err(Broken::new(format!("claim: {other:?}"))),
    }
    let kind = items.text()?;
    let after = optional_id(items.text()?)?;
    let mut own = ownership(items)?;
    match kind {
        // A repeat.
        "" => {}
        "turn" => own.appended.push(started(&own, after)),
        "takeover" => {
            let reason = match request.why {
                ClaimReason::Expired => TakeoverReason::Expired,
                ClaimReason::Loss { .. } => TakeoverReason::Loss,
            };
            let kind = EntryKind::Takeover { reason };
            own.appended.push(Arc::new(Entry { id: own.end, after, turn: own.turn.clone(), kind }));
        }
        other => return Err(Broken::new(format!("claim with a {other:?}"))),
    }
    Ok(ClaimReply::Owner(own))
}

fn cancel(items: &mut Items<'_>) -> Result<CancelReply, Broken> {
    let state = items.text()?;
    if state.is_empty() {
        return Ok(CancelReply::NotFound);
    }
    Ok(match entry::state(state)? {
        state @ (TurnState::Queued | TurnState::Running) => CancelReply::Marked { state, owner: pod(items.text()?)? },
        TurnState::Ended(end) => CancelReply::Ended(end),
        TurnState::Deleted => CancelReply::NotFound,
    })
}

fn read(items: &mut Items<'_>) -> Result<ReadReply, Broken> {
    let mut reply = ReadReply {
        exists: items.flag()?,
        entries: Vec::new(),
        first: EntryId::ZERO,
        end: EntryId::ZERO,
        base: EntryId::ZERO,
        unfinished: false,
        owner: None,
        lease_left_ms: 0,
    };
    if !reply.exists {
        return Ok(reply);
    }
    let first = items.text()?;
    reply.first = match first.strip_prefix('>') {
        Some(id) => entry::id(id).map(|id| EntryId::new(id.epoch, id.n.saturating_sub(1)))?,
        None => entry::id(first)?,
    };
    reply.end = entry::id(items.text()?)?;
    reply.base = entry::id(items.text()?)?;
    reply.unfinished = items.flag()?;
    reply.owner = pod(items.text()?)?;
    reply.lease_left_ms = items.number()?;
    let mut entries = Items::of(items.next()?)?;
    while !entries.is_empty() {
        reply.entries.push(stream_entry(entries.next()?)?);
    }
    Ok(reply)
}

/// An entry as XRANGE gives it.
pub(super) fn stream_entry(value: &Value) -> Result<Arc<Entry>, Broken> {
    let mut items = Items::of(value)?;
    let id = entry::id(items.text()?)?;
    let mut fields = Items::of(items.next()?)?;
    let pairs = std::iter::from_fn(|| if fields.is_empty() { None } else { Some(fields.pair()) });
    entry::entry(id, pairs)
}

fn snapshot(session: &SessionKey, items: &mut Items<'_>) -> Result<SnapshotReply, Broken> {
    let exists = items.flag()?;
    if !exists {
        return Ok(SnapshotReply { exists, position: EntryId::ZERO, turns: Vec::new() });
    }
    let position = entry::id(items.text()?)?;
    let mut turns = Vec::new();
    let mut rows = Items::of(items.next()?)?;
    while !rows.is_empty() {
        turns.push(history::turn(session, rows.text()?)?);
    }
    if !items.is_empty() {
        turns.push(running(items)?);
    }
    Ok(SnapshotReply { exists, position, turns })
}

fn running(items: &mut Items<'_>) -> Result<HistoryTurn, Broken> {
    let turn: TurnId = entry::turn(items.text()?)?;
    let seq = items.number()?;
    let text = items.text()?.into();
    let (answer, finish_reason) = ("".into(), "".into());
    Ok(HistoryTurn { turn, seq, state: TurnState::Running, text, answer, finish_reason, usage: Usage::default() })
}
