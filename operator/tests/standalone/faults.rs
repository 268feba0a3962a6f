//! Data planes that do not do what they should.

use nix::sys::signal::Signal;

use crate::MANIFEST;
use crate::runner::{Runner, Start, config_hash, fake};

fn faulty(fault: &str) -> Runner {
    let fake = fake();
    Start { env: &[("FAKE_DATAPLANE", fault)], args: &["--dataplane", &fake], ..Start::new(MANIFEST) }.run()
}

#[test]
fn one_that_cannot_start_ends_the_runner_with_its_own_words() {
    let mut runner = faulty("ends");
    assert_eq!(runner.exit_code(), Some(1));
    runner.line("error: test-1 ended before it was ready: exit code 3");
    runner.line("test-1 | this is why it ends");
}

#[test]
fn one_that_does_not_get_ready_ends_the_runner_with_the_reason() {
    let mut runner = faulty("never-ready");
    assert_eq!(runner.exit_code(), Some(1));
    runner.line("error: test-1 was not ready within 20 s: redis:6379 is not there");
}

#[test]
fn one_that_refuses_a_configuration_keeps_the_old_one() {
    let runner = faulty("keeps-old-config");
    let admin = runner.ready().admin();
    let hash = config_hash(&admin);
    runner.edit("tokenDelay: 1ms", "tokenDelay: 2ms");
    runner.line(
        "the edit is not applied; the gateway runs on as it was: test-1 does not take it: the model server is not to be set up",
    );
    assert_eq!(config_hash(&admin), hash);
}

#[test]
fn one_that_does_not_leave_is_killed_by_a_second_ctrl_c() {
    let mut runner = faulty("stays");
    runner.ready();
    runner.signal(Signal::SIGINT);
    runner.line("draining: running answers are finished, 20 s at most; Ctrl-C again stops at once");
    runner.signal(Signal::SIGINT);
    assert_eq!(runner.exit_code(), Some(130));
    runner.line("test-1 has drained and gone after");
}

#[test]
fn one_that_is_not_there_is_named() {
    let mut runner = Start { args: &["--dataplane", "/nowhere/dataplane"], ..Start::new(MANIFEST) }.run();
    assert_eq!(runner.exit_code(), Some(1));
    runner.line("error: /nowhere/dataplane is not there; build it (cargo build -p chatgateway-dataplane) or give");
}

#[test]
fn a_file_that_goes_away_changes_nothing() {
    let runner = faulty("none");
    let admin = runner.ready().admin();
    let hash = config_hash(&admin);
    std::fs::remove_file(&runner.manifest).expect("removed");
    runner.line("; the gateway runs on as it is");
    assert_eq!(config_hash(&admin), hash);
}

#[test]
fn replicas_go_and_come_back_as_they_are_asked_for() {
    let fake = fake();
    let manifest = MANIFEST.replace("spec:", "spec:\n  replicas: 1");
    let runner = Start { args: &["--dataplane", &fake], ..Start::new(&manifest) }.run();
    runner.ready();
    runner.edit("replicas: 1", "replicas: 0");
    runner.line("test-1 drains: 0 replicas are asked for");
    runner.line("test-1 has drained and gone after");
    runner.edit("replicas: 0", "replicas: 1");
    runner.line("started test-2");
    runner.line("gateway.yaml is applied");
    assert_eq!(runner.children().len(), 1);
}
