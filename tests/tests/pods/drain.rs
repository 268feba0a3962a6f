//! Pods that go away while answers run.

use std::time::{Duration, Instant};

use chatgateway_tests::client::{HttpClient, Incoming};
use serde_json::json;

use crate::support::{Pods, entries, read, read_all};

#[tokio::test]
async fn a_drained_pod_finishes_its_answers_while_their_clients_read_on_elsewhere() {
    let mut pods = Pods::start(2, false).await;
    let mut sender = pods.connect(0).await;
    sender.send("s", "t", "hello").await.unwrap();
    let mut whole = read(&mut sender, "t", 20).await;
    pods.pods[0].terminate().unwrap();
    // It reads on until it has its new connection, as a client should.
    let away = loop {
        let event = sender.next().await.unwrap();
        if event.kind() == "go_away" {
            break event;
        }
        whole.events.push(event);
    };
    assert!(away.0["reconnect_after_ms"].as_u64().unwrap() <= 500);
    sender.send("s", "next", "no").await.unwrap();
    let refused = loop {
        let event = sender.next().await.unwrap();
        if event.kind() == "error" {
            break event;
        }
        whole.events.push(event);
    };
    assert_eq!(refused.field("code"), "draining");
    let mut follower = pods.connect(1).await;
    follower.resume("s", whole.ids().last().unwrap()).await.unwrap();
    assert_eq!(follower.next_of("resumed").await.unwrap().0["recovered"], json!(true));
    whole.events.extend(read_all(&mut follower, "t").await.events);
    assert_eq!(whole.answer(), pods.answer(200));
    assert!(!whole.kinds().contains(&"takeover"), "nothing had to be asked twice");
    let exit = pods.pods[0].process().wait(Duration::from_secs(10)).await.unwrap();
    assert_eq!(exit.code(), Some(0));
    assert_eq!(pods.simulator.calls().count, 1);
}

#[tokio::test]
async fn answers_that_outlast_the_drain_are_handed_over() {
    let mut pods =
        Pods::start_with(3, true, 1_500, json!({"acceptFloor": "0s", "reconnectSpread": "100ms", "timeout": "3s"}))
            .await;
    let mut senders = Vec::new();
    for n in 0..10 {
        let mut sender = pods.connect(0).await;
        sender.send(&format!("s{n}"), "t", "hello").await.unwrap();
        read(&mut sender, "t", 5).await;
        senders.push(sender);
    }
    let started = Instant::now();
    let admin = HttpClient::new(pods.pods[0].admin());
    assert_eq!(admin.post("/drain", &json!({})).await.unwrap().status, 202);
    let exit = pods.pods[0].process().wait(Duration::from_secs(6)).await.unwrap();
    assert_eq!(exit.code(), Some(0));
    assert!(started.elapsed() < Duration::from_millis(3_500), "{:?}", started.elapsed());
    for n in 0..10 {
        let mut later = pods.connect(1 + n % 2).await;
        later.resume(&format!("s{n}"), "0").await.unwrap();
        let seen = read_all(&mut later, "t").await;
        assert_eq!(seen.answer(), pods.answer(1_500));
        assert!(seen.kinds().contains(&"takeover"));
    }
}

#[tokio::test]
async fn what_waits_on_a_draining_pod_runs_elsewhere() {
    let mut pods = Pods::start(2, false).await;
    let mut sender = pods.connect(0).await;
    sender.send("s", "one", "hello").await.unwrap();
    sender.send("s", "two", "hello").await.unwrap();
    read(&mut sender, "one", 5).await;
    let mut follower = pods.connect(1).await;
    follower.resume("s", "0").await.unwrap();
    pods.pods[0].terminate().unwrap();
    let one = read_all(&mut follower, "one").await;
    assert!(!one.kinds().contains(&"takeover"));
    let two = read_all(&mut follower, "two").await;
    assert_eq!((one.answer(), two.answer()), (pods.answer(200), pods.answer(200)));
    let exit = pods.pods[0].process().wait(Duration::from_secs(10)).await.unwrap();
    assert_eq!(exit.code(), Some(0));
}

#[tokio::test]
async fn the_last_pod_finishes_and_an_idle_one_leaves_at_once() {
    let mut pods = Pods::start(1, false).await;
    let mut sender = pods.connect(0).await;
    sender.send("s", "t", "hello").await.unwrap();
    let mut whole = read(&mut sender, "t", 5).await;
    pods.pods[0].terminate().unwrap();
    loop {
        match sender.incoming().await.unwrap() {
            Incoming::Text(text) => {
                whole.events.push(chatgateway_tests::client::Event(serde_json::from_str(&text).unwrap()))
            }
            Incoming::Closed(closed) => {
                assert_eq!(closed.code, 1012);
                break;
            }
        }
    }
    whole.events.retain(|event| event.kind() != "go_away");
    assert_eq!(whole.answer(), pods.answer(200));
    assert_eq!(entries(&whole).last().unwrap().kind(), "done");
    assert_eq!(pods.pods[0].process().wait(Duration::from_secs(10)).await.unwrap().code(), Some(0));

    pods.pods.clear();
    let idle = pods.add().await;
    idle.terminate().unwrap();
    let asked = Instant::now();
    assert_eq!(idle.process().wait(Duration::from_secs(5)).await.unwrap().code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
}
