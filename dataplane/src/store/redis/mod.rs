//! Sessions in Redis: one server, one found through sentinels, or a cluster.
//!
//! Nothing is retried here. A call ends with the reply of the connection it went over, or with an outcome that is unknown; what
//! then counts is decided by the log's rules, which need to know over which connection a reply came.

#[allow(dead_code, reason = "its tests read all of an answer")]
mod codec;
mod connect;
mod decisions;
#[cfg(test)]
mod decisions_tests;
mod events;
mod index;
mod link;
mod pump;
#[allow(dead_code, reason = "its tests name the scripts")]
mod scripts;
mod sentinel;
mod slots;
mod tail;
mod topology;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use chatgateway_config::RedisSettings;
use chatgateway_core::{
    limiter::{Rules, table::Op},
    limits::{KEY_FILE_LOOK_INTERVAL, PEER_EVENTS_MAX},
    log::{PodId, Reply, Request, SessionKey},
};
use redis::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    connect::{Credentials, server_words},
    events::Events,
    index::Index,
    link::{Counters, Outcome, Then, received},
    pump::{Rotation, watch_credentials},
    tail::{Channel, write_notice},
    topology::{Shared, Topology},
};
use super::{Answer, Beat, Call, Count, Decided, Limits, News, Notice, PeerEvent, Peers, Pending, Store, StoreError};

/// See the module.
pub struct RedisStore {
    topology: Arc<Topology>,
    index: Arc<Index>,
    counters: Arc<Counters>,
    _open: DropGuard,
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RedisStats {
    /// Commands that were sent.
    pub commands: u64,
    /// Pipelines in which they were sent.
    pub pipelines: u64,
    /// Commands that were refused since too many waited.
    pub refused: u64,
    /// Attempts to connect.
    pub attempts: u64,
    /// Connections that were made for commands.
    pub connections: u64,
    /// Connections that were made for what other pods tell.
    pub tail_connections: u64,
    /// Events that found no room, and whose sessions are read again instead.
    pub events_late: u64,
}

impl RedisStore {
    /// A store for the pod process `pod`. Returns at once and connects in the background.
    ///
    /// # Errors
    /// Where the settings cannot work, whatever the server does.
    pub fn start(settings: &RedisSettings, pod: PodId) -> anyhow::Result<(Arc<Self>, mpsc::Receiver<PeerEvent>)> {
        anyhow::ensure!(!settings.endpoints.is_empty(), "Redis needs an address");
        let settings = Arc::new(settings.clone());
        let counters = Arc::<Counters>::default();
        let (events, from) = Events::new(PEER_EVENTS_MAX, Arc::clone(&counters));
        // What cannot be read now is told with the first connection.
        let (tell, credentials) = watch::channel(Rotation::new(Credentials::read(&settings).unwrap_or_default()));
        let closed = CancellationToken::new();
        let watching = watch_credentials(Arc::clone(&settings), tell, KEY_FILE_LOOK_INTERVAL);
        tokio::spawn(closed.clone().run_until_cancelled_owned(watching));
        tokio::spawn(closed.clone().run_until_cancelled_owned(Arc::clone(&events).catch_up()));
        let shared = Shared { settings, counters: Arc::clone(&counters), events, credentials, closed: closed.clone() };
        let topology = Topology::start(shared);
        let name = pod.to_string();
        topology.follow(&name, Channel { name: pod_channel(pod).into(), session: None });
        let index = Index::new(pod, Arc::clone(&topology));
        Ok((Arc::new(Self { topology, index, counters, _open: closed.drop_guard() }), from))
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> RedisStats {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let c = &self.counters;
        RedisStats {
            commands: read(&c.commands),
            pipelines: read(&c.pipelines),
            refused: read(&c.refused),
            attempts: read(&c.attempts),
            connections: read(&c.connections),
            tail_connections: read(&c.tail_connections),
            events_late: read(&c.events_late),
        }
    }

    /// Whether what the server counts as receivers includes this pod.
    fn hears(&self, slot: u16, session: &SessionKey, request: &Request) -> bool {
        let counts = matches!(
            request,
            Request::Begin(_) | Request::Claim(_) | Request::Check(_) | Request::Finish(_) | Request::Reset(_)
        );
        counts && self.topology.is_heard(slot, &codec::channel(session))
    }

    /// A request that gives or takes no ownership.
    fn plain(&self, session: &SessionKey, slot: u16, request: Request) -> Call {
        let heard = self.hears(slot, session, &request);
        let (caller, reply) = oneshot::channel();
        let connection = self.topology.send(slot, codec::command(session, &request), Then::Reply(caller));
        let session = session.clone();
        Call::Pending(Box::pin(async move {
            let Outcome { result, redirected } = received(reply.await);
            let decoded = result.and_then(|value| decode(&session, &request, value));
            answer(decoded, redirected.unwrap_or(connection), heard)
        }))
    }

    /// A begin or a claim: the session is in the index before its caller hears of it.
    fn taking(&self, session: &SessionKey, slot: u16, request: Request) -> Call {
        let added = match self.index.enter(session) {
            Ok(added) => added,
            Err(error) => {
                let connection = self.topology.number(slot);
                return Call::Ready(Some(Answer { result: Err(error), connection, followers: None }));
            }
        };
        let heard = self.hears(slot, session, &request);
        let (caller, reply) = oneshot::channel();
        let (index, key, command) = (Arc::clone(&self.index), session.clone(), codec::command(session, &request));
        let then = Then::Run(Box::new(move |outcome: Outcome| {
            let decoded = outcome.result.and_then(|value| decode(&key, &request, value));
            index.settle(&key, &request, decoded.as_ref().map(|decoded| &decoded.reply));
            drop(caller.send((decoded, outcome.redirected)));
        }));
        let connection = self.topology.send(slot, command, then);
        let (index, key) = (Arc::clone(&self.index), session.clone());
        Call::Pending(Box::pin(async move {
            let (decoded, redirected) = reply
                .await
                .unwrap_or_else(|_| (Err(StoreError::Unavailable("the connection to Redis was closed".into())), None));
            let indexed = match added {
                Some(added) => index.added(&key, added).await,
                None => Ok(()),
            };
            answer(decoded.and_then(|decoded| indexed.map(|()| decoded)), redirected.unwrap_or(connection), heard)
        }))
    }
}

/// What a server's reply means. An error says nothing about the session, except that an entry was not taken.
fn decode(session: &SessionKey, request: &Request, value: Value) -> Result<codec::Decoded, StoreError> {
    match value {
        Value::ServerError(error) if matches!(request, Request::Append(_)) && codec::is_stale_append(&error) => {
            Ok(codec::Decoded { reply: Reply::Append(false), now: None, receivers: None })
        }
        Value::ServerError(error) => Err(StoreError::Unavailable(server_words(&error))),
        value => codec::decode(session, request, value),
    }
}

fn answer(decoded: Result<codec::Decoded, StoreError>, connection: u64, heard: bool) -> Answer {
    match decoded {
        Ok(decoded) => {
            let followers = decoded.receivers.map(|all| all.saturating_sub(u32::from(heard)));
            Answer { result: Ok(decoded.reply), connection, followers }
        }
        Err(error) => Answer { result: Err(error), connection, followers: None },
    }
}

/// The channel of notices to a pod process.
fn pod_channel(pod: PodId) -> String {
    format!("ch:{{{pod}}}")
}

impl Store for RedisStore {
    fn call(&self, session: &SessionKey, request: Request) -> Call {
        let slot = self.topology.slot(session.as_str());
        match request {
            Request::Begin(_) | Request::Claim(_) => self.taking(session, slot, request),
            _ => self.plain(session, slot, request),
        }
    }

    fn connection(&self, session: &SessionKey) -> u64 {
        self.topology.number(self.topology.slot(session.as_str()))
    }

    fn sessions(&self) -> Option<u64> {
        None
    }

    fn name(&self) -> &'static str {
        "Redis"
    }

    fn trouble(&self) -> Option<String> {
        self.topology.trouble()
    }

    fn counts(&self) -> Vec<Count> {
        let stats = self.stats();
        let count = |name, help, value| Count { name, help, value };
        vec![
            count("commands", "Commands sent to Redis", stats.commands),
            count("pipelines", "Pipelines in which they were sent", stats.pipelines),
            count("commands_refused", "Commands that were not sent since too many waited", stats.refused),
            count("connection_attempts", "Attempts to connect to Redis", stats.attempts),
            count("connections", "Connections to Redis that were made for commands", stats.connections),
            count("tail_connections", "Connections that were made to hear other pods", stats.tail_connections),
            count("events_late", "Events of other pods for which there was no room", stats.events_late),
        ]
    }

    fn peers(&self) -> Option<&dyn Peers> {
        Some(self)
    }

    fn limits(&self) -> Option<&dyn Limits> {
        Some(self)
    }
}

impl Limits for RedisStore {
    fn decide(&self, gateway: &str, rules: &Rules, steps: Vec<Op>, then: Decided) {
        let command = decisions::command(gateway, rules, &steps);
        let then = Then::Run(Box::new(move |outcome: Outcome| {
            let decided = outcome.result.and_then(|value| decisions::decode(&steps, value));
            then(steps, decided.map(|(_, outcomes)| outcomes));
        }));
        self.topology.send(self.topology.slot(gateway), command, then);
    }
}

impl Peers for RedisStore {
    fn publish(&self, session: &SessionKey, news: News) {
        let mut publish = redis::cmd("SPUBLISH");
        publish.arg(codec::channel(session)).arg(codec::encode_news(&news));
        self.topology.send(self.topology.slot(session.as_str()), publish, Then::Forget);
    }

    fn notify(&self, pod: PodId, session: &SessionKey, notice: Notice) {
        let mut publish = redis::cmd("SPUBLISH");
        publish.arg(pod_channel(pod)).arg(write_notice(session, notice));
        self.topology.send(self.topology.slot(&pod.to_string()), publish, Then::Forget);
    }

    fn follow(&self, session: &SessionKey) {
        self.topology.follow(session.as_str(), Channel::of_session(session));
    }

    fn unfollow(&self, session: &SessionKey) {
        self.topology.unfollow(session.as_str(), &codec::channel(session));
    }

    fn beat(&self, leaving: bool) -> Pending<Beat> {
        Box::pin(self.index.beat(leaving))
    }

    fn index_of(&self, pod: PodId, cursor: u64) -> Pending<(u64, Vec<SessionKey>)> {
        Box::pin(self.index.page(pod, cursor))
    }

    fn disown(&self, session: &SessionKey) {
        self.index.disown(session);
    }

    fn forget_session(&self, pod: PodId, session: &SessionKey) {
        self.index.forget_session(pod, session);
    }

    fn forget_pod(&self, pod: PodId) {
        self.index.forget_pod(pod);
    }
}
