//! The embedded store: the pure functions behind locks. Sessions live as long as the process.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use chatgateway_core::{
    limits::{MEMORY_SWEEP_INTERVAL, SHARDS},
    log::{
        Reply, Request, SessionKey,
        store::{SessionState, execute},
    },
};
use parking_lot::Mutex;

use super::{Answer, Call, Count, Peers, Store};
use crate::{clock::Clock, shard::shard_of};

/// Sessions for which an empty shard keeps room.
const SHARD_KEPT: usize = 4;

/// A slot is empty only while a call works on it.
type Shard = Mutex<HashMap<SessionKey, Option<SessionState>>>;

/// See the module.
pub struct MemoryStore {
    shards: Box<[Shard]>,
    sessions: AtomicU64,
    clock: Clock,
}

impl MemoryStore {
    /// An empty store on the given clock.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect(), sessions: AtomicU64::new(0), clock }
    }

    fn execute(&self, session: &SessionKey, request: &Request) -> Reply {
        let now = self.clock.store_time();
        let mut shard = self.shards[shard_of(session, SHARDS)].lock();
        if let Some(slot) = shard.get_mut(session) {
            let reply = execute(slot, request, now);
            if slot.is_none() {
                shard.remove(session);
                self.sessions.fetch_sub(1, Ordering::Relaxed);
            }
            return reply;
        }
        let mut slot = None;
        let reply = execute(&mut slot, request, now);
        if slot.is_some() {
            shard.insert(session.clone(), slot);
            self.sessions.fetch_add(1, Ordering::Relaxed);
        }
        reply
    }

    /// Removes what has expired. A session that is asked for finds out by itself; this is for those nobody asks for.
    pub fn sweep(&self) {
        let now = self.clock.store_time();
        for shard in &self.shards {
            let mut gone = Vec::new();
            let mut shard = shard.lock();
            shard.retain(|_, slot| {
                let live = slot.as_ref().is_some_and(|state| state.expires_at() > now);
                if !live {
                    gone.push(slot.take());
                }
                live
            });
            if shard.capacity() > 2 * (shard.len() + SHARD_KEPT) {
                shard.shrink_to_fit();
            }
            drop(shard);
            self.sessions.fetch_sub(gone.len() as u64, Ordering::Relaxed);
            // `gone` is freed here, outside the lock.
        }
    }

    /// Sweeps for as long as the store lives.
    pub async fn keep_swept(self: Arc<Self>) {
        let store = Arc::downgrade(&self);
        drop(self);
        let mut ticks = tokio::time::interval(MEMORY_SWEEP_INTERVAL.max(Duration::from_millis(1)));
        loop {
            ticks.tick().await;
            let Some(store) = store.upgrade() else { return };
            store.sweep();
        }
    }
}

impl Store for MemoryStore {
    fn call(&self, session: &SessionKey, request: Request) -> Call {
        Call::Ready(Some(Answer { result: Ok(self.execute(session, &request)), connection: 0, followers: None }))
    }

    fn connection(&self, _session: &SessionKey) -> u64 {
        0
    }

    fn sessions(&self) -> Option<u64> {
        Some(self.sessions.load(Ordering::Relaxed))
    }

    fn name(&self) -> &'static str {
        "Memory"
    }

    fn trouble(&self) -> Option<String> {
        None
    }

    fn counts(&self) -> Vec<Count> {
        Vec::new()
    }

    fn peers(&self) -> Option<&dyn Peers> {
        None
    }
}
