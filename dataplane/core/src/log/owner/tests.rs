use super::*;
use crate::{
    limits::{ANSWER_MAX_BYTES, ANSWER_RESUMES_MAX, DELTA_MAX_BYTES, LEASE_TTL, UNCOMMITTED_MAX_BYTES},
    log::{
        Begin, BeginReply, CancelReply, ClaimReply, StoreTime,
        store::{SessionState, execute},
    },
};

const A: PodId = PodId(1);
const B: PodId = PodId(2);
const TERMS: Terms = Terms { ttl_ms: 900_000, lease_ms: 4_000, keep_turns: 40 };

/// An owner on a real session, with what it wants written down in short.
struct Rig {
    slot: Option<SessionState>,
    clock: StoreTime,
    now: Instant,
    connection: u64,
    owner: Owner,
    call: Option<Request>,
    look: Option<Check>,
    events: Vec<String>,
}

fn entry_text(entry: &Entry) -> String {
    match &entry.kind {
        EntryKind::Turn { .. } => format!("turn {}", entry.turn),
        EntryKind::Delta { text } if text.len() > 40 => format!("{} bytes", text.len()),
        EntryKind::Delta { text } => text.to_string(),
        EntryKind::Failed { code, .. } => format!("failed {}", code.as_str()),
        EntryKind::Done { .. } => "done".into(),
        EntryKind::Cancelled => "cancelled".into(),
        EntryKind::Reset => "reset".into(),
        EntryKind::Takeover { .. } => "takeover".into(),
    }
}

fn begin(slot: &mut Option<SessionState>, clock: StoreTime, pod: PodId, name: &str) -> BeginReply {
    let turn = TurnId::parse(name).unwrap();
    let body = Arc::new(TurnBody::new("hi".into(), "".into()));
    let nonce = Nonce(clock.0);
    let begin = Begin { pod, nonce, turn, seq: None, body, jump: 1, terms: TERMS };
    let Reply::Begin(reply) = execute(slot, &Request::Begin(begin), clock) else { unreachable!() };
    reply
}

impl Rig {
    /// An owner that has just begun the turn `t1`.
    fn new() -> Self {
        Self::whose_model_continues(true)
    }

    fn whose_model_continues(prefill: bool) -> Self {
        let (mut slot, clock) = (None, StoreTime(1_000_000));
        let BeginReply::Owner { own, .. } = begin(&mut slot, clock, A, "t1") else { unreachable!() };
        Self::with(slot, clock, own, A, prefill)
    }

    fn with(slot: Option<SessionState>, clock: StoreTime, own: Ownership, pod: PodId, prefill: bool) -> Self {
        let config = OwnerConfig { pod, terms: TERMS, prefill, turn_deadline: Duration::from_secs(60) };
        let (now, mut out) = (Instant::now(), Vec::new());
        let owner = Owner::new(own, config, Link { connection: 1, verified: true }, 7, now, &mut out);
        let mut rig = Self { slot, clock, now, connection: 1, owner, call: None, look: None, events: Vec::new() };
        rig.note(out);
        rig
    }

    /// The session, its owner silent for longer than a lease, taken over by another pod.
    fn taken_over(mut self, prefill: bool) -> Self {
        self.pass(LEASE_TTL);
        let nonce = Nonce(self.clock.0);
        let claim = Claim { pod: B, nonce, why: ClaimReason::Expired, jump: 1, terms: TERMS };
        let Reply::Claim(ClaimReply::Owner(own)) = execute(&mut self.slot, &Request::Claim(claim), self.clock) else {
            unreachable!()
        };
        Self::with(self.slot, self.clock, own, B, prefill)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.clock.0 += time.as_micros() as u64;
    }

    fn note(&mut self, effects: Vec<OwnerEffect>) {
        for effect in effects {
            let text = match effect {
                OwnerEffect::Call(request) => {
                    assert!(self.call.is_none() && self.look.is_none(), "two calls at a time");
                    let text = match &request {
                        Request::Append(entry) => format!("append {}", entry_text(entry)),
                        Request::Finish(finish) => format!("finish {}", entry_text(&finish.entry)),
                        Request::Check(_) => "check".into(),
                        Request::Claim(_) => "claim".into(),
                        Request::Reset(_) => "reset".into(),
                        Request::Read { .. } => "read".into(),
                        Request::EndLease { .. } => "end lease".into(),
                        other => unreachable!("{other:?}"),
                    };
                    self.call = Some(request);
                    text
                }
                OwnerEffect::Look(check) => {
                    assert!(matches!(self.call, Some(Request::Append(_))), "a look follows an append");
                    self.look = Some(check);
                    "look".into()
                }
                OwnerEffect::Deliver(entry) => format!("deliver {}", entry_text(&entry)),
                OwnerEffect::Ask { prefix: Some(prefix), .. } => format!("continue {prefix}"),
                OwnerEffect::Ask { .. } => "ask".into(),
                OwnerEffect::Reread => "reread".into(),
                OwnerEffect::StopUpstream => "stop".into(),
                OwnerEffect::PauseUpstream => "pause".into(),
                OwnerEffect::ResumeUpstream => "resume".into(),
                OwnerEffect::Released(why) => format!("released {why:?}"),
            };
            self.events.push(text);
        }
    }

    fn hear(&mut self, input: OwnerInput) {
        let mut out = Vec::new();
        self.owner.handle(input, self.now, &mut out);
        self.note(out);
    }

    fn say(&mut self, text: &str) {
        self.hear(OwnerInput::Text(text.into()));
    }

    fn end(&mut self) {
        self.hear(OwnerInput::UpstreamEnd { finish_reason: "stop".into(), usage: Usage::default() });
    }

    fn break_off(&mut self, again: bool) {
        self.hear(OwnerInput::UpstreamFailed { code: ErrorCode::UpstreamUnavailable, message: "gone".into(), again });
    }

    fn reply(&mut self, result: Result<Reply, Unknown>) {
        self.call = None;
        let connection = self.connection;
        self.hear(OwnerInput::Reply { result, connection });
    }

    /// The store carries out the outstanding call; the owner hears of it.
    fn answer(&mut self) {
        let reply = self.carry_out();
        self.reply(Ok(reply));
    }

    /// The store carries out the check that was sent behind an append; the owner hears of it.
    fn look(&mut self) {
        let check = self.look.take().unwrap();
        let result = Ok(execute(&mut self.slot, &Request::Check(check), self.clock));
        let connection = self.connection;
        self.hear(OwnerInput::Looked { result, connection });
    }

    fn carry_out(&mut self) -> Reply {
        let request = self.call.clone().unwrap();
        execute(&mut self.slot, &request, self.clock)
    }

    /// The outcome is never known. Then time passes until the owner does something about it.
    fn lose(&mut self) {
        self.reply(Err(Unknown));
        assert!(self.call.is_none(), "no call without a pause");
        self.wake();
    }

    fn wake(&mut self) {
        let at = self.owner.timeout().unwrap();
        self.pass(at.saturating_duration_since(self.now));
        self.hear(OwnerInput::Tick);
    }

    fn events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events)
    }

    /// What happened since the last look.
    #[track_caller]
    fn saw(&mut self, expected: &[&str]) {
        assert_eq!(self.events(), expected);
    }

    fn log(&self) -> Vec<String> {
        self.slot.as_ref().unwrap().log.as_ref().unwrap().iter().map(|entry| entry_text(entry)).collect()
    }
}

#[test]
fn a_turn_is_committed_then_delivered_and_what_gathers_is_merged() {
    let mut rig = Rig::new();
    rig.saw(&["deliver turn t1", "ask"]);
    rig.say("a");
    rig.saw(&["append a"]);
    rig.say("b");
    rig.say("c");
    rig.saw(&[]);
    rig.answer();
    rig.saw(&["deliver a", "append bc"]);
    rig.say("d");
    rig.end();
    rig.answer();
    rig.saw(&["deliver bc", "append d"]);
    rig.answer();
    rig.saw(&["deliver d", "finish done"]);
    rig.answer();
    rig.saw(&["deliver done", "released Idle"]);
    assert!(rig.owner.is_released());
    assert_eq!(rig.owner.timeout(), None);
    assert_eq!(rig.slot.unwrap().history[0].answer.as_ref(), "abcd");
}

#[test]
fn the_next_turn_starts_with_the_end_of_the_one_before() {
    let mut rig = Rig::new();
    begin(&mut rig.slot, rig.clock, B, "t2");
    rig.end();
    rig.answer();
    rig.saw(&["deliver turn t1", "ask", "finish done", "deliver done", "deliver turn t2", "ask"]);
    assert_eq!(rig.owner.turn().as_str(), "t2");
    rig.break_off(true);
    rig.answer();
    rig.saw(&["finish failed upstream_unavailable", "deliver failed upstream_unavailable", "released Idle"]);
}

#[test]
fn a_lost_append_is_looked_for_and_sent_again_as_it_was() {
    let mut rig = Rig::new();
    rig.say("a");
    let first = rig.call.clone();
    rig.say("b");
    rig.events();
    rig.lose();
    rig.saw(&["check"]);
    rig.answer();
    rig.saw(&["append a"]);
    assert_eq!(rig.call, first);
    rig.answer();
    rig.saw(&["deliver a", "append b"]);
    rig.carry_out();
    rig.lose();
    rig.saw(&["check"]);
    rig.answer();
    rig.saw(&["deliver b"]);
    assert_eq!(rig.log(), ["turn t1", "a", "b"]);
}

/// An owner whose next check is due, with an append under way and the check behind it.
fn rig_that_looks() -> Rig {
    let mut rig = Rig::new();
    rig.pass(CHECK_INTERVAL);
    rig.say("a");
    rig.say("b");
    rig.saw(&["deliver turn t1", "ask", "append a", "look"]);
    rig
}

#[test]
fn text_does_not_wait_for_the_lease_to_be_renewed() {
    let mut rig = rig_that_looks();
    rig.answer();
    rig.saw(&["deliver a"]);
    rig.look();
    rig.saw(&["append b"]);
    rig.answer();
    rig.saw(&["deliver b"]);
    assert_eq!(rig.owner.timeout(), Some(rig.now + CHECK_INTERVAL));
    assert_eq!(rig.slot.as_ref().unwrap().root.lease_until, StoreTime(rig.clock.0 + 4_000_000));
    rig.wake();
    rig.saw(&["check"]);
}

#[test]
fn a_look_tells_what_became_of_the_append_before_it() {
    let mut rig = rig_that_looks();
    rig.carry_out();
    rig.reply(Err(Unknown));
    rig.look();
    rig.saw(&["deliver a", "append b"]);
    let mut rig = rig_that_looks();
    rig.reply(Ok(Reply::Append(false)));
    rig.look();
    rig.saw(&["append a"]);
    // Where it is lost too, everything is as without it.
    let mut rig = rig_that_looks();
    rig.carry_out();
    rig.reply(Err(Unknown));
    rig.look = None;
    let connection = rig.connection;
    rig.hear(OwnerInput::Looked { result: Err(Unknown), connection });
    rig.saw(&[]);
    rig.wake();
    rig.saw(&["check"]);
    rig.answer();
    rig.saw(&["deliver a", "append b"]);
}

#[test]
fn a_look_over_an_earlier_connection_verifies_nothing() {
    let mut rig = rig_that_looks();
    rig.hear(OwnerInput::Connection(2));
    rig.answer();
    rig.look();
    rig.saw(&["deliver a", "check"]);
}

#[test]
fn a_look_finds_that_the_session_is_another_pods() {
    let mut rig = rig_that_looks();
    rig.pass(LEASE_TTL);
    let claim = Claim { pod: B, nonce: Nonce(9), why: ClaimReason::Expired, jump: 1, terms: TERMS };
    execute(&mut rig.slot, &Request::Claim(claim), rig.clock);
    rig.answer();
    rig.look();
    rig.saw(&["stop", "reread", "released NotMine"]);
    assert_eq!(rig.log(), ["turn t1", "takeover"]);
}

#[test]
fn a_look_brings_a_cancel() {
    let mut rig = rig_that_looks();
    execute(&mut rig.slot, &Request::Cancel { turn: rig.owner.turn().clone() }, rig.clock);
    rig.answer();
    rig.look();
    rig.saw(&["deliver a", "stop", "finish cancelled"]);
}

#[test]
fn a_store_that_refuses_is_asked_ever_more_slowly() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.reply(Ok(Reply::Append(false)));
    rig.answer();
    rig.reply(Ok(Reply::Append(false)));
    rig.saw(&["deliver turn t1", "ask", "append a", "check", "append a"]);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        pauses.push(rig.owner.timeout().unwrap() - rig.now);
        rig.wake();
        rig.answer();
        if rig.call.is_none() {
            rig.wake();
        }
        rig.reply(Ok(Reply::Append(false)));
    }
    assert!(pauses[0] >= STORE_RETRY_MIN && pauses[5] > pauses[0] * 2, "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= STORE_RETRY_MAX), "{pauses:?}");
}

#[test]
fn a_new_connection_is_checked_before_anything_is_written() {
    let mut rig = Rig::new();
    rig.connection = 2;
    rig.hear(OwnerInput::Connection(2));
    rig.say("a");
    rig.saw(&["deliver turn t1", "ask", "check"]);
    // The check was sent, and then the connection changed once more: its answer says nothing about the new one.
    rig.hear(OwnerInput::Connection(3));
    rig.answer();
    rig.saw(&["check"]);
    rig.connection = 3;
    rig.answer();
    rig.saw(&["append a"]);
}

#[test]
fn a_reply_of_an_earlier_connection_commits_but_verifies_nothing() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.say("b");
    rig.hear(OwnerInput::Connection(2));
    rig.answer();
    rig.saw(&["deliver turn t1", "ask", "append a", "deliver a", "check"]);
}

#[test]
fn lost_entries_are_told_again_after_a_reset() {
    let mut rig = Rig::new();
    let before = rig.slot.clone();
    rig.say("a");
    rig.answer();
    rig.say("b");
    rig.events();
    rig.slot = before;
    rig.lose();
    rig.say("c");
    rig.answer();
    rig.saw(&["check", "claim"]);
    rig.answer();
    rig.answer();
    rig.saw(&["deliver takeover", "reset", "deliver reset", "append abc"]);
    rig.end();
    rig.answer();
    rig.answer();
    rig.saw(&["deliver abc", "finish done", "deliver done", "released Idle"]);
    assert_eq!(rig.log(), ["turn t1", "takeover", "reset", "abc", "done"]);
}

#[test]
fn a_repeated_claim_keeps_its_mark_and_has_a_new_random_step() {
    let mut rig = Rig::new();
    rig.slot.as_mut().unwrap().log = None;
    rig.hear(OwnerInput::Cancel);
    rig.answer();
    let Some(Request::Claim(first)) = rig.call.clone() else { unreachable!() };
    rig.lose();
    let Some(Request::Claim(second)) = rig.call.clone() else { unreachable!() };
    assert_eq!(first.nonce, second.nonce);
    assert_ne!(first.jump, second.jump);
    assert!(first.jump < 1 << 20 && second.jump < 1 << 20);
    rig.answer();
    rig.answer();
    assert_eq!(rig.log(), ["takeover", "reset"]);
}

#[test]
fn a_session_that_is_anothers_is_let_go() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.events();
    execute(&mut rig.slot, &Request::Delete, rig.clock);
    rig.answer();
    rig.answer();
    rig.saw(&["check", "stop", "reread", "released NotMine"]);
    rig.say("late");
    rig.saw(&[]);
}

#[test]
fn an_end_in_another_epoch_is_a_loss() {
    let (mut slot, clock) = (None, StoreTime(1_000_000));
    let BeginReply::Owner { mut own, .. } = begin(&mut slot, clock, A, "t1") else { unreachable!() };
    let id = EntryId::new(own.epoch + 9, 4);
    let kind = EntryKind::Delta { text: "of a forgotten owner".into() };
    let stale = Entry { id, after: None, turn: own.turn.clone(), kind };
    execute(&mut slot, &Request::Append(Arc::new(stale)), clock);
    (own.end, own.len) = (id, 2);
    own.appended.clear();
    let mut rig = Rig::with(slot, clock, own, A, true);
    rig.saw(&["reread", "claim"]);
    rig.answer();
    rig.saw(&["deliver takeover", "read"]);
    rig.answer();
    rig.answer();
    rig.answer();
    rig.saw(&["check", "reset", "deliver reset", "ask"]);
}

#[test]
fn a_cancel_counts_once_the_store_says_so() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.answer();
    rig.say("b");
    rig.say("never shown");
    rig.events();
    rig.hear(OwnerInput::Cancel);
    let turn = TurnId::parse("t1").unwrap();
    let reply = execute(&mut rig.slot, &Request::Cancel { turn }, rig.clock);
    assert!(matches!(reply, Reply::Cancel(CancelReply::Marked { .. })));
    rig.answer();
    rig.saw(&["deliver b", "check"]);
    rig.answer();
    rig.saw(&["stop", "finish cancelled"]);
    rig.answer();
    rig.saw(&["deliver cancelled", "released Idle"]);
    assert_eq!(rig.slot.unwrap().history[0].answer.as_ref(), "ab");
}

#[test]
fn a_cancel_keeps_what_is_in_doubt() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.say("b");
    let turn = TurnId::parse("t1").unwrap();
    execute(&mut rig.slot, &Request::Cancel { turn }, rig.clock);
    rig.events();
    rig.lose();
    rig.answer();
    rig.saw(&["check", "stop", "append a"]);
    rig.answer();
    rig.saw(&["deliver a", "finish cancelled"]);
}

#[test]
fn drain_settles_what_is_in_flight_and_ends_the_lease() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.say("b");
    rig.events();
    rig.hear(OwnerInput::Drain(Leave::Now));
    rig.saw(&["stop"]);
    rig.answer();
    rig.saw(&["deliver a", "end lease"]);
    rig.answer();
    rig.saw(&["released Drained"]);
    let session = rig.slot.as_ref().unwrap();
    assert_eq!(session.root.lease_until, rig.clock);
    let mut rig = rig.taken_over(true);
    rig.answer();
    rig.saw(&["deliver takeover", "read", "continue a"]);
}

#[test]
fn drain_lets_go_even_if_the_store_is_silent() {
    let mut rig = Rig::new();
    rig.hear(OwnerInput::Drain(Leave::Now));
    rig.events();
    rig.lose();
    rig.lose();
    rig.reply(Err(Unknown));
    rig.saw(&["end lease", "end lease", "released Drained"]);
}

#[test]
fn drain_ends_what_has_its_answer_and_leaves_the_next() {
    let mut rig = Rig::new();
    begin(&mut rig.slot, rig.clock, B, "t2");
    rig.say("a");
    rig.end();
    rig.hear(OwnerInput::Drain(Leave::Now));
    rig.answer();
    rig.answer();
    rig.saw(&[
        "deliver turn t1",
        "ask",
        "append a",
        "deliver a",
        "finish done",
        "deliver done",
        "deliver turn t2",
        "end lease",
    ]);
}

#[test]
fn a_pod_that_leaves_later_ends_what_runs_and_leaves_what_waits() {
    let mut rig = Rig::new();
    begin(&mut rig.slot, rig.clock, B, "t2");
    rig.hear(OwnerInput::Drain(Leave::AfterThisTurn));
    rig.say("a");
    rig.answer();
    rig.end();
    rig.answer();
    rig.saw(&[
        "deliver turn t1",
        "ask",
        "append a",
        "deliver a",
        "finish done",
        "deliver done",
        "deliver turn t2",
        "end lease",
    ]);
}

#[test]
fn a_taken_over_answer_is_continued_or_begun_anew() {
    let half = || {
        let mut rig = Rig::new();
        for _ in 0..150 {
            rig.say("x");
            rig.answer();
        }
        rig
    };
    let mut rig = half().taken_over(true);
    rig.answer();
    rig.saw(&["deliver takeover", "read", "read"]);
    rig.answer();
    rig.saw(&[&format!("continue {}", "x".repeat(150))]);
    rig.say("y");
    rig.end();
    rig.answer();
    rig.answer();
    assert_eq!(rig.slot.unwrap().history[0].answer.as_ref(), "x".repeat(150) + "y");

    let mut rig = half().taken_over(false);
    rig.answer();
    rig.answer();
    rig.saw(&["deliver takeover", "read", "read", "reset"]);
    rig.answer();
    rig.saw(&["deliver reset", "ask"]);
    rig.say("z");
    rig.end();
    rig.answer();
    rig.answer();
    assert_eq!(rig.slot.unwrap().history[0].answer.as_ref(), "z");
}

#[test]
fn a_hole_in_what_is_taken_over_is_not_continued() {
    let mut rig = Rig::new();
    for text in ["a", "b", "c"] {
        rig.say(text);
        rig.answer();
    }
    rig.slot.as_mut().unwrap().log.as_mut().unwrap().remove(2);
    let mut rig = rig.taken_over(true);
    rig.answer();
    rig.answer();
    rig.answer();
    rig.saw(&["deliver takeover", "read", "check", "reset", "deliver reset", "ask"]);
}

#[test]
fn a_turn_taken_over_too_often_fails_and_a_cancelled_one_ends() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        rig = rig.taken_over(true);
    }
    rig.answer();
    rig.saw(&["deliver takeover", "read", "finish failed internal"]);

    let mut rig = Rig::new();
    rig.say("a");
    rig.answer();
    let turn = TurnId::parse("t1").unwrap();
    execute(&mut rig.slot, &Request::Cancel { turn }, rig.clock);
    let mut rig = rig.taken_over(true);
    rig.answer();
    rig.answer();
    rig.saw(&["deliver takeover", "read", "finish cancelled", "deliver cancelled", "released Idle"]);
    assert_eq!(rig.slot.unwrap().history[0].answer.as_ref(), "a");
}

#[test]
fn it_checks_three_times_a_lease_and_fails_at_the_deadline() {
    let mut rig = Rig::new();
    rig.events();
    let mut last = rig.now;
    while rig.owner.timeout().unwrap() < rig.owner.turn.deadline {
        rig.wake();
        rig.saw(&["check"]);
        assert_eq!(rig.now - last, CHECK_INTERVAL);
        last = rig.now;
        rig.answer();
    }
    rig.wake();
    rig.saw(&["stop", "finish failed upstream_timeout"]);
}

#[test]
fn a_silent_store_pauses_the_model() {
    let mut rig = Rig::new();
    let half = "x".repeat(UNCOMMITTED_MAX_BYTES / 2);
    rig.say("a");
    rig.say(&half);
    rig.events();
    rig.say(&half);
    rig.saw(&["pause"]);
    rig.answer();
    rig.saw(&["deliver a", &format!("append {} bytes", DELTA_MAX_BYTES)]);
    while rig.owner.upstream == Upstream::Paused {
        rig.answer();
    }
    let waits = rig.owner.turn.text.len() - rig.owner.turn.committed;
    assert!(waits <= UNCOMMITTED_MAX_BYTES / 2, "{waits}");
    assert!(rig.events().contains(&"resume".to_owned()));
}

#[test]
fn an_end_whose_reply_is_lost_is_sent_again_and_readers_look_for_it() {
    let mut rig = Rig::new();
    rig.end();
    let first = rig.call.clone();
    rig.carry_out();
    rig.events();
    rig.lose();
    assert_eq!(rig.call, first);
    rig.answer();
    rig.saw(&["finish done", "reread", "released Idle"]);
    assert_eq!(rig.log(), ["turn t1", "done"]);
}

#[test]
fn an_end_that_fits_on_a_log_that_is_too_short_is_a_loss() {
    let mut rig = Rig::new();
    for text in ["a", "b"] {
        rig.say(text);
        rig.answer();
    }
    rig.say("c");
    rig.carry_out();
    rig.slot.as_mut().unwrap().log.as_mut().unwrap().remove(1);
    rig.events();
    rig.lose();
    rig.answer();
    rig.saw(&["check", "claim"]);
}

#[test]
fn a_claims_reply_from_an_earlier_connection_is_checked() {
    let mut rig = Rig::new();
    rig.slot.as_mut().unwrap().log = None;
    rig.hear(OwnerInput::Cancel);
    rig.answer();
    rig.hear(OwnerInput::Connection(2));
    rig.events();
    rig.answer();
    rig.saw(&["deliver takeover", "check"]);
}

#[test]
fn an_answer_has_a_bound() {
    let mut rig = Rig::new();
    let piece = "é".repeat(ANSWER_MAX_BYTES / 16);
    for _ in 0..8 {
        rig.say(&piece);
        while rig.call.is_some() {
            rig.answer();
        }
    }
    rig.events();
    rig.say("!");
    rig.saw(&["stop", "finish failed too_large"]);
    let largest = rig.slot.as_ref().unwrap().log.as_ref().unwrap().iter().map(|e| e.payload_bytes()).max();
    assert_eq!(largest, Some(DELTA_MAX_BYTES));
}

#[test]
fn a_check_over_an_earlier_connection_does_not_end_an_ownership() {
    let mut rig = Rig::new();
    rig.hear(OwnerInput::Cancel);
    rig.hear(OwnerInput::Connection(2));
    let says = crate::log::CheckReply { mine: false, end: None, len: 0, cancel: false, queued: 0 };
    rig.reply(Ok(Reply::Check(says)));
    rig.saw(&["deliver turn t1", "ask", "check", "check"]);
}

#[test]
fn drain_leaves_what_is_in_doubt_to_the_next_owner() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.hear(OwnerInput::Drain(Leave::Now));
    rig.events();
    rig.lose();
    rig.answer();
    rig.saw(&["check", "end lease"]);

    let mut rig = Rig::new();
    rig.say("a");
    rig.hear(OwnerInput::Drain(Leave::Now));
    rig.slot.as_mut().unwrap().log = None;
    rig.events();
    rig.lose();
    rig.answer();
    rig.saw(&["check", "end lease"]);
}

#[test]
fn what_failed_is_tried_at_once_over_a_new_connection() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.reply(Err(Unknown));
    rig.events();
    rig.hear(OwnerInput::Connection(2));
    rig.saw(&["check"]);
}

#[test]
fn pauses_are_short_again_once_all_was_well() {
    let mut rig = Rig::new();
    rig.hear(OwnerInput::Cancel);
    for _ in 0..6 {
        rig.lose();
    }
    rig.answer();
    rig.hear(OwnerInput::Cancel);
    rig.reply(Err(Unknown));
    assert!(rig.owner.timeout().unwrap() - rig.now <= STORE_RETRY_MIN * 2);
}

#[test]
fn a_turn_that_ended_while_it_was_reset_is_not_asked_again() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.answer();
    let mut rig = rig.taken_over(false);
    rig.answer();
    rig.saw(&["deliver takeover", "read", "reset"]);
    rig.pass(Duration::from_secs(60));
    rig.hear(OwnerInput::Tick);
    rig.answer();
    rig.answer();
    rig.saw(&["deliver reset", "check", "finish failed upstream_timeout"]);
}

#[test]
fn a_turn_that_is_lost_too_often_fails() {
    let mut rig = Rig::new();
    for _ in 0..2 {
        rig.slot.as_mut().unwrap().log = None;
        rig.hear(OwnerInput::Cancel);
        rig.answer();
        rig.answer();
        rig.answer();
    }
    rig.slot.as_mut().unwrap().log = None;
    rig.hear(OwnerInput::Cancel);
    rig.events();
    rig.answer();
    rig.answer();
    rig.answer();
    rig.saw(&["claim", "deliver takeover", "stop", "reset", "deliver reset", "finish failed internal"]);
}

#[test]
fn a_cancel_that_a_claim_brings_counts() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.answer();
    rig.slot.as_mut().unwrap().log = None;
    rig.hear(OwnerInput::Cancel);
    rig.answer();
    let turn = TurnId::parse("t1").unwrap();
    execute(&mut rig.slot, &Request::Cancel { turn }, rig.clock);
    rig.events();
    for _ in 0..4 {
        rig.answer();
    }
    rig.saw(&[
        "deliver takeover",
        "stop",
        "reset",
        "deliver reset",
        "append a",
        "deliver a",
        "finish cancelled",
        "deliver cancelled",
        "released Idle",
    ]);
}

#[test]
fn an_answer_has_a_bound_on_its_entries() {
    let mut rig = Rig::new();
    while !rig.events().contains(&"stop".to_owned()) {
        rig.say("x");
        rig.answer();
    }
    let len = rig.slot.as_ref().unwrap().len();
    assert_eq!(len, crate::limits::TURN_ENTRIES_MAX);
    let session = rig.slot.as_ref().unwrap();
    assert_eq!(session.state_of(&TurnId::parse("t1").unwrap()).unwrap().as_str(), "failed");
}

#[test]
fn an_answer_that_breaks_off_is_continued_where_the_model_can() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.say("b");
    rig.events();
    rig.break_off(true);
    rig.saw(&["continue ab"]);
    rig.say("c");
    rig.end();
    rig.answer();
    rig.saw(&["deliver a", "append bc"]);
    rig.answer();
    rig.saw(&["deliver bc", "finish done"]);
    rig.answer();
    assert_eq!(rig.slot.unwrap().history[0].answer.as_ref(), "abc");
}

#[test]
fn an_answer_that_breaks_off_is_voided_and_told_anew_where_the_model_cannot_continue() {
    let mut rig = Rig::whose_model_continues(false);
    rig.say("a");
    rig.answer();
    rig.say("b");
    rig.say("never told");
    rig.events();
    rig.break_off(true);
    rig.saw(&[]);
    // The append under way comes first: its id is taken.
    rig.answer();
    rig.saw(&["deliver b", "reset"]);
    rig.answer();
    rig.saw(&["deliver reset", "ask"]);
    rig.say("x");
    rig.end();
    rig.answer();
    rig.answer();
    rig.saw(&["append x", "deliver x", "finish done", "deliver done", "released Idle"]);
    assert_eq!(rig.log(), ["turn t1", "a", "b", "reset", "x", "done"]);
    assert_eq!(rig.slot.unwrap().history[0].answer.as_ref(), "x");
}

#[test]
fn an_append_in_doubt_is_settled_before_its_text_is_voided() {
    for carried_out in [false, true] {
        let mut rig = Rig::whose_model_continues(false);
        rig.say("a");
        rig.events();
        rig.break_off(true);
        if carried_out {
            rig.carry_out();
        }
        rig.lose();
        rig.saw(&["check"]);
        rig.answer();
        if !carried_out {
            rig.saw(&["append a"]);
            rig.answer();
        }
        rig.saw(&["deliver a", "reset"]);
        rig.answer();
        rig.saw(&["deliver reset", "ask"]);
        assert_eq!(rig.log(), ["turn t1", "a", "reset"]);
    }
}

#[test]
fn an_answer_that_always_breaks_off_fails_in_the_end() {
    for prefill in [true, false] {
        let mut rig = Rig::whose_model_continues(prefill);
        for _ in 0..ANSWER_RESUMES_MAX {
            rig.say("a");
            rig.answer();
            rig.break_off(true);
            if !prefill {
                rig.answer();
            }
            assert!(rig.events().last().unwrap().contains(if prefill { "continue a" } else { "ask" }));
        }
        rig.say("a");
        rig.answer();
        rig.events();
        rig.break_off(true);
        rig.saw(&["finish failed upstream_unavailable"]);
    }
}

#[test]
fn what_is_the_requests_fault_or_has_told_nothing_or_is_over_is_not_asked_again() {
    let mut rig = Rig::new();
    rig.say("a");
    rig.answer();
    rig.events();
    rig.break_off(false);
    rig.saw(&["finish failed upstream_unavailable"]);
    let mut rig = Rig::new();
    rig.events();
    rig.break_off(true);
    rig.saw(&["finish failed upstream_unavailable"]);
    // Cancelled, and left to another pod: the model is off.
    let mut rig = Rig::new();
    rig.say("a");
    rig.answer();
    rig.hear(OwnerInput::Drain(Leave::Now));
    rig.events();
    rig.break_off(true);
    rig.saw(&[]);
}

#[test]
fn a_cancel_after_the_break_ends_the_voided_turn() {
    let mut rig = Rig::whose_model_continues(false);
    rig.say("a");
    rig.answer();
    rig.events();
    rig.break_off(true);
    rig.saw(&["reset"]);
    rig.answer();
    rig.saw(&["deliver reset", "ask"]);
    rig.say("x");
    let cancel = Request::Cancel { turn: TurnId::parse("t1").unwrap() };
    execute(&mut rig.slot, &cancel, rig.clock);
    rig.hear(OwnerInput::Cancel);
    rig.answer();
    rig.answer();
    rig.answer();
    assert_eq!(rig.log(), ["turn t1", "a", "reset", "x", "cancelled"]);
}
