//! By when a call must have come to something.

use std::time::{Duration, Instant};

use chatgateway_config::TimeoutSettings;
use chatgateway_core::limits::UPSTREAM_LAST_WORDS;

/// The instants by which parts of an answer must have come, for one call.
#[derive(Clone, Copy)]
pub(super) struct Deadlines {
    /// By then something of it.
    pub(super) first: Instant,
    /// By then all of it.
    pub(super) total: Instant,
    first_timeout: Duration,
    between_timeout: Duration,
    total_timeout: Duration,
}

/// What of an answer is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Its beginning.
    Beginning,
    /// More of one that comes piece by piece.
    More,
    /// The rest of one that comes as a whole.
    Rest,
    /// What may follow it: it has told its end.
    LastWords,
}

/// What a model server did not do in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Late {
    pub(super) what: &'static str,
    pub(super) timeout: Duration,
}

impl Deadlines {
    /// Of a call that is sent at `start`. `whole`: its answer comes in one piece, whose first byte has the time of all.
    pub(super) fn new(timeouts: &TimeoutSettings, start: Instant, whole: bool) -> Self {
        let TimeoutSettings { first_token, between_tokens, total, .. } = *timeouts;
        let first = if whole { total } else { first_token.min(total) };
        Self {
            first: start + first,
            total: start + total,
            first_timeout: first,
            between_timeout: between_tokens,
            total_timeout: total,
        }
    }

    /// By when that must be there, which is waited for since then; and what is wrong if it is not. Nothing is, where only last
    /// words are missing.
    pub(super) fn of(&self, awaited: Awaited, since: Instant) -> (Instant, Option<Late>) {
        let between = self.between_timeout;
        let all = (self.total, Some(Late { what: "did not complete its answer", timeout: self.total_timeout }));
        let (at, late) = match awaited {
            Awaited::Beginning => (self.first, Some(self.silent())),
            Awaited::More => (since + between, Some(Late { what: "did not go on with its answer", timeout: between })),
            Awaited::Rest => all,
            Awaited::LastWords => return (self.total.min(since + UPSTREAM_LAST_WORDS.min(between)), None),
        };
        if self.total < at { all } else { (at, late) }
    }

    /// Nothing of the answer has come in its time.
    pub(super) fn silent(&self) -> Late {
        Late { what: "did not begin to answer", timeout: self.first_timeout }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn timeouts(first_token: u32, between_tokens: u32, total: u32) -> TimeoutSettings {
        TimeoutSettings {
            connect: MS,
            first_token: MS * first_token,
            between_tokens: MS * between_tokens,
            total: MS * total,
        }
    }

    /// By when, in milliseconds after the start, and which timeout that is.
    fn due(deadlines: &Deadlines, start: Instant, awaited: Awaited, since: u32) -> (u128, Option<u128>) {
        let (at, late) = deadlines.of(awaited, start + MS * since);
        (at.duration_since(start).as_millis(), late.map(|late| late.timeout.as_millis()))
    }

    #[test]
    fn each_part_of_an_answer_has_its_time_and_none_more_than_the_whole() {
        let start = Instant::now();
        let deadlines = Deadlines::new(&timeouts(100, 50, 1_000), start, false);
        assert_eq!(due(&deadlines, start, Awaited::Beginning, 0), (100, Some(100)));
        assert_eq!(due(&deadlines, start, Awaited::More, 300), (350, Some(50)));
        assert_eq!(due(&deadlines, start, Awaited::More, 960), (1_000, Some(1_000)));
        assert_eq!(due(&deadlines, start, Awaited::Rest, 300), (1_000, Some(1_000)));
        assert_eq!(due(&deadlines, start, Awaited::LastWords, 300), (350, None));
        assert_eq!(due(&deadlines, start, Awaited::LastWords, 960), (1_000, None));
    }

    #[test]
    fn last_words_are_not_waited_for_as_long_as_tokens() {
        let start = Instant::now();
        let deadlines = Deadlines::new(&timeouts(100, 60_000, 120_000), start, false);
        let last_words = UPSTREAM_LAST_WORDS.as_millis();
        assert_eq!(due(&deadlines, start, Awaited::LastWords, 0), (last_words, None));
    }

    #[test]
    fn an_answer_in_one_piece_may_begin_as_late_as_it_ends() {
        let start = Instant::now();
        let deadlines = Deadlines::new(&timeouts(100, 50, 1_000), start, true);
        assert_eq!(due(&deadlines, start, Awaited::Beginning, 0), (1_000, Some(1_000)));
        assert_eq!(deadlines.of(Awaited::Beginning, start).1, Some(deadlines.silent()));
    }
}
