//! Turns a second per core over gRPC `Chat`, against a bare tonic echo of the same messages.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, bail};
use chatgateway_proto::v1::{
    CancelTurnRequest, CancelTurnResponse, ClientMessage, DeleteSessionRequest, DeleteSessionResponse, Delta,
    GetSessionRequest, ReadRequest, SendRequest, ServerMessage, Session,
    chat_service_server::{ChatService, ChatServiceServer},
    client_message,
    server_message::Message,
};
use chatgateway_tests::{
    client::{GrpcChat, grpc},
    process::cpu_time,
};
use futures_util::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    closed::{ANSWER_BYTES, QUESTION, ROUNDS, Round, row},
    report::{Bound, Row},
    setup::{Setup, demo},
};

/// Connections, and `Chat` calls on each of them: one connection is one lock in the HTTP/2 library.
const CONNECTIONS: usize = 8;
const CALLS_PER_CONNECTION: usize = 16;

/// The echo.
struct Echo;

type Messages = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl ChatService for Echo {
    type ChatStream = Messages;
    type SendStream = Messages;
    type ReadStream = Messages;

    async fn chat(&self, request: Request<Streaming<ClientMessage>>) -> Result<Response<Messages>, Status> {
        let echoed = request.into_inner().map(|message| Ok(echo(message?)));
        Ok(Response::new(Box::pin(echoed)))
    }

    async fn send(&self, _: Request<SendRequest>) -> Result<Response<Messages>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn read(&self, _: Request<ReadRequest>) -> Result<Response<Messages>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn get_session(&self, _: Request<GetSessionRequest>) -> Result<Response<Session>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn cancel_turn(&self, _: Request<CancelTurnRequest>) -> Result<Response<CancelTurnResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn delete_session(
        &self,
        _: Request<DeleteSessionRequest>,
    ) -> Result<Response<DeleteSessionResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }
}

fn echo(message: ClientMessage) -> ServerMessage {
    let message = match message.message {
        Some(client_message::Message::Send(send)) => Some(Message::Delta(Delta {
            session: send.session,
            turn: send.turn,
            id: String::new(),
            text: send.text.unwrap_or_default(),
        })),
        _ => None,
    };
    ServerMessage { message }
}

/// Runs a bare tonic echo until the process is ended.
pub async fn serve_echo() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    serve(listener).await
}

async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    let connections = TcpListenerStream::new(listener).inspect(|stream| {
        if let Ok(stream) = stream {
            // An echo without this would wait for acknowledgements.
            drop(stream.set_nodelay(true));
        }
    });
    let server = tonic::transport::Server::builder().add_service(ChatServiceServer::new(Echo));
    Ok(server.serve_with_incoming(connections).await?)
}

#[derive(Clone, Copy)]
struct Target {
    address: SocketAddr,
    pid: u32,
    echo: bool,
}

/// The gateway against the echo.
pub async fn run(setup: &Setup) -> anyhow::Result<Vec<Row>> {
    let (echo, echo_address) = setup.helper(setup.server_core, &["echo-grpc".to_owned()])?;
    let gateway = setup.gateway(&demo(ANSWER_BYTES)).await?;
    let targets = [
        Target { address: gateway.grpc(), pid: gateway.pid(), echo: false },
        Target { address: echo_address, pid: echo.pid(), echo: true },
    ];
    let mut rounds: [Vec<Round>; 2] = Default::default();
    for number in 0..if setup.quick { 1 } else { ROUNDS } {
        for (target, rounds) in targets.iter().zip(&mut rounds) {
            rounds.push(round(setup, *target, number).await?);
        }
    }
    Ok(vec![row("turns a second per core, gRPC Chat", &rounds, (Bound::AtLeast(0.25), Bound::AtLeast(0.5)))])
}

async fn round(setup: &Setup, target: Target, number: usize) -> anyhow::Result<Round> {
    let turns = Arc::new(AtomicU64::new(0));
    let mut calls = tokio::task::JoinSet::new();
    for connection in 0..CONNECTIONS {
        let client = grpc(target.address).await?;
        for call in 0..CALLS_PER_CONNECTION {
            let session = format!("grpc-{number}-{connection}-{call}");
            calls.spawn(ask(GrpcChat::open(client.clone()).await?, session, target.echo, turns.clone()));
        }
    }
    let measured = async {
        tokio::time::sleep(setup.seconds(1, 1)).await;
        let (began, cpu, count) = (Instant::now(), cpu_time(target.pid)?, turns.load(Ordering::Relaxed));
        tokio::time::sleep(setup.seconds(2, 5)).await;
        let count = turns.load(Ordering::Relaxed) - count;
        anyhow::Ok(Round::new(count, began.elapsed(), cpu_time(target.pid)?.saturating_sub(cpu)))
    };
    tokio::select! {
        measured = measured => measured,
        Some(ended) = calls.join_next() => Err(ended?.err().context("a call ended by itself")?),
    }
}

/// Asks and waits for the answer, again and again; it ends only by an error.
async fn ask(mut chat: GrpcChat, session: String, echo: bool, turns: Arc<AtomicU64>) -> anyhow::Result<()> {
    for number in 0_u64.. {
        chat.send(&session, &format!("00000000-0000-4000-8000-{number:012x}"), QUESTION).await?;
        let mut bytes = 0;
        loop {
            let message = chat.message().await?.and_then(|message| message.message);
            match message.context("the call ended")? {
                Message::Delta(delta) => bytes += delta.text.len(),
                Message::Done(_) => break,
                Message::Error(error) => bail!("{error:?}"),
                _ => {}
            }
            if echo {
                break;
            }
        }
        anyhow::ensure!(bytes == if echo { QUESTION.len() } else { ANSWER_BYTES }, "an answer of {bytes} bytes");
        turns.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_echo_answers_each_message_with_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener));
        let turns = Arc::new(AtomicU64::new(0));
        let chat = GrpcChat::open(grpc(address).await.unwrap()).await.unwrap();
        let client = tokio::spawn(ask(chat, "s".to_owned(), true, turns.clone()));
        let deadline = Instant::now() + Duration::from_secs(10);
        while turns.load(Ordering::Relaxed) < 100 {
            assert!(Instant::now() < deadline && !client.is_finished());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        client.abort();
        server.abort();
    }
}
