//! Which other sites' pages may use the gateway from a browser: those that are configured, and no other.
//!
//! Bodies must be JSON, so a browser asks before it sends any other site's request that changes something.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::gateway::Gateway;

/// Headers of answers that pages may read.
const EXPOSED: &str = "location, preference-applied, retry-after, x-request-id, x-session-id, x-should-retry, \
                       x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
                       x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";

/// How long a browser keeps the answer to its question, in seconds.
const MAX_AGE: &str = "600";

/// Answers `OPTIONS`, and marks the answers that an allowed site's page may read.
pub async fn layer(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let allowed = allowed_origin(request.headers(), &gateway.settings().limits.allowed_origins);
    let asks = request.method() == Method::OPTIONS;
    let preflight = asks && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        preflight_answer(request.headers(), allowed.is_some())
    } else {
        let mut response = next.run(request).await;
        if asks && response.status() == StatusCode::METHOD_NOT_ALLOWED {
            // The path exists, and `Allow` is in place: that is the answer to OPTIONS.
            let allow = response.headers_mut().remove(header::ALLOW);
            response = StatusCode::NO_CONTENT.into_response();
            if let Some(allow) = allow {
                response.headers_mut().insert(header::ALLOW, allow);
            }
        }
        response
    };
    if let Some(origin) = allowed {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// The request's origin, if it is one of `origins` (`*` stands for all).
fn allowed_origin(headers: &HeaderMap, origins: &[String]) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let listed = origins.iter().any(|o| o == "*" || o.as_bytes().eq_ignore_ascii_case(origin.as_bytes()));
    listed.then(|| origin.clone())
}

fn preflight_answer(asked: &HeaderMap, allowed: bool) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    if allowed {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_origins_are_allowed() {
        let mut headers = HeaderMap::new();
        assert_eq!(allowed_origin(&headers, &["*".into()]), None);
        headers.insert(header::ORIGIN, HeaderValue::from_static("https://chat.example"));
        let origin = Some(HeaderValue::from_static("https://chat.example"));
        assert_eq!(allowed_origin(&headers, &["https://Chat.example".into()]), origin);
        assert_eq!(allowed_origin(&headers, &["*".into()]), origin);
        assert_eq!(allowed_origin(&headers, &[]), None);
        assert_eq!(allowed_origin(&headers, &["https://chat.example.evil".into(), "chat.example".into()]), None);
    }
}
