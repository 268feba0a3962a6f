//! The end of a run: everything is read once more, from the pods themselves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::wire;
use crate::{
    history::{Entry, History, Kind, Outcome, Record},
    simulator::Calls,
};

/// How long sessions may take to come to rest.
const REST: Duration = Duration::from_secs(40);

/// A session that changes no more for so long has come to rest, if not as it should: longer than any takeover takes.
const UNCHANGED: Duration = Duration::from_secs(20);

/// Pause before a session that is not at rest is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How long one reading may take.
const READING: Duration = Duration::from_secs(10);

/// Waits until every accepted turn has ended, and writes down all logs and histories. What could not be read is a problem.
pub async fn read_sessions(pods: &[SocketAddr], history: &History) -> Vec<String> {
    let mut problems = Vec::new();
    let deadline = Instant::now() + REST;
    for (n, (session, accepted)) in accepted(history).into_iter().enumerate() {
        let (first, second) = (pods[n % pods.len()], pods[(n + 1) % pods.len()]);
        let read = read(first, &session, &accepted, deadline).await;
        let Some(entries) = read else {
            problems.push(format!("session {session} could not be read from {first} in the end"));
            continue;
        };
        history.record(Record::FinalLog { session: session.clone(), from: first.to_string(), entries });
        if let Ok(Ok(entries)) = timeout(READING, wire::whole_log(second, &session)).await {
            history.record(Record::FinalLog { session: session.clone(), from: second.to_string(), entries });
        } else {
            problems.push(format!("session {session} could not be read from {second} in the end"));
        }
        match timeout(READING, wire::snapshot(second, &session)).await {
            Ok(Ok(Some((position, turns)))) => {
                let from = second.to_string();
                history.record(Record::FinalHistory { session, from, position, turns });
            }
            Ok(Ok(None)) if accepted.is_empty() => {}
            other => {
                let other = other.map(|read| read.map(|found| found.is_some()));
                problems.push(format!("no history of session {session} from {second} in the end: {other:?}"));
            }
        }
    }
    problems
}

/// Writes down what the model server was asked.
pub fn read_calls(calls: Calls, history: &History) {
    for call in calls.calls {
        let text = call.texts.concat().into();
        history.record(Record::Asked { text, prefix: call.prefix.into() });
    }
}

/// The turns that were accepted, by session.
fn accepted(history: &History) -> BTreeMap<Arc<str>, BTreeSet<Arc<str>>> {
    let mut sessions: BTreeMap<Arc<str>, BTreeSet<Arc<str>>> = BTreeMap::new();
    history.look(|records| {
        for record in records.iter().map(|stamped| &stamped.record) {
            let Some(session) = record.session() else { continue };
            let turns = sessions.entry(session.clone()).or_default();
            if let Record::Receipt { turn, outcome: Outcome::Accepted { .. }, .. } = record {
                turns.insert(turn.clone());
            }
        }
    });
    sessions
}

/// A session's log at rest; as it is, where it does not come to rest.
async fn read(pod: SocketAddr, session: &str, accepted: &BTreeSet<Arc<str>>, deadline: Instant) -> Option<Vec<Entry>> {
    let mut last = None;
    let mut changed = Instant::now();
    loop {
        if let Ok(Ok(entries)) = timeout(READING, wire::whole_log(pod, session)).await {
            if at_rest(&entries, accepted) {
                return Some(entries);
            }
            if last.as_ref() != Some(&entries) {
                changed = Instant::now();
            }
            last = Some(entries);
        }
        if Instant::now() > deadline.min(changed + UNCHANGED) {
            return last;
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn at_rest(entries: &[Entry], accepted: &BTreeSet<Arc<str>>) -> bool {
    let begun: BTreeSet<&Arc<str>> =
        entries.iter().filter(|entry| matches!(entry.kind, Kind::Turn { .. })).map(|entry| &entry.turn).collect();
    let ended: BTreeSet<&Arc<str>> =
        entries.iter().filter(|entry| entry.kind.ending().is_some()).map(|entry| &entry.turn).collect();
    begun.iter().all(|turn| ended.contains(turn)) && accepted.iter().all(|turn| ended.contains(turn))
}
