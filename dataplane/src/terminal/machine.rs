//! What a terminal client does about what happens, without I/O: events and the time go in, effects come out.
//!
//! The rules: an entry counts only if its id is above the last one taken, so nothing is printed twice; after a reconnect the
//! log is resumed after that id, so nothing is missing; a turn that was not seen in the log is sent again under its id, so it
//! is answered once.

use std::collections::BTreeMap;

use chatgateway_core::log::EntryId;

use super::heard::{Heard, Problem, Said};

/// First and longest wait before a reconnect, in milliseconds; between them it doubles.
const BACKOFF_MS: (u64, u64) = (500, 15_000);

/// A connection that lived this long was a good one: the next wait is short again.
const STEADY_MS: u64 = 5_000;

/// How often a refused turn is sent again before the user is asked to.
const RETRIES_MAX: u32 = 5;

/// Turns of other clients that are kept until they end. They run one by one, so more than a few are a sign of lost ends.
const OTHERS_MAX: usize = 16;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A frame came.
    Heard(Heard),
    /// The connection ended, or could not be made.
    Lost {
        /// The close code, where there was one.
        code: Option<u16>,
        /// Why, for a person.
        reason: String,
        /// How long it lived.
        lived_ms: u64,
    },
    /// The user typed a line; `turn` is a fresh id for it.
    Line {
        /// The id.
        turn: String,
        /// The text.
        text: String,
    },
    /// The user pressed Ctrl-C while an answer was awaited.
    Interrupt,
    /// There are no more lines.
    InputEnded,
    /// The time asked for by [`Effect::RetryIn`] has come.
    RetryNow,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Put a frame on the connection.
    Send(String),
    /// Print a part of the answer.
    Print(String),
    /// Tell the user about the state of things.
    Say(String),
    /// Take the next line from the user.
    Ask,
    /// Leave the connection, if there is one, and make another after this many milliseconds.
    Redial(u64),
    /// Say [`Event::RetryNow`] after this many milliseconds.
    RetryIn(u64),
    /// Leave, with an error for a person or without.
    Leave(Option<String>),
}

/// How the client is used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The session.
    pub session: String,
    /// Whether answers are printed as they come. If not, each is printed when it is complete, so that one that starts over
    /// leaves no trace.
    pub live: bool,
    /// Whether a person types the lines. If not, a turn without an answer is an error at the end.
    pub interactive: bool,
    /// How long to try to reach the server before giving up, in milliseconds. None: for ever.
    pub patience_ms: Option<u64>,
}

/// The turn that the user waits for.
#[derive(Debug)]
struct Turn {
    id: String,
    text: String,
    /// Whether its entry was seen: from here on the log tells the rest.
    seen: bool,
    /// Whether the server told on this connection that it has it.
    accepted: bool,
    /// Whether its number in the session is known.
    numbered: bool,
    stopping: bool,
    retries: u32,
    answer: String,
}

#[derive(Debug, Default)]
struct Other {
    text: String,
    answer: String,
}

/// The client's state.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    greeted: bool,
    /// `hello` came on the present connection.
    online: bool,
    /// A `resume` awaits its outcome.
    resuming: bool,
    /// The server goes away; it asked to wait this long before connecting anew.
    leaving: Option<u64>,
    max_message_bytes: usize,
    attempt: u32,
    reached_ms: u64,
    position: Option<EntryId>,
    last_seq: u64,
    turn: Option<Turn>,
    others: BTreeMap<String, Other>,
    problem: Option<String>,
}

type Effects = Vec<Effect>;

impl Machine {
    /// A client that is about to connect for the first time.
    #[must_use]
    pub fn new(settings: Settings, now_ms: u64) -> Self {
        Self {
            settings,
            greeted: false,
            online: false,
            resuming: false,
            leaving: None,
            max_message_bytes: usize::MAX,
            attempt: 0,
            reached_ms: now_ms,
            position: None,
            last_seq: 0,
            turn: None,
            others: BTreeMap::new(),
            problem: None,
        }
    }

    /// Takes an event. `jitter`, from 0 to 1, spreads reconnects.
    pub fn handle(&mut self, event: Event, now_ms: u64, jitter: f64) -> Effects {
        let mut out = Vec::new();
        match event {
            Event::Heard(heard) => {
                self.reached_ms = now_ms;
                self.hear(heard, &mut out);
            }
            Event::Lost { code, reason, lived_ms } => self.lost(code, &reason, lived_ms, now_ms, jitter, &mut out),
            Event::Line { turn, text } => self.line(turn, text, &mut out),
            Event::Interrupt => self.interrupt(&mut out),
            Event::InputEnded => {
                let problem = self.problem.take().filter(|_| !self.settings.interactive);
                out.push(Effect::Leave(problem));
            }
            Event::RetryNow => self.send_turn(&mut out),
        }
        out
    }

    fn hear(&mut self, heard: Heard, out: &mut Effects) {
        match heard {
            Heard::Hello { max_message_bytes } => self.hello(max_message_bytes, out),
            Heard::Resumed { recovered } => self.resumed(recovered, out),
            Heard::Accepted { turn, seq, state, place, duplicate } => {
                self.accepted(&turn, seq, &state, place, duplicate, out);
            }
            Heard::GoAway { reconnect_after_ms } => {
                self.leaving = Some(reconnect_after_ms);
                self.say("the server is about to restart", out);
                self.leave_if_idle(out);
            }
            Heard::Error(problem) if problem.id.is_none() => self.refused(problem, out),
            Heard::Other => {}
            entry => self.entry(entry, out),
        }
    }

    fn hello(&mut self, max_message_bytes: usize, out: &mut Effects) {
        self.online = true;
        self.leaving = None;
        self.max_message_bytes = max_message_bytes;
        if self.greeted {
            self.say("connected again", out);
        } else {
            self.greeted = true;
            self.say(&format!("connected, session {}", self.settings.session), out);
            if self.turn.is_none() {
                out.push(Effect::Ask);
            }
        }
        if let Some(position) = self.position {
            self.resuming = true;
            self.frame(&Said::Resume { session: &self.settings.session, after: position.to_string() }, out);
        } else {
            self.send_turn(out);
        }
    }

    fn resumed(&mut self, recovered: bool, out: &mut Effects) {
        if !self.resuming {
            return;
        }
        self.resuming = false;
        if recovered {
            if self.turn.as_ref().is_some_and(|turn| turn.seen && turn.stopping) {
                self.cancel(out);
            }
        } else {
            self.position = None;
            self.others.clear();
            self.forgotten(out);
            if let Some(turn) = self.turn.as_mut().filter(|turn| turn.seen) {
                (turn.seen, turn.accepted, turn.numbered) = (false, false, false);
                self.start_over("the answer is asked for again, from its start", out);
            }
        }
        self.send_turn(out);
    }

    /// Sends the awaited turn, unless the log tells of it already or there is nobody to send it to.
    fn send_turn(&mut self, out: &mut Effects) {
        if !self.online || self.resuming || self.leaving.is_some() {
            return;
        }
        let Some(turn) = self.turn.as_ref().filter(|turn| !turn.seen) else { return };
        let said = Said::Send { session: &self.settings.session, turn: &turn.id, text: &turn.text };
        let Ok(frame) = serde_json::to_string(&said) else { return };
        if frame.len() > self.max_message_bytes {
            let problem = format!("not sent: the message is longer than the server's {} bytes", self.max_message_bytes);
            return self.give_up(problem, out);
        }
        out.push(Effect::Send(frame));
    }

    fn accepted(&mut self, turn: &str, seq: u64, state: &str, place: Option<u32>, duplicate: bool, out: &mut Effects) {
        let Some(mine) = self.turn.as_mut().filter(|mine| mine.id == turn && !mine.accepted) else { return };
        mine.accepted = true;
        mine.retries = 0;
        let stopping = mine.stopping;
        if !duplicate {
            self.number(seq, out);
        }
        if state == "queued" {
            self.say(&format!("waiting: number {} in line", place.unwrap_or(1)), out);
        }
        if stopping {
            self.cancel(out);
        }
    }

    /// The awaited turn got its number. The numbers go on where they were, unless the session began anew.
    fn number(&mut self, seq: u64, out: &mut Effects) {
        let Some(mine) = self.turn.as_mut() else { return };
        if !std::mem::replace(&mut mine.numbered, true) && seq <= self.last_seq {
            self.forgotten(out);
        }
        self.last_seq = seq;
    }

    fn entry(&mut self, heard: Heard, out: &mut Effects) {
        let (Heard::Turn { turn, id, .. }
        | Heard::Delta { turn, id, .. }
        | Heard::Reset { turn, id }
        | Heard::Takeover { turn, id }
        | Heard::Cancelled { turn, id }
        | Heard::Done { turn, id, .. }
        | Heard::Error(Problem { turn: Some(turn), id: Some(id), .. })) = &heard
        else {
            return;
        };
        // Before the outcome of a resume, entries belong to no position of this connection.
        if self.resuming || self.position.is_some_and(|position| *id <= position) {
            return;
        }
        self.position = Some(*id);
        if self.turn.as_ref().is_some_and(|mine| mine.id == *turn) {
            self.my_entry(heard, out);
        } else {
            let turn = turn.clone();
            self.others_entry(turn, heard, out);
        }
    }

    fn my_entry(&mut self, heard: Heard, out: &mut Effects) {
        let Some(mine) = self.turn.as_mut() else { return };
        match heard {
            Heard::Turn { seq, .. } => {
                mine.seen = true;
                let shown = !mine.answer.is_empty();
                self.number(seq, out);
                if shown {
                    self.start_over("the answer is told from its start", out);
                }
            }
            Heard::Delta { text, .. } => {
                mine.seen = true;
                mine.answer.push_str(&text);
                if self.settings.live {
                    out.push(Effect::Print(text));
                }
            }
            Heard::Reset { .. } => self.start_over("the answer starts over", out),
            Heard::Takeover { .. } => self.say("another server goes on with the answer", out),
            Heard::Cancelled { .. } => {
                self.end(out);
                self.say("stopped", out);
                self.problem = Some("the answer was stopped".to_owned());
            }
            Heard::Done { finish_reason, .. } => {
                self.end(out);
                if finish_reason == "length" {
                    self.say("the answer reached its length limit", out);
                }
            }
            Heard::Error(problem) => {
                self.end(out);
                let problem = format!("no complete answer: {} ({})", problem.message, problem.code);
                self.say(&problem, out);
                self.problem = Some(problem);
            }
            _ => {}
        }
        self.go_on(out);
    }

    fn others_entry(&mut self, turn: String, heard: Heard, out: &mut Effects) {
        match heard {
            Heard::Turn { seq, text, .. } => {
                self.last_seq = self.last_seq.max(seq);
                if self.others.len() < OTHERS_MAX {
                    self.others.insert(turn, Other { text, answer: String::new() });
                }
            }
            Heard::Delta { text, .. } => {
                if let Some(other) = self.others.get_mut(&turn) {
                    other.answer.push_str(&text);
                }
            }
            Heard::Reset { .. } => {
                if let Some(other) = self.others.get_mut(&turn) {
                    other.answer.clear();
                }
            }
            Heard::Cancelled { .. } | Heard::Done { .. } | Heard::Error(_) => {
                if let Some(other) = self.others.remove(&turn) {
                    self.say(&format!("elsewhere in this session: {}\n{}", other.text, other.answer), out);
                }
            }
            _ => {}
        }
    }

    /// Ends the awaited turn: what was held back is printed, and the line is ended.
    fn end(&mut self, out: &mut Effects) {
        let Some(turn) = self.turn.take() else { return };
        let held = if self.settings.live { String::new() } else { turn.answer.clone() };
        let newline = if turn.answer.is_empty() || turn.answer.ends_with('\n') { "" } else { "\n" };
        if !held.is_empty() || !newline.is_empty() {
            out.push(Effect::Print(held + newline));
        }
    }

    /// After a turn's end: the next line, on the next connection if this one is about to close.
    fn go_on(&mut self, out: &mut Effects) {
        if self.turn.is_none() {
            self.leave_if_idle(out);
            out.push(Effect::Ask);
        }
    }

    fn leave_if_idle(&mut self, out: &mut Effects) {
        let Some(wait_ms) = self.leaving else { return };
        // An answer in the middle goes on here for as long as the server stays.
        if self.turn.as_ref().is_none_or(|turn| !turn.seen) {
            self.online = false;
            self.attempt = 0;
            out.push(Effect::Redial(wait_ms));
        }
    }

    /// The text so far is void.
    fn start_over(&mut self, why: &str, out: &mut Effects) {
        let live = self.settings.live;
        let Some(turn) = self.turn.as_mut() else { return };
        let shown = !std::mem::take(&mut turn.answer).is_empty();
        if shown && live {
            out.push(Effect::Print("\n".to_owned()));
        }
        self.say(why, out);
    }

    fn refused(&mut self, problem: Problem, out: &mut Effects) {
        let text = format!("{} ({})", problem.message, problem.code);
        let mine = self.turn.as_mut().filter(|mine| problem.turn.as_deref() == Some(&mine.id));
        if let Some(turn) = mine {
            if turn.seen || turn.accepted {
                // It was the wish to stop that was refused.
                return self.say(&format!("not stopped: {text}"), out);
            }
            if problem.code == "draining" {
                self.online = false;
                self.say("this server is about to restart; the message goes to the next one", out);
                return out.push(Effect::Redial(self.leaving.or(problem.retry_after_ms).unwrap_or(BACKOFF_MS.0)));
            }
            turn.retries += 1;
            if problem.retryable && turn.retries <= RETRIES_MAX && !turn.stopping {
                let wait_ms = problem.retry_after_ms.unwrap_or(1_000 << turn.retries.min(5));
                self.say(&format!("refused: {text}; trying again in {} s", seconds(wait_ms)), out);
                return out.push(Effect::RetryIn(wait_ms));
            }
            return self.give_up(format!("refused: {text}"), out);
        }
        let about_session = problem.session.is_some() && problem.turn.is_none();
        if about_session && problem.code == "not_found" {
            self.position = None;
            self.last_seq = 0;
            self.others.clear();
            self.say("the session was deleted", out);
            if self.turn.is_some() {
                self.give_up("the session was deleted before the answer was complete".to_owned(), out);
            }
        } else if about_session && self.resuming {
            // The log cannot be read now: another connection may do better.
            self.online = false;
            self.say(&format!("the session cannot be read: {text}"), out);
            out.push(Effect::Redial(problem.retry_after_ms.unwrap_or(BACKOFF_MS.0 * 2)));
        } else {
            self.say(&text, out);
        }
    }

    /// The awaited turn will not be answered.
    fn give_up(&mut self, problem: String, out: &mut Effects) {
        self.end(out);
        self.say(&problem, out);
        self.problem = Some(problem);
        self.go_on(out);
    }

    fn lost(&mut self, code: Option<u16>, reason: &str, lived_ms: u64, now_ms: u64, jitter: f64, out: &mut Effects) {
        let was_leaving = self.leaving.take();
        self.online = false;
        self.resuming = false;
        if let Some(turn) = self.turn.as_mut() {
            turn.accepted = false;
        }
        if code.is_some_and(|code| code == 1008 || (3500..4000).contains(&code)) {
            return out.push(Effect::Leave(Some(format!("the server ended the connection for good: {reason}"))));
        }
        if code == Some(1009) && self.turn.as_ref().is_some_and(|turn| !turn.seen) {
            self.give_up("not sent: the message is too long for the server".to_owned(), out);
        }
        if lived_ms >= STEADY_MS {
            self.attempt = 0;
        }
        let full = (BACKOFF_MS.0 << self.attempt.min(10)).min(BACKOFF_MS.1);
        self.attempt += 1;
        // Half of the wait is certain, half is spread.
        let spread = (full as f64 / 2.0 * jitter.clamp(0.0, 1.0)) as u64;
        let wait_ms = was_leaving.unwrap_or(full / 2 + spread);
        let gone_ms = now_ms.saturating_sub(self.reached_ms);
        if self.settings.patience_ms.is_some_and(|patience| gone_ms + wait_ms > patience) {
            let problem = format!("the server was not reached within {} s: {reason}", seconds(gone_ms));
            return out.push(Effect::Leave(Some(problem)));
        }
        self.say(&format!("{reason}; connecting again in {} s", seconds(wait_ms)), out);
        out.push(Effect::Redial(wait_ms));
    }

    fn line(&mut self, id: String, text: String, out: &mut Effects) {
        if text.trim().is_empty() {
            return out.push(Effect::Ask);
        }
        let answer = String::new();
        let (seen, accepted, numbered, stopping) = (false, false, false, false);
        self.turn = Some(Turn { id, text, seen, accepted, numbered, stopping, retries: 0, answer });
        self.send_turn(out);
    }

    fn interrupt(&mut self, out: &mut Effects) {
        let online = self.online;
        let Some(turn) = self.turn.as_mut() else { return out.push(Effect::Leave(None)) };
        if turn.stopping || !online {
            return out.push(Effect::Leave(Some("left before the answer was complete".to_owned())));
        }
        turn.stopping = true;
        let known = turn.seen || turn.accepted;
        let retrying = turn.retries > 0 && !known;
        self.say("stopping; Ctrl-C again leaves", out);
        if known {
            self.cancel(out);
        } else if retrying {
            self.give_up("not sent".to_owned(), out);
        }
    }

    fn cancel(&mut self, out: &mut Effects) {
        if let Some(turn) = &self.turn {
            self.frame(&Said::Cancel { session: &self.settings.session, turn: &turn.id }, out);
        }
    }

    fn forgotten(&mut self, out: &mut Effects) {
        self.last_seq = 0;
        let words = "the server no longer has this conversation as it was (it restarted without its data, or the session \
                     expired); going on, but what came before may be forgotten";
        self.say(words, out);
    }

    fn frame(&self, said: &Said<'_>, out: &mut Effects) {
        // Text into memory: this cannot fail.
        if let Ok(frame) = serde_json::to_string(said) {
            out.push(Effect::Send(frame));
        }
    }

    fn say(&self, words: &str, out: &mut Effects) {
        out.push(Effect::Say(words.to_owned()));
    }
}

/// Milliseconds as a person counts them.
fn seconds(ms: u64) -> u64 {
    ms.div_ceil(1_000).max(1)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
