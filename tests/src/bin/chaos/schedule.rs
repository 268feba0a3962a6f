//! What goes wrong when: decided by the seed alone.

use std::{fmt, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// Quiet time before the first fault, so that there is something to disturb.
const FIRST_AFTER_MS: u64 = 2_500;

/// Quiet time after the last one begins, within the run.
const LAST_BEFORE_MS: u64 = 6_000;

/// Time between the beginnings of two faults.
const PAUSE_MS: std::ops::Range<u64> = 700..2_600;

/// How long a pod is left in peace after a fault ends.
const PEACE_MS: u64 = 1_500;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A pod is killed, and replaced after a while.
    Kill { down_ms: u64 },
    /// A pod does nothing for longer than its lease, and then goes on as if nothing had been.
    Freeze { ms: u64 },
    /// A pod is replaced as a rollout does it: the new one first, then the old one drains.
    Drain,
    /// A pod's connections to Redis are reset, and for a while no new ones come to be.
    StoreCut { ms: u64 },
    /// A pod's connections to Redis carry nothing.
    StoreHole { ms: u64 },
    /// A pod hears nothing from Redis, which hears the pod.
    StoreDeaf { ms: u64 },
    /// A pod's way to Redis is slow.
    StoreSlow { latency_ms: u64, ms: u64 },
    /// Redis is ended as an administrator would, and started again.
    StoreRestart,
    /// Redis is killed, and started again after a while.
    StoreKill { down_ms: u64 },
    /// All connections of a pod's clients are reset.
    ClientCut,
    /// The connections of a pod's clients carry nothing.
    ClientHole { ms: u64 },
    /// The way of a pod's clients is slow.
    ClientSlow { latency_ms: u64, ms: u64 },
}

impl Fault {
    /// How long it keeps a pod from its work.
    fn ms(self) -> u64 {
        match self {
            Self::Kill { down_ms } => down_ms + 1_000,
            Self::Drain => 8_000,
            Self::Freeze { ms }
            | Self::StoreCut { ms }
            | Self::StoreHole { ms }
            | Self::StoreDeaf { ms }
            | Self::StoreSlow { ms, .. }
            | Self::ClientHole { ms }
            | Self::ClientSlow { ms, .. } => ms,
            Self::StoreRestart => 1_000,
            Self::StoreKill { down_ms } => down_ms + 500,
            Self::ClientCut => 0,
        }
    }

    /// Whether it is about the one Redis and not about a pod.
    fn of_store(self) -> bool {
        matches!(self, Self::StoreRestart | Self::StoreKill { .. })
    }

    /// Whether the pod's clients have to go elsewhere meanwhile.
    fn disables(self) -> bool {
        !matches!(self, Self::ClientCut | Self::ClientSlow { .. } | Self::StoreSlow { .. }) && !self.of_store()
    }
}

/// A fault, its pod and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Since the beginning of the run.
    pub at: Duration,
    /// Which pod's; none: it is about the store.
    pub slot: Option<usize>,
    /// What.
    pub fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7.2} s  ", self.at.as_secs_f64())?;
        match self.slot {
            Some(slot) => write!(f, "pod {slot}: ")?,
            None => write!(f, "store: ")?,
        }
        write!(f, "{:?}", self.fault)
    }
}

/// One of each kind, with durations from the seed. Without a shared store only clients can be disturbed: a pod that dies
/// takes its sessions with it.
fn deck(rng: &mut StdRng, shared: bool) -> Vec<Fault> {
    let mut deck = vec![
        Fault::ClientCut,
        Fault::ClientHole { ms: rng.random_range(1_000..7_000) },
        Fault::ClientSlow { latency_ms: rng.random_range(20..400), ms: rng.random_range(1_000..5_000) },
    ];
    if shared {
        deck.extend([
            Fault::Kill { down_ms: rng.random_range(100..3_000) },
            Fault::Kill { down_ms: rng.random_range(100..1_000) },
            Fault::Freeze { ms: rng.random_range(4_500..8_000) },
            Fault::Freeze { ms: rng.random_range(5_000..7_000) },
            Fault::Drain,
            Fault::Drain,
            Fault::StoreCut { ms: rng.random_range(0..6_000) },
            Fault::StoreHole { ms: rng.random_range(1_000..8_000) },
            Fault::StoreDeaf { ms: rng.random_range(1_000..7_000) },
            Fault::StoreSlow { latency_ms: rng.random_range(5..300), ms: rng.random_range(1_000..5_000) },
            Fault::StoreRestart,
            Fault::StoreKill { down_ms: rng.random_range(100..2_500) },
        ]);
    }
    deck.shuffle(rng);
    deck
}

/// The faults of a run. One pod is always left alone, and Redis has one fault at a time.
pub fn schedule(seed: u64, run: Duration, pods: usize, shared: bool) -> Vec<Planned> {
    let mut rng = StdRng::seed_from_u64(seed);
    let run_ms = u64::try_from(run.as_millis()).unwrap_or(u64::MAX);
    let mut busy_until = vec![0; pods];
    let mut disabled_until = vec![0; pods];
    let mut store_until = 0;
    let mut at_ms = FIRST_AFTER_MS;
    let mut deck: Vec<Fault> = Vec::new();
    let mut planned = Vec::new();
    while at_ms + LAST_BEFORE_MS < run_ms {
        if deck.is_empty() {
            deck = self::deck(&mut rng, shared);
        }
        let free: Vec<usize> = (0..pods).filter(|slot| busy_until[*slot] <= at_ms).collect();
        let disabled = disabled_until.iter().filter(|until| **until > at_ms).count();
        // The first card that can be played now.
        let fits = deck.iter().position(|fault| {
            if fault.of_store() {
                store_until <= at_ms
            } else {
                !free.is_empty() && (!fault.disables() || disabled + 1 < pods.max(2))
            }
        });
        if let Some(card) = fits {
            let fault = deck.remove(card);
            let until = at_ms + fault.ms() + PEACE_MS;
            let slot = (!fault.of_store()).then(|| free[rng.random_range(0..free.len())]);
            match slot {
                None => store_until = until,
                Some(slot) => {
                    busy_until[slot] = until;
                    if fault.disables() {
                        disabled_until[slot] = until;
                    }
                }
            }
            planned.push(Planned { at: Duration::from_millis(at_ms), slot, fault });
        }
        at_ms += rng.random_range(PAUSE_MS);
    }
    planned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_schedule_and_leaves_a_pod_alone() {
        for seed in 0..200 {
            let planned = schedule(seed, Duration::from_secs(60), 3, true);
            assert_eq!(planned, schedule(seed, Duration::from_secs(60), 3, true));
            assert!(planned.len() >= 12, "seed {seed}: {}", planned.len());
            for one in &planned {
                let during = |other: &&Planned| {
                    other.fault.disables()
                        && other.at <= one.at
                        && one.at < other.at + Duration::from_millis(other.fault.ms())
                };
                assert!(planned.iter().filter(during).count() <= 2, "seed {seed} at {:?}", one.at);
            }
        }
    }

    #[test]
    fn one_pod_with_its_own_store_only_loses_clients() {
        let planned = schedule(1, Duration::from_secs(30), 1, false);
        assert!(planned.len() > 3);
        assert!(planned.iter().all(|one| {
            one.slot == Some(0)
                && matches!(one.fault, Fault::ClientCut | Fault::ClientHole { .. } | Fault::ClientSlow { .. })
        }));
    }
}
