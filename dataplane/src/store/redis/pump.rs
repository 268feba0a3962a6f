//! The task that keeps one server's connection, and sends what waits.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use chatgateway_config::{Endpoint, RedisSettings};
use chatgateway_core::limits::{
    REDIS_CONNECTION_STABLE, REDIS_PING_INTERVAL, REDIS_PIPELINE_BYTES, REDIS_PIPELINE_COMMANDS, REDIS_PIPELINES_MAX,
    REDIS_RECONNECT_MAX, REDIS_RECONNECT_MIN, STORE_CALL_TIMEOUT,
};
use redis::{Pipeline, RedisResult, ServerError, Value, aio::MultiplexedConnection};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{
    super::StoreError,
    connect::{self, Credentials, Open, Wanted, address, server_words, words},
    link::{Item, Link, Pauses, Then},
    scripts, sentinel,
    topology::Topology,
};

/// Credentials that a file holds now.
pub(super) struct Rotation {
    pub(super) credentials: Credentials,
    refused: AtomicBool,
}

impl Rotation {
    pub(super) fn new(credentials: Credentials) -> Arc<Self> {
        Arc::new(Self { credentials, refused: AtomicBool::new(false) })
    }

    /// Says once that a server does not take them.
    pub(super) fn note(&self, said: &str) {
        if !self.refused.swap(true, Relaxed) {
            tracing::warn!(
                "Redis refuses the changed user or password ({said}): connections that are open go on with the old one, \
                 new ones use the files as they are; check the username and password files against the server"
            );
        }
    }
}

/// Where a link's server is found.
pub(super) enum Target {
    /// One of the addresses in the settings.
    Configured,
    /// What the sentinels name.
    Sentinels,
    /// A node of a cluster.
    Node(Endpoint),
}

/// See the module.
pub(super) struct Pump {
    pub(super) link: Arc<Link>,
    pub(super) settings: Arc<RedisSettings>,
    pub(super) target: Target,
    pub(super) topology: Weak<Topology>,
    pub(super) credentials: watch::Receiver<Arc<Rotation>>,
}

type Sending = Pin<Box<dyn Future<Output = (RedisResult<Vec<Value>>, Pipeline)> + Send>>;

/// A pipeline under way.
struct Flight {
    items: Vec<Item>,
    sending: Sending,
    deadline: Instant,
}

impl Pump {
    pub(super) async fn run(mut self) {
        let closed = self.link.closed.clone();
        let mut pauses = Pauses::new(REDIS_RECONNECT_MIN, REDIS_RECONNECT_MAX);
        let mut said = String::new();
        for attempt in 0.. {
            self.link.counters.attempts.fetch_add(1, Relaxed);
            let Some(connected) = closed.run_until_cancelled(self.connect(attempt)).await else { break };
            let why = match connected {
                Ok((open, server)) => {
                    tracing::info!("connected to Redis at {}", address(&server));
                    let since = Instant::now();
                    self.link.connected(server.clone());
                    let why = self.serve(open, &server).await;
                    if since.elapsed() >= REDIS_CONNECTION_STABLE {
                        pauses.reset();
                        said.clear();
                    }
                    format!("{}: {why}", address(&server))
                }
                Err(why) => why,
            };
            self.link.give_up(&why);
            if said != why && !closed.is_cancelled() {
                tracing::warn!("no connection to Redis: {why}; trying again");
                said = why;
            }
            if let Some(topology) = self.topology.upgrade() {
                topology.refresh();
            }
            if closed.run_until_cancelled(tokio::time::sleep(pauses.next())).await.is_none() {
                break;
            }
        }
        self.link.give_up("the store is closed");
    }

    async fn connect(&self, attempt: usize) -> Result<(Open, Endpoint), String> {
        let endpoints = &self.settings.endpoints;
        let server = match &self.target {
            Target::Node(node) => node.clone(),
            Target::Configured => endpoints.get(attempt % endpoints.len().max(1)).cloned().ok_or("no address")?,
            Target::Sentinels => sentinel::primary(&self.settings, attempt).await?,
        };
        let mut open = connect::open(&self.settings, &server, Wanted::Primary, None).await?;
        let mut loads = Pipeline::new();
        for load in scripts::loads() {
            loads.add_command(load);
        }
        let count = loads.len();
        let loading = timeout(STORE_CALL_TIMEOUT, open.connection.send_packed_commands(&loads, 0, count));
        let failed = match loading.await {
            Ok(Ok(replies)) => replies.into_iter().find_map(|reply| match reply {
                Value::ServerError(error) => Some(server_words(&error)),
                _ => None,
            }),
            Ok(Err(error)) => Some(words(&error)),
            Err(_) => Some("no answer in time".into()),
        };
        match failed {
            Some(why) => Err(format!("{}: loading the scripts failed: {why}", address(&server))),
            None => Ok((open, server)),
        }
    }

    /// Sends and receives until the connection is given up. Returns why.
    async fn serve(&mut self, open: Open, server: &Endpoint) -> String {
        let mut flights = VecDeque::with_capacity(REDIS_PIPELINES_MAX);
        let why = self.fly(&mut flights, open, server).await;
        // The number changes first, and then those who wait hear of it.
        self.link.give_up(&why);
        let items = flights.into_iter().flat_map(|flight| flight.items);
        items.for_each(|item| item.then.done(Err(StoreError::Unavailable(why.clone()))));
        why
    }

    async fn fly(&mut self, flights: &mut VecDeque<Flight>, open: Open, server: &Endpoint) -> String {
        let Open { connection, mut driver } = open;
        let link = Arc::clone(&self.link);
        let mut heard = Instant::now();
        let timer = tokio::time::sleep(REDIS_PING_INTERVAL);
        let sentinels = matches!(self.target, Target::Sentinels).then(|| Arc::clone(&self.settings));
        let elsewhere = sentinel::elsewhere(sentinels, server);
        tokio::pin!(timer, elsewhere);
        loop {
            while flights.len() < REDIS_PIPELINES_MAX && !link.is_idle() {
                let mut items = Vec::new();
                link.take(&mut items, REDIS_PIPELINE_COMMANDS, REDIS_PIPELINE_BYTES);
                flights.push_back(self.launch(&connection, items));
            }
            tokio::select! {
                biased;
                landed = landed(flights) => {
                    heard = Instant::now();
                    if let Some(why) = self.land(landed, server) {
                        return why;
                    }
                }
                _ = &mut driver => return "the connection broke".into(),
                () = link.closed.cancelled() => return "the store, or this server's part in it, is closed".into(),
                now = &mut elsewhere => return format!("the sentinels name {} as the primary", address(&now)),
                // Whoever else is about to enqueue something may do so: they share the way there and back.
                () = link.waiting() => tokio::task::yield_now().await,
                () = &mut timer => {
                    let now = Instant::now();
                    let next = match flights.front() {
                        Some(Flight { deadline, .. }) if *deadline <= now => {
                            return format!("no answer within {} ms", STORE_CALL_TIMEOUT.as_millis());
                        }
                        Some(flight) => flight.deadline,
                        None if now >= heard + REDIS_PING_INTERVAL => {
                            flights.push_back(self.launch(&connection, vec![Item::own(redis::cmd("PING"), link.number())]));
                            now + STORE_CALL_TIMEOUT
                        }
                        None => heard + REDIS_PING_INTERVAL,
                    };
                    timer.as_mut().reset(next);
                }
                Ok(()) = self.credentials.changed() => self.authenticate(),
            }
        }
    }

    /// Tells the server who we are now. What is under way is not disturbed.
    fn authenticate(&mut self) {
        let rotation = Arc::clone(&self.credentials.borrow_and_update());
        if let Some(auth) = rotation.credentials.command() {
            let then = Then::Run(Box::new(move |outcome| {
                if let Ok(Value::ServerError(error)) = outcome.result {
                    rotation.note(error.code());
                }
            }));
            self.link.send(auth, then);
        }
    }

    fn launch(&self, connection: &MultiplexedConnection, mut items: Vec<Item>) -> Flight {
        let mut pipeline = Pipeline::with_capacity(items.len());
        for item in &mut items {
            if item.asking {
                pipeline.add_command(redis::cmd("ASKING"));
            }
            pipeline.add_command(std::mem::take(&mut item.cmd));
        }
        self.link.counters.commands.fetch_add(items.len() as u64, Relaxed);
        self.link.counters.pipelines.fetch_add(1, Relaxed);
        let mut connection = connection.clone();
        let sending = Box::pin(async move {
            let count = pipeline.len();
            let sent = connection.send_packed_commands(&pipeline, 0, count).await;
            (sent, pipeline)
        });
        Flight { items, sending, deadline: Instant::now() + STORE_CALL_TIMEOUT }
    }

    /// Hands out a pipeline's replies. Returns why the connection must be given up, if so.
    fn land(&self, landed: Landed, server: &Endpoint) -> Option<String> {
        let Landed { items, sent, pipeline } = landed;
        let values = match sent {
            Ok(values) => values,
            Err(error) => {
                let why = words(&error);
                self.link.give_up(&why);
                items.into_iter().for_each(|item| item.then.done(Err(StoreError::Unavailable(why.clone()))));
                return Some(why);
            }
        };
        // The number changes first, and then those who wait hear of it.
        let give_up = values.iter().find_map(no_primary);
        if let Some(why) = &give_up {
            self.link.give_up(why);
        }
        let mut values = values.into_iter();
        let (mut at, mut again) = (0, Vec::new());
        for mut item in items {
            if item.asking {
                values.next();
                at += 1;
            }
            match values.next() {
                Some(Value::ServerError(error)) => {
                    item.cmd = pipeline.cmd_iter().nth(at).cloned().unwrap_or_default();
                    if error.code() == "NOSCRIPT" && !item.again {
                        item.again = true;
                        again.push(item);
                    } else {
                        self.refused(item, &error, server);
                    }
                }
                Some(value) => item.then.done(Ok(value)),
                None => item.then.done(Err(StoreError::Unavailable("the server's reply is missing".into()))),
            }
            at += 1;
        }
        if !again.is_empty() {
            // Nothing ran: a server that was restarted, or told to forget its scripts.
            let number = self.link.number();
            self.link
                .put_first(scripts::loads().into_iter().map(|load| Item::own(load, number)).chain(again).collect());
        }
        give_up
    }

    /// A command was answered with an error.
    fn refused(&self, item: Item, error: &ServerError, server: &Endpoint) {
        let said = server_words(error);
        let topology = self.topology.upgrade();
        match (error.code(), topology) {
            ("ASK", Some(topology)) => topology.asked(&said, server, item),
            ("MOVED", Some(topology)) => {
                topology.moved(&said, server);
                item.then.done(Err(StoreError::Unavailable(said)));
            }
            // Whoever asked knows what it means; some of it whoever operates the server should know too.
            (code, _) => {
                if let Some(hint) = hint(code) {
                    let why = format!("{}: {hint} ({})", address(server), without_place(&said));
                    if self.link.note_refusal(&why) {
                        tracing::warn!("Redis refuses: {why}");
                    }
                }
                item.then.done(Ok(Value::ServerError(error.clone())));
            }
        }
    }
}

/// The server's words, if they say that it is not the primary, or not yet what it was.
fn no_primary(value: &Value) -> Option<String> {
    match value {
        Value::ServerError(error) if matches!(error.code(), "READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN") => {
            Some(server_words(error))
        }
        _ => None,
    }
}

/// What to do about a refusal whose reason lies with the server.
fn hint(code: &str) -> Option<&'static str> {
    match code {
        "NOPERM" => Some("the gateway's user lacks a right: give it the commands, keys and channels of docs/redis.md"),
        "OOM" => Some("its memory is full: give it more, or remove what does not belong there"),
        "MISCONF" => Some("it cannot write to its disk: see its log"),
        "NOREPLICAS" => Some("too few replicas follow it: start them, or see why they lag"),
        _ => None,
    }
}

/// A script's error without the place in the script: the same reason is to look the same.
fn without_place(said: &str) -> &str {
    said.split(" script: ").next().unwrap_or(said)
}

struct Landed {
    items: Vec<Item>,
    sent: RedisResult<Vec<Value>>,
    pipeline: Pipeline,
}

/// The next pipeline that is answered. They are polled in order, always: the first poll of each is what sends it.
async fn landed(flights: &mut VecDeque<Flight>) -> Landed {
    poll_fn(|cx| {
        for at in 0..flights.len() {
            if let Poll::Ready((sent, pipeline)) = flights[at].sending.as_mut().poll(cx) {
                let items = flights.remove(at).map(|flight| flight.items).unwrap_or_default();
                return Poll::Ready(Landed { items, sent, pipeline });
            }
        }
        Poll::Pending
    })
    .await
}

/// Looks at the credentials' files every now and then, and tells when they have changed.
pub(super) async fn watch_credentials(
    settings: Arc<RedisSettings>,
    tell: watch::Sender<Arc<Rotation>>,
    every: Duration,
) {
    if settings.password_file.is_none() {
        return;
    }
    let mut failed = false;
    loop {
        tokio::time::sleep(every).await;
        let settings = Arc::clone(&settings);
        match tokio::task::spawn_blocking(move || Credentials::read(&settings)).await {
            Ok(Ok(read)) => {
                failed = false;
                tell.send_if_modified(|known| {
                    let changed = known.credentials != read;
                    if changed {
                        tracing::info!("the user or the password for Redis has changed");
                        *known = Rotation::new(read);
                    }
                    changed
                });
            }
            Ok(Err(why)) if !failed => {
                failed = true;
                tracing::warn!("{why}; open connections to Redis stay as they are");
            }
            _ => {}
        }
    }
}
