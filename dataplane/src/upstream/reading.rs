//! An answer that is being read. The socket is read only when this is polled, by whoever polls it: no task, no channel.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use chatgateway_core::limits::{UPSTREAM_JSON_MAX_BYTES, UPSTREAM_REST};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::{
    UpstreamEvent,
    batch::Lone,
    deadlines::{Awaited, Deadlines},
    failure::Failure,
    openai::{self, ChatStream, Told},
    pool::Place,
    server::{Opened, Server},
    simple,
};
use crate::clock;

/// Pieces of a body read in a row before other tasks get their turn.
const BURST: usize = 32;

/// How an answer is written.
pub(super) enum Format {
    /// OpenAI's chunks as server-sent events.
    Stream(ChatStream),
    /// OpenAI's whole completion; some servers ignore `stream`.
    Completion(Vec<u8>),
    /// A whole answer of a Simple server.
    Simple(Vec<u8>),
}

/// An answer under way. Dropping it closes the connection, and the server sees that at once.
pub(super) struct Reading {
    server: Arc<Server>,
    format: Format,
    told: Told,
    /// Taken when the answer is complete.
    body: Option<(Incoming, Place)>,
    timer: Timer,
    deadlines: Deadlines,
    /// Something of the answer has come.
    begun: bool,
    /// A word of it has.
    spoke: bool,
    /// Since when nothing came although it was asked for.
    waiting_since: Option<Instant>,
    _lone: Option<Lone>,
}

impl Format {
    /// How a server that was asked for a stream answers.
    pub(super) fn of_stream(name: &str, opened: &Opened) -> Result<Self, Failure> {
        let stream = opened.is_stream(name)?;
        Ok(if stream { Self::Stream(ChatStream::new()) } else { Self::Completion(Vec::new()) })
    }
}

impl Reading {
    /// `trim`: spaces at the beginning of the answer are not its own.
    pub(super) fn new(server: Arc<Server>, format: Format, opened: Opened, trim: bool) -> Self {
        let Opened { place, response, deadlines } = opened;
        Self {
            server,
            format,
            told: Told { trim, ..Told::default() },
            body: Some((response.into_body(), place)),
            timer: Timer::new(deadlines.first),
            deadlines,
            begun: false,
            spoke: false,
            waiting_since: None,
            _lone: None,
        }
    }

    /// Counts as running as long as this lives.
    pub(super) fn keep(&mut self, lone: Lone) {
        self._lone = Some(lone);
    }

    /// Whether it has any of its total time left.
    pub(super) fn has_time(&self) -> bool {
        clock::now() < self.deadlines.total
    }

    pub(super) fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// What comes next.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<UpstreamEvent, Failure>> {
        self.poll_event(cx).map_err(|failure| match self.body.take() {
            Some((_, mut place)) => place.failed(failure),
            None => failure,
        })
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<UpstreamEvent, Failure>> {
        for _ in 0..BURST {
            if !self.told.text.is_empty() {
                if !self.spoke
                    && let Some((_, place)) = &mut self.body
                {
                    self.spoke = true;
                    place.begun();
                }
                return Poll::Ready(Ok(UpstreamEvent::Text(std::mem::take(&mut self.told.text))));
            }
            let Some((body, _)) = self.body.as_mut().filter(|_| !self.told.done) else {
                return Poll::Ready(Ok(self.end(cx)));
            };
            let piece = match Pin::new(body).poll_frame(cx) {
                Poll::Pending => return self.poll_time(cx),
                Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Poll::Ready(end) => {
                    self.closed(end.and_then(Result::err).as_ref())?;
                    continue;
                }
            };
            if self.read(&piece)? {
                self.begun = true;
                self.waiting_since = None;
            }
        }
        // Much came without a word of the answer: others have their turn, and time is looked at.
        cx.waker().wake_by_ref();
        self.poll_time(cx)
    }

    /// Reads a piece; whether the answer made progress.
    fn read(&mut self, piece: &[u8]) -> Result<bool, Failure> {
        let name = &self.server.name;
        match &mut self.format {
            Format::Stream(stream) => stream.read(name, piece, &mut self.told),
            Format::Completion(held) | Format::Simple(held) => {
                if held.len() + piece.len() > UPSTREAM_JSON_MAX_BYTES {
                    let what = format!("sent an answer of more than {UPSTREAM_JSON_MAX_BYTES} bytes");
                    return Err(Failure::unavailable(name, &what));
                }
                held.extend_from_slice(piece);
                Ok(!piece.is_empty())
            }
        }
    }

    /// The body has ended. That is an error unless the answer is complete.
    fn closed(&mut self, error: Option<&hyper::Error>) -> Result<(), Failure> {
        let name = &self.server.name;
        if let Some(error) = error.filter(|_| self.told.finish_reason.is_none()) {
            return Err(Failure::broken(name, error));
        }
        let held = match &mut self.format {
            Format::Stream(_) if self.told.finish_reason.is_some() => {
                self.told.done = true;
                return Ok(());
            }
            Format::Stream(_) => return Err(Failure::incomplete(name)),
            Format::Completion(held) | Format::Simple(held) => std::mem::take(held),
        };
        match self.format {
            Format::Simple(_) => simple::whole(name, &held, &mut self.told),
            _ => openai::whole(name, &held, &mut self.told),
        }
    }

    /// The answer is complete. The place is free at once; the connection too, when the rest of the body has come.
    fn end(&mut self, cx: &mut Context<'_>) -> UpstreamEvent {
        if let Some((mut body, mut place)) = self.body.take() {
            place.ended();
            drop(place);
            if !body.is_end_stream() && Pin::new(&mut body).poll_frame(cx).is_pending() {
                tokio::spawn(async move {
                    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
                    tokio::time::timeout(UPSTREAM_REST, rest).await
                });
            }
        }
        let finish_reason = self.told.finish_reason.take().unwrap_or_else(super::stop);
        UpstreamEvent::End { finish_reason, usage: self.told.usage }
    }

    /// Nothing has come: has it had its time?
    fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<Result<UpstreamEvent, Failure>> {
        let now = clock::now();
        let since = *self.waiting_since.get_or_insert(now);
        let awaited = match self.begun {
            _ if self.told.finish_reason.is_some() => Awaited::LastWords,
            false => Awaited::Beginning,
            true => Awaited::More,
        };
        let (deadline, late) = self.deadlines.of(awaited, since);
        std::task::ready!(self.timer.poll(deadline, now, cx));
        Poll::Ready(match late {
            Some(late) => Err(self.server.timed_out(late)),
            None => Ok(self.end(cx)),
        })
    }
}

/// A timer whose deadline mostly moves later, token by token: it is set again only when it goes off.
pub(super) struct Timer(Pin<Box<Sleep>>);

impl Timer {
    pub(super) fn new(deadline: Instant) -> Self {
        Self(Box::pin(tokio::time::sleep_until(deadline.into())))
    }

    /// Ready once the deadline is there.
    pub(super) fn poll(&mut self, deadline: Instant, now: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if now >= deadline {
            return Poll::Ready(());
        }
        if self.0.deadline().into_std() > deadline {
            self.0.as_mut().reset(deadline.into());
        }
        while self.0.as_mut().poll(cx).is_ready() {
            if self.0.deadline().into_std() >= deadline {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(deadline.into());
        }
        Poll::Pending
    }
}
