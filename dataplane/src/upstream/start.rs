//! The beginning of an answer: upstreams are asked one after the other until one says a word. From then on the answer is
//! that one's, and what goes wrong is for the turn's owner to decide: another one would tell the text again.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use chatgateway_core::{error::ErrorCode, pool::EndpointId};
use http::{HeaderMap, HeaderValue, header};

use super::{
    Ask, Kind, Started, Upstream,
    attempts::Attempts,
    failure::Failure,
    openai,
    reading::{Format, Reading},
    server::{Call, Server},
    simple,
};

/// Asks `candidates` in their order.
pub(super) async fn start(candidates: Vec<Arc<Upstream>>, ask: Ask, own_model: bool) -> Result<Started, Failure> {
    let mut failed = Failure::new(ErrorCode::UpstreamUnavailable, "there is no model server".into());
    for upstream in &candidates {
        match start_at(upstream, &ask, own_model).await {
            Ok(started) => return Ok(started),
            Err(failure) => {
                upstream.counters.failures.fetch_add(1, Relaxed);
                tracing::debug!(upstream = upstream.settings.name, "{}", failure.message);
                if !failure.elsewhere {
                    return Err(failure);
                }
                failed = failure;
            }
        }
    }
    Err(failed)
}

/// Asks one upstream, and its endpoints again as long as that makes sense.
async fn start_at(upstream: &Upstream, ask: &Ask, own_model: bool) -> Result<Started, Failure> {
    let server = match &upstream.kind {
        Kind::Demo { .. } => {
            let demo = upstream.demo(ask).map(Started::Demo);
            return demo.ok_or_else(|| Failure::unavailable(&upstream.settings.name, "is not there"));
        }
        Kind::OpenAi { server, .. } | Kind::Simple { server, .. } => server,
    };
    let mut attempts = Attempts::new(server);
    loop {
        match start_one(upstream, server, ask, own_model, attempts.tried()).await {
            Ok(started) => {
                attempts.answered();
                return Ok(started);
            }
            Err(failure) => attempts.failed(failure).await?,
        }
    }
}

/// One call, at another endpoint than those that were `tried` where one has room.
async fn start_one(
    upstream: &Upstream,
    server: &Arc<Server>,
    ask: &Ask,
    own_model: bool,
    tried: &[EndpointId],
) -> Result<Started, Failure> {
    let call = match &upstream.kind {
        Kind::Simple { max_tokens, .. } => prompt(ask, *max_tokens),
        Kind::OpenAi { model, .. } => chat(ask, model, own_model)?,
        Kind::Demo { .. } => return Err(Failure::unavailable(&upstream.settings.name, "is not called")),
    };
    let place = server.place_elsewhere(&call.who, tried).await?;
    let mut opened = server.send(place, &call).await?;
    let format = match upstream.kind {
        Kind::Simple { .. } => Format::Simple(Vec::new()),
        _ => Format::of_stream(&server.name, &opened).map_err(|failure| opened.place.failed(failure))?,
    };
    first(Box::new(Reading::new(Arc::clone(server), format, opened))).await
}

/// Waits for the first word.
async fn first(mut reading: Box<Reading>) -> Result<Started, Failure> {
    let event = std::future::poll_fn(|cx| reading.poll_next(cx)).await?;
    Ok(Started::Reading(reading, event))
}

fn chat(ask: &Ask, model: &str, own_model: bool) -> Result<Call, Failure> {
    let body = openai::request(ask, model).map_err(|what| Failure::request(ErrorCode::InvalidRequest, what))?;
    let accept = HeaderValue::from_static("text/event-stream");
    Ok(Call {
        path: "/chat/completions",
        body: body.into(),
        headers: HeaderMap::from_iter([(header::ACCEPT, accept)]),
        who: ask.session.as_str().into(),
        own_model,
        pass_errors: false,
        whole: false,
    })
}

fn prompt(ask: &Ask, max_tokens: u32) -> Call {
    Call {
        path: "/chat",
        body: simple::request(&ask.body.text, max_tokens).into(),
        headers: HeaderMap::new(),
        who: ask.session.as_str().into(),
        own_model: false,
        pass_errors: false,
        whole: true,
    }
}
