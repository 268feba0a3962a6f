use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

impl<S: Clone + Eq + Hash> FairQueue<S> {
    /// A waiting ask is given up. Whose turn it is, where it held a place already.
    fn cancel(&mut self, ticket: Ticket, now: Instant) -> Option<Ticket> {
        if self.give_up(ticket) { self.grant(now) } else { None }
    }

    /// A call is over. Whose turn it is now.
    fn release(&mut self, now: Instant) -> Option<Ticket> {
        self.free(now);
        self.grant(now)
    }
}

fn queue(max_concurrent: usize, max_queued: usize) -> FairQueue<u8> {
    FairQueue::new(QueueLimits { max_concurrent, max_queued, timeout: TIMEOUT })
}

fn wait(queue: &mut FairQueue<u8>, session: u8, now: Instant) -> Ticket {
    match queue.ask(&session, now) {
        Admission::Wait { ticket, .. } => ticket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn as_many_run_as_may_and_the_rest_waits_up_to_a_bound() {
    let now = Instant::now();
    let mut queue = queue(2, 1);
    assert_eq!(queue.ask(&1, now), Admission::Run);
    assert_eq!(queue.ask(&1, now), Admission::Run);
    let ticket = wait(&mut queue, 1, now);
    assert!(matches!(queue.ask(&2, now), Admission::Refused(NoRoom { why: Why::Full, .. })));
    assert_eq!(queue.poll(ticket, now), Standing::Waiting);
    assert_eq!(queue.release(now), Some(ticket));
    assert_eq!(queue.poll(ticket, now), Standing::Granted);
    assert_eq!((queue.running(), queue.waiting()), (2, 0));
}

#[test]
fn one_session_with_many_asks_delays_another_by_one_call() {
    let now = Instant::now();
    let mut queue = queue(1, 1_000);
    assert_eq!(queue.ask(&1, now), Admission::Run);
    let many: Vec<_> = (0..500).map(|_| wait(&mut queue, 1, now)).collect();
    let single = wait(&mut queue, 2, now);
    assert_eq!(queue.release(now), Some(many[0]));
    assert_eq!(queue.release(now), Some(single));
    assert_eq!(queue.release(now), Some(many[1]));
}

#[test]
fn who_waits_too_long_is_refused_and_no_place_is_lost() {
    let now = Instant::now();
    let mut queue = queue(1, 10);
    assert_eq!(queue.ask(&1, now), Admission::Run);
    let polled = wait(&mut queue, 2, now);
    let never_polled = wait(&mut queue, 2, now);
    let later = now + TIMEOUT;
    let in_time = wait(&mut queue, 2, later);
    assert!(matches!(queue.poll(polled, later), Standing::Refused(NoRoom { why: Why::TimedOut, .. })));
    assert_eq!(queue.release(later), Some(in_time), "the late one is passed over");
    assert!(matches!(queue.poll(never_polled, later), Standing::Refused(NoRoom { why: Why::TimedOut, .. })));
    assert_eq!(queue.poll(in_time, later), Standing::Granted);
    assert_eq!(queue.release(later), None);
    assert_eq!((queue.running(), queue.waiting(), queue.asked.len()), (0, 0, 0));
}

#[test]
fn giving_up_a_granted_place_passes_it_on() {
    let now = Instant::now();
    let mut queue = queue(1, 10);
    assert_eq!(queue.ask(&1, now), Admission::Run);
    let (a, b, c) = (wait(&mut queue, 2, now), wait(&mut queue, 3, now), wait(&mut queue, 4, now));
    assert_eq!(queue.cancel(b, now), None);
    assert_eq!(queue.release(now), Some(a));
    assert_eq!(queue.cancel(a, now), Some(c));
    assert_eq!(queue.poll(c, now), Standing::Granted);
    assert_eq!(queue.cancel(c, now), None, "a used ticket changes nothing");
    assert_eq!((queue.running(), queue.waiting()), (1, 0));
}

/// A queue of sessions that have one ask each, of which one is served every 100 ms; and the time.
fn paced(waiting: u8) -> (FairQueue<u8>, Instant) {
    let start = Instant::now();
    let mut queue = queue(1, 100);
    assert_eq!(queue.ask(&255, start), Admission::Run);
    for session in 0..waiting {
        wait(&mut queue, session, start);
    }
    for i in 1..20 {
        let now = start + Duration::from_millis(100 * i);
        let ticket = queue.release(now).unwrap();
        assert_eq!(queue.poll(ticket, now), Standing::Granted);
        wait(&mut queue, 99 + i as u8, now);
    }
    (queue, start + Duration::from_millis(1_900))
}

#[test]
fn the_time_to_wait_follows_the_pace() {
    let (mut queue, now) = paced(51);
    let Admission::Refused(refused) = queue.ask(&200, now) else { panic!("not refused") };
    assert_eq!(refused.retry_after, Duration::from_millis(5_100), "51 wait, ten are served a second");
}

#[test]
fn what_would_wait_too_long_is_refused_at_the_door() {
    // Ten are served a second, and one may wait for five: the 51st that waits would be too late.
    let (mut queue, now) = paced(50);
    let place = queue.ask(&200, now);
    assert!(matches!(place, Admission::Wait { .. }), "{place:?}");
    assert_eq!(queue.door(&201, 0, now).unwrap_err().why, Why::TooSlow);
    // A session's own asks come one in each round: its first one before the second ones of all others.
    let (mut queue, now) = paced(25);
    wait(&mut queue, 200, now);
    assert_eq!(queue.door(&200, 0, now), Ok(()));
    wait(&mut queue, 200, now);
    for _ in 0..22 {
        wait(&mut queue, 200, now);
    }
    assert_eq!(queue.door(&200, 0, now), Ok(()), "it would be the 50th");
    wait(&mut queue, 200, now);
    wait(&mut queue, 200, now);
    assert_eq!(queue.door(&200, 0, now).unwrap_err().why, Why::TooSlow);
    assert_eq!(queue.door(&201, 0, now), Ok(()), "another one has only 26 before it");
    assert_eq!(queue.door(&201, 25, now).unwrap_err().why, Why::TooSlow, "those on their way count");
}

#[test]
fn while_nothing_is_served_the_door_closes() {
    let (mut queue, now) = paced(10);
    assert_eq!(queue.door(&200, 0, now), Ok(()));
    assert_eq!(queue.door(&200, 0, now + Duration::from_secs(3)).unwrap_err().why, Why::TooSlow);
    // And opens soon after it goes on.
    let mut later = now + Duration::from_secs(3);
    for i in 0..8 {
        later += Duration::from_millis(100);
        let session = 210 + i;
        let _ = queue.ask(&session, later);
        assert!(queue.release(later).is_some());
    }
    assert!(queue.waiting() > 0);
    for i in 0..20 {
        later += Duration::from_millis(100);
        queue.release(later);
        let _ = queue.ask(&(220 + i), later);
    }
    assert_eq!(queue.door(&200, 0, later), Ok(()));
}

#[test]
fn calls_that_end_in_batches_say_the_same_as_single_ones() {
    let start = Instant::now();
    let mut queue = queue(80, 2_000);
    for _ in 0..80 {
        assert_eq!(queue.ask(&0, start), Admission::Run);
    }
    for session in 0..200 {
        wait(&mut queue, session, start);
    }
    let mut now = start;
    for _ in 0..10 {
        now += Duration::from_millis(348);
        for i in 0..80 {
            assert!(queue.release(now).is_some());
            wait(&mut queue, i, now);
        }
        let pace = queue.pace.at(now);
        assert!(pace.is_none_or(|pace| pace == Duration::from_millis(348) / 80), "{pace:?}");
    }
}

#[test]
fn a_full_queue_takes_the_ask_of_a_session_with_few() {
    let now = Instant::now();
    let mut queue = queue(1, 4);
    assert_eq!(queue.ask(&0, now), Admission::Run);
    let many: Vec<_> = (0..4).map(|_| wait(&mut queue, 1, now)).collect();
    let Admission::Wait { ticket, pushed_out, .. } = queue.ask(&2, now) else { panic!("refused") };
    assert_eq!(pushed_out, Some(many[3]), "the newest of the one with the most");
    assert!(matches!(queue.poll(many[3], now), Standing::Refused(NoRoom { why: Why::PushedOut, .. })));
    // 3 and 1 wait: a second ask makes it two each, a third one would only turn them round.
    assert!(matches!(queue.ask(&2, now), Admission::Wait { pushed_out: Some(out), .. } if out == many[2]));
    assert!(matches!(queue.ask(&2, now), Admission::Refused(NoRoom { why: Why::Full, .. })));
    assert!(matches!(queue.ask(&1, now), Admission::Refused(NoRoom { why: Why::Full, .. })));
    assert_eq!((queue.release(now), queue.release(now)), (Some(many[0]), Some(ticket)));
    assert_eq!(queue.waiting(), 2);
}

#[test]
fn capacity_that_grows_serves_those_that_wait_and_that_shrinks_takes_nothing_away() {
    let now = Instant::now();
    let mut queue = queue(1, 10);
    assert_eq!(queue.ask(&0, now), Admission::Run);
    let (a, b) = (wait(&mut queue, 1, now), wait(&mut queue, 2, now));
    assert_eq!(queue.grant(now), None);
    queue.set_capacity(3);
    assert_eq!((queue.grant(now), queue.grant(now), queue.grant(now)), (Some(a), Some(b), None));
    let c = wait(&mut queue, 3, now);
    queue.set_capacity(1);
    assert_eq!((queue.release(now), queue.release(now)), (None, None), "three run, one may");
    assert_eq!(queue.release(now), Some(c));
}

#[test]
fn a_queue_that_is_closed_tells_all_that_wait() {
    let now = Instant::now();
    let mut queue = queue(1, 10);
    assert_eq!(queue.ask(&0, now), Admission::Run);
    let mut tickets = vec![wait(&mut queue, 1, now), wait(&mut queue, 1, now), wait(&mut queue, 2, now)];
    let mut told = queue.close();
    told.sort();
    tickets.sort();
    assert_eq!(told, tickets);
    for ticket in tickets {
        assert!(matches!(queue.poll(ticket, now), Standing::Refused(NoRoom { why: Why::Closed, .. })));
    }
    assert_eq!((queue.waiting(), queue.asked.len(), queue.release(now)), (0, 0, None));
    wait_again(&mut queue, now);
}

fn wait_again(queue: &mut FairQueue<u8>, now: Instant) {
    assert_eq!(queue.ask(&1, now), Admission::Run);
    let ticket = wait(queue, 1, now);
    assert_eq!(queue.release(now), Some(ticket));
}

#[derive(Clone, Debug)]
enum Step {
    Ask(u8),
    Release,
    Cancel(prop::sample::Index),
    Poll(prop::sample::Index),
    Sleep(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..6).prop_map(Step::Ask),
        4 => Just(Step::Release),
        1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        2 => any::<prop::sample::Index>().prop_map(Step::Poll),
        1 => (0_u16..3_000).prop_map(Step::Sleep),
    ]
}

struct Waiter {
    session: u8,
    ticket: Ticket,
    deadline_ms: u64,
}

/// What the queue is held against: who asked, who was granted, who was passed over.
#[derive(Default)]
struct Witness {
    now_ms: u64,
    running: usize,
    /// Asks not yet granted, refused or given up, in the order of asking.
    waiting: Vec<Waiter>,
    /// Granted and not yet picked up.
    granted: Vec<Ticket>,
    /// Put out, and not yet told.
    out: Vec<Ticket>,
    /// For each waiting session, who was served since it began to wait.
    served_since: HashMap<u8, HashSet<u8>>,
}

impl Witness {
    fn grant(&mut self, ticket: Ticket) -> Result<(), TestCaseError> {
        let at = self.waiting.iter().position(|w| w.ticket == ticket && self.now_ms < w.deadline_ms);
        let Some(Waiter { session, .. }) = at.map(|at| self.waiting.remove(at)) else {
            return Err(TestCaseError::fail("granted to one that does not wait"));
        };
        self.granted.push(ticket);
        self.served_since.remove(&session);
        self.keep_waiting_sessions();
        for (other, served) in &mut self.served_since {
            prop_assert!(served.insert(session), "session {} was passed twice by {}", other, session);
        }
        if self.waiting.iter().any(|w| w.session == session) {
            self.served_since.entry(session).or_default();
        }
        Ok(())
    }

    fn waiting_of(&self, session: u8) -> usize {
        self.waiting.iter().filter(|w| w.session == session).count()
    }

    /// Whether an ask has waited too long and does not know it: the queue may have passed it over already.
    fn somebody_is_late(&self) -> bool {
        self.waiting.iter().any(|w| self.now_ms >= w.deadline_ms)
    }

    /// One had to leave for `session`: the newest of the session with the most, which still has no fewer than that one then.
    fn push_out(&mut self, ticket: Ticket, session: u8) -> Result<(), TestCaseError> {
        let Some(at) = self.waiting.iter().position(|w| w.ticket == ticket) else {
            return Err(TestCaseError::fail("one was put out that does not wait"));
        };
        let other = self.waiting.remove(at).session;
        if !self.somebody_is_late() {
            let left = self.waiting_of(other);
            prop_assert!((0..6).all(|any| self.waiting_of(any) <= left + 1), "not the one with the most");
            prop_assert!(left > self.waiting_of(session));
        }
        prop_assert!(self.waiting[at..].iter().all(|w| w.session != other), "not its newest");
        self.out.push(ticket);
        Ok(())
    }

    /// Forgets the sessions of which nobody waits, or only asks that have waited too long and do not know it yet.
    fn keep_waiting_sessions(&mut self) {
        let (waiting, now_ms) = (&self.waiting, self.now_ms);
        self.served_since.retain(|session, _| waiting.iter().any(|w| w.session == *session && now_ms < w.deadline_ms));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_schedule_breaks_the_bounds_the_order_or_fairness(steps in prop::collection::vec(step(), 1..200)) {
        let start = Instant::now();
        let mut queue = queue(3, 8);
        let mut seen = Witness::default();
        for step in steps {
            let now = start + Duration::from_millis(seen.now_ms);
            match step {
                Step::Ask(session) => match queue.ask(&session, now) {
                    Admission::Run => {
                        prop_assert!(seen.waiting.is_empty() || seen.running + seen.granted.len() < 3);
                        seen.running += 1;
                    }
                    Admission::Wait { ticket, pushed_out, .. } => {
                        if let Some(out) = pushed_out {
                            seen.push_out(out, session)?;
                        }
                        seen.keep_waiting_sessions();
                        seen.waiting.push(Waiter { session, ticket, deadline_ms: seen.now_ms + 5_000 });
                        seen.served_since.entry(session).or_default();
                    }
                    Admission::Refused(NoRoom { why: Why::Full, .. }) => {
                        prop_assert_eq!(queue.waiting(), 8);
                        let own = seen.waiting_of(session);
                        prop_assert!(seen.somebody_is_late() || (0..6).all(|other| seen.waiting_of(other) < own + 2), "one with more stays in");
                    }
                    Admission::Refused(NoRoom { why: Why::TooSlow, .. }) => {}
                    Admission::Refused(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
                },
                Step::Release if seen.running > 0 => {
                    seen.running -= 1;
                    if let Some(ticket) = queue.release(now) {
                        seen.grant(ticket)?;
                    }
                }
                Step::Release => {}
                Step::Cancel(index) if !seen.waiting.is_empty() => {
                    let ticket = seen.waiting.remove(index.index(seen.waiting.len())).ticket;
                    prop_assert_eq!(queue.cancel(ticket, now), None);
                    seen.keep_waiting_sessions();
                }
                Step::Cancel(index) | Step::Poll(index) if !seen.granted.is_empty() => {
                    let ticket = seen.granted.remove(index.index(seen.granted.len()));
                    prop_assert_eq!(queue.poll(ticket, now), Standing::Granted);
                    seen.running += 1;
                }
                Step::Poll(index) if !seen.waiting.is_empty() => {
                    let at = index.index(seen.waiting.len());
                    if matches!(queue.poll(seen.waiting[at].ticket, now), Standing::Refused(NoRoom { why: Why::TimedOut, .. })) {
                        seen.waiting.remove(at);
                        seen.keep_waiting_sessions();
                    }
                }
                Step::Cancel(_) | Step::Poll(_) => {}
                Step::Sleep(ms) => seen.now_ms += u64::from(ms),
            }
            prop_assert!(queue.running() <= 3 && queue.waiting() <= 8);
            prop_assert_eq!(queue.running(), seen.running + seen.granted.len());
            prop_assert!(queue.waiting() == 0 || queue.running() == 3, "somebody waits although there is room");
            prop_assert_eq!(queue.sessions.len(), queue.order.len());
            prop_assert_eq!(queue.sessions.len(), queue.longest.len());
            prop_assert_eq!(queue.waiting(), queue.rounds.iter().sum::<usize>());
            prop_assert_eq!(queue.sessions.len(), queue.rounds.first().copied().unwrap_or(0));
        }
        // Everything comes to its end, and nothing is left behind.
        seen.now_ms += 10_000;
        let end = start + Duration::from_millis(seen.now_ms);
        for _ in 0..seen.running {
            prop_assert_eq!(queue.release(end), None);
        }
        for ticket in seen.granted {
            prop_assert_eq!(queue.cancel(ticket, end), None);
        }
        for ticket in seen.out {
            prop_assert!(matches!(queue.poll(ticket, end), Standing::Refused(NoRoom { why: Why::PushedOut, .. })), "it is told");
        }
        for Waiter { ticket, .. } in seen.waiting {
            prop_assert!(matches!(queue.poll(ticket, end), Standing::Refused(NoRoom { why: Why::TimedOut, .. })), "it is told");
        }
        prop_assert_eq!((queue.running(), queue.waiting(), queue.asked.len()), (0, 0, 0));
    }
}
