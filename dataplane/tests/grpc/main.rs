//! The gRPC port, as its clients see it.

mod calls;
mod chat;
mod harness;
mod pod;
