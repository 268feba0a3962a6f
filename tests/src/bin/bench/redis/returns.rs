//! Many clients lose their connections in the middle of their answers, and all come back within seconds, to other pods.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde_json::json;
use tokio::{sync::watch, task::JoinSet};

use super::{
    connection::{Connection, Event, Faults, Story, Told},
    ground::{Ground, Service, answer, until},
};
use crate::{
    report::{Bound, Row},
    setup::Setup,
};

const PODS: usize = 3;

const CLIENTS: usize = 2_000;

/// Tokens of an answer: thirty seconds.
const TOKENS: u64 = 150;

const TOKENS_PER_SECOND: u64 = 5;

/// Over which time the answers begin.
const START: Duration = Duration::from_secs(4);

/// Text that every client has before the connections break.
const TEXTS_BEFORE: u64 = 3;

/// When the first ones come back: some tokens are missed by then.
const FIRST_RETURN: Duration = Duration::from_millis(700);

/// When the last ones do.
const LAST_RETURN: Duration = Duration::from_secs(5);

/// What the clients share.
struct Shared {
    service: Arc<Service>,
    expected: Arc<str>,
    under_way: AtomicU64,
    broken: watch::Receiver<bool>,
}

struct Outcome {
    story: Story,
    /// From sending `resume` to the first text that was missed.
    waited: Option<Duration>,
}

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let behaviour = json!({"tokens": TOKENS, "tokens_per_second": TOKENS_PER_SECOND, "first_token_ms": 50.0});
    let ground = Ground::start(setup, &behaviour)?;
    let pods = ground.pods(PODS, &json!({})).await?;
    let (mut faults, mut completed) = (Faults::default(), 0);
    let mut waited = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    let rounds = if setup.quick { 1 } else { 3 };
    for round in 0..rounds {
        let (cut, broken) = watch::channel(false);
        let under_way = AtomicU64::new(0);
        let shared = Arc::new(Shared { service: Service::new(&pods), expected: answer(TOKENS), under_way, broken });
        let mut clients: JoinSet<Outcome> =
            (0..CLIENTS).map(|client| follow(shared.clone(), client, format!("returns-{round}-{client}"))).collect();
        let started = async || Ok(shared.under_way.load(Relaxed) == CLIENTS as u64);
        until("every answer has begun", START + Duration::from_secs(15), started).await?;
        cut.send_replace(true);
        while let Some(outcome) = clients.join_next().await {
            let outcome = outcome?;
            completed += outcome.story.answered();
            faults.add(outcome.story.faults);
            if let Some(client_waited) = outcome.waited {
                waited.record(u64::try_from(client_waited.as_micros())?)?;
            }
        }
    }
    let all = (rounds * CLIENTS) as u64;
    let calls = ground.model_calls().await?;
    let case = format!("{CLIENTS} clients break off and return to other pods");
    let none =
        |what: &str, count: u64| Row::figure(format!("{case}: {what}"), count as f64, "").must(Bound::AtMost(0.0));
    let ms = |quantile| waited.value_at_quantile(quantile) as f64 / 1_000.0;
    Ok(vec![
        none("entries lost, doubled, answers wrong", faults.of_entries()).note(faults.to_string()),
        none("answers not completed", all.saturating_sub(completed)).note(format!("of {all}")),
        none("further model calls", calls.abs_diff(all)).note(format!("{calls} calls")),
        Row::figure(format!("{case}: from resume to the first missed text, p99"), ms(0.99), "ms")
            .bounds(Bound::AtMost(500.0), Bound::AtMost(250.0))
            .note(format!("p50 {:.1}, highest {:.1}; {} samples{}", ms(0.5), ms(1.0), waited.len(), ground.disk())),
    ])
}

/// One client. What goes wrong is in its story.
async fn follow(shared: Arc<Shared>, client: usize, session: String) -> Outcome {
    let mut outcome = Outcome { story: Story::new(session, Some(shared.expected.clone())), waited: None };
    if let Err(error) = follow_to_end(&shared, client, &mut outcome).await {
        outcome.story.faults.failed += 1;
        outcome.story.faults.say(|| format!("{error:#}"));
    }
    outcome
}

async fn follow_to_end(shared: &Shared, client: usize, outcome: &mut Outcome) -> anyhow::Result<()> {
    let Outcome { story, waited } = outcome;
    let place = client as f64 / CLIENTS as f64;
    tokio::time::sleep(START.mul_f64(place)).await;
    let mut connection = Connection::open(shared.service.pick(client)?, client).await?;
    connection.send(&story.session, 0).await?;
    let mut broken = shared.broken.clone();
    let mut texts = 0;
    loop {
        let frame = tokio::select! {
            biased;
            cut = broken.wait_for(|cut| *cut) => { cut?; break }
            frame = connection.next() => frame?,
        };
        match take(story, &mut connection, &frame)? {
            Told::End => anyhow::bail!("an answer ended too early"),
            Told::Text => texts += 1,
            _ => continue,
        }
        if texts == TEXTS_BEFORE {
            shared.under_way.fetch_add(1, Relaxed);
        }
    }
    let left = connection.pod;
    drop(connection);
    // In another order than that in which they began.
    let turn = (client * 7_919 % CLIENTS) as f64 / CLIENTS as f64;
    tokio::time::sleep(FIRST_RETURN + (LAST_RETURN - FIRST_RETURN).mul_f64(turn)).await;
    let mut connection = Connection::open(shared.service.pick_other(client, left)?, client).await?;
    let asked = Instant::now();
    connection.resume(&story.session, story.position).await?;
    if !connection.resumed().await? {
        story.faults.lost += 1;
        anyhow::bail!("{} was not found again at {}", story.session, story.position);
    }
    loop {
        let frame = connection.next().await?;
        match take(story, &mut connection, &frame)? {
            Told::Text if waited.is_none() => *waited = Some(asked.elapsed()),
            Told::End => return Ok(()),
            _ => {}
        }
    }
}

fn take(story: &mut Story, connection: &mut Connection, frame: &[u8]) -> anyhow::Result<Told> {
    let event = Event::parse(frame)?;
    anyhow::ensure!(!event.refuses(), "refused: {}", String::from_utf8_lossy(frame));
    story.take(connection, &event)
}
