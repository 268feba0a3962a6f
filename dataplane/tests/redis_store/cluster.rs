//! A cluster whose slots move and whose nodes die.

use std::{collections::HashSet, time::Duration};

use chatgateway_config::RedisMode;
use chatgateway_core::log::*;
use chatgateway_dataplane::store::{News, PeerEvent, Peers, Store, StoreError};
use chatgateway_redis_server::{Cluster, Options};
use tokio::{task::block_in_place, time::timeout};

use crate::{
    settings::{PATIENCE, connected, settings, until},
    support::*,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_of_all_nodes_are_reached() {
    let cluster = block_in_place(|| Cluster::start(3)).unwrap();
    let settings = settings(RedisMode::Cluster, &cluster.endpoints()[..1]);
    let (store, mut events) = connected(&settings, POD).await;
    let (other, _events) = connected(&settings, OTHER).await;
    let sessions: Vec<_> = (0..60).map(|_| Session::new(&store)).collect();
    let mut numbers = HashSet::new();
    for s in &sessions {
        let own = s.own("a").await;
        let answer = s.ask(append(&own, 1)).await;
        assert_eq!(answer.connection, store.connection(&s.key));
        numbers.insert(answer.connection);
        store.follow(&s.key);
    }
    assert_eq!(numbers.len(), 3, "one connection to each primary");
    let mut following = HashSet::new();
    while following.len() < sessions.len() {
        match timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
            PeerEvent::Following(key) => drop(following.insert(key)),
            event => panic!("{event:?}"),
        }
    }
    sessions.iter().for_each(|s| other.publish(&s.key, News::Reread));
    let mut heard = HashSet::new();
    while heard.len() < sessions.len() {
        match timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
            PeerEvent::News(key, News::Reread) => drop(heard.insert(key)),
            event => panic!("{event:?}"),
        }
    }
    other.beat(false).await.unwrap();
    assert_eq!(store.beat(false).await.unwrap().peers.len(), 1);
    let (_, indexed) = other.index_of(POD, 0).await.unwrap();
    assert_eq!(indexed.into_iter().collect::<HashSet<_>>(), sessions.iter().map(|s| s.key.clone()).collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_goes_on_while_its_slot_moves() {
    let cluster = block_in_place(|| Cluster::start(3)).unwrap();
    let settings = settings(RedisMode::Cluster, &cluster.endpoints());
    let (store, mut events) = connected(&settings, POD).await;
    let (other, _events) = connected(&settings, OTHER).await;
    let s = Session::new(&store);
    let log = format!("log:{{{}}}", s.key.as_str());
    let slot = cluster.slot_of(&log).unwrap();
    let from = cluster.owner_of(slot).unwrap();
    let to = (from + 1) % 3;
    let own = s.own("a").await;
    store.follow(&s.key);
    assert_eq!(timeout(PATIENCE, events.recv()).await.unwrap(), Some(PeerEvent::Following(s.key.clone())));
    let mut n = 0;
    let mut go_on = async |steps: u64| {
        for _ in 0..steps {
            n += 1;
            s.commit(&own, n).await;
        }
    };
    go_on(20).await;
    let at_first = store.connection(&s.key);
    block_in_place(|| cluster.begin_move(slot, from, to)).unwrap();
    go_on(20).await;
    assert_eq!(store.connection(&s.key), at_first, "what has not moved is where it was");
    // The log alone: appends are redirected, scripts cannot run anywhere.
    block_in_place(|| cluster.move_named(&[&log], from, to)).unwrap();
    let torn = s.ask(check(&own)).await;
    assert!(matches!(&torn.result, Err(StoreError::Unavailable(why)) if why.starts_with("TRYAGAIN")), "{torn:?}");
    let asked = s.ask(append(&own, 41)).await;
    assert_eq!(asked.result, Ok(Reply::Append(true)));
    assert_eq!(asked.connection, store.connection(&s.key), "one number stands for both connections");
    assert_ne!(asked.connection, at_first);
    let again = s.ask(append(&own, 42)).await;
    assert_eq!((again.result, again.connection), (Ok(Reply::Append(true)), asked.connection));
    block_in_place(|| cluster.move_keys(slot, from, to)).unwrap();
    let again = s.ask(append(&own, 43)).await;
    assert_eq!((again.result, again.connection), (Ok(Reply::Append(true)), asked.connection));
    block_in_place(|| cluster.end_move(slot, from, to)).unwrap();
    // The other pod heard nothing of it: it is sent to the new owner, and asks there the next time.
    let elsewhere = Session { store: other.clone(), key: s.key.clone() };
    let moved = elsewhere.ask(read()).await;
    assert!(matches!(&moved.result, Err(StoreError::Unavailable(why)) if why.starts_with("MOVED")), "{moved:?}");
    elsewhere.insist(read()).await;
    assert_ne!(other.connection(&s.key), moved.connection);
    for n in 44..=80 {
        s.commit(&own, n).await;
    }
    let there = s.ask(append(&own, 81)).await;
    assert_eq!((there.result, there.connection), (Ok(Reply::Append(true)), store.connection(&s.key)));
    assert!(there.connection != asked.connection && there.connection != at_first);
    let ids: Vec<_> = (0..=81).map(|n| EntryId::new(own.epoch, n)).collect();
    assert_eq!(s.ids().await, ids);
    // Its followers were told, and hear again.
    assert_eq!(timeout(PATIENCE, events.recv()).await.unwrap(), Some(PeerEvent::Suspect(vec![s.key.clone()])));
    loop {
        match timeout(PATIENCE, events.recv()).await.unwrap().unwrap() {
            PeerEvent::Following(_) => break,
            PeerEvent::Suspect(_) => {}
            event => panic!("{event:?}"),
        }
    }
    other.publish(&s.key, News::Reread);
    assert_eq!(timeout(PATIENCE, events.recv()).await.unwrap(), Some(PeerEvent::News(s.key.clone(), News::Reread)));
    assert_eq!(store.stats().connections, 3, "no connection was remade for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_takes_over_for_a_primary_that_died() {
    let cluster = block_in_place(|| Cluster::start_with(&Options::default(), 3, 1)).unwrap();
    let (store, _events) = connected(&settings(RedisMode::Cluster, &cluster.endpoints()[1..2]), POD).await;
    let sessions: Vec<_> = (0..30).map(|_| Session::new(&store)).collect();
    for s in &sessions {
        s.own("a").await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    block_in_place(|| cluster.nodes()[0].kill9());
    until("the loss is noticed", || store.trouble().is_some()).await;
    until("all slots are served", || store.trouble().is_none()).await;
    for s in &sessions {
        assert_eq!(s.ids().await.len(), 1);
    }
}
