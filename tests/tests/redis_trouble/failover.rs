//! Another server becomes the primary: with everything, or without what was written last.

use chatgateway_redis_server::{Options, PRIMARY_NAME, RedisServer, Sentinels};
use chatgateway_tests::proxy::Proxy;
use serde_json::{Value, json};

use crate::support::{Follower, Gateways, Story, chain, key, rotated, standalone, until};

fn by_sentinels(sentinels: &Sentinels) -> Value {
    json!({"mode": "Sentinel", "endpoints": sentinels.endpoints(), "primaryName": PRIMARY_NAME})
}

/// After a failover each answer is whole; where something was lost, the model was not asked again for it.
async fn whole_after(gateways: &Gateways, primary: &RedisServer, followers: Vec<Follower>) -> Vec<Story> {
    let stories = gateways.all_whole(followers).await;
    for story in &stories {
        assert!(story.lost <= 1, "{}: {} positions lost", story.session, story.lost);
        chain(primary, &story.session);
    }
    let story = gateways.is_taken(0, "later", "t").await;
    assert_eq!(story.turn.answer(), gateways.answer());
    stories
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_failover() {
    let sentinels = Sentinels::start(1, 3).unwrap();
    let gateways = Gateways::start(500, 2, &by_sentinels(&sentinels)).await;
    let followers = gateways.talk(10).await;
    let primary = sentinels.failover().unwrap();
    whole_after(&gateways, primary, followers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary() {
    let sentinels = Sentinels::start(1, 3).unwrap();
    let gateways = Gateways::start(500, 2, &by_sentinels(&sentinels)).await;
    let followers = gateways.talk(10).await;
    let before = sentinels.primary().unwrap();
    before.kill9();
    let primary = sentinels.wait_primary_other_than(before.port()).unwrap();
    whole_after(&gateways, primary, followers).await;
}

/// A primary, a replica behind a proxy of its own, and a proxy by which the gateways reach whichever is the primary.
struct Pair {
    _primary: RedisServer,
    replica: RedisServer,
    replication: Proxy,
    address: Proxy,
}

impl Pair {
    async fn start() -> Self {
        let primary = RedisServer::start(Options::default()).unwrap();
        let target = primary.endpoint().parse().unwrap();
        let (replication, address) = (Proxy::start(target).await.unwrap(), Proxy::start(target).await.unwrap());
        let replica_of = Some(replication.address().port());
        let replica = RedisServer::start(Options { replica_of, ..Options::default() }).unwrap();
        Self { _primary: primary, replica, replication, address }
    }

    /// From now on nothing that is written reaches the replica.
    fn part(&self) {
        self.replication.black_hole();
    }

    /// The replica becomes the primary, and everybody's connections break.
    fn switch(&self) {
        self.replica.expect_ok(&["REPLICAOF", "NO", "ONE"]).unwrap();
        self.address.set_target(self.replica.endpoint().parse().unwrap());
        self.address.cut();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_lost_is_told_again() {
    let pair = Pair::start().await;
    let gateways = Gateways::start(500, 2, &standalone(pair.address.address())).await;
    let followers = gateways.talk(6).await;
    let ended = gateways.is_taken(0, "ended", "t");
    pair.part();
    let seen: Vec<_> = followers.iter().map(Follower::deltas).collect();
    for (follower, seen) in followers.iter().zip(seen) {
        follower.has_seen(seen + 30).await;
    }
    pair.switch();
    let ended = ended.await;
    let stories = gateways.all_whole(followers).await;
    for story in &stories {
        // Who had read what is lost was told so, and found the text again after a `reset`.
        assert_eq!(story.lost, 1, "{}", story.session);
        assert_eq!(story.count("reset"), 1, "{}", story.session);
        chain(&pair.replica, &story.session);
    }
    assert_eq!(ended.turn.answer(), gateways.answer());
    // All of it was still in the pods' memory.
    assert!(gateways.simulator.calls().count <= 8, "{} calls", gateways.simulator.calls().count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_a_failover_forgot_may_be_sent_again() {
    let pair = Pair::start().await;
    let gateways = Gateways::start(200, 1, &standalone(pair.address.address())).await;
    pair.part();
    let story = gateways.is_taken(0, "s0", "t").await;
    assert_eq!(story.turn.answer(), gateways.answer());
    let position = (*story.turn.ids().last().unwrap()).to_owned();
    pair.switch();
    until("the session is unknown", || async { gateways.http(0).get("/v1/sessions/s0").await.unwrap().status == 404 })
        .await;
    // Who was there before is told: the position is not one of this log, and nothing else.
    let reply = gateways.http(0).get(&format!("/v1/sessions/s0/events?after={position}&wait=1s")).await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.json().unwrap()["code"]), (410, &json!("not_resumable")));
    let again = gateways.is_taken(0, "s0", "t").await;
    gateways.whole(&again).await;
    assert_ne!(again.turn.ids().first(), story.turn.ids().first());
}

/// Keeps the session's three keys as they are now under other names of the same slot, or puts what is kept back, as one.
fn surgery(redis: &RedisServer, session: &str, put_back: bool) {
    let script = if put_back {
        "for _, k in ipairs(KEYS) do local kept = redis.call('GET', 'kept' .. k) redis.call('DEL', k) \
         if kept then redis.call('RESTORE', k, 0, kept) end end return 'OK'"
    } else {
        "for _, k in ipairs(KEYS) do local now = redis.call('DUMP', k) \
         if now then redis.call('SET', 'kept' .. k, now) end end return 'OK'"
    };
    let keys = ["log", "ses", "dlg"].map(|kind| key(kind, session));
    redis.expect_ok(&["EVAL", script, "3", &keys[0], &keys[1], &keys[2]]).unwrap();
}

/// The store goes back in time while every connection stays: a failover behind a proxy that hides it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_that_no_connection_shows_is_found() {
    let redis = RedisServer::start(Options::default()).unwrap();
    let gateways = Gateways::start(600, 2, &standalone(redis.endpoint())).await;
    let addresses = gateways.addresses();
    let here = Follower::send(addresses.clone(), "s0", "t");
    here.has_seen(20).await;
    let elsewhere = Follower::resume(rotated(&addresses, 1), "s0", "t");
    elsewhere.has_seen(20).await;
    surgery(&redis, "s0", false);
    here.has_seen(here.deltas() + 50).await;
    surgery(&redis, "s0", true);
    // Who comes into the hole is not sent in circles.
    let late = Follower::resume(rotated(&addresses, 1), "s0", "t");
    for follower in [here, elsewhere, late] {
        let story = follower.story().await;
        gateways.whole(&story).await;
        assert!(story.lost <= 2, "{} positions lost", story.lost);
        assert_eq!(story.count("reset"), 1);
    }
    assert_eq!(gateways.simulator.calls().count, 1);
}

/// The same in the last moment, when all that is left to write is the answer's end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_ends_on_a_log_with_a_hole() {
    let redis = RedisServer::start(Options::default()).unwrap();
    let gateways = Gateways::start(150, 1, &standalone(redis.endpoint())).await;
    let follower = Follower::send(gateways.addresses(), "s0", "t");
    follower.has_seen(100).await;
    // Entries in the middle go; the end stays what it is.
    let ids = redis.cli(&["XRANGE", &key("log", "s0"), "-", "+", "COUNT", "60"]);
    let is_id = |line: &&str| line.split_once('-').is_some_and(|(epoch, _)| epoch.len() > 10);
    let ids: Vec<_> = ids.lines().filter(is_id).skip(50).collect();
    let mut command = vec!["XDEL".to_owned(), key("log", "s0")];
    command.extend(ids.iter().map(|id| (*id).to_owned()));
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    assert_eq!(redis.cli(&command), ids.len().to_string());
    let story = follower.story().await;
    gateways.whole(&story).await;
    assert_eq!(story.count("reset"), 1);
    assert_eq!(gateways.simulator.calls().count, 1);
}
