//! Asks model servers.
//!
//! [`Upstreams::ask`] gives a stream that is read by polling it: whoever stops polling stops the model server, and whoever
//! drops it cancels the call. A stream has no task and no channel of its own.

mod demo;
mod models;
mod status;

use std::{
    fmt,
    sync::{Arc, LazyLock},
    task::{Context, Poll, Waker},
    time::Duration,
};

use chatgateway_config::{Settings, UpstreamKind, UpstreamSettings};
use chatgateway_core::{
    error::ErrorCode,
    log::{HistoryTurn, SessionKey, TurnBody, Usage},
};

pub use self::status::{Counters, UpstreamStatus};
use self::{demo::DemoStream, status::Gauge};

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

/// The model servers of a configuration.
pub struct Upstreams {
    list: Vec<Arc<Upstream>>,
}

/// One model server.
struct Upstream {
    settings: UpstreamSettings,
    counters: Arc<Counters>,
}

impl Upstreams {
    /// Sets up what a configuration names. Nothing is connected yet.
    ///
    /// # Errors
    /// A URL that is none, an API key that cannot be read.
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        let list = settings.upstreams.iter().map(|upstream| Upstream::new(upstream).map(Arc::new));
        Ok(Self { list: list.collect::<anyhow::Result<_>>()? })
    }

    /// Asks the model. Nothing happens before the stream is polled.
    pub fn ask(&self, ask: Ask) -> UpstreamStream {
        UpstreamStream { state: self.start(&ask) }
    }

    fn start(&self, ask: &Ask) -> State {
        let Some(upstream) = self.list.first() else { return State::Over };
        match &upstream.settings.kind {
            UpstreamKind::Demo { token_delay, answer_bytes } => {
                State::Demo(DemoStream::new(ask, *token_delay, *answer_bytes, Gauge::new(&upstream.counters)))
            }
            UpstreamKind::OpenAi { .. } | UpstreamKind::Simple { .. } => State::Over,
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
        self.list.iter().any(|upstream| matches!(upstream.settings.kind, UpstreamKind::OpenAi { .. }))
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
            let settings = &upstream.settings;
            let (kind, model) = match &settings.kind {
                UpstreamKind::OpenAi { model, .. } => ("openai", Some(model.as_str())),
                UpstreamKind::Simple { .. } => ("simple", None),
                UpstreamKind::Demo { .. } => ("demo", None),
            };
            upstream.counters.status(&settings.name, kind, model)
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
        Ok(Self { settings: settings.clone(), counters: Arc::default() })
    }

    fn prefill(&self) -> bool {
        match self.settings.kind {
            UpstreamKind::OpenAi { prefill, .. } => prefill,
            UpstreamKind::Simple { .. } => false,
            UpstreamKind::Demo { .. } => true,
        }
    }
}

/// A model's answer under way. Dropping it cancels the call.
pub struct UpstreamStream {
    state: State,
}

enum State {
    Demo(DemoStream),
    Over,
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
        let event = match &mut self.state {
            State::Demo(stream) => std::task::ready!(stream.poll_next(cx)),
            State::Over => return Poll::Ready(None),
        };
        if !matches!(event, UpstreamEvent::Text(_)) {
            self.state = State::Over;
        }
        Poll::Ready(Some(event))
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
