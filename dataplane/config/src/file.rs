//! The configuration file as it is written. What it shares with the `ChatGateway` resource is in [`crate::parts`].

use serde::{Deserialize, Serialize};

use crate::parts::{
    Affinity, Batching, CircuitBreaker, Demo, Discovery, Drain, DurationText, History, Keepalive, Limits, Log, Pool,
    PromptFormat, RateLimit, RedisMode, Retries, Simple, StoreType, Timeouts, UpstreamType,
};

/// Derives what every section of the file needs: camelCase names, unknown fields refused.
macro_rules! section {
    ($($item:item)*) => {$(
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        $item
    )*};
}

section! {
    /// The whole file.
    pub struct File {
        /// Who this gateway is.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub gateway: Option<Gateway>,
        /// Where it listens.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub listeners: Option<Listeners>,
        /// Worker threads. One per core by default.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub workers: Option<i32>,
        /// Model servers, the preferred one first. The built-in one by default.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub upstreams: Vec<Upstream>,
        /// Sessions.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub sessions: Option<Sessions>,
        /// Rate limits.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub rate_limits: Vec<RateLimit>,
        /// How dead connections are found.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub keepalive: Option<Keepalive>,
        /// How a pod leaves.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub drain: Option<Drain>,
        /// What clients may take.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub limits: Option<Limits>,
        /// What is logged.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub log: Option<Log>,
    }

    /// Who this gateway is.
    pub struct Gateway {
        /// Its name: all pods of one gateway have the same.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub name: Option<String>,
        /// What of it runs, as told to clients in `hello`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub revision: Option<String>,
    }

    /// Where the gateway listens. Port 0 takes any free one.
    pub struct Listeners {
        /// Address to bind. `127.0.0.1` by default.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub bind: Option<String>,
        /// WebSocket, SSE, REST, OpenAI API, the chat page. 8080 by default.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub http_port: Option<i32>,
        /// gRPC. 9090 by default.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub grpc_port: Option<i32>,
        /// Health, metrics, status, drain. 8081 by default.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub admin_port: Option<i32>,
        /// Whether several processes may share the HTTP and gRPC ports.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub reuse_port: Option<bool>,
    }

    /// One model server.
    pub struct Upstream {
        /// Its name in logs, metrics and messages.
        pub name: String,
        /// What it speaks.
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
        pub kind: Option<UpstreamType>,
        /// With `type: OpenAI`.
        #[serde(rename = "openAI", skip_serializing_if = "Option::is_none")]
        pub openai: Option<OpenAi>,
        /// With `type: Simple`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub simple: Option<Simple>,
        /// With `type: Demo`, if at all.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub demo: Option<Demo>,
        /// How many calls at once, and who waits.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub pool: Option<Pool>,
        /// How long each step may take.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub timeouts: Option<Timeouts>,
        /// When calls are stopped for a while.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub circuit_breaker: Option<CircuitBreaker>,
        /// Which calls are made again.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub retries: Option<Retries>,
        /// How turns are gathered.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub batching: Option<Batching>,
        /// Base URLs of further servers, equal to the first.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub endpoints: Vec<String>,
        /// What the host of a URL stands for.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub discovery: Option<Discovery>,
        /// Which of them a session uses.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub affinity: Option<Affinity>,
    }

    /// An OpenAI-compatible server.
    pub struct OpenAi {
        /// Its base URL, with the version: `http://127.0.0.1:8000/v1`.
        pub url: String,
        /// The model that is asked for.
        pub model: String,
        /// A file with the API key. Read again when it changes.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub api_key_file: Option<String>,
        /// Whether the server continues a partial answer that ends the messages. False by default.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub prefill: Option<bool>,
        /// Asks `/completions` for turns, with the conversation as one prompt in this format; then several turns can be one
        /// call. By default turns ask `/chat/completions`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub prompt_format: Option<PromptFormat>,
    }

    /// Sessions.
    pub struct Sessions {
        /// How long a session outlives its last turn. `15m` by default.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub ttl: Option<DurationText>,
        /// What is kept for the next prompt.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub history: Option<History>,
        /// Where they are kept.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub store: Option<Store>,
    }

    /// Where sessions are kept.
    pub struct Store {
        /// In the process by default.
        #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
        pub kind: Option<StoreType>,
        /// With `type: Redis`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub redis: Option<Redis>,
    }

    /// A Redis.
    pub struct Redis {
        /// How it is set up.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub mode: Option<RedisMode>,
        /// Addresses, `host:port`.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub endpoints: Vec<String>,
        /// The name of the primary, with `mode: Sentinel`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub primary_name: Option<String>,
        /// Who the gateway is to it.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub auth: Option<RedisAuth>,
        /// How the connection is secured.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub tls: Option<RedisTls>,
    }

    /// Who the gateway is to Redis.
    pub struct RedisAuth {
        /// A file with the user's name.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub username_file: Option<String>,
        /// A file with the password. Read again when it changes.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub password_file: Option<String>,
    }

    /// How the connection to Redis is secured.
    pub struct RedisTls {
        /// A file with the certificates that are trusted.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub ca_file: Option<String>,
        /// A file with the gateway's certificate.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub cert_file: Option<String>,
        /// A file with its key.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub key_file: Option<String>,
    }
}
