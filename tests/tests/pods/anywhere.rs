//! Clients on another pod than the one that runs the turn.

use chatgateway_tests::client::{GrpcChat, HttpClient};
use serde_json::json;

use crate::support::{Pods, entries, read, read_all};

#[tokio::test]
async fn every_transport_follows_a_turn_that_runs_elsewhere() {
    let pods = Pods::start(3, false).await;
    let mut sender = pods.connect(0).await;
    sender.send("s", "t", "hello").await.unwrap();
    let begun = read(&mut sender, "t", 1).await;
    let position = begun.ids()[0].to_owned();

    let mut ws = pods.connect(1).await;
    ws.resume("s", "0").await.unwrap();
    let mut grpc = GrpcChat::connect(pods.pods[2].grpc()).await.unwrap();
    grpc.resume("s", "0").await.unwrap();
    let http = HttpClient::new(pods.pods[1].http());
    let mut sse = http.get_sse("/v1/sessions/s/events", Some(&position)).await.unwrap();
    let polled = HttpClient::new(pods.pods[2].http());
    let poll = tokio::spawn(async move { polled.poll_turn("s", "t", "0").await.unwrap() });

    let by_ws = read_all(&mut ws, "t").await;
    let mut rest = begun;
    rest.events.extend(read_all(&mut sender, "t").await.events);
    assert_eq!(rest.answer(), pods.answer(200));
    assert_eq!(entries(&by_ws), entries(&rest));
    let mut by_grpc = chatgateway_tests::client::Turn::default();
    while !by_grpc.add(grpc.next().await.unwrap(), "t") {}
    assert_eq!(entries(&by_grpc), entries(&rest));
    assert_eq!(entries(&poll.await.unwrap()), entries(&rest));
    let mut by_sse = Vec::new();
    while by_sse.last() != rest.events.last() {
        let event = sse.next().await.unwrap().unwrap();
        if event.id.is_some() && event.data.len() > 2 {
            by_sse.push(event.json().unwrap());
        }
    }
    assert_eq!(by_sse, entries(&rest)[1..]);
    assert_eq!(pods.simulator.calls().count, 1);
    let metrics = HttpClient::new(pods.pods[0].admin()).get("/metrics").await.unwrap().text();
    assert!(metrics.contains("chatgateway_store_reachable 1"), "{metrics}");
    assert!(metrics.contains("chatgateway_store_connections_total 1"), "{metrics}");
    // One connection a pod for hearing others, whatever is followed.
    let tails = pods.redis.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
    assert_eq!(tails.lines().filter(|line| line.contains("id=")).count(), 3, "{tails}");
}

#[tokio::test]
async fn followers_hear_of_text_at_once_and_not_only_when_they_look() {
    let pods = Pods::start(2, false).await;
    let mut sender = pods.connect(0).await;
    let mut follower = pods.connect(1).await;
    sender.send("s", "t", "hello").await.unwrap();
    read(&mut sender, "t", 5).await;
    follower.resume("s", "0").await.unwrap();
    read(&mut follower, "t", 10).await;
    let looked = pods.calls("xrange");
    let seen = read_all(&mut follower, "t").await;
    assert!(seen.kinds().iter().filter(|kind| **kind == "delta").count() > 100);
    assert!(pods.calls("xrange") - looked <= 5, "{} reads while following", pods.calls("xrange") - looked);
}

#[tokio::test]
async fn a_second_device_sends_on_another_pod_and_both_see_both_turns() {
    let pods = Pods::start(2, false).await;
    let mut first = pods.connect(0).await;
    let mut second = pods.connect(1).await;
    first.send("s", "one", "hello").await.unwrap();
    read(&mut first, "one", 3).await;
    second.send("s", "two", "and").await.unwrap();
    let accepted = second.next_of("accepted").await.unwrap();
    assert_eq!((accepted.field("state"), &accepted.0["place"]), ("queued", &json!(1)));
    let (at_first, at_second) = (read_all(&mut first, "two").await, read_all(&mut second, "two").await);
    assert_eq!(at_first.answer(), pods.answer(200));
    assert_eq!(entries(&at_first), entries(&at_second));
    // And the other way round, now that the first session is idle.
    second.send("s", "three", "more").await.unwrap();
    assert_eq!(entries(&read_all(&mut first, "three").await), entries(&read_all(&mut second, "three").await));
}

#[tokio::test]
async fn a_turn_is_cancelled_from_another_pod() {
    let pods = Pods::start(2, false).await;
    let mut sender = pods.connect(0).await;
    sender.send("s", "t", "hello").await.unwrap();
    read(&mut sender, "t", 3).await;
    let other = HttpClient::new(pods.pods[1].http());
    let reply = other.post("/v1/sessions/s/turns/t/cancel", &json!({})).await.unwrap();
    assert_eq!(reply.status, 202);
    let asked = std::time::Instant::now();
    let seen = read_all(&mut sender, "t").await;
    assert_eq!(seen.end().unwrap().kind(), "cancelled");
    assert!(asked.elapsed().as_millis() < 1_000, "told by a notice, not found out by the next check");
    pods.simulator.wait_for("the call to be cancelled", |calls| calls.cancelled == 1).await.unwrap();
}

#[tokio::test]
async fn a_repeat_on_another_pod_attaches_and_asks_no_model() {
    let pods = Pods::start(2, false).await;
    let mut sender = pods.connect(0).await;
    sender.send("s", "t", "hello").await.unwrap();
    read(&mut sender, "t", 3).await;
    // While it runs, as a stream; and again after its end, in every form.
    let mut again = pods.connect(1).await;
    again.send("s", "t", "hello").await.unwrap();
    let accepted = again.next_of("accepted").await.unwrap();
    assert_eq!((&accepted.0["duplicate"], accepted.field("state")), (&json!(true), "running"));
    assert_eq!(read_all(&mut again, "t").await.answer(), pods.answer(200));
    let http = HttpClient::new(pods.pods[1].http());
    let json = http.post("/v1/sessions/s/turns", &json!({"turn": "t", "text": "hello"})).await.unwrap().json().unwrap();
    assert_eq!((json["text"].as_str(), &json["duplicate"]), (Some(pods.answer(200).as_str()), &json!(true)));
    assert_eq!(http.ask_sse("s", "t", "hello").await.unwrap().answer(), pods.answer(200));
    let mut grpc = GrpcChat::connect(pods.pods[1].grpc()).await.unwrap();
    assert_eq!(grpc.ask("s", "t", "hello").await.unwrap().answer(), pods.answer(200));
    let conflict = http.post("/v1/sessions/s/turns", &json!({"turn": "t", "text": "other"})).await.unwrap();
    assert_eq!(conflict.status, 409);
    assert_eq!(pods.simulator.calls().count, 1);
}

#[tokio::test]
async fn a_session_deleted_on_another_pod_is_gone_here() {
    let pods = Pods::start(2, false).await;
    let mut sender = pods.connect(0).await;
    sender.send("s", "t", "hello").await.unwrap();
    read(&mut sender, "t", 3).await;
    let other = HttpClient::new(pods.pods[1].http());
    assert_eq!(other.delete("/v1/sessions/s").await.unwrap().status, 204);
    let seen = read_all(&mut sender, "t").await;
    assert_eq!(seen.end().unwrap().field("code"), "not_found");
    pods.simulator.wait_for("the call to be given up", |calls| calls.cancelled == 1).await.unwrap();
}
