//! What must hold: after every step of the store, whenever a reader takes an entry, and when all has come to rest.

use std::{collections::HashMap, sync::Arc};

use chatgateway_core::log::{EndKind, Entry, EntryId, EntryKind, TurnId, TurnState, store::SessionState};

use crate::world::{Kind, World};

/// The text of a turn that entries tell, up to its end, and whether they tell it from its beginning.
fn text<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>, turn: &TurnId) -> (String, bool) {
    let (mut text, mut whole, mut ended) = (String::new(), false, false);
    for entry in entries.filter(|entry| entry.turn == *turn) {
        match &entry.kind {
            EntryKind::Turn { .. } | EntryKind::Reset => {
                text.clear();
                (whole, ended) = (true, false);
            }
            EntryKind::Delta { text: more } if !ended => text.push_str(more),
            kind => ended |= kind.end().is_some(),
        }
    }
    (text, whole)
}

/// Whether a text is the model's tokens from the first on, none missing, none twice, and those of one request unless
/// a partial answer may be continued.
fn flows(text: &str, prefill: bool) -> bool {
    let mut ask = None;
    text.split_whitespace().enumerate().all(|(place, token)| {
        let (by, k) = token.split_once('.').unwrap_or(("", ""));
        let same = prefill || *ask.get_or_insert(by) == by;
        same && k.parse() == Ok(place)
    })
}

/// Whether the entry ends an answer, whole or partial.
fn answered(entry: &Entry) -> bool {
    matches!(entry.kind.end(), Some(EndKind::Done | EndKind::Cancelled))
}

impl World {
    /// After every step of the store.
    pub fn check_store(&mut self) {
        let Some(session) = &self.store.slot else { return };
        let Some(log) = &session.log else { return };
        let log: Vec<_> = log.iter().cloned().collect();
        let wrong = chain(&log, self.kind == Kind::Proxy)
            .or_else(|| records(session, &log, self.kind == Kind::Proxy))
            .or_else(|| if self.kind == Kind::Proxy { None } else { writers(&log) })
            .or_else(|| self.texts(session, &log));
        if let Some(why) = wrong {
            self.fail(why);
        }
    }

    fn texts(&self, session: &SessionState, log: &[Arc<Entry>]) -> Option<String> {
        for turn in self.senders.iter().map(|sender| &sender.turn) {
            let ended = log.iter().any(|entry| entry.turn == *turn && answered(entry));
            // Behind a proxy there may be a hole until it is found, but no answer may end on it.
            if self.kind == Kind::Proxy && !ended {
                continue;
            }
            let (told, whole) = text(log.iter(), turn);
            if whole && !flows(&told, self.prefill) {
                return Some(format!("the log tells turn {turn} as {told:?}"));
            }
            let row = session.history.iter().find(|row| row.turn == *turn);
            if let (true, true, Some(row)) = (ended, whole, row)
                && *row.answer != *told
            {
                return Some(format!("turn {turn} is {told:?} in the log and {:?} in the history", row.answer));
            }
        }
        None
    }

    /// A reader takes an entry.
    pub fn take(&mut self, i: usize, entry: Arc<Entry>) {
        self.note(|| format!("reader {i} takes {} {:?}", entry.id, entry.kind));
        let client = &mut self.clients[i];
        client.position = entry.id;
        client.view.push(Arc::clone(&entry));
        if self.store.ever.get(&entry.id).is_none_or(|(known, _)| *known != entry) {
            return self.fail(format!("reader {i} was given {} which is not committed", entry.id));
        }
        let Some(log) = self.store.slot.as_ref().and_then(|session| session.log.as_ref()) else { return };
        let Some(at) = log.iter().position(|known| *known == entry) else { return };
        let view = &self.clients[i].view;
        if self.kind == Kind::Proxy {
            // What a proxy hid may be read past; but not told as an answer's end.
            let (seen, whole) = text(view.iter(), &entry.turn);
            if answered(&entry) && whole && seen != text(log.iter().take(at + 1), &entry.turn).0 {
                self.fail(format!("reader {i} was told the end of an answer that the log does not have"));
            }
        } else if !view.iter().rev().zip(log.iter().take(at + 1).rev()).all(|(seen, known)| seen == known) {
            self.fail(format!("reader {i} went on after a past that the log does not have"));
        }
    }

    /// When nothing moves any more.
    pub fn check_rest(&mut self) {
        let wrong = self.wrong_at_rest();
        if let Some(why) = wrong {
            self.fail(why);
        }
    }

    fn wrong_at_rest(&mut self) -> Option<String> {
        let (end, base) = match &self.store.slot {
            Some(session) if session.exists() => {
                (session.end(), if session.log.is_some() { session.root.base } else { EntryId::ZERO })
            }
            _ => (EntryId::ZERO, EntryId::ZERO),
        };
        for (i, client) in self.clients.iter().enumerate() {
            if client.position != base && client.position != end {
                return Some(format!("reader {i} stands at {}, the log ends at {end}", client.position));
            }
        }
        let Some(session) = &self.store.slot else {
            return (!self.lost).then(|| "the session is gone".to_owned());
        };
        if session.root.owner.is_some() {
            return Some("somebody owns an idle session".to_owned());
        }
        for sender in &self.senders {
            let state = session.state_of(&sender.turn);
            let ended = matches!(state, Some(TurnState::Ended(_)));
            if !ended && !self.lost {
                return Some(format!("turn {} was accepted and is {state:?}", sender.turn));
            }
            let kept = session.history.iter().filter(|row| row.turn == sender.turn).count();
            let answered = matches!(state, Some(TurnState::Ended(EndKind::Done | EndKind::Cancelled)));
            let dropped = answered && kept == 0 && session.history.len() == self.terms.keep_turns;
            if kept != usize::from(answered) && !dropped {
                return Some(format!("turn {} is {state:?} and stands {kept} times in the history", sender.turn));
            }
        }
        self.count();
        None
    }

    fn count(&mut self) {
        let ends = |kind| self.store.ever.values().filter(|(entry, _)| entry.kind.end() == Some(kind)).count();
        self.outcome.done = ends(EndKind::Done);
        self.outcome.cancelled = ends(EndKind::Cancelled);
        let count =
            |test: fn(&EntryKind) -> bool| self.store.ever.values().filter(|(entry, _)| test(&entry.kind)).count();
        self.outcome.takeovers = count(|kind| matches!(kind, EntryKind::Takeover { .. }));
        self.outcome.resets = count(|kind| matches!(kind, EntryKind::Reset));
    }
}

/// The log is one chain. Behind a proxy a break may be written, but nothing except text may follow it before the next
/// ownership begins: its first entry is one after which readers are told to start again.
fn chain(log: &[Arc<Entry>], proxy: bool) -> Option<String> {
    for i in 1..log.len() {
        if log[i].predecessor() == log[i - 1].id {
            continue;
        }
        let same_owner = |entry: &&Arc<Entry>| entry.id.n != 0;
        if !proxy || log[i..].iter().take_while(same_owner).any(|entry| !matches!(entry.kind, EntryKind::Delta { .. }))
        {
            return Some(format!("{} follows {} in the log", log[i].id, log[i - 1].id));
        }
    }
    None
}

/// Every epoch's entries stand together: nobody writes after a later owner.
fn writers(log: &[Arc<Entry>]) -> Option<String> {
    let mut seen: Vec<u64> = Vec::new();
    for entry in log {
        if seen.last() == Some(&entry.id.epoch) {
            continue;
        }
        if seen.contains(&entry.id.epoch) {
            return Some(format!("epoch {} writes after a later one", entry.id.epoch));
        }
        seen.push(entry.id.epoch);
    }
    None
}

/// One start and one end a turn, no log without its record, none of a deleted turn. Behind a proxy text may be written of
/// a turn that the store has forgotten.
fn records(session: &SessionState, log: &[Arc<Entry>], proxy: bool) -> Option<String> {
    let mut counts: HashMap<&TurnId, (usize, usize)> = HashMap::new();
    for entry in log {
        let (starts, ends) = counts.entry(&entry.turn).or_default();
        *starts += usize::from(matches!(entry.kind, EntryKind::Turn { .. }));
        *ends += usize::from(entry.kind.end().is_some());
        if *starts > 1 || *ends > 1 {
            return Some(format!("turn {} starts {starts} times and ends {ends} times", entry.turn));
        }
        match session.state_of(&entry.turn) {
            None if proxy && matches!(entry.kind, EntryKind::Delta { .. }) => {}
            None => return Some(format!("the log has turn {}, of which nothing is known", entry.turn)),
            Some(TurnState::Deleted) => return Some(format!("the log has turn {}, which is deleted", entry.turn)),
            Some(_) => {}
        }
    }
    for (i, row) in session.history.iter().enumerate() {
        if session.history.iter().skip(i + 1).any(|other| other.turn == row.turn) {
            return Some(format!("turn {} stands twice in the history", row.turn));
        }
    }
    None
}
