//! Each view held against the log: the same entries, in the log's order, none left out, none twice.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use chatgateway_core::log::EntryId;

use super::{
    Check, Entry, Record, Stamped, ViewId,
    check::{Expected, Findings, Placed},
    sessions::Log,
};

/// Where a view is.
#[derive(Clone, Copy)]
enum At {
    /// Anywhere: its next entry tells.
    Anywhere,
    /// After this entry; the place of the record that tells so.
    After(EntryId, Option<usize>),
}

struct View {
    at: At,
    seen: HashSet<EntryId>,
}

/// Checks the views of a session.
pub(super) fn check(placed: &Placed<'_>, log: &Log<'_>, expected: &Expected, findings: &mut Findings<'_>) {
    let mut views: BTreeMap<ViewId, View> = BTreeMap::new();
    let fresh = || View { at: At::After(EntryId::ZERO, None), seen: HashSet::new() };
    for (place, record) in placed {
        match record {
            Record::Attached { view, .. } => views.entry(*view).or_insert_with(fresh).at = At::Anywhere,
            Record::Seen { view, session, entry } => {
                views.entry(*view).or_insert_with(fresh).take((*place, session), entry, log, findings);
            }
            Record::Resumed { view, asked, recovered, position, .. } => {
                let view = views.entry(*view).or_insert_with(fresh);
                view.resumed(*place, (*asked, *recovered, *position), log, expected, findings);
            }
            Record::Snapshot { view, position, .. } => {
                let view = views.entry(*view).or_insert_with(fresh);
                // What the snapshot tells begins anew.
                view.seen.clear();
                view.at = At::After(*position, Some(*place));
                if log.length_at(*position).is_none() {
                    let what = "a snapshot's position is not in the log";
                    findings.add(Check::Position, None, &[*position], &[*place, log.place], what);
                    view.at = At::Anywhere;
                }
            }
            _ => {}
        }
    }
}

/// Looks for turns that stood still, by when each of their entries was first told to anybody. The longest pause, ms.
pub(super) fn check_pauses(
    placed: &Placed<'_>,
    records: &[Stamped],
    log: &Log<'_>,
    expected: &Expected,
    findings: &mut Findings<'_>,
) -> u64 {
    let mut first: HashMap<EntryId, (u64, usize)> = HashMap::new();
    for (place, record) in placed {
        if let Record::Seen { entry, .. } = record {
            first.entry(entry.id).or_insert((records[*place].at_ms, *place));
        }
    }
    let mut longest = 0;
    for pair in log.entries.windows(2).filter(|pair| pair[0].turn == pair[1].turn) {
        let (Some(before), Some(after)) = (first.get(&pair[0].id), first.get(&pair[1].id)) else { continue };
        let pause = after.0.saturating_sub(before.0);
        longest = longest.max(pause);
        if pause > expected.pause_max_ms {
            let what = format!("the turn stood still for {:.1} s", pause as f64 / 1_000.0);
            let ids = [pair[0].id, pair[1].id];
            findings.add(Check::Stuck, Some(&pair[0].turn), &ids, &[before.1, after.1], what);
        }
    }
    longest
}

impl View {
    fn take(
        &mut self,
        (place, session): (usize, &Arc<str>),
        entry: &Entry,
        log: &Log<'_>,
        findings: &mut Findings<'_>,
    ) {
        let turn = Some(&entry.turn);
        let before = match self.at {
            At::Anywhere => None,
            At::After(position, record) => Some((position, record)),
        };
        let records: Vec<usize> = before.and_then(|(_, record)| record).into_iter().chain([place]).collect();
        if entry.session != *session {
            let what = format!("a reader of this session was told an entry of {}", entry.session);
            findings.add(Check::Foreign, turn, &[entry.id], &[place, log.place], what);
            return;
        }
        let Some(n) = log.place_of(entry.id) else {
            // The view goes on where it was: what it was told besides is the only thing that is wrong.
            let what = "a reader was told an entry that the log does not have";
            findings.add(Check::Stale, turn, &[entry.id], &[place, log.place], what);
            return;
        };
        let logged = &log.entries[n];
        if logged != entry {
            let what = format!("a reader was told {:?}, the log has {:?}", entry.kind, logged.kind);
            findings.add(Check::Content, turn, &[entry.id], &[place, log.place], what);
        }
        let again = !self.seen.insert(entry.id);
        if let Some((position, _)) = before
            && let Some(next) = log.length_at(position)
        {
            if again {
                findings.add(Check::Repeat, turn, &[position, entry.id], &records, "a reader was told an entry again");
            } else if n < next {
                let what = "a reader was told an earlier entry after a later one";
                findings.add(Check::Order, turn, &[position, entry.id], &records, what);
            } else if n > next {
                let missing: Vec<EntryId> = log.entries[next..n].iter().map(|entry| entry.id).collect();
                let what = format!("a reader at {position} was told {} next and not what is between", entry.id);
                findings.add(Check::Gap, turn, &missing, &records, what);
            }
        }
        self.at = At::After(entry.id, Some(place));
    }

    fn resumed(
        &mut self,
        place: usize,
        (asked, recovered, position): (EntryId, bool, EntryId),
        log: &Log<'_>,
        expected: &Expected,
        findings: &mut Findings<'_>,
    ) {
        if recovered {
            if position != asked {
                let what = format!("a resume after {asked} went on after {position}");
                findings.add(Check::Position, None, &[asked, position], &[place], what);
            }
            if let At::After(at, record) = self.at
                && at != asked
            {
                // The client's own mistake would make every other check worthless.
                let records: Vec<usize> = record.into_iter().chain([place]).collect();
                let what = format!("the client was at {at} and resumed after {asked}: the test is wrong");
                findings.add(Check::Position, None, &[at, asked], &records, what);
            }
            self.at = At::After(asked, Some(place));
            return;
        }
        if expected.store_keeps && log.length_at(asked).is_some() {
            let what = "a resume after an entry that the log has was not recovered";
            findings.add(Check::Position, None, &[asked], &[place, log.place], what);
        }
        self.at = At::Anywhere;
        self.seen.clear();
    }
}
