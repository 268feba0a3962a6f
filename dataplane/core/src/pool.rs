//! The endpoints of one upstream, who may call which of them, and who waits.
//!
//! Joins the fair queue to the endpoints: how many may run at once is the sum of the places at those endpoints whose breakers
//! permit calls, and whoever's turn it is gets the endpoint that fits best. Where no endpoint can be called, nobody waits:
//! another upstream can answer at once.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    balance::{self, Candidate, LoadBound},
    breaker::{Breaker, BreakerConfig, BreakerState, Outcome, Permit},
    limits::{ENDPOINT_REST, RETRY_AFTER_MAX, RETRY_AFTER_MIN},
    queue::{Admission, FairQueue, NoRoom, QueueLimits, Standing, Ticket, Why},
    random::Random,
};

/// How an upstream's endpoints are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Calls at once of one endpoint.
    pub places: usize,
    /// Asks that wait.
    pub max_queued: usize,
    /// How long one waits at most.
    pub queue_timeout: Duration,
    /// The breaker of each endpoint.
    pub breaker: BreakerConfig,
    /// From which time to the first word on a call is slow.
    pub slow_after: Option<Duration>,
    /// Whether the asks of a session go to the same endpoint while that has room.
    pub affinity: bool,
}

/// An endpoint, by a number that no other one of the pool ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(u64);

/// A call that may be made, at this endpoint. Brought back once, by [`Pool::end`].
#[derive(Debug, PartialEq, Eq)]
pub struct Lease {
    /// Where.
    pub endpoint: EndpointId,
    permit: Option<Permit>,
    slow: bool,
}

/// What becomes of an ask for a place.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// It may call now.
    Run(Lease),
    /// It waits.
    Wait {
        /// By which it asks further.
        ticket: Ticket,
        /// When it has waited too long.
        deadline: Instant,
    },
    /// It is refused. With [`Why::Closed`] no endpoint can be called.
    Refused(NoRoom),
}

/// Where a waiting ask stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Waits {
    /// It waits. By then it asks again: something may have changed by itself.
    Until(Instant),
    /// It may call now; the ticket is used up.
    Run(Lease),
    /// It is refused; the ticket is used up.
    Refused(NoRoom),
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer.
    Well,
    /// By the endpoint's fault.
    Failed,
    /// The endpoint has enough for now, and may have said for how long. That is back pressure of a server that is well: it is
    /// asked after the others for a while, and its breaker does not hear of it. Were it to open, the calls that a rate limit
    /// lets through would be stopped with those that it does not.
    Busy(Option<Duration>),
    /// It was given up, or the request was at fault.
    Otherwise,
}

/// One endpoint, as status and metrics show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// Its name.
    pub name: Arc<str>,
    /// Calls it has.
    pub in_flight: usize,
    /// Its breaker.
    pub state: BreakerState,
    /// How often that has opened.
    pub opened: u64,
    /// It is no longer one of the upstream's, and only ends what it has.
    pub leaving: bool,
}

#[derive(Debug)]
struct Endpoint {
    id: EndpointId,
    name: Arc<str>,
    hash: u64,
    in_flight: usize,
    breaker: Breaker,
    rests_until: Option<Instant>,
    leaving: bool,
}

impl Endpoint {
    /// Calls that may be begun now.
    fn room(&self, places: usize) -> usize {
        if self.leaving { 0 } else { self.breaker.room().min(places.saturating_sub(self.in_flight)) }
    }
}

/// What a waiting ask wants beside a place.
#[derive(Debug)]
struct Wish<S> {
    session: S,
    avoid: Vec<EndpointId>,
}

/// The endpoints of one upstream. See the module.
#[derive(Debug)]
pub struct Pool<S> {
    config: PoolConfig,
    queue: FairQueue<S>,
    endpoints: Vec<Endpoint>,
    wishes: HashMap<Ticket, Wish<S>>,
    granted: HashMap<Ticket, Lease>,
    woken: Vec<Ticket>,
    random: Random,
    next_endpoint: u64,
    /// Asks put out for other sessions.
    pushed_out: u64,
}

impl<S: Clone + Eq + Hash> Pool<S> {
    /// A pool without endpoints. `seed` is random.
    #[must_use]
    pub fn new(config: PoolConfig, seed: u64) -> Self {
        Self {
            queue: FairQueue::new(limits(&config, 0)),
            config,
            endpoints: Vec::new(),
            wishes: HashMap::new(),
            granted: HashMap::new(),
            woken: Vec::new(),
            random: Random::new(seed),
            next_endpoint: 0,
            pushed_out: 0,
        }
    }

    /// Other settings from now on. Calls, those that wait, and what breakers have seen stay.
    pub fn configure(&mut self, config: PoolConfig, now: Instant) {
        self.config = config;
        for endpoint in &mut self.endpoints {
            endpoint.breaker.configure(config.breaker);
        }
        self.queue.set_limits(limits(&config, self.queue.running()));
        self.settle(now);
    }

    /// The endpoints are these from now on. One that was there stays as it is; one that is gone gets no further calls. Gives
    /// the number of each, in their order.
    pub fn set_endpoints(&mut self, names: &[Arc<str>], now: Instant) -> Vec<EndpointId> {
        for endpoint in &mut self.endpoints {
            endpoint.leaving = !names.contains(&endpoint.name);
        }
        let ids = names.iter().map(|name| {
            if let Some(endpoint) = self.endpoints.iter().find(|endpoint| endpoint.name == *name) {
                return endpoint.id;
            }
            let id = EndpointId(self.next_endpoint);
            self.next_endpoint += 1;
            self.endpoints.push(Endpoint {
                id,
                name: Arc::clone(name),
                hash: balance::hash_of(&**name),
                in_flight: 0,
                breaker: Breaker::new(self.config.breaker),
                rests_until: None,
                leaving: false,
            });
            id
        });
        let ids = ids.collect();
        self.endpoints.retain(|endpoint| !endpoint.leaving || endpoint.in_flight > 0);
        self.settle(now);
        ids
    }

    /// Asks for a place. Of several endpoints with room one that is not in `avoid` is taken.
    pub fn ask(&mut self, session: &S, avoid: &[EndpointId], now: Instant) -> Asked {
        self.settle(now);
        if let Err(refused) = self.callable(now) {
            return Asked::Refused(refused);
        }
        match self.queue.ask(session, now) {
            Admission::Run => match self.lease(session, avoid, now) {
                Some(lease) => Asked::Run(lease),
                // Never: there is room only where an endpoint has some.
                None => {
                    self.queue.free(now);
                    Asked::Refused(self.closed(now))
                }
            },
            Admission::Wait { ticket, deadline, pushed_out } => {
                self.wishes.insert(ticket, Wish { session: session.clone(), avoid: avoid.to_vec() });
                if let Some(out) = pushed_out {
                    self.pushed_out += 1;
                    self.wishes.remove(&out);
                    self.woken.push(out);
                }
                Asked::Wait { ticket, deadline }
            }
            Admission::Refused(refused) => Asked::Refused(refused),
        }
    }

    /// Whether an ask of `session` would be taken in now, if `expected` others came before it.
    ///
    /// # Errors
    /// Why not.
    pub fn door(&mut self, session: &S, expected: usize, now: Instant) -> Result<(), NoRoom> {
        self.settle(now);
        self.callable(now)?;
        self.queue.door(session, expected, now)
    }

    /// Where a waiting ask stands.
    pub fn poll(&mut self, ticket: Ticket, now: Instant) -> Waits {
        self.settle(now);
        match self.queue.poll(ticket, now) {
            Standing::Waiting => Waits::Until(self.changes_at().unwrap_or(now + self.config.queue_timeout)),
            Standing::Granted => match self.granted.remove(&ticket) {
                Some(lease) => Waits::Run(lease),
                // Never: whoever was granted has a lease.
                None => {
                    self.queue.free(now);
                    Waits::Refused(self.closed(now))
                }
            },
            Standing::Refused(refused) => {
                self.wishes.remove(&ticket);
                Waits::Refused(refused)
            }
        }
    }

    /// A waiting ask is given up.
    pub fn cancel(&mut self, ticket: Ticket, now: Instant) {
        self.wishes.remove(&ticket);
        if self.queue.give_up(ticket)
            && let Some(lease) = self.granted.remove(&ticket)
        {
            self.record(&lease.endpoint, lease.permit.as_ref(), Outcome::Nothing, now);
            self.left(lease.endpoint);
        }
        self.settle(now);
    }

    /// The first word of a call's answer has come, `after` so long.
    pub fn begun(&mut self, lease: &mut Lease, after: Duration, now: Instant) {
        lease.slow = self.config.slow_after.is_some_and(|slow_after| after >= slow_after);
        if lease.permit.as_ref().is_some_and(Permit::is_probe) {
            let permit = lease.permit.take();
            let outcome = Outcome::Judged { failed: false, slow: lease.slow };
            self.record(&lease.endpoint, permit.as_ref(), outcome, now);
            self.settle(now);
        }
    }

    /// A call is over. Its place is free.
    pub fn end(&mut self, lease: &Lease, how: Ended, now: Instant) {
        let outcome = match how {
            Ended::Well => Outcome::Judged { failed: false, slow: lease.slow },
            Ended::Failed => Outcome::Judged { failed: true, slow: lease.slow },
            Ended::Busy(_) | Ended::Otherwise => Outcome::Nothing,
        };
        self.record(&lease.endpoint, lease.permit.as_ref(), outcome, now);
        if let Ended::Busy(rest) = how
            && let Some(endpoint) = self.endpoint(lease.endpoint)
        {
            endpoint.rests_until = Some(now + rest.unwrap_or(ENDPOINT_REST).min(RETRY_AFTER_MAX));
        }
        self.left(lease.endpoint);
        self.queue.free(now);
        self.settle(now);
    }

    /// Whether it is an endpoint, or was one and still has calls.
    #[must_use]
    pub fn has(&self, id: EndpointId) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.id == id)
    }

    /// Whether an endpoint that is not in `avoid` has room.
    #[must_use]
    pub fn has_other(&self, avoid: &[EndpointId]) -> bool {
        let places = self.config.places;
        self.endpoints.iter().any(|endpoint| endpoint.room(places) > 0 && !avoid.contains(&endpoint.id))
    }

    /// Those that wait and have something to hear, since this was asked last.
    pub fn take_woken(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.woken)
    }

    /// When something changes by itself: an open breaker begins to probe.
    #[must_use]
    pub fn changes_at(&self) -> Option<Instant> {
        self.endpoints.iter().filter(|endpoint| !endpoint.leaving).filter_map(|e| e.breaker.open_until()).min()
    }

    /// Asks that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.waiting()
    }

    /// Calls that run, with those that may and have not heard of it.
    #[must_use]
    pub fn running(&self) -> usize {
        self.queue.running()
    }

    /// Places that are free at endpoints that may be called.
    #[must_use]
    pub fn room(&self) -> usize {
        self.endpoints.iter().map(|endpoint| endpoint.room(self.config.places)).sum()
    }

    /// Asks put out so far for other sessions.
    #[must_use]
    pub fn pushed_out(&self) -> u64 {
        self.pushed_out
    }

    /// The endpoints, in the order in which they came.
    pub fn endpoints(&mut self, now: Instant) -> Vec<EndpointView> {
        self.settle(now);
        let view = |endpoint: &Endpoint| EndpointView {
            name: Arc::clone(&endpoint.name),
            in_flight: endpoint.in_flight,
            state: endpoint.breaker.state(),
            opened: endpoint.breaker.opened(),
            leaving: endpoint.leaving,
        };
        self.endpoints.iter().map(view).collect()
    }

    /// Brings everything up to `now`, and gives free places to those that wait.
    fn settle(&mut self, now: Instant) {
        for endpoint in &mut self.endpoints {
            endpoint.breaker.advance(now);
        }
        self.queue.set_capacity(self.queue.running() + self.room());
        while let Some(ticket) = self.queue.grant(now) {
            self.woken.push(ticket);
            let wish = self.wishes.remove(&ticket);
            match wish.and_then(|wish| self.lease(&wish.session, &wish.avoid, now)) {
                Some(lease) => drop(self.granted.insert(ticket, lease)),
                None => break,
            }
        }
        if self.queue.waiting() > 0 && self.callable(now).is_err() {
            for ticket in self.queue.close() {
                self.wishes.remove(&ticket);
                self.woken.push(ticket);
            }
        }
    }

    /// Whether it makes sense to wait: an endpoint takes calls, or will when it has room.
    fn callable(&self, now: Instant) -> Result<(), NoRoom> {
        let takes = |endpoint: &Endpoint| !endpoint.leaving && endpoint.breaker.room() > 0;
        if self.endpoints.iter().any(takes) { Ok(()) } else { Err(self.closed(now)) }
    }

    fn closed(&self, now: Instant) -> NoRoom {
        let open_for = self.changes_at().map(|at| at.saturating_duration_since(now));
        let retry_after = open_for.unwrap_or_default().clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX);
        NoRoom { why: Why::Closed, retry_after }
    }

    /// Takes a place at the endpoint that fits best: one that is neither avoided nor resting, where there is one.
    fn lease(&mut self, session: &S, avoid: &[EndpointId], now: Instant) -> Option<Lease> {
        let random = self.random.number();
        let places = self.config.places;
        let with_room = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<Candidate> {
            let all = self.endpoints.iter().enumerate();
            let fit = all.filter(|(_, endpoint)| endpoint.room(places) > 0 && wanted(endpoint));
            fit.map(|(index, e)| Candidate { index, hash: e.hash, in_flight: e.in_flight }).collect()
        };
        let fresh = |endpoint: &Endpoint| !avoid.contains(&endpoint.id);
        let mut fit = with_room(&|endpoint| fresh(endpoint) && endpoint.rests_until.is_none_or(|until| now >= until));
        if fit.is_empty() {
            fit = with_room(&fresh);
        }
        if fit.is_empty() {
            fit = with_room(&|_| true);
        }
        let chosen = if self.config.affinity {
            let takes = self.endpoints.iter().filter(|e| !e.leaving && e.breaker.state() != BreakerState::Open);
            let (count, in_flight) = takes.fold((0, 0), |(count, sum), e| (count + 1, sum + e.in_flight));
            balance::of_session(&fit, balance::hash_of(session), LoadBound::new(in_flight, count, places))
        } else {
            balance::least_of_two(&fit, random)
        };
        let endpoint = self.endpoints.get_mut(chosen?.index)?;
        let permit = endpoint.breaker.begin()?;
        endpoint.in_flight += 1;
        Some(Lease { endpoint: endpoint.id, permit: Some(permit), slow: false })
    }

    fn record(&mut self, endpoint: &EndpointId, permit: Option<&Permit>, outcome: Outcome, now: Instant) {
        if let (Some(endpoint), Some(permit)) = (self.endpoint(*endpoint), permit) {
            endpoint.breaker.record(permit, outcome, now);
        }
    }

    /// An endpoint has one call less. One that was only waited for goes.
    fn left(&mut self, id: EndpointId) {
        if let Some(endpoint) = self.endpoint(id) {
            endpoint.in_flight = endpoint.in_flight.saturating_sub(1);
        }
        self.endpoints.retain(|endpoint| !endpoint.leaving || endpoint.in_flight > 0);
    }

    fn endpoint(&mut self, id: EndpointId) -> Option<&mut Endpoint> {
        self.endpoints.iter_mut().find(|endpoint| endpoint.id == id)
    }
}

fn limits(config: &PoolConfig, max_concurrent: usize) -> QueueLimits {
    QueueLimits { max_concurrent, max_queued: config.max_queued, timeout: config.queue_timeout }
}

#[cfg(test)]
mod tests;
