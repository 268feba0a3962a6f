//! From a Redis as it is written to the settings it means.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use chatgateway_core::limits::settings as bounds;

use crate::check::Checker;
use crate::file;
use crate::parts::RedisMode;
use crate::settings::{Endpoint, RedisSettings, RedisTlsSettings};
use crate::yaml::join;

/// How an endpoint is written.
const ENDPOINT_FORM: &str = "write HOST:PORT, such as redis.example.com:6379 or [::1]:6379";

/// Checks where Redis is, and how it is reached.
pub(crate) fn resolve(c: &mut Checker, at: &str, raw: &file::Redis) -> RedisSettings {
    let mode = raw.mode.unwrap_or(RedisMode::Standalone);
    let (username_file, password_file) = auth(c, &join(at, "auth"), raw.auth.as_ref());
    RedisSettings {
        mode,
        endpoints: endpoints(c, &join(at, "endpoints"), mode, &raw.endpoints),
        primary_name: primary_name(c, &join(at, "primaryName"), mode, raw.primary_name.as_deref()),
        username_file,
        password_file,
        tls: raw.tls.as_ref().map(|raw| tls(c, &join(at, "tls"), raw)),
    }
}

fn endpoints(c: &mut Checker, at: &str, mode: RedisMode, raw: &[String]) -> Vec<Endpoint> {
    let whose = match mode {
        RedisMode::Standalone => "the server's address",
        RedisMode::Sentinel => "the sentinels' addresses",
        RedisMode::Cluster => "addresses of some of the cluster's nodes",
    };
    if raw.is_empty() {
        c.refuse(at, format!("is missing; give {whose}: {ENDPOINT_FORM}"));
    }
    if raw.len() > bounds::REDIS_ENDPOINTS_MAX {
        let most = bounds::REDIS_ENDPOINTS_MAX;
        c.refuse(at, format!("{} are too many; give at most {most}, the others are found through them", raw.len()));
    } else if mode == RedisMode::Standalone && raw.len() > 1 {
        let instead = "several need `mode: Sentinel` or `mode: Cluster`";
        c.refuse(at, format!("{} are too many; `mode: Standalone` has one server, {instead}", raw.len()));
    }
    let mut seen = HashSet::new();
    let mut endpoints = Vec::new();
    for (index, text) in raw.iter().take(bounds::REDIS_ENDPOINTS_MAX).enumerate() {
        let path = format!("{at}[{index}]");
        match endpoint(text) {
            Ok(endpoint) if seen.insert(endpoint.clone()) => endpoints.push(endpoint),
            Ok(_) => c.refuse(path, format!("`{text}` is there twice; remove one")),
            Err(message) => c.refuse(path, message),
        }
    }
    endpoints
}

/// Reads `host:port`. The text of what may hold a password is not repeated.
fn endpoint(text: &str) -> Result<Endpoint, String> {
    if text.contains("://") {
        let rest = "`tls` and `auth` say what else the URL says";
        return Err(format!("is a URL; {ENDPOINT_FORM}, and {rest}"));
    }
    if text.contains('@') {
        return Err(format!("holds a user or a password; {ENDPOINT_FORM}, and give them with `auth`"));
    }
    if text.contains([',', ' ']) {
        return Err(format!("`{text}` is more than one address; {ENDPOINT_FORM}, each in an element of its own"));
    }
    if text.parse::<Ipv6Addr>().is_ok() || (text.matches(':').count() > 1 && !text.starts_with('[')) {
        return Err(format!("`{text}` is an IPv6 address without brackets; {ENDPOINT_FORM}"));
    }
    let Some((host, port)) = text.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) else {
        return Err(format!("`{text}` has no port; {ENDPOINT_FORM}"));
    };
    let port = match port.parse::<u16>() {
        Ok(number) if number > 0 && port.bytes().all(|byte| byte.is_ascii_digit()) => number,
        _ => return Err(format!("`{port}` is no port: it is 1 to 65535; {ENDPOINT_FORM}")),
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good = match address {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => is_host(host),
    };
    if !good {
        return Err(format!("`{host}` is no name of a server and no IP address; {ENDPOINT_FORM}"));
    }
    Ok(Endpoint { host: address.unwrap_or(host).to_ascii_lowercase(), port })
}

/// Whether a text is an IPv4 address or a DNS name, also one with underscores or a dot at its end.
fn is_host(text: &str) -> bool {
    let only_numbers = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if only_numbers {
        return text.parse::<Ipv4Addr>().is_ok();
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        plain && (1..=bounds::NAME_MAX_BYTES).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= bounds::HOST_MAX_BYTES && name.split('.').all(is_label)
}

fn primary_name(c: &mut Checker, at: &str, mode: RedisMode, raw: Option<&str>) -> Option<String> {
    match (mode, raw) {
        (RedisMode::Sentinel, None) => {
            c.refuse(at, "is missing; `mode: Sentinel` needs the name that the sentinels have for the primary");
        }
        (RedisMode::Sentinel, Some(name)) => {
            let wrong = |ch: char| ch.is_whitespace() || ch.is_control();
            if name.is_empty() || name.len() > bounds::HOST_MAX_BYTES || name.contains(wrong) {
                let most = bounds::HOST_MAX_BYTES;
                c.refuse(
                    at,
                    format!("is no name; write 1 to {most} characters without spaces, as the sentinels have it"),
                );
            }
        }
        (_, Some(_)) => c.refuse(at, format!("does not fit `mode: {mode:?}`; remove it or use `mode: Sentinel`")),
        (_, None) => {}
    }
    raw.map(str::to_owned)
}

fn auth(c: &mut Checker, at: &str, raw: Option<&file::RedisAuth>) -> (Option<PathBuf>, Option<PathBuf>) {
    let Some(raw) = raw else { return (None, None) };
    match (&raw.username_file, &raw.password_file) {
        (_, Some(_)) => {}
        (Some(_), None) => c.refuse(join(at, "passwordFile"), "is missing; `usernameFile` needs it"),
        (None, None) => c.refuse(at, "is empty; give `passwordFile`, or remove it where Redis asks for no password"),
    }
    let username_file = c.file(at, "usernameFile", raw.username_file.as_deref());
    (username_file, c.file(at, "passwordFile", raw.password_file.as_deref()))
}

fn tls(c: &mut Checker, at: &str, raw: &file::RedisTls) -> RedisTlsSettings {
    let ca_file = c.file(at, "caFile", raw.ca_file.as_deref());
    let certificate = c.file(at, "certFile", raw.cert_file.as_deref());
    let key = c.file(at, "keyFile", raw.key_file.as_deref());
    match (&certificate, &key) {
        (Some(_), None) => c.refuse(join(at, "keyFile"), "is missing; `certFile` needs the key of its certificate"),
        (None, Some(_)) => c.refuse(join(at, "certFile"), "is missing; `keyFile` needs the certificate of its key"),
        _ => {}
    }
    RedisTlsSettings { ca_file, identity: certificate.zip(key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_names_and_addresses_with_a_port() {
        for (text, host, port) in [
            ("redis:6379", "redis", 6_379),
            ("Redis-0.redis.chat.svc.cluster.local.:1", "redis-0.redis.chat.svc.cluster.local.", 1),
            ("my_redis:65535", "my_redis", 65_535),
            ("127.0.0.1:6379", "127.0.0.1", 6_379),
            ("[::1]:6379", "::1", 6_379),
            ("[2001:DB8::7]:26379", "2001:db8::7", 26_379),
        ] {
            assert_eq!(endpoint(text), Ok(Endpoint { host: host.to_owned(), port }), "{text}");
        }
    }

    #[test]
    fn what_is_no_endpoint_is_told_apart() {
        let long = format!("{}:1", ["a"; 200].join("."));
        for (text, part) in [
            ("redis", "`redis` has no port; write HOST:PORT"),
            ("[::1]", "`[::1]` has no port"),
            ("", "`` has no port"),
            ("redis:", "`` is no port"),
            ("redis:0", "`0` is no port"),
            ("redis:+1", "`+1` is no port"),
            ("redis:65536", "`65536` is no port"),
            ("redis:6379/0", "`6379/0` is no port"),
            (":6379", "`` is no name of a server"),
            ("300.0.0.1:6379", "`300.0.0.1` is no name of a server"),
            ("a..b:6379", "`a..b` is no name"),
            ("-a:6379", "`-a` is no name"),
            ("a/b:6379", "`a/b` is no name"),
            (&long, "is no name of a server"),
            ("[1.2.3.4]:6379", "`[1.2.3.4]` is no name"),
            ("::1", "`::1` is an IPv6 address without brackets"),
            ("fe80::1:6379", "`fe80::1:6379` is an IPv6 address without brackets"),
            ("redis:1, redis:2", "`redis:1, redis:2` is more than one address"),
        ] {
            let message = endpoint(text).expect_err(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn passwords_are_not_repeated() {
        for text in ["redis://user:hunter2@h:1", "rediss://:hunter2@h:1", "user:hunter2@h:1"] {
            let message = endpoint(text).expect_err(text);
            assert!(!message.contains("hunter2") && message.contains("auth"), "{message}");
        }
    }
}
