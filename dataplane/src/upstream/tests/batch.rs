//! Asks that share calls.

mod pass;
mod simple;

use chatgateway_config::{BatchingSettings, PromptFormat};
use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::*;

const DELAY: Duration = Duration::from_millis(60);
const FIXED: BatchingSettings = BatchingSettings::Fixed { max_size: 4, max_delay: DELAY };
const ADAPTIVE: BatchingSettings =
    BatchingSettings::Adaptive { max_size: 4, max_delay: DELAY, first_token_target: Duration::from_millis(300) };

/// Longer than a test takes: a batch goes when it is full, or not at all.
const FULL: BatchingSettings = BatchingSettings::Fixed { max_size: 4, max_delay: Duration::from_secs(60) };

fn completions(url: &str, batching: BatchingSettings) -> UpstreamSettings {
    let mut settings = openai(url);
    let UpstreamKind::OpenAi { prompt_format, .. } = &mut settings.kind else { unreachable!() };
    *prompt_format = Some(PromptFormat::Plain);
    settings.batching = batching;
    settings.retries.max_attempts = 1;
    settings
}

/// What a call asks: its prompts, whether they came as a list or as one.
fn prompts(met: &Met) -> Vec<String> {
    let prompt = met.body.get("prompts").unwrap_or(&met.body["prompt"]);
    match prompt {
        Value::Array(list) => list.iter().map(|prompt| prompt.as_str().unwrap().to_owned()).collect(),
        one => vec![one.as_str().unwrap().to_owned()],
    }
}

/// The last thing that a user said.
fn asked(prompt: &str) -> &str {
    prompt.trim_end_matches("\nAssistant:").rsplit("User: ").next().unwrap()
}

fn choice(index: usize, text: &str, reason: Option<&str>) -> String {
    let choice = json!({"index": index, "text": text, "logprobs": null, "finish_reason": reason});
    format!("data: {}\n\n", json!({"id": "cmpl-1", "object": "text_completion", "choices": [choice]}))
}

fn usage(prompt: usize, completion: usize) -> String {
    let usage = json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion});
    format!("data: {}\n\ndata: [DONE]\n\n", json!({"id": "cmpl-1", "choices": [], "usage": usage}))
}

/// Answers each prompt with `re` and what was asked, word by word, the prompts mixed.
async fn answer_all(met: &mut Met) {
    let prompts = prompts(met);
    met.write(STREAM).await;
    for part in [" re", " "] {
        for index in (0..prompts.len()).rev() {
            met.chunk(choice(index, part, None)).await;
        }
    }
    for (index, prompt) in prompts.iter().enumerate() {
        met.chunk(choice(index, asked(prompt), None)).await;
    }
    for index in 0..prompts.len() {
        met.chunk(choice(index, "", Some("stop"))).await;
    }
    met.chunk(usage(10 * prompts.len(), 3 * prompts.len())).await;
    met.write("0\r\n\r\n").await;
}

async fn echo() -> (Fake, Arc<parking_lot::Mutex<Vec<Vec<String>>>>) {
    let seen = Arc::<parking_lot::Mutex<Vec<Vec<String>>>>::default();
    let calls = seen.clone();
    let fake = Fake::start(move |mut met| {
        let calls = calls.clone();
        async move {
            assert!(met.head.starts_with("post /v1/completions "), "{}", met.head);
            calls.lock().push(prompts(&met));
            answer_all(&mut met).await;
            Some(met)
        }
    })
    .await;
    (fake, seen)
}

fn status(upstreams: &Upstreams) -> BatchingStatus {
    upstreams.status()[0].batching.clone().unwrap()
}

fn end(prompt_tokens: u64, completion_tokens: u64) -> UpstreamEvent {
    let usage = Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
    UpstreamEvent::End { finish_reason: "stop".into(), usage }
}

#[tokio::test]
async fn turns_share_calls_and_each_session_gets_its_own_answer() {
    let (fake, seen) = echo().await;
    let upstreams = upstreams([completions(&fake.url(), FULL)]);
    let sessions: Vec<_> = (0..12).map(|i| (format!("s{i}"), format!("canary-{i}-{}", "x".repeat(i)))).collect();
    let answers = join_all(sessions.iter().map(|(session, text)| read(upstreams.ask(ask_of(session, text))))).await;
    for ((_, text), (answer, end)) in sessions.iter().zip(&answers) {
        assert_eq!(*answer, format!("re {text}"));
        assert!(matches!(end, UpstreamEvent::End { .. }), "{end:?}");
    }
    let seen = seen.lock();
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 4]);
    // What the batches cost is shared out without a rest.
    let total: u64 = answers.iter().map(|(_, end)| cost(end)).sum();
    assert_eq!(total, 12 * 13);
    let status = status(&upstreams);
    assert_eq!((status.calls, status.turns, status.last_size, status.waiting), (3, 12, 4, 0));
    assert!((status.mean_size - 4.0).abs() < 0.001);
}

fn cost(end: &UpstreamEvent) -> u64 {
    let UpstreamEvent::End { usage, .. } = end else { panic!("{end:?}") };
    assert_eq!(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    usage.total_tokens
}

#[tokio::test]
async fn a_batch_that_is_not_full_goes_when_its_oldest_turn_has_waited() {
    let (fake, seen) = echo().await;
    let upstreams = upstreams([completions(&fake.url(), FIXED)]);
    let start = std::time::Instant::now();
    let (a, b) = tokio::join!(read(upstreams.ask(ask_of("a", "A"))), read(upstreams.ask(ask_of("b", "B"))));
    assert!(start.elapsed() >= DELAY);
    assert_eq!((a, b), (("re A".into(), end(10, 3)), ("re B".into(), end(10, 3))));
    assert_eq!(seen.lock().len(), 1);
}

#[tokio::test]
async fn adaptive_sends_one_turn_at_once_and_as_it_would_go_without_batches() {
    let (fake, seen) = echo().await;
    let mut settings = completions(&fake.url(), ADAPTIVE);
    let alone = read(upstreams([settings.clone()]).ask(ask())).await;
    settings.batching = BatchingSettings::Off;
    let off = upstreams([settings]);
    assert_eq!(alone, read(off.ask(ask())).await);
    assert_eq!(alone, ("re hello".into(), end(10, 3)));
    assert_eq!(*seen.lock(), [["User: hello\nAssistant:"], ["User: hello\nAssistant:"]]);
    assert!(off.status()[0].batching.is_none());
}

#[tokio::test]
async fn adaptive_gathers_while_every_place_is_taken() {
    let (gate, sizes) = (Arc::new(Semaphore::new(0)), Arc::<parking_lot::Mutex<Vec<usize>>>::default());
    let (held, seen) = (gate.clone(), sizes.clone());
    let fake = Fake::start(move |mut met| {
        let (held, seen) = (held.clone(), seen.clone());
        async move {
            seen.lock().push(prompts(&met).len());
            held.acquire().await.unwrap().forget();
            answer_all(&mut met).await;
            Some(met)
        }
    })
    .await;
    let mut settings = completions(&fake.url(), ADAPTIVE);
    settings.pool.max_concurrent = 1;
    let upstreams = upstreams([settings]);
    let first = tokio::spawn(read(upstreams.ask(ask_of("s0", "0"))));
    eventually("it runs", || sizes.lock().len() == 1).await;
    let asks = join_all((1..7).map(|i| read(upstreams.ask(ask_of(&format!("s{i}"), &format!("{i}"))))));
    let watch = async {
        eventually("one runs and six wait", || sizes.lock().len() == 1 && status(&upstreams).waiting == 6).await;
        gate.add_permits(3);
    };
    let (answers, ()) = tokio::join!(asks, watch);
    let answers = [first.await.unwrap()].into_iter().chain(answers);
    for (i, (answer, _)) in answers.enumerate() {
        assert_eq!(answer, format!("re {i}"));
    }
    assert_eq!(*sizes.lock(), [1, 4, 2]);
    all_free(&upstreams).await;
}

#[tokio::test]
async fn turns_with_different_options_never_share_a_call() {
    let (fake, seen) = echo().await;
    let upstreams = upstreams([completions(&fake.url(), FIXED)]);
    let ask = |i: usize, options: &str| {
        let mut ask = ask_of(&format!("s{i}"), &format!("{i}{options}"));
        ask.body = Arc::new(TurnBody::new(ask.body.text.clone(), format!("{{\"options\":{options}}}").into()));
        read(upstreams.ask(ask))
    };
    let options = ["{\"temperature\":1}", "{\"temperature\":0}"];
    let answers = join_all((0..6).map(|i| ask(i, options[i % 2]))).await;
    for (i, (answer, _)) in answers.iter().enumerate() {
        assert_eq!(*answer, format!("re {i}{}", options[i % 2]));
    }
    for call in seen.lock().iter() {
        let first = asked(&call[0])[1..].to_owned();
        assert!(call.iter().all(|prompt| asked(prompt)[1..] == first), "{call:?}");
    }
    assert_eq!(seen.lock().len(), 2);
}

#[tokio::test]
async fn a_prompt_that_the_server_refuses_fails_alone() {
    let fake = Fake::start(|mut met| async move {
        if prompts(&met).iter().any(|prompt| asked(prompt) == "bad") {
            met.answer("400 Bad Request", "", "{\"error\":{\"message\":\"the prompt is too long\"}}").await;
        } else {
            answer_all(&mut met).await;
        }
        Some(met)
    })
    .await;
    let upstreams = upstreams([completions(&fake.url(), FULL)]);
    let asks = ["a", "bad", "c", "d"].map(|text| read(upstreams.ask(ask_of(text, text))));
    let answers = join_all(asks).await;
    for (text, (answer, end)) in ["a", "bad", "c", "d"].into_iter().zip(answers) {
        if text == "bad" {
            let UpstreamEvent::Failed { code, message, .. } = end else { panic!("{end:?}") };
            assert_eq!(code, ErrorCode::InvalidRequest);
            assert!(message.contains("the prompt is too long"), "{message}");
        } else {
            assert_eq!(answer, format!("re {text}"));
        }
    }
    assert_eq!((fake.calls(), status(&upstreams).split_alone), (5, 1));
}

#[tokio::test]
async fn an_error_of_one_prompt_in_the_stream_is_that_ones_alone() {
    let fake = Fake::start(|mut met| async move {
        met.write(STREAM).await;
        met.chunk(choice(0, "one", None)).await;
        let error = json!({"index": 1, "error": {"message": "no", "code": 400}});
        met.chunk(format!("data: {}\n\n", json!({"choices": [error]}))).await;
        met.chunk(format!("data: {}\n\n", json!({"index": 2, "error": {"message": "gone"}}))).await;
        met.chunk(choice(0, " more", Some("length"))).await;
        met.chunk(choice(3, "", Some("stop"))).await;
        met.chunk(usage(4, 2)).await;
        met.write("0\r\n\r\n").await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([completions(&fake.url(), FULL)]);
    let answers = join_all(["a", "b", "c", "d"].map(|text| read(upstreams.ask(ask_of(text, text))))).await;
    assert_eq!(answers[0].0, "one more");
    assert!(matches!(&answers[0].1, UpstreamEvent::End { finish_reason, .. } if &**finish_reason == "length"));
    assert!(matches!(&answers[1].1, UpstreamEvent::Failed { code: ErrorCode::InvalidRequest, .. }), "{answers:?}");
    assert!(matches!(&answers[2].1, UpstreamEvent::Failed { code: ErrorCode::UpstreamUnavailable, .. }), "{answers:?}");
    assert_eq!((answers[3].0.as_str(), cost(&answers[0].1) + cost(&answers[3].1)), ("", 4));
}

#[tokio::test]
async fn who_gives_up_before_is_not_asked_for_and_who_does_during_holds_up_nobody() {
    let (gate, seen) = (Arc::new(Semaphore::new(0)), Arc::<parking_lot::Mutex<Vec<Vec<String>>>>::default());
    let (held, calls) = (gate.clone(), seen.clone());
    let fake = Fake::start(move |mut met| {
        let (held, calls) = (held.clone(), calls.clone());
        async move {
            let prompts = prompts(&met);
            calls.lock().push(prompts.iter().map(|prompt| asked(prompt).to_owned()).collect());
            met.write(STREAM).await;
            for index in 0..prompts.len() {
                met.chunk(choice(index, "begun", None)).await;
            }
            held.acquire().await.unwrap().forget();
            for index in 0..prompts.len() {
                met.chunk(choice(index, "", Some("stop"))).await;
            }
            met.chunk(usage(1, 1)).await;
            met.write("0\r\n\r\n").await;
            Some(met)
        }
    })
    .await;
    let upstreams = upstreams([completions(&fake.url(), FULL)]);
    let mut streams: Vec<_> = ["a", "b", "c", "d"].map(|text| upstreams.ask(ask_of(text, text))).into();
    let mut leaves = upstreams.ask(ask_of("e", "leaves"));
    assert_eq!(leaves.try_next(), None);
    for stream in &mut streams[..3] {
        assert_eq!(stream.try_next(), None);
    }
    drop(leaves);
    assert_eq!(status(&upstreams).left, 1);
    assert_eq!(streams[3].try_next(), None);
    for stream in &mut streams {
        assert_eq!(text(stream).await, "begun");
    }
    assert_eq!(*seen.lock(), [["a", "b", "c", "d"]]);
    drop(streams.remove(1));
    gate.add_permits(1);
    for stream in streams {
        assert!(matches!(read(stream).await.1, UpstreamEvent::End { .. }));
    }
    all_free(&upstreams).await;
}

#[tokio::test]
async fn a_call_that_nobody_reads_any_more_is_dropped() {
    let closed = Arc::<AtomicUsize>::default();
    let count = closed.clone();
    let fake = Fake::start(move |mut met| {
        let count = count.clone();
        async move {
            met.write(STREAM).await;
            for index in 0..4 {
                met.chunk(choice(index, "begun", None)).await;
            }
            met.closed().await;
            count.fetch_add(1, SeqCst);
            None
        }
    })
    .await;
    let upstreams = upstreams([completions(&fake.url(), FULL)]);
    let mut streams: Vec<_> = (0..4).map(|i| upstreams.ask(ask_of(&format!("s{i}"), "x"))).collect();
    join_all(streams.iter_mut().map(text)).await;
    let last = streams.pop();
    drop(streams);
    assert_eq!(upstreams.status()[0].in_flight, 1);
    drop(last);
    eventually("the server sees it", || closed.load(SeqCst) == 1).await;
    all_free(&upstreams).await;
}

#[tokio::test]
async fn a_reader_that_pauses_holds_up_nobody_and_costs_no_more_than_an_answer() {
    let fake = Fake::start(|mut met| async move {
        met.write(STREAM).await;
        for index in 0..4 {
            met.chunk(choice(index, "begun", None)).await;
        }
        let much = "x".repeat(512 * 1024);
        for _ in 0..10 {
            met.chunk(choice(0, &much, None)).await;
        }
        for index in 0..4 {
            met.chunk(choice(index, "!", Some("stop"))).await;
        }
        met.chunk(usage(4, 4)).await;
        met.write("0\r\n\r\n").await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([completions(&fake.url(), FULL)]);
    let mut streams: Vec<_> = (0..4).map(|i| upstreams.ask(ask_of(&format!("s{i}"), "x"))).collect();
    join_all(streams.iter_mut().map(text)).await;
    let paused = streams.remove(0);
    for stream in streams {
        assert_eq!(read(stream).await.0, "!");
    }
    let (text, end) = read(paused).await;
    assert!(text.is_empty());
    assert!(matches!(end, UpstreamEvent::Failed { code: ErrorCode::TooLarge, .. }), "{end:?}");
}

#[tokio::test]
async fn a_call_that_fails_before_its_answer_is_each_ones_failure_and_the_next_upstream_answers() {
    let broken = Fake::start(|mut met| async move {
        met.answer("500 Internal Server Error", "", "").await;
        Some(met)
    })
    .await;
    let (fake, seen) = echo().await;
    let mut second = completions(&fake.url(), FULL);
    second.name = "second".into();
    let upstreams = upstreams([completions(&broken.url(), FULL), second]);
    let answers = join_all((0..4).map(|i| read(upstreams.ask(ask_of(&format!("s{i}"), &format!("{i}")))))).await;
    for (i, (answer, _)) in answers.iter().enumerate() {
        assert_eq!(*answer, format!("re {i}"));
    }
    assert_eq!((broken.calls(), seen.lock().len()), (1, 1));
    assert_eq!(upstreams.status()[0].failures, 4);
}

#[tokio::test]
async fn a_batch_that_stops_is_late_for_each_of_its_turns() {
    for begins in [false, true] {
        let fake = Fake::start(move |mut met| async move {
            met.write(STREAM).await;
            if begins {
                for index in 0..4 {
                    met.chunk(choice(index, "begun", None)).await;
                }
            }
            met.closed().await;
            None
        })
        .await;
        let mut settings = completions(&fake.url(), FULL);
        settings.timeouts = hasty("http://x").timeouts;
        let upstreams = upstreams([settings]);
        let answers = join_all((0..4).map(|i| read(upstreams.ask(ask_of(&format!("s{i}"), "x"))))).await;
        for (answer, end) in answers {
            assert_eq!(answer, if begins { "begun" } else { "" });
            assert!(matches!(end, UpstreamEvent::Failed { code: ErrorCode::UpstreamTimeout, .. }), "{end:?}");
        }
        assert_eq!(upstreams.status()[0].timeouts, 1);
        all_free(&upstreams).await;
    }
}

/// An upstream whose only place is taken, and turns that wait for it: as many as may.
async fn crowded(queue_timeout: Duration, sessions: [&str; 4]) -> (Upstreams, UpstreamStream, Vec<UpstreamStream>) {
    let fake = Fake::start(|mut met| async move {
        met.closed().await;
        None
    })
    .await;
    let mut settings = completions(&fake.url(), ADAPTIVE);
    settings.pool = chatgateway_config::PoolSettings { max_concurrent: 1, max_queued: 4, queue_timeout };
    let upstreams = upstreams([settings]);
    let mut running = upstreams.ask(ask_of("r", "r"));
    assert_eq!(running.try_next(), None);
    eventually("it runs", || upstreams.status()[0].in_flight == 1).await;
    let mut waiting: Vec<_> = sessions.iter().map(|session| upstreams.ask(ask_of(session, "x"))).collect();
    for stream in &mut waiting {
        assert_eq!(stream.try_next(), None);
    }
    (upstreams, running, waiting)
}

#[tokio::test]
async fn who_waits_too_long_for_a_place_is_refused_and_many_are_refused_at_once() {
    let (upstreams, _running, waiting) = crowded(Duration::from_millis(100), ["a", "b", "c", "d"]).await;
    let (code, message) = failure(upstreams.ask(ask_of("late", "x"))).await;
    assert_eq!((code, &*message), (ErrorCode::Overloaded, "too many wait for the model server m; try again later"));
    for stream in waiting {
        let (code, message) = failure(stream).await;
        assert_eq!(
            (code, &*message),
            (ErrorCode::Overloaded, "waited too long for the model server m; try again later")
        );
    }
    let status = &upstreams.status()[0];
    assert_eq!((status.overflows, status.queue_timeouts), (1, 4));
}

#[tokio::test]
async fn a_session_with_many_waiting_turns_gives_way_to_one_with_none() {
    let (upstreams, _running, mut waiting) = crowded(SOON, ["other", "greedy", "greedy", "greedy"]).await;
    let door = |session| upstreams.door(ask_of(session, "x").session.as_str(), None);
    assert_eq!(door("greedy").map(drop).unwrap_err().code, ErrorCode::Overloaded, "it has the most itself");
    let mut single = upstreams.ask(ask_of("single", "x"));
    assert_eq!(single.try_next(), None);
    let (code, message) = failure(waiting.pop().unwrap()).await;
    assert_eq!((code, &*message), (ErrorCode::Overloaded, "too many wait for the model server m; try again later"));
    for stream in &mut waiting {
        assert_eq!(stream.try_next(), None, "these still wait");
    }
    let of = &upstreams.status()[0];
    assert_eq!((of.pushed_out, of.overflows, of.door_refusals), (1, 0, 1));
}

#[tokio::test]
async fn other_settings_count_from_the_next_batch_on_and_who_waits_stays() {
    let (fake, seen) = echo().await;
    let before = upstreams([completions(&fake.url(), FULL)]);
    let mut waiting: Vec<_> = (0..3).map(|i| before.ask(ask_of(&format!("s{i}"), &format!("{i}")))).collect();
    for stream in &mut waiting {
        assert_eq!(stream.try_next(), None);
    }
    let two = BatchingSettings::Fixed { max_size: 2, max_delay: Duration::from_millis(20) };
    let settings = Settings { upstreams: vec![completions(&fake.url(), two)], ..Settings::default() };
    let renewed = before.renewed(&settings).unwrap();
    for (i, stream) in waiting.into_iter().enumerate() {
        assert_eq!(read(stream).await.0, format!("re {i}"));
    }
    assert_eq!(seen.lock().iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(status(&renewed).turns, 3, "it counts on");

    let mut waiting = before.ask(ask());
    assert_eq!(waiting.try_next(), None);
    let settings = Settings { upstreams: vec![completions(&fake.url(), BatchingSettings::Off)], ..Settings::default() };
    let off = renewed.renewed(&settings).unwrap();
    assert_eq!(read(waiting).await.0, "re hello");
    assert_eq!(read(off.ask(ask())).await.0, "re hello");
}
