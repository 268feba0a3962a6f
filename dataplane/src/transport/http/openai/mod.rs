//! OpenAI's API: stateless by default, the request goes to a model server and its answer comes back; with the header
//! `x-session-id` the last user message becomes a turn of that session.

mod ask;
mod counted;
mod pass;
mod source;
mod stream;
mod wire;

use std::sync::Arc;

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{Path, Request, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use chatgateway_core::{
    error::ErrorCode,
    limits::ANSWER_WAIT_MAX,
    log::{SessionId, SessionKey, TurnBody, TurnId, TurnState},
};
use futures_util::future::try_join_all;
use http::{HeaderName, HeaderValue, header, request::Parts};
use parking_lot::Mutex;
use tokio::time::timeout;
use uuid::Uuid;

use self::{
    ask::{Asked, TurnText},
    source::{Metered, Source},
    stream::ChunkStream,
    wire::{Finished, Kind, List, Model, Wire},
};
use super::{
    answer::{self, Waited},
    leaving::deadline,
    problem::{OpenAiProblem, Problem, with_standings},
    request::{caller, json_body},
};
use crate::{
    gateway::{Caller, Gateway, Receipt, SendTurn},
    limiter::Account,
    readers::Readers,
    transport::frame,
    turn::{self, Extra},
    upstream::{Ask, Forward, ForwardPath, Route},
};

/// Names the session that a request joins, and the one that an answer is of.
const X_SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");

/// Names an answer, for reports.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// `POST /v1/chat/completions`.
pub async fn chat_completions(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    named(answer(gateway, Kind::Chat, request).await)
}

/// `POST /v1/completions`.
pub async fn completions(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    named(answer(gateway, Kind::Text, request).await)
}

/// Every answer has an id that a report can name.
fn named(answer: Result<Response, OpenAiProblem>) -> Response {
    let mut response = answer.into_response();
    if !response.headers().contains_key(X_REQUEST_ID)
        && let Ok(id) = HeaderValue::try_from(Uuid::new_v4().to_string())
    {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    response
}

async fn answer(gateway: Arc<Gateway>, kind: Kind, request: Request) -> Result<Response, OpenAiProblem> {
    let (parts, body) = request.into_parts();
    let body = json_body(&parts, body, gateway.settings().limits.max_body_bytes).await?;
    let asked = Asked::parse(&body)?;
    match session_of(&parts)? {
        Some(session) => turn(&gateway, kind, &parts, session, &asked, &body).await,
        None => stateless(&gateway, kind, &parts, &asked, &body).await,
    }
}

fn session_of(parts: &Parts) -> Result<Option<SessionId>, Problem> {
    let Some(value) = parts.headers.get(X_SESSION_ID) else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| Problem::invalid("x-session-id: must be UTF-8"))?;
    Ok(Some(frame::session_id(text)?))
}

/// The turn's id, and whether the client chose it.
fn turn_of(parts: &Parts) -> Result<(TurnId, bool), Problem> {
    match parts.headers.get("idempotency-key") {
        None => Ok((frame::turn_id(&Uuid::new_v4().to_string())?, false)),
        Some(key) => {
            let text =
                std::str::from_utf8(key.as_bytes()).map_err(|_| Problem::invalid("Idempotency-Key: must be UTF-8"))?;
            let turn = TurnId::parse(text).map_err(|e| Problem::invalid(format!("Idempotency-Key: {e}")))?;
            Ok((turn, true))
        }
    }
}

/// The request as a turn of a session. Its answer survives the client.
async fn turn(
    gateway: &Arc<Gateway>,
    kind: Kind,
    parts: &Parts,
    session: SessionId,
    asked: &Asked<'_>,
    body: &Bytes,
) -> Result<Response, OpenAiProblem> {
    asked.fit_for_session()?;
    let (turn, named) = turn_of(parts)?;
    let (text, messages) = match asked.turn_text(kind)? {
        TurnText::Text(text) => (Some(text), None),
        TurnText::Message(list) => (None, Some(list)),
    };
    let model = asked.model.as_deref().map(ToOwned::to_owned);
    let options = ask::options(body)?;
    route(gateway, asked)?;
    let wire = Wire::new(kind, turn.as_str(), model_name(gateway, asked), asked.include_usage());
    let send = SendTurn { session: session.clone(), turn, seq: None, text, messages, model, options };
    let mut readers = gateway.readers(caller(parts));
    let receipt = readers.send(send).await?;
    let standings = receipt.standings.clone();
    let answer = of_turn(gateway, wire, readers, receipt, asked.stream(), named).await;
    let mut response = with_standings(answer, standings.as_deref())?;
    if let Ok(session) = HeaderValue::try_from(session.as_str()) {
        response.headers_mut().insert(X_SESSION_ID, session);
    }
    Ok(response)
}

/// The answer of a turn that was accepted. `named`: by the client.
async fn of_turn(
    gateway: &Gateway,
    wire: Wire,
    mut readers: Readers,
    receipt: Receipt,
    stream: bool,
    named: bool,
) -> Result<Response, OpenAiProblem> {
    if stream {
        if answer::ended_without_entries(&receipt) {
            return Err(answer::not_kept(&receipt).into());
        }
        let ended = matches!(receipt.state, TurnState::Ended(_));
        let source = Source::Turn { readers: Box::new(readers), receipt: Box::new(receipt), named: named || ended };
        return Ok(stream_of(gateway, wire, vec![source]).await?);
    }
    match answer::wait(gateway, &mut readers, &receipt, ANSWER_WAIT_MAX).await {
        Ok(Waited::Answer(a)) => {
            let (finish_reason, usage) = (a.finish_reason.as_ref().to_owned(), a.usage);
            Ok(whole(&wire, &[Finished { text: a.text, finish_reason, usage }]))
        }
        Ok(Waited::NotYet) => Err(answer::still_waiting().into()),
        // A client that did not name the turn makes a new one when it tries again.
        Err(problem) => Err(if named { problem } else { problem.not_last_word() }.into()),
    }
}

/// The request for itself alone. A client that leaves cancels its call.
async fn stateless(
    gateway: &Arc<Gateway>,
    kind: Kind,
    parts: &Parts,
    asked: &Asked<'_>,
    body: &Bytes,
) -> Result<Response, OpenAiProblem> {
    gateway.takes_new()?;
    let caller = caller(parts);
    if route(gateway, asked)? == Route::Forward {
        let admitted = gateway.limiter.request(&caller, body, 1).await;
        let (standings, account) = admitted.map_err(|r| gateway.refused(r))?;
        let forward = Forward {
            path: if kind == Kind::Chat { ForwardPath::ChatCompletions } else { ForwardPath::Completions },
            who: caller.address.to_string().into(),
            model: asked.model.as_deref().map(ToOwned::to_owned),
            stream: asked.stream(),
            headers: parts.headers.clone(),
            body: body.clone(),
        };
        let answer = pass::pass_through(gateway, forward, account).await;
        return Ok(with_standings(answer, standings.as_deref())?);
    }
    asked.one_choice("this model gives one answer a request")?;
    let bodies = bodies(kind, asked, body)?;
    let admitted = gateway.limiter.request(&caller, body, bodies.len()).await;
    let (standings, account) = admitted.map_err(|r| gateway.refused(r))?;
    let answer = of_calls(gateway, kind, &caller, asked, bodies, account).await;
    with_standings(answer, standings.as_deref())
}

/// The answers of calls that are made for one request alone.
async fn of_calls(
    gateway: &Arc<Gateway>,
    kind: Kind,
    caller: &Caller,
    asked: &Asked<'_>,
    bodies: Vec<TurnBody>,
    account: Option<Account>,
) -> Result<Response, OpenAiProblem> {
    let wire = Wire::new(kind, &Uuid::new_v4().simple().to_string(), model_name(gateway, asked), asked.include_usage());
    let upstreams = gateway.upstreams();
    let session = key_of_stateless(caller)?;
    let account = account.map(|account| Arc::new(Mutex::new(account)));
    let calls: Vec<Source> = bodies
        .into_iter()
        .map(|body| {
            let ask = Ask { session: session.clone(), history: Vec::new(), body: Arc::new(body), prefix: None };
            Source::Call(Box::new(Metered { call: upstreams.ask(ask), account: account.clone() }))
        })
        .collect();
    if asked.stream() {
        return Ok(stream_of(gateway, wire, calls).await?);
    }
    let mut drain = gateway.drain_watch();
    let answers = tokio::select! {
        answers = timeout(ANSWER_WAIT_MAX, try_join_all(calls.into_iter().map(Source::whole))) => {
            answers.map_err(|_| answer::still_waiting())??
        }
        () = deadline(&mut drain) => return Err(answer::going_away().into()),
    };
    Ok(whole(&wire, &answers))
}

/// Stateless calls from one address share their place among the sessions that wait for a model server.
fn key_of_stateless(caller: &Caller) -> Result<SessionKey, Problem> {
    Ok(caller.key(&SessionId::parse(&format!("stateless {}", caller.address))?))
}

/// What is asked of the model server: the whole conversation, or each prompt.
fn bodies(kind: Kind, asked: &Asked<'_>, body: &Bytes) -> Result<Vec<TurnBody>, Problem> {
    let messages = if kind == Kind::Chat { Some(asked.required_messages()?) } else { None };
    let options = ask::options(body)?;
    let extra = Extra { messages, model: asked.model.as_deref(), options: options.as_deref() }.to_json()?;
    let texts = match kind {
        Kind::Chat => {
            let text = turn::last_user_text(asked.required_messages()?);
            vec![text.map_err(|r| Problem::from(r).param("messages"))?]
        }
        Kind::Text => asked.prompts()?,
    };
    Ok(texts.into_iter().map(|text| TurnBody::new(text.into(), extra.clone())).collect())
}

async fn stream_of(gateway: &Gateway, wire: Wire, sources: Vec<Source>) -> Result<Response, Problem> {
    let ping = gateway.settings().keepalive.ping_interval;
    let start = ChunkStream::start(wire, sources, gateway.drain_watch(), ping);
    let stream = timeout(ANSWER_WAIT_MAX, start).await.map_err(|_| answer::still_waiting())??;
    Ok(stream.into_response())
}

fn whole(wire: &Wire, answers: &[Finished]) -> Response {
    let mut response = Response::new(Body::from(wire.whole(answers)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// `GET /v1/models`.
pub async fn list_models(State(gateway): State<Arc<Gateway>>) -> Response {
    let models = gateway.upstreams().models();
    let list = List::new(models.iter().map(|m| Model::new(&m.id, &m.upstream)).collect());
    named(Ok(Json(list).into_response()))
}

/// `GET /v1/models/{id}`.
pub async fn get_model(State(gateway): State<Arc<Gateway>>, path: Result<Path<String>, PathRejection>) -> Response {
    let answer = match path {
        Err(rejection) => Err(Problem::invalid(format!("the path: {}", rejection.body_text())).into()),
        Ok(Path(asked)) => match gateway.upstreams().models().iter().find(|m| m.id == asked) {
            Some(model) => Ok(Json(Model::new(&model.id, &model.upstream)).into_response()),
            None => {
                let message = format!("there is no model {asked:?}; GET /v1/models lists those there are");
                Err(Problem::new(ErrorCode::NotFound, message).param("model").into())
            }
        },
    };
    named(answer)
}

/// How the model that is asked for is reached.
///
/// # Errors
/// There is no such model.
fn route(gateway: &Gateway, asked: &Asked<'_>) -> Result<Route, Problem> {
    let route = gateway.upstreams().route(asked.model.as_deref());
    route.map_err(|r| Problem::from(gateway.refused(r)).param("model"))
}

/// What answers say about their model: what was asked for, or the first one where none was.
fn model_name(gateway: &Gateway, asked: &Asked<'_>) -> String {
    let named = asked.model.as_deref().map(ToOwned::to_owned);
    named.unwrap_or_else(|| gateway.upstreams().models().into_iter().next().map_or_else(String::new, |m| m.id))
}
