//! The built-in upstream: deterministic, without a server. It has no pool, since it has nothing to protect, and where it
//! answers at once it needs no timer, no task and no lock: what is measured through it is the gateway.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use chatgateway_core::log::Usage;
use tokio::time::{Instant, Sleep};

use super::{Ask, UpstreamEvent, floor_boundary, status::Gauge};

/// What follows what the user said.
const SENTENCE: &str = "This is the demo model: it says the same every time.";

/// What answers of a given size are filled with.
const FILLER: &str = "All work and no play makes a dull answer. ";

/// An answer of the built-in upstream under way.
pub(super) struct DemoStream {
    answer: String,
    /// How much of it has been told, in bytes.
    told: usize,
    usage: Usage,
    pace: Option<Pace>,
    _in_flight: Gauge,
}

struct Pace {
    delay: Duration,
    start: Instant,
    /// Words told so far.
    words: u32,
    timer: Pin<Box<Sleep>>,
}

impl DemoStream {
    pub(super) fn new(ask: &Ask, delay: Duration, answer_bytes: Option<usize>, in_flight: Gauge) -> Self {
        let text = &*ask.body.text;
        let answer = answer(text, answer_bytes);
        let told = ask.prefix.as_ref().map_or(0, |prefix| continued(&answer, prefix));
        let prompt_tokens = words(text);
        let completion_tokens = words(&answer[told..]);
        let usage = Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
        let pace = (!delay.is_zero()).then(|| {
            let start = Instant::now();
            Pace { delay, start, words: 0, timer: Box::pin(tokio::time::sleep_until(start)) }
        });
        Self { answer, told, usage, pace, _in_flight: in_flight }
    }

    /// What comes next; the end comes last.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<UpstreamEvent> {
        if self.told == self.answer.len() {
            return Poll::Ready(UpstreamEvent::End { finish_reason: super::stop(), usage: self.usage });
        }
        let Some(pace) = &mut self.pace else {
            let text = if self.told == 0 { std::mem::take(&mut self.answer) } else { self.answer.split_off(self.told) };
            self.answer.clear();
            self.told = 0;
            return Poll::Ready(UpstreamEvent::Text(text));
        };
        std::task::ready!(pace.poll(cx));
        let end = self.told + pace.due(&self.answer[self.told..]);
        let text = self.answer[self.told..end].to_owned();
        self.told = end;
        Poll::Ready(UpstreamEvent::Text(text))
    }
}

impl Pace {
    /// Waits until the next word is due.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.start + self.delay.saturating_mul(self.words);
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        self.timer.as_mut().poll(cx)
    }

    /// The bytes of the words of `rest` that are due by now, at least one: who was not asked for a while catches up.
    fn due(&mut self, rest: &str) -> usize {
        let elapsed = self.start.elapsed().as_nanos() / self.delay.as_nanos().max(1);
        let due = u32::try_from(elapsed).unwrap_or(u32::MAX).saturating_add(1).saturating_sub(self.words).max(1);
        let mut bytes = 0;
        let mut told = 0;
        for word in rest.split_inclusive(' ').take(due as usize) {
            bytes += word.len();
            told += 1;
        }
        self.words += told;
        bytes
    }
}

/// The whole answer to `text`.
fn answer(text: &str, bytes: Option<usize>) -> String {
    let Some(bytes) = bytes else { return format!("You said: {text}\n{SENTENCE}") };
    let mut answer = String::with_capacity(bytes);
    for part in ["You said: ", text, "\n", SENTENCE, " "] {
        push_at_most(&mut answer, part, bytes);
    }
    while answer.len() < bytes {
        push_at_most(&mut answer, FILLER, bytes);
    }
    answer
}

/// Appends `part`, or as much of it as fits into `bytes`. Where a character would stand across the end, full stops do.
fn push_at_most(answer: &mut String, part: &str, bytes: usize) {
    let room = bytes - answer.len();
    if part.len() <= room {
        answer.push_str(part);
        return;
    }
    answer.push_str(&part[..floor_boundary(part, room)]);
    while answer.len() < bytes {
        answer.push('.');
    }
}

/// How much of the answer `prefix` has told. What is not this answer's beginning counts by its length.
fn continued(answer: &str, prefix: &str) -> usize {
    if answer.starts_with(prefix) { prefix.len() } else { floor_boundary(answer, prefix.len()) }
}

/// Tokens, as this model counts them.
fn words(text: &str) -> u64 {
    text.split_ascii_whitespace().count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_a_given_size_has_exactly_that_size() {
        for text in ["", "hello", "Grüße aus Köln, 日本語", &"ä".repeat(300)] {
            for bytes in (1..120).chain([1_000, 65_537]) {
                assert_eq!(answer(text, Some(bytes)).len(), bytes, "{text:?} {bytes}");
            }
            assert!(answer(text, None).starts_with(&format!("You said: {text}")));
        }
    }

    #[test]
    fn a_continued_answer_goes_on_where_it_stood() {
        let whole = answer("Grüße", None);
        for at in 0..=whole.len() {
            if whole.is_char_boundary(at) {
                assert_eq!(continued(&whole, &whole[..at]), at);
            }
        }
        assert_eq!(continued("abc", "something else that is longer"), 3);
    }
}
