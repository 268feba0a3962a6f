//! What a turn took before the store accepted it.

use std::{fmt, sync::Arc};

use chatgateway_core::limiter::table::Op;

use super::Limiter;

/// Dropped, its tokens come back, and the same turn may take again; the request stays counted.
pub struct Ticket {
    limiter: Arc<Limiter>,
    mark: Arc<str>,
    buckets: Vec<Arc<str>>,
    /// Whether it took: a repeat of a turn that was admitted before did not, and has nothing to give back.
    fresh: bool,
}

impl Ticket {
    pub(super) fn new(limiter: Arc<Limiter>, mark: Arc<str>, buckets: Vec<Arc<str>>, fresh: bool) -> Self {
        Self { limiter, mark, buckets, fresh }
    }

    /// The turn is accepted: whoever runs it settles what it took.
    pub fn keep(mut self) {
        self.fresh = false;
    }

    /// The same. Returns the mark under which it took.
    pub(super) fn kept(mut self) -> Option<Arc<str>> {
        std::mem::take(&mut self.fresh).then(|| self.mark.clone())
    }

    /// The turn has ended long ago: it should not have taken anything.
    pub fn void(mut self) {
        if std::mem::take(&mut self.fresh) {
            let buckets = std::mem::take(&mut self.buckets);
            self.limiter.follow_up(Op::undo(self.mark.clone(), buckets));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.fresh {
            self.limiter.follow_up(Op::Undo { mark: self.mark.clone(), buckets: Vec::new() });
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("mark", &self.mark).field("fresh", &self.fresh).finish_non_exhaustive()
    }
}
