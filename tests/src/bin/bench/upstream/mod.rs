//! Model servers under pressure: what batching gives, what overload and a dead server do, and whether limits hold.
//!
//! Everything is a process of its own: pods, Redis and the model-server simulators. Pods and Redis are on the servers' core,
//! the simulators and the clients on the generator's, unless a case says otherwise. Loads are open loops with Poisson arrivals,
//! timed from the instant at which a turn was due, so that a server that stalls cannot hide what waited behind the stall.

mod affinity;
mod batching;
mod decisions;
mod endpoints;
mod flood;
mod ground;
mod limits;
mod load;
mod overload;

use clap::ValueEnum;

use crate::{report::Row, setup::Setup};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// Turns a second that batches of a fixed size give
    Throughput,
    /// First tokens while there is little to do
    LowLoad,
    /// The highest load at which first tokens come in time
    Capacity,
    /// Ten times what the model server can do
    Overload,
    /// One of three endpoints dies and comes back
    DeadEndpoint,
    /// One limit over four pods
    Limit,
    /// What a decision of the limiter costs
    Decisions,
    /// One limit over four pods while Redis is away
    LocalShare,
    /// What prefix caches gain when sessions stay on one endpoint
    Affinity,
}

impl Case {
    /// Runs it.
    pub async fn run(self, setup: &Setup) -> anyhow::Result<Vec<Row>> {
        match self {
            Self::Throughput => batching::throughput(setup).await,
            Self::LowLoad => batching::low_load(setup).await,
            Self::Capacity => batching::capacity(setup).await,
            Self::Overload => overload::run(setup).await,
            Self::DeadEndpoint => endpoints::run(setup).await,
            Self::Limit => limits::shared(setup).await,
            Self::Decisions => decisions::run(setup).await,
            Self::LocalShare => limits::local(setup).await,
            Self::Affinity => affinity::run(setup).await,
        }
    }
}
