//! Sessions in Redis.

#[allow(dead_code, unused_imports, reason = "what uses it comes next")]
mod codec;
#[allow(dead_code, reason = "what uses it comes next")]
mod scripts;

use std::sync::Arc;

use chatgateway_config::RedisSettings;
use chatgateway_core::log::PodId;
use tokio::sync::mpsc;

use super::{MemoryStore, PeerEvent};

/// A Redis.
pub struct RedisStore;

impl RedisStore {
    /// x
    pub fn start(
        _settings: &RedisSettings,
        _pod: PodId,
    ) -> anyhow::Result<(Arc<MemoryStore>, mpsc::Receiver<PeerEvent>)> {
        anyhow::bail!("no")
    }
}
