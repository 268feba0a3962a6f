//! Requests that go to a model server as they are, and whose answers come back as they are.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use chatgateway_core::error::Refusal;
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, header};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::wire::write_error;
use crate::{
    gateway::Gateway,
    transport::http::{answer, leaving::deadline, problem::Problem},
    upstream::{Forward, ForwardBody},
};

/// Passes a request through. The status waits for the first piece of the answer, so that another model server can still
/// give it.
///
/// # Errors
/// Why no model server answers.
pub async fn pass_through(gateway: &Gateway, forward: Forward) -> Result<Response, Problem> {
    let stream = forward.stream;
    let upstreams = gateway.upstreams();
    let mut drain = gateway.drain_watch();
    let answer = tokio::select! {
        answer = upstreams.forward(forward) => answer.map_err(|r| Problem::from(gateway.refused(r)))?,
        () = deadline(&mut drain) => return Err(answer::going_away()),
    };
    let (head, body) = answer.into_parts();
    let events = stream && head.status.is_success();
    let body = if events {
        let leave = async move { deadline(&mut drain).await }.boxed();
        Body::new(Passed { body: Some(body), leave, whole_events: true })
    } else {
        Body::new(body)
    };
    let mut response = Response::from_parts(head, body);
    if events {
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    }
    Ok(response)
}

/// A stream that passes through. Where it breaks between two events its client is told why, in the way that OpenAI's
/// clients understand; where it breaks inside one, so does the client's.
struct Passed {
    /// Taken at the end.
    body: Option<ForwardBody>,
    /// Ready when the pod cannot wait any longer.
    leave: futures_util::future::BoxFuture<'static, ()>,
    /// What was sent so far ends with a whole event.
    whole_events: bool,
}

impl Passed {
    fn broken(&mut self, why: Refusal) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        self.body = None;
        if !self.whole_events {
            return Poll::Ready(Some(Err(why)));
        }
        let mut out = Vec::new();
        write_error(&mut out, &Problem::from(why));
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }
}

impl HttpBody for Passed {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref().filter(|data| !data.is_empty()) {
                    self.whole_events = data.ends_with(b"\n\n") || data.ends_with(b"\r\n\r\n");
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(why))) => self.broken(why),
            Poll::Ready(None) => {
                self.body = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                std::task::ready!(self.leave.poll_unpin(cx));
                self.broken(answer::going_away().refusal)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
