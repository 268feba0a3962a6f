//! All pods are replaced, one after the other, under answers that go on and on. Each client does what clients should: told
//! to go away it waits as long as it was told, opens a connection to a ready pod, resumes there, and only then leaves the old
//! one.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use chatgateway_core::log::EntryId;
use chatgateway_tests::process::GatewayProcess;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    connection::{Connection, Event, Faults, Story, Told},
    ground::{Ground, Service, answer, knows_others, reconnect, until},
};
use crate::{
    report::{Bound, Row},
    setup::Setup,
};

const PODS: usize = 3;

const CLIENTS: usize = 500;

/// Tokens of an answer: five seconds.
const TOKENS: u64 = 100;

const TOKENS_PER_SECOND: u64 = 20;

/// Over which time the clients begin: one answer's, so that turns begin and end all the time.
const START: Duration = Duration::from_secs(5);

/// How long new clients still come to a pod that was told to end: endpoints take as long to be heard of.
const SERVICE_LAG: Duration = Duration::from_millis(500);

/// How long an old pod may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(75);

/// How often a turn is sent again after refusals.
const REFUSALS_MAX: u32 = 20;

/// What goes on. The values count the stretches of time.
const BEFORE: usize = 0;
const BASELINE: usize = 1;
const REPLACING: usize = 2;
const AFTER: usize = 3;

/// What the clients share.
struct Shared {
    service: Arc<Service>,
    expected: Arc<str>,
    phase: AtomicUsize,
    begun: AtomicU64,
    seen: Mutex<Seen>,
}

/// What they saw.
struct Seen {
    /// The largest gap between two texts of each turn, µs, by phase.
    gaps: [Histogram<u64>; AFTER],
    /// The same during the replacement, of turns whose client moved meanwhile.
    moved: Histogram<u64>,
    faults: Faults,
    turns: u64,
    /// Times a turn was sent again after a refusal: elsewhere, since the pod drained, or for another reason.
    sent_again: u64,
    refused_otherwise: u64,
    moves: u64,
    /// Connections that broke before their client had another one.
    broke: u64,
}

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let behaviour = json!({"tokens": TOKENS, "tokens_per_second": TOKENS_PER_SECOND, "first_token_ms": 50.0});
    let ground = Arc::new(Ground::start(setup, &behaviour)?);
    let drain = match setup.quick {
        true => json!({"acceptFloor": "1s", "reconnectSpread": "3s", "timeout": "30s"}),
        false => json!({"acceptFloor": "5s", "reconnectSpread": "10s", "timeout": "60s"}),
    };
    let mut pods = ground.pods(PODS, &drain).await?;
    let histogram = || Histogram::new_with_bounds(1, 60_000_000, 3);
    let shared = Arc::new(Shared {
        service: Service::new(&pods),
        expected: answer(TOKENS),
        phase: AtomicUsize::new(BEFORE),
        begun: AtomicU64::new(0),
        seen: Mutex::new(Seen {
            gaps: [histogram()?, histogram()?, histogram()?],
            moved: histogram()?,
            faults: Faults::default(),
            turns: 0,
            sent_again: 0,
            refused_otherwise: 0,
            moves: 0,
            broke: 0,
        }),
    });
    let mut clients: JoinSet<()> = (0..CLIENTS).map(|client| chat(shared.clone(), client)).collect();
    let begun = async || Ok(shared.begun.load(Relaxed) == CLIENTS as u64);
    until("every client has an answer", START + Duration::from_secs(15), begun).await?;
    shared.phase.store(BASELINE, Relaxed);
    tokio::time::sleep(setup.seconds(8, 30)).await;
    shared.phase.store(REPLACING, Relaxed);
    let began = Instant::now();
    for _ in 0..PODS {
        replace_oldest(&ground, &drain, &mut pods, &shared).await?;
    }
    let took = began.elapsed();
    shared.phase.store(AFTER, Relaxed);
    while let Some(client) = clients.join_next().await {
        client?;
    }
    let disk = ground.disk();
    Ok(rows(&shared.seen.lock(), took, &disk))
}

fn rows(seen: &Seen, took: Duration, disk: &str) -> Vec<Row> {
    let case = format!("{PODS} pods replaced under {CLIENTS} answers");
    let none =
        |what: &str, count: u64| Row::figure(format!("{case}: {what}"), count as f64, "").must(Bound::AtMost(0.0));
    let ms = |phase: usize, quantile| seen.gaps[phase].value_at_quantile(quantile) as f64 / 1_000.0;
    let moved_ms = |quantile| seen.moved.value_at_quantile(quantile) as f64 / 1_000.0;
    let (own, base) = (ms(REPLACING, 0.99), ms(BASELINE, 0.99));
    vec![
        none("turns failed", seen.faults.failed).note(format!(
            "{} turns in all, {} sent again ({} not for a drain), {} moves, {} connections broke; {:.0} s",
            seen.turns,
            seen.sent_again,
            seen.refused_otherwise,
            seen.moves,
            seen.broke,
            took.as_secs_f64()
        )),
        none("connects refused", seen.faults.refused),
        none("entries lost, doubled, answers wrong", seen.faults.of_entries()).note(seen.faults.to_string()),
        Row::figure(format!("{case}: added pause, p99"), own - base, "ms")
            .bounds(Bound::AtMost(300.0), Bound::AtMost(300.0))
            .note(format!(
                "largest gap between a turn's texts {own:.0} − {base:.0} without; p50 {:.0} − {:.0}, p90 {:.0} − {:.0}, \
                 highest {:.0} − {:.0}; {} turns whose client moved: p50 {:.0}, p99 {:.0}{disk}",
                ms(REPLACING, 0.5),
                ms(BASELINE, 0.5),
                ms(REPLACING, 0.9),
                ms(BASELINE, 0.9),
                ms(REPLACING, 1.0),
                ms(BASELINE, 1.0),
                seen.moved.len(),
                moved_ms(0.5),
                moved_ms(0.99)
            )),
    ]
}

/// Starts a new pod, and ends the oldest once that one is ready.
async fn replace_oldest(
    ground: &Arc<Ground>,
    drain: &Value,
    pods: &mut Vec<GatewayProcess>,
    shared: &Shared,
) -> anyhow::Result<()> {
    // Starting a process blocks, and the clients live on this thread.
    let (starter, with) = (ground.clone(), drain.clone());
    let start = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(starter.pod(&with))
    });
    let new = start.await??;
    knows_others(&new, PODS).await?;
    shared.service.add(new.http());
    pods.push(new);
    let mut old = pods.remove(0);
    old.terminate()?;
    tokio::time::sleep(SERVICE_LAG).await;
    shared.service.remove(old.http());
    let exit = old.process().wait(END_TIMEOUT).await?;
    anyhow::ensure!(exit.success(), "a drained pod ended with {exit}; it said:\n{}", old.process().output());
    Ok(())
}

type Opening = Pin<Box<dyn Future<Output = anyhow::Result<(Connection, u64)>> + Send>>;

/// A client, which asks as soon as it is answered.
struct Client {
    number: usize,
    shared: Arc<Shared>,
    story: Story,
    connection: Connection,
    /// Whether that has not broken.
    connected: bool,
    /// The next connection, after the word to go away.
    opening: Option<Opening>,
    moves: u64,
    sent_again: u64,
    refused_otherwise: u64,
    broke: u64,
}

/// A turn under way.
struct Turn {
    number: u64,
    /// Whether an entry of it came.
    begun: bool,
    over: bool,
    /// Whether the client moved to another connection.
    moved: bool,
    /// When it is to be sent again, after a refusal.
    repeat_after: Option<Duration>,
    refusals: u32,
    last_text: Option<Instant>,
    /// Largest gaps by phase.
    gaps: [Duration; AFTER],
}

async fn chat(shared: Arc<Shared>, number: usize) {
    let mut faults = Faults::default();
    if let Err(error) = chat_to_end(&shared, number, &mut faults).await {
        faults.failed += 1;
        faults.say(|| format!("client {number}: {error:#}"));
    }
    shared.seen.lock().faults.add(faults);
}

async fn chat_to_end(shared: &Arc<Shared>, number: usize, faults: &mut Faults) -> anyhow::Result<()> {
    tokio::time::sleep(START.mul_f64(number as f64 / CLIENTS as f64)).await;
    let connection = Connection::open(shared.service.pick(number)?, number).await?;
    let story = Story::new(format!("rollout-{number}"), Some(shared.expected.clone()));
    let shared = shared.clone();
    let mut client = Client {
        number,
        shared,
        story,
        connection,
        connected: true,
        opening: None,
        moves: 0,
        sent_again: 0,
        refused_otherwise: 0,
        broke: 0,
    };
    let ended = client.turns().await;
    let mut seen = client.shared.seen.lock();
    seen.turns += client.story.answered();
    seen.moves += client.moves;
    seen.sent_again += client.sent_again;
    seen.refused_otherwise += client.refused_otherwise;
    seen.broke += client.broke;
    *faults = std::mem::take(&mut client.story.faults);
    ended
}

impl Client {
    async fn turns(&mut self) -> anyhow::Result<()> {
        let mut number = 0;
        while self.shared.phase.load(Relaxed) < AFTER {
            let gaps = [Duration::ZERO; AFTER];
            let mut turn = Turn {
                number,
                begun: false,
                over: false,
                moved: false,
                repeat_after: None,
                refusals: 0,
                last_text: None,
                gaps,
            };
            self.turn(&mut turn).await?;
            number += 1;
            let mut seen = self.shared.seen.lock();
            if turn.moved && !turn.gaps[REPLACING].is_zero() {
                seen.moved.record(u64::try_from(turn.gaps[REPLACING].as_micros())?)?;
            }
            for (gap, histogram) in turn.gaps.iter().zip(&mut seen.gaps) {
                if !gap.is_zero() {
                    histogram.record(u64::try_from(gap.as_micros())?)?;
                }
            }
        }
        Ok(())
    }

    async fn turn(&mut self, turn: &mut Turn) -> anyhow::Result<()> {
        if self.opening.is_none() {
            // Told to go away, a client asks nothing more there.
            self.connection.send(&self.story.session, turn.number).await?;
        }
        while !turn.over {
            tokio::select! {
                biased;
                frame = self.connection.next(), if self.connected => self.hear(frame, turn)?,
                opened = opened(&mut self.opening) => {
                    let (new, refused) = opened?;
                    self.opening = None;
                    self.story.faults.refused += refused;
                    self.move_to(new, turn).await?;
                    // In case that what was sent last went to the old one.
                    turn.repeat_after.get_or_insert(Duration::ZERO);
                }
            }
            if let Some(wait) = turn.repeat_after.take()
                && self.opening.is_none()
                && !turn.begun
            {
                tokio::time::sleep(wait).await;
                self.connection.send(&self.story.session, turn.number).await?;
            }
        }
        Ok(())
    }

    /// Takes what came over the connection that is to be read now.
    fn hear(&mut self, frame: anyhow::Result<Bytes>, turn: &mut Turn) -> anyhow::Result<()> {
        let Ok(frame) = frame else {
            self.connected = false;
            self.broke += 1;
            self.open_after(Duration::ZERO);
            return Ok(());
        };
        let event = Event::parse(&frame)?;
        if let Some(wait_ms) = event.reconnect_after_ms {
            self.open_after(Duration::from_millis(wait_ms));
        }
        if event.refuses() {
            self.refused(&event, turn).with_context(|| String::from_utf8_lossy(&frame).into_owned())?;
        }
        let told = self.story.take(&mut self.connection, &event)?;
        turn.begun |= !matches!(told, Told::Nothing | Told::Again);
        turn.over |= told == Told::End;
        if told == Told::Text {
            let now = Instant::now();
            match turn.last_text.replace(now) {
                Some(before) => {
                    let phase = self.shared.phase.load(Relaxed);
                    if let Some(gap) = turn.gaps.get_mut(phase) {
                        *gap = (*gap).max(now - before);
                    }
                }
                None if turn.number == 0 => drop(self.shared.begun.fetch_add(1, Relaxed)),
                None => {}
            }
        }
        Ok(())
    }

    /// A turn was refused: where it may be sent again, it is.
    fn refused(&mut self, event: &Event<'_>, turn: &mut Turn) -> anyhow::Result<()> {
        turn.refusals += 1;
        anyhow::ensure!(event.retryable == Some(true) && turn.refusals <= REFUSALS_MAX, "refused");
        self.sent_again += 1;
        if event.code == Some("draining") {
            self.open_after(Duration::ZERO);
        } else {
            self.refused_otherwise += 1;
            turn.repeat_after = Some(Duration::from_millis(event.retry_after_ms.unwrap_or_default()));
        }
        Ok(())
    }

    /// Begins to open the next connection, unless that is under way.
    fn open_after(&mut self, wait: Duration) {
        if self.opening.is_none() {
            let (service, number, leaving) = (self.shared.service.clone(), self.number, self.connection.pod);
            self.opening = Some(Box::pin(async move {
                tokio::time::sleep(wait).await;
                reconnect(&service, number, leaving).await
            }));
        }
    }

    /// Resumes over a new connection. The old one is read until that is so.
    async fn move_to(&mut self, mut new: Connection, turn: &mut Turn) -> anyhow::Result<()> {
        self.moves += 1;
        turn.moved = true;
        if self.story.position != EntryId::ZERO {
            new.resume(&self.story.session, self.story.position).await?;
            loop {
                tokio::select! {
                    biased;
                    frame = self.connection.next(), if self.connected => self.hear(frame, turn)?,
                    recovered = new.resumed() => {
                        if !recovered? {
                            self.story.faults.lost += 1;
                            anyhow::bail!("{} was not found again at {}", self.story.session, self.story.position);
                        }
                        break;
                    }
                }
            }
        }
        self.connection = new;
        self.connected = true;
        // What the old one said meanwhile was about itself.
        self.opening = None;
        Ok(())
    }
}

/// Waits for the next connection, if there is to be one.
async fn opened(opening: &mut Option<Opening>) -> anyhow::Result<(Connection, u64)> {
    match opening {
        Some(opening) => opening.await,
        None => std::future::pending().await,
    }
}
