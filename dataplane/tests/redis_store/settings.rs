//! Stores on servers that a test has started.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use chatgateway_config::{Endpoint, RedisMode, RedisSettings};
use chatgateway_core::log::PodId;
use chatgateway_dataplane::store::{PeerEvent, Store, redis::RedisStore};
use tokio::sync::mpsc;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Settings without TLS or users. Endpoints are `host:port`.
pub fn settings(mode: RedisMode, endpoints: &[String]) -> RedisSettings {
    let endpoint = |text: &String| {
        let (host, port) = text.rsplit_once(':').unwrap();
        Endpoint { host: host.into(), port: port.parse().unwrap() }
    };
    RedisSettings {
        mode,
        endpoints: endpoints.iter().map(endpoint).collect(),
        primary_name: (mode == RedisMode::Sentinel).then(|| chatgateway_redis_server::PRIMARY_NAME.to_owned()),
        username_file: None,
        password_file: None,
        tls: None,
    }
}

/// A file with one line.
#[allow(dead_code)]
pub fn line_file(dir: &std::path::Path, name: &str, line: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, format!("{line}\n")).unwrap();
    path
}

/// A store that is connected.
pub async fn connected(settings: &RedisSettings, pod: PodId) -> (Arc<RedisStore>, mpsc::Receiver<PeerEvent>) {
    let (store, events) = RedisStore::start(settings, pod).unwrap();
    until("the store is connected", || store.trouble().is_none()).await;
    (store, events)
}

/// Waits for a condition.
pub async fn until(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !look() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
