//! Several processes of the real data plane over one Redis: what a client gets while they are killed, replaced and drained.

use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::redis::{Redis, server, with_redis};
use crate::runner::{Runner, Start, eventually, http, persistent_turn, running, turn};

/// Length of the answers that are watched: they take some seconds.
const ANSWER_BYTES: usize = 2_000;

fn start() -> Runner {
    let slow = format!("tokenDelay: 10ms, answerBytes: {ANSWER_BYTES}");
    let runner = Start::new(&with_redis().replace("tokenDelay: 1ms", &slow)).run();
    runner.ready();
    runner
}

/// A client that asks once and is not put off.
fn ask(runner: &Runner, session: &'static str) -> JoinHandle<Value> {
    let address = runner.http();
    std::thread::spawn(move || persistent_turn(&address, session, "1"))
}

/// The admin address of the process that writes an answer, once one does.
fn writer(runner: &Runner) -> String {
    let admins = runner.admins();
    eventually("an answer that is written", || admins.iter().find(|admin| running(admin)).cloned())
}

/// The id of the process with this admin address.
fn process(runner: &Runner, admin: &str) -> Pid {
    let line = runner.line(&format!("  admin      http://{admin}/status"));
    let id = line.rsplit_once("process ").expect("an id").1.trim_end_matches(')');
    Pid::from_raw(id.parse().expect("a number"))
}

/// The answer came whole and once, and every process tells the same of it.
fn is_whole(runner: &Runner, session: &str, answer: &Value) {
    let text = answer["text"].as_str().expect("a text");
    assert_eq!(text.len(), ANSWER_BYTES, "{text}");
    // The system spreads connections over the processes; one that is asked too early may not know where Redis is again.
    for _ in 0..12 {
        let (status, body) = http(&runner.http(), "GET", &format!("/v1/sessions/{session}"), "");
        assert_eq!(status, 200, "{body}");
        let history: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(history["turns"].as_array().map(Vec::len), Some(1), "{history}");
        assert_eq!((&history["turns"][0]["state"], &history["turns"][0]["answer"]), (&"done".into(), &text.into()));
    }
}

#[test]
fn any_process_goes_on_with_any_session() {
    let manifest = with_redis();
    let runner = Start::new(&manifest).run();
    let address = runner.ready().http();
    for number in 1..=12_usize {
        assert_eq!(turn(&address, "s", &number.to_string()).0, 200);
        let (_, body) = http(&address, "GET", "/v1/sessions/s", "");
        let history: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(history["turns"].as_array().map(Vec::len), Some(number), "{history}");
    }
}

#[test]
fn an_answer_survives_the_process_that_writes_it() {
    let runner = start();
    let asking = ask(&runner, "s");
    let killed = process(&runner, &writer(&runner));
    kill(killed, Signal::SIGKILL).expect("it is there");
    let answer = asking.join().expect("an answer");
    runner.line("died (signal 9); others take its sessions over; starting another in 0.5 s");
    runner.line("test-4 takes clients");
    is_whole(&runner, "s", &answer);
}

#[test]
fn an_answer_survives_the_death_of_redis() {
    let runner = start();
    let asking = ask(&runner, "s");
    writer(&runner);
    kill(server(&runner).expect("it runs"), Signal::SIGKILL).expect("it is there");
    let answer = asking.join().expect("an answer");
    runner.line("redis answers again");
    is_whole(&runner, "s", &answer);
    assert_eq!(runner.count(" died (signal 9); others"), 0, "the processes live on");
}

#[test]
fn an_answer_survives_that_every_process_is_replaced() {
    let runner = start();
    let asking = ask(&runner, "s");
    writer(&runner);
    runner.edit("format: text", "format: json");
    runner.line("gateway.yaml is applied");
    runner.line("test-3 has drained and gone after");
    let answer = asking.join().expect("an answer");
    is_whole(&runner, "s", &answer);
}

#[test]
fn an_answer_survives_that_all_but_one_process_leave() {
    let runner = start();
    let asking = ask(&runner, "s");
    writer(&runner);
    runner.edit("replicas: 3", "replicas: 1");
    runner.line("gateway.yaml is applied");
    runner.line("test-2 has drained and gone after");
    let answer = asking.join().expect("an answer");
    is_whole(&runner, "s", &answer);
}

#[test]
fn two_runs_over_one_redis_are_one_gateway() {
    let manifest = with_redis().replace("replicas: 3", "replicas: 1");
    let first = Start::new(&manifest).run();
    let redis = Redis::of(first.ready());
    let external = format!("external: {{endpoints: ['{}'], auth: {{secretRef: {{name: redis}}}}}}", redis.address);
    let manifest = manifest.replace("managed: {}", &external);
    let password = format!("redis/password={}", redis.password_file);
    let second = Start { args: &["--secret", &password], ..Start::new(&manifest) }.run();
    second.ready();
    assert_eq!(server(&second), None, "it has no Redis of its own");
    assert_eq!(turn(&first.http(), "s", "1").0, 200);
    let (status, body) = turn(&second.http(), "s", "1");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &answer["duplicate"]), (200, &true.into()), "{body}");
}
