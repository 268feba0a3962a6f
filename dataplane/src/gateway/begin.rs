//! How a turn is accepted: the door, the rate limits, the store, and what its sender is told.

use std::sync::Arc;

use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limiter::verdict::Standings,
    log::{Begin, BeginReply, EntryId, Nonce, Reply, Request, SessionId, TurnId, TurnState},
};
use serde_json::value::RawValue;

use super::{Caller, Gateway, jump, unavailable};
use crate::{
    clock,
    driver::{self, Given},
    hub::Channel,
    limiter::{Admission, Ticket},
    store::{Answer, Call},
    turn,
};

/// A turn as a client sends it.
#[derive(Clone, Debug)]
pub struct SendTurn {
    /// The session.
    pub session: SessionId,
    /// The turn's id, made by the client.
    pub turn: TurnId,
    /// The number the client expects the turn to get.
    pub seq: Option<u64>,
    /// What the user says.
    pub text: Option<String>,
    /// Or a list of messages, the last of which is the user's.
    pub messages: Option<Box<RawValue>>,
    /// The model.
    pub model: Option<String>,
    /// Options for the model server, a JSON object.
    pub options: Option<Box<RawValue>>,
}

/// What the sender of a turn is told. It belongs to one request and is not an event of the log.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The session.
    pub session: SessionId,
    /// The turn.
    pub turn: TurnId,
    /// The turn's number.
    pub seq: u64,
    /// Where it stands.
    pub state: TurnState,
    /// How many run or wait before it.
    pub place: Option<u32>,
    /// Whether the turn was known before.
    pub duplicate: bool,
    /// How the rate limits stand, if there are any.
    pub standings: Option<Box<Standings>>,
    /// The position just before the turn's entry, if it has one.
    pub from: Option<EntryId>,
    /// The id of the turn's last entry, if it has ended.
    pub ended_at: Option<EntryId>,
    /// The log's end, where a turn without an entry attaches.
    pub(crate) end: EntryId,
}

impl Gateway {
    /// Accepts a turn, and runs it here if the session has no owner. Survives the caller's being dropped.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        caller: &Caller,
        channel: &Arc<Channel>,
        send: SendTurn,
    ) -> Result<Receipt, Refusal> {
        self.takes_new()?;
        let body = turn::body(&send).map_err(|r| self.refused(r))?;
        let (pass, no_room) = match self.upstreams().door(channel.key.as_str(), send.model.as_deref()) {
            Ok(pass) => (pass, None),
            // It may be a repeat of a turn that is known: that one is not refused.
            Err(no_room) if self.door_looks.lock().take(clock::now()) => (None, Some(no_room)),
            Err(no_room) => return Err(self.refused(no_room)),
        };
        // A turn that is only looked up takes nothing. One that a limit refuses may be known too, from long ago.
        let (admission, no_room) = match no_room {
            Some(no_room) => (Admission::default(), Some(no_room)),
            None => match self.limiter.turn(caller, &channel.key, &send.turn, &body).await {
                Ok(admission) => (admission, None),
                Err(limited) if limited.code == ErrorCode::RateLimited && self.door_looks.lock().take(clock::now()) => {
                    (Admission::default(), Some(limited))
                }
                Err(refusal) => return Err(self.refused(refusal)),
            },
        };
        let Admission { standings, ticket } = admission;
        let begin = Begin {
            pod: self.pod,
            nonce: Nonce(rand::random()),
            turn: send.turn.clone(),
            // No turn has number 0: a new one is not accepted.
            seq: if no_room.is_some() { Some(0) } else { send.seq },
            body: Arc::new(body),
            jump: jump(),
            terms: self.terms(),
        };
        let request = Request::Begin(begin);
        let reply = match self.store.call(&channel.key, request.clone()) {
            Call::Ready(answer) => match answer {
                Some(answer) => {
                    let reply = self.begun(channel, answer).await;
                    took(ticket, &reply);
                    reply
                }
                None => Err(unavailable()),
            },
            call @ Call::Pending(_) => {
                // The reply may make this pod the session's owner: it must be heard, whoever still wants to know.
                let (gateway, channel) = (self.clone(), channel.clone());
                let task = tokio::spawn(async move {
                    // Its place at the door is kept until it has asked for one at the model server.
                    let _pass = pass;
                    let answer = gateway.settled(&channel.key, request, call).await;
                    let reply = gateway.begun(&channel, answer).await;
                    took(ticket, &reply);
                    reply
                });
                task.await.unwrap_or_else(|_| Err(Refusal::new(ErrorCode::Internal, "the turn could not be accepted")))
            }
        };
        let reply = match (reply, no_room) {
            (Ok(BeginReply::SeqGap { .. }), Some(no_room)) => Err(no_room),
            (reply, _) => reply,
        };
        match reply.and_then(|reply| self.receipt(send, reply)) {
            Ok(receipt) => Ok(Receipt { standings, ..receipt }),
            Err(mut refusal) => {
                refusal.standings = standings.or(refusal.standings);
                Err(self.refused(refusal))
            }
        }
    }

    /// Takes a begin's answer; an ownership in it starts to run.
    async fn begun(self: &Arc<Self>, channel: &Arc<Channel>, answer: Answer) -> Result<BeginReply, Refusal> {
        let Reply::Begin(reply) = answer.result.map_err(|_| unavailable())? else {
            return Err(Refusal::new(ErrorCode::Internal, "the session store gave an answer to another question"));
        };
        match &reply {
            BeginReply::Owner { own, .. } => {
                let (connection, followers) = (answer.connection, answer.followers);
                driver::run(self, channel, Given { own: own.clone(), connection, followers }).await;
            }
            BeginReply::Queued { lease_left_ms: 0, .. } => self.look_after(channel.clone()),
            _ => {}
        }
        Ok(reply)
    }

    fn receipt(&self, send: SendTurn, reply: BeginReply) -> Result<Receipt, Refusal> {
        let SendTurn { session, turn, .. } = send;
        let fresh = |seq, state, place, from, end| Receipt {
            session: session.clone(),
            turn: turn.clone(),
            seq,
            state,
            place,
            duplicate: false,
            standings: None,
            from,
            ended_at: None,
            end,
        };
        match reply {
            BeginReply::Owner { own, from } => {
                self.metrics.turns_accepted.inc();
                Ok(fresh(own.seq, TurnState::Running, None, Some(from), own.end))
            }
            BeginReply::Queued { seq, place, end, .. } => {
                self.metrics.turns_accepted.inc();
                Ok(fresh(seq, TurnState::Queued, Some(place), None, end))
            }
            BeginReply::Known(known) => Ok(Receipt {
                place: (known.state == TurnState::Queued).then_some(known.place),
                duplicate: true,
                from: known.from,
                ended_at: known.ended_at,
                ..fresh(known.seq, known.state, None, None, known.end)
            }),
            other => Err(turn::refusal(&other, &turn)),
        }
    }
}

/// What a turn took before the store was asked is whose the store's reply says.
fn took(ticket: Option<Ticket>, reply: &Result<BeginReply, Refusal>) {
    let Some(ticket) = ticket else { return };
    match reply {
        Ok(BeginReply::Known(known)) if matches!(known.state, TurnState::Ended(_)) => ticket.void(),
        // It may have been accepted although nobody says so: then whoever runs it settles.
        Ok(BeginReply::Owner { .. } | BeginReply::Queued { .. } | BeginReply::Known(_)) | Err(_) => ticket.keep(),
        Ok(_) => drop(ticket),
    }
}
