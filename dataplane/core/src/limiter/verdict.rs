//! What a decision means to a client: whether its request is admitted, what is left, and when to try again.

use super::{
    Per, Rule, Rules, UNIT, Unit,
    bucket::Bucket,
    table::{Done, Outcome},
};
use crate::{
    error::{ErrorCode, Refusal},
    limits::LIMIT_ANSWER_CHUNK,
};

/// How one limit stands after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Requests or tokens that a full bucket holds.
    pub limit: u64,
    /// Those that are left.
    pub remaining: u64,
    /// In how many milliseconds the bucket is full again, if nobody takes from it.
    pub reset_ms: u64,
}

/// How the strictest limit of each unit stands: the one of which least is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    /// Of requests.
    pub requests: Option<Standing>,
    /// Of tokens.
    pub tokens: Option<Standing>,
}

impl Standings {
    /// Those that there are, with the names of their units.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, Standing)> {
        let named = [(Unit::Requests, self.requests), (Unit::Tokens, self.tokens)];
        named.into_iter().filter_map(|(unit, standing)| Some((unit.label(), standing?)))
    }
}

/// A time as OpenAI's headers have it: `20ms`, `1.5s`, `6m0s`, `1h0m0s`.
#[must_use]
pub fn duration_text(ms: u64) -> String {
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    let (hours, minutes, rest) = (ms / 3_600_000, ms / 60_000 % 60, ms % 60_000);
    let fraction = format!("{:03}", rest % 1_000);
    let fraction = fraction.trim_end_matches('0');
    let seconds =
        if fraction.is_empty() { format!("{}s", rest / 1_000) } else { format!("{}.{fraction}s", rest / 1_000) };
    match (hours, minutes) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

/// What a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Tokens of its prompt, about.
    pub prompt: u64,
    /// Tokens that its answer may have, where the request says so.
    pub answer: Option<u64>,
}

impl Demand {
    /// The tokens that are taken before the request is carried out.
    #[must_use]
    pub fn tokens(&self, rules: &Rules) -> u64 {
        let Some(least) = rules.least_tokens() else { return 0 };
        let answer = self.answer.unwrap_or_else(|| answer_chunk(least));
        self.prompt.saturating_add(answer)
    }

    /// Refuses what no waiting helps: more tokens than a full bucket holds.
    ///
    /// # Errors
    /// `too_large`.
    pub fn check(&self, rules: &Rules) -> Result<(), Refusal> {
        let (Some(least), tokens) = (rules.least_tokens(), self.tokens(rules)) else { return Ok(()) };
        if tokens <= least {
            return Ok(());
        }
        let answer = tokens - self.prompt;
        Err(Refusal::new(
            ErrorCode::TooLarge,
            format!(
                "about {} tokens of prompt and {answer} of answer are more than the {least} that one request may take; \
                 send less, or set max_tokens lower",
                self.prompt
            ),
        ))
    }
}

/// Tokens that are taken ahead for an answer of unknown length: a quarter of what the strictest bucket holds at most, so that
/// several answers run beside each other.
#[must_use]
pub fn answer_chunk(least: u64) -> u64 {
    LIMIT_ANSWER_CHUNK.min(least / 4).max(1)
}

/// What a decision came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The request took what it needs.
    Admitted,
    /// It took before.
    Known,
    /// It has to wait.
    Refused {
        /// For which limit longest.
        rule: Rule,
        /// Microseconds.
        wait_us: u64,
    },
}

/// Reads the outcome of a [`super::table::Op::Take`] of so many tokens from these buckets, with a limit's share in how many.
#[must_use]
pub fn judge(
    rules: &Rules,
    buckets: &[std::sync::Arc<str>],
    tokens: u64,
    shares: u64,
    outcome: &Outcome,
) -> (Verdict, Standings) {
    let mut standings = Standings::default();
    let mut longest: Option<(u64, Rule)> = None;
    for (name, level) in buckets.iter().zip(&outcome.values) {
        let Some(rule) = rules.of(name).copied() else { continue };
        let bucket = Bucket { level: *level, at: 0 };
        let count = if rule.unit == Unit::Tokens { tokens } else { 1 };
        let cost = count.saturating_mul(UNIT).saturating_mul(shares);
        if outcome.done == Done::Refused && *level < cost {
            let wait = bucket.holds_in_us(cost, &rule.limit);
            if longest.is_none_or(|(longest, _)| wait > longest) {
                longest = Some((wait, rule));
            }
        }
        let standing = Standing {
            limit: rule.limit.burst,
            remaining: level / UNIT / shares,
            reset_ms: bucket.holds_in_us(rule.limit.capacity(), &rule.limit).div_ceil(1_000),
        };
        let place = if rule.unit == Unit::Tokens { &mut standings.tokens } else { &mut standings.requests };
        let stricter =
            place.is_none_or(|shown| (standing.remaining, shown.reset_ms) < (shown.remaining, standing.reset_ms));
        if stricter {
            *place = Some(standing);
        }
    }
    let verdict = match (outcome.done, longest) {
        (Done::Refused, Some((wait_us, rule))) => Verdict::Refused { rule, wait_us },
        (Done::Known, _) => Verdict::Known,
        _ => Verdict::Admitted,
    };
    (verdict, standings)
}

/// The refusal that a client is told.
#[must_use]
pub fn refusal(rule: &Rule, wait_us: u64, standings: Standings) -> Refusal {
    let ms = wait_us.div_ceil(1_000).max(1);
    let (amount, minutes) = per_time(rule);
    let whose = match rule.per {
        Per::Session => " of a session",
        Per::User => " of a user",
        Per::Address => " from one address",
        Per::Gateway => "",
    };
    let message = format!(
        "the limit of {amount} {}{whose} a {minutes} is reached; try again in {}",
        rule.unit.label(),
        duration_text(ms)
    );
    let mut refusal = Refusal::new(ErrorCode::RateLimited, message).retry_after_ms(ms);
    refusal.standings = Some(Box::new(standings));
    refusal
}

/// What the end of an answer says that may not go on.
#[must_use]
pub fn stopped(wait_us: u64) -> String {
    let wait = duration_text(wait_us.div_ceil(1_000).max(1));
    format!(
        "the answer was stopped: the limit on tokens is reached. A new turn may be sent, not before {wait} have passed"
    )
}

/// A rate in the larger unit in which it is a whole number.
fn per_time(rule: &Rule) -> (u64, &'static str) {
    let rate = rule.limit.per_minute;
    if rule.unit == Unit::Requests && rate.is_multiple_of(60) { (rate / 60, "second") } else { (rate, "minute") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{super::Limit, *};

    fn rule(per: Per, unit: Unit, per_minute: u64, burst: u64) -> Rule {
        Rule { per, unit, limit: Limit { per_minute, burst } }
    }

    #[test]
    fn times_are_written_as_openai_does() {
        let written = [
            (0, "0ms"),
            (20, "20ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (59_999, "59.999s"),
            (360_000, "6m0s"),
            (90_050, "1m30.05s"),
            (3_600_000, "1h0m0s"),
        ];
        for (ms, text) in written {
            assert_eq!(duration_text(ms), text);
        }
    }

    #[test]
    fn the_strictest_limit_of_each_unit_is_shown_and_the_longest_wait_told() {
        let rules = Rules(vec![
            rule(Per::Gateway, Unit::Requests, 6_000, 100),
            rule(Per::User, Unit::Requests, 60, 10),
            rule(Per::User, Unit::Tokens, 600, 1_000),
        ]);
        let buckets: Vec<Arc<str>> = vec!["gr".into(), "ur:x".into(), "ut:x".into()];
        let outcome = Outcome { done: Done::Refused, values: vec![50 * UNIT, UNIT / 2, 200 * UNIT] };
        let (verdict, shown) = judge(&rules, &buckets, 300, 1, &outcome);
        // Half a request at one a second takes half a second; a hundred tokens at ten a second take ten.
        assert_eq!(verdict, Verdict::Refused { rule: rules.0[2], wait_us: 10_000_000 });
        assert_eq!(shown.requests, Some(Standing { limit: 10, remaining: 0, reset_ms: 9_500 }));
        assert_eq!(shown.tokens, Some(Standing { limit: 1_000, remaining: 200, reset_ms: 80_000 }));
        let Verdict::Refused { rule, wait_us } = verdict else { unreachable!() };
        let refusal = refusal(&rule, wait_us, shown);
        assert_eq!(refusal.retry_after_ms, Some(10_000));
        assert_eq!(refusal.message, "the limit of 600 tokens of a user a minute is reached; try again in 10s");
    }

    #[test]
    fn of_equals_the_one_that_takes_longer_is_shown() {
        let rules = Rules(vec![rule(Per::Gateway, Unit::Requests, 6_000, 5), rule(Per::User, Unit::Requests, 60, 5)]);
        let buckets: Vec<Arc<str>> = vec!["gr".into(), "ur:x".into()];
        let (verdict, shown) =
            judge(&rules, &buckets, 0, 1, &Outcome { done: Done::Done, values: vec![4 * UNIT, 4 * UNIT] });
        assert_eq!((verdict, shown.requests.unwrap().reset_ms), (Verdict::Admitted, 1_000));
        assert_eq!(shown.tokens, None);
    }

    #[test]
    fn what_no_bucket_can_hold_is_too_large() {
        let rules = Rules(vec![rule(Per::User, Unit::Tokens, 60, 100)]);
        let demand = |prompt, answer| Demand { prompt, answer };
        assert_eq!(demand(10, None).tokens(&rules), 35, "a quarter of the bucket for an answer of unknown length");
        assert_eq!(demand(10, Some(80)).tokens(&rules), 90);
        assert!(demand(20, Some(80)).check(&rules).is_ok());
        let refusal = demand(21, Some(80)).check(&rules).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::TooLarge);
        assert!(refusal.message.contains("21") && refusal.message.contains("100"), "{}", refusal.message);
        assert!(demand(1 << 40, None).check(&Rules::default()).is_ok());
        assert_eq!(demand(1 << 40, None).tokens(&Rules::default()), 0);
    }
}
