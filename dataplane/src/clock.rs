//! The only place that reads a clock. It is tokio's, so that tests with paused time move both clocks.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use chatgateway_core::log::StoreTime;

/// The process's clock.
#[derive(Clone)]
pub struct Clock {
    start: Arc<(Instant, u64)>,
}

impl Clock {
    /// A clock that starts at the system's time and from there never jumps.
    #[must_use]
    pub fn system() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { start: Arc::new((now(), u64::try_from(wall.as_micros()).unwrap_or(u64::MAX))) }
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub fn store_time(&self) -> StoreTime {
        let (start, wall) = *self.start;
        StoreTime(wall + u64::try_from((now() - start).as_micros()).unwrap_or(u64::MAX))
    }
}

/// The monotonic time.
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A time in whole milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The time of day, for the dates that others write.
#[must_use]
pub fn wall() -> SystemTime {
    SystemTime::now()
}
