//! Sessions as resources.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::json;

use crate::support::{Server, ask, demo_answer, slow, text_of};

#[tokio::test(start_paused = true)]
async fn a_session_shows_its_history_and_where_its_log_goes_on() {
    let server = Server::quick();
    server.turn("s", "t1", "one").await;
    let second = server.turn("s", "t2", "two").await;
    let answer = server.get("/v1/sessions/s").await;
    assert_eq!(answer.header("cache-control"), "no-store");
    let snapshot = answer.json(StatusCode::OK).await;
    assert_eq!(
        snapshot,
        json!({"session": "s", "position": second["position"], "turns": [
            {"turn": "t1", "seq": 1, "state": "done", "text": "one", "answer": demo_answer("one")},
            {"turn": "t2", "seq": 2, "state": "done", "text": "two", "answer": demo_answer("two")},
        ]})
    );
}

#[tokio::test(start_paused = true)]
async fn the_running_turn_is_in_the_snapshot_and_the_log_tells_the_rest_from_its_position() {
    let server = Server::new(slow());
    let mut stream = server.turn_stream("s", "t", "much").await;
    stream.until("delta").await;
    let snapshot = server.get("/v1/sessions/s").await.json(StatusCode::OK).await;
    assert_eq!(snapshot["turns"], json!([{"turn": "t", "seq": 1, "state": "running", "text": "much", "answer": ""}]));
    let position = snapshot["position"].as_str().unwrap();
    let resumed = server.events("s", position).await.until("done").await;
    let answer = server.turn("s", "t", "much").await;
    assert_eq!(text_of(&resumed), answer["text"].as_str().unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_nobody_knows_is_not_found() {
    let server = Server::quick();
    assert_eq!(server.get("/v1/sessions/nobody").await.problem(404, "not_found").await["session"], "nobody");
    server.cancel("nobody", "t").await.problem(404, "not_found").await;
    server.turn("s", "t", "hello").await;
    let problem = server.cancel("s", "other").await.problem(404, "not_found").await;
    assert_eq!(problem["turn"], "other");
}

#[tokio::test(start_paused = true)]
async fn cancelling_tells_where_the_turn_stands() {
    let server = Server::new(slow());
    server.turn_stream("s", "t1", "one").await.until("delta").await;
    server.turn_stream("s", "t2", "two").await.expect("").await;
    let queued = server.cancel("s", "t2").await.json(StatusCode::ACCEPTED).await;
    assert_eq!(queued, json!({"turn": "t2", "state": "queued"}));
    assert_eq!(server.cancel("s", "t1").await.json(StatusCode::ACCEPTED).await["state"], "running");
    let both = server.events("s", "0").await.until("cancelled").await;
    assert_eq!(both.last().unwrap().json()["turn"], "t1");
    // The one that waited is told in order, with its text and its end.
    let rest = server.events("s", both.last().unwrap().id.as_deref().unwrap()).await.until("cancelled").await;
    let kinds: Vec<_> = rest.iter().map(|e| e.event.as_str()).filter(|e| !e.is_empty()).collect();
    assert_eq!(kinds, ["turn", "cancelled"]);

    let server = Server::quick();
    server.turn("s", "t", "hello").await;
    assert_eq!(server.cancel("s", "t").await.json(StatusCode::ACCEPTED).await["state"], "done");
}

#[tokio::test(start_paused = true)]
async fn deleting_is_always_fine_and_ids_only_grow() {
    let server = Server::quick();
    assert_eq!(server.delete("never-was").await, StatusCode::NO_CONTENT);
    let before = server.turn("s", "t", "hello").await;
    assert_eq!(server.delete("s").await, StatusCode::NO_CONTENT);
    assert_eq!(server.delete("s").await, StatusCode::NO_CONTENT);
    server.get("/v1/sessions/s").await.problem(404, "not_found").await;
    // Turns of the deleted session are known as such.
    let again = server.post("/v1/sessions/s/turns", json!({"turn": "t", "text": "hello"})).await;
    again.problem(404, "not_found").await;
    let after = server.turn("s", "t2", "hello").await;
    let epoch = |answer: &serde_json::Value| -> u64 {
        answer["id"].as_str().unwrap().split_once('-').unwrap().0.parse().unwrap()
    };
    assert!(epoch(&after) > epoch(&before));
    assert_eq!(after["seq"], 1);
}

#[tokio::test(start_paused = true)]
async fn ids_are_bytes_whatever_they_are_made_of() {
    let server = Server::quick();
    let long = "x".repeat(256);
    let names = [
        ("a%2Fb", "a/b"),
        ("%2F", "/"),
        ("Gr%C3%BC%C3%9Fe", "Grüße"),
        ("a%20b", "a b"),
        ("a+b", "a+b"),
        ("%25", "%"),
        ("a%252Fb", "a%2Fb"),
        ("%7B%7D%3F%23", "{}?#"),
        ("...", "..."),
        (&long, &long),
    ];
    for (path, name) in names {
        let answer = server.turn(path, "t", name).await;
        assert_eq!((&answer["session"], &answer["seq"]), (&json!(name), &json!(1)));
        let snapshot = server.get(&format!("/v1/sessions/{path}")).await.json(StatusCode::OK).await;
        assert_eq!((&snapshot["session"], &snapshot["turns"][0]["text"]), (&json!(name), &json!(name)));
        assert_eq!(server.poll(path, "0", "0").await["position"], answer["position"]);
    }
    let too_long = "x".repeat(257);
    for wrong in ["%2E", "%2E%2E", "a%0Ab", "%00", "%C3%28", "%FF", &too_long] {
        server.get(&format!("/v1/sessions/{wrong}")).await.problem(400, "invalid_request").await;
    }
    // Sessions do not see each other, however alike their names.
    let other = server.get("/v1/sessions/A%2Fb").await;
    other.problem(404, "not_found").await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_session_is_an_unknown_one() {
    let server = Server::quick();
    let answer = server.turn("s", "t", "hello").await;
    tokio::time::advance(Duration::from_secs(901)).await;
    server.get("/v1/sessions/s").await.problem(404, "not_found").await;
    let path = format!("/v1/sessions/s/events?after={}", answer["position"].as_str().unwrap());
    server.get(&path).await.problem(410, "not_resumable").await;
    let head = server.send(ask(Method::HEAD, "/v1/sessions/s").body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!(head.status, StatusCode::NOT_FOUND);
}
