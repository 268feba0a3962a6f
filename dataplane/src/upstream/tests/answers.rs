//! Servers that behave.

use super::*;

#[tokio::test]
async fn an_answer_is_streamed_and_the_connection_used_again() {
    let fake = Fake::start(|mut met| async move {
        assert!(met.head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{}", met.head);
        assert_eq!(met.body["messages"][0]["content"], "hello");
        assert_eq!((&met.body["model"], &met.body["stream"]), (&json!("qwen"), &json!(true)));
        met.write(STREAM).await;
        met.word("one").await;
        met.word(" two").await;
        met.finish().await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([openai(&fake.url())]);
    for _ in 0..5 {
        assert_eq!(read(upstreams.ask(ask())).await, ("one two".to_owned(), done("stop")));
        all_free(&upstreams).await;
        // The end mark of the body may come a moment after the answer's.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((fake.calls(), fake.connections.load(SeqCst)), (5, 1));
    let status = &upstreams.status()[0];
    assert_eq!((status.calls, status.failures, status.timeouts), (5, 0, 0));
}

#[tokio::test]
async fn single_bytes_and_split_characters_give_the_same_answer() {
    let fake = Fake::start(|mut met| async move {
        met.socket.set_nodelay(true).unwrap();
        met.write(STREAM).await;
        let answer = "data: {\"choices\":[{\"delta\":{\"content\":\"Grüße 日本 🦀\"}}]}\r\n\r\n".to_owned()
            + &finish_event("length")
            + "data: [DONE]\n\n";
        for byte in answer.as_bytes() {
            met.chunk([*byte]).await;
            tokio::task::yield_now().await;
        }
        met.write("0\r\n\r\n").await;
        Some(met)
    })
    .await;
    let answer = read(upstreams([openai(&fake.url())]).ask(ask())).await;
    assert_eq!(answer, ("Grüße 日本 🦀".to_owned(), done("length")));
}

#[tokio::test]
async fn events_of_one_piece_are_one_text_and_nothing_waits_for_more() {
    let fake = Fake::start(|mut met| async move {
        met.write(STREAM).await;
        met.chunk(event("a") + &event("b") + &event("c")).await;
        met.closed().await;
        None
    })
    .await;
    let upstreams = upstreams([openai(&fake.url())]);
    let mut stream = upstreams.ask(ask());
    assert_eq!(text(&mut stream).await, "abc");
    assert_eq!(stream.try_next(), None);
}

#[tokio::test]
async fn an_answer_without_end_mark_is_complete_after_its_finish_reason() {
    for closes in [true, false] {
        let fake = Fake::start(move |mut met| async move {
            met.write(STREAM).await;
            met.word("all").await;
            met.chunk(finish_event("stop")).await;
            if !closes {
                met.closed().await;
            }
            None
        })
        .await;
        let upstreams = upstreams([openai(&fake.url())]);
        assert_eq!(read(upstreams.ask(ask())).await, ("all".to_owned(), done("stop")));
        all_free(&upstreams).await;
    }
}

#[tokio::test]
async fn a_server_that_ignores_stream_is_understood() {
    let fake = Fake::start(|mut met| async move {
        let usage = json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5});
        let body = json!({"choices": [{"message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}], "usage": usage});
        met.answer("200 OK", "content-type: application/json; charset=utf-8\r\n", &body.to_string()).await;
        Some(met)
    })
    .await;
    assert_eq!(read(upstreams([openai(&fake.url())]).ask(ask())).await, ("whole".to_owned(), done("stop")));
}

#[tokio::test]
async fn a_simple_server_is_asked_and_its_answer_is_one_text() {
    let fake = Fake::start(|mut met| async move {
        assert!(met.head.starts_with("post /v1/chat http/1.1\r\n"));
        assert_eq!(met.body, json!({"prompt": "hello", "max_tokens": 64}));
        // Longer than the first-token timeout: a whole answer has the total one.
        tokio::time::sleep(Duration::from_millis(400)).await;
        met.answer("200 OK", "content-type: application/json\r\n", r#"{"text": "hi there"}"#).await;
        Some(met)
    })
    .await;
    let mut settings = hasty(&fake.url());
    settings.kind = UpstreamKind::Simple { url: fake.url(), max_tokens: 64 };
    let end = UpstreamEvent::End { finish_reason: "stop".into(), usage: Usage::default() };
    assert_eq!(read(upstreams([settings]).ask(ask())).await, ("hi there".to_owned(), end));
}

#[tokio::test]
async fn the_key_is_sent_and_followed_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, "sk-1\n").unwrap();
    let fake = Fake::start(|mut met| async move {
        let key = met.head.lines().find_map(|line| line.strip_prefix("authorization: ")).unwrap_or("none").to_owned();
        met.write(STREAM).await;
        met.word(&key).await;
        met.finish().await;
        Some(met)
    })
    .await;
    let mut settings = openai(&fake.url());
    settings.kind = UpstreamKind::OpenAi {
        url: fake.url(),
        model: "qwen".into(),
        api_key_file: Some(path.clone()),
        prefill: false,
        prompt_format: None,
    };
    let upstreams = upstreams([settings]);
    assert_eq!(read(upstreams.ask(ask())).await.0, "bearer sk-1");
    let next = dir.path().join("next");
    std::fs::write(&next, "sk-22").unwrap();
    std::fs::rename(&next, &path).unwrap();
    let followed = async {
        while read(upstreams.ask(ask())).await.0 != "bearer sk-22" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, followed).await.unwrap();
}

#[tokio::test]
async fn dropping_a_stream_closes_the_connection_at_once() {
    // Before the head of the answer, and in the middle of it.
    for words in [0, 3] {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        let fake = Fake::start(move |mut met| {
            let tell = tell.clone();
            async move {
                if words > 0 {
                    met.write(STREAM).await;
                }
                for _ in 0..words {
                    met.word("x").await;
                }
                tell.send("called").unwrap();
                met.closed().await;
                tell.send("closed").unwrap();
                None
            }
        })
        .await;
        let upstreams = upstreams([openai(&fake.url())]);
        let mut stream = upstreams.ask(ask());
        let called = tokio::select! {
            told = told.recv() => told,
            event = stream.next() => { assert!(matches!(event, Some(UpstreamEvent::Text(_)))); told.recv().await }
        };
        assert_eq!(called, Some("called"));
        let start = std::time::Instant::now();
        drop(stream);
        assert_eq!(tokio::time::timeout(SOON, told.recv()).await.unwrap(), Some("closed"));
        assert!(start.elapsed() < Duration::from_millis(200), "{:?}", start.elapsed());
        all_free(&upstreams).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_not_polled_stops_the_server_and_does_not_time_out() {
    let written = Arc::<AtomicUsize>::default();
    let count = written.clone();
    let fake = Fake::start(move |mut met| {
        let count = count.clone();
        async move {
            met.write(STREAM).await;
            let word = "y".repeat(10_000);
            while met.word(&word).await {
                count.fetch_add(word.len(), SeqCst);
            }
            None
        }
    })
    .await;
    let upstreams = upstreams([hasty(&fake.url())]);
    let mut stream = upstreams.ask(ask());
    text(&mut stream).await;
    // The server stands still once the sockets' buffers are full; that takes longer than any timeout of this upstream.
    let mut before = 0;
    let still = async {
        loop {
            tokio::time::sleep(Duration::from_millis(400)).await;
            let now = written.swap(0, SeqCst);
            before += now;
            if now == 0 {
                break;
            }
        }
    };
    tokio::time::timeout(SOON, still).await.unwrap();
    assert!(before < 64 << 20, "{before}");
    for _ in 0..50 {
        text(&mut stream).await;
    }
    drop(stream);
    all_free(&upstreams).await;
    assert_eq!(upstreams.status()[0].timeouts, 0);
}

#[tokio::test]
async fn a_connection_that_the_server_thought_idle_is_replaced() {
    let fake = Fake::start(|mut met| async move {
        // The second call meets a server that is just closing.
        if met.number == 1 {
            return None;
        }
        met.write(STREAM).await;
        met.word("ok").await;
        met.finish().await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([openai(&fake.url())]);
    assert_eq!(read(upstreams.ask(ask())).await.0, "ok");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(read(upstreams.ask(ask())).await.0, "ok");
    assert_eq!((fake.calls(), fake.connections.load(SeqCst)), (3, 2));
}

#[tokio::test]
async fn a_named_model_goes_where_it_is_served() {
    let serve = |name: &'static str| {
        Fake::start(move |mut met| async move {
            met.write(STREAM).await;
            met.word(&format!("{name} {}", met.body["model"].as_str().unwrap())).await;
            met.finish().await;
            Some(met)
        })
    };
    let (a, b) = (serve("a").await, serve("b").await);
    let mut second = openai(&b.url());
    second.name = "second".into();
    second.kind = UpstreamKind::OpenAi {
        url: b.url(),
        model: "llama".into(),
        api_key_file: None,
        prefill: false,
        prompt_format: None,
    };
    let upstreams = upstreams([openai(&a.url()), second, UpstreamSettings::default()]);
    let asked = |extra: &str| {
        let mut ask = ask();
        ask.body = Arc::new(TurnBody::new("hello".into(), extra.into()));
        ask
    };
    assert_eq!(read(upstreams.ask(ask())).await.0, "a qwen");
    assert_eq!(read(upstreams.ask(asked(r#"{"model":"llama"}"#))).await.0, "b llama");
    assert!(read(upstreams.ask(asked(r#"{"model":"demo"}"#))).await.0.starts_with("You said"));
    let (code, message) = failure(upstreams.ask(asked(r#"{"model":"gpt"}"#))).await;
    assert_eq!(code, ErrorCode::NotFound);
    assert!(message.contains("gpt") && message.contains("qwen, llama, demo"), "{message}");
    assert_eq!(failure(upstreams.ask(asked("{"))).await.0, ErrorCode::InvalidRequest);

    assert_eq!(upstreams.route(None).unwrap(), Route::Forward);
    assert_eq!(upstreams.route(Some("llama")).unwrap(), Route::Forward);
    assert_eq!(upstreams.route(Some("demo")).unwrap(), Route::Ask);
    assert_eq!(upstreams.route(Some("gpt")).unwrap_err().code, ErrorCode::NotFound);
    let ids: Vec<_> = upstreams.models().into_iter().map(|model| model.id).collect();
    assert_eq!(ids, ["qwen", "llama", "demo"]);
    assert!(upstreams.wants_history() && !upstreams.prefill());
    assert_eq!(upstreams.turn_deadline(), Duration::from_secs(3 * 125));
}

#[tokio::test]
async fn unchanged_upstreams_survive_new_settings() {
    let upstreams = upstreams([UpstreamSettings::default(), openai("http://127.0.0.1:9/v1")]);
    read(upstreams.ask(ask())).await;
    let mut settings = Settings { upstreams: vec![UpstreamSettings::default()], ..Settings::default() };
    assert_eq!(upstreams.renewed(&settings).unwrap().status()[0].calls, 1);
    settings.upstreams[0].timeouts.total = Duration::from_secs(1);
    assert_eq!(upstreams.renewed(&settings).unwrap().status()[0].calls, 0);
    settings.upstreams[0] = openai("not a url");
    assert!(upstreams.renewed(&settings).is_err());
}
