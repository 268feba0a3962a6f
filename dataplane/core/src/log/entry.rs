//! What stands in the log.

use std::sync::Arc;

use super::{EntryId, TurnId};
use crate::error::ErrorCode;

/// One entry of a session's log. Cheap to share: hold it in an [`Arc`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// The id it follows, named by the first entry of an epoch only (`n` = 0); every other entry follows `n` - 1.
    pub after: Option<EntryId>,
    /// The turn it belongs to.
    pub turn: TurnId,
    /// What it tells.
    pub kind: EntryKind,
}

impl Entry {
    /// The id of the entry before it. A reader takes an entry only if this is its position.
    #[must_use]
    pub fn predecessor(&self) -> EntryId {
        match self.after {
            Some(id) => id,
            None => EntryId::new(self.id.epoch, self.id.n.saturating_sub(1)),
        }
    }

    /// Bytes it holds beside its own structure, for memory bounds.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        match &self.kind {
            EntryKind::Turn { text, .. } | EntryKind::Delta { text } => text.len(),
            EntryKind::Failed { message, .. } => message.len(),
            _ => 0,
        }
    }
}

/// The kinds of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// The user's message, accepted.
    Turn {
        /// The turn's number in its session, from 1.
        seq: u64,
        /// The user's text.
        text: Arc<str>,
    },
    /// A piece of the answer. Never empty.
    Delta {
        /// The text that is added.
        text: Arc<str>,
    },
    /// The turn's text so far is void.
    Reset,
    /// The answer is complete.
    Done {
        /// Why the model stopped, as it says: `stop`, `length`, …
        finish_reason: Arc<str>,
        /// What it cost.
        usage: Usage,
    },
    /// The turn ended without an answer.
    Failed {
        /// Why.
        code: ErrorCode,
        /// Why, for a person.
        message: Arc<str>,
    },
    /// A client stopped the turn.
    Cancelled,
    /// Another ownership goes on with the turn.
    Takeover {
        /// Why.
        reason: TakeoverReason,
    },
}

impl EntryKind {
    /// How the turn ends with this entry, if it does.
    #[must_use]
    pub fn end(&self) -> Option<EndKind> {
        match self {
            Self::Done { .. } => Some(EndKind::Done),
            Self::Failed { .. } => Some(EndKind::Failed),
            Self::Cancelled => Some(EndKind::Cancelled),
            _ => None,
        }
    }
}

/// How a turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndKind {
    /// With its answer.
    Done,
    /// With an error.
    Failed,
    /// By a client's wish.
    Cancelled,
}

/// Why an ownership began in the middle of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TakeoverReason {
    /// The owner's lease had ended.
    Expired,
    /// The store had lost entries, the owner starts anew.
    Loss,
}

impl TakeoverReason {
    /// Its name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Loss => "loss",
        }
    }
}

/// Tokens a turn used, as the model server counted them (0 where it did not say).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
}
