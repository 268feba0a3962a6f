//! One session: its log taken apart, and the requests that made it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chatgateway_core::log::EntryId;

use super::{
    Check, Ending, Entry, Kind, Outcome, Record,
    check::{Expected, Findings, Placed},
    prompt::{answer, foreign_word},
};

/// A turn in the log.
pub(super) struct LogTurn<'a> {
    pub(super) turn: &'a Arc<str>,
    pub(super) seq: u64,
    pub(super) text: &'a str,
    /// Places of its first and last entries in the log.
    pub(super) start: usize,
    pub(super) end: Option<usize>,
    pub(super) ending: Option<Ending>,
    /// Its text since the last reset.
    pub(super) answer: String,
    pub(super) takeovers: usize,
    /// Texts that a reset made void.
    pub(super) void: Vec<String>,
}

/// A session's log.
pub(super) struct Log<'a> {
    /// The record that has it.
    pub(super) place: usize,
    pub(super) entries: &'a [Entry],
    places: HashMap<EntryId, usize>,
    pub(super) turns: Vec<LogTurn<'a>>,
    by_turn: HashMap<&'a str, usize>,
}

impl<'a> Log<'a> {
    /// Takes a log apart, and checks what can be seen in it alone.
    pub(super) fn read(session: &Arc<str>, place: usize, entries: &'a [Entry], findings: &mut Findings<'_>) -> Self {
        let mut log = Self { place, entries, places: HashMap::new(), turns: Vec::new(), by_turn: HashMap::new() };
        let mut before = EntryId::ZERO;
        for (n, entry) in entries.iter().enumerate() {
            log.places.insert(entry.id, n);
            let follows = entry.id.epoch == before.epoch && entry.id.n == before.n + 1;
            let begins = entry.id.epoch > before.epoch && entry.id.n == 0;
            if !follows && !begins {
                let what = "an entry that cannot follow the one before it";
                findings.add(Check::Log, Some(&entry.turn), &[before, entry.id], &[place], what);
            }
            if begins && !matches!(entry.kind, Kind::Turn { .. } | Kind::Takeover) {
                let what = "an ownership that begins with neither a turn nor a takeover";
                findings.add(Check::Log, Some(&entry.turn), &[entry.id], &[place], what);
            }
            if entry.session != *session {
                let what = format!("an entry of session {}", entry.session);
                findings.add(Check::Foreign, Some(&entry.turn), &[entry.id], &[place], what);
            }
            before = entry.id;
            log.take(n, entry, findings);
        }
        for (n, turn) in log.turns.iter().enumerate() {
            if turn.seq != n as u64 + 1 {
                let what = format!("turn number {} of the log has seq {}", n + 1, turn.seq);
                findings.add(Check::Seq, Some(turn.turn), &[entries[turn.start].id], &[place], what);
            }
            if let Some(word) = foreign_word(answer(turn.text), session) {
                findings.add(Check::Foreign, Some(turn.turn), &[], &[place], format!("it says {word:?}"));
            }
        }
        log
    }

    fn take(&mut self, n: usize, entry: &'a Entry, findings: &mut Findings<'_>) {
        let running = self.turns.last_mut().filter(|turn| turn.end.is_none());
        if let Kind::Turn { seq, text } = &entry.kind {
            if let Some(running) = running {
                let what = format!("a turn begins while turn {} runs", running.turn);
                findings.add(Check::Log, Some(&entry.turn), &[entry.id], &[self.place], what);
            }
            if let Some(first) = self.by_turn.insert(&entry.turn, self.turns.len()) {
                let ids = [self.entries[self.turns[first].start].id, entry.id];
                findings.add(Check::Twice, Some(&entry.turn), &ids, &[self.place], "the turn begins twice");
            }
            self.turns.push(LogTurn {
                turn: &entry.turn,
                seq: *seq,
                text,
                start: n,
                end: None,
                ending: None,
                answer: String::new(),
                takeovers: 0,
                void: Vec::new(),
            });
            return;
        }
        let Some(turn) = running.filter(|turn| *turn.turn == entry.turn) else {
            let again = entry.kind.ending().and(self.by_turn.get(&*entry.turn)).map(|turn| &self.turns[*turn]);
            if let Some(end) = again.and_then(|turn| turn.end) {
                let ids = [self.entries[end].id, entry.id];
                findings.add(Check::Twice, Some(&entry.turn), &ids, &[self.place], "the turn ends twice");
            } else {
                let what = "an entry of a turn that does not run";
                findings.add(Check::Log, Some(&entry.turn), &[entry.id], &[self.place], what);
            }
            return;
        };
        match &entry.kind {
            Kind::Delta(text) => turn.answer.push_str(text),
            Kind::Reset => turn.void.push(std::mem::take(&mut turn.answer)),
            Kind::Takeover => turn.takeovers += 1,
            Kind::Turn { .. } | Kind::Done | Kind::Cancelled | Kind::Failed(_) => {}
        }
        turn.ending = entry.kind.ending();
        turn.end = turn.ending.map(|_| n);
    }

    /// The place of an entry in the log.
    pub(super) fn place_of(&self, id: EntryId) -> Option<usize> {
        self.places.get(&id).copied()
    }

    /// How many entries the log has up to a position, that one included; nothing where it has no such entry.
    pub(super) fn length_at(&self, position: EntryId) -> Option<usize> {
        if position == EntryId::ZERO { Some(0) } else { self.place_of(position).map(|place| place + 1) }
    }

    /// A turn of the log.
    pub(super) fn turn(&self, turn: &str) -> Option<&LogTurn<'a>> {
        self.by_turn.get(turn).map(|n| &self.turns[*n])
    }
}

/// What clients asked about one turn, and what they were told at once.
#[derive(Default)]
pub(super) struct Request<'a> {
    /// Text and place of each send.
    sent: Vec<(usize, &'a Arc<str>)>,
    receipts: Vec<(usize, &'a Outcome)>,
    cancelled: bool,
    gave_up: Option<(usize, &'a str)>,
}

/// The requests of a session, by turn.
pub(super) struct Requests<'a>(BTreeMap<&'a Arc<str>, Request<'a>>);

impl<'a> Requests<'a> {
    pub(super) fn of(placed: &Placed<'a>) -> Self {
        let mut requests: BTreeMap<&Arc<str>, Request<'_>> = BTreeMap::new();
        for (place, record) in placed {
            match record {
                Record::Sent { turn, text, .. } => requests.entry(turn).or_default().sent.push((*place, text)),
                Record::Receipt { turn, outcome, .. } => {
                    requests.entry(turn).or_default().receipts.push((*place, outcome));
                }
                Record::CancelSent { turn, .. } => requests.entry(turn).or_default().cancelled = true,
                Record::GaveUp { turn, why, .. } => {
                    requests.entry(turn).or_default().gave_up = Some((*place, why));
                }
                _ => {}
            }
        }
        Self(requests)
    }

    /// The text that was sent as a turn.
    pub(super) fn text(&self, turn: &Arc<str>) -> Option<&'a Arc<str>> {
        self.0.get(turn)?.sent.first().map(|(_, text)| *text)
    }

    /// Holds requests and the log against each other.
    pub(super) fn check(&self, log: &Log<'_>, expected: &Expected, findings: &mut Findings<'_>) {
        for (turn, request) in &self.0 {
            request.check_outcome(turn, log, expected, findings);
        }
        for turn in &log.turns {
            let id = log.entries[turn.start].id;
            let Some(request) = self.0.get(turn.turn).filter(|request| !request.sent.is_empty()) else {
                findings.add(Check::Unasked, Some(turn.turn), &[id], &[log.place], "nobody sent this turn");
                continue;
            };
            if turn.end.is_none() {
                let last = log.entries.last().map_or(id, |entry| entry.id);
                findings.add(Check::Unfinished, Some(turn.turn), &[id, last], &[log.place], "the turn has no end");
            }
            for (place, text) in request.sent.iter().filter(|(_, text)| ***text != *turn.text).take(1) {
                let what = format!("the log says {:?}, its client said {text:?}", turn.text);
                findings.add(Check::Receipt, Some(turn.turn), &[id], &[*place, log.place], what);
            }
            if turn.ending == Some(Ending::Cancelled) && !request.cancelled {
                findings.add(
                    Check::Unasked,
                    Some(turn.turn),
                    &[id],
                    &[log.place],
                    "cancelled, and nobody asked for it",
                );
            }
            let told_to_fail = turn.text.starts_with("sim:") && turn.text.contains("\"fault\"");
            if turn.ending == Some(Ending::Failed) && !told_to_fail && turn.takeovers < expected.takeovers_to_fail {
                let end = turn.end.map(|end| &log.entries[end]);
                let what = format!("it failed with {:?} after {} takeovers", end.map(|e| &e.kind), turn.takeovers);
                findings.add(Check::Failure, Some(turn.turn), &[id], &[log.place], what);
            }
        }
    }
}

impl Request<'_> {
    fn check_outcome(&self, turn: &Arc<str>, log: &Log<'_>, expected: &Expected, findings: &mut Findings<'_>) {
        let in_log = log.turn(turn);
        let mut certain = self.receipts.len() >= self.sent.len();
        for (place, outcome) in &self.receipts {
            match outcome {
                Outcome::Accepted { seq } => {
                    certain = false;
                    let Some(there) = in_log else {
                        let what = "it was accepted and is not in the log";
                        findings.add(Check::Lost, Some(turn), &[], &[*place, log.place], what);
                        break;
                    };
                    if seq.is_some_and(|seq| seq != there.seq) {
                        let what = format!("its receipt says seq {seq:?}, the log {}", there.seq);
                        findings.add(Check::Receipt, Some(turn), &[], &[*place, log.place], what);
                    }
                }
                Outcome::Refused(code) => {
                    certain &= !expected.uncertain.contains(&&**code);
                    if !expected.refusals.contains(&&**code) {
                        findings.add(Check::Refusal, Some(turn), &[], &[*place], format!("refused with {code}"));
                    }
                }
                Outcome::Unknown => certain = false,
            }
        }
        if let (true, Some(there)) = (certain && !self.sent.is_empty(), in_log) {
            let places: Vec<usize> = self.receipts.iter().map(|(place, _)| *place).collect();
            let id = log.entries[there.start].id;
            findings.add(Check::Unasked, Some(turn), &[id], &places, "it was refused each time, and runs");
        }
        if let (Some((place, why)), Some(there)) = (self.gave_up, in_log) {
            let ends: Vec<EntryId> = there.end.map(|end| log.entries[end].id).into_iter().collect();
            let what = format!("its client waited in vain for the end ({why})");
            findings.add(Check::Stuck, Some(turn), &ends, &[place, log.place], what);
        }
    }
}
