//! From a checked gateway to what is to be run. Pure: no clock, no file, no cluster.

mod change;
pub(crate) mod config;
mod print;

pub use change::Change;
pub use config::{ManagedAt, Place, Rendered, render};
pub use print::config_map;
