//! What an owner, or a pod that wants to be one, asks: append, check, claim, reset, end the lease.

use std::sync::Arc;

use super::SessionState;
use crate::log::{
    Check, CheckReply, Claim, ClaimReason, ClaimReply, Entry, EntryId, EntryKind, PodId, Reset, StoreTime,
    TakeoverReason, TurnId, TurnState,
};

/// Appends if the log exists and the id is above its end. It knows no owner and creates no log: a stale writer's id is
/// not above the end, because whoever took over appended an entry of a later epoch.
pub(super) fn append(session: &mut SessionState, entry: &Arc<Entry>) -> bool {
    let end = session.end();
    let Some(log) = session.log.as_mut() else { return false };
    if entry.id <= end {
        return false;
    }
    log.push_back(Arc::clone(entry));
    true
}

/// Renews the lease, also one that has run out unclaimed, and looks.
pub(super) fn check(session: Option<&mut SessionState>, request: &Check, now: StoreTime) -> CheckReply {
    let Some(session) = session else {
        return CheckReply { mine: false, end: None, len: 0, cancel: false, queued: 0 };
    };
    let mine = session.owned_by(request.pod, request.epoch);
    if mine {
        session.renew_lease(now, &request.terms);
        session.renew_life(now, &request.terms);
    }
    let running = session.root.running.as_ref().and_then(|turn| session.root.turns.get(turn));
    CheckReply {
        mine,
        end: session.log.is_some().then(|| session.end()),
        len: session.len(),
        cancel: mine && running.is_some_and(|record| record.cancel),
        queued: session.root.queue.len() as u32,
    }
}

/// Gives the session to the caller under a new epoch, whose first entry shuts out the owner before it.
pub(super) fn claim(session: Option<&mut SessionState>, request: &Claim, now: StoreTime) -> ClaimReply {
    let Some(session) = session else { return ClaimReply::Nothing };
    if session.root.owner == Some(request.pod) && session.root.nonce == Some(request.nonce) {
        let Some(own) = session.ownership(Vec::new()) else { return ClaimReply::Nothing };
        session.renew_lease(now, &request.terms);
        return ClaimReply::Owner(own);
    }
    let reason = match request.why {
        ClaimReason::Expired if session.root.owner.is_some() && session.root.lease_until <= now => {
            TakeoverReason::Expired
        }
        ClaimReason::Loss { epoch } if session.owned_by(request.pod, epoch) => TakeoverReason::Loss,
        _ => return ClaimReply::Nothing,
    };
    let epoch = session.new_epoch(now, request.jump);
    let Some((turn, kind)) = next_work(session, epoch, reason) else {
        session.root.owner = None;
        session.root.nonce = None;
        return ClaimReply::Nothing;
    };
    let entry = session.open(request.pod, request.nonce, epoch, &turn, kind);
    session.renew_lease(now, &request.terms);
    session.renew_life(now, &request.terms);
    session.ownership(vec![entry]).map_or(ClaimReply::Nothing, ClaimReply::Owner)
}

/// What a new owner has to do, and the entry it begins with: the running turn goes on, or else a waiting one starts.
fn next_work(session: &mut SessionState, epoch: u64, reason: TakeoverReason) -> Option<(TurnId, EntryKind)> {
    let Some(turn) = session.root.running.clone() else { return session.start_next(EntryId::new(epoch, 0)) };
    let lost = session.root.turns.get(&turn).is_some_and(|record| !session.has_entry(record.start));
    if let Some(record) = session.root.turns.get_mut(&turn) {
        record.tries += 1;
        if lost {
            record.start = EntryId::ZERO;
        }
    }
    Some((turn, EntryKind::Takeover { reason }))
}

/// Appends the `reset` entry: from it on the log tells the running turn anew.
pub(super) fn reset(session: &mut SessionState, request: &Reset) -> bool {
    let runs = session.root.running.as_ref() == Some(&request.entry.turn);
    if !session.owned_by(request.pod, request.epoch) || !runs || session.log.is_none() {
        return false;
    }
    let (end, len) = (session.end(), session.len());
    if end == request.entry.id && len == request.len + 1 && session.root.base == request.follows {
        // A repeat: the first copy went in.
        return true;
    }
    if end != request.follows || len != request.len || !append(session, &request.entry) {
        return false;
    }
    session.root.base = request.follows;
    true
}

/// Lets the caller's lease be over now, so that another pod may claim the session at once.
pub(super) fn end_lease(session: Option<&mut SessionState>, pod: PodId, epoch: u64, now: StoreTime) -> bool {
    match session {
        Some(session) if session.owned_by(pod, epoch) => {
            session.root.lease_until = now;
            true
        }
        _ => false,
    }
}

impl SessionState {
    /// The state of a turn, if the store knows it.
    #[must_use]
    pub fn state_of(&self, turn: &TurnId) -> Option<TurnState> {
        self.root.turns.get(turn).map(|record| record.state)
    }
}
