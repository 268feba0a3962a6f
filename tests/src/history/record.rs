//! What is written down.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use chatgateway_core::log::EntryId;

use crate::{client::Event, clock::monotonic_ns};

/// One client's continuous view of one session, over all its connections.
pub type ViewId = u32;

/// What an entry tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The user's message.
    Turn {
        /// The turn's number.
        seq: u64,
        /// The text.
        text: Arc<str>,
    },
    /// A piece of the answer.
    Delta(Arc<str>),
    /// The text so far is void.
    Reset,
    /// Another pod goes on.
    Takeover,
    /// The answer is complete.
    Done,
    /// A client stopped the turn.
    Cancelled,
    /// The turn failed, with this code.
    Failed(Arc<str>),
}

impl Kind {
    /// How it ends its turn, if it does.
    pub fn ending(&self) -> Option<Ending> {
        match self {
            Self::Done => Some(Ending::Done),
            Self::Cancelled => Some(Ending::Cancelled),
            Self::Failed(_) => Some(Ending::Failed),
            Self::Turn { .. } | Self::Delta(_) | Self::Reset | Self::Takeover => None,
        }
    }
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a whole answer.
    Done,
    /// By a client.
    Cancelled,
    /// Without an answer.
    Failed,
}

impl Ending {
    /// As the gateway writes it.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "done" => Some(Self::Done),
            "cancelled" => Some(Self::Cancelled),
            "failed" => Some(Self::Failed),
            _ => None,
        }
    }
}

/// An entry as it was told, with the session and the turn that it names itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// The session it says it is of.
    pub session: Arc<str>,
    /// The turn it says it is of.
    pub turn: Arc<str>,
    /// What it tells.
    pub kind: Kind,
}

impl Entry {
    /// The entry in an event; nothing where the event is none.
    pub fn of(event: &Event) -> anyhow::Result<Option<Self>> {
        let Some(id) = event.id() else { return Ok(None) };
        let text = || Arc::from(event.field("text"));
        let kind = match event.kind() {
            "turn" => Kind::Turn { seq: event.0["seq"].as_u64().context("a turn without seq")?, text: text() },
            "delta" => Kind::Delta(text()),
            "reset" => Kind::Reset,
            "takeover" => Kind::Takeover,
            "done" => Kind::Done,
            "cancelled" => Kind::Cancelled,
            "error" => Kind::Failed(event.field("code").into()),
            kind => anyhow::bail!("an entry of unknown type {kind:?}: {event:?}"),
        };
        let id = id.parse().with_context(|| format!("the id of {event:?}"))?;
        Ok(Some(Self { id, session: event.field("session").into(), turn: event.field("turn").into(), kind }))
    }
}

/// A turn in a session's history or snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The turn.
    pub turn: Arc<str>,
    /// Its number.
    pub seq: u64,
    /// How it ended; nothing while it runs.
    pub ending: Option<Ending>,
    /// What the user said.
    pub text: Arc<str>,
    /// The answer.
    pub answer: Arc<str>,
}

/// What a request came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The turn was accepted, now or before, as this number.
    Accepted {
        /// The turn's number, where the transport tells it.
        seq: Option<u64>,
    },
    /// Refused with this code: nothing of it happened.
    Refused(Arc<str>),
    /// Nobody knows.
    Unknown,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A client sends a turn, for the first time or again.
    Sent { client: u32, session: Arc<str>, turn: Arc<str>, text: Arc<str>, attempt: u32 },
    /// What that came to.
    Receipt { client: u32, session: Arc<str>, turn: Arc<str>, outcome: Outcome },
    /// A client asks for a turn's end.
    CancelSent { client: u32, session: Arc<str>, turn: Arc<str> },
    /// A view begins where the gateway chooses: before a turn that was just sent.
    Attached { view: ViewId, session: Arc<str> },
    /// The answer to a resume.
    Resumed { view: ViewId, session: Arc<str>, asked: EntryId, recovered: bool, position: EntryId },
    /// A view was told an entry.
    Seen { view: ViewId, session: Arc<str>, entry: Entry },
    /// A view took the snapshot, from whose position it resumes.
    Snapshot { view: ViewId, session: Arc<str>, position: EntryId, turns: Vec<Kept> },
    /// A view lost its connection.
    Lost { view: ViewId, session: Arc<str>, why: String },
    /// A client was told an answer without entries. Text of an answer that broke off has no ending.
    Answer { client: u32, session: Arc<str>, turn: Arc<str>, text: Arc<str>, ending: Option<Ending> },
    /// A client stopped waiting for the end of a turn that it knows to be accepted.
    GaveUp { client: u32, session: Arc<str>, turn: Arc<str>, why: String },
    /// The model was asked; with a prefix: to continue.
    Asked { text: Arc<str>, prefix: Arc<str> },
    /// The whole log, read at the end.
    FinalLog { session: Arc<str>, from: String, entries: Vec<Entry> },
    /// The history, read at the end.
    FinalHistory { session: Arc<str>, from: String, position: EntryId, turns: Vec<Kept> },
}

impl Record {
    /// The session it is about, as far as it says so.
    pub fn session(&self) -> Option<&Arc<str>> {
        match self {
            Self::Sent { session, .. }
            | Self::Receipt { session, .. }
            | Self::CancelSent { session, .. }
            | Self::Attached { session, .. }
            | Self::Resumed { session, .. }
            | Self::Seen { session, .. }
            | Self::Snapshot { session, .. }
            | Self::Lost { session, .. }
            | Self::Answer { session, .. }
            | Self::GaveUp { session, .. }
            | Self::FinalLog { session, .. }
            | Self::FinalHistory { session, .. } => Some(session),
            Self::Asked { .. } => None,
        }
    }
}

/// A record and when it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// Since the history began, ms.
    pub at_ms: u64,
    /// What happened.
    pub record: Record,
}

impl fmt::Display for Stamped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at_ms as f64 / 1_000.0;
        match &self.record {
            Record::FinalLog { session, from, entries } => {
                write!(f, "{at:9.3} FinalLog of {session} from {from}:")?;
                entries.iter().try_for_each(|e| write!(f, "\n            {} {} {:?}", e.id, e.turn, e.kind))
            }
            Record::Seen { view, session, entry } => {
                write!(f, "{at:9.3} Seen by view {view} of {session}: {} {} {:?}", entry.id, entry.turn, entry.kind)
            }
            record => write!(f, "{at:9.3} {record:?}"),
        }
    }
}

/// Everything that happened, in the order in which it was written down. Cheap to share.
#[derive(Clone)]
pub struct History {
    began_ns: u64,
    records: Arc<Mutex<Vec<Stamped>>>,
}

impl Default for History {
    fn default() -> Self {
        Self { began_ns: monotonic_ns(), records: Arc::default() }
    }
}

impl History {
    /// Writes a record at the end.
    pub fn record(&self, record: Record) {
        let at_ms = self.now_ms();
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(Stamped { at_ms, record });
    }

    /// Time since it began, ms.
    pub fn now_ms(&self) -> u64 {
        (monotonic_ns() - self.began_ns) / 1_000_000
    }

    /// Takes what was written down until now.
    pub fn take(&self) -> Vec<Stamped> {
        std::mem::take(&mut self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at what was written down until now.
    pub fn look<T>(&self, look: impl FnOnce(&[Stamped]) -> T) -> T {
        look(&self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
