//! gRPC, package `chat.v1`.

use std::sync::Arc;

use crate::gateway::Gateway;

/// The services of the gRPC port.
pub fn router(_: Arc<Gateway>) -> axum::Router {
    axum::Router::new()
}
