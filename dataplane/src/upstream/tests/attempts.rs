//! Calls that are made again.

use std::time::Instant;

use futures_util::future::join_all;

use super::*;

/// A server that refuses its first calls like this and then answers.
async fn refusing(times: usize, status: &'static str, headers: &'static str) -> Fake {
    Fake::start(move |mut met| async move {
        if met.number < times {
            met.answer(status, headers, "{\"error\":{\"message\":\"not now\"}}").await;
            return Some(met);
        }
        say(met, "ok").await
    })
    .await
}

fn patient(fake: &Fake) -> UpstreamSettings {
    let mut settings = openai(&fake.url());
    settings.retries.max_attempts = 3;
    settings
}

#[tokio::test]
async fn a_call_that_fails_before_its_first_word_is_made_again() {
    for status in ["500 Oops", "503 Not Now", "429 Slow Down"] {
        let fake = refusing(2, status, "").await;
        let upstreams = upstreams([patient(&fake)]);
        assert_eq!(read(upstreams.ask(ask())).await, ("ok".to_owned(), done("stop")), "{status}");
        let status = &upstreams.status()[0];
        assert_eq!((fake.calls(), status.retries, status.failures), (3, 2, 2));
        let fake = refusing(3, "500 Oops", "").await;
        let (code, message) = failure(self::upstreams([patient(&fake)]).ask(ask())).await;
        assert_eq!((code, fake.calls()), (ErrorCode::UpstreamUnavailable, 3), "{message}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_request_is_not_sent_again() {
    for status in ["400 Bad", "422 Bad", "413 Much"] {
        let fake = refusing(1, status, "").await;
        let upstreams = upstreams([patient(&fake)]);
        failure(upstreams.ask(ask())).await;
        assert_eq!((fake.calls(), upstreams.status()[0].retries), (1, 0), "{status}");
    }
}

#[tokio::test]
async fn a_server_is_asked_again_when_it_says() {
    for headers in ["retry-after-ms: 400\r\n", "retry-after: 0.4\r\n", "x-ratelimit-reset-requests: 400ms\r\n"] {
        let fake = refusing(1, "429 Slow Down", headers).await;
        let start = Instant::now();
        assert_eq!(read(upstreams([patient(&fake)]).ask(ask())).await.0, "ok");
        assert!(start.elapsed() >= Duration::from_millis(400), "{headers}");
        assert_eq!(fake.calls(), 2);
    }
}

#[tokio::test]
async fn who_asks_for_too_much_patience_is_left_for_the_next_upstream() {
    let fake = refusing(1, "429 Slow Down", "retry-after: 20\r\n").await;
    let next = Fake::start(|met| say(met, "next")).await;
    let start = Instant::now();
    assert_eq!(read(upstreams([patient(&fake), openai(&next.url())]).ask(ask())).await.0, "next");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(fake.calls(), 1);
    let fake = refusing(1, "429 Slow Down", "retry-after: 20\r\n").await;
    let (_, end) = read(upstreams([patient(&fake)]).ask(ask())).await;
    assert!(matches!(end, UpstreamEvent::Failed { code: ErrorCode::RateLimited, retry_after_ms: Some(20_000), .. }));
}

#[tokio::test]
async fn a_server_that_fails_always_gets_a_tenth_more_calls_and_the_reserve() {
    let fake = refusing(usize::MAX, "500 Oops", "").await;
    let mut settings = patient(&fake);
    settings.breaker = chatgateway_config::BreakerSettings { window: 10_000, min_calls: 10_000, ..settings.breaker };
    settings.timeouts.first_token = SOON;
    let upstreams = upstreams([settings]);
    let first = 600;
    let asks = (0..first).map(|i| failure(upstreams.ask(ask_of(&format!("s{i}"), "hello"))));
    assert!(join_all(asks).await.iter().all(|(code, _)| *code == ErrorCode::UpstreamUnavailable));
    let further = fake.calls() - first;
    let reserve = chatgateway_core::limits::RETRY_RESERVE as usize;
    assert!((reserve..=reserve + first / 10).contains(&further), "{further}");
    assert!(upstreams.status()[0].budget_refusals > 0);
}

#[tokio::test]
async fn requests_that_pass_through_are_made_again_before_their_first_piece_as_well() {
    let fake = refusing(1, "502 Bad Gateway", "").await;
    let upstreams = upstreams([patient(&fake)]);
    let request = Forward {
        path: ForwardPath::ChatCompletions,
        who: "me".into(),
        model: None,
        stream: true,
        headers: http::HeaderMap::new(),
        body: "{}".into(),
    };
    assert_eq!(upstreams.forward(request).await.unwrap().status(), http::StatusCode::OK);
    assert_eq!((fake.calls(), upstreams.status()[0].retries), (2, 1));
}

#[tokio::test]
async fn an_answer_that_broke_off_may_be_asked_for_again_once_and_from_the_budget() {
    let fake = Fake::start(|mut met| async move {
        met.write(STREAM).await;
        met.word("part").await;
        None
    })
    .await;
    let broken = async |upstreams: &Upstreams| {
        let mut stream = upstreams.ask(ask());
        assert_eq!(text(&mut stream).await, "part");
        assert!(matches!(stream.next().await, Some(UpstreamEvent::Failed { .. })));
        stream
    };
    let upstreams = upstreams([patient(&fake)]);
    let mut stream = broken(&upstreams).await;
    assert!(stream.may_be_asked_again().is_some());
    assert!(stream.may_be_asked_again().is_none(), "once");
    assert_eq!(upstreams.status()[0].resumed_answers, 1);
    let mut without = patient(&fake);
    without.retries.budget_percent = 0;
    let without = self::upstreams([without]);
    assert!(broken(&without).await.may_be_asked_again().is_none());
    // What failed before its first word was asked for elsewhere already.
    let dead = refusing(9, "500 Oops", "").await;
    let mut stream = self::upstreams([patient(&dead)]).ask(ask());
    assert!(matches!(stream.next().await, Some(UpstreamEvent::Failed { .. })));
    assert!(stream.may_be_asked_again().is_none());
}

#[tokio::test]
async fn an_answer_that_took_its_whole_time_is_not_asked_for_again() {
    let fake = Fake::start(|mut met| async move {
        met.write(STREAM).await;
        met.word("part").await;
        met.closed().await;
        None
    })
    .await;
    let mut settings = patient(&fake);
    settings.timeouts.total = Duration::from_millis(150);
    settings.timeouts.between_tokens = SOON;
    let upstreams = upstreams([settings]);
    let mut stream = upstreams.ask(ask());
    assert_eq!(text(&mut stream).await, "part");
    let end = stream.next().await;
    assert!(matches!(end, Some(UpstreamEvent::Failed { code: ErrorCode::UpstreamTimeout, .. })), "{end:?}");
    assert!(stream.may_be_asked_again().is_none());
}

#[tokio::test]
async fn an_answer_that_broke_off_is_asked_for_at_another_endpoint() {
    let breaking = || {
        Fake::start(|mut met| async move {
            met.write(STREAM).await;
            met.word("part").await;
            None
        })
    };
    let fakes = [breaking().await, breaking().await];
    let calls = || fakes.each_ref().map(Fake::calls);
    let mut settings = equal(&fakes.each_ref().map(Fake::url));
    // The session belongs to one endpoint, and would go there again.
    settings.endpoints.session_affinity = true;
    let upstreams = upstreams([settings]);
    let broken = async |mut stream: UpstreamStream| {
        assert_eq!(text(&mut stream).await, "part");
        assert!(matches!(stream.next().await, Some(UpstreamEvent::Failed { .. })));
        stream.may_be_asked_again()
    };
    let broke_off = broken(upstreams.ask(ask())).await;
    let first = calls();
    assert!(broke_off.is_some());
    let again = broken(upstreams.ask_after(ask(), broke_off)).await;
    assert_eq!(calls(), [1, 1], "the other one after {first:?}");
    // And where that one breaks off too, the first is asked again.
    broken(upstreams.ask_after(ask(), again)).await;
    assert_eq!(calls(), first.map(|calls| calls + 1));
    // Where there is no other, the same is asked.
    let single = self::upstreams([equal(&[fakes[0].url()])]);
    let broke_off = broken(single.ask(ask())).await;
    assert!(broke_off.is_some());
    broken(single.ask_after(ask(), broke_off)).await;
    assert_eq!(fakes[0].calls(), first[0] + 3);
}
