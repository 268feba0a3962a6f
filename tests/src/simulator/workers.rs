//! The workers of a model server: so many calls run, so many wait in line, the rest is refused.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The workers.
#[derive(Clone)]
pub struct Workers {
    free: Option<Arc<Semaphore>>,
    waiting: Arc<AtomicUsize>,
    max_queued: usize,
}

/// A busy worker; free again when this is dropped.
pub struct WorkerPermit {
    _permit: Option<OwnedSemaphorePermit>,
}

/// A place in the line.
pub struct Turnstile {
    free: Option<Arc<Semaphore>>,
    waiting: Option<Waiting>,
}

struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// `workers` calls run at a time, 0 for any number; `max_queued` wait.
    pub fn new(workers: usize, max_queued: usize) -> Self {
        let free = (workers > 0).then(|| Arc::new(Semaphore::new(workers.min(Semaphore::MAX_PERMITS))));
        Self { free, waiting: Arc::default(), max_queued }
    }

    /// A place in the line, or nothing where the line is full.
    pub fn enter(&self) -> Option<Turnstile> {
        let Some(free) = &self.free else { return Some(Turnstile { free: None, waiting: None }) };
        // Those who wait include the ones a free worker is about to take.
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        let waiting_guard = Waiting(self.waiting.clone());
        let room = self.max_queued.saturating_add(free.available_permits());
        (waiting <= room).then(|| Turnstile { free: Some(free.clone()), waiting: Some(waiting_guard) })
    }
}

impl Turnstile {
    /// Waits for a worker, first come, first served.
    pub async fn pass(&mut self) -> WorkerPermit {
        let permit = match &self.free {
            // The semaphore is never closed.
            Some(free) => free.clone().acquire_owned().await.ok(),
            None => None,
        };
        self.waiting = None;
        WorkerPermit { _permit: permit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn workers_run_some_queue_some_and_refuse_the_rest() {
        let workers = Workers::new(1, 1);
        let running = workers.enter().unwrap().pass().await;
        let mut queued = workers.enter().unwrap();
        assert!(workers.enter().is_none(), "the line is full");
        drop(running);
        let running = queued.pass().await;
        assert!(workers.enter().is_some(), "a place is free again");
        drop(running);
    }
}
