//! One WebSocket: frames in and out, signs of life, and a close that arrives.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use chatgateway_core::{
    error::CloseCode,
    limits::{OVERSIZED_READ_ON, WRITE_STALL, WS_FRAGMENT_BYTES, WS_READ_BUFFER_BYTES, WS_UNSENT_MAX_BYTES},
};
use futures_util::{Sink, SinkExt, Stream};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Sleep,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        error::{CapacityError, ProtocolError},
        protocol::{
            CloseFrame, Role, WebSocketConfig,
            frame::{
                Frame,
                coding::{CloseCode as WireCode, Data, OpCode},
            },
        },
    },
};

use super::buffered::Buffered;
use crate::clock;

/// How a connection is kept alive and bounded.
#[derive(Clone, Copy, Debug)]
pub struct SocketSettings {
    /// How often the server pings a silent client.
    pub ping_interval: Duration,
    /// How long a pong may take.
    pub pong_timeout: Duration,
    /// The largest message it takes.
    pub max_message_bytes: usize,
}

/// What came in.
#[derive(Debug)]
pub enum Incoming {
    /// A text message.
    Text(tungstenite::Utf8Bytes),
    /// A binary message.
    Binary(Bytes),
    /// The client closed, or the connection is gone.
    Closed,
    /// The client broke a rule: close with this.
    Violation(CloseCode, &'static str),
}

/// The connection is gone, or the client does not read.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] tungstenite::Error),
    /// Not a byte went out for [`WRITE_STALL`].
    #[error("the client reads nothing")]
    Stalled,
}

/// See the module.
pub struct Socket<S> {
    stream: WebSocketStream<Buffered<S>>,
    settings: SocketSettings,
    /// When something last came in.
    heard: Instant,
    /// Whether a ping is out.
    pinged: bool,
    timer: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// A server's side of a WebSocket whose handshake is done; `early` was read behind the handshake.
    pub async fn server(io: S, early: Bytes, settings: SocketSettings) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(WS_READ_BUFFER_BYTES)
            // Each frame goes to the gathering buffer at once: the codec's own keeps its capacity for ever.
            .write_buffer_size(0)
            // What waits there when the client does not read: pongs past it are dropped but for the last.
            .max_write_buffer_size(WS_UNSENT_MAX_BYTES)
            .max_message_size(Some(settings.max_message_bytes))
            .max_frame_size(Some(settings.max_message_bytes));
        let io = Buffered::new(io);
        let stream = if early.is_empty() {
            WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
        } else {
            WebSocketStream::from_partially_read(io, early.to_vec(), Role::Server, Some(config)).await
        };
        let heard = clock::now();
        let timer = Box::pin(tokio::time::sleep_until((heard + settings.ping_interval).into()));
        Self { stream, settings, heard, pinged: false, timer }
    }

    /// The next message; pings and pongs are seen to.
    pub fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        loop {
            match Pin::new(&mut self.stream).poll_next(cx) {
                Poll::Ready(message) => {
                    self.heard = clock::now();
                    self.pinged = false;
                    match message {
                        Some(Ok(Message::Text(text))) => return Poll::Ready(Incoming::Text(text)),
                        Some(Ok(Message::Binary(data))) => return Poll::Ready(Incoming::Binary(data)),
                        // The codec answers pings by itself; its answer leaves with the next flush.
                        Some(Ok(Message::Ping(_))) => {
                            if let Poll::Ready(Err(_)) = Pin::new(&mut self.stream).poll_flush(cx) {
                                return Poll::Ready(Incoming::Closed);
                            }
                        }
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Poll::Ready(violation(&error)),
                        None => return Poll::Ready(Incoming::Closed),
                    }
                }
                Poll::Pending => return self.poll_silence(cx),
            }
        }
    }

    /// Pings a client that is silent, gives it up if it stays so.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let due = self.heard + self.settings.ping_interval;
            let now = clock::now();
            let next = if self.pinged {
                if now >= due + self.settings.pong_timeout {
                    return Poll::Ready(Incoming::Violation(CloseCode::NoPong, "no pong"));
                }
                due + self.settings.pong_timeout
            } else if now >= due {
                self.pinged = true;
                let sent = Pin::new(&mut self.stream).start_send(Message::Ping(Bytes::new()));
                if sent.is_err() || matches!(Pin::new(&mut self.stream).poll_flush(cx), Poll::Ready(Err(_))) {
                    return Poll::Ready(Incoming::Closed);
                }
                due + self.settings.pong_timeout
            } else {
                due
            };
            self.timer.as_mut().reset(next.into());
        }
        Poll::Pending
    }

    /// Gathers a text message; it leaves with the next [`Socket::flush`]. Long ones go out as fragments.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn feed(&mut self, text: String) -> Result<(), WriteError> {
        if text.len() <= WS_FRAGMENT_BYTES {
            return self.put(Message::text(text)).await;
        }
        self.put_pieces(text.into(), Data::Text).await
    }

    async fn put_pieces(&mut self, mut rest: Bytes, mut kind: Data) -> Result<(), WriteError> {
        loop {
            let piece = rest.split_to(rest.len().min(WS_FRAGMENT_BYTES));
            self.put(Message::Frame(Frame::message(piece, OpCode::Data(kind), rest.is_empty()))).await?;
            if rest.is_empty() {
                return Ok(());
            }
            kind = Data::Continue;
        }
    }

    async fn put(&mut self, mut message: Message) -> Result<(), WriteError> {
        loop {
            // Most often there is room: then no timer is made.
            let ready = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut self.stream).poll_ready(cx))).await;
            match ready {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    let ready = std::future::poll_fn(|cx| Pin::new(&mut self.stream).poll_ready(cx));
                    tokio::time::timeout(WRITE_STALL, ready).await.map_err(|_| WriteError::Stalled)??;
                }
            }
            message = match Pin::new(&mut self.stream).start_send(message) {
                // Pongs were in the way.
                Err(tungstenite::Error::WriteBufferFull(unsent)) => *unsent,
                sent => return Ok(sent?),
            };
            self.flush().await?;
        }
    }

    /// Sends what was gathered.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn flush(&mut self) -> Result<(), WriteError> {
        let flushed = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut self.stream).poll_flush(cx))).await;
        match flushed {
            Poll::Ready(flushed) => Ok(flushed?),
            Poll::Pending => {
                Ok(tokio::time::timeout(WRITE_STALL, self.stream.flush()).await.map_err(|_| WriteError::Stalled)??)
            }
        }
    }

    /// Sends a binary message at once, a long one as fragments.
    ///
    /// # Errors
    /// [`WriteError`].
    pub async fn send_binary(&mut self, data: Bytes) -> Result<(), WriteError> {
        self.put_pieces(data, Data::Binary).await?;
        self.flush().await
    }

    /// Closes with a code and a reason, and reads on briefly, so that the close frame arrives instead of a reset.
    pub async fn close(mut self, code: CloseCode, reason: &str) {
        let frame = CloseFrame { code: WireCode::from(code.number()), reason: reason.into() };
        let closing = async {
            // Where the client has closed already this answers its close frame.
            let _ = self.stream.close(Some(frame)).await;
            let _ = self.stream.flush().await;
            let io = self.stream.get_mut();
            let _ = io.shutdown().await;
            let mut sink = [0; 4096];
            while let Ok(1..) = io.read(&mut sink).await {}
        };
        let _ = tokio::time::timeout(OVERSIZED_READ_ON, closing).await;
    }
}

fn violation(error: &tungstenite::Error) -> Incoming {
    match error {
        tungstenite::Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            Incoming::Violation(CloseCode::TooLarge, "too_large")
        }
        tungstenite::Error::Utf8(_) => Incoming::Violation(CloseCode::InvalidPayload, "text must be UTF-8"),
        tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
        | tungstenite::Error::ConnectionClosed
        | tungstenite::Error::AlreadyClosed
        | tungstenite::Error::Io(_) => Incoming::Closed,
        _ => Incoming::Violation(CloseCode::Protocol, "a frame broke the WebSocket protocol"),
    }
}
