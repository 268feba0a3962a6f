use proptest::prelude::*;

use super::*;

const DELAY: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(5);
const FIXED: BatchPolicy = BatchPolicy::Fixed { max_size: 4, max_delay: DELAY };
const ADAPTIVE: BatchPolicy =
    BatchPolicy::Adaptive { max_size: 4, max_delay: DELAY, first_token_target: Duration::from_millis(300) };

type TestBatcher = Batcher<u32, &'static str>;

fn batcher(policy: BatchPolicy, max_concurrent: usize, max_queued: usize) -> TestBatcher {
    Batcher::new(policy, BatchLimits { max_concurrent, max_queued, timeout: TIMEOUT })
}

fn ask(batcher: &mut TestBatcher, session: u32, now: Instant) -> AskId {
    batcher.ask(&session, &"g", now).unwrap().ask
}

fn send(batcher: &mut TestBatcher, now: Instant) -> Batch<&'static str> {
    assert_eq!(batcher.step(now), Step::Place);
    match batcher.take(0, now) {
        Take::Send(batch) => batch,
        other => panic!("{other:?}"),
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_fixed_batch_goes_when_it_is_full_or_its_oldest_ask_has_waited() {
    let now = Instant::now();
    let mut batcher = batcher(FIXED, 20, 100);
    assert_eq!(batcher.step(now), Step::Idle);
    let asks: Vec<_> = (0..3).map(|i| ask(&mut batcher, i, now + ms(u64::from(i)))).collect();
    assert_eq!(batcher.step(now + ms(10)), Step::Wait(Some(now + DELAY)));
    assert_eq!(batcher.take(0, now + ms(10)), Take::Nothing);
    assert_eq!(send(&mut batcher, now + DELAY).asks, asks);
    let asks: Vec<_> = (0..5).map(|i| ask(&mut batcher, i, now + ms(60))).collect();
    assert_eq!(send(&mut batcher, now + ms(60)).asks, asks[..4], "full");
    assert_eq!(batcher.step(now + ms(60)), Step::Wait(Some(now + ms(110))));
}

#[test]
fn what_a_batch_carries_is_decided_when_there_is_a_place() {
    let now = Instant::now();
    let mut batcher = batcher(FIXED, 20, 100);
    let first = ask(&mut batcher, 1, now);
    assert_eq!(batcher.step(now + DELAY), Step::Place);
    // The place is long in coming.
    let second = ask(&mut batcher, 2, now + ms(200));
    assert!(batcher.leave(first));
    assert!(!batcher.leave(first));
    assert_eq!(batcher.take(0, now + ms(210)), Take::Nothing, "what is left is not due");
    let third = ask(&mut batcher, 3, now + ms(220));
    assert_eq!(batcher.step(now + ms(250)), Step::Place);
    let Take::Send(batch) = batcher.take(0, now + ms(260)) else { panic!("nothing") };
    assert_eq!(batch.asks, [second, third]);
    assert_eq!((batcher.view().left, batcher.view().waiting), (1, 0));
}

#[test]
fn adaptive_sends_at_once_while_there_is_room_and_together_when_a_call_ends() {
    let now = Instant::now();
    let mut batcher = batcher(ADAPTIVE, 2, 100);
    let alone: Vec<_> = (0..2)
        .map(|i| {
            let ask = ask(&mut batcher, i, now);
            let batch = send(&mut batcher, now);
            assert_eq!(batch.asks, [ask]);
            batch.call
        })
        .collect();
    let asks: Vec<_> = (0..6).map(|i| ask(&mut batcher, i, now + ms(10))).collect();
    assert_eq!(batcher.step(now + ms(500)), Step::Wait(None), "no room, however long");
    batcher.ended(alone[0]);
    assert_eq!(send(&mut batcher, now + ms(500)).asks, asks[..4]);
    assert_eq!(batcher.step(now + ms(500)), Step::Wait(None));
    batcher.ended(alone[1]);
    assert_eq!(send(&mut batcher, now + ms(510)).asks, asks[4..]);
    let view = batcher.view();
    assert_eq!((view.calls, view.asks, view.last_size, view.running), (4, 8, 2, 2));
}

#[test]
fn asks_that_come_together_each_have_a_place_while_there_are_enough() {
    let now = Instant::now();
    let mut batcher = batcher(ADAPTIVE, 20, 100);
    for i in 0..7 {
        ask(&mut batcher, i, now);
    }
    let mut size = |free| match batcher.take(free, now) {
        Take::Send(batch) => batch.asks.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!([size(19), size(18), size(1), size(0)], [1, 1, 3, 2]);
}

/// Keeps `places` calls running for a while, so that the server counts as busy.
fn make_busy(batcher: &mut TestBatcher, places: usize, start: Instant) -> Instant {
    let mut running = std::collections::VecDeque::new();
    let mut now = start;
    for i in 0..200 {
        ask(batcher, i, now);
        if running.len() == places {
            batcher.ended(running.pop_front().unwrap());
        }
        while batcher.step(now) == Step::Place {
            match batcher.take(0, now) {
                Take::Send(batch) => {
                    for id in batch.asks {
                        batcher.first_token(batch.call, id, now);
                    }
                    running.push_back(batch.call);
                }
                Take::Hold(until) => now = until,
                Take::Nothing => break,
            }
        }
        now += ms(10);
    }
    batcher.ended(running.pop_front().unwrap());
    now
}

#[test]
fn a_busy_servers_place_is_held_back_to_fill_the_batch_and_not_longer() {
    let mut batcher = batcher(ADAPTIVE, 4, 100);
    let now = make_busy(&mut batcher, 4, Instant::now());
    assert_eq!(batcher.view().window, DELAY, "the window has grown");
    let first = ask(&mut batcher, 1, now);
    assert_eq!(batcher.step(now), Step::Place);
    assert_eq!(batcher.take(0, now), Take::Hold(now + DELAY));
    let second = ask(&mut batcher, 2, now + ms(20));
    assert_eq!(batcher.take(0, now + ms(20)), Take::Hold(now + DELAY));
    let Take::Send(batch) = batcher.take(0, now + DELAY) else { panic!("held back for too long") };
    assert_eq!(batch.asks, [first, second]);
    // A full batch is not held back.
    let view = batcher.view();
    assert!(view.running <= 4);
    batcher.ended(batch.call);
    let later = now + ms(60);
    let asks: Vec<_> = (0..4).map(|i| ask(&mut batcher, i, later)).collect();
    assert_eq!(send(&mut batcher, later).asks, asks);
}

#[test]
fn a_session_with_many_asks_delays_another_by_one_call() {
    for policy in [FIXED, ADAPTIVE] {
        let now = Instant::now();
        let mut batcher = batcher(policy, 1, 1_000);
        if policy == ADAPTIVE {
            ask(&mut batcher, 9, now);
            send(&mut batcher, now);
        }
        let many: Vec<_> = (0..500).map(|_| ask(&mut batcher, 1, now)).collect();
        let single = ask(&mut batcher, 2, now);
        batcher.ended(CallId(0));
        assert_eq!(send(&mut batcher, now).asks, [many[0], single, many[1], many[2]]);
        assert_eq!(batcher.next_session(), Some(&1));
    }
}

#[test]
fn asks_of_different_groups_never_share_a_call_and_each_group_has_its_turn() {
    let now = Instant::now();
    let mut batcher = batcher(ADAPTIVE, 1, 100);
    let mut ask = |session: u32, group| batcher.ask(&session, &group, now).unwrap().ask;
    let asks = [ask(1, "a"), ask(1, "b"), ask(2, "b"), ask(3, "a"), ask(2, "a")];
    let mut sent = Vec::new();
    while let Take::Send(batch) = batcher.take(0, now) {
        sent.push((batch.group, batch.asks));
    }
    assert_eq!(sent, [("a", vec![asks[0], asks[3], asks[4]]), ("b", vec![asks[1], asks[2]])]);
}

#[test]
fn many_wait_and_more_are_refused() {
    let now = Instant::now();
    let mut batcher = batcher(ADAPTIVE, 1, 6);
    for i in 0..6 {
        ask(&mut batcher, i, now);
    }
    assert!(batcher.ask(&7, &"g", now).is_err());
    send(&mut batcher, now);
    assert!(batcher.ask(&7, &"g", now).is_ok());
    // As many as fill a batch may always wait: without them there would be no batches.
    let mut none = Batcher::new(FIXED, BatchLimits { max_concurrent: 1, max_queued: 0, timeout: TIMEOUT });
    for i in 0..4 {
        assert!(none.ask(&i, &"g", now).is_ok());
    }
    assert!(none.ask(&4, &"g", now).is_err());
}

#[test]
fn a_full_queue_takes_a_session_with_few_asks_by_putting_out_the_newest_of_the_one_with_the_most() {
    let now = Instant::now();
    let mut batcher = batcher(ADAPTIVE, 1, 6);
    let few: Vec<_> = (0..2).map(|_| ask(&mut batcher, 2, now)).collect();
    let many: Vec<_> = (0..4).map(|_| ask(&mut batcher, 1, now)).collect();
    assert!(batcher.ask(&1, &"g", now).is_err(), "it has the most itself");
    assert_eq!(batcher.door(&3), Ok(()));
    let taken = batcher.ask(&3, &"other", now).unwrap();
    assert_eq!(taken.pushed_out, Some(many[3]));
    assert!(!batcher.leave(many[3]), "it is out");
    // Three, two and one: only who has one or none can put one of the three out.
    assert!(batcher.door(&2).is_err());
    let single = batcher.ask(&3, &"other", now).unwrap();
    assert_eq!(single.pushed_out, Some(many[2]));
    // Two each: whoever put one out would be put out in turn.
    assert!(batcher.door(&3).is_err());
    let newcomer = batcher.ask(&4, &"g", now).unwrap();
    assert_eq!(newcomer.pushed_out, Some(single.ask), "of those with as many, the one whose turn is last");
    assert_eq!((batcher.view().waiting, batcher.view().left), (6, 0));
    let mut sent = Vec::new();
    while let Take::Send(batch) = batcher.take(0, now) {
        sent.extend(batch.asks);
    }
    sent.sort_unstable();
    assert_eq!(sent, [few[0], few[1], many[0], many[1], taken.ask, newcomer.ask]);
}

#[test]
fn nobody_is_put_out_while_there_is_room() {
    let now = Instant::now();
    let mut batcher = batcher(ADAPTIVE, 1, 6);
    for _ in 0..5 {
        ask(&mut batcher, 1, now);
    }
    assert_eq!(batcher.ask(&2, &"g", now).unwrap().pushed_out, None);
}

#[test]
fn who_would_only_wait_in_vain_is_refused_at_the_door() {
    let mut now = Instant::now();
    let mut batcher = batcher(ADAPTIVE, 1, 1_000);
    for i in 0..100 {
        ask(&mut batcher, i, now);
    }
    assert_eq!(batcher.door(&200), Ok(()), "nothing is known of the pace");
    // Four asks every 2 s.
    for _ in 0..3 {
        let call = send(&mut batcher, now).call;
        now += ms(2_000);
        batcher.ended(call);
    }
    let retry_after = batcher.door(&200).unwrap_err();
    assert_eq!(retry_after, RETRY_AFTER_MAX);
    assert_eq!(batcher.ask(&200, &"g", now), Err(retry_after));
}

#[test]
fn a_server_without_batches_is_asked_one_by_one_for_a_while() {
    let now = Instant::now();
    let mut batcher = batcher(FIXED, 20, 100);
    batcher.alone_until(now + ms(1_000));
    let asks: Vec<_> = (0..4).map(|i| ask(&mut batcher, i, now)).collect();
    assert_eq!(send(&mut batcher, now).asks, asks[..1]);
    assert_eq!(send(&mut batcher, now).asks, asks[1..2]);
    assert_eq!(send(&mut batcher, now + ms(1_000)).asks, asks[2..], "time is over");
}

#[test]
fn another_policy_counts_from_the_next_batch_on_and_who_waits_stays() {
    let now = Instant::now();
    let limits = BatchLimits { max_concurrent: 1, max_queued: 100, timeout: TIMEOUT };
    let mut batcher = batcher(ADAPTIVE, 1, 100);
    let asks: Vec<_> = (0..6).map(|i| ask(&mut batcher, i, now)).collect();
    batcher.change(BatchPolicy::Fixed { max_size: 2, max_delay: DELAY }, limits);
    assert_eq!(send(&mut batcher, now).asks, asks[..2]);
    batcher.change(BatchPolicy::Off, limits);
    assert_eq!(send(&mut batcher, now).asks, asks[2..3]);
    batcher.change(ADAPTIVE, BatchLimits { max_concurrent: 10, ..limits });
    assert_eq!(send(&mut batcher, now).asks, asks[3..]);
}

#[test]
fn where_there_is_no_place_who_is_next_hears_it() {
    let now = Instant::now();
    let mut batcher = batcher(ADAPTIVE, 1, 100);
    let asks = [ask(&mut batcher, 1, now), ask(&mut batcher, 1, now), ask(&mut batcher, 2, now)];
    assert_eq!([batcher.refuse(), batcher.refuse(), batcher.refuse()], [Some(asks[0]), Some(asks[1]), Some(asks[2])]);
    assert_eq!((batcher.refuse(), batcher.view().left), (None, 0));
}

#[test]
fn shares_add_up_to_the_sum() {
    assert_eq!(split(10, &[1, 1, 1]), [4, 3, 3]);
    assert_eq!(split(7, &[3, 0, 4]), [3, 0, 4]);
    assert_eq!(split(5, &[0, 0]), [3, 2], "nothing to go by");
    assert_eq!(split(0, &[1, 2]), [0, 0]);
    assert_eq!(split(9, &[]), Vec::<u64>::new());
}

#[derive(Clone, Debug)]
enum Happens {
    Ask(u32, bool),
    Leave(usize),
    Ends(usize),
    Later(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0..5u32, any::<bool>()).prop_map(|(session, group)| Happens::Ask(session, group)),
        1 => (0..20usize).prop_map(Happens::Leave),
        2 => (0..8usize).prop_map(Happens::Ends),
        2 => (1..80u64).prop_map(Happens::Later),
    ]
}

proptest! {
    #[test]
    fn shares_add_up_whatever_the_weights(total in 0..=u64::MAX, weights in prop::collection::vec(any::<u64>(), 1..20)) {
        let shares = split(total, &weights);
        prop_assert_eq!(shares.len(), weights.len());
        prop_assert_eq!(shares.iter().map(|share| u128::from(*share)).sum::<u128>(), u128::from(total));
    }

    /// Whatever happens: each ask is sent once, left or was put out, never two of them; calls are in bounds and of one group; nobody who may go is
    /// forgotten.
    #[test]
    fn each_ask_is_sent_once_or_leaves(
        fixed in any::<bool>(),
        places in 1..5usize,
        steps in prop::collection::vec(happens(), 1..200),
    ) {
        let mut now = Instant::now();
        let mut batcher = batcher(if fixed { FIXED } else { ADAPTIVE }, places, 12);
        let mut waiting: Vec<(AskId, &'static str, u32)> = Vec::new();
        let mut running: Vec<CallId> = Vec::new();
        let mut asked = 0;
        let mut sent = 0;
        let mut left = 0;
        let mut out = 0;
        for step in steps.into_iter().chain(std::iter::repeat_n(Happens::Later(60), 1)) {
            match step {
                Happens::Ask(session, group) => {
                    let group = if group { "a" } else { "b" };
                    if let Ok(taken) = batcher.ask(&session, &group, now) {
                        if let Some(pushed_out) = taken.pushed_out {
                            let of = |session| waiting.iter().filter(|(_, _, of)| *of == session).count();
                            let at = waiting.iter().rposition(|(ask, _, _)| *ask == pushed_out);
                            prop_assert!(at.is_some(), "put out twice");
                            let (_, _, greedy) = waiting[at.unwrap_or(0)];
                            prop_assert!((0..5).all(|other| of(other) <= of(greedy)), "another one had more");
                            prop_assert!(of(session) + 1 < of(greedy), "they would put each other out for ever");
                            prop_assert_eq!(waiting.len(), 12, "there was room");
                            waiting.remove(at.unwrap_or(0));
                            out += 1;
                        }
                        waiting.push((taken.ask, group, session));
                        asked += 1;
                    }
                }
                Happens::Leave(index) if index < waiting.len() => {
                    prop_assert!(batcher.leave(waiting.remove(index).0));
                    left += 1;
                }
                Happens::Ends(index) if index < running.len() => batcher.ended(running.remove(index)),
                Happens::Leave(_) | Happens::Ends(_) => {}
                Happens::Later(later) => now += ms(later),
            }
            while running.len() < places && batcher.step(now) == Step::Place {
                match batcher.take(0, now) {
                    Take::Send(batch) => {
                        prop_assert!((1..=4).contains(&batch.asks.len()));
                        for ask in &batch.asks {
                            let at = waiting.iter().position(|(waits, group, _)| waits == ask && *group == batch.group);
                            prop_assert!(at.is_some(), "sent twice, or in the wrong company");
                            waiting.remove(at.unwrap_or(0));
                            batcher.first_token(batch.call, *ask, now);
                        }
                        sent += batch.asks.len();
                        running.push(batch.call);
                    }
                    Take::Hold(until) => {
                        prop_assert!(until > now && until <= now + DELAY);
                        break;
                    }
                    Take::Nothing => prop_assert!(false, "a place without a use"),
                }
            }
            prop_assert_eq!(asked, sent + left + out + waiting.len());
            prop_assert_eq!((batcher.view().waiting, batcher.view().running), (waiting.len(), running.len()));
        }
        while let Some(call) = running.pop() {
            batcher.ended(call);
        }
        prop_assert!(waiting.is_empty() || batcher.step(now) == Step::Place, "who waited for {DELAY:?} may go");
    }
}
