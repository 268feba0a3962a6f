//! How fast those who wait are served.

use std::time::{Duration, Instant};

use crate::limits::QUEUE_PACE_WINDOW;

/// The time between two calls that end while somebody waits, over some hundred milliseconds and more: calls of one batch end
/// in one instant, which says nothing by itself.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Since when is counted, and how many ended since.
    window: Option<(Instant, u32)>,
    smoothed: Option<Duration>,
}

impl Pace {
    /// A call has ended. Only while somebody waits that tells how fast the model server is.
    pub(super) fn served(&mut self, now: Instant, somebody_waits: bool) {
        if !somebody_waits {
            self.window = None;
            return;
        }
        let Some((since, count)) = &mut self.window else {
            self.window = Some((now, 0));
            return;
        };
        *count += 1;
        let elapsed = now.saturating_duration_since(*since);
        if elapsed >= QUEUE_PACE_WINDOW {
            let fresh = elapsed / *count;
            self.smoothed = Some(self.smoothed.map_or(fresh, |held| (held + fresh) / 2));
            self.window = Some((now, 0));
        }
    }

    /// The time from one to the next, if it is known: slower than measured where nothing has ended for long.
    pub(super) fn at(&self, now: Instant) -> Option<Duration> {
        let smoothed = self.smoothed?;
        let since = self.window.map(|(since, count)| now.saturating_duration_since(since) / (count + 1));
        Some(since.unwrap_or_default().max(smoothed))
    }
}
