//! Asks model servers.
//!
//! [`Upstreams::ask`] gives a stream that is read by polling it: whoever stops polling stops the model server, and whoever
//! drops it cancels the call. A stream has no task and no channel of its own.

mod attempts;
mod batch;
mod connect;
mod deadlines;
mod demo;
mod endpoints;
mod failure;
mod forward;
mod key;
mod metrics;
mod models;
mod openai;
mod pool;
mod prompt;
mod reading;
mod server;
mod simple;
mod start;
mod status;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{Arc, LazyLock, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::Duration,
};

use anyhow::Context as _;
use chatgateway_config::{BatchingSettings, PromptFormat, Settings, UpstreamKind, UpstreamSettings};
use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limits::RETRY_WAIT_MAX,
    log::{HistoryTurn, SessionKey, TurnBody, Usage},
    pool::EndpointId,
};
use futures_util::future::BoxFuture;

pub use self::{
    batch::BatchingStatus,
    forward::{Forward, ForwardBody, ForwardPath},
    metrics::OfUpstreams,
    models::{OfferedModel, Route},
    pool::Pass,
    status::{Counters, EndpointStatus, UpstreamStatus},
};
use self::{
    batch::{Batching, Piece, Rider},
    demo::DemoStream,
    endpoints::{Resolve, SystemResolver},
    failure::Failure,
    key::ApiKey,
    openai::Extra,
    reading::Reading,
    server::{Planned, Server},
    status::Gauge,
};
/// What a model is asked.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Whose turn it is; waiting calls are served fairly between these.
    pub session: SessionKey,
    /// The session's ended turns, oldest first.
    pub history: Vec<HistoryTurn>,
    /// The turn. Its `extra` is a JSON object with `messages`, `model` and `options`, each optional, or empty.
    pub body: Arc<TurnBody>,
    /// The beginning of the answer, which the model is to continue.
    pub prefix: Option<String>,
}

/// What a model says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamEvent {
    /// A piece of the answer. Never empty.
    Text(String),
    /// The answer is complete. Nothing follows.
    End {
        /// Why the model stopped, as it says.
        finish_reason: Arc<str>,
        /// What it cost, as the model server counted.
        usage: Usage,
    },
    /// The call failed. Nothing follows.
    Failed {
        /// How.
        code: ErrorCode,
        /// For a person.
        message: String,
        /// When it may go better.
        retry_after_ms: Option<u64>,
    },
}

/// The model servers of a configuration, the preferred one first.
pub struct Upstreams {
    list: Vec<Arc<Upstream>>,
    resolver: Arc<dyn Resolve>,
}

/// One model server.
struct Upstream {
    settings: UpstreamSettings,
    counters: Arc<Counters>,
    kind: Kind,
    /// Where calls may be shared. It stays when batching is off, for those who still wait.
    batching: Option<Arc<Batching>>,
}

/// What it speaks, and through what it is reached.
enum Kind {
    Demo { token_delay: Duration, answer_bytes: Option<usize> },
    OpenAi { server: Arc<Server>, model: Arc<str>, prefill: bool, prompt_format: Option<PromptFormat> },
    Simple { server: Arc<Server>, max_tokens: u32 },
}

impl Upstreams {
    /// Sets up what a configuration names. Nothing is connected yet.
    ///
    /// # Errors
    /// A URL that is none, an API key that cannot be read.
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        Self::with_resolver(settings, Arc::new(SystemResolver))
    }

    fn with_resolver(settings: &Settings, resolver: Arc<dyn Resolve>) -> anyhow::Result<Self> {
        Self { list: Vec::new(), resolver }.renewed(settings)
    }

    /// The same for changed settings. An upstream that was there under its name goes on with its connections, its queue, its
    /// counters and what is known of its endpoints, whatever has changed of it; calls that run go on as they began.
    ///
    /// # Errors
    /// As for [`Upstreams::new`]; this one goes on as it is.
    pub fn renewed(&self, settings: &Settings) -> anyhow::Result<Self> {
        let plans = settings.upstreams.iter().map(|settings| {
            let before = self.list.iter().find(|upstream| upstream.settings.name == settings.name);
            match before {
                Some(same) if same.settings == *settings => Ok(PlannedUpstream::Same(same.clone())),
                before => PlannedUpstream::new(settings, before, &self.resolver),
            }
        });
        // What is wrong is found before anything changes.
        let plans = plans.collect::<anyhow::Result<Vec<_>>>()?;
        let list = plans.into_iter().map(PlannedUpstream::apply).collect();
        Ok(Self { list, resolver: self.resolver.clone() })
    }

    /// Asks the model. Nothing is sent before the stream is polled.
    pub fn ask(&self, ask: Ask) -> UpstreamStream {
        self.ask_after(ask, None)
    }

    /// The same, after an answer that broke off: another endpoint than that one's is asked, where one has room.
    pub fn ask_after(&self, ask: Ask, broke_off: Option<BrokeOff>) -> UpstreamStream {
        // The way of the built-in upstream alone: nothing to look up.
        if let [upstream] = &self.list[..]
            && let Some(demo) = upstream.demo(&ask)
        {
            return UpstreamStream::new(State::Demo(demo));
        }
        UpstreamStream::new(self.start(ask, broke_off).unwrap_or_else(|failure| State::Failed(Box::new(failure))))
    }

    fn start(&self, ask: Ask, broke_off: Option<BrokeOff>) -> Result<State, Failure> {
        let extra = Extra::read(&ask.body.extra).map_err(|what| Failure::request(ErrorCode::InvalidRequest, what))?;
        let own_model = extra.model.is_some();
        let model = extra.model.as_ref().map(|model| &*model.0);
        let mut candidates = self.candidates(model).map_err(|what| Failure::request(what.code, what.message))?;
        if ask.prefix.is_some() {
            candidates.retain(|upstream| upstream.prefill());
        }
        match candidates.first() {
            None => Err(Failure::unavailable("for this model", "is none that continues a partial answer")),
            Some(first) => Ok(match first.demo(&ask) {
                Some(demo) => State::Demo(demo),
                None => State::Starting(Box::pin(start::start(candidates, ask, own_model, broke_off))),
            }),
        }
    }

    /// Whether every upstream can continue a partial answer.
    #[must_use]
    pub fn prefill(&self) -> bool {
        self.list.iter().all(|upstream| upstream.prefill())
    }

    /// Whether an upstream has a use for the session's history.
    #[must_use]
    pub fn wants_history(&self) -> bool {
        self.list.iter().any(|upstream| matches!(upstream.kind, Kind::OpenAi { .. }))
    }

    /// How long a turn can take at most, if every upstream in turn uses all of its time: each attempt waits for a place and for
    /// a first word, and the last one takes its total.
    #[must_use]
    pub fn turn_deadline(&self) -> Duration {
        let at = |upstream: &Arc<Upstream>| {
            let UpstreamSettings { pool, timeouts, retries, .. } = &upstream.settings;
            // A turn of a batch that was refused waits once more, for a place of its own.
            let alone = if upstream.shares().is_some() { pool.queue_timeout } else { Duration::ZERO };
            let failed = pool.queue_timeout + timeouts.first_token + RETRY_WAIT_MAX;
            let again = if upstream.server().is_some() { retries.max_attempts.saturating_sub(1) } else { 0 };
            failed * again + alone + pool.queue_timeout + timeouts.total
        };
        self.list.iter().map(at).sum()
    }

    /// Whether a turn of `who` for `model` would be called, or might wait for it, at any upstream that may answer it. Where
    /// not, it is refused before it is accepted: it would only fail later. The pass is held until the turn has asked.
    ///
    /// # Errors
    /// `overloaded` or `circuit_open`, with the shortest time after which it may go better.
    pub fn door(&self, who: &str, model: Option<&str>) -> Result<Option<Pass>, Refusal> {
        if self.list.first().is_some_and(|first| model.is_none() && first.server().is_none()) {
            return Ok(None);
        }
        // What is wrong with the model is told where it is asked.
        let Ok(candidates) = self.candidates(model) else { return Ok(None) };
        let who = &Arc::from(who);
        let mut soonest: Option<Failure> = None;
        for upstream in &candidates {
            let Some(server) = upstream.server() else { return Ok(None) };
            match upstream.shares().map_or(Ok(()), |batching| batching.door(who)).and_then(|()| server.door(who)) {
                Ok(pass) => return Ok(Some(pass)),
                Err(failure) => {
                    if soonest.as_ref().is_none_or(|held| failure.retry_after_ms < held.retry_after_ms) {
                        soonest = Some(failure);
                    }
                }
            }
        }
        soonest.map_or(Ok(None), |failure| Err(failure.into()))
    }

    /// What each upstream counts, for `/status`.
    #[must_use]
    pub fn status(&self) -> Vec<UpstreamStatus> {
        let status = |upstream: &Arc<Upstream>| {
            let (kind, model) = match &upstream.kind {
                Kind::OpenAi { model, .. } => ("openai", Some(&**model)),
                Kind::Simple { .. } => ("simple", None),
                Kind::Demo { .. } => ("demo", None),
            };
            let endpoints = upstream.server().map(|server| server.endpoints()).unwrap_or_default();
            let batching = upstream.shares().map(|batching| batching.status());
            UpstreamStatus { endpoints, batching, ..upstream.counters.status(&upstream.settings.name, kind, model) }
        };
        self.list.iter().map(status).collect()
    }
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list.iter().map(|upstream| &upstream.settings.name)).finish()
    }
}

/// An upstream whose settings are checked and not yet in force.
enum PlannedUpstream {
    Same(Arc<Upstream>),
    Demo(UpstreamSettings, Kind),
    Server(UpstreamSettings, Box<Planned>, Option<Arc<Batching>>),
}

impl PlannedUpstream {
    fn new(
        settings: &UpstreamSettings,
        before: Option<&Arc<Upstream>>,
        resolver: &Arc<dyn Resolve>,
    ) -> anyhow::Result<Self> {
        let (url, key) = match &settings.kind {
            UpstreamKind::Demo { token_delay, answer_bytes } => {
                let kind = Kind::Demo { token_delay: *token_delay, answer_bytes: *answer_bytes };
                return Ok(Self::Demo(settings.clone(), kind));
            }
            UpstreamKind::OpenAi { url, api_key_file, .. } => {
                (url, api_key_file.as_deref().map(ApiKey::open).transpose()?)
            }
            UpstreamKind::Simple { url, .. } => (url, None),
        };
        let batching = before.and_then(|upstream| upstream.batching.clone());
        let before = before.and_then(|upstream| upstream.server()).map(|server| &**server);
        let planned = Planned::new(settings, url, key, before, resolver)
            .with_context(|| format!("upstream {} cannot be set up", settings.name))?;
        Ok(Self::Server(settings.clone(), Box::new(planned), batching))
    }

    fn apply(self) -> Arc<Upstream> {
        let (settings, counters, kind, batching) = match self {
            Self::Same(upstream) => return upstream,
            Self::Demo(settings, kind) => (settings, Arc::default(), kind, None),
            Self::Server(settings, planned, before) => {
                let server = Arc::new(planned.apply());
                let counters = server.counters.clone();
                let batching = Batching::renewed(before, &settings, &server);
                let kind = match &settings.kind {
                    UpstreamKind::Simple { max_tokens, .. } => Kind::Simple { server, max_tokens: *max_tokens },
                    UpstreamKind::OpenAi { model, prefill, prompt_format, .. } => {
                        let (model, prefill, prompt_format) = (model.as_str().into(), *prefill, *prompt_format);
                        Kind::OpenAi { server, model, prefill, prompt_format }
                    }
                    UpstreamKind::Demo { token_delay, answer_bytes } => {
                        Kind::Demo { token_delay: *token_delay, answer_bytes: *answer_bytes }
                    }
                };
                (settings, counters, kind, Some(batching))
            }
        };
        Arc::new(Upstream { settings, counters, kind, batching })
    }
}

impl Upstream {
    fn server(&self) -> Option<&Arc<Server>> {
        match &self.kind {
            Kind::OpenAi { server, .. } | Kind::Simple { server, .. } => Some(server),
            Kind::Demo { .. } => None,
        }
    }

    /// Its batches, where calls are shared at present.
    fn shares(&self) -> Option<&Arc<Batching>> {
        self.batching.as_ref().filter(|_| self.settings.batching != BatchingSettings::Off)
    }

    fn prefill(&self) -> bool {
        match self.kind {
            Kind::OpenAi { prefill, .. } => prefill,
            Kind::Simple { .. } => false,
            Kind::Demo { .. } => true,
        }
    }

    fn demo(&self, ask: &Ask) -> Option<DemoStream> {
        match self.kind {
            Kind::Demo { token_delay, answer_bytes } => {
                Some(DemoStream::new(ask, token_delay, answer_bytes, Gauge::new(&self.counters)))
            }
            _ => None,
        }
    }
}

/// A model's answer under way. Dropping it cancels the call.
pub struct UpstreamStream {
    state: State,
    /// Who broke the answer off, by no fault of the request.
    broke_off: Option<BrokeOff>,
}

/// Where an answer broke off.
pub struct BrokeOff {
    server: Arc<Server>,
    endpoint: EndpointId,
}

impl BrokeOff {
    /// Where another call may do better.
    fn of(server: &Arc<Server>, failure: &Failure) -> Option<Self> {
        let endpoint = failure.endpoint.filter(|_| failure.is_worth_another())?;
        Some(Self { server: server.clone(), endpoint })
    }

    /// The endpoint, if it is one of that server's.
    fn at(&self, server: &Server) -> Option<EndpointId> {
        self.server.is_same(server).then_some(self.endpoint)
    }
}

impl fmt::Debug for BrokeOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokeOff").field("upstream", &self.server.name).field("endpoint", &self.endpoint).finish()
    }
}

enum State {
    Demo(DemoStream),
    /// Up to the first word: one upstream after the other, until one answers.
    Starting(BoxFuture<'static, Result<Started, Failure>>),
    Reading(Box<Reading>),
    Batched(Arc<Server>, Rider),
    Failed(Box<Failure>),
    Over,
}

/// An answer that has begun.
enum Started {
    /// The built-in upstream, after others have failed.
    Demo(DemoStream),
    /// With what came first.
    Reading(Box<Reading>, UpstreamEvent),
    /// As part of a batch.
    Batched(Arc<Server>, Rider, UpstreamEvent),
}

impl UpstreamStream {
    fn new(state: State) -> Self {
        Self { state, broke_off: None }
    }

    /// Whether an answer that failed after its first word is worth being asked for again, and the retry budget allows it. To be
    /// asked once, by who then does so, see [`Upstreams::ask_after`].
    pub fn may_be_asked_again(&mut self) -> Option<BrokeOff> {
        let broke_off = self.broke_off.take().filter(|broke_off| broke_off.server.withdraw())?;
        broke_off.server.counters.resumed_answers.fetch_add(1, Relaxed);
        Some(broke_off)
    }

    /// What comes next; nothing after [`UpstreamEvent::End`] and [`UpstreamEvent::Failed`]. Cancel-safe.
    pub async fn next(&mut self) -> Option<UpstreamEvent> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// What is there already.
    pub fn try_next(&mut self) -> Option<UpstreamEvent> {
        match self.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => event,
            Poll::Pending => None,
        }
    }

    /// What comes next, for callers with a loop of their own.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<UpstreamEvent>> {
        let Some(event) = std::task::ready!(self.poll_event(cx)) else { return Poll::Ready(None) };
        if !matches!(event, UpstreamEvent::Text(_)) {
            self.state = State::Over;
        }
        Poll::Ready(Some(event))
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<UpstreamEvent>> {
        loop {
            match &mut self.state {
                State::Demo(stream) => return stream.poll_next(cx).map(Some),
                State::Reading(reading) => {
                    let event = std::task::ready!(reading.poll_next(cx));
                    return Poll::Ready(Some(event.unwrap_or_else(|failure| {
                        let server = reading.server();
                        server.counters.failures.fetch_add(1, Relaxed);
                        // One that took its whole time would take it again.
                        self.broke_off = BrokeOff::of(server, &failure).filter(|_| reading.has_time());
                        failure.into()
                    })));
                }
                State::Starting(starting) => match std::task::ready!(starting.as_mut().poll(cx)) {
                    Ok(Started::Demo(stream)) => self.state = State::Demo(stream),
                    Ok(Started::Reading(reading, first)) => {
                        self.state = State::Reading(reading);
                        return Poll::Ready(Some(first));
                    }
                    Ok(Started::Batched(server, rider, first)) => {
                        self.state = State::Batched(server, rider);
                        return Poll::Ready(Some(first));
                    }
                    Err(failure) => self.state = State::Failed(Box::new(failure)),
                },
                State::Batched(server, rider) => {
                    let piece = std::task::ready!(rider.poll(cx));
                    if let Some(Piece::Failed(failure)) = &piece {
                        server.counters.failures.fetch_add(1, Relaxed);
                        self.broke_off = BrokeOff::of(server, failure);
                    }
                    return Poll::Ready(piece.map(UpstreamEvent::from));
                }
                State::Failed(failure) => return Poll::Ready(Some((**failure).clone().into())),
                State::Over => return Poll::Ready(None),
            }
        }
    }
}

impl fmt::Debug for UpstreamStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpstreamStream")
    }
}

/// `stop`, without a new string for each answer.
fn stop() -> Arc<str> {
    static STOP: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("stop"));
    STOP.clone()
}

/// The last place at or before `at` where `text` can be cut.
fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
