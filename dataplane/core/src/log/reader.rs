//! A reader: a position in a session's log, and what comes next.
//!
//! A state machine without I/O, one for each client that reads a session. It takes an entry only if that entry follows its
//! position, wherever it comes from, so nothing is missed unseen; what does not fit makes it look at the log. Whether its
//! position is good is decided by the log alone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Entry, EntryId, EntryKind, ReadReply, Unknown};
use crate::limits::{READ_PAGE_ENTRIES, READER_HELD_ENTRIES, READER_SILENCE, STORE_RETRY_MAX, STORE_RETRY_MIN};

#[cfg(test)]
mod tests;

/// What a reader hears.
#[derive(Debug)]
pub enum ReaderInput {
    /// The outcome of the outstanding read.
    Page(Result<ReadReply, Unknown>),
    /// An entry was committed.
    Live(Arc<Entry>),
    /// Live entries were dropped.
    Overflow,
    /// There are signs that the log is not what it was, or not all was heard: the connection to the store is new, the
    /// subscription was renewed, the session was deleted.
    Suspect,
    /// Time has passed.
    Tick,
}

/// What a reader wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum ReaderEffect {
    /// Read a page of the log (when there is room for it), and bring the outcome. Never more than one at a time.
    Read {
        /// Entries after this id.
        after: EntryId,
        /// At most so many.
        count: usize,
    },
    /// The position is good: every later entry follows.
    Resumed {
        /// The position.
        position: EntryId,
    },
    /// The next entry.
    Entry(Arc<Entry>),
    /// The position is not one of this log. The last effect: the client takes the snapshot.
    NotRecovered,
    /// The log was cut beyond the position before it was read. The last effect.
    Slow,
    /// The session was deleted or has expired. The last effect.
    Gone,
    /// The session's owner is not heard of, or its log has a break that its owner has to repair.
    OwnerSilent {
        /// Its lease is over: claim the session. Otherwise: send the owner a hint.
        lease_over: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// At the end of the log, as far as is known.
    Live,
    /// Reads after its position.
    Reading,
    /// Its position is not good. It reads the log from `base`, where a client would start again, to see whether that can
    /// be read to the end; if not, telling the client would only send it in circles.
    Judging {
        base: EntryId,
        to: EntryId,
    },
    /// Waits for the owner to repair the log.
    Waiting,
    Closed,
}

/// One reader of a session. See the module.
#[derive(Debug)]
pub struct Reader {
    position: EntryId,
    mode: Mode,
    /// Whether the client was told that its position is good.
    resumed: bool,
    /// Whether a turn is known to run or wait.
    unfinished: bool,
    /// A read is outstanding.
    asked: bool,
    /// What is read may be outdated already: read again.
    again: bool,
    held: Vec<Arc<Entry>>,
    heard: Instant,
    attempts: u32,
    retry_at: Option<Instant>,
}

impl Reader {
    /// A reader of a client that says it has read up to `after`. Whether that is good is read first.
    pub fn resume(after: EntryId, now: Instant, out: &mut Vec<ReaderEffect>) -> Self {
        let mut reader = Self::at(after, Mode::Reading, now);
        reader.read(out);
        reader
    }

    /// A reader at a position that the store gave just now, with a turn's acceptance: nothing has to be read.
    #[must_use]
    pub fn attach(position: EntryId, now: Instant) -> Self {
        Self { resumed: true, unfinished: true, ..Self::at(position, Mode::Live, now) }
    }

    fn at(position: EntryId, mode: Mode, now: Instant) -> Self {
        Self {
            position,
            mode,
            resumed: false,
            unfinished: false,
            asked: false,
            again: false,
            held: Vec::new(),
            heard: now,
            attempts: 0,
            retry_at: None,
        }
    }

    /// The last entry it gave out, or where it began.
    #[must_use]
    pub fn position(&self) -> EntryId {
        self.position
    }

    /// Whether a turn runs or waits, as far as it has heard.
    #[must_use]
    pub fn unfinished(&self) -> bool {
        self.unfinished
    }

    /// Whether live entries are taken as they come.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.mode == Mode::Live
    }

    /// Whether it is over: nothing more comes out of it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.mode == Mode::Closed
    }

    /// When it wants a [`ReaderInput::Tick`] at the latest.
    #[must_use]
    pub fn timeout(&self) -> Option<Instant> {
        match self.mode {
            Mode::Closed => None,
            _ if self.asked => None,
            Mode::Live => self.unfinished.then(|| self.heard + READER_SILENCE),
            _ => self.retry_at,
        }
    }

    /// Takes one input. What is to be done is added to `out`.
    pub fn handle(&mut self, input: ReaderInput, now: Instant, out: &mut Vec<ReaderEffect>) {
        match input {
            ReaderInput::Live(entry) => self.on_live(entry, now, out),
            ReaderInput::Page(page) => self.on_page(page, now, out),
            ReaderInput::Overflow | ReaderInput::Suspect => self.look(out),
            ReaderInput::Tick => self.on_tick(now, out),
        }
    }

    fn on_live(&mut self, entry: Arc<Entry>, now: Instant, out: &mut Vec<ReaderEffect>) {
        match self.mode {
            Mode::Live if entry.predecessor() == self.position => {
                self.heard = now;
                self.take(entry, out);
            }
            // An epoch has one writer and is never given twice: this was read before it was heard.
            Mode::Live if entry.id.epoch == self.position.epoch && entry.id <= self.position => {}
            // A hole, or another log than before: even an id below the position may be news.
            Mode::Live => {
                self.hold(entry);
                self.look(out);
            }
            Mode::Reading | Mode::Judging { .. } => self.hold(entry),
            // What a repair consists of is worth a look; more text behind the break is not.
            Mode::Waiting if !matches!(entry.kind, EntryKind::Delta { .. }) => self.look(out),
            Mode::Waiting | Mode::Closed => {}
        }
    }

    fn take(&mut self, entry: Arc<Entry>, out: &mut Vec<ReaderEffect>) {
        self.position = entry.id;
        self.unfinished = entry.kind.end().is_none();
        out.push(ReaderEffect::Entry(entry));
    }

    fn hold(&mut self, entry: Arc<Entry>) {
        if self.held.len() < READER_HELD_ENTRIES {
            self.held.push(entry);
        } else {
            self.held.clear();
            self.again = true;
        }
    }

    /// Reads after the position, now or after the outstanding read.
    fn look(&mut self, out: &mut Vec<ReaderEffect>) {
        match self.mode {
            Mode::Closed => {}
            _ if self.asked => self.again = true,
            _ => {
                self.mode = Mode::Reading;
                self.read(out);
            }
        }
    }

    fn read(&mut self, out: &mut Vec<ReaderEffect>) {
        self.asked = true;
        self.again = false;
        self.retry_at = None;
        let after = match self.mode {
            Mode::Judging { to, .. } => to,
            _ => self.position,
        };
        out.push(ReaderEffect::Read { after, count: READ_PAGE_ENTRIES });
    }

    fn on_tick(&mut self, now: Instant, out: &mut Vec<ReaderEffect>) {
        if self.timeout().is_some_and(|at| at <= now) {
            self.look(out);
        }
    }

    fn on_page(&mut self, page: Result<ReadReply, Unknown>, now: Instant, out: &mut Vec<ReaderEffect>) {
        if !std::mem::take(&mut self.asked) || self.mode == Mode::Closed {
            return;
        }
        let Ok(page) = page else {
            self.mode = Mode::Reading;
            self.wait(now);
            return;
        };
        self.heard = now;
        if let Mode::Judging { base, to } = self.mode {
            return self.judge(base, to, &page, now, out);
        }
        let was_unfinished = std::mem::replace(&mut self.unfinished, page.unfinished);
        if !page.exists {
            return self.on_no_session(was_unfinished, out);
        }
        // While nothing runs the log ends at its base: what a stale writer left behind that is nobody's.
        let end = if page.unfinished { page.end } else { page.base };
        let mut entries = page.entries.iter().filter(|entry| page.unfinished || entry.id <= end).peekable();
        let good = entries.peek().map_or(self.position == end, |first| first.predecessor() == self.position);
        if !good {
            return self.not_good(&page, now, out);
        }
        self.tell_resumed(out);
        for entry in entries {
            if entry.predecessor() != self.position {
                return self.not_good(&page, now, out);
            }
            self.take(Arc::clone(entry), out);
        }
        self.unfinished = page.unfinished;
        if self.position != end {
            return self.read(out);
        }
        self.attempts = 0;
        // Also at the first look: a client that polls never waits for long as one reader.
        if page.unfinished && page.lease_left_ms == 0 {
            out.push(ReaderEffect::OwnerSilent { lease_over: true });
        }
        self.go_live(out);
    }

    /// At the end of the last page: what was heard meanwhile follows it, or was in it, or asks for another page.
    fn go_live(&mut self, out: &mut Vec<ReaderEffect>) {
        for entry in std::mem::take(&mut self.held) {
            if entry.predecessor() == self.position {
                self.take(entry, out);
            } else if entry.id > self.position {
                self.again = true;
            }
        }
        if self.again {
            self.read(out);
        } else {
            self.mode = Mode::Live;
        }
    }

    fn tell_resumed(&mut self, out: &mut Vec<ReaderEffect>) {
        if !std::mem::replace(&mut self.resumed, true) {
            out.push(ReaderEffect::Resumed { position: self.position });
        }
    }

    fn on_no_session(&mut self, was_unfinished: bool, out: &mut Vec<ReaderEffect>) {
        let expects = self.position != EntryId::ZERO || was_unfinished;
        if !expects {
            // Before the beginning of a session that is yet to come.
            self.tell_resumed(out);
            return self.go_live(out);
        }
        self.close(if self.resumed { ReaderEffect::Gone } else { ReaderEffect::NotRecovered }, out);
    }

    /// The entry after the position does not follow it, or there is none although the log ends elsewhere.
    fn not_good(&mut self, page: &ReadReply, now: Instant, out: &mut Vec<ReaderEffect>) {
        if self.resumed && self.position < page.first {
            self.close(ReaderEffect::Slow, out);
        } else if !page.unfinished {
            self.close(ReaderEffect::NotRecovered, out);
        } else if page.base == self.position {
            // The break comes right after the place where a client would start again.
            self.wait_for_repair(page, now, out);
        } else {
            self.mode = Mode::Judging { base: page.base, to: page.base };
            self.read(out);
        }
    }

    fn judge(&mut self, base: EntryId, to: EntryId, page: &ReadReply, now: Instant, out: &mut Vec<ReaderEffect>) {
        if !page.exists || !page.unfinished || page.base != base {
            // It has changed meanwhile.
            self.mode = Mode::Reading;
            return self.read(out);
        }
        let mut to = to;
        for entry in &page.entries {
            if entry.predecessor() != to {
                return self.wait_for_repair(page, now, out);
            }
            to = entry.id;
        }
        if to == page.end {
            self.close(ReaderEffect::NotRecovered, out);
        } else if page.entries.is_empty() {
            self.wait_for_repair(page, now, out);
        } else {
            self.mode = Mode::Judging { base, to };
            self.read(out);
        }
    }

    fn wait_for_repair(&mut self, page: &ReadReply, now: Instant, out: &mut Vec<ReaderEffect>) {
        self.held.clear();
        self.mode = Mode::Waiting;
        out.push(ReaderEffect::OwnerSilent { lease_over: page.lease_left_ms == 0 });
        self.wait(now);
    }

    fn close(&mut self, why: ReaderEffect, out: &mut Vec<ReaderEffect>) {
        self.held = Vec::new();
        self.mode = Mode::Closed;
        out.push(why);
    }

    /// Looks again after a while: longer each time, and spread by where each reader stands.
    fn wait(&mut self, now: Instant) {
        let pause = STORE_RETRY_MIN.saturating_mul(1 << self.attempts.min(10)).min(STORE_RETRY_MAX);
        self.attempts += 1;
        let spread = (self.position.epoch ^ self.position.n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54; // 0..1024
        let pause = pause / 2 + Duration::from_micros(pause.as_micros() as u64 / 2 * spread / 1_024);
        self.retry_at = Some(now + pause);
    }
}
