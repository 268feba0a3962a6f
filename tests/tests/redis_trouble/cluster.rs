//! A cluster whose slots move and whose nodes go.

use chatgateway_redis_server::{Cluster, Fsync, Options, RedisServer};
use serde_json::{Value, json};

use crate::support::{Follower, Gateways, chain, key, until};

fn settings(cluster: &Cluster) -> Value {
    json!({"mode": "Cluster", "endpoints": cluster.endpoints()})
}

/// How often a node answered with that error.
pub fn errors(node: &RedisServer, code: &str) -> u64 {
    let count = node.info("errorstats", &format!("errorstat_{code}")).unwrap_or_default();
    count.trim().strip_prefix("count=").and_then(|count| count.parse().ok()).unwrap_or(0)
}

async fn more(followers: &[Follower], deltas: usize) {
    for follower in followers {
        follower.has_seen(follower.deltas() + deltas).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_while_their_sessions_stream() {
    let cluster = Cluster::start(3).unwrap();
    let gateways = Gateways::start(900, 2, &settings(&cluster)).await;
    let followers = gateways.talk(4).await;
    // The first session's slot in steps. Meanwhile its scripts are refused (TRYAGAIN: not all of their keys are in one place);
    // what is only appended follows the log.
    let slot = cluster.slot_of(&key("log", "s0")).unwrap();
    let from = cluster.owner_of(slot).unwrap();
    let (source, to) = (&cluster.nodes()[from], (from + 1) % 3);
    cluster.begin_move(slot, from, to).unwrap();
    cluster.move_named(&[&key("log", "s0")], from, to).unwrap();
    cluster.move_keys(slot, from, to).unwrap();
    until("something is sent on", || async { errors(source, "ASK") > 0 }).await;
    until("the session is looked at", || async { cluster.nodes().iter().any(|node| errors(node, "TRYAGAIN") > 0) })
        .await;
    cluster.end_move(slot, from, to).unwrap();
    more(&followers[..1], 3).await;
    assert!(errors(source, "MOVED") > 0, "{}", source.cli(&["INFO", "errorstats"]));
    // The others' at once.
    for session in ["s1", "s2", "s3"] {
        let slot = cluster.slot_of(&key("log", session)).unwrap();
        let from = cluster.owner_of(slot).unwrap();
        cluster.move_slot(slot, from, (from + 1) % 3).unwrap();
    }
    for story in gateways.all_whole(followers).await {
        story.undisturbed();
        let owner = cluster.owner_of(cluster.slot_of(&key("log", &story.session)).unwrap()).unwrap();
        chain(&cluster.nodes()[owner], &story.session);
    }
    assert_eq!(gateways.simulator.calls().count, 4);
    // A redirection is followed for a while and then known: no storm of either.
    let redirected: u64 = cluster.nodes().iter().map(|node| errors(node, "MOVED") + errors(node, "ASK")).sum();
    assert!(redirected < 500, "{redirected} redirections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_killed_and_comes_back() {
    let options = Options { appendonly: Some(Fsync::Always), ..Options::default() };
    let cluster = Cluster::start_with(&options, 3, 0).unwrap();
    let gateways = Gateways::start(600, 2, &settings(&cluster)).await;
    let followers = gateways.talk(12).await;
    let slot = cluster.slot_of(&key("log", "s0")).unwrap();
    let node = &cluster.nodes()[cluster.owner_of(slot).unwrap()];
    node.kill9();
    gateways.http(0).get("/v1/sessions/s0").await.unwrap();
    node.start_again().unwrap();
    cluster.wait_ok().unwrap();
    for story in gateways.all_whole(followers).await {
        story.undisturbed();
        let owner = cluster.owner_of(cluster.slot_of(&key("log", &story.session)).unwrap()).unwrap();
        chain(&cluster.nodes()[owner], &story.session);
    }
    assert_eq!(gateways.simulator.calls().count, 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_replica_takes_its_place() {
    let cluster = Cluster::start_with(&Options::default(), 3, 1).unwrap();
    let gateways = Gateways::start(700, 2, &settings(&cluster)).await;
    let followers = gateways.talk(9).await;
    let slot = cluster.slot_of(&key("log", "s0")).unwrap();
    let node = &cluster.nodes()[cluster.owner_of(slot).unwrap()];
    node.kill9();
    for story in gateways.all_whole(followers).await {
        assert!(story.lost <= 1, "{}: {} positions lost", story.session, story.lost);
        let owner = cluster.owner_of(cluster.slot_of(&key("log", &story.session)).unwrap()).unwrap();
        chain(&cluster.nodes()[owner], &story.session);
    }
    assert_eq!(gateways.is_taken(1, "later", "t").await.turn.answer(), gateways.answer());
}
