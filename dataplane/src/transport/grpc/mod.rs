//! gRPC, package `chat.v1`, with health and reflection. Served on our own listener, behind hyper: tonic is the codec and the
//! generated router.

mod chat;
mod guard;
mod health;
mod json;
mod message;
mod outbox;
mod parting;
mod read;
mod status;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{Router, extract::ConnectInfo};
use chatgateway_core::{
    error::Refusal,
    limits::GRPC_SMALL_MESSAGE_BYTES,
    log::{SessionId, TurnId},
};
use chatgateway_proto::v1::{
    self,
    chat_service_server::{self, ChatService},
};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};
use tonic_health::pb::{
    FILE_DESCRIPTOR_SET as HEALTH_DESCRIPTORS,
    health_server::{self, HealthServer},
};
use tonic_reflection::server::Builder;
use tower::{ServiceExt, util::MapRequest};

use self::{
    guard::{Guarded, UntilLeaving},
    health::PodHealth,
    outbox::Messages,
};
use crate::{
    gateway::{Caller, Gateway},
    transport::{frame, standing},
};

pub use status::DOMAIN;

/// The contract's name, as `hello` tells it.
pub const PROTOCOL: &str = "chat.v1";

/// The services of the gRPC port.
pub fn router(gateway: Arc<Gateway>) -> Router {
    let chat = Guarded::new(gateway.clone(), ChatApi { gateway: gateway.clone() });
    let health = HealthServer::new(PodHealth::new(gateway.clone())).max_decoding_message_size(GRPC_SMALL_MESSAGE_BYTES);
    let mut router = Router::new()
        .route_service(&every_call_of(chat_service_server::SERVICE_NAME), chat)
        .route_service(&every_call_of(health_server::SERVICE_NAME), health);
    // The descriptors were made by this build; were they broken, the services would still work.
    if let Ok(reflection) = described().build_v1() {
        let reflection = reflection.max_decoding_message_size(GRPC_SMALL_MESSAGE_BYTES);
        router =
            router.route_service("/grpc.reflection.v1.ServerReflection/{call}", until_leaving(&gateway, reflection));
    }
    if let Ok(reflection) = described().build_v1alpha() {
        let reflection = reflection.max_decoding_message_size(GRPC_SMALL_MESSAGE_BYTES);
        let path = "/grpc.reflection.v1alpha.ServerReflection/{call}";
        router = router.route_service(path, until_leaving(&gateway, reflection));
    }
    router.fallback(unknown_service)
}

fn every_call_of(service: &str) -> String {
    format!("/{service}/{{call}}")
}

fn described() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(HEALTH_DESCRIPTORS)
        // What statuses carry: tools then show it in words.
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
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

/// A service whose clients are taken to have asked everything when they are told to go.
fn until_leaving<S>(
    gateway: &Arc<Gateway>,
    service: S,
) -> MapRequest<S, impl FnMut(axum::extract::Request) -> http::Request<tonic::body::Body> + Clone + use<S>>
where
    S: tower_service::Service<http::Request<tonic::body::Body>>,
{
    let gateway = gateway.clone();
    service.map_request(move |request: axum::extract::Request| {
        request.map(|body| tonic::body::Body::new(UntilLeaving::new(body, &gateway)))
    })
}

async fn unknown_service(request: axum::extract::Request) -> axum::response::Response {
    let message = format!("there is no {} here; ask the reflection service what there is", request.uri().path());
    Status::unimplemented(message).into_http()
}

struct ChatApi {
    gateway: Arc<Gateway>,
}

impl ChatApi {
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

#[tonic::async_trait]
impl ChatService for ChatApi {
    type ChatStream = Messages;
    type SendStream = Messages;
    type ReadStream = Messages;

    async fn chat(&self, request: Request<Streaming<v1::ClientMessage>>) -> Result<Response<Self::ChatStream>, Status> {
        let readers = self.gateway.readers(caller(&request));
        Ok(Response::new(chat::serve(self.gateway.clone(), readers, request.into_inner())))
    }

    async fn send(&self, request: Request<v1::SendRequest>) -> Result<Response<Self::SendStream>, Status> {
        let mut readers = self.gateway.readers(caller(&request));
        let turn = message::turn(request.into_inner()).map_err(|r| self.refused(r))?;
        let receipt = readers.send(turn).await.map_err(|r| status::status(&r))?;
        let standings = receipt.standings.clone();
        let told = |metadata: &mut MetadataMap| {
            let mut headers = std::mem::take(metadata).into_headers();
            standings.iter().for_each(|standings| standing::write_headers(&mut headers, standings));
            *metadata = MetadataMap::from_headers(headers);
        };
        match read::turn(&self.gateway, readers, receipt).await {
            Ok(messages) => {
                let mut response = Response::new(messages);
                told(response.metadata_mut());
                Ok(response)
            }
            Err(mut status) => {
                told(status.metadata_mut());
                Err(status)
            }
        }
    }

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let readers = self.gateway.readers(caller(&request));
        let v1::ReadRequest { session, after } = request.into_inner();
        let session = self.session(&session)?;
        let after = message::position(&after).map_err(|r| self.refused(r))?;
        Ok(Response::new(read::session(&self.gateway, readers, session, after).await?))
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
