//! Ending a turn.

use std::sync::Arc;

use super::{EndKind, SessionState};
use crate::log::{Entry, EntryId, EntryKind, Finish, FinishReply, HistoryTurn, StoreTime, TurnState, Usage};

/// Ends the running turn and starts the next one, or releases the session. One step: a turn that is queued between "no
/// more?" and "released" would wait for ever, and an end without its history would be forgotten.
pub(super) fn finish(session: Option<&mut SessionState>, request: &Finish, now: StoreTime) -> FinishReply {
    let Some(session) = session else { return FinishReply::Refused };
    let entry = &request.entry;
    let mine = session.owned_by(request.pod, request.epoch);
    if let Some(TurnState::Ended(_)) = session.state_of(&entry.turn) {
        return FinishReply::Already { next: mine.then(|| session.ownership(Vec::new())).flatten() };
    }
    let Some(end) = entry.kind.end() else { return FinishReply::Refused };
    let runs = session.root.running.as_ref() == Some(&entry.turn);
    // The length too: where a proxy hid a failover, the end may fit although entries before it are lost.
    let whole = session.log.is_some() && session.end() == request.follows && session.len() == request.len;
    if !mine || !runs || !whole || entry.id <= request.follows {
        return FinishReply::Refused;
    }
    let mut appended = Vec::with_capacity(2);
    push(session, entry, &mut appended);
    end_turn(session, request, end);
    session.root.base = entry.id;
    let id = EntryId::new(entry.id.epoch, entry.id.n + 1);
    if let Some((turn, kind)) = session.start_next(id) {
        push(session, &Arc::new(Entry { id, after: None, turn, kind }), &mut appended);
        session.renew_lease(now, &request.terms);
    } else {
        session.root.running = None;
        session.root.owner = None;
        session.root.nonce = None;
    }
    trim(session, request.terms.keep_turns);
    session.renew_life(now, &request.terms);
    FinishReply::Ended { appended, next: session.ownership(Vec::new()) }
}

fn push(session: &mut SessionState, entry: &Arc<Entry>, appended: &mut Vec<Arc<Entry>>) {
    session.log.get_or_insert_default().push_back(Arc::clone(entry));
    appended.push(Arc::clone(entry));
}

/// Moves the turn from its record to the history.
fn end_turn(session: &mut SessionState, request: &Finish, end: EndKind) {
    let turn = &request.entry.turn;
    let Some(record) = session.root.turns.get_mut(turn) else { return };
    record.state = TurnState::Ended(end);
    record.end = request.entry.id;
    let body = record.body.take();
    let (seq, start) = (record.seq, record.start);
    if start != EntryId::ZERO {
        session.root.kept.push_back(start);
    }
    session.note_ended(turn.clone());
    // A turn that failed is no part of the conversation.
    if let (EndKind::Done | EndKind::Cancelled, Some(body)) = (end, body) {
        let (finish_reason, usage) = match &request.entry.kind {
            EntryKind::Done { finish_reason, usage } => (Arc::clone(finish_reason), *usage),
            _ => ("".into(), Usage::default()),
        };
        session.history.push_back(HistoryTurn {
            turn: turn.clone(),
            seq,
            state: TurnState::Ended(end),
            text: Arc::clone(&body.text),
            answer: Arc::clone(&request.answer),
            finish_reason,
            usage,
        });
        while session.history.len() > request.terms.keep_turns {
            session.history.pop_front();
        }
    }
}

/// Cuts the log at a `turn` entry: the last ended turns stay, and whatever has not ended, and never nothing.
fn trim(session: &mut SessionState, keep_turns: usize) {
    let keep = keep_turns.max(1);
    if session.root.kept.len() <= keep {
        return;
    }
    while session.root.kept.len() > keep {
        session.root.kept.pop_front();
    }
    let Some(&first) = session.root.kept.front() else { return };
    let Some(log) = session.log.as_mut() else { return };
    while log.front().is_some_and(|entry| entry.id < first) {
        log.pop_front();
    }
}
