//! gRPC, package `chat.v1`, with health and reflection. Served on our own listener, behind hyper: tonic is the codec and the
//! router.

mod chat;
mod message;
mod read;
mod status;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use axum::extract::ConnectInfo;
use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limits::GRPC_MESSAGE_OVERHEAD_BYTES,
    log::{SessionId, TurnId},
};
use chatgateway_proto::v1::{
    self,
    chat_service_server::{ChatService, ChatServiceServer},
};
use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    gateway::{Caller, Gateway},
    transport::frame,
};

pub use status::DOMAIN;

/// The services of the gRPC port.
pub fn router(gateway: Arc<Gateway>) -> axum::Router {
    let max_bytes = gateway.settings().limits.max_message_bytes + GRPC_MESSAGE_OVERHEAD_BYTES;
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(gateway.clone(), reporter));
    let chat = ChatServiceServer::new(Service { gateway }).max_decoding_message_size(max_bytes);
    let mut routes = Routes::new(chat).add_service(health);
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // What statuses carry: tools then show it in words.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    // The descriptors were made by this build; were they broken, the services would still work.
    if let (Ok(current), Ok(older)) = (described().build_v1(), described().build_v1alpha()) {
        routes = routes.add_service(current).add_service(older);
    }
    routes.prepare().into_axum_router().layer(axum::middleware::map_response(codec_refusals))
}

/// A request that the codec refused, in the gateway's words.
async fn codec_refusals(response: http::Response<axum::body::Body>) -> http::Response<axum::body::Body> {
    match Status::from_header_map(response.headers()).as_ref().and_then(status::of_codec) {
        Some(status) => status.into_http(),
        None => response,
    }
}

/// Whether a request is a gRPC call: all that the gRPC port serves.
pub fn is_call<B>(request: &http::Request<B>) -> bool {
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    request.version() == http::Version::HTTP_2
        && kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The answer to a request that is none.
pub fn not_a_call() -> http::Response<axum::body::Body> {
    let mut response = http::Response::new(axum::body::Body::from(
        "this port speaks gRPC: HTTP/2 with content-type application/grpc; everything else is on the HTTP port\n",
    ));
    *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

async fn report_health(gateway: Arc<Gateway>, reporter: HealthReporter) {
    let mut drain = gateway.drain_watch();
    drop(gateway);
    reporter.set_serving::<ChatServiceServer<Service>>().await;
    while drain.borrow_and_update().is_none() {
        if drain.changed().await.is_err() {
            return;
        }
    }
    reporter.set_not_serving::<ChatServiceServer<Service>>().await;
    // The empty name stands for the whole server.
    reporter.set_service_status("", ServingStatus::NotServing).await;
}

struct Service {
    gateway: Arc<Gateway>,
}

impl Service {
    /// A refusal on its way out, counted.
    fn refused(&self, refusal: Refusal) -> Status {
        status::status(&self.gateway.refused(refusal))
    }

    fn session(&self, id: &str) -> Result<SessionId, Status> {
        frame::session_id(id).map_err(|r| self.refused(r))
    }

    fn turn(&self, id: &str) -> Result<TurnId, Status> {
        frame::turn_id(id).map_err(|r| self.refused(r))
    }
}

fn caller<T>(request: &Request<T>) -> Caller {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    Caller::anonymous(peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip()))
}

type Messages = Pin<Box<dyn Stream<Item = Result<v1::ServerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl ChatService for Service {
    type ChatStream = Messages;
    type SendStream = Messages;
    type ReadStream = Messages;

    async fn chat(&self, request: Request<Streaming<v1::ClientMessage>>) -> Result<Response<Self::ChatStream>, Status> {
        let readers = self.gateway.readers(caller(&request));
        Ok(Response::new(Box::pin(chat::serve(self.gateway.clone(), readers, request.into_inner()))))
    }

    async fn send(&self, request: Request<v1::SendRequest>) -> Result<Response<Self::SendStream>, Status> {
        let mut readers = self.gateway.readers(caller(&request));
        let turn = message::turn(request.into_inner()).map_err(|r| self.refused(r))?;
        let receipt = readers.send(turn).await.map_err(|r| status::status(&r))?;
        Ok(Response::new(Box::pin(read::turn(readers, receipt))))
    }

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let mut readers = self.gateway.readers(caller(&request));
        let v1::ReadRequest { session, after } = request.into_inner();
        let after = if after.is_empty() { "0" } else { &after };
        let after = frame::position(after).map_err(|r| self.refused(r))?;
        readers.resume(self.session(&session)?, after).map_err(|r| status::status(&r))?;
        let resumed = read::resumed(&mut readers).await?;
        let leaving = self.gateway.departure.leaving();
        Ok(Response::new(Box::pin(read::session(self.gateway.clone(), readers, leaving, resumed))))
    }

    async fn get_session(&self, request: Request<v1::GetSessionRequest>) -> Result<Response<v1::Session>, Status> {
        let caller = caller(&request);
        let session = self.session(&request.into_inner().session)?;
        let snapshot = self.gateway.snapshot(&caller, &session).await.map_err(|r| status::status(&r))?;
        Ok(Response::new(message::session(&session, snapshot)))
    }

    async fn cancel_turn(
        &self,
        request: Request<v1::CancelTurnRequest>,
    ) -> Result<Response<v1::CancelTurnResponse>, Status> {
        let caller = caller(&request);
        let v1::CancelTurnRequest { session, turn } = request.into_inner();
        let (session, id) = (self.session(&session)?, self.turn(&turn)?);
        let state = self.gateway.cancel(&caller, &session, &id).await.map_err(|r| status::status(&r))?;
        Ok(Response::new(v1::CancelTurnResponse { turn, state: state.as_str().into() }))
    }

    async fn delete_session(
        &self,
        request: Request<v1::DeleteSessionRequest>,
    ) -> Result<Response<v1::DeleteSessionResponse>, Status> {
        let caller = caller(&request);
        let session = self.session(&request.into_inner().session)?;
        self.gateway.delete(&caller, &session).await.map_err(|r| status::status(&r))?;
        Ok(Response::new(v1::DeleteSessionResponse {}))
    }
}

/// What ends a stream whose session was deleted.
fn gone() -> Status {
    status::error(ErrorCode::NotFound, "the session was deleted")
}
