//! Buckets and marks, and what one decision does to them.
//!
//! `store/redis/scripts/take.lua` does the same inside Redis; a test holds the two against each other.

use std::{collections::HashMap, sync::Arc};

use super::{Rules, UNIT, Unit, bucket::Bucket};
use crate::limits::{LIMIT_BUCKET_MARGIN, LIMIT_HELD_TTL, LIMIT_KEPT_TTL, LIMIT_LOCAL_ENTRIES_MAX};

/// One step, all or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A request: 1 from each bucket of requests, and the tokens from each bucket of tokens.
    Take {
        /// Its mark: a repeat takes nothing. None: it has no repeats, and nothing is given back.
        mark: Option<Arc<str>>,
        /// Tokens it may use.
        tokens: u64,
        /// The names of its buckets.
        buckets: Vec<Arc<str>>,
    },
    /// An answer needs more than its request took: so much in all.
    Extend {
        /// The request's mark.
        mark: Arc<str>,
        /// Tokens in all.
        tokens: u64,
    },
    /// A request is over. What it took and did not use is given back, once.
    Settle {
        /// The request's mark.
        mark: Arc<str>,
        /// Tokens it used.
        used: u64,
    },
    /// A request that took was not carried out: its tokens come back, and it may take again.
    Undo {
        /// The request's mark.
        mark: Arc<str>,
        /// The names of the buckets of requests that get theirs back too.
        buckets: Vec<Arc<str>>,
    },
    /// What was spent elsewhere while the store was away: taken as far as it is there.
    Owe {
        /// The bucket's name.
        bucket: Arc<str>,
        /// Units.
        units: u64,
    },
}

impl Op {
    /// Takes a request back that took from these buckets: as if it had never been.
    #[must_use]
    pub fn undo(mark: Arc<str>, buckets: impl IntoIterator<Item = Arc<str>>) -> Self {
        let requests = |name: &Arc<str>| Unit::of(name) == Some(Unit::Requests);
        Self::Undo { mark, buckets: buckets.into_iter().filter(requests).collect() }
    }
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Nothing was changed: a bucket holds too little.
    Refused,
    /// Nothing was changed: the request took before.
    Known,
    /// It was done.
    Done,
    /// Nothing was changed: there is nothing that it could be done to.
    Nothing,
}

/// What came of a step, with numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What came of it.
    pub done: Done,
    /// Of a [`Op::Take`]: the level of each bucket after it. Of an [`Op::Extend`]: tokens taken in all, or where it is refused
    /// after how many microseconds it would not be. Of a [`Op::Settle`] and an [`Op::Undo`]: tokens given back. Of an [`Op::Owe`]: units
    /// taken.
    pub values: Vec<u64>,
}

impl Outcome {
    fn one(done: Done, value: u64) -> Self {
        Self { done, values: vec![value] }
    }
}

/// What is known of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It took requests only.
    Admitted,
    /// It took tokens.
    Reserved {
        /// How many.
        tokens: u64,
        /// From which buckets.
        buckets: Vec<Arc<str>>,
    },
    /// It is over.
    Settled,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Table {
    /// With when each expires, in milliseconds.
    buckets: HashMap<Arc<str>, (Bucket, u64)>,
    marks: HashMap<Arc<str>, (Mark, u64)>,
    /// Entries at which what has expired is thrown out.
    sweep_at: usize,
    /// Entries that found no room.
    overflows: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self { buckets: HashMap::new(), marks: HashMap::new(), sweep_at: SWEEP_LEAST, overflows: 0 }
    }
}

/// Fewer entries than these are not looked through.
const SWEEP_LEAST: usize = 1_024;

/// How a table counts.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// The limits in force.
    pub rules: &'a Rules,
    /// Microseconds.
    pub now: u64,
    /// With how many others the limits are shared, this one included: each request and token counts so many times. Then a bucket
    /// fills and empties as one of that part of the size would, without a fraction.
    pub shares: u64,
}

impl Terms<'_> {
    fn cost(&self, bucket: &str, tokens: u64) -> u64 {
        let unit = self.rules.of(bucket).map(|rule| rule.unit);
        let count = if unit == Some(Unit::Tokens) { tokens } else { 1 };
        count.saturating_mul(UNIT).saturating_mul(self.shares)
    }

    /// The limit of a bucket. A share holds at least one request.
    fn limit(&self, bucket: &str) -> Option<super::Limit> {
        let mut limit = self.rules.of(bucket)?.limit;
        limit.burst = limit.burst.max(self.shares);
        Some(limit)
    }
}

impl Table {
    /// Carries a step out.
    pub fn execute(&mut self, terms: Terms<'_>, op: &Op) -> Outcome {
        match op {
            Op::Take { mark, tokens, buckets } => self.take(terms, mark.as_ref(), *tokens, buckets),
            Op::Extend { mark, tokens } => self.extend(terms, mark, *tokens),
            Op::Settle { mark, used } => self.settle(terms, mark, *used),
            Op::Undo { mark, buckets } => self.undo(terms, mark, buckets),
            Op::Owe { bucket, units } => {
                let Some(before) = self.touch(terms, bucket) else { return Outcome::one(Done::Nothing, 0) };
                let units = before.level.min(*units);
                self.put(terms, bucket, Bucket { level: before.level - units, ..before });
                Outcome::one(Done::Done, units)
            }
        }
    }

    /// A bucket as it is now. `None`: no limit counts in it any more.
    #[must_use]
    pub fn bucket(&self, terms: Terms<'_>, name: &str) -> Option<Bucket> {
        let limit = terms.limit(name)?;
        let kept = self.buckets.get(name).filter(|(_, expires)| *expires >= terms.now / 1_000);
        Some(kept.map_or(Bucket::full(&limit, terms.now), |(bucket, _)| bucket.refilled(&limit, terms.now)))
    }

    /// Sets a bucket to what is known of it from elsewhere.
    pub fn set(&mut self, terms: Terms<'_>, name: &Arc<str>, level: u64) {
        self.put(terms, name, Bucket { level, at: terms.now });
    }

    /// What is known of a request.
    #[must_use]
    pub fn mark(&self, now: u64, mark: &str) -> Option<&Mark> {
        self.marks.get(mark).filter(|(_, expires)| *expires >= now / 1_000).map(|(mark, _)| mark)
    }

    /// How often there was no room for what should have been kept.
    #[must_use]
    pub fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Every bucket's name.
    pub fn buckets(&self) -> impl Iterator<Item = &Arc<str>> {
        self.buckets.keys()
    }

    /// Forgets a bucket: it counts as full.
    pub fn forget(&mut self, name: &str) {
        self.buckets.remove(name);
    }

    /// A bucket as it is now. Where the clock was put far back, that the bucket fills from here is kept.
    fn touch(&mut self, terms: Terms<'_>, name: &Arc<str>) -> Option<Bucket> {
        let bucket = self.bucket(terms, name)?;
        if self.buckets.get(name).is_some_and(|(kept, expires)| kept.at > bucket.at && *expires >= terms.now / 1_000) {
            self.put(terms, name, bucket);
        }
        Some(bucket)
    }

    fn put(&mut self, terms: Terms<'_>, name: &Arc<str>, bucket: Bucket) {
        let Some(limit) = terms.limit(name) else { return };
        let margin = LIMIT_BUCKET_MARGIN.as_millis() as u64;
        let ahead = bucket.at.saturating_sub(terms.now) / 1_000;
        let expires = terms.now / 1_000 + bucket.full_in_ms(&limit) + ahead + margin;
        if let Some(kept) = self.buckets.get_mut(name) {
            *kept = (bucket, expires);
        } else if self.has_room(terms.now) {
            self.buckets.insert(name.clone(), (bucket, expires));
        }
    }

    fn put_mark(&mut self, now: u64, name: &Arc<str>, mark: Mark) {
        let ttl = if matches!(mark, Mark::Reserved { .. }) { LIMIT_HELD_TTL } else { LIMIT_KEPT_TTL };
        let expires = now / 1_000 + ttl.as_millis() as u64;
        if let Some(kept) = self.marks.get_mut(name) {
            *kept = (mark, expires);
        } else if self.has_room(now) {
            self.marks.insert(name.clone(), (mark, expires));
        }
    }

    /// Whether one more entry may be kept. What has expired is thrown out each time their number has doubled.
    fn has_room(&mut self, now: u64) -> bool {
        if self.buckets.len() + self.marks.len() >= self.sweep_at {
            self.buckets.retain(|_, (_, expires)| *expires >= now / 1_000);
            self.marks.retain(|_, (_, expires)| *expires >= now / 1_000);
            self.sweep_at = (2 * (self.buckets.len() + self.marks.len())).max(SWEEP_LEAST);
        }
        let room = self.buckets.len() + self.marks.len() < LIMIT_LOCAL_ENTRIES_MAX;
        self.overflows += u64::from(!room);
        room
    }

    fn take(&mut self, terms: Terms<'_>, mark: Option<&Arc<str>>, tokens: u64, names: &[Arc<str>]) -> Outcome {
        let before: Vec<_> = names.iter().map(|name| self.touch(terms, name)).collect();
        let levels = |buckets: &[Option<Bucket>]| buckets.iter().map(|b| b.map_or(0, |b| b.level)).collect();
        if mark.is_some_and(|mark| self.mark(terms.now, mark).is_some()) {
            return Outcome { done: Done::Known, values: levels(&before) };
        }
        let holds = |(name, bucket): (&Arc<str>, &Option<Bucket>)| {
            bucket.is_none_or(|bucket| bucket.level >= terms.cost(name, tokens))
        };
        if !names.iter().zip(&before).all(holds) {
            return Outcome { done: Done::Refused, values: levels(&before) };
        }
        let mut after = Vec::with_capacity(names.len());
        let mut reserved = Vec::new();
        for (name, bucket) in names.iter().zip(before) {
            let spent = bucket.map(|b| Bucket { level: b.level - terms.cost(name, tokens), ..b });
            if let Some(spent) = spent {
                self.put(terms, name, spent);
            }
            if tokens > 0 && terms.rules.of(name).is_some_and(|rule| rule.unit == Unit::Tokens) {
                reserved.push(name.clone());
            }
            after.push(spent);
        }
        if let Some(mark) = mark {
            let made = if reserved.is_empty() { Mark::Admitted } else { Mark::Reserved { tokens, buckets: reserved } };
            self.put_mark(terms.now, mark, made);
        }
        Outcome { done: Done::Done, values: levels(&after) }
    }

    /// What a request took and has not given back.
    fn reserved(&self, now: u64, mark: &str) -> Option<(u64, Vec<Arc<str>>)> {
        match self.mark(now, mark) {
            Some(Mark::Reserved { tokens, buckets }) => Some((*tokens, buckets.clone())),
            _ => None,
        }
    }

    fn extend(&mut self, terms: Terms<'_>, mark: &Arc<str>, tokens: u64) -> Outcome {
        let Some((reserved, buckets)) = self.reserved(terms.now, mark) else { return Outcome::one(Done::Nothing, 0) };
        if tokens <= reserved {
            return Outcome::one(Done::Done, reserved);
        }
        let cost = (tokens - reserved).saturating_mul(UNIT).saturating_mul(terms.shares);
        let mut wait = |name: &Arc<str>| {
            let (bucket, limit) = (self.touch(terms, name)?, terms.limit(name)?);
            (bucket.level < cost).then(|| bucket.holds_in_us(cost, &limit))
        };
        if let Some(wait) = buckets.iter().filter_map(&mut wait).max() {
            return Outcome::one(Done::Refused, wait);
        }
        for name in &buckets {
            if let Some(bucket) = self.bucket(terms, name) {
                self.put(terms, name, Bucket { level: bucket.level - cost, ..bucket });
            }
        }
        self.put_mark(terms.now, mark, Mark::Reserved { tokens, buckets });
        Outcome::one(Done::Done, tokens)
    }

    fn give_back(&mut self, terms: Terms<'_>, buckets: &[Arc<str>], count: u64) {
        for name in buckets {
            if let (Some(bucket), Some(limit), 1..) = (self.touch(terms, name), terms.limit(name), count) {
                let units = count.saturating_mul(UNIT).saturating_mul(terms.shares);
                self.put(terms, name, bucket.with(units, &limit));
            }
        }
    }

    fn settle(&mut self, terms: Terms<'_>, mark: &Arc<str>, used: u64) -> Outcome {
        let Some((reserved, buckets)) = self.reserved(terms.now, mark) else { return Outcome::one(Done::Nothing, 0) };
        let back = reserved.saturating_sub(used);
        self.give_back(terms, &buckets, back);
        self.put_mark(terms.now, mark, Mark::Settled);
        Outcome::one(Done::Done, back)
    }

    fn undo(&mut self, terms: Terms<'_>, mark: &Arc<str>, requests: &[Arc<str>]) -> Outcome {
        let back = match self.mark(terms.now, mark) {
            None | Some(Mark::Settled) => return Outcome::one(Done::Nothing, 0),
            Some(Mark::Admitted) => 0,
            Some(Mark::Reserved { tokens, buckets }) => {
                let (tokens, buckets) = (*tokens, buckets.clone());
                self.give_back(terms, &buckets, tokens);
                tokens
            }
        };
        self.give_back(terms, requests, 1);
        self.marks.remove(mark);
        Outcome::one(Done::Done, back)
    }
}
