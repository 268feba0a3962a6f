//! The data plane's configuration, from the resource and the place where it is to run.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use chatgateway_api::{
    ChatGatewaySpec, ExternalRedis, RedisStore, SecretKey, Sessions, Store, TLS_CERTIFICATE_KEY, TLS_KEY_KEY, Upstream,
};
use chatgateway_config::file::{self, File};
use chatgateway_config::parts::RedisMode;
use chatgateway_config::{ConfigErrors, Settings};

use crate::validate::Validated;

/// Port of a managed Redis in a cluster.
pub(super) const REDIS_PORT: u16 = 6_379;

/// Key of the Secret with a managed Redis' password in a cluster.
const REDIS_PASSWORD_KEY: &str = "password";

/// What of the configuration depends on where the data plane runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Address to bind.
    pub bind: IpAddr,
    /// Port of WebSocket, HTTP and the page.
    pub http_port: u16,
    /// Port of gRPC.
    pub grpc_port: u16,
    /// Port of health, metrics and drain.
    pub admin_port: u16,
    /// Whether several processes share the HTTP and gRPC ports.
    pub reuse_port: bool,
    /// Where Secrets are: `NAME/KEY` below it.
    pub secrets: PathBuf,
    /// The managed Redis. None: behind the Service and the Secret that a cluster has for it.
    pub managed_redis: Option<ManagedAt>,
    /// What clients are told in `hello`, where anything is to be told.
    pub revision: Option<String>,
}

/// Where a managed Redis is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedAt {
    /// Its address, `host:port`.
    pub endpoint: String,
    /// The file with its password.
    pub password_file: PathBuf,
}

impl Place {
    /// A pod in a cluster.
    #[must_use]
    pub fn cluster() -> Self {
        Self {
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            http_port: 8080,
            grpc_port: 9090,
            admin_port: 8081,
            reuse_port: false,
            secrets: PathBuf::from("/etc/chatgateway/secrets"),
            managed_redis: None,
            revision: None,
        }
    }

    /// The file with one key of a Secret.
    #[must_use]
    pub fn secret_file(&self, secret: &SecretKey) -> PathBuf {
        self.secrets.join(&secret.name).join(&secret.key)
    }

    /// Where the managed Redis of a gateway is.
    fn managed_redis(&self, gateway: &str) -> ManagedAt {
        let in_cluster = || {
            let name = format!("{gateway}-redis");
            let secret = SecretKey { name: name.clone(), key: REDIS_PASSWORD_KEY.to_owned() };
            ManagedAt { endpoint: format!("{name}:{REDIS_PORT}"), password_file: self.secret_file(&secret) }
        };
        self.managed_redis.clone().unwrap_or_else(in_cluster)
    }
}

/// A configuration file to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    /// Its content.
    pub text: String,
    /// What it means, with the hash that the data plane will report.
    pub settings: Settings,
}

/// The data plane's configuration for a gateway in a place.
///
/// # Errors
/// Where the place makes no sense, such as two listeners on one port.
pub fn render(gateway: &Validated, place: &Place) -> Result<Rendered, ConfigErrors> {
    let file = file(gateway.name(), gateway.spec(), place);
    let settings = Settings::resolve(&file)?;
    Ok(Rendered { text: text(&file), settings })
}

/// The content of a configuration file.
fn text(file: &File) -> String {
    // Plain data of named fields and numbers: it always has a YAML form.
    let yaml = serde_saphyr::to_string(file).unwrap_or_default();
    format!(
        "# Written by chatgateway-operator. Edit the ChatGateway instead: what is written here is overwritten.\n{yaml}"
    )
}

/// The configuration of a gateway in a place, unchecked.
pub(crate) fn file(name: &str, spec: &ChatGatewaySpec, place: &Place) -> File {
    File {
        gateway: Some(file::Gateway { name: Some(name.to_owned()), revision: place.revision.clone() }),
        listeners: Some(file::Listeners {
            bind: Some(place.bind.to_string()),
            http_port: Some(place.http_port.into()),
            grpc_port: Some(place.grpc_port.into()),
            admin_port: Some(place.admin_port.into()),
            reuse_port: place.reuse_port.then_some(true),
        }),
        workers: None,
        upstreams: spec.upstreams.iter().map(|raw| upstream(raw, place)).collect(),
        sessions: spec.sessions.as_ref().map(|raw| sessions(name, raw, place)),
        rate_limits: spec.rate_limits.clone(),
        keepalive: spec.keepalive.clone(),
        drain: spec.drain.clone(),
        limits: spec.limits.clone(),
        log: spec.log.clone(),
    }
}

fn upstream(raw: &Upstream, place: &Place) -> file::Upstream {
    let openai = raw.openai.as_ref().map(|openai| file::OpenAi {
        url: openai.url.clone(),
        model: openai.model.clone(),
        api_key_file: openai.api_key_secret_ref.as_ref().map(|key| in_text(place.secret_file(key))),
        prefill: openai.prefill,
        prompt_format: openai.prompt_format,
    });
    file::Upstream {
        name: raw.name.clone(),
        kind: Some(raw.kind),
        openai,
        simple: raw.simple.clone(),
        demo: raw.demo.clone(),
        pool: raw.pool.clone(),
        timeouts: raw.timeouts.clone(),
        circuit_breaker: raw.circuit_breaker.clone(),
        retries: raw.retries.clone(),
        batching: raw.batching.clone(),
        endpoints: raw.endpoints.clone(),
        discovery: raw.discovery,
        affinity: raw.affinity,
    }
}

fn sessions(gateway: &str, raw: &Sessions, place: &Place) -> file::Sessions {
    file::Sessions {
        ttl: raw.ttl.clone(),
        history: raw.history.clone(),
        store: raw.store.as_ref().map(|raw| store(gateway, raw, place)),
    }
}

fn store(gateway: &str, raw: &Store, place: &Place) -> file::Store {
    let redis = raw.redis.as_ref().map(|RedisStore { external, .. }| match external {
        Some(external) => external_redis(external, place),
        None => managed_redis(place.managed_redis(gateway)),
    });
    file::Store { kind: Some(raw.kind), redis }
}

fn managed_redis(at: ManagedAt) -> file::Redis {
    file::Redis {
        mode: Some(RedisMode::Standalone),
        endpoints: vec![at.endpoint],
        primary_name: None,
        auth: Some(file::RedisAuth { username_file: None, password_file: Some(in_text(at.password_file)) }),
        tls: None,
    }
}

fn external_redis(raw: &ExternalRedis, place: &Place) -> file::Redis {
    let in_secret = |name: &str, key: &str| in_text(place.secrets.join(name).join(key));
    let auth = raw.auth.as_ref().map(|auth| {
        let secret = &auth.secret_ref;
        file::RedisAuth {
            username_file: secret.username_key.as_ref().map(|key| in_secret(&secret.name, key)),
            password_file: Some(in_secret(&secret.name, secret.password_key())),
        }
    });
    let tls = raw.tls.as_ref().map(|tls| file::RedisTls {
        ca_file: tls.ca_secret_ref.as_ref().map(|key| in_text(place.secret_file(key))),
        cert_file: tls.client_secret_name.as_ref().map(|name| in_secret(name, TLS_CERTIFICATE_KEY)),
        key_file: tls.client_secret_name.as_ref().map(|name| in_secret(name, TLS_KEY_KEY)),
    });
    file::Redis { mode: raw.mode, endpoints: raw.endpoints.clone(), primary_name: raw.primary_name.clone(), auth, tls }
}

fn in_text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}
