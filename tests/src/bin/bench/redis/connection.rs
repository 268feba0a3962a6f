//! A client's connection to a pod, and what a client makes of what it is told there.

use std::{borrow::Cow, net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use chatgateway_core::log::EntryId;
use chatgateway_tests::client::in_time;
use serde::Deserialize;

use crate::{
    closed::send_frame,
    wire::{self, Frame, Mode, Receiver, Sender},
};

/// A frame from the gateway, as far as it matters here.
#[derive(Debug, Deserialize)]
pub struct Event<'a> {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The entry, if it is one.
    pub id: Option<&'a str>,
    #[serde(borrow)]
    pub text: Option<Cow<'a, str>>,
    /// Of an error.
    pub code: Option<&'a str>,
    /// Of an error: whether the same may be asked again, and when.
    pub retryable: Option<bool>,
    pub retry_after_ms: Option<u64>,
    /// Of `resumed`.
    pub recovered: Option<bool>,
    /// Of `go_away`.
    pub reconnect_after_ms: Option<u64>,
}

impl<'a> Event<'a> {
    /// Reads a frame.
    pub fn parse(frame: &'a [u8]) -> anyhow::Result<Self> {
        serde_json::from_slice(frame).with_context(|| format!("a frame {:?}", String::from_utf8_lossy(frame)))
    }

    /// Whether it refuses something.
    pub fn refuses(&self) -> bool {
        self.kind == "error" && self.id.is_none()
    }
}

/// An open connection that reads one session.
pub struct Connection {
    /// Where to.
    pub pod: SocketAddr,
    sender: Sender,
    receiver: Receiver,
    /// The last entry that came, or the position that was resumed from.
    at: EntryId,
}

impl Connection {
    /// Connects and takes the `hello`.
    pub async fn open(pod: SocketAddr, number: usize) -> anyhow::Result<Self> {
        let (sender, receiver) = wire::connect(pod, number, Mode::Json, "").await?;
        Ok(Self { pod, sender, receiver, at: EntryId::ZERO })
    }

    /// Sends a turn.
    pub async fn send(&mut self, session: &str, turn: u64) -> anyhow::Result<()> {
        self.sender.text(send_frame(session, turn, "go on").as_bytes()).await
    }

    /// Reads the session from after a position.
    pub async fn resume(&mut self, session: &str, after: EntryId) -> anyhow::Result<()> {
        self.at = after;
        let frame = format!(r#"{{"type":"resume","session":"{session}","after":"{after}"}}"#);
        self.sender.text(frame.as_bytes()).await
    }

    /// The next frame. An error is the connection's end.
    ///
    /// Can be cancelled while it waits: a pong finds room in the socket's buffer at once.
    pub async fn next(&mut self) -> anyhow::Result<Bytes> {
        loop {
            match in_time("a frame", self.receiver.next()).await?? {
                Frame::Text(text) => return Ok(text),
                Frame::Ping(payload) => self.sender.pong(&payload).await?,
            }
        }
    }

    /// Takes the outcome of a resume; false: the position is not one of the log's.
    pub async fn resumed(&mut self) -> anyhow::Result<bool> {
        loop {
            let frame = self.next().await?;
            let event = Event::parse(&frame)?;
            anyhow::ensure!(!event.refuses(), "a resume was refused: {}", String::from_utf8_lossy(&frame));
            if event.kind == "resumed" {
                return Ok(event.recovered == Some(true));
            }
        }
    }
}

/// What must not happen.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Entries that do not follow the one before them, and positions that were not found again.
    pub lost: u64,
    /// Entries that came twice over one connection.
    pub doubled: u64,
    /// Answers whose text is not the model's.
    pub wrong: u64,
    /// Turns that ended otherwise than with their answer, or not at all.
    pub failed: u64,
    /// Connections that were not made.
    pub refused: u64,
    /// The first trouble in words.
    pub first: Option<String>,
}

impl Faults {
    /// With those of another client.
    pub fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.refused += other.refused;
        self.first = self.first.take().or(other.first);
    }

    /// Everything that is about entries and text.
    pub fn of_entries(&self) -> u64 {
        self.lost + self.doubled + self.wrong
    }

    /// Keeps the first trouble's words.
    pub fn say(&mut self, words: impl FnOnce() -> String) {
        self.first.get_or_insert_with(words);
    }
}

impl std::fmt::Display for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lost, doubled, wrong, failed, refused, first } = self;
        write!(f, "{lost} lost, {doubled} doubled, {wrong} answers wrong, {failed} failed, {refused} refused")?;
        first.as_ref().map_or(Ok(()), |first| write!(f, "; first: {first}"))
    }
}

/// What an event was to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Not an entry.
    Nothing,
    /// An entry that it has already, over another connection.
    Again,
    /// A new entry that is none of the following.
    Entry,
    /// Text.
    Text,
    /// The turn goes on elsewhere.
    Takeover,
    /// The turn has ended.
    End,
}

/// What a client was told of its session.
pub struct Story {
    /// The session.
    pub session: String,
    /// The last entry.
    pub position: EntryId,
    /// All entries.
    pub ids: Vec<EntryId>,
    /// What went wrong.
    pub faults: Faults,
    text: String,
    expected: Option<Arc<str>>,
    answered: u64,
}

impl Story {
    /// Of a new session, whose answers are to have this text (none: whatever it is).
    pub fn new(session: String, expected: Option<Arc<str>>) -> Self {
        let (ids, faults, text) = (Vec::new(), Faults::default(), String::new());
        Self { session, position: EntryId::ZERO, ids, faults, text, expected, answered: 0 }
    }

    /// Turns that ended with their answer.
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Takes an event that came over a connection.
    pub fn take(&mut self, connection: &mut Connection, event: &Event<'_>) -> anyhow::Result<Told> {
        let Some(id) = event.id else { return Ok(Told::Nothing) };
        let id: EntryId = id.parse()?;
        let before = connection.at;
        connection.at = before.max(id);
        if id <= before {
            self.faults.doubled += 1;
            self.faults.say(|| format!("{} came again after {before} in {}", id, self.session));
        } else if !follows(id, before) {
            self.faults.lost += 1;
            self.faults.say(|| format!("{id} came after {before} in {}", self.session));
        }
        if id <= self.position {
            return Ok(Told::Again);
        }
        self.position = id;
        self.ids.push(id);
        Ok(self.told(event))
    }

    fn told(&mut self, event: &Event<'_>) -> Told {
        match event.kind {
            "delta" => {
                self.text.push_str(event.text.as_deref().unwrap_or_default());
                return Told::Text;
            }
            "takeover" => return Told::Takeover,
            "done" => {
                self.answered += 1;
                if self.expected.as_deref().is_some_and(|expected| expected != self.text) {
                    self.faults.wrong += 1;
                    self.faults.say(|| format!("the answer in {} is {:?}", self.session, self.text));
                }
            }
            "error" | "cancelled" => {
                self.faults.failed += 1;
                self.faults.say(|| format!("a turn of {} ended with {:?}", self.session, event.code));
            }
            "turn" | "reset" => {
                self.text.clear();
                return Told::Entry;
            }
            _ => return Told::Entry,
        }
        self.text.clear();
        Told::End
    }
}

/// Whether an entry can stand right after another one: the next of its epoch, or the first of a later one.
fn follows(id: EntryId, before: EntryId) -> bool {
    (id.epoch == before.epoch && id.n == before.n + 1) || (id.epoch > before.epoch && id.n == 0)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::echo;

    async fn connection() -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(echo::serve(listener));
        Connection::open(address, 0).await.unwrap()
    }

    fn frame(kind: &str, id: &str, text: &str) -> String {
        format!(r#"{{"type":"{kind}","session":"s","turn":"t","id":"{id}","text":"{text}"}}"#)
    }

    #[tokio::test]
    async fn a_whole_story_has_no_faults() {
        let mut connection = connection().await;
        let mut story = Story::new("s".to_owned(), Some("ab".into()));
        let told: Vec<Told> = [
            ("turn", "7-0", "hello"),
            ("delta", "7-1", "x"),
            ("takeover", "9-0", ""),
            ("reset", "9-1", ""),
            ("delta", "9-2", "a"),
            ("delta", "9-3", "b"),
            ("done", "9-4", ""),
        ]
        .into_iter()
        .map(|(kind, id, text)| {
            let frame = frame(kind, id, text);
            story.take(&mut connection, &Event::parse(frame.as_bytes()).unwrap()).unwrap()
        })
        .collect();
        use Told::*;
        assert_eq!(told, [Entry, Text, Takeover, Entry, Text, Text, End]);
        assert_eq!((story.faults.of_entries(), story.faults.failed, story.ids.len()), (0, 0, 7));
    }

    #[tokio::test]
    async fn gaps_repeats_and_other_text_are_faults() {
        let mut connection = connection().await;
        let mut story = Story::new("s".to_owned(), Some("a".into()));
        for (kind, id, text) in [
            ("turn", "7-0", "hello"),
            ("delta", "7-2", "a"),
            ("delta", "7-2", "a"),
            ("delta", "8-1", "b"),
            ("done", "8-2", ""),
        ] {
            let frame = frame(kind, id, text);
            story.take(&mut connection, &Event::parse(frame.as_bytes()).unwrap()).unwrap();
        }
        let faults = &story.faults;
        assert_eq!((faults.lost, faults.doubled, faults.wrong), (2, 1, 1), "{faults}");
        let failed = br#"{"type":"error","code":"internal","id":"8-3"}"#;
        assert_eq!(story.take(&mut connection, &Event::parse(failed).unwrap()).unwrap(), Told::End);
        assert_eq!(story.faults.failed, 1);
    }

    #[tokio::test]
    async fn what_came_over_the_connection_before_is_no_repeat() {
        let (mut old, mut new) = (connection().await, connection().await);
        let mut story = Story::new("s".to_owned(), None);
        new.at = EntryId::new(7, 0);
        for (over_new, id) in [(false, "7-0"), (false, "7-1"), (true, "7-1"), (true, "7-2")] {
            let frame = frame("delta", id, "a");
            let connection = if over_new { &mut new } else { &mut old };
            story.take(connection, &Event::parse(frame.as_bytes()).unwrap()).unwrap();
        }
        assert_eq!((story.faults.of_entries(), story.ids.len()), (0, 3));
    }
}
