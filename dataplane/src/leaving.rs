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
}

/// How often latecomers are looked for while a pod drains.
const LATECOMERS_INTERVAL: Duration = Duration::from_millis(100);

impl Departure {
    /// An ear for one more connection.
    pub fn leaving(&self) -> Leaving {
        let told = Arc::new(Told::default());
        let mut connections = self.connections.lock();
        // Those that are gone are swept when the list would grow, so the cost of each is constant.
        if connections.len() == connections.capacity() {
            connections.retain(|c| c.strong_count() > 0);
        }
        connections.push(Arc::downgrade(&told));
        Leaving { told, heard: false }
    }

    fn untold(&self) -> Vec<Arc<Told>> {
        let connections = self.connections.lock();
        connections.iter().filter_map(Weak::upgrade).filter(|c| !c.told.load(Ordering::Acquire)).collect()
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
        let first = self.untold();
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
            self.untold().iter().for_each(|c| tell(c));
            tokio::time::sleep(LATECOMERS_INTERVAL).await;
        }
    }
}

fn tell(connection: &Told) {
    connection.told.store(true, Ordering::Release);
    connection.waker.wake();
}
