//! The operator on a real API server. One control plane, each scenario in a namespace of its own, all at once.
#![cfg(test)]

mod scenarios;
mod support;

use futures_util::stream::{self, StreamExt};
use support::Ground;

/// Scenarios that run at a time.
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_makes_what_gateways_ask_for() {
    let ground = Ground::start().await.expect("a control plane and an operator");
    scenarios::early(&ground).await.expect("what was there before the operator is made");
    let outcomes: Vec<_> = stream::iter(scenarios::all())
        .map(|(name, scenario)| {
            let ground = &ground;
            async move {
                let namespace = ground.namespace(name).await.expect("a namespace");
                let outcome = scenario(namespace).await;
                match &outcome {
                    Ok(()) => println!("ok      {name}"),
                    Err(error) => println!("FAILED  {name}: {error:#}"),
                }
                (name, outcome.is_ok())
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failed: Vec<_> = outcomes.iter().filter(|(_, good)| !good).map(|(name, _)| *name).collect();
    assert!(failed.is_empty(), "{failed:?}; the operator's last words:\n{}", ground.last_words());
    // Alone: it ends the operator.
    scenarios::leases(&ground).await.expect("one of two operators acts");
}
