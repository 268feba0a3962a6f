//! What a client does: decided by its seed alone. When it does so also depends on how fast it is answered.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng};
use serde_json::json;

use crate::history::prompt;

/// What turns are like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mix {
    /// Words of most answers, from and to.
    pub words: (u64, u64),
    /// Further words that one answer in twenty has.
    pub more_words: u64,
    /// Pace of the model, words a second, from and to.
    pub pace: (f64, f64),
    /// Part of the turns in whose middle the model dies.
    pub faults: f64,
    /// Longest pause between two turns.
    pub pause: Duration,
}

impl Default for Mix {
    fn default() -> Self {
        let pause = Duration::from_millis(1_200);
        Self { words: (4, 60), more_words: 120, pace: (8.0, 25.0), faults: 0.03, pause }
    }
}

/// One turn of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct TurnPlan {
    /// Words of the answer.
    pub words: u64,
    /// Pace of the model, words a second.
    pub pace: f64,
    /// Whether the model dies in the middle.
    pub fault: bool,
    /// Cancel after so many pieces.
    pub cancel_after: Option<u32>,
    /// Leave without a word after so many pieces, and come back.
    pub leave_after: Option<u32>,
    /// Whether the same turn is also sent to another pod at the same time.
    pub twin: bool,
    /// Pause before the turn.
    pub pause: Duration,
}

impl TurnPlan {
    /// The next turn of who has these dice. All are thrown each time, so that a change of one rate leaves the others.
    pub fn draw(rng: &mut StdRng, mix: &Mix) -> Self {
        let long = rng.random_bool(0.05);
        let words = rng.random_range(mix.words.0..mix.words.1) + if long { mix.more_words } else { 0 };
        let pace = rng.random_range(mix.pace.0..mix.pace.1).round();
        let fault = rng.random_bool(mix.faults);
        let cancel = rng.random_bool(0.08).then_some(rng.random_range(0..20));
        let leave = rng.random_bool(0.12).then_some(rng.random_range(0..20));
        let twin = rng.random_bool(0.1);
        let pause = mix.pause.mul_f64(rng.random_range(0.0..1.0));
        Self { words, pace, fault, cancel_after: cancel, leave_after: leave, twin, pause }
    }

    /// The turn's text.
    pub fn text(&self, session: &str, number: u64) -> String {
        let mut behaviour = json!({"tokens_per_second": self.pace});
        if self.fault {
            behaviour["fault"] = json!("die");
            behaviour["fault_after"] = json!(self.words / 2);
        }
        prompt::prompt(session, number, self.words, Some(&behaviour))
    }
}
