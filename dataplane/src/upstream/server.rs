//! One model server behind HTTP: a place in its pool, a request, and the head of its answer, each in its time.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use chatgateway_config::{PoolSettings, TimeoutSettings, UpstreamSettings};
use chatgateway_core::{limits::UPSTREAM_ERROR_MAX_BYTES, queue::QueueLimits};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;

use super::{
    connect::{self, HttpClient, Used},
    failure::Failure,
    key::ApiKey,
    pool::{Entrance, Place, Pool},
    status::Counters,
};
use crate::clock;

const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("chatgateway/", env!("CARGO_PKG_VERSION")));

/// A model server.
pub(super) struct Server {
    pub(super) name: Arc<str>,
    pub(super) timeouts: TimeoutSettings,
    pub(super) counters: Arc<Counters>,
    base: String,
    client: HttpClient,
    key: Option<ApiKey>,
    pool: Arc<Pool>,
}

/// A request to a model server.
pub(super) struct Call {
    /// What follows the base URL.
    pub(super) path: &'static str,
    pub(super) body: Bytes,
    /// Headers beside those that every call has.
    pub(super) headers: HeaderMap,
    /// Whose call it is; waiting calls are served fairly between these.
    pub(super) who: Arc<str>,
    /// The client chose the model.
    pub(super) own_model: bool,
    /// Answers that say that the request is wrong are for the caller to read.
    pub(super) pass_errors: bool,
    /// The answer comes in one piece: its first byte has the time of the whole.
    pub(super) whole: bool,
}

/// The instants by which a call must have come to something.
#[derive(Clone, Copy)]
pub(super) struct Deadlines {
    /// By then something of the answer must have come.
    pub(super) first: Instant,
    /// How long that was from the start.
    pub(super) first_timeout: Duration,
    /// By then all of it.
    pub(super) total: Instant,
}

/// An answer whose head has come.
pub(super) struct Opened {
    pub(super) place: Place,
    pub(super) response: Response<Incoming>,
    pub(super) deadlines: Deadlines,
}

impl Server {
    pub(super) fn new(settings: &UpstreamSettings, url: &str, key: Option<ApiKey>) -> anyhow::Result<Self> {
        let uri: Uri = url.parse()?;
        anyhow::ensure!(
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some(),
            "upstream {}: {url} is no http or https URL",
            settings.name
        );
        let PoolSettings { max_concurrent, max_queued, queue_timeout: timeout } = settings.pool;
        let counters = Arc::<Counters>::default();
        let pool = Pool::new(QueueLimits { max_concurrent, max_queued, timeout }, counters.clone());
        Ok(Self {
            name: settings.name.as_str().into(),
            timeouts: settings.timeouts.clone(),
            counters,
            base: url.trim_end_matches('/').to_owned(),
            client: connect::client(settings.timeouts.connect, max_concurrent)?,
            key,
            pool,
        })
    }

    /// Gets a place, sends the call and waits for an answer that is no error.
    pub(super) async fn open(&self, call: &Call) -> Result<Opened, Failure> {
        let place = self.place(&call.who).await?;
        self.send(place, call).await
    }

    /// Sends a call that has its place, and waits for an answer that is no error.
    pub(super) async fn send(&self, place: Place, call: &Call) -> Result<Opened, Failure> {
        let start = clock::now();
        let TimeoutSettings { first_token, total, .. } = self.timeouts;
        let first = if call.whole { total } else { first_token.min(total) };
        let deadlines = Deadlines { first: start + first, first_timeout: first, total: start + total };
        match tokio::time::timeout_at(deadlines.first.into(), self.answer(call)).await {
            Ok(Ok(response)) => Ok(Opened { place, response, deadlines }),
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(self.timed_out("did not begin to answer", first)),
        }
    }

    pub(super) fn timed_out(&self, what: &str, timeout: Duration) -> Failure {
        self.counters.timeouts.fetch_add(1, Relaxed);
        Failure::timeout(&self.name, what, timeout)
    }

    /// A place in the pool, waited for in turn.
    pub(super) async fn place(&self, who: &Arc<str>) -> Result<Place, Failure> {
        let mut waiting = match self.pool.ask(who) {
            Entrance::Open(place) => return Ok(place),
            Entrance::Wait(waiting) => waiting,
            Entrance::Full { retry_after } => return Err(Failure::no_room(&self.name, "too many wait", retry_after)),
        };
        let timer = tokio::time::sleep_until(waiting.deadline().into());
        let mut timer = std::pin::pin!(timer);
        let place = std::future::poll_fn(|cx| {
            let _ = timer.as_mut().poll(cx);
            waiting.poll(cx)
        });
        place.await.map_err(|retry_after| Failure::no_room(&self.name, "waited too long", retry_after))
    }

    async fn answer(&self, call: &Call) -> Result<Response<Incoming>, Failure> {
        let response = match self.client.request(self.request(call)?).await {
            Ok(response) => response,
            // The server may just have closed a connection that it thought idle. Nothing of an answer has come.
            Err(error) if used(&error) => {
                let again = self.client.request(self.request(call)?).await;
                again.map_err(|error| Failure::call(&self.name, &error))?
            }
            Err(error) => return Err(Failure::call(&self.name, &error)),
        };
        if let Some(used) = response.extensions().get::<Used>() {
            used.mark();
        }
        if response.status().is_success() || call.pass_errors && is_clients(response.status()) {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let said = beginning(body).await;
        Err(Failure::status(&self.name, head.status, &head.headers, &said, call.own_model))
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{}", self.base, call.path))
            .body(Full::new(call.body.clone()))
            .map_err(|error| Failure::unavailable(&self.name, &format!("has a URL that cannot be called: {error}")))?;
        let headers = request.headers_mut();
        headers.extend(call.headers.clone());
        let mut set = |name: HeaderName, value| drop(headers.insert(name, value));
        set(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        set(header::USER_AGENT, USER_AGENT);
        if let Some(key) = &self.key {
            set(header::AUTHORIZATION, key.header());
        }
        Ok(request)
    }
}

/// Whether a status says that the request is wrong, and the model server and its key are not.
fn is_clients(status: StatusCode) -> bool {
    status.is_client_error() && ![401, 403, 408, 429].contains(&status.as_u16())
}

/// Whether the call failed on a connection that had carried an answer before.
fn used(error: &legacy::Error) -> bool {
    let mut extensions = http::Extensions::new();
    if let Some(info) = error.connect_info() {
        info.get_extras(&mut extensions);
    }
    extensions.get::<Used>().is_some_and(Used::is_marked)
}

/// The beginning of an error answer; as much as came, where it breaks off.
async fn beginning(mut body: Incoming) -> Vec<u8> {
    let mut said = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else { continue };
        let room = UPSTREAM_ERROR_MAX_BYTES - said.len();
        said.extend_from_slice(&data[..data.len().min(room)]);
        if said.len() == UPSTREAM_ERROR_MAX_BYTES {
            break;
        }
    }
    said
}
