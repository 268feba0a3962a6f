//! What the gateway adds to a token's way: 500 answers at a time, 50 tokens a second each, from the model-server
//! simulator, whose tokens are their own send times. Read directly and through the gateway in the same run; what is added
//! is the difference of the percentiles.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chatgateway_tests::{
    client::in_time,
    clock::monotonic_ns,
    process::Process,
    simulator::stamps::{Stamp, StampReader},
};
use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    closed::{ends_turn, send_frame},
    report::{Bound, Row},
    setup::{Load, LoadMeter, Setup, openai},
    wire::{self, Frame, Mode},
};

const STREAMS: usize = 500;

/// Tokens of an answer: two seconds.
const TOKENS: u64 = 100;

const TOKENS_PER_SECOND: u32 = 50;

/// Delays of tokens, ns.
struct Delays {
    /// Of first tokens: on the request's way in and the token's way out.
    first: Histogram<u64>,
    /// Of the others.
    next: Histogram<u64>,
    missing: u64,
    load: Load,
}

impl Delays {
    fn new() -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Ok(Self { first: histogram()?, next: histogram()?, missing: 0, load: Load::default() })
    }

    fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.first.add(&other.first)?;
        self.next.add(&other.next)?;
        self.missing += other.missing;
        Ok(())
    }
}

/// One answer's tokens as they arrive.
struct Answer {
    asked_ns: u64,
    inward_ns: u64,
    tokens: u64,
    reader: StampReader,
}

impl Answer {
    fn asked_now() -> Self {
        Self { asked_ns: monotonic_ns(), inward_ns: 0, tokens: 0, reader: StampReader::default() }
    }

    fn read(&mut self, bytes: &[u8], delays: &mut Delays) {
        let Self { asked_ns, inward_ns, tokens, reader } = self;
        let now = monotonic_ns();
        reader.read(bytes, |stamp| match stamp {
            Stamp::Arrived(arrived) => *inward_ns = arrived.saturating_sub(*asked_ns),
            Stamp::Sent(sent) => {
                let delay = now.saturating_sub(sent);
                match *tokens {
                    0 => delays.first.saturating_record(*inward_ns + delay),
                    _ => delays.next.saturating_record(delay),
                }
                *tokens += 1;
            }
        });
    }
}

/// How the answers are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// WebSocket, JSON.
    WebSocket,
    /// `POST /v1/chat/completions`, at the gateway or at the simulator.
    OpenAi,
}

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let (_simulator, simulator) = start_simulator(setup)?;
    let gateway = setup.gateway(&openai(&format!("http://{simulator}/v1"))).await?;
    let direct = measure(setup, simulator, Way::OpenAi, None).await?;
    let websocket = measure(setup, gateway.http(), Way::WebSocket, Some(gateway.pid())).await?;
    let mut rows = rows("WebSocket", &websocket, &direct);
    rows.extend(match measure(setup, gateway.http(), Way::OpenAi, Some(gateway.pid())).await {
        Ok(delays) => self::rows("OpenAI API", &delays, &direct),
        Err(error) => vec![Row::figure("the same through the OpenAI API", f64::NAN, "").note(format!("{error:#}"))],
    });
    Ok(rows)
}

/// The simulator alone, to see what the machine can do.
pub async fn baseline(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let (simulator, address) = start_simulator(setup)?;
    let delays = measure(setup, address, Way::OpenAi, Some(simulator.pid())).await?;
    let row = |what: &str, quantile: f64, histogram: &Histogram<u64>| {
        Row::figure(
            format!("{STREAMS} streams direct, {what}"),
            histogram.value_at_quantile(quantile) as f64 / 1e6,
            "ms",
        )
    };
    Ok(vec![
        row("first token: p50", 0.5, &delays.first),
        row("first token: p99", 0.99, &delays.first),
        row("next tokens: p50", 0.5, &delays.next),
        row("next tokens: p99", 0.99, &delays.next)
            .note(format!("the simulator takes {:.0} % of its core, {} lost", delays.load.busy, delays.missing)),
    ])
}

fn start_simulator(setup: &Setup) -> anyhow::Result<(Process, SocketAddr)> {
    setup.helper(setup.generator_core, &["model".to_owned(), TOKENS.to_string(), TOKENS_PER_SECOND.to_string()])
}

fn rows(way: &str, through: &Delays, direct: &Delays) -> Vec<Row> {
    let ms = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
    let row = |what: &str, quantile: f64, of: fn(&Delays) -> &Histogram<u64>| {
        let (own, base) = (ms(of(through), quantile), ms(of(direct), quantile));
        let name = if quantile < 0.9 { "p50" } else { "p99" };
        Row::figure(format!("added {what} time, {STREAMS} streams ({way}): {name}"), own - base, "ms")
            .note(format!("{own:.3} − {base:.3} direct; {} samples", of(through).len()))
    };
    vec![
        row("first-token", 0.5, |delays| &delays.first).bounds(Bound::AtMost(0.7), Bound::AtMost(0.4)),
        row("first-token", 0.99, |delays| &delays.first).bounds(Bound::AtMost(5.0), Bound::AtMost(2.0)),
        row("inter-token", 0.5, |delays| &delays.next),
        row("inter-token", 0.99, |delays| &delays.next).bounds(Bound::AtMost(3.0), Bound::AtMost(1.0)),
        Row::figure(format!("tokens lost ({way})"), through.missing as f64, "")
            .must(Bound::AtMost(0.0))
            .note(through.load.to_string()),
    ]
}

async fn measure(setup: &Setup, address: SocketAddr, way: Way, pid: Option<u32>) -> anyhow::Result<Delays> {
    let began = Instant::now();
    let warm = began + setup.seconds(3, 5);
    let end = warm + setup.seconds(6, 30);
    let mut streams = tokio::task::JoinSet::new();
    for number in 0..STREAMS {
        streams.spawn(async move {
            // Spread over the time of one answer, so that first tokens do not come in one lump.
            tokio::time::sleep(Duration::from_secs_f64(2.0 * number as f64 / STREAMS as f64)).await;
            match way {
                Way::WebSocket => over_websocket(address, number, warm, end).await,
                Way::OpenAi => over_http(address, number, warm, end).await,
            }
        });
    }
    let mut delays = Delays::new()?;
    tokio::time::sleep_until(warm.into()).await;
    let meter = pid.map(LoadMeter::start).transpose()?;
    tokio::time::sleep_until(end.into()).await;
    if let Some(meter) = meter {
        delays.load = meter.stop()?;
    }
    while let Some(stream) = streams.join_next().await {
        delays.add(&stream??)?;
    }
    Ok(delays)
}

async fn over_websocket(address: SocketAddr, number: usize, warm: Instant, end: Instant) -> anyhow::Result<Delays> {
    let session = format!("streams-{number}");
    let (mut sender, mut receiver) = wire::connect(address, number, Mode::Json, &session).await?;
    let (mut delays, mut unmeasured) = (Delays::new()?, Delays::new()?);
    let mut turn = 0;
    while Instant::now() < end {
        let delays = if Instant::now() < warm { &mut unmeasured } else { &mut delays };
        let mut answer = Answer::asked_now();
        sender.text(send_frame(&session, turn, "go on").as_bytes()).await?;
        turn += 1;
        loop {
            match in_time("a token", receiver.next()).await?? {
                Frame::Ping(payload) => sender.pong(&payload).await?,
                Frame::Text(text) if ends_turn(&text)? => break,
                Frame::Text(text) if text.starts_with(br#"{"type":"delta""#) => answer.read(&text, delays),
                Frame::Text(_) => {}
            }
        }
        delays.missing += TOKENS.abs_diff(answer.tokens);
    }
    Ok(delays)
}

async fn over_http(address: SocketAddr, number: usize, warm: Instant, end: Instant) -> anyhow::Result<Delays> {
    let mut stream = wire::tcp(address, number).await?;
    let (mut delays, mut unmeasured) = (Delays::new()?, Delays::new()?);
    let body = r#"{"model":"sim-model","stream":true,"messages":[{"role":"user","content":"go on"}]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    while Instant::now() < end {
        let delays = if Instant::now() < warm { &mut unmeasured } else { &mut delays };
        let mut answer = Answer::asked_now();
        stream.write_all(request.as_bytes()).await?;
        read_answer(&mut stream, &mut answer, delays).await?;
        delays.missing += TOKENS.abs_diff(answer.tokens);
    }
    Ok(delays)
}

/// Reads one chunked response to its end: the bytes after which the server has nothing to say.
async fn read_answer(stream: &mut TcpStream, answer: &mut Answer, delays: &mut Delays) -> anyhow::Result<()> {
    const END: &[u8] = b"0\r\n\r\n";
    let mut buffer = vec![0; 16 * 1024];
    let mut last = Vec::new();
    let mut head = true;
    loop {
        let read = in_time("a token", stream.read(&mut buffer)).await??;
        let bytes = buffer.get(..read).context("a read beyond its buffer")?;
        anyhow::ensure!(!bytes.is_empty(), "the response broke off");
        if std::mem::take(&mut head) {
            anyhow::ensure!(bytes.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(bytes));
        }
        answer.read(bytes, delays);
        last.extend_from_slice(bytes);
        last.drain(..last.len().saturating_sub(END.len()));
        if last == END {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use chatgateway_tests::simulator::{Behaviour, Simulator};

    use super::*;

    #[tokio::test]
    async fn every_token_of_a_stamped_answer_is_timed() {
        let behaviour = Behaviour { tokens: 100, tokens_per_second: 1_000.0, stamp: true, ..Behaviour::default() };
        let simulator = Simulator::with(behaviour).unwrap();
        let now = Instant::now();
        let delays = over_http(simulator.address(), 0, now, now + Duration::from_millis(300)).await.unwrap();
        let answers = simulator.calls().completed;
        assert!(answers > 1, "the connection is used again");
        assert_eq!((delays.first.len(), delays.next.len(), delays.missing), (answers, answers * (TOKENS - 1), 0));
        assert!(delays.next.min() > 0 && delays.first.max() < 5_000_000_000);
    }
}
