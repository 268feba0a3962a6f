//! The transports. Each frames the same events; none invents or drops one.

pub mod frame;
pub mod grpc;
pub mod http;
pub mod nesting;
pub mod patience;
pub mod standing;
pub mod ws;
