//! What belongs to the pod: health, reflection, drain.

use chatgateway_proto::v1::{self, server_message::Message};
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1 as reflection, v1alpha};
use tonic_types::StatusExt;

use crate::harness::*;

const AT_ONCE: &str = "drain: {acceptFloor: 0s, reconnectSpread: 0s, timeout: 2s}\n";

fn asked(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.into() }
}

async fn told_health(watch: &mut Streaming<HealthCheckResponse>) -> ServingStatus {
    watch.message().await.unwrap().expect("one more status").status()
}

#[tokio::test]
async fn health_tells_of_the_drain_and_does_not_hold_it_up() {
    let pod = Pod::start(&format!("{FAST}drain: {{acceptFloor: 1s, reconnectSpread: 0s, timeout: 60s}}\n")).await;
    let mut health = HealthClient::new(pod.channel.clone());
    let mut watches = Vec::new();
    for service in ["", "chat.v1.ChatService"] {
        let status = health.check(asked(service)).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
        let mut watch = health.watch(asked(service)).await.unwrap().into_inner();
        assert_eq!(told_health(&mut watch).await, ServingStatus::Serving);
        watches.push(watch);
    }
    let status = health.check(asked("nobody")).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let mut unknown = health.watch(asked("nobody")).await.unwrap().into_inner();
    assert_eq!(told_health(&mut unknown).await, ServingStatus::ServiceUnknown);

    pod.gateway.start_drain();
    for watch in &mut watches {
        assert_eq!(told_health(watch).await, ServingStatus::NotServing);
        // Then it is told to go with all others.
        assert_eq!(watch.message().await.unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!(unknown.message().await.unwrap_err().code(), Code::Unavailable);
}

fn ask(question: reflection::server_reflection_request::MessageRequest) -> reflection::ServerReflectionRequest {
    reflection::ServerReflectionRequest { host: String::new(), message_request: Some(question) }
}

#[tokio::test]
async fn reflection_describes_the_contract_with_its_comments() {
    use reflection::{
        server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest,
        server_reflection_response::MessageResponse,
    };
    let pod = Pod::start(&format!("{FAST}{AT_ONCE}")).await;
    let (questions, queue) = mpsc::channel(4);
    let mut client = ServerReflectionClient::new(pod.channel.clone());
    let mut answers = client.server_reflection_info(ReceiverStream::new(queue)).await.unwrap().into_inner();

    questions.send(ask(MessageRequest::ListServices(String::new()))).await.unwrap();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    for name in ["chat.v1.ChatService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        assert!(names.iter().any(|n| n == name), "{names:?}");
    }

    questions.send(ask(MessageRequest::FileContainingSymbol("chat.v1.ChatService".into()))).await.unwrap();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::FileDescriptorResponse(files)) = answer else { panic!("{answer:?}") };
    let file = FileDescriptorProto::decode(files.file_descriptor_proto[0].as_slice()).unwrap();
    let methods: Vec<_> = file.service[0].method.iter().map(|m| m.name()).collect();
    assert_eq!(methods, ["Chat", "Send", "Read", "GetSession", "CancelTurn", "DeleteSession"]);
    let comments = file.source_code_info.unwrap().location;
    assert!(comments.iter().any(|l| l.leading_comments().contains("One stream for everything")));

    questions.send(ask(MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".into()))).await.unwrap();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");

    // A client that keeps its stream open does not hold up a drain.
    pod.gateway.start_drain();
    assert!(answers.next().await.is_none());
    drop(questions);
}

#[tokio::test]
async fn the_older_reflection_is_there_too() {
    use v1alpha::{server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest};
    let pod = Pod::start(FAST).await;
    let question = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileByFilename("chat/v1/chat.proto".into())),
    };
    let mut client = ServerReflectionClient::new(pod.channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::once(question)).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
    use v1alpha::server_reflection_response::MessageResponse;
    assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{answer:?}");
}

#[tokio::test]
async fn a_drain_lets_open_answers_end_and_takes_no_new_ones() {
    let pod = Pod::start(&format!("{STEADY}drain: {{acceptFloor: 0s, reconnectSpread: 0s, timeout: 10s}}\n")).await;
    let mut chat = pod.chat().await;
    let mut sent = pod.send(turn_of("other", "t1", "a")).await.unwrap();
    chat.send("s", "t1", &"word ".repeat(40)).await;
    while !matches!(chat.next().await, Message::Delta(_)) {}
    pod.gateway.start_drain();
    let mut told_to_go = None;
    let end = loop {
        match chat.next().await {
            Message::GoAway(go_away) => {
                told_to_go = Some(go_away);
                chat.send("s", "t2", "too late").await;
            }
            Message::Done(done) => break done,
            Message::Error(error) => {
                assert_eq!((error.code.as_str(), error.turn.as_deref()), ("draining", Some("t2")));
                assert!(error.retryable && error.retry_after_ms.is_some(), "{error:?}");
            }
            _ => {}
        }
    };
    assert_eq!(end.turn, "t1");
    let go_away = told_to_go.expect("told before the answer ended");
    assert!(go_away.time_left_ms > 5_000 && go_away.time_left_ms <= 10_000, "{go_away:?}");
    assert!(go_away.reconnect_after_ms <= 500, "{go_away:?}");
    let (messages, end) = sent.rest().await;
    end.unwrap();
    assert_eq!(told(messages.last().unwrap()), "done t1 stop");

    chat.half_close();
    chat.down.rest().await.1.unwrap();
}

#[tokio::test]
async fn what_does_not_end_in_time_is_told_so() {
    let pod = Pod::start(&format!("{ENDLESS}{AT_ONCE}")).await;
    let mut chat = pod.chat().await;
    let mut reading = pod.read("s", "0").await.unwrap();
    chat.send("s", "t1", "a").await;
    let mut sent = pod.send(turn_of("other", "t1", "a")).await.unwrap();
    while !matches!(sent.next().await, Message::Delta(_)) {}
    pod.gateway.start_drain();
    for stream in [&mut chat.down, &mut reading, &mut sent] {
        let (messages, end) = stream.rest().await;
        let go_away = messages.iter().find_map(|m| if let Message::GoAway(g) = m { Some(g) } else { None });
        assert!(go_away.unwrap().time_left_ms <= 2_000, "{go_away:?}");
        let status = end.unwrap_err();
        assert_refused(&status, Code::Unavailable, "draining");
        assert!(status.get_details_retry_info().is_some());
    }
    // The connection closes with its last stream, so nothing is left of it.
    let mut client = pod.client();
    assert!(client.get_session(v1::GetSessionRequest { session: "s".into() }).await.is_err());
}
