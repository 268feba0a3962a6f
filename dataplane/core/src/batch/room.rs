//! How many calls a model server does at once.
//!
//! A call beyond what the server does in parallel waits inside it, and its first token comes later than that of a call which
//! found a free worker. So the time to the first token is compared with the best known one, as TCP Vegas compares round trips
//! (Brakmo and Peterson, 1995) and Netflix' concurrency limits do (github.com/Netflix/concurrency-limits, `VegasLimit` and
//! `Gradient2Limit`). Two things differ, since a batch is slower than a single call and answers vary more than packets: times
//! are compared among calls of the same size, and what is compared are means by how many calls ran when a call was sent,
//! rather than single samples with a minimum. The limit is the last number of calls at which no wait shows. From time to time
//! one call more is sent, so that a server that has become larger is found out.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::limits::{ROOM_FORGET, ROOM_LEVELS_MAX, ROOM_PROBE_CALLS, ROOM_SAMPLES_MIN, ROOM_TOLERANCE};

/// Samples that a mean remembers, about.
const MEMORY: f64 = 32.0;

/// Calls at the limit with none to compare them with, after which such are made.
const BLIND_CALLS: u32 = 32;

/// How many of them.
const DIP_CALLS: u32 = 16;

/// How often the calls between two such looks double at most.
const VAIN_DIPS_MAX: u32 = 6;

/// Calls that found room, from which on others are compared with them.
const UNHINDERED_MIN: f64 = 3.0;

/// Calls that found room, beyond which others that ran beside more are not looked at.
const UNHINDERED_SAMPLES: f64 = 24.0;

/// Calls in a row beyond the limit that do not wait, after which it is raised.
const GOOD_PROBES: u32 = 3;

/// A mean that forgets, and how much its samples differ.
#[derive(Clone, Copy, Debug)]
struct Mean {
    value: f64,
    variance: f64,
    /// Samples that count.
    samples: f64,
    at: Instant,
}

impl Mean {
    fn take(slot: Option<Self>, sample: f64, at: Instant) -> Self {
        let Some(mean) = slot else { return Self { value: sample, variance: 0.0, samples: 1.0, at } };
        let samples = (mean.samples + 1.0).min(MEMORY);
        let off = sample - mean.value;
        let variance = (1.0 - 1.0 / samples) * (mean.variance + off * off / samples);
        Self { value: mean.value + off / samples, variance, samples, at }
    }

    /// The mean of both.
    fn with(self, other: Self) -> Self {
        let samples = self.samples + other.samples;
        let (part, rest) = (self.samples / samples, other.samples / samples);
        let value = part * self.value + rest * other.value;
        let spread = |mean: Self| mean.variance + (mean.value - value).powi(2);
        let variance = part * spread(self) + rest * spread(other);
        Self { value, variance, samples: samples.min(MEMORY), at: self.at.max(other.at) }
    }

    /// Whether such a wait can hardly be chance.
    fn is_long(&self) -> bool {
        self.samples >= UNHINDERED_MIN && self.value > ROOM_TOLERANCE && self.at_least() > 0.0
    }

    /// What it is at least, with a certainty of about 97 %.
    fn at_least(&self) -> f64 {
        self.value - 2.0 * (self.variance / self.samples).sqrt()
    }
}

/// What is known of a model server.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Seconds to the first token, by the class of the size of a call and by how many calls ran.
    times: BTreeMap<(u32, usize), Mean>,
    /// By how many calls ran: how much longer than that of an unhindered call that was, as a part of it.
    waits: BTreeMap<usize, Mean>,
    /// At this number of calls a wait shows.
    knee: Option<usize>,
    /// Calls since one more than the limit was sent.
    since_probe: u32,
    /// Such calls in a row that did not wait.
    good_probes: u32,
    /// Calls in a row at the limit with none below it to compare with.
    blind: u32,
    /// The limit is lower for so many calls, to have some to compare with.
    dip: u32,
    /// Looks in a row that found no shorter time. Each one makes the next one rarer.
    vain_dips: u32,
}

impl Room {
    /// Calls that may run, the next one included; `places` is how many could.
    pub(super) fn limit(&self, places: usize) -> usize {
        let limit = self.known().map_or(places, |known| known.min(places));
        if self.dip > 0 {
            lower(limit)
        } else if self.since_probe >= probe_after(limit) {
            limit + 1
        } else {
            limit
        }
    }

    /// Calls that the server does at once, where that is known.
    pub(super) fn known(&self) -> Option<usize> {
        self.knee.map(|knee| (knee - 1).max(1))
    }

    /// A call was sent; with it so many run.
    pub(super) fn sent(&mut self, running: usize) {
        match self.known() {
            Some(limit) if running > limit => self.since_probe = 0,
            // Where nobody waits for room, there is nothing to find out.
            Some(limit) if running == limit => self.since_probe = self.since_probe.saturating_add(1),
            _ => {}
        }
    }

    /// A call of `size` asks had its first token after `own`; when it was sent, `running` calls ran, itself included.
    pub(super) fn observe(&mut self, size: usize, running: usize, own: Duration, places: usize, now: Instant) {
        let running = running.min(ROOM_LEVELS_MAX);
        let class = class(size);
        let mean = Mean::take(self.times.get(&(class, running)).copied(), own.as_secs_f64(), now);
        self.times.insert((class, running), mean);
        // Only what is of the same time is compared: a server that has become slower is not a smaller one.
        self.times.retain(|_, mean| now.saturating_duration_since(mean.at) < ROOM_FORGET);
        let Some((unhindered, beside)) = self.unhindered(class) else { return };
        let wait = own.as_secs_f64() / unhindered - 1.0;
        if self.knee == Some(running) {
            self.probed(running, wait);
        }
        self.waits.insert(running, Mean::take(self.waits.get(&running).copied(), wait, now));
        self.look_below(running, beside, places, now);
        self.knee = self.waits.keys().copied().find(|running| *running > 1 && self.shows(*running));
    }

    /// Whether a wait shows at so many calls. Few samples are looked at together with those of somewhat more calls, so that a
    /// sudden load is understood before each number was met often.
    fn shows(&self, running: usize) -> bool {
        let mut levels = self.waits.range(running..=2 * running).map(|(_, wait)| *wait);
        let Some(mut wait) = levels.next().filter(|wait| wait.value > ROOM_TOLERANCE) else {
            return false;
        };
        for more in levels {
            if wait.samples >= ROOM_SAMPLES_MIN {
                break;
            }
            wait = wait.with(more);
        }
        wait.samples >= ROOM_SAMPLES_MIN && wait.at_least() > ROOM_TOLERANCE
    }

    /// A call was sent although there was no room for it. Some in a row that do not wait, and the server is larger now, or was
    /// thought too small.
    fn probed(&mut self, running: usize, wait: f64) {
        if wait > ROOM_TOLERANCE {
            self.good_probes = 0;
            return;
        }
        self.good_probes += 1;
        self.since_probe = probe_after(running) / 2;
        if self.good_probes >= GOOD_PROBES {
            self.good_probes = 0;
            self.waits.remove(&running);
        }
    }

    /// Where the limit is always reached, a wait that all calls have would never show: some calls are sent with fewer beside
    /// them, and if those are quicker, the limit stays down there.
    fn look_below(&mut self, running: usize, beside: usize, places: usize, now: Instant) {
        let limit = self.known().map_or(places, |known| known.min(places)).min(ROOM_LEVELS_MAX);
        if self.dip > 0 {
            self.dip -= 1;
            if self.dip == 0 {
                self.looked_below(limit, now);
            }
        } else if running < limit || beside < limit || limit == 1 {
            self.blind = 0;
        } else {
            self.blind += 1;
            if self.blind >= BLIND_CALLS << self.vain_dips {
                (self.blind, self.dip) = (0, DIP_CALLS);
            }
        }
    }

    fn looked_below(&mut self, limit: usize, now: Instant) {
        let (below, at) = (self.time_at(lower(limit)), self.time_at(limit));
        let quicker = below.zip(at).filter(|(below, at)| *at > below * (1.0 + ROOM_TOLERANCE));
        let Some((below, at)) = quicker else {
            self.vain_dips = (self.vain_dips + 1).min(VAIN_DIPS_MAX);
            return;
        };
        self.vain_dips = 0;
        let wait = Mean { value: at / below - 1.0, variance: 0.0, samples: ROOM_SAMPLES_MIN, at: now };
        self.waits.insert(lower(limit) + 1, wait);
    }

    /// The time of calls that ran beside so many, whatever their size.
    fn time_at(&self, running: usize) -> Option<f64> {
        let at = self.times.iter().filter(|((_, at), _)| *at == running);
        at.map(|(_, mean)| (mean.samples, mean.value)).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, value)| value)
    }

    /// The time to the first token of a call of such a size that does not wait in the server.
    pub(super) fn best(&self, size: usize) -> Option<Duration> {
        self.unhindered(class(size)).map(|(seconds, _)| Duration::from_secs_f64(seconds))
    }

    /// The mean of those calls that the fewest others ran beside, in seconds, and how many that were at most. Where calls are
    /// known to wait, none counts.
    fn unhindered(&self, class: u32) -> Option<(f64, usize)> {
        let mut of_class = self.times.range((class, 0)..=(class, ROOM_LEVELS_MAX));
        let fewest = of_class.clone().next()?.0.1;
        let (mut sum, mut samples, mut beside) = (0.0, 0.0, 0);
        let counts = |running: usize, samples: f64| {
            let long = running > 1 && self.waits.get(&running).is_some_and(Mean::is_long);
            !long && running <= 2 * fewest + 1 && samples < UNHINDERED_SAMPLES
        };
        while let Some(((_, running), mean)) = of_class.next().filter(|((_, running), _)| counts(*running, samples)) {
            sum += mean.value * mean.samples;
            samples += mean.samples;
            beside = *running;
        }
        (samples >= UNHINDERED_MIN && sum > 0.0).then(|| (sum / samples, beside))
    }
}

/// Calls at the limit, after which one more than that is sent: a small limit costs the most where it is wrong.
fn probe_after(limit: usize) -> u32 {
    ROOM_PROBE_CALLS.min(4 * limit as u32)
}

/// A quarter less.
fn lower(limit: usize) -> usize {
    (limit - (limit / 4).max(1)).max(1)
}

/// Sizes that take about the same time: each small one for itself, large ones by powers of two.
fn class(size: usize) -> u32 {
    if size <= 8 { size as u32 } else { 8 + size.ilog2() }
}

#[cfg(test)]
mod tests;
