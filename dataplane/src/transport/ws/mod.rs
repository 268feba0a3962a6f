//! `GET /ws`: JSON frames with subprotocol `chatgateway.v1`, plain text without.

pub mod buffered;
mod json;
mod plain;
pub mod socket;

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use chatgateway_core::{
    error::{CloseCode, ErrorCode, Refusal},
    log::SessionId,
};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use hyper_util::{rt::TokioIo, server::conn::auto::upgrade};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response;

use crate::{
    gateway::{Caller, Gateway},
    readers::ReaderEvent,
    transport::{
        frame::{self, SUBPROTOCOL},
        patience::Patient,
    },
};
use socket::{Incoming, Socket, SocketSettings};

/// The header that names a plain-text connection's session, in both directions.
pub const SESSION_HEADER: &str = "x-session-id";

/// Why a handshake was refused.
pub enum HandshakeError {
    /// It is none.
    NotOne(String),
    /// It cannot be served.
    Refused(Refusal),
}

impl From<Refusal> for HandshakeError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What a connection speaks after the handshake.
enum Mode {
    Json,
    Plain { session: SessionId, stream: bool },
}

/// Why a connection ends: with this close code and reason, or because it is gone.
enum End {
    Close(CloseCode, &'static str),
    Gone,
}

impl From<socket::WriteError> for End {
    fn from(error: socket::WriteError) -> Self {
        match error {
            socket::WriteError::Broken(_) => Self::Gone,
            socket::WriteError::Stalled => Self::Close(CloseCode::Slow, "slow"),
        }
    }
}

/// What woke a connection's loop.
enum Step {
    Incoming(Incoming),
    Event(ReaderEvent),
    Leave,
    CloseNow,
}

/// Answers the handshake; on success the connection goes on in a task of its own.
///
/// # Errors
/// Why there is no WebSocket.
pub fn upgrade(
    gateway: &Arc<Gateway>,
    mut request: Request<hyper::body::Incoming>,
    peer: SocketAddr,
) -> Result<Response<()>, HandshakeError> {
    let settings = gateway.settings();
    check_origin(request.headers(), &settings.limits.allowed_origins)?;
    let mode = mode(&request)?;
    let mut response = handshake(&request)?;
    match &mode {
        Mode::Json => {
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        }
        Mode::Plain { session, .. } => {
            // An id outside ASCII has no header form that all clients read alike; its sender knows it anyway.
            if let Ok(id) = HeaderValue::from_str(session.as_str()) {
                response.headers_mut().insert(SESSION_HEADER, id);
            }
        }
    }
    let socket_settings = SocketSettings {
        ping_interval: settings.keepalive.ping_interval,
        pong_timeout: settings.keepalive.pong_timeout,
        max_message_bytes: settings.limits.max_message_bytes,
    };
    let upgraded = hyper::upgrade::on(&mut request);
    drop(request);
    let (gateway, caller) = (gateway.clone(), Caller::anonymous(peer.ip()));
    tokio::spawn(async move {
        let Some((io, early)) = switched(upgraded).await else { return };
        let connection = gateway.metrics.connection(crate::metrics::Transport::WebSocket);
        serve(&gateway, caller, mode, io, early, socket_settings).await;
        drop(connection);
    });
    Ok(response)
}

/// The answer to a WebSocket handshake, without a subprotocol.
///
/// # Errors
/// [`HandshakeError::NotOne`].
pub fn handshake<B>(request: &Request<B>) -> Result<Response<()>, HandshakeError> {
    let mut head = Request::builder().method(request.method()).uri(request.uri()).version(request.version());
    if let Some(headers) = head.headers_mut() {
        headers.clone_from(request.headers());
    }
    head.body(())
        .map_err(|e| e.to_string())
        .and_then(|head| create_response(&head).map_err(|e| e.to_string()))
        .map_err(HandshakeError::NotOne)
}

/// The connection behind an answered handshake and what was read of it already; none where the client has gone.
pub async fn switched(upgraded: hyper::upgrade::OnUpgrade) -> Option<(TcpStream, Bytes)> {
    let parts = upgrade::downcast::<TokioIo<Patient<TcpStream>>>(upgraded.await.ok()?).ok()?;
    Some((parts.io.into_inner().into_inner(), parts.read_buf))
}

async fn serve(
    gateway: &Arc<Gateway>,
    caller: Caller,
    mode: Mode,
    io: TcpStream,
    early: Bytes,
    settings: SocketSettings,
) {
    let mut socket = Socket::server(io, early, settings).await;
    let end = match mode {
        Mode::Json => json::serve(gateway, caller, &mut socket).await,
        Mode::Plain { session, stream } => plain::serve(gateway, caller, &mut socket, session, stream).await,
    };
    match end {
        End::Gone => {}
        End::Close(code, reason) => {
            if code == CloseCode::TooLarge {
                gateway.metrics.limit_hit("message_bytes");
            }
            gateway.metrics.closed(code);
            Box::pin(socket.close(code, reason)).await;
        }
    }
}

/// A browser says where the page came from: only known places may use the visitor's connection.
fn check_origin(headers: &HeaderMap, allowed: &[String]) -> Result<(), Refusal> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let own = origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
    if own || allowed.iter().any(|a| a == "*" || a.eq_ignore_ascii_case(origin)) {
        return Ok(());
    }
    let message = format!("pages of {origin:?} may not connect; allow them in limits.allowedOrigins");
    Err(Refusal::new(ErrorCode::PermissionDenied, message))
}

/// What the client wants to speak.
fn mode(request: &Request<hyper::body::Incoming>) -> Result<Mode, Refusal> {
    let offers: Vec<&str> = request
        .headers()
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    if offers.contains(&SUBPROTOCOL) {
        return Ok(Mode::Json);
    }
    if !offers.is_empty() {
        let message =
            format!("none of the subprotocols {offers:?} is known; offer {SUBPROTOCOL}, or none for plain text");
        return Err(Refusal::new(ErrorCode::InvalidRequest, message));
    }
    let query: PlainQuery = axum::extract::Query::try_from_uri(request.uri())
        .map_err(|e| Refusal::new(ErrorCode::InvalidRequest, e.body_text()))?
        .0;
    let header = request.headers().get(SESSION_HEADER);
    let named = match header {
        Some(value) => Some(
            std::str::from_utf8(value.as_bytes())
                .map_err(|_| Refusal::new(ErrorCode::InvalidRequest, format!("{SESSION_HEADER}: must be UTF-8")))?
                .to_owned(),
        ),
        None => query.session,
    };
    let session = match named {
        Some(name) => frame::session_id(&name)?,
        None => frame::session_id(&uuid::Uuid::new_v4().to_string())?,
    };
    Ok(Mode::Plain { session, stream: query.stream })
}

#[derive(serde::Deserialize)]
struct PlainQuery {
    #[serde(default)]
    session: Option<String>,
    #[serde(default)]
    stream: bool,
}

/// A refused handshake as an HTTP answer.
#[must_use]
pub fn handshake_refused(gateway: &Gateway, error: HandshakeError) -> Response<axum::body::Body> {
    use axum::response::IntoResponse;
    let (refusal, none) = match error {
        HandshakeError::Refused(refusal) => (refusal, false),
        HandshakeError::NotOne(error) => {
            (Refusal::new(ErrorCode::InvalidRequest, format!("/ws takes WebSocket handshakes only: {error}")), true)
        }
    };
    let mut response = crate::transport::http::problem(&gateway.refused(refusal)).into_response();
    if none {
        response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    response
}
