//! One Redis, the model-server simulator, and pods: all processes of their own.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chatgateway_redis_server::{Fsync, Options, RedisServer};
use chatgateway_tests::{
    client::HttpClient,
    process::{GatewayProcess, Process, on_core},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::connection::Connection;
use crate::setup::{Setup, openai};

/// How long pods may take to hear of each other: some heartbeats.
const PEERS_TIMEOUT: Duration = Duration::from_secs(15);

/// How often it is looked whether something has come to be.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What the pods of a case share.
pub struct Ground {
    /// How it is run.
    pub setup: Setup,
    /// The Redis: an append-only file, synced each second.
    pub redis: RedisServer,
    simulator: SocketAddr,
    _simulator: Process,
}

impl Ground {
    /// Starts Redis on the servers' core and a simulator that answers like this on the generator's.
    pub fn start(setup: &Setup, behaviour: &Value) -> anyhow::Result<Self> {
        let options = Options { appendonly: Some(Fsync::Everysec), ..Options::default() };
        let redis = on_core(setup.server_core, || RedisServer::start(options))?;
        let (process, simulator) = setup.model_server(&["--behaviour", &behaviour.to_string()])?;
        Ok(Self { setup: *setup, redis, simulator, _simulator: process })
    }

    /// The simulator's address.
    pub fn model(&self) -> SocketAddr {
        self.simulator
    }

    /// A pod's configuration, with a Redis at this address; none: sessions in memory.
    pub fn config(&self, redis: Option<&str>) -> Value {
        let mut config = openai(&format!("http://{}/v1", self.simulator));
        config["upstreams"][0]["openAI"]["prefill"] = json!(true);
        if let Some(endpoint) = redis {
            config["sessions"]["store"] = json!({"type": "Redis", "redis": {"endpoints": [endpoint]}});
        }
        config
    }

    /// Starts a pod on this Redis.
    pub async fn pod(&self, drain: &Value) -> anyhow::Result<GatewayProcess> {
        let mut config = self.config(Some(&self.redis.endpoint()));
        config["drain"] = drain.clone();
        self.setup.gateway(&config).await
    }

    /// Starts pods, and waits until each knows all others.
    pub async fn pods(&self, count: usize, drain: &Value) -> anyhow::Result<Vec<GatewayProcess>> {
        let mut pods = Vec::new();
        for _ in 0..count {
            pods.push(self.pod(drain).await?);
        }
        for pod in &pods {
            knows_others(pod, count - 1).await?;
        }
        Ok(pods)
    }

    /// How often Redis had to wait for its disk, as the end of a note. It stands still then, and with it everything.
    pub fn disk(&self) -> String {
        match self.redis.info("persistence", "aof_delayed_fsync").as_deref() {
            None | Some("0") => String::new(),
            Some(times) => format!("; Redis WAITED for its disk {times} times: rely on no time here"),
        }
    }

    /// Calls the model server was asked for.
    pub async fn model_calls(&self) -> anyhow::Result<u64> {
        let calls = HttpClient::new(self.simulator).get("/sim/calls").await?.json()?;
        calls["count"].as_u64().context("the simulator's count")
    }
}

/// Waits until a pod knows at least so many others.
pub async fn knows_others(pod: &GatewayProcess, others: usize) -> anyhow::Result<()> {
    let what = format!("a pod knows {others} others");
    until(&what, PEERS_TIMEOUT, async || Ok(pod.status().await?["peers"].as_u64() >= Some(others as u64))).await
}

/// Waits for something.
pub async fn until(what: &str, timeout: Duration, is_so: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    while !is_so().await? {
        anyhow::ensure!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// The answer of a simulator that is told nothing special.
pub fn answer(tokens: u64) -> Arc<str> {
    (0..tokens).map(|token| format!("{token} ")).collect::<String>().into()
}

/// The ready pods, as a Service of Kubernetes knows them.
#[derive(Default)]
pub struct Service {
    ready: Mutex<Vec<SocketAddr>>,
}

impl Service {
    /// Of these pods.
    pub fn new(pods: &[GatewayProcess]) -> Arc<Self> {
        Arc::new(Self { ready: Mutex::new(pods.iter().map(GatewayProcess::http).collect()) })
    }

    /// A pod is ready.
    pub fn add(&self, pod: SocketAddr) {
        self.ready.lock().push(pod);
    }

    /// A pod is not.
    pub fn remove(&self, pod: SocketAddr) {
        self.ready.lock().retain(|ready| *ready != pod);
    }

    /// One of them: client by client another one.
    pub fn pick(&self, client: usize) -> anyhow::Result<SocketAddr> {
        let ready = self.ready.lock();
        ready.get(client % ready.len().max(1)).copied().context("no pod is ready")
    }

    /// One of them that is not this one.
    pub fn pick_other(&self, client: usize, not: SocketAddr) -> anyhow::Result<SocketAddr> {
        let ready = self.ready.lock();
        let others: Vec<&SocketAddr> = ready.iter().filter(|ready| **ready != not).collect();
        others.get(client % others.len().max(1)).map(|pod| **pod).context("no other pod is ready")
    }
}

/// Connects to another pod than the one whose connection broke, again and again for some time. Returns how often it was
/// refused, too.
pub async fn reconnect(service: &Service, client: usize, broken: SocketAddr) -> anyhow::Result<(Connection, u64)> {
    const TRIES: u64 = 100;
    let mut refused = 0;
    loop {
        match Connection::open(service.pick_other(client + refused as usize, broken)?, client).await {
            Ok(connection) => return Ok((connection, refused)),
            Err(error) if refused == TRIES => return Err(error),
            Err(_) => refused += 1,
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_spreads_clients_over_what_is_ready() {
        let service = Service::default();
        assert!(service.pick(0).is_err());
        let pods: Vec<SocketAddr> = (1..=3).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        pods.iter().for_each(|pod| service.add(*pod));
        assert_eq!((0..4).map(|client| service.pick(client).unwrap().port()).collect::<Vec<_>>(), [1, 2, 3, 1]);
        assert!((0..9).all(|client| service.pick_other(client, pods[1]).unwrap() != pods[1]));
        service.remove(pods[0]);
        service.remove(pods[2]);
        assert!(service.pick(7).is_ok() && service.pick_other(7, pods[1]).is_err());
    }

    #[test]
    fn the_answer_is_the_simulators() {
        assert_eq!(&*answer(3), "0 1 2 ");
    }
}
