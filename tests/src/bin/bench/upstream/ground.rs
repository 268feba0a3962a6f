//! Pods in front of simulated model servers.

use std::net::SocketAddr;

use chatgateway_tests::process::{GatewayProcess, Process};
use serde_json::{Value, json};

use crate::setup::Setup;

/// Workers of the server without continuous batching, and so the calls it can answer at once.
pub const WORKERS: usize = 4;

/// A pod with a model server of its own.
pub struct Lane {
    /// The pod.
    pub gateway: GatewayProcess,
    /// The model server's address.
    pub model: SocketAddr,
    _simulator: Process,
}

impl Lane {
    /// Starts some that are alike.
    pub async fn start(
        setup: &Setup,
        count: usize,
        simulator: &[&str],
        config: impl Fn(SocketAddr) -> Value,
    ) -> anyhow::Result<Vec<Self>> {
        let mut lanes = Vec::new();
        for _ in 0..count {
            let (process, model) = setup.model_server(simulator)?;
            let gateway = setup.gateway(&config(model)).await?;
            lanes.push(Self { gateway, model, _simulator: process });
        }
        Ok(lanes)
    }
}

/// Where the pods take clients.
pub fn addresses(lanes: &[Lane]) -> Vec<SocketAddr> {
    lanes.iter().map(|lane| lane.gateway.http()).collect()
}

/// Arguments of a simulator that gains by batching and runs so many calls at once.
pub fn batching_server(workers: &str) -> [&str; 5] {
    ["--batching", "--workers", workers, "--max-queued", "100000"]
}

/// A pod before such a server.
pub fn batching_config(model: SocketAddr, batching: &Value) -> Value {
    let mut upstream = upstream(&format!("http://{model}/v1"), WORKERS, "30s");
    upstream["openAI"]["promptFormat"] = json!("Plain");
    upstream["batching"] = batching.clone();
    gateway(upstream)
}

/// An OpenAI-compatible upstream that takes so many calls at once.
pub fn upstream(url: &str, max_concurrent: usize, queue_timeout: &str) -> Value {
    json!({
        "name": "sim",
        "type": "OpenAI",
        "openAI": {"url": url, "model": "sim-model"},
        "pool": {"maxConcurrent": max_concurrent, "maxQueued": 1_000, "queueTimeout": queue_timeout},
        "timeouts": {"firstToken": "30s", "betweenTokens": "30s"},
    })
}

/// A pod with this upstream. The history is short, so that prompts do not grow as the run goes on.
pub fn gateway(upstream: Value) -> Value {
    json!({"sessions": {"history": {"maxTurns": 2}}, "upstreams": [upstream]})
}
