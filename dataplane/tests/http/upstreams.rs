//! Model servers under pressure, as clients see it.

use axum::http::StatusCode;
use chatgateway_config::{RetrySettings, Settings, UpstreamKind};
use serde_json::json;

use super::{
    model::Model,
    support::{Event, Server, kinds, text_of},
};

fn continuing(mut settings: Settings) -> Settings {
    if let UpstreamKind::OpenAi { prefill, .. } = &mut settings.upstreams[0].kind {
        *prefill = true;
    }
    settings
}

/// A turn whose answer breaks off after "break one two". Its events until then, and those that follow.
async fn broken_off(model: &Model, server: &Server) -> (Vec<Event>, Vec<Event>) {
    let mut stream = server.turn_stream("s", "t", "break one two").await;
    let mut events = Vec::new();
    while text_of(&events) != "break one two" {
        events.push(stream.next().await.unwrap());
    }
    model.kill();
    (events, stream.until("done").await)
}

/// A pool with one place, in which nobody waits.
fn tight(model: &Model) -> Settings {
    let mut settings = model.settings();
    settings.upstreams[0].pool.max_concurrent = 1;
    settings.upstreams[0].pool.max_queued = 0;
    settings
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_told_anew_and_never_twice() {
    let model = Model::start().await;
    let server = Server::new(model.settings());
    let (_, rest) = broken_off(&model, &server).await;
    assert_eq!(kinds(&rest), ["reset", "delta", "done"]);
    assert_eq!(text_of(&rest), "break one two");
    assert_eq!(model.calls(), 2);
    // The history has it once.
    let snapshot = server.get("/v1/sessions/s").await.json(StatusCode::OK).await;
    assert_eq!(snapshot["turns"][0]["answer"], "break one two");
    assert_eq!(server.gateway.upstreams().status()[0].resumed_answers, 1);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_continued_where_the_model_server_can() {
    let model = Model::start().await;
    let server = Server::new(continuing(model.settings()));
    let (events, rest) = broken_off(&model, &server).await;
    assert_eq!(kinds(&rest), ["delta", "done"]);
    assert_eq!(text_of(&events) + &text_of(&rest), "break one two and so on");
    assert_eq!(model.last_body()["messages"].as_array().unwrap().last().unwrap()["content"], "break one two");
}

#[tokio::test]
async fn without_room_a_turn_is_refused_before_it_is_accepted_and_a_known_one_is_found() {
    let model = Model::start().await;
    let server = Server::new(tight(&model));
    let mut running = server.turn_stream("a", "t", "hang on").await;
    running.until("delta").await;
    let refused = server.post("/v1/sessions/b/turns", json!({"turn": "t", "text": "hello"})).await;
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    let problem = refused.problem(503, "overloaded").await;
    assert_eq!(problem["retryable"], true);
    server.get("/v1/sessions/b").await.problem(404, "not_found").await;
    // The one that runs is found by its id, whatever the door says, and nothing else is.
    let mut again = server.turn_stream("a", "t", "hang on").await;
    assert!(text_of(&again.until("delta").await).starts_with("hang"));
    let other = json!({"turn": "t", "text": "another text"});
    server.post("/v1/sessions/a/turns", other).await.problem(409, "turn_conflict").await;
    let next = json!({"turn": "t2", "text": "next"});
    server.post("/v1/sessions/a/turns", next.clone()).await.problem(503, "overloaded").await;
    assert_eq!(model.calls(), 1);
    // A refusal uses no number up: the same turn is accepted later.
    drop((running, again));
    server.cancel("a", "t").await;
    let accepted = async {
        loop {
            let answer = server.post("/v1/sessions/a/turns", next.clone()).await;
            if answer.status == StatusCode::OK {
                return answer.json(StatusCode::OK).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let accepted = tokio::time::timeout(std::time::Duration::from_secs(10), accepted).await.unwrap();
    assert_eq!((accepted["seq"].as_u64(), accepted["text"].as_str()), (Some(2), Some("next")));
}

#[tokio::test]
async fn an_open_circuit_refuses_at_the_door() {
    let model = Model::start().await;
    let mut settings = model.settings();
    settings.upstreams[0].breaker.min_calls = 3;
    settings.upstreams[0].retries = RetrySettings { max_attempts: 1, budget_percent: 10 };
    let server = Server::new(settings);
    for turn in ["a", "b", "c"] {
        let body = json!({"turn": turn, "text": "status 500"});
        server.post("/v1/sessions/s/turns", body).await.problem(502, "upstream_unavailable").await;
    }
    let refused = server.post("/v1/sessions/s/turns", json!({"turn": "d", "text": "hello"})).await;
    assert!((1..=5).contains(&refused.header("retry-after").parse::<u64>().unwrap()));
    refused.problem(503, "circuit_open").await;
    let stateless = json!({"model": "tiny/model", "messages": [{"role": "user", "content": "hello"}]});
    server.post("/v1/chat/completions", stateless).await.openai_error(503, "circuit_open").await;
    assert_eq!(model.calls(), 3);
    let metrics = server.gateway.metrics.to_text();
    let endpoint = &server.gateway.upstreams().status()[0].endpoints[0].endpoint;
    for line in [
        format!("chatgateway_upstream_endpoint_breaker{{upstream=\"local\",endpoint=\"{endpoint}\",state=\"open\"}} 1"),
        format!("chatgateway_upstream_endpoint_opened_total{{upstream=\"local\",endpoint=\"{endpoint}\"}} 1"),
        "chatgateway_upstream_door_refusals_total{upstream=\"local\"} 1".to_owned(),
        "chatgateway_upstream_circuit_refusals_total{upstream=\"local\"} 1".to_owned(),
    ] {
        assert!(metrics.lines().any(|have| have == line), "{line}\n{metrics}");
    }
}
