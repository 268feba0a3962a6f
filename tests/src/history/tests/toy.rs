//! Histories of a gateway that makes no mistakes: sessions, turns, takeovers, clients that come and go.

use std::sync::Arc;

use chatgateway_core::log::EntryId;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::super::{Ending, Entry, Kept, Kind, Outcome, Record, Stamped, prompt};

/// A toy run.
pub struct Toy {
    pub rng: StdRng,
    pub records: Vec<Record>,
    views: u32,
    epoch: u64,
}

/// One session on its way.
struct Session {
    name: Arc<str>,
    entries: Vec<Entry>,
    kept: Vec<Kept>,
    /// Places at which a turn begins, with the turns that are in the history by then.
    begins: Vec<(usize, usize)>,
}

/// The records of a run with that seed.
pub fn history(seed: u64) -> Vec<Stamped> {
    let mut toy = Toy { rng: StdRng::seed_from_u64(seed), records: Vec::new(), views: 0, epoch: 10 };
    for number in 0..toy.rng.random_range(2..4) {
        toy.session(number);
    }
    stamped(toy.records)
}

/// Records with times.
pub fn stamped(records: Vec<Record>) -> Vec<Stamped> {
    records.into_iter().enumerate().map(|(n, record)| Stamped { at_ms: n as u64, record }).collect()
}

impl Toy {
    fn session(&mut self, number: u32) {
        let name: Arc<str> = format!("s{number}").into();
        let mut session = Session { name, entries: Vec::new(), kept: Vec::new(), begins: Vec::new() };
        for seq in 1..=self.rng.random_range(2..6) {
            self.turn(&mut session, seq);
        }
        for _ in 0..self.rng.random_range(1..4) {
            self.view(&session);
        }
        let (name, entries) = (session.name.clone(), session.entries.clone());
        let position = entries.last().map_or(EntryId::ZERO, |entry| entry.id);
        self.records.push(Record::FinalLog { session: name.clone(), from: "toy".to_owned(), entries });
        let from = "toy".to_owned();
        self.records.push(Record::FinalHistory { session: name, from, position, turns: session.kept });
    }

    fn new_epoch(&mut self) -> EntryId {
        self.epoch += self.rng.random_range(1..1_000);
        EntryId::new(self.epoch, 0)
    }

    fn turn(&mut self, session: &mut Session, seq: u64) {
        let turn: Arc<str> = format!("{}-t{seq}", session.name).into();
        let fault = self.rng.random_bool(0.25);
        let behaviour = serde_json::json!({"fault": "die"});
        let words = self.rng.random_range(1..30);
        let text: Arc<str> = prompt::prompt(&session.name, seq, words, fault.then_some(&behaviour)).into();
        self.requests(session, &turn, &text, seq);

        session.begins.push((session.entries.len(), session.kept.len()));
        let next = match session.entries.last() {
            Some(last) if self.rng.random_bool(0.5) => EntryId::new(last.id.epoch, last.id.n + 1),
            _ => self.new_epoch(),
        };
        let mut writer = Writer { session, turn: turn.clone(), next };
        writer.write(Kind::Turn { seq, text: text.clone() });
        self.records.push(asked(&text, ""));
        let (answer, takeovers) = self.tell(&mut writer, &text);
        let ending = match self.rng.random_range(0..10) {
            0 | 1 => Ending::Cancelled,
            2 if fault || takeovers >= 3 => Ending::Failed,
            _ => Ending::Done,
        };
        let answer = self.end(&mut writer, &text, answer, ending);
        if ending != Ending::Failed {
            let ending = Some(ending);
            session.kept.push(Kept { turn: turn.clone(), seq, ending, text, answer: answer.clone().into() });
        }
        if self.rng.random_bool(0.3) {
            let (session, ending) = (session.name.clone(), Some(ending));
            self.records.push(Record::Answer { client: 9, session, turn, text: answer.into(), ending });
        }
    }

    fn requests(&mut self, session: &Session, turn: &Arc<str>, text: &Arc<str>, seq: u64) {
        let attempts = self.rng.random_range(1..4);
        for attempt in 1..=attempts {
            let (session, turn, text) = (session.name.clone(), turn.clone(), text.clone());
            let outcome = match self.rng.random_range(0..3) {
                _ if attempt == attempts => Outcome::Accepted { seq: Some(seq) },
                0 => Outcome::Refused("session_busy".into()),
                1 => Outcome::Refused("store_unavailable".into()),
                _ => Outcome::Unknown,
            };
            self.records.push(Record::Sent { client: 1, session: session.clone(), turn: turn.clone(), text, attempt });
            self.records.push(Record::Receipt { client: 1, session, turn, outcome });
        }
    }

    /// Tells some of the answer, with takeovers in between.
    fn tell(&mut self, writer: &mut Writer<'_>, text: &Arc<str>) -> (String, usize) {
        let whole = prompt::answer(text).to_owned();
        let mut told = String::new();
        let mut takeovers = 0;
        for _ in 0..self.rng.random_range(0..8) {
            if takeovers < 3 && self.rng.random_bool(0.2) {
                takeovers += 1;
                writer.next = self.new_epoch();
                writer.write(Kind::Takeover);
                if self.rng.random_bool(0.5) {
                    writer.write(Kind::Reset);
                    told.clear();
                }
                self.records.push(asked(text, &told));
            }
            let more = self.rng.random_range(0..=whole.len() - told.len()).min(40);
            if more > 0 {
                writer.write(Kind::Delta(whole[told.len()..told.len() + more].into()));
                told = whole[..told.len() + more].to_owned();
            }
        }
        (told, takeovers)
    }

    fn end(&mut self, writer: &mut Writer<'_>, text: &Arc<str>, told: String, ending: Ending) -> String {
        let whole = prompt::answer(text);
        let (session, turn) = (writer.session.name.clone(), writer.turn.clone());
        match ending {
            Ending::Done => {
                if told.len() < whole.len() {
                    writer.write(Kind::Delta(whole[told.len()..].into()));
                }
                writer.write(Kind::Done);
                return whole.to_owned();
            }
            Ending::Cancelled => {
                self.records.push(Record::CancelSent { client: 1, session, turn });
                writer.write(Kind::Cancelled);
            }
            Ending::Failed => writer.write(Kind::Failed("upstream_unavailable".into())),
        }
        told
    }

    fn view(&mut self, session: &Session) {
        self.views += 1;
        let view = self.views;
        let name = || session.name.clone();
        let mut position = EntryId::ZERO;
        let mut from = 0;
        if self.rng.random_bool(0.3) {
            (from, _) = session.begins[self.rng.random_range(0..session.begins.len())];
            self.records.push(Record::Attached { view, session: name() });
        } else {
            self.resumed(view, session, position);
        }
        let leaves_early = self.rng.random_bool(0.2);
        for (n, entry) in session.entries.iter().enumerate().skip(from) {
            let begins = session.begins.iter().find(|(begin, _)| *begin == n);
            if let Some((_, kept)) = begins.filter(|_| n > from && self.rng.random_bool(0.15)) {
                let turns = session.kept[..*kept].to_vec();
                self.records.push(Record::Snapshot { view, session: name(), position, turns });
                self.resumed(view, session, position);
            } else if n > from && self.rng.random_bool(0.1) {
                self.records.push(Record::Lost { view, session: name(), why: "toy".to_owned() });
                self.resumed(view, session, position);
            }
            if leaves_early && self.rng.random_bool(0.1) {
                return;
            }
            self.records.push(Record::Seen { view, session: name(), entry: entry.clone() });
            position = entry.id;
        }
    }

    fn resumed(&mut self, view: u32, session: &Session, asked: EntryId) {
        let session = session.name.clone();
        self.records.push(Record::Resumed { view, session, asked, recovered: true, position: asked });
    }
}

fn asked(text: &str, prefix: &str) -> Record {
    Record::Asked { text: prompt::answer(text).into(), prefix: prefix.into() }
}

/// Writes the entries of a turn.
struct Writer<'a> {
    session: &'a mut Session,
    turn: Arc<str>,
    next: EntryId,
}

impl Writer<'_> {
    fn write(&mut self, kind: Kind) {
        let (id, session, turn) = (self.next, self.session.name.clone(), self.turn.clone());
        self.session.entries.push(Entry { id, session, turn, kind });
        self.next = EntryId::new(id.epoch, id.n + 1);
    }
}
