//! Pods on one Redis, and what their clients see.

use std::{future::Future, time::Duration};

use chatgateway_redis_server::{Options, RedisServer};
use chatgateway_tests::{
    client::{Event, Turn, WsClient},
    process::GatewayProcess,
    simulator::{Behaviour, Simulator},
};
use serde_json::{Value, json};

/// Pods on one Redis, in front of one model server.
pub struct Pods {
    pub redis: RedisServer,
    pub simulator: Simulator,
    pub pods: Vec<GatewayProcess>,
    prefill: bool,
    drain: Value,
}

impl Pods {
    /// As many pods. Answers have 200 tokens, some 100 a second.
    pub async fn start(count: usize, prefill: bool) -> Self {
        let drain = json!({"acceptFloor": "0s", "reconnectSpread": "200ms", "timeout": "8s"});
        Self::start_with(count, prefill, 200, drain).await
    }

    /// The same, with answers of another length and another drain.
    pub async fn start_with(count: usize, prefill: bool, tokens: u32, drain: Value) -> Self {
        let redis = RedisServer::start(Options::default()).unwrap();
        let behaviour = Behaviour { tokens, tokens_per_second: 100.0, ..Behaviour::default() };
        let simulator = Simulator::with(behaviour).unwrap();
        let mut pods = Self { redis, simulator, pods: Vec::new(), prefill, drain };
        for _ in 0..count {
            pods.add().await;
        }
        // Each knows the others: a drain asks for that.
        for pod in &pods.pods {
            until("the pods know each other", || async {
                pod.status().await.unwrap()["peers"].as_u64() == Some(count as u64 - 1)
            })
            .await;
        }
        pods
    }

    /// One more.
    pub async fn add(&mut self) -> &mut GatewayProcess {
        self.pods.push(GatewayProcess::start(&self.config(&self.redis.endpoint())).await.unwrap());
        self.pods.last_mut().unwrap()
    }

    /// The configuration of a pod that reaches Redis at this address.
    pub fn config(&self, redis: &str) -> Value {
        json!({
            "upstreams": [{"name": "sim", "type": "OpenAI", "openAI": {
                "url": self.simulator.openai_url(), "model": "sim", "prefill": self.prefill,
            }}],
            "sessions": {"store": {"type": "Redis", "redis": {"endpoints": [redis]}}},
            "drain": self.drain,
        })
    }

    /// A JSON WebSocket to a pod.
    pub async fn connect(&self, pod: usize) -> WsClient {
        WsClient::connect(self.pods[pod].http()).await.unwrap()
    }

    /// What the model server answers when it is asked nothing special.
    pub fn answer(&self, tokens: u32) -> String {
        (0..tokens).map(|token| format!("{token} ")).collect()
    }

    /// A count from `INFO commandstats`.
    pub fn calls(&self, command: &str) -> u64 {
        let stats = self.redis.info("commandstats", &format!("cmdstat_{command}")).unwrap_or_default();
        let calls = stats.split(',').find_map(|part| part.strip_prefix("calls="));
        calls.and_then(|calls| calls.parse().ok()).unwrap_or(0)
    }
}

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What was seen of a turn after it was asked for or resumed, up to its end or so many deltas.
pub async fn read(client: &mut WsClient, turn: &str, deltas: usize) -> Turn {
    let mut seen = Turn::default();
    let mut count = 0;
    while count < deltas {
        let event = client.next().await.unwrap();
        if !event.field("turn").is_empty() && event.field("turn") != turn {
            continue;
        }
        count += usize::from(event.kind() == "delta");
        if seen.add(event, turn) {
            break;
        }
    }
    seen
}

/// To its end.
pub async fn read_all(client: &mut WsClient, turn: &str) -> Turn {
    read(client, turn, usize::MAX).await
}

/// The entries of what was seen.
pub fn entries(turn: &Turn) -> Vec<Event> {
    turn.events.iter().filter(|event| event.id().is_some()).cloned().collect()
}
