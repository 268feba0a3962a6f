//! Requests whose answer is ready before their body has come. Over HTTP/2 the answer then waits a moment for the rest: a
//! request that turns out to be broken is refused as one, and not answered first.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use chatgateway_core::limits::UNREAD_BODY_WAIT;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// What of a request's body nobody wanted.
pub struct Unread(Arc<Mutex<Option<Incoming>>>);

/// A body that is handed back when it is dropped before its end.
struct Watched {
    body: Option<Incoming>,
    unread: Arc<Mutex<Option<Incoming>>>,
}

/// The request for its handler, and what the handler leaves of its body.
pub fn watch(request: Request<Incoming>) -> (Request<Body>, Option<Unread>) {
    if request.body().is_end_stream() {
        return (request.map(Body::new), None);
    }
    let unread = Arc::new(Mutex::new(None));
    let request = request.map(|body| Body::new(Watched { body: Some(body), unread: unread.clone() }));
    (request, Some(Unread(unread)))
}

impl Unread {
    /// Reads what is left, for a moment. A broken request is reset by the HTTP/2 connection itself.
    pub async fn read_on(self) {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut body) = left else { return };
        let rest = async { while let Some(Ok(_)) = body.frame().await {} };
        let _ = tokio::time::timeout(UNREAD_BODY_WAIT, rest).await;
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.unread.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}
