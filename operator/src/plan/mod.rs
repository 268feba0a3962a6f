//! From a checked gateway to what is to be run. Pure: no clock, no file, no cluster.

mod change;
pub(crate) mod config;
pub mod objects;
pub mod pace;

use serde_json::Value;
use sha2::{Digest, Sha256};

pub use change::Change;
pub use config::{ManagedAt, Place, Rendered, render};

/// The SHA-256 of a JSON value's text, in hex.
fn sha256(value: &Value) -> String {
    Sha256::digest(value.to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
}
