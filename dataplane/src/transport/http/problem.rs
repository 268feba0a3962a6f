//! One way from a refusal to an HTTP answer, for both families of paths: `application/problem+json` on native ones,
//! OpenAI's error object on OpenAI's.

use std::time::Duration;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limiter::verdict::Standings,
    limits::RETRY_AFTER_DEFAULT,
    log::{InvalidId, SessionId, TurnId},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::{clock::millis, transport::standing::write_headers};

/// Tells OpenAI's clients not to send a request again, whatever its status.
const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// What went wrong with one HTTP request.
#[derive(Debug)]
pub struct Problem {
    /// Code, message, and when to try again.
    pub refusal: Refusal,
    /// Where HTTP has a closer word than the code's own status.
    status: Option<StatusCode>,
    about: Option<Box<(SessionId, Option<TurnId>)>>,
    /// The request's field that is wrong, for OpenAI's clients.
    param: Option<&'static str>,
    /// The very same request can never succeed, although the code in general may.
    last_word: bool,
}

impl Problem {
    /// A problem with a message for a person.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::from(Refusal::new(code, message))
    }

    /// A request that is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// The same under another HTTP status: 405, 408 and 415 have no code of their own and go with `invalid_request`.
    pub fn status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    /// The same, naming what it is about.
    pub fn about(mut self, session: &SessionId, turn: Option<&TurnId>) -> Self {
        self.about = Some(Box::new((session.clone(), turn.cloned())));
        self
    }

    /// The same, naming the field that is wrong.
    pub fn param(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    /// The same, final: a turn that failed stays failed, a new attempt needs a new id.
    pub fn last_word(mut self) -> Self {
        self.last_word = true;
        self
    }

    /// The same, not final: whoever tries again does not mean that very turn.
    pub fn not_last_word(mut self) -> Self {
        self.last_word = false;
        self
    }

    fn http_status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| {
            StatusCode::from_u16(self.refusal.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
        })
    }

    fn retryable(&self) -> bool {
        self.refusal.code.retryable() && !self.last_word
    }

    /// When to try again: always told with 429 and 503.
    fn retry_after(&self) -> Option<Duration> {
        let told = self.refusal.retry_after_ms.map(Duration::from_millis);
        let status = self.http_status();
        let always = status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE;
        told.or(always.then_some(RETRY_AFTER_DEFAULT))
    }

    /// OpenAI's error object, as it stands in bodies and in streams.
    pub fn openai_object(&self) -> OpenAiError<'_> {
        OpenAiError {
            error: OpenAiErrorBody {
                message: &self.refusal.message,
                kind: openai_type(self.refusal.code),
                param: self.param,
                code: self.refusal.code.as_str(),
            },
        }
    }

    /// The answer on OpenAI's paths.
    pub fn into_openai(self) -> Response {
        let mut headers = self.headers("application/json");
        if !self.retryable() {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        answer(self.http_status(), headers, &self.openai_object())
    }

    fn headers(&self, content_type: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(wait) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_millis().div_ceil(1_000) as u64));
        }
        if let Some(standings) = &self.refusal.standings {
            write_headers(&mut headers, standings);
        }
        headers
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, status: None, about: None, param: None, last_word: false }
    }
}

impl From<InvalidId> for Problem {
    fn from(e: InvalidId) -> Self {
        Self::invalid(e.to_string())
    }
}

impl IntoResponse for Problem {
    /// The answer on native paths.
    fn into_response(self) -> Response {
        let status = self.http_status();
        let code = self.refusal.code;
        let body = ProblemJson {
            kind: format!("tag:chatgateway.dev,2026:{}", code.as_str()),
            title: title(code),
            status: status.as_u16(),
            detail: &self.refusal.message,
            code: code.as_str(),
            retryable: self.retryable(),
            retry_after_ms: self.retry_after().map(millis),
            expected: self.refusal.expected,
            session: self.about.as_ref().map(|about| about.0.as_str()),
            turn: self.about.as_ref().and_then(|about| about.1.as_ref()).map(TurnId::as_str),
        };
        answer(status, self.headers("application/problem+json"), &body)
    }
}

fn answer(status: StatusCode, headers: HeaderMap, body: &impl Serialize) -> Response {
    // Numbers and text always serialize.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// An answer, good or bad, that tells how the rate limits stand.
///
/// # Errors
/// Those of the answer.
pub fn with_standings<E: AsMut<Problem>>(
    answer: Result<Response, E>,
    standings: Option<&Standings>,
) -> Result<Response, E> {
    let Some(standings) = standings else { return answer };
    match answer {
        Ok(mut response) => {
            write_headers(response.headers_mut(), standings);
            Ok(response)
        }
        Err(mut problem) => {
            problem.as_mut().refusal.standings.get_or_insert_with(|| Box::new(*standings));
            Err(problem)
        }
    }
}

impl AsMut<Problem> for Problem {
    fn as_mut(&mut self) -> &mut Problem {
        self
    }
}

impl AsMut<Problem> for OpenAiProblem {
    fn as_mut(&mut self) -> &mut Problem {
        &mut self.0
    }
}

/// A problem on one of OpenAI's paths.
#[derive(Debug)]
pub struct OpenAiProblem(pub Problem);

impl<T: Into<Problem>> From<T> for OpenAiProblem {
    fn from(problem: T) -> Self {
        Self(problem.into())
    }
}

impl IntoResponse for OpenAiProblem {
    fn into_response(self) -> Response {
        self.0.into_openai()
    }
}

#[derive(Serialize)]
struct ProblemJson<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    retryable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    turn: Option<&'a str>,
}

/// OpenAI's error object.
#[derive(Serialize)]
pub struct OpenAiError<'a> {
    error: OpenAiErrorBody<'a>,
}

#[derive(Serialize)]
struct OpenAiErrorBody<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'static str>,
    code: &'static str,
}

/// What OpenAI's clients find under `type`.
fn openai_type(code: ErrorCode) -> &'static str {
    match code.http_status() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

/// A line for people, the same for every problem of one code.
fn title(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidRequest => "The request is wrong",
        ErrorCode::Unauthenticated => "Credentials are missing or wrong",
        ErrorCode::PermissionDenied => "Not allowed",
        ErrorCode::NotFound => "Not found",
        ErrorCode::TurnConflict => "The turn's id was used with another text",
        ErrorCode::SeqGap => "seq is not the next one",
        ErrorCode::NotResumable => "The log no longer reaches back to that position",
        ErrorCode::TooLarge => "Too large",
        ErrorCode::RateLimited => "Rate limit reached",
        ErrorCode::SessionBusy => "Too many turns wait in this session",
        ErrorCode::Overloaded => "No room at present",
        ErrorCode::Draining => "This pod is going away",
        ErrorCode::StoreUnavailable => "The session store does not answer",
        ErrorCode::CircuitOpen => "The model server failed too often of late",
        ErrorCode::UpstreamUnavailable => "The model server did not answer",
        ErrorCode::UpstreamTimeout => "The model server was too slow",
        ErrorCode::Internal => "A fault of the gateway",
    }
}
