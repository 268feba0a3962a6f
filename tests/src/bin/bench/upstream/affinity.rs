//! What model servers' prefix caches gain when a session stays on one of them: three servers, each with room for a third of the
//! conversations, and conversations that grow.

use std::time::Duration;

use chatgateway_tests::{client::HttpClient, process::Process};
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::json;
use std::net::SocketAddr;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    ground::{gateway, upstream},
    load::{Client, Seen, gap},
};
use crate::{report::Row, setup::Setup};

const SERVERS: usize = 3;

const SESSIONS: usize = 120;

/// Turns of each conversation.
const TURNS: usize = 10;

/// Bytes of each question.
const QUESTION_BYTES: usize = 1_000;

/// Blocks of 64 bytes that a server remembers: somewhat more than a third of what all conversations have at their end.
const BLOCKS: &str = "8000";

/// Between a session's answer and its next question, on the average.
const PAUSE: Duration = Duration::from_millis(500);

/// What conversations were like.
struct Talked {
    seen: Seen,
    hits: f64,
    misses: f64,
    /// Calls of each server.
    calls: Vec<u64>,
}

impl Talked {
    fn hit_percent(&self) -> f64 {
        100.0 * self.hits / (self.hits + self.misses)
    }
}

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let (without, with) = (talk(setup, "None").await?, talk(setup, "Session").await?);
    let case = format!("{SESSIONS} conversations over {SERVERS} servers with prefix caches, affinity against none");
    let row = |what: &str, own, unit, base| Row::against(format!("{case}: {what}"), own, unit, base, own / base);
    Ok(vec![
        row("prompts found in the cache", with.hit_percent(), "%", without.hit_percent())
            .note(format!("calls of the servers: {:?} with, {:?} without", with.calls, without.calls)),
        row("first token p50", with.seen.first_ms(0.5), "ms", without.seen.first_ms(0.5)).note(with.seen.to_string()),
        row("first token p99", with.seen.first_ms(0.99), "ms", without.seen.first_ms(0.99)),
    ])
}

async fn talk(setup: &Setup, affinity: &str) -> anyhow::Result<Talked> {
    // A prompt that is remembered needs a fifth of the time.
    let behaviour = json!({"first_token_ms": 200.0, "tokens_per_second": 200.0, "tokens": 20, "prefix_saving": 0.8});
    let mut servers: Vec<(Process, SocketAddr)> = Vec::new();
    for _ in 0..SERVERS {
        servers.push(setup.model_server(&["--behaviour", &behaviour.to_string(), "--prefix-blocks", BLOCKS])?);
    }
    let urls: Vec<String> = servers.iter().map(|(_, address)| format!("http://{address}/v1")).collect();
    let mut upstream = upstream(&urls[0], 200, "30s");
    upstream["endpoints"] = json!(urls[1..]);
    upstream["affinity"] = json!(affinity);
    let mut config = gateway(upstream);
    config["sessions"]["history"] = json!({"maxTurns": TURNS});
    let pod = setup.gateway(&config).await?;
    let turns = if setup.quick { TURNS / 2 } else { TURNS };
    let mut clients: JoinSet<anyhow::Result<Seen>> =
        (0..SESSIONS).map(|number| conversation(pod.http(), number, turns)).collect();
    let mut seen = Seen::new()?;
    while let Some(client) = clients.join_next().await {
        seen.add(client??)?;
    }
    let mut talked = Talked { seen, hits: 0.0, misses: 0.0, calls: Vec::new() };
    for (_, address) in &servers {
        let record = HttpClient::new(*address).get("/sim/calls").await?.json()?;
        talked.hits += record["prefix_hits"].as_f64().unwrap_or_default();
        talked.misses += record["prefix_misses"].as_f64().unwrap_or_default();
        talked.calls.push(record["count"].as_u64().unwrap_or_default());
    }
    Ok(talked)
}

/// A session that thinks before each question. Its first one, which no cache can know, is not counted.
async fn conversation(pod: SocketAddr, number: usize, turns: usize) -> anyhow::Result<Seen> {
    let mut random = StdRng::seed_from_u64(number as u64);
    let mut pause = || gap(&mut random, 1.0 / PAUSE.as_secs_f64());
    let mut client = Client::open(pod, number, format!("talk-{number}")).await?;
    let mut seen = Seen::new()?;
    for turn in 0..turns {
        sleep(pause()).await;
        let question = format!("{number}/{turn} {}", "x".repeat(QUESTION_BYTES));
        let turned = client.turn(Instant::now(), &question).await?;
        if turn > 0 {
            seen.take(&turned);
        }
    }
    Ok(seen)
}
