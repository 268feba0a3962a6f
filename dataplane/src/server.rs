//! The listeners. An accept loop of our own: connections are counted and capped, headers have a deadline, and a drain can
//! let go of idle connections without cutting answers off.

mod opening;
mod unread;

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use chatgateway_core::limits::{
    GRPC_CONNECTION_AGE, GRPC_CONNECTION_WINDOW_BYTES, GRPC_STREAM_WINDOW_BYTES, HEADER_BYTES_MAX, HEADERS_MAX,
    HTTP1_BUFFER_BYTES, HTTP2_PING_TIMEOUT, HTTP2_SEND_BUFFER_BYTES, REFUSED_CONNECTIONS_MAX,
};
use http::{Request, Response, StatusCode, Version, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt;

use crate::{
    gateway::Gateway,
    metrics::{OpenConnection, Transport},
    transport::{grpc, http as rest, patience::Patient, ws},
};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Pause after a failed accept, most often for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Opens a listening socket. With `reuse_port` several processes share the port, and the kernel spreads the connections.
///
/// # Errors
/// Where the address is not to be had.
pub fn bind(address: IpAddr, port: u16, reuse_port: bool) -> io::Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Which listener a connection came in by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Http,
    Grpc,
}

/// Serves the HTTP listener until the drain lets go of it.
pub async fn serve_http(gateway: Arc<Gateway>, listener: TcpListener) {
    let router = rest::router(gateway.clone()).fallback_service(crate::page::router());
    accept(gateway, listener, Port::Http, router).await;
}

/// Serves the gRPC listener until the drain lets go of it.
pub async fn serve_grpc(gateway: Arc<Gateway>, listener: TcpListener) {
    let router = grpc::router(gateway.clone());
    accept(gateway, listener, Port::Grpc, router).await;
}

async fn accept(gateway: Arc<Gateway>, listener: TcpListener, port: Port, router: axum::Router) {
    let refused = Arc::new(AtomicUsize::new(0));
    let mut leaving = gateway.departure.listening();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = leaving.told() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let settings = gateway.settings();
        tune(&stream, settings.keepalive.tcp_keepalive);
        if gateway.metrics.connections_open() >= settings.limits.max_connections as u64 {
            gateway.metrics.limit_hit("connections");
            refuse(stream, refused.clone());
            continue;
        }
        let transport = if port == Port::Http { Transport::Http } else { Transport::Grpc };
        let open = gateway.metrics.connection(transport);
        let connection = Connection { gateway: gateway.clone(), router: router.clone(), peer, port };
        tokio::spawn(connection.serve(stream, open));
    }
}

fn tune(stream: &TcpStream, keepalive: Duration) {
    // A socket that refuses an option still works.
    let _ = stream.set_nodelay(true);
    let _ =
        SockRef::from(stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(keepalive).with_interval(keepalive / 4));
}

/// Tells a client that there is no room; past a bound it is closed without a word.
fn refuse(stream: TcpStream, refused: Arc<AtomicUsize>) {
    if refused.fetch_add(1, Ordering::Relaxed) >= REFUSED_CONNECTIONS_MAX {
        refused.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    tokio::spawn(async move {
        let service = service_fn(|_: Request<Incoming>| async {
            let mut response = Response::new(Body::from("overloaded: too many connections; try again soon\n"));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
            response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            Ok::<_, Infallible>(response)
        });
        let serve = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let _ = tokio::time::timeout(Duration::from_secs(2), serve).await;
        refused.fetch_sub(1, Ordering::Relaxed);
    });
}

/// gRPC clients keep one connection and would never find new pods: theirs ends some time, each at a time of its own. Calls
/// that run on it go on.
async fn grown_old(port: Port) {
    match port {
        Port::Http => std::future::pending().await,
        Port::Grpc => tokio::time::sleep(GRPC_CONNECTION_AGE.mul_f64(rand::random_range(0.9..1.1))).await,
    }
}

#[derive(Clone)]
struct Connection {
    gateway: Arc<Gateway>,
    router: axum::Router,
    peer: SocketAddr,
    port: Port,
}

impl Connection {
    async fn serve(self, stream: TcpStream, open: OpenConnection) {
        let mut leaving = self.gateway.departure.leaving();
        let opened = tokio::select! {
            opened = opening::http(stream, self.gateway.settings().limits.header_timeout) => opened,
            () = leaving.told() => None,
        };
        let Some(stream) = opened else { return };
        match self.port {
            Port::Http => self.serve_on(stream, open).await,
            // On a socket that takes several buffers at a time, the HTTP/2 library writes every DATA frame of 256 bytes or
            // more by itself; on this one it gathers what it has for the connection into one write.
            Port::Grpc => self.serve_on(ws::buffered::Buffered::new(stream), open).await,
        }
    }

    async fn serve_on<S>(self, stream: S, open: OpenConnection)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let builder = self.builder();
        let mut leaving = self.gateway.departure.leaving();
        let port = self.port;
        let service = service_fn(move |request| self.clone().answer(request));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(Patient::new(stream)), service);
        tokio::pin!(connection);
        let parting = async {
            tokio::select! {
                () = leaving.told() => {}
                () = grown_old(port) => {}
            }
        };
        tokio::select! {
            _ = connection.as_mut() => {}
            () = parting => {
                connection.as_mut().graceful_shutdown();
                // Ends when its answers have ended; the process's own deadline bounds it.
                let _ = connection.await;
            }
        }
        drop(open);
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let settings = self.gateway.settings();
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.limits.header_timeout)
            .max_buf_size(HTTP1_BUFFER_BYTES)
            .max_headers(HEADERS_MAX)
            .half_close(false);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(settings.limits.max_streams_per_connection)
            .initial_stream_window_size(GRPC_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(GRPC_CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_BYTES_MAX)
            .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
            .keep_alive_interval(settings.keepalive.ping_interval)
            .keep_alive_timeout(settings.keepalive.pong_timeout.max(HTTP2_PING_TIMEOUT));
        builder
    }

    async fn answer(self, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        if self.port == Port::Http && request.uri().path() == "/ws" {
            let answer = ws::upgrade(&self.gateway, request, self.peer);
            return Ok(match answer {
                Ok(response) => response.map(|()| Body::empty()),
                Err(error) => ws::handshake_refused(&self.gateway, error),
            });
        }
        request.extensions_mut().insert(axum::extract::ConnectInfo(self.peer));
        // gRPC reads its requests to the end by itself, and its clients wait with an open stream for a refusal.
        let is_call = self.port == Port::Grpc && grpc::is_call(&request);
        let watched = request.version() == Version::HTTP_2 && !is_call;
        let (request, unread) = if watched { unread::watch(request) } else { (request.map(Body::new), None) };
        let response = if self.port == Port::Grpc && !is_call {
            drop(request);
            grpc::not_a_call()
        } else {
            match self.router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        };
        if let Some(unread) = unread {
            unread.read_on().await;
        }
        Ok(response)
    }
}
