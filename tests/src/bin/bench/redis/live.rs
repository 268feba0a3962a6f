//! Answers that go on and on through one gateway, whose tokens are their own send times; and what is told by them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use chatgateway_tests::{
    clock::monotonic_ns,
    process::cpu_time,
    simulator::stamps::{Stamp, StampReader},
};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    bare,
    connection::{Connection, Event, Faults, Story, Told},
    ground::Ground,
};
use crate::{
    report::{Bound, Row},
    setup::{Load, LoadMeter, Setup},
};

/// Tokens of an answer where nothing else is said: two seconds.
const TOKENS: u64 = 100;

const TOKENS_PER_SECOND: u64 = 50;

/// Over which time answers begin: one answer's, so that some begin and end all the time.
pub const SPREAD: Duration = Duration::from_secs(2);

/// The simulator's pace, ms.
const PACE_MS: f64 = 1_000.0 / TOKENS_PER_SECOND as f64;

/// Answers at a time for the delay that commits add.
const DELAY_ANSWERS: usize = 100;

/// Answers at a time for the gateway's cost.
const COST_ANSWERS: usize = 300;

/// What goes through a gateway.
#[derive(Clone, Copy)]
pub struct Stream {
    /// Answers at a time, each in its session.
    pub answers: usize,
    /// Tokens of each.
    pub tokens: u64,
    /// Told apart from other streams by this.
    pub name: &'static str,
    /// Over which time they begin.
    pub spread: Duration,
    /// Not measured.
    pub warm: Duration,
    /// Measured.
    pub length: Duration,
}

/// What was measured.
pub struct Measured {
    /// From a token's send time at the model server to its arrival, ns.
    pub delay: Histogram<u64>,
    /// Between the arrivals of a turn's neighbouring tokens, ns.
    pub gap: Histogram<u64>,
    /// Tokens that arrived.
    pub tokens: u64,
    /// Entries they came in.
    pub entries: u64,
    /// What went wrong.
    pub faults: Faults,
    /// The gateway's processor time.
    pub cpu: Duration,
    /// How busy it was.
    pub load: Load,
}

impl Measured {
    /// Nothing yet.
    pub fn new() -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, 120_000_000_000, 3);
        Ok(Self {
            delay: histogram()?,
            gap: histogram()?,
            tokens: 0,
            entries: 0,
            faults: Faults::default(),
            cpu: Duration::ZERO,
            load: Load::default(),
        })
    }

    /// With another round; the load is the last one's.
    pub fn add(&mut self, other: Self) -> anyhow::Result<()> {
        self.delay.add(&other.delay)?;
        self.gap.add(&other.gap)?;
        self.tokens += other.tokens;
        self.entries += other.entries;
        self.faults.add(other.faults);
        self.cpu += other.cpu;
        self.load = other.load;
        Ok(())
    }

    /// Milliseconds below which that share of the delays is.
    pub fn delay_ms(&self, quantile: f64) -> f64 {
        self.delay.value_at_quantile(quantile) as f64 / 1e6
    }

    /// The same of the gaps.
    pub fn gap_ms(&self, quantile: f64) -> f64 {
        self.gap.value_at_quantile(quantile) as f64 / 1e6
    }

    /// Microseconds of the gateway's processor time a token.
    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.tokens as f64
    }
}

/// How a simulator answers whose tokens are their send times.
pub fn stamped(tokens: u64) -> Value {
    json!({"tokens": tokens, "tokens_per_second": TOKENS_PER_SECOND, "first_token_ms": 20.0, "stamp": true})
}

/// Keeps so many answers going through a gateway, and measures.
pub async fn measure(gateway: SocketAddr, pid: u32, stream: Stream) -> anyhow::Result<Measured> {
    measure_by(pid, stream, |client, warm, end| read(gateway, stream, client, warm, end)).await
}

/// Measures what clients read, and what a process spends on it.
pub async fn measure_by<C>(
    pid: u32,
    stream: Stream,
    client: impl Fn(usize, Instant, Instant) -> C,
) -> anyhow::Result<Measured>
where
    C: Future<Output = anyhow::Result<Measured>> + Send + 'static,
{
    let warm = Instant::now() + stream.warm;
    let end = warm + stream.length;
    let mut clients: JoinSet<anyhow::Result<Measured>> =
        (0..stream.answers).map(|number| client(number, warm, end)).collect();
    tokio::time::sleep_until(warm.into()).await;
    let (meter, cpu) = (LoadMeter::start(pid)?, cpu_time(pid)?);
    tokio::time::sleep_until(end.into()).await;
    let mut measured = Measured::new()?;
    let (cpu, load) = (cpu_time(pid)?.saturating_sub(cpu), meter.stop()?);
    while let Some(client) = clients.join_next().await {
        measured.add(client??)?;
    }
    (measured.cpu, measured.load) = (cpu, load);
    Ok(measured)
}

/// One client: it asks as soon as it is answered, until the end.
async fn read(
    gateway: SocketAddr,
    stream: Stream,
    client: usize,
    warm: Instant,
    end: Instant,
) -> anyhow::Result<Measured> {
    tokio::time::sleep(stream.spread.mul_f64(client as f64 / stream.answers as f64)).await;
    let mut connection = Connection::open(gateway, client).await?;
    let mut story = Story::new(format!("{}-{client}", stream.name), None);
    let mut measured = Measured::new()?;
    let mut turn = 0;
    while Instant::now() < end {
        connection.send(&story.session, turn).await?;
        turn += 1;
        let mut tokens = Tokens::default();
        loop {
            let frame = connection.next().await?;
            let event = Event::parse(&frame)?;
            anyhow::ensure!(!event.refuses(), "refused: {}", String::from_utf8_lossy(&frame));
            let now = Instant::now();
            match story.take(&mut connection, &event)? {
                Told::Text => {
                    let text = event.text.as_deref().unwrap_or_default();
                    tokens.read(text.as_bytes(), (warm..end).contains(&now).then_some(&mut measured));
                }
                Told::End => break,
                _ => {}
            }
        }
        if tokens.count != stream.tokens || tokens.unordered {
            story.faults.wrong += 1;
            story.faults.say(|| format!("{} tokens of {} in {}", tokens.count, stream.tokens, story.session));
        }
    }
    measured.faults.add(story.faults);
    Ok(measured)
}

/// The tokens of one answer as they arrive.
#[derive(Default)]
pub struct Tokens {
    reader: StampReader,
    /// Those that have arrived.
    pub count: u64,
    /// A token that was sent before the one before it.
    pub unordered: bool,
    sent_ns: u64,
    arrived_ns: u64,
}

impl Tokens {
    /// Reads a piece of the answer, whatever the tokens are wrapped in.
    pub fn read(&mut self, piece: &[u8], mut measured: Option<&mut Measured>) {
        let now_ns = monotonic_ns();
        let Self { reader, count, unordered, sent_ns, arrived_ns } = self;
        reader.read(piece, |stamp| {
            let Stamp::Sent(sent) = stamp else { return };
            // Tokens that were due together have one send time.
            *unordered |= sent < *sent_ns;
            *sent_ns = sent;
            *count += 1;
            let before_ns = std::mem::replace(arrived_ns, now_ns);
            if let Some(measured) = &mut measured {
                measured.tokens += 1;
                measured.delay.saturating_record(now_ns.saturating_sub(sent));
                if before_ns > 0 {
                    // A histogram of whole numbers from 1 on: tokens that come together are 1 ns apart.
                    measured.gap.saturating_record((now_ns - before_ns).max(1));
                }
            }
        });
        if let Some(measured) = measured {
            measured.entries += 1;
        }
    }
}

/// What commit-before-deliver adds to a token: Redis against memory, in alternating rounds.
pub async fn delay(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let ground = Ground::start(setup, &stamped(TOKENS))?;
    let memory = setup.gateway(&ground.config(None)).await?;
    let redis = setup.gateway(&ground.config(Some(&ground.redis.endpoint()))).await?;
    let (mut with, mut without) = (Measured::new()?, Measured::new()?);
    for round in 0..if setup.quick { 1 } else { 5 } {
        let name = ["delay-a", "delay-b", "delay-c", "delay-d", "delay-e"][round];
        let (warm, length) = (setup.seconds(3, 3), setup.seconds(6, 10));
        let stream = Stream { answers: DELAY_ANSWERS, tokens: TOKENS, name, spread: SPREAD, warm, length };
        without.add(measure(memory.http(), memory.pid(), stream).await?)?;
        with.add(measure(redis.http(), redis.pid(), stream).await?)?;
    }
    let case = format!("token delay added by commits, {DELAY_ANSWERS} answers, local Redis");
    let row = |quantile, name: &str| {
        let (own, base) = (with.delay_ms(quantile), without.delay_ms(quantile));
        Row::figure(format!("{case}: {name}"), own - base, "ms").note(format!(
            "{own:.3} with Redis − {base:.3} with Memory; {} tokens{}",
            with.tokens,
            ground.disk()
        ))
    };
    let faults = with.faults.of_entries() + with.faults.failed;
    Ok(vec![
        row(0.5, "p50"),
        row(0.99, "p99").bounds(Bound::AtMost(2.0), Bound::AtMost(1.0)),
        Row::figure(format!("{case}: faults"), faults as f64, "")
            .must(Bound::AtMost(0.0))
            .note(format!("{}; {}", with.faults, with.load)),
    ])
}

/// The gateway's own cost of a token, and how evenly tokens arrive.
pub async fn cpu(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let ground = Ground::start(setup, &stamped(TOKENS))?;
    let (warm, length) = (setup.seconds(3, 5), setup.seconds(8, 30));
    let stream = Stream { answers: COST_ANSWERS, tokens: TOKENS, name: "cpu", spread: SPREAD, warm, length };
    let memory = setup.gateway(&ground.config(None)).await?;
    let without = measure(memory.http(), memory.pid(), stream).await?;
    drop(memory);
    let redis = setup.gateway(&ground.config(Some(&ground.redis.endpoint()))).await?;
    let with = measure(redis.http(), redis.pid(), stream).await?;
    drop(redis);
    let bare = bare::measure(setup, ground.model(), stream).await?;
    let case = format!("{COST_ANSWERS} answers at {TOKENS_PER_SECOND} tokens/s");
    Ok(vec![
        Row::figure(format!("{case}, Redis: gateway CPU a token"), with.cpu_us(), "µs")
            .bounds(Bound::AtMost(20.0), Bound::AtMost(10.0))
            .note(format!(
                "{:.1} with Memory; {} tokens in {} entries; {}",
                without.cpu_us(),
                with.tokens,
                with.entries,
                with.load
            )),
        Row::against(
            format!("{case}, Redis: gateway CPU a token by that of a bare relay"),
            with.cpu_us(),
            "µs",
            bare.cpu_us(),
            with.cpu_us() / bare.cpu_us(),
        )
        .note(format!(
            "a WebSocket in front of the same server, a frame a token, no JSON read, nothing kept; {} tokens; {}",
            bare.tokens, bare.load
        )),
        Row::figure(format!("{case}, Redis: inter-token p99 above {PACE_MS:.0} ms"), with.gap_ms(0.99) - PACE_MS, "ms")
            .must(Bound::AtMost(10.0))
            .note(format!(
                "{:.1} with Memory; token delay p99 {:.2} ms",
                without.gap_ms(0.99) - PACE_MS,
                with.delay_ms(0.99)
            )),
        Row::figure(format!("{case}, Redis: faults"), (with.faults.of_entries() + with.faults.failed) as f64, "")
            .must(Bound::AtMost(0.0))
            .note(format!("{}; the relay: {}", with.faults, bare.faults)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_timed_and_looked_at() {
        let stamp = |ns: u64| format!("@{ns:020};");
        let delta = |text: &str| format!(r#"{{"type":"delta","text":"{text}"}}"#);
        let now = monotonic_ns();
        let mut measured = Measured::new().unwrap();
        let mut tokens = Tokens::default();
        let frame = delta(&stamp(now - 2_000_000));
        tokens.read(frame.as_bytes(), Some(&mut measured));
        let frame = delta(&format!("{}{}", stamp(now - 1_000_000), stamp(now)));
        tokens.read(frame.as_bytes(), Some(&mut measured));
        assert_eq!((tokens.count, tokens.unordered), (3, false));
        assert_eq!((measured.tokens, measured.entries, measured.delay.len(), measured.gap.len()), (3, 2, 3, 2));
        assert!(measured.delay.max() >= 2_000_000 && measured.delay_ms(1.0) < 1_000.0);
        let frame = delta(&stamp(now - 5));
        tokens.read(frame.as_bytes(), None);
        assert_eq!((tokens.count, tokens.unordered, measured.tokens), (4, true, 3));
    }
}
