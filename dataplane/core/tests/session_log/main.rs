//! The session log under random schedules: two pods, several readers, clients that repeat themselves, a store that is the
//! scripts themselves, and a network and a store that fail in every way the protocol speaks of.
//!
//! `SESSION_LOG_RUNS` sets the number of runs of each kind, `SESSION_LOG_SEED` replays one run and prints what happened.

#![allow(clippy::unwrap_used, reason = "this is a test; clippy only knows functions that are marked as one")]

mod checks;
mod faults;
mod pods;
mod random;
mod reader;
mod rules;
mod store;
mod world;

use rules::Rule;
use world::{Kind, Outcome, World};

const KINDS: [Kind; 8] =
    [Kind::Network, Kind::Cancel, Kind::Trim, Kind::Delete, Kind::Expire, Kind::Evict, Kind::Failover, Kind::Proxy];

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs seeds until one fails, or `runs` are through. Returns the failure.
fn explore(kind: Kind, without: Option<Rule>, runs: u64) -> Result<Vec<Outcome>, String> {
    let seeds = match setting("SESSION_LOG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..runs + 1,
    };
    let trace = setting("SESSION_LOG_SEED").is_some();
    let mut outcomes = Vec::new();
    for seed in seeds {
        let outcome = World::new(kind, without, seed, trace).run();
        outcomes.push(outcome.map_err(|why| {
            format!("{kind:?}, seed {seed}: {why}\nreplay: SESSION_LOG_SEED={seed} cargo test -p chatgateway-core --test session_log")
        })?);
    }
    Ok(outcomes)
}

/// Every property holds, and the runs were worth something: turns ended, sessions changed hands, readers were told.
fn holds(kind: Kind) {
    let runs = setting("SESSION_LOG_RUNS").unwrap_or(10_000);
    let outcomes = match explore(kind, None, runs) {
        Ok(outcomes) => outcomes,
        Err(why) => unreachable!("{why}"),
    };
    if setting("SESSION_LOG_SEED").is_some() {
        return;
    }
    let count = |test: fn(&Outcome) -> bool| outcomes.iter().filter(|outcome| test(outcome)).count();
    assert!(count(|o| o.done > 0) * 2 > outcomes.len(), "answers are completed in most runs");
    assert!(count(|o| o.takeovers > 0) * 20 > outcomes.len(), "sessions change hands");
    assert!(count(|o| o.continued > 0) > 0, "partial answers are continued");
    assert!(count(|o| o.resets > 0) > 0, "partial answers are voided");
    assert!(count(|o| o.looks > 0) * 50 > outcomes.len(), "leases are renewed behind appends");
    if kind.loses() {
        assert!(count(|o| o.told > 0) > 0, "readers are told of a loss");
    }
    if matches!(kind, Kind::Cancel) {
        assert!(count(|o| o.cancelled > 0) > 0, "turns are cancelled");
    }
}

/// Without the rule some run of that kind fails.
fn needed(rule: Rule, kind: Kind, runs: u64) {
    let found = explore(kind, Some(rule), runs);
    match found {
        Err(why) => println!("without {rule:?}: {why}"),
        Ok(_) => unreachable!("{runs} runs of kind {kind:?} do not miss the rule {rule:?}"),
    }
}

#[test]
fn holds_with_crashes_and_a_bad_network() {
    holds(KINDS[0]);
}

#[test]
fn holds_with_cancels() {
    holds(KINDS[1]);
}

#[test]
fn holds_with_trimming() {
    holds(KINDS[2]);
}

#[test]
fn holds_with_deletes() {
    holds(KINDS[3]);
}

#[test]
fn holds_with_expiring_keys() {
    holds(KINDS[4]);
}

#[test]
fn holds_with_an_evicted_log() {
    holds(KINDS[5]);
}

#[test]
fn holds_with_lossy_failovers() {
    holds(KINDS[6]);
}

#[test]
fn holds_with_lossy_failovers_behind_a_proxy() {
    holds(KINDS[7]);
}

#[test]
fn a_run_is_repeatable() {
    for kind in KINDS {
        let run = || World::new(kind, None, 7, false).run();
        assert_eq!(run().map(|o| o.steps), run().map(|o| o.steps), "{kind:?}");
    }
}

macro_rules! needed {
    ($($name:ident: $rule:ident, $kind:ident, $runs:expr;)*) => {
        $(#[test] fn $name() { needed(Rule::$rule, Kind::$kind, $runs); })*
    };
}

needed! {
    needs_appends_that_create_no_log: AppendCreatesNoLog, Expire, 5_000;
    needs_readers_that_check_the_chain: ReadersCheckTheChain, Failover, 5_000;
    needs_a_check_after_reconnect: CheckAfterReconnect, Failover, 5_000;
    needs_old_replies_to_verify_nothing: OldRepliesVerifyNothing, Failover, 20_000;
    needs_finish_to_compare_the_length: FinishComparesLength, Proxy, 20_000;
    needs_epochs_that_are_never_reused: EpochsAreNeverReused, Failover, 20_000;
    needs_commit_before_delivery: CommitThenDeliver, Network, 5_000;
    needs_accepting_to_be_one_step: AcceptIsOneStep, Network, 5_000;
    needs_takeovers_that_append: TakeoverAppends, Network, 5_000;
    needs_finish_to_release: FinishReleases, Network, 5_000;
    needs_finish_to_write_the_history: FinishWritesHistory, Network, 5_000;
    needs_ended_leases_to_be_claimed: EndedLeasesAreClaimed, Network, 5_000;
    needs_retries_to_keep_the_id: RetryKeepsTheId, Network, 5_000;
    needs_takeovers_to_reset: TakeoverResets, Network, 5_000;
    needs_fresh_nonces: NoncesAreFresh, Failover, 20_000;
    needs_fresh_random_steps: RandomStepsAreFresh, Proxy, 200_000;
    needs_readers_that_wait_for_the_repair: ReadersWaitForTheRepair, Proxy, 20_000;
}
