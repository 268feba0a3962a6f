//! The beginning of an answer: upstreams are asked one after the other until one says a word. From then on the answer is
//! that one's, and what goes wrong is for the turn's owner to decide: another one would tell the text again.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use chatgateway_config::PromptFormat;
use chatgateway_core::{error::ErrorCode, pool::EndpointId};
use http::{HeaderMap, HeaderValue, header};

use super::{
    Ask, BrokeOff, Kind, Started, Upstream,
    attempts::Attempts,
    batch::{Boarded, Lone, Recipe},
    failure::Failure,
    openai::{self, Completion},
    reading::{Format, Reading},
    server::{Call, Server},
    simple,
};

/// Asks `candidates` in their order. Where the answer broke off before, another endpoint is asked first, if one has room.
pub(super) async fn start(
    candidates: Vec<Arc<Upstream>>,
    ask: Ask,
    own_model: bool,
    broke_off: Option<BrokeOff>,
) -> Result<Started, Failure> {
    let mut failed = Failure::new(ErrorCode::UpstreamUnavailable, "there is no model server".into());
    for upstream in &candidates {
        match start_at(upstream, &ask, own_model, broke_off.as_ref()).await {
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
async fn start_at(
    upstream: &Upstream,
    ask: &Ask,
    own_model: bool,
    broke_off: Option<&BrokeOff>,
) -> Result<Started, Failure> {
    let server = match &upstream.kind {
        Kind::Demo { .. } => {
            let demo = upstream.demo(ask).map(Started::Demo);
            return demo.ok_or_else(|| Failure::unavailable(&upstream.settings.name, "is not there"));
        }
        Kind::OpenAi { server, .. } | Kind::Simple { server, .. } => server,
    };
    let mut attempts = Attempts::new(server).after(broke_off.and_then(|broke_off| broke_off.at(server)));
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
    let Order { call, shared, trim } = match &upstream.kind {
        Kind::Simple { max_tokens, .. } => prompt(ask, *max_tokens),
        Kind::OpenAi { model, prompt_format: Some(format), .. } => text(ask, model, *format, own_model)?,
        Kind::OpenAi { model, .. } => chat(ask, model, own_model)?,
        Kind::Demo { .. } => return Err(Failure::unavailable(&upstream.settings.name, "is not called")),
    };
    let (place, lone) = match (upstream.shares(), shared) {
        // A call that is made again is made alone: another endpoint is to have it.
        (Some(batching), Some((recipe, prompt))) if tried.is_empty() => {
            match batching.board(&call.who, recipe, prompt, trim).await? {
                Boarded::Rides(rider, first) => {
                    return Ok(Started::Batched(server.clone(), rider, first.into()));
                }
                Boarded::Alone(Some(with)) => (with.0, Some(with.1)),
                Boarded::Alone(None) => (server.place(&call.who).await?, None),
            }
        }
        _ => (server.place_elsewhere(&call.who, tried).await?, None),
    };
    let mut opened = server.send(place, &call).await?;
    let format = match upstream.kind {
        Kind::Simple { .. } => Format::Simple(Vec::new()),
        _ => Format::of_stream(&server.name, &opened).map_err(|failure| opened.place.failed(failure))?,
    };
    first(Box::new(Reading::new(Arc::clone(server), format, opened, trim)), lone).await
}

/// Waits for the first word.
async fn first(mut reading: Box<Reading>, lone: Option<Lone>) -> Result<Started, Failure> {
    let event = std::future::poll_fn(|cx| reading.poll_next(cx)).await?;
    if let Some(mut lone) = lone {
        lone.begun();
        reading.keep(lone);
    }
    Ok(Started::Reading(reading, event))
}

/// What is asked of a model server.
struct Order {
    /// The call for this turn alone.
    call: Call,
    /// What it may share with others, and its own part.
    shared: Option<(Recipe, String)>,
    /// Spaces at the beginning of the answer are not its own.
    trim: bool,
}

fn chat(ask: &Ask, model: &str, own_model: bool) -> Result<Order, Failure> {
    let body = openai::request(ask, model).map_err(|what| Failure::request(ErrorCode::InvalidRequest, what))?;
    let call = streamed("/chat/completions", ask, body, own_model);
    Ok(Order { call, shared: None, trim: false })
}

fn text(ask: &Ask, model: &str, format: PromptFormat, own_model: bool) -> Result<Order, Failure> {
    let completion =
        Completion::new(ask, model, format).map_err(|what| Failure::request(ErrorCode::InvalidRequest, what))?;
    let call = streamed("/completions", ask, completion.body(), own_model);
    let recipe = Recipe::turns(&completion, own_model);
    Ok(Order { call, shared: Some((recipe, completion.prompt)), trim: completion.trim })
}

fn streamed(path: &'static str, ask: &Ask, body: Vec<u8>, own_model: bool) -> Call {
    let accept = HeaderValue::from_static("text/event-stream");
    Call {
        path,
        body: body.into(),
        headers: HeaderMap::from_iter([(header::ACCEPT, accept)]),
        who: ask.session.as_str().into(),
        own_model,
        pass_errors: false,
        whole: false,
    }
}

fn prompt(ask: &Ask, max_tokens: u32) -> Order {
    let call = Call {
        path: "/chat",
        body: simple::request(&ask.body.text, max_tokens).into(),
        headers: HeaderMap::new(),
        who: ask.session.as_str().into(),
        own_model: false,
        pass_errors: false,
        whole: true,
    };
    Order { call, shared: Some((Recipe::simple(max_tokens), ask.body.text.to_string())), trim: false }
}
