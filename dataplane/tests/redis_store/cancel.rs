//! Calls whose futures are dropped at any moment: no reply ever reaches another call.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use chatgateway_config::RedisMode;
use chatgateway_core::log::*;
use chatgateway_redis_server::{Options, RedisServer};
use futures_util::{FutureExt, future::join_all};
use rand::RngExt;
use tokio::task::yield_now;

use chatgateway_dataplane::store::{Answer, Store};

use crate::{
    settings::{connected, settings},
    support::*,
};

const SESSIONS: usize = 64;
const OPERATIONS: u64 = 200_000;

/// Whether an answer is this session's: all of its text is its key.
fn is_of(session: &Session, request: &Request, reply: &Reply) -> bool {
    let own = |text: &str| text == session.key.as_str();
    match (request, reply) {
        (Request::Read { .. }, Reply::Read(page)) => {
            page.entries.iter().any(|e| matches!(&e.kind, EntryKind::Turn { text, .. } if own(text)))
        }
        (Request::Snapshot, Reply::Snapshot(snapshot)) => snapshot.turns.iter().all(|turn| own(&turn.text)),
        (Request::Append(_), Reply::Append(_)) => true,
        (Request::Check(_), Reply::Check(check)) => check.mine,
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_calls_shift_no_replies() {
    let server = RedisServer::start(Options::default()).unwrap();
    let (store, _events) = connected(&settings(RedisMode::Standalone, &[server.endpoint()]), POD).await;
    let (begun, answered, dropped) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let work = (0..SESSIONS).map(|_| {
        let s = Session::new(&store);
        let (begun, answered, dropped) = (&begun, &answered, &dropped);
        async move {
            let own = s.own("a").await;
            let mut n = 0;
            while begun.fetch_add(1, Relaxed) < OPERATIONS {
                let request = match rand::rng().random_range(0..10) {
                    0 => Request::Snapshot,
                    1 => check(&own),
                    2 | 3 => Request::Read { after: EntryId::ZERO, count: 2 },
                    _ => {
                        n += 1;
                        append(&own, n)
                    }
                };
                let patience = rand::rng().random_range(0..8);
                match polled(s.store.call(&s.key, request.clone()), patience).await {
                    Some(answer) => {
                        let reply = answer.result.unwrap();
                        assert!(is_of(&s, &request, &reply), "{request:?} was answered {reply:?}");
                        answered.fetch_add(1, Relaxed);
                    }
                    None => drop(dropped.fetch_add(1, Relaxed)),
                }
            }
        }
    });
    join_all(work).await;
    let (answered, dropped) = (answered.into_inner(), dropped.into_inner());
    assert_eq!(answered + dropped, OPERATIONS);
    assert!(answered > OPERATIONS / 20 && dropped > OPERATIONS / 20, "{answered} answered, {dropped} dropped");
    assert_eq!(store.stats().connections, 1);
}

/// Polls a call some times, or to its end, and drops it then.
async fn polled(call: impl Future<Output = Answer>, times: u32) -> Option<Answer> {
    let mut call = std::pin::pin!(call);
    if times == 7 {
        return Some(call.await);
    }
    for _ in 0..times {
        if let Some(answer) = call.as_mut().now_or_never() {
            return Some(answer);
        }
        yield_now().await;
    }
    None
}

/// CPU time of this process.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<u64> =
        stat.rsplit_once(") ").unwrap().1.split(' ').map(|field| field.parse().unwrap_or(0)).collect();
    // User and system time, in ticks of 10 ms.
    Duration::from_millis(10 * (fields[11] + fields[12]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: run it alone, with --nocapture"]
async fn what_an_append_costs() {
    let server = RedisServer::start(Options::default()).unwrap();
    let (store, _events) = connected(&settings(RedisMode::Standalone, &[server.endpoint()]), POD).await;
    let sessions = join_all((0..300).map(|_| async {
        let s = Session::new(&store);
        let own = s.own("a").await;
        (s, own)
    }))
    .await;
    let (start, cpu, stats) = (Instant::now(), cpu_time(), store.stats());
    let tasks = sessions.into_iter().map(|(s, own)| {
        tokio::spawn(async move {
            let mut n = 0;
            while start.elapsed() < Duration::from_secs(10) {
                n += 1;
                assert_eq!(s.call(append(&own, n)).await, Ok(Reply::Append(true)));
            }
            n
        })
    });
    let count: u64 = join_all(tasks).await.into_iter().map(Result::unwrap).sum();
    let (took, cpu) = (start.elapsed(), cpu_time() - cpu);
    let pipelines = store.stats().pipelines - stats.pipelines;
    println!(
        "{count} appends, {:.0}/s, {:.2} µs of this process' CPU each, {:.1} in a pipeline",
        count as f64 / took.as_secs_f64(),
        cpu.as_micros() as f64 / count as f64,
        count as f64 / pipelines as f64,
    );
}
