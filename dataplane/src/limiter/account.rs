//! The tokens of one answer while it comes.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use chatgateway_core::{
    limiter::{
        meter::{Meter, tokens_of},
        verdict::{Demand, stopped},
    },
    log::Usage,
};

use super::{Extension, Limiter};

/// Counts an answer's tokens, takes more in time, and gives back what was not used when it is dropped.
pub struct Account {
    limiter: Arc<Limiter>,
    mark: Arc<str>,
    meter: Meter,
    extension: Option<Extension>,
    failed: bool,
    /// Somebody else settles.
    left: bool,
}

impl Account {
    pub(super) fn new(
        limiter: Arc<Limiter>,
        mark: Arc<str>,
        demand: Demand,
        taken: u64,
        chunk: u64,
        calls: usize,
    ) -> Self {
        let meter = Meter::new(demand, taken, chunk, calls);
        Self { limiter, mark, meter, extension: None, failed: false, left: false }
    }

    /// The prompt has so many bytes more: the history before it, the beginning of the answer.
    pub fn add_prompt(&mut self, bytes: usize) {
        self.meter.add_prompt(tokens_of(bytes));
    }

    /// A piece of the answer came.
    pub fn text(&mut self, bytes: usize) {
        self.meter.text(bytes);
    }

    /// So many pieces came, of so many bytes together.
    pub fn pieces(&mut self, bytes: usize, pieces: u64) {
        self.meter.pieces(bytes, pieces);
    }

    /// A model server is done, and told what it cost, or nothing.
    pub fn end(&mut self, usage: Usage) {
        self.meter.end(usage);
    }

    /// Ready when the answer must stop, with what its client is told. While it is pending, [`Self::waits`] says whether the answer may
    /// go on.
    pub fn poll_stop(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        loop {
            if let Some(extension) = &mut self.extension {
                let refused = std::task::ready!(extension.as_mut().poll(cx));
                self.extension = None;
                match refused {
                    None => self.meter.granted(),
                    Some(wait_us) if self.meter.refused() => {
                        self.limiter.stopped();
                        return Poll::Ready(stopped(wait_us));
                    }
                    Some(_) => {}
                }
            }
            match self.meter.wants() {
                Some(tokens) => self.extension = Some(self.limiter.extend(&self.mark, tokens)),
                None => return Poll::Pending,
            }
        }
    }

    /// Whether no more of the answer may be taken for now.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.meter.waits()
    }

    /// A call failed. If nothing has come at all when this is dropped, it cost nothing.
    pub fn call_failed(&mut self) {
        self.failed = true;
    }

    /// Another pod goes on with it, and settles.
    pub fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.left {
            let used = if self.failed && !self.meter.begun() { 0 } else { self.meter.used() };
            self.limiter.settle(&self.mark, used, self.meter.taken());
        }
    }
}
