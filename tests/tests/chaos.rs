//! The short form of `make chaos`: everything breaks for a while, and no turn and no token is lost or told twice.
#![cfg(test)]

use std::process::Command;

fn chaos(arguments: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_chaos")).args(arguments.split(' ')).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "chaos {arguments}:\n{said}");
    // A run in which nothing happened would be good too.
    let figures = said.lines().find(|line| line.contains(" turns (")).unwrap();
    let turns: u32 = figures.split(", ").nth(1).and_then(|part| part.split(' ').next()).unwrap().parse().unwrap();
    assert!(turns > 100, "{said}");
}

#[test]
fn one_pod_with_its_sessions_in_memory() {
    chaos("--pods 1 --store memory --seconds 20 --clients 60 --seed 1");
}

#[test]
fn three_pods_on_one_redis() {
    chaos("--pods 3 --store redis --seconds 45 --clients 60 --seed 2");
}

/// The checker at work on a real gateway: a Redis that forgets must not pass.
#[test]
fn a_store_that_forgets_is_found_out() {
    let arguments = "--pods 2 --store redis --lossy-store --seconds 12 --clients 12 --seed 5";
    let output = Command::new(env!("CARGO_BIN_EXE_chaos")).args(arguments.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("VIOLATIONS") && said.contains("Stale "), "{said}");
}
