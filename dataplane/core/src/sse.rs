//! Reads a stream of server-sent events, piece by piece.
//!
//! Written here because the parsers in reach hold a line of any length in memory, and this one reads model servers that
//! may be faulty or hostile: a line and an event have a bound, and past it the stream is an error. It follows the
//! `text/event-stream` format: lines end with CR, LF or CRLF, a byte order mark at the start is skipped, `data` lines of
//! one event are joined, comments and unknown fields are ignored, an event that no blank line ends is dropped. Two
//! things are stricter: text that is not UTF-8 is an error instead of being replaced (an answer must not be altered
//! silently), and `retry` is ignored.
//!
//! An event costs no allocation once the buffers have grown to its size.

/// What a buffer keeps between events. An event above it is rare, and its memory is given back.
const BUFFER_KEPT_BYTES: usize = 64 * 1024;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// Its type; `message` where the stream names none.
    pub event: &'a str,
    /// Its data lines, joined by line feeds.
    pub data: &'a str,
    /// The last id that the stream gave, in this event or an earlier one; empty if none.
    pub id: &'a str,
}

/// Why a stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// A line, or the data of an event, above the bound.
    #[error("a line or event of more than {max_bytes} bytes")]
    TooLong {
        /// The bound.
        max_bytes: usize,
    },
    /// An event's text is not UTF-8.
    #[error("text that is not UTF-8")]
    NotUtf8,
}

/// Reads one stream. After an error it gives the same error for ever.
#[derive(Debug)]
pub struct SseParser {
    max_bytes: usize,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// The data of the event so far, each line with a line feed.
    data: Vec<u8>,
    event: Vec<u8>,
    id: Vec<u8>,
    /// The line before ended with CR: an LF that follows belongs to it.
    skip_line_feed: bool,
    first_line: bool,
    /// What stands in `data` was given out by the last call.
    given: bool,
    error: Option<SseError>,
}

impl SseParser {
    /// A parser that takes lines and events of at most `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            line: Vec::new(),
            data: Vec::new(),
            event: Vec::new(),
            id: Vec::new(),
            skip_line_feed: false,
            first_line: true,
            given: false,
            error: None,
        }
    }

    /// The next event. Takes what it reads off the front of `chunk`; with `None` all of it was read, and more is needed.
    ///
    /// # Errors
    /// Where the stream cannot be read on.
    pub fn next<'a>(&'a mut self, chunk: &mut &[u8]) -> Result<Option<SseEvent<'a>>, SseError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        match self.read(chunk) {
            Ok(false) => Ok(None),
            Ok(true) => self.given(),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Reads up to the end of an event; whether there is one.
    fn read(&mut self, chunk: &mut &[u8]) -> Result<bool, SseError> {
        if std::mem::take(&mut self.given) {
            forget(&mut self.data);
            forget(&mut self.event);
        }
        while !chunk.is_empty() {
            if std::mem::take(&mut self.skip_line_feed) && chunk[0] == b'\n' {
                *chunk = &chunk[1..];
                continue;
            }
            let end = chunk.iter().position(|&byte| byte == b'\n' || byte == b'\r');
            let here = end.unwrap_or(chunk.len());
            if self.line.len() + here > self.max_bytes {
                return Err(SseError::TooLong { max_bytes: self.max_bytes });
            }
            let (head, rest) = chunk.split_at(here);
            let Some((ending, rest)) = rest.split_first() else {
                self.line.extend_from_slice(head);
                *chunk = rest;
                break;
            };
            *chunk = rest;
            self.skip_line_feed = *ending == b'\r';
            if self.end_line(head)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A line is complete; whether an event is.
    fn end_line(&mut self, tail: &[u8]) -> Result<bool, SseError> {
        if self.line.is_empty() {
            return self.take_line(tail);
        }
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(tail);
        let result = self.take_line(&line);
        forget(&mut line);
        self.line = line;
        result
    }

    fn take_line(&mut self, mut line: &[u8]) -> Result<bool, SseError> {
        if std::mem::take(&mut self.first_line) {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        if line.is_empty() {
            if self.data.is_empty() {
                forget(&mut self.event);
                return Ok(false);
            }
            self.data.pop();
            self.given = true;
            return Ok(true);
        }
        let (field, value) = match line.iter().position(|&byte| byte == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                // Each line counts one more byte, its line feed, so that empty lines without end have a bound too.
                if self.data.len() + value.len() > self.max_bytes {
                    return Err(SseError::TooLong { max_bytes: self.max_bytes });
                }
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
            }
            b"event" => {
                self.event.clear();
                self.event.extend_from_slice(value);
            }
            b"id" if !value.contains(&0) => {
                self.id.clear();
                self.id.extend_from_slice(value);
            }
            _ => {}
        }
        Ok(false)
    }

    /// The event in the buffers.
    fn given(&mut self) -> Result<Option<SseEvent<'_>>, SseError> {
        if [&self.data, &self.event, &self.id].iter().any(|text| std::str::from_utf8(text).is_err()) {
            return Err(self.fail(SseError::NotUtf8));
        }
        let event = if self.event.is_empty() { "message" } else { text(&self.event) };
        Ok(Some(SseEvent { event, data: text(&self.data), id: text(&self.id) }))
    }

    fn fail(&mut self, error: SseError) -> SseError {
        self.error = Some(error);
        self.line = Vec::new();
        self.data = Vec::new();
        error
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn forget(buffer: &mut Vec<u8>) {
    buffer.clear();
    if buffer.capacity() > BUFFER_KEPT_BYTES {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests;
