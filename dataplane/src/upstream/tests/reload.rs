//! Settings that change while calls run.

use tokio::sync::Semaphore;

use super::*;

/// A server that says a word, and the rest when it is let to.
async fn held() -> (Fake, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let hold = gate.clone();
    let fake = Fake::start(move |mut met| {
        let hold = hold.clone();
        async move {
            met.write(STREAM).await;
            met.word("one").await;
            hold.acquire().await.unwrap().forget();
            met.word(" two").await;
            met.finish().await;
            Some(met)
        }
    })
    .await;
    (fake, gate)
}

fn with(upstream: &UpstreamSettings) -> Settings {
    Settings { upstreams: vec![upstream.clone()], ..Settings::default() }
}

#[tokio::test]
async fn whatever_changes_no_answer_is_dropped_and_connections_and_the_queue_stay() {
    let (fake, gate) = held().await;
    let mut settings = openai(&fake.url());
    settings.pool.max_concurrent = 1;
    let before = Upstreams::new(&with(&settings)).unwrap();
    let mut running = before.ask(ask());
    assert_eq!(text(&mut running).await, "one");
    let mut waiting = before.ask(ask_of("w", "waits"));
    assert_eq!(waiting.try_next(), None);

    settings.pool.max_concurrent = 3;
    settings.pool.queue_timeout = SOON;
    settings.timeouts.between_tokens = SOON;
    settings.timeouts.connect = Duration::from_millis(500);
    settings.breaker.window = 30;
    settings.retries.budget_percent = 20;
    settings.endpoints.session_affinity = true;
    let after = before.renewed(&with(&settings)).unwrap();
    // Who waited has a place at once, of the new ones.
    assert_eq!(text(&mut waiting).await, "one");
    let mut third = after.ask(ask());
    assert_eq!(text(&mut third).await, "one");
    let mut fourth = after.ask(ask());
    assert_eq!(fourth.try_next(), None);
    let status = &after.status()[0];
    assert_eq!((status.in_flight, status.waiting, status.endpoints[0].in_flight), (3, 1, 3), "counted together");
    gate.add_permits(4);
    for stream in [running, waiting, third] {
        assert_eq!(read(stream).await, (" two".to_owned(), done("stop")));
    }
    assert_eq!(read(fourth).await.0, "one two");
    all_free(&after).await;
    assert!(fake.connections.load(SeqCst) <= 3, "the fourth call used one of the three connections");
}

#[tokio::test]
async fn endpoints_that_stay_keep_what_their_breakers_know() {
    let (well, gate) = held().await;
    gate.add_permits(1_000);
    let broken = Fake::start(|_| async { None }).await;
    let mut settings = equal(&[broken.url(), well.url()]);
    settings.breaker.min_calls = 4;
    settings.breaker.open_for = SOON * 6;
    let before = Upstreams::new(&with(&settings)).unwrap();
    while breakers(&before) == ["closed"; 2] {
        read(before.ask(ask())).await;
    }
    settings.pool.max_concurrent = 7;
    let more = Fake::start(|met| say(met, "more")).await;
    settings.endpoints.further.push(more.url());
    let after = before.renewed(&with(&settings)).unwrap();
    assert_eq!(breakers(&after), ["open", "closed", "closed"]);
    // One that is taken out and put in again is looked at anew.
    settings.kind = openai(&well.url()).kind;
    settings.endpoints.further.clear();
    let without = after.renewed(&with(&settings)).unwrap();
    assert_eq!(breakers(&without), ["closed"]);
    settings.endpoints.further.push(broken.url());
    let with_it = without.renewed(&with(&settings)).unwrap();
    assert_eq!(breakers(&with_it), ["closed"; 2]);
}

#[tokio::test]
async fn settings_that_are_wrong_change_nothing() {
    let (fake, gate) = held().await;
    gate.add_permits(1_000);
    let good = openai(&fake.url());
    let before = Upstreams::new(&with(&good)).unwrap();
    let mut changed = good.clone();
    changed.pool.max_concurrent = 0;
    let mut wrong = openai("ftp://nowhere");
    wrong.name = "wrong".into();
    let settings = Settings { upstreams: vec![changed, wrong], ..Settings::default() };
    assert!(before.renewed(&settings).is_err());
    assert_eq!(read(before.ask(ask())).await.0, "one two");
}
