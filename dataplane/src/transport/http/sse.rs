//! A session's log as server-sent events: `event` is the frame's type, `data` the frame, `id` the entry's id.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limits::{SSE_CHUNK_BYTES, SSE_RETRY},
    log::{EntryId, SessionId, TurnId},
};
use futures_util::stream;
use http::{HeaderName, HeaderValue, header};
use tokio::time::{Instant, sleep_until};

use super::leaving::{Farewell, Moment};
use crate::{
    clock::millis,
    readers::{ReaderEvent, Readers},
    transport::frame::ServerFrame,
};

/// Which part of a session's log a stream tells.
pub enum Scope {
    /// All of it, until one side ends the stream.
    Session,
    /// One turn, until that turn ends.
    Turn(TurnId),
}

/// A stream of events over one reader. It is driven by the client's reading: a client that does not read costs what its
/// mailbox holds, and no more.
pub struct EventStream {
    readers: Readers,
    session: SessionId,
    scope: Scope,
    farewell: Farewell,
    ping_interval: Duration,
    /// When the client last got anything.
    last_sent: Instant,
    /// What is sent first.
    out: Vec<u8>,
    ended: bool,
}

impl EventStream {
    /// A stream that begins with a priming event, which has the reader's position as its id.
    pub fn new(
        readers: Readers,
        session: SessionId,
        scope: Scope,
        position: EntryId,
        farewell: Farewell,
        ping_interval: Duration,
    ) -> Self {
        // Not all at once, should this process die.
        let retry = SSE_RETRY.mul_f64(0.5 + rand::random::<f64>());
        let out = format!("retry: {}\nid: {position}\n\n", millis(retry)).into_bytes();
        let last_sent = Instant::now();
        Self { readers, session, scope, farewell, ping_interval, last_sent, out, ended: false }
    }

    /// The same, with a frame that is no entry before the first entry.
    pub fn with_frame(mut self, frame: &ServerFrame<'_>) -> Self {
        write_event(&mut self.out, frame, None);
        self
    }

    /// The same, with an event that was taken from the readers already.
    pub fn with_event(mut self, event: ReaderEvent) -> Self {
        self.take(event);
        self
    }

    /// The same, with nothing after what it holds already.
    pub fn complete(mut self) -> Self {
        self.ended = true;
        self
    }

    /// The HTTP answer.
    pub fn into_response(self) -> Response {
        let chunks = stream::unfold(self, |mut events| async move {
            let chunk = events.chunk().await?;
            Some((Ok::<_, Infallible>(chunk), events))
        });
        event_stream(Body::from_stream(chunks))
    }

    /// The next piece of the stream: everything that is ready, up to a bound.
    async fn chunk(&mut self) -> Option<Bytes> {
        loop {
            while !self.ended && self.out.len() < SSE_CHUNK_BYTES {
                let Some(event) = self.readers.try_next() else { break };
                self.take(event);
            }
            if !self.out.is_empty() {
                self.last_sent = Instant::now();
                let mut chunk = std::mem::take(&mut self.out);
                // It may wait long for a client that does not read.
                chunk.shrink_to_fit();
                return Some(chunk.into());
            }
            if self.ended {
                return None;
            }
            // Who follows a session can do so from any pod; who waits for one answer may know no other way to it.
            let answering = match self.scope {
                Scope::Turn(_) => true,
                Scope::Session => self.readers.answering() && !self.readers.can_move(),
            };
            tokio::select! {
                event = self.readers.next() => self.take(event),
                moment = self.farewell.next(answering) => self.leave(moment),
                () = sleep_until(self.last_sent + self.ping_interval) => self.out.extend_from_slice(HEARTBEAT),
            }
        }
    }

    fn take(&mut self, event: ReaderEvent) {
        match event {
            ReaderEvent::Entry { entry, .. } => {
                if let Scope::Turn(turn) = &self.scope {
                    if entry.turn != *turn {
                        return;
                    }
                    self.ended = entry.kind.end().is_some();
                }
                write_event(&mut self.out, &ServerFrame::entry(&self.session, &entry), Some(entry.id));
            }
            ReaderEvent::Resumed { recovered: true, .. } => {}
            ReaderEvent::Resumed { recovered: false, .. } | ReaderEvent::Slow { .. } => {
                self.end_with(ErrorCode::NotResumable, NOT_RESUMABLE);
            }
            ReaderEvent::Gone { .. } => self.end_with(ErrorCode::NotFound, DELETED),
        }
    }

    fn end_with(&mut self, code: ErrorCode, message: &str) {
        let refusal = Refusal::new(code, message);
        let frame = ServerFrame::refusal(&refusal, Some(self.session.as_str()), None);
        write_event(&mut self.out, &frame, None);
        self.ended = true;
    }

    fn leave(&mut self, moment: Moment) {
        match moment {
            Moment::Tell { reconnect_after, time_left } => {
                let frame = ServerFrame::GoAway {
                    reconnect_after_ms: millis(reconnect_after),
                    time_left_ms: millis(time_left),
                };
                write_event(&mut self.out, &frame, None);
            }
            Moment::Close { reconnect_after } => {
                self.out.extend_from_slice(format!("retry: {}\n\n", millis(reconnect_after)).as_bytes());
                self.ended = true;
            }
        }
    }
}

/// What readers are told of a session that was deleted.
pub const DELETED: &str = "the session was deleted";

/// What readers are told when their position is not in the log.
pub const NOT_RESUMABLE: &str =
    "the log does not continue from that position; take GET /v1/sessions/{session} and resume from its position";

/// A comment: it keeps proxies from closing, and clients do not see it.
pub const HEARTBEAT: &[u8] = b": ping\n\n";

/// An answer that is a stream of events: no cache keeps it, no proxy holds it back.
pub fn event_stream(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn write_event(out: &mut Vec<u8>, frame: &ServerFrame<'_>, id: Option<EntryId>) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(frame.name().as_bytes());
    if let Some(id) = id {
        out.extend_from_slice(format!("\nid: {id}").as_bytes());
    }
    out.extend_from_slice(b"\ndata: ");
    let start = out.len();
    out.extend_from_slice(frame.to_json().as_bytes());
    escape_line_ends(out, start);
    out.extend_from_slice(b"\n\n");
}

/// Escapes the three characters that JSON leaves as they are and that some readers take for the end of a line. In JSON
/// they only stand in strings. Everything from `start` on is UTF-8.
fn escape_line_ends(out: &mut Vec<u8>, start: usize) {
    let suspect = |bytes: &[u8]| matches!(bytes, [0xE2, 0x80, 0xA8 | 0xA9, ..] | [0xC2, 0x85, ..]);
    let Some(first) = (start..out.len()).find(|i| suspect(&out[*i..])) else { return };
    let tail = out.split_off(first);
    let mut rest = tail.as_slice();
    while let [byte, after @ ..] = rest {
        rest = match rest {
            [0xE2, 0x80, 0xA8, after @ ..] => {
                out.extend_from_slice(b"\\u2028");
                after
            }
            [0xE2, 0x80, 0xA9, after @ ..] => {
                out.extend_from_slice(b"\\u2029");
                after
            }
            [0xC2, 0x85, after @ ..] => {
                out.extend_from_slice(b"\\u0085");
                after
            }
            _ => {
                out.push(*byte);
                after
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_line_ends_are_escaped_and_nothing_else() {
        for (text, want) in [
            ("a\u{2028}b\u{2029}c\u{85}d", "a\\u2028b\\u2029c\\u0085d"),
            ("€ ‥ ₨ Â é 𝒳", "€ ‥ ₨ Â é 𝒳"),
            ("\u{85}", "\\u0085"),
        ] {
            let mut out = b"kept\xC2\x85".to_vec();
            let start = out.len();
            out.extend_from_slice(text.as_bytes());
            escape_line_ends(&mut out, start);
            assert_eq!(&out[..start], b"kept\xC2\x85");
            assert_eq!(std::str::from_utf8(&out[start..]).unwrap(), want);
        }
    }

    #[test]
    fn an_event_is_one_line_each() {
        let mut out = Vec::new();
        let id = EntryId::new(7, 3);
        let frame = ServerFrame::Delta { session: "s", turn: "t", id, text: "a\nb\r\u{2028}" };
        write_event(&mut out, &frame, Some(id));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "event: delta\nid: 7-3\ndata: {\"type\":\"delta\",\"session\":\"s\",\"turn\":\"t\",\"id\":\"7-3\",\
             \"text\":\"a\\nb\\r\\u2028\"}\n\n"
        );
    }
}
