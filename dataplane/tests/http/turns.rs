//! Turns over plain HTTP.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::{
    model::Model,
    support::{Server, demo, demo_answer, kinds, slow, text_of},
};

#[tokio::test(start_paused = true)]
async fn a_turn_is_answered_as_json() {
    let server = Server::quick();
    let answer = server.turn("s", "t1", "hello there").await;
    assert_eq!(answer["session"], "s");
    assert_eq!(answer["turn"], "t1");
    assert_eq!(answer["seq"], 1);
    assert_eq!(answer["text"], demo_answer("hello there"));
    assert_eq!(answer["finish_reason"], "stop");
    assert_eq!(answer["usage"]["prompt_tokens"], 2);
    assert_eq!(answer["duplicate"], false);
    assert_eq!(answer.as_object().unwrap().len(), 9, "{answer}");

    // Its id is that of the entry that ended it, and the log goes on from its position.
    let log = server.poll("s", "0", "0").await;
    let events = log["events"].as_array().unwrap();
    assert_eq!(events.last().unwrap()["type"], "done");
    assert_eq!(events.last().unwrap()["id"], answer["id"]);
    assert_eq!(log["position"], answer["position"]);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_gets_the_same_answer_and_asks_no_model() {
    let server = Server::quick();
    let first = server.turn("s", "t1", "hello").await;
    let mut again = server.turn("s", "t1", "hello").await;
    assert_eq!(again["duplicate"], true);
    again["duplicate"] = false.into();
    assert_eq!(again, first);
    assert_eq!(server.poll("s", "0", "0").await["position"], first["position"]);
}

#[tokio::test(start_paused = true)]
async fn refusals_say_what_is_wrong_and_change_nothing() {
    let server = Server::quick();
    server.turn("s", "t1", "hello").await;
    let post = async |body: Value| server.post("/v1/sessions/s/turns", body).await;

    let conflict = post(json!({"turn": "t1", "text": "other"})).await.problem(409, "turn_conflict").await;
    assert_eq!((&conflict["session"], &conflict["turn"]), (&json!("s"), &json!("t1")));
    assert_eq!(conflict["retryable"], false);

    let gap = post(json!({"turn": "t2", "seq": 3, "text": "x"})).await.problem(409, "seq_gap").await;
    assert_eq!(gap["expected"], 2);

    for (body, names) in [
        (json!({"text": "x"}), "turn"),
        (json!({"turn": "t2"}), "text"),
        (json!({"turn": "t2", "text": ""}), "text"),
        (json!({"turn": "t2", "text": "x", "messages": []}), "messages"),
        (json!({"turn": "t2", "messages": [{"role": "assistant", "content": "x"}]}), "messages"),
        (json!({"turn": "", "text": "x"}), "turn"),
        (json!({"turn": "t2", "text": 7}), "expected a string"),
        (json!({"turn": "t2", "text": "x", "options": 1}), "options"),
    ] {
        let problem = post(body).await.problem(400, "invalid_request").await;
        assert!(problem["detail"].as_str().unwrap().contains(names), "{problem}");
    }

    // The refused id is still free, and so is the number.
    assert_eq!(server.turn("s", "t2", "x").await["seq"], 2);
}

#[tokio::test(start_paused = true)]
async fn unknown_fields_are_ignored_and_messages_become_the_turns_text() {
    let server = Server::quick();
    let body = json!({"turn": "t", "future": {"x": [1]}, "messages": [{"role": "user", "content": "from messages"}]});
    let answer = server.post("/v1/sessions/s/turns", body).await.json(StatusCode::OK).await;
    assert_eq!(answer["text"], demo_answer("from messages"));
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_answered_as_a_stream() {
    let server = Server::new(demo(Duration::from_millis(10), None));
    let mut stream = server.turn_stream("s", "t1", "hello there").await;
    let priming = stream.next().await.unwrap();
    assert!(priming.retry.is_some() && priming.data.is_none() && priming.event.is_empty(), "{priming:?}");
    let accepted = stream.expect("accepted").await;
    assert_eq!(accepted.id, None);
    assert_eq!(accepted.json()["state"], "running");

    let events = stream.rest().await;
    assert_eq!(kinds(&events), ["turn", "delta", "done"]);
    assert!(events.len() > 5, "it came word by word");
    assert_eq!(text_of(&events), demo_answer("hello there"));
    for event in &events {
        assert_eq!(event.json()["id"], *event.id.as_ref().unwrap());
        assert_eq!(event.json()["type"], event.event);
    }
    // The priming event's id is where the turn's first entry follows.
    let after = server.events("s", priming.id.as_deref().unwrap()).await.until("done").await;
    assert_eq!(after[1..], events);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_of_a_stream_goes_on_after_the_last_event_id() {
    let server = Server::new(demo(Duration::from_millis(10), None));
    let all = server.turn_stream("s", "t1", "hello there").await.rest().await;
    let entries: Vec<_> = all.iter().filter(|e| e.id.is_some() && e.data.is_some()).cloned().collect();
    for (i, last) in entries.iter().enumerate() {
        let id = last.id.as_deref().unwrap();
        let answer = server
            .post_with(
                "/v1/sessions/s/turns",
                &[("accept", "text/event-stream"), ("last-event-id", id)],
                json!({"turn": "t1", "text": "hello there"}),
            )
            .await;
        let again = answer.sse().rest().await;
        assert_eq!(again[0].id.as_deref(), Some(id));
        assert_eq!(again[1].event, "accepted");
        assert_eq!(again[2..], entries[i + 1..]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_waits_streams_its_own_entries_only() {
    let server = Server::new(demo(Duration::from_millis(10), None));
    let mut first = server.turn_stream("s", "t1", "one").await;
    first.expect("").await;
    first.expect("accepted").await;
    let mut second = server.turn_stream("s", "t2", "two").await;
    second.expect("").await;
    let accepted = second.expect("accepted").await.json();
    assert_eq!((&accepted["state"], &accepted["place"]), (&json!("queued"), &json!(1)));
    let events = second.rest().await;
    assert!(events.iter().all(|e| e.json()["turn"] == "t2"));
    assert_eq!(text_of(&events), demo_answer("two"));
    assert_eq!(text_of(&first.rest().await), demo_answer("one"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_prefers_not_to_wait_gets_the_position() {
    let server = Server::new(demo(Duration::from_secs(1), None));
    let answer = server
        .post_with("/v1/sessions/a%20b/turns", &[("prefer", "wait=2")], json!({"turn": "t", "text": "hello"}))
        .await;
    assert_eq!(answer.header("preference-applied"), "wait=2");
    let location = answer.header("location").to_owned();
    let accepted = answer.json(StatusCode::ACCEPTED).await;
    assert_eq!(accepted["turn"], "t");
    assert_eq!(accepted["seq"], 1);
    assert_eq!(accepted["state"], "running");
    assert!(location.ends_with(&format!("after={}", accepted["position"].as_str().unwrap())), "{location}");

    // From the position on, the log tells the whole turn.
    let events = server.get_with(&location, &[("accept", "text/event-stream")]).await.sse().until("done").await;
    assert_eq!(kinds(&events), ["turn", "delta", "done"]);
    assert_eq!(text_of(&events), demo_answer("hello"));

    // Enough time: the answer.
    let answer = server
        .post_with("/v1/sessions/a%20b/turns", &[("prefer", "wait=30")], json!({"turn": "t2", "text": "hello"}))
        .await;
    assert_eq!(answer.json(StatusCode::OK).await["text"], demo_answer("hello"));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_turn_answers_with_the_partial_text() {
    let server = Server::new(slow());
    let waiting = {
        let server = server.clone();
        tokio::spawn(async move { server.turn("s", "t1", "tell me much").await })
    };
    let seen = server.events("s", "0").await.until("delta").await;
    let cancelled = server.cancel("s", "t1").await.json(StatusCode::ACCEPTED).await;
    assert_eq!(cancelled, json!({"turn": "t1", "state": "running"}));
    let answer = waiting.await.unwrap();
    assert_eq!(answer["finish_reason"], "cancelled");
    let text = answer["text"].as_str().unwrap();
    assert!(text.starts_with(&text_of(&seen)) && text.len() < 4_000, "{text}");

    // A repeat says the same; so does cancelling again, with the turn's end.
    assert_eq!(server.turn("s", "t1", "tell me much").await["text"], answer["text"]);
    let again = server.cancel("s", "t1").await.json(StatusCode::ACCEPTED).await;
    assert_eq!(again["state"], "cancelled");
}

#[tokio::test]
async fn a_failed_turn_is_a_problem_and_final() {
    let model = Model::start().await;
    let server = Server::new(model.settings());
    let body = json!({"turn": "t1", "text": "status 500"});
    let failed = server.post("/v1/sessions/s/turns", body.clone()).await.problem(502, "upstream_unavailable").await;
    assert_eq!((&failed["turn"], &failed["retryable"]), (&json!("t1"), &json!(false)));
    let calls = model.calls();
    server.post("/v1/sessions/s/turns", body).await.problem(502, "upstream_unavailable").await;
    assert_eq!(model.calls(), calls, "a repeat asks no model");

    let events = server.turn_stream("s", "t1", "status 500").await.rest().await;
    assert_eq!(kinds(&events), ["accepted", "turn", "error"]);
    let error = events.last().unwrap();
    assert!(error.id.is_some());
    assert_eq!(error.json()["code"], "upstream_unavailable");
}

#[tokio::test]
async fn a_repeat_of_a_trimmed_turn_has_its_answer_as_json_only() {
    let model = Model::start().await;
    let mut settings = model.settings();
    settings.sessions.max_turns = 2;
    let server = Server::new(settings);
    let first = server.turn("s", "t1", "hello").await;
    // Failed turns take the entries' place in the log, and leave the history as it is.
    for turn in ["t2", "t3"] {
        let body = json!({"turn": turn, "text": "status 500"});
        server.post("/v1/sessions/s/turns", body).await.problem(502, "upstream_unavailable").await;
    }
    let again = server.turn("s", "t1", "hello").await;
    assert_eq!((&again["text"], &again["id"]), (&first["text"], &first["id"]));
    assert_eq!(again["duplicate"], true);

    let body = json!({"turn": "t1", "text": "hello"});
    let stream = server.post_with("/v1/sessions/s/turns", &[("accept", "text/event-stream")], body.clone()).await;
    stream.problem(410, "not_resumable").await;

    // Out of the history too: nobody knows the answer any more.
    server.turn("s", "t4", "x").await;
    server.turn("s", "t5", "x").await;
    server.post("/v1/sessions/s/turns", body).await.problem(410, "not_resumable").await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_session_ends_the_wait() {
    let server = Server::new(slow());
    let waiting = {
        let server = server.clone();
        let body = json!({"turn": "t1", "text": "much"});
        tokio::spawn(async move { server.post("/v1/sessions/s/turns", body).await.problem(404, "not_found").await })
    };
    server.events("s", "0").await.until("delta").await;
    assert_eq!(server.delete("s").await, StatusCode::NO_CONTENT);
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_plain_json_twin_names_its_turns_itself() {
    let server = Server::quick();
    let post = async |seq: u64, text: &str| {
        server.post("/chat.Stream/chat", json!({"dialogId": "d/1", "seq": seq, "text": text})).await
    };
    let first = post(1, "hello").await.json(StatusCode::OK).await;
    assert_eq!(first["dialogId"], "d/1");
    assert_eq!(first["seq"], 1);
    assert_eq!(first["text"], demo_answer("hello"));
    assert_eq!(first.as_object().unwrap().len(), 4);
    assert_eq!(post(1, "hello").await.json(StatusCode::OK).await, first, "a retry is the same turn");
    post(1, "other").await.problem(409, "turn_conflict").await;
    assert_eq!(post(3, "x").await.problem(409, "seq_gap").await["expected"], 2);
    let second = post(2, "more").await.json(StatusCode::OK).await;
    assert_ne!(second["turnId"], first["turnId"]);
    // It is an ordinary session.
    let snapshot = server.get("/v1/sessions/d%2F1").await.json(StatusCode::OK).await;
    assert_eq!(snapshot["turns"][0]["turn"], first["turnId"]);
    let missing = server.post("/chat.Stream/chat", json!({"seq": 1, "text": "x"})).await;
    let problem = missing.problem(400, "invalid_request").await;
    assert!(problem["detail"].as_str().unwrap().contains("dialogId"));
}
