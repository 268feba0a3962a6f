//! Requests that pass through to a model server as they are: the stateless OpenAI endpoints.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use chatgateway_core::{error::Refusal, pool::EndpointId};
use http::{HeaderMap, HeaderName, Response, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{
    Kind, Upstreams,
    attempts::Attempts,
    failure::{Failure, excerpt},
    pool::Place,
    reading::Timer,
    server::{Call, Deadlines, Opened, Server},
};
use crate::clock;

/// Headers of a client's request that a model server gets to see.
const REQUEST_HEADERS: [HeaderName; 5] = [
    header::ACCEPT,
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("openai-beta"),
];

/// Headers of a model server's answer that a client gets to see.
const RESPONSE_HEADERS: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CACHE_CONTROL, HeaderName::from_static("x-request-id")];

/// Which endpoint a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardPath {
    /// `/chat/completions`.
    ChatCompletions,
    /// `/completions`.
    Completions,
}

/// A request to be passed through.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Which endpoint.
    pub path: ForwardPath,
    /// Whose request it is (a principal, or an address): waiting calls are served fairly between these.
    pub who: Arc<str>,
    /// The model that the body names.
    pub model: Option<String>,
    /// Whether the body asks for a stream. Else the answer comes in one piece, and has the total timeout.
    pub stream: bool,
    /// The client's headers. Only a few harmless ones are passed on.
    pub headers: HeaderMap,
    /// The client's body, which is passed on as it is.
    pub body: Bytes,
}

impl Upstreams {
    /// Passes a request through to the first OpenAI-compatible server that has its model, or to the next one where that
    /// one fails before its answer begins. Comes back when the first piece of the answer is there. Errors that are the
    /// client's (400, 404, 422, …) come back as answers too.
    ///
    /// # Errors
    /// `not_found` for an unknown model, `overloaded`, `rate_limited`, `upstream_unavailable` and `upstream_timeout`
    /// where no server answers.
    pub async fn forward(&self, request: Forward) -> Result<Response<ForwardBody>, Refusal> {
        let mut headers = HeaderMap::new();
        for name in REQUEST_HEADERS {
            if let Some(value) = request.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let call = Call {
            path: match request.path {
                ForwardPath::ChatCompletions => "/chat/completions",
                ForwardPath::Completions => "/completions",
            },
            body: request.body,
            headers,
            who: request.who,
            own_model: request.model.is_some(),
            pass_errors: true,
            whole: !request.stream,
        };
        let mut failed = None;
        for upstream in self.candidates(request.model.as_deref())? {
            let Kind::OpenAi { server, .. } = &upstream.kind else { continue };
            match open_at(server, &call).await {
                Ok(response) => return Ok(response),
                Err(failure) => {
                    server.counters.failures.fetch_add(1, Relaxed);
                    let elsewhere = failure.elsewhere;
                    failed = Some(failure);
                    if !elsewhere {
                        break;
                    }
                }
            }
        }
        let none = || Failure::unavailable("for this model", "is none that requests can be passed through to");
        Err(failed.unwrap_or_else(none).into())
    }
}

/// Passes a call to one upstream, and to its endpoints again as long as that makes sense.
async fn open_at(server: &Arc<Server>, call: &Call) -> Result<Response<ForwardBody>, Failure> {
    let mut attempts = Attempts::new(server);
    loop {
        match open(server, call, attempts.tried()).await {
            Ok(response) => {
                attempts.answered();
                return Ok(response);
            }
            Err(failure) => attempts.failed(failure).await?,
        }
    }
}

async fn open(server: &Arc<Server>, call: &Call, tried: &[EndpointId]) -> Result<Response<ForwardBody>, Failure> {
    let place = server.place_elsewhere(&call.who, tried).await?;
    let Opened { place, response, deadlines } = server.send(place, call).await?;
    let (mut head, body) = response.into_parts();
    let mut body = ForwardBody {
        server: server.clone(),
        held: None,
        open: Some((body, place)),
        timer: Timer::new(deadlines.first),
        deadlines,
        stream: !call.whole,
        begun: false,
        // What the client did wrong says nothing about the model server.
        judged: head.status.is_success(),
        waiting_since: None,
    };
    let first = std::future::poll_fn(|cx| body.poll_piece(cx)).await;
    body.held = first.transpose()?;
    let headers = std::mem::take(&mut head.headers);
    for name in RESPONSE_HEADERS {
        if let Some(value) = headers.get(&name) {
            head.headers.insert(name, value.clone());
        }
    }
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    Ok(response)
}

/// The body of an answer that passes through. Dropping it cancels the call.
pub struct ForwardBody {
    server: Arc<Server>,
    /// A piece that was read to see that there is an answer.
    held: Option<Frame<Bytes>>,
    /// Taken at the end.
    open: Option<(Incoming, Place)>,
    timer: Timer,
    deadlines: Deadlines,
    stream: bool,
    begun: bool,
    /// Whether its end says something about the model server.
    judged: bool,
    /// Since when nothing came although it was asked for.
    waiting_since: Option<Instant>,
}

impl ForwardBody {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let Some((body, place)) = &mut self.open else { return Poll::Ready(None) };
        let piece = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => std::task::ready!(self.poll_time(cx)),
            Poll::Ready(Some(Ok(piece))) => {
                if self.judged && !self.begun {
                    place.begun();
                }
                if self.judged && body.is_end_stream() {
                    // Nobody may ask for more.
                    place.ended();
                }
                self.begun = true;
                self.waiting_since = None;
                return Poll::Ready(Some(Ok(piece)));
            }
            Poll::Ready(Some(Err(error))) => {
                let what = format!("broke the connection in the middle of its answer: {}", excerpt(&error.to_string()));
                Some(Err(Failure::unavailable(&self.server.name, &what)))
            }
            Poll::Ready(None) => None,
        };
        let open = self.open.take();
        Poll::Ready(match (piece, open) {
            (Some(Err(failure)), Some((_, mut place))) => Some(Err(place.failed(failure))),
            (None, Some((_, mut place))) if self.judged => {
                place.ended();
                None
            }
            (piece, _) => piece,
        })
    }

    fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let now = clock::now();
        let since = *self.waiting_since.get_or_insert(now);
        let timeouts = &self.server.timeouts;
        let between = since + timeouts.between_tokens;
        let (deadline, what, timeout) = if !self.begun {
            (self.deadlines.first, "did not begin to answer", self.deadlines.first_timeout)
        } else if self.stream && between < self.deadlines.total {
            (between, "did not go on with its answer", timeouts.between_tokens)
        } else {
            (self.deadlines.total, "did not complete its answer", timeouts.total)
        };
        std::task::ready!(self.timer.poll(deadline, now, cx));
        Poll::Ready(Some(Err(self.server.timed_out(what, timeout))))
    }
}

impl Body for ForwardBody {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        if let Some(piece) = self.held.take() {
            return Poll::Ready(Some(Ok(piece)));
        }
        self.poll_piece(cx).map(|piece| {
            piece.map(|piece| {
                piece.map_err(|failure| {
                    self.server.counters.failures.fetch_add(1, Relaxed);
                    failure.into()
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.open.as_ref().is_none_or(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        let rest = self.open.as_ref().map_or_else(|| SizeHint::with_exact(0), |(body, _)| body.size_hint());
        rest.exact().map_or_else(SizeHint::default, |rest| SizeHint::with_exact(held + rest))
    }
}

impl fmt::Debug for ForwardBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForwardBody")
    }
}
