//! What anybody may ask: cancel, read, snapshot, delete.

use std::{collections::VecDeque, sync::Arc};

use super::{DELETED_RECORDS_TTL, Root, SessionState};
use crate::log::{
    CancelReply, EntryId, HistoryTurn, PodId, ReadReply, SnapshotReply, StoreTime, TurnId, TurnState, Usage,
};

/// Marks a turn as cancelled. Only its owner ends it: whichever end comes first counts.
pub(super) fn cancel(session: Option<&mut SessionState>, turn: &TurnId) -> CancelReply {
    let Some(session) = session else { return CancelReply::NotFound };
    let owner = session.root.owner;
    let Some(record) = session.root.turns.get_mut(turn) else { return CancelReply::NotFound };
    match record.state {
        TurnState::Queued | TurnState::Running => {
            record.cancel = true;
            CancelReply::Marked { state: record.state, owner }
        }
        TurnState::Ended(end) => CancelReply::Ended(end),
        TurnState::Deleted => CancelReply::NotFound,
    }
}

/// Entries after a position, with what is needed to judge whether the position is good.
pub(super) fn read(session: Option<&SessionState>, after: EntryId, count: usize, now: StoreTime) -> ReadReply {
    let nothing = ReadReply {
        exists: false,
        entries: Vec::new(),
        first: EntryId::ZERO,
        end: EntryId::ZERO,
        base: EntryId::ZERO,
        unfinished: false,
        owner: None,
        lease_left_ms: 0,
    };
    let Some(session) = session.filter(|session| session.exists()) else { return nothing };
    let (mut entries, mut first) = (Vec::new(), EntryId::ZERO);
    if let Some(log) = &session.log {
        first = log.front().map_or(EntryId::ZERO, |entry| entry.predecessor());
        // Readers are mostly at the end: nothing is searched then.
        if log.back().is_some_and(|entry| entry.id > after) {
            let from = log.partition_point(|entry| entry.id <= after);
            entries.extend(log.range(from..).take(count).map(Arc::clone));
        }
    }
    ReadReply {
        exists: true,
        entries,
        first,
        end: session.end(),
        base: session.base(),
        unfinished: session.unfinished(),
        owner: session.root.owner,
        lease_left_ms: session.lease_left_ms(now),
    }
}

/// The texts so far, and the position from which the log tells the rest, as one.
pub(super) fn snapshot(session: Option<&SessionState>) -> SnapshotReply {
    let Some(session) = session.filter(|session| session.exists()) else {
        return SnapshotReply { exists: false, position: EntryId::ZERO, turns: Vec::new() };
    };
    let running = session.root.running.as_ref().and_then(|turn| {
        let record = session.root.turns.get(turn)?;
        Some(HistoryTurn {
            turn: turn.clone(),
            seq: record.seq,
            state: TurnState::Running,
            text: Arc::clone(&record.body.as_ref()?.text),
            answer: "".into(),
            finish_reason: "".into(),
            usage: Usage::default(),
        })
    });
    let turns = session.history.iter().cloned().chain(running).collect();
    SnapshotReply { exists: true, position: session.base(), turns }
}

/// Removes the session. What stays for a while is its last epoch, above which a new log begins, and that its turns were
/// deleted, so that late copies of them do not bring it back. Returns who owned it.
pub(super) fn delete(session: Option<&mut SessionState>, now: StoreTime) -> Option<PodId> {
    let session = session?;
    let owner = session.root.owner;
    let epoch = session.root.epoch.max(session.end().epoch);
    let mut turns = std::mem::take(&mut session.root.turns);
    let mut ended = std::mem::take(&mut session.root.ended);
    ended.extend(session.root.running.take());
    ended.extend(session.root.queue.drain(..));
    for record in turns.values_mut() {
        record.state = TurnState::Deleted;
        record.body = None;
    }
    session.root = Root { epoch, turns, ended, ..Root::default() };
    session.log = None;
    session.history = VecDeque::new();
    session.expires = StoreTime(now.0.saturating_add(DELETED_RECORDS_TTL.as_micros() as u64));
    owner
}
