//! What can go wrong with a model server, and what clients are told of it.

use std::{error::Error as _, time::Duration};

use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limits::{RETRY_AFTER_MAX, UPSTREAM_MESSAGE_MAX_BYTES},
    pool::{Ended, EndpointId},
    queue::{NoRoom, Why},
    retry::WaitHeaders,
    sse::{SseError, SseEvent},
};
use http::{HeaderMap, StatusCode};
use hyper_util::client::legacy;
use serde_json::{Value, value::RawValue};

use super::{UpstreamEvent, connect::ConnectTimeout, deadlines::Late, floor_boundary};
use crate::clock::{self, millis};

/// Why a call came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: ErrorCode,
    pub(super) message: String,
    pub(super) retry_after_ms: Option<u64>,
    /// Whether another model server may do better; not where the request itself is at fault.
    pub(super) elsewhere: bool,
    /// The endpoint that was called, if one was.
    pub(super) endpoint: Option<EndpointId>,
    /// Whether no endpoint can have got the call: there was no connection.
    pub(super) unsent: bool,
}

impl Failure {
    pub(super) fn new(code: ErrorCode, message: String) -> Self {
        Self { code, message, retry_after_ms: None, elsewhere: true, endpoint: None, unsent: false }
    }

    /// The request is wrong, for whatever model server.
    pub(super) fn request(code: ErrorCode, message: String) -> Self {
        Self { elsewhere: false, ..Self::new(code, message) }
    }

    /// The model server cannot be reached, or said something that is no answer.
    pub(super) fn unavailable(name: &str, what: &str) -> Self {
        Self::new(ErrorCode::UpstreamUnavailable, format!("the model server {name} {what}"))
    }

    /// A timeout of the model server has passed.
    pub(super) fn timeout(name: &str, Late { what, timeout }: Late) -> Self {
        let message = format!("the model server {name} {what} within {} ms", timeout.as_millis());
        Self::new(ErrorCode::UpstreamTimeout, message)
    }

    /// There is no place at the model server.
    pub(super) fn no_room(name: &str, no_room: NoRoom) -> Self {
        let (code, message) = match no_room.why {
            Why::Closed => (ErrorCode::CircuitOpen, format!("the model server {name} failed too often of late")),
            Why::TimedOut => (ErrorCode::Overloaded, format!("waited too long for the model server {name}")),
            Why::Full | Why::TooSlow | Why::PushedOut => {
                (ErrorCode::Overloaded, format!("too many wait for the model server {name}"))
            }
        };
        let retry_after_ms = Some(millis(no_room.retry_after));
        Self { retry_after_ms, ..Self::new(code, format!("{message}; try again later")) }
    }

    /// What the failure says about the endpoint that was called.
    pub(super) fn ended(&self) -> Ended {
        match self.code {
            ErrorCode::RateLimited => Ended::Busy(self.retry_after_ms.map(Duration::from_millis)),
            _ if self.is_servers() => Ended::Failed,
            _ => Ended::Otherwise,
        }
    }

    /// Whether the model server is at fault: it cannot be reached, is too late, breaks off or answers with an error of its
    /// own. What is wrong with the request is the client's, a model that only the client knows as well.
    fn is_servers(&self) -> bool {
        self.elsewhere && self.code != ErrorCode::NotFound
    }

    /// Whether the same call is worth another attempt.
    pub(super) fn is_worth_another(&self) -> bool {
        self.endpoint.is_some() && self.is_servers()
    }

    /// A call failed before its answer began.
    pub(super) fn call(name: &str, error: &legacy::Error) -> Self {
        let mut cause = error.source();
        let mut last = error.to_string();
        while let Some(error) = cause {
            if let Some(timeout) = error.downcast_ref::<ConnectTimeout>() {
                let failure = Self::new(ErrorCode::UpstreamTimeout, format!("the model server {name} gave {timeout}"));
                return Self { unsent: true, ..failure };
            }
            last = error.to_string();
            cause = error.source();
        }
        let what = if error.is_connect() { "cannot be reached" } else { "broke the connection before its answer" };
        Self { unsent: error.is_connect(), ..Self::unavailable(name, &format!("{what}: {}", excerpt(&last))) }
    }

    /// The model server refused the call. `own_model`: the client chose the model.
    pub(super) fn status(name: &str, status: StatusCode, headers: &HeaderMap, body: &[u8], own_model: bool) -> Self {
        let said = said(body).map_or_else(String::new, |text| format!(": {text}"));
        let retry_after_ms = wait_ms(headers, status);
        let failure = |code, elsewhere| {
            let message = format!("the model server {name} answered HTTP {}{said}", status.as_u16());
            Self { retry_after_ms, elsewhere, ..Self::new(code, message) }
        };
        match status.as_u16() {
            400 | 405..=407 | 409..=412 | 414..=428 | 430..=499 => failure(ErrorCode::InvalidRequest, false),
            413 => failure(ErrorCode::TooLarge, false),
            404 if own_model => failure(ErrorCode::NotFound, true),
            // What the server says of a key that it does not accept is nothing for clients.
            401 | 403 => Self::unavailable(name, &format!("does not accept the gateway's credentials (HTTP {status})")),
            408 | 504 => failure(ErrorCode::UpstreamTimeout, true),
            429 => failure(ErrorCode::RateLimited, true),
            503 if retry_after_ms.is_some() => failure(ErrorCode::Overloaded, true),
            _ => failure(ErrorCode::UpstreamUnavailable, true),
        }
    }

    /// The answer's body cannot be read on.
    pub(super) fn broken(name: &str, error: &hyper::Error) -> Self {
        let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        Self::unavailable(name, &format!("broke the connection in the middle of its answer: {}", excerpt(&cause)))
    }

    /// The answer's body has ended, and the answer has not.
    pub(super) fn incomplete(name: &str) -> Self {
        Self::unavailable(name, "ended its answer before it was complete (no finish reason and no [DONE])")
    }

    /// The answer is not what a stream of events may be.
    pub(super) fn unreadable(name: &str, error: SseError) -> Self {
        Self::unavailable(name, &format!("sent what cannot be read: {error}"))
    }

    /// The error that an event of a stream is by its type. One that is written as a field is told with the chunk it stands in.
    pub(super) fn event(name: &str, event: &SseEvent<'_>) -> Option<Self> {
        let is_error = event.event == "error" && !event.data.contains("\"error\"");
        let error = || serde_json::from_str(event.data).unwrap_or_else(|_| Value::from(event.data));
        is_error.then(|| Self::told(name, &error()))
    }

    /// The error in a field of an answer, where there is one.
    pub(super) fn field(name: &str, error: Option<&RawValue>) -> Option<Self> {
        let error = error.filter(|error| error.get() != "null")?;
        Some(Self::told(name, &serde_json::from_str(error.get()).unwrap_or_default()))
    }

    /// The model server told an error in the middle of its answer: an OpenAI error object, or only its text.
    pub(super) fn told(name: &str, error: &Value) -> Self {
        let text = error_text(error).map_or_else(|| excerpt(&error.to_string()), |text| excerpt(&text));
        let number = ["code", "status"].iter().find_map(|field| error.get(field)?.as_u64());
        let client_fault = number.is_some_and(|number| [400, 413, 422].contains(&number));
        let message = format!("the model server {name} broke its answer off: {text}");
        let code = if client_fault { ErrorCode::InvalidRequest } else { ErrorCode::UpstreamUnavailable };
        Self { elsewhere: !client_fault, ..Self::new(code, message) }
    }
}

impl From<Failure> for UpstreamEvent {
    fn from(failure: Failure) -> Self {
        let Failure { code, message, retry_after_ms, .. } = failure;
        Self::Failed { code, message, retry_after_ms }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let refusal = Self::new(failure.code, failure.message);
        Self { retry_after_ms: failure.retry_after_ms, ..refusal }
    }
}

/// When the model server wants to be asked again, at most as long as clients are told. Its rate limits' headers say so only
/// where it refused the call: else they tell of a limit that holds nobody up.
fn wait_ms(headers: &HeaderMap, status: StatusCode) -> Option<u64> {
    let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    let limit =
        |left, reset| if status == StatusCode::TOO_MANY_REQUESTS { (text(left), text(reset)) } else { (None, None) };
    let headers = WaitHeaders {
        retry_after_ms: text("retry-after-ms"),
        retry_after: text("retry-after"),
        requests: limit("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
        tokens: limit("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    };
    headers.read(clock::wall()).map(|wait| millis(wait.min(RETRY_AFTER_MAX)))
}

/// What an error answer says, if it says it in a known way. HTML is nothing for a chat.
fn said(body: &[u8]) -> Option<String> {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => error_text(&value).map(|text| excerpt(&text)),
        Err(_) => {
            let text = std::str::from_utf8(body).ok()?.trim();
            (!text.is_empty() && !text.starts_with('<')).then(|| excerpt(text))
        }
    }
}

/// The message in the error objects that model servers send.
fn error_text(value: &Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    ["error", "message", "detail"].iter().find_map(|field| error_text(value.get(field)?))
}

/// A model server's words, fit for a message: bounded, in one line.
pub(super) fn excerpt(text: &str) -> String {
    let cut = floor_boundary(text, UPSTREAM_MESSAGE_MAX_BYTES);
    let mut short: String = text[..cut].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if cut < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16, headers: &[(&'static str, &str)], body: &str) -> Failure {
        let headers = headers.iter().map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap())).collect();
        Failure::status("m", StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes(), false)
    }

    #[test]
    fn a_status_becomes_the_code_that_says_whose_fault_it_is() {
        for (number, code, elsewhere) in [
            (400, ErrorCode::InvalidRequest, false),
            (401, ErrorCode::UpstreamUnavailable, true),
            (404, ErrorCode::UpstreamUnavailable, true),
            (408, ErrorCode::UpstreamTimeout, true),
            (413, ErrorCode::TooLarge, false),
            (422, ErrorCode::InvalidRequest, false),
            (429, ErrorCode::RateLimited, true),
            (500, ErrorCode::UpstreamUnavailable, true),
            (503, ErrorCode::UpstreamUnavailable, true),
            (302, ErrorCode::UpstreamUnavailable, true),
        ] {
            let failure = status(number, &[], "");
            assert_eq!((failure.code, failure.elsewhere), (code, elsewhere), "{number}");
        }
        let own = Failure::status("m", StatusCode::NOT_FOUND, &HeaderMap::new(), b"", true);
        assert_eq!(own.code, ErrorCode::NotFound);
    }

    #[test]
    fn the_servers_own_words_are_told_in_bounds() {
        let told = |body: &str| status(400, &[], body).message;
        let head = "the model server m answered HTTP 400";
        assert_eq!(told(r#"{"error":{"message":"too\nlong"}}"#), format!("{head}: too long"));
        assert_eq!(told(r#"{"error":"no"}"#), format!("{head}: no"));
        assert_eq!(told(r#"{"object":"error","message":"no"}"#), format!("{head}: no"));
        assert_eq!(told("plain words"), format!("{head}: plain words"));
        assert_eq!(told("<html>Bad Gateway</html>"), head);
        assert_eq!(told(&"ä".repeat(5_000)), format!("{head}: {}…", "ä".repeat(256)));
        let secret = status(401, &[], r#"{"error":{"message":"Incorrect API key: sk-abc"}}"#);
        assert!(!secret.message.contains("sk-abc"));
    }

    #[test]
    fn retry_after_is_honoured_up_to_a_bound() {
        assert_eq!(status(429, &[("retry-after", "7")], "").retry_after_ms, Some(7_000));
        assert_eq!(status(429, &[("retry-after-ms", "250"), ("retry-after", "1")], "").retry_after_ms, Some(250));
        assert_eq!(status(429, &[("retry-after", "86400")], "").retry_after_ms, Some(30_000));
        assert_eq!(status(429, &[("retry-after", "-1")], "").retry_after_ms, None);
        let busy = status(503, &[("retry-after", "2")], "");
        assert_eq!((busy.code, busy.retry_after_ms), (ErrorCode::Overloaded, Some(2_000)));
    }

    #[test]
    fn an_error_in_the_stream_names_its_cause() {
        let error = serde_json::json!({"message": "out of memory", "code": 500});
        let failure = Failure::told("m", &error);
        assert_eq!(failure.code, ErrorCode::UpstreamUnavailable);
        assert_eq!(failure.message, "the model server m broke its answer off: out of memory");
        let fault = Failure::told("m", &serde_json::json!({"message": "prompt too long", "code": 400}));
        assert_eq!((fault.code, fault.elsewhere), (ErrorCode::InvalidRequest, false));
    }
}
