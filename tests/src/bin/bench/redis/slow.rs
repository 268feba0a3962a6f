//! Redis at the end of a slow line: text waits for one commit and goes into the next, so it is late by round trips and never
//! by more and more.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use chatgateway_tests::{
    client::in_time,
    proxy::{Flow, Proxy, Way},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    ground::Ground,
    live::{SPREAD, Stream, measure, stamped},
};
use crate::{
    report::{Bound, Row, median},
    setup::Setup,
};

/// What a round trip takes.
const ROUND_TRIP: Duration = Duration::from_millis(20);

const ANSWERS: usize = 200;

/// Tokens of an answer: two seconds.
const TOKENS: u64 = 100;

/// How often a round trip is measured.
const PING_INTERVAL: Duration = Duration::from_millis(200);

/// The rows of this case.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let ground = Ground::start(setup, &stamped(TOKENS))?;
    let proxy = Proxy::start(ground.redis.endpoint().parse()?).await?;
    let gateway = setup.gateway(&ground.config(Some(&proxy.address().to_string()))).await?;
    let warm = setup.seconds(4, 5);
    let stream = |name, length| Stream { answers: ANSWERS, tokens: TOKENS, name, spread: SPREAD, warm, length };
    let near = measure(gateway.http(), gateway.pid(), stream("near", setup.seconds(4, 10))).await?;
    let before = gateway.rss_bytes()?;
    let flow = Flow { latency: ROUND_TRIP / 2, ..Flow::default() };
    [Way::ToTarget, Way::ToClient].into_iter().for_each(|way| proxy.set_flow(way, flow));
    let far = stream("far", setup.seconds(10, 60));
    let pinging = tokio::spawn(round_trips(proxy.address(), far.warm, far.length));
    let far = measure(gateway.http(), gateway.pid(), far).await?;
    let after = gateway.rss_bytes()?;
    let pings = pinging.await??;
    let round_trip_ms = median(pings.clone());
    let highest_ms = pings.iter().copied().fold(0.0, f64::max);
    let case = format!("Redis {} ms away, {ANSWERS} answers", ROUND_TRIP.as_millis());
    let (lag, mib) = (far.delay_ms(0.99), |bytes: u64| bytes as f64 / 1_048_576.0);
    let faults = far.faults.of_entries() + far.faults.failed;
    Ok(vec![
        Row::against(
            format!("{case}: lag of a token, p99, by round trips"),
            lag,
            "ms",
            round_trip_ms,
            lag / round_trip_ms,
        )
        .bounds(Bound::AtMost(3.0), Bound::AtMost(2.0))
        .note(format!(
            "p50 {:.1}, highest {:.1}; {:.2} tokens an entry; {} pings under this load, highest {highest_ms:.1}; near: p99 \
             {:.2}{}",
            far.delay_ms(0.5),
            far.delay_ms(1.0),
            far.tokens as f64 / far.entries as f64,
            pings.len(),
            near.delay_ms(0.99),
            ground.disk()
        )),
        Row::against(format!("{case}: RSS against before"), mib(after), "MiB", mib(before), mib(after) / mib(before))
            .bounds(Bound::AtMost(1.3), Bound::AtMost(1.1)),
        Row::figure(format!("{case}: faults"), faults as f64, "").must(Bound::AtMost(0.0)).note(far.faults.to_string()),
    ])
}

/// What round trips through the proxy take while the load is measured, ms: with all the delay that the machine and the proxy
/// have under it, which is part of every commit, too.
async fn round_trips(proxy: SocketAddr, warm: Duration, length: Duration) -> anyhow::Result<Vec<f64>> {
    let mut stream = in_time("a connection to Redis", TcpStream::connect(proxy)).await??;
    stream.set_nodelay(true)?;
    tokio::time::sleep(warm).await;
    let end = Instant::now() + length;
    let mut times = Vec::new();
    while Instant::now() < end {
        let began = Instant::now();
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; b"+PONG\r\n".len()];
        in_time("a pong", stream.read_exact(&mut answer)).await??;
        anyhow::ensure!(&answer == b"+PONG\r\n", "Redis answered {}", String::from_utf8_lossy(&answer));
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
        tokio::time::sleep(PING_INTERVAL).await;
    }
    Ok(times)
}
