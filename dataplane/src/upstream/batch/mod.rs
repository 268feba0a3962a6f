//! Asks that share calls. What goes when is decided by [`Batcher`]; here are the task that gets the places for it, and the
//! tasks that each read one call and give its asks what is theirs.
//!
//! An ask that goes alone makes its call itself, on the place that was got for it: nothing of this is in its way then.

mod call;
mod recipe;
mod seat;
mod split;
mod status;

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use chatgateway_config::{BatchingSettings, PoolSettings, UpstreamSettings};
use chatgateway_core::{
    batch::{AskId, Batch, BatchLimits, BatchPolicy, Batcher, CallId, Step, Take, Taken},
    limits::{BATCH_ALONE, BATCH_REFUSALS_MAX},
    queue::{NoRoom, Why},
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::seat::{Found, Ride, Seat};
pub use self::status::BatchingStatus;
pub(super) use self::{
    recipe::Recipe,
    seat::{Piece, Rider},
};
use super::{failure::Failure, pool::Place, server::Server};
use crate::clock;

/// The batches of one upstream.
pub(super) struct Batching {
    server: ArcSwap<Server>,
    inner: Mutex<Inner>,
    /// Something has happened that the task that gets places may wait for.
    changed: Notify,
    /// Batches that were refused, and whose asks were made one by one.
    split_alone: AtomicU64,
    /// How many of them in a row.
    refused_in_row: AtomicU32,
}

struct Inner {
    batcher: Batcher<Arc<str>, Arc<Recipe>>,
    seats: HashMap<AskId, Arc<Seat>>,
    /// The task that gets places is there.
    pumping: bool,
}

/// What became of an ask.
pub(super) enum Boarded {
    /// It is to make its call itself: on this place, or on one of its own.
    Alone(Option<Box<(Place, Lone)>>),
    /// Its answer comes with others', and this is the beginning.
    Rides(Rider, Piece),
}

impl Batching {
    fn new(settings: &UpstreamSettings, server: Arc<Server>) -> Arc<Self> {
        let inner = Inner {
            batcher: Batcher::new(policy(settings.batching), limits(settings)),
            seats: HashMap::new(),
            pumping: false,
        };
        Arc::new(Self {
            server: ArcSwap::new(server),
            inner: Mutex::new(inner),
            changed: Notify::new(),
            split_alone: AtomicU64::new(0),
            refused_in_row: AtomicU32::new(0),
        })
    }

    /// Those of an upstream with these settings, which goes on with those it had.
    pub(super) fn renewed(before: Option<Arc<Self>>, settings: &UpstreamSettings, server: &Arc<Server>) -> Arc<Self> {
        let Some(before) = before else { return Self::new(settings, server.clone()) };
        before.renew(settings, server.clone());
        before
    }

    /// Goes on with other settings: from the next batch on, with those who wait.
    fn renew(&self, settings: &UpstreamSettings, server: Arc<Server>) {
        self.server.store(server);
        let mut inner = self.inner.lock();
        inner.batcher.change(policy(settings.batching), limits(settings));
        drop(inner);
        self.changed.notify_one();
    }

    /// An ask waits until it is sent, and then for the beginning of its answer.
    ///
    /// # Errors
    /// Too many wait, it has waited too long, there is no place for it, or the call failed before its answer began.
    pub(super) async fn board(
        self: &Arc<Self>,
        who: &Arc<str>,
        recipe: Recipe,
        prompt: String,
        trim: bool,
    ) -> Result<Boarded, Failure> {
        let (mut rider, deadline) = self.wait(who, Arc::new(recipe), prompt, trim)?;
        let timer = tokio::time::sleep_until(deadline.into());
        let mut timer = std::pin::pin!(timer);
        let found = poll_fn(|cx| {
            if let std::task::Poll::Ready(found) = rider.poll_found(cx) {
                return std::task::Poll::Ready(Ok(found));
            }
            // A call that runs has timeouts of its own.
            if !rider.waits() {
                return std::task::Poll::Pending;
            }
            std::task::ready!(timer.as_mut().poll(cx));
            std::task::Poll::Ready(Err(()))
        });
        match found.await {
            Ok(Some(Found::Alone(with))) => Ok(Boarded::Alone(with)),
            Ok(Some(Found::Piece(Piece::Failed(failure)))) => Err(failure),
            Ok(Some(Found::Piece(piece))) => Ok(Boarded::Rides(rider, piece)),
            Ok(None) => Ok(Boarded::Alone(None)),
            Err(()) => {
                self.server.load().counters.queue_timeouts.fetch_add(1, Relaxed);
                let retry_after = self.inner.lock().batcher.retry_after();
                Err(self.no_room(Why::TimedOut, retry_after))
            }
        }
    }

    fn wait(
        self: &Arc<Self>,
        who: &Arc<str>,
        recipe: Arc<Recipe>,
        prompt: String,
        trim: bool,
    ) -> Result<(Rider, Instant), Failure> {
        let mut inner = self.inner.lock();
        let Taken { ask, deadline, pushed_out } = match inner.batcher.ask(who, &recipe, clock::now()) {
            Ok(taken) => taken,
            Err(retry_after) => {
                drop(inner);
                self.server.load().counters.overflows.fetch_add(1, Relaxed);
                return Err(self.no_room(Why::Full, retry_after));
            }
        };
        let seat = Seat::new(prompt, trim);
        inner.seats.insert(ask, seat.clone());
        let out = pushed_out.and_then(|out| inner.seats.remove(&out));
        let retry_after = inner.batcher.retry_after();
        let starts = !std::mem::replace(&mut inner.pumping, true);
        drop(inner);
        if let Some(out) = out {
            self.server.load().counters.pushed_out.fetch_add(1, Relaxed);
            out.push(Piece::Failed(self.no_room(Why::PushedOut, retry_after)));
        }
        if starts {
            tokio::spawn(self.clone().pump());
        } else {
            self.changed.notify_one();
        }
        Ok((Rider { seat, ask, batching: self.clone() }, deadline))
    }

    /// Whether an ask would be taken in.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn door(&self, who: &Arc<str>) -> Result<(), Failure> {
        self.inner.lock().batcher.door(who).map_err(|retry_after| {
            self.server.load().counters.door_refusals.fetch_add(1, Relaxed);
            self.no_room(Why::Full, retry_after)
        })
    }

    fn no_room(&self, why: Why, retry_after: Duration) -> Failure {
        Failure::no_room(&self.server.load().name, NoRoom { why, retry_after })
    }

    /// An ask's reader has gone before it was sent.
    fn leave(&self, ask: AskId) {
        let mut inner = self.inner.lock();
        inner.batcher.leave(ask);
        inner.seats.remove(&ask);
        drop(inner);
        self.changed.notify_one();
    }

    /// Gets places as long as anybody waits, and sends what goes over them.
    async fn pump(self: Arc<Self>) {
        loop {
            let places = self.server.load().places();
            let step = {
                let mut inner = self.inner.lock();
                inner.batcher.places(places);
                let step = inner.batcher.step(clock::now());
                inner.pumping = step != Step::Idle;
                step
            };
            match step {
                Step::Idle => return,
                Step::Wait(until) => self.change(until).await,
                Step::Place => {
                    if let Some(place) = self.place().await {
                        self.fill(place).await;
                    }
                }
            }
        }
    }

    /// Waits until something happens, or until then.
    async fn change(&self, until: Option<Instant>) {
        match until {
            None => self.changed.notified().await,
            Some(until) => drop(tokio::time::timeout_at(until.into(), self.changed.notified()).await),
        }
    }

    /// A place, as long as anybody waits for it. Where there is none, whoever's turn it was hears why.
    async fn place(&self) -> Option<Place> {
        let server = self.server.load_full();
        let who = self.inner.lock().batcher.next_session()?.clone();
        let place = server.place(&who);
        let mut place = std::pin::pin!(place);
        let place = loop {
            tokio::select! {
                biased;
                place = &mut place => break place,
                () = self.changed.notified() => {
                    if self.inner.lock().seats.is_empty() {
                        return None;
                    }
                }
            }
        };
        match place {
            Ok(place) => Some(place),
            Err(failure) => {
                let mut inner = self.inner.lock();
                let seat = inner.batcher.refuse().and_then(|ask| inner.seats.remove(&ask));
                drop(inner);
                if let Some(seat) = seat {
                    seat.push(Piece::Failed(failure));
                }
                None
            }
        }
    }

    /// Sends what goes over a place.
    async fn fill(self: &Arc<Self>, place: Place) {
        loop {
            let free = self.server.load().free_places();
            let (take, seats) = {
                let mut inner = self.inner.lock();
                let take = inner.batcher.take(free, clock::now());
                let asks: &[AskId] = if let Take::Send(batch) = &take { &batch.asks } else { &[] };
                let seats = asks.iter().filter_map(|ask| Some((*ask, inner.seats.remove(ask)?))).collect();
                (take, seats)
            };
            match take {
                Take::Nothing => return,
                Take::Hold(until) => self.change(Some(until)).await,
                Take::Send(Batch { call, group, .. }) => return self.send(call, group, seats, place),
            }
        }
    }

    fn send(self: &Arc<Self>, call: CallId, recipe: Arc<Recipe>, seats: Vec<(AskId, Arc<Seat>)>, place: Place) {
        let running = Running { batching: self.clone(), call };
        if let [(ask, seat)] = &seats[..] {
            return seat.alone(Some(Box::new((place, Lone { running, ask: *ask, begun: false }))));
        }
        let ride = Arc::new(Ride::new(seats.len()));
        for (_, seat) in &seats {
            seat.ride(&ride);
        }
        tokio::spawn(call::run(running, recipe, seats, place, ride));
    }

    fn first_token(&self, call: CallId, ask: AskId) {
        self.inner.lock().batcher.first_token(call, ask, clock::now());
    }

    /// The server refused a batch. Where it has none, it is not asked for them for a while.
    fn refused(&self, has_none: bool) {
        self.split_alone.fetch_add(1, Relaxed);
        let in_row = self.refused_in_row.fetch_add(1, Relaxed) + 1;
        if has_none || in_row >= BATCH_REFUSALS_MAX {
            self.refused_in_row.store(0, Relaxed);
            tracing::info!(
                upstream = &*self.server.load().name,
                "takes no batches; its asks go one by one for a while"
            );
            self.inner.lock().batcher.alone_until(clock::now() + BATCH_ALONE);
        }
    }

    fn accepted(&self) {
        self.refused_in_row.store(0, Relaxed);
    }
}

/// A call under way, as the batcher knows it, until this is dropped.
pub(super) struct Running {
    batching: Arc<Batching>,
    call: CallId,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.batching.inner.lock().batcher.ended(self.call);
        self.batching.changed.notify_one();
    }
}

/// The call of an ask that goes alone, as long as this lives.
pub(super) struct Lone {
    running: Running,
    ask: AskId,
    begun: bool,
}

impl Lone {
    /// The first token of the answer has come.
    pub(super) fn begun(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.running.batching.first_token(self.running.call, self.ask);
        }
    }
}

fn policy(settings: BatchingSettings) -> BatchPolicy {
    match settings {
        BatchingSettings::Off => BatchPolicy::Off,
        BatchingSettings::Fixed { max_size, max_delay } => BatchPolicy::Fixed { max_size, max_delay },
        BatchingSettings::Adaptive { max_size, max_delay, first_token_target } => {
            BatchPolicy::Adaptive { max_size, max_delay, first_token_target }
        }
    }
}

fn limits(settings: &UpstreamSettings) -> BatchLimits {
    let PoolSettings { max_concurrent, max_queued, queue_timeout: timeout } = settings.pool;
    BatchLimits { max_concurrent, max_queued, timeout }
}
