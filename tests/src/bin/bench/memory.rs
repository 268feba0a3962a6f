//! Resident memory: of connections that do nothing, and after answers that were large.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chatgateway_tests::process::GatewayProcess;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    closed::{ANSWER_BYTES, QUESTION, ends_turn, send_frame},
    report::{Bound, Row},
    setup::{Setup, demo},
    wire::{self, Frame, Mode},
};

const IDLE_CONNECTIONS: usize = 10_000;

const BIG_ANSWER_CONNECTIONS: usize = 2_000;

const BIG_ANSWER_BYTES: usize = 1024 * 1024;

/// The embedded store keeps answers for 16 seconds at least, and memory that it has had costs the allocator some
/// bookkeeping for ever. What is measured here is what connections keep, so the store is not filled with gigabytes.
const BIG_ANSWERS_PER_SECOND: u32 = 10;

const SMALL_ANSWERS_PER_SECOND: u32 = 2_000;

/// Connections opened, or answers under way, at a time.
const AT_A_TIME: usize = 16;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections that answer pings, and have a turn each when they are told to.
struct Crowd {
    members: JoinSet<anyhow::Result<()>>,
    /// A permit is one member's leave to have its turn.
    turns: Arc<Semaphore>,
    answered: mpsc::Receiver<()>,
    count: usize,
}

/// One of a crowd.
struct Member {
    sender: wire::Sender,
    receiver: wire::Receiver,
    mode: Mode,
    session: String,
    turns: Arc<Semaphore>,
    answered: mpsc::Sender<()>,
}

/// RSS of a connection that was opened and does nothing, and of one that has had a turn.
pub async fn idle(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let count = if setup.quick { 2_000 } else { IDLE_CONNECTIONS };
    let mut rows = Vec::new();
    for (mode, name) in [(Mode::Json, "JSON"), (Mode::Plain, "plain text")] {
        let mut config = demo(ANSWER_BYTES);
        config["sessions"] = json!({"ttl": "16s"});
        let gateway = setup.gateway(&config).await?;
        let before = warmed_up(&gateway, mode).await?;
        let mut crowd = Crowd::open(&gateway, mode, count).await?;
        let opened = settled(&gateway, Duration::from_secs(20), 0).await?.0;
        let kilobytes = |after: u64| after.saturating_sub(before) as f64 / count as f64 / 1024.0;
        let of_all = |after: u64| format!("RSS {} MB, from {} MB", after >> 20, before >> 20);
        rows.push(
            Row::figure(format!("RSS per idle WebSocket, {count} of {name}"), kilobytes(opened), "KiB")
                .bounds(Bound::AtMost(12.0), Bound::AtMost(8.0))
                .note(of_all(opened)),
        );
        crowd.answers(SMALL_ANSWERS_PER_SECOND).await?;
        let had_turns = settled(&gateway, Duration::from_secs(40), opened).await?.0;
        rows.push(
            Row::figure(format!("the same after a small turn each ({name})"), kilobytes(had_turns), "KiB")
                .note(of_all(had_turns)),
        );
    }
    Ok(rows)
}

/// RSS after one large answer to each connection, by RSS before.
pub async fn big_answers(setup: &Setup, mode: Mode) -> anyhow::Result<Vec<Row>> {
    let count = if setup.quick { 500 } else { BIG_ANSWER_CONNECTIONS };
    let mut config = demo(BIG_ANSWER_BYTES);
    // The store's own copies of the answers go with their sessions: the least time to live is set.
    config["sessions"] = json!({"ttl": "16s"});
    let gateway = setup.gateway(&config).await?;
    let mut crowd = Crowd::open(&gateway, mode, count).await?;
    let before = settled(&gateway, Duration::from_secs(20), 0).await?.0;
    let began = Instant::now();
    crowd.answers(if setup.quick { 50 } else { BIG_ANSWERS_PER_SECOND }).await?;
    let took = began.elapsed();
    let highest = gateway.rss_bytes()?;
    let (after, settling) = settled(&gateway, setup.seconds(45, 90), before + before / 10).await?;
    let name = if mode == Mode::Json { "JSON" } else { "plain text" };
    let megabytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let ratio = after as f64 / before as f64;
    Ok(vec![
        Row::against(
            format!("RSS after a 1 MB answer to each of {count} ({name})"),
            megabytes(after),
            "MiB",
            megabytes(before),
            ratio,
        )
        .bounds(Bound::AtMost(1.3), Bound::AtMost(1.1))
        .note(format!(
            "answers, paced, took {:.1} s; at their end {:.0} MiB; settled in {:.1} s",
            took.as_secs_f64(),
            megabytes(highest),
            settling.as_secs_f64()
        )),
    ])
}

/// RSS once the process has done everything that is done once.
async fn warmed_up(gateway: &GatewayProcess, mode: Mode) -> anyhow::Result<u64> {
    drop(Crowd::open(gateway, mode, 100).await?);
    Ok(settled(gateway, Duration::from_secs(10), 0).await?.0)
}

impl Crowd {
    async fn open(gateway: &GatewayProcess, mode: Mode, count: usize) -> anyhow::Result<Self> {
        let address = gateway.http();
        let (answered_sender, answered) = mpsc::channel(count);
        let turns = Arc::new(Semaphore::new(0));
        let opened = stream::iter(0..count).map(|number| async move {
            let session = format!("memory-{number}");
            anyhow::Ok((wire::connect(address, number, mode, &session).await?, session))
        });
        let mut opened = pin!(opened.buffer_unordered(AT_A_TIME));
        let mut members = JoinSet::new();
        while let Some(connection) = opened.next().await {
            let ((sender, receiver), session) = connection?;
            let (turns, answered) = (turns.clone(), answered_sender.clone());
            members.spawn(Member { sender, receiver, mode, session, turns, answered }.run());
        }
        Ok(Self { members, turns, answered, count })
    }

    /// One turn on every connection, so many a second, a bounded number at a time.
    async fn answers(&mut self, per_second: u32) -> anyhow::Result<()> {
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut begun, mut answered) = (0, 0);
        while answered < self.count {
            let more = begun < self.count && begun - answered < AT_A_TIME;
            tokio::select! {
                _ = ticks.tick(), if more => {
                    self.turns.add_permits(1);
                    begun += 1;
                }
                Some(()) = self.answered.recv() => answered += 1,
                Some(ended) = self.members.join_next() => {
                    return Err(ended?.err().context("a connection ended by itself")?);
                }
            }
        }
        Ok(())
    }
}

impl Member {
    async fn run(mut self) -> anyhow::Result<()> {
        let mut leave = pin!(self.turns.clone().acquire_owned());
        loop {
            tokio::select! {
                permit = &mut leave => {
                    permit?.forget();
                    break;
                }
                frame = self.receiver.next() => self.take(frame?).await?,
            };
        }
        timeout(ANSWER_TIMEOUT, self.turn()).await??;
        self.answered.send(()).await.ok().context("nobody waits for answers")?;
        self.receiver.shrink();
        loop {
            let frame = self.receiver.next().await?;
            self.take(frame).await?;
        }
    }

    async fn turn(&mut self) -> anyhow::Result<()> {
        match self.mode {
            Mode::Plain => self.sender.text(QUESTION.as_bytes()).await?,
            Mode::Json => self.sender.text(send_frame(&self.session, 0, QUESTION).as_bytes()).await?,
        }
        loop {
            let frame = self.receiver.next().await?;
            if self.take(frame).await? {
                return Ok(());
            }
        }
    }

    /// Answers a ping; true where the frame ends a turn.
    async fn take(&mut self, frame: Frame) -> anyhow::Result<bool> {
        match frame {
            Frame::Ping(payload) => self.sender.pong(&payload).await.map(|()| false),
            Frame::Text(_) if self.mode == Mode::Plain => Ok(true),
            Frame::Text(text) => ends_turn(&text),
        }
    }
}

/// Waits until RSS is at most `enough`, or has not moved by more than 0.5 % for three seconds with nothing to wait for
/// (`enough` is 0), or time is up. Gives the last figure, and how long that took.
async fn settled(gateway: &GatewayProcess, patience: Duration, enough: u64) -> anyhow::Result<(u64, Duration)> {
    let began = Instant::now();
    let mut steady_since = Instant::now();
    let mut reference = gateway.rss_bytes()?;
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = gateway.rss_bytes()?;
        if now.abs_diff(reference) > reference / 200 {
            (reference, steady_since) = (now, Instant::now());
        }
        let steady = enough == 0 && steady_since.elapsed() > Duration::from_secs(3);
        if now <= enough || steady || began.elapsed() > patience {
            return Ok((now, began.elapsed()));
        }
    }
}
