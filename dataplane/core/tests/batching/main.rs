//! The batching policies against a simulated model server: the figures that they are there for.

mod sim;

use std::time::Duration;

use chatgateway_core::batch::BatchPolicy;

use self::sim::{Outcome, World, run};

/// The target for 99 of 100 first tokens, ms.
const TARGET_MS: f64 = 300.0;

const MAX_DELAY: Duration = Duration::from_millis(50);
const FIXED: BatchPolicy = BatchPolicy::Fixed { max_size: 4, max_delay: MAX_DELAY };
const ADAPTIVE: BatchPolicy =
    BatchPolicy::Adaptive { max_size: 4, max_delay: MAX_DELAY, first_token_target: Duration::from_millis(300) };

/// What the server answers at most without batches, a second: four workers, 200 ms each.
const SINGLES: f64 = 20.0;

fn world(policy: BatchPolicy, max_concurrent: usize, rate: f64) -> World {
    World { policy, max_concurrent, workers: 4, jitter: 0.0, rate, asks: 12_000, seed: 7 }
}

fn p99(world: World) -> f64 {
    run(world).percentile(99.0)
}

/// The highest load, in asks a second, that still keeps the target.
fn highest_load(policy: BatchPolicy, max_concurrent: usize) -> f64 {
    let (mut kept, mut missed) = (2.0, 60.0);
    while missed - kept > 0.1 {
        let rate = (kept + missed) / 2.0;
        if p99(world(policy, max_concurrent, rate)) < TARGET_MS { kept = rate } else { missed = rate }
    }
    kept
}

#[test]
fn batches_of_four_do_more_than_twice_as_much() {
    for max_concurrent in [4, 20] {
        let throughput = |policy| run(World { asks: 4_000, ..world(policy, max_concurrent, 200.0) }).throughput;
        let (off, fixed, adaptive) = (throughput(BatchPolicy::Off), throughput(FIXED), throughput(ADAPTIVE));
        assert!((19.5..=20.1).contains(&off), "{off}");
        assert!(fixed / off >= 2.25, "{max_concurrent} places: fixed {fixed}, off {off}");
        assert!(adaptive / off >= 2.2, "{max_concurrent} places: adaptive {adaptive}, off {off}");
    }
}

#[test]
fn at_a_fifth_of_the_load_adaptive_adds_nothing() {
    for max_concurrent in [4, 20] {
        for jitter in [0.0, 0.3] {
            let at = |policy| World { jitter, ..world(policy, max_concurrent, SINGLES / 5.0) };
            let (off, adaptive) = (p99(at(BatchPolicy::Off)), p99(at(ADAPTIVE)));
            assert!(adaptive <= off * 1.01, "{max_concurrent} places: adaptive {adaptive} ms, off {off} ms");
        }
    }
}

#[test]
fn adaptive_keeps_the_target_at_the_highest_load() {
    let (off, fixed) = (highest_load(BatchPolicy::Off, 20), highest_load(FIXED, 20));
    for max_concurrent in [4, 20] {
        let adaptive = highest_load(ADAPTIVE, max_concurrent);
        println!("{max_concurrent} places: adaptive {adaptive:.1}/s, fixed {fixed:.1}/s, off {off:.1}/s");
        assert!(adaptive >= off * 1.9, "{max_concurrent} places: adaptive {adaptive}/s, off {off}/s");
        assert!(adaptive >= fixed * 1.1, "{max_concurrent} places: adaptive {adaptive}/s, fixed {fixed}/s");
    }
}

#[test]
fn what_the_server_does_in_parallel_is_found_out() {
    for workers in [1, 2, 4, 8] {
        let rate = 7.0 * workers as f64;
        let Outcome { view, .. } = run(World { workers, ..world(ADAPTIVE, 40, rate) });
        let useful = view.useful_calls.unwrap_or(40);
        assert!((workers..=workers + 1 + workers / 4).contains(&useful), "{workers} workers: {useful}");
    }
}

#[test]
fn answers_that_vary_do_not_lead_it_astray() {
    // 70 % of what the server can do at all, all of it from the first moment on, with times from half to one and a half.
    for seed in 1..=4 {
        let outcome = run(World { jitter: 0.5, seed, ..world(ADAPTIVE, 20, 32.0) });
        assert!(outcome.percentile(50.0) < 200.0, "seed {seed}: {}", outcome.percentile(50.0));
        assert!(outcome.percentile(99.0) < 1_000.0, "seed {seed}: {}", outcome.percentile(99.0));
    }
}

#[test]
fn a_batch_whose_own_time_is_too_long_becomes_smaller() {
    // A batch of four has its first tokens after 140 ms, one of two after 100.
    let policy =
        BatchPolicy::Adaptive { max_size: 4, max_delay: MAX_DELAY, first_token_target: Duration::from_millis(130) };
    let Outcome { view, .. } = run(world(policy, 4, 24.0));
    let mean = view.asks as f64 / view.calls as f64;
    let roomy = run(world(ADAPTIVE, 4, 24.0)).view;
    assert!(mean < roomy.asks as f64 / roomy.calls as f64, "{mean}");
}
