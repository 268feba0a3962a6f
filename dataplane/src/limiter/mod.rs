//! Rate limits of this pod: shared with the others where sessions are in Redis, its own where they are in memory.
//!
//! What is decided is `chatgateway_core::limiter`; here is who is asked, for how long, and what happens when nobody answers.

mod account;
mod rules;
mod shared;
#[cfg(test)]
mod tests;
mod ticket;

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use arc_swap::ArcSwap;
use chatgateway_config::{OnStoreFailure, Settings};
use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limiter::{
        Who, mark_of, mark_of_request,
        table::{Done, Op, Outcome, Table, Terms},
        verdict::{Demand, Standings, Verdict, judge, refusal},
    },
    limits::{LIMIT_DECISION_TIMEOUT, LIMIT_FEWER_PODS_BEATS},
    log::{SessionKey, TurnBody, TurnId},
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

pub use self::{account::Account, ticket::Ticket};
use self::{
    rules::RuleSet,
    shared::{Shared, Taken},
};
use crate::{clock::Clock, gateway::Caller, metrics::LimitCounts, store::Store};

/// What a request that may be carried out gets.
#[derive(Debug, Default)]
pub struct Admission {
    /// How the limits stand. None: there are none.
    pub standings: Option<Box<Standings>>,
    /// What it took, to be kept or given back. None: there is nothing to give back.
    pub ticket: Option<Ticket>,
}

/// Whether a running answer may have more. `Some`: it may not, and after how many microseconds it could.
pub(crate) type Extension = BoxFuture<'static, Option<u64>>;

/// What was decided about a request.
struct Decided {
    outcome: Outcome,
    /// Among how many pods the limits were divided.
    shares: u64,
    /// The buckets that counted.
    buckets: Vec<Arc<str>>,
    /// What the shared buckets gave, until somebody sees to it.
    taken: Option<Taken>,
}

/// See the module.
pub struct Limiter {
    set: ArcSwap<RuleSet>,
    /// The buckets of a pod that is alone. Else what this one last heard of the shared ones, and what it decided itself since.
    local: Mutex<Table>,
    shared: Option<Arc<Shared>>,
    /// Pods that live, this one included.
    pods: AtomicU64,
    /// How often in a row there were fewer.
    fewer: AtomicU32,
    clock: Clock,
    counts: LimitCounts,
}

impl Limiter {
    /// The limits of a configuration, shared through the store where it can.
    #[must_use]
    pub fn new(settings: &Settings, store: &Arc<dyn Store>, counts: LimitCounts) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            set: ArcSwap::from_pointee(RuleSet::new(settings)),
            local: Mutex::default(),
            shared: store.limits().is_some().then(|| Shared::new(me.clone(), store.clone(), &settings.gateway.name)),
            pods: AtomicU64::new(1),
            fewer: AtomicU32::new(0),
            clock: Clock::system(),
            counts,
        })
    }

    /// Changed limits apply at once. Buckets keep their levels.
    pub fn apply(&self, settings: &Settings) {
        self.set.store(Arc::new(RuleSet::new(settings)));
    }

    /// How many pods there are, this one included: who divides a limit, if it comes to that. To be told with each sign of life. Fewer
    /// count only when they have been fewer for a while: after a store's return each hears of the others one by one.
    pub fn set_pods(&self, pods: usize) {
        let (pods, known) = (pods.max(1) as u64, self.pods.load(Relaxed));
        let fewer = if pods < known { self.fewer.fetch_add(1, Relaxed) + 1 } else { 0 };
        if fewer == 0 || fewer >= LIMIT_FEWER_PODS_BEATS {
            self.pods.store(pods, Relaxed);
            self.fewer.store(0, Relaxed);
        }
    }

    /// Asks for a turn. Nothing of a refused turn is carried out; a turn that was admitted before takes nothing.
    ///
    /// # Errors
    /// `rate_limited` with the time to wait, `too_large` for what no waiting helps, `store_unavailable` where a limit says so.
    pub async fn turn(
        self: &Arc<Self>,
        caller: &Caller,
        session: &SessionKey,
        turn: &TurnId,
        body: &TurnBody,
    ) -> Result<Admission, Refusal> {
        let set = self.set.load_full();
        if set.rules.0.is_empty() {
            return Ok(Admission::default());
        }
        let demand = set.of_turn(body);
        self.admit(&set, &who(caller, Some(session)), Some(mark_of(session, turn)), demand).await
    }

    /// Asks for a request to OpenAI's API that is no turn, by its body and the calls that answer it. With its ticket comes the
    /// account of its answer, where tokens are limited.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub async fn request(
        self: &Arc<Self>,
        caller: &Caller,
        body: &[u8],
        calls: usize,
    ) -> Result<(Option<Box<Standings>>, Option<Account>), Refusal> {
        let set = self.set.load_full();
        if set.rules.0.is_empty() {
            return Ok((None, None));
        }
        let demand = set.of_request(body);
        // Who cannot repeat it needs no mark; tokens that may come back need one.
        let mark = set.chunk.map(|_| mark_of_request(rand::random()));
        let Admission { standings, ticket } = self.admit(&set, &who(caller, None), mark, demand).await?;
        let taken = demand.tokens(&set.rules);
        let account = ticket.and_then(Ticket::kept).zip(set.chunk);
        let account = account.map(|(mark, chunk)| Account::new(self.clone(), mark, demand, taken, chunk, calls));
        Ok((standings, account))
    }

    /// The account of a turn that is carried out here, wherever it was admitted. None: tokens are not limited.
    pub(crate) fn account(self: &Arc<Self>, session: &SessionKey, turn: &TurnId, body: &TurnBody) -> Option<Account> {
        let set = self.set.load();
        let chunk = set.chunk?;
        let demand = set.of_turn(body);
        Some(Account::new(self.clone(), mark_of(session, turn), demand, demand.tokens(&set.rules), chunk, 1))
    }

    /// A turn ended here without having been carried out: all of its tokens come back.
    pub(crate) fn not_carried_out(&self, session: &SessionKey, turn: &TurnId) {
        if self.set.load().chunk.is_some() {
            self.follow_up(Op::Settle { mark: mark_of(session, turn), used: 0 });
        }
    }

    async fn admit(
        self: &Arc<Self>,
        set: &RuleSet,
        who: &Who<'_>,
        mark: Option<Arc<str>>,
        demand: Demand,
    ) -> Result<Admission, Refusal> {
        demand.check(&set.rules)?;
        let tokens = demand.tokens(&set.rules);
        let buckets: Vec<Arc<str>> = set.rules.0.iter().map(|rule| who.bucket(rule)).collect();
        self.counts.decisions.inc();
        let step = Op::Take { mark: mark.clone(), tokens, buckets: buckets.clone() };
        let decided = match &self.shared {
            None => Some(Decided { outcome: self.locally(set, 1, &step), shares: 1, buckets, taken: None }),
            Some(shared) => match shared.take(step, LIMIT_DECISION_TIMEOUT).await {
                Some(taken) => Some(Decided { outcome: taken.outcome.clone(), shares: 1, buckets, taken: Some(taken) }),
                None => self.alone(set, mark.clone(), tokens, buckets)?,
            },
        };
        let Some(Decided { outcome, shares, buckets, taken }) = decided else { return Ok(Admission::default()) };
        let (verdict, standings) = judge(&set.rules, &buckets, tokens, shares, &outcome);
        // From here on the ticket sees to what was taken.
        if let Some(taken) = taken {
            taken.heard();
        }
        match verdict {
            Verdict::Refused { rule, wait_us } => {
                self.counts.refused(&rule);
                Err(refusal(&rule, wait_us, standings))
            }
            Verdict::Admitted | Verdict::Known => {
                let fresh = verdict == Verdict::Admitted;
                let ticket = mark.map(|mark| Ticket::new(self.clone(), mark, buckets, fresh));
                Ok(Admission { standings: Some(Box::new(standings)), ticket })
            }
        }
    }

    /// The store does not decide: what each limit says for that. `None`: none of them counts meanwhile.
    fn alone(
        &self,
        set: &RuleSet,
        mark: Option<Arc<str>>,
        tokens: u64,
        buckets: Vec<Arc<str>>,
    ) -> Result<Option<Decided>, Refusal> {
        self.counts.local.inc();
        if set.failure.contains(&OnStoreFailure::Closed) {
            let message =
                "the store of the rate limits does not answer, and without it nothing is admitted; try again soon";
            return Err(Refusal::new(ErrorCode::StoreUnavailable, message).retry_after_ms(1_000));
        }
        let shared = set.failure.iter().map(|failure| *failure == OnStoreFailure::LocalShare);
        let buckets: Vec<_> =
            buckets.into_iter().zip(shared).filter_map(|(name, shared)| shared.then_some(name)).collect();
        if buckets.is_empty() {
            return Ok(None);
        }
        let shares = self.pods.load(Relaxed);
        let step = Op::Take { mark, tokens, buckets };
        let outcome = self.locally(set, shares, &step);
        let Op::Take { buckets, .. } = step else { return Ok(None) };
        if let (Some(shared), Done::Done) = (&self.shared, outcome.done) {
            shared.spent_alone(set, &buckets, tokens);
        }
        Ok(Some(Decided { outcome, shares, buckets, taken: None }))
    }

    fn locally(&self, set: &RuleSet, shares: u64, step: &Op) -> Outcome {
        self.local.lock().execute(Terms { rules: &set.rules, now: self.clock.store_time().0, shares }, step)
    }

    /// Carries out what follows a take, where that was. Nobody waits for it.
    fn follow_up(&self, step: Op) {
        if let Err(step) = self.follow_up_locally(step)
            && let Some(shared) = &self.shared
        {
            shared.send(step, None);
        }
    }

    /// The same in this pod, or the step again where its request took elsewhere.
    fn follow_up_locally(&self, step: Op) -> Result<Outcome, Op> {
        let (Op::Extend { mark, .. } | Op::Settle { mark, .. } | Op::Undo { mark, .. }) = &step else {
            return Err(step);
        };
        let now = self.clock.store_time().0;
        let mut local = self.local.lock();
        if self.shared.is_some() && local.mark(now, mark).is_none() {
            return Err(step);
        }
        let shares = if self.shared.is_some() { self.pods.load(Relaxed) } else { 1 };
        let set = self.set.load();
        Ok(local.execute(Terms { rules: &set.rules, now, shares }, &step))
    }

    /// More for a running answer. A store that does not answer stops none.
    fn extend(&self, mark: &Arc<str>, tokens: u64) -> Extension {
        let wait = |outcome: Outcome| {
            (outcome.done == Done::Refused).then(|| outcome.values.first().copied().unwrap_or_default())
        };
        let step = match self.follow_up_locally(Op::Extend { mark: mark.clone(), tokens }) {
            Ok(outcome) => return Box::pin(std::future::ready(wait(outcome))),
            Err(step) => step,
        };
        let Some(shared) = self.shared.clone() else { return Box::pin(std::future::ready(None)) };
        Box::pin(async move { shared.ask(step, LIMIT_DECISION_TIMEOUT).await.and_then(wait) })
    }

    /// A request is over.
    fn settle(&self, mark: &Arc<str>, used: u64, taken: u64) {
        if used > taken {
            // It used more than was known while it ran: that is taken if it is there, and forgotten if it is not.
            self.follow_up(Op::Extend { mark: mark.clone(), tokens: used });
        }
        self.follow_up(Op::Settle { mark: mark.clone(), used });
    }

    /// An answer was stopped for want of tokens.
    pub(crate) fn stopped(&self) {
        self.counts.stopped.inc();
    }
}

fn who<'a>(caller: &'a Caller, session: Option<&'a SessionKey>) -> Who<'a> {
    Who { session, tenant: &caller.tenant, principal: &caller.principal, address: caller.address }
}
