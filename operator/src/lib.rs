//! The operator: what a `ChatGateway` asks for, made true.
//!
//! [`manifest`] reads a resource, [`validate`] checks it, [`plan`] says what is to be run (both pure), and [`standalone`]
//! runs that on this machine.

pub mod args;
pub mod manifest;
pub mod plan;
pub mod standalone;
pub mod status;
pub mod validate;
