//! Readers and owners of one pod and of two, without a socket.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use chatgateway_config::Settings;
use chatgateway_core::log::*;
use chatgateway_dataplane::{
    clock::Clock,
    gateway::{Caller, Gateway, SendTurn},
    readers::{ReaderEvent, Readers},
    store::MemoryStore,
};

fn settings(demo: &str) -> Settings {
    Settings::parse(&format!("upstreams: [{{name: demo, type: Demo, demo: {demo}}}]")).unwrap()
}

fn caller() -> Caller {
    Caller::anonymous(Ipv4Addr::LOCALHOST.into())
}

fn session() -> SessionId {
    SessionId::parse("s").unwrap()
}

fn turn(id: &str) -> SendTurn {
    SendTurn {
        session: session(),
        turn: TurnId::parse(id).unwrap(),
        seq: None,
        text: Some("hello".into()),
        messages: None,
        model: None,
        options: None,
    }
}

/// Entries up to the end of a turn.
async fn entries(readers: &mut Readers) -> Vec<Arc<Entry>> {
    let mut all = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(60), readers.next()).await.expect("an event in time");
        match event {
            ReaderEvent::Entry { entry, .. } => {
                all.push(entry.clone());
                if entry.kind.end().is_some() {
                    return all;
                }
            }
            ReaderEvent::Resumed { recovered: true, .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// What a client shows after these entries.
fn text(entries: &[Arc<Entry>]) -> String {
    let mut text = String::new();
    for entry in entries {
        match &entry.kind {
            EntryKind::Delta { text: more } => text.push_str(more),
            EntryKind::Reset => text.clear(),
            _ => {}
        }
    }
    text
}

fn chain(entries: &[Arc<Entry>], mut at: EntryId) {
    for entry in entries {
        assert_eq!(entry.predecessor(), at);
        at = entry.id;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_sleeps_reads_the_log_and_misses_nothing() {
    let gateway = Gateway::start(settings("{tokenDelay: 1ms, answerBytes: 8000}")).unwrap();
    let (mut slow, mut quick) = (gateway.readers(caller()), gateway.readers(caller()));
    slow.resume(session(), EntryId::ZERO).unwrap();
    assert!(matches!(slow.next().await, ReaderEvent::Resumed { recovered: true, .. }));
    quick.send(turn("t")).await.unwrap();
    let told = entries(&mut quick).await;
    assert!(told.len() > 600, "the mailbox overflows: {}", told.len());
    assert_eq!(entries(&mut slow).await, told);
    chain(&told, EntryId::ZERO);
}

#[tokio::test(start_paused = true)]
async fn time_limits_end_a_turn_that_takes_too_long() {
    let config = "upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 60s}, \
        timeouts: {firstToken: 1s, betweenTokens: 1s, total: 3s}, pool: {queueTimeout: 1s}}]";
    let gateway = Gateway::start(Settings::parse(config).unwrap()).unwrap();
    let mut readers = gateway.readers(caller());
    readers.send(turn("t")).await.unwrap();
    let told = entries(&mut readers).await;
    let EntryKind::Failed { code, .. } = &told.last().unwrap().kind else { panic!("{told:?}") };
    assert_eq!(code.as_str(), "upstream_timeout");
}

/// The pod that runs a turn dies: its tasks stop, its lease is not renewed. A reader on another pod notices.
#[test]
fn another_pod_goes_on_with_a_dead_pods_turn() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (dying, living) = (runtime(), runtime());
    let store = Arc::new(MemoryStore::new(Clock::system()));
    let demo = "{tokenDelay: 10ms, answerBytes: 3000}";
    let first = Gateway::new(settings(demo), PodId(1), store.clone()).unwrap();
    let second = Gateway::new(settings(demo), PodId(2), store).unwrap();
    dying.block_on(async {
        let mut readers = first.readers(caller());
        readers.send(turn("t")).await.unwrap();
        for _ in 0..5 {
            assert!(matches!(readers.next().await, ReaderEvent::Entry { .. }));
        }
    });
    dying.shutdown_background();
    living.block_on(async {
        let mut readers = second.readers(caller());
        readers.resume(session(), EntryId::ZERO).unwrap();
        let told = entries(&mut readers).await;
        chain(&told, EntryId::ZERO);
        let takeovers = told.iter().filter(|e| matches!(e.kind, EntryKind::Takeover { .. })).count();
        let starts = told.iter().filter(|e| matches!(e.kind, EntryKind::Turn { .. })).count();
        assert_eq!((starts, takeovers), (1, 1));
        assert_eq!(text(&told).len(), 3000);
        let snapshot = second.snapshot(&caller(), &session()).await.unwrap();
        assert_eq!(&*snapshot.turns[0].answer, text(&told));
    });
}
