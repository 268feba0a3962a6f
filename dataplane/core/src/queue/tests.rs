use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

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
    assert!(matches!(queue.ask(&2, now), Admission::Full { .. }));
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
    assert!(matches!(queue.poll(polled, later), Standing::TimedOut { .. }));
    assert_eq!(queue.release(later), Some(in_time), "the late one is passed over");
    assert!(matches!(queue.poll(never_polled, later), Standing::TimedOut { .. }));
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

#[test]
fn the_time_to_wait_follows_the_pace() {
    let start = Instant::now();
    let mut queue = queue(1, 100);
    assert_eq!(queue.ask(&1, start), Admission::Run);
    for _ in 0..100 {
        wait(&mut queue, 2, start);
    }
    for i in 1..20 {
        assert!(queue.release(start + Duration::from_millis(100 * i)).is_some());
        wait(&mut queue, 2, start + Duration::from_millis(100 * i));
    }
    let Admission::Full { retry_after } = queue.ask(&3, start) else { panic!("not full") };
    assert_eq!(retry_after, Duration::from_secs(10), "100 wait, ten are served a second");
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
                    Admission::Wait { ticket, .. } => {
                        seen.keep_waiting_sessions();
                        seen.waiting.push(Waiter { session, ticket, deadline_ms: seen.now_ms + 5_000 });
                        seen.served_since.entry(session).or_default();
                    }
                    Admission::Full { .. } => prop_assert_eq!(queue.waiting(), 8),
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
                    if matches!(queue.poll(seen.waiting[at].ticket, now), Standing::TimedOut { .. }) {
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
        for Waiter { ticket, .. } in seen.waiting {
            prop_assert!(matches!(queue.poll(ticket, end), Standing::TimedOut { .. }), "it is told");
        }
        prop_assert_eq!((queue.running(), queue.waiting(), queue.asked.len()), (0, 0, 0));
    }
}
