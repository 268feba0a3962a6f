//! Telling connections, one after the other, that this pod goes away.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use chatgateway_core::drain::DrainPlan;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock;

#[derive(Default)]
struct Told {
    told: AtomicBool,
    /// Told because of this process's sleep, not because it goes away.
    recalled: AtomicBool,
    waker: AtomicWaker,
}

/// A connection's ear for the word to leave. Cheap to poll, so that it can be part of every connection's loop.
pub struct Leaving {
    told: Arc<Told>,
    heard: bool,
}

impl Leaving {
    /// Ready once, when the connection is to tell its client and take nothing new.
    pub fn poll_told(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.heard {
            return Poll::Pending;
        }
        self.told.waker.register(cx.waker());
        if self.told.told.load(Ordering::Acquire) {
            self.heard = true;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Waits for the word. Pends for ever once it was heard.
    pub async fn told(&mut self) {
        std::future::poll_fn(|cx| self.poll_told(cx)).await;
    }

    /// Whether the client is to connect anew at once, although the pod stays.
    #[must_use]
    pub fn recalled(&self) -> bool {
        self.told.recalled.load(Ordering::Acquire)
    }

    /// Whether the word has been heard.
    #[must_use]
    pub fn heard(&self) -> bool {
        self.heard
    }
}

/// Every connection that wants to be told.
#[derive(Default)]
pub struct Departure {
    connections: Mutex<Vec<Weak<Told>>>,
    listeners: Mutex<Vec<Weak<Told>>>,
}

/// How often latecomers are looked for while a pod drains.
const LATECOMERS_INTERVAL: Duration = Duration::from_millis(100);

impl Departure {
    /// An ear for one more connection.
    pub fn leaving(&self) -> Leaving {
        Self::ear(&self.connections)
    }

    /// An ear for a listener, which stays when connections are recalled.
    pub fn listening(&self) -> Leaving {
        Self::ear(&self.listeners)
    }

    fn ear(list: &Mutex<Vec<Weak<Told>>>) -> Leaving {
        let told = Arc::new(Told::default());
        let mut list = list.lock();
        // Those that are gone are swept when the list would grow, so the cost of each is constant.
        if list.len() == list.capacity() {
            list.retain(|c| c.strong_count() > 0);
        }
        list.push(Arc::downgrade(&told));
        Leaving { told, heard: false }
    }

    fn untold(list: &Mutex<Vec<Weak<Told>>>) -> Vec<Arc<Told>> {
        let list = list.lock();
        list.iter().filter_map(Weak::upgrade).filter(|c| !c.told.load(Ordering::Acquire)).collect()
    }

    /// Tells everybody who is connected now to connect anew.
    pub fn recall(&self) {
        for connection in Self::untold(&self.connections) {
            connection.recalled.store(true, Ordering::Release);
            tell(&connection);
        }
    }

    /// Waits for the drain, then tells everybody, spread over the plan's time; latecomers too.
    pub async fn run(&self, mut drain: watch::Receiver<Option<DrainPlan>>) {
        let plan = loop {
            if let Some(plan) = *drain.borrow_and_update() {
                break plan;
            }
            if drain.changed().await.is_err() {
                return;
            }
        };
        tokio::time::sleep_until(plan.floor.into()).await;
        // The listeners close when the first connections are told to go: nobody new comes in.
        Self::untold(&self.listeners).iter().for_each(|l| tell(l));
        let first = Self::untold(&self.connections);
        let count = first.len();
        for (i, connection) in first.into_iter().enumerate() {
            // Both are far below 2^52.
            let at = plan.go_away_at(i as f64 / count as f64);
            if at > clock::now() {
                tokio::time::sleep_until(at.into()).await;
            }
            tell(&connection);
        }
        loop {
            Self::untold(&self.connections).iter().for_each(|c| tell(c));
            tokio::time::sleep(LATECOMERS_INTERVAL).await;
        }
    }
}

fn tell(connection: &Told) {
    connection.told.store(true, Ordering::Release);
    connection.waker.wake();
}
