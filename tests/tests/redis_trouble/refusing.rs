//! A server that answers, but does not take anything: its memory is full, it is a replica for a while, it loads its data.

use std::time::Duration;

use chatgateway_redis_server::{Fsync, Options, RedisServer};

use crate::support::{Gateways, calls, chain, counter, key, standalone, until};

/// How long a server refuses: within the lease, so that nobody could take over anyway.
const SHORT: Duration = Duration::from_millis(2_500);

/// And beyond it.
const LONG: Duration = Duration::from_millis(5_500);

/// Scripts and appends that reached the server.
fn asked(redis: &RedisServer) -> u64 {
    calls(redis, "evalsha") + calls(redis, "xadd")
}

async fn full_memory(time: Duration) {
    let redis = RedisServer::start(Options::default()).unwrap();
    let gateways = Gateways::start(900, 2, &standalone(redis.endpoint())).await;
    let followers = gateways.talk(8).await;
    redis.expect_ok(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    let before = (asked(&redis), counter(&redis, "total_connections_received"));
    let (_, ()) = tokio::join!(tokio::time::sleep(time), gateways.refuses(0, "new"));
    let health = gateways.http_admin(1).get("/readyz").await.unwrap();
    assert!(health.status == 200 && health.text().contains("memory is full"), "{}", health.text());
    let asked = asked(&redis) - before.0;
    // Each session asks ever more slowly: about two questions for each of some ten rounds, and not a hundred a second.
    assert!(asked < 8 * 40 + 100, "{asked} questions in {time:?}");
    let connections = counter(&redis, "total_connections_received") - before.1;
    assert!(connections < 30, "{connections} connections");
    // Nothing of the refused turns is there.
    for session in ["new-h", "new-w", "new-g"] {
        for kind in ["log", "ses", "dlg"] {
            assert_eq!(redis.cli(&["EXISTS", &key(kind, session)]), "0", "{kind} of {session}");
        }
    }
    redis.expect_ok(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    for story in gateways.all_whole(followers).await {
        story.undisturbed();
        chain(&redis, &story.session);
    }
    assert_eq!(gateways.simulator.calls().count, 8);
    let story = gateways.is_taken(0, "new-h", "h").await;
    assert_eq!(story.turn.answer(), gateways.answer());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_memory_for_a_moment() {
    full_memory(SHORT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_memory_for_longer_than_a_lease() {
    full_memory(LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_a_replica_for_a_while() {
    let redis = RedisServer::start(Options::default()).unwrap();
    // Of nobody who answers, so that it keeps its data.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port().to_string();
    let gateways = Gateways::start(500, 2, &standalone(redis.endpoint())).await;
    let followers = gateways.talk(10).await;
    let before = counter(&redis, "total_connections_received");
    redis.expect_ok(&["REPLICAOF", "127.0.0.1", &port]).unwrap();
    let (_, ()) = tokio::join!(tokio::time::sleep(SHORT), gateways.refuses(0, "new"));
    redis.expect_ok(&["REPLICAOF", "NO", "ONE"]).unwrap();
    for story in gateways.all_whole(followers).await {
        story.undisturbed();
        chain(&redis, &story.session);
    }
    assert_eq!(gateways.simulator.calls().count, 10);
    let connections = counter(&redis, "total_connections_received") - before;
    assert!(connections < 80, "{connections} connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_its_data_is_waited_for() {
    // About 2 ms a key: while it loads it answers, and says that it does.
    let extra = ["key-load-delay 2000", "loading-process-events-interval-bytes 1024", "aof-use-rdb-preamble yes"];
    let extra = extra.map(str::to_owned).to_vec();
    let redis = RedisServer::start(Options { appendonly: Some(Fsync::Always), extra, ..Options::default() }).unwrap();
    let script = "for i = 1, 1000 do redis.call('SET', 'filler:' .. i, i) end";
    let _ = redis.cli(&["EVAL", script, "0"]);
    let _ = redis.cli(&["BGREWRITEAOF"]);
    until("the file is rewritten", || async {
        redis.info("persistence", "aof_rewrite_in_progress").as_deref() == Some("0")
            && redis.info("persistence", "aof_rewrite_scheduled").as_deref() == Some("0")
    })
    .await;
    let mut gateways = Gateways::start(500, 2, &standalone(redis.endpoint())).await;
    let followers = gateways.talk(10).await;
    redis.kill9();
    redis.start_again().unwrap();
    for story in gateways.all_whole(followers).await {
        story.undisturbed();
        chain(&redis, &story.session);
    }
    assert_eq!(gateways.simulator.calls().count, 10);
    let said = gateways.pods[0].process().output();
    assert!(said.contains("LOADING"), "it never met the loading server:\n{said}");
}
