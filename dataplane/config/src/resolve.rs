//! From a configuration as it is written to the settings it means.

use std::net::IpAddr;

use chatgateway_core::limits::settings as bounds;

use crate::check::{Checker, show};
use crate::error::ConfigErrors;
use crate::file::{self, File};
use crate::parts::{self, StoreType};
use crate::settings::{
    DrainSettings, GatewaySettings, KeepaliveSettings, LimitSettings, ListenerSettings, LogSettings, SessionSettings,
    Settings, StoreSettings,
};
use crate::yaml::join;
use crate::{rate_limits, redis, upstreams};

/// Checks a whole file.
pub(crate) fn resolve(file: &File) -> Result<Settings, ConfigErrors> {
    let mut c = Checker::default();
    let settings = Settings {
        gateway: gateway(&mut c, file.gateway.as_ref()),
        listeners: listeners(&mut c, file.listeners.as_ref()),
        workers: workers(&mut c, file.workers),
        upstreams: upstreams::resolve(&mut c, &file.upstreams),
        sessions: sessions(&mut c, file.sessions.as_ref()),
        rate_limits: rate_limits::resolve(&mut c, &file.rate_limits),
        keepalive: keepalive(&mut c, file.keepalive.as_ref()),
        drain: drain(&mut c, file.drain.as_ref()),
        limits: limits(&mut c, file.limits.as_ref()),
        log: log(file.log.as_ref()),
        hash: String::new(),
    };
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
pub(crate) fn check_name(c: &mut Checker, path: &str, name: &str) {
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
