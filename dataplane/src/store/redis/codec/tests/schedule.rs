//! Random requests, most of them sensible in the session's state.

use std::{collections::HashMap, sync::Arc};

use chatgateway_core::{
    error::ErrorCode,
    log::{
        Begin, Check, Claim, ClaimReason, Entry, EntryId, EntryKind, Finish, Nonce, PodId, Request, Reset,
        TakeoverReason, Terms, TurnBody, TurnId, Usage, store::SessionState,
    },
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// One step of a schedule.
#[derive(Debug)]
pub(super) enum Step {
    Ask(Request),
    /// The same request again, after its reply was lost; only the jump is new. Or the same nonce from another pod, which by
    /// chance alone could be.
    Again(usize, u32, Option<PodId>),
    LogLost,
    HistoryLost,
    AllLost,
    /// The root is lost; the request that comes then begins a turn.
    RootLost(Begin),
    /// The store's clock is behind.
    EpochAhead(u64),
    /// The root forgets what runs. No request does this; should it come about, a waiting turn is what a claim finds.
    RunLost,
}

/// What a schedule has more of than others.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    /// Nothing.
    Mixed,
    /// Turns that wait.
    Crowded,
    /// Turns that end as they should, and are sent again later.
    Calm,
}

/// What makes the steps.
pub(super) struct Author {
    random: StdRng,
    pods: [PodId; 3],
    turns: usize,
    mood: Mood,
    /// What was asked in each turn, also once the store has forgotten it.
    bodies: HashMap<TurnId, Arc<TurnBody>>,
}

impl Author {
    pub(super) fn new(seed: u64) -> Self {
        let mood = [Mood::Mixed, Mood::Mixed, Mood::Crowded, Mood::Calm][seed as usize % 4];
        Self {
            random: StdRng::seed_from_u64(seed),
            pods: [PodId(7), PodId(u128::MAX), PodId(1 << 70)],
            turns: 0,
            mood,
            bodies: HashMap::new(),
        }
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.random.random_range(0..bound)
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    pub(super) fn step(&mut self, state: Option<&SessionState>, asked: usize) -> Step {
        if self.mood == Mood::Crowded && self.chance(50) {
            return Step::Ask(Request::Begin(self.begin(state)));
        }
        if self.mood == Mood::Calm && self.chance(80) {
            let running = state.is_some_and(|state| state.root.running.is_some());
            return Step::Ask(match self.below(10) {
                0..3 if running => self.append(state),
                0..8 if running => self.finish(state),
                _ => Request::Begin(self.begin(state)),
            });
        }
        match self.below(100) {
            0..2 => Step::LogLost,
            2..3 => Step::HistoryLost,
            3 => Step::AllLost,
            4 => Step::RootLost(self.begin(None)),
            5 => Step::EpochAhead(self.epoch_ahead(state)),
            6 => Step::RunLost,
            7..18 if asked > 0 => {
                let jump = self.jump();
                // Mostly what was sent last.
                let back = if self.chance(70) { 1 } else { 1 + self.below(asked.min(12)) };
                let other = if self.chance(10) { Some(self.one(&self.pods.clone())) } else { None };
                Step::Again(asked - back, jump, other)
            }
            _ => Step::Ask(self.request(state)),
        }
    }

    fn epoch_ahead(&mut self, state: Option<&SessionState>) -> u64 {
        let now = state.map_or(0, |state| state.root.epoch);
        // Below 2^53, as all epochs are for two hundred years, with room for what a schedule adds.
        self.one(&[now + 1, now + 3_600_000_000, (1 << 52) + now % 1_000_000, (1 << 53) - (1 << 40)])
    }

    fn request(&mut self, state: Option<&SessionState>) -> Request {
        match self.below(100) {
            0..26 => Request::Begin(self.begin(state)),
            26..44 => self.append(state),
            44..54 => self.check(state),
            54..72 => self.finish(state),
            72..80 => self.claim(state),
            80..84 => self.reset(state),
            84..87 => {
                let (pod, epoch) = self.owner(state);
                Request::EndLease { pod, epoch }
            }
            87..91 => Request::Cancel { turn: self.known_turn(state) },
            91..96 => Request::Read { after: self.position(state), count: self.one(&[0, 1, 3, 100]) },
            96..99 => Request::Snapshot,
            _ => Request::Delete,
        }
    }

    fn jump(&mut self) -> u32 {
        self.random.random_range(0..1 << 20)
    }

    fn terms(&mut self) -> Terms {
        Terms {
            ttl_ms: self.one(&[900_000, 16_000, 7_200_000, 3_600_001]),
            lease_ms: self.one(&[0, 1, 4_000, 4_000, 60_000]),
            keep_turns: self.one(&[0, 1, 2, 3, 3, 40]),
        }
    }

    fn text(&mut self) -> Arc<str> {
        let plain = [
            "hello",
            "",
            " ",
            "a\nb\r\n\n",
            "Grüße 🦀 \u{2028}",
            "\u{0}\u{1}\u{7f}\u{0}",
            "E 1-1\nk 1\n%s %d {x} \"q\" \\",
        ];
        match self.below(40) {
            0 => "long text ".repeat(20_000).into(),
            1..4 => "ß".repeat(self.random.random_range(1..2_000)).into(),
            _ => self.one(&plain).into(),
        }
    }

    fn body(&mut self) -> Arc<TurnBody> {
        let extra = self.one(&["", "", r#"{"model":"m","messages":[{"role":"user","content":"x\ny"}]}"#]);
        Arc::new(TurnBody::new(self.text(), extra.into()))
    }

    fn new_turn(&mut self) -> TurnId {
        self.turns += 1;
        let n = self.turns;
        let name = match self.below(6) {
            0 => format!("turn with blanks {n}"),
            1 => format!("a:b:{n}"),
            2 => format!("t:Ünï {n} 🦀"),
            3 => format!("{n}"),
            4 => format!("{n}-0"),
            _ => format!("b6f4d1b0-0000-4000-8000-{n:012}"),
        };
        TurnId::parse(&name).unwrap()
    }

    fn known_turn(&mut self, state: Option<&SessionState>) -> TurnId {
        let mut known: Vec<_> = state.map(|state| state.root.turns.keys().cloned().collect()).unwrap_or_default();
        known.sort();
        if known.is_empty() || self.chance(10) { self.new_turn() } else { self.one(&known) }
    }

    fn begin(&mut self, state: Option<&SessionState>) -> Begin {
        let repeat = self.chance(25);
        let turn = if repeat { self.known_turn(state) } else { self.new_turn() };
        let body = match self.bodies.get(&turn).cloned() {
            Some(body) if self.chance(85) => body,
            _ => self.body(),
        };
        self.bodies.entry(turn.clone()).or_insert_with(|| Arc::clone(&body));
        let next = state.map_or(0, |state| state.root.seq) + 1;
        Begin {
            pod: self.one(&self.pods.clone()),
            nonce: Nonce(self.random.random()),
            turn,
            seq: self.one(&[None, None, None, Some(next), Some(next), Some(next + 1), Some(0)]),
            body,
            jump: self.jump(),
            terms: self.terms(),
        }
    }

    /// The owner and its epoch; sometimes somebody else, or an old one.
    fn owner(&mut self, state: Option<&SessionState>) -> (PodId, u64) {
        let owner = state.and_then(|state| state.root.owner);
        let epoch = state.map_or(1, |state| state.root.epoch);
        let pod = match owner {
            Some(owner) if self.chance(90) => owner,
            _ => self.one(&self.pods.clone()),
        };
        (pod, if self.chance(93) { epoch } else { epoch.saturating_sub(1 + self.below(9) as u64) })
    }

    /// The log's end and length as the owner knows them, and the id that comes next; sometimes wrong.
    fn place(&mut self, state: Option<&SessionState>, epoch: u64) -> (EntryId, u64, EntryId) {
        let (mut end, mut len) = state.map_or((EntryId::ZERO, 0), |state| (state.end(), state.len()));
        let mut id = if end.epoch == epoch { EntryId::new(epoch, end.n + 1) } else { EntryId::new(epoch, 0) };
        match self.below(40) {
            0 => end = EntryId::new(end.epoch, end.n + 1),
            1 => len += 1,
            2 => id = end,
            3 => id = EntryId::new(epoch.saturating_sub(1), 3),
            4 => id = EntryId::new(epoch + self.one(&[5, 1 << 30]), 2),
            _ => {}
        }
        (end, len, if id == EntryId::ZERO { EntryId::new(1, 0) } else { id })
    }

    fn running(&mut self, state: Option<&SessionState>) -> TurnId {
        match state.and_then(|state| state.root.running.clone()) {
            Some(turn) if self.chance(95) => turn,
            _ => self.known_turn(state),
        }
    }

    fn append(&mut self, state: Option<&SessionState>) -> Request {
        let (_, epoch) = self.owner(state);
        let (end, _, id) = self.place(state, epoch);
        let kind = match self.below(12) {
            0 => EntryKind::Reset,
            1 => EntryKind::Takeover { reason: TakeoverReason::Loss },
            2 => self.end_kind(),
            _ => EntryKind::Delta { text: self.text() },
        };
        let after = (id.n == 0).then_some(end);
        Request::Append(Arc::new(Entry { id, after, turn: self.running(state), kind }))
    }

    fn check(&mut self, state: Option<&SessionState>) -> Request {
        let (pod, epoch) = self.owner(state);
        Request::Check(Check { pod, epoch, terms: self.terms() })
    }

    fn end_kind(&mut self) -> EntryKind {
        match self.below(10) {
            0..2 => EntryKind::Cancelled,
            2..4 => EntryKind::Failed { code: ErrorCode::UpstreamTimeout, message: self.text() },
            _ => {
                let usage = Usage { prompt_tokens: 3, completion_tokens: u64::MAX, total_tokens: 1 };
                EntryKind::Done { finish_reason: self.one(&["stop", "", "a b\n"]).into(), usage }
            }
        }
    }

    fn finish(&mut self, state: Option<&SessionState>) -> Request {
        let (pod, epoch) = self.owner(state);
        let (follows, len, id) = self.place(state, epoch);
        let kind = if self.chance(2) { EntryKind::Reset } else { self.end_kind() };
        let entry = Arc::new(Entry { id, after: None, turn: self.running(state), kind });
        Request::Finish(Finish { pod, epoch, follows, len, entry, answer: self.text(), terms: self.terms() })
    }

    fn claim(&mut self, state: Option<&SessionState>) -> Request {
        let (owner, epoch) = self.owner(state);
        let loss = self.chance(40);
        Request::Claim(Claim {
            pod: if loss { owner } else { self.one(&self.pods.clone()) },
            nonce: Nonce(self.random.random()),
            why: if loss { ClaimReason::Loss { epoch } } else { ClaimReason::Expired },
            jump: self.jump(),
            terms: self.terms(),
        })
    }

    fn reset(&mut self, state: Option<&SessionState>) -> Request {
        let (pod, epoch) = self.owner(state);
        let (mut follows, mut len, mut id) = self.place(state, epoch);
        if len > 0 && self.chance(15) {
            // As if the log's last entry were this one.
            (id, len) = (follows, len - 1);
            follows = EntryId::new(id.epoch, id.n.saturating_sub(1));
        }
        let entry = Arc::new(Entry { id, after: None, turn: self.running(state), kind: EntryKind::Reset });
        Request::Reset(Reset { pod, epoch, follows, len, entry })
    }

    fn position(&mut self, state: Option<&SessionState>) -> EntryId {
        let mut ids = vec![EntryId::ZERO, EntryId::new(u64::MAX, u64::MAX), EntryId::new(1, 1)];
        if let Some(state) = state {
            ids.extend([state.end(), state.root.base, EntryId::new(state.root.epoch, 1)]);
            ids.extend(state.log.iter().flatten().map(|entry| entry.id).take(5));
        }
        self.one(&ids)
    }
}
