use proptest::prelude::*;

use super::*;

const TERMS: RetryTerms =
    RetryTerms { max_attempts: 3, first_token: Duration::from_secs(10), total: Duration::from_secs(120) };

fn failed(made: u32) -> FailedAttempt {
    FailedAttempt { made, elapsed: Duration::from_millis(5), asked_to_wait: None, other_endpoint: false }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn rare_failures_at_low_traffic_can_be_made_again_and_then_the_share_holds() {
    let mut budget = RetryBudget::new(10);
    let mut further = 0;
    for _ in 0..10_000 {
        budget.deposit();
        while budget.withdraw() {
            further += 1;
        }
    }
    assert_eq!(further, RETRY_RESERVE + 1_000 - 1, "the reserve, and a tenth; the first deposit found it full");
}

#[test]
fn what_is_earned_is_kept_up_to_the_reserve_only() {
    let mut budget = RetryBudget::new(100);
    for _ in 0..1_000_000 {
        budget.deposit();
    }
    let further = (0..1_000_000).filter(|_| budget.withdraw()).count();
    assert_eq!(further, RETRY_RESERVE as usize);
}

#[test]
fn without_a_budget_nothing_is_made_again() {
    let mut budget = RetryBudget::new(0);
    for _ in 0..1_000 {
        budget.deposit();
    }
    assert!(!budget.withdraw());
    budget.configure(10);
    assert!(budget.withdraw(), "a budget that is set later begins full");
    budget.configure(0);
    assert!(!budget.withdraw());
}

proptest! {
    #[test]
    fn no_schedule_gets_more_than_the_share(percent in 1_u32..=100, steps in prop::collection::vec(any::<bool>(), 0..2_000)) {
        let mut budget = RetryBudget::new(percent);
        let (mut first, mut further) = (0_u64, 0_u64);
        for deposits in steps {
            if deposits {
                budget.deposit();
                first += 1;
            } else if budget.withdraw() {
                further += 1;
            }
            prop_assert!(further * 100 <= u64::from(RETRY_RESERVE) * 100 + first * u64::from(percent));
        }
    }

    #[test]
    fn no_text_breaks_the_reading_of_durations(text in "[0-9.hmsunµ -]{0,24}") {
        let headers = WaitHeaders { retry_after: Some(&text), requests: (None, Some(&text)), ..WaitHeaders::default() };
        let _ = headers.read(SystemTime::UNIX_EPOCH);
    }
}

#[test]
fn the_bound_of_the_random_pause_doubles_and_ends() {
    for (made, most) in [(1, 100), (2, 200), (3, 400), (5, 1_600), (9, 2_000), (4_000_000, 2_000)] {
        assert!(backoff(made, u64::MAX) <= ms(most) && backoff(made, u64::MAX) > ms(most) * 999 / 1_000, "{made}");
        assert_eq!(backoff(made, 0), Duration::ZERO, "full jitter");
        assert!(backoff(made, u64::MAX / 2) < ms(most) * 51 / 100);
    }
}

#[test]
fn attempts_are_counted() {
    assert!(pause(&failed(1), &TERMS, 7).is_some());
    assert!(pause(&failed(2), &TERMS, 7).is_some());
    assert_eq!(pause(&failed(3), &TERMS, 7), None);
    assert_eq!(pause(&failed(1), &RetryTerms { max_attempts: 1, ..TERMS }, 7), None);
}

#[test]
fn another_endpoint_is_asked_at_once_whatever_the_first_one_asks_for() {
    let failed = FailedAttempt { other_endpoint: true, asked_to_wait: Some(ms(20_000)), ..failed(1) };
    assert_eq!(pause(&failed, &TERMS, u64::MAX), Some(Duration::ZERO));
    let after_a_timeout = FailedAttempt { elapsed: ms(10_000), ..failed };
    assert_eq!(pause(&after_a_timeout, &TERMS, 7), Some(Duration::ZERO));
    let too_late = FailedAttempt { elapsed: ms(120_000), ..failed };
    assert_eq!(pause(&too_late, &TERMS, 7), None);
}

#[test]
fn what_the_server_asks_for_is_waited_for_if_there_is_time() {
    let asks = |wait| FailedAttempt { asked_to_wait: Some(ms(wait)), ..failed(1) };
    assert_eq!(pause(&asks(1_500), &TERMS, 0), Some(ms(1_500)));
    assert_eq!(pause(&asks(20), &TERMS, u64::MAX), Some(backoff(1, u64::MAX)), "never less than the random pause");
    assert_eq!(pause(&asks(30_000), &TERMS, 0), None, "the next upstream is asked at once");
    let hasty = RetryTerms { first_token: ms(1_000), ..TERMS };
    assert_eq!(pause(&asks(1_500), &hasty, 0), None, "its first word would come too late");
    let late = FailedAttempt { elapsed: ms(9_000), ..asks(1_500) };
    assert_eq!(pause(&late, &TERMS, 0), None);
}

#[test]
fn headers_say_how_long_to_wait() {
    let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
    let after = |text| WaitHeaders { retry_after: Some(text), ..WaitHeaders::default() }.read(now);
    assert_eq!(after("7"), Some(ms(7_000)));
    assert_eq!(after(" 0.25 "), Some(ms(250)));
    assert_eq!(after("-1"), None);
    assert_eq!(after("soon"), None);
    assert_eq!(after("Sun, 06 Nov 1994 08:49:57 GMT"), Some(ms(20_000)));
    assert_eq!(after("Sunday, 06-Nov-94 08:49:38 GMT"), Some(ms(1_000)));
    assert_eq!(after("Sun, 06 Nov 1994 08:40:00 GMT"), Some(Duration::ZERO), "past");
    let both = WaitHeaders { retry_after_ms: Some("250"), retry_after: Some("1"), ..WaitHeaders::default() };
    assert_eq!(both.read(now), Some(ms(250)), "the finer one");
}

#[test]
fn the_limit_that_is_used_up_says_how_long_to_wait() {
    let now = SystemTime::UNIX_EPOCH;
    let resets = |requests, tokens| WaitHeaders { requests, tokens, ..WaitHeaders::default() }.read(now);
    assert_eq!(resets((Some("0"), Some("1s")), (Some("149984"), Some("6m0s"))), Some(ms(1_000)));
    assert_eq!(resets((Some("59"), Some("1s")), (Some("0"), Some("6m0s"))), Some(ms(360_000)));
    assert_eq!(resets((Some("0"), Some("20ms")), (Some("0"), Some("1.5s"))), Some(ms(1_500)));
    assert_eq!(resets((None, Some("20ms")), (None, Some("1s"))), Some(ms(20)));
    assert_eq!(resets((None, Some("1h2m3s")), (None, None)), Some(ms(3_723_000)));
    assert_eq!(resets((None, Some("7")), (None, None)), Some(ms(7_000)));
    for wrong in ["", "s", "1x", "1s5", "1.2.3s", "-1s", "1 s", "99999999999999999999h"] {
        assert_eq!(resets((None, Some(wrong)), (None, None)), None, "{wrong:?}");
    }
    let said = WaitHeaders { retry_after: Some("2"), requests: (Some("0"), Some("9s")), ..WaitHeaders::default() };
    assert_eq!(said.read(now), Some(ms(2_000)), "what is meant for this call comes first");
}
