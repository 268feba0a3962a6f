//! Which calls are made again, and when.
//!
//! A call that failed before its first word may be made again, within a budget that first attempts earn: a model server that
//! fails all of its calls gets a tenth more load by that, not three times as much. What is not worth waiting for goes to the
//! next upstream.

use std::time::{Duration, SystemTime};

use crate::limits::{RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN, RETRY_RESERVE, RETRY_WAIT_MAX};

/// Further attempts that may be made: each first one earns a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    percent: u32,
    /// In hundredths of an attempt.
    held: u32,
}

impl RetryBudget {
    /// A full one. With 0 % it never allows anything.
    #[must_use]
    pub fn new(percent: u32) -> Self {
        Self { percent, held: if percent == 0 { 0 } else { RETRY_RESERVE * 100 } }
    }

    /// Another percentage from now on; what is held stays.
    pub fn configure(&mut self, percent: u32) {
        match (self.percent, percent) {
            (_, 0) => self.held = 0,
            (0, _) => *self = Self::new(percent),
            _ => {}
        }
        self.percent = percent;
    }

    /// A first attempt is made.
    pub fn deposit(&mut self) {
        self.held = (self.held + self.percent).min(if self.percent == 0 { 0 } else { RETRY_RESERVE * 100 });
    }

    /// A further attempt is to be made: whether it may.
    pub fn withdraw(&mut self) -> bool {
        if self.held < 100 {
            return false;
        }
        self.held -= 100;
        true
    }
}

/// An attempt that failed before its first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedAttempt {
    /// Attempts made of this call at this upstream, with this one.
    pub made: u32,
    /// Since the first one began.
    pub elapsed: Duration,
    /// How long the model server asks to wait.
    pub asked_to_wait: Option<Duration>,
    /// Whether another endpoint of the upstream has room: it has no reason to wait.
    pub other_endpoint: bool,
}

/// How often and for how long a call is made again at one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryTerms {
    /// Attempts, the first included.
    pub max_attempts: u32,
    /// How long the first word may take; so long it is worth to wait for the same endpoint.
    pub first_token: Duration,
    /// How long the whole call may take.
    pub total: Duration,
}

/// When the call is made again; none: it is the next upstream's turn. The budget is not asked yet.
#[must_use]
pub fn pause(failed: &FailedAttempt, terms: &RetryTerms, random: u64) -> Option<Duration> {
    if failed.made >= terms.max_attempts {
        return None;
    }
    if failed.other_endpoint {
        return (failed.elapsed < terms.total).then_some(Duration::ZERO);
    }
    let pause = backoff(failed.made, random).max(failed.asked_to_wait.unwrap_or_default());
    let left = terms.first_token.min(terms.total).saturating_sub(failed.elapsed).min(RETRY_WAIT_MAX);
    (pause < left).then_some(pause)
}

/// A random time up to a bound that doubles with each attempt: those that failed together do not come back together.
#[must_use]
pub fn backoff(made: u32, random: u64) -> Duration {
    let bound = RETRY_BACKOFF_MIN.saturating_mul(1 << made.saturating_sub(1).min(16)).min(RETRY_BACKOFF_MAX);
    let share = (random >> 44) as u32; // 0..2^20
    bound.saturating_mul(share) / (1 << 20)
}

/// What a model server says about when to ask again, as its headers have it.
#[derive(Clone, Copy, Debug, Default)]
pub struct WaitHeaders<'a> {
    /// `retry-after-ms`.
    pub retry_after_ms: Option<&'a str>,
    /// `retry-after`: seconds, or a date.
    pub retry_after: Option<&'a str>,
    /// `x-ratelimit-remaining-requests` and `x-ratelimit-reset-requests`.
    pub requests: (Option<&'a str>, Option<&'a str>),
    /// `x-ratelimit-remaining-tokens` and `x-ratelimit-reset-tokens`.
    pub tokens: (Option<&'a str>, Option<&'a str>),
}

impl WaitHeaders<'_> {
    /// How long to wait. `now` is the wall clock, against which dates are read.
    #[must_use]
    pub fn read(&self, now: SystemTime) -> Option<Duration> {
        let ms = self.retry_after_ms.and_then(|text| number(text, 1_000.0));
        ms.or_else(|| retry_after(self.retry_after?, now)).or_else(|| self.reset())
    }

    /// When the limit that is used up is full again. Where none is said to be, the one that is full sooner.
    fn reset(&self) -> Option<Duration> {
        let used_up = |(left, reset): (Option<&str>, Option<&str>)| {
            left.filter(|left| left.trim() == "0").and(reset).and_then(duration)
        };
        let resets = [self.requests, self.tokens];
        let longest = resets.into_iter().filter_map(used_up).max();
        longest.or_else(|| resets.into_iter().filter_map(|(_, reset)| duration(reset?)).min())
    }
}

fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Some(seconds) = number(text, 1.0) {
        return Some(seconds);
    }
    let at = httpdate::parse_http_date(text.trim()).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// A number of which `per_second` make a second.
fn number(text: &str, per_second: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(text.trim().parse::<f64>().ok()? / per_second).ok()
}

/// `1s`, `6m0s`, `20ms`, `1h2m3.5s`; a number alone is seconds.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if let Some(seconds) = number(rest, 1.0) {
        return Some(seconds);
    }
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (count, unit) = rest.split_at(unit_at);
        let unit_end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let per_second = match &unit[..unit_end] {
            "h" => 1.0 / 3_600.0,
            "m" => 1.0 / 60.0,
            "s" => 1.0,
            "ms" => 1e3,
            "us" | "µs" => 1e6,
            "ns" => 1e9,
            _ => return None,
        };
        sum = sum.checked_add(number(count, per_second)?)?;
        rest = &unit[unit_end..];
    }
    (!text.trim().is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests;
