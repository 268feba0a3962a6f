//! What happened, as clients and the model server saw it, and whether that can have come from a gateway that keeps its
//! promises: no turn and no token lost or repeated.
//!
//! A run writes [`Record`]s into a [`History`], from as many tasks as it likes. [`check`] reads them afterwards. The final
//! full read of each session's log is what everything else is held against.

mod answers;
mod check;
pub mod prompt;
mod record;
mod sessions;
mod views;
mod violation;

pub use check::{Expected, Figures, Report, check};
pub use record::{Ending, Entry, History, Kept, Kind, Outcome, Record, Stamped, ViewId};
pub use violation::{Check, Violation};

#[cfg(test)]
mod tests;
