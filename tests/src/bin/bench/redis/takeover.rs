//! A pod is killed while it runs answers; others go on with them.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use chatgateway_core::{limits::LEASE_TTL, log::EntryId};
use chatgateway_tests::{client::in_time, process::GatewayProcess};
use hdrhistogram::Histogram;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    connection::{Connection, Event, Faults, Story, Told},
    ground::{Ground, Service, answer, reconnect, until},
};
use crate::{
    report::{Bound, Row},
    setup::Setup,
};

const PODS: usize = 3;

const SESSIONS: usize = 500;

/// Tokens of an answer: fifteen seconds.
const TOKENS: u64 = 300;

const TOKENS_PER_SECOND: u64 = 20;

/// Over which time the answers begin.
const START: Duration = Duration::from_secs(2);

/// Text that every client has before the pod is killed.
const TEXTS_BEFORE: u64 = 10;

/// Logs that are read at a time afterwards.
const READ_AT_ONCE: usize = 20;

/// What the clients of one round share.
struct Round {
    number: usize,
    service: Arc<Service>,
    expected: Arc<str>,
    under_way: AtomicU64,
    killed: OnceLock<Instant>,
}

/// What became of one client.
struct Outcome {
    story: Story,
    /// From the kill to the first new token, where the turn was taken over.
    waited: Option<Duration>,
}

/// All clients together.
#[derive(Default)]
struct Seen {
    faults: Faults,
    completed: u64,
    waited_ms: Option<Histogram<u64>>,
}

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let behaviour = json!({"tokens": TOKENS, "tokens_per_second": TOKENS_PER_SECOND, "first_token_ms": 50.0});
    let ground = Ground::start(setup, &behaviour)?;
    let mut pods = ground.pods(PODS, &json!({})).await?;
    let rounds = if setup.quick { 1 } else { 3 };
    let mut seen = Seen::default();
    for number in 0..rounds {
        round(&mut pods, number, &mut seen).await?;
        pods.push(ground.pod(&json!({})).await?);
        for pod in &pods {
            super::ground::knows_others(pod, PODS - 1).await?;
        }
    }
    let calls = ground.model_calls().await?;
    Ok(rows(&seen, rounds, calls, &ground.disk()))
}

fn rows(seen: &Seen, rounds: usize, calls: u64, disk: &str) -> Vec<Row> {
    let all = (rounds * SESSIONS) as u64;
    let case = format!("pod killed at {SESSIONS} answers on {PODS} pods");
    let ttl = LEASE_TTL.as_secs_f64();
    let bounds = (Bound::AtMost(ttl + 1.0), Bound::AtMost(ttl + 0.3));
    let seconds = |quantile| match &seen.waited_ms {
        Some(waited) => waited.value_at_quantile(quantile) as f64 / 1_000.0,
        None => f64::NAN,
    };
    let taken = seen.waited_ms.as_ref().map_or(0, Histogram::len);
    vec![
        Row::figure(format!("{case}: entries lost, doubled, answers wrong"), seen.faults.of_entries() as f64, "")
            .must(Bound::AtMost(0.0))
            .note(seen.faults.to_string()),
        Row::figure(format!("{case}: answers not completed"), all.saturating_sub(seen.completed) as f64, "")
            .must(Bound::AtMost(0.0))
            .note(format!("{all} answers, {taken} taken over, {calls} model calls")),
        Row::figure(format!("{case}: from kill to next token, p50"), seconds(0.5), "s").bounds(bounds.0, bounds.1),
        Row::figure(format!("{case}: from kill to next token, highest"), seconds(1.0), "s")
            .bounds(bounds.0, bounds.1)
            .note(format!("p99 {:.2} s{disk}", seconds(0.99))),
    ]
}

async fn round(pods: &mut Vec<GatewayProcess>, number: usize, seen: &mut Seen) -> anyhow::Result<()> {
    let round = Arc::new(Round {
        number,
        service: Service::new(pods),
        expected: answer(TOKENS),
        under_way: AtomicU64::new(0),
        killed: OnceLock::new(),
    });
    let mut clients: JoinSet<Outcome> = (0..SESSIONS).map(|client| follow(round.clone(), client)).collect();
    let started = async || Ok(round.under_way.load(Relaxed) == SESSIONS as u64);
    until("every answer has begun", Duration::from_secs(15), started).await?;
    let mut victim = pods.remove(0);
    let now = Instant::now();
    victim.process().signal(Signal::SIGKILL)?;
    round.killed.get_or_init(|| now);
    round.service.remove(victim.http());
    let mut stories = Vec::new();
    let waited = seen.waited_ms.get_or_insert(Histogram::new_with_bounds(1, 120_000, 3)?);
    while let Some(outcome) = clients.join_next().await {
        let Outcome { story, waited: client_waited } = outcome?;
        if let Some(client_waited) = client_waited {
            waited.record(u64::try_from(client_waited.as_millis())?)?;
        }
        seen.completed += story.answered();
        stories.push(story);
    }
    read_again(&round, &mut stories).await?;
    stories.into_iter().for_each(|story| seen.faults.add(story.faults));
    Ok(())
}

/// One client. What goes wrong is in its story.
async fn follow(round: Arc<Round>, client: usize) -> Outcome {
    let session = format!("takeover-{}-{client}", round.number);
    let mut outcome = Outcome { story: Story::new(session, Some(round.expected.clone())), waited: None };
    if let Err(error) = follow_to_end(&round, client, &mut outcome).await {
        outcome.story.faults.failed += 1;
        outcome.story.faults.say(|| format!("{error:#}"));
    }
    outcome
}

async fn follow_to_end(round: &Round, client: usize, outcome: &mut Outcome) -> anyhow::Result<()> {
    let Outcome { story, waited } = outcome;
    tokio::time::sleep(START.mul_f64(client as f64 / SESSIONS as f64)).await;
    let mut connection = Connection::open(round.service.pick(client)?, client).await?;
    connection.send(&story.session, 0).await?;
    let (mut texts, mut taken_over) = (0, false);
    loop {
        let frame = match connection.next().await {
            Ok(frame) => frame,
            Err(error) if round.killed.get().is_none() => return Err(error),
            Err(_) => {
                let refused;
                (connection, refused) = reconnect(&round.service, client, connection.pod).await?;
                story.faults.refused += refused;
                connection.resume(&story.session, story.position).await?;
                if !connection.resumed().await? {
                    story.faults.lost += 1;
                    anyhow::bail!("{} was not found again at {}", story.session, story.position);
                }
                continue;
            }
        };
        let event = Event::parse(&frame)?;
        anyhow::ensure!(!event.refuses(), "refused: {}", String::from_utf8_lossy(&frame));
        match story.take(&mut connection, &event)? {
            Told::Takeover => taken_over = true,
            Told::Text => {
                texts += 1;
                if texts == TEXTS_BEFORE {
                    round.under_way.fetch_add(1, Relaxed);
                }
                if taken_over && waited.is_none() {
                    *waited = round.killed.get().map(Instant::elapsed);
                }
            }
            Told::End => return Ok(()),
            Told::Nothing | Told::Again | Told::Entry => {}
        }
    }
}

/// Reads every log from its start: it says what the clients were told.
async fn read_again(round: &Arc<Round>, stories: &mut [Story]) -> anyhow::Result<()> {
    for (at, some) in stories.chunks_mut(READ_AT_ONCE).enumerate() {
        let reads = some.iter_mut().map(|story| read_log(round, at, story));
        in_time("the logs", futures_util::future::try_join_all(reads)).await??;
    }
    Ok(())
}

async fn read_log(round: &Round, number: usize, told: &mut Story) -> anyhow::Result<()> {
    let mut connection = Connection::open(round.service.pick(number)?, number).await?;
    connection.resume(&told.session, EntryId::ZERO).await?;
    anyhow::ensure!(connection.resumed().await?, "{} has no start", told.session);
    let mut log = Story::new(told.session.clone(), Some(round.expected.clone()));
    while log.position < told.position {
        let frame = connection.next().await?;
        log.take(&mut connection, &Event::parse(&frame)?)?;
    }
    if log.ids != told.ids {
        told.faults.lost += 1;
        told.faults.say(|| {
            format!("the log of {} has {} entries, its client got {}", log.session, log.ids.len(), told.ids.len())
        });
    }
    told.faults.add(log.faults);
    Ok(())
}
