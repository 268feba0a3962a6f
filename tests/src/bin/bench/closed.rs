//! Turns a second per core, over WebSocket: a closed loop, one turn in flight a connection.
//!
//! The figure is turns by the processor time that the server used for them. While the server is the bottleneck that is
//! what it does in a second; where the generator is, it still is the server's own cost, and waiting does not flatter it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chatgateway_tests::{client::Event, process::cpu_time};

use super::{
    report::{Bound, Row, median},
    setup::{Setup, demo},
    wire::{self, Frame, Mode},
};

/// Connections of the closed loop.
const CONNECTIONS: usize = 128;

/// Rounds of each server, in turns.
pub const ROUNDS: usize = 5;

/// What is asked: 30 characters.
pub const QUESTION: &str = "What is the tide in Oslo now??";

/// Bytes of each answer.
pub const ANSWER_BYTES: usize = 50;

/// What one round gave.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Turns by second of the server's processor time.
    pub per_core: f64,
    /// Turns by second on the clock.
    pub per_second: f64,
}

impl Round {
    /// From counts over a stretch of time.
    pub fn new(turns: u64, wall: Duration, cpu: Duration) -> Self {
        let turns = turns as f64;
        Self { per_core: turns / cpu.as_secs_f64(), per_second: turns / wall.as_secs_f64() }
    }
}

/// A server under load.
#[derive(Clone, Copy)]
struct Target {
    address: SocketAddr,
    pid: u32,
    /// Whether it is an echo, which answers every frame with one frame.
    echo: bool,
}

/// Both modes against the echo.
pub async fn run(setup: &Setup, mode: Mode) -> anyhow::Result<Vec<Row>> {
    let (echo, echo_address) = setup.helper(setup.server_core, &["echo-ws".to_owned()])?;
    let gateway = setup.gateway(&demo(ANSWER_BYTES)).await?;
    let targets = [
        Target { address: gateway.http(), pid: gateway.pid(), echo: false },
        Target { address: echo_address, pid: echo.pid(), echo: true },
    ];
    let mut rounds: [Vec<Round>; 2] = Default::default();
    for number in 0..if setup.quick { 1 } else { ROUNDS } {
        for (target, rounds) in targets.iter().zip(&mut rounds) {
            rounds.push(round(setup, *target, mode, number).await?);
        }
    }
    let (name, bounds) = match mode {
        Mode::Plain => ("plain text", (Bound::AtLeast(0.4), Bound::AtLeast(0.7))),
        Mode::Json => ("JSON frames", (Bound::AtLeast(0.25), Bound::AtLeast(0.5))),
    };
    Ok(vec![row(&format!("turns a second per core, WebSocket {name}"), &rounds, bounds)])
}

/// The echo alone, to see what the machine can do.
pub async fn baseline(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let (echo, address) = setup.helper(setup.server_core, &["echo-ws".to_owned()])?;
    let target = Target { address, pid: echo.pid(), echo: true };
    let mut rows = Vec::new();
    for (mode, name) in [(Mode::Plain, "plain text"), (Mode::Json, "JSON frames")] {
        let round = round(setup, target, mode, 0).await?;
        rows.push(
            Row::figure(format!("bare WebSocket echo, {name}"), round.per_core, "1/s")
                .note(format!("on the clock {:.0} a second", round.per_second)),
        );
    }
    Ok(rows)
}

/// The row of two servers' rounds, the gateway's first.
pub fn row(case: &str, [gateway, echo]: &[Vec<Round>; 2], (must, goal): (Bound, Bound)) -> Row {
    let of = |rounds: &[Round], figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
    let ratios = gateway.iter().zip(echo).map(|(gateway, echo)| gateway.per_core / echo.per_core).collect();
    let (gateway_wall, echo_wall) = (of(gateway, |r| r.per_second), of(echo, |r| r.per_second));
    Row::against(case, of(gateway, |r| r.per_core), "1/s", of(echo, |r| r.per_core), median(ratios))
        .bounds(must, goal)
        .note(format!("on the clock {gateway_wall:.0} and {echo_wall:.0} a second"))
}

async fn round(setup: &Setup, target: Target, mode: Mode, number: usize) -> anyhow::Result<Round> {
    let turns = Arc::new(AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CONNECTIONS {
        let session = format!("closed-{number}-{client}");
        let (sender, receiver) = wire::connect(target.address, client, mode, &session).await?;
        let client = Client { sender, receiver, session, mode, echo: target.echo, turns: turns.clone() };
        clients.spawn(client.run());
    }
    let measured = async {
        tokio::time::sleep(setup.seconds(1, 1)).await;
        let (began, cpu, count) = (Instant::now(), cpu_time(target.pid)?, turns.load(Ordering::Relaxed));
        tokio::time::sleep(setup.seconds(2, 5)).await;
        let count = turns.load(Ordering::Relaxed) - count;
        anyhow::Ok(Round::new(count, began.elapsed(), cpu_time(target.pid)?.saturating_sub(cpu)))
    };
    tokio::select! {
        measured = measured => measured,
        Some(ended) = clients.join_next() => Err(ended?.err().context("a client ended by itself")?),
    }
}

struct Client {
    sender: wire::Sender,
    receiver: wire::Receiver,
    session: String,
    mode: Mode,
    echo: bool,
    turns: Arc<AtomicU64>,
}

impl Client {
    /// Asks and waits for the answer, again and again; it ends only by an error.
    async fn run(mut self) -> anyhow::Result<()> {
        for number in 0.. {
            match self.mode {
                Mode::Plain => self.sender.text(QUESTION.as_bytes()).await?,
                Mode::Json => self.sender.text(send_frame(&self.session, number, QUESTION).as_bytes()).await?,
            }
            self.answer(number == 0).await?;
            self.turns.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes one answer. In the JSON protocol its text is only looked at where that is asked for: that costs more than
    /// all the rest.
    async fn answer(&mut self, look: bool) -> anyhow::Result<()> {
        let mut bytes = 0;
        loop {
            match self.receiver.next().await? {
                Frame::Ping(payload) => self.sender.pong(&payload).await?,
                Frame::Text(_) if self.echo => return Ok(()),
                Frame::Text(text) if self.mode == Mode::Plain => {
                    anyhow::ensure!(text.len() == ANSWER_BYTES, "an answer of {} bytes", text.len());
                    return Ok(());
                }
                Frame::Text(text) if ends_turn(&text)? => {
                    anyhow::ensure!(!look || bytes == ANSWER_BYTES, "an answer of {bytes} bytes");
                    return Ok(());
                }
                Frame::Text(text) if look && text.starts_with(br#"{"type":"delta""#) => {
                    bytes += Event(serde_json::from_slice(&text)?).field("text").len();
                }
                Frame::Text(_) => {}
            }
        }
    }
}

/// A turn as a frame of the JSON protocol; its id is made of the number, since each client has its own session.
pub fn send_frame(session: &str, number: u64, text: &str) -> String {
    format!(r#"{{"type":"send","session":"{session}","turn":"00000000-0000-4000-8000-{number:012x}","text":"{text}"}}"#)
}

/// Whether a frame is the end of a turn. An error is one here.
pub fn ends_turn(frame: &[u8]) -> anyhow::Result<bool> {
    anyhow::ensure!(!frame.starts_with(br#"{"type":"error""#), "{}", String::from_utf8_lossy(frame));
    Ok(frame.starts_with(br#"{"type":"done""#))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::echo;

    #[test]
    fn the_question_has_its_length() {
        assert_eq!(QUESTION.len(), 30);
    }

    #[test]
    fn the_end_of_a_turn_is_told_from_its_middle_and_its_failure() {
        assert!(ends_turn(br#"{"type":"done","session":"s"}"#).unwrap());
        assert!(!ends_turn(br#"{"type":"delta","text":"done"}"#).unwrap());
        assert!(ends_turn(br#"{"type":"error","code":"overloaded"}"#).is_err());
    }

    #[tokio::test]
    async fn a_round_counts_the_turns_of_an_echo_in_both_modes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target { address: listener.local_addr().unwrap(), pid: std::process::id(), echo: true };
        let server = tokio::spawn(echo::serve(listener));
        for mode in [Mode::Plain, Mode::Json] {
            let (sender, receiver) = wire::connect(target.address, 0, mode, "s").await.unwrap();
            let turns = Arc::new(AtomicU64::new(0));
            let client = Client { sender, receiver, session: "s".to_owned(), mode, echo: true, turns: turns.clone() };
            let client = tokio::spawn(client.run());
            let deadline = Instant::now() + Duration::from_secs(10);
            while turns.load(Ordering::Relaxed) < 100 {
                assert!(Instant::now() < deadline && !client.is_finished(), "{mode:?}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            client.abort();
        }
        server.abort();
    }
}
