//! Limits that pods share in the store. Decisions that come in while a call is under way go together in the next one.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use chatgateway_core::{
    limiter::{
        UNIT, Unit,
        table::{Done, Op, Outcome, Terms},
    },
    limits::{
        LIMIT_CALL_DECISIONS, LIMIT_CALL_FULL, LIMIT_CALLS_MAX, LIMIT_LOCAL_ENTRIES_MAX, LIMIT_PROBE_INTERVAL,
        LIMIT_QUEUE_MAX,
    },
};
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};

use super::{Limiter, rules::RuleSet};
use crate::{
    clock,
    store::{Store, StoreError},
};

/// Who hears what came of a step.
type Then = Option<oneshot::Sender<Option<Taken>>>;

/// An outcome on its way to who asked. If nobody is there any more, what was taken comes back.
pub(super) struct Taken {
    pub(super) outcome: Outcome,
    undo: Option<(Op, Arc<Shared>)>,
}

impl Taken {
    /// Somebody sees to it.
    pub(super) fn heard(mut self) {
        self.undo = None;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some((undo, shared)) = self.undo.take() {
            shared.send(undo, None);
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Op, Then)>,
    /// Calls.
    under_way: usize,
}

/// See the module.
pub(super) struct Shared {
    limiter: Weak<Limiter>,
    store: Arc<dyn Store>,
    gateway: String,
    queue: Mutex<Queue>,
    /// The store did not decide when it was asked last. Until it does, it is asked by nobody who waits.
    down: AtomicBool,
    probed: Mutex<Option<Instant>>,
    /// What was admitted meanwhile, by bucket, in units.
    spent: Mutex<HashMap<Arc<str>, u64>>,
}

impl Shared {
    pub(super) fn new(limiter: Weak<Limiter>, store: Arc<dyn Store>, gateway: &str) -> Arc<Self> {
        Arc::new(Self {
            limiter,
            store,
            gateway: gateway.to_owned(),
            queue: Mutex::default(),
            down: AtomicBool::new(false),
            probed: Mutex::default(),
            spent: Mutex::default(),
        })
    }

    /// Takes. `None`: the store does not decide, or not in time; what it takes after that comes back.
    pub(super) async fn take(self: &Arc<Self>, step: Op, patience: Duration) -> Option<Taken> {
        if self.down.load(Relaxed) {
            self.probe();
            return None;
        }
        let (then, reply) = oneshot::channel();
        self.send(step, Some(then));
        if let Ok(reply) = timeout(patience, reply).await {
            return reply.ok().flatten();
        }
        self.is_down("no decision in time");
        None
    }

    /// Asks. `None`: as above.
    pub(super) async fn ask(self: &Arc<Self>, step: Op, patience: Duration) -> Option<Outcome> {
        let taken = self.take(step, patience).await?;
        let outcome = taken.outcome.clone();
        taken.heard();
        Some(outcome)
    }

    /// Sends a step with the next call.
    pub(super) fn send(self: &Arc<Self>, step: Op, then: Then) {
        {
            let mut queue = self.queue.lock();
            if queue.waiting.len() >= LIMIT_QUEUE_MAX {
                drop(queue);
                if let Some(limiter) = self.limiter.upgrade() {
                    limiter.counts.overflows.inc();
                }
                // Whoever waits hears that there is no decision.
                return;
            }
            queue.waiting.push_back((step, then));
        }
        self.pump();
    }

    /// Asks for nothing, to see whether there is an answer.
    fn probe(self: &Arc<Self>) {
        {
            let mut probed = self.probed.lock();
            let now = clock::now();
            if probed.is_some_and(|at| now < at + LIMIT_PROBE_INTERVAL) {
                return;
            }
            *probed = Some(now);
        }
        self.call(Vec::new(), Vec::new());
    }

    /// Sends what has gathered, if it is time.
    fn pump(self: &Arc<Self>) {
        loop {
            let (steps, thens) = {
                let mut queue = self.queue.lock();
                let gathers = queue.under_way > 0 && queue.waiting.len() < LIMIT_CALL_FULL;
                if queue.waiting.is_empty() || gathers || queue.under_way >= LIMIT_CALLS_MAX {
                    return;
                }
                let count = queue.waiting.len().min(LIMIT_CALL_DECISIONS);
                queue.waiting.drain(..count).unzip()
            };
            self.call(steps, thens);
        }
    }

    fn call(self: &Arc<Self>, steps: Vec<Op>, thens: Vec<Then>) {
        let (Some(limiter), Some(limits)) = (self.limiter.upgrade(), self.store.limits()) else { return };
        self.queue.lock().under_way += 1;
        let set = limiter.set.load();
        let shared = self.clone();
        let then = Box::new(move |steps, result| shared.decided(steps, thens, result));
        limits.decide(&self.gateway, &set.rules, steps, then);
    }

    fn decided(self: Arc<Self>, steps: Vec<Op>, thens: Vec<Then>, result: Result<Vec<Outcome>, StoreError>) {
        let outcomes = match result {
            Ok(outcomes) => outcomes,
            Err(error) => {
                let waiting = {
                    let mut queue = self.queue.lock();
                    queue.under_way -= 1;
                    // They would fare no better.
                    std::mem::take(&mut queue.waiting)
                };
                self.is_down(&error.to_string());
                drop((thens, waiting));
                return;
            }
        };
        self.queue.lock().under_way -= 1;
        if let Some(limiter) = self.limiter.upgrade() {
            if self.down.swap(false, Relaxed) {
                tracing::info!("the store decides about rate limits again");
                self.tell_what_was_spent(&limiter);
            }
            note(&limiter, &steps, &outcomes);
        }
        for ((step, then), outcome) in steps.into_iter().zip(thens).zip(outcomes) {
            let Some(then) = then else { continue };
            let undo = match step {
                Op::Take { mark: Some(mark), buckets, .. } if outcome.done == Done::Done => {
                    Some((Op::undo(mark, buckets), self.clone()))
                }
                _ => None,
            };
            drop(then.send(Some(Taken { outcome, undo })));
        }
        self.pump();
    }

    fn is_down(&self, why: &str) {
        if let Some(limiter) = self.limiter.upgrade() {
            limiter.counts.failures.inc();
        }
        if !self.down.swap(true, Relaxed) {
            tracing::warn!(
                "the store does not decide about rate limits: {why}; each limit's onStoreFailure counts now"
            );
        }
    }

    /// What was admitted here while the store was away.
    pub(super) fn spent_alone(&self, set: &RuleSet, buckets: &[Arc<str>], tokens: u64) {
        let mut spent = self.spent.lock();
        for name in buckets {
            let of_tokens = set.rules.of(name).is_some_and(|rule| rule.unit == Unit::Tokens);
            let units = if of_tokens { tokens } else { 1 } * UNIT;
            if let Some(known) = spent.get_mut(name) {
                *known = known.saturating_add(units);
            } else if spent.len() < LIMIT_LOCAL_ENTRIES_MAX {
                spent.insert(name.clone(), units);
            }
        }
    }

    /// The store is back. Its buckets have filled as if nothing had been admitted: they lose what was, as far as it has not come in
    /// again here.
    fn tell_what_was_spent(self: &Arc<Self>, limiter: &Limiter) {
        let spent = std::mem::take(&mut *self.spent.lock());
        if spent.is_empty() {
            return;
        }
        let set = limiter.set.load();
        let shares = limiter.pods.load(Relaxed);
        let terms = Terms { rules: &set.rules, now: limiter.clock.store_time().0, shares };
        let mut steps = Vec::new();
        {
            let local = limiter.local.lock();
            for (bucket, spent) in spent {
                let (Some(rule), Some(now)) = (set.rules.of(&bucket), local.bucket(terms, &bucket)) else { continue };
                let missing = rule.limit.capacity().saturating_sub(now.level) / shares;
                let units = spent.min(missing);
                if units > 0 {
                    steps.push((Op::Owe { bucket, units }, None));
                }
            }
        }
        // Before all decisions that wait.
        let mut queue = self.queue.lock();
        steps.into_iter().for_each(|step| queue.waiting.push_front(step));
    }
}

/// Remembers the levels that the store told: with them begins who has to decide alone.
fn note(limiter: &Limiter, steps: &[Op], outcomes: &[Outcome]) {
    let set = limiter.set.load();
    let terms = Terms { rules: &set.rules, now: limiter.clock.store_time().0, shares: 1 };
    let mut levels: HashMap<&Arc<str>, u64> = HashMap::new();
    for (step, outcome) in steps.iter().zip(outcomes) {
        if let Op::Take { buckets, .. } = step {
            levels.extend(buckets.iter().zip(outcome.values.iter().copied()));
        }
    }
    let mut local = limiter.local.lock();
    for (name, level) in levels {
        local.set(terms, name, level);
    }
}
