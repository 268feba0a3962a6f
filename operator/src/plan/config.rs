//! The data plane's configuration, from the resource and the place where it is to run.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use chatgateway_api::{ChatGatewaySpec, ExternalRedis, SecretKey, Sessions, Store, Upstream};
use chatgateway_config::file::{self, File};
use chatgateway_config::{ConfigErrors, Settings};

use crate::validate::Validated;

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
    /// What clients are told in `hello`, where anything is to be told.
    pub revision: Option<String>,
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
            revision: None,
        }
    }

    /// The file with one key of a Secret.
    #[must_use]
    pub fn secret_file(&self, secret: &SecretKey) -> PathBuf {
        self.secrets.join(&secret.name).join(&secret.key)
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
        sessions: spec.sessions.as_ref().map(|raw| sessions(raw, place)),
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
        batching: raw.batching.clone(),
        endpoints: Vec::new(),
        affinity: raw.affinity,
    }
}

fn sessions(raw: &Sessions, place: &Place) -> file::Sessions {
    file::Sessions {
        ttl: raw.ttl.clone(),
        history: raw.history.clone(),
        store: raw.store.as_ref().map(|raw| store(raw, place)),
    }
}

fn store(raw: &Store, place: &Place) -> file::Store {
    let external = raw.redis.as_ref().and_then(|redis| redis.external.as_ref());
    file::Store { kind: Some(raw.kind), redis: external.map(|external| redis(external, place)) }
}

fn redis(raw: &ExternalRedis, place: &Place) -> file::Redis {
    let in_secret = |name: &str, key: &str| in_text(place.secrets.join(name).join(key));
    let auth = raw.auth.as_ref().map(|auth| {
        let secret = &auth.secret_ref;
        let password = secret.password_key.as_deref().unwrap_or("password");
        file::RedisAuth {
            username_file: secret.username_key.as_ref().map(|key| in_secret(&secret.name, key)),
            password_file: Some(in_secret(&secret.name, password)),
        }
    });
    let tls = raw.tls.as_ref().map(|tls| file::RedisTls {
        ca_file: tls.ca_secret_ref.as_ref().map(|key| in_text(place.secret_file(key))),
        cert_file: tls.client_secret_name.as_ref().map(|name| in_secret(name, "tls.crt")),
        key_file: tls.client_secret_name.as_ref().map(|name| in_secret(name, "tls.key")),
    });
    file::Redis { mode: raw.mode, endpoints: raw.endpoints.clone(), primary_name: raw.primary_name.clone(), auth, tls }
}

fn in_text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}
