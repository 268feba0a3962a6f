//! The store's scripts as pure functions over one session's state.
//!
//! This is what a store does for one session, one request at a time: the embedded store is [`execute`] behind a lock, and
//! any other store must answer every request as this does. Each function makes all its checks before its first change.

mod accept;
mod finish;
mod look;
mod own;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    EndKind, Entry, EntryId, EntryKind, HistoryTurn, Nonce, Ownership, PodId, Reply, Request, StoreTime, Terms,
    TurnBody, TurnId, TurnState,
};
use crate::limits::{DELETED_RECORDS_TTL, TURN_RECORDS_MAX, UNFINISHED_TTL};

/// Everything the store keeps of one session.
#[derive(Clone, Debug)]
pub struct SessionState {
    /// The log, ids ascending. `None`: there is none, because it was lost, or because the session was deleted.
    pub log: Option<VecDeque<Arc<Entry>>>,
    /// Who may write, what runs, what is known of each turn.
    pub root: Root,
    /// The last ended turns with their texts, by `seq`.
    pub history: VecDeque<HistoryTurn>,
    /// When all of it ceases to exist.
    pub expires: StoreTime,
}

/// The session's root record.
#[derive(Clone, Debug, Default)]
pub struct Root {
    /// The last epoch given.
    pub epoch: u64,
    /// Who owns the session. Nobody owns an idle one.
    pub owner: Option<PodId>,
    /// Of the request that took the present ownership.
    pub nonce: Option<Nonce>,
    /// When the owner's lease is over.
    pub lease_until: StoreTime,
    /// The turn that runs.
    pub running: Option<TurnId>,
    /// Where the log begins to tell the running turn completely; in an idle session its end.
    pub base: EntryId,
    /// The last number given to a turn.
    pub seq: u64,
    /// Turns that wait, in order.
    pub queue: VecDeque<TurnId>,
    /// What is known of each turn.
    pub turns: HashMap<TurnId, Record>,
    /// Turns that ended or were deleted, oldest first: the order in which records are given up.
    pub ended: VecDeque<TurnId>,
    /// The `turn` entries of ended turns that the log still has, oldest first: where it may be cut.
    pub kept: VecDeque<EntryId>,
}

/// What is known of one turn.
#[derive(Clone, Debug)]
pub struct Record {
    /// Where it stands.
    pub state: TurnState,
    /// Its number.
    pub seq: u64,
    /// Digest of what it asks.
    pub hash: [u8; 16],
    /// What it asks, until it has ended.
    pub body: Option<Arc<TurnBody>>,
    /// Its `turn` entry; zero while it has none, or if the log that held it is lost.
    pub start: EntryId,
    /// The position just before that entry.
    pub from: EntryId,
    /// Its last entry, once it has ended.
    pub end: EntryId,
    /// How often it was taken over.
    pub tries: u32,
    /// Whether a client has cancelled it.
    pub cancel: bool,
}

/// Carries out one request for the session in `slot`. A session whose time is over is removed first.
pub fn execute(slot: &mut Option<SessionState>, request: &Request, now: StoreTime) -> Reply {
    if slot.as_ref().is_some_and(|session| session.expires <= now) {
        *slot = None;
    }
    match request {
        Request::Begin(request) => Reply::Begin(accept::begin(slot, request, now)),
        Request::Append(entry) => Reply::Append(slot.as_mut().is_some_and(|session| own::append(session, entry))),
        Request::Check(request) => Reply::Check(own::check(slot.as_mut(), request, now)),
        Request::Finish(request) => Reply::Finish(finish::finish(slot.as_mut(), request, now)),
        Request::Claim(request) => Reply::Claim(own::claim(slot.as_mut(), request, now)),
        Request::Reset(request) => Reply::Reset(slot.as_mut().is_some_and(|session| own::reset(session, request))),
        Request::EndLease { pod, epoch } => Reply::EndLease(own::end_lease(slot.as_mut(), *pod, *epoch, now)),
        Request::Cancel { turn } => Reply::Cancel(look::cancel(slot.as_mut(), turn)),
        Request::Read { after, count } => Reply::Read(look::read(slot.as_ref(), *after, *count, now)),
        Request::Snapshot => Reply::Snapshot(look::snapshot(slot.as_ref())),
        Request::Delete => Reply::Delete(look::delete(slot.as_mut(), now)),
    }
}

impl SessionState {
    fn new() -> Self {
        Self { log: None, root: Root::default(), history: VecDeque::new(), expires: StoreTime(0) }
    }

    /// When the session ceases to exist, unless a later request moves that.
    #[must_use]
    pub fn expires_at(&self) -> StoreTime {
        self.expires
    }

    /// Whether there is a session, and not only the records that a deleted one leaves behind.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.root.seq > 0
    }

    /// Whether a turn runs or waits.
    #[must_use]
    pub fn unfinished(&self) -> bool {
        self.root.running.is_some() || !self.root.queue.is_empty()
    }

    /// The id of the last entry; zero if there is none.
    #[must_use]
    pub fn end(&self) -> EntryId {
        self.log.as_ref().and_then(|log| log.back()).map_or(EntryId::ZERO, |entry| entry.id)
    }

    /// How many entries the log has.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.len() as u64)
    }

    /// Whether the log has no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn has_entry(&self, id: EntryId) -> bool {
        self.log.as_ref().is_some_and(|log| log.binary_search_by(|entry| entry.id.cmp(&id)).is_ok())
    }

    /// Where the log begins to tell the running turn; a lost log tells nothing before its new beginning.
    fn base(&self) -> EntryId {
        if self.log.is_some() { self.root.base } else { EntryId::ZERO }
    }

    fn owned_by(&self, pod: PodId, epoch: u64) -> bool {
        self.root.owner == Some(pod) && self.root.epoch == epoch
    }

    fn lease_left_ms(&self, now: StoreTime) -> u64 {
        if self.root.owner.is_none() {
            return 0;
        }
        // Rounded up, so that 0 means over.
        self.root.lease_until.0.saturating_sub(now.0).div_ceil(1_000)
    }

    /// An epoch that was never given before: the clock's, or where the clock is not above the last one, a random step on.
    fn new_epoch(&self, now: StoreTime, jump: u32) -> u64 {
        let top = self.root.epoch.max(self.end().epoch);
        if now.0 > top { now.0 } else { top + 1 + u64::from(jump) }
    }

    fn renew_lease(&mut self, now: StoreTime, terms: &Terms) {
        self.root.lease_until = StoreTime(now.0.saturating_add(terms.lease_ms.saturating_mul(1_000)));
    }

    fn renew_life(&mut self, now: StoreTime, terms: &Terms) {
        let ttl_us = terms.ttl_ms.saturating_mul(1_000);
        let ttl_us = if self.unfinished() { ttl_us.max(UNFINISHED_TTL.as_micros() as u64) } else { ttl_us };
        self.expires = StoreTime(now.0.saturating_add(ttl_us));
    }

    /// Gives the session a new owner, whose first entry names the end it follows. Returns the entry.
    fn open(&mut self, pod: PodId, nonce: Nonce, epoch: u64, turn: &TurnId, kind: EntryKind) -> Arc<Entry> {
        let after = self.end();
        if self.log.is_none() {
            // What a lost log told is gone: the new one is complete from its beginning.
            self.root.base = EntryId::ZERO;
            self.root.kept.clear();
        }
        let entry = Arc::new(Entry { id: EntryId::new(epoch, 0), after: Some(after), turn: turn.clone(), kind });
        self.log.get_or_insert_default().push_back(Arc::clone(&entry));
        self.root.epoch = epoch;
        self.root.owner = Some(pod);
        self.root.nonce = Some(nonce);
        entry
    }

    /// Makes the first waiting turn the running one, with its `turn` entry under `id`.
    fn start_next(&mut self, id: EntryId) -> Option<(TurnId, EntryKind)> {
        let turn = self.root.queue.pop_front()?;
        let from = self.end();
        let record = self.root.turns.get_mut(&turn)?;
        record.state = TurnState::Running;
        record.start = id;
        record.from = from;
        let text = record.body.as_ref().map_or_else(|| "".into(), |body| Arc::clone(&body.text));
        let kind = EntryKind::Turn { seq: record.seq, text };
        self.root.base = from;
        self.root.running = Some(turn.clone());
        Some((turn, kind))
    }

    /// The running turn as its owner gets it.
    fn ownership(&self, appended: Vec<Arc<Entry>>) -> Option<Ownership> {
        let turn = self.root.running.as_ref()?;
        let record = self.root.turns.get(turn)?;
        Some(Ownership {
            epoch: self.root.epoch,
            end: self.end(),
            len: self.len(),
            turn: turn.clone(),
            seq: record.seq,
            body: Arc::clone(record.body.as_ref()?),
            start: record.start,
            cancel: record.cancel,
            tries: record.tries,
            appended,
        })
    }

    /// Notes that a turn has ended, and gives up the oldest record above the bound.
    fn note_ended(&mut self, turn: TurnId) {
        self.root.ended.push_back(turn);
        while self.root.ended.len() > TURN_RECORDS_MAX {
            if let Some(oldest) = self.root.ended.pop_front() {
                self.root.turns.remove(&oldest);
            }
        }
    }
}
