//! Every bound of the data plane: its name, its size, and why that size. What can be set is a setting's default or its
//! ceiling; the rest is fixed.

use std::time::Duration;

/// Longest session id. Fits any mail address or path that applications use as a key, and one Redis key stays short.
pub const SESSION_ID_MAX_BYTES: usize = 256;

/// Longest turn id. A UUID has 36; the rest is for applications with ids of their own.
pub const TURN_ID_MAX_BYTES: usize = 128;

/// Turns that may wait in one session while another runs. A person types one or two ahead; more is a loop.
pub const QUEUED_TURNS_MAX: usize = 8;

/// Records of ended turns a session keeps for recognising repeats.
pub const TURN_RECORDS_MAX: usize = 1_000;

/// How often a turn may be taken over before it is ended as failed: a turn that kills each pod that takes it must stop.
pub const TAKEOVERS_MAX: u32 = 3;

/// How long a lease lasts. Short enough that an answer goes on within seconds of its pod's death, long enough for a store
/// that hesitates.
pub const LEASE_TTL: Duration = Duration::from_secs(4);

/// How often an owner checks: thrice a lease, so that two lost checks in a row do not lose it.
pub const CHECK_INTERVAL: Duration = Duration::from_millis(1_333);

/// How long `deleted` records live, so that late copies of a deleted turn find them.
pub const DELETED_RECORDS_TTL: Duration = Duration::from_secs(60);

/// A session with an unfinished turn lives at least this long.
pub const UNFINISHED_TTL: Duration = Duration::from_secs(3_600);

/// Entries one page of a log read has at most: 100 entries cost a Redis server about 20 µs.
pub const READ_PAGE_ENTRIES: usize = 100;

/// Text an owner holds uncommitted before it pauses its model server: some seconds of the fastest model's output.
pub const UNCOMMITTED_MAX_BYTES: usize = 256 * 1024;

/// Answer text of one turn. Past it the turn ends `failed` with `too_large`: the log and the history must stay readable.
pub const ANSWER_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Log entries of one turn. With merging under load a 4 MiB answer in single characters would pass it.
pub const TURN_ENTRIES_MAX: u64 = 100_000;

/// How long a reader waits in silence of an unfinished turn before it looks at the log again.
pub const READER_SILENCE: Duration = Duration::from_secs(2);
