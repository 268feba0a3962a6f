//! The gRPC contract, generated from `proto/chat/v1/chat.proto`. Nothing else.

/// Messages, server and client of `chat.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, clippy::panic)]
pub mod v1 {
    tonic::include_proto!("chat.v1");

    /// The package's descriptors with their comments and imports, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/chat.v1.bin"));
}
