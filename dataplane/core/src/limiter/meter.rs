//! How many tokens a request has used, and when its answer needs more than it took.
//!
//! While an answer comes, each piece of it counts as one token for every [`LIMIT_BYTES_PER_TOKEN`] bytes, and as one at least: a
//! model server mostly sends token by token. What the model server tells at the end is the truth.

use super::verdict::Demand;
use crate::{limits::LIMIT_BYTES_PER_TOKEN, log::Usage};

/// Tokens of a text, about.
#[must_use]
pub fn tokens_of(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(LIMIT_BYTES_PER_TOKEN)
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Meter {
    prompt: u64,
    answer: u64,
    /// Taken so far.
    taken: u64,
    /// The most that the answer can have: the model server keeps to it, whatever its text looks like.
    bound: Option<u64>,
    /// Taken ahead each time, of an answer of unknown length.
    chunk: u64,
    /// What is asked for, in all.
    asked: Option<u64>,
    /// More was refused while some was left: the next time little is asked for, when all is used.
    tight: bool,
    /// Calls of model servers that are not over, or whose count is not known.
    uncounted: usize,
    counted: u64,
    begun: bool,
}

impl Meter {
    /// Of a request that took so many tokens, and is answered by so many calls. `chunk` is what is taken ahead for an answer of unknown
    /// length.
    #[must_use]
    pub fn new(demand: Demand, taken: u64, chunk: u64, calls: usize) -> Self {
        let bound = demand.answer;
        let chunk = if bound.is_some() { 0 } else { chunk };
        let (prompt, answer) = (demand.prompt, 0);
        Self {
            prompt,
            answer,
            taken,
            bound,
            chunk,
            asked: None,
            tight: false,
            uncounted: calls,
            counted: 0,
            begun: false,
        }
    }

    /// The prompt turned out to be longer: the history is part of it.
    pub fn add_prompt(&mut self, tokens: u64) {
        self.prompt += tokens;
    }

    /// A piece of the answer came.
    pub fn text(&mut self, bytes: usize) {
        self.pieces(bytes, 1);
    }

    /// So many pieces came.
    pub fn pieces(&mut self, bytes: usize, pieces: u64) {
        self.begun = true;
        self.answer += tokens_of(bytes).max(pieces);
    }

    /// A call is over, and the model server told what it cost, or nothing.
    pub fn end(&mut self, usage: Usage) {
        self.begun = true;
        if usage.total_tokens > 0 {
            self.counted += usage.total_tokens;
            self.uncounted = self.uncounted.saturating_sub(1);
        }
    }

    /// Tokens used so far.
    #[must_use]
    pub fn used(&self) -> u64 {
        if self.uncounted == 0 { self.counted } else { self.estimate() }
    }

    fn estimate(&self) -> u64 {
        self.prompt + self.answer.min(self.bound.unwrap_or(u64::MAX))
    }

    /// Whether anything of the answer has come.
    #[must_use]
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Tokens taken so far.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// What should be asked for now, in all: in time, so that the answer need not stop for it.
    pub fn wants(&mut self) -> Option<u64> {
        let used = self.estimate();
        let (ahead, chunk) = if self.tight { (0, (self.chunk / 8).max(1)) } else { (self.chunk / 2, self.chunk) };
        if self.asked.is_some() || used + ahead <= self.taken {
            return None;
        }
        let bounded = self.bound.map(|bound| self.prompt + bound);
        self.asked = Some(bounded.unwrap_or(used + chunk));
        self.asked
    }

    /// Whether the answer has to wait: it has used more than was taken, and whether it may have more is not known yet.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.asked.is_some() && self.estimate() > self.taken
    }

    /// What was asked for was taken.
    pub fn granted(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.taken = self.taken.max(asked);
            self.tight = false;
        }
    }

    /// What was asked for was refused. Returns whether the answer must stop: it has used all that was taken.
    pub fn refused(&mut self) -> bool {
        let stops = self.waits();
        self.asked = None;
        self.tight = true;
        stops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(total_tokens: u64) -> Usage {
        Usage { prompt_tokens: 1, completion_tokens: total_tokens - 1, total_tokens }
    }

    #[test]
    fn an_answer_asks_in_time_and_waits_when_nothing_is_left() {
        let mut meter = Meter::new(Demand { prompt: 10, answer: None }, 30, 20, 1);
        assert_eq!(meter.wants(), None);
        meter.text(4 * 10);
        assert_eq!(meter.wants(), None, "as much as half a chunk is left");
        meter.text(1);
        assert_eq!(meter.wants(), Some(41));
        assert_eq!(meter.wants(), None, "it is asked once");
        assert!(!meter.waits(), "there is some left");
        meter.text(4 * 9);
        assert!(!meter.waits());
        meter.text(1);
        assert!(meter.waits());
        meter.granted();
        assert!(!meter.waits());
        assert_eq!((meter.taken(), meter.used()), (41, 31));
        assert_eq!(meter.wants(), None, "ten are left");
        meter.text(1);
        assert_eq!(meter.wants(), Some(52));
    }

    #[test]
    fn a_bounded_answer_asks_for_nothing_however_long_its_words_are() {
        let mut meter = Meter::new(Demand { prompt: 10, answer: Some(20) }, 30, 20, 1);
        meter.text(4 * 100);
        assert_eq!((meter.wants(), meter.used()), (None, 30));
    }

    #[test]
    fn a_piece_is_a_token_at_least_and_the_model_servers_word_is_the_truth() {
        let mut meter = Meter::new(Demand { prompt: 10, answer: None }, 30, 20, 1);
        assert!(!meter.begun());
        meter.text(1);
        meter.text(9);
        assert_eq!(meter.used(), 10 + 1 + 3);
        meter.end(Usage::default());
        assert_eq!(meter.used(), 14, "it told nothing");
        meter.end(usage(25));
        assert_eq!(meter.used(), 25);
    }

    #[test]
    fn of_several_calls_all_have_to_be_told() {
        let mut meter = Meter::new(Demand { prompt: 10, answer: None }, 30, 20, 2);
        meter.text(4);
        meter.end(usage(25));
        assert_eq!(meter.used(), 11);
        meter.end(usage(5));
        assert_eq!(meter.used(), 30);
    }

    #[test]
    fn an_answer_that_may_not_have_more_uses_what_it_has() {
        let mut meter = Meter::new(Demand { prompt: 10, answer: None }, 90, 80, 1);
        meter.text(4 * 41);
        assert_eq!(meter.wants(), Some(131));
        assert!(!meter.refused());
        meter.text(4 * 39);
        assert_eq!(meter.wants(), None, "it has some left");
        meter.text(4);
        assert_eq!(meter.wants(), Some(101), "and asks for little then: something may have come in");
        meter.granted();
        meter.text(4 * 11);
        assert_eq!(meter.wants(), Some(182));
        assert!(meter.waits() && meter.refused());
    }

    #[test]
    fn a_history_that_does_not_fit_is_asked_for_before_anything_else() {
        let mut meter = Meter::new(Demand { prompt: 10, answer: Some(20) }, 30, 20, 1);
        meter.add_prompt(100);
        assert_eq!(meter.wants(), Some(130));
        assert!(meter.waits());
        meter.granted();
        assert_eq!((meter.waits(), meter.wants(), meter.taken()), (false, None, 130));
    }
}
