//! Model servers, from what is written to what it means.

use std::collections::HashSet;
use std::time::Duration;

use chatgateway_core::limits::settings as bounds;

use crate::check::{Checker, show};
use crate::file;
use crate::parts::{self, Affinity, BatchingMode, UpstreamType};
use crate::resolve::check_name;
use crate::settings::{
    BatchingSettings, BreakerSettings, EndpointSettings, PoolSettings, RetrySettings, TimeoutSettings, UpstreamKind,
    UpstreamSettings,
};
use crate::yaml::join;

pub(crate) fn resolve(c: &mut Checker, raw: &[file::Upstream]) -> Vec<UpstreamSettings> {
    if raw.is_empty() {
        return vec![UpstreamSettings::default()];
    }
    if raw.len() > bounds::UPSTREAMS_MAX {
        c.refuse("upstreams", format!("{} are too many; at most {}", raw.len(), bounds::UPSTREAMS_MAX));
    }
    let mut names = HashSet::new();
    let resolved = raw.iter().take(bounds::UPSTREAMS_MAX).enumerate().map(|(index, raw)| {
        let at = format!("upstreams[{index}]");
        check_name(c, &join(&at, "name"), &raw.name);
        if !raw.name.is_empty() && !names.insert(raw.name.as_str()) {
            c.refuse(join(&at, "name"), format!("`{}` is the name of another upstream", raw.name));
        }
        upstream(c, &at, raw)
    });
    resolved.collect()
}

fn upstream(c: &mut Checker, at: &str, raw: &file::Upstream) -> UpstreamSettings {
    let kind = kind(c, at, raw);
    UpstreamSettings {
        name: raw.name.clone(),
        pool: pool(c, &join(at, "pool"), raw.pool.as_ref()),
        timeouts: timeouts(c, &join(at, "timeouts"), raw.timeouts.as_ref()),
        endpoints: endpoints(c, at, raw),
        breaker: breaker(c, &join(at, "circuitBreaker"), raw.circuit_breaker.as_ref()),
        retries: retries(c, &join(at, "retries"), raw.retries.as_ref()),
        batching: batching(c, &join(at, "batching"), &kind, raw.batching.as_ref()),
        kind,
    }
}

fn endpoints(c: &mut Checker, at: &str, raw: &file::Upstream) -> EndpointSettings {
    let given = [
        ("endpoints", !raw.endpoints.is_empty()),
        ("discovery", raw.discovery.is_some()),
        ("affinity", raw.affinity.is_some_and(|affinity| affinity != Affinity::None)),
    ];
    for (key, given) in given {
        if given && raw.kind == Some(UpstreamType::Demo) {
            c.refuse(join(at, key), "does not fit `type: Demo`, which is built in; remove it or change the type");
        }
    }
    let path = join(at, "endpoints");
    if raw.endpoints.len() > bounds::ENDPOINTS_MAX {
        c.refuse(&path, format!("{} are too many; at most {}", raw.endpoints.len(), bounds::ENDPOINTS_MAX));
    }
    let first = raw.openai.as_ref().map(|openai| &openai.url).or(raw.simple.as_ref().map(|simple| &simple.url));
    let mut seen: HashSet<String> = first.map(|url| url.trim_end_matches('/').to_owned()).into_iter().collect();
    let mut further = Vec::new();
    for (index, url) in raw.endpoints.iter().take(bounds::ENDPOINTS_MAX).enumerate() {
        let url = c.url(at, &format!("endpoints[{index}]"), url);
        if seen.insert(url.clone()) {
            further.push(url);
        } else {
            c.refuse(format!("{path}[{index}]"), format!("`{url}` is there already; write each server once"));
        }
    }
    let session_affinity = raw.affinity == Some(Affinity::Session);
    EndpointSettings { further, discovery: raw.discovery, session_affinity }
}

fn breaker(c: &mut Checker, at: &str, raw: Option<&parts::CircuitBreaker>) -> BreakerSettings {
    let default = BreakerSettings::default();
    let Some(raw) = raw else { return default };
    let window = c.number(at, "slidingWindowSize", raw.sliding_window_size, default.window, &bounds::BREAKER_WINDOW);
    let least = default.min_calls.min(window);
    let min_calls = raw.minimum_number_of_calls;
    let min_calls = c.number(at, "minimumNumberOfCalls", min_calls, least, &bounds::BREAKER_WINDOW);
    if min_calls > window {
        let message = format!("{min_calls} calls are never looked at; `slidingWindowSize` is {window}");
        c.refuse(join(at, "minimumNumberOfCalls"), message);
    }
    let (failures, slow) = (raw.failure_rate_threshold, raw.slow_call_rate_threshold);
    let wait = raw.wait_duration_in_open_state.as_ref();
    let probes = raw.permitted_number_of_calls_in_half_open_state;
    let slow_after = raw.slow_call_duration_threshold.as_ref();
    BreakerSettings {
        window,
        min_calls,
        failure_percent: c.number(at, "failureRateThreshold", failures, default.failure_percent, &bounds::PERCENT),
        open_for: c.duration(at, "waitDurationInOpenState", wait, default.open_for, &bounds::BREAKER_OPEN),
        probes: c.number(at, "permittedNumberOfCallsInHalfOpenState", probes, default.probes, &bounds::BREAKER_PROBES),
        slow_after: slow_after
            .map(|_| c.duration(at, "slowCallDurationThreshold", slow_after, default.open_for, &bounds::CALL_TIMEOUT)),
        slow_percent: c.number(at, "slowCallRateThreshold", slow, default.slow_percent, &bounds::PERCENT),
    }
}

fn retries(c: &mut Checker, at: &str, raw: Option<&parts::Retries>) -> RetrySettings {
    let default = RetrySettings::default();
    let Some(raw) = raw else { return default };
    RetrySettings {
        max_attempts: c.number(at, "maxAttempts", raw.max_attempts, default.max_attempts, &bounds::ATTEMPTS),
        budget_percent: c.number(at, "budgetPercent", raw.budget_percent, default.budget_percent, &bounds::BUDGET),
    }
}

fn batching(c: &mut Checker, at: &str, kind: &UpstreamKind, raw: Option<&parts::Batching>) -> BatchingSettings {
    let takes_arrays =
        matches!(kind, UpstreamKind::Simple { .. } | UpstreamKind::OpenAi { prompt_format: Some(_), .. });
    let default_mode = if takes_arrays { BatchingMode::Adaptive } else { BatchingMode::Off };
    let empty = parts::Batching::default();
    let raw = raw.unwrap_or(&empty);
    let max_size = c.number(at, "maxBatchSize", raw.max_batch_size, 4, &bounds::BATCH_SIZE);
    let delay = raw.max_delay.as_ref();
    let max_delay = c.duration(at, "maxDelay", delay, Duration::from_millis(50), &bounds::BATCH_DELAY);
    let target = raw.first_token_target.as_ref();
    let first_token_target =
        c.duration(at, "firstTokenTarget", target, Duration::from_millis(300), &bounds::CALL_TIMEOUT);
    match raw.mode.unwrap_or(default_mode) {
        BatchingMode::Off => BatchingSettings::Off,
        mode if matches!(kind, UpstreamKind::Demo { .. }) => {
            let message =
                format!("{mode:?} does not fit `type: Demo`, which is built in; remove it or change the type");
            c.refuse(join(at, "mode"), message);
            BatchingSettings::Off
        }
        BatchingMode::Fixed => BatchingSettings::Fixed { max_size, max_delay },
        BatchingMode::Adaptive => BatchingSettings::Adaptive { max_size, max_delay, first_token_target },
    }
}

fn kind(c: &mut Checker, at: &str, raw: &file::Upstream) -> UpstreamKind {
    let sections = [
        (UpstreamType::OpenAI, "openAI", raw.openai.is_some()),
        (UpstreamType::Simple, "simple", raw.simple.is_some()),
        (UpstreamType::Demo, "demo", raw.demo.is_some()),
    ];
    let Some(kind) = raw.kind else {
        c.refuse(join(at, "type"), "is missing; it is OpenAI, Simple or Demo");
        return UpstreamSettings::default().kind;
    };
    for (of, key, given) in sections {
        if given && of != kind {
            c.refuse(join(at, key), format!("does not fit `type: {kind:?}`; remove it or change the type"));
        }
        if !given && of == kind && kind != UpstreamType::Demo {
            c.refuse(join(at, key), format!("is missing; `type: {kind:?}` needs it"));
        }
    }
    match (kind, &raw.openai, &raw.simple) {
        (UpstreamType::OpenAI, Some(openai), _) => open_ai(c, &join(at, "openAI"), openai),
        (UpstreamType::Simple, _, Some(simple)) => {
            let at = join(at, "simple");
            let max_tokens = c.number(&at, "maxTokens", simple.max_tokens, 512, &bounds::ANSWER_TOKENS);
            UpstreamKind::Simple { url: c.url(&at, "url", &simple.url), max_tokens }
        }
        _ => demo(c, &join(at, "demo"), raw.demo.as_ref()),
    }
}

fn open_ai(c: &mut Checker, at: &str, raw: &file::OpenAi) -> UpstreamKind {
    if raw.model.is_empty() || raw.model.len() > 256 || raw.model.chars().any(char::is_control) {
        c.refuse(join(at, "model"), "is missing or no name; write the model's name as the server knows it");
    }
    UpstreamKind::OpenAi {
        url: c.url(at, "url", &raw.url),
        model: raw.model.clone(),
        api_key_file: c.file(at, "apiKeyFile", raw.api_key_file.as_deref()),
        // What continues a prompt continues an answer that ends it, too.
        prefill: raw.prefill.unwrap_or(raw.prompt_format.is_some()),
        prompt_format: raw.prompt_format,
    }
}

fn demo(c: &mut Checker, at: &str, raw: Option<&parts::Demo>) -> UpstreamKind {
    let empty = parts::Demo::default();
    let raw = raw.unwrap_or(&empty);
    let default = Duration::from_millis(30);
    let token_delay = c.duration(at, "tokenDelay", raw.token_delay.as_ref(), default, &bounds::DEMO_TOKEN_DELAY);
    let answer_bytes =
        raw.answer_bytes.map(|_| c.number(at, "answerBytes", raw.answer_bytes, 1, &bounds::DEMO_ANSWER_BYTES));
    UpstreamKind::Demo { token_delay, answer_bytes }
}

fn pool(c: &mut Checker, at: &str, raw: Option<&parts::Pool>) -> PoolSettings {
    let default = PoolSettings::default();
    let Some(raw) = raw else { return default };
    PoolSettings {
        max_concurrent: c.number(
            at,
            "maxConcurrent",
            raw.max_concurrent,
            default.max_concurrent,
            &bounds::POOL_CONCURRENT,
        ),
        max_queued: c.number(at, "maxQueued", raw.max_queued, default.max_queued, &bounds::POOL_QUEUED),
        queue_timeout: c.duration(
            at,
            "queueTimeout",
            raw.queue_timeout.as_ref(),
            default.queue_timeout,
            &bounds::QUEUE_TIMEOUT,
        ),
    }
}

fn timeouts(c: &mut Checker, at: &str, raw: Option<&parts::Timeouts>) -> TimeoutSettings {
    let default = TimeoutSettings::default();
    let Some(raw) = raw else { return default };
    let range = &bounds::CALL_TIMEOUT;
    let timeouts = TimeoutSettings {
        connect: c.duration(at, "connect", raw.connect.as_ref(), default.connect, range),
        first_token: c.duration(at, "firstToken", raw.first_token.as_ref(), default.first_token, range),
        between_tokens: c.duration(at, "betweenTokens", raw.between_tokens.as_ref(), default.between_tokens, range),
        total: c.duration(at, "total", raw.total.as_ref(), default.total, range),
    };
    for (key, step) in [("firstToken", timeouts.first_token), ("betweenTokens", timeouts.between_tokens)] {
        if step > timeouts.total {
            let message = format!("{} is longer than `total`, which is {}", show(step), show(timeouts.total));
            c.refuse(join(at, key), message);
        }
    }
    timeouts
}
