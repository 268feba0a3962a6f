//! What the transports see: accept a turn, cancel it, read sessions. Everything here is about one pod.

mod begin;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use chatgateway_config::{Settings, StoreSettings};
use chatgateway_core::{
    door::DoorLooks,
    drain::{DrainPlan, Left},
    error::{ErrorCode, Refusal},
    limits::{LEASE_TTL, STORE_CALL_TIMEOUT, STORE_CALL_TRIES, STORE_RETRY_MAX, STORE_RETRY_MIN},
    log::{
        CancelReply, Claim, ClaimReason, ClaimReply, EntryId, Nonce, PodId, ReadReply, Release, Reply, Request,
        SessionId, SessionKey, SnapshotReply, Terms, TurnId, TurnState,
    },
};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use self::begin::{Receipt, SendTurn};
use crate::{
    clock::{self, Clock, millis},
    driver::{self, Given},
    hub::{Channel, Hub, OwnerHandle},
    leaving::Departure,
    limiter::Limiter,
    metrics::Metrics,
    peers::{self, Others},
    readers::Readers,
    reload::ReloadState,
    store::{Answer, Call, MemoryStore, Notice, Store, StoreError, redis::RedisStore},
    upstream::Upstreams,
};

/// On whose behalf a request comes.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The tenant.
    pub tenant: Arc<str>,
    /// Who, within the tenant.
    pub principal: Arc<str>,
    /// From where.
    pub address: IpAddr,
}

impl Caller {
    /// Everybody is the same principal where no authentication is configured.
    #[must_use]
    pub fn anonymous(address: IpAddr) -> Self {
        Self { tenant: "default".into(), principal: "anonymous".into(), address }
    }

    /// The store's key of this caller's session.
    #[must_use]
    pub fn key(&self, session: &SessionId) -> SessionKey {
        SessionKey::new(&self.tenant, &self.principal, session)
    }
}

/// One pod's gateway.
pub struct Gateway {
    /// This process.
    pub pod: PodId,
    /// What it counts.
    pub metrics: Metrics,
    /// Sessions that are read or run here.
    pub(crate) hub: Arc<Hub>,
    /// Who is told when the pod goes away.
    pub departure: Departure,
    /// The other pods on the same store.
    pub(crate) others: Others,
    /// The rate limits.
    pub limiter: Arc<Limiter>,
    /// How the configuration file compares with what is applied.
    pub(crate) reload: Mutex<ReloadState>,
    settings: ArcSwap<Settings>,
    store: Arc<dyn Store>,
    upstreams: Arc<ArcSwap<Upstreams>>,
    /// Of turns that there is no room for.
    door_looks: Mutex<DoorLooks>,
    drain: watch::Sender<Option<DrainPlan>>,
    running: AtomicU64,
    store_reached: AtomicBool,
}

impl Gateway {
    /// A gateway on the given store.
    ///
    /// # Errors
    /// Where an upstream cannot be set up.
    pub fn new(settings: Settings, pod: PodId, store: Arc<dyn Store>) -> anyhow::Result<Arc<Self>> {
        let upstreams = Arc::new(ArcSwap::from_pointee(Upstreams::new(&settings)?));
        let metrics = Metrics::new(store.clone(), upstreams.clone());
        Ok(Arc::new(Self {
            pod,
            limiter: Limiter::new(&settings, &store, metrics.rate_limits.clone()),
            metrics,
            hub: Arc::new(Hub::new(store.clone())),
            departure: Departure::default(),
            others: Others::default(),
            reload: Mutex::default(),
            settings: ArcSwap::from_pointee(settings),
            store,
            upstreams,
            door_looks: Mutex::default(),
            drain: watch::Sender::new(None),
            running: AtomicU64::new(0),
            store_reached: AtomicBool::new(false),
        }))
    }

    /// A gateway on the store that the settings name, with all that has to go on beside it. Needs a tokio runtime.
    ///
    /// # Errors
    /// Where an upstream or the store cannot be set up.
    pub fn start(settings: Settings) -> anyhow::Result<Arc<Self>> {
        let pod = PodId(rand::random());
        match settings.sessions.store.clone() {
            StoreSettings::Memory => {
                let store = Arc::new(MemoryStore::new(Clock::system()));
                tokio::spawn(store.clone().keep_swept());
                Self::new(settings, pod, store)
            }
            StoreSettings::Redis(redis) => {
                let (store, events) = RedisStore::start(&redis, pod)?;
                let gateway = Self::new(settings, pod, store)?;
                peers::start(&gateway, events);
                Ok(gateway)
            }
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// The model servers in force.
    pub fn upstreams(&self) -> Arc<Upstreams> {
        self.upstreams.load_full()
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The store was seen to work.
    pub(crate) fn store_reached(&self) {
        self.store_reached.store(true, Ordering::Relaxed);
    }

    /// Whether the store was ever seen to work.
    pub(crate) fn store_was_reached(&self) -> bool {
        self.store_reached.load(Ordering::Relaxed)
    }

    /// Puts new settings in force. Answers that run go on with the old ones.
    ///
    /// # Errors
    /// Where an upstream cannot be set up; then nothing has changed.
    pub fn apply(&self, settings: Settings) -> anyhow::Result<()> {
        let upstreams = self.upstreams().renewed(&settings)?;
        self.upstreams.store(Arc::new(upstreams));
        self.limiter.apply(&settings);
        self.settings.store(Arc::new(settings));
        Ok(())
    }

    /// A connection's view of the sessions it reads.
    pub fn readers(self: &Arc<Self>, caller: Caller) -> Readers {
        Readers::new(self.clone(), caller)
    }

    /// Turns that run in this pod.
    pub fn running_turns(&self) -> u64 {
        self.running.load(Ordering::Relaxed)
    }

    /// What is left in this pod.
    pub fn left(&self) -> Left {
        Left { connections: self.metrics.connections_open(), turns: self.running_turns() }
    }

    /// Follows the drain: `None` while the pod is to stay.
    pub fn drain_watch(&self) -> watch::Receiver<Option<DrainPlan>> {
        self.drain.subscribe()
    }

    /// When the connection of a client that is told `now` to go is closed at the latest. Where another pod can go on with its
    /// answers, it need not wait for them.
    pub(crate) fn close_at(&self, now: Instant, answering: bool) -> Instant {
        self.start_drain().close_at(now, answering && !self.others.are_there())
    }

    /// Whether the pod is to go away.
    pub fn draining(&self) -> bool {
        self.drain.borrow().is_some()
    }

    /// Whether turns and calls are still taken: of a pod that is to go away until the drain's floor.
    ///
    /// # Errors
    /// `draining`.
    pub(crate) fn takes_new(&self) -> Result<(), Refusal> {
        let over = self.drain.borrow().is_some_and(|plan| clock::now() >= plan.floor);
        if over { Err(self.refused(draining())) } else { Ok(()) }
    }

    /// Starts the drain. Once started it is not changed by another call.
    pub fn start_drain(&self) -> DrainPlan {
        let settings = self.settings();
        let fresh = DrainPlan::new(
            clock::now(),
            settings.drain.accept_floor,
            settings.drain.reconnect_spread,
            settings.drain.timeout,
        );
        let mut plan = fresh;
        self.drain.send_if_modified(|drain| match drain {
            Some(running) => {
                plan = *running;
                false
            }
            None => {
                *drain = Some(fresh);
                true
            }
        });
        plan
    }

    pub(crate) fn terms(&self) -> Terms {
        let settings = self.settings.load();
        Terms {
            ttl_ms: millis(settings.sessions.ttl),
            lease_ms: millis(LEASE_TTL),
            keep_turns: settings.sessions.max_turns,
        }
    }

    /// Marks a turn as cancelled; its owner stops the model server.
    ///
    /// # Errors
    /// `not_found` for an unknown turn, `store_unavailable`.
    pub async fn cancel(&self, caller: &Caller, session: &SessionId, turn: &TurnId) -> Result<TurnState, Refusal> {
        let key = caller.key(session);
        match self.ask(&key, Request::Cancel { turn: turn.clone() }).await? {
            Reply::Cancel(CancelReply::Marked { state, owner }) => {
                self.tell_owner(&key, owner);
                Ok(state)
            }
            Reply::Cancel(CancelReply::Ended(end)) => Ok(TurnState::Ended(end)),
            _ => Err(self.refused(Refusal::new(
                ErrorCode::NotFound,
                format!("session {session} has no turn {turn}; it may have expired"),
            ))),
        }
    }

    /// A session's history, and the position from which its log tells the rest.
    ///
    /// # Errors
    /// `not_found`, `store_unavailable`.
    pub async fn snapshot(&self, caller: &Caller, session: &SessionId) -> Result<SnapshotReply, Refusal> {
        match self.ask(&caller.key(session), Request::Snapshot).await? {
            Reply::Snapshot(snapshot) if snapshot.exists => Ok(snapshot),
            _ => Err(self.refused(Refusal::new(
                ErrorCode::NotFound,
                format!("there is no session {session}; sessions expire some time after their last turn"),
            ))),
        }
    }

    /// Removes a session: its turns are cancelled, its readers told.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn delete(&self, caller: &Caller, session: &SessionId) -> Result<(), Refusal> {
        let key = caller.key(session);
        let Reply::Delete(owner) = self.ask(&key, Request::Delete).await? else { return Ok(()) };
        if let Some(channel) = self.hub.existing(&key) {
            channel.deleted();
        }
        self.tell_owner(&key, owner);
        Ok(())
    }

    /// Lets a session's owner look at it, wherever it is.
    pub(crate) fn tell_owner(&self, key: &SessionKey, owner: Option<PodId>) {
        if let Some(here) = self.hub.existing(key).and_then(|channel| channel.owner()) {
            here.look();
        }
        if let (Some(owner), Some(peers)) = (owner.filter(|owner| *owner != self.pod), self.store.peers()) {
            peers.notify(owner, key, Notice::Look);
        }
    }

    /// What a session's turns said so far. Asked for until the store answers.
    pub(crate) fn recall(&self, key: &SessionKey) -> Call {
        let mut call = self.store.call(key, Request::Snapshot);
        if matches!(call, Call::Ready(_)) {
            return call;
        }
        let (store, key) = (self.store.clone(), key.clone());
        Call::Pending(Box::pin(async move {
            let mut pause = STORE_RETRY_MIN;
            loop {
                if let Ok(answer) = tokio::time::timeout(STORE_CALL_TIMEOUT, call).await
                    && answer.result.is_ok()
                {
                    return answer;
                }
                tokio::time::sleep(pause).await;
                pause = STORE_RETRY_MAX.min(pause * 2);
                call = store.call(&key, Request::Snapshot);
            }
        }))
    }

    /// Reads a page of the log. The reply comes only when entries committed after it do not pass the channel unheard.
    pub(crate) fn read(&self, channel: &Arc<Channel>, after: EntryId, count: usize) -> Call {
        let request = Request::Read { after, count };
        if channel.misses_nothing() {
            return self.store.call(&channel.key, request);
        }
        let (store, channel) = (self.store.clone(), channel.clone());
        Call::Pending(Box::pin(async move {
            if tokio::time::timeout(STORE_CALL_TIMEOUT, channel.miss_nothing()).await.is_err() {
                let result = Err(StoreError::Timeout(millis(STORE_CALL_TIMEOUT)));
                return Answer { result, connection: store.connection(&channel.key), followers: None };
            }
            store.call(&channel.key, request).await
        }))
    }

    /// Tells the owner of a session that is read here that somebody follows, so that it tells what it commits.
    pub(crate) fn notice_owner(&self, channel: &Channel, page: &ReadReply) {
        let Some(owner) = page.owner.filter(|owner| *owner != self.pod && page.unfinished) else { return };
        if let Some(peers) = self.store.peers()
            && channel.is_news_to(owner)
        {
            peers.notify(owner, &channel.key, Notice::Look);
        }
    }

    /// An ownership of this pod has ended.
    pub(crate) fn released(&self, channel: &Channel, handle: &Arc<OwnerHandle>, why: Release) {
        channel.clear_owner(handle);
        let Some(peers) = self.store.peers() else { return };
        match why {
            Release::Idle | Release::NotMine => peers.disown(&channel.key),
            // It stays in this pod's index until another one has it.
            Release::Drained => {
                if let Some(next) = self.others.any() {
                    peers.notify(next, &channel.key, Notice::Claim);
                }
            }
        }
    }

    /// Takes a session over if its lease is over, and goes on with it. Not right after the store was out of reach: owners come
    /// first then.
    pub(crate) fn look_after(self: &Arc<Self>, channel: Arc<Channel>) {
        if let Some(owner) = channel.owner() {
            // It is late, and renews the lease.
            return owner.look();
        }
        if self.draining() || self.others.owners_come_first() {
            return;
        }
        let gateway = self.clone();
        tokio::spawn(async move { gateway.claim(channel).await });
    }

    /// Takes a session over if its lease is over, and goes on with it. Returns whether that was so.
    pub(crate) async fn claim(self: &Arc<Self>, channel: Arc<Channel>) -> bool {
        let claim = Claim {
            pod: self.pod,
            nonce: Nonce(rand::random()),
            why: ClaimReason::Expired,
            jump: jump(),
            terms: self.terms(),
        };
        let request = Request::Claim(claim);
        let call = self.store.call(&channel.key, request.clone());
        let answer = self.settled(&channel.key, request, call).await;
        let (connection, followers) = (answer.connection, answer.followers);
        match answer.result {
            Ok(Reply::Claim(ClaimReply::Owner(own))) => {
                self.metrics.takeovers.inc();
                driver::run(self, &channel, Given { own, connection, followers }).await;
                true
            }
            _ => false,
        }
    }

    /// A call that only looks, or that may be repeated: an unknown outcome is settled by asking again.
    pub(crate) async fn ask(&self, key: &SessionKey, request: Request) -> Result<Reply, Refusal> {
        let call = self.store.call(key, request.clone());
        self.settled(key, request, call).await.result.map_err(|_| self.refused(unavailable()))
    }

    /// The answer of a call; while its outcome is unknown the request is sent again, in a form that recognises itself.
    async fn settled(&self, key: &SessionKey, request: Request, mut call: Call) -> Answer {
        // A store that cannot be reached says so at once; a moment later it may be there again.
        let mut pause = STORE_RETRY_MIN;
        for _ in 1..STORE_CALL_TRIES {
            match tokio::time::timeout(STORE_CALL_TIMEOUT, call).await {
                Ok(answer) if answer.result.is_ok() => return answer,
                Ok(_) => tokio::time::sleep(pause).await,
                Err(_) => {}
            }
            pause *= 4;
            call = self.store.call(key, request.clone().again(jump()));
        }
        let timeout = StoreError::Timeout(millis(STORE_CALL_TIMEOUT));
        tokio::time::timeout(STORE_CALL_TIMEOUT, call).await.unwrap_or(Answer {
            result: Err(timeout),
            connection: self.store.connection(key),
            followers: None,
        })
    }

    /// Counts a refusal on its way out.
    pub(crate) fn refused(&self, refusal: Refusal) -> Refusal {
        self.metrics.refused(refusal.code);
        refusal
    }

    /// Counts a turn that runs here, until the guard is dropped.
    pub(crate) fn turn_runs(self: &Arc<Self>) -> RunningTurn {
        self.running.fetch_add(1, Ordering::Relaxed);
        RunningTurn(self.clone())
    }
}

/// A turn that runs in this pod.
pub(crate) struct RunningTurn(Arc<Gateway>);

impl Drop for RunningTurn {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What lifts a new epoch where the store's clock is behind.
fn jump() -> u32 {
    rand::random::<u32>() >> 12
}

fn unavailable() -> Refusal {
    Refusal::new(ErrorCode::StoreUnavailable, "the session store does not answer; try again soon").retry_after_ms(1_000)
}

pub(crate) fn draining() -> Refusal {
    Refusal::new(ErrorCode::Draining, "this pod is going away; connect anew to reach another one").retry_after_ms(1_000)
}
