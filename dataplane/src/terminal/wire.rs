//! One connection to the gateway: dialling, frames in both directions, keepalive. Every wait is bounded.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Uri, header, uri::Scheme};
use hyper_rustls::ConfigBuilderExt;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
    tungstenite::{Error, Message, Utf8Bytes, client::IntoClientRequest, error::ProtocolError, protocol::CloseFrame},
};

use super::heard::Heard;
use crate::transport::frame::SUBPROTOCOL;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const SEND_WITHIN: Duration = Duration::from_secs(10);
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// Silence after which the server is asked for a sign of life, and how long that may take.
const PING_AFTER: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(10);

/// How a connection ended.
#[derive(Debug)]
pub struct End {
    /// The close code, where there was one.
    pub code: Option<u16>,
    /// Why, for a person.
    pub reason: String,
}

impl End {
    fn broken(reason: impl Into<String>) -> Self {
        Self { code: None, reason: reason.into() }
    }
}

/// An open connection.
pub struct Wire {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    heard_at: Instant,
    pinged: bool,
}

impl Wire {
    /// Connects.
    ///
    /// # Errors
    /// Nobody there, no WebSocket there, or too slow.
    pub async fn dial(address: &Uri) -> Result<Self, End> {
        let dialled = timeout(CONNECT_WITHIN, Self::connect(address)).await;
        let socket = dialled
            .map_err(|_| End::broken(format!("{address} did not answer within {} s", CONNECT_WITHIN.as_secs())))?
            .map_err(|e| match e.downcast_ref::<Error>() {
                Some(Error::Io(error)) => End::broken(format!("{address}: {error}")),
                _ => End::broken(format!("{address}: {e}")),
            })?;
        Ok(Self { socket, heard_at: Instant::now(), pinged: false })
    }

    async fn connect(address: &Uri) -> anyhow::Result<WebSocketStream<MaybeTlsStream<TcpStream>>> {
        let mut request = address.into_client_request()?;
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        let connector = if address.scheme_str() == Some("wss") { tls()? } else { Connector::Plain };
        let (socket, _) = connect_async_tls_with_config(request, None, true, Some(connector)).await?;
        Ok(socket)
    }

    /// Puts a frame on the wire.
    ///
    /// # Errors
    /// The connection is gone or stuck.
    pub async fn send(&mut self, frame: String) -> Result<(), End> {
        self.write(Message::Text(frame.into())).await
    }

    async fn write(&mut self, message: Message) -> Result<(), End> {
        timeout(SEND_WITHIN, self.socket.send(message))
            .await
            .map_err(|_| End::broken("the connection is stuck"))?
            .map_err(|e| lost(&e))
    }

    /// The next frame. Cancel-safe, but for a ping that was being written.
    ///
    /// # Errors
    /// The connection ended, or the server fell silent.
    pub async fn next(&mut self) -> Result<Heard, End> {
        loop {
            let patience = if self.pinged { PING_AFTER + PONG_WITHIN } else { PING_AFTER };
            let message = match timeout_at(self.heard_at + patience, self.socket.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return Err(lost(&error)),
                Ok(None) => return Err(End::broken("connection lost")),
                Err(_) if self.pinged => return Err(End::broken("the server fell silent")),
                Err(_) => {
                    self.pinged = true;
                    self.write(Message::Ping(Vec::new().into())).await?;
                    continue;
                }
            };
            self.heard_at = Instant::now();
            self.pinged = false;
            match message {
                Message::Text(text) => return heard(&text),
                Message::Close(frame) => return Err(closed(frame)),
                _ => {}
            }
        }
    }

    /// Says good-bye.
    pub async fn close(mut self) {
        // A server that does not answer has lost nothing by it.
        let _ = timeout(CLOSE_WITHIN, self.socket.close(None)).await;
    }
}

fn lost(error: &Error) -> End {
    match error {
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::broken("connection lost"),
        Error::Io(error) => End::broken(format!("connection lost: {error}")),
        other => End::broken(format!("connection lost: {other}")),
    }
}

fn heard(text: &Utf8Bytes) -> Result<Heard, End> {
    serde_json::from_str(text).map_err(|e| End::broken(format!("the server sent a frame that cannot be read: {e}")))
}

fn closed(frame: Option<CloseFrame>) -> End {
    let Some(frame) = frame else { return End::broken("the server closed the connection") };
    let code = u16::from(frame.code);
    let why = match code {
        1001 | 1012 => "the server restarts".to_owned(),
        1013 => "the server has no room right now".to_owned(),
        3008 => "this terminal read too slowly".to_owned(),
        _ if frame.reason.is_empty() => format!("the server closed the connection (code {code})"),
        _ => format!("the server closed the connection: {} (code {code})", frame.reason),
    };
    End { code: Some(code), reason: why }
}

fn tls() -> anyhow::Result<Connector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_webpki_roots()
        .with_no_client_auth();
    Ok(Connector::Rustls(Arc::new(config)))
}

/// The WebSocket address that a person means: `host:port`, `ws(s)://…` or `http(s)://…`, with `/ws` where no path is given.
///
/// # Errors
/// What cannot be such an address.
pub fn address(text: &str) -> anyhow::Result<Uri> {
    let full = if text.contains("://") { text.to_owned() } else { format!("ws://{text}") };
    let uri: Uri =
        full.parse().with_context(|| format!("{text:?} is not an address such as ws://127.0.0.1:8080/ws"))?;
    let mut parts = uri.into_parts();
    let scheme = match parts.scheme.as_ref().map(Scheme::as_str) {
        Some("ws" | "http") => "ws",
        Some("wss" | "https") => "wss",
        other => bail!("{text:?} begins with {:?}; use ws, wss, http or https", other.unwrap_or_default()),
    };
    parts.scheme = Some(scheme.parse()?);
    if parts.path_and_query.as_ref().is_none_or(|path| path.as_str() == "/") {
        parts.path_and_query = Some("/ws".parse()?);
    }
    Ok(Uri::from_parts(parts)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        for (written, meant) in [
            ("127.0.0.1:8080", "ws://127.0.0.1:8080/ws"),
            ("http://chat.example/", "ws://chat.example/ws"),
            ("https://chat.example", "wss://chat.example/ws"),
            ("wss://chat.example/a/ws?x=1", "wss://chat.example/a/ws?x=1"),
            ("http://[::1]:8080", "ws://[::1]:8080/ws"),
        ] {
            assert_eq!(address(written).unwrap().to_string(), meant, "{written}");
        }
        for wrong in ["ftp://chat.example", "ws://", "not an address", ""] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_tls_client_can_be_made() {
        assert!(matches!(tls().unwrap(), Connector::Rustls(_)));
    }
}
