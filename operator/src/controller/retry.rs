//! When a gateway is tried again whose reconciliation failed.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::Error;

/// First pause. Each further one is twice as long, until something gets done.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// How often in a row nothing got done, by the gateways' uids.
#[derive(Default)]
pub(super) struct Retries {
    failures: Mutex<HashMap<String, u32>>,
}

impl Retries {
    /// A reconciliation has failed: how long to wait, not less than the API server asks for.
    pub(super) fn pause(&self, uid: &str, error: &Error) -> Duration {
        let mut failures = self.failures.lock();
        let count = failures.entry(uid.to_owned()).or_default();
        let pause = PAUSE_MIN * 2_u32.saturating_pow(*count);
        *count = count.saturating_add(1);
        PAUSE_MAX.min(pause.max(asked_for(error)))
    }

    /// Something got done. Many writes are no reason for a long pause where each has failed once.
    pub(super) fn progress(&self, uid: &str) {
        self.failures.lock().remove(uid);
    }
}

/// What the API server wants to be left alone for.
fn asked_for(error: &Error) -> Duration {
    let Error::Api { source, .. } = error else { return Duration::ZERO };
    let kube::Error::Api(status) = &**source else { return Duration::ZERO };
    let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    Duration::from_secs(seconds.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(retry_after_s: u32) -> Error {
        let status = serde_json::json!({
            "status": "Failure", "code": 429, "message": "", "reason": "", "details": {"retryAfterSeconds": retry_after_s},
        });
        let status: kube::core::Status = serde_json::from_value(status).expect("a status");
        Error::Api { what: "apply".to_owned(), source: Box::new(kube::Error::Api(Box::new(status))) }
    }

    fn silent() -> Error {
        Error::Timeout { what: "apply".to_owned() }
    }

    #[test]
    fn pauses_grow_to_their_bound_for_each_gateway_alone() {
        let retries = Retries::default();
        let pauses_s: Vec<_> = (0..11).map(|_| retries.pause("a", &silent()).as_secs()).collect();
        assert_eq!(pauses_s, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(retries.pause("b", &silent()), PAUSE_MIN);
        (0..100).for_each(|_| assert!(retries.pause("a", &silent()) == PAUSE_MAX));
    }

    #[test]
    fn whoever_gets_something_done_begins_with_the_shortest() {
        let retries = Retries::default();
        assert_eq!((0..5).map(|_| retries.pause("a", &silent()).as_secs()).max(), Some(16));
        retries.progress("a");
        assert_eq!(retries.pause("a", &silent()), PAUSE_MIN);
    }

    #[test]
    fn the_api_server_is_left_alone_for_as_long_as_it_asks() {
        let retries = Retries::default();
        assert_eq!(retries.pause("a", &refused(20)).as_secs(), 20);
        assert_eq!(retries.pause("a", &refused(1)).as_secs(), 2);
        assert_eq!(retries.pause("a", &refused(4_000)), PAUSE_MAX);
    }
}
