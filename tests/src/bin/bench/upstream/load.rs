//! Clients over WebSocket: in an open loop, whose turns come when they are due whether others were answered or not, and in a
//! closed one, which keeps the server busy.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use chatgateway_tests::client::in_time;
use hdrhistogram::Histogram;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde::Deserialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    closed::send_frame,
    wire::{self, Frame, Mode, Receiver, Sender},
};

/// Turns under way at once to one pod; more mean that nothing is answered at all.
const UNDER_WAY_MAX: usize = 8_000;

/// Fresh sessions that one connection asks in; it reads only so many.
const FRESH_MAX: u64 = 200;

/// What is asked.
const QUESTION: &str = "go on";

/// How a turn ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With its whole answer.
    Answered,
    /// It was not accepted, with this code.
    Refused(String),
    /// It was accepted and failed, with this code.
    Failed(String),
}

/// What a client saw of its turn, from the instant at which it was due.
#[derive(Clone, Debug)]
pub struct Turn {
    /// To the first text.
    pub first: Option<Duration>,
    /// To the end.
    pub total: Duration,
    /// How it ended.
    pub ended: Ended,
    /// How often its text was dropped and begun again.
    pub resets: u64,
}

/// An open connection with a session of its own.
pub struct Client {
    sender: Sender,
    receiver: Receiver,
    session: String,
    turns: u64,
    fresh: bool,
}

/// An error frame, as far as it matters here.
#[derive(Deserialize)]
struct Error<'a> {
    code: &'a str,
    id: Option<&'a str>,
}

impl Client {
    /// Connects.
    pub async fn open(pod: SocketAddr, number: usize, session: String) -> anyhow::Result<Self> {
        let (sender, receiver) = wire::connect(pod, number, Mode::Json, &session).await?;
        Ok(Self { sender, receiver, session, turns: 0, fresh: false })
    }

    /// Asks in another session each time.
    pub fn fresh(mut self, fresh: bool) -> Self {
        self.fresh = fresh;
        self
    }

    /// Whether it can be asked by again.
    fn goes_on(&self) -> bool {
        !self.fresh || self.turns < FRESH_MAX
    }

    /// Asks, and reads to the end. An error is the connection's.
    pub async fn turn(&mut self, due: Instant, text: &str) -> anyhow::Result<Turn> {
        let fresh = self.fresh.then(|| format!("{}-{}", self.session, self.turns));
        let session = fresh.as_ref().unwrap_or(&self.session);
        self.sender.text(send_frame(session, self.turns, text).as_bytes()).await?;
        self.turns += 1;
        let (mut first, mut resets) = (None, 0);
        let ended = loop {
            let frame = match in_time("a frame", self.receiver.next()).await?? {
                Frame::Ping(payload) => {
                    self.sender.pong(&payload).await?;
                    continue;
                }
                Frame::Text(frame) => frame,
            };
            let is =
                |kind: &str| frame.strip_prefix(br#"{"type":""#).is_some_and(|rest| rest.starts_with(kind.as_bytes()));
            if is("delta") {
                first.get_or_insert_with(|| due.elapsed());
            } else if is("done") {
                break Ended::Answered;
            } else if is("reset") {
                resets += 1;
            } else if is("cancelled") {
                break Ended::Failed("cancelled".to_owned());
            } else if is("error") {
                let error: Error<'_> = serde_json::from_slice(&frame).context("an error frame")?;
                let code = error.code.to_owned();
                break if error.id.is_some() { Ended::Failed(code) } else { Ended::Refused(code) };
            }
        };
        Ok(Turn { first, total: due.elapsed(), ended, resets })
    }
}

/// What clients saw.
pub struct Seen {
    /// To the first text, µs; turns that were not answered count as the longest there is.
    pub first_us: Histogram<u64>,
    /// To a refusal, µs.
    pub refused_us: Histogram<u64>,
    /// Turns that were due.
    pub sent: u64,
    /// Turns that were answered.
    pub answered: u64,
    /// Codes of those that were refused.
    pub refused: BTreeMap<String, u64>,
    /// Codes of those that failed.
    pub failed: BTreeMap<String, u64>,
    /// Times that a text was begun again.
    pub resets: u64,
    /// Connections that broke, and the first reason.
    pub broken: u64,
    first_trouble: Option<String>,
}

impl Seen {
    /// Nothing yet.
    pub fn new() -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, 120_000_000, 3);
        Ok(Self {
            first_us: histogram()?,
            refused_us: histogram()?,
            sent: 0,
            answered: 0,
            refused: BTreeMap::new(),
            failed: BTreeMap::new(),
            resets: 0,
            broken: 0,
            first_trouble: None,
        })
    }

    /// With a turn.
    pub fn take(&mut self, turn: &Turn) {
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sent += 1;
        self.resets += turn.resets;
        match &turn.ended {
            Ended::Answered => {
                self.answered += 1;
                self.first_us.saturating_record(us(turn.first.unwrap_or(turn.total)));
                return;
            }
            Ended::Refused(code) => {
                *self.refused.entry(code.clone()).or_default() += 1;
                self.refused_us.saturating_record(us(turn.total));
            }
            Ended::Failed(code) => *self.failed.entry(code.clone()).or_default() += 1,
        }
        self.first_us.saturating_record(u64::MAX);
    }

    /// With a connection that broke.
    pub fn broke(&mut self, error: &anyhow::Error) {
        self.sent += 1;
        self.broken += 1;
        self.first_us.saturating_record(u64::MAX);
        self.first_trouble.get_or_insert_with(|| format!("{error:#}"));
    }

    /// With what others saw.
    pub fn add(&mut self, other: Self) -> anyhow::Result<()> {
        self.first_us.add(&other.first_us)?;
        self.refused_us.add(&other.refused_us)?;
        self.sent += other.sent;
        self.answered += other.answered;
        self.resets += other.resets;
        self.broken += other.broken;
        for (into, from) in [(&mut self.refused, other.refused), (&mut self.failed, other.failed)] {
            from.into_iter().for_each(|(code, count)| *into.entry(code).or_default() += count);
        }
        self.first_trouble = self.first_trouble.take().or(other.first_trouble);
        Ok(())
    }

    /// Milliseconds below which that share of the first texts is.
    pub fn first_ms(&self, quantile: f64) -> f64 {
        self.first_us.value_at_quantile(quantile) as f64 / 1_000.0
    }

    /// Turns that were accepted, or were to be, and not answered.
    pub fn unanswered(&self) -> u64 {
        self.failed.values().sum::<u64>() + self.broken
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} turns, {} answered", self.sent, self.answered)?;
        for (what, codes) in [("refused", &self.refused), ("failed", &self.failed)] {
            for (code, count) in codes {
                write!(f, ", {count} {what} with {code}")?;
            }
        }
        if self.resets > 0 {
            write!(f, ", {} begun again", self.resets)?;
        }
        match &self.first_trouble {
            Some(words) => write!(f, ", {} connections broke: {words}", self.broken),
            None => Ok(()),
        }
    }
}

/// An open loop.
#[derive(Clone, Copy)]
pub struct Load {
    /// Turns a second to each pod.
    pub rate: f64,
    /// Of the arrivals: equal seeds give equal ones.
    pub seed: u64,
    /// Not measured.
    pub warm: Duration,
    /// Measured.
    pub length: Duration,
    /// Each turn is in a session of its own, so that no log grows.
    pub fresh: bool,
    /// Give up once more than this share of the turns has its first text later than that.
    pub give_up: Option<(f64, Duration)>,
}

/// Whether a load has been given up.
struct Late {
    late: AtomicU64,
    allowed: u64,
    limit: Duration,
}

impl Late {
    fn new(load: &Load, pods: usize) -> Self {
        let (share, limit) = load.give_up.unwrap_or((1.0, Duration::MAX));
        let all = load.rate * load.length.as_secs_f64() * pods as f64;
        Self { late: AtomicU64::new(0), allowed: (all * share) as u64, limit }
    }

    fn take(&self, turn: &Turn) {
        if turn.ended != Ended::Answered || turn.first.is_none_or(|first| first > self.limit) {
            self.late.fetch_add(1, Relaxed);
        }
    }

    fn given_up(&self) -> bool {
        self.late.load(Relaxed) > self.allowed
    }
}

/// Sends turns to pods, to each as many, and waits for the ends of all.
pub async fn open_loop(pods: &[SocketAddr], load: Load) -> anyhow::Result<Seen> {
    let late = Arc::new(Late::new(&load, pods.len()));
    let start = Instant::now() + Duration::from_millis(100);
    let mut tasks: JoinSet<anyhow::Result<Seen>> =
        pods.iter().enumerate().map(|(number, pod)| arrivals(*pod, number, load, start, late.clone())).collect();
    let mut seen = Seen::new()?;
    while let Some(done) = tasks.join_next().await {
        seen.add(done??)?;
    }
    Ok(seen)
}

/// The time to the next one of arrivals that know nothing of each other.
pub fn gap(random: &mut StdRng, rate: f64) -> Duration {
    Duration::from_secs_f64(-(1.0 - random.random::<f64>()).ln() / rate)
}

async fn arrivals(pod: SocketAddr, lane: usize, load: Load, start: Instant, late: Arc<Late>) -> anyhow::Result<Seen> {
    let mut random = StdRng::seed_from_u64(load.seed.wrapping_mul(1_000).wrapping_add(lane as u64));
    let (mut idle, mut opened) = (Vec::new(), 0);
    let mut under_way = JoinSet::new();
    let mut seen = Seen::new()?;
    let warm = start + load.warm;
    let mut due = start;
    let mut take = |ended: Option<Ran>, idle: &mut Vec<Client>| -> anyhow::Result<bool> {
        let Some(ended) = ended else { return Ok(false) };
        let (measured, ran) = ended?;
        match ran {
            Ok((client, turn)) => {
                idle.extend(client.goes_on().then_some(client));
                if measured {
                    late.take(&turn);
                    seen.take(&turn);
                }
            }
            Err(error) => seen.broke(&error),
        }
        Ok(true)
    };
    loop {
        due += gap(&mut random, load.rate);
        if due >= warm + load.length || late.given_up() {
            break;
        }
        loop {
            tokio::select! {
                biased;
                () = sleep_until(due) => break,
                ended = under_way.join_next(), if !under_way.is_empty() => take(ended, &mut idle)?,
            };
        }
        anyhow::ensure!(under_way.len() < UNDER_WAY_MAX, "{UNDER_WAY_MAX} turns wait for answers");
        let client = idle.pop();
        opened += usize::from(client.is_none());
        let session = format!("load-{}-{lane}-{opened}", load.seed);
        under_way.spawn(async move {
            let turn = async {
                let mut client = match client {
                    Some(client) => client,
                    None => Client::open(pod, opened, session).await?.fresh(load.fresh),
                };
                let turn = client.turn(due, QUESTION).await?;
                anyhow::Ok((client, turn))
            };
            (due >= warm, turn.await)
        });
    }
    while take(under_way.join_next().await, &mut idle)? {}
    Ok(seen)
}

/// What a task has: whether its turn is measured, its client and what that saw.
type Ran = Result<(bool, anyhow::Result<(Client, Turn)>), tokio::task::JoinError>;

/// Keeps so many clients of each pod asking, and counts the answers of a second.
pub async fn closed_loop(pods: &[SocketAddr], clients: usize, warm: Duration, length: Duration) -> anyhow::Result<f64> {
    let answered = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for (lane, pod) in pods.iter().copied().enumerate() {
        for number in 0..clients {
            let answered = answered.clone();
            tasks.spawn(async move {
                let mut client = Client::open(pod, number, format!("closed-{lane}-{number}")).await?;
                loop {
                    let turn = client.turn(Instant::now(), QUESTION).await?;
                    anyhow::ensure!(turn.ended == Ended::Answered, "a turn ended with {:?}", turn.ended);
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
    }
    let measured = async {
        tokio::time::sleep(warm).await;
        let (began, before) = (Instant::now(), answered.load(Relaxed));
        tokio::time::sleep(length).await;
        (answered.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
    };
    tokio::select! {
        rate = measured => Ok(rate),
        Some(ended) = tasks.join_next() => ended?,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_their_rate_and_are_those_of_their_seed() {
        let gaps = |seed| {
            let mut random = StdRng::seed_from_u64(seed);
            (0..100_000).map(|_| gap(&mut random, 50.0).as_secs_f64()).collect::<Vec<_>>()
        };
        let some = gaps(1);
        let mean = some.iter().sum::<f64>() / some.len() as f64;
        let variance = some.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / some.len() as f64;
        assert!((mean - 0.02).abs() < 0.0005 && (variance.sqrt() - 0.02).abs() < 0.0005, "{mean} {variance}");
        assert!(some == gaps(1) && some != gaps(2));
    }

    fn turn(ended: Ended, first_ms: u64) -> Turn {
        let total = Duration::from_millis(first_ms + 1);
        Turn { first: Some(Duration::from_millis(first_ms)), total, ended, resets: 0 }
    }

    #[test]
    fn what_was_not_answered_counts_as_late() {
        let mut seen = Seen::new().unwrap();
        (0..98).for_each(|_| seen.take(&turn(Ended::Answered, 5)));
        seen.take(&turn(Ended::Refused("overloaded".to_owned()), 1));
        seen.take(&turn(Ended::Failed("internal".to_owned()), 1));
        seen.broke(&anyhow::anyhow!("gone"));
        assert!(seen.first_ms(0.5) < 6.0 && seen.first_ms(0.99) > 10_000.0);
        assert_eq!((seen.sent, seen.answered, seen.unanswered()), (101, 98, 2));
        let words =
            "101 turns, 98 answered, 1 refused with overloaded, 1 failed with internal, 1 connections broke: gone";
        assert_eq!(seen.to_string(), words);
    }

    #[test]
    fn a_load_is_given_up_when_too_many_are_late() {
        let give_up = Some((0.01, Duration::from_millis(300)));
        let length = Duration::from_secs(10);
        let load = Load { rate: 10.0, seed: 1, warm: Duration::ZERO, length, fresh: false, give_up };
        let late = Late::new(&load, 2);
        for (first_ms, given_up) in [(400, false), (200, false), (301, false), (301, true)] {
            late.take(&turn(Ended::Answered, first_ms));
            assert_eq!(late.given_up(), given_up);
        }
        let late = Late::new(&Load { give_up: None, ..load }, 2);
        (0..200).for_each(|_| late.take(&turn(Ended::Refused(String::new()), 1)));
        assert!(!late.given_up());
    }
}
