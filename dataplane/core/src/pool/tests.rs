use super::*;

mod overload;
mod schedules;

const SECOND: Duration = Duration::from_secs(1);

fn config() -> PoolConfig {
    PoolConfig {
        places: 20,
        max_queued: 1_000,
        queue_timeout: 5 * SECOND,
        breaker: BreakerConfig {
            window: 50,
            min_calls: 20,
            failure_percent: 40,
            slow_percent: 100,
            open_for: 5 * SECOND,
            probes: 10,
        },
        slow_after: None,
        affinity: false,
    }
}

fn names(count: usize) -> Vec<Arc<str>> {
    (0..count).map(|i| Arc::from(format!("http://10.0.0.{i}:8000"))).collect()
}

fn pool(config: PoolConfig, endpoints: usize) -> (Pool<u32>, Vec<EndpointId>, Instant) {
    let now = Instant::now();
    let mut pool = Pool::new(config, 7);
    let ids = pool.set_endpoints(&names(endpoints), now);
    (pool, ids, now)
}

fn run(pool: &mut Pool<u32>, session: u32, now: Instant) -> Lease {
    match pool.ask(&session, &[], now) {
        Asked::Run(lease) => lease,
        other => panic!("{other:?}"),
    }
}

fn wait(pool: &mut Pool<u32>, session: u32, now: Instant) -> Ticket {
    match pool.ask(&session, &[], now) {
        Asked::Wait { ticket, .. } => ticket,
        other => panic!("{other:?}"),
    }
}

fn refused(asked: Asked) -> NoRoom {
    match asked {
        Asked::Refused(refused) => refused,
        other => panic!("{other:?}"),
    }
}

/// Lets calls at `endpoint` fail until its breaker is open; how many that took. The others answer well.
fn fail(pool: &mut Pool<u32>, endpoint: EndpointId, now: Instant) -> usize {
    let mut failed = 0;
    for _ in 0..10_000 {
        let lease = run(pool, 1, now);
        let how = if lease.endpoint == endpoint { Ended::Failed } else { Ended::Well };
        failed += usize::from(how == Ended::Failed);
        pool.end(&lease, how, now);
        if pool.endpoints(now).iter().any(|e| e.state == BreakerState::Open) {
            return failed;
        }
    }
    panic!("it never opened")
}

#[test]
fn the_places_of_all_endpoints_are_used_and_no_more() {
    let (mut pool, _, now) = pool(config(), 3);
    let leases: Vec<_> = (0..60).map(|session| run(&mut pool, session, now)).collect();
    assert!(pool.endpoints(now).iter().all(|endpoint| endpoint.in_flight == 20));
    let ticket = wait(&mut pool, 99, now);
    pool.end(&leases[17], Ended::Well, now);
    assert_eq!(pool.take_woken(), [ticket]);
    let Waits::Run(lease) = pool.poll(ticket, now) else { panic!("no place") };
    assert_eq!(lease.endpoint, leases[17].endpoint);
}

#[test]
fn a_broken_endpoint_is_left_out_after_20_calls_and_its_places_with_it() {
    let (mut pool, ids, now) = pool(config(), 3);
    assert_eq!(fail(&mut pool, ids[1], now), 20);
    assert_eq!(pool.room(), 40);
    for session in 0..40 {
        assert_ne!(run(&mut pool, session, now).endpoint, ids[1]);
    }
    wait(&mut pool, 99, now);
}

#[test]
fn it_gets_calls_again_as_soon_as_its_time_is_over_without_anybody_asking() {
    let (mut pool, ids, now) = pool(config(), 2);
    fail(&mut pool, ids[0], now);
    let leases: Vec<_> = (0..20).map(|session| run(&mut pool, session, now)).collect();
    let tickets: Vec<_> = (0..15).map(|session| wait(&mut pool, 100 + session, now)).collect();
    let Waits::Until(at) = pool.poll(tickets[0], now) else { panic!("not waiting") };
    assert_eq!(at, now + 5 * SECOND, "the one that waits looks again when the breaker probes");
    let at = now + 5 * SECOND - Duration::from_millis(1);
    assert_eq!(pool.poll(tickets[0], at), Waits::Until(now + 5 * SECOND));
    // Asked a moment before, so that they are not too late themselves.
    let (mut pool, ids, now) = (pool, ids, now + 5 * SECOND);
    let late = pool.poll(tickets[0], now);
    assert!(matches!(late, Waits::Refused(NoRoom { why: Why::TimedOut, .. })), "{late:?}");
    let fresh: Vec<_> = (0..15).map(|session| pool.ask(&(200 + session), &[], now)).collect();
    let at_once = fresh.iter().filter(|asked| matches!(asked, Asked::Run(lease) if lease.endpoint == ids[0])).count();
    assert_eq!((at_once, pool.endpoints(now)[0].state), (10, BreakerState::HalfOpen), "ten probe");
    assert_eq!(pool.waiting(), 5);
    // They are judged at their first words, and then all places are there again.
    for asked in fresh {
        if let Asked::Run(mut lease) = asked {
            pool.begun(&mut lease, SECOND, now);
        }
    }
    assert_eq!((pool.endpoints(now)[0].state, pool.waiting()), (BreakerState::Closed, 0));
    drop(leases);
}

#[test]
fn where_no_endpoint_can_be_called_nobody_waits() {
    let (mut pool, ids, now) = pool(PoolConfig { places: 1, ..config() }, 1);
    for _ in 0..19 {
        let lease = run(&mut pool, 1, now);
        pool.end(&lease, Ended::Failed, now);
    }
    let lease = run(&mut pool, 1, now);
    let waiting = wait(&mut pool, 2, now);
    pool.end(&lease, Ended::Failed, now);
    assert_eq!(pool.take_woken(), [waiting]);
    let told = pool.poll(waiting, now);
    assert_eq!(told, Waits::Refused(NoRoom { why: Why::Closed, retry_after: RETRY_AFTER_MIN }));
    let at = now + 2 * SECOND;
    let no_room = refused(pool.ask(&3, &[], at));
    assert_eq!(no_room, NoRoom { why: Why::Closed, retry_after: 3 * SECOND });
    assert_eq!(pool.door(&3, 0, at), Err(no_room));
    // Its probes taken, there is nothing to wait for either: it is not known to be well.
    let (mut pool, ids) = (pool, ids);
    pool.configure(config(), now);
    let now = now + 5 * SECOND;
    let probes: Vec<_> = (0..10).map(|session| run(&mut pool, session, now)).collect();
    assert!(probes.iter().all(|lease| lease.endpoint == ids[0]));
    assert_eq!(refused(pool.ask(&99, &[], now)).why, Why::Closed);
    assert_eq!(Pool::<u32>::new(config(), 1).door(&1, 0, now).unwrap_err().why, Why::Closed, "no endpoint at all");
}

#[test]
fn what_is_given_up_and_what_is_the_clients_fault_opens_nothing() {
    let (mut pool, _, now) = pool(config(), 1);
    for how in [Ended::Otherwise, Ended::Busy(None)] {
        for _ in 0..100 {
            let lease = run(&mut pool, 1, now);
            pool.end(&lease, how, now);
        }
    }
    assert_eq!((pool.endpoints(now)[0].state, pool.running()), (BreakerState::Closed, 0));
}

#[test]
fn slow_first_words_open_it_where_that_is_asked_for() {
    let mut slow = PoolConfig { slow_after: Some(SECOND), ..config() };
    slow.breaker.slow_percent = 50;
    let (mut pool, _, now) = pool(slow, 1);
    for i in 0..20 {
        assert_eq!(pool.endpoints(now)[0].state, BreakerState::Closed, "{i}");
        let mut lease = run(&mut pool, 1, now);
        pool.begun(&mut lease, if i % 2 == 0 { SECOND } else { SECOND / 2 }, now);
        pool.end(&lease, Ended::Well, now);
    }
    assert_eq!(pool.endpoints(now)[0].state, BreakerState::Open);
}

#[test]
fn an_endpoint_that_has_enough_is_asked_after_the_others_for_a_while() {
    let (mut pool, ids, now) = pool(config(), 2);
    let lease = run(&mut pool, 1, now);
    let (busy, other) = if lease.endpoint == ids[0] { (ids[0], ids[1]) } else { (ids[1], ids[0]) };
    pool.end(&lease, Ended::Busy(Some(3 * SECOND)), now);
    let leases: Vec<_> = (0..20).map(|session| run(&mut pool, session, now)).collect();
    assert!(leases.iter().all(|lease| lease.endpoint == other));
    assert_eq!(run(&mut pool, 1, now).endpoint, busy, "it is not left out");
    let now = now + 3 * SECOND;
    for lease in &leases {
        pool.end(lease, Ended::Well, now);
    }
    assert!((0..20).any(|session| run(&mut pool, session, now).endpoint == busy));
}

#[test]
fn a_call_made_again_goes_elsewhere_where_there_is_room() {
    let (mut pool, ids, now) = pool(PoolConfig { places: 1, ..config() }, 2);
    for _ in 0..10 {
        assert!(pool.has_other(&ids[..1]));
        let Asked::Run(lease) = pool.ask(&1, &ids[..1], now) else { panic!("no place") };
        assert_eq!(lease.endpoint, ids[1]);
        assert!(!pool.has_other(&ids[..1]));
        let Asked::Run(same) = pool.ask(&1, &ids[..1], now) else { panic!("no place") };
        assert_eq!(same.endpoint, ids[0], "better the same one than none");
        pool.end(&lease, Ended::Well, now);
        pool.end(&same, Ended::Well, now);
    }
}

#[test]
fn endpoints_come_and_go_while_calls_run() {
    let (mut pool, ids, now) = pool(PoolConfig { places: 1, ..config() }, 2);
    let leases = [run(&mut pool, 1, now), run(&mut pool, 2, now)];
    let (a, b) = (wait(&mut pool, 3, now), wait(&mut pool, 4, now));
    let three = names(3);
    let after = pool.set_endpoints(&three[1..], now);
    assert_eq!(after[0], ids[1], "one that stays keeps its number");
    assert_eq!(pool.take_woken(), [a], "the new one has a place");
    let Waits::Run(third) = pool.poll(a, now) else { panic!("no place") };
    assert_eq!(third.endpoint, after[1]);
    assert_eq!(pool.endpoints(now).iter().map(|e| e.leaving).collect::<Vec<_>>(), [true, false, false]);
    let of_gone = leases.iter().position(|lease| lease.endpoint == ids[0]).unwrap();
    pool.end(&leases[of_gone], Ended::Well, now);
    assert_eq!((pool.take_woken(), pool.endpoints(now).len()), (vec![], 2), "it ended what it had, and is gone");
    pool.end(&leases[1 - of_gone], Ended::Well, now);
    assert_eq!(pool.take_woken(), [b]);
}

#[test]
fn other_settings_keep_calls_breakers_and_those_that_wait() {
    let (mut pool, ids, now) = pool(PoolConfig { places: 2, ..config() }, 2);
    fail(&mut pool, ids[0], now);
    let leases = [run(&mut pool, 1, now), run(&mut pool, 1, now)];
    let (a, b) = (wait(&mut pool, 2, now), wait(&mut pool, 3, now));
    pool.configure(PoolConfig { places: 3, ..config() }, now);
    assert_eq!((pool.take_woken(), pool.endpoints(now)[0].state), (vec![a], BreakerState::Open));
    pool.configure(PoolConfig { places: 1, max_queued: 0, ..config() }, now);
    pool.end(&leases[0], Ended::Well, now);
    pool.cancel(a, now);
    assert_eq!(pool.take_woken(), [], "one runs, one may");
    pool.end(&leases[1], Ended::Well, now);
    assert_eq!(pool.take_woken(), [b]);
    let Waits::Run(lease) = pool.poll(b, now) else { panic!("no place") };
    pool.end(&lease, Ended::Well, now);
    assert_eq!((pool.running(), pool.waiting(), pool.wishes.len(), pool.granted.len()), (0, 0, 0, 0));
}

#[test]
fn a_session_with_affinity_keeps_its_endpoint_while_that_is_well() {
    let (mut pool, _, now) = pool(PoolConfig { affinity: true, ..config() }, 4);
    let mut homes = Vec::new();
    for session in 0..200 {
        let lease = run(&mut pool, session, now);
        homes.push(lease.endpoint);
        pool.end(&lease, Ended::Well, now);
    }
    for session in 0..200 {
        let lease = run(&mut pool, session, now);
        assert_eq!(lease.endpoint, homes[session as usize]);
        pool.end(&lease, Ended::Well, now);
    }
    let broken = homes[0];
    while pool.endpoints(now).iter().all(|endpoint| endpoint.state == BreakerState::Closed) {
        let lease = run(&mut pool, 0, now);
        pool.end(&lease, Ended::Failed, now);
    }
    for session in 0..200 {
        let lease = run(&mut pool, session, now);
        assert!(lease.endpoint == homes[session as usize] || homes[session as usize] == broken);
        pool.end(&lease, Ended::Well, now);
    }
}
