//! Real Redis servers for tests: single ones, under sentinels, and clusters.
//!
//! Everything listens on 127.0.0.1 at free ports, keeps its data in a directory of its own, and ends with its owner. The
//! calls block for some milliseconds to a few seconds, each until what it did can be relied on.

mod certificates;
mod cluster;
mod process;
mod sentinels;
mod server;

use std::time::{Duration, Instant};

pub use certificates::Certificates;
pub use cluster::{CLUSTER_SLOTS, Cluster};
pub use sentinels::{PRIMARY_NAME, Sentinels};
pub use server::{Fsync, Options, RedisServer, User};

/// How long a server, or several together, may take to become what they shall be. Generous: tests share few cores.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is looked whether they are.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `ready` says so; its own words for what is missing go into the error.
fn wait_until(what: &str, mut ready: impl FnMut() -> Result<(), String>) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let Err(missing) = ready() else { return Ok(()) };
        anyhow::ensure!(Instant::now() < deadline, "{what}: not within {READY_TIMEOUT:?}; at last: {missing}");
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// The value of a line `name:value` or `name=value` in what INFO and its like print.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
}
