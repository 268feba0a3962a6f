//! Small clients of every transport, strict about what they receive.

mod event;
mod grpc;
mod http;
mod sse;
mod ws;

use std::{future::Future, time::Duration};

use anyhow::Context as _;

pub use event::{Event, Turn};
pub use grpc::{GrpcChat, event as grpc_event, grpc};
pub use http::{HttpClient, Polled, Reply, openai_chunks};
pub use sse::{SseEvent, SseParser, SseStream};
pub use ws::{Closed, Incoming, PlainClient, SUBPROTOCOL, WsClient, WsOptions};

/// Longest a client waits for anything, unless the call says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// `future`, or an error that says what did not come.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> anyhow::Result<T> {
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.with_context(|| format!("not in {} s: {what}", PATIENCE.as_secs()))
}
