//! A thousand clients that each send a message every 200 ms, whether the last one was answered or not. Each answer is
//! timed from the instant at which its message was due, so a server that stalls cannot hide what waited behind the stall.

use std::{collections::VecDeque, time::Duration};

use hdrhistogram::Histogram;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    closed::{ANSWER_BYTES, QUESTION, send_frame},
    report::{Bound, Row},
    setup::{Load, LoadMeter, Setup, demo},
    wire::{self, Frame, Mode},
};

const CLIENTS: usize = 1_000;

const INTERVAL: Duration = Duration::from_millis(200);

/// How long answers may be late after the last message.
const GRACE: Duration = Duration::from_secs(5);

/// What the clients saw.
struct Seen {
    /// From the intended send time to the end of the answer, µs.
    latency_us: Histogram<u64>,
    sent: u64,
    answered: u64,
    disconnects: u64,
    first_trouble: Option<String>,
}

impl Seen {
    fn new() -> anyhow::Result<Self> {
        let latency_us = Histogram::new_with_bounds(1, 60_000_000, 3)?;
        Ok(Self { latency_us, sent: 0, answered: 0, disconnects: 0, first_trouble: None })
    }

    fn add(&mut self, other: Self) -> anyhow::Result<()> {
        self.latency_us.add(&other.latency_us)?;
        self.sent += other.sent;
        self.answered += other.answered;
        self.disconnects += other.disconnects;
        self.first_trouble = self.first_trouble.take().or(other.first_trouble);
        Ok(())
    }
}

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let gateway = setup.gateway(&demo(ANSWER_BYTES)).await?;
    let length = setup.seconds(10, 60);
    let mut connections = Vec::with_capacity(CLIENTS);
    for client in 0..CLIENTS {
        let session = format!("open-{client}");
        connections.push((wire::connect(gateway.http(), client, Mode::Json, &session).await?, session));
    }
    let start = Instant::now() + Duration::from_millis(500);
    let mut clients = tokio::task::JoinSet::new();
    for (client, ((sender, receiver), session)) in connections.into_iter().enumerate() {
        // The clients are spread evenly over the interval.
        let first = start + INTERVAL.mul_f64(client as f64 / CLIENTS as f64);
        clients.spawn(
            Client { sender, receiver, session, due: VecDeque::new(), seen: Seen::new()? }.run(first, start + length),
        );
    }
    sleep_until(start).await;
    let meter = LoadMeter::start(gateway.pid())?;
    sleep_until(start + length).await;
    let load = meter.stop()?;
    let mut seen = Seen::new()?;
    while let Some(client) = clients.join_next().await {
        seen.add(client?)?;
    }
    Ok(rows(&seen, length, load))
}

fn rows(seen: &Seen, length: Duration, load: Load) -> Vec<Row> {
    let ms = |quantile| seen.latency_us.value_at_quantile(quantile) as f64 / 1_000.0;
    let case = "1,000 clients, a message every 200 ms";
    let trouble = seen.first_trouble.clone().unwrap_or_default();
    vec![
        Row::figure(format!("{case}: p50"), ms(0.5), "ms").note(format!(
            "{} s, {} messages; {load}",
            length.as_secs(),
            seen.sent
        )),
        Row::figure(format!("{case}: p99"), ms(0.99), "ms")
            .bounds(Bound::AtMost(20.0), Bound::AtMost(5.0))
            .note(format!("p99.9 {:.1}, highest {:.1}", ms(0.999), ms(1.0))),
        Row::figure(format!("{case}: errors"), (seen.sent - seen.answered) as f64, "")
            .must(Bound::AtMost(0.0))
            .note(trouble),
        Row::figure(format!("{case}: disconnects"), seen.disconnects as f64, "").must(Bound::AtMost(0.0)),
    ]
}

struct Client {
    sender: wire::Sender,
    receiver: wire::Receiver,
    session: String,
    /// When the messages that wait for their answers were due.
    due: VecDeque<Instant>,
    seen: Seen,
}

impl Client {
    async fn run(mut self, first: Instant, end: Instant) -> Seen {
        if let Err(error) = self.talk(first, end).await {
            self.seen.disconnects += 1;
            self.seen.first_trouble.get_or_insert_with(|| format!("{error:#}"));
        }
        self.seen
    }

    async fn talk(&mut self, first: Instant, end: Instant) -> anyhow::Result<()> {
        let mut next = first;
        while next < end {
            tokio::select! {
                biased;
                () = sleep_until(next) => {
                    let frame = send_frame(&self.session, self.seen.sent, QUESTION);
                    self.seen.sent += 1;
                    self.due.push_back(next);
                    next += INTERVAL;
                    self.sender.text(frame.as_bytes()).await?;
                }
                frame = self.receiver.next() => self.take(frame?).await?,
            }
        }
        while !self.due.is_empty() {
            let Ok(frame) = timeout_at(end + GRACE, self.receiver.next()).await else { return Ok(()) };
            self.take(frame?).await?;
        }
        Ok(())
    }

    async fn take(&mut self, frame: Frame) -> anyhow::Result<()> {
        match frame {
            Frame::Ping(payload) => self.sender.pong(&payload).await?,
            Frame::Text(text) if text.starts_with(br#"{"type":"done""#) => {
                if let Some(due) = self.due.pop_front() {
                    self.seen.answered += 1;
                    self.seen.latency_us.saturating_record(u64::try_from(due.elapsed().as_micros())?);
                }
            }
            Frame::Text(text) if text.starts_with(br#"{"type":"error""#) => {
                // An unanswered message is counted by the difference of sent and answered; this one says why.
                self.due.pop_front();
                let text = String::from_utf8_lossy(&text).into_owned();
                self.seen.first_trouble.get_or_insert(text);
            }
            Frame::Text(_) => {}
        }
        Ok(())
    }
}
