//! Millions of calls of the store itself, many of them given up before their answers come. Every value is marked with its
//! session and its place, and every answer is held against what was asked: an answer that belongs to another question shows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use chatgateway_config::{Endpoint, RedisMode, RedisSettings};
use chatgateway_core::log::{
    Begin, BeginReply, Check, CheckReply, Entry, EntryId, EntryKind, Finish, FinishReply, Nonce, Ownership, PodId,
    ReadReply, Reply, Request, SessionId, SessionKey, SnapshotReply, Terms, TurnBody, TurnId, Usage,
};
use chatgateway_dataplane::store::{Store, redis::RedisStore};
use chatgateway_redis_server::{Fsync, Options, RedisServer};
use chatgateway_tests::process::on_core;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinSet;

use super::ground::until;
use crate::{
    report::{Bound, Row},
    setup::Setup,
};

/// Sessions, each with one call under way at a time.
const SESSIONS: usize = 1_000;

/// Share of the calls that are given up at some time, unless the answer comes before.
const GIVEN_UP: f64 = 0.4;

/// Times such a caller lets others run before it gives up: about as many as it takes until answers come.
const YIELDS: std::ops::Range<u32> = 0..12;

/// Entries after which a turn may end.
const TURN_ENTRIES: u64 = 20;

/// Entries that are read at a time, at most.
const READ_ENTRIES: usize = 20;

const TERMS: Terms = Terms { ttl_ms: 900_000, lease_ms: 60_000, keep_turns: 2 };

/// How long the store may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What was counted.
#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    answers: AtomicU64,
    given_up: AtomicU64,
    /// Answers that say that the outcome is not known.
    unknown: AtomicU64,
    mismatches: AtomicU64,
    first: parking_lot::Mutex<Option<String>>,
}

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let options = Options { appendonly: Some(Fsync::Everysec), ..Options::default() };
    let redis = on_core(setup.server_core, || RedisServer::start(options))?;
    let settings = RedisSettings {
        mode: RedisMode::Standalone,
        endpoints: vec![Endpoint { host: "127.0.0.1".to_owned(), port: redis.port() }],
        primary_name: None,
        username_file: None,
        password_file: None,
        tls: None,
    };
    let pod = PodId(rand::random());
    let (store, mut events) = RedisStore::start(&settings, pod)?;
    let hearing = tokio::spawn(async move { while events.recv().await.is_some() {} });
    until("the store is connected", CONNECT_TIMEOUT, async || Ok(store.trouble().is_none())).await?;
    let target = if setup.quick { 500_000 } else { 10_000_000 };
    let counters = Arc::new(Counters::default());
    let began = Instant::now();
    let mut sessions = JoinSet::new();
    for number in 0..SESSIONS {
        let session = Session::new(store.clone(), pod, number, counters.clone())?;
        sessions.spawn(session.run(target));
    }
    while let Some(session) = sessions.join_next().await {
        session??;
    }
    hearing.abort();
    Ok(rows(&counters, began.elapsed()))
}

fn rows(counters: &Counters, took: Duration) -> Vec<Row> {
    let read = |counter: &AtomicU64| counter.load(Relaxed);
    let (calls, answers, given_up) = (read(&counters.calls), read(&counters.answers), read(&counters.given_up));
    let case = format!("{:.1} million store calls, some given up", calls as f64 / 1e6);
    vec![
        Row::figure(format!("{case}: answers to another question"), read(&counters.mismatches) as f64, "")
            .bounds(Bound::AtMost(0.0), Bound::AtMost(0.0))
            .note(counters.first.lock().clone().unwrap_or_else(|| {
                format!(
                    "{answers} answers looked at, {given_up} given up, {} of unknown outcome",
                    read(&counters.unknown)
                )
            })),
        Row::figure(format!("{case}: a second"), calls as f64 / took.as_secs_f64(), "1/s"),
    ]
}

/// What a session's owner knows.
struct Owned {
    epoch: u64,
    end: EntryId,
    len: u64,
    turn: TurnId,
    /// Whether the entry after the end may be there already: its append was given up.
    doubt: bool,
    /// An end of the turn that was given up.
    finish: Option<Box<Finish>>,
}

/// One session, and the caller that owns it.
struct Session {
    store: Arc<dyn Store>,
    pod: PodId,
    name: String,
    key: SessionKey,
    random: StdRng,
    counters: Arc<Counters>,
    owned: Option<Owned>,
    /// Turns begun.
    turns: u64,
    /// A begin that was given up.
    begin: Option<Box<Begin>>,
}

/// Why an answer cannot be one to what was asked.
type Judged = Result<(), String>;

fn fits(is_so: bool, what: &str) -> Judged {
    if is_so { Ok(()) } else { Err(what.to_owned()) }
}

impl Session {
    fn new(store: Arc<dyn Store>, pod: PodId, number: usize, counters: Arc<Counters>) -> anyhow::Result<Self> {
        let name = format!("operations-{number}");
        let key = SessionKey::new("bench", "anybody", &SessionId::parse(&name)?);
        let random = StdRng::seed_from_u64(number as u64);
        Ok(Self { store, pod, name, key, random, counters, owned: None, turns: 0, begin: None })
    }

    /// Calls until all sessions together have made so many calls.
    async fn run(mut self, target: u64) -> anyhow::Result<()> {
        while self.counters.calls.fetch_add(1, Relaxed) < target {
            let judged = self.step().await?;
            if let Err(why) = judged {
                self.counters.mismatches.fetch_add(1, Relaxed);
                self.counters.first.lock().get_or_insert_with(|| format!("{}: {why}", self.name));
            }
        }
        Ok(())
    }

    /// One call.
    async fn step(&mut self) -> anyhow::Result<Judged> {
        let Some(owned) = &self.owned else { return self.begin().await };
        if let Some(finish) = &owned.finish {
            let finish = finish.clone();
            return Ok(self.finish(finish).await);
        }
        if owned.doubt {
            return Ok(self.check().await);
        }
        let long = owned.end.n >= TURN_ENTRIES;
        Ok(match self.random.random_range(0..100) {
            0..10 if long => self.end_turn().await,
            0..10 => self.check().await,
            10..15 => self.snapshot().await,
            15..45 => self.read().await,
            _ => self.append().await,
        })
    }

    /// Calls, and waits for the answer or gives up.
    async fn call(&mut self, request: Request) -> Option<Reply> {
        let call = self.store.call(&self.key, request);
        let patience = self.random.random_bool(GIVEN_UP).then(|| self.random.random_range(YIELDS));
        let answer = match patience {
            None => Some(call.await),
            Some(yields) => tokio::select! {
                answer = call => Some(answer),
                () = let_others_run(yields) => None,
            },
        };
        let counter = match &answer {
            Some(answer) if answer.result.is_ok() => &self.counters.answers,
            Some(_) => &self.counters.unknown,
            None => &self.counters.given_up,
        };
        counter.fetch_add(1, Relaxed);
        answer?.result.ok()
    }

    /// What the entry says.
    fn mark(&self, id: EntryId) -> Arc<str> {
        format!("{} {id}", self.name).into()
    }

    fn question(&self, turn: u64) -> Arc<str> {
        format!("{} asks {turn}", self.name).into()
    }

    async fn begin(&mut self) -> anyhow::Result<Judged> {
        // One that was given up is sent again as it was, and recognised.
        let begin = match self.begin.take() {
            Some(begin) => begin,
            None => {
                self.turns += 1;
                let body = TurnBody::new(self.question(self.turns), "".into());
                let turn = TurnId::parse(&format!("{}-{}", self.name, self.turns))?;
                let nonce = Nonce(self.random.random());
                let (jump, body) = (self.random.random_range(0..1 << 20), Arc::new(body));
                Box::new(Begin { pod: self.pod, nonce, turn, seq: Some(self.turns), body, jump, terms: TERMS })
            }
        };
        let reply = self.call(Request::Begin((*begin).clone())).await;
        let Some(reply) = reply else {
            self.begin = Some(begin);
            return Ok(Ok(()));
        };
        let Reply::Begin(BeginReply::Owner { own, .. }) = reply else {
            return Ok(Err(format!("a begin was answered with {reply:?}")));
        };
        let Ownership { epoch, end, len, turn, seq, body, appended, .. } = own;
        let text = self.question(self.turns);
        let marked = appended.iter().all(|entry| {
            matches!(&entry.kind, EntryKind::Turn { text: told, .. } if *told == text) && entry.turn == begin.turn
        });
        let fit =
            turn == begin.turn && seq == self.turns && body.text == text && end == EntryId::new(epoch, 0) && marked;
        self.owned = Some(Owned { epoch, end, len, turn, doubt: false, finish: None });
        Ok(fits(fit, "a begin was answered with another turn's ownership"))
    }

    async fn append(&mut self) -> Judged {
        let Some(owned) = &mut self.owned else { return Ok(()) };
        let id = EntryId::new(owned.epoch, owned.end.n + 1);
        let turn = owned.turn.clone();
        owned.doubt = true;
        let entry = Entry { id, after: None, turn, kind: EntryKind::Delta { text: self.mark(id) } };
        let reply = self.call(Request::Append(Arc::new(entry))).await;
        let Some(owned) = &mut self.owned else { return Ok(()) };
        match reply {
            None => Ok(()),
            Some(Reply::Append(true)) => {
                (owned.end, owned.len, owned.doubt) = (id, owned.len + 1, false);
                Ok(())
            }
            Some(other) => Err(format!("an append was answered with {other:?}")),
        }
    }

    async fn check(&mut self) -> Judged {
        let Some(owned) = &self.owned else { return Ok(()) };
        let (pod, epoch) = (self.pod, owned.epoch);
        let reply = self.call(Request::Check(Check { pod, epoch, terms: TERMS })).await;
        let Some(owned) = &mut self.owned else { return Ok(()) };
        let CheckReply { mine, end, len, cancel, queued } = match reply {
            None => return Ok(()),
            Some(Reply::Check(reply)) => reply,
            Some(other) => return Err(format!("a check was answered with {other:?}")),
        };
        let next = EntryId::new(epoch, owned.end.n + 1);
        if owned.doubt && end == Some(next) && len == owned.len + 1 {
            (owned.end, owned.len) = (next, len);
        }
        owned.doubt = false;
        let fit = mine && end == Some(owned.end) && len == owned.len && !cancel && queued == 0;
        fits(fit, "a check was answered with another log's end")
    }

    async fn read(&mut self) -> Judged {
        let Some(owned) = &self.owned else { return Ok(()) };
        let (epoch, end) = (owned.epoch, owned.end);
        let after = EntryId::new(epoch, self.random.random_range(0..=end.n));
        let count = self.random.random_range(1..=READ_ENTRIES);
        let reply = match self.call(Request::Read { after, count }).await {
            None => return Ok(()),
            Some(Reply::Read(reply)) => reply,
            Some(other) => return Err(format!("a read was answered with {other:?}")),
        };
        let ReadReply { exists, entries, end: told_end, unfinished, owner, .. } = reply;
        let wanted = (end.n - after.n).min(count as u64);
        let fit = exists && unfinished && told_end == end && owner == Some(self.pod) && entries.len() as u64 == wanted;
        fits(fit, "a read was answered with another log's bounds")?;
        for (entry, n) in entries.iter().zip(after.n + 1..) {
            let id = EntryId::new(epoch, n);
            let marked = matches!(&entry.kind, EntryKind::Delta { text } if *text == self.mark(id));
            fits(entry.id == id && marked, "a read was answered with other entries")?;
        }
        Ok(())
    }

    async fn snapshot(&mut self) -> Judged {
        let SnapshotReply { exists, turns, .. } = match self.call(Request::Snapshot).await {
            None => return Ok(()),
            Some(Reply::Snapshot(reply)) => reply,
            Some(other) => return Err(format!("a snapshot was answered with {other:?}")),
        };
        let last = turns.last().is_some_and(|turn| turn.seq == self.turns);
        let mine = turns.iter().all(|turn| turn.text == self.question(turn.seq));
        fits(exists && last && mine, "a snapshot was answered with another history")
    }

    /// Ends the running turn.
    async fn end_turn(&mut self) -> Judged {
        let Some(Owned { epoch, end, len, turn, .. }) = &self.owned else { return Ok(()) };
        let kind = EntryKind::Done { finish_reason: "stop".into(), usage: Usage::default() };
        let entry = Entry { id: EntryId::new(*epoch, end.n + 1), after: None, turn: turn.clone(), kind };
        let (epoch, follows, len, entry) = (*epoch, *end, *len, Arc::new(entry));
        let answer = format!("{} is answered", self.name).into();
        self.finish(Box::new(Finish { pod: self.pod, epoch, follows, len, entry, answer, terms: TERMS })).await
    }

    async fn finish(&mut self, finish: Box<Finish>) -> Judged {
        let id = finish.entry.id;
        let reply = self.call(Request::Finish((*finish).clone())).await;
        let again = self.owned.as_mut().and_then(|owned| owned.finish.replace(finish)).is_some();
        match reply {
            None => Ok(()),
            Some(Reply::Finish(FinishReply::Ended { appended, next: None })) => {
                self.release();
                fits(appended.iter().all(|entry| entry.id == id), "a finish was answered with another turn's end")
            }
            Some(Reply::Finish(FinishReply::Already { next: None })) if again => {
                self.release();
                Ok(())
            }
            Some(other) => Err(format!("a finish was answered with {other:?}")),
        }
    }

    fn release(&mut self) {
        self.owned = None;
        if let Some(peers) = self.store.peers() {
            peers.disown(&self.key);
        }
    }
}

async fn let_others_run(times: u32) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}
