//! Who decides, and what happens when nobody answers: against a store whose answers a test holds back.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{net::IpAddr, time::Duration};

use chatgateway_core::{
    limiter::Rules,
    limits::{LIMIT_CALL_FULL, LIMIT_PROBE_INTERVAL},
    log::{Request, SessionId},
};
use tokio::task::JoinHandle;

use super::*;
use crate::store::{Call, Count, Decided, Limits, MemoryStore, Peers, StoreError};

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Answers,
    /// Keeps its answers until it answers again.
    Hesitates,
    Fails,
}

type Held = (Vec<Op>, Vec<Outcome>, Decided);

struct Fake {
    sessions: MemoryStore,
    table: Mutex<Table>,
    clock: Clock,
    mood: Mutex<Mood>,
    held: Mutex<Vec<Held>>,
    /// The steps of each call.
    calls: Mutex<Vec<Vec<Op>>>,
}

impl Fake {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            sessions: MemoryStore::new(Clock::system()),
            table: Mutex::default(),
            clock: Clock::system(),
            mood: Mutex::new(Mood::Answers),
            held: Mutex::default(),
            calls: Mutex::default(),
        })
    }

    fn be(&self, mood: Mood) {
        *self.mood.lock() = mood;
        if mood == Mood::Answers {
            self.let_go();
        }
    }

    fn let_go(&self) {
        for (steps, outcomes, then) in std::mem::take(&mut *self.held.lock()) {
            then(steps, Ok(outcomes));
        }
    }

    /// Calls with steps, by how many they have.
    fn sizes(&self) -> Vec<usize> {
        self.calls.lock().iter().map(Vec::len).filter(|count| *count > 0).collect()
    }

    fn last_call(&self) -> Vec<Op> {
        self.calls.lock().iter().rev().find(|call| !call.is_empty()).cloned().unwrap_or_default()
    }

    fn level(&self, rules: &Rules, bucket: &str) -> u64 {
        let terms = Terms { rules, now: self.clock.store_time().0, shares: 1 };
        self.table.lock().bucket(terms, bucket).unwrap().level / chatgateway_core::limiter::UNIT
    }
}

impl Store for Fake {
    fn call(&self, session: &SessionKey, request: Request) -> Call {
        self.sessions.call(session, request)
    }

    fn connection(&self, _session: &SessionKey) -> u64 {
        0
    }

    fn sessions(&self) -> Option<u64> {
        None
    }

    fn name(&self) -> &'static str {
        "Fake"
    }

    fn trouble(&self) -> Option<String> {
        None
    }

    fn counts(&self) -> Vec<Count> {
        Vec::new()
    }

    fn peers(&self) -> Option<&dyn Peers> {
        None
    }

    fn limits(&self) -> Option<&dyn Limits> {
        Some(self)
    }
}

impl Limits for Fake {
    fn decide(&self, _gateway: &str, rules: &Rules, steps: Vec<Op>, then: Decided) {
        self.calls.lock().push(steps.clone());
        let mood = *self.mood.lock();
        if mood == Mood::Fails {
            return then(steps, Err(StoreError::Unavailable("it is away".into())));
        }
        let terms = Terms { rules, now: self.clock.store_time().0, shares: 1 };
        let outcomes = {
            let mut table = self.table.lock();
            steps.iter().map(|step| table.execute(terms, step)).collect()
        };
        if mood == Mood::Answers {
            then(steps, Ok(outcomes));
        } else {
            self.held.lock().push((steps, outcomes, then));
        }
    }
}

fn settings(limits: &str) -> Settings {
    Settings::parse(&format!("rateLimits: {limits}")).unwrap()
}

fn limiter(limits: &str) -> (Arc<Limiter>, Arc<Fake>) {
    let fake = Fake::new();
    let store: Arc<dyn Store> = fake.clone();
    (Limiter::new(&settings(limits), &store, LimitCounts::default()), fake)
}

fn caller() -> Caller {
    Caller::anonymous(IpAddr::from([127, 0, 0, 1]))
}

async fn turn(limiter: &Arc<Limiter>, name: &str) -> Result<Admission, Refusal> {
    let session = caller().key(&SessionId::parse("s").unwrap());
    limiter.turn(&caller(), &session, &TurnId::parse(name).unwrap(), &TurnBody::new("hello".into(), "".into())).await
}

/// A turn that is admitted, and accepted.
async fn accepted(limiter: &Arc<Limiter>, name: &str) -> bool {
    match turn(limiter, name).await {
        Ok(admission) => {
            admission.ticket.into_iter().for_each(Ticket::keep);
            true
        }
        Err(refusal) => {
            assert_eq!(refusal.code, ErrorCode::RateLimited, "{refusal}");
            false
        }
    }
}

async fn how_many(limiter: &Arc<Limiter>, kind: &str) -> usize {
    let mut admitted = 0;
    for n in 0..100 {
        admitted += usize::from(accepted(limiter, &format!("{kind}{n}")).await);
    }
    admitted
}

fn spawned(limiter: &Arc<Limiter>, name: String) -> JoinHandle<bool> {
    let limiter = limiter.clone();
    tokio::spawn(async move { accepted(&limiter, &name).await })
}

/// Lets other tasks run, without time passing.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

const TEN: &str = "[{per: Gateway, requestsPerMinute: 60, burst: 10}]";

#[tokio::test(start_paused = true)]
async fn what_comes_in_while_calls_are_under_way_goes_together() {
    let (limiter, fake) = limiter("[{per: Gateway, requestsPerMinute: 60, burst: 1000}]");
    fake.be(Mood::Hesitates);
    let mut waiting: Vec<_> = (0..20).map(|n| spawned(&limiter, format!("a{n}"))).collect();
    settle().await;
    assert_eq!(fake.sizes(), [1], "the others wait for it");
    waiting.extend((0..200).map(|n| spawned(&limiter, format!("b{n}"))));
    settle().await;
    assert_eq!(fake.sizes(), [1, LIMIT_CALL_FULL, LIMIT_CALL_FULL, LIMIT_CALL_FULL], "or for enough of them");
    fake.be(Mood::Answers);
    for one in waiting {
        assert!(one.await.unwrap());
    }
    assert_eq!(fake.sizes().iter().sum::<usize>(), 220);
    assert!(fake.sizes().len() <= 6, "{:?}", fake.sizes());
}

#[tokio::test(start_paused = true)]
async fn who_hears_nothing_in_time_takes_its_share_of_what_it_last_knew() {
    let (limiter, fake) = limiter(TEN);
    limiter.set_pods(2);
    for n in 0..4 {
        assert!(accepted(&limiter, &format!("n{n}")).await);
    }
    fake.be(Mood::Hesitates);
    let began = tokio::time::Instant::now();
    assert!(accepted(&limiter, "first").await);
    assert_eq!(began.elapsed(), LIMIT_DECISION_TIMEOUT);
    assert_eq!(how_many(&limiter, "more").await, 2, "three of the six that were left, and of two pods");
    assert_eq!(began.elapsed(), LIMIT_DECISION_TIMEOUT, "nobody else waited");
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(how_many(&limiter, "later").await, 2, "half of what came in");
    assert!(limiter.counts.local.get() > 200 && limiter.counts.failures.get() >= 1);
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_came_too_late_is_taken_back() {
    let (limiter, fake) = limiter(TEN);
    fake.be(Mood::Hesitates);
    assert!(accepted(&limiter, "late").await);
    assert_eq!(fake.level(&limiter.set.load().rules, "gr"), 9);
    fake.be(Mood::Answers);
    settle().await;
    let calls = fake.calls.lock().concat();
    let undone = calls.iter().any(|op| matches!(op, Op::Undo { buckets, .. } if buckets.len() == 1));
    assert!(undone, "{calls:?}");
    let owed = calls.iter().filter(|op| matches!(op, Op::Owe { .. })).count();
    assert_eq!(owed, 1, "what was admitted here meanwhile is told");
    assert_eq!(fake.level(&limiter.set.load().rules, "gr"), 9);
}

#[tokio::test(start_paused = true)]
async fn when_the_store_is_back_it_decides_and_hears_what_was_spent() {
    let (limiter, fake) = limiter(TEN);
    fake.be(Mood::Fails);
    limiter.set_pods(2);
    assert_eq!(how_many(&limiter, "alone").await, 5);
    fake.be(Mood::Answers);
    // Until it is asked again, nobody knows.
    tokio::time::advance(LIMIT_PROBE_INTERVAL).await;
    assert!(!accepted(&limiter, "probing").await);
    let [Op::Owe { units, .. }] = fake.last_call()[..] else { panic!("{:?}", fake.last_call()) };
    let tenths = 10 * units / chatgateway_core::limiter::UNIT;
    assert_eq!(tenths, 49, "five, but for what has come in since");
    assert_eq!(how_many(&limiter, "shared").await, 5);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_not_asked_by_everybody() {
    let (limiter, fake) = limiter(TEN);
    fake.be(Mood::Fails);
    how_many(&limiter, "a").await;
    assert_eq!(fake.calls.lock().len(), 2, "the first decision, and one question");
    tokio::time::advance(LIMIT_PROBE_INTERVAL).await;
    how_many(&limiter, "b").await;
    assert_eq!(fake.calls.lock().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn each_limit_says_what_counts_without_the_store() {
    let (open, fake) = limiter("[{per: Gateway, requestsPerMinute: 60, burst: 10, onStoreFailure: Open}]");
    fake.be(Mood::Fails);
    assert_eq!(how_many(&open, "a").await, 100);
    assert!(turn(&open, "x").await.unwrap().standings.is_none(), "nobody knows");
    let (closed, fake) = limiter(
        "[{per: Gateway, requestsPerMinute: 60, burst: 10, onStoreFailure: Open}, \
          {per: User, requestsPerMinute: 60, burst: 10, onStoreFailure: Closed}]",
    );
    fake.be(Mood::Fails);
    let refusal = turn(&closed, "x").await.unwrap_err();
    assert_eq!((refusal.code, refusal.retry_after_ms), (ErrorCode::StoreUnavailable, Some(1_000)));
    let (both, fake) = limiter(
        "[{per: Gateway, requestsPerMinute: 60, burst: 3, onStoreFailure: Open}, \
          {per: User, requestsPerMinute: 60, burst: 10, onStoreFailure: LocalShare}]",
    );
    fake.be(Mood::Fails);
    assert_eq!(how_many(&both, "a").await, 10);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_before_the_decision_has_taken_nothing() {
    let (limiter, fake) = limiter(TEN);
    fake.be(Mood::Hesitates);
    let leaving = spawned(&limiter, "left".into());
    settle().await;
    leaving.abort();
    settle().await;
    fake.be(Mood::Answers);
    settle().await;
    assert_eq!(fake.level(&limiter.set.load().rules, "gr"), 10);
    assert!(accepted(&limiter, "left").await, "it was not admitted yet");
    assert_eq!(fake.level(&limiter.set.load().rules, "gr"), 9);
}

const TOKENS: &str = "[{per: User, tokensPerMinute: 60, burst: 100}]";

fn account(limiter: &Arc<Limiter>, name: &str) -> Account {
    let session = caller().key(&SessionId::parse("s").unwrap());
    limiter.account(&session, &TurnId::parse(name).unwrap(), &TurnBody::new("hello".into(), "".into())).unwrap()
}

/// What an answer's account says, when it says something.
async fn stops(account: &mut Account) -> Option<String> {
    let mut told = None;
    std::future::poll_fn(|cx| {
        if let std::task::Poll::Ready(message) = account.poll_stop(cx) {
            told = Some(message);
        } else if account.waits() {
            return std::task::Poll::Pending;
        }
        std::task::Poll::Ready(())
    })
    .await;
    told
}

fn user_tokens(limiter: &Limiter, fake: &Fake) -> u64 {
    let rules = &limiter.set.load().rules;
    let bucket = who(&caller(), None).bucket(&rules.0[0]);
    fake.level(rules, &bucket)
}

#[tokio::test(start_paused = true)]
async fn an_answer_takes_more_while_there_is_some_and_settles_at_its_end() {
    let (limiter, fake) = limiter(TOKENS);
    assert!(accepted(&limiter, "t").await);
    assert_eq!(user_tokens(&limiter, &fake), 73, "two of the prompt and a quarter of the bucket");
    let mut account = account(&limiter, "t");
    let mut pieces = 0;
    let message = loop {
        account.text(4);
        pieces += 1;
        if let Some(message) = stops(&mut account).await {
            break message;
        }
        assert!(pieces < 200);
    };
    assert_eq!(pieces, 96, "95 and the one that was too much: three more were not there");
    assert!(message.contains("the limit on tokens"), "{message}");
    account.end(chatgateway_core::log::Usage { prompt_tokens: 10, completion_tokens: 30, total_tokens: 40 });
    drop(account);
    assert_eq!(user_tokens(&limiter, &fake), 60);
    assert_eq!(limiter.counts.stopped.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_pod_goes_on_with_what_a_turn_took() {
    let (limiter, fake) = limiter(TOKENS);
    let store: Arc<dyn Store> = fake.clone();
    let other = Limiter::new(&settings(TOKENS), &store, LimitCounts::default());
    assert!(accepted(&limiter, "t").await);
    let mut first = account(&limiter, "t");
    for _ in 0..40 {
        first.text(4);
        assert_eq!(stops(&mut first).await, None);
    }
    first.leave();
    let left = user_tokens(&limiter, &fake);
    let mut second = account(&other, "t");
    // It was told again what was said before, and the same is taken once.
    for _ in 0..40 {
        second.text(4);
        assert_eq!(stops(&mut second).await, None);
    }
    assert_eq!(user_tokens(&limiter, &fake), left);
    drop(second);
    assert_eq!(user_tokens(&limiter, &fake), 58);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_stops_no_answer() {
    let (limiter, fake) = limiter(TOKENS);
    assert!(accepted(&limiter, "t").await);
    fake.be(Mood::Fails);
    let mut account = account(&limiter, "t");
    for _ in 0..500 {
        account.text(4);
        assert_eq!(stops(&mut account).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_that_a_pod_took_alone_are_settled_there() {
    let (limiter, fake) = limiter(TOKENS);
    fake.be(Mood::Fails);
    limiter.set_pods(2);
    assert!(accepted(&limiter, "a").await);
    assert!(!accepted(&limiter, "b").await, "of its fifty 27 are taken");
    let mut first = account(&limiter, "a");
    first.text(4);
    drop(first);
    assert!(accepted(&limiter, "b").await, "24 came back");
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_missed_for_a_moment_still_count() {
    let (limiter, fake) = limiter(TEN);
    fake.be(Mood::Fails);
    limiter.set_pods(5);
    limiter.set_pods(1);
    assert_eq!(how_many(&limiter, "a").await, 2);
    for _ in 0..10 {
        limiter.set_pods(1);
    }
    assert_eq!(how_many(&limiter, "b").await, 0, "what is left is the same part of it");
    tokio::time::advance(Duration::from_secs(3)).await;
    assert_eq!(how_many(&limiter, "c").await, 3);
}
