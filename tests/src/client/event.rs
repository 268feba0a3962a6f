//! What the gateway sends, the same on every transport.

use anyhow::Context as _;
use serde_json::Value;

/// One frame, event or message of the JSON protocol.
#[derive(Clone, Debug, PartialEq)]
pub struct Event(pub Value);

impl Event {
    /// Its `type`.
    pub fn kind(&self) -> &str {
        self.field("type")
    }

    /// A field that is a string; empty where it is missing.
    pub fn field(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_default()
    }

    /// Its `id`: only entries of the log have one.
    pub fn id(&self) -> Option<&str> {
        self.0["id"].as_str()
    }

    /// Whether it is an entry that ends this turn.
    pub fn ends(&self, turn: &str) -> bool {
        let last = matches!(self.kind(), "done" | "cancelled") || (self.kind() == "error" && self.id().is_some());
        last && self.field("turn") == turn
    }
}

/// A turn as a client has seen it.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// Everything of the turn in the order of its arrival, receipts too.
    pub events: Vec<Event>,
}

impl Turn {
    /// Adds an event; true when the turn has ended, or was refused.
    pub fn add(&mut self, event: Event, turn: &str) -> bool {
        let refused = event.kind() == "error" && event.id().is_none();
        let over = event.ends(turn) || refused;
        self.events.push(event);
        over
    }

    /// The answer's text: all deltas since the last `reset`.
    pub fn answer(&self) -> String {
        let mut answer = String::new();
        for event in &self.events {
            match event.kind() {
                "reset" => answer.clear(),
                "delta" => answer.push_str(event.field("text")),
                _ => {}
            }
        }
        answer
    }

    /// The last event, by which the turn ended.
    pub fn end(&self) -> anyhow::Result<&Event> {
        self.events.last().context("the turn has no events")
    }

    /// Types of the events, in order.
    pub fn kinds(&self) -> Vec<&str> {
        self.events.iter().map(Event::kind).collect()
    }

    /// Ids of the entries, in order.
    pub fn ids(&self) -> Vec<&str> {
        self.events.iter().filter_map(Event::id).collect()
    }
}
