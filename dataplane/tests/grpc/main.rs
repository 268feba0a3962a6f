//! The gRPC port, as its clients see it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod calls;
mod chat;
mod harness;
mod pod;
