//! A server that goes and comes back with its data, that hesitates, or that is far away.

use std::time::{Duration, Instant};

use chatgateway_redis_server::{Fsync, Options, RedisServer};
use chatgateway_tests::proxy::{Flow, Proxy, Way};

use crate::support::{Follower, Gateways, Story, chain, counter, rotated, standalone};

/// What a connection that breaks leaves on its way, and a busy machine's scheduler.
const LATE: Duration = Duration::from_millis(500);

fn kept(fsync: Fsync) -> RedisServer {
    RedisServer::start(Options { appendonly: Some(fsync), ..Options::default() }).unwrap()
}

/// Connections of two pods and of the test's own questions: some attempts each, not a storm.
const CONNECTIONS_MAX: u64 = 60;

async fn restarted(fsync: Fsync, restart: impl AsyncFnOnce(&RedisServer, &Gateways)) {
    let redis = kept(fsync);
    let gateways = Gateways::start(300, 2, &standalone(redis.endpoint())).await;
    let followers = gateways.talk(20).await;
    restart(&redis, &gateways).await;
    for story in gateways.all_whole(followers).await {
        story.undisturbed();
        chain(&redis, &story.session);
    }
    // Nobody's lease was taken away meanwhile, and nothing was asked twice.
    assert_eq!(gateways.simulator.calls().count, 20);
    // The server counts from its start: what came at once, and what the rest of the answers took.
    let connections = counter(&redis, "total_connections_received");
    assert!(connections < CONNECTIONS_MAX + 60, "{connections} connections");
    let commands = counter(&redis, "total_commands_processed");
    assert!(commands < 20 * 300 * 2, "{commands} commands");
    let story = gateways.is_taken(0, "later", "t").await;
    assert_eq!(story.turn.answer(), gateways.answer());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_outlive_a_restart() {
    restarted(Fsync::Everysec, async |redis, _| redis.restart().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_outlive_a_killed_server_that_kept_everything() {
    restarted(Fsync::Always, async |redis, gateways| {
        redis.kill9();
        gateways.refuses(0, "new").await;
        redis.start_again().unwrap();
    })
    .await;
}

async fn paused(ms: u64, tokens: u32) -> (RedisServer, Gateways, Vec<Story>) {
    let redis = RedisServer::start(Options::default()).unwrap();
    let gateways = Gateways::start(tokens, 2, &standalone(redis.endpoint())).await;
    let followers = gateways.talk(10).await;
    let connections = counter(&redis, "total_connections_received");
    let paused = Instant::now();
    redis.pause(ms).unwrap();
    if ms > 4_000 {
        gateways.refuses(1, "new").await;
    }
    let over = paused + Duration::from_millis(ms);
    let stories = gateways.all_whole(followers).await;
    let connections = counter(&redis, "total_connections_received") - connections;
    assert!(connections < CONNECTIONS_MAX, "{connections} connections");
    for story in &stories {
        story.undisturbed();
        chain(&redis, &story.session);
        // A pause for its clients too: nothing leaves the gateway that is not in the store.
        assert!(story.is_silent(paused + LATE, over), "{}", story.session);
    }
    assert_eq!(gateways.simulator.calls().count, 10);
    (redis, gateways, stories)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_within_the_lease_is_a_pause() {
    let (_redis, gateways, stories) = paused(2_000, 300).await;
    // What the model said meanwhile was kept: it comes in few pieces afterwards.
    for story in &stories {
        assert!(story.count("delta") < 250, "{} pieces", story.count("delta"));
    }
    let story = gateways.is_taken(0, "later", "t").await;
    assert_eq!(story.turn.answer(), gateways.answer());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_beyond_the_lease_takes_nothing_from_its_owner() {
    let (_redis, gateways, _) = paused(6_000, 800).await;
    // What was refused is told to be sent again; whatever became of the first copy, the turn runs once.
    for (session, turn) in [("new-h", "h"), ("new-w", "w"), ("new-g", "g")] {
        let story = gateways.is_taken(1, session, turn).await;
        assert_eq!(story.turn.answer(), gateways.answer());
        assert_eq!(story.count("turn"), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_far_away_costs_time_and_nothing_else() {
    let redis = RedisServer::start(Options::default()).unwrap();
    let mut gateways = Gateways::new(300);
    let mut proxies = Vec::new();
    for _ in 0..2 {
        let proxy = Proxy::start(redis.endpoint().parse().unwrap()).await.unwrap();
        proxy.set_flow(Way::ToTarget, Flow { latency: Duration::from_millis(200), ..Flow::default() });
        gateways.add(&standalone(proxy.address())).await;
        proxies.push(proxy);
    }
    gateways.acquainted().await;
    let asked = Instant::now();
    let addresses = gateways.addresses();
    let followers: Vec<_> = (0..10).map(|n| Follower::send(rotated(&addresses, n), &format!("s{n}"), "t")).collect();
    let stories = gateways.all_whole(followers).await;
    for story in &stories {
        story.undisturbed();
        assert!(story.times[0] - asked < Duration::from_secs(3), "accepted after {:?}", story.times[0] - asked);
        // One append is under way at a time, and takes what gathered meanwhile with it.
        assert!(story.count("delta") <= 40, "{} pieces", story.count("delta"));
    }
    assert_eq!(gateways.simulator.calls().count, 10);
}
