//! How a stream takes part in the pod's drain: it tells its client to go, lets open answers end, and ends in time.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use chatgateway_core::drain::DrainPlan;
use chatgateway_proto::v1::{self, ServerMessage, server_message::Message};
use tokio::time::Sleep;

use super::message::message;
use crate::{
    clock::{self, millis},
    gateway::Gateway,
    leaving::Leaving,
};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Tell the client.
    Leave,
    /// End the stream.
    Close,
}

/// One stream's part in the drain.
pub(super) struct Parting {
    gateway: Arc<Gateway>,
    leaving: Leaving,
    close_at: Option<Pin<Box<Sleep>>>,
}

impl Parting {
    /// Follows the pod's drain.
    pub fn new(gateway: &Arc<Gateway>) -> Self {
        Self { gateway: gateway.clone(), leaving: gateway.departure.leaving(), close_at: None }
    }

    /// Whether the client was told.
    pub fn told(&self) -> bool {
        self.close_at.is_some()
    }

    /// The next thing to do. Pends while the pod stays.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Word> {
        match &mut self.close_at {
            Some(timer) => timer.as_mut().poll(cx).map(|()| Word::Close),
            None => {
                self.leaving.poll_told(cx).map(|()| if self.leaving.recalled() { Word::Close } else { Word::Leave })
            }
        }
    }

    /// What the client is told, on [`Word::Leave`].
    pub fn go_away(&mut self, answering: bool) -> ServerMessage {
        let now = clock::now();
        let close_at = self.close_time(now, answering);
        self.close_at = Some(Box::pin(tokio::time::sleep_until(close_at.into())));
        message(Message::GoAway(v1::GoAway {
            reconnect_after_ms: millis(DrainPlan::reconnect_after(rand::random())),
            time_left_ms: millis(close_at - now),
        }))
    }

    /// The answers of a client that was told are complete: the stream need not last until the deadline.
    pub fn hasten(&mut self) {
        let soon = self.close_time(clock::now(), false);
        if let Some(timer) = &mut self.close_at
            && timer.deadline() > soon.into()
        {
            timer.as_mut().reset(soon.into());
        }
    }

    /// A little before the process ends, so that the status still arrives.
    fn close_time(&self, now: Instant, answering: bool) -> Instant {
        let last_words = self.gateway.start_drain().last_words();
        self.gateway.close_at(now, answering).min(last_words).max(now)
    }
}
