//! What one server is asked, in order, over one connection at a time.
//!
//! Commands are enqueued where they are made, without waiting; one task sends what has gathered as one pipeline. Each
//! connection has a number, and the number changes in the moment a connection is given up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use chatgateway_config::Endpoint;
use chatgateway_core::limits::{REDIS_QUEUE_BYTES, REDIS_QUEUE_COMMANDS, REDIS_REFUSAL_SHOWN};
use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::sync::{Notify, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::super::StoreError;

/// Numbers of connections, of all stores of this process.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// A number that no connection had.
pub(super) fn next_connection() -> u64 {
    CONNECTIONS.fetch_add(1, Relaxed)
}

/// What is counted, over all servers.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) commands: AtomicU64,
    pub(super) pipelines: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) attempts: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) tail_connections: AtomicU64,
    pub(super) events_late: AtomicU64,
}

/// What came of a command.
pub(super) struct Outcome {
    /// The server's reply, or why there is none.
    pub(super) result: Result<Value, StoreError>,
    /// Where another node replied in the asked one's stead: the number under which that counts.
    pub(super) redirected: Option<u64>,
}

/// Who waits for a reply.
pub(super) enum Then {
    /// Nobody.
    Forget,
    /// A caller, if it still does.
    Reply(oneshot::Sender<Outcome>),
    /// Somebody who must hear of it in any case. Called by the task that moves the connection: it may not block.
    Run(Box<dyn FnOnce(Outcome) + Send>),
}

impl Then {
    pub(super) fn done(self, result: Result<Value, StoreError>) {
        self.outcome(Outcome { result, redirected: None });
    }

    pub(super) fn outcome(self, outcome: Outcome) {
        match self {
            Self::Forget => {}
            Self::Reply(caller) => drop(caller.send(outcome)),
            Self::Run(run) => run(outcome),
        }
    }
}

/// A command and who waits for its reply.
pub(super) struct Item {
    pub(super) cmd: Cmd,
    pub(super) then: Then,
    /// The number of the connection it was first sent over.
    pub(super) number: u64,
    /// Whether a cluster's node is to serve it though the slot is not its own yet.
    pub(super) asking: bool,
    /// Sent again after the scripts were loaded.
    pub(super) again: bool,
    bytes: usize,
}

/// Where a link is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Up {
    /// The connection's number.
    pub(super) number: u64,
    /// The server.
    pub(super) server: Endpoint,
}

struct State {
    queue: Vec<Item>,
    bytes: usize,
    /// Why nothing can be sent. None: connected.
    down: Option<Arc<str>>,
    /// What the server does not do though it is connected, and when it said so.
    refusal: Option<(Arc<str>, Instant)>,
}

/// See the module.
pub(super) struct Link {
    state: Mutex<State>,
    number: AtomicU64,
    waiting: Notify,
    up: watch::Sender<Option<Up>>,
    pub(super) counters: Arc<Counters>,
    pub(super) closed: CancellationToken,
}

impl Link {
    pub(super) fn new(counters: Arc<Counters>, closed: CancellationToken) -> Arc<Self> {
        let down = Some("not connected yet".into());
        Arc::new(Self {
            state: Mutex::new(State { queue: Vec::new(), bytes: 0, down, refusal: None }),
            number: AtomicU64::new(next_connection()),
            waiting: Notify::new(),
            up: watch::Sender::new(None),
            counters,
            closed,
        })
    }

    /// The number of the connection over which the next command goes.
    pub(super) fn number(&self) -> u64 {
        self.number.load(Relaxed)
    }

    /// Why nothing can be sent, or what was refused a moment ago.
    pub(super) fn trouble(&self) -> Option<Arc<str>> {
        let state = self.state.lock();
        let refusal = state.refusal.as_ref().filter(|(_, at)| at.elapsed() < REDIS_REFUSAL_SHOWN);
        state.down.clone().or_else(|| refusal.map(|(why, _)| why.clone()))
    }

    /// The server refuses to do something, for a reason that lies with it and not with what was asked. Returns whether that is
    /// news.
    pub(super) fn note_refusal(&self, why: &str) -> bool {
        let mut state = self.state.lock();
        let known =
            state.refusal.as_ref().is_some_and(|(known, at)| **known == *why && at.elapsed() < REDIS_REFUSAL_SHOWN);
        state.refusal = Some((why.into(), Instant::now()));
        !known
    }

    /// Where it is connected to, and each change of that.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Up>> {
        self.up.subscribe()
    }

    /// Enqueues a command. The connection's number comes back in any case; where nothing can be sent, `then` hears why.
    pub(super) fn send(&self, cmd: Cmd, then: Then) -> u64 {
        self.enqueue(cmd, then, None)
    }

    /// The same for a command that another node of the cluster sent here. Its number remains the one it had there.
    pub(super) fn send_asking(&self, cmd: Cmd, then: Then, number: u64) -> u64 {
        self.enqueue(cmd, then, Some(number))
    }

    fn enqueue(&self, cmd: Cmd, then: Then, first: Option<u64>) -> u64 {
        let bytes: usize =
            cmd.args_iter().map(|arg| if let redis::Arg::Simple(bytes) = arg { bytes.len() } else { 8 }).sum();
        let mut state = self.state.lock();
        let number = self.number.load(Relaxed);
        let refused = match &state.down {
            Some(why) => Some(StoreError::Unavailable(why.to_string())),
            None if state.queue.len() >= REDIS_QUEUE_COMMANDS || state.bytes + bytes > REDIS_QUEUE_BYTES => {
                self.counters.refused.fetch_add(1, Relaxed);
                Some(StoreError::Unavailable("too many commands wait for Redis".into()))
            }
            None => None,
        };
        if let Some(error) = refused {
            drop(state);
            then.done(Err(error));
            return number;
        }
        let wake = state.queue.is_empty();
        state.bytes += bytes;
        let item = Item { cmd, then, number: first.unwrap_or(number), asking: first.is_some(), again: false, bytes };
        state.queue.push(item);
        drop(state);
        if wake {
            self.waiting.notify_one();
        }
        number
    }

    /// Asks and waits for the reply.
    pub(super) async fn ask(&self, cmd: Cmd) -> Result<Value, StoreError> {
        let (caller, reply) = oneshot::channel();
        self.send(cmd, Then::Reply(caller));
        received(reply.await).result
    }

    /// Waits until something waits to be sent.
    pub(super) async fn waiting(&self) {
        self.waiting.notified().await;
    }

    /// Whether nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.state.lock().queue.is_empty()
    }

    /// Takes what waits into `into`, up to a pipeline's bounds.
    pub(super) fn take(&self, into: &mut Vec<Item>, most: usize, most_bytes: usize) {
        let mut state = self.state.lock();
        if state.queue.len() <= most && state.bytes <= most_bytes {
            std::mem::swap(&mut state.queue, into);
            state.bytes = 0;
            return;
        }
        let (mut count, mut bytes) = (0, 0);
        for item in state.queue.iter().take(most) {
            if count > 0 && bytes + item.bytes > most_bytes {
                break;
            }
            count += 1;
            bytes += item.bytes;
        }
        state.bytes -= bytes;
        into.extend(state.queue.drain(..count));
    }

    /// Puts items before everything that waits.
    pub(super) fn put_first(&self, items: Vec<Item>) {
        let mut state = self.state.lock();
        if let Some(why) = state.down.clone() {
            drop(state);
            items.into_iter().for_each(|item| item.then.done(Err(StoreError::Unavailable(why.to_string()))));
            return;
        }
        state.bytes += items.iter().map(|item| item.bytes).sum::<usize>();
        state.queue.splice(0..0, items);
        drop(state);
        self.waiting.notify_one();
    }

    /// A connection is ready; commands are taken from now on.
    pub(super) fn connected(&self, server: Endpoint) {
        let mut state = self.state.lock();
        state.down = None;
        self.counters.connections.fetch_add(1, Relaxed);
        self.up.send_replace(Some(Up { number: self.number(), server }));
    }

    /// There is no connection, or no more. What waits to be sent was not sent.
    pub(super) fn give_up(&self, why: &str) {
        let mut state = self.state.lock();
        let was_up = state.down.replace(why.into()).is_none();
        let items = std::mem::take(&mut state.queue);
        state.bytes = 0;
        if was_up {
            self.number.store(next_connection(), Relaxed);
            self.up.send_replace(None);
        }
        drop(state);
        items.into_iter().for_each(|item| item.then.done(Err(StoreError::Unavailable(why.to_owned()))));
    }
}

impl Item {
    /// A command of the link's own.
    pub(super) fn own(cmd: Cmd, number: u64) -> Self {
        Self { cmd, then: Then::Forget, number, asking: false, again: false, bytes: 0 }
    }
}

/// The outcome that a caller waited for.
pub(super) fn received(reply: Result<Outcome, oneshot::error::RecvError>) -> Outcome {
    reply.unwrap_or_else(|_| Outcome {
        result: Err(StoreError::Unavailable("the connection to Redis was closed".into())),
        redirected: None,
    })
}

/// Pauses between attempts: twice as long each time, and random, so that many gateways do not come at once.
pub(super) struct Pauses {
    next: Duration,
    least: Duration,
    most: Duration,
}

impl Pauses {
    pub(super) fn new(least: Duration, most: Duration) -> Self {
        Self { next: least, least, most }
    }

    /// The next pause: half of what it is on average to one and a half of it.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + rand::random::<f64>());
        self.next = (self.next * 2).min(self.most);
        pause
    }

    /// They begin small again.
    pub(super) fn reset(&mut self) {
        self.next = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Arc<Link> {
        Link::new(Arc::default(), CancellationToken::new())
    }

    fn up(link: &Link) {
        link.connected(Endpoint { host: "h".into(), port: 1 });
    }

    fn send(link: &Link, bytes: usize) -> oneshot::Receiver<Outcome> {
        let (caller, reply) = oneshot::channel();
        let mut cmd = redis::cmd("X");
        cmd.arg(vec![b'x'; bytes]);
        link.send(cmd, Then::Reply(caller));
        reply
    }

    fn why(mut reply: oneshot::Receiver<Outcome>) -> String {
        reply.try_recv().unwrap().result.unwrap_err().to_string()
    }

    #[test]
    fn nothing_waits_for_a_connection() {
        let link = link();
        assert!(why(send(&link, 1)).contains("not connected yet"));
        up(&link);
        let (number, waiting) = (link.number(), send(&link, 1));
        link.give_up("it broke");
        assert_ne!(link.number(), number);
        assert!(why(waiting).contains("it broke"));
        let number = link.number();
        link.give_up("still");
        assert_eq!(link.number(), number, "there was no connection to lose");
        assert!(why(send(&link, 1)).contains("still"));
    }

    #[test]
    fn what_waits_is_bounded() {
        let link = link();
        up(&link);
        let waiting: Vec<_> = (0..REDIS_QUEUE_COMMANDS).map(|_| send(&link, 1)).collect();
        assert!(why(send(&link, 1)).contains("too many commands"));
        link.give_up("it broke");
        assert!(waiting.into_iter().all(|reply| why(reply).contains("it broke")));
        up(&link);
        let half = REDIS_QUEUE_BYTES / 2 - 1;
        let _waiting = (send(&link, half), send(&link, half));
        assert!(why(send(&link, 1)).contains("too many commands"));
        assert_eq!(link.counters.refused.load(Relaxed), 2);
    }

    #[test]
    fn pipelines_take_what_waits_in_order_and_within_bounds() {
        let link = link();
        up(&link);
        let sizes = [10, 20, 30, 5_000, 1, 2, 3];
        let _waiting: Vec<_> = sizes.map(|bytes| send(&link, bytes - 1)).into();
        let mut taken = Vec::new();
        let mut pipelines = Vec::new();
        while !link.is_idle() {
            let mut items = Vec::new();
            link.take(&mut items, 3, 100);
            pipelines.push(items.len());
            taken.extend(items.iter().map(|item| item.bytes));
        }
        assert_eq!(taken, sizes);
        assert_eq!(pipelines, [3, 1, 3], "one that is too large goes alone");
        assert_eq!(link.state.lock().bytes, 0);
    }

    #[test]
    fn pauses_grow_and_begin_small_again() {
        let (least, most) = (Duration::from_millis(50), Duration::from_secs(1));
        let mut pauses = Pauses::new(least, most);
        for _ in 0..2 {
            assert!(pauses.next() <= least.mul_f64(1.5));
            let last = (0..20).map(|_| pauses.next()).last().unwrap();
            assert!(last >= most / 2 && last <= most.mul_f64(1.5), "{last:?}");
            pauses.reset();
        }
    }
}
