//! Requests that go to a model server as they are, and whose answers come back as they are.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use chatgateway_core::error::{ErrorCode, Refusal};
use futures_util::FutureExt;
use http::{HeaderName, HeaderValue, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;

use super::{counted::Counted, wire::write_error};
use crate::{
    gateway::Gateway,
    limiter::Account,
    transport::http::{answer, leaving::deadline, problem::Problem},
    upstream::{Forward, ForwardBody},
};

/// Passes a request through. The status waits for the first piece of the answer, so that another model server can still
/// give it.
///
/// # Errors
/// Why no model server answers.
pub async fn pass_through(
    gateway: &Gateway,
    forward: Forward,
    mut account: Option<Account>,
) -> Result<Response, Problem> {
    let stream = forward.stream;
    let upstreams = gateway.upstreams();
    let mut drain = gateway.drain_watch();
    let answer = tokio::select! {
        answer = upstreams.forward(forward) => answer.map_err(|r| {
            account.iter_mut().for_each(Account::call_failed);
            Problem::from(gateway.refused(r))
        })?,
        () = deadline(&mut drain) => return Err(answer::going_away()),
    };
    let (head, body) = answer.into_parts();
    let events = stream && head.status.is_success();
    if !head.status.is_success() {
        account.iter_mut().for_each(Account::call_failed);
    }
    let body = if events {
        let leave = async move { deadline(&mut drain).await }.boxed();
        let account = account.map(|account| Counted::new(account, true));
        Body::new(Passed { body: Some(body), leave, whole_events: true, account })
    } else if let Some(account) = account.filter(|_| head.status.is_success()) {
        // It is whole already: it cannot be stopped, only counted.
        let mut counted = Counted::new(account, false);
        Body::new(body.map_frame(move |frame| {
            counted.read(&frame);
            frame
        }))
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
    /// Its tokens, where they are limited.
    account: Option<Counted>,
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
        let myself = &mut *self;
        let Some(body) = &mut myself.body else { return Poll::Ready(None) };
        if let Some(counted) = myself.account.as_mut().filter(|_| myself.whole_events) {
            if let Poll::Ready(message) = counted.account.poll_stop(cx) {
                return myself.broken(Refusal::new(ErrorCode::RateLimited, message));
            }
            if counted.account.waits() {
                return Poll::Pending;
            }
        }
        match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(counted) = &mut self.account {
                    counted.read(&frame);
                }
                if let Some(data) = frame.data_ref().filter(|data| !data.is_empty()) {
                    self.whole_events = data.ends_with(b"\n\n") || data.ends_with(b"\r\n\r\n");
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(why))) => self.broken(why),
            Poll::Ready(None) => {
                self.body = None;
                self.account = None;
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
