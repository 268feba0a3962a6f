//! A pod that serves gRPC on a port of its own, and a client of it.

use std::{sync::Arc, time::Duration};

use chatgateway_config::Settings;
use chatgateway_dataplane::{gateway::Gateway, server};
use chatgateway_proto::v1::{
    self, ClientMessage, ServerMessage, chat_service_client::ChatServiceClient, client_message, server_message::Message,
};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

/// The built-in model, at once.
pub const FAST: &str = "upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 0s}}]\n";

/// The built-in model, one word and then nothing for a minute: a turn that runs until somebody stops it.
pub const ENDLESS: &str = "upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 60s}}]\n";

/// A model that takes its time, but not much of it.
pub const STEADY: &str = "upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 10ms}}]\n";

/// Nothing here takes as long.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Pod {
    pub gateway: Arc<Gateway>,
    pub channel: Channel,
}

impl Pod {
    pub async fn start(config: &str) -> Self {
        let gateway = Gateway::start(Settings::parse(config).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(server::serve_grpc(gateway.clone(), listener));
        let leaving = gateway.clone();
        tokio::spawn(async move { leaving.departure.run(leaving.drain_watch()).await });
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { gateway, channel }
    }

    pub fn client(&self) -> ChatServiceClient<Channel> {
        ChatServiceClient::new(self.channel.clone())
    }

    pub async fn chat(&self) -> Chat {
        let mut chat = self.raw_chat().await;
        let hello = chat.next().await;
        assert!(matches!(hello, Message::Hello(_)), "{hello:?}");
        chat
    }

    /// A chat whose `hello` is still to come.
    pub async fn raw_chat(&self) -> Chat {
        let (up, queue) = mpsc::channel(16);
        let down = self.client().chat(ReceiverStream::new(queue)).await.unwrap().into_inner();
        Chat { up: Some(up), down: Down(down) }
    }

    pub async fn send(&self, request: v1::SendRequest) -> Result<Down, Status> {
        self.client().send(request).await.map(|response| Down(response.into_inner()))
    }

    pub async fn read(&self, session: &str, after: &str) -> Result<Down, Status> {
        let request = v1::ReadRequest { session: session.into(), after: after.into() };
        self.client().read(Request::new(request)).await.map(|response| Down(response.into_inner()))
    }

    /// What a counter of the pod says.
    pub fn counted(&self, line: &str) -> bool {
        self.gateway.metrics.to_text().lines().any(|l| l == line)
    }
}

/// What comes from the server.
pub struct Down(pub Streaming<ServerMessage>);

impl Down {
    pub async fn item(&mut self) -> Option<Result<Message, Status>> {
        let item = timeout(PATIENCE, self.0.next()).await.expect("the stream says something in time");
        item.map(|item| item.map(|message| message.message.expect("a message that this client knows")))
    }

    pub async fn next(&mut self) -> Message {
        self.item().await.expect("one more message").unwrap()
    }

    /// Messages up to the end of this turn.
    pub async fn until_end_of(&mut self, turn: &str) -> Vec<Message> {
        let mut all = Vec::new();
        loop {
            let message = self.next().await;
            let over = match &message {
                Message::Done(v1::Done { turn: of, .. }) | Message::Cancelled(v1::Cancelled { turn: of, .. }) => {
                    of == turn
                }
                Message::Error(v1::Error { turn: Some(of), id: Some(_), .. }) => of == turn,
                _ => false,
            };
            all.push(message);
            if over {
                return all;
            }
        }
    }

    /// All that comes until the server ends the stream, and how it ends.
    pub async fn rest(&mut self) -> (Vec<Message>, Result<(), Status>) {
        let mut all = Vec::new();
        loop {
            match self.item().await {
                Some(Ok(message)) => all.push(message),
                Some(Err(status)) => return (all, Err(status)),
                None => return (all, Ok(())),
            }
        }
    }
}

/// Both directions of a chat.
pub struct Chat {
    up: Option<mpsc::Sender<ClientMessage>>,
    pub down: Down,
}

impl Chat {
    pub async fn put(&self, message: client_message::Message) {
        self.put_raw(ClientMessage { message: Some(message) }).await;
    }

    pub async fn put_raw(&self, message: ClientMessage) {
        self.up.as_ref().expect("not half-closed yet").send(message).await.unwrap();
    }

    pub async fn send(&self, session: &str, turn: &str, text: &str) {
        self.put(client_message::Message::Send(turn_of(session, turn, text))).await;
    }

    pub async fn resume(&self, session: &str, after: &str) {
        let resume = v1::Resume { session: session.into(), after: after.into() };
        self.put(client_message::Message::Resume(resume)).await;
    }

    pub async fn cancel(&self, session: &str, turn: &str) {
        let cancel = v1::CancelTurnRequest { session: session.into(), turn: turn.into() };
        self.put(client_message::Message::Cancel(cancel)).await;
    }

    pub fn half_close(&mut self) {
        self.up = None;
    }

    pub async fn next(&mut self) -> Message {
        self.down.next().await
    }

    pub async fn error(&mut self) -> v1::Error {
        match self.next().await {
            Message::Error(error) => error,
            other => panic!("not an error: {other:?}"),
        }
    }
}

pub fn turn_of(session: &str, turn: &str, text: &str) -> v1::SendRequest {
    v1::SendRequest { session: session.into(), turn: turn.into(), text: Some(text.into()), ..Default::default() }
}

/// What a message tells, without what differs from run to run.
pub fn told(message: &Message) -> String {
    match message {
        Message::Hello(m) => format!("hello {}", m.protocol),
        Message::Accepted(m) => format!("accepted {} {} {}", m.turn, m.seq, m.state),
        Message::Resumed(m) => format!("resumed {}", m.recovered),
        Message::Turn(m) => format!("turn {} {} {}", m.turn, m.seq, m.text),
        Message::Delta(m) => format!("delta {}", m.turn),
        Message::Reset(m) => format!("reset {}", m.turn),
        Message::Takeover(m) => format!("takeover {}", m.turn),
        Message::Cancelled(m) => format!("cancelled {}", m.turn),
        Message::Done(m) => format!("done {} {}", m.turn, m.finish_reason),
        Message::Error(m) => format!("error {}", m.code),
        Message::GoAway(_) => "go_away".into(),
        Message::Pong(_) => "pong".into(),
    }
}

pub fn all_told(messages: &[Message]) -> Vec<String> {
    messages.iter().map(told).collect()
}

/// The id, of messages that are entries.
pub fn id_of(message: &Message) -> Option<&str> {
    match message {
        Message::Turn(m) => Some(&m.id),
        Message::Delta(m) => Some(&m.id),
        Message::Reset(m) => Some(&m.id),
        Message::Takeover(m) => Some(&m.id),
        Message::Cancelled(m) => Some(&m.id),
        Message::Done(m) => Some(&m.id),
        Message::Error(m) => m.id.as_deref(),
        _ => None,
    }
}

/// Only the entries.
pub fn entries(messages: &[Message]) -> Vec<Message> {
    messages.iter().filter(|m| id_of(m).is_some()).cloned().collect()
}

/// The answer's text.
pub fn answer(messages: &[Message]) -> String {
    let delta = |m: &Message| if let Message::Delta(d) = m { Some(d.text.clone()) } else { None };
    messages.iter().filter_map(delta).collect()
}

/// Checks a refusal's code, status and details.
#[track_caller]
pub fn assert_refused(status: &Status, code: Code, reason: &str) {
    let info = status.get_details_error_info();
    let info = info.as_ref().map(|info| (info.domain.as_str(), info.reason.as_str()));
    assert_eq!((status.code(), info), (code, Some(("chatgateway.dev", reason))), "{status:?}");
}
