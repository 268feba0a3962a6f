//! Asks model servers.
//!
//! [`Upstreams::ask`] gives a stream that is read by polling it: whoever stops polling stops the model server, and whoever
//! drops it cancels the call. A stream has no task and no channel of its own.

mod connect;
mod demo;
mod failure;
mod forward;
mod key;
mod models;
mod openai;
mod pool;
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

use chatgateway_config::{Settings, UpstreamKind, UpstreamSettings};
use chatgateway_core::{
    error::ErrorCode,
    log::{HistoryTurn, SessionKey, TurnBody, Usage},
};
use futures_util::future::BoxFuture;

use self::{
    demo::DemoStream, failure::Failure, key::ApiKey, openai::Extra, reading::Reading, server::Server, status::Gauge,
};
pub use self::{
    forward::{Forward, ForwardBody, ForwardPath},
    models::{OfferedModel, Route},
    status::{Counters, UpstreamStatus},
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
}

/// One model server.
struct Upstream {
    settings: UpstreamSettings,
    counters: Arc<Counters>,
    kind: Kind,
}

/// What it speaks, and through what it is reached.
enum Kind {
    Demo { token_delay: Duration, answer_bytes: Option<usize> },
    OpenAi { server: Arc<Server>, model: Arc<str>, prefill: bool },
    Simple { server: Arc<Server>, max_tokens: u32 },
}

impl Upstreams {
    /// Sets up what a configuration names. Nothing is connected yet.
    ///
    /// # Errors
    /// A URL that is none, an API key that cannot be read.
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        Self { list: Vec::new() }.renewed(settings)
    }

    /// The same for changed settings. An upstream that is as before keeps its connections, its queue and its counters.
    ///
    /// # Errors
    /// As for [`Upstreams::new`]; this one goes on as it is.
    pub fn renewed(&self, settings: &Settings) -> anyhow::Result<Self> {
        let list = settings.upstreams.iter().map(|settings| {
            match self.list.iter().find(|upstream| upstream.settings == *settings) {
                Some(upstream) => Ok(upstream.clone()),
                None => Upstream::new(settings).map(Arc::new),
            }
        });
        Ok(Self { list: list.collect::<anyhow::Result<_>>()? })
    }

    /// Asks the model. Nothing is sent before the stream is polled.
    pub fn ask(&self, ask: Ask) -> UpstreamStream {
        // The way of the built-in upstream alone: nothing to look up.
        if let [upstream] = &self.list[..]
            && let Some(demo) = upstream.demo(&ask)
        {
            return UpstreamStream { state: State::Demo(demo) };
        }
        UpstreamStream { state: self.start(ask).unwrap_or_else(|failure| State::Failed(Box::new(failure))) }
    }

    fn start(&self, ask: Ask) -> Result<State, Failure> {
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
                None => State::Starting(Box::pin(start::start(candidates, ask, own_model))),
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

    /// How long a turn can take at most, if every upstream in turn uses all of its time.
    #[must_use]
    pub fn turn_deadline(&self) -> Duration {
        self.list.iter().map(|upstream| upstream.settings.pool.queue_timeout + upstream.settings.timeouts.total).sum()
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
            upstream.counters.status(&upstream.settings.name, kind, model)
        };
        self.list.iter().map(status).collect()
    }
}

impl fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list.iter().map(|upstream| &upstream.settings.name)).finish()
    }
}

impl Upstream {
    fn new(settings: &UpstreamSettings) -> anyhow::Result<Self> {
        let server = |url, key| anyhow::Ok(Arc::new(Server::new(settings, url, key)?));
        let kind = match &settings.kind {
            UpstreamKind::Demo { token_delay, answer_bytes } => {
                Kind::Demo { token_delay: *token_delay, answer_bytes: *answer_bytes }
            }
            UpstreamKind::OpenAi { url, model, api_key_file, prefill, .. } => {
                let key = api_key_file.as_deref().map(ApiKey::open).transpose()?;
                Kind::OpenAi { server: server(url, key)?, model: model.as_str().into(), prefill: *prefill }
            }
            UpstreamKind::Simple { url, max_tokens } => {
                Kind::Simple { server: server(url, None)?, max_tokens: *max_tokens }
            }
        };
        let counters = match &kind {
            Kind::Demo { .. } => Arc::default(),
            Kind::OpenAi { server, .. } | Kind::Simple { server, .. } => server.counters.clone(),
        };
        Ok(Self { settings: settings.clone(), counters, kind })
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
}

enum State {
    Demo(DemoStream),
    /// Up to the first word: one upstream after the other, until one answers.
    Starting(BoxFuture<'static, Result<Started, Failure>>),
    Reading(Box<Reading>),
    Failed(Box<Failure>),
    Over,
}

/// An answer that has begun.
enum Started {
    /// The built-in upstream, after others have failed.
    Demo(DemoStream),
    /// With what came first.
    Reading(Box<Reading>, UpstreamEvent),
}

impl UpstreamStream {
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
                        reading.server().counters.failures.fetch_add(1, Relaxed);
                        failure.into()
                    })));
                }
                State::Starting(starting) => match std::task::ready!(starting.as_mut().poll(cx)) {
                    Ok(Started::Demo(stream)) => self.state = State::Demo(stream),
                    Ok(Started::Reading(reading, first)) => {
                        self.state = State::Reading(reading);
                        return Poll::Ready(Some(first));
                    }
                    Err(failure) => self.state = State::Failed(Box::new(failure)),
                },
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
