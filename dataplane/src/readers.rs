//! The sessions one connection reads: one reader a session, all fed from one mailbox.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limits::SESSIONS_PER_CONNECTION_MAX,
    log::{Entry, EntryId, PodId, Reader, ReaderEffect, ReaderInput, Reply, SessionId, Unknown},
};
use tokio::time::Sleep;

use crate::{
    clock,
    gateway::{Caller, Gateway, Receipt, SendTurn},
    hub::{Channel, Mail, Mailbox},
    store::{Answer, Call},
};

/// Events for which an idle connection keeps room.
const KEPT_EVENTS: usize = 4;

/// What a connection is told of the sessions it reads.
#[derive(Debug)]
pub enum ReaderEvent {
    /// The outcome of a resume. Not recovered: the reader is gone, no entry follows.
    Resumed {
        /// The session.
        session: SessionId,
        /// Whether every later entry follows.
        recovered: bool,
        /// The reader's position.
        position: EntryId,
    },
    /// The next entry.
    Entry {
        /// The session.
        session: SessionId,
        /// The entry.
        entry: Arc<Entry>,
    },
    /// The session was deleted; the reader is gone.
    Gone {
        /// The session.
        session: SessionId,
    },
    /// The reader was too slow and the log no longer reaches back: close with 3008.
    Slow {
        /// The session.
        session: SessionId,
    },
}

struct Attached {
    session: SessionId,
    channel: Arc<Channel>,
    reader: Reader,
    /// A read of the log that is under way.
    read: Option<Call>,
    /// Who owned the session when it was read last.
    owner: Option<PodId>,
    /// Whether a good position is told as `Resumed` (it is not after a `send`, which has its receipt).
    tell: bool,
    /// Where the client asked to resume.
    asked: EntryId,
}

/// See the module.
pub struct Readers {
    gateway: Arc<Gateway>,
    caller: Caller,
    mailbox: Arc<Mailbox>,
    /// By slot.
    attached: Vec<Option<Attached>>,
    ready: VecDeque<ReaderEvent>,
    effects: Vec<ReaderEffect>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Readers {
    pub(crate) fn new(gateway: Arc<Gateway>, caller: Caller) -> Self {
        // What a connection needs for its first session is taken at once: taken later, in the middle of an answer, it would
        // pin the memory around it for as long as the connection lives.
        Self {
            gateway,
            caller,
            mailbox: Arc::new(Mailbox::with_room()),
            attached: Vec::with_capacity(1),
            ready: VecDeque::with_capacity(KEPT_EVENTS),
            effects: Vec::with_capacity(KEPT_EVENTS),
            timer: None,
        }
    }

    /// On whose behalf they read.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Whether there is another pod where a client can read on.
    #[must_use]
    pub fn can_move(&self) -> bool {
        self.gateway.others.are_there()
    }

    /// Whether a turn runs or waits in one of the sessions, as far as their entries tell.
    #[must_use]
    pub fn answering(&self) -> bool {
        self.attached.iter().flatten().any(|a| a.reader.unfinished())
    }

    /// Whether everything in the logs has been told, and nothing more is to come of itself: no turn runs or waits, as far as
    /// the entries tell.
    #[must_use]
    pub fn at_rest(&self) -> bool {
        let at_rest = |reader: &Reader| reader.is_live() && !reader.unfinished();
        self.ready.is_empty() && self.attached.iter().flatten().all(|a| at_rest(&a.reader))
    }

    fn slot_of(&self, session: &SessionId) -> Option<usize> {
        self.attached.iter().position(|a| a.as_ref().is_some_and(|a| a.session == *session))
    }

    /// A slot for one more session.
    fn free_slot(&mut self) -> Result<usize, Refusal> {
        if let Some(slot) = self.attached.iter().position(Option::is_none) {
            return Ok(slot);
        }
        if self.attached.len() >= SESSIONS_PER_CONNECTION_MAX {
            self.gateway.metrics.limit_hit("sessions_per_connection");
            let message = format!("a connection may read {SESSIONS_PER_CONNECTION_MAX} sessions; open another one");
            return Err(self.gateway.refused(Refusal::new(ErrorCode::InvalidRequest, message)));
        }
        // Most connections read one session, and there are many connections.
        self.attached.reserve_exact(1);
        self.attached.push(None);
        Ok(self.attached.len() - 1)
    }

    /// Accepts a turn. Unless the session is attached already, it is attached just before the turn's entry.
    ///
    /// # Errors
    /// Why the turn was refused; it may be sent again under the same id.
    pub async fn send(&mut self, send: SendTurn) -> Result<Receipt, Refusal> {
        if let Some(slot) = self.slot_of(&send.session)
            && let Some(attached) = &self.attached[slot]
        {
            let channel = attached.channel.clone();
            return self.gateway.begin(&self.caller, &channel, send).await;
        }
        let slot = self.free_slot()?;
        let session = send.session.clone();
        let channel = self.gateway.hub.channel(&self.caller.key(&session));
        let mailbox = self.mailbox.clone();
        // Subscribed before the turn begins, so that no entry of it can pass.
        let subscription = Subscription::new(channel.clone(), mailbox, slot);
        let receipt = self.gateway.begin(&self.caller, &channel, send).await?;
        subscription.keep();
        // A turn that ended may be trimmed away, and one that is known may have entries already: those are read. And so is what
        // may have been missed of another pod.
        let live = (!receipt.duplicate || receipt.from.is_none()) && channel.misses_nothing();
        let asked = receipt.from.unwrap_or(receipt.end);
        self.attach(slot, session, channel, asked, live);
        Ok(receipt)
    }

    /// Reads a session after an entry; moves its reader if there is one. The outcome is the next [`ReaderEvent::Resumed`].
    ///
    /// # Errors
    /// Where the connection reads too many sessions.
    pub fn resume(&mut self, session: SessionId, after: EntryId) -> Result<(), Refusal> {
        if let Some(slot) = self.slot_of(&session) {
            self.detach(slot);
        }
        let slot = self.free_slot()?;
        let channel = self.gateway.hub.channel(&self.caller.key(&session));
        let mailbox = self.mailbox.clone();
        channel.subscribe(&mailbox, slot_number(slot));
        self.attach(slot, session, channel, after, false);
        if let Some(attached) = &mut self.attached[slot] {
            attached.tell = true;
        }
        Ok(())
    }

    /// Puts a reader into a slot: `live` where the store gave the position just now, else it reads the log first.
    fn attach(&mut self, slot: usize, session: SessionId, channel: Arc<Channel>, position: EntryId, live: bool) {
        let mut effects = std::mem::take(&mut self.effects);
        let reader = if live {
            Reader::attach(position, clock::now())
        } else {
            Reader::resume(position, clock::now(), &mut effects)
        };
        self.attached[slot] =
            Some(Attached { session, channel, reader, read: None, owner: None, tell: false, asked: position });
        self.carry_out_all(slot, effects);
    }

    /// Stops reading a session.
    fn detach(&mut self, slot: usize) {
        if let Some(attached) = self.attached[slot].take() {
            attached.channel.unsubscribe(&self.mailbox, slot_number(slot));
            self.mailbox.forget(slot_number(slot));
        }
    }

    /// The next event. Pends while nothing is attached. May be dropped and called again.
    pub async fn next(&mut self) -> ReaderEvent {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// What is there now.
    pub fn try_next(&mut self) -> Option<ReaderEvent> {
        loop {
            if let Some(event) = self.pop_ready() {
                return Some(event);
            }
            let (slot, mail) = self.mailbox.pop()?;
            self.deliver(slot, mail);
        }
    }

    /// The next event; the caller is woken when there is one.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<ReaderEvent> {
        loop {
            if let Some(event) = self.pop_ready() {
                return Poll::Ready(event);
            }
            if let Poll::Ready((slot, mail)) = self.mailbox.poll_pop(cx) {
                self.deliver(slot, mail);
                continue;
            }
            if self.poll_reads(cx) || self.poll_timer(cx) {
                continue;
            }
            return Poll::Pending;
        }
    }

    fn pop_ready(&mut self) -> Option<ReaderEvent> {
        let event = self.ready.pop_front()?;
        if self.ready.is_empty() && self.ready.capacity() > KEPT_EVENTS {
            self.ready = VecDeque::new();
        }
        Some(event)
    }

    fn deliver(&mut self, slot: u32, mail: Mail) {
        let slot = slot as usize;
        match mail {
            Mail::Entry(entry) => self.feed(slot, ReaderInput::Live(entry)),
            Mail::Overflow => self.feed(slot, ReaderInput::Overflow),
            Mail::Deleted => {
                if let Some(attached) = self.attached.get(slot).and_then(Option::as_ref) {
                    self.ready.push_back(ReaderEvent::Gone { session: attached.session.clone() });
                    self.detach(slot);
                }
            }
        }
    }

    /// Takes replies that have come. Whether there was one.
    fn poll_reads(&mut self, cx: &mut Context<'_>) -> bool {
        for slot in 0..self.attached.len() {
            let Some(Attached { read: Some(call), .. }) = &mut self.attached[slot] else { continue };
            if let Poll::Ready(answer) = Pin::new(call).poll(cx) {
                self.page(slot, answer);
                return true;
            }
        }
        false
    }

    fn page(&mut self, slot: usize, answer: Answer) {
        if let Some(attached) = &mut self.attached[slot] {
            attached.read = None;
        }
        let page = match answer.result {
            Ok(Reply::Read(page)) => Ok(page),
            _ => Err(Unknown),
        };
        if let (Ok(page), Some(attached)) = (&page, &mut self.attached[slot]) {
            attached.owner = page.owner;
            self.gateway.notice_owner(&attached.channel, page);
        }
        self.feed(slot, ReaderInput::Page(page));
    }

    /// Lets time pass for readers that wait for it. Whether one had something to do.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.attached.iter().flatten().filter_map(|a| a.reader.timeout()).min() else {
            self.timer = None;
            return false;
        };
        let due = deadline <= clock::now() || {
            let at = tokio::time::Instant::from_std(deadline);
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            // Each entry moves the deadline on; the timer is only moved when it has fired or is too late.
            if timer.deadline() > at {
                timer.as_mut().reset(at);
            }
            match timer.as_mut().poll(cx) {
                Poll::Pending => false,
                Poll::Ready(()) if deadline <= clock::now() => true,
                Poll::Ready(()) => {
                    timer.as_mut().reset(at);
                    timer.as_mut().poll(cx).is_ready()
                }
            }
        };
        if due {
            self.tick(clock::now());
        }
        due
    }

    fn tick(&mut self, now: Instant) {
        self.timer = None;
        for slot in 0..self.attached.len() {
            let due = self.attached[slot].as_ref().and_then(|a| a.reader.timeout()).is_some_and(|t| t <= now);
            if due {
                self.feed(slot, ReaderInput::Tick);
            }
        }
    }

    /// Gives a reader something to decide on, and does what it decides.
    fn feed(&mut self, slot: usize, input: ReaderInput) {
        let Some(Some(attached)) = self.attached.get_mut(slot) else { return };
        let mut effects = std::mem::take(&mut self.effects);
        attached.reader.handle(input, clock::now(), &mut effects);
        self.carry_out_all(slot, effects);
    }

    fn carry_out_all(&mut self, slot: usize, mut effects: Vec<ReaderEffect>) {
        for effect in effects.drain(..) {
            self.carry_out(slot, effect);
        }
        // After a page of the log the room it took is given back: connections are idle most of the time.
        if effects.capacity() <= KEPT_EVENTS {
            self.effects = effects;
        }
    }

    fn carry_out(&mut self, slot: usize, effect: ReaderEffect) {
        let Some(Some(attached)) = self.attached.get_mut(slot) else { return };
        let session = attached.session.clone();
        match effect {
            ReaderEffect::Entry(entry) => self.ready.push_back(ReaderEvent::Entry { session, entry }),
            ReaderEffect::Read { after, count } => {
                attached.read = Some(self.gateway.read(&attached.channel, after, count));
            }
            ReaderEffect::Resumed { position } => {
                if std::mem::take(&mut attached.tell) {
                    self.ready.push_back(ReaderEvent::Resumed { session, recovered: true, position });
                }
            }
            ReaderEffect::NotRecovered => {
                let position = attached.asked;
                self.ready.push_back(ReaderEvent::Resumed { session, recovered: false, position });
                self.detach(slot);
            }
            ReaderEffect::Slow => {
                self.ready.push_back(ReaderEvent::Slow { session });
                self.detach(slot);
            }
            ReaderEffect::Gone => {
                self.ready.push_back(ReaderEvent::Gone { session });
                self.detach(slot);
            }
            ReaderEffect::OwnerSilent { lease_over: true } => self.gateway.look_after(attached.channel.clone()),
            ReaderEffect::OwnerSilent { lease_over: false } => {
                self.gateway.tell_owner(&attached.channel.key, attached.owner);
            }
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        for slot in 0..self.attached.len() {
            self.detach(slot);
        }
    }
}

/// A subscription that is taken back unless it is kept, for a send that is refused or dropped.
struct Subscription {
    channel: Arc<Channel>,
    mailbox: Arc<Mailbox>,
    slot: u32,
    kept: bool,
}

impl Subscription {
    fn new(channel: Arc<Channel>, mailbox: Arc<Mailbox>, slot: usize) -> Self {
        let slot = slot_number(slot);
        channel.subscribe(&mailbox, slot);
        Self { channel, mailbox, slot, kept: false }
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if !self.kept {
            self.channel.unsubscribe(&self.mailbox, self.slot);
            self.mailbox.forget(self.slot);
        }
    }
}

fn slot_number(slot: usize) -> u32 {
    // Below SESSIONS_PER_CONNECTION_MAX.
    u32::try_from(slot).unwrap_or(u32::MAX)
}
