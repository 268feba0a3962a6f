//! What the cross-component tests and the benchmarks share: a model-server simulator, small clients of every transport,
//! a data-plane process that a test starts and stops, a network that breaks, crowds of clients, and a checker of what they were told.

pub mod client;
pub mod clock;
pub mod history;
pub mod load;
pub mod process;
pub mod proxy;
pub mod simulator;
