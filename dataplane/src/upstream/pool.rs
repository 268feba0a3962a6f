//! The places at one model server: the queue's decisions behind a lock, with the wakers of those that wait.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use chatgateway_core::queue::{Admission, FairQueue, QueueLimits, Standing, Ticket};
use parking_lot::Mutex;

use super::status::{Counters, Gauge};
use crate::clock;

/// The places of one model server. Whoever asks for one names who it is for; these are served in turn.
pub(super) struct Pool {
    inner: Mutex<Inner>,
    counters: Arc<Counters>,
}

struct Inner {
    queue: FairQueue<Arc<str>>,
    wakers: HashMap<Ticket, Waker>,
}

impl Pool {
    pub(super) fn new(limits: QueueLimits, counters: Arc<Counters>) -> Arc<Self> {
        let inner = Inner { queue: FairQueue::new(limits), wakers: HashMap::new() };
        Arc::new(Self { inner: Mutex::new(inner), counters })
    }

    /// Asks for a place.
    pub(super) fn ask(self: &Arc<Self>, who: &Arc<str>) -> Entrance {
        let mut inner = self.inner.lock();
        let admission = inner.queue.ask(who, clock::now());
        self.count_waiting(&inner);
        drop(inner);
        match admission {
            Admission::Run => Entrance::Open(self.place()),
            Admission::Wait { ticket, deadline } => {
                Entrance::Wait(Waiting { pool: self.clone(), ticket: Some(ticket), deadline })
            }
            Admission::Full { retry_after } => {
                self.counters.overflows.fetch_add(1, Relaxed);
                Entrance::Full { retry_after }
            }
        }
    }

    fn place(self: &Arc<Self>) -> Place {
        Place { pool: self.clone(), _in_flight: Gauge::new(&self.counters) }
    }

    fn count_waiting(&self, inner: &Inner) {
        self.counters.waiting.store(inner.queue.waiting() as u64, Relaxed);
    }

    /// Changes the queue, and wakes whose turn it is.
    fn pass_on(&self, change: impl FnOnce(&mut FairQueue<Arc<str>>) -> Option<Ticket>) {
        let mut inner = self.inner.lock();
        let next = change(&mut inner.queue);
        let waker = next.and_then(|ticket| inner.wakers.remove(&ticket));
        self.count_waiting(&inner);
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// What asking for a place came to.
pub(super) enum Entrance {
    /// It is there.
    Open(Place),
    /// Not yet.
    Wait(Waiting),
    /// Too many wait.
    Full { retry_after: Duration },
}

/// Somebody who waits for a place. Dropping it gives up.
pub(super) struct Waiting {
    pool: Arc<Pool>,
    ticket: Option<Ticket>,
    deadline: Instant,
}

impl Waiting {
    /// When it has waited too long; who polls it does so then.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The place, or when to try again.
    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<Result<Place, Duration>> {
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let mut inner = self.pool.inner.lock();
        let standing = inner.queue.poll(ticket, clock::now());
        if standing == Standing::Waiting {
            match inner.wakers.get_mut(&ticket) {
                Some(waker) => waker.clone_from(cx.waker()),
                None => drop(inner.wakers.insert(ticket, cx.waker().clone())),
            }
            return Poll::Pending;
        }
        inner.wakers.remove(&ticket);
        self.ticket = None;
        self.pool.count_waiting(&inner);
        drop(inner);
        Poll::Ready(match standing {
            Standing::TimedOut { retry_after } => {
                self.pool.counters.queue_timeouts.fetch_add(1, Relaxed);
                Err(retry_after)
            }
            _ => Ok(self.pool.place()),
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        self.pool.inner.lock().wakers.remove(&ticket);
        self.pool.pass_on(|queue| queue.cancel(ticket, clock::now()));
    }
}

/// A place at the model server, given back when this is dropped.
pub(super) struct Place {
    pool: Arc<Pool>,
    _in_flight: Gauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.pass_on(|queue| queue.release(clock::now()));
    }
}
