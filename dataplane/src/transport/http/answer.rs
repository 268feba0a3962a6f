//! A turn's whole answer, for those who do not want it piece by piece.

use std::{sync::Arc, time::Duration};

use chatgateway_core::{
    error::{ErrorCode, Refusal},
    limits::{ANSWER_WAIT_MAX, REATTACH_MAX},
    log::{EndKind, EntryId, EntryKind, TurnState, Usage},
};
use tokio::time::{Instant, timeout_at};

use super::{leaving::deadline, problem::Problem, sse};
use crate::{
    gateway::{Caller, Gateway, Receipt},
    readers::{ReaderEvent, Readers},
};

/// How a turn was answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The answer's text: whole, or as far as it came before a client cancelled it.
    pub text: String,
    /// As the model server said; `cancelled` where a client stopped it.
    pub finish_reason: Arc<str>,
    /// What it cost.
    pub usage: Usage,
    /// The entry that ended the turn.
    pub id: EntryId,
    /// From where the log tells what came after.
    pub position: EntryId,
}

/// The finish reason of a turn that a client stopped.
pub const CANCELLED: &str = "cancelled";

/// What waiting for an answer came to.
pub enum Waited {
    /// The turn has ended with an answer.
    Answer(Answer),
    /// Time is up, and the turn goes on.
    NotYet,
}

/// Waits for the end of a turn that `readers` have just sent, at most `patience`.
///
/// # Errors
/// The turn failed, its session was deleted, its answer is no longer kept, or the pod has to go before it ends.
pub async fn wait(
    gateway: &Gateway,
    readers: &mut Readers,
    receipt: &Receipt,
    patience: Duration,
) -> Result<Waited, Problem> {
    let caller = readers.caller().clone();
    if ended_without_entries(receipt) {
        return stored(gateway, &caller, receipt).await.map(Waited::Answer);
    }
    let mut drain = gateway.drain_watch();
    let collecting = timeout_at(Instant::now() + patience, collect(gateway, readers, receipt));
    tokio::select! {
        collected = collecting => match collected {
            Ok(answer) => answer.map(Waited::Answer),
            Err(_) => Ok(Waited::NotYet),
        },
        () = deadline(&mut drain) => Err(going_away()),
    }
}

/// Whether a repeated turn has ended so long ago that its entries need not be looked for.
pub fn ended_without_entries(receipt: &Receipt) -> bool {
    matches!(receipt.state, TurnState::Ended(_)) && receipt.from.is_none()
}

/// What is told where the pod has to go before an answer is complete. The answer goes on elsewhere; a repeat finds it.
pub fn going_away() -> Problem {
    Refusal::new(ErrorCode::Draining, "this pod is going away before the answer is complete; send the turn again")
        .retry_after_ms(1_000)
        .into()
}

/// What is told where an answer takes longer than anyone waits. The turn goes on; a repeat attaches to it.
pub fn still_waiting() -> Problem {
    let seconds = ANSWER_WAIT_MAX.as_secs();
    Problem::new(ErrorCode::UpstreamTimeout, format!("no whole answer within {seconds} s; the turn goes on, ask again"))
}

async fn collect(gateway: &Gateway, readers: &mut Readers, receipt: &Receipt) -> Result<Answer, Problem> {
    let caller = readers.caller().clone();
    let mut text = String::new();
    let mut reattached = 0;
    loop {
        match readers.next().await {
            ReaderEvent::Entry { entry, .. } if entry.turn == receipt.turn => {
                let (finish_reason, usage) = match &entry.kind {
                    EntryKind::Delta { text: more } => {
                        text.push_str(more);
                        continue;
                    }
                    EntryKind::Reset => {
                        text.clear();
                        continue;
                    }
                    EntryKind::Turn { .. } | EntryKind::Takeover { .. } => continue,
                    EntryKind::Failed { code, message } => return Err(failed(*code, message, receipt)),
                    EntryKind::Cancelled => (Arc::from(CANCELLED), Usage::default()),
                    EntryKind::Done { finish_reason, usage } => (finish_reason.clone(), *usage),
                };
                return Ok(Answer { text, finish_reason, usage, id: entry.id, position: entry.id });
            }
            ReaderEvent::Entry { .. } | ReaderEvent::Resumed { recovered: true, .. } => {}
            ReaderEvent::Gone { .. } => return Err(about(Problem::new(ErrorCode::NotFound, sse::DELETED), receipt)),
            ReaderEvent::Resumed { recovered: false, .. } | ReaderEvent::Slow { .. } => {
                // Entries were trimmed, or lost by the store: the snapshot tells where the turn stands.
                reattached += 1;
                if matches!(receipt.state, TurnState::Ended(_)) || reattached > REATTACH_MAX {
                    return stored(gateway, &caller, receipt).await;
                }
                let snapshot = gateway.snapshot(&caller, &receipt.session).await?;
                let ended = |state| matches!(state, TurnState::Ended(_));
                if snapshot.turns.iter().any(|t| t.turn == receipt.turn && ended(t.state)) {
                    return stored(gateway, &caller, receipt).await;
                }
                text.clear();
                readers.resume(receipt.session.clone(), snapshot.position)?;
            }
        }
    }
}

/// The answer as the history has it.
async fn stored(gateway: &Gateway, caller: &Caller, receipt: &Receipt) -> Result<Answer, Problem> {
    let snapshot = gateway.snapshot(caller, &receipt.session).await?;
    let position = snapshot.position;
    let turn = snapshot.turns.into_iter().find(|t| t.turn == receipt.turn);
    let Some((turn, end)) = turn.and_then(|t| match t.state {
        TurnState::Ended(end) if end != EndKind::Failed => Some((t, end)),
        _ => None,
    }) else {
        return Err(not_kept(receipt));
    };
    Ok(Answer {
        text: turn.answer.as_ref().to_owned(),
        finish_reason: if end == EndKind::Cancelled { CANCELLED.into() } else { turn.finish_reason },
        usage: turn.usage,
        id: receipt.ended_at.unwrap_or(position),
        position,
    })
}

/// What is told of a turn that has ended and whose answer, or whose entries, are no longer kept.
pub fn not_kept(receipt: &Receipt) -> Problem {
    let message = format!("the turn has ended ({}) and is no longer kept", receipt.state.as_str());
    about(Problem::new(ErrorCode::NotResumable, message), receipt)
}

/// What is told of a turn that failed. That is final: only a new turn can try again.
pub fn failed(code: ErrorCode, message: &str, receipt: &Receipt) -> Problem {
    about(Problem::new(code, message).last_word(), receipt)
}

fn about(problem: Problem, receipt: &Receipt) -> Problem {
    problem.about(&receipt.session, Some(&receipt.turn))
}
