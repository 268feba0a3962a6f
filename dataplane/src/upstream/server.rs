//! One upstream behind HTTP: a place at one of its endpoints, a request, and the head of its answer, each in its time.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
};

use bytes::Bytes;
use chatgateway_config::{RetrySettings, TimeoutSettings, UpstreamSettings};
use chatgateway_core::{
    breaker::BreakerConfig,
    limits::UPSTREAM_ERROR_MAX_BYTES,
    pool::{EndpointId, PoolConfig},
    queue::NoRoom,
    retry::RetryBudget,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use parking_lot::Mutex;

use super::{
    connect::{Dialing, Used},
    deadlines::{Deadlines, Late},
    endpoints::{Directory, Endpoint, Listing, Resolve},
    failure::{Failure, excerpt},
    key::ApiKey,
    pool::{Entrance, Pass, Place, Pool},
    status::{Counters, EndpointStatus},
};
use crate::clock;

const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("chatgateway/", env!("CARGO_PKG_VERSION")));

/// One upstream: equal model servers.
pub(super) struct Server {
    pub(super) name: Arc<str>,
    pub(super) timeouts: TimeoutSettings,
    pub(super) retries: RetrySettings,
    pub(super) counters: Arc<Counters>,
    pub(super) budget: Arc<Mutex<RetryBudget>>,
    key: Option<ApiKey>,
    pool: Arc<Pool>,
    directory: Arc<Directory>,
}

/// A server whose new settings are checked and not yet in force.
pub(super) struct Planned {
    server: Server,
    pool: PoolConfig,
    /// The new URLs of one that goes on.
    listing: Option<Listing>,
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

/// An answer whose head has come.
pub(super) struct Opened {
    pub(super) place: Place,
    pub(super) response: Response<Incoming>,
    pub(super) deadlines: Deadlines,
}

impl Opened {
    /// Whether it is the stream that was asked for; else it is one piece of JSON, as from servers that ignore that. Most say
    /// which, some only that it is text.
    ///
    /// # Errors
    /// Where it is neither.
    pub(super) fn is_stream(&self, name: &str) -> Result<bool, Failure> {
        let value = self.response.headers().get(header::CONTENT_TYPE);
        let value = value.and_then(|value| value.to_str().ok()).unwrap_or("text/event-stream");
        match value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "text/event-stream" | "text/plain" | "application/octet-stream" => Ok(true),
            "application/json" => Ok(false),
            other => {
                let what = format!("answered with {} in place of an event stream; is its URL right?", excerpt(other));
                Err(Failure::unavailable(name, &what))
            }
        }
    }
}

impl Planned {
    /// An upstream with these settings. One that was there under its name goes on: with its queue, its connections, what its
    /// breakers and its budget know, and the calls that run.
    ///
    /// # Errors
    /// Where a URL is none.
    pub(super) fn new(
        settings: &UpstreamSettings,
        url: &str,
        key: Option<ApiKey>,
        before: Option<&Server>,
        resolver: &Arc<dyn Resolve>,
    ) -> anyhow::Result<Self> {
        let dialing = match before {
            Some(before) => before.directory.dialing(),
            None => Dialing::new(settings.timeouts.connect)?,
        };
        let listing = Listing::new(url, &settings.endpoints, dialing)?;
        let config = pool_config(settings);
        let percent = settings.retries.budget_percent;
        let (counters, budget, pool, directory, listing) = match before {
            Some(b) => (b.counters.clone(), b.budget.clone(), b.pool.clone(), b.directory.clone(), Some(listing)),
            None => {
                let counters = Arc::<Counters>::default();
                let pool = Pool::new(config, counters.clone());
                let directory = Directory::new(pool.clone(), resolver.clone(), listing);
                (counters, Arc::new(Mutex::new(RetryBudget::new(percent))), pool, directory, None)
            }
        };
        let server = Server {
            name: settings.name.as_str().into(),
            timeouts: settings.timeouts.clone(),
            retries: settings.retries.clone(),
            counters,
            budget,
            key,
            pool,
            directory,
        };
        Ok(Self { server, pool: config, listing })
    }

    /// Puts the settings in force.
    pub(super) fn apply(self) -> Server {
        let Self { server, pool, listing } = self;
        if let Some(listing) = listing {
            server.pool.configure(pool);
            server.budget.lock().configure(server.retries.budget_percent);
            server.directory.dialing().set_timeout(server.timeouts.connect);
            server.directory.set_listing(listing);
        }
        server.directory.watch();
        server
    }
}

fn pool_config(settings: &UpstreamSettings) -> PoolConfig {
    let breaker = &settings.breaker;
    PoolConfig {
        places: settings.pool.max_concurrent,
        max_queued: settings.pool.max_queued,
        queue_timeout: settings.pool.queue_timeout,
        breaker: BreakerConfig {
            window: breaker.window,
            min_calls: breaker.min_calls,
            failure_percent: breaker.failure_percent,
            slow_percent: breaker.slow_percent,
            open_for: breaker.open_for,
            probes: breaker.probes,
        },
        slow_after: breaker.slow_after,
        affinity: settings.endpoints.session_affinity,
    }
}

impl Server {
    /// Sends a call that has its place, and waits for an answer that is no error.
    pub(super) async fn send(&self, mut place: Place, call: &Call) -> Result<Opened, Failure> {
        place.sent();
        let deadlines = Deadlines::new(&self.timeouts, clock::now(), call.whole);
        let endpoint = place.endpoint().clone();
        match tokio::time::timeout_at(deadlines.first.into(), self.answer(&endpoint, call)).await {
            Ok(Ok(response)) => Ok(Opened { place, response, deadlines }),
            Ok(Err(failure)) => Err(place.failed(failure)),
            Err(_) => Err(place.failed(self.timed_out(deadlines.silent()))),
        }
    }

    pub(super) fn timed_out(&self, late: Late) -> Failure {
        self.counters.timeouts.fetch_add(1, Relaxed);
        Failure::timeout(&self.name, late)
    }

    /// A place at an endpoint, waited for in turn.
    pub(super) async fn place(&self, who: &Arc<str>) -> Result<Place, Failure> {
        self.place_elsewhere(who, &[]).await
    }

    /// The same; at another endpoint than those, where one has room.
    pub(super) async fn place_elsewhere(&self, who: &Arc<str>, than: &[EndpointId]) -> Result<Place, Failure> {
        self.directory.watch();
        let mut waiting = match self.pool.ask(who, than) {
            Entrance::Open(place) => return Ok(place),
            Entrance::Wait(waiting) => waiting,
            Entrance::Refused(no_room) => return Err(self.no_room(no_room)),
        };
        let timer = tokio::time::sleep_until(waiting.look_at().into());
        let mut timer = std::pin::pin!(timer);
        let place = std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(place) = waiting.poll(cx) {
                    return Poll::Ready(place);
                }
                let look_at = waiting.look_at().into();
                if timer.deadline() != look_at {
                    timer.as_mut().reset(look_at);
                }
                std::task::ready!(timer.as_mut().poll(cx));
            }
        });
        place.await.map_err(|no_room| self.no_room(no_room))
    }

    /// Leave to make a call again, from the budget.
    pub(super) fn withdraw(&self) -> bool {
        let may = self.budget.lock().withdraw();
        if !may {
            self.counters.budget_refusals.fetch_add(1, Relaxed);
        }
        may
    }

    /// Whether these are one upstream, with its settings now or before.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pool, &other.pool)
    }

    /// Whether another endpoint than those has room now.
    pub(super) fn has_other(&self, than: &[EndpointId]) -> bool {
        self.pool.has_other(than)
    }

    /// Whether a call would get a place, or might wait for one.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn door(&self, who: &Arc<str>) -> Result<Pass, Failure> {
        self.pool.door(who).map_err(|no_room| self.no_room(no_room))
    }

    fn no_room(&self, no_room: NoRoom) -> Failure {
        Failure::no_room(&self.name, no_room)
    }

    /// Looks its hosts up now.
    #[cfg(test)]
    pub(super) async fn look(&self) {
        self.directory.look().await;
    }

    /// Calls at once that there are places for.
    pub(super) fn places(&self) -> usize {
        self.pool.places()
    }

    /// Those of them that nobody has.
    pub(super) fn free_places(&self) -> usize {
        self.pool.free_places()
    }

    pub(super) fn endpoints(&self) -> Vec<EndpointStatus> {
        self.pool.view().into_iter().map(EndpointStatus::from).collect()
    }

    async fn answer(&self, endpoint: &Endpoint, call: &Call) -> Result<Response<Incoming>, Failure> {
        let response = match endpoint.client.request(self.request(endpoint, call)?).await {
            Ok(response) => response,
            // The server may just have closed a connection that it thought idle. Nothing of an answer has come.
            Err(error) if used(&error) => {
                let again = endpoint.client.request(self.request(endpoint, call)?).await;
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

    fn request(&self, endpoint: &Endpoint, call: &Call) -> Result<Request<Full<Bytes>>, Failure> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}{}", endpoint.base, call.path))
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
