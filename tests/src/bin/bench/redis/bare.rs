//! A bare relay: a WebSocket in front of a model server and nothing else. It is what the gateway's cost of a token is measured
//! against: the least that the same libraries spend on reading events and writing frames.

use std::{net::SocketAddr, time::Instant};

use anyhow::Context as _;
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::live::{Measured, Stream, Tokens, measure_by};
use crate::{
    setup::Setup,
    wire::{self, Frame, Mode},
};

type Http = Client<HttpConnector, Full<Bytes>>;

/// The data of the last event of an answer.
const END: &[u8] = b"[DONE]";

/// Longest line of the model server's.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Starts a relay on the servers' core, and measures the same stream through it.
pub async fn measure(setup: &Setup, model: SocketAddr, stream: Stream) -> anyhow::Result<Measured> {
    let (relay, address) = setup.helper(setup.server_core, &["relay-ws".to_owned(), model.to_string()])?;
    measure_by(relay.pid(), stream, |client, warm, end| read(address, stream, client, warm, end)).await
}

/// Runs a relay until the process is ended.
pub async fn serve_relay(model: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    serve(listener, model).await
}

async fn serve(listener: TcpListener, model: SocketAddr) -> anyhow::Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let http: Http = Client::builder(TokioExecutor::new()).build(connector);
    loop {
        let (stream, _) = listener.accept().await?;
        let http = http.clone();
        tokio::spawn(async move {
            // A client that leaves ends its task.
            drop(relay(stream, http, model).await);
        });
    }
}

/// Answers each text frame with the data of the model server's events, a frame each.
async fn relay(stream: TcpStream, http: Http, model: SocketAddr) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    while let Some(message) = socket.next().await {
        if message?.is_text() {
            answer(&mut socket, &http, model).await?;
        }
    }
    Ok(())
}

async fn answer(socket: &mut WebSocketStream<TcpStream>, http: &Http, model: SocketAddr) -> anyhow::Result<()> {
    let body = json!({"model": "sim-model", "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "go on"}]});
    let request = Request::post(format!("http://{model}/v1/chat/completions"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(body.to_string()))?;
    let mut body = http.request(request).await?.into_body();
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(bytes) = frame?.into_data() else { continue };
        buffer.extend_from_slice(&bytes);
        while let Some(data) = next_data(&mut buffer) {
            // Frames of one read leave together.
            socket.feed(Message::text(std::str::from_utf8(&data)?)).await?;
        }
        socket.flush().await?;
        anyhow::ensure!(buffer.len() <= LINE_BYTES_MAX, "a line above {LINE_BYTES_MAX} bytes");
    }
    Ok(())
}

/// What stands behind `data: ` in the next whole line that has it.
fn next_data(buffer: &mut BytesMut) -> Option<Bytes> {
    loop {
        let end = buffer.iter().position(|byte| *byte == b'\n')?;
        let mut line = buffer.split_to(end).freeze();
        buffer.advance(1);
        if line.starts_with(b"data: ") {
            line.advance(b"data: ".len());
            return Some(line);
        }
    }
}

/// One client: it asks as soon as it is answered, until the end.
async fn read(
    relay: SocketAddr,
    stream: Stream,
    client: usize,
    warm: Instant,
    end: Instant,
) -> anyhow::Result<Measured> {
    tokio::time::sleep(stream.spread.mul_f64(client as f64 / stream.answers as f64)).await;
    let (mut sender, mut receiver) = wire::connect(relay, client, Mode::Json, "").await?;
    let mut measured = Measured::new()?;
    while Instant::now() < end {
        sender.text(b"go on").await?;
        let mut tokens = Tokens::default();
        loop {
            let next = chatgateway_tests::client::in_time("a frame", receiver.next());
            match next.await?.context("the relay")? {
                Frame::Ping(payload) => sender.pong(&payload).await?,
                Frame::Text(text) if *text == *END => break,
                Frame::Text(text) => {
                    tokens.read(&text, (warm..end).contains(&Instant::now()).then_some(&mut measured));
                }
            }
        }
        if tokens.count != stream.tokens || tokens.unordered {
            measured.faults.wrong += 1;
            measured.faults.say(|| format!("{} tokens of {}", tokens.count, stream.tokens));
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chatgateway_tests::simulator::{Behaviour, Simulator};

    use super::*;

    #[test]
    fn data_is_taken_line_by_line() {
        let mut buffer = BytesMut::from(&b"data: a\n\ndata: b\n: c\ndata: "[..]);
        assert_eq!(next_data(&mut buffer).as_deref(), Some(&b"a"[..]));
        assert_eq!(next_data(&mut buffer).as_deref(), Some(&b"b"[..]));
        assert!(next_data(&mut buffer).is_none());
        buffer.extend_from_slice(b"d\n");
        assert_eq!(next_data(&mut buffer).as_deref(), Some(&b"d"[..]));
    }

    #[tokio::test]
    async fn every_token_comes_through() {
        let behaviour = Behaviour { tokens: 20, tokens_per_second: 1_000.0, stamp: true, ..Behaviour::default() };
        let simulator = Simulator::with(behaviour).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let relay = tokio::spawn(serve(listener, simulator.address()));
        let (spread, warm, length) = (Duration::ZERO, Duration::ZERO, Duration::from_millis(300));
        let stream = Stream { answers: 3, tokens: 20, name: "bare", spread, warm, length };
        let client = |client, warm, end| read(address, stream, client, warm, end);
        let measured = measure_by(std::process::id(), stream, client).await.unwrap();
        assert_eq!((measured.faults.wrong, measured.faults.first.as_deref()), (0, None));
        assert!(measured.tokens > 20 && measured.delay.len() == measured.tokens, "{}", measured.tokens);
        relay.abort();
    }
}
