//! The operator: what a `ChatGateway` asks for, made true.
//!
//! [`manifest`] reads a resource, [`validate`] checks it, [`plan`] says what is to be run and [`status`] what is said of it (all
//! pure). [`controller`] makes it so in a cluster, [`standalone`] on this machine.

pub mod args;
pub mod controller;
pub mod manifest;
pub mod plan;
pub mod standalone;
pub mod status;
pub mod validate;
