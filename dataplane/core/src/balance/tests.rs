use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

const SESSIONS: u64 = 20_000;

fn candidates(names: impl IntoIterator<Item = usize>) -> Vec<Candidate> {
    let named = |name| Candidate { index: name, hash: hash_of(format!("http://10.0.0.{name}:8000")), in_flight: 0 };
    names.into_iter().map(named).collect()
}

/// Where each session goes while nobody has calls.
fn homes(candidates: &[Candidate]) -> Vec<usize> {
    let bound = LoadBound::new(0, candidates.len(), 20);
    (0..SESSIONS).map(|session| of_session(candidates, hash_of(session), bound).unwrap().index).collect()
}

fn share_moved(before: &[usize], after: &[usize]) -> f64 {
    before.iter().zip(after).filter(|(before, after)| before != after).count() as f64 / before.len() as f64
}

#[test]
fn of_two_the_one_with_fewer_calls_is_taken() {
    let mut two = candidates([0, 1]);
    two[0].in_flight = 3;
    for random in [0, 1, u64::MAX, 1 << 32, 0x1234_5678_9abc_def0] {
        assert_eq!(least_of_two(&two, random).unwrap().index, 1, "both are looked at, always");
    }
    assert_eq!(least_of_two(&[], 7), None);
    assert_eq!(least_of_two(&two[..1], 7).unwrap().index, 0);
}

#[test]
fn two_choices_spread_calls_far_better_than_one() {
    let mut random = StdRng::seed_from_u64(1);
    let most = |choose: &mut dyn FnMut(&[Candidate]) -> usize| {
        let mut all = candidates(0..20);
        for _ in 0..2_000 {
            let index = choose(&all);
            all[index].in_flight += 1;
        }
        all.iter().map(|candidate| candidate.in_flight).max().unwrap()
    };
    let two = most(&mut |all| least_of_two(all, random.random()).unwrap().index);
    let mut random = StdRng::seed_from_u64(1);
    let one = most(&mut |all| random.random_range(0..all.len()));
    assert!(two <= 103 && one >= 115, "the mean is 100: two choices {two}, one {one}");
}

#[test]
fn sessions_are_spread_evenly() {
    let homes = homes(&candidates(0..10));
    for endpoint in 0..10 {
        let share = homes.iter().filter(|home| **home == endpoint).count() as f64 / SESSIONS as f64;
        assert!((0.09..0.11).contains(&share), "{endpoint}: {share}");
    }
}

#[test]
fn an_endpoint_that_goes_moves_its_own_sessions_and_no_other() {
    let before = homes(&candidates(0..10));
    let after = homes(&candidates((0..10).filter(|name| *name != 3)));
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || *before == 3);
    }
    let moved = share_moved(&before, &after);
    assert!((0.09..0.11).contains(&moved), "{moved}");
}

#[test]
fn an_endpoint_that_comes_gets_its_share_and_no_session_moves_elsewhere() {
    let before = homes(&candidates(0..10));
    let after = homes(&candidates(0..11));
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || *after == 10);
    }
    let moved = share_moved(&before, &after);
    assert!((0.08..0.10).contains(&moved), "one in eleven: {moved}");
}

/// Fills 10 endpoints with the calls of random sessions; where each went.
fn fill(names: impl IntoIterator<Item = usize>, calls: u64) -> (Vec<Candidate>, Vec<usize>) {
    let mut all = candidates(names);
    let mut went = Vec::new();
    for session in 0..calls {
        let bound = LoadBound::new(session as usize, all.len(), 20);
        let index = of_session(&all, hash_of(session), bound).unwrap().index;
        all.iter_mut().find(|candidate| candidate.index == index).unwrap().in_flight += 1;
        went.push(index);
    }
    (all, went)
}

#[test]
fn no_endpoint_gets_more_than_the_bound_and_few_sessions_move_under_load() {
    let (all, before) = fill(0..10, 1_000);
    let most = all.iter().map(|candidate| candidate.in_flight).max().unwrap();
    assert!(most <= 1_000 * AFFINITY_LOAD_PERCENT / 100 / 10 + 1, "{most}");
    let (_, after) = fill((0..10).filter(|name| *name != 3), 1_000);
    let moved = share_moved(&before, &after);
    assert!((0.05..0.20).contains(&moved), "its own tenth, and those that no longer fit: {moved}");
}

#[test]
fn a_session_stays_at_a_lightly_loaded_endpoint_and_leaves_a_loaded_one() {
    let mut all = candidates(0..4);
    let session = hash_of("s");
    let home = of_session(&all, session, LoadBound::new(0, 4, 20)).unwrap().index;
    all[home].in_flight = 4;
    assert_eq!(of_session(&all, session, LoadBound::new(4, 4, 20)).unwrap().index, home, "a fifth of its places");
    all[home].in_flight = 15;
    let next = of_session(&all, session, LoadBound::new(15, 4, 20)).unwrap().index;
    assert_ne!(next, home);
    let without_home: Vec<_> = all.iter().filter(|candidate| candidate.index != home).copied().collect();
    assert_eq!(of_session(&without_home, session, LoadBound::new(0, 3, 20)).unwrap().index, next, "its second one");
    // Nobody is below: the least loaded.
    for candidate in &mut all {
        candidate.in_flight = 30 + candidate.index;
    }
    assert_eq!(of_session(&all, session, LoadBound::new(0, 4, 20)).unwrap().index, 0);
}
