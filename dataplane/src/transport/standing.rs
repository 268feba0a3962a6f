//! How rate limits stand, as clients of each transport are told.

use chatgateway_core::limiter::verdict::{Standing, Standings, duration_text};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;

/// The headers of one unit, in OpenAI's words: what a full bucket holds, what is left, and when it is full again.
static HEADERS: [(&str, [HeaderName; 3]); 2] = [
    (
        "requests",
        [
            HeaderName::from_static("x-ratelimit-limit-requests"),
            HeaderName::from_static("x-ratelimit-remaining-requests"),
            HeaderName::from_static("x-ratelimit-reset-requests"),
        ],
    ),
    (
        "tokens",
        [
            HeaderName::from_static("x-ratelimit-limit-tokens"),
            HeaderName::from_static("x-ratelimit-remaining-tokens"),
            HeaderName::from_static("x-ratelimit-reset-tokens"),
        ],
    ),
];

/// Adds what there is to an answer's headers, or to a call's metadata. What a model server said of its own limits gives way.
pub fn write_headers(headers: &mut HeaderMap, standings: &Standings) {
    for (unit, Standing { limit, remaining, reset_ms }) in standings.each() {
        let names = HEADERS.iter().filter(|(of, _)| *of == unit).flat_map(|(_, names)| names);
        for (name, value) in names.zip([limit.to_string(), remaining.to_string(), duration_text(reset_ms)]) {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }
}

/// The same in a receipt.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RateLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<RateLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<RateLimit>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct RateLimit {
    limit: u64,
    remaining: u64,
    reset_ms: u64,
}

impl From<&Standings> for RateLimits {
    fn from(standings: &Standings) -> Self {
        let of = |standing: Standing| RateLimit {
            limit: standing.limit,
            remaining: standing.remaining,
            reset_ms: standing.reset_ms,
        };
        Self { requests: standings.requests.map(of), tokens: standings.tokens.map(of) }
    }
}
