//! The places at one upstream: the pool's decisions behind a lock, with the wakers of those that wait.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::Instant,
};

use chatgateway_core::{
    limits::RETRY_AFTER_MIN,
    pool::{self, Asked, Ended, EndpointId, EndpointView, Lease, PoolConfig, Waits},
    queue::{NoRoom, Ticket, Why},
};
use parking_lot::{Mutex, MutexGuard};

use super::{
    endpoints::Endpoint,
    failure::Failure,
    status::{Counters, Gauge},
};
use crate::clock;

/// The places of one upstream. Whoever asks for one names who it is for; these are served in turn.
pub(super) struct Pool {
    inner: Mutex<Inner>,
    counters: Arc<Counters>,
}

struct Inner {
    pool: pool::Pool<Arc<str>>,
    endpoints: HashMap<EndpointId, Arc<Endpoint>>,
    wakers: HashMap<Ticket, Waker>,
    /// Those that the door let through and that have not asked yet.
    expected: usize,
}

impl Pool {
    pub(super) fn new(config: PoolConfig, counters: Arc<Counters>) -> Arc<Self> {
        let inner = Inner {
            pool: pool::Pool::new(config, rand::random()),
            endpoints: HashMap::new(),
            wakers: HashMap::new(),
            expected: 0,
        };
        Arc::new(Self { inner: Mutex::new(inner), counters })
    }

    pub(super) fn configure(&self, config: PoolConfig) {
        let mut inner = self.inner.lock();
        inner.pool.configure(config, clock::now());
        self.wake(inner);
    }

    /// The endpoints from now on. One that was there under the same name stays as it is, with its connections.
    pub(super) fn set_endpoints(&self, endpoints: Vec<Arc<Endpoint>>) {
        let names: Vec<_> = endpoints.iter().map(|endpoint| endpoint.name.clone()).collect();
        let mut inner = self.inner.lock();
        let ids = inner.pool.set_endpoints(&names, clock::now());
        let mut held = std::mem::take(&mut inner.endpoints);
        for (id, endpoint) in ids.into_iter().zip(endpoints) {
            let endpoint = held.remove(&id).unwrap_or(endpoint);
            inner.endpoints.insert(id, endpoint);
        }
        // Those that only end what they have: somebody may be about to take a place there.
        held.retain(|id, _| inner.pool.has(*id));
        inner.endpoints.extend(held);
        self.wake(inner);
    }

    /// Those there are, by their names.
    pub(super) fn endpoint(&self, name: &str) -> Option<Arc<Endpoint>> {
        self.inner.lock().endpoints.values().find(|endpoint| &*endpoint.name == name).cloned()
    }

    pub(super) fn view(&self) -> Vec<EndpointView> {
        let mut inner = self.inner.lock();
        let view = inner.pool.endpoints(clock::now());
        self.wake(inner);
        view
    }

    /// Whether another endpoint than those has room.
    pub(super) fn has_other(&self, than: &[EndpointId]) -> bool {
        self.inner.lock().pool.has_other(than)
    }

    /// Calls at once that there are places for.
    pub(super) fn places(&self) -> usize {
        let inner = self.inner.lock();
        inner.pool.running() + inner.pool.room()
    }

    /// Those of them that nobody has.
    pub(super) fn free_places(&self) -> usize {
        self.inner.lock().pool.room()
    }

    /// Asks for a place.
    pub(super) fn ask(self: &Arc<Self>, who: &Arc<str>, avoid: &[EndpointId]) -> Entrance {
        let mut inner = self.inner.lock();
        let asked = inner.pool.ask(who, avoid, clock::now());
        let entrance = match asked {
            Asked::Run(lease) => self.place(&mut inner, lease).map_or_else(Entrance::Refused, Entrance::Open),
            Asked::Wait { ticket, deadline } => {
                Entrance::Wait(Waiting { pool: self.clone(), ticket: Some(ticket), deadline, look_at: deadline })
            }
            Asked::Refused(no_room) => {
                self.count_refusal(no_room);
                Entrance::Refused(no_room)
            }
        };
        self.wake(inner);
        entrance
    }

    /// Whether an ask would be taken in now.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn door(self: &Arc<Self>, who: &Arc<str>) -> Result<Pass, NoRoom> {
        let mut inner = self.inner.lock();
        let expected = inner.expected;
        let open = inner.pool.door(who, expected, clock::now());
        match open {
            Ok(()) => inner.expected += 1,
            Err(_) => drop(self.counters.door_refusals.fetch_add(1, Relaxed)),
        }
        self.wake(inner);
        open.map(|()| Pass(self.clone()))
    }

    fn place(self: &Arc<Self>, inner: &mut Inner, lease: Lease) -> Result<Place, NoRoom> {
        let Some(endpoint) = inner.endpoints.get(&lease.endpoint).cloned() else {
            // Never: places are given only at endpoints that are there.
            inner.pool.end(&lease, Ended::Otherwise, clock::now());
            return Err(NoRoom { why: Why::Closed, retry_after: RETRY_AFTER_MIN });
        };
        Ok(Place {
            pool: self.clone(),
            lease: Some(lease),
            endpoint,
            how: Ended::Otherwise,
            since: clock::now(),
            _in_flight: Gauge::new(&self.counters),
        })
    }

    fn count_refusal(&self, no_room: NoRoom) {
        let counter = match no_room.why {
            Why::Full | Why::TooSlow => &self.counters.overflows,
            Why::PushedOut => &self.counters.pushed_out,
            Why::TimedOut => &self.counters.queue_timeouts,
            Why::Closed => &self.counters.circuit_refusals,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Wakes whoever has something to hear.
    fn wake(&self, mut inner: MutexGuard<'_, Inner>) {
        let woken = inner.pool.take_woken();
        let wakers: Vec<_> = woken.iter().filter_map(|ticket| inner.wakers.remove(ticket)).collect();
        self.counters.waiting.store(inner.pool.waiting() as u64, Relaxed);
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Leave to ask soon, given at the door: while it is held, later ones count it as waiting.
pub struct Pass(Arc<Pool>);

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inner = self.0.inner.lock();
        inner.expected = inner.expected.saturating_sub(1);
    }
}

/// What asking for a place came to.
pub(super) enum Entrance {
    /// It is there.
    Open(Place),
    /// Not yet.
    Wait(Waiting),
    /// There is none.
    Refused(NoRoom),
}

/// Somebody who waits for a place. Dropping it gives up.
pub(super) struct Waiting {
    pool: Arc<Pool>,
    ticket: Option<Ticket>,
    deadline: Instant,
    /// When something may change by itself.
    look_at: Instant,
}

impl Waiting {
    /// When it is to be polled at the latest.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// The place, or why there is none.
    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<Result<Place, NoRoom>> {
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let mut inner = self.pool.inner.lock();
        let place = match inner.pool.poll(ticket, clock::now()) {
            Waits::Until(at) => {
                self.look_at = at.min(self.deadline);
                match inner.wakers.get_mut(&ticket) {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => drop(inner.wakers.insert(ticket, cx.waker().clone())),
                }
                self.pool.wake(inner);
                return Poll::Pending;
            }
            Waits::Run(lease) => self.pool.place(&mut inner, lease),
            Waits::Refused(no_room) => {
                self.pool.count_refusal(no_room);
                Err(no_room)
            }
        };
        inner.wakers.remove(&ticket);
        self.ticket = None;
        self.pool.wake(inner);
        Poll::Ready(place)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let mut inner = self.pool.inner.lock();
        inner.wakers.remove(&ticket);
        inner.pool.cancel(ticket, clock::now());
        self.pool.wake(inner);
    }
}

/// A place at an endpoint, given back when this is dropped. What became of the call is told before, else it counts as given
/// up: [`Place::begun`] at the first word, then [`Place::ended`] or [`Place::failed`].
pub(super) struct Place {
    pool: Arc<Pool>,
    lease: Option<Lease>,
    endpoint: Arc<Endpoint>,
    how: Ended,
    since: Instant,
    _in_flight: Gauge,
}

impl Place {
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The call is sent only now.
    pub(super) fn sent(&mut self) {
        self.since = clock::now();
    }

    /// The first word of the answer has come.
    pub(super) fn begun(&mut self) {
        if let Some(lease) = &mut self.lease {
            let now = clock::now();
            let mut inner = self.pool.inner.lock();
            inner.pool.begun(lease, now.saturating_duration_since(self.since), now);
            self.pool.wake(inner);
        }
    }

    /// The answer is complete.
    pub(super) fn ended(&mut self) {
        self.how = Ended::Well;
    }

    /// The call has failed like this. The failure then names the endpoint.
    pub(super) fn failed(&mut self, failure: Failure) -> Failure {
        self.how = failure.ended();
        Failure { endpoint: self.lease.as_ref().map(|lease| lease.endpoint), ..failure }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            let mut inner = self.pool.inner.lock();
            inner.pool.end(&lease, self.how, clock::now());
            self.pool.wake(inner);
        }
    }
}
