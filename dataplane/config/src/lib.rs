//! The data plane's configuration.
//!
//! A text is read as a [`file::File`] (its shape; unknown fields are errors with their place), and checked into
//! [`Settings`] (its meaning: units, defaults, ranges, what fits together). All violations are told at once. The parts
//! that the `ChatGateway` resource shares with the file are in [`parts`], so that both are checked by the same code.

mod check;
mod error;
pub mod file;
pub mod parts;
mod rate_limits;
mod redis;
mod resolve;
mod settings;
mod upstreams;
pub mod yaml;

pub use error::{ConfigErrors, Violation};
pub use parts::{Discovery, LimitPer, LogFormat, LogLevel, OnStoreFailure, PromptFormat, RedisMode};
pub use settings::{
    BatchingSettings, BreakerSettings, DrainSettings, Endpoint, EndpointSettings, GatewaySettings, KeepaliveSettings,
    LimitSettings, LimitUnit, ListenerSettings, LogSettings, PoolSettings, RateLimitSettings, RedisSettings,
    RedisTlsSettings, RetrySettings, SessionSettings, Settings, StoreSettings, TimeoutSettings, UpstreamKind,
    UpstreamSettings, needs_restart,
};
