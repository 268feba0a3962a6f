//! What the cross-component tests and the benchmarks share: a model-server simulator, small clients of every transport,
//! and a data-plane process that a test starts and stops.

pub mod client;
pub mod clock;
pub mod process;
pub mod simulator;
