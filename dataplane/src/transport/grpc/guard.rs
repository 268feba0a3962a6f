//! What surrounds the generated services: the bounds of a call, and one way to say what was wrong with a message.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body as AxumBody;
use chatgateway_core::{error::ErrorCode, limits::GRPC_CALL_TIMEOUT};
use chatgateway_proto::v1::chat_service_server::ChatServiceServer;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tonic::{Code, Status, body::Body as GrpcBody};
use tower_service::Service;

use super::{ChatApi, status};
use crate::{gateway::Gateway, leaving::Leaving};

/// `chat.v1.ChatService` within its bounds: the largest message, which may change while the pod runs, and the time until an
/// answer begins.
#[derive(Clone)]
pub(super) struct Guarded {
    gateway: Arc<Gateway>,
    api: Arc<ChatApi>,
}

impl Guarded {
    pub fn new(gateway: Arc<Gateway>, api: ChatApi) -> Self {
        Self { gateway, api: Arc::new(api) }
    }
}

impl Service<Request<AxumBody>> for Guarded {
    type Response = Response<GrpcBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<AxumBody>) -> Self::Future {
        let max = self.gateway.settings().limits.max_message_bytes;
        let mut server = ChatServiceServer::from_arc(self.api.clone()).max_decoding_message_size(max);
        let gateway = self.gateway.clone();
        Box::pin(async move {
            match tokio::time::timeout(GRPC_CALL_TIMEOUT, server.call(request)).await {
                Ok(Ok(response)) => Ok(retold(&gateway, response)),
                Ok(Err(never)) => match never {},
                Err(_) => {
                    let seconds = GRPC_CALL_TIMEOUT.as_secs();
                    let message = format!("the request was not complete within {seconds} s");
                    Ok(status::refused(&gateway, ErrorCode::InvalidRequest, message).into_http())
                }
            }
        })
    }
}

/// The answer, with the codec's own complaint about the request, if it is one, in our terms.
fn retold(gateway: &Gateway, response: Response<GrpcBody>) -> Response<GrpcBody> {
    match complaint(response.headers()) {
        Some(error) => status::not_taken(gateway, error).into_http(),
        None => response,
    }
}

/// A status that stands in the headers: the call was refused before it began. Only those that [`status::not_taken`] might
/// retell are read.
fn complaint(headers: &HeaderMap) -> Option<Status> {
    let code = Code::from_bytes(headers.get(Status::GRPC_STATUS)?.as_bytes());
    matches!(code, Code::OutOfRange | Code::Internal).then(|| Status::from_header_map(headers))?
}

/// A request body that ends when its stream is told to go, as if the client had half-closed: a client that keeps a stream
/// open for questions it may have later does not keep a pod that drains.
pub(super) struct UntilLeaving {
    body: AxumBody,
    leaving: Leaving,
}

impl UntilLeaving {
    pub fn new(body: AxumBody, gateway: &Gateway) -> Self {
        Self { body, leaving: gateway.departure.leaving() }
    }
}

impl Body for UntilLeaving {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.leaving.heard() || self.leaving.poll_told(cx).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.leaving.heard() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
