//! The pod that runs a turn dies, sleeps, or loses its way to the store.

use std::time::{Duration, Instant};

use chatgateway_tests::client::Incoming;
use nix::sys::signal::Signal;

use crate::support::{Pods, entries, read, read_all};

/// A lease, a second, and what a busy machine adds.
const BOUND: Duration = Duration::from_secs(4 + 1 + 2);

async fn killed(prefill: bool) {
    let mut pods = Pods::start_with(2, prefill, 600, serde_json::json!({})).await;
    let mut sender = pods.connect(0).await;
    sender.send("s", "t", "hello").await.unwrap();
    let before = read(&mut sender, "t", 50).await;
    let position = (*before.ids().last().unwrap()).to_owned();

    pods.pods[0].process().signal(Signal::SIGKILL).unwrap();
    let died = Instant::now();
    let mut follower = pods.connect(1).await;
    follower.resume("s", &position).await.unwrap();
    let resumed = follower.next_of("resumed").await.unwrap();
    assert_eq!((&resumed.0["recovered"], resumed.field("position")), (&true.into(), position.as_str()));
    let takeover = follower.next_of("takeover").await.unwrap();
    assert!(died.elapsed() < BOUND, "{:?}", died.elapsed());
    let after = read_all(&mut follower, "t").await;
    let mut whole = before;
    whole.events.push(takeover);
    whole.events.extend(after.events);
    assert_eq!(whole.answer(), pods.answer(600));
    assert_eq!(whole.kinds().contains(&"reset"), !prefill);
    assert_eq!(whole.end().unwrap().kind(), "done");
    // The log says the same to somebody who reads it afterwards.
    let mut later = pods.connect(1).await;
    later.resume("s", "0").await.unwrap();
    assert_eq!(entries(&read_all(&mut later, "t").await), entries(&whole));
}

#[tokio::test]
async fn a_killed_pods_answer_is_continued() {
    killed(true).await;
}

#[tokio::test]
async fn a_killed_pods_answer_is_told_anew_where_the_model_cannot_continue() {
    killed(false).await;
}

#[tokio::test]
async fn a_killed_pods_answer_ends_although_nobody_reads_it() {
    let mut pods = Pods::start_with(2, true, 100, serde_json::json!({})).await;
    let mut sender = pods.connect(0).await;
    sender.send("s", "t", "hello").await.unwrap();
    sender.send("s", "waits", "hello").await.unwrap();
    read(&mut sender, "t", 20).await;
    pods.pods[0].process().signal(Signal::SIGKILL).unwrap();
    // Nobody asks for the session. Two calls end: the continued one, and the one that waited.
    pods.simulator.wait_for("both answers", |calls| calls.completed == 2).await.unwrap();
    let mut later = pods.connect(1).await;
    later.resume("s", "0").await.unwrap();
    assert_eq!(read_all(&mut later, "t").await.answer(), pods.answer(100));
    assert_eq!(read_all(&mut later, "waits").await.answer(), pods.answer(100));
}

#[tokio::test]
async fn a_pod_that_slept_writes_nothing_stale_and_sends_its_clients_away() {
    let mut pods = Pods::start_with(2, true, 1_500, serde_json::json!({})).await;
    let mut sender = pods.connect(0).await;
    sender.send("s", "t", "hello").await.unwrap();
    let before = read(&mut sender, "t", 20).await;
    let position = (*before.ids().last().unwrap()).to_owned();
    pods.pods[0].process().signal(Signal::SIGSTOP).unwrap();

    let mut follower = pods.connect(1).await;
    follower.resume("s", &position).await.unwrap();
    let takeover = follower.next_of("takeover").await.unwrap();
    let epoch = |id: &str| id.split('-').next().unwrap().to_owned();
    let (old, new) = (epoch(&position), epoch(takeover.id().unwrap()));
    assert_ne!(old, new);
    read(&mut follower, "t", 10).await;
    pods.pods[0].process().signal(Signal::SIGCONT).unwrap();
    let code = loop {
        if let Incoming::Closed(closed) = sender.incoming().await.unwrap() {
            break closed.code;
        }
    };
    assert_eq!(code, 1012, "reconnect");
    let after = read_all(&mut follower, "t").await;
    assert_eq!(after.end().unwrap().kind(), "done");
    let log = pods.redis.cli(&["XRANGE", "log:{default/anonymous/s}", "-", "+"]);
    let ids: Vec<&str> = log.lines().filter(|line| line.contains(&old) || line.contains(&new)).collect();
    let first_new = ids.iter().position(|id| id.contains(&format!("{new}-0"))).unwrap();
    let stale = ids[first_new..].iter().filter(|id| id.trim().starts_with(&format!("{old}-"))).count();
    // The takeover entry names its predecessor; beyond that nothing of the old epoch may follow.
    assert!(stale <= 1, "{ids:?}");
}
