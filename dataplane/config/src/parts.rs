//! The parts of a configuration that the configuration file and the `ChatGateway` resource share, as they are written.
//!
//! Nothing here is checked beyond its shape; [`crate::Settings`] is what comes out of checking. Integers are `i32` and
//! `i64`, since Kubernetes knows no others. Everything left out has a default.

use serde::{Deserialize, Serialize};

/// Derives what every part needs: camelCase names, unknown fields refused, a schema where asked for.
macro_rules! part {
    ($($item:item)*) => {$(
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        $item
    )*};
}

/// Derives what every choice between names needs. Names are written as they are in the code.
macro_rules! choice {
    ($($item:item)*) => {$(
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        $item
    )*};
}

/// A duration with its unit: `50ms`, `5s`, `15m`, `1h30m`. What Go and CEL read too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct DurationText(
    #[cfg_attr(feature = "schema", schemars(length(max = 32), regex(pattern = r"^([0-9]+(ms|s|m|h))+$")))] pub String,
);

impl LogLevel {
    /// Its name, as it is written and as log filters know it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl From<&str> for DurationText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

choice! {
    /// What a model server speaks.
    pub enum UpstreamType {
        /// Any server with an OpenAI-compatible API.
        OpenAI,
        /// A server with `POST /chat`: a prompt in, a text out.
        Simple,
        /// Built in, deterministic, needs nothing.
        Demo,
    }

    /// How several turns become one call of the model server.
    pub enum BatchingMode {
        /// One turn, one call.
        Off,
        /// A fixed delay or a full batch, whichever comes first.
        Fixed,
        /// Gather only while the model server has no room.
        Adaptive,
    }

    /// What the host of a URL stands for.
    pub enum Discovery {
        /// One endpoint, whatever its addresses.
        Host,
        /// An endpoint for each of its addresses, which are looked up again every few seconds.
        Addresses,
    }

    /// How a conversation is written as one prompt, for servers that continue text.
    pub enum PromptFormat {
        /// `User: …`, `Assistant: …`, line by line.
        Plain,
        /// `<|im_start|>role … <|im_end|>`, as Qwen and many others are trained on.
        ChatML,
    }

    /// Which endpoint of an upstream a session uses.
    pub enum Affinity {
        /// Any, the less loaded one of two.
        None,
        /// The same one for all turns of a session, for its prompt cache.
        Session,
    }

    /// Where sessions are kept.
    pub enum StoreType {
        /// In the process. One replica; sessions end with it.
        Memory,
        /// In Redis.
        Redis,
    }

    /// How a Redis is set up.
    pub enum RedisMode {
        /// One server.
        Standalone,
        /// A primary found through sentinels.
        Sentinel,
        /// A cluster.
        Cluster,
    }

    /// Who shares one bucket of a rate limit.
    pub enum LimitPer {
        /// Each session has its own.
        Session,
        /// Each user has their own.
        User,
        /// Each client address has its own.
        Address,
        /// All share one.
        Gateway,
    }

    /// What a rate limit does while the store is away.
    pub enum OnStoreFailure {
        /// Each pod allows its share.
        LocalShare,
        /// Everything is allowed.
        Open,
        /// Nothing is allowed.
        Closed,
    }

    /// From which severity on something is logged.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub enum LogLevel {
        /// Only what needs somebody's attention.
        Error,
        /// And what may need it.
        Warn,
        /// And what happens seldom: start, reload, drain.
        #[default]
        Info,
        /// And what happens to each connection and turn.
        Debug,
        /// And every step of it.
        Trace,
    }

    /// How log lines look.
    #[derive(Default)]
    #[serde(rename_all = "camelCase")]
    pub enum LogFormat {
        /// For people.
        #[default]
        Text,
        /// One JSON object a line.
        Json,
    }
}

part! {
    /// A server with `POST /chat`.
    pub struct Simple {
        /// Its base URL; `/chat` is appended.
        #[cfg_attr(feature = "schema", schemars(length(max = 2048)))]
        pub url: String,
        /// The `max_tokens` of each request. 512 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1_000_000)))]
        pub max_tokens: Option<i32>,
    }

    /// The built-in upstream.
    pub struct Demo {
        /// Time between two tokens. `30ms` by default; `0s` answers at once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub token_delay: Option<DurationText>,
        /// Answers have exactly this many bytes, where given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 4_194_304)))]
        pub answer_bytes: Option<i32>,
    }

    /// How many calls an upstream gets at once, and who waits.
    pub struct Pool {
        /// Calls at once. 20 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000)))]
        pub max_concurrent: Option<i32>,
        /// Turns that wait for a call. 1000 by default; past it turns are refused with `overloaded`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 100_000)))]
        pub max_queued: Option<i32>,
        /// How long a turn waits at most. `5s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub queue_timeout: Option<DurationText>,
    }

    /// How long each step of a call may take.
    pub struct Timeouts {
        /// Until the connection is made. `2s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub connect: Option<DurationText>,
        /// From the request to the first token. `10s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub first_token: Option<DurationText>,
        /// From one token to the next. `10s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub between_tokens: Option<DurationText>,
        /// The whole call. `120s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub total: Option<DurationText>,
    }

    /// When calls of an upstream are stopped for a while.
    pub struct CircuitBreaker {
        /// Calls that are looked at. 50 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000)))]
        pub sliding_window_size: Option<i32>,
        /// Calls before it judges. 20 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000)))]
        pub minimum_number_of_calls: Option<i32>,
        /// Percentage of failures at which it opens. 40 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 100)))]
        pub failure_rate_threshold: Option<i32>,
        /// How long it stays open before it probes. `5s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub wait_duration_in_open_state: Option<DurationText>,
        /// Calls that probe, all of which are judged before it closes. 10 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1_000)))]
        pub permitted_number_of_calls_in_half_open_state: Option<i32>,
        /// From which time to the first token on a call is slow. By default calls are never slow.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub slow_call_duration_threshold: Option<DurationText>,
        /// Percentage of slow calls at which it opens. 100 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 100)))]
        pub slow_call_rate_threshold: Option<i32>,
    }

    /// Calls that are made again because they failed before the first token.
    pub struct Retries {
        /// How often one turn's call is made at one upstream, the first included. 3 by default; 1 makes none again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10)))]
        pub max_attempts: Option<i32>,
        /// How many calls may be further attempts, as a percentage of the first ones. 10 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 100)))]
        pub budget_percent: Option<i32>,
    }

    /// How turns are gathered into batches.
    pub struct Batching {
        /// Whether and how. By default `Adaptive` where the model server takes several prompts in one call, else `Off`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub mode: Option<BatchingMode>,
        /// Turns of one batch. 4 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 256)))]
        pub max_batch_size: Option<i32>,
        /// How long a turn waits for others. `50ms` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_delay: Option<DurationText>,
        /// With `Adaptive`: the time to the first token that 99 of 100 turns are to keep. `300ms` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub first_token_target: Option<DurationText>,
    }

    /// What is kept of a session for the next prompt.
    pub struct History {
        /// Ended turns. 40 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1_000)))]
        pub max_turns: Option<i32>,
    }

    /// One rate limit.
    pub struct RateLimit {
        /// Who shares a bucket.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub per: Option<LimitPer>,
        /// Turns a second.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 100_000_000)))]
        pub requests_per_second: Option<i32>,
        /// Turns a minute.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 100_000_000)))]
        pub requests_per_minute: Option<i32>,
        /// Model tokens a minute.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 100_000_000)))]
        pub tokens_per_minute: Option<i32>,
        /// What a full bucket holds. By default what comes in a second, or with limits a minute in a minute.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 100_000_000)))]
        pub burst: Option<i32>,
        /// What happens while the store is away. `LocalShare` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub on_store_failure: Option<OnStoreFailure>,
    }

    /// How dead connections are found.
    pub struct Keepalive {
        /// How often a silent client is pinged. `30s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ping_interval: Option<DurationText>,
        /// How long its pong may take. `10s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub pong_timeout: Option<DurationText>,
        /// When TCP starts to probe a silent connection. `40s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub tcp_keepalive: Option<DurationText>,
    }

    /// How a pod leaves.
    pub struct Drain {
        /// How long new clients are still taken, until load balancers know. `5s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub accept_floor: Option<DurationText>,
        /// Over which time clients are told to reconnect. `10s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reconnect_spread: Option<DurationText>,
        /// When what is left is closed, from the start. `60s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub timeout: Option<DurationText>,
    }

    /// What one client and all together may take.
    pub struct Limits {
        /// Largest message from a client, in bytes: a WebSocket message or a gRPC message. 262144 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1024, max = 16_777_216)))]
        pub max_message_bytes: Option<i32>,
        /// Largest body of an HTTP request, in bytes. 4194304 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1024, max = 67_108_864)))]
        pub max_body_bytes: Option<i32>,
        /// Client connections of one pod. 20000 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 1_000_000)))]
        pub max_connections: Option<i32>,
        /// HTTP/2 streams at once in one connection. 100 by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000)))]
        pub max_streams_per_connection: Option<i32>,
        /// How long a client may take to send the head of a request. `10s` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub header_timeout: Option<DurationText>,
        /// Origins of web pages that may use the gateway, beside its own: `https://chat.example.com`, or `*` for any.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[cfg_attr(feature = "schema", schemars(length(max = 64), inner(length(max = 256))))]
        pub allowed_origins: Vec<String>,
    }

    /// What is logged.
    pub struct Log {
        /// From which severity on. `info` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub level: Option<LogLevel>,
        /// How lines look. `text` by default.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub format: Option<LogFormat>,
    }
}
