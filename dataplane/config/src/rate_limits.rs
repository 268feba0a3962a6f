//! Rate limits, from what is written to what they mean.

use std::collections::HashSet;

use chatgateway_core::limits::settings as bounds;

use crate::check::Checker;
use crate::parts::{OnStoreFailure, RateLimit};
use crate::settings::{LimitUnit, RateLimitSettings};
use crate::yaml::join;

pub(crate) fn resolve(c: &mut Checker, raw: &[RateLimit]) -> Vec<RateLimitSettings> {
    if raw.len() > bounds::RATE_LIMITS_MAX {
        c.refuse("rateLimits", format!("{} are too many; at most {}", raw.len(), bounds::RATE_LIMITS_MAX));
    }
    let mut seen = HashSet::new();
    let mut limits = Vec::new();
    for (index, raw) in raw.iter().take(bounds::RATE_LIMITS_MAX).enumerate() {
        let at = format!("rateLimits[{index}]");
        let Some(limit) = limit(c, &at, raw) else { continue };
        if !seen.insert((limit.per as u8, limit.unit)) {
            c.refuse(&at, "counts what another limit counts for the same; keep the stricter one");
        }
        limits.push(limit);
    }
    limits
}

fn limit(c: &mut Checker, at: &str, raw: &RateLimit) -> Option<RateLimitSettings> {
    let amount = &bounds::LIMIT_AMOUNT;
    let written = [
        ("requestsPerSecond", raw.requests_per_second, LimitUnit::Requests, 60),
        ("requestsPerMinute", raw.requests_per_minute, LimitUnit::Requests, 1),
        ("tokensPerMinute", raw.tokens_per_minute, LimitUnit::Tokens, 1),
    ];
    let mut given = written.into_iter().filter(|(_, number, _, _)| number.is_some());
    if raw.per.is_none() {
        c.refuse(join(at, "per"), "is missing; it is Session, User, Address or Gateway");
    }
    let (Some((key, number, unit, times)), None) = (given.next(), given.next()) else {
        c.refuse(at, "give one of requestsPerSecond, requestsPerMinute and tokensPerMinute");
        return None;
    };
    let number: u64 = c.number(at, key, number, 1, amount);
    let burst: u64 = c.number(at, "burst", raw.burst, number, amount);
    Some(RateLimitSettings {
        per: raw.per?,
        unit,
        per_minute: number * times,
        burst,
        on_store_failure: raw.on_store_failure.unwrap_or(OnStoreFailure::LocalShare),
    })
}
