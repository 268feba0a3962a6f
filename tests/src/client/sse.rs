//! Server-sent events, parsed as the HTML standard says and no more freely.

use std::collections::VecDeque;

use anyhow::{Context as _, bail};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{Event, in_time};

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// Its `event` line; empty where there is none.
    pub event: String,
    /// Its `data` lines, joined.
    pub data: String,
    /// Its `id` line.
    pub id: Option<String>,
    /// Its `retry` line, ms.
    pub retry_ms: Option<u64>,
}

impl SseEvent {
    /// The data as a frame of the JSON protocol.
    pub fn json(&self) -> anyhow::Result<Event> {
        Ok(Event(serde_json::from_str(&self.data).with_context(|| format!("data of {self:?}"))?))
    }
}

/// Longest line held.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A parser that is fed pieces. Anything a browser would silently drop is an error here, comments apart.
#[derive(Default)]
pub struct SseParser {
    line: Vec<u8>,
    current: SseEvent,
    has_data: bool,
    after_return: bool,
    ready: VecDeque<SseEvent>,
}

impl SseParser {
    /// Reads on.
    pub fn push(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        for &byte in bytes {
            let after_return = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => self.end_of_line()?,
                byte => self.line.push(byte),
            }
        }
        anyhow::ensure!(self.line.len() <= LINE_BYTES_MAX, "a line above {LINE_BYTES_MAX} bytes");
        Ok(())
    }

    /// The next complete event.
    pub fn next_event(&mut self) -> Option<SseEvent> {
        self.ready.pop_front()
    }

    /// Whether the stream could end here: nothing is half sent.
    pub fn is_between_events(&self) -> bool {
        self.line.is_empty() && self.current == SseEvent::default() && !self.has_data
    }

    fn end_of_line(&mut self) -> anyhow::Result<()> {
        let line = String::from_utf8(std::mem::take(&mut self.line)).context("a line is not UTF-8")?;
        if line.is_empty() {
            let event = std::mem::take(&mut self.current);
            if std::mem::take(&mut self.has_data) || event.retry_ms.is_some() {
                self.ready.push_back(event);
            } else if event != SseEvent::default() {
                bail!("an event without data: {event:?}");
            }
            return Ok(());
        }
        let (name, value) = line.split_once(':').with_context(|| format!("a line without a colon: {line:?}"))?;
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" => {}
            "event" => value.clone_into(&mut self.current.event),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.current.data.push('\n');
                }
                self.current.data.push_str(value);
            }
            "id" => self.current.id = Some(value.to_owned()),
            "retry" => self.current.retry_ms = Some(value.parse().context("retry")?),
            name => bail!("an unknown field {name:?}"),
        }
        Ok(())
    }
}

/// Events of a response under way.
pub struct SseStream {
    body: Incoming,
    parser: SseParser,
}

impl SseStream {
    /// Reads the body of a response.
    pub fn new(body: Incoming) -> Self {
        Self { body, parser: SseParser::default() }
    }

    /// The next event; nothing at the end, which may not be in the middle of an event.
    pub async fn next(&mut self) -> anyhow::Result<Option<SseEvent>> {
        loop {
            if let Some(event) = self.parser.next_event() {
                return Ok(Some(event));
            }
            let Some(frame) = in_time("an event", self.body.frame()).await? else {
                anyhow::ensure!(self.parser.is_between_events(), "the stream ended in the middle of an event");
                return Ok(None);
            };
            if let Ok(data) = frame.context("the stream broke")?.into_data() {
                self.parser.push(&data)?;
            }
        }
    }

    /// Every event to the end.
    pub async fn collect(mut self) -> anyhow::Result<Vec<SseEvent>> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await? {
            events.push(event);
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, pieces: usize) -> anyhow::Result<Vec<SseEvent>> {
        let mut parser = SseParser::default();
        for piece in text.as_bytes().chunks(pieces) {
            parser.push(piece)?;
        }
        assert!(parser.is_between_events());
        Ok(std::iter::from_fn(|| parser.next_event()).collect())
    }

    #[test]
    fn events_are_the_same_however_they_are_cut() {
        let text = ": hello\n\nretry: 250\r\nid: 3-1\r\n\r\nevent: delta\ndata: a\ndata: ü\nid: 3-2\n\n";
        for pieces in 1..text.len() {
            let events = parse(text, pieces).unwrap();
            assert_eq!(events.len(), 2, "in pieces of {pieces}");
            assert_eq!((events[0].retry_ms, events[0].id.as_deref()), (Some(250), Some("3-1")));
            assert_eq!((events[1].event.as_str(), events[1].data.as_str()), ("delta", "a\nü"));
        }
    }

    #[test]
    fn what_browsers_drop_is_an_error() {
        for text in ["event: x\n\n", "date: x\n\n", "data\n\n"] {
            assert!(parse(text, 3).is_err(), "{text:?}");
        }
        assert!(SseParser::default().push(b"data: \xff\n").is_err());
    }
}
