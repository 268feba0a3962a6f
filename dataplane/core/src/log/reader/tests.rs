use super::*;
use crate::{
    limits::LEASE_TTL,
    log::{
        Begin, BeginReply, Claim, ClaimReason, Finish, Nonce, Ownership, PodId, Reply, Request, StoreTime, Terms,
        TurnBody, TurnId, Usage,
        store::{SessionState, execute},
    },
};

const A: PodId = PodId(1);

/// A session that is written to directly, and a reader of it.
struct Rig {
    slot: Option<SessionState>,
    clock: StoreTime,
    now: Instant,
    own: Option<Ownership>,
    keep_turns: usize,
    reader: Option<Reader>,
    read: Option<(EntryId, usize)>,
    events: Vec<String>,
}

impl Rig {
    fn new() -> Self {
        Self {
            slot: None,
            clock: StoreTime(1_000_000),
            now: Instant::now(),
            own: None,
            keep_turns: 40,
            reader: None,
            read: None,
            events: Vec::new(),
        }
    }

    fn terms(&self) -> Terms {
        Terms { ttl_ms: 900_000, lease_ms: 4_000, keep_turns: self.keep_turns }
    }

    fn ask(&mut self, request: &Request) -> Reply {
        self.clock.0 += 1;
        execute(&mut self.slot, request, self.clock)
    }

    fn begin(&mut self, name: &str) -> Arc<Entry> {
        let body = Arc::new(TurnBody::new("hi".into(), "".into()));
        let turn = TurnId::parse(name).unwrap();
        let begin = Begin { pod: A, nonce: Nonce(self.clock.0), turn, seq: None, body, jump: 1, terms: self.terms() };
        let Reply::Begin(BeginReply::Owner { own, .. }) = self.ask(&Request::Begin(begin)) else { unreachable!() };
        let entry = Arc::clone(&own.appended[0]);
        self.own = Some(own);
        entry
    }

    fn entry(&self, kind: EntryKind) -> Arc<Entry> {
        let own = self.own.as_ref().unwrap();
        Arc::new(Entry { id: EntryId::new(own.epoch, own.end.n + 1), after: None, turn: own.turn.clone(), kind })
    }

    fn append(&mut self, text: &str) -> Arc<Entry> {
        let entry = self.entry(EntryKind::Delta { text: text.into() });
        assert_eq!(self.ask(&Request::Append(Arc::clone(&entry))), Reply::Append(true));
        let own = self.own.as_mut().unwrap();
        (own.end, own.len) = (entry.id, own.len + 1);
        entry
    }

    fn finish(&mut self) -> Arc<Entry> {
        let entry = self.entry(EntryKind::Done { finish_reason: "stop".into(), usage: Usage::default() });
        let (terms, own) = (self.terms(), self.own.take().unwrap());
        let (follows, len, epoch) = (own.end, own.len, own.epoch);
        let finish = Finish { pod: A, epoch, follows, len, entry: Arc::clone(&entry), answer: "x".into(), terms };
        let Reply::Finish(crate::log::FinishReply::Ended { .. }) = self.ask(&Request::Finish(finish)) else {
            unreachable!()
        };
        entry
    }

    /// The owner tells the turn anew in a new epoch.
    fn repair(&mut self) -> Arc<Entry> {
        let epoch = self.own.as_ref().unwrap().epoch;
        let why = ClaimReason::Loss { epoch };
        let claim = Claim { pod: A, nonce: Nonce(self.clock.0), why, jump: 1, terms: self.terms() };
        let Reply::Claim(crate::log::ClaimReply::Owner(own)) = self.ask(&Request::Claim(claim)) else { unreachable!() };
        self.own = Some(own);
        let entry = self.entry(EntryKind::Reset);
        let own = self.own.as_mut().unwrap();
        let (epoch, follows, len) = (own.epoch, own.end, own.len);
        let reset = crate::log::Reset { pod: A, epoch, follows, len, entry: Arc::clone(&entry) };
        (own.end, own.len) = (entry.id, len + 1);
        assert_eq!(self.ask(&Request::Reset(reset)), Reply::Reset(true));
        entry
    }

    fn resume(&mut self, after: EntryId) {
        let mut out = Vec::new();
        self.reader = Some(Reader::resume(after, self.now, &mut out));
        self.note(out);
    }

    fn attach(&mut self, position: EntryId) {
        self.reader = Some(Reader::attach(position, self.now));
    }

    fn hear(&mut self, input: ReaderInput) {
        let mut out = Vec::new();
        self.reader.as_mut().unwrap().handle(input, self.now, &mut out);
        self.note(out);
    }

    fn live(&mut self, entry: &Arc<Entry>) {
        self.hear(ReaderInput::Live(Arc::clone(entry)));
    }

    fn note(&mut self, effects: Vec<ReaderEffect>) {
        for effect in effects {
            let text = match effect {
                ReaderEffect::Read { after, count } => {
                    assert!(self.read.is_none(), "two reads at a time");
                    self.read = Some((after, count));
                    "read".into()
                }
                ReaderEffect::Resumed { .. } => "resumed".into(),
                ReaderEffect::Entry(entry) => match &entry.kind {
                    EntryKind::Turn { .. } => "turn".into(),
                    EntryKind::Delta { text } => text.to_string(),
                    EntryKind::Done { .. } => "done".into(),
                    EntryKind::Takeover { .. } => "takeover".into(),
                    EntryKind::Reset => "reset".into(),
                    other => unreachable!("{other:?}"),
                },
                ReaderEffect::NotRecovered => "not recovered".into(),
                ReaderEffect::Slow => "slow".into(),
                ReaderEffect::Gone => "gone".into(),
                ReaderEffect::OwnerSilent { lease_over: true } => "claim".into(),
                ReaderEffect::OwnerSilent { lease_over: false } => "notify".into(),
            };
            self.events.push(text);
        }
    }

    /// The store answers the outstanding read, and those that follow from it.
    fn answer(&mut self) {
        while self.read.is_some() {
            self.page();
        }
    }

    fn page(&mut self) {
        let (after, count) = self.read.take().unwrap();
        let Reply::Read(page) = self.ask(&Request::Read { after, count }) else { unreachable!() };
        self.hear(ReaderInput::Page(Ok(page)));
    }

    fn wake(&mut self) {
        let at = self.reader.as_ref().unwrap().timeout().unwrap();
        self.clock.0 += at.saturating_duration_since(self.now).as_micros() as u64;
        self.now = at;
        self.hear(ReaderInput::Tick);
    }

    #[track_caller]
    fn saw(&mut self, expected: &[&str]) {
        assert_eq!(std::mem::take(&mut self.events), expected);
    }

    fn log(&mut self) -> &mut std::collections::VecDeque<Arc<Entry>> {
        self.slot.as_mut().unwrap().log.as_mut().unwrap()
    }
}

#[test]
fn a_reader_resumes_reads_pages_and_goes_live() {
    let mut rig = Rig::new();
    rig.begin("t1");
    for _ in 0..READ_PAGE_ENTRIES {
        rig.append("x");
    }
    rig.resume(EntryId::ZERO);
    rig.answer();
    let events = std::mem::take(&mut rig.events);
    assert_eq!((&*events[0], &*events[1], &*events[2]), ("read", "resumed", "turn"));
    assert_eq!(events.iter().filter(|event| *event == "read").count(), 2);
    assert_eq!(events.iter().filter(|event| *event == "x").count(), READ_PAGE_ENTRIES);
    assert!(rig.reader.as_ref().unwrap().is_live());
    let next = rig.append("y");
    rig.live(&next);
    rig.saw(&["y"]);
}

#[test]
fn an_attached_reader_needs_no_read() {
    let mut rig = Rig::new();
    rig.attach(EntryId::ZERO);
    let turn = rig.begin("t1");
    rig.live(&turn);
    let delta = rig.append("a");
    rig.live(&delta);
    rig.live(&delta);
    rig.saw(&["turn", "a"]);
}

#[test]
fn what_comes_while_a_page_is_read_is_kept_or_read() {
    let mut rig = Rig::new();
    let turn = rig.begin("t1");
    rig.resume(EntryId::ZERO);
    let a = rig.append("a");
    // In the page, after it, and again.
    for entry in [&turn, &a] {
        rig.live(entry);
    }
    let Some((after, count)) = rig.read.take() else { unreachable!() };
    let Reply::Read(page) = rig.ask(&Request::Read { after, count }) else { unreachable!() };
    let b = rig.append("b");
    rig.live(&b);
    rig.hear(ReaderInput::Page(Ok(page)));
    rig.saw(&["read", "resumed", "turn", "a", "b"]);

    rig.hear(ReaderInput::Overflow);
    for _ in 0..=READER_HELD_ENTRIES {
        let entry = rig.append("c");
        rig.live(&entry);
    }
    rig.page();
    assert_eq!(rig.events.last().map(String::as_str), Some("read"), "too much was heard: read once more");
    rig.answer();
    assert!(rig.reader.unwrap().is_live());
}

#[test]
fn a_hole_in_what_is_heard_is_read() {
    let mut rig = Rig::new();
    let turn = rig.begin("t1");
    rig.attach(EntryId::ZERO);
    rig.live(&turn);
    rig.append("a");
    let b = rig.append("b");
    rig.live(&b);
    rig.answer();
    rig.saw(&["turn", "read", "a", "b"]);
}

#[test]
fn an_entry_that_does_not_follow_is_looked_into_even_below_the_position() {
    let mut rig = Rig::new();
    let turn = rig.begin("t1");
    rig.attach(EntryId::ZERO);
    rig.live(&turn);
    // Another log, of a store whose clock is behind: nothing of it follows the position, and all of it is below.
    rig.slot = None;
    rig.clock = StoreTime(5);
    let turn = rig.begin("t2");
    rig.live(&turn);
    rig.answer();
    rig.saw(&["turn", "read", "read", "not recovered"]);
}

#[test]
fn what_was_heard_behind_a_hole_makes_it_read_once_more() {
    let mut rig = Rig::new();
    let turn = rig.begin("t1");
    rig.resume(EntryId::ZERO);
    let Some((after, count)) = rig.read.take() else { unreachable!() };
    let Reply::Read(page) = rig.ask(&Request::Read { after, count }) else { unreachable!() };
    rig.append("a");
    let b = rig.append("b");
    rig.live(&turn);
    rig.live(&b);
    rig.hear(ReaderInput::Page(Ok(page)));
    rig.answer();
    rig.saw(&["read", "resumed", "turn", "read", "a", "b"]);
}

#[test]
fn positions_that_are_not_of_this_log_are_not_recovered() {
    let mut rig = Rig::new();
    rig.begin("t1");
    let a = rig.append("a");
    let epoch = a.id.epoch;
    for wrong in [EntryId::new(epoch, 5), EntryId::new(epoch - 1, 0), EntryId::new(epoch + 1, 0), EntryId::new(3, 3)] {
        rig.resume(wrong);
        rig.answer();
        assert_eq!(rig.events.last().map(String::as_str), Some("not recovered"), "{wrong}");
        assert!(rig.reader.as_ref().unwrap().is_closed());
        rig.events.clear();
    }
    rig.finish();
    rig.resume(EntryId::new(epoch, 9));
    rig.answer();
    rig.saw(&["read", "not recovered"]);
}

#[test]
fn an_unknown_session_is_good_at_zero_only() {
    let mut rig = Rig::new();
    rig.resume(EntryId::ZERO);
    // The first turn is accepted while the read is under way.
    let Some((after, count)) = rig.read.take() else { unreachable!() };
    let Reply::Read(page) = rig.ask(&Request::Read { after, count }) else { unreachable!() };
    let turn = rig.begin("t1");
    rig.live(&turn);
    rig.hear(ReaderInput::Page(Ok(page)));
    rig.saw(&["read", "resumed", "turn"]);

    let mut rig = Rig::new();
    rig.resume(EntryId::new(7, 0));
    rig.answer();
    rig.saw(&["read", "not recovered"]);
}

#[test]
fn a_position_cut_off_just_before_the_first_entry_is_still_good() {
    let mut rig = Rig { keep_turns: 1, ..Rig::new() };
    rig.begin("t1");
    let done = rig.finish();
    rig.begin("t2");
    rig.finish();
    assert_eq!(rig.log().len(), 2);
    rig.resume(done.id);
    rig.answer();
    rig.saw(&["read", "resumed", "turn", "done"]);
    rig.resume(EntryId::ZERO);
    rig.answer();
    rig.saw(&["read", "not recovered"]);
}

#[test]
fn a_reader_that_the_cut_overtakes_is_slow() {
    let mut rig = Rig { keep_turns: 1, ..Rig::new() };
    let turn = rig.begin("t1");
    rig.attach(EntryId::ZERO);
    rig.live(&turn);
    rig.finish();
    rig.begin("t2");
    rig.finish();
    rig.hear(ReaderInput::Overflow);
    rig.answer();
    rig.saw(&["turn", "read", "slow"]);
}

#[test]
fn a_deleted_session_is_gone() {
    let mut rig = Rig::new();
    let turn = rig.begin("t1");
    rig.attach(EntryId::ZERO);
    rig.live(&turn);
    rig.ask(&Request::Delete);
    rig.hear(ReaderInput::Suspect);
    rig.answer();
    rig.saw(&["turn", "read", "gone"]);

    let mut rig = Rig::new();
    rig.begin("t1");
    rig.attach(EntryId::ZERO);
    rig.ask(&Request::Delete);
    rig.hear(ReaderInput::Suspect);
    rig.answer();
    rig.saw(&["read", "gone"]);
}

#[test]
fn lost_entries_are_noticed_at_the_next_entry() {
    let mut rig = Rig::new();
    let turn = rig.begin("t1");
    rig.attach(EntryId::ZERO);
    rig.live(&turn);
    for text in ["a", "b"] {
        let entry = rig.append(text);
        rig.live(&entry);
    }
    rig.log().pop_back();
    let reset = rig.repair();
    rig.live(&reset);
    rig.answer();
    rig.saw(&["turn", "a", "b", "read", "read", "not recovered"]);
}

#[test]
fn a_break_that_is_not_repaired_yet_is_waited_for() {
    let mut rig = Rig::new();
    let turn = rig.begin("t1");
    rig.attach(EntryId::ZERO);
    rig.live(&turn);
    for text in ["a", "b"] {
        let entry = rig.append(text);
        rig.live(&entry);
    }
    // The middle is lost, and the owner has not noticed.
    rig.log().remove(1);
    rig.resume(EntryId::new(turn.id.epoch, 1));
    rig.answer();
    rig.saw(&["turn", "a", "b", "read", "resumed", "b"]);
    rig.resume(turn.id);
    rig.answer();
    rig.saw(&["read", "read", "notify"]);
    let delta = rig.append("c");
    rig.live(&delta);
    rig.wake();
    rig.answer();
    rig.saw(&["read", "read", "notify"]);
    let reset = rig.repair();
    rig.live(&reset);
    rig.answer();
    rig.saw(&["read", "read", "not recovered"]);
}

#[test]
fn what_a_stale_writer_left_in_an_idle_session_is_nobodys() {
    let mut rig = Rig::new();
    let turn = rig.begin("t1");
    let stale = Entry { id: EntryId::new(turn.id.epoch + 5, 3), ..Entry::clone(&turn) };
    let done = rig.finish();
    assert_eq!(rig.ask(&Request::Append(Arc::new(Entry { after: None, ..stale }))), Reply::Append(true));
    rig.resume(EntryId::ZERO);
    rig.answer();
    rig.saw(&["read", "resumed", "turn", "done"]);
    assert_eq!(rig.reader.as_ref().map(Reader::position), Some(done.id));
    assert!(rig.reader.unwrap().is_live());
}

#[test]
fn silence_of_an_unfinished_turn_is_looked_into() {
    let mut rig = Rig::new();
    let turn = rig.begin("t1");
    rig.attach(EntryId::ZERO);
    rig.live(&turn);
    let started = rig.now;
    rig.wake();
    assert_eq!(rig.now - started, READER_SILENCE);
    rig.answer();
    rig.saw(&["turn", "read"]);
    rig.clock.0 += LEASE_TTL.as_micros() as u64;
    rig.wake();
    rig.answer();
    rig.saw(&["read", "claim"]);
    rig.finish();
    rig.wake();
    rig.answer();
    rig.saw(&["read", "done"]);
    assert_eq!(rig.reader.unwrap().timeout(), None, "an idle session needs no looking after");
}

#[test]
fn a_failed_read_is_repeated_ever_more_slowly() {
    let mut rig = Rig::new();
    rig.begin("t1");
    rig.resume(EntryId::ZERO);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        rig.read = None;
        rig.hear(ReaderInput::Page(Err(Unknown)));
        pauses.push(rig.reader.as_ref().unwrap().timeout().unwrap() - rig.now);
        rig.wake();
    }
    assert!(pauses.is_sorted() && pauses[6] > pauses[0] && pauses[6] <= STORE_RETRY_MAX, "{pauses:?}");
    rig.events.clear();
    rig.answer();
    rig.saw(&["resumed", "turn"]);
}

#[test]
fn a_repair_during_the_judgement_is_seen_at_once() {
    let mut rig = Rig::new();
    let turn = rig.begin("t1");
    rig.append("a");
    rig.append("b");
    rig.log().remove(1);
    rig.resume(turn.id);
    rig.page();
    rig.repair();
    rig.answer();
    rig.saw(&["read", "read", "read", "read", "not recovered"]);
}

#[test]
fn a_lease_that_is_over_is_claimed_at_every_look() {
    let mut rig = Rig::new();
    rig.begin("t1");
    rig.clock.0 += LEASE_TTL.as_micros() as u64;
    rig.resume(EntryId::ZERO);
    rig.answer();
    rig.saw(&["read", "resumed", "turn", "claim"]);
    rig.wake();
    rig.answer();
    rig.saw(&["read", "claim"]);
}
