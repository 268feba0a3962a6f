//! A call that failed before its first word is made again: at another endpoint at once, or at the same one after a pause, as
//! long as there is time and the budget allows it.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use chatgateway_core::{
    pool::EndpointId,
    retry::{self, FailedAttempt, RetryTerms},
};

use super::{failure::Failure, server::Server};
use crate::clock;

/// The attempts of one call at one upstream.
pub(super) struct Attempts<'a> {
    server: &'a Server,
    start: Instant,
    made: u32,
    tried: Vec<EndpointId>,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(server: &'a Server) -> Self {
        Self { server, start: clock::now(), made: 0, tried: Vec::new() }
    }

    /// After a call whose answer broke off at an endpoint: where another one has room, that one counts as tried.
    pub(super) fn after(mut self, broke_off: Option<EndpointId>) -> Self {
        self.tried.extend(broke_off.filter(|endpoint| self.server.has_other(&[*endpoint])));
        self
    }

    /// The endpoints that have failed.
    pub(super) fn tried(&self) -> &[EndpointId] {
        &self.tried
    }

    /// An attempt was answered.
    pub(super) fn answered(&mut self) {
        self.count();
    }

    /// An attempt has failed. Comes back when it is time for the next one.
    ///
    /// # Errors
    /// The failure, where there is none.
    pub(super) async fn failed(&mut self, failure: Failure) -> Result<(), Failure> {
        let Some(endpoint) = failure.endpoint else { return Err(failure) };
        self.count();
        if !failure.is_worth_another() {
            return Err(failure);
        }
        let Some(pause) = self.pause(endpoint, &failure) else { return Err(failure) };
        let counters = &self.server.counters;
        counters.failures.fetch_add(1, Relaxed);
        counters.retries.fetch_add(1, Relaxed);
        tracing::debug!(upstream = &*self.server.name, "made again in {} ms: {}", pause.as_millis(), failure.message);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    fn pause(&mut self, endpoint: EndpointId, failure: &Failure) -> Option<Duration> {
        self.tried.push(endpoint);
        let failed = FailedAttempt {
            made: self.made,
            elapsed: clock::now().saturating_duration_since(self.start),
            asked_to_wait: failure.retry_after_ms.map(Duration::from_millis),
            other_endpoint: self.server.has_other(&self.tried),
        };
        let terms = RetryTerms {
            max_attempts: self.server.retries.max_attempts,
            first_token: self.server.timeouts.first_token,
            total: self.server.timeouts.total,
        };
        let pause = retry::pause(&failed, &terms, rand::random())?;
        // What no endpoint has got is no load: that is made again without the budget, which a dead endpoint would use up.
        if !failure.unsent && !self.server.withdraw() {
            return None;
        }
        Some(pause)
    }

    /// First attempts that reached an endpoint earn further ones; those refused in the queue do not.
    fn count(&mut self) {
        self.made += 1;
        if self.made == 1 {
            self.server.budget.lock().deposit();
        }
    }
}
