//! Who the gateway is to Redis, what it may do there, and whether it is the right Redis.

use std::time::Duration;

use chatgateway_redis_server::{Certificates, Cluster, Options, RedisServer, User};
use chatgateway_tests::client::HttpClient;
use serde_json::{Value, json};

use crate::{
    cluster::errors,
    support::{Follower, Gateways, Secret, counter, key, rotated, standalone, until},
};

/// What a gateway has to be allowed on its server. docs/redis.md tells the same; a test holds both together.
const ACL_KEYS: &str = "~log:{*} ~ses:{*} ~dlg:{*} ~ch:{*} ~own:{*} ~pods ~rl:{*}:* &ch:{*}";

/// The commands.
const ACL_COMMANDS: &str = "-@all +auth +hello +ping +evalsha +eval +script|load +spublish +ssubscribe +sunsubscribe \
     +xadd +xlen +xrange +xrevrange +xtrim +get +set +hget +hgetall +hmget +hset +hdel +zadd +zrange +zscore +zrem +zremrangebyrank \
     +sadd +srem +sscan +del +exists +expire +pexpireat +time";

/// And what a cluster's nodes are asked beside that.
const ACL_CLUSTER: &str = "+asking +cluster|slots";

fn user(rules: &str) -> User {
    User { name: "gateway".to_owned(), password: "of-the-gateway".to_owned(), rules: rules.to_owned() }
}

fn with_user(mut redis: Value, name: &Secret, password: &Secret) -> Value {
    redis["auth"] = json!({"usernameFile": name.path, "passwordFile": password.path});
    redis
}

/// Attempts that three seconds may bring: pauses grow to a second, and are random.
const ATTEMPTS_IN_3_S: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_at_the_start() {
    let rules = User::new("gateway", "right");
    let redis = RedisServer::start(Options { user: Some(rules), ..Options::default() }).unwrap();
    let (name, password) = (Secret::new("gateway\n"), Secret::new("wrong\n"));
    let gateways = Gateways::new(20);
    let pod = gateways.add_unready(&with_user(standalone(redis.endpoint()), &name, &password));
    pod.says("check the username and password files").await;
    let before = counter(&redis, "total_connections_received");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let attempts = counter(&redis, "total_connections_received") - before;
    assert!((1..ATTEMPTS_IN_3_S).contains(&attempts), "{attempts} attempts in 3 s");
    let (_, said) = pod.ready().await;
    assert!(said.contains(&redis.endpoint()) && said.contains("WRONGPASS") && !said.contains("wrong\n"), "{said}");
    // It is told once, and not each time.
    let lines = pod.process.output().lines().filter(|line| line.contains("WRONGPASS")).count();
    assert!(lines <= 3, "{}", pod.process.output());
    password.replace("right\n");
    until("it is ready with the right password", || async { pod.ready().await.0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_changes_costs_no_turn() {
    let redis = RedisServer::start(Options { user: Some(user("~* &* +@all")), ..Options::default() }).unwrap();
    let (name, password) = (Secret::new("gateway"), Secret::new("of-the-gateway"));
    let settings = with_user(standalone(redis.endpoint()), &name, &password);
    let gateways = Gateways::start(500, 2, &settings).await;
    let followers = gateways.talk(6).await;
    redis.expect_ok(&["ACL", "SETUSER", "gateway", "resetpass", ">changed"]).unwrap();
    password.replace("changed");
    // Whoever connects now needs the new one.
    for follower in &followers {
        follower.has_seen(follower.deltas() + 20).await;
    }
    assert_ne!(redis.cli(&["CLIENT", "KILL", "USER", "gateway"]), "0");
    let story = gateways.is_taken(1, "later", "t").await;
    assert_eq!(story.turn.answer(), gateways.answer());
    for story in gateways.all_whole(followers).await {
        story.undisturbed();
    }
    assert_eq!(gateways.simulator.calls().count, 7);
    for pod in 0..2 {
        assert_eq!(gateways.pods[pod].status().await.unwrap()["store_trouble"], Value::Null);
    }
}

/// Two gateways that share rate limits too, which nobody reaches.
async fn limited(tokens: u32, redis: &Value) -> Gateways {
    let mut gateways = Gateways::new(tokens);
    gateways.limits = json!([
        {"per": "Gateway", "requestsPerSecond": 1_000_000},
        {"per": "User", "tokensPerMinute": 100_000_000},
    ]);
    for _ in 0..2 {
        gateways.add(redis).await;
    }
    gateways.acquainted().await;
    gateways
}

/// Everything that gateways do with a store.
async fn works(mut gateways: Gateways) {
    let addresses = gateways.addresses();
    let followers = gateways.talk(2).await;
    let elsewhere = Follower::resume(rotated(&addresses, 1), "s0", "t");
    // A second turn waits, a third is cancelled while it does.
    let http = gateways.http(1);
    let waits = Follower::send(rotated(&addresses, 1), "s0", "waits");
    let cancelled = Follower::send(rotated(&addresses, 1), "s1", "cancelled");
    until("the turn is known", || async {
        http.post("/v1/sessions/s1/turns/cancelled/cancel", &json!({})).await.unwrap().status == 202
    })
    .await;
    elsewhere.has_seen(10).await;
    // The pod that runs the first session dies, and the other one goes on.
    gateways.pods[0].process().signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    let survivor = gateways.pods.pop().unwrap();
    gateways.pods = vec![survivor];
    let story = elsewhere.story().await;
    assert_eq!(story.count("takeover"), 1);
    gateways.whole(&story).await;
    assert_eq!(waits.story().await.turn.answer(), gateways.answer());
    assert_eq!(cancelled.story().await.turn.end().unwrap().kind(), "cancelled");
    for follower in followers {
        gateways.whole(&follower.story().await).await;
    }
    let http = HttpClient::new(gateways.pods[0].http());
    assert_eq!(http.delete("/v1/sessions/s0").await.unwrap().status, 204);
    assert_eq!(http.get("/v1/sessions/s0").await.unwrap().status, 404);
    gateways.pods[0].terminate().unwrap();
    let exit = gateways.pods[0].process().wait(Duration::from_secs(20)).await.unwrap();
    assert!(exit.success());
}

/// Nothing that was tried was refused. (The log of refusals also has what sentinels and tests try.)
fn nothing_refused(redis: &RedisServer) {
    assert_eq!(redis.cli(&["ACL", "LOG"]), "", "refused on port {}", redis.port());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_commands_on_few_keys_suffice() {
    let rules = user(&format!("{ACL_KEYS} {ACL_COMMANDS}"));
    let redis = RedisServer::start(Options { user: Some(rules), ..Options::default() }).unwrap();
    let (name, password) = (Secret::new("gateway"), Secret::new("of-the-gateway"));
    let settings = with_user(standalone(redis.endpoint()), &name, &password);
    works(limited(200, &settings).await).await;
    nothing_refused(&redis);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_few_more_suffice_in_a_cluster() {
    let rules = user(&format!("{ACL_KEYS} {ACL_COMMANDS} {ACL_CLUSTER}"));
    let cluster = Cluster::start_with(&Options { user: Some(rules), ..Options::default() }, 3, 0).unwrap();
    let (name, password) = (Secret::new("gateway"), Secret::new("of-the-gateway"));
    let settings = json!({"mode": "Cluster", "endpoints": cluster.endpoints()});
    let gateways = limited(200, &with_user(settings, &name, &password)).await;
    let followers = gateways.talk(2).await;
    let slot = cluster.slot_of(&key("log", "s0")).unwrap();
    let from = cluster.owner_of(slot).unwrap();
    let source = &cluster.nodes()[from];
    cluster.begin_move(slot, from, (from + 1) % 3).unwrap();
    cluster.move_keys(slot, from, (from + 1) % 3).unwrap();
    until("something is sent on", || async { errors(source, "ASK") > 0 }).await;
    cluster.end_move(slot, from, (from + 1) % 3).unwrap();
    gateways.all_whole(followers).await;
    cluster.nodes().iter().for_each(nothing_refused);
}

#[test]
fn the_manual_has_these_commands() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/redis.md");
    let manual = std::fs::read_to_string(path).unwrap();
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let manual = words(&manual.replace('\\', " "));
    for part in [ACL_KEYS, ACL_COMMANDS, ACL_CLUSTER] {
        assert!(manual.contains(&words(part)), "{part}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_missing_is_told() {
    let rules = user(&format!("{ACL_KEYS} {ACL_COMMANDS} -evalsha"));
    let redis = RedisServer::start(Options { user: Some(rules), ..Options::default() }).unwrap();
    let (name, password) = (Secret::new("gateway"), Secret::new("of-the-gateway"));
    let mut gateways = Gateways::new(20);
    gateways.add(&with_user(standalone(redis.endpoint()), &name, &password)).await;
    gateways.refuses(0, "new").await;
    let before = counter(&redis, "total_commands_processed");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let commands = counter(&redis, "total_commands_processed") - before;
    assert!(commands < 100, "{commands} commands in 2 s");
    let said = gateways.pods[0].process().output();
    assert!(said.contains("NOPERM") && said.contains("evalsha"), "nobody would find out:\n{said}");
    gateways.refuses(0, "new").await;
    let trouble = gateways.pods[0].status().await.unwrap()["store_trouble"].to_string();
    assert!(trouble.contains("NOPERM") && trouble.contains("lacks a right"), "{trouble}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_another_authority_is_not_trusted() {
    let (ours, others) = (Certificates::make().unwrap(), Certificates::make().unwrap());
    let redis = RedisServer::start(Options { tls: Some(ours.clone()), ..Options::default() }).unwrap();
    let authority = Secret::new(&std::fs::read_to_string(others.ca()).unwrap());
    let mut settings = standalone(redis.endpoint());
    settings["tls"] = json!({"caFile": authority.path});
    let gateways = Gateways::new(20);
    let pod = gateways.add_unready(&settings);
    pod.says("certificate").await;
    let (_, said) = pod.ready().await;
    assert!(said.contains(&redis.endpoint()) && said.contains("tls.caFile"), "{said}");
    authority.replace(&std::fs::read_to_string(ours.ca()).unwrap());
    until("it is ready with the right authority", || async { pod.ready().await.0 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_on_one_side_only_is_told() {
    let ours = Certificates::make().unwrap();
    let redis = RedisServer::start(Options { tls: Some(ours.clone()), ..Options::default() }).unwrap();
    let gateways = Gateways::new(20);
    let pod = gateways.add_unready(&standalone(redis.endpoint()));
    pod.says(&redis.endpoint()).await;
    drop(pod);
    let plain = RedisServer::start(Options::default()).unwrap();
    let mut settings = standalone(plain.endpoint());
    settings["tls"] = json!({"caFile": ours.ca()});
    let pod = gateways.add_unready(&settings);
    pod.says("TLS").await;
}
