//! Reading a session's log: server-sent events and long polling.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Server, ask, demo, demo_answer, kinds, slow, text_of, with};

const SSE: (&str, &str) = ("accept", "text/event-stream");

#[tokio::test(start_paused = true)]
async fn the_log_is_told_from_its_beginning_and_goes_on() {
    let server = Server::new(demo(Duration::from_millis(10), None));
    server.turn("s", "t1", "one").await;
    let mut stream = server.get_with("/v1/sessions/s/events", &[SSE]).await.sse();
    let priming = stream.next().await.unwrap();
    assert_eq!((priming.id.as_deref(), priming.data.as_deref()), (Some("0"), None));
    assert!(priming.retry.is_some());
    let first = stream.until("done").await;
    assert_eq!(kinds(&first), ["turn", "delta", "done"]);

    server.turn("s", "t2", "two").await;
    let second = stream.until("done").await;
    assert_eq!(text_of(&second), demo_answer("two"));
    for event in first.iter().chain(&second) {
        let json = event.json();
        assert_eq!((&json["type"], &json["id"]), (&json!(event.event), &json!(event.id)));
        assert_eq!(json["session"], "s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_after_any_entry_with_nothing_missing_or_doubled() {
    let server = Server::new(demo(Duration::from_millis(10), None));
    server.turn("s", "t1", "hello there").await;
    let all = server.events("s", "0").await.until("done").await;
    for (i, event) in all.iter().enumerate() {
        let id = event.id.as_deref().unwrap();
        let mut rest = server.events("s", id).await;
        assert_eq!(rest.next().await.unwrap().id.as_deref(), Some(id));
        for want in &all[i + 1..] {
            assert_eq!(rest.next().await.as_ref(), Some(want));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_header_wins_over_the_query_and_an_empty_one_counts_as_none() {
    let server = Server::quick();
    let end = server.turn("s", "t1", "one").await["position"].as_str().unwrap().to_owned();
    let headers = [SSE, ("last-event-id", end.as_str())];
    let mut stream = server.get_with("/v1/sessions/s/events?after=0", &headers).await.sse();
    assert_eq!(stream.next().await.unwrap().id.as_deref(), Some(end.as_str()));
    let headers = [SSE, ("last-event-id", "")];
    let path = format!("/v1/sessions/s/events?after={end}");
    let mut stream = server.get_with(&path, &headers).await.sse();
    assert_eq!(stream.next().await.unwrap().id.as_deref(), Some(end.as_str()));
}

#[tokio::test(start_paused = true)]
async fn positions_that_are_none_are_refused_before_any_byte() {
    let server = Server::quick();
    server.turn("s", "t1", "one").await;
    for accept in ["text/event-stream", "application/json", "*/*"] {
        for gone in ["1-0", "9999999999999999-7"] {
            let path = format!("/v1/sessions/s/events?after={gone}");
            let problem = server.get_with(&path, &[("accept", accept)]).await.problem(410, "not_resumable").await;
            assert_eq!(problem["session"], "s");
        }
        for wrong in ["1", "-", "a-b", "1-0-0", "%2B1-0", "01-0"] {
            let path = format!("/v1/sessions/s/events?after={wrong}");
            server.get_with(&path, &[("accept", accept)]).await.problem(400, "invalid_request").await;
        }
        let headers = [("accept", accept), ("last-event-id", "nonsense")];
        server.get_with("/v1/sessions/s/events", &headers).await.problem(400, "invalid_request").await;
    }
    // Of a session that nobody knows, only the beginning can be read.
    server.get_with("/v1/sessions/other/events?after=1-0", &[SSE]).await.problem(410, "not_resumable").await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_session_can_be_waited_for_and_silence_is_filled_with_comments() {
    let server = Server::quick();
    let start = Instant::now();
    let mut stream = server.events("new", "0").await;
    assert_eq!(stream.next().await.unwrap().id.as_deref(), Some("0"));
    for beat in 1..=3 {
        let event = stream.next().await.unwrap();
        assert!(event.comment.is_some() && event.data.is_none(), "{event:?}");
        assert_eq!(start.elapsed().as_secs(), 30 * beat);
    }
    server.turn("new", "t", "hello").await;
    assert_eq!(kinds(&stream.until("done").await), ["turn", "delta", "done"]);
}

#[tokio::test(start_paused = true)]
async fn odd_line_ends_stay_inside_their_event() {
    let server = Server::quick();
    let text = "a\u{2028}b\u{2029}c\u{85}d\r\ne\nf";
    server.turn("s", "t", text).await;
    let events = server.events("s", "0").await.until("done").await;
    let turn = events.iter().find(|e| e.event == "turn").unwrap();
    assert!(turn.data.as_ref().unwrap().contains(r"a\u2028b\u2029c\u0085d\r\ne\nf"));
    assert_eq!(turn.json()["text"], text);
    assert_eq!(text_of(&events), demo_answer(text));
}

#[tokio::test(start_paused = true)]
async fn a_deleted_session_is_told_and_ends_the_stream() {
    let server = Server::new(slow());
    let mut turn = server.turn_stream("s", "t", "much").await;
    turn.until("delta").await;
    let mut stream = server.events("s", "0").await;
    stream.until("delta").await;
    server.delete("s").await;
    for stream in [stream, turn] {
        let rest = stream.rest().await;
        let error = rest.last().unwrap();
        assert_eq!((error.event.as_str(), error.id.as_deref()), ("error", None));
        assert_eq!(error.json()["code"], "not_found");
        assert_eq!(error.json()["session"], "s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_loses_nothing() {
    let server = Server::new(demo(Duration::from_millis(1), Some(200_000)));
    let mut stream = server.turn_stream("s", "t", "much").await;
    stream.until("turn").await;
    // Nobody reads while the whole answer is made: far more entries than any mailbox holds.
    let answer = server.turn("s", "t", "much").await;
    let events = stream.rest().await;
    assert_eq!(text_of(&events), answer["text"].as_str().unwrap());
    assert_eq!(events.last().unwrap().id.as_deref(), answer["id"].as_str());
}

#[tokio::test(start_paused = true)]
async fn a_poll_waits_for_what_comes_next() {
    let server = Server::quick();
    let start = Instant::now();
    let idle = server.poll("s", "0", "25s").await;
    assert_eq!(idle, json!({"events": [], "position": "0"}));
    assert_eq!(start.elapsed(), Duration::from_secs(25));

    let polling = {
        let server = server.clone();
        tokio::spawn(async move { server.poll("s", "0", "25s").await })
    };
    tokio::task::yield_now().await;
    let answer = server.turn("s", "t", "hello").await;
    let mut poll = polling.await.unwrap();
    let mut events = poll["events"].as_array().unwrap().clone();
    assert!(!events.is_empty());
    while poll["position"] != answer["position"] {
        poll = server.poll("s", poll["position"].as_str().unwrap(), "25s").await;
        events.extend(poll["events"].as_array().unwrap().iter().cloned());
    }
    let kinds: Vec<_> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["turn", "delta", "done"]);

    let end = answer["position"].as_str().unwrap();
    assert_eq!(server.poll("s", end, "1s").await, json!({"events": [], "position": end}));
    assert!(start.elapsed() < Duration::from_secs(27));
}

#[tokio::test(start_paused = true)]
async fn a_poll_tells_the_same_events_as_a_stream_in_bounded_pieces() {
    let server = Server::new(demo(Duration::from_millis(1), Some(100_000)));
    server.turn("s", "t", "much").await;
    let stream: Vec<_> = server.events("s", "0").await.until("done").await.iter().skip(1).map(|e| e.json()).collect();
    let (mut position, mut polled) = ("0".to_owned(), Vec::new());
    while polled.len() < stream.len() {
        let answer = server.get(&format!("/v1/sessions/s/events?after={position}&wait=5s")).await;
        let bytes = answer.bytes().await;
        assert!(bytes.len() < 512 * 1024);
        let poll: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        polled.extend(poll["events"].as_array().unwrap().iter().cloned());
        position = poll["position"].as_str().unwrap().to_owned();
    }
    assert_eq!(polled, stream);
}

#[tokio::test(start_paused = true)]
async fn accept_and_wait_choose_between_stream_and_poll() {
    let server = Server::quick();
    server.turn("s", "t", "hello").await;
    let kind = async |path: &str, accept: Option<&str>| {
        let headers: Vec<_> = accept.map(|a| ("accept", a)).into_iter().collect();
        let answer = server.get_with(&format!("/v1/sessions/s/events{path}"), &headers).await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.header("content-type").to_owned()
    };
    for (path, accept, want) in [
        ("", None, "text/event-stream"),
        ("", Some("*/*"), "text/event-stream"),
        ("", Some("text/event-stream"), "text/event-stream"),
        ("", Some("application/json"), "application/json"),
        ("?wait=1s", None, "application/json"),
        ("?wait=1s", Some("*/*"), "application/json"),
        ("?wait=1s", Some("text/event-stream"), "text/event-stream"),
    ] {
        assert_eq!(kind(path, accept).await, want, "{path} {accept:?}");
    }
    for wrong in ["x", "-1s", "1h", ""] {
        let path = format!("/v1/sessions/s/events?wait={wrong}");
        let problem = server.get(&path).await.problem(400, "invalid_request").await;
        assert!(problem["detail"].as_str().unwrap().contains("wait"));
    }
    // However long the client would wait, the server answers before proxies give up.
    let start = Instant::now();
    let end = server.poll("s", "0", "0").await["position"].as_str().unwrap().to_owned();
    server.poll("s", &end, "3600s").await;
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn a_head_request_ends_at_once() {
    let server = Server::quick();
    let request = with(ask(Method::HEAD, "/v1/sessions/s/events"), &[SSE]);
    let answer = server.send(request.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!((answer.status, answer.header("content-type")), (StatusCode::OK, "text/event-stream"));
    assert!(answer.bytes().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_drain_tells_idle_streams_to_come_back_one_after_the_other() {
    let server = Server::quick();
    let departing = server.gateway.clone();
    tokio::spawn(async move { departing.departure.run(departing.drain_watch()).await });
    server.turn("s", "t", "hello").await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = server.events("s", "0").await;
        stream.until("done").await;
        streams.push(stream);
    }
    let start = Instant::now();
    server.gateway.start_drain();
    let ends = streams.into_iter().map(|mut stream| {
        tokio::spawn(async move {
            let go_away = stream.expect("go_away").await;
            assert_eq!(go_away.id, None);
            let told = start.elapsed();
            assert!(go_away.json()["reconnect_after_ms"].as_u64().unwrap() <= 500);
            let last = stream.next().await.unwrap();
            assert!(last.retry.is_some() && last.data.is_none());
            assert_eq!(stream.next().await, None);
            (told, last.retry)
        })
    });
    let (mut told, mut retries) = (Vec::new(), Vec::new());
    for end in ends.collect::<Vec<_>>() {
        let (at, retry) = end.await.unwrap();
        told.push(at);
        retries.push(retry);
    }
    told.sort();
    assert!(told[0] >= Duration::from_secs(5) && told[19] <= Duration::from_secs(15), "{told:?}");
    assert!(told[19] - told[0] > Duration::from_secs(8), "spread over time: {told:?}");
    retries.sort_unstable();
    retries.dedup();
    assert!(retries.len() > 5, "jittered: {retries:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_answers_finish_and_takes_no_new_turns() {
    let server = Server::new(demo(Duration::from_secs(2), None));
    let departing = server.gateway.clone();
    tokio::spawn(async move { departing.departure.run(departing.drain_watch()).await });
    let mut reader = server.events("s", "0").await;
    let mut turn = server.turn_stream("s", "t", "hello").await;
    turn.until("delta").await;
    let json = {
        let server = server.clone();
        tokio::spawn(async move { server.turn("s", "t", "hello").await })
    };
    server.gateway.start_drain();
    let from_reader = reader.until("done").await;
    assert!(kinds(&from_reader).contains(&"go_away"));
    assert_eq!(text_of(&from_reader), demo_answer("hello"));
    let last = reader.rest().await;
    assert!(last.iter().all(|e| e.id.is_none()), "{last:?}");
    assert_eq!(turn.rest().await.last().unwrap().event, "done");
    assert_eq!(json.await.unwrap()["text"], demo_answer("hello"));

    let refused = server.post("/v1/sessions/s/turns", json!({"turn": "t2", "text": "x"})).await;
    assert!(!refused.header("retry-after").is_empty());
    let problem = refused.problem(503, "draining").await;
    assert_eq!(problem["retryable"], true);
    // A poll comes back at once.
    let at = Instant::now();
    server.poll("s", "0", "30s").await;
    let end = from_reader.iter().rev().find_map(|e| e.id.clone()).unwrap();
    assert_eq!(server.poll("s", &end, "30s").await["events"], json!([]));
    assert!(at.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn who_still_waits_at_the_end_of_a_drain_is_told_so() {
    let mut settings = slow();
    settings.drain.timeout = Duration::from_secs(20);
    let server = Server::new(settings);
    let waiting = {
        let server = server.clone();
        let body = json!({"turn": "t", "text": "much"});
        tokio::spawn(async move { server.post("/v1/sessions/s/turns", body).await.problem(503, "draining").await })
    };
    server.events("s", "0").await.until("delta").await;
    let body = json!({"model": "demo", "stream": true, "messages": [{"role": "user", "content": "much"}]});
    let mut chunks = server.post("/v1/chat/completions", body).await.sse();
    chunks.next().await.unwrap();
    let start = Instant::now();
    server.gateway.start_drain();
    assert_eq!(waiting.await.unwrap()["retryable"], true);
    let left = start.elapsed();
    assert!(left > Duration::from_secs(19) && left < Duration::from_secs(20), "{left:?}");
    assert_eq!(chunks.rest().await.last().unwrap().json()["error"]["code"], "draining");
}
