//! A server without continuous batching: four workers, a call alone takes 200 ms, a batch of four 348 ms.

use std::{net::SocketAddr, time::Duration};

use chatgateway_tests::client::HttpClient;
use serde_json::{Value, json};

use super::{
    ground::{Lane, addresses, batching_config, batching_server},
    load::{Load, Seen, closed_loop, open_loop},
};
use crate::{
    report::{Bound, Row},
    setup::Setup,
};

/// Clients of the closed loop: four times what the server can have in batches of four.
const CLIENTS: usize = 64;

/// Pods that are measured at once, each with a server of its own: as many turns in a quarter of the time.
const LANES: usize = 4;

/// What a server answers without batches, turns a second: four workers with 200 ms each.
const RATE_OFF: f64 = 20.0;

/// Of that, what is little to do.
const LOW_LOAD: f64 = 0.2;

/// First tokens are to come within this, 99 of 100.
const TARGET: Duration = Duration::from_millis(300);

/// How often a load is tried before it is one that is not held: something else on the machine may have been in the way.
const ATTEMPTS: u64 = 2;

/// Loads between which the highest one is looked for, turns a second.
const RATES: (f64, f64) = (8.0, 50.0);

fn off() -> Value {
    json!({"mode": "Off"})
}

fn fixed() -> Value {
    json!({"mode": "Fixed", "maxBatchSize": 4, "maxDelay": "50ms"})
}

fn adaptive() -> Value {
    json!({"mode": "Adaptive"})
}

async fn lanes(setup: &Setup, count: usize, batching: &Value) -> anyhow::Result<Vec<Lane>> {
    Lane::start(setup, count, &batching_server("4"), |model| batching_config(model, batching)).await
}

/// Turns of a call, on the average since the servers' start.
async fn batch_size(lanes: &[Lane]) -> anyhow::Result<f64> {
    let (mut calls, mut prompts) = (0.0, 0.0);
    for lane in lanes {
        let record = HttpClient::new(lane.model).get("/sim/calls").await?.json()?;
        calls += record["count"].as_f64().unwrap_or_default();
        prompts += record["prompts"].as_f64().unwrap_or_default();
    }
    Ok(prompts / calls)
}

/// Turns a second while there is always more to do than the server can.
pub async fn throughput(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let mut figures = Vec::new();
    for batching in [off(), fixed()] {
        let lanes = lanes(setup, 1, &batching).await?;
        let rate = closed_loop(&addresses(&lanes), CLIENTS, setup.seconds(3, 5), setup.seconds(6, 30)).await?;
        figures.push((rate, batch_size(&lanes).await?));
    }
    let [(off, off_size), (fixed, fixed_size)] = figures[..] else { anyhow::bail!("two rounds") };
    Ok(vec![
        Row::against("turns a second, Fixed 4/50 ms against Off, one pod", fixed, "1/s", off, fixed / off)
            .bounds(Bound::AtLeast(2.1), Bound::AtLeast(2.25))
            .note(format!("turns of a call: {fixed_size:.2} and {off_size:.2}; the server can do 2.3 times as much")),
    ])
}

/// First tokens at a fifth of what the server can do without batches: both modes at the same time, with the same arrivals.
pub async fn low_load(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let (without, with) = (lanes(setup, LANES, &off()).await?, lanes(setup, LANES, &adaptive()).await?);
    let (warm, length) = (setup.seconds(2, 5), setup.seconds(15, 180));
    let load = Load { rate: RATE_OFF * LOW_LOAD, seed: 1, warm, length, fresh: false, give_up: None };
    let (without_at, with_at) = (addresses(&without), addresses(&with));
    let (off, adaptive) = tokio::try_join!(open_loop(&without_at, load), open_loop(&with_at, load))?;
    let case = "first token at 20 % load, Adaptive against Off";
    let size = batch_size(&with).await?;
    let row = |quantile, name: &str| {
        let (own, base) = (adaptive.first_ms(quantile), off.first_ms(quantile));
        Row::against(format!("{case}: {name}"), own, "ms", base, own / base)
    };
    Ok(vec![
        row(0.5, "p50"),
        row(0.99, "p99")
            .bounds(Bound::AtMost(1.05), Bound::AtMost(1.01))
            .note(format!("Adaptive: {adaptive}; Off: {off}")),
        row(0.999, "p99.9").note(format!("turns of a call: {size:.2}")),
    ])
}

/// The highest load at which 99 of 100 first tokens come within 300 ms.
pub async fn capacity(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let off = highest(setup, &off()).await?;
    let fixed = highest(setup, &fixed()).await?;
    let adaptive = highest(setup, &adaptive()).await?;
    let case = "highest load with p99 of the first token below 300 ms";
    let against = |name: &str, base: &Highest| {
        let ratio = adaptive.rate / base.rate;
        Row::against(format!("{case}: Adaptive against {name}"), adaptive.rate, "1/s", base.rate, ratio)
            .note(format!("{adaptive}; {name}: {base}"))
    };
    Ok(vec![
        against("Off", &off).bounds(Bound::AtLeast(1.6), Bound::AtLeast(1.9)),
        against("Fixed", &fixed).bounds(Bound::AtLeast(1.1), Bound::AtLeast(1.3)),
    ])
}

/// The highest load that was held, a second and a pod.
struct Highest {
    rate: f64,
    p99_ms: f64,
    batch_size: f64,
    turns: u64,
}

impl std::fmt::Display for Highest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rate, p99_ms, batch_size, turns } = self;
        write!(
            f,
            "{rate:.1}/s held with p99 {p99_ms:.0} ms, {batch_size:.2} turns a call on the way there, {turns} turns"
        )
    }
}

/// Halves the distance, in ratios, between a load that was held and one that was not.
async fn highest(setup: &Setup, batching: &Value) -> anyhow::Result<Highest> {
    let lanes = lanes(setup, LANES, batching).await?;
    let pods = addresses(&lanes);
    let precision = if setup.quick { 1.2 } else { 1.04 };
    let (mut held, mut not_held) = RATES;
    let mut best = None;
    while not_held / held > precision {
        let rate = (held * not_held).sqrt();
        let mut holds = false;
        for attempt in 0..ATTEMPTS {
            let seen = at(setup, &pods, rate, attempt).await?;
            let p99_ms = seen.first_ms(0.99);
            eprintln!("  {} {rate:.1}/s: p99 {p99_ms:.0} ms; {seen}", batching["mode"].as_str().unwrap_or_default());
            if seen.unanswered() == 0 && p99_ms < TARGET.as_secs_f64() * 1_000.0 {
                holds = true;
                best = Some((p99_ms, seen.sent));
                break;
            }
        }
        if holds {
            held = rate;
        } else {
            not_held = rate;
        }
    }
    let Some((p99_ms, turns)) = best else { anyhow::bail!("not even {held:.1} turns a second were answered in time") };
    Ok(Highest { rate: held, p99_ms, batch_size: batch_size(&lanes).await?, turns })
}

async fn at(setup: &Setup, pods: &[SocketAddr], rate: f64, attempt: u64) -> anyhow::Result<Seen> {
    let (warm, length) = (setup.seconds(3, 6), setup.seconds(6, 40));
    let seed = (rate * 1_000.0) as u64 * ATTEMPTS + attempt;
    open_loop(pods, Load { rate, seed, warm, length, fresh: false, give_up: Some((0.01, TARGET)) }).await
}
