//! What is common to taking requests: who calls, bodies within their bounds, ids in paths, preferences.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{ConnectInfo, Path, rejection::PathRejection},
};
use chatgateway_core::{
    error::ErrorCode,
    limits::{BODY_STALL, BODY_TIMEOUT, OVERSIZED_READ_ON},
    log::{SessionId, TurnId},
};
use http::{HeaderMap, StatusCode, header, request::Parts};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

use super::problem::Problem;
use crate::{
    gateway::Caller,
    transport::{frame, nesting},
};

/// On whose behalf a request comes. Everything that authenticates belongs here.
pub fn caller(parts: &Parts) -> Caller {
    let address =
        parts.extensions.get::<ConnectInfo<SocketAddr>>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
    Caller::anonymous(address)
}

/// The session that a path names. Its segment is percent-encoded, so an id may hold slashes.
pub fn session_in(path: Result<Path<String>, PathRejection>) -> Result<SessionId, Problem> {
    let Path(session) = path.map_err(bad_path)?;
    Ok(frame::session_id(&session)?)
}

/// The session and the turn that a path names.
pub fn turn_in(path: Result<Path<(String, String)>, PathRejection>) -> Result<(SessionId, TurnId), Problem> {
    let Path((session, turn)) = path.map_err(bad_path)?;
    Ok((frame::session_id(&session)?, frame::turn_id(&turn)?))
}

fn bad_path(rejection: PathRejection) -> Problem {
    Problem::invalid(format!("the path: {}; ids in it must be percent-encoded UTF-8", rejection.body_text()))
}

/// Reads a JSON body: of the right type, within `max` bytes, within time, not nested beyond reason.
pub async fn json_body(parts: &Parts, body: Body, max: usize) -> Result<Bytes, Problem> {
    check_content_type(&parts.headers)?;
    let bytes = whole_body(&parts.headers, body, max).await?;
    if bytes.is_empty() {
        return Err(Problem::invalid("the body is empty; a JSON object is expected"));
    }
    nesting::check("the body", &bytes)?;
    Ok(bytes)
}

/// Takes what is needed from a body; what else it holds is ignored.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|e| Problem::invalid(format!("the body: {e}")))
}

/// Nothing but JSON is taken: a browser then asks before it sends another site's request here.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).map(|v| v.to_str().unwrap_or("?"));
    let essence = given.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    let message = match given {
        Some(given) => format!("content-type is {given}; send JSON with content-type: application/json"),
        None => "content-type is missing; send JSON with content-type: application/json".to_owned(),
    };
    Err(Problem::invalid(message).status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
}

async fn whole_body(headers: &HeaderMap, mut body: Body, max: usize) -> Result<Bytes, Problem> {
    let announced: Option<usize> =
        headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    if announced.is_some_and(|length| length > max) {
        if !headers.contains_key(header::EXPECT) {
            read_on(body).await;
        }
        return Err(too_large(max));
    }
    let deadline = Instant::now() + BODY_TIMEOUT;
    let mut first: Option<Bytes> = None;
    let mut all: Vec<u8> = Vec::new();
    let mut total = 0;
    loop {
        let patience = deadline.min(Instant::now() + BODY_STALL);
        let frame = match timeout_at(patience, body.frame()).await {
            Err(_) => return Err(too_slow()),
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(Problem::invalid("the body ended before it was complete")),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        total += data.len();
        if total > max {
            read_on(body).await;
            return Err(too_large(max));
        }
        match (&first, all.is_empty()) {
            (None, true) => first = Some(data),
            (Some(head), true) => {
                all.reserve(announced.unwrap_or(total).max(total));
                all.extend_from_slice(head);
                all.extend_from_slice(&data);
            }
            _ => all.extend_from_slice(&data),
        }
    }
    Ok(if all.is_empty() { first.unwrap_or_default() } else { all.into() })
}

/// Reads a while what nobody wants, so that the client sees the answer instead of a broken connection.
async fn read_on(mut body: Body) {
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    let _ = timeout(OVERSIZED_READ_ON, rest).await;
}

fn too_large(max: usize) -> Problem {
    Problem::new(ErrorCode::TooLarge, format!("the body is larger than {max} bytes"))
}

fn too_slow() -> Problem {
    let seconds = BODY_STALL.as_secs();
    Problem::invalid(format!("the body came too slowly: nothing for {seconds} s, or too long in all"))
        .status(StatusCode::REQUEST_TIMEOUT)
}

/// What a client would like its answer to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Server-sent events, said in so many words.
    Events,
    /// JSON, said in so many words.
    Json,
    /// Anything.
    Any,
}

/// Reads `Accept`.
pub fn wanted(headers: &HeaderMap) -> Wanted {
    let mut json = false;
    for value in headers.get_all(header::ACCEPT) {
        for range in value.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let refused = parts.any(|p| matches!(p, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"));
            match kind.as_str() {
                "text/event-stream" if !refused => return Wanted::Events,
                "application/json" if !refused => json = true,
                _ => {}
            }
        }
    }
    if json { Wanted::Json } else { Wanted::Any }
}

/// How long the client wants to wait for a JSON answer, by `Prefer: wait=N` (seconds) or `respond-async` (not at all).
pub fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let mut asynchronous = false;
    for value in headers.get_all("prefer") {
        for preference in value.to_str().unwrap_or_default().split([',', ';']) {
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "wait" => {
                    if let Ok(seconds) = value.trim().trim_matches('"').parse() {
                        return Some(Duration::from_secs(seconds));
                    }
                }
                "respond-async" => asynchronous = true,
                _ => {}
            }
        }
    }
    asynchronous.then_some(Duration::ZERO)
}

/// Reads a time such as `25s`, `500ms`, `1m` or `25` (seconds).
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "" | "s" => Some(Duration::from_secs(number)),
        "ms" => Some(Duration::from_millis(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn accept_is_read_by_its_ranges() {
        for (accept, want) in [
            ("*/*", Wanted::Any),
            ("text/event-stream", Wanted::Events),
            ("application/json, text/event-stream;q=0.5", Wanted::Events),
            ("text/event-stream;q=0, application/json", Wanted::Json),
            ("application/json", Wanted::Json),
            ("text/html, */*;q=0.1", Wanted::Any),
        ] {
            assert_eq!(wanted(&headers("accept", accept)), want, "{accept}");
        }
        assert_eq!(wanted(&HeaderMap::new()), Wanted::Any);
    }

    #[test]
    fn preferences_and_times() {
        assert_eq!(preferred_wait(&headers("prefer", "respond-async, wait=7")), Some(Duration::from_secs(7)));
        assert_eq!(preferred_wait(&headers("prefer", "respond-async")), Some(Duration::ZERO));
        assert_eq!(preferred_wait(&headers("prefer", "wait=soon")), None);
        assert_eq!(duration("25s"), Some(Duration::from_secs(25)));
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(duration("3"), Some(Duration::from_secs(3)));
        for wrong in ["", "s", "-1s", "1h", "1.5s", "25 s", "99999999999999999999s"] {
            assert_eq!(duration(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn only_json_is_taken() {
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/vnd.x+json"] {
            assert!(check_content_type(&headers("content-type", good)).is_ok(), "{good}");
        }
        for bad in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
            assert!(check_content_type(&headers("content-type", bad)).is_err(), "{bad}");
        }
        assert!(check_content_type(&HeaderMap::new()).is_err());
    }
}
