//! The Redis store against real servers: what breaks, what moves, and what pods tell each other.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cancel;
mod cluster;
mod credentials;
mod faults;
mod limits;
mod peers;
mod settings;
mod support;
