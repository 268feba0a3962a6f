//! The store of a run: the scripts themselves, or with one rule taken away.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use chatgateway_core::{
    limits::READ_PAGE_ENTRIES,
    log::{
        Begin, BeginReply, Claim, ClaimReply, Entry, EntryId, EntryKind, FinishReply, HistoryTurn, Nonce, PodId, Reply,
        Request, StoreTime, TakeoverReason,
        store::{Root, SessionState, execute},
    },
};

use crate::rules::Rule;

/// One session's state, and all that was ever in its log.
pub struct Store {
    pub slot: Option<SessionState>,
    pub clock_us: u64,
    pub without: Option<Rule>,
    /// Every entry that was ever committed, and by whom.
    pub ever: HashMap<EntryId, (Arc<Entry>, PodId)>,
    pub writers: HashMap<u64, PodId>,
    /// Texts for the history whose second call is still to come (only without [`Rule::FinishWritesHistory`]).
    pub unwritten: Vec<(PodId, HistoryTurn)>,
    /// Releases whose second call is still to come (only without [`Rule::FinishReleases`]).
    pub releases: Vec<PodId>,
    /// Epochs that have no entry of their own yet, and the end their claim saw (only without [`Rule::TakeoverAppends`]).
    bare: HashMap<u64, EntryId>,
    /// The random step each request for ownership first had (only without [`Rule::RandomStepsAreFresh`]).
    steps: HashMap<Nonce, u32>,
    pub failure: Option<String>,
}

impl Store {
    pub fn new(without: Option<Rule>) -> Self {
        Self {
            slot: None,
            clock_us: 1_000_000_000,
            without,
            ever: HashMap::new(),
            writers: HashMap::new(),
            unwritten: Vec::new(),
            releases: Vec::new(),
            bare: HashMap::new(),
            steps: HashMap::new(),
            failure: None,
        }
    }

    pub fn now(&self) -> StoreTime {
        StoreTime(self.clock_us)
    }

    pub fn unfinished(&self) -> bool {
        self.slot.as_ref().is_some_and(SessionState::unfinished)
    }

    pub fn lease_over(&self) -> bool {
        self.slot.as_ref().is_some_and(|s| s.root.owner.is_some() && s.root.lease_until.0 <= self.clock_us)
    }

    pub fn owner(&self) -> Option<PodId> {
        self.slot.as_ref().and_then(|s| s.root.owner)
    }

    /// Carries out one request.
    pub fn execute(&mut self, pod: PodId, request: &Request) -> Reply {
        let now = self.now();
        let reply = match self.without {
            Some(rule) => self.execute_without(rule, pod, request),
            None => execute(&mut self.slot, request, now),
        };
        self.note(pod);
        reply
    }

    fn execute_without(&mut self, rule: Rule, pod: PodId, request: &Request) -> Reply {
        let now = self.now();
        let mut request = request.clone();
        match (rule, &mut request) {
            (Rule::AppendCreatesNoLog, Request::Append(_)) => {
                let slot = self.slot.get_or_insert_with(|| SessionState {
                    log: None,
                    root: Root::default(),
                    history: VecDeque::new(),
                    expires: StoreTime(u64::MAX),
                });
                slot.log.get_or_insert_default();
            }
            (Rule::FinishComparesLength, Request::Finish(finish)) => {
                finish.len = self.slot.as_ref().map_or(0, SessionState::len);
            }
            (Rule::NoncesAreFresh, Request::Begin(begin)) => begin.nonce = Nonce(1),
            (Rule::NoncesAreFresh, Request::Claim(claim)) => claim.nonce = Nonce(1),
            (
                Rule::RandomStepsAreFresh,
                Request::Begin(Begin { nonce, jump, .. }) | Request::Claim(Claim { nonce, jump, .. }),
            ) => *jump = *self.steps.entry(*nonce).or_insert(*jump),
            (Rule::EpochsAreNeverReused, Request::Begin(_) | Request::Claim(_)) => return self.count_epochs(&request),
            (Rule::TakeoverAppends, _) => return self.take_over_without_entry(request),
            (Rule::TakeoverResets, Request::Reset(reset)) => reset.entry = self.as_written(&reset.entry),
            (Rule::FinishReleases, Request::Finish(_)) => return self.finish_without_release(pod, &request),
            _ => {}
        }
        let reply = execute(&mut self.slot, &request, now);
        if let (Rule::FinishWritesHistory, Reply::Finish(FinishReply::Ended { .. }), Request::Finish(finish)) =
            (rule, &reply, &request)
        {
            let history = &mut self.slot.as_mut().unwrap().history;
            if history.back().is_some_and(|row| row.turn == finish.entry.turn) {
                self.unwritten.push((pod, history.pop_back().unwrap()));
            }
        }
        reply
    }

    /// Epochs as the stored one plus 1.
    fn count_epochs(&mut self, request: &Request) -> Reply {
        let over = self.lease_over();
        let mut request = request.clone();
        match &mut request {
            Request::Begin(begin) => begin.jump = 0,
            Request::Claim(claim) => claim.jump = 0,
            _ => {}
        }
        let (expires, until) = match self.slot.as_mut() {
            Some(s) => {
                let before = (s.expires, s.root.lease_until);
                s.root.lease_until = StoreTime(u64::from(!over));
                before
            }
            None => (StoreTime(0), StoreTime(0)),
        };
        let reply = execute(&mut self.slot, &request, StoreTime(0));
        if let Some(s) = self.slot.as_mut() {
            let owns = matches!(reply, Reply::Begin(BeginReply::Owner { .. }) | Reply::Claim(ClaimReply::Owner(_)));
            s.root.lease_until = if owns { StoreTime(self.clock_us + 4_000_000) } else { until };
            s.expires = StoreTime(expires.0.max(self.clock_us + 3_600_000_000));
        }
        reply
    }

    /// Without an entry of the takeover's own, the first entry of the new owner names what it follows.
    pub fn as_written(&self, entry: &Arc<Entry>) -> Arc<Entry> {
        if self.without == Some(Rule::TakeoverResets) && entry.kind == EntryKind::Reset {
            let kind = EntryKind::Takeover { reason: TakeoverReason::Loss };
            return Arc::new(Entry { kind, ..Entry::clone(entry) });
        }
        match self.bare.get(&entry.id.epoch) {
            Some(end) if entry.id.n == 1 => Arc::new(Entry { after: Some(*end), ..Entry::clone(entry) }),
            _ => Arc::clone(entry),
        }
    }

    /// A claim changes the lease and appends nothing. The owner believes in an entry `<epoch>-0` that is not there, and what
    /// it says and hears of the log's end is put right; its first entry names the end that its claim saw.
    fn take_over_without_entry(&mut self, mut request: Request) -> Reply {
        let now = self.now();
        let (follows, len, entry) = match &mut request {
            Request::Append(entry) => (None, None, Some(entry)),
            Request::Finish(finish) => (Some(&mut finish.follows), Some(&mut finish.len), Some(&mut finish.entry)),
            Request::Reset(reset) => (Some(&mut reset.follows), Some(&mut reset.len), Some(&mut reset.entry)),
            _ => (None, None, None),
        };
        if let Some(entry) = entry
            && let Some(end) = self.bare.get(&entry.id.epoch)
        {
            *entry = self.as_written(entry);
            if let (Some(follows), Some(len)) = (follows, len) {
                *follows = if follows.n == 0 { *end } else { *follows };
                *len -= 1;
            }
        }
        let mut reply = execute(&mut self.slot, &request, now);
        match (&request, &mut reply) {
            (_, Reply::Claim(ClaimReply::Owner(own))) => {
                let marker = |entry: &Arc<Entry>| matches!(entry.kind, EntryKind::Takeover { .. });
                if own.appended.first().is_some_and(marker) {
                    let end = own.appended[0].predecessor();
                    self.slot.as_mut().and_then(|s| s.log.as_mut()).unwrap().pop_back();
                    own.appended.clear();
                    self.bare.insert(own.epoch, end);
                } else if let Some(end) = self.bare.get(&own.epoch) {
                    own.len += 1;
                    own.end = if own.end == *end { EntryId::new(own.epoch, 0) } else { own.end };
                }
            }
            // A page that an owner asked for, to recover the text.
            (Request::Read { count, .. }, Reply::Read(page)) if *count == READ_PAGE_ENTRIES => {
                let epoch = self.slot.as_ref().map_or(0, |s| s.root.epoch);
                let end = self.bare.get(&epoch).filter(|end| page.entries.last().is_some_and(|last| last.id == **end));
                if let Some(end) = end {
                    let kind = EntryKind::Takeover { reason: TakeoverReason::Expired };
                    let turn = page.entries[0].turn.clone();
                    page.entries.push(Arc::new(Entry { id: EntryId::new(epoch, 0), after: Some(*end), turn, kind }));
                }
            }
            (Request::Check(check), Reply::Check(reply)) => {
                if let Some(end) = self.bare.get(&check.epoch) {
                    reply.len += 1;
                    reply.end = if reply.end == Some(*end) { Some(EntryId::new(check.epoch, 0)) } else { reply.end };
                }
            }
            (Request::Finish(finish), Reply::Finish(FinishReply::Ended { .. })) => {
                self.bare.remove(&finish.epoch);
            }
            _ => {}
        }
        reply
    }

    /// Ends the turn but leaves "does another one wait?" and the release to later calls.
    fn finish_without_release(&mut self, pod: PodId, request: &Request) -> Reply {
        let waiting = self.slot.as_ref().is_some_and(|s| !s.root.queue.is_empty());
        let before = self.slot.as_ref().map(|s| (s.root.owner, s.root.nonce));
        let now = self.now();
        let reply = execute(&mut self.slot, request, now);
        if matches!(reply, Reply::Finish(FinishReply::Ended { .. })) && !waiting {
            let root = &mut self.slot.as_mut().unwrap().root;
            (root.owner, root.nonce) = before.unwrap();
            self.releases.push(pod);
        }
        reply
    }

    /// Notes what is new in the log, and that no id is ever used twice.
    fn note(&mut self, pod: PodId) {
        let Some(log) = self.slot.as_ref().and_then(|s| s.log.as_ref()) else { return };
        let mut failure = None;
        for entry in log.iter().rev().take(4) {
            match self.ever.get(&entry.id) {
                None => {
                    self.ever.insert(entry.id, (Arc::clone(entry), pod));
                    let writer = *self.writers.entry(entry.id.epoch).or_insert(pod);
                    if writer != pod {
                        failure = Some(format!("two pods write in epoch {}", entry.id.epoch));
                    }
                }
                Some((known, _)) if known != entry => {
                    failure = Some(format!("two contents under one id: {known:?} and {entry:?}"));
                }
                Some(_) => {}
            }
        }
        if failure.is_some() {
            self.failure = failure;
        }
    }
}
