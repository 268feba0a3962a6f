//! Random schedules, each step carried out by Redis and by the pure functions: replies and states are the same.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use chatgateway_core::log::{Request, SessionId, SessionKey};
use chatgateway_redis_server::Options;

use super::{
    Server, Twin, keys,
    schedule::{Author, Step},
};

/// Sets the number of schedules.
const SCHEDULES_VARIABLE: &str = "CHATGATEWAY_SCHEDULES";

/// Sets the first schedule's seed. The others follow.
const SEED_VARIABLE: &str = "CHATGATEWAY_SEED";

/// Enough that each of the faults that were built into the scripts by hand was found by tens of schedules.
const SCHEDULES: u64 = 320;

const STEPS: usize = 60;

const SESSIONS: usize = 3;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap())
}

#[test]
fn redis_answers_as_the_pure_functions_do() {
    let mut server = Server::start(Options::default());
    let (schedules, first) = (setting(SCHEDULES_VARIABLE, SCHEDULES), setting(SEED_VARIABLE, 1));
    for seed in first..first + schedules {
        let mut done = Vec::new();
        let run = catch_unwind(AssertUnwindSafe(|| schedule(&mut server, seed, &mut done)));
        if let Err(cause) = run {
            let last = done.len().saturating_sub(12);
            eprintln!("schedule of seed {seed}, step {}; before it:\n{}", done.len(), done[last..].join("\n"));
            eprintln!("again: {SEED_VARIABLE}={seed} {SCHEDULES_VARIABLE}=1");
            resume_unwind(cause);
        }
    }
}

fn schedule(server: &mut Server, seed: u64, done: &mut Vec<String>) {
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
        carry_out(server, twin, asked, step);
    }
    server.admin(&["FLUSHALL"]);
}

fn carry_out(server: &mut Server, twin: &mut Twin, asked: &mut Vec<Request>, step: Step) {
    let [log, ses, dlg] = keys(&twin.key);
    match step {
        Step::Ask(request) => {
            twin.ask(server, &request);
            asked.push(request);
        }
        Step::Again(index, jump) => {
            let request = asked[index].clone().again(jump);
            twin.ask(server, &request);
        }
        Step::LogLost => {
            server.admin(&["DEL", &log]);
            if let Some(state) = &mut twin.slot {
                state.log = None;
            }
        }
        Step::HistoryLost => {
            server.admin(&["DEL", &dlg]);
            if let Some(state) = &mut twin.slot {
                state.history.clear();
            }
        }
        Step::AllLost => {
            server.admin(&["DEL", &log, &ses, &dlg]);
            twin.slot = None;
        }
        Step::RootLost(request) => {
            // Redis still sees from a log without root which epochs were given, the model does not.
            if twin.slot.as_ref().is_some_and(|state| state.end().epoch > twin.now.0) {
                server.admin(&["DEL", &log]);
            }
            server.admin(&["DEL", &ses]);
            twin.slot = None;
            let Request::Begin(begin) = &request else { unreachable!() };
            let request = Request::Begin(chatgateway_core::log::Begin { seq: None, ..begin.clone() });
            twin.ask(server, &request);
            asked.push(request);
        }
        Step::EpochAhead(epoch) => {
            if let Some(state) = &mut twin.slot {
                server.admin(&["HSET", &ses, "epoch", &epoch.to_string()]);
                state.root.epoch = epoch;
            }
        }
    }
}
