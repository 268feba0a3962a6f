//! The built-in upstream.

use tokio::time::Instant;

use super::*;

fn demo(token_delay: Duration, answer_bytes: Option<usize>) -> Upstreams {
    let kind = UpstreamKind::Demo { token_delay, answer_bytes };
    upstreams([UpstreamSettings { kind, ..UpstreamSettings::default() }])
}

const WHOLE: &str = "You said: hello\nThis is the demo model: it says the same every time.";

#[tokio::test]
async fn without_delay_the_answer_is_one_text_and_then_the_end() {
    let upstreams = demo(Duration::ZERO, None);
    let mut stream = upstreams.ask(ask());
    assert_eq!(stream.try_next(), Some(UpstreamEvent::Text(WHOLE.into())));
    let usage = Usage { prompt_tokens: 1, completion_tokens: 14, total_tokens: 15 };
    assert_eq!(stream.try_next(), Some(UpstreamEvent::End { finish_reason: "stop".into(), usage }));
    assert_eq!(stream.try_next(), None);
    let status = &upstreams.status()[0];
    assert_eq!((status.kind, status.in_flight, status.calls), ("demo", 0, 1));
}

#[tokio::test(start_paused = true)]
async fn words_come_one_by_one() {
    let upstreams = demo(Duration::from_millis(30), None);
    let start = Instant::now();
    let mut stream = upstreams.ask(ask());
    for (at, word) in ["You ", "said: ", "hello\nThis ", "is "].into_iter().enumerate() {
        assert_eq!(text(&mut stream).await, word);
        assert_eq!(start.elapsed().as_millis() / 30, at as u128);
    }
    assert_eq!(upstreams.status()[0].in_flight, 1);
    // Who was not asked for a while catches up in one piece.
    tokio::time::advance(Duration::from_millis(95)).await;
    assert_eq!(text(&mut stream).await, "the demo model: ");
    let (rest, end) = read(stream).await;
    assert_eq!(rest, "it says the same every time.");
    assert!(matches!(end, UpstreamEvent::End { .. }));
    assert_eq!(upstreams.status()[0].in_flight, 0);
}

#[tokio::test]
async fn an_answer_is_continued_without_a_word_lost_or_repeated() {
    for delay in [Duration::ZERO, Duration::from_nanos(1)] {
        let upstreams = demo(delay, None);
        assert!(upstreams.prefill() && !upstreams.wants_history());
        for cut in 0..=WHOLE.len() {
            let mut ask = ask();
            ask.prefix = Some(WHOLE[..cut].to_owned());
            assert_eq!(read(upstreams.ask(ask)).await.0, WHOLE[cut..]);
        }
    }
}

#[tokio::test]
async fn an_answer_has_the_size_that_was_set() {
    for bytes in [1, 50, 1_000_000] {
        let (text, _) = read(demo(Duration::ZERO, Some(bytes)).ask(ask_of("s", "héllo"))).await;
        assert_eq!(text.len(), bytes);
    }
}
