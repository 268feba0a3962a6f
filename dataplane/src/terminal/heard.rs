//! The frames a client hears and says. The server's half of the protocol (`transport::frame`) only writes the former.

use chatgateway_core::log::EntryId;
use serde::{Deserialize, Deserializer, Serialize, de::Error};

/// A frame from the server, as far as a terminal needs it.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Heard {
    /// The connection is ready.
    Hello {
        /// The largest message the server takes, in bytes.
        #[serde(default = "no_bound")]
        max_message_bytes: usize,
    },
    /// The receipt of a `send`.
    Accepted {
        /// The turn.
        turn: String,
        /// Its number in the session.
        seq: u64,
        /// Where it stands.
        state: String,
        /// How many run or wait before it.
        place: Option<u32>,
        /// Whether it was known before.
        #[serde(default)]
        duplicate: bool,
    },
    /// The outcome of a `resume`.
    Resumed {
        /// Whether every later entry follows.
        recovered: bool,
    },
    /// A turn was accepted.
    Turn {
        /// The turn.
        turn: String,
        /// The entry.
        #[serde(deserialize_with = "entry_id")]
        id: EntryId,
        /// Its number in the session.
        seq: u64,
        /// What the user said.
        text: String,
    },
    /// A piece of an answer.
    Delta {
        /// The turn.
        turn: String,
        /// The entry.
        #[serde(deserialize_with = "entry_id")]
        id: EntryId,
        /// The text that is added.
        text: String,
    },
    /// The answer's text so far is void.
    Reset {
        /// The turn.
        turn: String,
        /// The entry.
        #[serde(deserialize_with = "entry_id")]
        id: EntryId,
    },
    /// Another server goes on with the answer.
    Takeover {
        /// The turn.
        turn: String,
        /// The entry.
        #[serde(deserialize_with = "entry_id")]
        id: EntryId,
    },
    /// The turn was stopped.
    Cancelled {
        /// The turn.
        turn: String,
        /// The entry.
        #[serde(deserialize_with = "entry_id")]
        id: EntryId,
    },
    /// The answer is complete.
    Done {
        /// The turn.
        turn: String,
        /// The entry.
        #[serde(deserialize_with = "entry_id")]
        id: EntryId,
        /// Why the model stopped.
        finish_reason: String,
    },
    /// A refusal, or with an id a turn's failure.
    Error(Problem),
    /// The server is about to close the connection.
    GoAway {
        /// How long to wait before connecting anew.
        reconnect_after_ms: u64,
    },
    /// Anything else: a sign of life.
    #[serde(other)]
    Other,
}

/// The fields of an `error` frame.
#[derive(Debug, Deserialize)]
pub struct Problem {
    /// What went wrong, for a program.
    pub code: String,
    /// What went wrong, for a person.
    #[serde(default)]
    pub message: String,
    /// Whether the same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// When.
    pub retry_after_ms: Option<u64>,
    /// The session it is about.
    pub session: Option<String>,
    /// The turn it is about.
    pub turn: Option<String>,
    /// The entry, where it is a turn's failure.
    #[serde(default, deserialize_with = "optional_entry_id")]
    pub id: Option<EntryId>,
}

/// A frame to the server.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Said<'a> {
    /// A turn.
    Send {
        /// The session.
        session: &'a str,
        /// The turn's id.
        turn: &'a str,
        /// What the user says.
        text: &'a str,
    },
    /// Read the session on from an entry.
    Resume {
        /// The session.
        session: &'a str,
        /// The entry's id.
        after: String,
    },
    /// Stop a turn.
    Cancel {
        /// The session.
        session: &'a str,
        /// The turn.
        turn: &'a str,
    },
}

fn no_bound() -> usize {
    usize::MAX
}

fn entry_id<'de, D: Deserializer<'de>>(from: D) -> Result<EntryId, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

fn optional_entry_id<'de, D: Deserializer<'de>>(from: D) -> Result<Option<EntryId>, D::Error> {
    Option::<String>::deserialize(from)?.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_read_as_the_server_writes_them() {
        let heard: Heard =
            serde_json::from_str(r#"{"type":"delta","session":"s","turn":"t","id":"7-2","text":"a"}"#).unwrap();
        assert!(matches!(heard, Heard::Delta { id, .. } if id == EntryId::new(7, 2)));
        let failed = r#"{"type":"error","code":"internal","message":"m","retryable":false,"turn":"t","id":"7-3"}"#;
        assert!(matches!(serde_json::from_str(failed).unwrap(), Heard::Error(Problem { id: Some(_), .. })));
        let refused = r#"{"type":"error","code":"rate_limited","message":"m","retryable":true,"retry_after_ms":5}"#;
        let Heard::Error(problem) = serde_json::from_str(refused).unwrap() else { panic!("not an error") };
        assert_eq!((problem.id, problem.retry_after_ms), (None, Some(5)));
        assert!(matches!(serde_json::from_str(r#"{"type":"new_kind","x":[1]}"#).unwrap(), Heard::Other));
    }

    #[test]
    fn an_id_that_is_none_is_an_error() {
        assert!(serde_json::from_str::<Heard>(r#"{"type":"reset","turn":"t","id":"x"}"#).is_err());
    }
}
