//! A pod that owns a session without knowing it: its begin was carried out, and the reply never came.

use std::time::{Duration, Instant};

use chatgateway_tests::{
    client::HttpClient,
    process::GatewayProcess,
    proxy::{Flow, Proxy, Way},
};
use serde_json::json;

use crate::support::Pods;

#[tokio::test]
async fn a_turn_whose_acceptance_was_lost_is_answered_although_clients_only_poll() {
    let pods = Pods::start(0, false).await;
    let proxy = Proxy::start(pods.redis.endpoint().parse().unwrap()).await.unwrap();
    let deaf = GatewayProcess::start(&pods.config(&proxy.address().to_string())).await.unwrap();
    let http = HttpClient::new(deaf.http());
    // What it says reaches Redis; what Redis says does not reach it.
    proxy.set_flow(Way::ToClient, Flow { held: true, ..Flow::default() });
    let sent = http.post("/v1/sessions/s/turns", &json!({"turn": "t", "text": "hello"})).await.unwrap();
    assert_eq!(sent.status, 503, "{}", sent.text());
    assert!(pods.redis.cli(&["EXISTS", "log:{default/anonymous/s}"]).contains('1'), "it was carried out");
    proxy.heal();
    let (mut position, deadline) = ("0".to_owned(), Instant::now() + Duration::from_secs(40));
    loop {
        assert!(Instant::now() < deadline, "the turn has not ended; read up to {position}");
        // Each poll is another reader, and none of them waits for long.
        let Ok(polled) = http.poll("s", &position, "100ms").await else { continue };
        if polled.events.iter().any(|event| event.ends("t")) {
            break;
        }
        position = polled.position;
    }
    assert_eq!(pods.simulator.calls().completed, 1);
}
