//! The turn that runs: its text, how it begins, how it is recovered, how it ends.

use std::{sync::Arc, time::Instant};

use super::{Leave, Owner, OwnerEffect, Sent, Upstream};
use crate::{
    error::ErrorCode,
    limits::{
        ANSWER_MAX_BYTES, ANSWER_RESUMES_MAX, DELTA_MAX_BYTES, TAKEOVERS_MAX, TURN_ENTRIES_MAX, UNCOMMITTED_MAX_BYTES,
    },
    log::{EntryId, EntryKind, Ownership, ReadReply, TurnBody, TurnId},
};

/// Where a turn stands.
#[derive(Debug)]
pub(super) enum Stage {
    /// Another ownership began it: its text so far is read from the log.
    Recover {
        /// The last entry read; below `start` before the first page.
        to: EntryId,
    },
    /// The log's text of it is void, and this must be told first.
    Reset {
        /// Whether the model is to be asked after that.
        ask: bool,
    },
    /// Text is committed as it comes.
    Answer,
}

#[derive(Debug)]
pub(super) struct Turn {
    pub(super) id: TurnId,
    body: Arc<TurnBody>,
    start: EntryId,
    cancel: bool,
    tries: u32,
    pub(super) deadline: Instant,
    pub(super) stage: Stage,
    /// Its answer since the last reset, committed or not.
    pub(super) text: String,
    /// How much of that is committed.
    pub(super) committed: usize,
    /// Its entries in the log.
    pub(super) entries: u64,
    /// How often its answer broke off here and was asked for again.
    resumes: u32,
    /// The entry it ends with. Never changes once it is there.
    pub(super) outcome: Option<EntryKind>,
}

impl Turn {
    pub(super) fn new(own: &Ownership, deadline: Instant) -> Self {
        Self {
            id: own.turn.clone(),
            body: Arc::clone(&own.body),
            start: own.start,
            cancel: own.cancel,
            tries: own.tries,
            deadline,
            stage: Stage::Answer,
            text: String::new(),
            committed: 0,
            entries: 1,
            resumes: 0,
            outcome: None,
        }
    }

    /// The position from which its recovery reads on.
    pub(super) fn recovered_to(&self) -> EntryId {
        match self.stage {
            Stage::Recover { to } => to,
            _ => self.start,
        }
    }

    fn uncommitted(&self) -> usize {
        self.text.len() - self.committed
    }
}

/// The greatest id below `id`.
fn just_below(id: EntryId) -> EntryId {
    if id.n > 0 { EntryId::new(id.epoch, id.n - 1) } else { EntryId::new(id.epoch.saturating_sub(1), u64::MAX) }
}

/// The greatest length up to `max` that does not cut a character.
fn whole_characters(text: &str, max: usize) -> usize {
    if text.len() <= max {
        return text.len();
    }
    (0..=max).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

impl Owner {
    /// Begins with a turn that nobody ran before, or takes one over.
    pub(super) fn start_turn(&mut self, own: Ownership, now: Instant, out: &mut Vec<OwnerEffect>) {
        if self.leave == Some(Leave::AfterThisTurn) && self.turn.outcome.is_some() {
            self.leave = Some(Leave::Now);
        }
        self.adopt(&own);
        self.turn = Turn::new(&own, now + self.config.turn_deadline);
        if own.start == own.end {
            self.go_on(true, out);
        } else if own.start == EntryId::ZERO {
            self.go_on(false, out);
        } else {
            self.turn.entries = 0;
            self.turn.stage = Stage::Recover { to: just_below(own.start) };
        }
    }

    /// Goes on from what the log says of the turn: `whole` if it could be read from its beginning without a break.
    fn go_on(&mut self, whole: bool, out: &mut Vec<OwnerEffect>) {
        let continues = whole && (self.turn.text.is_empty() || self.config.prefill);
        if !whole {
            self.turn.text.clear();
        }
        self.turn.committed = self.turn.text.len();
        // What the log tells of it with a hole must be voided, however the turn ends.
        self.turn.stage = if whole { Stage::Answer } else { Stage::Reset { ask: true } };
        if self.turn.tries >= TAKEOVERS_MAX {
            self.fail_for_takeovers(out);
        } else if self.turn.cancel {
            self.on_cancel(out);
        } else if self.leaves_now() {
            // Nothing is begun that another pod has to repeat.
        } else if continues {
            self.ask(out);
        } else {
            self.void_text();
        }
    }

    /// What was told of the answer is void, which is told before the model is asked again. An append that is under way or in
    /// doubt comes before that: its id is taken.
    fn void_text(&mut self) {
        self.turn.text.clear();
        self.turn.committed = 0;
        self.turn.stage = Stage::Reset { ask: true };
    }

    /// The model server broke its answer off: it is asked again, as a takeover would do it. Whether that is done.
    pub(super) fn ask_again(&mut self, out: &mut Vec<OwnerEffect>) -> bool {
        let turn = &mut self.turn;
        // What failed before its first word was asked for elsewhere already.
        let broke_off = self.upstream != Upstream::Off && turn.outcome.is_none() && !turn.text.is_empty();
        if !broke_off || turn.resumes >= ANSWER_RESUMES_MAX {
            return false;
        }
        turn.resumes += 1;
        self.upstream = Upstream::Off;
        if self.config.prefill {
            self.ask(out);
        } else {
            self.void_text();
        }
        true
    }

    fn fail_for_takeovers(&mut self, out: &mut Vec<OwnerEffect>) {
        let message = "the turn was taken over too often; send it again as a new turn";
        self.fail(ErrorCode::Internal, message, out);
    }

    fn ask(&mut self, out: &mut Vec<OwnerEffect>) {
        let prefix = Some(self.turn.text.clone()).filter(|text| !text.is_empty());
        self.upstream = Upstream::On;
        out.push(OwnerEffect::Ask { turn: self.turn.id.clone(), body: Arc::clone(&self.turn.body), prefix });
    }

    /// Reads on the chain of the turn's entries, from its `turn` entry to the end that the claim saw.
    pub(super) fn recover(&mut self, page: ReadReply, _now: Instant, out: &mut Vec<OwnerEffect>) {
        let Stage::Recover { to } = &self.turn.stage else { return };
        let mut to = *to;
        let mut chained = !page.entries.is_empty();
        for entry in &page.entries {
            let first = self.turn.entries == 0;
            let fits = if first { entry.id == self.turn.start } else { entry.predecessor() == to };
            if !fits || entry.turn != self.turn.id || entry.kind.end().is_some() {
                chained = false;
                break;
            }
            to = entry.id;
            self.turn.entries += 1;
            match &entry.kind {
                EntryKind::Delta { text } => self.turn.text.push_str(text),
                EntryKind::Reset => self.turn.text.clear(),
                _ => {}
            }
            if to == self.end {
                return self.go_on(true, out);
            }
        }
        if chained {
            self.turn.stage = Stage::Recover { to };
        } else {
            // A break, or another end than the claim saw: that is worth a look before anything is written.
            self.verified = false;
            self.go_on(false, out);
        }
    }

    /// The store lost entries of the running turn, and `own` is the new epoch in which it is told again.
    pub(super) fn repair(&mut self, own: Ownership, out: &mut Vec<OwnerEffect>) {
        self.adopt(&own);
        self.turn.start = own.start;
        self.turn.tries = own.tries;
        self.turn.entries += 1;
        self.turn.committed = 0;
        match self.turn.stage {
            Stage::Recover { .. } => {
                self.turn.text.clear();
                self.turn.entries = 0;
                if own.start == EntryId::ZERO {
                    self.go_on(false, out);
                } else {
                    self.turn.stage = Stage::Recover { to: just_below(own.start) };
                }
                return;
            }
            Stage::Answer => self.turn.stage = Stage::Reset { ask: false },
            Stage::Reset { .. } => {}
        }
        if own.tries >= TAKEOVERS_MAX && self.turn.outcome.is_none() {
            self.fail_for_takeovers(out);
        }
        if own.cancel {
            self.on_cancel(out);
        }
    }

    pub(super) fn after_reset(&mut self, out: &mut Vec<OwnerEffect>) {
        let Stage::Reset { ask } = self.turn.stage else { return };
        self.turn.stage = Stage::Answer;
        if ask && self.turn.outcome.is_none() && !self.leaves_now() {
            self.ask(out);
        }
    }

    pub(super) fn on_text(&mut self, text: &str, out: &mut Vec<OwnerEffect>) {
        if self.upstream == Upstream::Off || text.is_empty() {
            return;
        }
        if self.turn.text.len() + text.len() > ANSWER_MAX_BYTES {
            return self.fail(ErrorCode::TooLarge, "the answer is longer than one answer may be", out);
        }
        self.turn.text.push_str(text);
        if self.upstream == Upstream::On && self.turn.uncommitted() > UNCOMMITTED_MAX_BYTES {
            self.upstream = Upstream::Paused;
            out.push(OwnerEffect::PauseUpstream);
        }
    }

    pub(super) fn resume_upstream(&mut self, out: &mut Vec<OwnerEffect>) {
        if self.upstream == Upstream::Paused && self.turn.uncommitted() <= UNCOMMITTED_MAX_BYTES / 2 {
            self.upstream = Upstream::On;
            out.push(OwnerEffect::ResumeUpstream);
        }
    }

    pub(super) fn on_upstream_over(&mut self, outcome: EntryKind) {
        if self.upstream != Upstream::Off {
            self.upstream = Upstream::Off;
            self.turn.outcome.get_or_insert(outcome);
        }
    }

    pub(super) fn stop_upstream(&mut self, out: &mut Vec<OwnerEffect>) {
        if self.upstream != Upstream::Off {
            self.upstream = Upstream::Off;
            out.push(OwnerEffect::StopUpstream);
        }
    }

    /// A client has cancelled the turn: it ends with what is committed, or is in doubt.
    pub(super) fn on_cancel(&mut self, out: &mut Vec<OwnerEffect>) {
        self.turn.cancel = true;
        // While it is being recovered its text is not known yet; that comes first.
        if self.turn.outcome.is_some() || matches!(self.turn.stage, Stage::Recover { .. }) {
            return;
        }
        self.stop_upstream(out);
        let in_doubt = match &self.doubt {
            Some(Sent::Append { bytes, .. }) => *bytes,
            _ => 0,
        };
        // While a lost log is being told again, nothing is committed and all of it was.
        if matches!(self.turn.stage, Stage::Answer) && !matches!(self.doubt, Some(Sent::Claim(_))) {
            self.turn.text.truncate(self.turn.committed + in_doubt);
        }
        self.turn.outcome = Some(EntryKind::Cancelled);
    }

    pub(super) fn fail(&mut self, code: ErrorCode, message: &str, out: &mut Vec<OwnerEffect>) {
        self.stop_upstream(out);
        self.turn.outcome.get_or_insert_with(|| EntryKind::Failed { code, message: message.into() });
        if matches!(self.turn.stage, Stage::Recover { .. }) {
            self.turn.text.clear();
            self.turn.committed = 0;
            self.turn.stage = Stage::Answer;
        }
    }

    /// What gathered while the last append was in flight, as one entry.
    pub(super) fn next_text(&mut self, out: &mut Vec<OwnerEffect>) -> Option<Sent> {
        if self.turn.uncommitted() == 0 {
            return None;
        }
        if self.turn.entries + 1 >= TURN_ENTRIES_MAX && self.turn.outcome.is_none() {
            self.turn.text.truncate(self.turn.committed);
            self.fail(ErrorCode::TooLarge, "the answer has more parts than one answer may have", out);
            return None;
        }
        let pending = &self.turn.text[self.turn.committed..];
        let bytes = whole_characters(pending, DELTA_MAX_BYTES);
        let entry = self.entry(EntryKind::Delta { text: pending[..bytes].into() });
        Some(Sent::Append { entry, bytes })
    }
}
