//! Who in this pod reads and who runs a session: committed entries go from its owner to its readers here.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use chatgateway_core::{
    limits::{MAILBOX_MAX_BYTES, MAILBOX_MAX_ENTRIES, SHARDS},
    log::{Entry, Leave, PodId, SessionKey},
};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{shard::shard_of, store::Store};

/// Pieces of mail for which an idle connection keeps room.
const KEPT_MAIL: usize = 8;

/// What waits for a connection.
#[derive(Debug)]
pub enum Mail {
    /// A committed entry.
    Entry(Arc<Entry>),
    /// Entries did not fit: the reader has to read the log.
    Overflow,
    /// The session was deleted.
    Deleted,
}

#[derive(Default)]
struct MailboxInner {
    /// With the slot of the connection's reader each is for.
    queue: VecDeque<(u32, Mail)>,
    bytes: usize,
    /// Slots that got an `Overflow` and have not yet been emptied.
    behind: Vec<u32>,
}

impl MailboxInner {
    /// The slot's reader has to read the log; what waits for it is in there.
    fn send_to_log(&mut self, slot: u32) {
        if !self.behind.contains(&slot) {
            self.drop_entries(slot);
            self.behind.push(slot);
            self.queue.push_back((slot, Mail::Overflow));
        }
    }

    /// Throws away the entries that wait for a slot.
    fn drop_entries(&mut self, slot: u32) {
        let mut freed = 0;
        self.queue.retain(|(s, mail)| match mail {
            Mail::Entry(entry) if *s == slot => {
                freed += entry.payload_bytes();
                false
            }
            _ => true,
        });
        self.bytes -= freed;
    }
}

/// A connection's queue of entries, of all sessions it reads. Bounded: what does not fit is read from the log instead.
#[derive(Default)]
pub struct Mailbox {
    inner: Mutex<MailboxInner>,
    waker: AtomicWaker,
}

impl Mailbox {
    /// An empty one, with room for a few pieces of mail.
    #[must_use]
    pub fn with_room() -> Self {
        let queue = VecDeque::with_capacity(KEPT_MAIL);
        Self { inner: Mutex::new(MailboxInner { queue, ..MailboxInner::default() }), ..Self::default() }
    }

    /// Puts an entry in. Returns `false` where the reader was sent to the log instead.
    fn push(&self, slot: u32, entry: &Arc<Entry>) -> bool {
        let mut inner = self.inner.lock();
        if inner.behind.contains(&slot) {
            return false;
        }
        let bytes = entry.payload_bytes();
        let fits = inner.queue.len() < MAILBOX_MAX_ENTRIES
            && (inner.queue.is_empty() || inner.bytes + bytes <= MAILBOX_MAX_BYTES);
        if fits {
            inner.bytes += bytes;
            inner.queue.push_back((slot, Mail::Entry(entry.clone())));
        } else {
            inner.send_to_log(slot);
        }
        drop(inner);
        self.waker.wake();
        fits
    }

    fn reread(&self, slot: u32) {
        self.inner.lock().send_to_log(slot);
        self.waker.wake();
    }

    fn deleted(&self, slot: u32) {
        self.inner.lock().queue.push_back((slot, Mail::Deleted));
        self.waker.wake();
    }

    /// Throws away what waits for a slot that is given up, so that its next holder does not get it.
    pub fn forget(&self, slot: u32) {
        let mut inner = self.inner.lock();
        inner.drop_entries(slot);
        inner.queue.retain(|(s, _)| *s != slot);
        inner.behind.retain(|s| *s != slot);
    }

    /// The next piece of mail; the caller is woken when there is some.
    pub fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<(u32, Mail)> {
        if let Some(mail) = self.pop() {
            return Poll::Ready(mail);
        }
        self.waker.register(cx.waker());
        self.pop().map_or(Poll::Pending, Poll::Ready)
    }

    /// The next piece of mail, if there is some.
    pub fn pop(&self) -> Option<(u32, Mail)> {
        let mut inner = self.inner.lock();
        let (slot, mail) = inner.queue.pop_front()?;
        match &mail {
            Mail::Entry(entry) => inner.bytes -= entry.payload_bytes(),
            Mail::Overflow => inner.behind.retain(|s| *s != slot),
            Mail::Deleted => {}
        }
        if inner.queue.is_empty() && inner.queue.capacity() > KEPT_MAIL {
            inner.queue = VecDeque::new();
        }
        Some((slot, mail))
    }
}

/// A hand on the task that runs a session's turns.
#[derive(Default)]
pub struct OwnerHandle {
    look: AtomicBool,
    leave: Mutex<Option<Leave>>,
    waker: AtomicWaker,
}

/// What the owner is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something happened to the session in the store: a cancel, a delete.
    Look,
    /// The pod goes away.
    Leave(Leave),
}

impl OwnerHandle {
    /// Tells the owner to look at the store.
    pub fn look(&self) {
        self.look.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Tells the owner that the pod goes away.
    pub fn leave(&self, leave: Leave) {
        *self.leave.lock() = Some(leave);
        self.waker.wake();
    }

    /// The next notice; the caller is woken when there is one.
    pub fn poll_notice(&self, cx: &mut Context<'_>) -> Poll<Notice> {
        self.waker.register(cx.waker());
        if self.look.swap(false, Ordering::AcqRel) {
            Poll::Ready(Notice::Look)
        } else if let Some(leave) = self.leave.lock().take() {
            Poll::Ready(Notice::Leave(leave))
        } else {
            Poll::Pending
        }
    }
}

struct Subscriber {
    mailbox: Arc<Mailbox>,
    slot: u32,
}

#[derive(Default)]
struct ChannelInner {
    readers: Vec<Subscriber>,
    owner: Option<Arc<OwnerHandle>>,
    /// The owner elsewhere that knows that the session is followed here.
    noticed: Option<PodId>,
}

/// One session in this pod.
pub struct Channel {
    /// Whose.
    pub key: SessionKey,
    inner: Mutex<ChannelInner>,
    hub: Weak<Hub>,
    /// Whether everything that other pods tell followers of the session is heard here.
    heard: AtomicBool,
    heard_changed: Notify,
}

impl Channel {
    /// Adds a reader: from now on committed entries reach its mailbox.
    pub fn subscribe(&self, mailbox: &Arc<Mailbox>, slot: u32) {
        self.inner.lock().readers.push(Subscriber { mailbox: mailbox.clone(), slot });
    }

    /// Removes a reader.
    pub fn unsubscribe(&self, mailbox: &Arc<Mailbox>, slot: u32) {
        self.inner.lock().readers.retain(|s| s.slot != slot || !Arc::ptr_eq(&s.mailbox, mailbox));
    }

    /// Hands a committed entry to every reader. Nothing else may be handed over.
    pub fn deliver(&self, entry: Arc<Entry>) {
        let mut overflows = 0;
        for reader in &self.inner.lock().readers {
            if !reader.mailbox.push(reader.slot, &entry) {
                overflows += 1;
            }
        }
        if overflows > 0
            && let Some(hub) = self.hub.upgrade()
        {
            hub.overflows.fetch_add(overflows, Ordering::Relaxed);
        }
    }

    /// Sends every reader to the log.
    pub fn reread(&self) {
        for reader in &self.inner.lock().readers {
            reader.mailbox.reread(reader.slot);
        }
    }

    /// Tells every reader that the session is gone.
    pub fn deleted(&self) {
        for reader in &self.inner.lock().readers {
            reader.mailbox.deleted(reader.slot);
        }
    }

    /// Whether an owner elsewhere is still to be told that the session is followed here. Says so once for each owner.
    pub fn is_news_to(&self, owner: PodId) -> bool {
        let mut inner = self.inner.lock();
        inner.noticed.replace(owner) != Some(owner)
    }

    /// What other pods tell followers is heard from now on, or not any more. Returns whether it was heard before.
    pub fn set_heard(&self, heard: bool) -> bool {
        if heard {
            self.inner.lock().noticed = None;
        }
        let before = self.heard.swap(heard, Ordering::AcqRel);
        self.heard_changed.notify_waiters();
        before
    }

    /// Whether no committed entry passes this channel: its owner is here, or what other pods tell is heard.
    #[must_use]
    pub fn misses_nothing(&self) -> bool {
        self.heard.load(Ordering::Acquire) || self.inner.lock().owner.is_some()
    }

    /// Waits until no committed entry passes, and sees to it that it comes to that.
    pub async fn miss_nothing(&self) {
        loop {
            let changed = self.heard_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.misses_nothing() {
                return;
            }
            if let Some(hub) = self.hub.upgrade()
                && let Some(peers) = hub.store.peers()
            {
                peers.follow(&self.key);
            }
            changed.await;
        }
    }

    /// Sets the session's owner in this pod.
    pub fn set_owner(&self, owner: &Arc<OwnerHandle>) {
        self.inner.lock().owner = Some(owner.clone());
        self.heard_changed.notify_waiters();
    }

    /// Forgets the owner, if it still is this one. Its readers hear of later entries from other pods: where those are not heard
    /// yet, they are sent to the log, which makes them be.
    pub fn clear_owner(&self, owner: &Arc<OwnerHandle>) {
        let mut inner = self.inner.lock();
        if inner.owner.as_ref().is_some_and(|o| Arc::ptr_eq(o, owner)) {
            inner.owner = None;
            drop(inner);
            if !self.heard.load(Ordering::Acquire) {
                self.reread();
            }
        }
    }

    /// The owner in this pod.
    #[must_use]
    pub fn owner(&self) -> Option<Arc<OwnerHandle>> {
        self.inner.lock().owner.clone()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.forget(&self.key);
        }
    }
}

type Shard = Mutex<HashMap<SessionKey, Weak<Channel>>>;

/// The sessions that are read or run in this pod.
pub struct Hub {
    shards: Box<[Shard]>,
    overflows: AtomicU64,
    store: Arc<dyn Store>,
}

impl Hub {
    /// Of a pod on this store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect(), overflows: AtomicU64::new(0), store }
    }

    /// The channel of a session. It lives as long as somebody holds it.
    pub fn channel(self: &Arc<Self>, key: &SessionKey) -> Arc<Channel> {
        let mut shard = self.shards[shard_of(key, SHARDS)].lock();
        if let Some(channel) = shard.get(key).and_then(Weak::upgrade) {
            return channel;
        }
        let channel = Arc::new(Channel {
            key: key.clone(),
            inner: Mutex::default(),
            hub: Arc::downgrade(self),
            // Where there are no other pods, none can tell anything.
            heard: AtomicBool::new(self.store.peers().is_none()),
            heard_changed: Notify::new(),
        });
        shard.insert(key.clone(), Arc::downgrade(&channel));
        channel
    }

    /// The channel of a session, if somebody reads or runs it here.
    pub fn existing(&self, key: &SessionKey) -> Option<Arc<Channel>> {
        self.shards[shard_of(key, SHARDS)].lock().get(key).and_then(Weak::upgrade)
    }

    /// Every owner in this pod.
    pub fn owners(&self) -> Vec<Arc<OwnerHandle>> {
        // Channels are dropped outside the lock: their drop takes it.
        let channels: Vec<_> =
            self.shards.iter().flat_map(|s| s.lock().values().filter_map(Weak::upgrade).collect::<Vec<_>>()).collect();
        channels.iter().filter_map(|c| c.owner()).collect()
    }

    /// How often a connection was too slow for its mailbox.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    fn forget(&self, key: &SessionKey) {
        let mut shard = self.shards[shard_of(key, SHARDS)].lock();
        let peers = self.store.peers();
        // Under the lock: a channel that is made after this one follows after this.
        if let Some(peers) = peers {
            peers.unfollow(key);
        }
        // Somebody may have made a new one meanwhile.
        if shard.get(key).is_some_and(|channel| channel.strong_count() == 0) {
            shard.remove(key);
        } else if let Some(peers) = peers {
            // It has not heard that it is followed, or is not any more.
            peers.follow(key);
        }
    }
}
