//! The model-server simulator: what it says is well formed, on time, and counted.

use std::time::{Duration, Instant};

use chatgateway_tests::{
    client::{HttpClient, openai_chunks},
    simulator::{Behaviour, Outcome, Settings, Simulator},
};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn chat(text: &str, sim: Value) -> Value {
    json!({"model": "sim-model", "stream": true, "stream_options": {"include_usage": true}, "sim": sim,
        "messages": [{"role": "user", "content": text}]})
}

async fn chunks(client: &HttpClient, path: &str, body: &Value) -> anyhow::Result<Vec<Value>> {
    openai_chunks(&client.post_sse(path, body).await?.collect().await?)
}

fn start(settings: Settings) -> anyhow::Result<(Simulator, HttpClient)> {
    let simulator = Simulator::start(settings)?;
    let client = HttpClient::new(simulator.address());
    Ok((simulator, client))
}

#[tokio::test]
async fn a_chat_stream_is_role_text_end_usage_done() {
    let (simulator, client) = start(Settings::default()).unwrap();
    for one_byte in [false, true] {
        let body = chat("say hello", json!({"answer": "«{text}» it is", "one_byte": one_byte}));
        let chunks = chunks(&client, CHAT, &body).await.unwrap();
        let [role, text @ .., end, usage] = chunks.as_slice() else { panic!("{chunks:?}") };
        assert_eq!(role["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        let said: String = text.iter().map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
        assert_eq!(said, "«say hello» it is");
        assert_eq!(end["choices"][0]["finish_reason"], "stop");
        assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(4)));
        assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == role["id"]));
    }
    let calls = simulator.wait_for("two ended calls", |calls| calls.completed == 2).await.unwrap();
    assert_eq!((calls.count, calls.in_flight, calls.texts()), (2, 0, vec!["say hello"; 2]));
}

#[tokio::test]
async fn whole_answers_and_the_simple_protocol() {
    let (_simulator, client) = start(Settings::default()).unwrap();
    let mut body = chat("hi", json!({"answer": "{text} there"}));
    body["stream"] = json!(false);
    body["n"] = json!(2);
    let reply = client.post(CHAT, &body).await.unwrap().json().unwrap();
    assert_eq!(reply["choices"][1]["message"]["content"], "hi there");
    assert_eq!(reply["choices"][1]["index"], 1);
    let reply = client.post("/chat", &json!({"prompt": "hi", "max_tokens": 2})).await.unwrap();
    assert_eq!(reply.json().unwrap(), json!({"text": "0 1 "}));
    let body = json!({"prompts": ["a", "b"], "sim": {"answer": "<{text}>"}});
    let reply = client.post("/chat/batch", &body).await.unwrap();
    assert_eq!(reply.json().unwrap(), json!({"texts": ["<a>", "<b>"]}));
    let models = client.get("/v1/models").await.unwrap().json().unwrap();
    assert_eq!(models["data"][0]["id"], "sim-model");
}

#[tokio::test]
async fn prompt_arrays_stream_by_index_and_batching_costs_what_it_should() {
    let settings =
        Settings { behaviour: Behaviour { tokens: 5, ..Behaviour::batching_server() }, ..Settings::default() };
    let (_simulator, client) = start(settings).unwrap();
    let body = json!({"model": "sim-model", "stream": true, "prompt": ["a", "b", "c", "d"]});
    let began = Instant::now();
    let mut stream = client.post_sse("/v1/completions", &body).await.unwrap();
    let mut events = vec![stream.next().await.unwrap().unwrap()];
    let first = began.elapsed();
    events.extend(stream.collect().await.unwrap());
    let end = began.elapsed();
    // Timers may be late on a busy machine, never early.
    assert!(first >= Duration::from_millis(140) && end >= Duration::from_millis(348), "{first:?} {end:?}");
    let chunks = openai_chunks(&events).unwrap();
    for index in 0..4 {
        let of_index = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index);
        let said: String = of_index.map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(said, "0 1 2 3 4 ");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_counted_as_cancelled_in_either_mode() {
    let (simulator, _client) = start(Settings::default()).unwrap();
    for (stream, cancelled) in [(true, 1), (false, 2)] {
        let client = HttpClient::new(simulator.address());
        let mut body = chat("wait", json!({"fault": "stall", "fault_after": 1}));
        body["stream"] = json!(stream);
        let mut request = tokio::spawn(async move {
            let mut stream = client.post_sse(CHAT, &body).await?;
            while stream.next().await?.is_some() {}
            anyhow::Ok(())
        });
        simulator.wait_for("the call", |calls| calls.in_flight == 1).await.unwrap();
        assert!(!request.is_finished(), "{:?}", (&mut request).await);
        request.abort();
        let calls = simulator.wait_for("its end", |calls| calls.in_flight == 0).await.unwrap();
        assert_eq!((calls.cancelled, calls.completed, calls.failed), (cancelled, 0, 0));
        assert!(calls.calls.iter().all(|call| call.outcome == Outcome::Cancelled));
    }
}

#[tokio::test]
async fn faults_do_what_they_say() {
    let (simulator, client) = start(Settings::default()).unwrap();
    let fault = async |fault: Value| chunks(&client, CHAT, &chat("x", fault)).await;
    let error = |result: anyhow::Result<Vec<Value>>| format!("{:#}", result.unwrap_err());
    assert!(error(fault(json!({"fault": "refuse"})).await).contains("failed"));
    assert!(error(fault(json!({"fault": "die"})).await).contains("the stream broke"));
    assert!(error(fault(json!({"fault": "garbage"})).await).contains("UTF-8"));
    assert!(error(fault(json!({"fault": "truncate"})).await).contains("the last event is"));
    assert!(error(fault(json!({"status": 503, "retry_after_s": 7})).await).contains("503"));
    let huge = fault(json!({"fault": "huge_line", "huge_line_bytes": 10_000_000})).await.unwrap();
    let longest = huge.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).map(str::len).max();
    assert_eq!(longest, Some(10_000_000));
    let with_error = fault(json!({"fault": "error_event", "fault_after": 100})).await.unwrap();
    assert!(with_error.last().unwrap()["error"]["message"].is_string());
    let calls = simulator.wait_for("all ended", |calls| calls.in_flight == 0).await.unwrap();
    assert_eq!((calls.count, calls.completed, calls.failed), (7, 1, 6));
}

#[tokio::test]
async fn behaviours_are_set_for_calls_to_come_and_a_full_queue_refuses() {
    let (simulator, client) = start(Settings { workers: 1, max_queued: 0, ..Settings::default() }).unwrap();
    simulator.push_next(json!({"status": 429, "retry_after_s": 3})).unwrap();
    simulator.push_next(json!({"fault": "stall", "fault_after": 0})).unwrap();
    let reply = client.post(CHAT, &chat("one", json!({}))).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (429, Some("3")));
    let stalled = client.post_sse(CHAT, &chat("two", json!({}))).await.unwrap();
    simulator.wait_for("two calls", |calls| calls.count == 2).await.unwrap();
    let refused = client.post(CHAT, &chat("three", json!({}))).await.unwrap();
    assert_eq!(refused.status.as_u16(), 503);
    drop((stalled, client));
    simulator.wait_for("the worker is free", |calls| calls.cancelled == 1).await.unwrap();
    let client = HttpClient::new(simulator.address());
    let answered = chunks(&client, CHAT, &chat("four", json!({"answer": "yes"}))).await.unwrap();
    assert_eq!(answered.len(), 4);
}

#[tokio::test]
async fn one_prompt_of_a_batch_fails_alone_or_all_do_where_one_is_too_long() {
    let (simulator, client) = start(Settings::default()).unwrap();
    let body = |prompts: &[&str]| {
        json!({"model": "m", "stream": true, "prompt": prompts, "sim": {"failing": "bad", "fault_after": 2,
            "context_words": 3, "tokens": 4}})
    };
    let chunks = chunks(&client, "/v1/completions", &body(&["good", "a bad one"])).await.unwrap();
    for (index, text, reason) in [(0, "0 1 2 3 ", "stop"), (1, "0 1 ", "error")] {
        let of_index: Vec<&Value> =
            chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index).collect();
        let said: String = of_index.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!((said.as_str(), &of_index.last().unwrap()["finish_reason"]), (text, &json!(reason)));
    }
    let refused = client.post("/v1/completions", &body(&["good", "this one is too long"])).await.unwrap();
    assert_eq!(refused.status.as_u16(), 400);
    assert_eq!(refused.json().unwrap()["error"]["code"], "context_length_exceeded");
    let calls = simulator.wait_for("both ended", |calls| calls.in_flight == 0).await.unwrap();
    assert_eq!((calls.count, calls.prompts, calls.failed), (2, 4, 1));
}

#[tokio::test]
async fn a_refusal_has_the_headers_it_is_given() {
    let (_simulator, client) = start(Settings::default()).unwrap();
    let headers = json!({"x-ratelimit-reset-requests": "1m30s", "x-ratelimit-reset-tokens": "20ms"});
    let reply = client.post(CHAT, &chat("x", json!({"status": 429, "refusal_headers": headers}))).await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (429, None));
    assert_eq!(reply.header("x-ratelimit-reset-requests"), Some("1m30s"));
    assert_eq!(reply.header("x-ratelimit-reset-tokens"), Some("20ms"));
}

#[tokio::test]
async fn a_dead_server_refuses_connections_and_comes_back_on_its_port() {
    let (simulator, client) = start(Settings::default()).unwrap();
    let mut stalled = client.post_sse(CHAT, &chat("wait", json!({"fault": "stall"}))).await.unwrap();
    simulator.wait_for("the call", |calls| calls.in_flight == 1).await.unwrap();
    simulator.die();
    while let Ok(Some(_)) = stalled.next().await {}
    simulator.wait_for("its connections broke", |calls| calls.open_connections == 0).await.unwrap();
    assert!(HttpClient::new(simulator.address()).get("/v1/models").await.is_err());
    simulator.revive();
    let back = async || {
        while HttpClient::new(simulator.address()).get("/v1/models").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), back()).await.expect("it is back");
    // By a call, and for so long.
    let client = HttpClient::new(simulator.address());
    let reply = client.post("/sim/die", &json!({"for_ms": 50})).await.unwrap();
    assert_eq!(reply.status.as_u16(), 200);
    simulator.wait_for("its connections broke", |calls| calls.open_connections == 0).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), back()).await.expect("it is back");
    drop(client);
}

#[tokio::test]
async fn a_conversation_that_is_remembered_is_answered_sooner() {
    let behaviour = Behaviour { first_token_ms: 400.0, prefix_saving: 1.0, tokens: 1, ..Behaviour::default() };
    let (simulator, client) = start(Settings { prefix_blocks: 1_000, behaviour, ..Settings::default() }).unwrap();
    let text = "x".repeat(64 * 20);
    let mut times = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        chunks(&client, CHAT, &chat(&text, json!({}))).await.unwrap();
        times.push(began.elapsed());
    }
    assert!(times[0] >= Duration::from_millis(400) && times[1] < times[0], "{times:?}");
    let calls = simulator.calls();
    assert_eq!((calls.prefix_hits, calls.prefix_misses), (20, 22));
}

#[tokio::test]
async fn a_partial_answer_is_continued() {
    let (_simulator, client) = start(Settings::default()).unwrap();
    let body = json!({"model": "m", "stream": true, "max_tokens": 4, "messages": [
        {"role": "user", "content": "count"}, {"role": "assistant", "content": "0 1 2"}]});
    let chunks = chunks(&client, CHAT, &body).await.unwrap();
    let said: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, " 3 4 5 ");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}
