//! Random schedules: endpoints that come, go and break, sessions that ask, wait and leave.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Ask(u32),
    /// A call that runs ends like this.
    End(prop::sample::Index, u8),
    Begun(prop::sample::Index),
    Poll(prop::sample::Index),
    Cancel(prop::sample::Index),
    /// These of the names are the endpoints now.
    Endpoints(u8),
    Places(usize),
    Sleep(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_u32..6).prop_map(Step::Ask),
        6 => (any::<prop::sample::Index>(), 0_u8..8).prop_map(|(index, how)| Step::End(index, how)),
        2 => any::<prop::sample::Index>().prop_map(Step::Begun),
        4 => any::<prop::sample::Index>().prop_map(Step::Poll),
        1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => (0_u8..8).prop_map(Step::Endpoints),
        1 => (1_usize..5).prop_map(Step::Places),
        1 => (0_u16..3_000).prop_map(Step::Sleep),
    ]
}

fn small(places: usize, affinity: bool) -> PoolConfig {
    let breaker = BreakerConfig { window: 6, min_calls: 3, probes: 2, open_for: 2 * SECOND, ..config().breaker };
    PoolConfig { places, max_queued: 6, breaker, affinity, ..config() }
}

struct World {
    pool: Pool<u32>,
    now: Instant,
    running: Vec<Lease>,
    waiting: Vec<Ticket>,
}

impl World {
    fn take(&mut self, step: Step, affinity: bool) {
        match step {
            Step::Ask(session) => match self.pool.ask(&session, &[], self.now) {
                Asked::Run(lease) => self.running.push(lease),
                Asked::Wait { ticket, .. } => self.waiting.push(ticket),
                Asked::Refused(_) => {}
            },
            Step::End(index, how) if !self.running.is_empty() => {
                let lease = self.running.swap_remove(index.index(self.running.len()));
                let how = match how {
                    0..3 => Ended::Well,
                    3..6 => Ended::Failed,
                    6 => Ended::Busy(None),
                    _ => Ended::Otherwise,
                };
                self.pool.end(&lease, how, self.now);
            }
            Step::Begun(index) if !self.running.is_empty() => {
                let at = index.index(self.running.len());
                self.pool.begun(&mut self.running[at], SECOND, self.now);
            }
            Step::Poll(index) if !self.waiting.is_empty() => {
                let at = index.index(self.waiting.len());
                self.poll(at);
            }
            Step::Cancel(index) if !self.waiting.is_empty() => {
                let ticket = self.waiting.swap_remove(index.index(self.waiting.len()));
                self.pool.cancel(ticket, self.now);
            }
            Step::End(..) | Step::Begun(_) | Step::Poll(_) | Step::Cancel(_) => {}
            Step::Endpoints(which) => {
                let all = names(3);
                let chosen: Vec<_> = (0..3).filter(|i| which & (1 << i) != 0).map(|i| all[i].clone()).collect();
                self.pool.set_endpoints(&chosen, self.now);
            }
            Step::Places(places) => self.pool.configure(small(places, affinity), self.now),
            Step::Sleep(ms) => self.now += Duration::from_millis(ms.into()),
        }
    }

    fn poll(&mut self, at: usize) {
        match self.pool.poll(self.waiting[at], self.now) {
            Waits::Until(_) => return,
            Waits::Run(lease) => self.running.push(lease),
            Waits::Refused(_) => {}
        }
        self.waiting.swap_remove(at);
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let endpoints = self.pool.endpoints(self.now);
        let in_flight: usize = endpoints.iter().map(|endpoint| endpoint.in_flight).sum();
        prop_assert_eq!(in_flight, self.pool.running(), "calls are counted once");
        prop_assert_eq!(in_flight, self.running.len() + self.pool.granted.len());
        prop_assert!(self.pool.waiting() <= 6);
        prop_assert!(self.pool.waiting() == 0 || self.pool.room() == 0, "somebody waits although there is room");
        let callable = self.pool.callable(self.now).is_ok();
        prop_assert!(self.pool.waiting() == 0 || callable, "somebody waits for nothing");
        prop_assert!(endpoints.iter().all(|endpoint| !endpoint.leaving || endpoint.in_flight > 0));
        prop_assert!(self.pool.wishes.len() <= self.waiting.len());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_schedule_loses_a_place_or_leaves_somebody_waiting(
        steps in prop::collection::vec(step(), 1..200),
        affinity in any::<bool>(),
    ) {
        let (pool, _, now) = pool(small(2, affinity), 3);
        let mut world = World { pool, now, running: Vec::new(), waiting: Vec::new() };
        for step in steps {
            world.take(step, affinity);
            world.check()?;
        }
        // Everything comes to its end, and nothing is left behind.
        world.now += 100 * SECOND;
        for lease in std::mem::take(&mut world.running) {
            world.pool.end(&lease, Ended::Otherwise, world.now);
        }
        for at in (0..world.waiting.len()).rev() {
            world.poll(at);
        }
        prop_assert!(world.waiting.is_empty());
        for lease in std::mem::take(&mut world.running) {
            world.pool.end(&lease, Ended::Well, world.now);
        }
        world.check()?;
        let pool = &world.pool;
        prop_assert_eq!((pool.running(), pool.waiting(), pool.wishes.len(), pool.granted.len()), (0, 0, 0, 0));
        // And then every endpoint can be called again.
        world.pool.set_endpoints(&names(3), world.now);
        prop_assert!(matches!(world.pool.ask(&9, &[], world.now), Asked::Run(_)));
    }
}
