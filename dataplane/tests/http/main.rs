//! The HTTP routes, in process: requests go to the router, answers come from the Memory store and the Demo upstream, and
//! where a model server has to misbehave, from a small one of the tests' own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that finds no answer has failed")]

mod bad_input;
mod events;
mod limits;
mod model;
mod openai;
mod sessions;
mod support;
mod turns;
mod upstreams;
