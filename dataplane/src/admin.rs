//! The admin port: health, figures, and the drain.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Serialize;

use crate::{
    clock::{self, millis},
    gateway::Gateway,
};

/// What `/status` tells.
#[derive(Serialize)]
struct Status {
    version: &'static str,
    pod: String,
    config_hash: String,
    /// Why the newest configuration file is not what is applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    config_error: Option<String>,
    /// Settings that differ from the file until the process restarts.
    needs_restart: Vec<&'static str>,
    store: &'static str,
    /// Why the store cannot be used now.
    #[serde(skip_serializing_if = "Option::is_none")]
    store_trouble: Option<String>,
    /// Other pods on the same store that live and stay.
    peers: usize,
    connections: u64,
    sessions: Option<u64>,
    /// Sessions whose turns run here.
    leases: u64,
    draining: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_time_left_ms: Option<u64>,
    mailbox_overflows: u64,
    upstreams: serde_json::Value,
}

/// The admin port's routes.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/drain", post(drain))
        .with_state(gateway)
}

async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    if gateway.draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    // A pod that has never reached its store is not ready. One that lost it stays: no other pod would reach it either, and
    // its clients are told what is wrong.
    match gateway.store().trouble() {
        None => {
            gateway.store_reached();
            "ok\n".into_response()
        }
        Some(trouble) if gateway.store_was_reached() => format!("ok, but {trouble}\n").into_response(),
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")).into_response(),
    }
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], gateway.metrics.to_text()).into_response()
}

async fn status(State(gateway): State<Arc<Gateway>>) -> Response {
    let plan = *gateway.drain_watch().borrow();
    let reload = gateway.reload.lock().clone();
    Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        pod: gateway.pod.to_string(),
        config_hash: gateway.settings().hash.clone(),
        config_error: reload.error,
        needs_restart: reload.needs_restart,
        store: gateway.store().name(),
        store_trouble: gateway.store().trouble(),
        peers: gateway.others.count(),
        connections: gateway.metrics.connections_open(),
        sessions: gateway.store().sessions(),
        leases: gateway.running_turns(),
        draining: plan.is_some(),
        drain_time_left_ms: plan.map(|p| millis(p.deadline.saturating_duration_since(clock::now()))),
        mailbox_overflows: gateway.hub.overflows(),
        upstreams: serde_json::to_value(gateway.upstreams().status()).unwrap_or_default(),
    })
    .into_response()
}

async fn drain(State(gateway): State<Arc<Gateway>>) -> StatusCode {
    gateway.start_drain();
    StatusCode::ACCEPTED
}
