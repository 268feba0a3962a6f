//! Which server has a session: one for all, or one for each slot of a cluster.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use chatgateway_config::{Endpoint, RedisMode, RedisSettings};
use chatgateway_core::limits::{
    REDIS_RECONNECT_MAX, REDIS_RECONNECT_MIN, REDIS_SLOTS_INTERVAL, REDIS_SLOTS_PAUSE, STORE_CALL_TIMEOUT,
};
use parking_lot::{Mutex, RwLock};
use redis::{Cmd, Value};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    super::StoreError,
    connect::{self, Wanted, address, server_words, words},
    events::Events,
    link::{Counters, Item, Link, Outcome, Pauses, Then, next_connection},
    pump::{Pump, Rotation, Target},
    slots::{Range, SLOTS, ranges, redirection, slot_of},
    tail::{Channel, Tail},
};

/// No node serves the slot.
const NOBODY: u16 = u16::MAX;

/// A server, with what is asked of it and what is heard from it.
pub(super) struct Node {
    endpoint: Option<Endpoint>,
    pub(super) link: Arc<Link>,
    pub(super) tail: Arc<Tail>,
}

/// Who serves what.
struct Map {
    nodes: Vec<Arc<Node>>,
    /// For each slot the index of its node. None: the first node serves all.
    slots: Option<Box<[u16]>>,
    /// Why there is no node for some slot.
    trouble: Option<Arc<str>>,
}

/// A slot that is on its way to another node: some of its commands are served there already.
struct Ask {
    source: u64,
    target: Arc<Node>,
    target_number: u64,
    /// The number that stands for the two connections.
    number: u64,
}

/// What every part of the store needs.
pub(super) struct Shared {
    pub(super) settings: Arc<RedisSettings>,
    pub(super) counters: Arc<Counters>,
    pub(super) events: Arc<Events>,
    pub(super) credentials: watch::Receiver<Arc<Rotation>>,
    pub(super) closed: CancellationToken,
}

/// See the module.
pub(super) struct Topology {
    pub(super) shared: Shared,
    map: ArcSwap<Map>,
    /// Held for reading where a channel is given to its node, for writing where that changes.
    routes: RwLock<()>,
    /// Channels whose slot nobody serves at present.
    homeless: Mutex<HashMap<Arc<str>, Channel>>,
    asks: Mutex<HashMap<u16, Ask>>,
    any_asks: AtomicBool,
    wanted: Notify,
    hint: Mutex<Option<Endpoint>>,
    myself: Weak<Self>,
}

impl Topology {
    pub(super) fn start(shared: Shared) -> Arc<Self> {
        let cluster = shared.settings.mode == RedisMode::Cluster;
        let topology = Arc::new_cyclic(|myself: &Weak<Self>| {
            let trouble = Some("the cluster's slots are not known yet".into());
            let map = Map { nodes: Vec::new(), slots: Some(vec![NOBODY; SLOTS].into()), trouble };
            Self {
                shared,
                map: ArcSwap::from_pointee(map),
                routes: RwLock::default(),
                homeless: Mutex::default(),
                asks: Mutex::default(),
                any_asks: AtomicBool::new(false),
                wanted: Notify::new(),
                hint: Mutex::default(),
                myself: myself.clone(),
            }
        });
        if cluster {
            tokio::spawn(keep_slots(Arc::downgrade(&topology), topology.shared.closed.clone()));
        } else {
            let node = topology.new_node(None);
            topology.map.store(Arc::new(Map { nodes: vec![node], slots: None, trouble: None }));
        }
        topology
    }

    fn new_node(&self, endpoint: Option<Endpoint>) -> Arc<Node> {
        let shared = &self.shared;
        let link = Link::new(Arc::clone(&shared.counters), shared.closed.child_token());
        let target = match (&endpoint, shared.settings.mode) {
            (Some(node), _) => Target::Node(node.clone()),
            (None, RedisMode::Sentinel) => Target::Sentinels,
            (None, _) => Target::Configured,
        };
        let pump = Pump {
            link: Arc::clone(&link),
            settings: Arc::clone(&shared.settings),
            target,
            topology: self.myself.clone(),
            credentials: shared.credentials.clone(),
        };
        tokio::spawn(pump.run());
        let tail = Tail::start(shared, &link, self.myself.clone());
        Arc::new(Node { endpoint, link, tail })
    }

    /// The slot of a tag; 0 where there are none.
    pub(super) fn slot(&self, tag: &str) -> u16 {
        if self.shared.settings.mode == RedisMode::Cluster { slot_of(tag) } else { 0 }
    }

    /// Enqueues a command for the node that serves a slot. Returns the number under which its reply counts.
    pub(super) fn send(&self, slot: u16, cmd: Cmd, then: Then) -> u64 {
        let map = self.map.load();
        match map.at(slot) {
            Some(node) => self.number_of(slot, node.link.send(cmd, then)),
            None => {
                then.done(Err(StoreError::Unavailable(map.why(slot))));
                0
            }
        }
    }

    /// The number under which the next command's reply counts.
    pub(super) fn number(&self, slot: u16) -> u64 {
        match self.map.load().at(slot) {
            Some(node) => self.number_of(slot, node.link.number()),
            None => 0,
        }
    }

    fn number_of(&self, slot: u16, source: u64) -> u64 {
        if !self.any_asks.load(Relaxed) {
            return source;
        }
        match self.asks.lock().get_mut(&slot) {
            Some(ask) => ask.number(source),
            None => source,
        }
    }

    /// The cluster says that a slot is elsewhere.
    pub(super) fn moved(&self, said: &str, from: &Endpoint) {
        if let Some((_, to)) = redirection(said, from) {
            *self.hint.lock() = Some(to);
        }
        self.refresh();
    }

    /// Looks at the slots soon.
    pub(super) fn refresh(&self) {
        self.wanted.notify_one();
    }

    /// A node says that another one has the keys already.
    pub(super) fn asked(&self, said: &str, from: &Endpoint, item: Item) {
        let target = redirection(said, from).and_then(|(slot, to)| Some((slot, self.known(&to)?)));
        let Some((slot, target)) = target else {
            // A node that is not in the map yet has no slot of its own: it comes with the next look.
            self.moved(said, from);
            item.then.done(Err(StoreError::Unavailable(said.to_owned())));
            return;
        };
        let number = {
            let mut asks = self.asks.lock();
            let ask = asks.entry(slot).or_insert_with(|| Ask {
                source: item.number,
                target: Arc::clone(&target),
                target_number: target.link.number(),
                number: next_connection(),
            });
            if !Arc::ptr_eq(&ask.target, &target) {
                ask.target = Arc::clone(&target);
            }
            self.any_asks.store(true, Relaxed);
            ask.number(item.number)
        };
        let (source, then) = (item.number, item.then);
        let asks = self.myself.clone();
        let then = Then::Run(Box::new(move |outcome: Outcome| {
            // It counts only if neither connection was remade meanwhile.
            let now = asks.upgrade().map(|topology| topology.number_of(slot, source));
            let redirected = Some(if now == Some(number) { number } else { 0 });
            then.outcome(Outcome { redirected, ..outcome });
        }));
        target.link.send_asking(item.cmd, then, source);
    }

    fn known(&self, endpoint: &Endpoint) -> Option<Arc<Node>> {
        self.map.load().nodes.iter().find(|node| node.endpoint.as_ref() == Some(endpoint)).cloned()
    }

    /// Why sessions cannot be used now.
    pub(super) fn trouble(&self) -> Option<String> {
        let map = self.map.load();
        let down = map.nodes.iter().find_map(|node| node.link.trouble());
        map.trouble.clone().or(down).map(|why| why.to_string())
    }

    /// Hears a channel from now on.
    pub(super) fn follow(&self, tag: &str, channel: Channel) {
        let _routes = self.routes.read();
        match self.map.load().at(self.slot(tag)) {
            Some(node) => node.tail.follow(channel),
            None => drop(self.homeless.lock().insert(channel.name.clone(), channel)),
        }
    }

    /// Hears it no more.
    pub(super) fn unfollow(&self, tag: &str, name: &str) {
        let _routes = self.routes.read();
        self.homeless.lock().remove(name);
        if let Some(node) = self.map.load().at(self.slot(tag)) {
            node.tail.unfollow(name);
        }
    }

    /// Whether it is heard now.
    pub(super) fn is_heard(&self, slot: u16, name: &str) -> bool {
        self.map.load().at(slot).is_some_and(|node| node.tail.is_heard(name))
    }

    /// Who serves the slots, from the first node that says.
    async fn look(&self) -> Result<Vec<Range>, String> {
        let mut why = "no node is known".to_owned();
        let hint = self.hint.lock().take();
        let nodes = self.map.load_full();
        let mut known: Vec<_> = nodes.nodes.iter().filter(|node| node.link.trouble().is_none()).collect();
        if !known.is_empty() {
            let first = rand::random_range(0..known.len());
            known.rotate_left(first);
        }
        if let Some(at) = known.iter().position(|node| node.endpoint == hint && hint.is_some()) {
            known.swap(0, at);
        }
        for node in known {
            let Some(endpoint) = &node.endpoint else { continue };
            match read(node.link.ask(question()).await, endpoint) {
                Ok(found) => return Ok(found),
                Err(error) => why = error,
            }
        }
        for endpoint in hint.iter().chain(&self.shared.settings.endpoints) {
            match connect::open(&self.shared.settings, endpoint, Wanted::Node, None).await {
                Ok(mut open) => {
                    let question = question();
                    let asking = timeout(STORE_CALL_TIMEOUT, open.connection.send_packed_command(&question));
                    let reply = match asking.await {
                        Ok(reply) => reply.map_err(|error| StoreError::Unavailable(words(&error))),
                        Err(_) => Err(StoreError::Timeout(STORE_CALL_TIMEOUT.as_millis() as u64)),
                    };
                    match read(reply, endpoint) {
                        Ok(found) => return Ok(found),
                        Err(error) => why = error,
                    }
                }
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// Takes a look's outcome as what is so. Channels go to where their slots are now.
    fn apply(&self, ranges: &[Range]) {
        let _routes = self.routes.write();
        let old = self.map.load_full();
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        let mut slots = vec![NOBODY; SLOTS];
        for range in ranges {
            let is = |node: &&Arc<Node>| node.endpoint.as_ref() == Some(&range.primary);
            let at = nodes.iter().position(|node| is(&node)).unwrap_or_else(|| {
                let kept = old.nodes.iter().find(is).cloned();
                nodes.push(kept.unwrap_or_else(|| self.new_node(Some(range.primary.clone()))));
                nodes.len() - 1
            });
            slots[usize::from(range.first)..=usize::from(range.last)].fill(at as u16);
        }
        let missing = slots.iter().filter(|node| **node == NOBODY).count();
        let trouble = (missing > 0).then(|| format!("{missing} of the cluster's slots have no primary").into());
        let map = Arc::new(Map { nodes, slots: Some(slots.into()), trouble });
        self.map.store(Arc::clone(&map));
        self.asks.lock().retain(|slot, ask| {
            let (before, now) = (old.at(*slot), map.at(*slot));
            before.zip(now).is_some_and(|(before, now)| Arc::ptr_eq(before, now) && !Arc::ptr_eq(now, &ask.target))
        });
        self.any_asks.store(!self.asks.lock().is_empty(), Relaxed);
        for node in &old.nodes {
            let gone = !map.nodes.iter().any(|kept| Arc::ptr_eq(kept, node));
            let strays = node.tail.give_away(|tag| map.at(slot_of(tag)).is_none_or(|now| !Arc::ptr_eq(now, node)));
            strays.into_iter().for_each(|channel| self.settle(&map, channel));
            if gone {
                node.link.closed.cancel();
            }
        }
        let homeless = std::mem::take(&mut *self.homeless.lock());
        homeless.into_values().for_each(|channel| self.settle(&map, channel));
    }

    fn settle(&self, map: &Map, channel: Channel) {
        match map.at(slot_of(channel.tag())) {
            Some(node) => node.tail.follow(channel),
            None => drop(self.homeless.lock().insert(channel.name.clone(), channel)),
        }
    }
}

impl Ask {
    /// The number for the pair of connections, a new one if either was remade.
    fn number(&mut self, source: u64) -> u64 {
        let target = self.target.link.number();
        if (self.source, self.target_number) != (source, target) {
            (self.source, self.target_number, self.number) = (source, target, next_connection());
        }
        self.number
    }
}

impl Map {
    fn at(&self, slot: u16) -> Option<&Arc<Node>> {
        match &self.slots {
            Some(slots) => self.nodes.get(usize::from(*slots.get(usize::from(slot))?)),
            None => self.nodes.first(),
        }
    }

    fn why(&self, slot: u16) -> String {
        self.trouble.as_ref().map_or_else(|| format!("nobody serves slot {slot}"), |why| why.to_string())
    }
}

fn question() -> Cmd {
    let mut cmd = redis::cmd("CLUSTER");
    cmd.arg("SLOTS");
    cmd
}

fn read(reply: Result<Value, StoreError>, asked: &Endpoint) -> Result<Vec<Range>, String> {
    let at = address(asked);
    match reply.map_err(|error| format!("{at}: {error}"))? {
        Value::ServerError(error) => Err(format!("{at}: {}", server_words(&error))),
        reply => match ranges(&reply, asked) {
            Some(found) if found.is_empty() => Err(format!("{at}: the cluster has no slots assigned")),
            Some(found) if found.len() <= SLOTS => Ok(found),
            _ => Err(format!("{at}: the answer to CLUSTER SLOTS is not understood")),
        },
    }
}

/// Keeps the map of a cluster's slots.
async fn keep_slots(topology: Weak<Topology>, closed: CancellationToken) {
    tokio::select! {
        () = closed.cancelled() => {}
        () = look_now_and_then(topology) => {}
    }
}

async fn look_now_and_then(topology: Weak<Topology>) {
    let mut pauses = Pauses::new(REDIS_RECONNECT_MIN, REDIS_RECONNECT_MAX);
    let mut said = String::new();
    while let Some(topology) = topology.upgrade() {
        let mut pause = REDIS_SLOTS_PAUSE;
        match topology.look().await {
            Ok(found) => {
                topology.apply(&found);
                pauses.reset();
                said.clear();
            }
            Err(why) => {
                if said != why {
                    tracing::warn!("the slots of the Redis cluster cannot be looked at: {why}; trying again");
                    said.clone_from(&why);
                }
                let map = topology.map.load_full();
                if map.nodes.is_empty() {
                    let (nodes, slots) = (Vec::new(), map.slots.clone());
                    let trouble = Some(format!("the cluster's slots are not known: {why}").into());
                    topology.map.store(Arc::new(Map { nodes, slots, trouble }));
                }
                topology.refresh();
                pause = pause.max(pauses.next());
            }
        }
        tokio::time::sleep(pause).await;
        let _ = timeout(REDIS_SLOTS_INTERVAL, topology.wanted.notified()).await;
    }
}
