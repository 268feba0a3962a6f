//! Accepting a turn.

use std::sync::Arc;

use super::{Record, SessionState};
use crate::{
    limits::QUEUED_TURNS_MAX,
    log::{Begin, BeginReply, EntryId, EntryKind, KnownTurn, Ownership, StoreTime, TurnId, TurnState},
};

/// Accepts a turn: owns the idle session and starts it, queues it behind others, or recognises it. Whether the turn is
/// new and what follows from that is one step: two would let the same turn run twice.
pub(super) fn begin(slot: &mut Option<SessionState>, request: &Begin, now: StoreTime) -> BeginReply {
    if let Some(reply) = slot.as_mut().and_then(|session| recognised(session, request, now)) {
        return reply;
    }
    let next = slot.as_ref().map_or(0, |session| session.root.seq) + 1;
    if request.seq.is_some_and(|seq| seq != next) {
        return BeginReply::SeqGap { expected: next };
    }
    if slot.as_ref().is_some_and(|session| session.root.owner.is_some() && session.root.queue.len() >= QUEUED_TURNS_MAX)
    {
        return BeginReply::Busy;
    }
    let session = slot.get_or_insert_with(SessionState::new);
    session.root.seq = next;
    let reply = match session.root.owner {
        None => start(session, request, now),
        Some(owner) => {
            session.root.turns.insert(request.turn.clone(), record(request, next, TurnState::Queued));
            session.root.queue.push_back(request.turn.clone());
            BeginReply::Queued {
                seq: next,
                place: place(session, &request.turn),
                end: session.end(),
                owner,
                lease_left_ms: session.lease_left_ms(now),
            }
        }
    };
    session.renew_life(now, &request.terms);
    reply
}

/// The reply to a turn id that is not new.
fn recognised(session: &mut SessionState, request: &Begin, now: StoreTime) -> Option<BeginReply> {
    let record = session.root.turns.get(&request.turn)?;
    if record.hash != request.body.hash {
        return Some(BeginReply::Conflict);
    }
    let same_request = session.root.owner == Some(request.pod) && session.root.nonce == Some(request.nonce);
    let from = record.from;
    match record.state {
        TurnState::Deleted => return Some(BeginReply::Gone),
        // The first copy of this very request: only its reply was lost.
        TurnState::Running if same_request => {
            if let Some(own) = session.ownership(Vec::new()) {
                session.renew_lease(now, &request.terms);
                session.renew_life(now, &request.terms);
                return Some(BeginReply::Owner { own, from });
            }
        }
        _ => {}
    }
    Some(BeginReply::Known(known(session, &request.turn)?))
}

fn known(session: &SessionState, turn: &TurnId) -> Option<KnownTurn> {
    let record = session.root.turns.get(turn)?;
    let in_log = record.start != EntryId::ZERO && session.has_entry(record.start);
    let (from, ended_at) = match record.state {
        // Where the log that held its beginning is lost, the new log tells all there is.
        TurnState::Running if !in_log => (Some(session.base()), None),
        TurnState::Running => (Some(record.from), None),
        TurnState::Ended(_) => (in_log.then_some(record.from), Some(record.end)),
        TurnState::Queued | TurnState::Deleted => (None, None),
    };
    let place = place(session, turn);
    Some(KnownTurn { state: record.state, seq: record.seq, place, from, ended_at, end: session.end() })
}

/// How many turns run or wait before this one, if it waits.
fn place(session: &SessionState, turn: &TurnId) -> u32 {
    let Some(index) = session.root.queue.iter().position(|waiting| waiting == turn) else { return 0 };
    index as u32 + u32::from(session.root.running.is_some())
}

fn record(request: &Begin, seq: u64, state: TurnState) -> Record {
    Record {
        state,
        seq,
        hash: request.body.hash,
        body: Some(Arc::clone(&request.body)),
        start: EntryId::ZERO,
        from: EntryId::ZERO,
        end: EntryId::ZERO,
        tries: 0,
        cancel: false,
    }
}

fn start(session: &mut SessionState, request: &Begin, now: StoreTime) -> BeginReply {
    let from = session.end();
    let seq = session.root.seq;
    let epoch = session.new_epoch(now, request.jump);
    let kind = EntryKind::Turn { seq, text: Arc::clone(&request.body.text) };
    let entry = session.open(request.pod, request.nonce, epoch, &request.turn, kind);
    session.root.base = from;
    session.root.running = Some(request.turn.clone());
    let started = Record { start: entry.id, from, ..record(request, seq, TurnState::Running) };
    session.root.turns.insert(request.turn.clone(), started);
    session.renew_lease(now, &request.terms);
    let own = Ownership {
        epoch,
        end: entry.id,
        len: session.len(),
        turn: request.turn.clone(),
        seq,
        body: Arc::clone(&request.body),
        start: entry.id,
        cancel: false,
        tries: 0,
        appended: vec![entry],
    };
    BeginReply::Owner { own, from }
}
