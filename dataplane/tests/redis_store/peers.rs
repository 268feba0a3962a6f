//! What pods on one store tell each other.

use std::{collections::HashSet, sync::Arc, time::Duration};

use chatgateway_config::RedisMode;
use chatgateway_core::log::*;
use chatgateway_dataplane::store::{News, Notice, PeerEvent, Peers, Store, redis::RedisStore};
use chatgateway_redis_server::{Options, RedisServer};
use tokio::{sync::mpsc, task::block_in_place, time::timeout};

use crate::{
    settings::{PATIENCE, connected, settings, until},
    support::*,
};

type Heard = mpsc::Receiver<PeerEvent>;

async fn next(heard: &mut Heard) -> PeerEvent {
    timeout(PATIENCE, heard.recv()).await.expect("something is heard").unwrap()
}

async fn two_pods(server: &RedisServer) -> ((Arc<RedisStore>, Heard), (Arc<RedisStore>, Heard)) {
    let settings = settings(RedisMode::Standalone, &[server.endpoint()]);
    (connected(&settings, POD).await, connected(&settings, OTHER).await)
}

async fn indexed(store: &RedisStore, pod: PodId) -> HashSet<SessionKey> {
    let (mut all, mut cursor) = (HashSet::new(), 0);
    loop {
        let (next, page) = store.index_of(pod, cursor).await.unwrap();
        all.extend(page);
        cursor = next;
        if cursor == 0 {
            return all;
        }
    }
}

/// Waits until a pod's index holds just these.
async fn until_indexed(store: &RedisStore, pod: PodId, sessions: &[&Session]) {
    let expected: HashSet<_> = sessions.iter().map(|session| session.key.clone()).collect();
    timeout(PATIENCE, async {
        while indexed(store, pod).await != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the index is as it should be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_hear_what_is_published() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, mut at_a), (b, mut at_b)) = two_pods(&server).await;
    let s = Session::new(&a);
    let own = s.own("a").await;
    assert_eq!(s.ask(check(&own)).await.followers, Some(0));
    a.follow(&s.key);
    assert_eq!(next(&mut at_a).await, PeerEvent::Following(s.key.clone()));
    assert_eq!(s.ask(check(&own)).await.followers, Some(0), "the pod itself is not another");
    b.follow(&s.key);
    b.follow(&s.key);
    assert_eq!(next(&mut at_b).await, PeerEvent::Following(s.key.clone()));
    assert_eq!(s.ask(check(&own)).await.followers, Some(1));
    for n in 1..=500 {
        s.commit(&own, n).await;
        a.publish(&s.key, News::Entry(delta(&own, n)));
    }
    a.publish(&s.key, News::Reread);
    a.publish(&s.key, News::Deleted);
    for n in 1..=500 {
        assert_eq!(next(&mut at_b).await, PeerEvent::News(s.key.clone(), News::Entry(delta(&own, n))));
    }
    assert_eq!(next(&mut at_b).await, PeerEvent::News(s.key.clone(), News::Reread));
    assert_eq!(next(&mut at_b).await, PeerEvent::News(s.key.clone(), News::Deleted));
    b.unfollow(&s.key);
    a.unfollow(&s.key);
    let no_one = || block_in_place(|| server.cli(&["PUBSUB", "SHARDCHANNELS", "ch:{t/*"])).is_empty();
    until("nobody is subscribed any more", no_one).await;
    assert_eq!(s.ask(check(&own)).await.followers, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_script_appends_is_published_in_the_same_form() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, _at_a), (b, mut at_b)) = two_pods(&server).await;
    let s = Session::new(&a);
    b.follow(&s.key);
    assert_eq!(next(&mut at_b).await, PeerEvent::Following(s.key.clone()));
    let own = s.own("a").await;
    match next(&mut at_b).await {
        PeerEvent::News(key, News::Entry(entry)) => assert_eq!((key, entry), (s.key.clone(), own.appended[0].clone())),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_wish_overtakes_the_one_before() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, _at_a), (b, mut at_b)) = two_pods(&server).await;
    let sessions: Vec<_> = (0..200).map(|_| Session::new(&a)).collect();
    for round in 0..20 {
        for s in &sessions {
            b.follow(&s.key);
            if round % 3 == 0 {
                tokio::task::yield_now().await;
            }
            b.unfollow(&s.key);
            b.follow(&s.key);
        }
        tokio::time::sleep(Duration::from_millis(round % 4)).await;
    }
    // All of them end followed: each is told, and after that hears what is published.
    let mut followed = HashSet::new();
    while followed.len() < sessions.len() {
        match next(&mut at_b).await {
            PeerEvent::Following(key) => drop(followed.insert(key)),
            other => panic!("{other:?}"),
        }
    }
    let channels = || block_in_place(|| server.cli(&["PUBSUB", "SHARDCHANNELS", "ch:{t/*"])).lines().count();
    until("all are subscribed to", || channels() == sessions.len()).await;
    for s in &sessions {
        a.publish(&s.key, News::Reread);
    }
    let mut told = HashSet::new();
    while told.len() < sessions.len() {
        match next(&mut at_b).await {
            PeerEvent::News(key, News::Reread) => drop(told.insert(key)),
            PeerEvent::Following(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_tail_is_suspect_and_made_anew() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, _at_a), (b, mut at_b)) = two_pods(&server).await;
    let sessions: Vec<_> = (0..2_500).map(|_| Session::new(&a)).collect();
    for s in &sessions {
        b.follow(&s.key);
    }
    let all: HashSet<_> = sessions.iter().map(|s| s.key.clone()).collect();
    let mut lost_by = ["pubsub", "normal", "pubsub"].into_iter();
    loop {
        let mut followed = HashSet::new();
        while followed != all {
            match next(&mut at_b).await {
                PeerEvent::Following(key) => assert!(followed.insert(key), "each is told once"),
                other => panic!("{other:?}"),
            }
        }
        let s = &sessions[7];
        a.publish(&s.key, News::Reread);
        assert_eq!(next(&mut at_b).await, PeerEvent::News(s.key.clone(), News::Reread));
        let Some(kind) = lost_by.next() else { return };
        block_in_place(|| server.cli(&["CLIENT", "KILL", "TYPE", kind]));
        let mut suspect = HashSet::new();
        while suspect != all {
            match next(&mut at_b).await {
                PeerEvent::Suspect(keys) => suspect.extend(keys),
                other => panic!("{other:?}"),
            }
        }
        until("the commands' connection is back", || a.trouble().is_none() && b.trouble().is_none()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_tail_is_noticed() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, _at_a), (b, mut at_b)) = two_pods(&server).await;
    let s = Session::new(&a);
    b.follow(&s.key);
    assert_eq!(next(&mut at_b).await, PeerEvent::Following(s.key.clone()));
    block_in_place(|| server.stop_process()).unwrap();
    assert_eq!(next(&mut at_b).await, PeerEvent::Suspect(vec![s.key.clone()]));
    server.continue_process().unwrap();
    assert_eq!(next(&mut at_b).await, PeerEvent::Following(s.key.clone()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notices_reach_their_pod() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, mut at_a), (b, mut at_b)) = two_pods(&server).await;
    until("both are subscribed", || a.stats().tail_connections == 1 && b.stats().tail_connections == 1).await;
    let channels = || block_in_place(|| server.cli(&["PUBSUB", "SHARDCHANNELS"])).lines().count();
    until("both channels are there", || channels() == 2).await;
    let awkward = SessionKey::new("t", "p/{q}", &SessionId::parse("Grüße / {sess} 100 %").unwrap());
    a.notify(OTHER, &awkward, Notice::Look);
    a.notify(OTHER, &awkward, Notice::Claim);
    b.notify(POD, &awkward, Notice::Claim);
    assert_eq!(next(&mut at_b).await, PeerEvent::Notice(awkward.clone(), Notice::Look));
    assert_eq!(next(&mut at_b).await, PeerEvent::Notice(awkward.clone(), Notice::Claim));
    assert_eq!(next(&mut at_a).await, PeerEvent::Notice(awkward, Notice::Claim));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_holds_what_a_pod_may_own() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, _at_a), (b, _at_b)) = two_pods(&server).await;
    let (s, t) = (Session::new(&a), Session::new(&a));
    let own = s.own("a").await;
    assert_eq!(indexed(&b, POD).await, HashSet::from([s.key.clone()]), "before the begin is answered");
    // Repeats, and turns that wait, are no further ownership.
    let at_b = Session { store: b.clone(), key: s.key.clone() };
    let queued = at_b.insist(Request::Begin(begin(OTHER, "b", "x"))).await;
    assert!(matches!(queued, Reply::Begin(BeginReply::Queued { .. })), "{queued:?}");
    let known = s.insist(Request::Begin(begin(POD, "a", s.key.as_str()))).await;
    assert!(matches!(known, Reply::Begin(BeginReply::Known(_))), "{known:?}");
    until_indexed(&a, OTHER, &[]).await;
    t.own("a").await;
    until_indexed(&b, POD, &[&s, &t]).await;
    // The same ownership goes on with the next turn.
    let FinishReply::Ended { next: Some(next), .. } = s.finish(&own, 0, 1).await else { panic!("one waits") };
    until_indexed(&b, POD, &[&s, &t]).await;
    assert!(matches!(s.finish(&next, next.end.n, next.len).await, FinishReply::Ended { next: None, .. }));
    a.disown(&s.key);
    until_indexed(&b, POD, &[&t]).await;
    let nothing = Claim { pod: POD, nonce: Nonce(1), why: ClaimReason::Expired, jump: 0, terms: TERMS };
    assert_eq!(s.insist(Request::Claim(nothing)).await, Reply::Claim(ClaimReply::Nothing));
    until_indexed(&b, POD, &[&t]).await;
    b.forget_session(POD, &t.key);
    until_indexed(&b, POD, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ownerships_in_quick_succession_keep_the_index_right() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, _at_a), (b, _at_b)) = two_pods(&server).await;
    let sessions: Vec<_> = (0..20).map(|_| Session::new(&a)).collect();
    for round in 0..30 {
        let turns = sessions.iter().map(|s| async {
            let own = s.own(&format!("t{round}")).await;
            s.finish(&own, own.end.n, own.len).await;
            // The next turn begins while this one's end is still being told.
            a.disown(&s.key);
        });
        futures_util::future::join_all(turns).await;
    }
    until_indexed(&b, POD, &[]).await;
    let last = &sessions[0];
    last.own("last").await;
    until_indexed(&b, POD, &[last]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ownership_in_doubt_stays_in_the_index() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, _at_a), (b, _at_b)) = two_pods(&server).await;
    let s = Session::new(&a);
    // No reply in time: the begin may be carried out all the same, now or later.
    let asked = begin(POD, "a", s.key.as_str());
    block_in_place(|| server.pause(1_500)).unwrap();
    assert!(s.call(Request::Begin(asked.clone())).await.is_err());
    until("it is connected again", || a.trouble().is_none() && b.trouble().is_none()).await;
    let Reply::Begin(BeginReply::Owner { .. }) = s.insist(Request::Begin(asked)).await else { panic!("it owns") };
    until_indexed(&b, POD, &[&s]).await;
    a.disown(&s.key);
    until_indexed(&b, POD, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beats_tell_who_lives() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, _at_a), (b, _at_b)) = two_pods(&server).await;
    assert_eq!(a.beat(false).await.unwrap().peers, []);
    let peers = b.beat(false).await.unwrap().peers;
    assert_eq!(peers.len(), 1);
    assert!(peers[0].pod == POD && peers[0].silent < Duration::from_secs(5), "{peers:?}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let silent = b.beat(false).await.unwrap().peers[0].silent;
    assert!(silent >= Duration::from_millis(300) && silent < Duration::from_secs(10), "{silent:?}");
    a.beat(true).await.unwrap();
    assert_eq!(b.beat(false).await.unwrap().peers[0].silent, Duration::MAX);
    b.forget_pod(POD);
    assert_eq!(b.beat(false).await.unwrap().peers, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beats_tell_for_how_long_there_was_no_silence() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, _at_a), (b, _at_b)) = two_pods(&server).await;
    assert_eq!(a.beat(false).await.unwrap().steady, Duration::ZERO);
    let shift = |by: Duration| {
        // Time passes for all that stands there, as if the server's clock had moved on.
        let move_back =
            "for i, m in ipairs(redis.call('ZRANGE', 'pods', 0, -1)) do redis.call('ZINCRBY', 'pods', ARGV[1], m) end";
        block_in_place(|| server.cli(&["EVAL", move_back, "0", &format!("-{}", by.as_micros())]));
    };
    // A beat of any pod breaks the silence.
    for pod in [&b, &a, &b] {
        shift(Duration::from_secs(2));
        pod.beat(false).await.unwrap();
    }
    let steady = a.beat(false).await.unwrap().steady;
    assert!(steady >= Duration::from_secs(6), "{steady:?}");
    // Nobody reached the server for a while: it begins anew.
    shift(Duration::from_secs(3));
    assert_eq!(a.beat(false).await.unwrap().steady, Duration::ZERO);
    shift(Duration::from_secs(1));
    // So it does where the server has lost it.
    assert!(b.beat(false).await.unwrap().steady >= Duration::from_secs(1));
    block_in_place(|| server.cli(&["DEL", "pods"]));
    assert_eq!(b.beat(false).await.unwrap().steady, Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_the_server_lost_is_written_again() {
    let server = RedisServer::start(Options::default()).unwrap();
    let ((a, _at_a), (b, _at_b)) = two_pods(&server).await;
    let sessions: Vec<_> = (0..1_200).map(|_| Session::new(&a)).collect();
    futures_util::future::join_all(sessions.iter().map(|s| s.own("a"))).await;
    let all: Vec<&Session> = sessions.iter().collect();
    until_indexed(&b, POD, &all).await;
    assert_eq!(block_in_place(|| server.cli(&["DEL", &format!("own:{{{POD}}}")])), "1");
    for _ in 0..10 {
        a.beat(false).await.unwrap();
    }
    until_indexed(&b, POD, &all).await;
    let ttl: u64 = block_in_place(|| server.cli(&["TTL", &format!("own:{{{POD}}}")])).parse().unwrap();
    assert!((3_500..=3_600).contains(&ttl), "{ttl}");
}
