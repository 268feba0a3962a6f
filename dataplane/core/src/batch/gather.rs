//! The asks that wait: by session, in turn, and by what they have in common.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::Hash,
    time::Instant,
};

use super::AskId;

/// An ask that waits.
#[derive(Debug)]
pub(super) struct Asked<S, G> {
    session: S,
    group: G,
    came: Instant,
}

/// Asks by session, and the sessions in turn. A session without asks is not in it.
#[derive(Debug)]
struct Turns<S> {
    asks: HashMap<S, VecDeque<AskId>>,
    order: VecDeque<S>,
    /// How many sessions have more than so many asks.
    rounds: Vec<usize>,
}

impl<S> Default for Turns<S> {
    fn default() -> Self {
        Self { asks: HashMap::new(), order: VecDeque::new(), rounds: Vec::new() }
    }
}

impl<S: Clone + Eq + Hash> Turns<S> {
    fn push(&mut self, session: &S, ask: AskId) {
        let asks = self.asks.entry(session.clone()).or_default();
        if asks.is_empty() {
            self.order.push_back(session.clone());
        }
        if self.rounds.len() == asks.len() {
            self.rounds.push(0);
        }
        self.rounds[asks.len()] += 1;
        asks.push_back(ask);
    }

    fn remove(&mut self, session: &S, ask: AskId) {
        let Some(asks) = self.asks.get_mut(session) else { return };
        let before = asks.len();
        asks.retain(|waiting| *waiting != ask);
        for round in asks.len()..before {
            self.rounds[round] -= 1;
        }
        if self.rounds.last() == Some(&0) {
            self.rounds.pop();
        }
        if asks.is_empty() {
            self.asks.remove(session);
            self.order.retain(|waiting| waiting != session);
        }
    }

    /// Who was served waits for the others' turn.
    fn served(&mut self, session: &S, ask: AskId) {
        self.remove(session, ask);
        if self.asks.contains_key(session) {
            self.order.retain(|waiting| waiting != session);
            self.order.push_back(session.clone());
        }
    }

    /// How many asks a session has.
    fn count(&self, session: &S) -> usize {
        self.asks.get(session).map_or(0, VecDeque::len)
    }

    /// The newest ask of the session that has the most.
    fn greediest(&self) -> Option<AskId> {
        let most = self.rounds.len();
        let session = self.order.iter().rev().find(|session| self.count(session) == most)?;
        self.asks.get(session)?.back().copied()
    }

    fn first(&self) -> Option<AskId> {
        self.asks.get(self.order.front()?)?.front().copied()
    }

    /// Each session's oldest ask, in turn.
    fn firsts(&self) -> impl Iterator<Item = AskId> {
        self.order.iter().filter_map(|session| self.asks.get(session)?.front().copied())
    }
}

/// The waiting asks of one group.
#[derive(Debug)]
struct Group<S> {
    turns: Turns<S>,
    asks: BTreeSet<AskId>,
}

/// How a group stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    len: usize,
    oldest: Instant,
}

impl Standing {
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// When its oldest ask came.
    pub(super) fn oldest(self) -> Instant {
        self.oldest
    }
}

/// The ask whose turn it is.
#[derive(Debug)]
pub(super) struct Leader<G> {
    pub(super) ask: AskId,
    pub(super) group: G,
    /// Asks of that group.
    pub(super) group_len: usize,
}

/// The asks that wait.
#[derive(Debug)]
pub(super) struct Gather<S, G> {
    asks: BTreeMap<AskId, Asked<S, G>>,
    turns: Turns<S>,
    groups: HashMap<G, Group<S>>,
    next: u64,
}

impl<S, G> Default for Gather<S, G> {
    fn default() -> Self {
        Self { asks: BTreeMap::new(), turns: Turns::default(), groups: HashMap::new(), next: 0 }
    }
}

impl<S: Clone + Eq + Hash, G: Clone + Eq + Hash> Gather<S, G> {
    pub(super) fn len(&self) -> usize {
        self.asks.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.asks.is_empty()
    }

    /// When the oldest ask came.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.asks.first_key_value().map(|(_, asked)| asked.came)
    }

    /// Asks of the group that has the most.
    pub(super) fn largest_group(&self) -> usize {
        self.groups.values().map(|group| group.asks.len()).max().unwrap_or(0)
    }

    pub(super) fn next_session(&self) -> Option<&S> {
        self.turns.order.front()
    }

    /// Whether a session has so few asks that another one has more even after it has lost one to this one: else the two would put
    /// each other out for ever.
    pub(super) fn may_push_out(&self, session: &S) -> bool {
        self.turns.rounds.len() >= self.turns.count(session) + 2
    }

    /// Takes out the newest ask of the session that has the most.
    pub(super) fn push_out(&mut self) -> Option<AskId> {
        let ask = self.turns.greediest()?;
        self.remove(ask);
        Some(ask)
    }

    pub(super) fn push(&mut self, session: &S, group: &G, now: Instant) -> AskId {
        let ask = AskId(self.next);
        self.next += 1;
        self.turns.push(session, ask);
        let of_group = self
            .groups
            .entry(group.clone())
            .or_insert_with(|| Group { turns: Turns::default(), asks: BTreeSet::new() });
        of_group.turns.push(session, ask);
        of_group.asks.insert(ask);
        let (session, group) = (session.clone(), group.clone());
        self.asks.insert(ask, Asked { session, group, came: now });
        ask
    }

    /// Takes an ask out; when it came.
    pub(super) fn remove(&mut self, ask: AskId) -> Option<Instant> {
        self.out(ask, Turns::remove)
    }

    fn out(&mut self, ask: AskId, from: impl Fn(&mut Turns<S>, &S, AskId)) -> Option<Instant> {
        let Asked { session, group, came, .. } = self.asks.remove(&ask)?;
        from(&mut self.turns, &session, ask);
        if let Some(of_group) = self.groups.get_mut(&group) {
            from(&mut of_group.turns, &session, ask);
            of_group.asks.remove(&ask);
            if of_group.asks.is_empty() {
                self.groups.remove(&group);
            }
        }
        Some(came)
    }

    fn standing(&self, group: &G) -> Option<Standing> {
        let asks = &self.groups.get(group)?.asks;
        let oldest = self.asks.get(asks.first()?)?.came;
        Some(Standing { len: asks.len(), oldest })
    }

    /// The ask whose turn it is, among the groups that may go. Where no session's next ask is in one, the oldest ask counts.
    pub(super) fn leader(&self, may_go: impl Fn(Standing) -> bool) -> Option<Leader<G>> {
        let in_turn = self.turns.firsts().filter_map(|ask| self.as_leader(ask, &may_go)).next();
        in_turn.or_else(|| self.asks.keys().find_map(|ask| self.as_leader(*ask, &may_go)))
    }

    fn as_leader(&self, ask: AskId, may_go: &impl Fn(Standing) -> bool) -> Option<Leader<G>> {
        let asked = self.asks.get(&ask)?;
        let standing = self.standing(&asked.group).filter(|standing| may_go(*standing))?;
        let group = asked.group.clone();
        Some(Leader { ask, group, group_len: standing.len })
    }

    /// Takes out the leader and others of its group in turn, at most `size` in all; when each came.
    pub(super) fn take(&mut self, group: &G, leader: AskId, size: usize) -> Vec<(AskId, Instant)> {
        let mut taken = Vec::with_capacity(size.min(self.len()));
        let mut next = Some(leader);
        while let Some(ask) = next {
            if let Some(came) = self.out(ask, Turns::served) {
                taken.push((ask, came));
            }
            next = self.groups.get(group).filter(|_| taken.len() < size).and_then(|of_group| of_group.turns.first());
        }
        taken
    }
}
