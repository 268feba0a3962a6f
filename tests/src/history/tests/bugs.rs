//! Bugs, planted into correct histories: each the trace that one kind of broken gateway leaves.
#![allow(clippy::ptr_arg, reason = "all bugs have one type, and some add records")]

use std::sync::Arc;

use chatgateway_core::log::EntryId;
use rand::{RngExt as _, rngs::StdRng};

use super::super::{Check, Ending, Entry, Kept, Kind, Outcome, Record};

/// A bug: it changes records and says which check has to find it; nothing where these records give it no chance.
pub type Bug = fn(&mut Vec<Record>, &mut StdRng) -> Option<Check>;

/// All bugs, by name.
pub const BUGS: [(&str, Bug); 27] = [
    ("an entry is dropped for a reader", drop_seen),
    ("an entry is told twice", repeat_seen),
    ("two entries are swapped", swap_seen),
    ("a stale owner writes after a takeover", stale_write),
    ("a stale owner's entry gets into the log", stale_in_log),
    ("a reader gets another session's entry", cross_talk),
    ("an answer says another session's words", foreign_words),
    ("an accepted turn is lost", lost_turn),
    ("a turn has two ends", two_ends),
    ("a turn runs twice", two_beginnings),
    ("a turn never ends", no_end),
    ("one id has two texts", other_content),
    ("an entry vanishes from the log", log_hole),
    ("a seq is given twice", seq_twice),
    ("a piece of an answer is doubled", doubled_text),
    ("the end of an answer is missing", missing_text),
    ("a client is told another answer", other_answer),
    ("an answer in the history is cut", cut_history),
    ("a turn is missing in the history", missing_in_history),
    ("the model is asked again without a takeover", asked_again),
    ("the model continues what it never said", wrong_prefix),
    ("a good position is not recovered", not_recovered),
    ("a resume jumps", resume_jumps),
    ("a refused turn runs", refused_and_run),
    ("a turn is cancelled by nobody", cancelled_by_nobody),
    ("a turn fails for no reason", failed_for_nothing),
    ("a client waits for ever", stuck),
];

/// A place for which `find` has an answer, any of them.
fn any<T>(records: &[Record], rng: &mut StdRng, find: impl Fn(usize, &Record) -> Option<T>) -> Option<(usize, T)> {
    let mut found: Vec<_> = records.iter().enumerate().filter_map(|(n, record)| Some((n, find(n, record)?))).collect();
    if found.is_empty() {
        return None;
    }
    let choice = rng.random_range(0..found.len());
    Some(found.swap_remove(choice))
}

/// Two entries of a view in a row, nothing in between.
fn pair(records: &[Record], rng: &mut StdRng) -> Option<usize> {
    let view_at = |n: usize| match records.get(n)? {
        Record::Seen { view, .. } => Some(*view),
        _ => None,
    };
    any(records, rng, |n, _| (view_at(n)? == view_at(n + 1)?).then_some(())).map(|(n, ())| n)
}

/// The log that is the record at that place.
fn log_at(records: &mut [Record], place: usize) -> &mut Vec<Entry> {
    match &mut records[place] {
        Record::FinalLog { entries, .. } => entries,
        record => panic!("no log: {record:?}"),
    }
}

/// Any log and one of its entries for which `find` says yes.
fn any_logged(records: &[Record], rng: &mut StdRng, find: impl Fn(&[Entry], usize) -> bool) -> Option<(usize, usize)> {
    let found: Vec<(usize, usize)> = records
        .iter()
        .enumerate()
        .filter_map(|(place, record)| match record {
            Record::FinalLog { entries, .. } => Some((place, entries)),
            _ => None,
        })
        .flat_map(|(place, entries)| (0..entries.len()).map(move |n| (place, n, entries)))
        .filter(|(_, n, entries)| find(entries, *n))
        .map(|(place, n, _)| (place, n))
        .collect();
    (!found.is_empty()).then(|| found[rng.random_range(0..found.len())])
}

/// Changes an entry wherever it was told.
fn change_everywhere(records: &mut [Record], session: &str, id: EntryId, change: impl Fn(&mut Entry)) {
    for record in records {
        match record {
            Record::Seen { entry, .. } if *entry.session == *session && entry.id == id => change(entry),
            Record::FinalLog { entries, .. } => {
                entries.iter_mut().filter(|entry| *entry.session == *session && entry.id == id).for_each(&change);
            }
            _ => {}
        }
    }
}

/// Removes whatever `gone` says, from views, logs, histories and answers.
fn remove_everywhere(records: &mut Vec<Record>, gone: impl Fn(&Entry) -> bool, gone_kept: impl Fn(&Kept) -> bool) {
    records.retain(|record| !matches!(record, Record::Seen { entry, .. } if gone(entry)));
    for record in records.iter_mut() {
        match record {
            Record::FinalLog { entries, .. } => entries.retain(|entry| !gone(entry)),
            Record::FinalHistory { turns, .. } | Record::Snapshot { turns, .. } => {
                turns.retain(|kept| !gone_kept(kept));
            }
            _ => {}
        }
    }
}

fn drop_seen(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    // Not the first one of a view that begins anywhere.
    let n = pair(records, rng).filter(|n| !matches!(records.get(n.wrapping_sub(1)), Some(Record::Attached { .. })))?;
    records.remove(n);
    Some(Check::Gap)
}

fn repeat_seen(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let n = pair(records, rng)?;
    records.insert(n + rng.random_range(1..3), records[n].clone());
    Some(Check::Repeat)
}

fn swap_seen(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let n = pair(records, rng)?;
    records.swap(n, n + 1);
    Some(Check::Order)
}

fn stale_write(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (n, before) = any(records, rng, |n, record| {
        let (Record::Seen { entry, .. }, Some(Record::Seen { entry: before, .. })) =
            (record, n.checked_sub(1).map(|n| &records[n]))
        else {
            return None;
        };
        (entry.kind == Kind::Takeover && entry.session == before.session && entry.id.epoch > before.id.epoch)
            .then(|| before.clone())
    })?;
    let mut stale = records[n].clone();
    if let Record::Seen { entry, .. } = &mut stale {
        let id = EntryId::new(before.id.epoch, before.id.n + 1);
        *entry = Entry { id, kind: Kind::Delta("stale".into()), ..before };
    }
    records.insert(n + 1, stale);
    Some(Check::Stale)
}

fn stale_in_log(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (place, n) = any_logged(records, rng, |log, n| n > 0 && log[n].kind == Kind::Takeover)?;
    let log = log_at(records, place);
    let before = log[n - 1].clone();
    let id = EntryId::new(before.id.epoch, before.id.n + 1);
    log.insert(n + 1, Entry { id, kind: Kind::Delta("stale".into()), ..before });
    Some(Check::Log)
}

fn cross_talk(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let n = pair(records, rng)?;
    let of = records[n].session()?.clone();
    let (_, other) = any(records, rng, |_, record| match record {
        Record::Seen { entry, .. } if entry.session != of => Some(entry.clone()),
        _ => None,
    })?;
    let mut told = records[n].clone();
    if let Record::Seen { entry, .. } = &mut told {
        *entry = other;
    }
    records.insert(n + 1, told);
    Some(Check::Foreign)
}

fn foreign_words(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (place, n) =
        any_logged(records, rng, |log, n| matches!(&log[n].kind, Kind::Delta(text) if text.contains(' ')))?;
    let entry = log_at(records, place)[n].clone();
    change_everywhere(records, &entry.session, entry.id, |entry| {
        entry.kind = Kind::Delta(" s99.1.7 ".into());
    });
    Some(Check::Foreign)
}

fn lost_turn(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (place, n) = any_logged(records, rng, |_, _| true)?;
    let turn = log_at(records, place)[n].turn.clone();
    remove_everywhere(records, |entry| entry.turn == turn, |kept| kept.turn == turn);
    records.retain(|record| !matches!(record, Record::Answer { turn: of, .. } if *of == turn));
    Some(Check::Lost)
}

fn two_ends(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (place, n) = any_logged(records, rng, |log, n| log[n].kind.ending().is_some() && n + 1 == log.len())?;
    let log = log_at(records, place);
    let last = log[n].clone();
    let id = EntryId::new(last.id.epoch, last.id.n + 1);
    log.push(Entry { id, kind: Kind::Done, ..last });
    Some(Check::Twice)
}

fn two_beginnings(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (place, n) = any_logged(records, rng, |log, n| matches!(log[n].kind, Kind::Turn { .. }))?;
    let log = log_at(records, place);
    let again = log[n].clone();
    let last = log.last()?.id;
    log.push(Entry { id: EntryId::new(last.epoch, last.n + 1), ..again.clone() });
    log.push(Entry { id: EntryId::new(last.epoch, last.n + 2), kind: Kind::Done, ..again });
    Some(Check::Twice)
}

fn no_end(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (place, n) = any_logged(records, rng, |log, n| n + 1 == log.len())?;
    let last = log_at(records, place)[n].clone();
    remove_everywhere(records, |entry| *entry == last, |kept| kept.turn == last.turn);
    records.retain(|record| !matches!(record, Record::Answer { turn, .. } if *turn == last.turn));
    Some(Check::Unfinished)
}

fn other_content(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (n, ()) = any(records, rng, |_, record| match record {
        Record::Seen { entry, .. } => matches!(entry.kind, Kind::Delta(_)).then_some(()),
        _ => None,
    })?;
    if let Record::Seen { entry, .. } = &mut records[n] {
        entry.kind = Kind::Delta("another text".into());
    }
    Some(Check::Content)
}

fn log_hole(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (place, n) = any_logged(records, rng, |log, n| n + 1 < log.len() && log[n + 1].id.epoch == log[n].id.epoch)?;
    log_at(records, place).remove(n);
    Some(Check::Log)
}

fn seq_twice(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (place, n) = any_logged(records, rng, |log, n| matches!(log[n].kind, Kind::Turn { seq, .. } if seq > 1))?;
    let entry = log_at(records, place)[n].clone();
    change_everywhere(records, &entry.session, entry.id, |entry| {
        if let Kind::Turn { seq, .. } = &mut entry.kind {
            *seq -= 1;
        }
    });
    Some(Check::Seq)
}

/// A delta of a turn that is done and was not reset afterwards.
fn delta_of_done(log: &[Entry], n: usize) -> bool {
    let rest = log[n..].iter().take_while(|entry| entry.turn == log[n].turn);
    matches!(log[n].kind, Kind::Delta(_))
        && rest.clone().all(|entry| entry.kind != Kind::Reset)
        && rest.last().is_some_and(|entry| entry.kind == Kind::Done)
}

fn change_text(records: &mut [Record], rng: &mut StdRng, change: fn(&str) -> String) -> Option<Check> {
    let (place, n) = any_logged(records, rng, delta_of_done)?;
    let entry = log_at(records, place)[n].clone();
    change_everywhere(records, &entry.session, entry.id, |entry| {
        if let Kind::Delta(text) = &mut entry.kind {
            *text = change(text).into();
        }
    });
    Some(Check::Answer)
}

fn doubled_text(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    change_text(records, rng, |text| format!("{text}{text}"))
}

fn missing_text(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    change_text(records, rng, |text| text[1..].to_owned())
}

fn other_answer(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (n, ()) = any(records, rng, |_, record| match record {
        Record::Answer { ending: Some(Ending::Done), .. } => Some(()),
        _ => None,
    })?;
    if let Record::Answer { text, .. } = &mut records[n] {
        *text = text[..text.len() - 1].into();
    }
    Some(Check::Answer)
}

fn any_history<'a>(records: &'a mut [Record], rng: &mut StdRng) -> Option<(&'a mut Vec<Kept>, usize)> {
    let (n, kept) = any(records, rng, |_, record| match record {
        Record::FinalHistory { turns, .. } if !turns.is_empty() => Some(turns.len()),
        _ => None,
    })?;
    let choice = rng.random_range(0..kept);
    match &mut records[n] {
        Record::FinalHistory { turns, .. } => Some((turns, choice)),
        _ => None,
    }
}

fn cut_history(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (turns, n) = any_history(records, rng)?;
    let answer = &turns[n].answer;
    turns[n].answer = answer[..answer.len().checked_sub(1)?].into();
    Some(Check::Kept)
}

fn missing_in_history(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (turns, n) = any_history(records, rng)?;
    turns.remove(n);
    Some(Check::Kept)
}

fn asked_again(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (n, ()) = any(records, rng, |_, record| matches!(record, Record::Asked { .. }).then_some(()))?;
    records.insert(n, records[n].clone());
    Some(Check::Model)
}

fn wrong_prefix(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (n, ()) = any(records, rng, |_, record| matches!(record, Record::Asked { .. }).then_some(()))?;
    if let Record::Asked { prefix, .. } = &mut records[n] {
        *prefix = format!("x{prefix}").into();
    }
    Some(Check::Model)
}

fn not_recovered(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (n, ()) = any(records, rng, |_, record| matches!(record, Record::Resumed { .. }).then_some(()))?;
    if let Record::Resumed { recovered, .. } = &mut records[n] {
        *recovered = false;
    }
    Some(Check::Position)
}

fn resume_jumps(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (n, ()) = any(records, rng, |_, record| matches!(record, Record::Resumed { .. }).then_some(()))?;
    if let Record::Resumed { position, .. } = &mut records[n] {
        *position = EntryId::new(position.epoch + 1, 0);
    }
    Some(Check::Position)
}

fn refused_and_run(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (n, ()) = any(records, rng, |_, record| matches!(record, Record::Sent { .. }).then_some(()))?;
    let Record::Sent { turn, .. } = records[n].clone() else { return None };
    for record in records {
        match record {
            Record::Receipt { turn: of, outcome, .. } if *of == turn => {
                *outcome = Outcome::Refused("session_busy".into());
            }
            _ => {}
        }
    }
    Some(Check::Unasked)
}

fn cancelled_by_nobody(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (n, ()) = any(records, rng, |_, record| matches!(record, Record::CancelSent { .. }).then_some(()))?;
    records.remove(n);
    Some(Check::Unasked)
}

fn failed_for_nothing(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let plain = |log: &[Entry], n: usize| {
        let of_turn: Vec<&Entry> = log.iter().filter(|entry| entry.turn == log[n].turn).collect();
        log[n].kind == Kind::Done
            && of_turn.iter().all(|entry| match &entry.kind {
                Kind::Takeover => false,
                Kind::Turn { text, .. } => !text.starts_with("sim:"),
                _ => true,
            })
    };
    let (place, n) = any_logged(records, rng, plain)?;
    let entry = log_at(records, place)[n].clone();
    change_everywhere(records, &entry.session, entry.id, |entry| entry.kind = Kind::Failed("internal".into()));
    Some(Check::Failure)
}

fn stuck(records: &mut Vec<Record>, rng: &mut StdRng) -> Option<Check> {
    let (_, (session, turn)) = any(records, rng, |_, record| match record {
        Record::Receipt { session, turn, .. } => Some((session.clone(), turn.clone())),
        _ => None,
    })?;
    let why: Arc<str> = "toy".into();
    records.push(Record::GaveUp { client: 1, session, turn, why: why.to_string() });
    Some(Check::Stuck)
}
