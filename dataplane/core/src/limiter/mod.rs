//! Rate limits: token buckets, with whole numbers only.
//!
//! A bucket's level is counted in 1/60 of a millionth ([`UNIT`] of them are one request or one token), so that what comes in
//! during some microseconds is a whole number: the rate per minute times the microseconds. The greatest level is below 2^53, so
//! that the numbers of Lua hold it exactly: the script that does the same inside Redis gives the same answers.
//!
//! * [`bucket`]: one bucket, refilled and spent.
//! * [`table`]: many of them, and the marks of turns: what one decision does to them, all or nothing. The embedded store of limits,
//!   and what the script is held against.
//! * [`verdict`]: what a decision means to a client.
//! * [`meter`]: how many tokens a running answer has used, and when it needs more.

pub mod bucket;
pub mod meter;
pub mod table;
pub mod verdict;

#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc};

use sha2::{Digest, Sha256};

use crate::log::{SessionKey, TurnId};

/// Parts of one request, or of one token: those that come in during a microsecond at a rate of one a minute are 1.
pub const UNIT: u64 = 60_000_000;

/// Who shares a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Per {
    /// Each session has its own.
    Session,
    /// Each user has their own.
    User,
    /// Each client address has its own.
    Address,
    /// All share one.
    Gateway,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Turns, and stateless requests.
    Requests,
    /// Tokens of prompts and answers.
    Tokens,
}

impl Per {
    /// Its name among the metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::User => "user",
            Self::Address => "address",
            Self::Gateway => "gateway",
        }
    }
}

impl Unit {
    /// What a bucket of this name counts, whether or not its limit is still in force.
    #[must_use]
    pub fn of(bucket: &str) -> Option<Self> {
        match bucket.as_bytes().get(1)? {
            b'r' => Some(Self::Requests),
            b't' => Some(Self::Tokens),
            _ => None,
        }
    }

    /// Its name among the metrics, and in headers.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Requests or tokens that come in each minute: also the units that come in each microsecond.
    pub per_minute: u64,
    /// Requests or tokens that a full bucket holds.
    pub burst: u64,
}

impl Limit {
    /// What a full bucket holds, in units.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        self.burst.saturating_mul(UNIT)
    }
}

/// A limit, and for whom it counts what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Who shares a bucket.
    pub per: Per,
    /// What is counted.
    pub unit: Unit,
    /// How much.
    pub limit: Limit,
}

impl Rule {
    /// The two letters with which the names of its buckets begin.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match (self.per, self.unit) {
            (Per::Session, Unit::Requests) => "sr",
            (Per::Session, Unit::Tokens) => "st",
            (Per::User, Unit::Requests) => "ur",
            (Per::User, Unit::Tokens) => "ut",
            (Per::Address, Unit::Requests) => "ar",
            (Per::Address, Unit::Tokens) => "at",
            (Per::Gateway, Unit::Requests) => "gr",
            (Per::Gateway, Unit::Tokens) => "gt",
        }
    }
}

/// The limits in force, no two of them for the same with the same unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// The rule of a bucket.
    #[must_use]
    pub fn of(&self, bucket: &str) -> Option<&Rule> {
        self.0.iter().find(|rule| bucket.as_bytes().starts_with(rule.code().as_bytes()))
    }

    /// What a full bucket of the strictest limit on tokens holds. `None`: tokens are not limited.
    #[must_use]
    pub fn least_tokens(&self) -> Option<u64> {
        self.0.iter().filter(|rule| rule.unit == Unit::Tokens).map(|rule| rule.limit.burst).min()
    }
}

/// Whose request it is.
#[derive(Clone, Debug)]
pub struct Who<'a> {
    /// The session, unless the request is stateless. Then limits for each session count the address instead.
    pub session: Option<&'a SessionKey>,
    /// The tenant.
    pub tenant: &'a str,
    /// The user, within the tenant.
    pub principal: &'a str,
    /// From where.
    pub address: IpAddr,
}

impl Who<'_> {
    /// The name of the bucket that a rule counts this request in.
    #[must_use]
    pub fn bucket(&self, rule: &Rule) -> Arc<str> {
        let code = rule.code();
        let name = |parts: &[&[u8]]| Arc::from(format!("{code}:{}", digest(parts)));
        match (rule.per, self.session) {
            (Per::Gateway, _) => Arc::from(code),
            (Per::User, _) => name(&[self.tenant.as_bytes(), self.principal.as_bytes()]),
            (Per::Session, Some(session)) => name(&[session.as_str().as_bytes()]),
            (Per::Session | Per::Address, _) => name(&[&network(self.address)]),
        }
    }
}

/// The name of a turn's mark.
#[must_use]
pub fn mark_of(session: &SessionKey, turn: &TurnId) -> Arc<str> {
    format!("m:{}", digest(&[session.as_str().as_bytes(), turn.as_str().as_bytes()])).into()
}

/// The name of the mark of a request that is no turn.
#[must_use]
pub fn mark_of_request(random: u128) -> Arc<str> {
    format!("m:{random:032x}").into()
}

/// An address as it is counted. Who has one IPv6 address has all of its /64.
fn network(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets()[..8].to_vec(),
    }
}

/// Half of a SHA-256 in hex, of parts that cannot be mistaken for one another. Names in the store tell nothing of users.
fn digest(parts: &[&[u8]]) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digits = hash.finalize().into_iter().take(16).flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(HEX[usize::from(digit)])).collect()
}
