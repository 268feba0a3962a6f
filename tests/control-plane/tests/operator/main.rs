//! The operator on a real API server. Each scenario has a namespace of its own, and many run at once.
#![cfg(test)]

mod faults;
mod pods;
mod scenarios;
mod snapshot;
mod support;

use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use scenarios::Scenario;
use support::{Cluster, Ground};

/// Scenarios with one operator that run at a time.
const AT_ONCE: usize = 4;

/// Those in which an operator's own troubles are tried: they mostly wait.
const FAULTS_AT_ONCE: usize = 8;

/// Runs scenarios. The names of those that fail.
async fn run(cluster: &Arc<Cluster>, all: Vec<(&'static str, Scenario)>, at_once: usize) -> Vec<&'static str> {
    // For one that is looked into alone.
    let only = std::env::var("SCENARIO").ok();
    let chosen =
        all.into_iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only.split(',').any(|only| only == *name)));
    let outcomes = stream::iter(chosen).map(|(name, scenario)| async move {
        let began = std::time::Instant::now();
        let namespace = cluster.namespace(name).await.expect("a namespace");
        match scenario(namespace.clone()).await {
            Ok(()) => {
                println!("ok      {name} ({:.1} s)", began.elapsed().as_secs_f64());
                None
            }
            Err(error) => {
                println!("FAILED  {name}: {error:#}\n{}", namespace.last_words());
                Some(name)
            }
        }
    });
    outcomes.buffer_unordered(at_once).filter_map(std::future::ready).collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_makes_what_gateways_ask_for() {
    let cluster = Cluster::start().await.expect("a control plane");
    let ground = Ground::start(&cluster).await.expect("an operator");
    scenarios::early(&ground).await.expect("what was there before the operator is made");
    let failed = run(&cluster, scenarios::all(), AT_ONCE).await;
    assert!(failed.is_empty(), "{failed:?}; the operator's last words:\n{}", ground.last_words());
    // Alone: it ends the operator.
    scenarios::leases(&ground).await.expect("one of two operators acts");
    cluster.clean_up().await.expect("a cluster as it was before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_to_operators_changes_nothing_of_gateways() {
    let cluster = Cluster::start().await.expect("a control plane");
    cluster.define().await.expect("the definition");
    let failed = run(&cluster, faults::all(), FAULTS_AT_ONCE).await;
    assert!(failed.is_empty(), "{failed:?}");
    cluster.clean_up().await.expect("a cluster as it was before");
}
