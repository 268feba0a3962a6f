//! The HTTP listener's routes: turns and sessions as resources, their logs as server-sent events or by long polling, and
//! OpenAI's API.
//!
//! Errors are `application/problem+json`, and OpenAI's error object on OpenAI's paths, with the codes of one table. Two
//! things have no code of their own and go with `invalid_request` under a closer status: a method that a path does not
//! have (405), and a body that is not JSON (415) or comes too slowly (408).

mod answer;
mod cors;
mod events;
mod leaving;
mod openai;
mod problem;
mod request;
mod sessions;
mod sse;
mod turns;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    middleware,
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use chatgateway_core::error::{ErrorCode, Refusal};
use http::StatusCode;

use self::problem::Problem;
use crate::gateway::Gateway;

/// A refusal as an HTTP answer, for what is refused outside of these routes.
#[must_use]
pub fn problem(refusal: &Refusal) -> impl IntoResponse + use<> {
    Problem::from(refusal.clone())
}

/// Every HTTP route but `/ws` and the chat page.
pub fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/v1/sessions/{session}", get(sessions::get_session).delete(sessions::delete_session))
        .route("/v1/sessions/{session}/events", get(events::get_events))
        .route("/v1/sessions/{session}/turns", post(turns::post_turn))
        .route("/v1/sessions/{session}/turns/{turn}/cancel", post(sessions::cancel_turn))
        .route("/chat.Stream/chat", post(turns::chat))
        .route("/v1/chat/completions", post(openai::chat_completions))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/models", get(openai::list_models))
        .route("/v1/models/{*model}", get(openai::get_model))
        .route("/v1", any(unknown_path))
        .route("/v1/{*path}", any(unknown_path))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(gateway.clone(), cors::layer))
        .with_state(gateway)
}

/// An answer in the form of the family of paths that the request is for.
fn in_the_form_of(path: &str, problem: Problem) -> Response {
    let native = path == "/v1/sessions" || path.starts_with("/v1/sessions/") || !path.starts_with("/v1");
    if native { problem.into_response() } else { problem.into_openai() }
}

async fn unknown_path(request: Request) -> Response {
    let path = request.uri().path();
    in_the_form_of(path, Problem::new(ErrorCode::NotFound, format!("there is nothing at {path}")))
}

/// The answer says in `Allow` what the path takes.
async fn wrong_method(request: Request) -> Response {
    let message = format!("{} does not take {}; see the Allow header", request.uri().path(), request.method());
    in_the_form_of(request.uri().path(), Problem::invalid(message).status(StatusCode::METHOD_NOT_ALLOWED))
}
