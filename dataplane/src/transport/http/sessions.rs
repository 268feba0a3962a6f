//! Sessions as resources: look at one, delete one, cancel a turn of one.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Request, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use chatgateway_core::log::{EntryId, HistoryTurn, SessionId, TurnId};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use super::{
    problem::Problem,
    request::{caller, session_in, turn_in},
};
use crate::{gateway::Gateway, transport::frame};

#[derive(Serialize)]
struct Snapshot<'a> {
    #[serde(serialize_with = "frame::as_text")]
    session: &'a SessionId,
    #[serde(serialize_with = "frame::as_text")]
    position: EntryId,
    turns: Vec<SnapshotTurn<'a>>,
}

#[derive(Serialize)]
struct SnapshotTurn<'a> {
    #[serde(serialize_with = "frame::as_text")]
    turn: &'a TurnId,
    seq: u64,
    state: &'static str,
    text: &'a str,
    answer: &'a str,
}

impl<'a> From<&'a HistoryTurn> for SnapshotTurn<'a> {
    fn from(t: &'a HistoryTurn) -> Self {
        Self { turn: &t.turn, seq: t.seq, state: t.state.as_str(), text: &t.text, answer: &t.answer }
    }
}

/// `GET /v1/sessions/{session}`.
pub async fn get_session(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let session = session_in(path)?;
    let (parts, _) = request.into_parts();
    let snapshot =
        gateway.snapshot(&caller(&parts), &session).await.map_err(|r| Problem::from(r).about(&session, None))?;
    let body = Snapshot {
        session: &session,
        position: snapshot.position,
        turns: snapshot.turns.iter().map(SnapshotTurn::from).collect(),
    };
    let mut response = Json(body).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// `DELETE /v1/sessions/{session}`: gone, whether it was there or not.
pub async fn delete_session(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let session = session_in(path)?;
    let (parts, _) = request.into_parts();
    gateway.delete(&caller(&parts), &session).await.map_err(|r| Problem::from(r).about(&session, None))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[derive(Serialize)]
struct Cancelled<'a> {
    #[serde(serialize_with = "frame::as_text")]
    turn: &'a TurnId,
    state: &'static str,
}

/// `POST /v1/sessions/{session}/turns/{turn}/cancel`.
pub async fn cancel_turn(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let (session, turn) = turn_in(path)?;
    let (parts, _) = request.into_parts();
    let state = gateway
        .cancel(&caller(&parts), &session, &turn)
        .await
        .map_err(|r| Problem::from(r).about(&session, Some(&turn)))?;
    Ok((StatusCode::ACCEPTED, Json(Cancelled { turn: &turn, state: state.as_str() })).into_response())
}
