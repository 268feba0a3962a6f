//! The chat gateway's data plane: transports, sessions, model servers. Decisions are in `chatgateway_core`; here are the
//! shells around them.
//!
//! * [`gateway`] is what the transports see; [`readers`] a connection's view of the sessions it reads.
//! * [`driver`] runs a turn: the only place where store, model server, clock and readers meet.
//! * [`limiter`] admits requests, and counts the tokens of answers.
//! * [`store`] keeps sessions, [`upstream`] asks model servers, [`transport`] frames events.

pub mod admin;
pub mod clock;
pub mod drain;
pub mod driver;
pub mod gateway;
pub mod hub;
pub mod leaving;
pub mod limiter;
mod logging;
pub mod metrics;
pub mod page;
pub mod peers;
pub mod readers;
pub mod reload;
pub mod run;
pub mod server;
mod shard;
pub mod store;
pub mod terminal;
pub mod transport;
mod turn;
pub mod upstream;
