//! Model servers that die, and limits that pods share.

use std::time::{Duration, Instant};

use chatgateway_tests::{
    client::{HttpClient, WsClient},
    process::GatewayProcess,
    simulator::{Behaviour, Simulator},
};
use serde_json::{Value, json};

use crate::support::{Pods, read, read_all, until};

#[tokio::test]
async fn one_limit_is_shared_by_four_pods() {
    const BURST: u64 = 20;
    const PER_MINUTE: u64 = 6;
    let mut pods = Pods::start(0, false).await;
    let mut config = pods.config(&pods.redis.endpoint());
    config["upstreams"] = json!([{"name": "demo", "type": "Demo", "demo": {"tokenDelay": "0s", "answerBytes": 1}}]);
    config["rateLimits"] = json!([{"per": "Gateway", "requestsPerMinute": PER_MINUTE, "burst": BURST}]);
    for _ in 0..4 {
        pods.pods.push(GatewayProcess::start(&config).await.unwrap());
    }
    let clients: Vec<HttpClient> = pods.pods.iter().map(|pod| HttpClient::new(pod.http())).collect();
    let began = Instant::now();
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..60 {
        let client = clients[number % 4].clone();
        let body = json!({"messages": [{"role": "user", "content": "hi"}]});
        asked.spawn(async move { client.post("/v1/chat/completions", &body).await.unwrap() });
    }
    let replies = asked.join_all().await;
    let refilled = began.elapsed().as_secs() * PER_MINUTE / 60 + 1;
    let admitted = replies.iter().filter(|reply| reply.status == 200).count() as u64;
    assert!((BURST..=BURST + refilled).contains(&admitted), "{admitted} of 60 were admitted, {refilled} refilled");
    for refused in replies.iter().filter(|reply| reply.status != 200) {
        assert_eq!(refused.status, 429, "{}", refused.text());
        assert_eq!(refused.json().unwrap()["error"]["code"], "rate_limited");
        let retry_after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&retry_after), "{retry_after} s until the next one is admitted");
    }
    // A turn of a session draws from the same bucket.
    let body = json!({"turn": "t", "text": "hi"});
    let refused = clients[0].post("/v1/sessions/s/turns", &body).await.unwrap();
    assert_eq!((refused.status.as_u16(), &refused.json().unwrap()["code"]), (429, &json!("rate_limited")));
}

/// A pod before two model servers, the first preferred.
async fn pod_before(servers: &[&Simulator; 2]) -> GatewayProcess {
    let upstream = |name: &str, server: &Simulator| {
        json!({"name": name, "type": "OpenAI", "openAI": {"url": server.openai_url(), "model": "sim"},
            "circuitBreaker": {"slidingWindowSize": 10, "minimumNumberOfCalls": 4, "waitDurationInOpenState": "500ms"}})
    };
    let config = json!({"upstreams": [upstream("first", servers[0]), upstream("second", servers[1])]});
    GatewayProcess::start(&config).await.unwrap()
}

async fn breaker(pod: &GatewayProcess) -> Value {
    pod.status().await.unwrap()["upstreams"][0]["endpoints"][0]["breaker"].clone()
}

#[tokio::test]
async fn a_server_that_dies_costs_no_turn_and_is_used_again_when_it_is_back() {
    let server =
        || Simulator::with(Behaviour { tokens: 20, tokens_per_second: 200.0, ..Behaviour::default() }).unwrap();
    let (first, second) = (server(), server());
    let pod = pod_before(&[&first, &second]).await;
    let answer: String = (0..20).map(|token| format!("{token} ")).collect();
    let ask = async |number: usize| {
        let mut client = WsClient::connect(pod.http()).await.unwrap();
        client.send(&format!("s{number}"), "t", "hello").await.unwrap();
        let seen = read_all(&mut client, "t").await;
        assert_eq!((seen.kinds().last(), seen.answer()), (Some(&"done"), answer.clone()), "{:?}", seen.events);
    };
    ask(0).await;
    assert_eq!((first.calls().count, second.calls().count), (1, 0), "the first one is preferred");
    // In the middle of an answer.
    let mut client = WsClient::connect(pod.http()).await.unwrap();
    client.send("middle", "t", "hello").await.unwrap();
    let mut seen = read(&mut client, "t", 3).await;
    first.die();
    seen.events.extend(read_all(&mut client, "t").await.events);
    assert_eq!((seen.kinds().last(), seen.answer()), (Some(&"done"), answer.clone()), "{:?}", seen.events);
    assert!(seen.kinds().contains(&"reset"), "nobody continued it: it was begun again");
    for number in 1..10 {
        ask(number).await;
    }
    assert_eq!(second.calls().completed, 10);
    until("the first one's breaker has opened", || async { breaker(&pod).await != "closed" }).await;
    first.revive();
    let back = Instant::now();
    let mut number = 10;
    while first.calls().count < 3 {
        assert!(back.elapsed() < Duration::from_secs(10), "the first one is back and is not asked");
        ask(number).await;
        number += 1;
    }
}
