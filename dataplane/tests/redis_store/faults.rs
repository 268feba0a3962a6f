//! Servers that go, come back, hesitate, forget and change places.

use std::time::{Duration, Instant};

use chatgateway_config::RedisMode;
use chatgateway_core::log::*;
use chatgateway_dataplane::store::{Store, StoreError, redis::RedisStore};
use chatgateway_redis_server::{Fsync, Options, RedisServer, Sentinels};
use tokio::task::block_in_place;

use crate::{
    settings::{connected, settings, until},
    support::*,
};

fn unavailable(answer: &Result<Reply, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Unavailable(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_is_another_connection() {
    let server = RedisServer::start(Options { appendonly: Some(Fsync::Always), ..Options::default() }).unwrap();
    let (store, _events) = connected(&settings(RedisMode::Standalone, &[server.endpoint()]), POD).await;
    let s = Session::new(&store);
    let own = s.own("a").await;
    let before = s.ask(append(&own, 1)).await;
    assert_eq!((before.result, before.connection), (Ok(Reply::Append(true)), store.connection(&s.key)));
    let attempts = store.stats().attempts;
    block_in_place(|| server.kill9());
    until("the loss is noticed", || store.trouble().is_some()).await;
    assert_ne!(store.connection(&s.key), before.connection, "the number changes when the connection is given up");
    let down = Instant::now();
    while down.elapsed() < Duration::from_secs(3) {
        let asked = Instant::now();
        let answer = s.ask(append(&own, 2)).await;
        assert!(unavailable(&answer.result) && answer.connection != before.connection, "{answer:?}");
        assert!(asked.elapsed() < Duration::from_millis(500), "a call without a connection fails at once");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let tried = store.stats().attempts - attempts;
    assert!((3..=12).contains(&tried), "{tried} attempts in 3 s");
    block_in_place(|| server.start_again()).unwrap();
    let found = s.check(&own).await;
    assert_eq!((found.mine, found.end), (true, Some(EntryId::new(own.epoch, 1))));
    let after = s.ask(append(&own, 2)).await;
    assert_eq!((after.result, after.connection), (Ok(Reply::Append(true)), store.connection(&s.key)));
    assert_ne!(after.connection, before.connection);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hesitates_is_given_up() {
    let server = RedisServer::start(Options::default()).unwrap();
    let (store, _events) = connected(&settings(RedisMode::Standalone, &[server.endpoint()]), POD).await;
    let s = Session::new(&store);
    let own = s.own("a").await;
    let number = store.connection(&s.key);
    block_in_place(|| server.pause(2_500)).unwrap();
    let asked = Instant::now();
    let all = futures_util::future::join_all((0..50).map(|_| s.ask(append(&own, 1)))).await;
    assert!(asked.elapsed() < Duration::from_millis(2_000), "{:?}", asked.elapsed());
    assert!(all.iter().all(|answer| unavailable(&answer.result) && answer.connection == number));
    assert_ne!(store.connection(&s.key), number);
    // Some copy of it may have been carried out after all.
    s.commit(&own, 1).await;
    s.commit(&own, 2).await;
    assert_eq!(s.ids().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_is_noticed_by_an_idle_gateway() {
    let server = RedisServer::start(Options::default()).unwrap();
    let (store, _events) = connected(&settings(RedisMode::Standalone, &[server.endpoint()]), POD).await;
    block_in_place(|| server.stop_process()).unwrap();
    until("the silence is noticed", || store.trouble().is_some()).await;
    server.continue_process().unwrap();
    until("the server is back", || store.trouble().is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgot_the_scripts_is_told_again() {
    let server = RedisServer::start(Options::default()).unwrap();
    let (store, _events) = connected(&settings(RedisMode::Standalone, &[server.endpoint()]), POD).await;
    let s = Session::new(&store);
    let own = s.own("a").await;
    let number = store.connection(&s.key);
    for n in 1..=20 {
        block_in_place(|| server.expect_ok(&["SCRIPT", "FLUSH"])).unwrap();
        let (checks, appended) =
            tokio::join!(futures_util::future::join_all((0..20).map(|_| s.ask(check(&own)))), s.ask(append(&own, n)),);
        assert_eq!(appended.result, Ok(Reply::Append(true)));
        for answer in checks {
            assert_eq!(answer.connection, number);
            assert!(matches!(answer.result, Ok(Reply::Check(CheckReply { mine: true, .. }))), "{answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_memory_is_no_reason_to_reconnect() {
    let server = RedisServer::start(Options { maxmemory: Some(64 << 20), ..Options::default() }).unwrap();
    let (store, _events) = connected(&settings(RedisMode::Standalone, &[server.endpoint()]), POD).await;
    let s = Session::new(&store);
    let own = s.own("a").await;
    let number = store.connection(&s.key);
    block_in_place(|| server.expect_ok(&["CONFIG", "SET", "maxmemory", "1"])).unwrap();
    let answer = s.ask(append(&own, 1)).await;
    assert!(matches!(&answer.result, Err(StoreError::Unavailable(why)) if why.starts_with("OOM")), "{answer:?}");
    assert!(matches!(s.call(read()).await, Ok(Reply::Read(_))), "reading goes on");
    block_in_place(|| server.expect_ok(&["CONFIG", "SET", "maxmemory", "0"])).unwrap();
    s.commit(&own, 1).await;
    assert_eq!(store.connection(&s.key), number);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_server_is_left_without_a_storm() {
    let (server, other) =
        (RedisServer::start(Options::default()).unwrap(), RedisServer::start(Options::default()).unwrap());
    let (store, _events) = connected(&settings(RedisMode::Standalone, &[server.endpoint()]), POD).await;
    let s = Session::new(&store);
    let own = s.own("a").await;
    let (number, attempts) = (store.connection(&s.key), store.stats().attempts);
    block_in_place(|| server.expect_ok(&["REPLICAOF", "127.0.0.1", &other.port().to_string()])).unwrap();
    let answer = s.ask(append(&own, 1)).await;
    assert!(unavailable(&answer.result), "{answer:?}");
    until("it is found to be none", || store.trouble().is_some_and(|why| why.contains("not the primary"))).await;
    assert_ne!(store.connection(&s.key), number);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tried = store.stats().attempts - attempts;
    assert!((2..=10).contains(&tried), "{tried} attempts in about 2 s");
    block_in_place(|| server.expect_ok(&["REPLICAOF", "NO", "ONE"])).unwrap();
    s.insist(read()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_is_found_again_after_a_failover() {
    let servers = block_in_place(|| Sentinels::start(1, 3)).unwrap();
    let (store, _events) = connected(&settings(RedisMode::Sentinel, &servers.endpoints()), POD).await;
    let s = Session::new(&store);
    let own = s.own("a").await;
    s.commit(&own, 1).await;
    let number = store.connection(&s.key);
    let before = servers.primary().unwrap().port();
    let after = block_in_place(|| servers.failover()).unwrap();
    assert_ne!(before, after.port());
    // The old one does not know of it for some seconds, and would take writes; the gateway is told by the sentinels.
    until("the new primary is found", || store.connection(&s.key) != number && store.trouble().is_none()).await;
    for n in 2..=50 {
        s.commit(&own, n).await;
    }
    assert_eq!(s.ids().await.len(), 51);
    let keys = block_in_place(|| after.cli(&["EXISTS", &format!("log:{{{}}}", s.key.as_str())]));
    assert_eq!(keys, "1", "what was written is on the new primary");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_primary_is_found_again_after_it_dies() {
    let servers = block_in_place(|| Sentinels::start(1, 3)).unwrap();
    let (store, _events) = connected(&settings(RedisMode::Sentinel, &servers.endpoints()), POD).await;
    let s = Session::new(&store);
    let primary = servers.primary().unwrap();
    block_in_place(|| {
        primary.kill9();
        servers.wait_primary_other_than(primary.port())
    })
    .unwrap();
    s.own("a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_wrongly_is_said() {
    let server = RedisServer::start(Options::default()).unwrap();
    for (mode, words) in [
        (RedisMode::Sentinel, ["is no sentinel", "settings"]),
        (RedisMode::Cluster, ["runs in standalone mode", "settings say Cluster"]),
    ] {
        let (store, _events) = RedisStore::start(&settings(mode, &[server.endpoint()]), POD).unwrap();
        let said = || store.trouble().is_some_and(|why| words.iter().all(|part| why.contains(part)));
        until(&format!("{words:?} is said"), said).await;
        let s = Session::new(&store);
        assert!(unavailable(&s.call(read()).await));
    }
}
