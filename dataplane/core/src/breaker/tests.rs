use proptest::prelude::*;

use super::*;

const GOOD: Outcome = Outcome::Judged { failed: false, slow: false };
const BAD: Outcome = Outcome::Judged { failed: true, slow: false };
const SLOW: Outcome = Outcome::Judged { failed: false, slow: true };

fn config() -> BreakerConfig {
    BreakerConfig {
        window: 50,
        min_calls: 20,
        failure_percent: 40,
        slow_percent: 100,
        open_for: Duration::from_secs(5),
        probes: 10,
    }
}

fn call(breaker: &mut Breaker, outcome: Outcome, now: Instant) {
    let permit = breaker.begin().expect("a call may be made");
    breaker.record(&permit, outcome, now);
}

/// A breaker that opened at the returned instant.
fn opened() -> (Breaker, Instant) {
    let (mut breaker, now) = (Breaker::new(config()), Instant::now());
    for _ in 0..20 {
        call(&mut breaker, BAD, now);
    }
    assert_eq!(breaker.state(), BreakerState::Open);
    (breaker, now)
}

fn half_open() -> (Breaker, Instant) {
    let (mut breaker, now) = opened();
    let now = now + Duration::from_secs(5);
    breaker.advance(now);
    assert_eq!(breaker.state(), BreakerState::HalfOpen);
    (breaker, now)
}

#[test]
fn it_judges_from_the_least_number_of_calls_on() {
    let (mut breaker, now) = (Breaker::new(config()), Instant::now());
    for _ in 0..19 {
        call(&mut breaker, BAD, now);
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    call(&mut breaker, BAD, now);
    assert_eq!((breaker.state(), breaker.opened()), (BreakerState::Open, 1));
    assert_eq!((breaker.begin(), breaker.room()), (None, 0));
    assert_eq!(breaker.open_until(), Some(now + Duration::from_secs(5)));
}

#[test]
fn it_opens_at_the_share_and_not_below_it() {
    for (bad, state) in [(19, BreakerState::Closed), (20, BreakerState::Open)] {
        let (mut breaker, now) = (Breaker::new(config()), Instant::now());
        for _ in 0..50 - bad {
            call(&mut breaker, GOOD, now);
        }
        for _ in 0..bad {
            call(&mut breaker, BAD, now);
        }
        assert_eq!(breaker.state(), state, "{bad} of 50");
    }
}

#[test]
fn only_the_last_calls_count() {
    let (mut breaker, now) = (Breaker::new(config()), Instant::now());
    for _ in 0..12 {
        call(&mut breaker, GOOD, now);
    }
    for _ in 0..7 {
        call(&mut breaker, BAD, now);
    }
    // Those failures leave the window before others come: never 40 % of what is in it.
    for _ in 0..100 {
        call(&mut breaker, GOOD, now);
    }
    assert_eq!((breaker.seen.len(), breaker.failed), (50, 0));
    // A server that was well before is left out after 20 failures.
    for i in 0..20 {
        assert_eq!(breaker.state(), BreakerState::Closed, "{i}");
        call(&mut breaker, BAD, now);
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn slow_calls_open_it_at_their_own_share() {
    let now = Instant::now();
    let mut breaker = Breaker::new(BreakerConfig { slow_percent: 50, ..config() });
    for _ in 0..11 {
        call(&mut breaker, GOOD, now);
    }
    for _ in 0..10 {
        call(&mut breaker, SLOW, now);
    }
    assert_eq!(breaker.state(), BreakerState::Closed);
    call(&mut breaker, SLOW, now);
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn what_says_nothing_counts_for_nothing() {
    let (mut breaker, now) = (Breaker::new(config()), Instant::now());
    for _ in 0..1_000 {
        call(&mut breaker, Outcome::Nothing, now);
    }
    assert_eq!((breaker.seen.len(), breaker.state()), (0, BreakerState::Closed));
}

#[test]
fn it_begins_to_probe_by_itself_when_its_time_is_over() {
    let (mut breaker, now) = opened();
    breaker.advance(now + Duration::from_millis(4_999));
    assert_eq!(breaker.state(), BreakerState::Open);
    breaker.advance(now + Duration::from_secs(5));
    assert_eq!((breaker.state(), breaker.room()), (BreakerState::HalfOpen, 10));
}

#[test]
fn no_more_calls_probe_than_may_whether_under_way_or_judged() {
    let (mut breaker, now) = half_open();
    let permits: Vec<_> = (0..10).map(|_| breaker.begin().unwrap()).collect();
    assert!(permits.iter().all(Permit::is_probe));
    assert_eq!(breaker.begin(), None);
    for permit in &permits[..9] {
        breaker.record(permit, GOOD, now);
        assert_eq!((breaker.state(), breaker.begin()), (BreakerState::HalfOpen, None));
    }
    breaker.record(&permits[9], GOOD, now);
    assert_eq!((breaker.state(), breaker.room()), (BreakerState::Closed, usize::MAX));
    assert!(!breaker.begin().unwrap().is_probe());
}

#[test]
fn a_cancelled_probe_gives_its_place_back() {
    let (mut breaker, now) = half_open();
    let permits: Vec<_> = (0..10).map(|_| breaker.begin().unwrap()).collect();
    breaker.record(&permits[0], Outcome::Nothing, now);
    assert_eq!((breaker.room(), breaker.seen.len()), (1, 0));
    assert!(breaker.begin().is_some_and(|permit| permit.is_probe()));
    assert_eq!(breaker.begin(), None);
}

#[test]
fn probes_that_fail_open_it_again_and_the_time_starts_anew() {
    let (mut breaker, now) = half_open();
    for _ in 0..6 {
        call(&mut breaker, GOOD, now);
    }
    for i in 0..4 {
        assert_eq!(breaker.state(), BreakerState::HalfOpen, "{i}");
        call(&mut breaker, BAD, now);
    }
    assert_eq!((breaker.state(), breaker.opened()), (BreakerState::Open, 2));
    assert_eq!(breaker.open_until(), Some(now + Duration::from_secs(5)));
}

#[test]
fn it_opens_as_soon_as_no_probe_can_change_that() {
    let (mut breaker, now) = half_open();
    for _ in 0..4 {
        call(&mut breaker, BAD, now);
    }
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[test]
fn results_of_calls_begun_before_a_change_are_not_counted() {
    let (mut breaker, now) = (Breaker::new(config()), Instant::now());
    let early: Vec<_> = (0..30).map(|_| breaker.begin().unwrap()).collect();
    for permit in &early[..20] {
        breaker.record(permit, BAD, now);
    }
    assert_eq!(breaker.state(), BreakerState::Open);
    breaker.record(&early[20], BAD, now);
    let now = now + Duration::from_secs(5);
    breaker.advance(now);
    let probe = breaker.begin().unwrap();
    for permit in &early[21..] {
        breaker.record(permit, BAD, now);
    }
    assert_eq!((breaker.state(), breaker.seen.len(), breaker.room()), (BreakerState::HalfOpen, 0, 9));
    // And a probe that is late says nothing about the state after.
    for _ in 0..4 {
        call(&mut breaker, BAD, now);
    }
    breaker.record(&probe, GOOD, now);
    assert_eq!((breaker.state(), breaker.opened()), (BreakerState::Open, 2));
}

#[test]
fn other_thresholds_keep_what_was_seen() {
    let (mut breaker, now) = (Breaker::new(config()), Instant::now());
    for i in 0..40 {
        call(&mut breaker, if i % 4 == 0 { BAD } else { GOOD }, now);
    }
    breaker.configure(BreakerConfig { window: 10, min_calls: 5, failure_percent: 30, ..config() });
    assert_eq!(breaker.seen.len(), 10);
    call(&mut breaker, BAD, now);
    assert_eq!(breaker.state(), BreakerState::Open);
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    Record(prop::sample::Index, u8),
    Sleep(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => Just(Step::Begin),
        5 => (any::<prop::sample::Index>(), 0_u8..4).prop_map(|(index, outcome)| Step::Record(index, outcome)),
        1 => (0_u16..4_000).prop_map(Step::Sleep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Held against a witness that recounts everything from the calls' own records.
    #[test]
    fn no_schedule_breaks_the_rules(steps in prop::collection::vec(step(), 1..300)) {
        let config = BreakerConfig { window: 8, min_calls: 4, probes: 3, slow_percent: 60, ..config() };
        let (mut breaker, mut now) = (Breaker::new(config), Instant::now());
        // The permits that are out, with the number of the state they were given in.
        let mut out: Vec<(Permit, u64)> = Vec::new();
        let (mut state, mut number, mut seen, mut until) = (BreakerState::Closed, 0_u64, Vec::new(), now);
        for step in steps {
            match step {
                Step::Begin => {
                    let probing = out.iter().filter(|(_, of)| *of == number).count() + seen.len();
                    let may = match state {
                        BreakerState::Closed => true,
                        BreakerState::Open => false,
                        BreakerState::HalfOpen => probing < 3,
                    };
                    let permit = breaker.begin();
                    prop_assert_eq!(permit.is_some(), may);
                    out.extend(permit.map(|permit| (permit, number)));
                }
                Step::Record(index, outcome) if !out.is_empty() => {
                    let (permit, of) = out.swap_remove(index.index(out.len()));
                    let outcome = [GOOD, BAD, SLOW, Outcome::Nothing][outcome as usize];
                    breaker.record(&permit, outcome, now);
                    let Outcome::Judged { failed, slow } = outcome else { continue };
                    if of != number {
                        prop_assert_eq!(breaker.state(), state, "a late result changes nothing");
                        continue;
                    }
                    seen.push((failed, slow));
                    let last = &seen[seen.len().saturating_sub(8)..];
                    let of = if state == BreakerState::HalfOpen { 3 } else { last.len() };
                    let bad = last.iter().filter(|call| call.0).count() * 10 >= of * 4
                        || last.iter().filter(|call| call.1).count() * 10 >= of * 6;
                    let next = match state {
                        BreakerState::Closed if last.len() >= 4 && bad => BreakerState::Open,
                        BreakerState::HalfOpen if bad => BreakerState::Open,
                        BreakerState::HalfOpen if seen.len() == 3 => BreakerState::Closed,
                        same => same,
                    };
                    if next != state {
                        (state, number, until) = (next, number + 1, now + config.open_for);
                        seen.clear();
                    }
                }
                Step::Record(..) => {}
                Step::Sleep(ms) => {
                    now += Duration::from_millis(ms.into());
                    breaker.advance(now);
                    if state == BreakerState::Open && now >= until {
                        (state, number) = (BreakerState::HalfOpen, number + 1);
                    }
                }
            }
            prop_assert_eq!(breaker.state(), state);
        }
    }
}
