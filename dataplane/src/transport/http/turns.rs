//! Turns over plain HTTP: one request, one answer, as JSON or as a stream of events.

use std::{borrow::Cow, sync::Arc};

use axum::{
    Json,
    extract::{Path, Request, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use chatgateway_core::{
    limits::ANSWER_WAIT_MAX,
    log::{EntryId, SessionId, TurnId, TurnState, Usage},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    answer::{self, Answer, Waited},
    leaving::Farewell,
    problem::{Problem, with_standings},
    request::{Wanted, caller, json_body, parse, preferred_wait, session_in, wanted},
    sse::{EventStream, Scope},
};
use crate::{
    gateway::{Gateway, Receipt, SendTurn},
    readers::{ReaderEvent, Readers},
    transport::frame::{self, ServerFrame},
};

/// The body of `POST /v1/sessions/{session}/turns`.
#[derive(Deserialize)]
struct TurnRequest<'a> {
    #[serde(borrow)]
    turn: Cow<'a, str>,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default, borrow)]
    messages: Option<&'a RawValue>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default, borrow)]
    options: Option<&'a RawValue>,
}

/// `POST /v1/sessions/{session}/turns`.
pub async fn post_turn(
    State(gateway): State<Arc<Gateway>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let session = session_in(path)?;
    let (parts, body) = request.into_parts();
    let body = json_body(&parts, body, gateway.settings().limits.max_body_bytes).await?;
    let asked: TurnRequest<'_> = parse(&body)?;
    let turn = frame::turn_id(&asked.turn)?;
    let about = |p: Problem| p.about(&session, Some(&turn));
    let send = SendTurn {
        session: session.clone(),
        turn: turn.clone(),
        seq: asked.seq,
        text: asked.text,
        messages: asked.messages.map(ToOwned::to_owned),
        model: asked.model,
        options: asked.options.map(ToOwned::to_owned),
    };
    let mut readers = gateway.readers(caller(&parts));
    let receipt = readers.send(send).await.map_err(|r| about(r.into()))?;
    let standings = receipt.standings.clone();
    let answer = if wanted(&parts.headers) == Wanted::Events {
        stream(&gateway, readers, receipt, &parts.headers).await
    } else {
        whole(&gateway, readers, receipt, &parts.headers).await
    };
    with_standings(answer, standings.as_deref())
}

/// The turn as one answer.
async fn whole(
    gateway: &Gateway,
    mut readers: Readers,
    receipt: Receipt,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let patience = preferred_wait(headers);
    let waited =
        answer::wait(gateway, &mut readers, &receipt, patience.unwrap_or(ANSWER_WAIT_MAX).min(ANSWER_WAIT_MAX)).await?;
    let mut response = match waited {
        Waited::Answer(answer) => Json(TurnAnswer::new(&receipt, &answer)).into_response(),
        Waited::NotYet => not_yet(&receipt),
    };
    if let Some(patience) = patience.map(|p| p.as_secs()) {
        let applied = HeaderValue::try_from(format!("wait={patience}")).unwrap_or(HeaderValue::from_static("wait"));
        response.headers_mut().insert(HeaderName::from_static("preference-applied"), applied);
    }
    Ok(response)
}

/// The turn as a stream: its receipt, then its entries. With `Last-Event-ID` a repeat goes on after that entry.
async fn stream(
    gateway: &Gateway,
    mut readers: Readers,
    receipt: Receipt,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let last_event_id = super::events::last_event_id(headers)?.filter(|_| receipt.duplicate);
    let mut position = receipt.from.unwrap_or(receipt.end);
    let mut first = None;
    if let Some(after) = last_event_id {
        position = super::events::resume(&mut readers, &receipt.session, after).await?;
    } else if matches!(receipt.state, TurnState::Ended(_)) {
        if answer::ended_without_entries(&receipt) {
            return Err(answer::not_kept(&receipt));
        }
        // Whether its entries are still in the log decides the status.
        match readers.next().await {
            ReaderEvent::Resumed { recovered: false, .. } => return Err(answer::not_kept(&receipt)),
            event => first = Some(event),
        }
    }
    let mut events = EventStream::new(
        readers,
        receipt.session.clone(),
        Scope::Turn(receipt.turn.clone()),
        position,
        Farewell::of(gateway),
        gateway.settings().keepalive.ping_interval,
    )
    .with_frame(&ServerFrame::accepted(&receipt));
    if let Some(event) = first {
        events = events.with_event(event);
    }
    // A client that had everything already needs no more than the receipt.
    if last_event_id.is_some_and(|after| receipt.ended_at.is_some_and(|end| end <= after)) {
        events = events.complete();
    }
    Ok(events.into_response())
}

/// A turn that takes longer than the client waits: where to read on.
fn not_yet(receipt: &Receipt) -> Response {
    let position = receipt.from.unwrap_or(receipt.end).to_string();
    let body = Accepted {
        session: &receipt.session,
        turn: &receipt.turn,
        seq: receipt.seq,
        state: receipt.state.as_str(),
        position: &position,
        duplicate: receipt.duplicate,
    };
    let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
    let session = percent_encoding::utf8_percent_encode(receipt.session.as_str(), percent_encoding::NON_ALPHANUMERIC);
    if let Ok(location) = HeaderValue::try_from(format!("/v1/sessions/{session}/events?after={position}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

#[derive(Serialize)]
struct TurnAnswer<'a> {
    #[serde(serialize_with = "frame::as_text")]
    session: &'a SessionId,
    #[serde(serialize_with = "frame::as_text")]
    turn: &'a TurnId,
    seq: u64,
    #[serde(serialize_with = "frame::as_text")]
    id: EntryId,
    #[serde(serialize_with = "frame::as_text")]
    position: EntryId,
    text: &'a str,
    finish_reason: &'a str,
    usage: Usage,
    duplicate: bool,
}

impl<'a> TurnAnswer<'a> {
    fn new(receipt: &'a Receipt, answer: &'a Answer) -> Self {
        Self {
            session: &receipt.session,
            turn: &receipt.turn,
            seq: receipt.seq,
            id: answer.id,
            position: answer.position,
            text: &answer.text,
            finish_reason: &answer.finish_reason,
            usage: answer.usage,
            duplicate: receipt.duplicate,
        }
    }
}

#[derive(Serialize)]
struct Accepted<'a> {
    #[serde(serialize_with = "frame::as_text")]
    session: &'a SessionId,
    #[serde(serialize_with = "frame::as_text")]
    turn: &'a TurnId,
    seq: u64,
    state: &'static str,
    position: &'a str,
    duplicate: bool,
}

/// The body of `POST /chat.Stream/chat`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChatRequest<'a> {
    #[serde(borrow)]
    dialog_id: Cow<'a, str>,
    seq: u64,
    text: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChatAnswer<'a> {
    dialog_id: &'a str,
    seq: u64,
    turn_id: &'a str,
    text: &'a str,
}

/// `POST /chat.Stream/chat`: one turn of a dialog, its answer when it is whole.
pub async fn chat(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let body = json_body(&parts, body, gateway.settings().limits.max_body_bytes).await?;
    let asked: ChatRequest<'_> = parse(&body)?;
    let session = SessionId::parse(&asked.dialog_id).map_err(|e| Problem::invalid(format!("dialogId: {e}")))?;
    let turn = turn_of_dialog(&session, asked.seq)?;
    let send = SendTurn {
        session: session.clone(),
        turn: turn.clone(),
        seq: Some(asked.seq),
        text: Some(asked.text),
        messages: None,
        model: None,
        options: None,
    };
    let about = |p: Problem| p.about(&session, Some(&turn));
    let mut readers = gateway.readers(caller(&parts));
    let receipt = readers.send(send).await.map_err(|r| about(r.into()))?;
    let answer = match answer::wait(&gateway, &mut readers, &receipt, ANSWER_WAIT_MAX).await {
        Ok(Waited::Answer(answer)) => {
            let body = ChatAnswer {
                dialog_id: session.as_str(),
                seq: receipt.seq,
                turn_id: turn.as_str(),
                text: &answer.text,
            };
            Ok(Json(body).into_response())
        }
        Ok(Waited::NotYet) => Err(about(answer::still_waiting())),
        Err(problem) => Err(problem),
    };
    with_standings(answer, receipt.standings.as_deref())
}

/// The names of dialogs' turns hang below this one. Chosen once, at random; another one would make retries new turns.
const DIALOG_TURNS: Uuid = Uuid::from_u128(0x8f6d_21c4_5b0e_4c7a_9a3d_e27f_14b8_60d5);

/// The id of a dialog's turn: the same for each retry.
fn turn_of_dialog(dialog: &SessionId, seq: u64) -> Result<TurnId, Problem> {
    let name = format!("{seq}/{dialog}");
    Ok(frame::turn_id(&Uuid::new_v5(&DIALOG_TURNS, name.as_bytes()).to_string())?)
}
