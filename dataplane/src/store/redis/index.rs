//! Which sessions this pod process may own, where others find it: a set in Redis. So somebody looks after them when this
//! process is gone.
//!
//! A session is in the set while a begin or a claim for it is under way, while it is owned, and while it is in doubt whether it
//! is. Additions and removals are enqueued under one lock, so they reach the server in the order of what they follow from.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chatgateway_core::{
    limits::{PEER_SILENCE, POD_INDEX_BATCH, POD_INDEX_REPEAT_BEATS, POD_INDEX_TTL, PODS_MAX, REDIS_QUEUE_COMMANDS},
    log::{BeginReply, ClaimReason, ClaimReply, Nonce, PodId, Reply, Request, SessionKey},
};
use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::{sync::oneshot, time::Instant};

use super::{
    super::{Beat, Peer, StoreError},
    connect::server_words,
    link::{Outcome, Then, received},
    topology::Topology,
};

/// Pod processes and their last signs of life; and since when there was no silence.
const PODS: &str = "pods";

const BEAT_SCRIPT: &str = include_str!("beat.lua");

/// One session that may be owned.
#[derive(Default)]
struct Entry {
    /// Begins and claims without an outcome yet.
    under_way: u32,
    /// Epochs that were given, each until it is given up.
    held: Vec<u64>,
    /// Begins and claims that may have been carried out.
    doubts: Vec<(Nonce, Instant)>,
    /// Over which connection the server confirmed the addition; 0: it did not.
    confirmed: u64,
}

/// See the module.
pub(super) struct Index {
    pod: PodId,
    topology: Arc<Topology>,
    entries: Mutex<HashMap<SessionKey, Entry>>,
    /// Removals that are not known to have happened.
    removals: Mutex<Vec<(SessionKey, oneshot::Receiver<Outcome>)>>,
    beats: AtomicU64,
}

/// An addition under way.
pub(super) struct Added {
    number: u64,
    reply: oneshot::Receiver<Outcome>,
}

impl Index {
    pub(super) fn new(pod: PodId, topology: Arc<Topology>) -> Arc<Self> {
        Arc::new(Self {
            pod,
            topology,
            entries: Mutex::default(),
            removals: Mutex::default(),
            beats: AtomicU64::new(0),
        })
    }

    fn send(&self, pod: PodId, cmd: Cmd, then: Then) -> u64 {
        self.topology.send(self.slot(pod), cmd, then)
    }

    fn slot(&self, pod: PodId) -> u16 {
        self.topology.slot(&pod.to_string())
    }

    /// A begin or a claim is about to be sent. Returns the addition that must have come through before it counts.
    ///
    /// # Errors
    /// Where the index cannot be reached: then it is better not sent.
    pub(super) fn enter(&self, session: &SessionKey) -> Result<Option<Added>, StoreError> {
        let mut entries = self.entries.lock();
        let entry = entries.entry(session.clone()).or_default();
        entry.under_way += 1;
        let number = self.topology.number(self.slot(self.pod));
        if entry.confirmed != 0 && entry.confirmed == number {
            return Ok(None);
        }
        let (caller, mut reply) = oneshot::channel();
        let mut add = keyed("SADD", self.pod);
        add.arg(session.as_str());
        let number = self.send(self.pod, add, Then::Reply(caller));
        match reply.try_recv().map(|outcome| outcome.result) {
            Err(_) => Ok(Some(Added { number, reply })),
            Ok(Ok(Value::Int(_))) => {
                entry.confirmed = number;
                Ok(None)
            }
            Ok(refused) => {
                entry.under_way -= 1;
                self.leave_if_idle(&mut entries, session);
                Err(refused.map_or_else(|error| error, |value| unexpected(&value)))
            }
        }
    }

    /// Waits until the addition is confirmed.
    pub(super) async fn added(&self, session: &SessionKey, added: Added) -> Result<(), StoreError> {
        match received(added.reply.await).result? {
            Value::Int(_) => {}
            other => return Err(unexpected(&other)),
        }
        if let Some(entry) = self.entries.lock().get_mut(session) {
            entry.confirmed = added.number;
        }
        Ok(())
    }

    /// What came of a begin or a claim.
    pub(super) fn settle(&self, session: &SessionKey, request: &Request, reply: Result<&Reply, &StoreError>) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(session) else { return };
        entry.under_way = entry.under_way.saturating_sub(1);
        let nonce = match request {
            Request::Begin(begin) => begin.nonce,
            Request::Claim(claim) => claim.nonce,
            _ => return,
        };
        entry.doubts.retain(|(doubted, _)| *doubted != nonce);
        match reply {
            Ok(reply) => {
                if let Some(epoch) = given(reply) {
                    entry.gain(epoch, request);
                }
            }
            Err(_) => entry.doubts.push((nonce, Instant::now())),
        }
        self.leave_if_idle(&mut entries, session);
    }

    /// An ownership is over.
    pub(super) fn disown(&self, session: &SessionKey) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(session) else { return };
        if !entry.held.is_empty() {
            entry.held.remove(0);
        }
        self.leave_if_idle(&mut entries, session);
    }

    fn leave_if_idle(&self, entries: &mut HashMap<SessionKey, Entry>, session: &SessionKey) {
        if entries.get(session).is_some_and(Entry::is_idle) {
            entries.remove(session);
            self.remove(session);
        }
    }

    /// To be called with the entries locked.
    fn remove(&self, session: &SessionKey) {
        let (caller, reply) = oneshot::channel();
        let mut remove = keyed("SREM", self.pod);
        remove.arg(session.as_str());
        self.send(self.pod, remove, Then::Reply(caller));
        let mut removals = self.removals.lock();
        // One that is forgotten costs another pod a claim in vain.
        if removals.len() < REDIS_QUEUE_COMMANDS {
            removals.push((session.clone(), reply));
        }
    }

    /// Looks after removals that failed, and after doubts that are old enough to be none.
    fn tidy(&self) {
        let mut entries = self.entries.lock();
        let removals = std::mem::take(&mut *self.removals.lock());
        let mut waiting = Vec::new();
        for (session, mut reply) in removals {
            match reply.try_recv() {
                Ok(Outcome { result: Ok(Value::Int(_)), .. }) => {}
                Err(oneshot::error::TryRecvError::Empty) => waiting.push((session, reply)),
                _ if entries.contains_key(&session) => {}
                _ => self.remove(&session),
            }
        }
        self.removals.lock().append(&mut waiting);
        let now = Instant::now();
        let mut idle = Vec::new();
        for (session, entry) in entries.iter_mut().filter(|(_, entry)| !entry.doubts.is_empty()) {
            entry.doubts.retain(|(_, since)| now.duration_since(*since) < POD_INDEX_TTL);
            if entry.is_idle() {
                idle.push(session.clone());
            }
        }
        idle.iter().for_each(|session| self.leave_if_idle(&mut entries, session));
    }

    /// Writes all of it again.
    fn repeat(&self) {
        let all: Vec<SessionKey> = self.entries.lock().keys().cloned().collect();
        for batch in all.chunks(POD_INDEX_BATCH) {
            let entries = self.entries.lock();
            let mut add = keyed("SADD", self.pod);
            let mut count = 0;
            for session in batch.iter().filter(|session| entries.contains_key(*session)) {
                add.arg(session.as_str());
                count += 1;
            }
            if count > 0 {
                self.send(self.pod, add, Then::Forget);
            }
        }
    }

    /// See [`Peers::beat`](super::super::Peers::beat).
    pub(super) fn beat(
        self: &Arc<Self>,
        leaving: bool,
    ) -> impl Future<Output = Result<Beat, StoreError>> + Send + 'static {
        let mut beat = redis::cmd("EVAL");
        beat.arg(BEAT_SCRIPT).arg(1).arg(PODS).arg(self.pod.to_string()).arg(u8::from(leaving)).arg(PODS_MAX);
        beat.arg(PEER_SILENCE.as_micros() as u64);
        let (caller, reply) = oneshot::channel();
        self.topology.send(self.topology.slot(PODS), beat, Then::Reply(caller));
        if self.beats.fetch_add(1, Relaxed) % POD_INDEX_REPEAT_BEATS == POD_INDEX_REPEAT_BEATS - 1 {
            self.repeat();
        }
        self.tidy();
        let mut expire = keyed("EXPIRE", self.pod);
        expire.arg(POD_INDEX_TTL.as_secs());
        self.send(self.pod, expire, Then::Forget);
        let pod = self.pod;
        async move {
            let value = received(reply.await).result?;
            let mut beat = heard(&value).ok_or_else(|| unexpected(&value))?;
            beat.peers.retain(|peer| peer.pod != pod);
            Ok(beat)
        }
    }

    /// See [`Peers::index_of`](super::super::Peers::index_of).
    pub(super) fn page(
        &self,
        pod: PodId,
        cursor: u64,
    ) -> impl Future<Output = Result<(u64, Vec<SessionKey>), StoreError>> + Send + 'static {
        let mut scan = keyed("SSCAN", pod);
        scan.arg(cursor).arg("COUNT").arg(POD_INDEX_BATCH);
        let (caller, reply) = oneshot::channel();
        self.send(pod, scan, Then::Reply(caller));
        async move {
            let value = received(reply.await).result?;
            page(&value).ok_or_else(|| unexpected(&value))
        }
    }

    /// Takes a session out of another one's index.
    pub(super) fn forget_session(&self, pod: PodId, session: &SessionKey) {
        let mut remove = keyed("SREM", pod);
        remove.arg(session.as_str());
        self.send(pod, remove, Then::Forget);
    }

    /// Takes another one out of the list.
    pub(super) fn forget_pod(&self, pod: PodId) {
        let mut remove = redis::cmd("ZREM");
        remove.arg(PODS).arg(pod.to_string());
        self.topology.send(self.topology.slot(PODS), remove, Then::Forget);
    }
}

impl Entry {
    fn is_idle(&self) -> bool {
        self.under_way == 0 && self.held.is_empty() && self.doubts.is_empty()
    }

    fn gain(&mut self, epoch: u64, request: &Request) {
        // One's own epoch that is made anew takes the old one's place; a repeat names what is held already.
        if let Request::Claim(claim) = request
            && let ClaimReason::Loss { epoch: old } = claim.why
        {
            self.held.retain(|held| *held != old);
        }
        if let Err(place) = self.held.binary_search(&epoch) {
            self.held.insert(place, epoch);
        }
    }
}

/// The epoch that a reply gives, if it gives one.
fn given(reply: &Reply) -> Option<u64> {
    match reply {
        Reply::Begin(BeginReply::Owner { own, .. }) | Reply::Claim(ClaimReply::Owner(own)) => Some(own.epoch),
        _ => None,
    }
}

/// A command on a pod's index.
fn keyed(name: &str, pod: PodId) -> Cmd {
    let mut cmd = redis::cmd(name);
    cmd.arg(format!("own:{{{pod}}}"));
    cmd
}

fn unexpected(value: &Value) -> StoreError {
    StoreError::Unavailable(match value {
        Value::ServerError(error) => server_words(error),
        _ => "the reply is not of the kind that was asked for".into(),
    })
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

fn heard(value: &Value) -> Option<Beat> {
    let Value::Array(parts) = value else { return None };
    let [now, since, Value::Array(pods)] = parts.as_slice() else { return None };
    let now: u64 = text(now)?.parse().ok()?;
    let since = text(since)?.parse::<f64>().ok()? as u64;
    let (pairs, _) = pods.as_chunks::<2>();
    // What is not a pod's name there is none of ours.
    let peer = |[pod, score]: &[Value; 2]| {
        let pod = PodId(u128::from_str_radix(text(pod)?, 16).ok()?);
        let seen = text(score)?.parse::<f64>().ok()? as u64;
        let silent = if seen == 0 { Duration::MAX } else { Duration::from_micros(now.saturating_sub(seen)) };
        Some(Peer { pod, silent })
    };
    let steady = Duration::from_micros(now.saturating_sub(since));
    Some(Beat { peers: pairs.iter().filter_map(peer).collect(), steady })
}

fn page(value: &Value) -> Option<(u64, Vec<SessionKey>)> {
    let Value::Array(parts) = value else { return None };
    let [cursor, Value::Array(members)] = parts.as_slice() else { return None };
    let sessions = members.iter().filter_map(|member| SessionKey::from_text(text(member)?)).collect();
    Some((text(cursor)?.parse().ok()?, sessions))
}
