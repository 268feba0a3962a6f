//! What a check found.

use std::{fmt, sync::Arc};

use chatgateway_core::log::EntryId;

use super::Stamped;

/// The checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// A reader was not told an entry between two that it was told.
    Gap,
    /// A reader was told an entry twice.
    Repeat,
    /// A reader was told entries in another order than the log's.
    Order,
    /// A reader was told an entry that the log does not have.
    Stale,
    /// One id, two contents.
    Content,
    /// Something of another session.
    Foreign,
    /// The log itself is no chain, or its entries make no turns.
    Log,
    /// A turn with two beginnings or two ends.
    Twice,
    /// The numbers of a log's turns are not 1, 2, 3, …
    Seq,
    /// An accepted turn that is not in the log.
    Lost,
    /// An accepted turn without an end.
    Unfinished,
    /// A turn in the log that nobody sent, or that was refused each time.
    Unasked,
    /// A turn whose text or number is not what its client was told or said.
    Receipt,
    /// A refusal for no reason that this run gave.
    Refusal,
    /// A turn that failed for no reason that this run gave.
    Failure,
    /// An answer that is not the model's.
    Answer,
    /// A resume that did not go on where it should have.
    Position,
    /// The history or a snapshot does not say what was told.
    Kept,
    /// The model was asked too often, or to continue what it did not say.
    Model,
    /// A client waited for ever.
    Stuck,
    /// A session that could not be read at the end.
    Unread,
}

/// Something that must not be.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which check found it.
    pub check: Check,
    /// In which session.
    pub session: Arc<str>,
    /// In which turn, where it is about one.
    pub turn: Option<Arc<str>>,
    /// Entries it is about.
    pub ids: Vec<EntryId>,
    /// What is wrong.
    pub what: String,
    /// The records at odds, by their place in the history.
    pub records: Vec<usize>,
}

impl Violation {
    /// With everything that helps to understand it.
    pub fn explain(&self, records: &[Stamped]) -> String {
        let mut text = self.to_string();
        for (place, stamped) in self.records.iter().filter_map(|place| Some((place, records.get(*place)?))) {
            // A whole log is in the session's own file.
            let line = stamped.to_string();
            let line = line.lines().next().unwrap_or_default();
            text.push_str(&format!("\n    #{place} {}", shortened(line)));
        }
        text
    }
}

/// Longest line of a record in a violation.
const LINE_BYTES_MAX: usize = 400;

fn shortened(line: &str) -> String {
    match line.char_indices().nth(LINE_BYTES_MAX) {
        Some((end, _)) => format!("{} …", line.get(..end).unwrap_or_default()),
        None => line.to_owned(),
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in session {}", self.check, self.session)?;
        if let Some(turn) = &self.turn {
            write!(f, ", turn {turn}")?;
        }
        if !self.ids.is_empty() {
            let ids: Vec<String> = self.ids.iter().take(8).map(EntryId::to_string).collect();
            write!(f, ", entries {}{}", ids.join(" "), if self.ids.len() > 8 { " …" } else { "" })?;
        }
        write!(f, ": {}", self.what)
    }
}
