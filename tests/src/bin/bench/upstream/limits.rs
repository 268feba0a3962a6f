//! One limit over four pods: with Redis, where it is one bucket, and without, where each pod has its share.

use std::{net::SocketAddr, time::Duration};

use chatgateway_redis_server::{Fsync, Options, RedisServer};
use chatgateway_tests::process::{GatewayProcess, on_core};
use serde_json::{Value, json};

use super::flood::{Answers, Flood, flood};
use crate::{
    redis::ground::knows_others,
    report::{Bound, Row},
    setup::{Setup, demo},
};

const PODS: usize = 4;

/// Requests a second of the shared limit, and what its bucket holds.
const RATE: u64 = 2_000;
const BURST: u64 = 4_000;

/// Requests offered, by those of the limit.
const OFFERED: f64 = 10.0;

/// Requests a second while Redis is away: fewer, since pods are to do nothing but refuse, and the shares are what counts.
const LOCAL_RATE: u64 = 400;

/// From Redis' death until shares are counted: pods have noticed, and their buckets are empty.
const SETTLED: Duration = Duration::from_secs(5);

/// A pod that answers at once, with these limits and this Redis.
pub fn limited(redis: &str, limits: &Value) -> Value {
    let mut config = demo(1);
    config["sessions"] = json!({"store": {"type": "Redis", "redis": {"endpoints": [redis]}}});
    config["rateLimits"] = limits.clone();
    config
}

/// Redis as the limits need it.
pub fn redis(core: Option<usize>) -> anyhow::Result<RedisServer> {
    on_core(core, || RedisServer::start(Options { appendonly: Some(Fsync::Everysec), ..Options::default() }))
}

/// Four pods that know each other. They are on both cores: what is counted here is not time, and one core cannot answer that
/// many requests.
async fn pods(setup: &Setup, redis: &RedisServer, limit: &Value) -> anyhow::Result<Vec<GatewayProcess>> {
    let mut pods = Vec::new();
    for number in 0..PODS {
        let core = if number % 2 == 0 { setup.server_core } else { setup.generator_core };
        let on = Setup { server_core: core, ..*setup };
        pods.push(on.gateway(&limited(&redis.endpoint(), limit)).await?);
    }
    for pod in &pods {
        knows_others(pod, PODS - 1).await?;
    }
    Ok(pods)
}

fn addresses(pods: &[GatewayProcess]) -> Vec<SocketAddr> {
    pods.iter().map(GatewayProcess::http).collect()
}

/// The rows of the limit in Redis.
pub async fn shared(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let redis = redis(setup.server_core)?;
    let limit = json!([{"per": "Gateway", "requestsPerSecond": RATE, "burst": BURST}]);
    let pods = pods(setup, &redis, &limit).await?;
    let length = setup.seconds(6, 30);
    let load = Flood { connections: 64, rate: Some(RATE as f64 * OFFERED), length };
    let answers = flood(&addresses(&pods), load, |_| {}).await?;
    let (rate, burst) = (RATE as f64, BURST as f64);
    let allowed = burst + rate * length.as_secs_f64();
    let admitted = answers.admitted.len() as f64;
    let offered = answers.all() as f64 / length.as_secs_f64();
    let case = format!("one limit of {RATE}/s, burst {BURST}, over {PODS} pods, {} s", length.as_secs());
    let note = format!("{answers}; {offered:.0}/s offered, {:.1} times the limit", offered / rate);
    Ok(vec![
        Row::figure(format!("{case}: more than allowed"), 100.0 * (admitted / allowed - 1.0).max(0.0), "%")
            .must(Bound::AtMost(1.0))
            .note(note),
        Row::figure(format!("{case}: most above burst + rate·t"), excess(&answers, rate, burst), "")
            .must(Bound::AtMost(0.0))
            .note("after any answer, the time being the client's: an answer is later than its decision"),
        Row::against(format!("{case}: admitted, by those allowed"), admitted, "", allowed, admitted / allowed)
            .must(Bound::AtLeast(0.99)),
    ])
}

/// The most that was ever admitted above `burst + rate·t`; 0: it never was.
fn excess(answers: &Answers, rate: f64, burst: f64) -> f64 {
    let above = |(count, at): (usize, &Duration)| (count + 1) as f64 - (burst + rate * at.as_secs_f64());
    answers.admitted.iter().enumerate().map(above).fold(0.0, f64::max)
}

/// The rows of the limit while Redis is away.
pub async fn local(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let redis = redis(setup.server_core)?;
    let limit = json!([{"per": "Gateway", "requestsPerSecond": LOCAL_RATE, "burst": LOCAL_RATE, "onStoreFailure": "LocalShare"}]);
    let pods = pods(setup, &redis, &limit).await?;
    let (before, after) = (setup.seconds(2, 5), setup.seconds(8, 30));
    let length = before + SETTLED + after;
    let load = Flood { connections: 16, rate: Some(LOCAL_RATE as f64 * OFFERED), length };
    let addresses = addresses(&pods);
    let killed = async {
        tokio::time::sleep(before).await;
        redis.kill9();
        anyhow::Ok(())
    };
    let (answers, ()) = tokio::try_join!(flood(&addresses, load, |_| {}), killed)?;
    let admitted = answers.admitted_in(before + SETTLED, length) as f64;
    let allowed = LOCAL_RATE as f64 * after.as_secs_f64();
    let away = 100.0 * (admitted / allowed - 1.0).abs();
    let case = format!("{PODS} pods, Redis away, LocalShare of {LOCAL_RATE}/s, {} s", after.as_secs());
    let between = answers.admitted_in(before, before + SETTLED);
    Ok(vec![Row::figure(format!("{case}: admitted, away from the limit"), away, "%").must(Bound::AtMost(5.0)).note(
        format!(
            "{admitted} of {allowed}; {} while Redis was there, {between} in the {} s before that; {answers}",
            answers.admitted_in(Duration::ZERO, before),
            SETTLED.as_secs()
        ),
    )])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_the_line_is_found() {
        let at = |times: &[u64]| Answers {
            admitted: times.iter().map(|ms| Duration::from_millis(*ms)).collect(),
            ..Answers::default()
        };
        assert_eq!(excess(&at(&[0, 0, 100, 200]), 10.0, 2.0), 0.0);
        assert_eq!(excess(&at(&[0, 0, 0, 1_000]), 10.0, 2.0), 1.0);
    }
}
