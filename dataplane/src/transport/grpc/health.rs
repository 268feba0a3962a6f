//! `grpc.health.v1`: serving until the pod drains. Written here because a watcher must not keep a pod that drains: its stream
//! ends when its connection is told to go.

use std::{pin::Pin, sync::Arc, task::Poll};

use chatgateway_core::error::ErrorCode;
use chatgateway_proto::v1::chat_service_server::SERVICE_NAME;
use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

use super::status;
use crate::{
    gateway::{Gateway, draining},
    leaving::Leaving,
};

/// The health of this pod's services.
pub(super) struct PodHealth {
    gateway: Arc<Gateway>,
}

impl PodHealth {
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self { gateway }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

fn pod_status(draining: bool) -> ServingStatus {
    if draining { ServingStatus::NotServing } else { ServingStatus::Serving }
}

/// The empty name stands for the whole server.
fn known(service: &str) -> bool {
    service.is_empty() || service == SERVICE_NAME
}

#[tonic::async_trait]
impl Health for PodHealth {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !known(&request.get_ref().service) {
            let message = format!("this server has no health of its own for that service; ask for {SERVICE_NAME}");
            return Err(status::refused(&self.gateway, ErrorCode::NotFound, message));
        }
        Ok(Response::new(answer(pod_status(self.gateway.draining()))))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watcher = Watcher {
            known: known(&request.get_ref().service),
            drain: self.gateway.drain_watch(),
            leaving: self.gateway.departure.leaving(),
            told: None,
        };
        Ok(Response::new(Box::pin(stream::unfold(watcher, Watcher::next))))
    }
}

struct Watcher {
    known: bool,
    drain: tokio::sync::watch::Receiver<Option<chatgateway_core::drain::DrainPlan>>,
    leaving: Leaving,
    /// What the client was told last.
    told: Option<ServingStatus>,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        loop {
            if self.leaving.heard() {
                return None;
            }
            let draining_now = self.drain.borrow_and_update().is_some();
            let status = if self.known { pod_status(draining_now) } else { ServingStatus::ServiceUnknown };
            if self.told != Some(status) {
                self.told = Some(status);
                return Some((Ok(answer(status)), self));
            }
            let left = {
                let changed = self.drain.changed();
                tokio::pin!(changed);
                std::future::poll_fn(|cx| {
                    if self.leaving.poll_told(cx).is_ready() {
                        return Poll::Ready(true);
                    }
                    changed.as_mut().poll(cx).map(|outcome| outcome.is_err())
                })
                .await
            };
            if left {
                return if self.leaving.heard() { Some((Err(status::status(&draining())), self)) } else { None };
            }
        }
    }
}
