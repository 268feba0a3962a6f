//! A client that reads: its reader, what it has seen, and what it does when it is told of a loss.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use chatgateway_core::log::{Entry, EntryId, Reader, ReaderEffect, ReaderInput};

/// What stands between a client and its next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// It reads.
    Nothing,
    /// Its connection is gone, or it has a new position: it resumes.
    Resume,
    /// It was told of a loss: it takes the snapshot.
    Snapshot,
}

pub struct Client {
    pub pod: usize,
    /// Counts the readers it had: what an earlier one asked is not for the present one.
    pub generation: u64,
    pub reader: Option<Reader>,
    /// Committed entries on their way to it.
    pub live: VecDeque<Arc<Entry>>,
    pub position: EntryId,
    /// Entries it took since it last started again.
    pub view: Vec<Arc<Entry>>,
    /// How often it was told of a loss.
    pub told: usize,
    pub wants: Wants,
}

impl Client {
    pub fn new(pod: usize) -> Self {
        Self {
            pod,
            generation: 0,
            reader: None,
            live: VecDeque::new(),
            position: EntryId::ZERO,
            view: Vec::new(),
            told: 0,
            wants: Wants::Resume,
        }
    }

    /// Its connection is gone.
    pub fn disconnect(&mut self, pod: usize) {
        self.pod = pod;
        self.reader = None;
        self.live.clear();
        if self.wants == Wants::Nothing {
            self.wants = Wants::Resume;
        }
    }

    pub fn resume(&mut self, now: Instant, out: &mut Vec<ReaderEffect>) {
        self.generation += 1;
        self.wants = Wants::Nothing;
        self.live.clear();
        self.reader = Some(Reader::resume(self.position, now, out));
    }

    /// A turn of its own was accepted, and its connection reads from there.
    pub fn attach(&mut self, pod: usize, from: EntryId, now: Instant) {
        self.disconnect(pod);
        self.generation += 1;
        self.position = from;
        self.view.clear();
        self.wants = Wants::Nothing;
        self.reader = Some(Reader::attach(from, now));
    }

    pub fn handle(&mut self, input: ReaderInput, now: Instant, out: &mut Vec<ReaderEffect>) {
        if let Some(reader) = &mut self.reader {
            reader.handle(input, now, out);
        }
    }

    /// A reader that takes whatever has a greater id.
    pub fn handle_carelessly(&mut self, input: ReaderInput, out: &mut Vec<ReaderEffect>) {
        let mut entries = Vec::new();
        match input {
            ReaderInput::Page(Ok(page)) => entries = page.entries,
            ReaderInput::Live(entry) => entries.push(entry),
            ReaderInput::Overflow | ReaderInput::Suspect => {
                out.push(ReaderEffect::Read { after: self.position, count: 100 });
            }
            ReaderInput::Page(Err(_)) | ReaderInput::Tick => {}
        }
        let mut position = self.position;
        for entry in entries.into_iter().filter(|entry| entry.id > self.position) {
            if entry.id > position {
                position = entry.id;
                out.push(ReaderEffect::Entry(entry));
            }
        }
    }
}
