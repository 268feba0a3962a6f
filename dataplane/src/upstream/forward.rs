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
    batch::{Batching, Boarded, Lone, Piece, Recipe, Rider},
    deadlines::{Awaited, Deadlines},
    failure::Failure,
    pool::Place,
    reading::Timer,
    server::{Call, Opened, Server},
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
            let shared = match request.path {
                ForwardPath::Completions => upstream.shares().and_then(|b| Some((b, Recipe::pass(&call)?))),
                ForwardPath::ChatCompletions => None,
            };
            match open_at(server, &call, shared).await {
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
async fn open_at(
    server: &Arc<Server>,
    call: &Call,
    mut shared: Option<(&Arc<Batching>, (Recipe, String))>,
) -> Result<Response<ForwardBody>, Failure> {
    let mut attempts = Attempts::new(server);
    loop {
        let opened = match shared.take() {
            // A call that is made again is made alone.
            Some((batching, (recipe, prompt))) => match batching.board(&call.who, recipe, prompt, false).await {
                Ok(Boarded::Rides(rider, first)) => Ok(ForwardBody::shared(server, rider, first)),
                Ok(Boarded::Alone(Some(with))) => open(server, call, with.0, Some(with.1)).await,
                Ok(Boarded::Alone(None)) => open_elsewhere(server, call, &[]).await,
                Err(failure) => Err(failure),
            },
            None => open_elsewhere(server, call, attempts.tried()).await,
        };
        match opened {
            Ok(response) => {
                attempts.answered();
                return Ok(response);
            }
            Err(failure) => attempts.failed(failure).await?,
        }
    }
}

async fn open_elsewhere(
    server: &Arc<Server>,
    call: &Call,
    tried: &[EndpointId],
) -> Result<Response<ForwardBody>, Failure> {
    let place = server.place_elsewhere(&call.who, tried).await?;
    open(server, call, place, None).await
}

async fn open(
    server: &Arc<Server>,
    call: &Call,
    place: Place,
    mut lone: Option<Lone>,
) -> Result<Response<ForwardBody>, Failure> {
    let Opened { place, response, deadlines } = server.send(place, call).await?;
    let (mut head, body) = response.into_parts();
    let mut body = Passing {
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
        _lone: None,
    };
    let first = std::future::poll_fn(|cx| body.poll_piece(cx)).await;
    body.held = first.transpose()?;
    if let Some(lone) = lone.as_mut().filter(|_| head.status.is_success()) {
        lone.begun();
    }
    body._lone = lone;
    let headers = std::mem::take(&mut head.headers);
    for name in RESPONSE_HEADERS {
        if let Some(value) = headers.get(&name) {
            head.headers.insert(name, value.clone());
        }
    }
    let mut response = Response::new(ForwardBody { from: Source::Server(Box::new(body)) });
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    Ok(response)
}

/// The body of an answer that passes through. Dropping it cancels the call.
pub struct ForwardBody {
    from: Source,
}

enum Source {
    Server(Box<Passing>),
    Batch { server: Arc<Server>, rider: Rider, held: Option<Piece>, over: bool },
}

impl ForwardBody {
    /// An answer that came with others', and its beginning.
    fn shared(server: &Arc<Server>, rider: Rider, first: Piece) -> Response<Self> {
        let content_type = rider.content_type();
        let from = Source::Batch { server: server.clone(), rider, held: Some(first), over: false };
        let mut response = Response::new(Self { from });
        if let Some(content_type) = content_type {
            response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        }
        response
    }
}

/// An answer that is read from its server.
struct Passing {
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
    _lone: Option<Lone>,
}

impl Passing {
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
            Poll::Ready(Some(Err(error))) => Some(Err(Failure::broken(&self.server.name, &error))),
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
        let awaited = match (self.begun, self.stream) {
            (false, _) => Awaited::Beginning,
            (true, true) => Awaited::More,
            (true, false) => Awaited::Rest,
        };
        let (deadline, late) = self.deadlines.of(awaited, since);
        std::task::ready!(self.timer.poll(deadline, now, cx));
        Poll::Ready(late.map(|late| Err(self.server.timed_out(late))))
    }
}

impl Body for ForwardBody {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let (server, piece) = match &mut self.from {
            Source::Server(passing) => {
                if let Some(piece) = passing.held.take() {
                    return Poll::Ready(Some(Ok(piece)));
                }
                let piece = std::task::ready!(passing.poll_piece(cx));
                (&passing.server, piece)
            }
            Source::Batch { server, rider, held, over } => {
                let piece = match held.take() {
                    Some(piece) => Some(piece),
                    None => std::task::ready!(rider.poll(cx)),
                };
                let piece = match piece {
                    Some(Piece::Bytes(bytes)) => Some(Ok(Frame::data(bytes))),
                    Some(Piece::Failed(failure)) => Some(Err(failure)),
                    _ => None,
                };
                *over = !matches!(piece, Some(Ok(_)));
                (&*server, piece)
            }
        };
        Poll::Ready(piece.map(|piece| {
            piece.map_err(|failure| {
                server.counters.failures.fetch_add(1, Relaxed);
                failure.into()
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        match &self.from {
            Source::Server(passing) => {
                passing.held.is_none() && passing.open.as_ref().is_none_or(|(body, _)| body.is_end_stream())
            }
            Source::Batch { over, .. } => *over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let Source::Server(passing) = &self.from else { return SizeHint::default() };
        let held = passing.held.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        let rest = passing.open.as_ref().map_or_else(|| SizeHint::with_exact(0), |(body, _)| body.size_hint());
        rest.exact().map_or_else(SizeHint::default, |rest| SizeHint::with_exact(held + rest))
    }
}

impl fmt::Debug for ForwardBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ForwardBody")
    }
}
