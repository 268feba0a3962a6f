//! An echo server on the gateway's own handshake and codec, for Autobahn|Testsuite: what it finds is the gateway's.

use std::{convert::Infallible, net::IpAddr, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use chatgateway_core::{error::CloseCode, limits};
use chatgateway_dataplane::{
    server,
    transport::{
        patience::Patient,
        ws::{
            self,
            socket::{Incoming, Socket, SocketSettings, WriteError},
        },
    },
};
use clap::Parser;
use http::{Request, Response, StatusCode};
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::net::TcpStream;

/// Pings rarely, so that no test case meets a ping it did not expect.
const SETTINGS: SocketSettings = SocketSettings {
    ping_interval: Duration::from_secs(600),
    pong_timeout: Duration::from_secs(10),
    max_message_bytes: *limits::settings::MESSAGE_BYTES.end() as usize,
};

/// How long the head of a request may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A WebSocket server that sends back every message, with the gateway's own handshake and codec.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    bind: IpAddr,
    /// Port to listen on; 0 takes a free one and prints it
    #[arg(long, default_value_t = 0)]
    port: u16,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let listener = server::bind(arguments.bind, arguments.port, false)?;
    println!("ws-echo listening on {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(stream));
    }
}

async fn serve(stream: TcpStream) {
    // A socket that refuses the option still works.
    drop(stream.set_nodelay(true));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).half_close(false);
    let stream = TokioIo::new(Patient::new(stream));
    let connection = builder.serve_connection_with_upgrades(stream, service_fn(answer));
    // A client that leaves ends its task.
    drop(connection.await);
}

async fn answer(mut request: Request<hyper::body::Incoming>) -> Result<Response<Body>, Infallible> {
    Ok(match ws::handshake(&request) {
        Ok(response) => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                if let Some((stream, early)) = ws::switched(upgraded).await {
                    echo(stream, early).await;
                }
            });
            response.map(|()| Body::empty())
        }
        Err(_) => {
            let mut response = Response::new(Body::from("this server takes WebSocket handshakes only\n"));
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    })
}

/// Sends back every message until the client closes or breaks a rule.
async fn echo(stream: TcpStream, early: Bytes) {
    let mut socket = Socket::server(stream, early, SETTINGS).await;
    let (code, reason) = loop {
        let sent = match std::future::poll_fn(|cx| socket.poll_incoming(cx)).await {
            Incoming::Text(text) => send_text(&mut socket, text.as_str().to_owned()).await,
            Incoming::Binary(data) => socket.send_binary(data).await,
            Incoming::Closed => break (CloseCode::Normal, ""),
            Incoming::Violation(code, reason) => break (code, reason),
        };
        if sent.is_err() {
            return;
        }
    };
    socket.close(code, reason).await;
}

async fn send_text(socket: &mut Socket<TcpStream>, text: String) -> Result<(), WriteError> {
    socket.feed(text).await?;
    socket.flush().await
}
