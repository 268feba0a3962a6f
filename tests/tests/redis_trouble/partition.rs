//! One pod is cut off from Redis, the others are not.

use std::time::{Duration, Instant};

use chatgateway_redis_server::{Options, RedisServer};
use chatgateway_tests::proxy::Proxy;

use crate::support::{Follower, Gateways, chain, numbers, rotated, standalone};

/// How long the pod is cut off: two leases and a half.
const PARTITION: Duration = Duration::from_secs(10);

/// A lease, the time in which a silent pod is noticed, and what a busy machine adds.
const TAKEOVER: Duration = Duration::from_secs(4 + 3 + 2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_cut_off_loses_its_turns_and_its_clients_lose_nothing() {
    let redis = RedisServer::start(Options::default()).unwrap();
    let proxy = Proxy::start(redis.endpoint().parse().unwrap()).await.unwrap();
    let mut gateways = Gateways::with(1_500, true);
    gateways.add(&standalone(proxy.address())).await;
    gateways.add(&standalone(redis.endpoint())).await;
    gateways.acquainted().await;
    let addresses = gateways.addresses();
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for n in 0..4 {
        let session = format!("s{n}");
        // These stay where they are: they know no other pod.
        here.push(Follower::send(addresses[..1].to_vec(), &session, "t"));
        here[n].has_seen(10).await;
        there.push(Follower::resume(rotated(&addresses, 1), &session, "t"));
    }
    for follower in &there {
        follower.has_seen(20).await;
    }

    let parted = Instant::now();
    proxy.black_hole();
    gateways.refuses(0, "new").await;
    tokio::time::sleep(PARTITION.saturating_sub(parted.elapsed())).await;
    let healed = Instant::now();
    proxy.heal();

    for (here, there) in here.into_iter().zip(there) {
        let (here, there) = (here.story().await, there.story().await);
        gateways.whole(&there).await;
        // The same entries for both: nothing of the cut-off pod's own came after the takeover.
        assert_eq!(here.turn.events, there.turn.events, "{}", here.session);
        assert_eq!((here.lost, there.lost, here.connections, there.connections), (0, 0, 1, 1));
        let at = there.turn.kinds().iter().position(|kind| *kind == "takeover").unwrap();
        assert!(there.times[at] - parted < TAKEOVER, "taken over after {:?}", there.times[at] - parted);
        assert_eq!(there.count("reset"), 0, "this model server can continue");
        // A pause on the one side only.
        assert!(here.is_silent(parted + Duration::from_millis(500), healed), "{}", here.session);
        assert!(!there.is_silent(parted + TAKEOVER, healed), "{}", there.session);
        let epochs: Vec<_> = chain(&redis, &here.session).iter().map(|id| numbers(id).0).collect();
        assert!(epochs.is_sorted(), "{}: {epochs:?}", here.session);
    }
    let story = gateways.is_taken(0, "later", "t").await;
    assert_eq!(story.connections, 1, "the pod is there again");
}
