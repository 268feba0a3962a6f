//! The simulator's listener: one thread, HTTP/1.1.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    answer::Answer,
    behaviour::{Behaviour, Fault},
    prefix::PrefixCache,
    record::{BODY_REMEMBERED_BYTES, CALLS_REMEMBERED, CallRecord, Calls, Outcome, Recorder},
    request::{Ask, Protocol},
    workers::Workers,
};
use crate::clock::monotonic_ns;

/// Largest request read.
const REQUEST_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Behaviours that can be set for calls to come.
const NEXT_MAX: usize = 10_000;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How a simulator is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens; port 0 takes a free one.
    pub bind: SocketAddr,
    /// How calls are answered unless they say otherwise.
    pub behaviour: Behaviour,
    /// Calls that run at a time; 0 for any number.
    pub workers: usize,
    /// Calls that wait for a worker; more are refused with 503.
    pub max_queued: usize,
    /// Models listed.
    pub models: Vec<String>,
    /// Whether a model that is not listed is refused with 404.
    pub strict_models: bool,
    /// Calls remembered one by one; older ones are only counted.
    pub calls_remembered: usize,
    /// Blocks of prompts that are remembered; see [`Behaviour::prefix_saving`].
    pub prefix_blocks: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            behaviour: Behaviour::default(),
            workers: 0,
            max_queued: 1_000,
            models: vec!["sim-model".to_owned()],
            strict_models: false,
            calls_remembered: CALLS_REMEMBERED,
            prefix_blocks: 0,
        }
    }
}

/// A running simulator, on a thread of its own; it ends when this is dropped.
pub struct Simulator {
    address: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

struct State {
    settings: Settings,
    workers: Workers,
    recorder: Recorder,
    plan: Mutex<Plan>,
    prefixes: Mutex<PrefixCache>,
    /// Until when connections are refused; none: they are not.
    dead: watch::Sender<Option<Death>>,
}

/// A server that is away.
#[derive(Clone, Copy, Debug)]
struct Death {
    /// When it is back; none: when it is told.
    until: Option<tokio::time::Instant>,
}

/// How long a death that was asked for by a call waits for the call's answer to leave.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// What is set at run time.
struct Plan {
    behaviour: Behaviour,
    next: VecDeque<Value>,
}

impl State {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The behaviour for the next call.
    fn take_behaviour(&self) -> anyhow::Result<Behaviour> {
        let mut plan = self.plan();
        match plan.next.pop_front() {
            Some(changes) => plan.behaviour.with(&changes),
            None => Ok(plan.behaviour.clone()),
        }
    }

    fn change_behaviour(&self, changes: &Value) -> anyhow::Result<()> {
        let mut plan = self.plan();
        plan.behaviour = plan.behaviour.with(changes)?;
        Ok(())
    }

    fn push_next(&self, changes: Value) -> anyhow::Result<()> {
        let mut plan = self.plan();
        plan.behaviour.with(&changes)?;
        anyhow::ensure!(plan.next.len() < NEXT_MAX, "at most {NEXT_MAX} behaviours wait for calls");
        plan.next.push_back(changes);
        Ok(())
    }
}

impl Simulator {
    /// Starts one.
    pub fn start(settings: Settings) -> anyhow::Result<Self> {
        settings.behaviour.with(&json!({}))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _in_runtime = runtime.enter();
            listen(settings.bind).with_context(|| format!("simulator: cannot listen on {}", settings.bind))?
        };
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            workers: Workers::new(settings.workers, settings.max_queued),
            recorder: Recorder::new(settings.calls_remembered),
            prefixes: Mutex::new(PrefixCache::new(settings.prefix_blocks)),
            dead: watch::Sender::new(None),
            plan: Mutex::new(Plan { behaviour: settings.behaviour.clone(), next: VecDeque::new() }),
            settings,
        });
        let stop = CancellationToken::new();
        let (served, stopped) = (state.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("model-sim".to_owned()).spawn(move || {
            runtime.block_on(stopped.run_until_cancelled(live(listener, served)));
            // Connections end with their tasks, in the middle of answers, as those of a killed process do.
            runtime.shutdown_background();
        })?;
        Ok(Self { address, state, stop, thread: Some(thread) })
    }

    /// Starts one on a free port, with this behaviour.
    pub fn with(behaviour: Behaviour) -> anyhow::Result<Self> {
        Self::start(Settings { behaviour, ..Settings::default() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://address`, the base of the `Simple` protocol.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `http://address/v1`, the base of the OpenAI protocol.
    pub fn openai_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// What it was asked until now.
    pub fn calls(&self) -> Calls {
        self.state.recorder.calls()
    }

    /// Forgets the calls and what was set for calls to come.
    pub fn reset(&self) {
        self.state.recorder.reset();
        self.state.plan().next.clear();
    }

    /// Changes fields of the behaviour from now on.
    pub fn change_behaviour(&self, changes: &Value) -> anyhow::Result<()> {
        self.state.change_behaviour(changes)
    }

    /// Changes for one call to come; each further one is for the call after it.
    pub fn push_next(&self, changes: Value) -> anyhow::Result<()> {
        self.state.push_next(changes)
    }

    /// Dies as a process does: its connections break, and others are refused, until [`Self::revive`].
    pub fn die(&self) {
        self.state.dead.send_replace(Some(Death { until: None }));
    }

    /// Listens again, on the same port.
    pub fn revive(&self) {
        self.state.dead.send_replace(None);
    }

    /// Waits until the record is as `wanted` says.
    pub async fn wait_for(&self, what: &str, wanted: impl Fn(&Calls) -> bool) -> anyhow::Result<Calls> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let calls = self.calls();
            if wanted(&calls) {
                return Ok(calls);
            }
            anyhow::ensure!(Instant::now() < deadline, "simulator: not in 10 s: {what}; its record: {calls:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until the thread ends, which it does when the process is told to stop.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.cancel();
            drop(thread.join());
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4_096)
}

/// Accepts, and is dead when it is told to.
async fn live(mut listener: TcpListener, state: Arc<State>) {
    let Ok(address) = listener.local_addr() else { return };
    let mut dead = state.dead.subscribe();
    loop {
        tokio::select! {
            () = accept(listener, state.clone()) => {}
            _ = dead.wait_for(Option::is_some) => {}
        }
        // Listener and connections are gone by now.
        let death = *dead.borrow_and_update();
        let told = dead.wait_for(Option::is_none);
        match death.and_then(|death| death.until) {
            Some(until) => drop(tokio::time::timeout_at(until, told).await),
            None => drop(told.await),
        }
        state.dead.send_replace(None);
        listener = loop {
            match listen(address) {
                Ok(listener) => break listener,
                // Whoever took the port meanwhile may give it back.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, state.clone()))),
                // Out of descriptors: those who hang up make room.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let _connection = state.recorder.connected();
    // A token is worth sending at once.
    drop(stream.set_nodelay(true));
    let service = service_fn(|request| {
        let state = state.clone();
        async move { answer(request, &state).await }
    });
    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    // A connection that ends in an error is what half the behaviours are for.
    drop(connection.await);
}

/// The error closes the connection without an answer.
async fn answer(request: Request<Incoming>, state: &Arc<State>) -> io::Result<Response<Body>> {
    let arrived_ns = monotonic_ns();
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, REQUEST_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Ok(refusal(StatusCode::BAD_REQUEST, &format!("body: {error}"))),
    };
    if head.method == Method::POST
        && let Some(protocol) = Protocol::at(head.uri.path())
    {
        return call(state, protocol, &head.headers, &body, arrived_ns).await;
    }
    Ok(control(state, &head.method, head.uri.path(), &body))
}

fn control(state: &Arc<State>, method: &Method, path: &str, body: &[u8]) -> Response<Body> {
    let done = match (method, path) {
        (&Method::GET, "/v1/models") => Ok(models(&state.settings.models)),
        (&Method::GET, "/sim/calls") => Ok(json!(state.recorder.calls())),
        (&Method::POST, "/sim/reset") => {
            state.recorder.reset();
            state.plan().next.clear();
            Ok(json!({}))
        }
        (&Method::POST, "/sim/behaviour") => parsed(body).and_then(|changes: Value| {
            state.change_behaviour(&changes)?;
            Ok(json!(state.plan().behaviour))
        }),
        (&Method::POST, "/sim/next") => parsed(body).and_then(|list: Vec<Value>| {
            list.into_iter().try_for_each(|changes| state.push_next(changes))?;
            Ok(json!({"waiting": state.plan().next.len()}))
        }),
        (&Method::POST, "/sim/die") => parsed(body).map(|die: Die| {
            let state = state.clone();
            tokio::spawn(async move {
                tokio::time::sleep(LAST_WORDS).await;
                let until = tokio::time::Instant::now() + Duration::from_millis(die.for_ms);
                state.dead.send_replace(Some(Death { until: Some(until) }));
            });
            json!({})
        }),
        _ => return refusal(StatusCode::NOT_FOUND, &format!("no such path: {method} {path}")),
    };
    match done {
        Ok(value) => respond(StatusCode::OK, "application/json", Bytes::from(value.to_string())),
        Err(error) => refusal(StatusCode::BAD_REQUEST, &format!("{error:#}")),
    }
}

/// The body of `/sim/die`.
#[derive(Deserialize)]
struct Die {
    for_ms: u64,
}

fn parsed<T: serde::de::DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body).context("the body")
}

fn models(names: &[String]) -> Value {
    let model = |name| json!({"id": name, "object": "model", "created": 1, "owned_by": "simulator"});
    json!({"object": "list", "data": names.iter().map(model).collect::<Vec<_>>()})
}

async fn call(
    state: &State,
    protocol: Protocol,
    headers: &HeaderMap,
    body: &[u8],
    arrived_ns: u64,
) -> io::Result<Response<Body>> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let asked = Ask::parse(protocol, body).and_then(|mut ask| {
        let behaviour = ask.behaviour(&state.take_behaviour()?, header("x-sim"))?;
        Ok((ask, behaviour))
    });
    let (ask, behaviour) = match asked {
        Ok(asked) => asked,
        Err(error) => return Ok(refusal(StatusCode::BAD_REQUEST, &format!("{error:#}"))),
    };
    let mut guard = state.recorder.begin(record(&ask, protocol, header("authorization"), body.len()));
    if behaviour.fault == Some(Fault::Refuse) {
        guard.ended(Outcome::Failed);
        return Err(io::Error::other("the simulator refuses as it was told to"));
    }
    if let Some(refusal) = refused(state, &ask, &behaviour) {
        guard.ended(Outcome::Failed);
        return Ok(refusal);
    }
    let Some(turnstile) = state.workers.enter() else {
        guard.ended(Outcome::Failed);
        return Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, "every worker is busy and the queue is full"));
    };
    let stream = ask.stream;
    let found = state.prefixes.lock().unwrap_or_else(PoisonError::into_inner).read(&ask);
    state.recorder.found(found);
    let behaviour = behaviour.remembering(found.share());
    respond_with(Answer::new(ask, behaviour, guard, arrived_ns, turnstile), stream).await
}

async fn respond_with(answer: Answer, stream: bool) -> io::Result<Response<Body>> {
    let content_type = answer.content_type();
    if !stream {
        return Ok(respond(StatusCode::OK, content_type, answer.whole().await?));
    }
    let pieces = stream::unfold(answer, async |mut answer| {
        let piece = answer.next().await?;
        Some((piece.map(Frame::data), answer))
    });
    let mut response = Response::new(StreamBody::new(pieces).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    Ok(response)
}

fn record(ask: &Ask, protocol: Protocol, authorization: Option<&str>, body_bytes: usize) -> CallRecord {
    let path = match protocol {
        Protocol::Chat => "/v1/chat/completions",
        Protocol::Completions => "/v1/completions",
        Protocol::Simple => "/chat",
        Protocol::SimpleBatch => "/chat/batch",
    };
    CallRecord {
        number: 0,
        path: path.to_owned(),
        model: ask.model.clone(),
        stream: ask.stream,
        texts: ask.prompts.clone(),
        prefix: ask.prefix.clone(),
        authorization: authorization.map(str::to_owned),
        body: if body_bytes <= BODY_REMEMBERED_BYTES { ask.body.clone() } else { Value::Null },
        tokens: 0,
        outcome: Outcome::Running,
    }
}

/// The refusal that the behaviour or the model's name asks for.
fn refused(state: &State, ask: &Ask, behaviour: &Behaviour) -> Option<Response<Body>> {
    let openai = matches!(ask.protocol, Protocol::Chat | Protocol::Completions);
    let known = state.settings.models.contains(&ask.model) || ask.model.starts_with("sim:");
    if openai && state.settings.strict_models && !known {
        return Some(refusal(StatusCode::NOT_FOUND, &format!("the model `{}` does not exist", ask.model)));
    }
    if let Some(words) = too_long(ask, behaviour) {
        return Some(words);
    }
    let status = behaviour.status.and_then(|status| StatusCode::from_u16(status).ok())?;
    let mut response = match &behaviour.error_body {
        Some(body) => respond(status, "application/json", Bytes::from(body.clone())),
        None => refusal(status, "the simulator refuses as it was told to"),
    };
    if let Some(seconds) = behaviour.retry_after_s {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    for (name, value) in &behaviour.refusal_headers {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    Some(response)
}

/// The refusal of a call one of whose prompts is too long: one is enough for all.
fn too_long(ask: &Ask, behaviour: &Behaviour) -> Option<Response<Body>> {
    let room = behaviour.context_words?;
    let words = |prompt: &String| prompt.split_whitespace().count();
    let longest = match ask.protocol {
        Protocol::Chat => ask.prompt_tokens,
        _ => ask.prompts.iter().map(words).max().unwrap_or(0),
    };
    (longest > room).then(|| {
        let message = format!(
            "This model's maximum context length is {room} tokens. However, your prompt has {longest} tokens. Please \
             reduce its length."
        );
        let error = json!({"error": {"message": message, "type": "invalid_request_error", "param": "prompt",
            "code": "context_length_exceeded"}});
        respond(StatusCode::BAD_REQUEST, "application/json", Bytes::from(error.to_string()))
    })
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).map_err(|never: Infallible| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn refusal(status: StatusCode, message: &str) -> Response<Body> {
    let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
    let error = json!({"error": {"message": message, "type": kind, "param": null, "code": status.as_u16()}});
    respond(status, "application/json", Bytes::from(error.to_string()))
}
