//! Passwords that are wrong, and passwords that change.

use std::time::Duration;

use chatgateway_config::{RedisMode, RedisSettings};
use chatgateway_core::log::*;
use chatgateway_dataplane::store::{Store, redis::RedisStore};
use chatgateway_redis_server::{Options, RedisServer, User};
use tempfile::TempDir;
use tokio::task::block_in_place;

use crate::{
    settings::{connected, line_file, settings, until},
    support::*,
};

const SECRET: &str = "hunter2-of-this-test";

fn guarded() -> (RedisServer, TempDir, RedisSettings) {
    let server =
        RedisServer::start(Options { user: Some(User::new("gateway", SECRET)), ..Options::default() }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(RedisMode::Standalone, &[server.endpoint()]);
    settings.username_file = Some(line_file(dir.path(), "user", "gateway"));
    settings.password_file = Some(line_file(dir.path(), "password", SECRET));
    (server, dir, settings)
}

/// How often a command was carried out, and how often it failed.
fn calls(server: &RedisServer, name: &str) -> (u64, u64) {
    let Some(line) = server.info("commandstats", &format!("cmdstat_{name}")) else { return (0, 0) };
    let number = |field: &str| {
        line.split(',').find_map(|part| part.strip_prefix(field)?.strip_prefix('=')?.trim().parse().ok()).unwrap()
    };
    (number("calls"), number("failed_calls"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_is_said_and_not_told() {
    let (_server, dir, settings) = guarded();
    line_file(dir.path(), "password", "wrong-secret");
    let (store, _events) = RedisStore::start(&settings, POD).unwrap();
    until("the server's refusal is said", || store.trouble().is_some_and(|why| why.contains("WRONGPASS"))).await;
    let why = store.trouble().unwrap();
    assert!(why.contains("check the username and password files") && !why.contains("wrong-secret"), "{why}");
    line_file(dir.path(), "password", SECRET);
    until("the right one is read", || store.trouble().is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_password_is_said() {
    let (_server, _dir, mut settings) = guarded();
    (settings.username_file, settings.password_file) = (None, None);
    let (store, _events) = RedisStore::start(&settings, POD).unwrap();
    until("it is said", || store.trouble().is_some_and(|why| why.contains("set a password file"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_not_there_is_said() {
    let (_server, dir, settings) = guarded();
    std::fs::remove_file(dir.path().join("password")).unwrap();
    let (store, _events) = RedisStore::start(&settings, POD).unwrap();
    until("it is said", || store.trouble().is_some_and(|why| why.contains("cannot read the Redis password file")))
        .await;
    line_file(dir.path(), "password", SECRET);
    until("the file is read", || store.trouble().is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_password_needs_no_new_connection() {
    let (server, dir, settings) = guarded();
    let (store, _events) = connected(&settings, POD).await;
    until("the tail is connected", || store.stats().tail_connections == 1).await;
    let s = Session::new(&store);
    let own = s.own("a").await;
    let number = store.connection(&s.key);
    let mut n = 0;
    let mut go_on = async |steps: u64| {
        for _ in 0..steps {
            n += 1;
            let answer = s.ask(append(&own, n)).await;
            assert_eq!((answer.result, answer.connection), (Ok(Reply::Append(true)), number));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    block_in_place(|| server.expect_ok(&["ACL", "SETUSER", "gateway", "resetpass", ">the-second-one"])).unwrap();
    line_file(dir.path(), "password", "the-second-one");
    let before = calls(&server, "auth");
    while calls(&server, "auth").0 < before.0 + 2 {
        go_on(50).await;
    }
    assert_eq!(calls(&server, "auth").1, before.1, "none of them failed");
    // One that the server does not take: what is open goes on.
    line_file(dir.path(), "password", "not-the-third-one");
    while calls(&server, "auth").1 < before.1 + 2 {
        go_on(50).await;
    }
    go_on(100).await;
    assert_eq!((store.stats().connections, store.stats().tail_connections), (1, 1));
    // The next connection takes what the file holds then.
    line_file(dir.path(), "password", "the-second-one");
    block_in_place(|| server.cli(&["CLIENT", "KILL", "USER", "gateway"]));
    until("the connection is remade", || store.connection(&s.key) != number && store.trouble().is_none()).await;
    let found = s.check(&own).await;
    assert_eq!(found.end, Some(EntryId::new(own.epoch, n)));
}
