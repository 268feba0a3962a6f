//! Connections to a model server: TCP without delay, TLS where the URL says so, both within the connect timeout. No
//! proxies and no redirects: the key goes to the configured address and nowhere else. A client may be bound to one address of
//! its host; the `Host` header and the name in the certificate are the host's all the same.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use chatgateway_core::limits::{UPSTREAM_IDLE, UPSTREAM_READ_BUFFER_BYTES};
use futures_util::future::BoxFuture;
use http::Uri;
use http_body_util::Full;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{
            Connected, Connection, HttpConnector,
            dns::{GaiResolver, Name},
        },
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::net::TcpStream;
use tower_service::Service;

use crate::clock::millis;

/// Calls one model server over connections that are used again.
pub(super) type HttpClient = Client<Connector, Full<Bytes>>;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The connect timeout has passed.
#[derive(Debug)]
pub(super) struct ConnectTimeout(Duration);

impl fmt::Display for ConnectTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no connection within {} ms", self.0.as_millis())
    }
}

impl std::error::Error for ConnectTimeout {}

/// What the clients of one upstream share.
#[derive(Clone)]
pub(super) struct Dialing {
    tls: rustls::ClientConfig,
    /// In milliseconds; it may change while connections are kept.
    timeout_ms: Arc<AtomicU64>,
}

impl Dialing {
    pub(super) fn new(timeout: Duration) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = tls.with_webpki_roots().with_no_client_auth();
        Ok(Self { tls, timeout_ms: Arc::new(AtomicU64::new(millis(timeout))) })
    }

    pub(super) fn set_timeout(&self, timeout: Duration) {
        self.timeout_ms.store(millis(timeout), Relaxed);
    }

    /// A client with its own connections, to this address of the host or to any.
    pub(super) fn client(&self, address: Option<IpAddr>) -> HttpClient {
        let mut http = HttpConnector::new_with_resolver(Lookup { address, system: GaiResolver::new() });
        http.set_nodelay(true);
        http.enforce_http(false);
        http.set_keepalive(Some(Duration::from_secs(30)));
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(self.tls.clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(UPSTREAM_IDLE)
            .http1_max_buf_size(UPSTREAM_READ_BUFFER_BYTES)
            .build(Connector { https, timeout_ms: self.timeout_ms.clone() })
    }
}

/// Finds the addresses of the host, or says the one that is known.
#[derive(Clone)]
pub(super) struct Lookup {
    address: Option<IpAddr>,
    system: GaiResolver,
}

impl Service<Name> for Lookup {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.system.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        if let Some(address) = self.address {
            // The port is the URL's.
            return Box::pin(std::future::ready(Ok(vec![SocketAddr::new(address, 0)].into_iter())));
        }
        let addresses = self.system.call(name);
        Box::pin(async move { Ok(addresses.await?.collect::<Vec<_>>().into_iter()) })
    }
}

/// Makes connections within the connect timeout.
#[derive(Clone)]
pub(super) struct Connector {
    https: HttpsConnector<HttpConnector<Lookup>>,
    timeout_ms: Arc<AtomicU64>,
}

impl Service<Uri> for Connector {
    type Response = Link;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Link, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.https.call(uri);
        let timeout = Duration::from_millis(self.timeout_ms.load(Relaxed));
        Box::pin(async move {
            match tokio::time::timeout(timeout, connecting).await {
                Ok(io) => Ok(Link { io: io?, used: Used::default() }),
                Err(_) => Err(ConnectTimeout(timeout).into()),
            }
        })
    }
}

/// Whether a connection has carried an answer before. A call that fails on such a one may have met the server's idle
/// timeout, and is worth a fresh connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Used(Arc<AtomicBool>);

impl Used {
    pub(super) fn mark(&self) {
        self.0.store(true, Relaxed);
    }

    pub(super) fn is_marked(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// One connection.
pub(super) struct Link {
    io: MaybeHttpsStream<TokioIo<TcpStream>>,
    used: Used,
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        self.io.connected().extra(self.used.clone())
    }
}

impl Read for Link {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}
