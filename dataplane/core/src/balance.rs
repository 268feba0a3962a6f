//! Which of several equal endpoints gets a call.
//!
//! Without affinity the one with fewer calls in flight of two random ones: nearly as good as looking at all of them, and pods
//! that do not know of each other do not all choose the same one (Mitzenmacher 2001).
//!
//! With affinity a session keeps its endpoint, for the sake of its prompt cache: rendezvous hashing (Thaler and Ravishankar
//! 1998) ranks the endpoints for each session, so that one that comes or goes moves only the sessions it gets or had. No
//! endpoint gets more than a bound above the mean load, past it a session goes to its next one (Mirrokni, Thorup and
//! Zadimoghaddam 2016).

use std::hash::{DefaultHasher, Hash, Hasher as _};

use crate::{
    limits::{AFFINITY_FREE_PERCENT, AFFINITY_LOAD_PERCENT},
    random,
};

/// An endpoint that may be called now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where the caller finds it again.
    pub index: usize,
    /// Of its name: the same in every pod.
    pub hash: u64,
    /// Calls it has now.
    pub in_flight: usize,
}

/// The load that one endpoint may have before a session that belongs there goes elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBound(usize);

impl LoadBound {
    /// For `endpoints` endpoints that have `in_flight` calls together, and `places` places each. Below a part of its places no
    /// endpoint counts as loaded, since a mean of next to nothing says nothing.
    #[must_use]
    pub fn new(in_flight: usize, endpoints: usize, places: usize) -> Self {
        let mean_percent = (in_flight + 1) * AFFINITY_LOAD_PERCENT;
        Self(mean_percent.div_ceil(endpoints.max(1) * 100).max(places * AFFINITY_FREE_PERCENT / 100))
    }
}

/// The number by which an endpoint or a session is hashed. No secret: whoever chooses the ids of sessions can choose their
/// endpoint, up to the bound.
#[must_use]
pub fn hash_of(of: impl Hash) -> u64 {
    // The same in every process of one release; across two releases sessions may move, once.
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Of two random candidates the one with fewer calls. `random` is uniform over all of its values.
#[must_use]
pub fn least_of_two(candidates: &[Candidate], random: u64) -> Option<Candidate> {
    let count = candidates.len() as u64;
    if count < 2 {
        return candidates.first().copied();
    }
    let first = (random >> 32) % count;
    // Another one than the first.
    let second = (first + 1 + (random & 0xffff_ffff) % (count - 1)) % count;
    let (first, second) = (candidates.get(first as usize)?, candidates.get(second as usize)?);
    Some(if second.in_flight < first.in_flight { *second } else { *first })
}

/// The candidate that `session` ranks first among those below the bound. Where none is, the least loaded.
#[must_use]
pub fn of_session(candidates: &[Candidate], session: u64, bound: LoadBound) -> Option<Candidate> {
    let below = candidates.iter().filter(|candidate| candidate.in_flight < bound.0);
    let first = below.max_by_key(|candidate| rank(candidate.hash, session));
    first.or_else(|| candidates.iter().min_by_key(|candidate| candidate.in_flight)).copied()
}

/// How much a session wants to go to an endpoint.
fn rank(endpoint: u64, session: u64) -> u64 {
    random::mixed(endpoint ^ session.wrapping_mul(random::STEP))
}

#[cfg(test)]
mod tests;
