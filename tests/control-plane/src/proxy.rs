//! A way to the API server on which things go wrong as a test wants them to: calls are cut before or after they are done, answered
//! with errors, watches end or fall silent, and nobody is there at all.
//!
//! It speaks plain HTTP on the loopback and adds the rights of the kubeconfig it forwards by, so it works before any cluster.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// One call on its way to the API server.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    /// A watch: its answer goes on for as long as it is not ended.
    pub watches: bool,
    /// Of those since the proxy began, from 1.
    pub number: u64,
}

impl Call {
    /// Whether it changes something.
    pub fn writes(&self) -> bool {
        self.method != Method::GET
    }

    /// Whether it is about a Lease.
    pub fn is_of_lease(&self) -> bool {
        self.path.contains("/leases")
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is done and answered.
    Pass,
    /// The connection ends, and nothing was done.
    Cut,
    /// It is done, and the connection ends before the answer.
    Lose,
    /// Nothing is done, and this is the answer.
    Refuse(Refusal),
}

/// An answer that says no, as an API server gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 409: somebody else was faster.
    Conflict,
    /// 429: later, please, after these seconds.
    TooManyRequests(u32),
    /// 500: something is broken.
    InternalError,
}

/// Decides on calls.
pub trait Script: Send + Sync + 'static {
    /// What becomes of a call.
    fn fate(&self, call: &Call) -> Fate;

    /// A call that is lost has been done.
    fn lost(&self, _call: &Call) {}
}

impl<F: Fn(&Call) -> Fate + Send + Sync + 'static> Script for F {
    fn fate(&self, call: &Call) -> Fate {
        self(call)
    }
}

/// How watches end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With an event that their version is too old to go on from.
    Expired,
    /// The connection ends.
    Cut,
}

/// What changes for connections and watches that are there already. The numbers make each order a new one.
#[derive(Clone, Debug, Default)]
struct Orders {
    away: bool,
    ended: Option<(u64, End)>,
    /// Watches whose path contains this tell nothing.
    silent: Option<String>,
}

struct Shared {
    client: kube::Client,
    script: Mutex<Arc<dyn Script>>,
    orders: watch::Sender<Orders>,
    calls: AtomicU64,
    connections: AtomicU64,
    /// Calls by method, watches apart.
    counts: Mutex<BTreeMap<String, u64>>,
}

/// A running proxy. It ends when this is dropped.
pub struct Proxy {
    kubeconfig: PathBuf,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.away(true);
    }
}

fn locked<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Starts one that forwards by this kubeconfig; its own is put into `dir`.
    ///
    /// # Errors
    /// Where the kubeconfig makes no sense.
    pub async fn start(kubeconfig: &Path, dir: &Path) -> anyhow::Result<Self> {
        let behind = kube::config::Kubeconfig::read_from(kubeconfig)?;
        let mut config = kube::Config::from_custom_kubeconfig(behind, &Default::default()).await?;
        config.default_retry = false;
        let shared = Arc::new(Shared {
            client: kube::Client::try_from(config)?,
            script: Mutex::new(Arc::new(|_: &Call| Fate::Pass)),
            orders: watch::Sender::default(),
            calls: AtomicU64::default(),
            connections: AtomicU64::default(),
            counts: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\n\
             users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             current-context: x\n"
        );
        let path = dir.join(format!("proxy-{}.kubeconfig", address.port()));
        std::fs::write(&path, text)?;
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { kubeconfig: path, shared, accepting })
    }

    /// Where clients find it.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Who decides on calls from now on.
    pub fn follow(&self, script: impl Script) {
        *locked(&self.shared.script) = Arc::new(script);
    }

    /// Ends every watch.
    pub fn end_watches(&self, how: End) {
        self.shared.orders.send_modify(|orders| {
            let number = orders.ended.map_or(0, |(number, _)| number) + 1;
            orders.ended = Some((number, how));
        });
    }

    /// Watches whose path contains this tell nothing until another order.
    pub fn silence(&self, path: Option<&str>) {
        self.shared.orders.send_modify(|orders| orders.silent = path.map(str::to_owned));
    }

    /// Whether every connection ends, the ones that are there at once and each further one as soon as it is made.
    pub fn away(&self, away: bool) {
        self.shared.orders.send_modify(|orders| orders.away = away);
    }

    /// Connections that were made or tried.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }

    /// Calls, those about Leases left out: by their method in lower case; `watch`, `list` and the sum of all.
    pub fn calls(&self, what: &str) -> u64 {
        let counts = locked(&self.shared.counts);
        if what == "all" { counts.values().sum() } else { counts.get(what).copied().unwrap_or(0) }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Relaxed);
        tokio::spawn(serve(stream, shared.clone()));
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut orders = shared.orders.subscribe();
    let service = service_fn(|request| answer(request, shared.clone()));
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        biased;
        _ = orders.wait_for(|orders| orders.away) => {}
        // Ends with an error where a fate is to cut it.
        _ = connection => {}
    }
}

/// What ends a connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection is to end")]
struct Ended;

type Frames = BoxStream<'static, Result<Frame<Bytes>, Ended>>;
type Answer = Response<http_body_util::Either<Full<Bytes>, StreamBody<Frames>>>;

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Answer, Ended> {
    let query = request.uri().query().unwrap_or_default();
    let call = Call {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        watches: query.split('&').any(|pair| pair == "watch=true"),
        number: shared.calls.fetch_add(1, Relaxed) + 1,
    };
    if !call.is_of_lease() {
        let lists = query.split('&').any(|pair| pair.starts_with("limit="));
        let method = call.method.as_str().to_lowercase();
        let what = if call.watches {
            "watch"
        } else if lists {
            "list"
        } else {
            &method
        };
        *locked(&shared.counts).entry(what.to_owned()).or_default() += 1;
    }
    let script = locked(&shared.script).clone();
    let fate = script.fate(&call);
    match fate {
        Fate::Cut => return Err(Ended),
        Fate::Refuse(refusal) => return Ok(refusal.answer()),
        Fate::Pass | Fate::Lose => {}
    }
    // A watch is ended by an order that was given while it began, too.
    let orders = shared.orders.subscribe();
    let began = orders.borrow().ended;
    let answer = forward(request, &shared).await?;
    if fate == Fate::Lose {
        // Done is done only once it is answered.
        let _ = answer.into_body().collect().await;
        script.lost(&call);
        return Err(Ended);
    }
    let (mut head, body) = answer.into_parts();
    head.headers.remove(http::header::TRANSFER_ENCODING);
    let body = if call.watches && head.status.is_success() {
        http_body_util::Either::Right(StreamBody::new(watched(body, orders, began, call.path)))
    } else {
        head.headers.remove(http::header::CONTENT_LENGTH);
        http_body_util::Either::Left(Full::new(body.collect().await.map_err(|_| Ended)?.to_bytes()))
    };
    Ok(Response::from_parts(head, body))
}

async fn forward(request: Request<Incoming>, shared: &Shared) -> Result<Response<Body>, Ended> {
    let (mut head, body) = request.into_parts();
    for name in [HOST, AUTHORIZATION] {
        head.headers.remove(name);
    }
    let body = body.collect().await.map_err(|_| Ended)?.to_bytes();
    shared.client.send(Request::from_parts(head, Body::from(body))).await.map_err(|_| Ended)
}

/// The events of a watch, whole lines only, until it is ended.
fn watched(body: Body, orders: watch::Receiver<Orders>, began: Option<(u64, End)>, path: String) -> Frames {
    struct Watched {
        body: Body,
        orders: watch::Receiver<Orders>,
        path: String,
        began: Option<(u64, End)>,
        part: BytesMut,
        over: bool,
    }
    let state = Watched { body, orders, path, began, part: BytesMut::new(), over: false };
    stream::unfold(state, |mut state| async move {
        if state.over {
            return None;
        }
        loop {
            let now = state.orders.borrow_and_update().clone();
            if now.ended != state.began {
                state.over = true;
                return match now.ended {
                    Some((_, End::Expired)) => Some((Ok(Frame::data(expired())), state)),
                    _ => Some((Err(Ended), state)),
                };
            }
            let silent = now.silent.is_some_and(|part| state.path.contains(&part));
            let frame = tokio::select! {
                changed = state.orders.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return None,
                },
                frame = state.body.frame(), if !silent => frame,
            };
            let data = match frame {
                None => return None,
                Some(Err(_)) => {
                    state.over = true;
                    return Some((Err(Ended), state));
                }
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            state.part.extend_from_slice(&data);
            if let Some(end) = state.part.iter().rposition(|byte| *byte == b'\n') {
                let lines = state.part.split_to(end + 1).freeze();
                return Some((Ok(Frame::data(lines)), state));
            }
        }
    })
    .boxed()
}

/// The event by which an API server ends a watch that would go on from too long ago.
fn expired() -> Bytes {
    let status = status(StatusCode::GONE, "Expired", "too old resource version", 0);
    Bytes::from(json!({"type": "ERROR", "object": status}).to_string() + "\n")
}

fn status(code: StatusCode, reason: &str, message: &str, retry_after_s: u32) -> serde_json::Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason,
        "details": {"retryAfterSeconds": retry_after_s}, "code": code.as_u16(),
    })
}

impl Refusal {
    fn answer(self) -> Answer {
        let (code, reason, message, retry_after_s) = match self {
            Self::Conflict => (StatusCode::CONFLICT, "Conflict", "the object has been modified", 0),
            Self::TooManyRequests(after_s) => {
                (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "too many requests, try again later", after_s)
            }
            Self::InternalError => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "etcd does not answer", 0),
        };
        let text = status(code, reason, message, retry_after_s).to_string();
        let mut answer = Response::new(http_body_util::Either::Left(Full::new(Bytes::from(text))));
        *answer.status_mut() = code;
        answer.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        if retry_after_s > 0 {
            answer.headers_mut().insert(RETRY_AFTER, retry_after_s.into());
        }
        answer
    }
}
