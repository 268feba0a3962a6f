//! Reading a session's log: as server-sent events, or by long polling.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path, Query, Request, State, rejection::PathRejection},
    response::Response,
};
use chatgateway_core::{
    error::ErrorCode,
    limits::{LONG_POLL_BYTES, LONG_POLL_MAX, RESUME_TIMEOUT},
    log::{EntryId, SessionId},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    leaving::Farewell,
    problem::Problem,
    request::{Wanted, caller, duration, session_in, wanted},
    sse::{self, EventStream, Scope},
};
use crate::{
    gateway::Gateway,
    readers::{ReaderEvent, Readers},
    transport::frame::{self, ServerFrame},
};

#[derive(Deserialize)]
struct EventsQuery {
    #[serde(default)]
    after: Option<String>,
    #[serde(default)]
    wait: Option<String>,
}

/// `GET /v1/sessions/{session}/events`. A stream where the client asks for one, or for nothing in particular; a poll with
/// `wait`, or where it asks for JSON.
pub async fn get_events(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let session = session_in(path)?;
    let (parts, _) = request.into_parts();
    let Query(query) = Query::<EventsQuery>::try_from_uri(&parts.uri)
        .map_err(|e| Problem::invalid(format!("the query: {}", e.body_text())))?;
    let after = match (last_event_id(&parts.headers)?, query.after) {
        (Some(id), _) => id,
        (None, Some(after)) => frame::position(&after)?,
        (None, None) => EntryId::ZERO,
    };
    let wait = query.wait.map(|wait| poll_time(&wait)).transpose()?;
    let mut readers = gateway.readers(caller(&parts));
    let position = resume(&mut readers, &session, after).await.map_err(|p| p.about(&session, None))?;
    match (wanted(&parts.headers), wait) {
        (Wanted::Events, _) | (Wanted::Any, None) => {
            let farewell = Farewell::of(&gateway);
            let ping = gateway.settings().keepalive.ping_interval;
            Ok(EventStream::new(readers, session, Scope::Session, position, farewell, ping).into_response())
        }
        (Wanted::Json | Wanted::Any, wait) => {
            poll(&gateway, readers, session, position, wait.unwrap_or_default()).await
        }
    }
}

fn poll_time(wait: &str) -> Result<Duration, Problem> {
    let wait = duration(wait)
        .ok_or_else(|| Problem::invalid(format!("wait: {wait:?} is no time; write it as 25s, 500ms or 25")))?;
    Ok(wait.min(LONG_POLL_MAX))
}

/// The position in `Last-Event-ID`. An empty one counts as none: that is what clients send who have no id yet.
pub fn last_event_id(headers: &HeaderMap) -> Result<Option<EntryId>, Problem> {
    let Some(value) = headers.get("last-event-id").filter(|v| !v.is_empty()) else { return Ok(None) };
    let text = value.to_str().map_err(|_| Problem::invalid("Last-Event-ID: is no id"))?;
    Ok(Some(frame::position(text)?))
}

/// Moves the reader, and waits for the outcome: nothing has been sent yet, so it can still be an HTTP status.
pub async fn resume(readers: &mut Readers, session: &SessionId, after: EntryId) -> Result<EntryId, Problem> {
    readers.resume(session.clone(), after)?;
    let outcome = async {
        loop {
            match readers.next().await {
                ReaderEvent::Resumed { recovered: true, position, .. } => return Ok(position),
                ReaderEvent::Resumed { recovered: false, .. } | ReaderEvent::Slow { .. } => {
                    return Err(Problem::new(ErrorCode::NotResumable, sse::NOT_RESUMABLE));
                }
                ReaderEvent::Gone { .. } => return Err(Problem::new(ErrorCode::NotFound, sse::DELETED)),
                // What an earlier reader of this connection still had.
                ReaderEvent::Entry { .. } => {}
            }
        }
    };
    timeout(RESUME_TIMEOUT, outcome).await.unwrap_or_else(|_| {
        Err(Problem::new(ErrorCode::StoreUnavailable, "the session store does not answer; try again soon"))
    })
}

/// Waits until there is something after `position`, and gives what is there.
async fn poll(
    gateway: &Gateway,
    mut readers: Readers,
    session: SessionId,
    mut position: EntryId,
    wait: Duration,
) -> Result<Response, Problem> {
    let until = Instant::now() + wait;
    let mut farewell = Farewell::of(gateway);
    let mut events = Vec::new();
    let first = tokio::select! {
        biased;
        event = readers.next() => Some(event),
        () = sleep_until(until) => None,
        _ = farewell.next(false) => None,
    };
    let mut next = first;
    while let Some(event) = next {
        match event {
            ReaderEvent::Entry { entry, .. } => {
                if !events.is_empty() {
                    events.push(b',');
                }
                events.extend_from_slice(ServerFrame::entry(&session, &entry).to_json().as_bytes());
                position = entry.id;
            }
            ReaderEvent::Resumed { recovered: true, .. } => {}
            // What came before it is told first; the next poll finds out by itself.
            _ if !events.is_empty() => break,
            ReaderEvent::Gone { .. } => {
                return Err(Problem::new(ErrorCode::NotFound, sse::DELETED).about(&session, None));
            }
            ReaderEvent::Resumed { recovered: false, .. } | ReaderEvent::Slow { .. } => {
                return Err(Problem::new(ErrorCode::NotResumable, sse::NOT_RESUMABLE).about(&session, None));
            }
        }
        next = if events.len() < LONG_POLL_BYTES { readers.try_next() } else { None };
    }
    let mut body = Vec::with_capacity(events.len() + 64);
    body.extend_from_slice(b"{\"events\":[");
    body.extend_from_slice(&events);
    body.extend_from_slice(format!("],\"position\":\"{position}\"}}").as_bytes());
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}
