//! The generator's own WebSocket client: it spends so little on a frame that the server under test is what is measured.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, bail};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use chatgateway_tests::client::{SUBPROTOCOL, in_time};

/// Connections from one loopback address; the next ones come from the next address.
const CONNECTIONS_PER_ADDRESS: usize = 20_000;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What the connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// JSON frames.
    Json,
    /// Plain text.
    Plain,
}

/// The half that sends.
pub struct Sender {
    half: OwnedWriteHalf,
    frame: Vec<u8>,
}

/// The half that receives.
pub struct Receiver {
    half: OwnedReadHalf,
    buffer: BytesMut,
    /// A message of which the last fragment has not come.
    partial: BytesMut,
}

/// A frame as it is on the wire.
struct RawFrame {
    last: bool,
    opcode: u8,
    payload: Bytes,
}

/// A message that is not the peer's own business.
pub enum Frame {
    /// Text.
    Text(Bytes),
    /// A ping, to be answered with the same bytes.
    Ping(Bytes),
}

/// A TCP connection from the loopback address that is connection `number`'s turn.
pub async fn tcp(address: SocketAddr, number: usize) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    let host = u8::try_from(1 + number / CONNECTIONS_PER_ADDRESS).context("too many connections")?;
    if host > 1 {
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0)))?;
    }
    let stream = in_time("a connection", socket.connect(address)).await?.context("cannot connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens a WebSocket. In plain mode the session is named by a header.
pub async fn connect(
    address: SocketAddr,
    number: usize,
    mode: Mode,
    session: &str,
) -> anyhow::Result<(Sender, Receiver)> {
    let mut stream = tcp(address, number).await?;
    let header = match mode {
        Mode::Json => format!("sec-websocket-protocol: {SUBPROTOCOL}"),
        Mode::Plain => format!("x-session-id: {session}"),
    };
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: {address}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{header}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = BytesMut::with_capacity(512);
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        let read = in_time("the handshake's answer", stream.read_buf(&mut buffer)).await??;
        anyhow::ensure!(read > 0 && buffer.len() < 64 * 1024, "the handshake broke off");
    };
    let head = buffer.split_to(end);
    let head = String::from_utf8_lossy(&head);
    anyhow::ensure!(head.starts_with("HTTP/1.1 101"), "the handshake was answered with {head}");
    let (read, write) = stream.into_split();
    let mut receiver = Receiver { half: read, buffer, partial: BytesMut::new() };
    if mode == Mode::Json && head.to_ascii_lowercase().contains("sec-websocket-protocol") {
        match in_time("hello", receiver.next()).await?? {
            Frame::Text(text) if text.starts_with(b"{\"type\":\"hello\"") => {}
            Frame::Text(text) => bail!("no hello but {}", String::from_utf8_lossy(&text)),
            Frame::Ping(_) => bail!("no hello but a ping"),
        }
    }
    Ok((Sender { half: write, frame: Vec::new() }, receiver))
}

impl Sender {
    /// Sends a text frame. Its mask is all zeros, which servers take and which costs nothing.
    pub async fn text(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        self.send(TEXT, payload).await
    }

    /// Answers a ping.
    pub async fn pong(&mut self, payload: &[u8]) -> anyhow::Result<()> {
        self.send(PONG, payload).await
    }

    async fn send(&mut self, opcode: u8, payload: &[u8]) -> anyhow::Result<()> {
        self.frame.clear();
        self.frame.push(0x80 | opcode);
        match u16::try_from(payload.len()) {
            Ok(length) if length < 126 => self.frame.push(0x80 | length.to_le_bytes()[0]),
            Ok(length) => {
                self.frame.push(0x80 | 126);
                self.frame.extend_from_slice(&length.to_be_bytes());
            }
            Err(_) => bail!("the generator sends no frames above 64 KiB"),
        }
        self.frame.extend_from_slice(&[0; 4]);
        self.frame.extend_from_slice(payload);
        Ok(self.half.write_all(&self.frame).await?)
    }
}

impl Receiver {
    /// The next text frame or ping. Cancel-safe. The end of the connection is an error.
    pub async fn next(&mut self) -> anyhow::Result<Frame> {
        loop {
            if let Some(RawFrame { last, opcode, payload }) = self.parse()? {
                match opcode {
                    TEXT if last => return Ok(Frame::Text(payload)),
                    TEXT => self.partial = BytesMut::from(payload),
                    CONTINUATION => {
                        self.partial.extend_from_slice(&payload);
                        if last {
                            return Ok(Frame::Text(std::mem::take(&mut self.partial).freeze()));
                        }
                    }
                    PING => return Ok(Frame::Ping(payload)),
                    PONG => {}
                    CLOSE => {
                        let code = payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]]));
                        bail!("closed with {code} {}", String::from_utf8_lossy(payload.get(2..).unwrap_or_default()));
                    }
                    opcode => bail!("a frame with opcode {opcode}"),
                }
                continue;
            }
            self.buffer.reserve(4 * 1024);
            anyhow::ensure!(self.half.read_buf(&mut self.buffer).await? > 0, "the connection ended");
        }
    }

    /// Takes a whole frame from the buffer.
    fn parse(&mut self) -> anyhow::Result<Option<RawFrame>> {
        let &[first, second, ref rest @ ..] = &self.buffer[..] else { return Ok(None) };
        anyhow::ensure!(first & 0x70 == 0 && second & 0x80 == 0, "an extension or a masked frame");
        let (header, length) = match (second, rest) {
            (126, &[a, b, ..]) => (4, usize::from(u16::from_be_bytes([a, b]))),
            (127, &[a, b, c, d, e, f, g, h, ..]) => {
                (10, usize::try_from(u64::from_be_bytes([a, b, c, d, e, f, g, h]))?)
            }
            (126 | 127, _) => return Ok(None),
            (length, _) => (2, usize::from(length)),
        };
        if self.buffer.len() < header + length {
            self.buffer.reserve(header + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(header);
        let payload = self.buffer.split_to(length).freeze();
        Ok(Some(RawFrame { last: first & 0x80 != 0, opcode: first & 0x0f, payload }))
    }

    /// Gives the buffer back, as a client that waits would.
    pub fn shrink(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}
