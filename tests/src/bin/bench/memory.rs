//! Resident memory: of connections that do nothing, and after answers that were large.

use std::time::{Duration, Instant};

use chatgateway_tests::process::GatewayProcess;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use tokio::time::timeout;

use super::{
    closed::{ANSWER_BYTES, QUESTION, ends_turn, send_frame},
    report::{Bound, Row},
    setup::{Setup, demo},
    wire::{self, Frame, Mode},
};

const IDLE_CONNECTIONS: usize = 10_000;

const BIG_ANSWER_CONNECTIONS: usize = 2_000;

const BIG_ANSWER_BYTES: usize = 1024 * 1024;

/// Connections opened, or answers taken, at a time.
const AT_A_TIME: usize = 16;

/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

type Connection = (wire::Sender, wire::Receiver);

/// RSS of a connection that was opened and does nothing, and of one that has had a turn.
pub async fn idle(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let count = if setup.quick { 2_000 } else { IDLE_CONNECTIONS };
    let mut rows = Vec::new();
    for (mode, name) in [(Mode::Json, "JSON"), (Mode::Plain, "plain text")] {
        let mut config = demo(ANSWER_BYTES);
        config["sessions"] = json!({"ttl": "16s"});
        let gateway = setup.gateway(&config).await?;
        let before = warmed_up(&gateway, mode).await?;
        let connections = open(&gateway, mode, count).await?;
        let opened = settled(&gateway, Duration::from_secs(20), 0).await?.0;
        let kilobytes = |after: u64| after.saturating_sub(before) as f64 / count as f64 / 1024.0;
        let of_all = |after: u64| format!("RSS {} MB, from {} MB", after >> 20, before >> 20);
        rows.push(
            Row::figure(format!("RSS per idle WebSocket, {count} of {name}"), kilobytes(opened), "KiB")
                .bounds(Bound::AtMost(12.0), Bound::AtMost(8.0))
                .note(of_all(opened)),
        );
        let _connections = answers(connections, mode).await?;
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
    let connections = open(&gateway, mode, count).await?;
    let before = settled(&gateway, Duration::from_secs(20), 0).await?.0;
    let began = Instant::now();
    let _connections = answers(connections, mode).await?;
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
            "answers took {:.1} s; at their end {:.0} MiB; settled in {:.1} s",
            took.as_secs_f64(),
            megabytes(highest),
            settling.as_secs_f64()
        )),
    ])
}

/// RSS once the process has done everything that is done once.
async fn warmed_up(gateway: &GatewayProcess, mode: Mode) -> anyhow::Result<u64> {
    let connections = open(gateway, mode, 100).await?;
    drop(connections);
    Ok(settled(gateway, Duration::from_secs(10), 0).await?.0)
}

async fn open(gateway: &GatewayProcess, mode: Mode, count: usize) -> anyhow::Result<Vec<Connection>> {
    let address = gateway.http();
    let opened = stream::iter(0..count).map(|number| async move {
        let session = session(number);
        wire::connect(address, number, mode, &session).await
    });
    opened.buffer_unordered(AT_A_TIME).try_collect().await
}

fn session(number: usize) -> String {
    format!("memory-{number}")
}

/// One turn on every connection, a bounded number at a time.
async fn answers(connections: Vec<Connection>, mode: Mode) -> anyhow::Result<Vec<Connection>> {
    let answered =
        stream::iter(connections.into_iter().enumerate()).map(|(number, (mut sender, mut receiver))| async move {
            let turn = async {
                match mode {
                    Mode::Plain => sender.text(QUESTION.as_bytes()).await?,
                    Mode::Json => sender.text(send_frame(&session(number), 0, QUESTION).as_bytes()).await?,
                }
                loop {
                    match receiver.next().await? {
                        Frame::Ping(payload) => sender.pong(&payload).await?,
                        Frame::Text(text) if mode == Mode::Plain || ends_turn(&text)? => return anyhow::Ok(()),
                        Frame::Text(_) => {}
                    }
                }
            };
            timeout(ANSWER_TIMEOUT, turn).await??;
            receiver.shrink();
            anyhow::Ok((sender, receiver))
        });
    answered.buffer_unordered(AT_A_TIME).try_collect().await
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
