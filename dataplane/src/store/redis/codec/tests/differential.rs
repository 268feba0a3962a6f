//! Random schedules, each step carried out by Redis and by the pure functions: replies and states are the same.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use chatgateway_core::log::{
    Begin, BeginReply, ClaimReply, EntryKind, FinishReply, Reply, Request, SessionId, SessionKey, TurnState,
    store::SessionState,
};
use chatgateway_redis_server::Options;

use super::{
    Server, Twin, keys,
    schedule::{Author, Step},
};

/// Sets the number of schedules.
const SCHEDULES_VARIABLE: &str = "REDIS_SCRIPTS_RUNS";

/// Sets the first schedule's seed. The others follow.
const SEED_VARIABLE: &str = "REDIS_SCRIPTS_SEED";

/// Enough for every outcome, and for every fault of `mutations`.
pub(super) const SCHEDULES: u64 = 320;

const STEPS: usize = 60;

const SESSIONS: usize = 3;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap())
}

#[test]
fn redis_answers_as_the_pure_functions_do() {
    let mut server = Server::start(Options::default());
    let mut reached = BTreeMap::new();
    let (schedules, first) = (setting(SCHEDULES_VARIABLE, SCHEDULES), setting(SEED_VARIABLE, 1));
    for seed in first..first + schedules {
        let mut done = Vec::new();
        server.admin(&["FLUSHALL"]);
        let run = catch_unwind(AssertUnwindSafe(|| schedule(&mut server, seed, &mut done, &mut reached)));
        if let Err(cause) = run {
            let last = done.len().saturating_sub(12);
            eprintln!("schedule of seed {seed}, step {}; before it:\n{}", done.len(), done[last..].join("\n"));
            eprintln!("again: {SEED_VARIABLE}={seed} {SCHEDULES_VARIABLE}=1");
            resume_unwind(cause);
        }
    }
    // Schedules that reach less than they did prove less.
    let missing: Vec<_> = OUTCOMES.iter().filter(|outcome| reached.get(**outcome).is_none_or(|n| *n < 5)).collect();
    assert!(missing.is_empty() || schedules < SCHEDULES, "hardly or never reached: {missing:?}\n{reached:#?}");
}

/// Every way in which a request can end.
const OUTCOMES: [&str; 36] = [
    "begin: owner",
    "begin: owner, new log after a loss",
    "begin: owner again",
    "begin: queued",
    "begin: queued, lease over",
    "begin: known queued",
    "begin: known running",
    "begin: known done",
    "begin: known failed",
    "begin: known cancelled",
    "begin: known, entries gone",
    "begin: conflict",
    "begin: gone",
    "begin: seq gap",
    "begin: busy",
    "append: true",
    "append: false",
    "check: mine",
    "check: not mine",
    "check: cancelled",
    "check: log lost",
    "finish: ended",
    "finish: next",
    "finish: trimmed",
    "finish: already",
    "finish: already, next",
    "finish: refused",
    "claim: takeover",
    "claim: takeover, log lost",
    "claim: next turn",
    "claim: again",
    "claim: nothing",
    "reset: true",
    "reset: false",
    "delete: owned",
    "delete: not owned",
];

/// Which of them it was.
fn outcome(request: &Request, reply: &Reply, before: Option<&SessionState>, after: Option<&SessionState>) -> String {
    let lost = before.is_some_and(|state| state.log.is_none());
    match reply {
        Reply::Begin(BeginReply::Owner { own, .. }) if own.appended.is_empty() => "begin: owner again".into(),
        Reply::Begin(BeginReply::Owner { .. }) if lost => "begin: owner, new log after a loss".into(),
        Reply::Begin(BeginReply::Owner { .. }) => "begin: owner".into(),
        Reply::Begin(BeginReply::Queued { lease_left_ms: 0, .. }) => "begin: queued, lease over".into(),
        Reply::Begin(BeginReply::Queued { .. }) => "begin: queued".into(),
        Reply::Begin(BeginReply::Known(known)) => match known.state {
            TurnState::Ended(_) if known.from.is_none() => "begin: known, entries gone".into(),
            state => format!("begin: known {}", state.as_str()),
        },
        Reply::Begin(BeginReply::Conflict) => "begin: conflict".into(),
        Reply::Begin(BeginReply::Gone) => "begin: gone".into(),
        Reply::Begin(BeginReply::SeqGap { .. }) => "begin: seq gap".into(),
        Reply::Begin(BeginReply::Busy) => "begin: busy".into(),
        Reply::Append(taken) => format!("append: {taken}"),
        Reply::Check(reply) if reply.cancel => "check: cancelled".into(),
        Reply::Check(reply) if reply.mine && reply.end.is_none() => "check: log lost".into(),
        Reply::Check(reply) if reply.mine => "check: mine".into(),
        Reply::Check(_) => "check: not mine".into(),
        Reply::Finish(FinishReply::Ended { next: Some(_), .. }) => "finish: next".into(),
        Reply::Finish(FinishReply::Ended { .. }) => {
            let grown = after.map_or(0, SessionState::len) > before.map_or(0, SessionState::len);
            if grown { "finish: ended".into() } else { "finish: trimmed".into() }
        }
        Reply::Finish(FinishReply::Already { next: Some(_) }) => "finish: already, next".into(),
        Reply::Finish(FinishReply::Already { next: None }) => "finish: already".into(),
        Reply::Finish(FinishReply::Refused) => "finish: refused".into(),
        Reply::Claim(ClaimReply::Owner(own)) => match own.appended.first().map(|entry| &entry.kind) {
            None => "claim: again".into(),
            Some(EntryKind::Turn { .. }) => "claim: next turn".into(),
            Some(_) if lost => "claim: takeover, log lost".into(),
            Some(_) => "claim: takeover".into(),
        },
        Reply::Claim(ClaimReply::Nothing) => "claim: nothing".into(),
        Reply::Reset(taken) => format!("reset: {taken}"),
        Reply::Delete(owner) => if owner.is_some() { "delete: owned" } else { "delete: not owned" }.into(),
        Reply::EndLease(_) | Reply::Cancel(_) | Reply::Read(_) | Reply::Snapshot(_) => {
            format!("{request:?}").split(['(', ' ']).next().unwrap_or_default().to_lowercase()
        }
    }
}

pub(super) fn schedule(server: &mut Server, seed: u64, done: &mut Vec<String>, reached: &mut BTreeMap<String, u32>) {
    let names = ["s", "Grüße / {sess} %7B", "a b:c"];
    let mut twins = names.map(|name| {
        let key = SessionKey::new("tenant", &format!("{seed}@example.com"), &SessionId::parse(name).unwrap());
        (Twin::new(server, key), Vec::new())
    });
    let mut author = Author::new(seed);
    // Steps come in runs, so that sessions get somewhere.
    let mut which = 0;
    for _ in 0..STEPS {
        if author.below(4) == 0 {
            which = author.below(SESSIONS);
        }
        let (twin, asked) = &mut twins[which];
        let step = author.step(twin.slot.as_ref(), asked.len());
        let mut line = format!("{which}: {step:?}");
        line.truncate(line.char_indices().nth(600).map_or(line.len(), |(end, _)| end));
        done.push(line);
        let before = twin.slot.clone();
        if let Some((request, reply)) = carry_out(server, twin, asked, step) {
            *reached.entry(outcome(&request, &reply, before.as_ref(), twin.slot.as_ref())).or_default() += 1;
        }
    }
}

fn carry_out(server: &mut Server, twin: &mut Twin, asked: &mut Vec<Request>, step: Step) -> Option<(Request, Reply)> {
    let [log, ses, dlg] = keys(&twin.key);
    let request = match step {
        Step::Ask(request) => {
            asked.push(request.clone());
            request
        }
        Step::Again(index, jump, other) => {
            let mut request = asked[index].clone().again(jump);
            match (&mut request, other) {
                (Request::Begin(begin), Some(pod)) => begin.pod = pod,
                (Request::Claim(claim), Some(pod)) => claim.pod = pod,
                _ => {}
            }
            request
        }
        Step::LogLost => {
            server.admin(&["DEL", &log]);
            twin.slot.as_mut()?.log = None;
            return None;
        }
        Step::HistoryLost => {
            server.admin(&["DEL", &dlg]);
            twin.slot.as_mut()?.history.clear();
            return None;
        }
        Step::AllLost => {
            server.admin(&["DEL", &log, &ses, &dlg]);
            twin.slot = None;
            return None;
        }
        Step::RootLost(begin) => {
            // Redis still sees from a log without root which epochs were given, the model does not.
            if twin.slot.as_ref().is_some_and(|state| state.end().epoch > twin.now.0) {
                server.admin(&["DEL", &log]);
            }
            server.admin(&["DEL", &ses]);
            twin.slot = None;
            let request = Request::Begin(Begin { seq: None, ..begin });
            asked.push(request.clone());
            request
        }
        Step::EpochAhead(epoch) => {
            let state = twin.slot.as_mut()?;
            server.admin(&["HSET", &ses, "epoch", &epoch.to_string()]);
            state.root.epoch = epoch;
            return None;
        }
        Step::RunLost => {
            let state = twin.slot.as_mut()?;
            server.admin(&["HSET", &ses, "run", ""]);
            state.root.running = None;
            return None;
        }
    };
    let reply = twin.ask(server, &request);
    Some((request, reply))
}
