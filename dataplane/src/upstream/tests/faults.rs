//! Servers that do not behave. Each ends in the right code, with a message that says what happened, and frees its place.

use super::*;

/// What a call to such a server comes to.
async fn fault<F, R>(serve: F) -> (ErrorCode, String)
where
    F: Fn(Met) -> R + Clone + Send + 'static,
    R: Future<Output = Option<Met>> + Send,
{
    let fake = Fake::start(serve).await;
    let upstreams = upstreams([hasty(&fake.url())]);
    let failure = failure(upstreams.ask(ask())).await;
    all_free(&upstreams).await;
    let status = &upstreams.status()[0];
    assert_eq!((status.failures, status.calls), (1, 1));
    assert!(failure.1.starts_with("the model server m "), "{}", failure.1);
    assert!(failure.1.len() < 1_000, "{}", failure.1);
    failure
}

fn holds(failure: &(ErrorCode, String), code: ErrorCode, words: &str) {
    assert_eq!(failure.0, code, "{}", failure.1);
    assert!(failure.1.contains(words), "{:?} lacks {words:?}", failure.1);
}

#[tokio::test]
async fn it_refuses() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let upstreams = upstreams([hasty(&format!("http://{closed}/v1"))]);
    let failure = failure(upstreams.ask(ask())).await;
    holds(&failure, ErrorCode::UpstreamUnavailable, "cannot be reached: Connection refused");
    all_free(&upstreams).await;
}

#[tokio::test]
async fn it_does_not_take_the_connection() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    // Nobody accepts: once the backlog is full, the system lets further clients wait.
    let mut held = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
        held.push(stream);
    }
    let upstreams = upstreams([hasty(&format!("http://{address}/v1"))]);
    let failure = failure(upstreams.ask(ask())).await;
    holds(&failure, ErrorCode::UpstreamTimeout, "no connection within 200 ms");
    all_free(&upstreams).await;
}

#[tokio::test]
async fn it_closes_without_an_answer() {
    let failure = fault(|_| async { None }).await;
    holds(&failure, ErrorCode::UpstreamUnavailable, "broke the connection before its answer");
}

#[tokio::test]
async fn it_stalls_before_the_head() {
    let failure = fault(|mut met| async move {
        met.closed().await;
        None
    })
    .await;
    holds(&failure, ErrorCode::UpstreamTimeout, "did not begin to answer within 300 ms");
}

#[tokio::test]
async fn it_stalls_before_the_first_token_though_it_sends_comments() {
    let failure = fault(|mut met| async move {
        met.write(STREAM).await;
        while met.chunk(": still here\n\n").await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    })
    .await;
    holds(&failure, ErrorCode::UpstreamTimeout, "did not begin to answer within 300 ms");
}

#[tokio::test]
async fn it_sends_comments_as_fast_as_it_can() {
    let failure = fault(|mut met| async move {
        met.write(STREAM).await;
        while met.chunk(":\n".repeat(1_000)).await {}
        None
    })
    .await;
    holds(&failure, ErrorCode::UpstreamTimeout, "did not begin to answer within 300 ms");
}

#[tokio::test]
async fn it_stalls_between_tokens() {
    let failure = fault(|mut met| async move {
        met.write(STREAM).await;
        met.word("one").await;
        met.closed().await;
        None
    })
    .await;
    holds(&failure, ErrorCode::UpstreamTimeout, "did not go on with its answer within 300 ms");
}

#[tokio::test]
async fn it_never_comes_to_an_end() {
    let fake = Fake::start(|mut met| async move {
        met.write(STREAM).await;
        while met.word("more").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    })
    .await;
    let mut settings = hasty(&fake.url());
    settings.timeouts.total = Duration::from_millis(500);
    let upstreams = upstreams([settings]);
    let failure = failure(upstreams.ask(ask())).await;
    holds(&failure, ErrorCode::UpstreamTimeout, "did not complete its answer within 500 ms");
    all_free(&upstreams).await;
    assert_eq!(upstreams.status()[0].timeouts, 1);
}

#[tokio::test]
async fn it_dies_in_the_middle() {
    let failure = fault(|mut met| async move {
        met.write(STREAM).await;
        met.word("half an ans").await;
        None
    })
    .await;
    holds(&failure, ErrorCode::UpstreamUnavailable, "broke the connection in the middle of its answer");
}

#[tokio::test]
async fn it_ends_in_good_order_but_too_early() {
    let failure = fault(|mut met| async move {
        met.write(STREAM).await;
        met.word("half an ans").await;
        met.write("0\r\n\r\n").await;
        Some(met)
    })
    .await;
    holds(&failure, ErrorCode::UpstreamUnavailable, "before it was complete");
}

#[tokio::test]
async fn it_sends_garbage() {
    for (garbage, words) in [
        (&b"data: \xff\xfe\x00\x80\n\n"[..], "not UTF-8"),
        (b"data: {\"choices\": [\n\n", "no chat completion"),
        (b"data: <html>\n\n", "<html>"),
        (b"data: [1, 2]\n\n", "no chat completion"),
    ] {
        let failure = fault(move |mut met| async move {
            met.write(STREAM).await;
            met.word("fine so far").await;
            met.chunk(garbage).await;
            met.closed().await;
            None
        })
        .await;
        holds(&failure, ErrorCode::UpstreamUnavailable, words);
    }
    let failure = fault(|mut met| async move {
        met.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n").await;
        met.closed().await;
        None
    })
    .await;
    holds(&failure, ErrorCode::UpstreamUnavailable, "broke the connection before its answer");
}

#[tokio::test]
async fn it_sends_a_line_without_end() {
    let written = Arc::<AtomicUsize>::default();
    let count = written.clone();
    let failure = fault(move |mut met| {
        let count = count.clone();
        async move {
            met.write(STREAM).await;
            met.chunk("data: ").await;
            let piece = vec![b'x'; 100_000];
            while count.load(SeqCst) < 200_000_000 && met.chunk(&piece).await {
                count.fetch_add(piece.len(), SeqCst);
            }
            None
        }
    })
    .await;
    holds(&failure, ErrorCode::UpstreamUnavailable, "a line or event of more than 1048576 bytes");
    // Beyond the bound there is only what the sockets hold.
    assert!(written.load(SeqCst) < 32_000_000, "{written:?}");
}

#[tokio::test]
async fn it_sends_a_whole_answer_without_end() {
    let failure = fault(|mut met| async move {
        met.write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n").await;
        let spaces = vec![b' '; 100_000];
        while met.write(&spaces).await {}
        None
    })
    .await;
    holds(&failure, ErrorCode::UpstreamUnavailable, "an answer of more than 8388608 bytes");
}

#[tokio::test]
async fn it_sends_a_head_without_end() {
    let failure = fault(|mut met| async move {
        met.write("HTTP/1.1 200 OK\r\n").await;
        while met.write(format!("x-filler: {}\r\n", "y".repeat(1_000))).await {}
        None
    })
    .await;
    holds(&failure, ErrorCode::UpstreamUnavailable, "broke the connection before its answer");
}

#[tokio::test]
async fn it_sends_an_error_object_in_the_middle() {
    let failure = fault(|mut met| async move {
        met.write(STREAM).await;
        met.word("one").await;
        met.chunk("data: {\"error\":{\"message\":\"CUDA out of memory\",\"code\":500}}\n\ndata: [DONE]\n\n").await;
        met.write("0\r\n\r\n").await;
        Some(met)
    })
    .await;
    holds(&failure, ErrorCode::UpstreamUnavailable, "broke its answer off: CUDA out of memory");
}

#[tokio::test]
async fn it_answers_with_an_error() {
    let page = "<html>".to_owned() + &"Internal Server Error ".repeat(10_000);
    let too_long = r#"{"error":{"message":"This model's maximum context length is 4096 tokens"}}"#;
    for (status, headers, body, code, words) in [
        ("500 Oops", "content-type: text/html\r\n", page.as_str(), ErrorCode::UpstreamUnavailable, "HTTP 500"),
        ("400 Bad Request", "", too_long, ErrorCode::InvalidRequest, "maximum context length is 4096 tokens"),
        ("401 Unauthorized", "", r#"{"error":"bad key sk-123"}"#, ErrorCode::UpstreamUnavailable, "credentials"),
        ("429 Slow Down", "retry-after: 7\r\n", "", ErrorCode::RateLimited, "HTTP 429"),
        ("302 Found", "location: http://127.0.0.1:1/\r\n", "", ErrorCode::UpstreamUnavailable, "HTTP 302"),
    ] {
        let body = body.to_owned();
        let failure = fault(move |mut met| {
            let body = body.clone();
            async move {
                met.answer(status, headers, &body).await;
                Some(met)
            }
        })
        .await;
        holds(&failure, code, words);
        assert!(!failure.1.contains("<html>") && !failure.1.contains("sk-123"), "{}", failure.1);
    }
}

#[tokio::test]
async fn the_time_that_the_server_asks_for_is_passed_on() {
    let fake = Fake::start(|mut met| async move {
        met.answer("429 Slow Down", "retry-after: 7\r\n", "").await;
        Some(met)
    })
    .await;
    let (_, end) = read(upstreams([openai(&fake.url())]).ask(ask())).await;
    assert!(matches!(end, UpstreamEvent::Failed { retry_after_ms: Some(7_000), .. }), "{end:?}");
}

#[tokio::test]
async fn it_answers_with_a_page() {
    let failure = fault(|mut met| async move {
        met.answer("200 OK", "content-type: text/html\r\n", "<html>Welcome to nginx</html>").await;
        Some(met)
    })
    .await;
    holds(&failure, ErrorCode::UpstreamUnavailable, "answered with text/html in place of an event stream");
}

#[tokio::test]
async fn a_simple_server_says_nothing_that_makes_sense() {
    for body in ["", "[]", "{\"answer\": 1}", "\u{0}\u{1}"] {
        let fake = Fake::start(move |mut met| async move {
            met.answer("200 OK", "", body).await;
            Some(met)
        })
        .await;
        let mut settings = hasty(&fake.url());
        settings.kind = UpstreamKind::Simple { url: fake.url(), max_tokens: 1 };
        holds(
            &failure(upstreams([settings]).ask(ask())).await,
            ErrorCode::UpstreamUnavailable,
            "no answer with a text",
        );
    }
}

#[tokio::test]
async fn the_next_upstream_answers_for_one_that_fails_before_its_first_word() {
    let broken = Fake::start(|mut met| async move {
        match met.number {
            0 => met.answer("503 Busy", "", "").await,
            1 => drop(met.write(STREAM).await),
            2 => {
                met.write(STREAM).await;
                met.chunk("data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n").await;
            }
            _ => {
                met.write(STREAM).await;
                met.word("too late").await;
            }
        }
        None
    })
    .await;
    let good = Fake::start(|mut met| async move {
        met.write(STREAM).await;
        met.word("from the next").await;
        met.finish().await;
        Some(met)
    })
    .await;
    let mut second = hasty(&good.url());
    second.name = "next".into();
    let upstreams = upstreams([hasty(&broken.url()), second]);
    for _ in 0..3 {
        assert_eq!(read(upstreams.ask(ask())).await.0, "from the next");
    }
    // From the first word on, another one would tell the text again.
    let (told, end) = read(upstreams.ask(ask())).await;
    assert_eq!(told, "too late");
    assert!(matches!(end, UpstreamEvent::Failed { .. }));
    assert_eq!(good.calls(), 3);
    all_free(&upstreams).await;
}

#[tokio::test]
async fn a_wrong_request_is_not_tried_elsewhere_and_the_last_failure_is_told() {
    let wrong = Fake::start(|mut met| async move {
        let status = if met.number == 0 { "400 Bad Request" } else { "500 Oops" };
        met.answer(status, "", "").await;
        Some(met)
    })
    .await;
    let mut second = hasty(&wrong.url());
    second.name = "second".into();
    let upstreams = upstreams([hasty(&wrong.url()), second]);
    assert_eq!(failure(upstreams.ask(ask())).await.0, ErrorCode::InvalidRequest);
    assert_eq!(wrong.calls(), 1);
    let failure = failure(upstreams.ask(ask())).await;
    assert!(failure.1.starts_with("the model server second answered HTTP 500"), "{}", failure.1);
    assert_eq!(wrong.calls(), 3);
}
