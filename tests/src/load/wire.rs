//! The ways in which clients reach a pod, made alike.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use chatgateway_core::log::EntryId;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use super::{PodAddress, is_refusal};
use crate::{
    client::{Event, GrpcChat, HttpClient, Reply, SseEvent, SseStream, WsClient},
    history::{Ending, Entry, Kept},
};

/// How long one poll waits.
const POLL_WAIT: &str = "2s";

/// How a client talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// JSON over WebSocket.
    WebSocket,
    /// gRPC `Chat`.
    Grpc,
    /// Events by `GET`, turns by `POST`.
    Sse,
    /// Long polling, turns by `POST`.
    Poll,
    /// Each turn a `POST` that is answered by its events.
    PostSse,
    /// OpenAI's API in a session.
    OpenAi,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::WebSocket, Self::Grpc, Self::Sse, Self::Poll, Self::PostSse, Self::OpenAi];
}

/// A connection that reads a session.
pub enum Link {
    Ws(Box<WsClient>),
    Grpc(Box<GrpcChat>),
    Sse(SseStream),
    Poll { http: Box<HttpClient>, session: Arc<str>, position: String, ready: VecDeque<Event> },
}

/// What a resume came to.
pub struct Resumed {
    /// Whether every later entry follows.
    pub recovered: bool,
    /// From where.
    pub position: EntryId,
}

impl Link {
    /// Connects, without reading yet. For transports that send on the connection they read.
    pub async fn connect(transport: Transport, pod: PodAddress) -> anyhow::Result<Self> {
        Ok(match transport {
            Transport::WebSocket => Self::Ws(Box::new(WsClient::connect(pod.http).await?)),
            Transport::Grpc => Self::Grpc(Box::new(GrpcChat::connect(pod.grpc).await?)),
            transport => bail!("{transport:?} has no connection of its own"),
        })
    }

    /// Connects, and resumes after a position. The link is of use only where it was recovered.
    pub async fn resume(
        transport: Transport,
        pod: PodAddress,
        session: &Arc<str>,
        after: EntryId,
    ) -> anyhow::Result<(Option<Self>, Resumed)> {
        let position = after.to_string();
        match transport {
            Transport::WebSocket | Transport::Grpc => {
                let mut link = Self::connect(transport, pod).await?;
                match &mut link {
                    Self::Ws(client) => client.resume(session, &position).await?,
                    Self::Grpc(chat) => chat.resume(session, &position).await?,
                    Self::Sse(_) | Self::Poll { .. } => {}
                }
                let event = link.next().await?;
                anyhow::ensure!(event.kind() == "resumed", "a resume was answered with {event:?}");
                let recovered = event.0["recovered"] == true;
                let position = event.field("position").parse().with_context(|| format!("{event:?}"))?;
                Ok((Some(link), Resumed { recovered, position }))
            }
            Transport::Sse => {
                let client = HttpClient::new(pod.http).header("last-event-id", &position);
                let request = client.request(Method::GET, &events_path(session)).header("accept", "text/event-stream");
                let Some((stream, position)) = stream(&client, request.body(Full::default())?).await?.ok()? else {
                    return Ok((None, Resumed { recovered: false, position: after }));
                };
                Ok((Some(Self::Sse(stream)), Resumed { recovered: true, position }))
            }
            Transport::Poll => {
                let http = Box::new(HttpClient::new(pod.http));
                let reply = http.get(&format!("{}?after={position}&wait=0s", events_path(session))).await?;
                if reply.status == StatusCode::GONE {
                    return Ok((None, Resumed { recovered: false, position: after }));
                }
                let mut link = Self::Poll { http, session: session.clone(), position, ready: VecDeque::new() };
                link.polled(&reply)?;
                Ok((Some(link), Resumed { recovered: true, position: after }))
            }
            Transport::PostSse | Transport::OpenAi => bail!("{transport:?} does not resume a session"),
        }
    }

    fn polled(&mut self, reply: &Reply) -> anyhow::Result<()> {
        let Self::Poll { position, ready, .. } = self else { return Ok(()) };
        anyhow::ensure!(reply.status == StatusCode::OK, "a poll: {} {}", reply.status, reply.text());
        let body = reply.json()?;
        ready.extend(body["events"].as_array().context("a poll without events")?.iter().cloned().map(Event));
        body["position"].as_str().context("a poll without a position")?.clone_into(position);
        Ok(())
    }

    /// The next event. An error is a connection that is lost, or was ended.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        match self {
            Self::Ws(client) => client.next().await,
            Self::Grpc(chat) => chat.next().await,
            Self::Sse(stream) => loop {
                let event = stream.next().await?.context("the stream ended")?;
                if !event.data.is_empty() {
                    return sse_event(&event);
                }
            },
            Self::Poll { .. } => loop {
                let Self::Poll { http, session, position, ready } = self else { bail!("no poll") };
                if let Some(event) = ready.pop_front() {
                    return Ok(event);
                }
                let path = format!("{}?after={position}&wait={POLL_WAIT}", events_path(session));
                let reply = http.get(&path).await?;
                self.polled(&reply)?;
            },
        }
    }

    /// Sends a turn on the connection itself; its receipt is an event. False where this transport has to post it.
    pub async fn send(&mut self, session: &str, turn: &str, text: &str) -> anyhow::Result<bool> {
        match self {
            Self::Ws(client) => client.send(session, turn, text).await?,
            Self::Grpc(chat) => chat.send(session, turn, text).await?,
            Self::Sse(_) | Self::Poll { .. } => return Ok(false),
        }
        Ok(true)
    }

    /// Asks for a turn's end on the connection itself. False where this transport has to post it.
    pub async fn cancel(&mut self, session: &str, turn: &str) -> anyhow::Result<bool> {
        match self {
            Self::Ws(client) => client.cancel(session, turn).await?,
            Self::Grpc(_) | Self::Sse(_) | Self::Poll { .. } => return Ok(false),
        }
        Ok(true)
    }
}

fn sse_event(event: &SseEvent) -> anyhow::Result<Event> {
    let frame = event.json()?;
    // The priming event apart, only entries have ids.
    let alike = (event.event.as_str(), event.id.as_deref()) == (frame.kind(), frame.id());
    anyhow::ensure!(alike, "an SSE event and its data differ: {event:?}");
    Ok(frame)
}

fn events_path(session: &str) -> String {
    format!("/v1/sessions/{session}/events")
}

fn turns_path(session: &str) -> String {
    format!("/v1/sessions/{session}/turns")
}

/// A stream of events, or the problem in its place.
pub enum Streamed {
    /// The stream, and the position of its priming event.
    Stream(SseStream, EntryId),
    /// The position is not in the log any more.
    Gone,
    /// Refused with this code; whether the turn was accepted and has failed.
    Refused(String, bool),
}

impl Streamed {
    /// The stream where there is one, nothing where the position is gone.
    fn ok(self) -> anyhow::Result<Option<(SseStream, EntryId)>> {
        match self {
            Self::Stream(stream, position) => Ok(Some((stream, position))),
            Self::Gone => Ok(None),
            Self::Refused(code, _) => bail!("refused with {code}"),
        }
    }
}

async fn stream(client: &HttpClient, request: http::Request<Full<Bytes>>) -> anyhow::Result<Streamed> {
    let (head, body) = client.open(request).await?.into_parts();
    if head.status == StatusCode::GONE {
        return Ok(Streamed::Gone);
    }
    if head.status != StatusCode::OK {
        let body = body.collect().await?.to_bytes();
        let reply = Reply { status: head.status, headers: head.headers, body };
        let (code, failed) = problem(&reply)?;
        return Ok(Streamed::Refused(code, failed));
    }
    let mut stream = SseStream::new(body);
    let priming = stream.next().await?.context("a stream without a priming event")?;
    let position = priming.id.as_deref().context("a priming event without a position")?.parse()?;
    Ok(Streamed::Stream(stream, position))
}

/// A turn by `POST`, answered by its events.
pub async fn post_stream(
    pod: PodAddress,
    session: &str,
    turn: &str,
    text: &str,
    after: Option<EntryId>,
) -> anyhow::Result<Streamed> {
    let client = HttpClient::new(pod.http);
    let mut request = client
        .request(Method::POST, &turns_path(session))
        .header("content-type", "application/json")
        .header("accept", "text/event-stream");
    if let Some(after) = after {
        request = request.header("last-event-id", after.to_string());
    }
    let body = json!({"turn": turn, "text": text});
    stream(&client, request.body(Full::from(body.to_string()))?).await
}

/// What a turn by `POST` came to.
pub enum Posted {
    /// Accepted as this number.
    Accepted(Option<u64>),
    /// Refused with this code.
    Refused(String),
}

/// A turn by `POST` that does not wait for its answer.
pub async fn post_turn(pod: PodAddress, session: &str, turn: &str, text: &str) -> anyhow::Result<Posted> {
    let client = HttpClient::new(pod.http).header("prefer", "wait=0");
    let reply = client.post(&turns_path(session), &json!({"turn": turn, "text": text})).await?;
    if reply.status.is_success() {
        return Ok(Posted::Accepted(reply.json()?["seq"].as_u64()));
    }
    let (code, failed) = problem(&reply)?;
    Ok(if failed { Posted::Accepted(None) } else { Posted::Refused(code) })
}

/// A problem's code, and whether it is the end of an accepted turn and no refusal.
fn problem(reply: &Reply) -> anyhow::Result<(String, bool)> {
    let body = reply.json()?;
    let body = if body["error"].is_object() { &body["error"] } else { &body };
    let code = body["code"].as_str().with_context(|| format!("{}: {}", reply.status, reply.text()))?.to_owned();
    let last_word = body["retryable"] == false || reply.header("x-should-retry") == Some("false");
    let failed = last_word && (code.starts_with("upstream_") || code == "internal");
    Ok((code, failed))
}

/// Asks for a turn's end.
pub async fn post_cancel(pod: PodAddress, session: &str, turn: &str) -> anyhow::Result<()> {
    let reply = HttpClient::new(pod.http).post(&format!("{}/{turn}/cancel", turns_path(session)), &json!({})).await?;
    anyhow::ensure!(reply.status == StatusCode::ACCEPTED, "a cancel: {} {}", reply.status, reply.text());
    Ok(())
}

/// A session's history and position; nothing where there is no such session.
pub async fn snapshot(http: SocketAddr, session: &str) -> anyhow::Result<Option<(EntryId, Vec<Kept>)>> {
    let reply = HttpClient::new(http).get(&format!("/v1/sessions/{session}")).await?;
    if reply.status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    anyhow::ensure!(reply.status == StatusCode::OK, "a snapshot: {} {}", reply.status, reply.text());
    let body = reply.json()?;
    let turn = |turn: &Value| {
        let text = |name: &str| Arc::from(turn[name].as_str().unwrap_or_default());
        let ending = match turn["state"].as_str().context("a turn without a state")? {
            "running" | "queued" => None,
            state => Some(Ending::from_name(state).with_context(|| format!("state {state:?}"))?),
        };
        let seq = turn["seq"].as_u64().context("a turn without seq")?;
        anyhow::Ok(Kept { turn: text("turn"), seq, ending, text: text("text"), answer: text("answer") })
    };
    let turns = body["turns"].as_array().context("a snapshot without turns")?;
    let position = body["position"].as_str().context("a snapshot without a position")?.parse()?;
    Ok(Some((position, turns.iter().map(turn).collect::<anyhow::Result<_>>()?)))
}

/// A session's whole log.
pub async fn whole_log(http: SocketAddr, session: &str) -> anyhow::Result<Vec<Entry>> {
    let client = HttpClient::new(http).header("accept", "application/json");
    let mut entries = Vec::new();
    let mut position = "0".to_owned();
    loop {
        let reply = client.get(&format!("{}?after={position}", events_path(session))).await?;
        anyhow::ensure!(reply.status == StatusCode::OK, "{}: {}", reply.status, reply.text());
        let body = reply.json()?;
        let events = body["events"].as_array().context("no events")?;
        if events.is_empty() {
            return Ok(entries);
        }
        for event in events {
            entries.push(Entry::of(&Event(event.clone()))?.context("an event that is no entry")?);
        }
        body["position"].as_str().context("no position")?.clone_into(&mut position);
    }
}

/// What a client of OpenAI's API was told.
#[derive(Default)]
pub struct Told {
    /// Text until then.
    pub text: String,
    /// How it ended; nothing where it broke off.
    pub ending: Option<Ending>,
    /// The refusal's code, where nothing was accepted.
    pub refused: Option<String>,
    /// Whether the request was taken, as the status tells.
    pub accepted: bool,
    /// Why it broke off.
    pub lost: Option<String>,
    /// Whether nobody took the request.
    pub nobody: bool,
}

/// A turn over OpenAI's API. Every piece has to come within `patience`.
pub async fn openai(
    pod: PodAddress,
    session: &str,
    (turn, text): (&str, &str),
    stream: bool,
    patience: Duration,
) -> Told {
    let mut told = Told::default();
    if let Err(error) = openai_told(pod, session, (turn, text), stream, patience, &mut told).await {
        told.nobody = is_refusal(&error);
        told.lost = Some(format!("{error:#}"));
    }
    told
}

async fn openai_told(
    pod: PodAddress,
    session: &str,
    (turn, text): (&str, &str),
    stream: bool,
    patience: Duration,
    told: &mut Told,
) -> anyhow::Result<()> {
    let client = HttpClient::new(pod.http).header("x-session-id", session).header("idempotency-key", turn);
    let body = json!({"model": "sim-model", "stream": stream, "messages": [{"role": "user", "content": text}]});
    let request = client.request(Method::POST, "/v1/chat/completions").header("content-type", "application/json");
    let request = request.body(Full::from(body.to_string()))?;
    let (head, body) = tokio::time::timeout(patience, client.open(request)).await??.into_parts();
    if !stream || head.status != StatusCode::OK {
        let body = tokio::time::timeout(patience, body.collect()).await??.to_bytes();
        let reply = Reply { status: head.status, headers: head.headers, body };
        if reply.status != StatusCode::OK {
            match problem(&reply)? {
                (_, true) => (told.ending, told.accepted) = (Some(Ending::Failed), true),
                (code, false) => told.refused = Some(code),
            }
            return Ok(());
        }
        told.accepted = true;
        let choice = &reply.json()?["choices"][0];
        told.text.push_str(choice["message"]["content"].as_str().context("an answer without text")?);
        told.ending = ending_of(&choice["finish_reason"]);
        return Ok(());
    }
    told.accepted = true;
    let mut events = SseStream::new(body);
    let mut ending = None;
    loop {
        let event = tokio::time::timeout(patience, events.next()).await??.context("the stream ended without [DONE]")?;
        if event.data == "[DONE]" {
            told.ending = ending;
            return Ok(());
        }
        let chunk: Value = serde_json::from_str(&event.data)?;
        anyhow::ensure!(chunk["error"].is_null(), "{}", chunk["error"]);
        let choice = &chunk["choices"][0];
        told.text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        ending = ending.or(ending_of(&choice["finish_reason"]));
    }
}

fn ending_of(finish_reason: &Value) -> Option<Ending> {
    match finish_reason.as_str()? {
        "cancelled" => Some(Ending::Cancelled),
        _ => Some(Ending::Done),
    }
}
