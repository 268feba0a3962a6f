//! One token bucket.

use super::Limit;

/// What a bucket holds, and when that was so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Units.
    pub level: u64,
    /// Microseconds on the store's clock.
    pub at: u64,
}

impl Bucket {
    /// A bucket that nobody has taken from.
    #[must_use]
    pub const fn full(limit: &Limit, now: u64) -> Self {
        Self { level: limit.capacity(), at: now }
    }

    /// The same `now`. A limit that has become smaller cuts the level. A clock that was put back gives nothing: the bucket
    /// waits for it to come to where it was, or begins to fill from there where that would take longer than filling an empty one.
    #[must_use]
    pub fn refilled(self, limit: &Limit, now: u64) -> Self {
        let capacity = limit.capacity();
        let level = self.level.min(capacity);
        if now >= self.at {
            let gain = (now - self.at).saturating_mul(limit.per_minute);
            return Self { level: level.saturating_add(gain).min(capacity), at: now };
        }
        let behind = (self.at - now).saturating_mul(limit.per_minute) > capacity;
        Self { level, at: if behind { now } else { self.at } }
    }

    /// Gives back.
    #[must_use]
    pub fn with(self, units: u64, limit: &Limit) -> Self {
        Self { level: self.level.saturating_add(units).min(limit.capacity()), at: self.at }
    }

    /// In how many milliseconds it is full, rounded down.
    #[must_use]
    pub fn full_in_ms(&self, limit: &Limit) -> u64 {
        limit.capacity().saturating_sub(self.level) / limit.per_minute.saturating_mul(1_000).max(1)
    }

    /// In how many microseconds it holds so much, rounded up.
    #[must_use]
    pub fn holds_in_us(&self, units: u64, limit: &Limit) -> u64 {
        units.saturating_sub(self.level).div_ceil(limit.per_minute.max(1))
    }
}
