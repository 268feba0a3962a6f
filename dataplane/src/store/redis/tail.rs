//! What one server tells: sharded channels, over a connection of their own.
//!
//! For each channel is noted what is wanted, what was said last, and how many confirmations are still to come. So an
//! unsubscription that was just overtaken by a new wish loses nothing, and what the server takes away by itself is seen.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
};

use chatgateway_config::RedisSettings;
use chatgateway_core::{
    limits::{
        REDIS_CONNECTION_STABLE, REDIS_PING_INTERVAL, REDIS_RECONNECT_MAX, REDIS_RECONNECT_MIN, REDIS_SUBSCRIBE_BATCH,
        REDIS_SUBSCRIBE_PAUSE, STORE_CALL_TIMEOUT,
    },
    log::SessionKey,
};
use parking_lot::Mutex;
use redis::{Pipeline, PushInfo, PushKind, Value, aio::MultiplexedConnection};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{News, Notice, PeerEvent},
    codec,
    connect::{self, Open, Wanted, address, server_words, words},
    events::Events,
    link::{Counters, Link, Pauses, Up},
    pump::Rotation,
    topology::{Shared, Topology},
};

/// A channel, and what it is about.
#[derive(Clone)]
pub(super) struct Channel {
    /// Its name.
    pub(super) name: Arc<str>,
    /// The session whose news it carries. None: notices to this pod.
    pub(super) session: Option<SessionKey>,
}

impl Channel {
    pub(super) fn of_session(session: &SessionKey) -> Self {
        Self { name: codec::channel(session).into(), session: Some(session.clone()) }
    }

    /// What its slot is made from.
    pub(super) fn tag(&self) -> &str {
        self.name.trim_start_matches("ch:{").trim_end_matches('}')
    }
}

struct Record {
    channel: Channel,
    wanted: bool,
    /// Whether the last that was said to the server is that it is subscribed to.
    said: bool,
    /// Confirmations that are to come.
    pending: u32,
    /// Whether all that is published is heard, and `Following` told.
    heard: bool,
    /// Whether it is in `dirty` or `later`.
    queued: bool,
}

#[derive(Default)]
struct State {
    records: HashMap<Arc<str>, Record>,
    dirty: VecDeque<Arc<str>>,
    later: Vec<(Instant, Arc<str>)>,
    /// Counts connections: what an earlier one pushes is nothing.
    connection: u64,
    /// A request is under way.
    busy: bool,
    /// The library may have taken a push for a reply: replies are not to be trusted any more.
    unsure: bool,
}

/// See the module.
pub(super) struct Tail {
    state: Mutex<State>,
    wake: Notify,
    events: Arc<Events>,
    topology: Weak<Topology>,
    counters: Arc<Counters>,
}

impl Tail {
    pub(super) fn start(shared: &Shared, link: &Arc<Link>, topology: Weak<Topology>) -> Arc<Self> {
        let tail = Arc::new(Self {
            state: Mutex::default(),
            wake: Notify::new(),
            events: Arc::clone(&shared.events),
            topology,
            counters: Arc::clone(&shared.counters),
        });
        let runner = Runner {
            tail: Arc::clone(&tail),
            settings: Arc::clone(&shared.settings),
            up: link.watch(),
            credentials: shared.credentials.clone(),
        };
        tokio::spawn(runner.run(link.closed.clone()));
        tail
    }

    /// Subscribes, unless that is so.
    pub(super) fn follow(&self, channel: Channel) {
        let mut state = self.state.lock();
        let name = Arc::clone(&channel.name);
        let new = || Record { channel, wanted: false, said: false, pending: 0, heard: false, queued: false };
        state.records.entry(Arc::clone(&name)).or_insert_with(new).wanted = true;
        state.mark(&name);
        drop(state);
        self.wake.notify_one();
    }

    /// Unsubscribes.
    pub(super) fn unfollow(&self, name: &str) {
        let mut state = self.state.lock();
        let Some(record) = state.records.get_mut(name) else { return };
        (record.wanted, record.heard) = (false, false);
        let name = Arc::clone(&record.channel.name);
        state.mark(&name);
        drop(state);
        self.wake.notify_one();
    }

    /// Whether all that is published there comes here.
    pub(super) fn is_heard(&self, name: &str) -> bool {
        self.state.lock().records.get(name).is_some_and(|record| record.heard)
    }

    /// Lets go of the channels whose tags are another's now.
    pub(super) fn give_away(&self, is_strange: impl Fn(&str) -> bool) -> Vec<Channel> {
        let mut state = self.state.lock();
        let (mut strays, mut suspects) = (Vec::new(), Vec::new());
        state.records.retain(|_, record| {
            if !is_strange(record.channel.tag()) {
                return true;
            }
            if record.heard {
                suspects.extend(record.channel.session.clone());
            }
            if record.wanted {
                strays.push(record.channel.clone());
            }
            false
        });
        drop(state);
        self.suspect(suspects);
        strays
    }

    fn suspect(&self, sessions: Vec<SessionKey>) {
        if !sessions.is_empty() {
            self.events.tell(PeerEvent::Suspect(sessions));
        }
    }

    /// Something was pushed over the given connection.
    fn pushed(&self, connection: u64, info: &PushInfo) {
        let Some(Value::BulkString(name)) = info.data.first() else { return };
        let Ok(name) = std::str::from_utf8(name) else { return };
        let mut state = self.state.lock();
        if state.connection != connection {
            return;
        }
        match info.kind {
            PushKind::SMessage => {
                let Some(Value::BulkString(message)) = info.data.get(1) else { return };
                let Some(record) = state.records.get(name).filter(|record| record.wanted) else { return };
                // Told under the lock, so that it stays in order with `Following` and `Suspect`.
                match &record.channel.session {
                    // An empty message only counts who follows.
                    Some(_) if message.is_empty() => {}
                    Some(session) => {
                        let news = codec::decode_news(message).unwrap_or(News::Reread);
                        self.events.tell(PeerEvent::News(session.clone(), news));
                    }
                    None => {
                        if let Some((session, notice)) = read_notice(message) {
                            self.events.tell(PeerEvent::Notice(session, notice));
                        }
                    }
                }
            }
            PushKind::SSubscribe => self.confirmed(&mut state, name, true),
            PushKind::SUnsubscribe => self.confirmed(&mut state, name, false),
            _ => {}
        }
    }

    fn confirmed(&self, state: &mut State, name: &str, subscribed: bool) {
        let busy = state.busy;
        let Some(record) = state.records.get_mut(name) else {
            // One that was given away.
            state.unsure |= busy && !subscribed;
            return;
        };
        if record.pending > 0 {
            record.pending -= 1;
            if record.pending == 0 && record.said && record.wanted && subscribed {
                record.heard = true;
                let session = record.channel.session.clone();
                session.into_iter().for_each(|session| self.events.tell(PeerEvent::Following(session)));
            } else if record.pending == 0 && !record.said && !record.wanted {
                state.records.remove(name);
            }
        } else if !subscribed {
            // The slot is on its way to another node, or was taken from this one.
            let suspect = record.lost();
            let name = Arc::clone(&record.channel.name);
            state.unsure |= busy;
            state.mark_later(&name);
            self.suspect(suspect.into_iter().collect());
            self.wake.notify_one();
            if let Some(topology) = self.topology.upgrade() {
                topology.refresh();
            }
        }
    }
}

impl Record {
    /// It is not subscribed to any more. Returns the session, if that comes as a surprise to its followers.
    fn lost(&mut self) -> Option<SessionKey> {
        (self.said, self.pending) = (false, 0);
        std::mem::take(&mut self.heard).then(|| self.channel.session.clone()).flatten()
    }
}

impl State {
    fn mark(&mut self, name: &Arc<str>) {
        if let Some(record) = self.records.get_mut(name)
            && !std::mem::replace(&mut record.queued, true)
        {
            self.dirty.push_back(Arc::clone(name));
        }
    }

    fn mark_later(&mut self, name: &Arc<str>) {
        if let Some(record) = self.records.get_mut(name)
            && !std::mem::replace(&mut record.queued, true)
        {
            self.later.push((Instant::now() + REDIS_SUBSCRIBE_PAUSE, Arc::clone(name)));
        }
    }

    /// A new connection: nothing is subscribed to.
    fn begin(&mut self) -> u64 {
        self.records.retain(|_, record| record.wanted);
        self.dirty.clear();
        self.later.clear();
        for record in self.records.values_mut() {
            (record.said, record.pending, record.heard, record.queued) = (false, 0, false, true);
            self.dirty.push_back(Arc::clone(&record.channel.name));
        }
        (self.busy, self.unsure) = (false, false);
        self.connection += 1;
        self.connection
    }

    /// What is to be said next: channels, and whether they are wanted.
    fn next_batch(&mut self, events: &Events) -> Vec<(Arc<str>, bool)> {
        let now = Instant::now();
        let due = self.later.partition_point(|(at, _)| *at <= now);
        self.dirty.extend(self.later.drain(..due).map(|(_, name)| name));
        let mut batch = Vec::new();
        while batch.len() < REDIS_SUBSCRIBE_BATCH {
            let Some(name) = self.dirty.pop_front() else { break };
            let Some(record) = self.records.get_mut(&name) else { continue };
            record.queued = false;
            if record.wanted != record.said {
                record.said = record.wanted;
                record.pending += 1;
                batch.push((name, record.wanted));
            } else if record.pending == 0 && record.wanted && !record.heard {
                // Unfollowed and followed again before anything was said.
                record.heard = true;
                record.channel.session.iter().for_each(|session| events.tell(PeerEvent::Following(session.clone())));
            } else if record.pending == 0 && !record.wanted {
                self.records.remove(&name);
            }
        }
        batch
    }
}

fn read_notice(message: &[u8]) -> Option<(SessionKey, Notice)> {
    let (what, session) = std::str::from_utf8(message).ok()?.split_once(' ')?;
    let notice = match what {
        "look" => Notice::Look,
        "claim" => Notice::Claim,
        _ => return None,
    };
    Some((SessionKey::from_text(session)?, notice))
}

/// How a notice is written.
pub(super) fn write_notice(session: &SessionKey, notice: Notice) -> String {
    let what = match notice {
        Notice::Look => "look",
        Notice::Claim => "claim",
    };
    format!("{what} {}", session.as_str())
}

/// Keeps a tail's connection.
struct Runner {
    tail: Arc<Tail>,
    settings: Arc<RedisSettings>,
    up: watch::Receiver<Option<Up>>,
    credentials: watch::Receiver<Arc<Rotation>>,
}

impl Runner {
    async fn run(mut self, closed: CancellationToken) {
        tokio::select! {
            () = closed.cancelled() => {}
            () = self.keep_connected() => {}
        }
    }

    async fn keep_connected(&mut self) {
        let mut pauses = Pauses::new(REDIS_RECONNECT_MIN, REDIS_RECONNECT_MAX);
        let mut said = String::new();
        loop {
            while self.tail.state.lock().records.is_empty() {
                self.tail.wake.notified().await;
            }
            // The same server as the commands go to, or what is published there is not heard here.
            let Ok(Some(up)) = self.up.wait_for(Option::is_some).await.map(|up| up.clone()) else { return };
            let connection = self.tail.state.lock().begin();
            let tail = Arc::clone(&self.tail);
            let pushes = Arc::new(move |info: PushInfo| tail.pushed(connection, &info));
            let since = Instant::now();
            let why = match connect::open(&self.settings, &up.server, Wanted::Primary, Some(pushes)).await {
                Ok(open) => {
                    self.tail.counters.tail_connections.fetch_add(1, Relaxed);
                    let why = self.serve(open, &up).await;
                    format!("{}: {why}", address(&up.server))
                }
                Err(why) => why,
            };
            self.lost();
            if since.elapsed() >= REDIS_CONNECTION_STABLE {
                pauses.reset();
                said.clear();
            }
            if said != why {
                tracing::warn!("other pods are not heard: {why}; trying again");
                said = why;
            }
            tokio::time::sleep(pauses.next()).await;
        }
    }

    fn lost(&self) {
        let mut state = self.tail.state.lock();
        // Late pushes of this connection are nothing from here on.
        state.connection += 1;
        let suspects = state.records.values_mut().filter_map(Record::lost).collect();
        self.tail.suspect(suspects);
    }

    /// Subscribes and listens until the connection must be given up. Returns why.
    async fn serve(&mut self, open: Open, up: &Up) -> String {
        let Open { mut connection, mut driver } = open;
        let mut ping = Instant::now() + REDIS_PING_INTERVAL;
        self.credentials.borrow_and_update();
        loop {
            let (batch, next) = {
                let mut state = self.tail.state.lock();
                if state.unsure {
                    return "a slot moved while channels were subscribed to".into();
                }
                let batch = state.next_batch(&self.tail.events);
                (batch, state.later.first().map_or(ping, |(at, _)| ping.min(*at)))
            };
            if !batch.is_empty() {
                if let Some(why) = self.subscribe(&mut connection, &batch).await {
                    return why;
                }
                continue;
            }
            let question = tokio::select! {
                _ = &mut driver => return "the connection broke".into(),
                () = self.tail.wake.notified() => None,
                changed = self.up.changed() => match changed {
                    Ok(()) if self.up.borrow_and_update().as_ref() == Some(up) => None,
                    _ => return "the server's other connection was remade".into(),
                },
                Ok(()) = self.credentials.changed() => {
                    self.credentials.borrow_and_update().credentials.command()
                }
                () = tokio::time::sleep_until(next) => (Instant::now() >= ping).then(|| redis::cmd("PING")),
            };
            let Some(question) = question else { continue };
            let mut one = Pipeline::with_capacity(1);
            one.add_command(question);
            match self.ask(&mut connection, &one).await {
                Ok(replies) => {
                    if let Some(Value::ServerError(error)) = replies.first() {
                        self.credentials.borrow().note(error.code());
                    }
                    ping = Instant::now() + REDIS_PING_INTERVAL;
                }
                Err(why) => return why,
            }
        }
    }

    async fn ask(&self, connection: &mut MultiplexedConnection, asked: &Pipeline) -> Result<Vec<Value>, String> {
        self.tail.state.lock().busy = true;
        let reply = timeout(STORE_CALL_TIMEOUT, connection.send_packed_commands(asked, 0, asked.len())).await;
        self.tail.state.lock().busy = false;
        match reply {
            Ok(reply) => reply.map_err(|error| words(&error)),
            Err(_) => Err(format!("no answer within {} ms", STORE_CALL_TIMEOUT.as_millis())),
        }
    }

    /// Each channel is a command of its own: in a cluster those of one command would have to share a slot.
    async fn subscribe(&self, connection: &mut MultiplexedConnection, batch: &[(Arc<str>, bool)]) -> Option<String> {
        let mut pipeline = Pipeline::with_capacity(batch.len());
        for (name, wanted) in batch {
            pipeline.cmd(if *wanted { "SSUBSCRIBE" } else { "SUNSUBSCRIBE" }).arg(&**name);
        }
        let replies = match self.ask(connection, &pipeline).await {
            Ok(replies) => replies,
            Err(why) => return Some(why),
        };
        let mut refused = None;
        let mut state = self.tail.state.lock();
        for ((name, _), reply) in batch.iter().zip(replies) {
            if let Value::ServerError(error) = reply {
                if state.unsure {
                    break;
                }
                if let Some(record) = state.records.get_mut(name) {
                    record.lost();
                }
                state.mark_later(name);
                refused = Some(server_words(&error));
            }
        }
        drop(state);
        let why = refused?;
        if let Some(topology) = self.tail.topology.upgrade() {
            topology.refresh();
        }
        // Only a slot that is elsewhere mends itself without a new connection.
        (!why.starts_with("MOVED") && !why.starts_with("TRYAGAIN")).then_some(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_read_as_they_are_written() {
        let session = SessionKey::from_text("t/p/a%20b").unwrap();
        for notice in [Notice::Look, Notice::Claim] {
            assert_eq!(read_notice(write_notice(&session, notice).as_bytes()), Some((session.clone(), notice)));
        }
        for wrong in ["", "look", "look ", "look t/p", "look t/p/a b", "see t/p/a"] {
            assert_eq!(read_notice(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
