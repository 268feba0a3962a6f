//! How an HTTP answer that takes its time takes part in the pod's drain.

use std::time::Duration;

use chatgateway_core::drain::DrainPlan;
use tokio::{sync::watch, time::sleep_until};

use crate::{
    clock,
    gateway::Gateway,
    leaving::{Departure, Leaving},
};

/// What a stream does when the pod goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Tell the client.
    Tell {
        /// How long the client should wait before it comes back.
        reconnect_after: Duration,
        /// How long the stream still lives at most.
        time_left: Duration,
    },
    /// End.
    Close {
        /// How long the client should wait before it comes back.
        reconnect_after: Duration,
    },
}

/// One answer's view of the drain.
pub struct Farewell {
    word: Leaving,
    drain: watch::Receiver<Option<DrainPlan>>,
    /// For parting those who are told at once, 0 to 1.
    random: f64,
}

impl Farewell {
    /// Follows the pod's drain.
    pub fn of(gateway: &Gateway) -> Self {
        Self::new(&gateway.departure, gateway.drain_watch())
    }

    fn new(departure: &Departure, drain: watch::Receiver<Option<DrainPlan>>) -> Self {
        Self { word: departure.leaving(), drain, random: rand::random() }
    }

    /// The next moment at which something is to be done. Pends while the pod stays. May be dropped and called again.
    pub async fn next(&mut self, answering: bool) -> Moment {
        let reconnect_after = DrainPlan::reconnect_after(self.random);
        if !self.word.heard() {
            self.word.told().await;
            let now = clock::now();
            let end = match *self.drain.borrow() {
                Some(plan) if answering => plan.last_words(),
                _ => now,
            };
            return Moment::Tell { reconnect_after, time_left: end.saturating_duration_since(now) };
        }
        if answering {
            deadline(&mut self.drain).await;
        }
        Moment::Close { reconnect_after }
    }
}

/// Pends until an answer that is still waited for has to be given up. May be dropped and called again.
pub async fn deadline(drain: &mut watch::Receiver<Option<DrainPlan>>) {
    let plan = loop {
        if let Some(plan) = *drain.borrow_and_update() {
            break plan;
        }
        if drain.changed().await.is_err() {
            // The gateway is gone, and with it whatever could drain.
            std::future::pending::<()>().await;
        }
    };
    sleep_until(plan.last_words().into()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn idle_streams_end_when_told_and_answers_last_to_the_end() {
        let start = clock::now();
        let departure = std::sync::Arc::new(Departure::default());
        let drain = watch::Sender::new(None);
        let mut idle = Farewell::new(&departure, drain.subscribe());
        let mut answering = Farewell::new(&departure, drain.subscribe());
        let (crowd, watched) = (departure.clone(), drain.subscribe());
        let telling = tokio::spawn(async move { crowd.run(watched).await });
        drain.send_replace(Some(DrainPlan::new(start, 5 * S, 10 * S, 60 * S)));

        let Moment::Tell { time_left, .. } = idle.next(false).await else { unreachable!("told first") };
        assert_eq!(time_left, Duration::ZERO);
        let told = clock::now();
        assert!(told - start >= 5 * S && told - start <= 15 * S);
        assert!(matches!(idle.next(false).await, Moment::Close { .. }));
        assert_eq!(clock::now(), told);

        assert!(matches!(answering.next(true).await, Moment::Tell { time_left, .. } if time_left > 40 * S));
        assert!(matches!(answering.next(true).await, Moment::Close { .. }));
        let end = clock::now() - start;
        assert!(end > 59 * S && end < 60 * S, "{end:?}");
        telling.abort();
    }
}
