//! Sessions in Redis: what a token costs there, and what clients see while pods die, are replaced, or Redis is slow.
//!
//! Everything is a process of its own: pods, Redis and the model-server simulator. Pods and Redis are on the servers' core,
//! the simulator and the clients on the generator's.

pub mod bare;
mod connection;
pub mod cost;
pub mod ground;
mod live;
mod operations;
pub mod relay;
mod returns;
mod rollout;
mod slow;
mod takeover;

use clap::ValueEnum;

use crate::{report::Row, setup::Setup};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// A pod is killed at 500 answers
    Takeover,
    /// All pods are replaced under 500 answers
    Rollout,
    /// 2,000 clients break off and come back to other pods
    Returns,
    /// What a token costs Redis
    Cost,
    /// Redis 20 ms away
    Slow,
    /// What commits add to a token's way
    Delay,
    /// What a token costs the gateway
    Cpu,
    /// Millions of store calls with cancellations
    Operations,
}

impl Case {
    /// Runs it.
    pub async fn run(self, setup: &Setup) -> anyhow::Result<Vec<Row>> {
        match self {
            Self::Takeover => takeover::run(setup).await,
            Self::Rollout => rollout::run(setup).await,
            Self::Returns => returns::run(setup).await,
            Self::Cost => cost::run(setup).await,
            Self::Slow => slow::run(setup).await,
            Self::Delay => live::delay(setup).await,
            Self::Cpu => live::cpu(setup).await,
            Self::Operations => operations::run(setup).await,
        }
    }
}
