//! From a configuration as it is written to the settings it means.

use std::collections::HashSet;
use std::net::IpAddr;

use chatgateway_core::limits::settings as bounds;

use crate::check::{Checker, show};
use crate::error::ConfigErrors;
use crate::file::{self, File};
use crate::parts::{self, Affinity, BatchingMode, StoreType, UpstreamType};
use crate::redis;
use crate::settings::{
    DrainSettings, GatewaySettings, KeepaliveSettings, LimitSettings, ListenerSettings, LogSettings, PoolSettings,
    SessionSettings, Settings, StoreSettings, TimeoutSettings, UpstreamKind, UpstreamSettings,
};
use crate::yaml::join;

/// Checks a whole file.
pub(crate) fn resolve(file: &File) -> Result<Settings, ConfigErrors> {
    let mut c = Checker::default();
    let settings = Settings {
        gateway: gateway(&mut c, file.gateway.as_ref()),
        listeners: listeners(&mut c, file.listeners.as_ref()),
        workers: workers(&mut c, file.workers),
        upstreams: upstreams(&mut c, &file.upstreams),
        sessions: sessions(&mut c, file.sessions.as_ref()),
        keepalive: keepalive(&mut c, file.keepalive.as_ref()),
        drain: drain(&mut c, file.drain.as_ref()),
        limits: limits(&mut c, file.limits.as_ref()),
        log: log(file.log.as_ref()),
        hash: String::new(),
    };
    if !file.rate_limits.is_empty() {
        c.unavailable("rateLimits", "rate limits are", "remove them");
    }
    let violations = c.into_violations();
    if violations.is_empty() { Ok(settings.hashed()) } else { Err(ConfigErrors::from(violations)) }
}

fn gateway(c: &mut Checker, raw: Option<&file::Gateway>) -> GatewaySettings {
    let default = GatewaySettings::default();
    let Some(raw) = raw else { return default };
    let name = raw.name.clone().unwrap_or(default.name);
    check_name(c, "gateway.name", &name);
    let revision = raw.revision.clone().unwrap_or(default.revision);
    let plain = revision.chars().all(|ch| ch.is_ascii_alphanumeric() || matches!(ch, '-' | '_' | '.'));
    if revision.is_empty() || revision.len() > bounds::NAME_MAX_BYTES || !plain {
        c.refuse("gateway.revision", "must be 1 to 63 letters, digits, `-`, `_` or `.`");
    }
    GatewaySettings { name, revision }
}

/// A DNS label: names become parts of object names and metric labels.
fn check_name(c: &mut Checker, path: &str, name: &str) {
    if name.is_empty() {
        return c.refuse(path, "is missing; give it a short name");
    }
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !plain || name.starts_with('-') || name.ends_with('-') || name.len() > bounds::NAME_MAX_BYTES {
        let rule = "must be 1 to 63 lower-case letters, digits or `-`, with no `-` at either end";
        c.refuse(path, format!("`{name}` is no name; it {rule}"));
    }
}

fn listeners(c: &mut Checker, raw: Option<&file::Listeners>) -> ListenerSettings {
    let default = ListenerSettings::default();
    let Some(raw) = raw else { return default };
    let at = "listeners";
    let bind = match raw.bind.as_deref().map(str::parse::<IpAddr>) {
        None => default.bind,
        Some(Ok(address)) => address,
        Some(Err(_)) => {
            c.refuse("listeners.bind", "must be an IP address, such as 127.0.0.1, 0.0.0.0 or ::");
            default.bind
        }
    };
    let http_port = c.number(at, "httpPort", raw.http_port, default.http_port, &bounds::PORT);
    let grpc_port = c.number(at, "grpcPort", raw.grpc_port, default.grpc_port, &bounds::PORT);
    let admin_port = c.number(at, "adminPort", raw.admin_port, default.admin_port, &bounds::PORT);
    for (key, port, others) in
        [("grpcPort", grpc_port, &[http_port][..]), ("adminPort", admin_port, &[http_port, grpc_port][..])]
    {
        if port != 0 && others.contains(&port) {
            c.refuse(join(at, key), format!("{port} is the port of another listener"));
        }
    }
    let reuse_port = raw.reuse_port.unwrap_or(default.reuse_port);
    ListenerSettings { bind, http_port, grpc_port, admin_port, reuse_port }
}

fn workers(c: &mut Checker, raw: Option<i32>) -> Option<usize> {
    raw.map(|_| c.number("", "workers", raw, 1, &bounds::WORKERS))
}

fn upstreams(c: &mut Checker, raw: &[file::Upstream]) -> Vec<UpstreamSettings> {
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
    if raw.circuit_breaker.is_some() {
        c.unavailable(join(at, "circuitBreaker"), "circuit breakers are", "remove it");
    }
    if let Some(batching) = &raw.batching {
        match batching.mode {
            None | Some(BatchingMode::Off) => {}
            Some(mode) => c.unavailable(join(at, "batching.mode"), &format!("{mode:?} is"), "use Off"),
        }
    }
    if !raw.endpoints.is_empty() {
        c.unavailable(join(at, "endpoints"), "several endpoints are", "give one url");
    }
    if raw.affinity.is_some_and(|affinity| affinity != Affinity::None) {
        c.unavailable(join(at, "affinity"), "Session is", "use None");
    }
    UpstreamSettings {
        name: raw.name.clone(),
        kind: kind(c, at, raw),
        pool: pool(c, &join(at, "pool"), raw.pool.as_ref()),
        timeouts: timeouts(c, &join(at, "timeouts"), raw.timeouts.as_ref()),
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
        prefill: raw.prefill.unwrap_or(false),
    }
}

fn demo(c: &mut Checker, at: &str, raw: Option<&parts::Demo>) -> UpstreamKind {
    let empty = parts::Demo::default();
    let raw = raw.unwrap_or(&empty);
    let default = std::time::Duration::from_millis(30);
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

fn sessions(c: &mut Checker, raw: Option<&file::Sessions>) -> SessionSettings {
    let default = SessionSettings::default();
    let Some(raw) = raw else { return default };
    let max_turns = raw.history.as_ref().and_then(|history| history.max_turns);
    SessionSettings {
        ttl: c.duration("sessions", "ttl", raw.ttl.as_ref(), default.ttl, &bounds::SESSION_TTL),
        max_turns: c.number("sessions.history", "maxTurns", max_turns, default.max_turns, &bounds::HISTORY_TURNS),
        store: store(c, "sessions.store", raw.store.as_ref()),
    }
}

fn store(c: &mut Checker, at: &str, raw: Option<&file::Store>) -> StoreSettings {
    let Some(raw) = raw else { return StoreSettings::Memory };
    let at_redis = join(at, "redis");
    match (raw.kind.unwrap_or(StoreType::Memory), &raw.redis) {
        (StoreType::Redis, Some(redis)) => return StoreSettings::Redis(redis::resolve(c, &at_redis, redis)),
        (StoreType::Redis, None) => c.refuse(at_redis, "is missing; `type: Redis` needs it"),
        (StoreType::Memory, Some(_)) => {
            c.refuse(at_redis, "does not fit `type: Memory`; remove it or change the type");
        }
        (StoreType::Memory, None) => {}
    }
    StoreSettings::Memory
}

fn keepalive(c: &mut Checker, raw: Option<&parts::Keepalive>) -> KeepaliveSettings {
    let default = KeepaliveSettings::default();
    let Some(raw) = raw else { return default };
    let at = "keepalive";
    KeepaliveSettings {
        ping_interval: c.duration(
            at,
            "pingInterval",
            raw.ping_interval.as_ref(),
            default.ping_interval,
            &bounds::PING_INTERVAL,
        ),
        pong_timeout: c.duration(
            at,
            "pongTimeout",
            raw.pong_timeout.as_ref(),
            default.pong_timeout,
            &bounds::PONG_TIMEOUT,
        ),
        tcp_keepalive: c.duration(
            at,
            "tcpKeepalive",
            raw.tcp_keepalive.as_ref(),
            default.tcp_keepalive,
            &bounds::TCP_KEEPALIVE,
        ),
    }
}

fn drain(c: &mut Checker, raw: Option<&parts::Drain>) -> DrainSettings {
    let default = DrainSettings::default();
    let Some(raw) = raw else { return default };
    let (at, range) = ("drain", &bounds::DRAIN);
    let drain = DrainSettings {
        accept_floor: c.duration(at, "acceptFloor", raw.accept_floor.as_ref(), default.accept_floor, range),
        reconnect_spread: c.duration(
            at,
            "reconnectSpread",
            raw.reconnect_spread.as_ref(),
            default.reconnect_spread,
            range,
        ),
        timeout: c.duration(at, "timeout", raw.timeout.as_ref(), default.timeout, range),
    };
    let needed = drain.accept_floor + drain.reconnect_spread;
    if needed > drain.timeout {
        let message = format!(
            "{} is too short; `acceptFloor` and `reconnectSpread` take {} together",
            show(drain.timeout),
            show(needed)
        );
        c.refuse("drain.timeout", message);
    }
    drain
}

fn limits(c: &mut Checker, raw: Option<&parts::Limits>) -> LimitSettings {
    let default = LimitSettings::default();
    let Some(raw) = raw else { return default };
    let at = "limits";
    let message = raw.max_message_bytes;
    let limits = LimitSettings {
        max_message_bytes: c.number(at, "maxMessageBytes", message, default.max_message_bytes, &bounds::MESSAGE_BYTES),
        max_body_bytes: c.number(at, "maxBodyBytes", raw.max_body_bytes, default.max_body_bytes, &bounds::BODY_BYTES),
        max_connections: c.number(
            at,
            "maxConnections",
            raw.max_connections,
            default.max_connections,
            &bounds::CONNECTIONS,
        ),
        max_streams_per_connection: c.number(
            at,
            "maxStreamsPerConnection",
            raw.max_streams_per_connection,
            default.max_streams_per_connection,
            &bounds::STREAMS,
        ),
        header_timeout: c.duration(
            at,
            "headerTimeout",
            raw.header_timeout.as_ref(),
            default.header_timeout,
            &bounds::HEADER_TIMEOUT,
        ),
        allowed_origins: raw.allowed_origins.iter().map(|origin| origin.to_ascii_lowercase()).collect(),
    };
    if raw.allowed_origins.len() > bounds::ORIGINS_MAX {
        c.refuse("limits.allowedOrigins", format!("at most {} are possible; `*` allows any", bounds::ORIGINS_MAX));
    }
    for (index, origin) in raw.allowed_origins.iter().enumerate() {
        if origin != "*" && !is_origin(origin) {
            let path = format!("limits.allowedOrigins[{index}]");
            c.refuse(path, format!("`{origin}` is no origin; write https://HOST, https://HOST:PORT or `*`"));
        }
    }
    limits
}

/// Whether a text is `scheme://host` or `scheme://host:port` and nothing more.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let plain =
        authority.parse::<http::uri::Authority>().is_ok_and(|a| a.as_str() == authority && !a.host().is_empty());
    matches!(scheme, "http" | "https") && plain && !authority.contains('@')
}

fn log(raw: Option<&parts::Log>) -> LogSettings {
    let default = LogSettings::default();
    let Some(raw) = raw else { return default };
    LogSettings { level: raw.level.unwrap_or(default.level), format: raw.format.unwrap_or(default.format) }
}
