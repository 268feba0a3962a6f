//! The checker against histories that are right, and against the same histories with a bug in them.

mod bugs;
mod toy;

use std::collections::BTreeMap;

use rand::{SeedableRng as _, rngs::StdRng};

use super::*;

/// Histories tried.
const SEEDS: u64 = 1_000;

fn found(records: &[Stamped]) -> Report {
    check(records, &Expected::default())
}

#[test]
fn correct_histories_pass() {
    let mut total = Figures::default();
    for seed in 0..SEEDS {
        let records = toy::history(seed);
        let report = found(&records);
        let explained: Vec<String> = report.violations.iter().map(|violation| violation.explain(&records)).collect();
        assert!(explained.is_empty(), "seed {seed}:\n{}", explained.join("\n"));
        total.takeovers += report.figures.takeovers;
        total.resets += report.figures.resets;
        total.failed += report.figures.failed;
        total.cancelled += report.figures.cancelled;
        total.resumed += report.figures.resumed;
        total.continued += report.figures.continued;
    }
    // The toy does everything that a bug could hide in.
    for count in [total.takeovers, total.resets, total.failed, total.cancelled, total.resumed, total.continued] {
        assert!(count > 200, "{total:?}");
    }
}

#[test]
fn every_bug_is_caught_by_the_check_meant_for_it() {
    let mut planted: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        // Each seed tries a few bugs, so that the rare ones get their chance.
        for turn in 0..3 {
            let (name, bug) = bugs::BUGS[(seed as usize + turn * 7) % bugs::BUGS.len()];
            let mut records = toy::history(seed).into_iter().map(|stamped| stamped.record).collect();
            let Some(meant) = bug(&mut records, &mut rng) else { continue };
            *planted.entry(name).or_default() += 1;
            let counts = found(&toy::stamped(records)).by_check();
            assert!(counts.contains_key(&meant), "seed {seed}: {name} was not found by {meant:?}, but by {counts:?}");
        }
    }
    for (name, _) in bugs::BUGS {
        assert!(planted.get(name).is_some_and(|count| *count >= 15), "{name}: planted {:?}", planted.get(name));
    }
}

#[test]
fn a_violation_names_what_is_at_odds() {
    let mut records: Vec<Record> = toy::history(3).into_iter().map(|stamped| stamped.record).collect();
    let mut rng = StdRng::seed_from_u64(3);
    let (_, drop_an_entry) = bugs::BUGS[0];
    drop_an_entry(&mut records, &mut rng).unwrap();
    let records = toy::stamped(records);
    let report = found(&records);
    let [gap] = &report.violations[..] else { panic!("{:?}", report.violations) };
    assert_eq!((gap.check, gap.ids.len(), gap.records.len()), (Check::Gap, 1, 2));
    let text = gap.explain(&records);
    assert!(text.contains(&*gap.session) && text.contains(&gap.ids[0].to_string()), "{text}");
    assert_eq!(text.lines().count(), 3, "{text}");
}

#[test]
fn what_the_run_caused_is_no_violation() {
    let mut records: Vec<Record> = toy::history(5).into_iter().map(|stamped| stamped.record).collect();
    let mut rng = StdRng::seed_from_u64(5);
    let not_recovered = bugs::BUGS.iter().find(|(name, _)| name.contains("not recovered")).unwrap().1;
    not_recovered(&mut records, &mut rng).unwrap();
    let records = toy::stamped(records);
    let lossy = Expected { store_keeps: false, ..Expected::default() };
    assert!(!found(&records).violations.is_empty() && check(&records, &lossy).violations.is_empty());
}

#[test]
fn unread_sessions_and_unknown_refusals_are_found() {
    let records: Vec<Record> = toy::history(1).into_iter().map(|stamped| stamped.record).collect();
    let mut unread = records.clone();
    unread.retain(|record| !matches!(record, Record::FinalLog { .. }));
    assert_eq!(found(&toy::stamped(unread)).by_check().into_keys().collect::<Vec<_>>(), [Check::Unread]);
    let mut refused = records;
    let receipt = refused.iter().position(|record| matches!(record, Record::Receipt { .. })).unwrap();
    let Record::Receipt { client, session, turn, .. } = refused[receipt].clone() else { panic!("not a receipt") };
    refused.insert(receipt, Record::Receipt { client, session, turn, outcome: Outcome::Refused("internal".into()) });
    assert_eq!(found(&toy::stamped(refused)).by_check().into_keys().collect::<Vec<_>>(), [Check::Refusal]);
}

#[test]
fn a_turn_that_stands_still_is_found() {
    let mut records = toy::history(2);
    let inside = records.iter().position(
        |stamped| matches!(&stamped.record, Record::Seen { entry, .. } if !matches!(entry.kind, Kind::Turn { .. })),
    );
    let inside = inside.unwrap();
    for stamped in &mut records[inside..] {
        stamped.at_ms += 60_000;
    }
    let report = found(&records);
    assert_eq!(report.by_check().into_iter().collect::<Vec<_>>(), [(Check::Stuck, 1)]);
    assert!(report.figures.longest_pause_ms >= 60_000);
}

#[test]
fn answers_repeat_their_prompts() {
    let behaviour = serde_json::json!({"tokens_per_second": 5.0});
    let prompt = prompt::prompt("s1", 2, 3, Some(&behaviour));
    assert_eq!(prompt::answer(&prompt), "s1.2.0 s1.2.1 s1.2.2");
    assert_eq!(prompt::session_of(&prompt), Some("s1"));
    assert_eq!(prompt::foreign_word("s1.2.0 s1.2", "s1"), None);
    assert_eq!(prompt::foreign_word("s1.2.0 s11.2.0 x", "s1"), Some("s11.2.0"));
}
