//! Several processes behind one port: each answers for itself, and edits reach them one by one.

use std::collections::BTreeSet;

use crate::redis::with_redis;
use crate::runner::{Runner, Start, config_hash, eventually, fake};

fn start() -> Runner {
    let (fake, manifest) = (fake(), with_redis());
    Start { args: &["--dataplane", &fake], ..Start::new(&manifest) }.run()
}

/// Where the first line with a text stands.
fn place(runner: &Runner, part: &str) -> usize {
    runner.line(part);
    runner.text().lines().position(|line| line.contains(part)).expect("it was there")
}

fn in_order(runner: &Runner, parts: &[&str]) {
    let places: Vec<_> = parts.iter().map(|part| place(runner, part)).collect();
    assert!(places.is_sorted(), "{parts:?} are at {places:?} of:\n{}", runner.text());
}

#[test]
fn each_process_answers_on_a_port_of_its_own_and_takes_an_edit() {
    let runner = start();
    let admins = runner.ready().admins();
    assert_eq!(admins.iter().collect::<BTreeSet<_>>().len(), 3, "{admins:?}");
    let before: BTreeSet<_> = admins.iter().map(|admin| config_hash(admin)).collect();
    runner.edit("tokenDelay: 1ms", "tokenDelay: 2ms");
    runner.line("gateway.yaml is applied");
    in_order(&runner, &["reloaded test-1", "reloaded test-2", "reloaded test-3", "gateway.yaml is applied"]);
    let after: BTreeSet<_> = admins.iter().map(|admin| config_hash(admin)).collect();
    assert!(before.is_disjoint(&after), "{before:?} {after:?}");
}

#[test]
fn processes_are_replaced_one_by_one_each_after_the_one_before_has_gone() {
    let runner = start();
    runner.ready();
    runner.edit("format: text", "format: json");
    runner.line("gateway.yaml is applied");
    in_order(
        &runner,
        &[
            "replacing the processes: log.format cannot change while they run",
            "started test-4",
            "test-4 takes clients; test-1 drains, 20 s at most",
            "test-1 has drained and gone after",
            "started test-5",
            "test-5 takes clients; test-2 drains",
            "test-2 has drained and gone after",
            "started test-6",
            "test-6 takes clients; test-3 drains",
        ],
    );
    runner.line("test-3 has drained and gone after");
    assert_eq!(runner.count("and its sessions end with it"), 0, "they live in Redis");
    assert_eq!(eventually("three processes", || (runner.children().len() == 4).then_some(4)), 4);
}

#[test]
fn replicas_go_one_by_one_the_newest_first_and_come_back() {
    let runner = start();
    runner.ready();
    runner.edit("replicas: 3", "replicas: 1");
    runner.line("gateway.yaml is applied");
    in_order(
        &runner,
        &[
            "test-3 drains: 1 replicas are asked for",
            "test-3 has drained and gone after",
            "test-2 drains: 1 replicas are asked for",
        ],
    );
    runner.line("test-2 has drained and gone after");
    runner.edit("replicas: 1", "replicas: 3");
    in_order(&runner, &["started test-4", "started test-5"]);
    eventually("the second edit", || (runner.count("gateway.yaml is applied") == 2).then_some(()));
    assert_eq!(runner.children().len(), 4, "three of the gateway and one of Redis");
}
