//! Model servers.

use chatgateway_config::parts::{
    Affinity, Batching, CircuitBreaker, Demo, Discovery, Pool, PromptFormat, Retries, Simple, Timeouts, UpstreamType,
};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// One model server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("(self.type == 'OpenAI') == has(self.openAI)")
    .message("`openAI` is needed with type OpenAI, and only with it"))]
#[x_kube(validation = Rule::new("(self.type == 'Simple') == has(self.simple)")
    .message("`simple` is needed with type Simple, and only with it"))]
#[x_kube(validation = Rule::new("self.type == 'Demo' || !has(self.demo)")
    .message("`demo` needs type Demo"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Upstream {
    /// Its name in logs, metrics and messages.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What it speaks.
    #[serde(rename = "type")]
    pub kind: UpstreamType,
    /// With `type: OpenAI`.
    #[serde(default, rename = "openAI", skip_serializing_if = "Option::is_none")]
    pub openai: Option<OpenAi>,
    /// With `type: Simple`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simple: Option<Simple>,
    /// With `type: Demo`, if at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demo: Option<Demo>,
    /// How many calls at once, and who waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Pool>,
    /// How long each step of a call may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// When calls are stopped for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Which calls are made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// How turns are gathered into batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
    /// Base URLs of further servers, equal to the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 2048)))]
    pub endpoints: Vec<String>,
    /// What the host of a URL stands for. By default `Addresses` with `http` and `Host` with `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discovery: Option<Discovery>,
    /// Which endpoint of the upstream a session uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
}

/// An OpenAI-compatible server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OpenAi {
    /// Its base URL, with the version: `http://vllm.models.svc:8000/v1`.
    #[schemars(length(min = 1, max = 2048))]
    pub url: String,
    /// The model that is asked for.
    #[schemars(length(min = 1, max = 256))]
    pub model: String,
    /// The Secret with the API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKey>,
    /// Whether the server continues a partial answer that ends the messages. False by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<bool>,
    /// Asks `/completions` for turns, with the conversation as one prompt in this format; then several turns can be one
    /// call. By default turns ask `/chat/completions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_format: Option<PromptFormat>,
}

/// One key of a Secret in the gateway's namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKey {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The key in its data.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}
