//! More asks than places.

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::*;

/// A server whose answers end when the test lets them, and the most it had at once.
async fn held() -> (Fake, Arc<Semaphore>, Arc<AtomicUsize>) {
    let (gate, most) = (Arc::new(Semaphore::new(0)), Arc::<AtomicUsize>::default());
    let (now, held, peak) = (Arc::<AtomicUsize>::default(), gate.clone(), most.clone());
    let fake = Fake::start(move |mut met| {
        let (now, held, peak) = (now.clone(), held.clone(), peak.clone());
        async move {
            peak.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
            met.write(STREAM).await;
            let text = met.body["messages"][0]["content"].as_str().unwrap().to_owned();
            met.word(&text).await;
            held.acquire().await.unwrap().forget();
            now.fetch_sub(1, SeqCst);
            met.finish().await;
            Some(met)
        }
    })
    .await;
    (fake, gate, most)
}

fn pooled(fake: &Fake, max_concurrent: usize, max_queued: usize, queue_timeout: Duration) -> Upstreams {
    let mut settings = openai(&fake.url());
    settings.pool = chatgateway_config::PoolSettings { max_concurrent, max_queued, queue_timeout };
    upstreams([settings])
}

#[tokio::test]
async fn no_more_calls_run_at_once_than_may() {
    let (fake, gate, most) = held().await;
    let upstreams = pooled(&fake, 3, 100, SOON);
    let asks = join_all((0..20).map(|i| read(upstreams.ask(ask_of("s", &format!("{i}"))))));
    let watch = async {
        eventually("three run, the rest waits", || {
            let status = &upstreams.status()[0];
            (status.in_flight, status.waiting, most.load(SeqCst)) == (3, 17, 3)
        })
        .await;
        gate.add_permits(20);
    };
    let (answers, ()) = tokio::join!(asks, watch);
    for (i, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, (i.to_string(), done("stop")));
    }
    assert_eq!((fake.calls(), most.load(SeqCst)), (20, 3));
    all_free(&upstreams).await;
}

#[tokio::test]
async fn a_session_with_many_asks_does_not_hold_up_another() {
    let (fake, gate, _) = held().await;
    let upstreams = pooled(&fake, 1, 1_000, SOON);
    let mut first = upstreams.ask(ask_of("many", "first"));
    text(&mut first).await;
    let mut many: Vec<_> = (0..200).map(|_| upstreams.ask(ask_of("many", "many"))).collect();
    for stream in &mut many {
        assert_eq!(stream.try_next(), None);
    }
    let mut single = upstreams.ask(ask_of("single", "single"));
    assert_eq!(single.try_next(), None);
    assert_eq!(upstreams.status()[0].waiting, 201);
    gate.add_permits(2);
    drop(first);
    // One of the many is before it, and no more.
    let one = read(many.remove(0));
    let (_, told) = tokio::join!(one, async { text(&mut single).await });
    assert_eq!(told, "single");
    assert_eq!(fake.calls(), 3);
    drop((many, single));
    all_free(&upstreams).await;
}

#[tokio::test]
async fn too_many_are_refused_and_too_long_as_well() {
    let (fake, _gate, _) = held().await;
    let upstreams = pooled(&fake, 1, 1, Duration::from_millis(100));
    let mut running = upstreams.ask(ask());
    text(&mut running).await;
    let mut waiting = upstreams.ask(ask());
    assert_eq!(waiting.try_next(), None);
    let (_, refused) = read(upstreams.ask(ask())).await;
    let UpstreamEvent::Failed { code, message, retry_after_ms } = refused else { panic!("{refused:?}") };
    assert_eq!((code, retry_after_ms.is_some()), (ErrorCode::Overloaded, true));
    assert_eq!(message, "too many wait for the model server m; try again later");
    let (_, refused) = read(waiting).await;
    let UpstreamEvent::Failed { code, message, retry_after_ms } = refused else { panic!("{refused:?}") };
    assert_eq!((code, retry_after_ms.is_some()), (ErrorCode::Overloaded, true));
    assert_eq!(message, "waited too long for the model server m; try again later");
    let status = &upstreams.status()[0];
    assert_eq!((status.overflows, status.queue_timeouts, status.calls, status.failures), (1, 1, 1, 2));
    assert_eq!(fake.calls(), 1);
}

#[tokio::test]
async fn who_leaves_the_queue_is_never_called_and_holds_up_nobody() {
    let (fake, gate, _) = held().await;
    let upstreams = pooled(&fake, 1, 10, SOON);
    let mut running = upstreams.ask(ask_of("a", "a"));
    text(&mut running).await;
    let mut leaves = upstreams.ask(ask_of("b", "b"));
    let mut granted = upstreams.ask(ask_of("c", "c"));
    let mut stays = upstreams.ask(ask_of("d", "d"));
    for stream in [&mut leaves, &mut granted, &mut stays] {
        assert_eq!(stream.try_next(), None);
    }
    drop(leaves);
    drop(running);
    // The place is the next one's now, which leaves without having looked.
    drop(granted);
    gate.add_permits(2);
    assert_eq!(read(stays).await.0, "d");
    assert_eq!(fake.calls(), 2);
    all_free(&upstreams).await;
}

#[tokio::test]
async fn where_one_upstream_has_no_room_the_next_one_answers() {
    let (full, _gate, _) = held().await;
    let mut first = openai(&full.url());
    first.pool = chatgateway_config::PoolSettings { max_concurrent: 1, max_queued: 0, queue_timeout: SOON };
    let upstreams = upstreams([
        first,
        UpstreamSettings {
            kind: UpstreamKind::Demo { token_delay: Duration::ZERO, answer_bytes: None },
            ..UpstreamSettings::default()
        },
    ]);
    let mut running = upstreams.ask(ask());
    text(&mut running).await;
    assert!(read(upstreams.ask(ask())).await.0.starts_with("You said: hello"));
}
