//! The settings: what a configuration means, checked, with units and defaults.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::ConfigErrors;
use crate::file::File;
use crate::parts::{Discovery, LimitPer, LogFormat, LogLevel, OnStoreFailure, PromptFormat, RedisMode};
use crate::{resolve, yaml};

/// Everything the data plane is told. Cheap to share behind an `Arc`; never changed in place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Who this gateway is.
    pub gateway: GatewaySettings,
    /// Where it listens.
    pub listeners: ListenerSettings,
    /// Worker threads; none: one per core.
    pub workers: Option<usize>,
    /// Model servers, the preferred one first; at least one.
    pub upstreams: Vec<UpstreamSettings>,
    /// Sessions.
    pub sessions: SessionSettings,
    /// Rate limits. A turn must pass all of them.
    pub rate_limits: Vec<RateLimitSettings>,
    /// How dead connections are found.
    pub keepalive: KeepaliveSettings,
    /// How the pod leaves.
    pub drain: DrainSettings,
    /// What clients may take.
    pub limits: LimitSettings,
    /// What is logged.
    pub log: LogSettings,
    /// SHA-256 of all of the above, in hex. Two texts that mean the same have the same.
    #[serde(skip)]
    pub hash: String,
}

/// Who this gateway is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GatewaySettings {
    /// Its name.
    pub name: String,
    /// What of it runs, as told to clients in `hello`.
    pub revision: String,
}

/// Where the gateway listens. Port 0 takes any free one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListenerSettings {
    /// Address to bind.
    pub bind: IpAddr,
    /// WebSocket, SSE, REST, OpenAI API, the chat page.
    pub http_port: u16,
    /// gRPC.
    pub grpc_port: u16,
    /// Health, metrics, status, drain.
    pub admin_port: u16,
    /// Whether several processes share the HTTP and gRPC ports.
    pub reuse_port: bool,
}

/// One model server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UpstreamSettings {
    /// Its name in logs, metrics and messages.
    pub name: String,
    /// What it speaks, and where.
    pub kind: UpstreamKind,
    /// How many calls at once, and who waits.
    pub pool: PoolSettings,
    /// How long each step may take.
    pub timeouts: TimeoutSettings,
    /// Equal servers, and how a call finds its own. Means nothing with [`UpstreamKind::Demo`], as the rest does.
    pub endpoints: EndpointSettings,
    /// When calls of an endpoint are stopped for a while.
    pub breaker: BreakerSettings,
    /// Which calls are made again.
    pub retries: RetrySettings,
    /// How turns become one call.
    pub batching: BatchingSettings,
}

/// Equal servers behind one upstream, and how a call finds its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EndpointSettings {
    /// Base URLs beside that of the upstream, without a slash at their ends.
    pub further: Vec<String>,
    /// What the host of a URL stands for. None: each address is an endpoint where the URL is `http`, and the host where it is
    /// `https`.
    pub discovery: Option<Discovery>,
    /// Whether the turns of a session go to the same endpoint while that has room.
    pub session_affinity: bool,
}

/// When calls of an endpoint are stopped for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BreakerSettings {
    /// Calls that are looked at.
    pub window: usize,
    /// Calls before it judges; at most the window.
    pub min_calls: usize,
    /// Percentage of failures at which it opens.
    pub failure_percent: u32,
    /// How long it stays open before it probes.
    pub open_for: Duration,
    /// Calls that probe.
    pub probes: usize,
    /// From which time to the first token on a call is slow.
    pub slow_after: Option<Duration>,
    /// Percentage of slow calls at which it opens.
    pub slow_percent: u32,
}

/// Which calls are made again before their first token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RetrySettings {
    /// Calls of one turn at one upstream, the first included.
    pub max_attempts: u32,
    /// Further attempts by first ones, in percent.
    pub budget_percent: u32,
}

/// How turns become one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum BatchingSettings {
    /// One turn, one call.
    Off,
    /// A full batch or a delay, whichever comes first.
    Fixed {
        /// Turns of one batch.
        max_size: usize,
        /// How long a turn waits for others.
        max_delay: Duration,
    },
    /// Gather only while the model server has no room.
    Adaptive {
        /// Turns of one batch at most.
        max_size: usize,
        /// How long a batch may be held back at most while there is room.
        max_delay: Duration,
        /// The time to the first token that 99 of 100 turns are to keep.
        first_token_target: Duration,
    },
}

/// One rate limit: a bucket for each of those that it is `per`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RateLimitSettings {
    /// Who shares a bucket.
    pub per: LimitPer,
    /// What is counted.
    pub unit: LimitUnit,
    /// How many of them come into the bucket each minute.
    pub per_minute: u64,
    /// How many a full bucket holds.
    pub burst: u64,
    /// What happens while the store is away.
    pub on_store_failure: OnStoreFailure,
}

/// What a rate limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum LimitUnit {
    /// Turns, and stateless requests.
    Requests,
    /// Tokens of prompts and answers.
    Tokens,
}

/// What a model server speaks, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum UpstreamKind {
    /// An OpenAI-compatible server.
    OpenAi {
        /// Its base URL with the version, without a slash at the end.
        url: String,
        /// The model that is asked for.
        model: String,
        /// A file with the API key.
        api_key_file: Option<PathBuf>,
        /// Whether it continues a partial answer that ends the messages.
        prefill: bool,
        /// Asks `/completions` for turns, with prompts in this format.
        prompt_format: Option<PromptFormat>,
    },
    /// A server with `POST /chat`.
    Simple {
        /// Its base URL, without a slash at the end.
        url: String,
        /// The `max_tokens` of each request.
        max_tokens: u32,
    },
    /// The built-in one.
    Demo {
        /// Time between two tokens.
        token_delay: Duration,
        /// The exact size of answers, where given.
        answer_bytes: Option<usize>,
    },
}

/// How many calls an upstream gets at once, and who waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolSettings {
    /// Calls at once of one endpoint.
    pub max_concurrent: usize,
    /// Turns that wait for a call.
    pub max_queued: usize,
    /// How long a turn waits at most.
    pub queue_timeout: Duration,
}

/// How long each step of a call may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TimeoutSettings {
    /// Until the connection is made.
    pub connect: Duration,
    /// From the request to the first token.
    pub first_token: Duration,
    /// From one token to the next.
    pub between_tokens: Duration,
    /// The whole call.
    pub total: Duration,
}

/// Sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionSettings {
    /// How long a session outlives its last turn.
    pub ttl: Duration,
    /// Ended turns that are kept for the next prompt.
    pub max_turns: usize,
    /// Where they are kept.
    pub store: StoreSettings,
}

/// Where sessions are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum StoreSettings {
    /// In the process.
    Memory,
    /// In Redis.
    Redis(RedisSettings),
}

/// A Redis, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RedisSettings {
    /// How it is set up.
    pub mode: RedisMode,
    /// Addresses: of the server, of sentinels, or of some nodes of the cluster. At least one.
    pub endpoints: Vec<Endpoint>,
    /// The name under which sentinels know the primary. With [`RedisMode::Sentinel`] and only there.
    pub primary_name: Option<String>,
    /// A file with the user's name. None: the default user.
    pub username_file: Option<PathBuf>,
    /// A file with the password. Read at each new connection, and again when it changes. None: no authentication.
    pub password_file: Option<PathBuf>,
    /// How connections are secured. None: not at all.
    pub tls: Option<RedisTlsSettings>,
}

/// An address, not yet resolved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Endpoint {
    /// A name or an IP address (IPv6 without brackets).
    pub host: String,
    /// The port.
    pub port: u16,
}

/// How connections to Redis are secured. The files are read at each new connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RedisTlsSettings {
    /// A file with the certificates that are trusted (PEM). None: the public authorities.
    pub ca_file: Option<PathBuf>,
    /// Files with the gateway's certificate and its key (PEM), where the server asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How dead connections are found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeepaliveSettings {
    /// How often a silent client is pinged.
    pub ping_interval: Duration,
    /// How long its pong may take.
    pub pong_timeout: Duration,
    /// When TCP starts to probe a silent connection.
    pub tcp_keepalive: Duration,
}

/// How a pod leaves. All from the start of the drain; the first two together fit into the third.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DrainSettings {
    /// How long new clients are still taken.
    pub accept_floor: Duration,
    /// Over which time, after that, clients are told to reconnect.
    pub reconnect_spread: Duration,
    /// When what is left is closed.
    pub timeout: Duration,
}

/// What one client and all together may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitSettings {
    /// Largest message from a client: a WebSocket message or a gRPC message.
    pub max_message_bytes: usize,
    /// Largest body of an HTTP request.
    pub max_body_bytes: usize,
    /// Client connections of this pod.
    pub max_connections: usize,
    /// HTTP/2 streams at once in one connection.
    pub max_streams_per_connection: u32,
    /// How long the head of a request may take.
    pub header_timeout: Duration,
    /// Origins of web pages that may use the gateway, beside its own: `scheme://host[:port]` in lower case.
    /// `*` alone: any.
    pub allowed_origins: Vec<String>,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogSettings {
    /// From which severity on.
    pub level: LogLevel,
    /// How lines look.
    pub format: LogFormat,
}

impl Settings {
    /// Reads and checks a configuration file. An empty one is the default.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its path, line and column.
    pub fn parse(text: &str) -> Result<Self, ConfigErrors> {
        let blank = text.lines().all(|line| matches!(line.trim().chars().next(), None | Some('#')));
        let text = if blank { "{}" } else { text };
        let (file, positions) = yaml::read::<File>(text)?;
        Self::resolve(&file).map_err(|errors| positions.locate(errors))
    }

    /// Checks a configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its path.
    pub fn resolve(file: &File) -> Result<Self, ConfigErrors> {
        resolve::resolve(file)
    }

    /// Worker threads to start: those that are set, or one per core.
    #[must_use]
    pub fn worker_threads(&self) -> usize {
        self.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// SHA-256 of what a running process cannot take over, in hex: where it differs, processes must be replaced.
    #[must_use]
    pub fn cold_hash(&self) -> String {
        let parts: serde_json::Map<_, _> = cold(self).into_iter().map(|(name, part)| (name.to_owned(), part)).collect();
        hex(&Sha256::digest(Value::Object(parts).to_string()))
    }

    /// The settings with the hash of what they are.
    #[must_use]
    pub(crate) fn hashed(mut self) -> Self {
        // Plain data of named fields: it always has a JSON form.
        let canonical = serde_json::to_vec(&self).unwrap_or_default();
        self.hash = hex(&Sha256::digest(&canonical));
        self
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Default for Settings {
    /// The built-in upstream on the embedded store.
    fn default() -> Self {
        let settings = Self {
            gateway: GatewaySettings::default(),
            listeners: ListenerSettings::default(),
            workers: None,
            upstreams: vec![UpstreamSettings::default()],
            sessions: SessionSettings::default(),
            rate_limits: Vec::new(),
            keepalive: KeepaliveSettings::default(),
            drain: DrainSettings::default(),
            limits: LimitSettings::default(),
            log: LogSettings::default(),
            hash: String::new(),
        };
        settings.hashed()
    }
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self { name: "chatgateway".to_owned(), revision: "1".to_owned() }
    }
}

impl Default for ListenerSettings {
    fn default() -> Self {
        let bind = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self { bind, http_port: 8080, grpc_port: 9090, admin_port: 8081, reuse_port: false }
    }
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            name: "demo".to_owned(),
            kind: UpstreamKind::Demo { token_delay: Duration::from_millis(30), answer_bytes: None },
            pool: PoolSettings::default(),
            timeouts: TimeoutSettings::default(),
            endpoints: EndpointSettings::default(),
            breaker: BreakerSettings::default(),
            retries: RetrySettings::default(),
            batching: BatchingSettings::Off,
        }
    }
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            window: 50,
            min_calls: 20,
            failure_percent: 40,
            open_for: Duration::from_secs(5),
            probes: 10,
            slow_after: None,
            slow_percent: 100,
        }
    }
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { max_attempts: 3, budget_percent: 10 }
    }
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self { max_concurrent: 20, max_queued: 1_000, queue_timeout: Duration::from_secs(5) }
    }
}

impl Default for TimeoutSettings {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            first_token: Duration::from_secs(10),
            between_tokens: Duration::from_secs(10),
            total: Duration::from_secs(120),
        }
    }
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(900), max_turns: 40, store: StoreSettings::Memory }
    }
}

impl Default for KeepaliveSettings {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(30),
            pong_timeout: Duration::from_secs(10),
            tcp_keepalive: Duration::from_secs(40),
        }
    }
}

impl Default for DrainSettings {
    fn default() -> Self {
        Self {
            accept_floor: Duration::from_secs(5),
            reconnect_spread: Duration::from_secs(10),
            timeout: Duration::from_secs(60),
        }
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            max_message_bytes: 256 * 1024,
            max_body_bytes: 4 * 1024 * 1024,
            max_connections: 20_000,
            max_streams_per_connection: 100,
            header_timeout: Duration::from_secs(10),
            allowed_origins: Vec::new(),
        }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Text }
    }
}

/// The settings that a running process cannot take over, by the name of the section or field, each in its JSON form.
/// Everything else is taken over while it runs.
fn cold(settings: &Settings) -> [(&'static str, Value); 6] {
    // Plain data of named fields: it always has a JSON form.
    fn json(part: &impl Serialize) -> Value {
        serde_json::to_value(part).unwrap_or_default()
    }
    [
        ("gateway.name", json(&settings.gateway.name)),
        ("listeners", json(&settings.listeners)),
        ("workers", json(&settings.workers)),
        // The gRPC codec is built with it.
        ("limits.maxMessageBytes", json(&settings.limits.max_message_bytes)),
        ("sessions.store", json(&settings.sessions.store)),
        ("log.format", json(&settings.log.format)),
    ]
}

/// What differs between two settings that a running process cannot take over.
#[must_use]
pub fn needs_restart(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let pairs = cold(old).into_iter().zip(cold(new));
    pairs.filter_map(|((name, old), (_, new))| (old != new).then_some(name)).collect()
}
