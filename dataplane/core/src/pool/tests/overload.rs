//! A model server under more load than it can bear, simulated: what gets through, and when the rest hears of it.

use std::{cmp::Reverse, collections::BinaryHeap};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

/// How long a call takes on average: 20 places make 100 calls a second.
const SERVICE_MS: f64 = 200.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    /// A call at this place of the list of leases is over.
    Ends(usize),
    /// Somebody asks.
    Asks,
    /// The one with this ticket has waited long enough.
    Late(Ticket),
}

#[derive(Debug, Default)]
struct Seen {
    served: u32,
    refused_at_the_door: u32,
    pushed_out: u32,
    refused_after_waiting: u32,
    longest_wait_ms: u64,
    most_waiting: usize,
}

struct World {
    pool: Pool<u32>,
    start: Instant,
    random: StdRng,
    /// Microseconds from the start.
    events: BinaryHeap<Reverse<(u64, Happens)>>,
    leases: Vec<Option<Lease>>,
    asked_at: HashMap<Ticket, u64>,
    seen: Seen,
}

impl World {
    /// Sixty seconds of `rate` asks a second by sessions of which `sessions` there are.
    fn run(rate: f64, sessions: u32) -> Seen {
        let (pool, _, start) = pool(config(), 1);
        let mut world = Self {
            pool,
            start,
            random: StdRng::seed_from_u64(42),
            events: BinaryHeap::from([Reverse((0, Happens::Asks))]),
            leases: Vec::new(),
            asked_at: HashMap::new(),
            seen: Seen::default(),
        };
        while let Some(Reverse((at_us, what))) = world.events.pop() {
            if at_us > 60_000_000 {
                break;
            }
            let now = world.start + Duration::from_micros(at_us);
            match what {
                Happens::Asks => {
                    let gap = world.exponential(1e6 / rate);
                    world.events.push(Reverse((at_us + gap, Happens::Asks)));
                    let session = world.random.random_range(0..sessions);
                    match world.pool.ask(&session, &[], now) {
                        Asked::Run(lease) => world.call(lease, at_us),
                        Asked::Wait { ticket, .. } => {
                            world.asked_at.insert(ticket, at_us);
                            world.events.push(Reverse((at_us + 5_000_000, Happens::Late(ticket))));
                        }
                        Asked::Refused(_) => world.seen.refused_at_the_door += 1,
                    }
                }
                Happens::Ends(index) => {
                    let lease = world.leases[index].take().unwrap();
                    world.seen.served += 1;
                    world.pool.end(&lease, Ended::Well, now);
                }
                Happens::Late(ticket) => world.hear(ticket, at_us),
            }
            for ticket in world.pool.take_woken() {
                world.hear(ticket, at_us);
            }
            world.seen.most_waiting = world.seen.most_waiting.max(world.pool.waiting());
        }
        world.seen
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        (-mean * (1.0 - self.random.random::<f64>()).ln()) as u64
    }

    fn call(&mut self, lease: Lease, at_us: u64) {
        let takes = self.exponential(SERVICE_MS * 1e3);
        self.leases.push(Some(lease));
        self.events.push(Reverse((at_us + takes, Happens::Ends(self.leases.len() - 1))));
    }

    fn hear(&mut self, ticket: Ticket, at_us: u64) {
        let Some(asked_at) = self.asked_at.get(&ticket).copied() else { return };
        match self.pool.poll(ticket, self.start + Duration::from_micros(at_us)) {
            Waits::Until(_) => return,
            Waits::Run(lease) => {
                self.seen.longest_wait_ms = self.seen.longest_wait_ms.max((at_us - asked_at) / 1_000);
                self.call(lease, at_us);
            }
            Waits::Refused(NoRoom { why: Why::PushedOut, .. }) => self.seen.pushed_out += 1,
            Waits::Refused(_) => self.seen.refused_after_waiting += 1,
        }
        self.asked_at.remove(&ticket);
    }
}

#[test]
fn goodput_stays_at_its_peak_whatever_is_offered() {
    let peak = World::run(100.0, 10_000).served;
    assert!(peak > 5_400, "100 a second for 60 s: {peak}");
    for (factor, sessions) in [(2.0, 10_000), (10.0, 10_000), (2.0, 50), (10.0, 50), (100.0, 10_000)] {
        let seen = World::run(100.0 * factor, sessions);
        assert!(f64::from(seen.served) >= 0.95 * f64::from(peak), "{factor}: {seen:?}, peak {peak}");
        assert!(seen.longest_wait_ms <= 5_000 && seen.most_waiting <= 1_000, "{factor}: {seen:?}");
    }
}

#[test]
fn who_is_refused_hears_it_at_the_door_and_not_at_the_end() {
    for factor in [2.0, 10.0] {
        let seen = World::run(100.0 * factor, 10_000);
        let late = f64::from(seen.refused_after_waiting) / f64::from(seen.refused_at_the_door);
        assert!(late < 0.05, "{factor}: {seen:?}");
        assert!(seen.most_waiting < 700, "what would wait for more than 5 s is not taken in: {seen:?}");
    }
}
