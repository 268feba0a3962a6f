//! The session log: an append-only log with one writer at a time, whose readers each stand at a position.
//!
//! The rules, and what goes wrong without each, are in `docs/session-log.md`.

mod entry;
mod ids;
mod owner;
mod reader;
mod script;
pub mod store;

pub use entry::{EndKind, Entry, EntryKind, TakeoverReason, Usage};
pub use ids::{EntryId, InvalidId, PodId, SessionId, SessionKey, TurnId};
pub use owner::{Leave, Link, Owner, OwnerConfig, OwnerEffect, OwnerInput, Release};
pub use reader::{Reader, ReaderEffect, ReaderInput};
pub use script::*;
