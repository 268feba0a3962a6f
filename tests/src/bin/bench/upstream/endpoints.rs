//! One of three equal model servers is killed and comes back: no turn fails, the breaker leaves it out soon, and it has calls
//! again soon after it is back.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use chatgateway_tests::{client::HttpClient, process::GatewayProcess};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    ground::{gateway, upstream},
    load::{Load, open_loop},
};
use crate::{
    redis::ground::until,
    report::{Bound, Row},
    setup::Setup,
};

/// Turns a second.
const RATE: f64 = 60.0;

/// How long the server is away.
const AWAY: Duration = Duration::from_secs(12);

/// How long is waited for a change before the case is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let behaviour = json!({"first_token_ms": 40.0, "total_ms": 150.0, "tokens": 10}).to_string();
    let mut servers = Vec::new();
    for _ in 0..3 {
        servers.push(setup.model_server(&["--behaviour", &behaviour])?);
    }
    let urls: Vec<String> = servers.iter().map(|(_, address)| format!("http://{address}/v1")).collect();
    let mut upstream = upstream(&urls[0], 20, "5s");
    upstream["endpoints"] = json!(urls[1..]);
    let pod = setup.gateway(&gateway(upstream)).await?;
    let (before, after) = (setup.seconds(4, 10), setup.seconds(10, 15));
    let load =
        Load { rate: RATE, seed: 11, warm: Duration::ZERO, length: before + AWAY + after, fresh: false, give_up: None };
    let (mut first, address) = servers.remove(0);
    let story = async {
        sleep(before).await;
        let failed_before = failures(&pod).await?;
        first.kill()?;
        let killed = Instant::now();
        until("the breaker opens", PATIENCE, async || Ok(endpoint(&pod, address).await?["breaker"] == "open")).await?;
        let opened = killed.elapsed();
        let tries = failures(&pod).await? - failed_before;
        sleep(AWAY.saturating_sub(killed.elapsed())).await;
        let (again, _) = setup.model_server(&["--behaviour", &behaviour, "--listen", &address.to_string()])?;
        let back = Instant::now();
        let called = async || Ok(HttpClient::new(address).get("/sim/calls").await?.json()?["count"] != 0);
        until("the server is called again", PATIENCE, called).await?;
        anyhow::Ok((opened, tries, back.elapsed(), again))
    };
    let pods = [pod.http()];
    let (seen, (opened, tries, back, _again)) = tokio::try_join!(open_loop(&pods, load), story)?;
    let case = format!("one of three endpoints dies, {RATE} turns/s");
    let failed = seen.sent - seen.answered;
    Ok(vec![
        Row::figure(format!("{case}: turns not answered"), failed as f64, "")
            .must(Bound::AtMost(0.0))
            .note(format!("{seen}; first token p99 {:.0} ms", seen.first_ms(0.99))),
        Row::figure(format!("{case}: calls until its breaker is open"), tries as f64, "")
            .must(Bound::AtMost(20.0))
            .note(format!("{:.2} s after the kill", opened.as_secs_f64())),
        Row::figure(format!("{case}: from its return to its first call"), back.as_secs_f64(), "s")
            .must(Bound::AtMost(6.0)),
    ])
}

/// What the pod says of an endpoint.
async fn endpoint(pod: &GatewayProcess, address: SocketAddr) -> anyhow::Result<Value> {
    let status = pod.status().await?;
    let upstreams = status["upstreams"].as_array().into_iter().flatten();
    let mut endpoints = upstreams.filter_map(|upstream| upstream["endpoints"].as_array()).flatten();
    let named = |endpoint: &&Value| endpoint.to_string().contains(&address.to_string());
    endpoints.find(named).cloned().ok_or_else(|| anyhow::anyhow!("no endpoint {address} in {status}"))
}

/// Calls that failed until now: those at the dead endpoint, since nothing else fails here.
async fn failures(pod: &GatewayProcess) -> anyhow::Result<u64> {
    let status = pod.status().await?;
    status["upstreams"][0]["failures"].as_u64().ok_or_else(|| anyhow::anyhow!("no count of failures in {status}"))
}
