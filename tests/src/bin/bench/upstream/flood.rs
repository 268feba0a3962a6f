//! Many plain requests: the cheapest ones that a limit looks at, answered by the built-in model. They belong to no session, so
//! that of a pod's work nothing but the limit needs the store.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use chatgateway_tests::client::in_time;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinSet;

use super::load::gap;
use crate::wire;

const BODY: &[u8] = br#"{"messages":[{"role":"user","content":"hi"}]}"#;

/// What is asked of pods.
#[derive(Clone, Copy)]
pub struct Flood {
    /// Connections to each pod, one request at a time on each.
    pub connections: usize,
    /// Requests a second to all pods together; none: as many as are answered.
    pub rate: Option<f64>,
    /// How long.
    pub length: Duration,
}

/// What pods answered.
#[derive(Debug, Default)]
pub struct Answers {
    /// When each answer came that was one, since the start, in order.
    pub admitted: Vec<Duration>,
    /// Requests that a limit refused.
    pub limited: u64,
    /// Other answers, by status.
    pub others: BTreeMap<u16, u64>,
}

impl Answers {
    /// All of them.
    pub fn all(&self) -> u64 {
        self.admitted.len() as u64 + self.limited + self.others.values().sum::<u64>()
    }

    /// Those admitted from then until then.
    pub fn admitted_in(&self, from: Duration, to: Duration) -> u64 {
        self.admitted.iter().filter(|at| (from..to).contains(*at)).count() as u64
    }

    fn add(&mut self, other: Self) {
        self.admitted.extend(other.admitted);
        self.limited += other.limited;
        other.others.into_iter().for_each(|(status, count)| *self.others.entry(status).or_default() += count);
    }
}

impl std::fmt::Display for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} admitted, {} limited", self.admitted.len(), self.limited)?;
        self.others.iter().try_for_each(|(status, count)| write!(f, ", {count} answered with {status}"))
    }
}

/// Floods pods; `began` is told once the connections are there, just before the first request.
pub async fn flood(pods: &[SocketAddr], flood: Flood, began: impl FnOnce(Instant)) -> anyhow::Result<Answers> {
    let mut connections = Vec::new();
    for pod in pods {
        for number in 0..flood.connections {
            connections.push(Connection::open(*pod, number).await?);
        }
    }
    let each = flood.rate.map(|rate| rate / connections.len() as f64);
    let start = Instant::now();
    began(start);
    let mut tasks: JoinSet<anyhow::Result<Answers>> = connections
        .into_iter()
        .enumerate()
        .map(|(number, connection)| connection.run(each, number as u64, start, start + flood.length))
        .collect();
    let mut answers = Answers::default();
    while let Some(done) = tasks.join_next().await {
        answers.add(done??);
    }
    answers.admitted.sort();
    Ok(answers)
}

struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

impl Connection {
    async fn open(pod: SocketAddr, number: usize) -> anyhow::Result<Self> {
        let stream = TokioIo::new(wire::tcp(pod, number).await?);
        let (sender, connection) = http1::handshake(stream).await?;
        // Its end is told to the sender.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, host: pod.to_string() })
    }

    async fn run(mut self, rate: Option<f64>, seed: u64, start: Instant, end: Instant) -> anyhow::Result<Answers> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut answers = Answers::default();
        let mut due = start;
        loop {
            if let Some(rate) = rate {
                due += gap(&mut random, rate);
                tokio::time::sleep_until(due.into()).await;
            } else if random.random_ratio(1, 64) {
                // A connection whose answers are always there already would keep the others from their turn.
                tokio::task::yield_now().await;
            }
            if due.max(Instant::now()) >= end {
                return Ok(answers);
            }
            match self.ask().await? {
                StatusCode::OK => answers.admitted.push(start.elapsed()),
                StatusCode::TOO_MANY_REQUESTS => answers.limited += 1,
                status => *answers.others.entry(status.as_u16()).or_default() += 1,
            }
        }
    }

    async fn ask(&mut self) -> anyhow::Result<StatusCode> {
        let request = Request::post("/v1/chat/completions")
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(BODY))?;
        in_time("the connection", self.sender.ready()).await?.context("the connection")?;
        let response = in_time("an answer", self.sender.send_request(request)).await?.context("an answer")?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(frame) = in_time("the rest of an answer", body.frame()).await? {
            frame.context("the rest of an answer")?;
        }
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use chatgateway_tests::simulator::{Behaviour, Simulator};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn answers_are_told_apart_and_counted() {
        let simulator = Simulator::with(Behaviour::default()).unwrap();
        for status in [429, 429, 503] {
            simulator.push_next(json!({"status": status})).unwrap();
        }
        let length = Duration::from_millis(300);
        let load = Flood { connections: 2, rate: Some(200.0), length };
        let mut started = None;
        let answers = flood(&[simulator.address()], load, |start| started = Some(start)).await.unwrap();
        assert!(started.is_some());
        assert_eq!((answers.limited, answers.others.get(&503)), (2, Some(&1)));
        assert_eq!(answers.all(), simulator.calls().count);
        assert!(answers.admitted.len() > 5 && answers.admitted.is_sorted());
        assert_eq!(answers.admitted_in(Duration::ZERO, Duration::MAX), answers.admitted.len() as u64);
    }
}
