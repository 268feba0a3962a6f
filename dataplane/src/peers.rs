//! The other pods on the same store: hearing them, telling them that this one lives, and going on with what they leave
//! behind.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use chatgateway_core::{
    limits::{
        BEAT_INTERVAL, CLAIMS_AT_ONCE, DRAIN_LAST_WORDS, FROZEN, HAND_OVER_LOOK_INTERVAL, HAND_OVER_SPREAD, LEASE_TTL,
        OWN_INDEX_BEATS, PEER_SILENCE, STORE_CALL_TIMEOUT,
    },
    log::{EntryId, Leave, PodId, Reply, Request, SessionKey},
};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use crate::{
    clock,
    gateway::Gateway,
    store::{Beat, News, Notice, Peer, PeerEvent},
};

/// What is known of the other pods.
#[derive(Default)]
pub struct Others {
    /// Those that live and stay.
    live: ArcSwap<Vec<PodId>>,
    /// Until when nothing is taken from anybody.
    patient_until: Mutex<Option<Instant>>,
}

impl Others {
    /// Any of those that live and stay.
    pub(crate) fn any(&self) -> Option<PodId> {
        self.live.load().choose(&mut rand::rng()).copied()
    }

    /// Whether there is one that lives and stays.
    pub(crate) fn are_there(&self) -> bool {
        !self.live.load().is_empty()
    }

    /// How many live and stay.
    pub(crate) fn count(&self) -> usize {
        self.live.load().len()
    }

    /// Whether the store may have been out of reach a short while ago. Every lease may be over then, and those who hold one
    /// renew it: if the others were faster, all sessions would change hands at once.
    pub(crate) fn owners_come_first(&self) -> bool {
        self.patient_until.lock().is_some_and(|until| clock::now() < until)
    }

    /// The store was out of reach of this pod, or was not reached yet. It may have been out of reach of all: the next sign of
    /// life tells.
    fn be_patient(&self, patience: Duration) {
        *self.patient_until.lock() = Some(clock::now() + patience);
    }

    /// What a sign of life has told. `patience`: how long the store must have been within reach of some pod, so that owners
    /// had their time.
    fn seen(&self, beat: &Beat, patience: Duration) {
        let live = beat.peers.iter().filter(|peer| peer.silent < PEER_SILENCE).map(|peer| peer.pod).collect();
        self.live.store(Arc::new(live));
        *self.patient_until.lock() = patience.checked_sub(beat.steady).map(|left| clock::now() + left);
    }
}

/// Starts all that goes on between this pod and the others.
pub(crate) fn start(gateway: &Arc<Gateway>, events: mpsc::Receiver<PeerEvent>) {
    // Not all pods begin in the same moment.
    let patience = LEASE_TTL.mul_f64(1.0 + rand::random::<f64>() / 2.0);
    gateway.others.be_patient(patience);
    tokio::spawn(hear(gateway.clone(), events, patience));
    tokio::spawn(beat(gateway.clone(), patience));
    tokio::spawn(wake(gateway.clone()));
    tokio::spawn(hand_over(gateway.clone()));
}

/// Passes on what comes from other pods.
async fn hear(gateway: Arc<Gateway>, mut events: mpsc::Receiver<PeerEvent>, patience: Duration) {
    while let Some(event) = events.recv().await {
        match event {
            PeerEvent::Following(session) => {
                if let Some(channel) = gateway.hub.existing(&session) {
                    // It may have been followed, unfollowed and followed again.
                    let again = channel.set_heard(true);
                    if again && channel.owner().is_none() {
                        channel.reread();
                    }
                }
            }
            PeerEvent::Suspect(sessions) => {
                gateway.others.be_patient(patience);
                for session in sessions {
                    if let Some(channel) = gateway.hub.existing(&session) {
                        channel.set_heard(false);
                        // Who has its owner here hears of it from there.
                        if channel.owner().is_none() {
                            channel.reread();
                        }
                    }
                }
            }
            PeerEvent::News(session, news) => tell_readers(&gateway, &session, news),
            PeerEvent::Notice(session, Notice::Look) => {
                if let Some(owner) = gateway.hub.existing(&session).and_then(|channel| channel.owner()) {
                    owner.look();
                }
            }
            PeerEvent::Notice(session, Notice::Claim) => {
                if !gateway.draining() {
                    let (gateway, channel) = (gateway.clone(), gateway.hub.channel(&session));
                    tokio::spawn(async move { gateway.claim(channel).await });
                }
            }
        }
    }
}

fn tell_readers(gateway: &Gateway, session: &SessionKey, news: News) {
    let Some(channel) = gateway.hub.existing(session) else { return };
    match news {
        News::Entry(entry) => channel.deliver(entry),
        News::Reread => channel.reread(),
        // This may be late, and the session begun anew: the log tells.
        News::Deleted => {
            channel.reread();
            if let Some(owner) = channel.owner() {
                owner.look();
            }
        }
    }
}

/// Tells the others that this pod lives, and looks after the sessions of those that do not.
async fn beat(gateway: Arc<Gateway>, patience: Duration) {
    let Some(peers) = gateway.store().peers() else { return };
    let mut ticks = interval(BEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let swept = Arc::new(Mutex::new(HashSet::new()));
    let mut beats = 0;
    loop {
        ticks.tick().await;
        let leaving = gateway.drain_watch().borrow().is_some_and(|plan| clock::now() >= plan.hand_over);
        let Ok(Ok(beat)) = timeout(STORE_CALL_TIMEOUT, peers.beat(leaving)).await else {
            gateway.others.be_patient(patience);
            continue;
        };
        gateway.others.seen(&beat, patience);
        gateway.limiter.set_pods(gateway.others.count() + 1);
        if gateway.draining() || gateway.others.owners_come_first() {
            continue;
        }
        // This pod's own index too: a begin or a claim may have been carried out although no reply to it ever came.
        beats = (beats + 1) % OWN_INDEX_BEATS;
        let own = (beats == 0).then_some(Peer { pod: gateway.pod, silent: Duration::ZERO });
        let silent = beat.peers.into_iter().filter(|peer| peer.silent >= PEER_SILENCE);
        for silent in silent.chain(own) {
            if swept.lock().insert(silent.pod) {
                let (gateway, swept) = (gateway.clone(), swept.clone());
                tokio::spawn(async move {
                    sweep(&gateway, silent).await;
                    swept.lock().remove(&silent.pod);
                });
            }
        }
    }
}

/// Claims the sessions of a silent pod as soon as their leases are over; of this pod's, those that nobody here runs.
async fn sweep(gateway: &Arc<Gateway>, silent: Peer) {
    let Some(peers) = gateway.store().peers() else { return };
    let mut sessions = Vec::new();
    let mut cursor = 0;
    loop {
        let page = timeout(STORE_CALL_TIMEOUT, peers.index_of(silent.pod, cursor)).await;
        let Ok(Ok((next, page))) = page else { return };
        sessions.extend(page.into_iter().filter(|session| silent.pod != gateway.pod || !runs_here(gateway, session)));
        cursor = next;
        if cursor == 0 {
            break;
        }
    }
    if sessions.is_empty() {
        // It may come back, and says so then.
        if silent.silent > LEASE_TTL && silent.pod != gateway.pod {
            peers.forget_pod(silent.pod);
        }
        return;
    }
    // Others look through the same list: each begins elsewhere.
    sessions.shuffle(&mut rand::rng());
    let mut owned: Vec<(Instant, SessionKey)> = stream::iter(sessions)
        .map(|session| async move { lease_end(gateway, silent.pod, &session).await.map(|end| (end, session)) })
        .buffer_unordered(CLAIMS_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    owned.sort_by_key(|(end, _)| *end);
    stream::iter(owned)
        .for_each_concurrent(CLAIMS_AT_ONCE, |(end, session)| async move {
            sleep_until(end.into()).await;
            if gateway.draining() || runs_here(gateway, &session) {
                return;
            }
            let claimed = gateway.claim(gateway.hub.channel(&session)).await;
            // What is in this pod's own index is the store's to keep.
            if claimed && silent.pod != gateway.pod {
                peers.forget_session(silent.pod, &session);
            }
        })
        .await;
}

fn runs_here(gateway: &Gateway, session: &SessionKey) -> bool {
    gateway.hub.existing(session).is_some_and(|channel| channel.owner().is_some())
}

/// When the lease of a session is over that a silent pod owns. A session that is not its own is taken out of its index.
async fn lease_end(gateway: &Gateway, pod: PodId, session: &SessionKey) -> Option<Instant> {
    let look = Request::Read { after: EntryId::ZERO, count: 1 };
    let answer = timeout(STORE_CALL_TIMEOUT, gateway.store().call(session, look)).await.ok()?;
    let Ok(Reply::Read(page)) = answer.result else { return None };
    if page.owner == Some(pod) {
        return Some(clock::now() + Duration::from_millis(page.lease_left_ms));
    }
    if pod != gateway.pod {
        gateway.store().peers()?.forget_session(pod, session);
    }
    None
}

/// Finds out when this process did not run for so long that others went on with its sessions. Its clients may have found
/// others too; they are told to come back, and are served from the log.
async fn wake(gateway: Arc<Gateway>) {
    let look = FROZEN / 8;
    loop {
        let before = clock::now();
        sleep(look).await;
        let slept = clock::now() - before;
        if slept > FROZEN {
            tracing::warn!(?slept, "this process did not run for a while; its clients are told to reconnect");
            gateway.departure.recall();
        }
    }
}

/// Leaves this pod's sessions to others while it drains: those that wait at once, those that run when time grows short.
async fn hand_over(gateway: Arc<Gateway>) {
    let mut drain = gateway.drain_watch();
    let Ok(plan) = drain.wait_for(Option::is_some).await.map(|plan| *plan) else { return };
    let Some(plan) = plan else { return };
    sleep_until(plan.floor.into()).await;
    while clock::now() < plan.hand_over {
        tell_owners(&gateway, Leave::AfterThisTurn, Duration::ZERO).await;
        sleep(HAND_OVER_LOOK_INTERVAL).await;
    }
    let spread = HAND_OVER_SPREAD.min((plan.deadline - plan.hand_over) / 4);
    loop {
        tell_owners(&gateway, Leave::Now, spread).await;
        if clock::now() >= plan.last_words() {
            break;
        }
        sleep(HAND_OVER_LOOK_INTERVAL).await;
    }
    // Nobody is there to go on: whoever comes next need not wait for the leases' ends.
    for owner in gateway.hub.owners() {
        owner.leave(Leave::Now);
    }
}

/// Tells those who run sessions here, where there is somebody to go on with these.
async fn tell_owners(gateway: &Gateway, leave: Leave, spread: Duration) {
    let owners = gateway.hub.owners();
    if owners.is_empty() || !gateway.others.are_there() {
        return;
    }
    let pause = spread / u32::try_from(owners.len()).unwrap_or(u32::MAX);
    for owner in owners {
        owner.leave(leave);
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

/// The last word of a process that ends: the others need not wait for its silence.
pub(crate) async fn depart(gateway: &Gateway) {
    if let Some(peers) = gateway.store().peers() {
        // Unheard, they find out by themselves.
        let _ = timeout(DRAIN_LAST_WORDS, peers.beat(true)).await;
    }
}
