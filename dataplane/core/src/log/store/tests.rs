use super::*;
use crate::{
    error::ErrorCode,
    limits::QUEUED_TURNS_MAX,
    log::{
        Begin, BeginReply, CancelReply, Check, CheckReply, Claim, ClaimReason, ClaimReply, Finish, FinishReply,
        KnownTurn, ReadReply, Reset, SnapshotReply, TakeoverReason, Usage,
    },
};

const TERMS: Terms = Terms { ttl_ms: 900_000, lease_ms: 4_000, keep_turns: 2 };
const A: PodId = PodId(1);
const B: PodId = PodId(2);

fn turn(name: &str) -> TurnId {
    TurnId::parse(name).unwrap()
}

/// A store with one session, its clock, and short forms of the requests.
struct World {
    slot: Option<SessionState>,
    now: StoreTime,
    nonce: u64,
}

impl World {
    fn new() -> Self {
        Self { slot: None, now: StoreTime(1_000_000), nonce: 0 }
    }
    fn pass_ms(&mut self, ms: u64) {
        self.now.0 += ms * 1_000;
    }
    fn session(&self) -> &SessionState {
        self.slot.as_ref().unwrap()
    }
    fn ask(&mut self, request: &Request) -> Reply {
        self.now.0 += 1;
        execute(&mut self.slot, request, self.now)
    }
    fn begin_as(&mut self, pod: PodId, nonce: u64, name: &str, text: &str, seq: Option<u64>) -> BeginReply {
        let body = Arc::new(TurnBody::new(text.into(), "".into()));
        let begin = Begin { pod, nonce: Nonce(nonce), turn: turn(name), seq, body, jump: 5, terms: TERMS };
        let Reply::Begin(reply) = self.ask(&Request::Begin(begin)) else { unreachable!() };
        reply
    }
    fn begin(&mut self, pod: PodId, name: &str) -> BeginReply {
        self.nonce += 1;
        self.begin_as(pod, self.nonce, name, "hello", None)
    }
    fn own(&mut self, pod: PodId, name: &str) -> Ownership {
        match self.begin(pod, name) {
            BeginReply::Owner { own, .. } => own,
            other => unreachable!("{other:?}"),
        }
    }
    fn append(&mut self, own: &mut Ownership, text: &str) -> bool {
        let id = EntryId::new(own.epoch, own.end.n + 1);
        let entry = Entry { id, after: None, turn: own.turn.clone(), kind: EntryKind::Delta { text: text.into() } };
        let taken = self.ask(&Request::Append(Arc::new(entry))) == Reply::Append(true);
        if taken {
            own.end = id;
            own.len += 1;
        }
        taken
    }
    fn finish_with(&mut self, pod: PodId, own: &Ownership, kind: EntryKind, answer: &str) -> FinishReply {
        let entry =
            Arc::new(Entry { id: EntryId::new(own.epoch, own.end.n + 1), after: None, turn: own.turn.clone(), kind });
        let finish = Finish {
            pod,
            epoch: own.epoch,
            follows: own.end,
            len: own.len,
            entry,
            answer: answer.into(),
            terms: TERMS,
        };
        let Reply::Finish(reply) = self.ask(&Request::Finish(finish)) else { unreachable!() };
        reply
    }
    fn finish(&mut self, pod: PodId, own: &Ownership) -> FinishReply {
        self.finish_with(pod, own, done(), "answer")
    }
    fn claim_with(&mut self, pod: PodId, nonce: u64, why: ClaimReason) -> ClaimReply {
        let claim = Claim { pod, nonce: Nonce(nonce), why, jump: 5, terms: TERMS };
        let Reply::Claim(reply) = self.ask(&Request::Claim(claim)) else { unreachable!() };
        reply
    }
    fn claim(&mut self, pod: PodId) -> ClaimReply {
        self.nonce += 1;
        self.claim_with(pod, self.nonce, ClaimReason::Expired)
    }
    fn check(&mut self, pod: PodId, epoch: u64) -> CheckReply {
        let Reply::Check(reply) = self.ask(&Request::Check(Check { pod, epoch, terms: TERMS })) else { unreachable!() };
        reply
    }
    fn reset(&mut self, pod: PodId, own: &Ownership) -> bool {
        let id = EntryId::new(own.epoch, own.end.n + 1);
        let entry = Arc::new(Entry { id, after: None, turn: own.turn.clone(), kind: EntryKind::Reset });
        self.ask(&Request::Reset(Reset { pod, epoch: own.epoch, follows: own.end, len: own.len, entry }))
            == Reply::Reset(true)
    }
    fn read(&mut self, after: EntryId) -> ReadReply {
        let Reply::Read(reply) = self.ask(&Request::Read { after, count: 100 }) else { unreachable!() };
        reply
    }
    fn snapshot(&mut self) -> SnapshotReply {
        let Reply::Snapshot(reply) = self.ask(&Request::Snapshot) else { unreachable!() };
        reply
    }
    fn cancel(&mut self, name: &str) -> CancelReply {
        let Reply::Cancel(reply) = self.ask(&Request::Cancel { turn: turn(name) }) else { unreachable!() };
        reply
    }
    fn lose_log(&mut self) {
        self.slot.as_mut().unwrap().log = None;
    }
}

fn done() -> EntryKind {
    EntryKind::Done { finish_reason: "stop".into(), usage: Usage::default() }
}

fn owner(reply: ClaimReply) -> Ownership {
    match reply {
        ClaimReply::Owner(own) => own,
        ClaimReply::Nothing => unreachable!("nothing claimed"),
    }
}

#[test]
fn the_first_turn_of_an_idle_session_is_owned_and_starts() {
    let mut w = World::new();
    let BeginReply::Owner { own, from } = w.begin(A, "t1") else { unreachable!() };
    assert_eq!(from, EntryId::ZERO);
    assert_eq!((own.seq, own.len, own.start, own.tries), (1, 1, own.end, 0));
    assert_eq!(own.end, EntryId::new(w.now.0, 0), "the epoch is the clock's");
    assert_eq!(own.appended[0].after, Some(EntryId::ZERO));
    assert_eq!(own.appended[0].kind, EntryKind::Turn { seq: 1, text: "hello".into() });
    assert_eq!(w.session().root.base, EntryId::ZERO);
}

#[test]
fn a_turn_for_an_owned_session_waits_and_at_most_eight_do() {
    let mut w = World::new();
    let own = w.own(A, "t0");
    for i in 1..=QUEUED_TURNS_MAX {
        let reply = w.begin(B, &format!("t{i}"));
        let BeginReply::Queued { seq, place, end, owner, lease_left_ms } = reply else { unreachable!("{reply:?}") };
        assert_eq!((seq, place, end, owner), (i as u64 + 1, i as u32, own.end, A));
        assert!((3_990..=4_000).contains(&lease_left_ms));
    }
    assert_eq!(w.begin(B, "t9"), BeginReply::Busy);
    assert!(w.session().state_of(&turn("t9")).is_none());
    let BeginReply::Known(known) = w.begin(A, "t3") else { unreachable!() };
    assert_eq!((known.state, known.place, known.from), (TurnState::Queued, 3, None));
}

#[test]
fn repeats_are_recognised_in_every_state() {
    let mut w = World::new();
    let mut own = w.own(A, "t1");
    let BeginReply::Owner { own: again, from } = w.begin_as(A, 1, "t1", "hello", None) else { unreachable!() };
    assert_eq!((again.epoch, again.end, from, again.appended.len()), (own.epoch, own.end, EntryId::ZERO, 0));
    assert_eq!(w.begin(A, "t1"), w.begin(B, "t1"), "another request than the first, from whomever, is only known");
    assert_eq!(w.begin_as(B, 77, "t1", "other", None), BeginReply::Conflict);
    w.append(&mut own, "x");
    assert!(matches!(w.finish(A, &own), FinishReply::Ended { next: None, .. }));
    let ended_at = EntryId::new(own.epoch, 2);
    let known = KnownTurn {
        state: TurnState::Ended(EndKind::Done),
        seq: 1,
        place: 0,
        from: Some(EntryId::ZERO),
        ended_at: Some(ended_at),
        end: ended_at,
    };
    assert_eq!(w.begin(A, "t1"), BeginReply::Known(known));
    assert_eq!(w.session().len(), 3, "no repeat changed anything");
}

#[test]
fn the_expected_number_must_be_the_next() {
    let mut w = World::new();
    assert_eq!(w.begin_as(A, 1, "t1", "x", Some(2)), BeginReply::SeqGap { expected: 1 });
    assert!(w.slot.is_none(), "a refusal leaves nothing behind");
    assert!(matches!(w.begin_as(A, 1, "t1", "x", Some(1)), BeginReply::Owner { .. }));
    assert_eq!(w.begin_as(A, 2, "t2", "x", Some(1)), BeginReply::SeqGap { expected: 2 });
    assert!(
        matches!(w.begin_as(A, 3, "t1", "x", Some(9)), BeginReply::Known(_)),
        "a repeat is known before its number counts"
    );
}

#[test]
fn an_append_needs_a_log_and_an_id_above_its_end() {
    let mut w = World::new();
    let mut own = w.own(A, "t1");
    let before = own.clone();
    assert!(w.append(&mut own, "a"));
    assert!(!w.append(&mut before.clone(), "a"), "the same id again");
    w.lose_log();
    assert!(!w.append(&mut own, "b"), "no log is created");
    w.slot = None;
    assert!(!w.append(&mut own, "b"));
}

#[test]
fn check_renews_the_owners_lease_and_only_his() {
    let mut w = World::new();
    let own = w.own(A, "t1");
    w.begin(B, "t2");
    w.pass_ms(5_000);
    assert!(!w.check(B, own.epoch).mine);
    assert!(!w.check(A, own.epoch + 1).mine);
    assert_eq!(w.session().lease_left_ms(w.now), 0);
    let reply = w.check(A, own.epoch);
    assert_eq!(reply, CheckReply { mine: true, end: Some(own.end), len: 1, cancel: false, queued: 1 });
    assert_eq!(w.session().lease_left_ms(w.now), 4_000);
    w.lose_log();
    assert_eq!(w.check(A, own.epoch).end, None);
}

#[test]
fn finish_compares_owner_epoch_end_and_length() {
    let mut w = World::new();
    let mut own = w.own(A, "t1");
    w.append(&mut own, "x");
    let refused = [
        (B, own.clone()),
        (A, Ownership { epoch: own.epoch - 1, ..own.clone() }),
        (A, Ownership { end: EntryId::new(own.epoch, 0), ..own.clone() }),
        (A, Ownership { len: own.len + 1, ..own.clone() }),
        (A, Ownership { turn: turn("t9"), ..own.clone() }),
    ];
    for (pod, wrong) in refused {
        assert_eq!(w.finish(pod, &wrong), FinishReply::Refused, "{wrong:?}");
    }
    assert_eq!(w.finish_with(A, &own, EntryKind::Reset, ""), FinishReply::Refused, "no end");
    assert!(matches!(w.finish(A, &own), FinishReply::Ended { .. }));
    assert_eq!(w.finish(A, &own), FinishReply::Already { next: None });
    assert_eq!(w.session().root.owner, None);
    assert_eq!(w.session().root.base, w.session().end());
}

#[test]
fn finish_starts_the_next_turn_and_a_repeat_of_it_says_so() {
    let mut w = World::new();
    let own = w.own(A, "t1");
    w.begin(B, "t2");
    w.cancel("t2");
    w.pass_ms(3_000);
    let reply = w.finish(A, &own);
    let FinishReply::Ended { appended, next: Some(next) } = reply else { unreachable!("{reply:?}") };
    assert_eq!(appended.iter().map(|e| e.id.n).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(
        (next.turn.clone(), next.seq, next.start, next.end, next.len),
        (turn("t2"), 2, appended[1].id, appended[1].id, 3)
    );
    assert!(next.cancel);
    assert_eq!(w.session().lease_left_ms(w.now), 4_000);
    assert_eq!(w.session().root.base, appended[0].id);
    assert_eq!(w.finish(A, &own), FinishReply::Already { next: Some(next) });
    assert_eq!(w.finish(B, &own), FinishReply::Already { next: None });
}

#[test]
fn history_has_answers_and_partial_answers_but_no_failures() {
    let mut w = World::new();
    let own = w.own(A, "t1");
    w.finish_with(A, &own, EntryKind::Failed { code: ErrorCode::Internal, message: "x".into() }, "lost");
    let own = w.own(A, "t2");
    w.finish_with(A, &own, EntryKind::Cancelled, "part");
    let own = w.own(A, "t3");
    w.finish(A, &own);
    let own = w.own(A, "t4");
    let snapshot = w.snapshot();
    let rows: Vec<_> = snapshot.turns.iter().map(|t| (t.turn.as_str(), t.seq, t.state, &*t.answer)).collect();
    let cancelled = TurnState::Ended(EndKind::Cancelled);
    let ended = TurnState::Ended(EndKind::Done);
    assert_eq!(rows, [("t2", 2, cancelled, "part"), ("t3", 3, ended, "answer"), ("t4", 4, TurnState::Running, "")]);
    assert_eq!(snapshot.position, own.appended[0].predecessor());
}

#[test]
fn the_log_is_cut_at_a_turn_and_keeps_the_last_ones() {
    let mut w = World::new();
    for i in 0..5 {
        let mut own = w.own(A, &format!("t{i}"));
        w.append(&mut own, "x");
        w.begin(A, &format!("q{i}"));
        let FinishReply::Ended { next: Some(next), .. } = w.finish(A, &own) else { unreachable!() };
        w.finish(A, &next);
    }
    let log = w.session().log.clone().unwrap();
    let turns: Vec<_> =
        log.iter().filter(|e| matches!(e.kind, EntryKind::Turn { .. })).map(|e| e.turn.to_string()).collect();
    assert_eq!(turns, ["t4", "q4"]);
    assert!(matches!(log[0].kind, EntryKind::Turn { .. }));
    let first = log[0].predecessor();
    assert_eq!(w.read(first).first, first);
    let BeginReply::Known(known) = w.begin(A, "t1") else { unreachable!() };
    assert_eq!(known.from, None, "its entries are gone");
    assert_eq!(w.session().history.len(), 2);
}

#[test]
fn claim_takes_a_turn_whose_lease_is_over_and_nothing_else() {
    let mut w = World::new();
    assert_eq!(w.claim(B), ClaimReply::Nothing, "no session");
    let mut own = w.own(A, "t1");
    assert_eq!(w.claim(B), ClaimReply::Nothing, "the lease runs");
    w.append(&mut own, "x");
    w.pass_ms(4_001);
    let taken = owner(w.claim(B));
    assert_eq!((taken.turn.clone(), taken.start, taken.tries, taken.len), (turn("t1"), own.start, 1, 3));
    assert_eq!(taken.appended[0].after, Some(own.end));
    assert_eq!(taken.appended[0].kind, EntryKind::Takeover { reason: TakeoverReason::Expired });
    assert!(taken.epoch > own.epoch);
    assert!(!w.append(&mut own, "stale"));
    assert_eq!(w.session().root.base, EntryId::ZERO, "the log still tells the turn from its beginning");
    let again = owner(w.claim_with(B, w.nonce, ClaimReason::Expired));
    assert_eq!((again.epoch, again.end, again.appended.len()), (taken.epoch, taken.end, 0));
    assert_eq!(w.claim(A), ClaimReply::Nothing);
    w.finish(B, &taken);
    w.pass_ms(4_001);
    assert_eq!(w.claim(A), ClaimReply::Nothing, "nobody owns an idle session");
}

#[test]
fn a_loss_is_claimed_by_the_owner_of_that_epoch() {
    let mut w = World::new();
    let own = w.own(A, "t1");
    let loss = ClaimReason::Loss { epoch: own.epoch };
    assert_eq!(w.claim_with(B, 90, loss), ClaimReply::Nothing);
    assert_eq!(w.claim_with(A, 91, ClaimReason::Loss { epoch: own.epoch + 1 }), ClaimReply::Nothing);
    let anew = owner(w.claim_with(A, 92, loss));
    assert_eq!(anew.appended[0].kind, EntryKind::Takeover { reason: TakeoverReason::Loss });
    assert_eq!(owner(w.claim_with(A, 92, loss)).epoch, anew.epoch, "the same request");
    assert_eq!(w.claim_with(A, 93, loss), ClaimReply::Nothing, "another request for an epoch that is over");
}

#[test]
fn an_epoch_is_above_all_that_was_even_with_a_clock_behind() {
    let mut w = World::new();
    let own = w.own(A, "t1");
    w.now.0 -= 500_000;
    w.session().lease_left_ms(w.now);
    let Reply::EndLease(true) = w.ask(&Request::EndLease { pod: A, epoch: own.epoch }) else { unreachable!() };
    let taken = owner(w.claim(B));
    assert_eq!(taken.epoch, own.epoch + 1 + 5, "the request's jump counts");
    // A stale writer's entry of a higher epoch stands at the end.
    let high = Entry { id: EntryId::new(taken.epoch + 50, 3), after: None, turn: turn("t1"), kind: EntryKind::Reset };
    assert_eq!(w.ask(&Request::Append(Arc::new(high))), Reply::Append(true));
    w.ask(&Request::EndLease { pod: B, epoch: taken.epoch });
    assert_eq!(owner(w.claim(A)).epoch, taken.epoch + 50 + 1 + 5);
}

#[test]
fn reset_moves_the_base_and_recognises_itself() {
    let mut w = World::new();
    let mut own = w.own(A, "t1");
    w.append(&mut own, "x");
    assert!(!w.reset(B, &own));
    assert!(!w.reset(A, &Ownership { len: 9, ..own.clone() }));
    assert!(w.reset(A, &own));
    assert_eq!(w.session().root.base, own.end);
    assert!(w.reset(A, &own), "a repeat");
    assert_eq!(w.session().len(), 3);
    let snapshot = w.snapshot();
    assert_eq!((snapshot.position, snapshot.turns.len()), (own.end, 1));
}

fn anew_end(own: &Ownership) -> EntryId {
    EntryId::new(own.epoch, own.end.n + 1)
}

#[test]
fn a_turn_starts_behind_what_a_forgotten_writer_left() {
    let mut w = World::new();
    let own = w.own(A, "t1");
    w.finish(A, &own);
    let stale = Entry { id: EntryId::new(own.epoch + 50, 3), after: None, turn: turn("t0"), kind: EntryKind::Reset };
    let id = stale.id;
    assert_eq!(w.ask(&Request::Append(Arc::new(stale))), Reply::Append(true));
    let BeginReply::Owner { own, from } = w.begin(A, "t2") else { unreachable!() };
    assert_eq!((from, w.session().root.base, own.appended[0].after), (id, id, Some(id)));
    assert!(own.epoch > id.epoch);
}

#[test]
fn a_lost_log_starts_anew_and_its_turns_still_run() {
    let mut w = World::new();
    let own = w.own(A, "t1");
    w.begin(B, "t2");
    w.lose_log();
    let reply = w.read(own.end);
    assert_eq!((reply.exists, reply.end, reply.base, reply.unfinished), (true, EntryId::ZERO, EntryId::ZERO, true));
    let anew = owner(w.claim_with(A, 90, ClaimReason::Loss { epoch: own.epoch }));
    assert_eq!((anew.start, anew.len, anew.appended[0].after), (EntryId::ZERO, 1, Some(EntryId::ZERO)));
    assert_eq!(w.session().root.base, EntryId::ZERO);
    let BeginReply::Known(known) = w.begin(B, "t1") else { unreachable!() };
    assert_eq!(known.from, Some(EntryId::ZERO));
    let FinishReply::Ended { next: Some(next), .. } = w.finish(A, &anew) else { unreachable!() };
    assert_eq!(next.turn, turn("t2"));
    assert_eq!(w.session().root.base, anew_end(&anew));
    w.lose_log();
    let next = owner(w.claim_with(A, 91, ClaimReason::Loss { epoch: next.epoch }));
    assert_eq!(w.session().root.base, EntryId::ZERO, "what the log told before is gone");
    let BeginReply::Known(known) = w.begin(B, "t2") else { unreachable!() };
    assert_eq!(known.from, Some(EntryId::ZERO), "and with it where its turn began");
    w.finish(A, &next);
    w.lose_log();
    let own = w.own(B, "t3");
    assert_eq!(own.appended[0].after, Some(EntryId::ZERO));
    assert!(own.epoch > next.epoch);
    assert_eq!(w.snapshot().turns.len(), 3, "the history did not go with the log");
}

#[test]
fn cancel_marks_and_the_owner_hears_of_it() {
    let mut w = World::new();
    assert_eq!(w.cancel("t1"), CancelReply::NotFound);
    let own = w.own(A, "t1");
    w.begin(B, "t2");
    assert_eq!(w.cancel("t2"), CancelReply::Marked { state: TurnState::Queued, owner: Some(A) });
    assert!(!w.check(A, own.epoch).cancel, "another turn is cancelled");
    assert_eq!(w.cancel("t1"), CancelReply::Marked { state: TurnState::Running, owner: Some(A) });
    assert!(w.check(A, own.epoch).cancel);
    w.finish_with(A, &own, EntryKind::Cancelled, "");
    assert_eq!(w.cancel("t1"), CancelReply::Ended(EndKind::Cancelled));
}

#[test]
fn delete_leaves_only_what_keeps_the_session_from_coming_back() {
    let mut w = World::new();
    assert_eq!(w.ask(&Request::Delete), Reply::Delete(None));
    let mut own = w.own(A, "t1");
    w.begin(A, "t2");
    w.begin(A, "t3");
    assert_eq!(w.ask(&Request::Delete), Reply::Delete(Some(A)));
    assert!(!w.append(&mut own, "x"));
    assert!(!w.check(A, own.epoch).mine);
    assert_eq!(w.finish(A, &own), FinishReply::Refused);
    assert!(!w.read(own.end).exists);
    assert!(!w.snapshot().exists);
    assert_eq!(w.begin(A, "t2"), BeginReply::Gone);
    assert_eq!(w.cancel("t2"), CancelReply::NotFound);
    w.now.0 -= 900_000;
    let anew = w.own(B, "t4");
    assert_eq!((anew.seq, anew.appended[0].after), (1, Some(EntryId::ZERO)));
    assert!(anew.epoch > own.epoch, "later ids are greater");
    assert!(!w.append(&mut own, "x"));
}

#[test]
fn everything_expires_at_one_instant_and_not_while_a_turn_is_unfinished() {
    let mut w = World::new();
    let own = w.own(A, "t1");
    w.pass_ms(3_000_000);
    assert!(w.check(A, own.epoch).mine, "an unfinished turn keeps the session for an hour");
    w.finish(A, &own);
    let expires = w.session().expires_at();
    assert_eq!(expires.0, w.now.0 + 900_000_000);
    w.pass_ms(899_000);
    w.read(EntryId::ZERO);
    assert_eq!(w.session().expires_at(), expires, "reading does not prolong it");
    w.pass_ms(1_000);
    assert!(!w.read(EntryId::ZERO).exists);
    assert!(w.slot.is_none());
    let own = w.own(A, "t1");
    assert_eq!(own.seq, 1, "unknown again");
}

#[test]
fn records_of_ended_turns_are_bounded() {
    let mut w = World::new();
    for i in 0..TURN_RECORDS_MAX + 3 {
        let own = w.own(A, &format!("t{i}"));
        w.finish(A, &own);
    }
    assert_eq!(w.session().root.turns.len(), TURN_RECORDS_MAX);
    assert!(w.session().state_of(&turn("t2")).is_none());
    assert!(w.session().state_of(&turn("t3")).is_some());
    assert!(w.session().len() <= 4);
}

#[test]
fn read_gives_pages_after_a_position() {
    let mut w = World::new();
    let mut own = w.own(A, "t1");
    for _ in 0..5 {
        w.append(&mut own, "x");
    }
    let Reply::Read(page) = w.ask(&Request::Read { after: EntryId::new(own.epoch, 1), count: 2 }) else {
        unreachable!()
    };
    assert_eq!(page.entries.iter().map(|e| e.id.n).collect::<Vec<_>>(), [2, 3]);
    assert_eq!((page.first, page.end, page.base, page.unfinished), (EntryId::ZERO, own.end, EntryId::ZERO, true));
    assert!(page.lease_left_ms > 3_900);
    assert!(w.read(own.end).entries.is_empty());
}
