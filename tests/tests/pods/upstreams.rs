//! Limits that pods share.

use std::time::Instant;

use chatgateway_tests::{client::HttpClient, process::GatewayProcess};
use serde_json::json;

use crate::support::Pods;

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
