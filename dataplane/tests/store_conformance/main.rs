//! What every session store must do, whatever keeps its state. Each store runs the whole suite.

#![allow(clippy::unwrap_used, clippy::panic)]

mod redis;
#[path = "../redis_store/settings.rs"]
mod settings;

use std::{collections::HashSet, sync::Arc, time::Duration};

use chatgateway_core::log::*;
use chatgateway_dataplane::{
    clock::Clock,
    store::{MemoryStore, Store},
};

const TERMS: Terms = Terms { ttl_ms: 60_000, lease_ms: 60_000, keep_turns: 3 };
const POD: PodId = PodId(1);
const OTHER: PodId = PodId(2);

/// One session of a store under test.
#[derive(Clone)]
struct Session {
    store: Arc<dyn Store>,
    key: SessionKey,
}

impl Session {
    fn new(store: &Arc<dyn Store>) -> Self {
        let id = SessionId::parse(&uuid::Uuid::new_v4().to_string()).unwrap();
        Self { store: store.clone(), key: SessionKey::new("t", "p", &id) }
    }

    async fn call(&self, request: Request) -> Reply {
        self.store.call(&self.key, request).await.result.unwrap()
    }

    async fn begin_as(&self, pod: PodId, name: &str, text: &str, terms: Terms) -> BeginReply {
        let begin = begin(pod, name, text, terms);
        let Reply::Begin(reply) = self.call(Request::Begin(begin)).await else { panic!("not a begin's reply") };
        reply
    }

    async fn begin(&self, name: &str) -> BeginReply {
        self.begin_as(POD, name, "hello", TERMS).await
    }

    async fn own(&self, name: &str) -> Ownership {
        match self.begin(name).await {
            BeginReply::Owner { own, .. } => own,
            other => panic!("{other:?}"),
        }
    }

    async fn append(&self, own: &Ownership, n: u64, text: &str) -> bool {
        let kind = EntryKind::Delta { text: text.into() };
        let entry = Entry { id: EntryId::new(own.epoch, n), after: None, turn: own.turn.clone(), kind };
        matches!(self.call(Request::Append(Arc::new(entry))).await, Reply::Append(true))
    }

    async fn finish(&self, own: &Ownership, follows: EntryId, len: u64, answer: &str) -> FinishReply {
        let kind = EntryKind::Done { finish_reason: "stop".into(), usage: Usage::default() };
        let id = EntryId::new(own.epoch, follows.n + 1);
        let entry = Arc::new(Entry { id, after: None, turn: own.turn.clone(), kind });
        let finish = Finish { pod: POD, epoch: own.epoch, follows, len, entry, answer: answer.into(), terms: TERMS };
        match self.call(Request::Finish(finish)).await {
            Reply::Finish(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    async fn read(&self, after: EntryId, count: usize) -> ReadReply {
        match self.call(Request::Read { after, count }).await {
            Reply::Read(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    async fn snapshot(&self) -> SnapshotReply {
        match self.call(Request::Snapshot).await {
            Reply::Snapshot(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    async fn claim(&self, pod: PodId, why: ClaimReason) -> ClaimReply {
        let claim = Claim { pod, nonce: Nonce(rand::random()), why, jump: 0, terms: TERMS };
        match self.call(Request::Claim(claim)).await {
            Reply::Claim(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    async fn check(&self, pod: PodId, epoch: u64) -> CheckReply {
        match self.call(Request::Check(Check { pod, epoch, terms: TERMS })).await {
            Reply::Check(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// A whole turn with one piece of text.
    async fn turn(&self, name: &str, answer: &str) {
        let own = self.own(name).await;
        assert!(self.append(&own, own.end.n + 1, answer).await);
        let follows = EntryId::new(own.epoch, own.end.n + 1);
        let finished = self.finish(&own, follows, own.len + 1, answer).await;
        assert!(matches!(finished, FinishReply::Ended { next: None, .. }), "{finished:?}");
    }
}

fn turn(name: &str) -> TurnId {
    TurnId::parse(name).unwrap()
}

fn begin(pod: PodId, name: &str, text: &str, terms: Terms) -> Begin {
    Begin {
        pod,
        nonce: Nonce(rand::random()),
        turn: turn(name),
        seq: None,
        body: Arc::new(TurnBody::new(text.into(), "".into())),
        jump: 7,
        terms,
    }
}

async fn suite(store: Arc<dyn Store>) {
    a_turn_is_told_by_a_chain(&store).await;
    one_of_many_owns(&store).await;
    repeats_are_recognised(&store).await;
    numbers_are_checked(&store).await;
    turns_queue_and_run_in_order(&store).await;
    stale_writers_are_refused(&store).await;
    an_ended_lease_is_claimed(&store).await;
    a_running_lease_is_not_claimed(&store).await;
    resets_void_and_move_the_base(&store).await;
    cancels_are_marked(&store).await;
    reads_come_in_pages(&store).await;
    the_log_is_trimmed_and_the_history_kept(&store).await;
    deleted_means_deleted(&store).await;
    sessions_expire_whole(&store).await;
    sessions_are_apart(&store).await;
}

async fn a_turn_is_told_by_a_chain(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    assert!(!s.read(EntryId::ZERO, 10).await.exists);
    s.turn("a", "one").await;
    s.turn("b", "two").await;
    let read = s.read(EntryId::ZERO, 100).await;
    let mut at = EntryId::ZERO;
    for entry in &read.entries {
        assert_eq!(entry.predecessor(), at, "{entry:?}");
        at = entry.id;
    }
    assert_eq!((read.end, read.base, read.unfinished), (at, at, false));
    assert_eq!(read.entries.len(), 6);
}

async fn one_of_many_owns(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    let begins = (0..8).map(|i| {
        let s = s.clone();
        tokio::spawn(async move { s.begin_as(PodId(i), &format!("t{i}"), "x", TERMS).await })
    });
    let replies: Vec<_> = futures_util::future::join_all(begins).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(replies.iter().filter(|r| matches!(r, BeginReply::Owner { .. })).count(), 1, "{replies:?}");
    let places: HashSet<_> =
        replies.iter().filter_map(|r| if let BeginReply::Queued { seq, .. } = r { Some(*seq) } else { None }).collect();
    assert_eq!(places, (2..=8).collect());
}

async fn repeats_are_recognised(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    let asked = begin(POD, "a", "hello", TERMS);
    let first = s.call(Request::Begin(asked.clone())).await;
    let Reply::Begin(BeginReply::Owner { own, from }) = &first else { panic!("{first:?}") };
    let again = s.call(Request::Begin(asked)).await;
    let Reply::Begin(BeginReply::Owner { own: again, from: from_again }) = &again else { panic!("{again:?}") };
    assert_eq!((own.epoch, own.end, from), (again.epoch, again.end, from_again));
    assert!(again.appended.is_empty());
    // Another request for the same turn is a client's repeat, not this request come again.
    let BeginReply::Known(known) = s.begin("a").await else { panic!("a repeat is known") };
    assert_eq!((known.state, known.seq, known.from), (TurnState::Running, 1, Some(*from)));
    assert!(matches!(s.begin_as(POD, "a", "other words", TERMS).await, BeginReply::Conflict));
    let ended = s.finish(own, own.end, own.len, "").await;
    assert!(matches!(ended, FinishReply::Ended { .. }));
    assert!(matches!(s.finish(own, own.end, own.len, "").await, FinishReply::Already { next: None }));
    let BeginReply::Known(known) = s.begin("a").await else { panic!("a repeat is known") };
    assert_eq!(known.state, TurnState::Ended(EndKind::Done));
    assert_eq!(known.ended_at, Some(EntryId::new(own.epoch, 1)));
}

async fn numbers_are_checked(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    let mut wrong = begin(POD, "a", "x", TERMS);
    wrong.seq = Some(2);
    let reply = s.call(Request::Begin(wrong.clone())).await;
    assert!(matches!(reply, Reply::Begin(BeginReply::SeqGap { expected: 1 })), "{reply:?}");
    // No turn has number 0: that only asks whether the turn is known.
    wrong.seq = Some(0);
    let reply = s.call(Request::Begin(wrong.clone())).await;
    assert!(matches!(reply, Reply::Begin(BeginReply::SeqGap { expected: 1 })), "{reply:?}");
    wrong.seq = Some(1);
    let mut look = Begin { nonce: Nonce(7), seq: Some(0), ..wrong.clone() };
    assert!(matches!(s.call(Request::Begin(wrong)).await, Reply::Begin(BeginReply::Owner { .. })));
    let reply = s.call(Request::Begin(look.clone())).await;
    assert!(matches!(reply, Reply::Begin(BeginReply::Known(_))), "{reply:?}");
    look.turn = TurnId::parse("another").unwrap();
    let reply = s.call(Request::Begin(look)).await;
    assert!(matches!(reply, Reply::Begin(BeginReply::SeqGap { expected: 2 })), "{reply:?}");
}

async fn turns_queue_and_run_in_order(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    let own = s.own("t0").await;
    for i in 1..=8 {
        let reply = s.begin_as(OTHER, &format!("t{i}"), "x", TERMS).await;
        assert!(matches!(reply, BeginReply::Queued { place, .. } if place == i), "{reply:?}");
    }
    assert!(matches!(s.begin("t9").await, BeginReply::Busy));
    let mut running = own;
    for i in 1..=8 {
        let FinishReply::Ended { next: Some(next), appended } = s.finish(&running, running.end, running.len, "").await
        else {
            panic!("a turn waits")
        };
        assert_eq!((next.turn.as_str(), appended.len()), (format!("t{i}").as_str(), 2));
        running = next;
    }
    assert!(matches!(s.finish(&running, running.end, running.len, "").await, FinishReply::Ended { next: None, .. }));
    assert!(matches!(s.begin("t9").await, BeginReply::Owner { .. }));
}

async fn stale_writers_are_refused(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    assert!(!s.append(&Ownership { turn: turn("a"), ..s.own("a").await }, 0, "again").await);
    let own = s.own_running().await;
    assert!(s.append(&own, 1, "x").await);
    assert!(!s.append(&own, 1, "x").await, "an id is taken once");
    let end = EntryId::new(own.epoch, 1);
    assert!(matches!(s.finish(&own, own.end, 1, "x").await, FinishReply::Refused), "not the end any more");
    assert!(matches!(s.finish(&own, end, 7, "x").await, FinishReply::Refused), "not the length");
    assert!(matches!(s.call(Request::EndLease { pod: POD, epoch: own.epoch }).await, Reply::EndLease(true)));
    let ClaimReply::Owner(taken) = s.claim(OTHER, ClaimReason::Expired).await else { panic!("the lease is over") };
    assert!(taken.epoch > own.epoch);
    assert!(!s.append(&own, 2, "stale").await);
    assert!(!s.check(POD, own.epoch).await.mine);
    assert!(matches!(s.finish(&own, end, 2, "x").await, FinishReply::Refused));
    let none = Session::new(store);
    assert!(!none.append(&own, 1, "no log").await);
    assert!(!none.read(EntryId::ZERO, 1).await.exists);
}

impl Session {
    /// The ownership of the turn that runs already, as its pod knows it.
    async fn own_running(&self) -> Ownership {
        let read = self.read(EntryId::ZERO, 100).await;
        let first = read.entries.first().cloned().unwrap();
        Ownership {
            epoch: first.id.epoch,
            end: read.end,
            len: read.entries.len() as u64,
            turn: first.turn.clone(),
            seq: 1,
            body: Arc::new(TurnBody::new("hello".into(), "".into())),
            start: first.id,
            cancel: false,
            tries: 0,
            appended: Vec::new(),
        }
    }
}

async fn an_ended_lease_is_claimed(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    let short = Terms { lease_ms: 20, ..TERMS };
    let BeginReply::Owner { own, .. } = s.begin_as(POD, "a", "hello", short).await else { panic!("a new session") };
    let taken = eventually(async || match s.claim(OTHER, ClaimReason::Expired).await {
        ClaimReply::Owner(taken) => Some(taken),
        ClaimReply::Nothing => None,
    })
    .await;
    assert_eq!((taken.turn.as_str(), taken.tries, taken.start), ("a", 1, own.end));
    let read = s.read(own.end, 10).await;
    assert_eq!(read.entries.len(), 1);
    assert_eq!(read.entries[0].predecessor(), own.end);
    assert!(matches!(read.entries[0].kind, EntryKind::Takeover { reason: TakeoverReason::Expired }));
}

async fn a_running_lease_is_not_claimed(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    assert!(matches!(s.claim(OTHER, ClaimReason::Expired).await, ClaimReply::Nothing), "no session");
    let own = s.own("a").await;
    assert!(matches!(s.claim(OTHER, ClaimReason::Expired).await, ClaimReply::Nothing));
    assert!(matches!(s.claim(OTHER, ClaimReason::Loss { epoch: own.epoch }).await, ClaimReply::Nothing));
    let check = s.check(POD, own.epoch).await;
    assert_eq!((check.mine, check.end, check.len, check.queued), (true, Some(own.end), 1, 0));
    let ClaimReply::Owner(anew) = s.claim(POD, ClaimReason::Loss { epoch: own.epoch }).await else {
        panic!("the owner may start anew")
    };
    assert!(anew.epoch > own.epoch);
}

async fn resets_void_and_move_the_base(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    let own = s.own("a").await;
    assert!(s.append(&own, 1, "void").await);
    let id = EntryId::new(own.epoch, 2);
    let entry = Arc::new(Entry { id, after: None, turn: turn("a"), kind: EntryKind::Reset });
    let mut reset = Reset { pod: POD, epoch: own.epoch, follows: EntryId::new(own.epoch, 1), len: 9, entry };
    assert!(matches!(s.call(Request::Reset(reset.clone())).await, Reply::Reset(false)), "not the length");
    reset.len = 2;
    assert!(matches!(s.call(Request::Reset(reset)).await, Reply::Reset(true)));
    let read = s.read(EntryId::ZERO, 10).await;
    assert_eq!((read.end, read.base), (id, EntryId::new(own.epoch, 1)));
}

async fn cancels_are_marked(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    let cancel = |name: &str| Request::Cancel { turn: turn(name) };
    assert!(matches!(s.call(cancel("a")).await, Reply::Cancel(CancelReply::NotFound)));
    let own = s.own("a").await;
    let marked = s.call(cancel("a")).await;
    let expected = CancelReply::Marked { state: TurnState::Running, owner: Some(POD) };
    assert_eq!(marked, Reply::Cancel(expected));
    assert!(s.check(POD, own.epoch).await.cancel);
    s.finish(&own, own.end, 1, "").await;
    assert_eq!(s.call(cancel("a")).await, Reply::Cancel(CancelReply::Ended(EndKind::Done)));
}

async fn reads_come_in_pages(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    let own = s.own("a").await;
    for n in 1..=25 {
        assert!(s.append(&own, n, "x").await);
    }
    let (mut at, mut seen) = (EntryId::ZERO, 0);
    loop {
        let page = s.read(at, 10).await;
        let Some(last) = page.entries.last() else { break };
        assert!(page.entries.len() <= 10 && page.unfinished);
        seen += page.entries.len();
        at = last.id;
    }
    assert_eq!((seen, at), (26, EntryId::new(own.epoch, 25)));
}

async fn the_log_is_trimmed_and_the_history_kept(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    for i in 0..10 {
        s.turn(&format!("t{i}"), &format!("answer {i}")).await;
    }
    let snapshot = s.snapshot().await;
    let answers: Vec<_> = snapshot.turns.iter().map(|t| t.answer.to_string()).collect();
    assert_eq!(answers, ["answer 7", "answer 8", "answer 9"]);
    let read = s.read(EntryId::ZERO, 100).await;
    assert_eq!(snapshot.position, read.end);
    let first = read.entries.first().unwrap();
    assert!(matches!(&first.kind, EntryKind::Turn { seq: 8, .. }), "{first:?}");
    assert_eq!(read.first, first.predecessor());
}

async fn deleted_means_deleted(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    let own = s.own("a").await;
    assert_eq!(s.call(Request::Delete).await, Reply::Delete(Some(POD)));
    assert!(!s.append(&own, 1, "late").await);
    assert!(!s.snapshot().await.exists);
    assert!(matches!(s.begin("a").await, BeginReply::Gone));
    let anew = s.own("b").await;
    assert!(anew.epoch > own.epoch, "ids after a delete are greater");
}

async fn sessions_expire_whole(store: &Arc<dyn Store>) {
    let s = Session::new(store);
    let short = Terms { ttl_ms: 30, ..TERMS };
    let BeginReply::Owner { own, .. } = s.begin_as(POD, "a", "x", short).await else { panic!("a new session") };
    let kind = EntryKind::Cancelled;
    let entry = Arc::new(Entry { id: EntryId::new(own.epoch, 1), after: None, turn: turn("a"), kind });
    let finish =
        Finish { pod: POD, epoch: own.epoch, follows: own.end, len: 1, entry, answer: "".into(), terms: short };
    assert!(matches!(s.call(Request::Finish(finish)).await, Reply::Finish(FinishReply::Ended { .. })));
    eventually(async || (!s.read(EntryId::ZERO, 1).await.exists).then_some(())).await;
    assert!(!s.snapshot().await.exists);
    assert!(matches!(s.begin("a").await, BeginReply::Owner { .. }), "the turn is unknown again");
}

async fn sessions_are_apart(store: &Arc<dyn Store>) {
    let (a, b) = (Session::new(store), Session::new(store));
    let own = a.own("same").await;
    assert!(matches!(b.begin("same").await, BeginReply::Owner { .. }));
    assert!(a.append(&own, 1, "a's").await);
    assert_eq!(b.read(EntryId::ZERO, 10).await.entries.len(), 1);
}

/// Waits for a condition of the store's own clock.
async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "it did not come to pass within 10 s");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    suite(Arc::new(MemoryStore::new(Clock::system()))).await;
}

#[tokio::test(start_paused = true)]
async fn memory_is_swept_of_sessions_nobody_asks_for() {
    let store = Arc::new(MemoryStore::new(Clock::system()));
    tokio::spawn(store.clone().keep_swept());
    let shared: Arc<dyn Store> = store.clone();
    for _ in 0..1_000 {
        Session::new(&shared).turn("a", "answer").await;
    }
    assert_eq!(store.sessions(), Some(1_000));
    tokio::time::sleep(Duration::from_millis(TERMS.ttl_ms + 2_000)).await;
    assert_eq!(store.sessions(), Some(0));
}
