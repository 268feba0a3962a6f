//! Requests as Redis commands, and Redis' answers as replies.
//!
//! The scripts and this module are two halves of one thing: what they say to each other is known nowhere else.

mod entry;
mod history;
mod news;
mod reply;
mod request;
#[cfg(test)]
mod tests;
mod value;

use chatgateway_core::log::{Reply, SessionKey, StoreTime};

pub(super) use news::{decode_news, encode_news};
pub(super) use reply::decode;
pub(super) use request::command;

/// What a server says to an entry that does not follow the log's end.
const STALE_ID: &str = "equal or smaller than the target stream top item";

/// An answer.
#[derive(Debug)]
pub(super) struct Decoded {
    /// The reply.
    pub(super) reply: Reply,
    /// The store's clock, as the script read it. An append runs no script.
    pub(super) now: Option<StoreTime>,
    /// How many connections follow the session, where the call found out.
    pub(super) receivers: Option<u32>,
}

/// The channel on which the followers of a session are told.
pub(super) fn channel(session: &SessionKey) -> String {
    format!("ch:{{{}}}", session.as_str())
}

/// The other keys of a session: its log, its root, its history.
pub(super) fn keys(session: &SessionKey) -> [String; 3] {
    ["log", "ses", "dlg"].map(|name| format!("{name}:{{{}}}", session.as_str()))
}

/// Whether a server's error says only that an appended entry is not above the log's end. It is an append's answer: the entry
/// was not taken.
pub(super) fn is_stale_append(error: &redis::ServerError) -> bool {
    error.details().is_some_and(|details| details.contains(STALE_ID))
}
