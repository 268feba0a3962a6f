//! Requests that pass through.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;

use super::*;

fn request(stream: bool) -> Forward {
    let mut headers = HeaderMap::new();
    for (name, value) in
        [("authorization", "Bearer client"), ("cookie", "c"), ("x-request-id", "r-1"), ("host", "evil")]
    {
        headers.insert(name, value.parse().unwrap());
    }
    Forward {
        path: ForwardPath::ChatCompletions,
        who: "p".into(),
        model: Some("qwen".into()),
        stream,
        headers,
        body: Bytes::from_static(br#"{"model":"qwen","tools":[1],"unknown":{"x":1e400}}"#),
    }
}

#[tokio::test]
async fn request_and_answer_pass_through_as_they_are() {
    let fake = Fake::start(|mut met| async move {
        assert!(met.head.contains("x-request-id: r-1"), "{}", met.head);
        for secret in ["cookie", "client", "evil"] {
            assert!(!met.head.contains(secret), "{}", met.head);
        }
        assert!(met.head.contains("content-length: 50"), "{}", met.head);
        let headers = "content-type: application/json\r\nset-cookie: x=1\r\nx-request-id: r-1\r\n";
        met.answer("200 OK", headers, "{\"any\":\"thing\"}").await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([openai(&fake.url())]);
    let response = upstreams.forward(request(false)).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers().get("set-cookie"), None);
    assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(15));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "{\"any\":\"thing\"}");
    all_free(&upstreams).await;
}

#[tokio::test]
async fn a_stream_passes_piece_by_piece_and_dropping_it_cancels() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let fake = Fake::start(move |mut met| {
        let tell = tell.clone();
        async move {
            met.write(STREAM).await;
            met.word("one").await;
            met.closed().await;
            tell.send(()).unwrap();
            None
        }
    })
    .await;
    let upstreams = upstreams([openai(&fake.url())]);
    let mut response = upstreams.forward(request(true)).await.unwrap();
    let piece = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(piece, event("one"));
    assert_eq!(upstreams.status()[0].in_flight, 1);
    drop(response);
    tokio::time::timeout(SOON, told.recv()).await.unwrap().unwrap();
    all_free(&upstreams).await;
}

#[tokio::test]
async fn errors_that_are_the_clients_pass_through_and_others_go_elsewhere() {
    let statuses = ["422 Unprocessable", "500 Oops", "401 Unauthorized", "429 Slow Down"];
    let fake = Fake::start(move |mut met| async move {
        met.answer(statuses[met.number], "retry-after: 3\r\n", "{\"error\":{\"message\":\"no\",\"param\":\"n\"}}")
            .await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([openai(&fake.url())]);
    let response = upstreams.forward(request(false)).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "{\"error\":{\"message\":\"no\",\"param\":\"n\"}}");
    for (code, retry_after_ms) in [
        (ErrorCode::UpstreamUnavailable, Some(3_000)),
        (ErrorCode::UpstreamUnavailable, None),
        (ErrorCode::RateLimited, Some(3_000)),
    ] {
        let refusal = upstreams.forward(request(false)).await.unwrap_err();
        assert_eq!((refusal.code, refusal.retry_after_ms), (code, retry_after_ms), "{}", refusal.message);
    }
    let mut unknown = request(false);
    unknown.model = Some("gpt".into());
    assert_eq!(upstreams.forward(unknown).await.unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(fake.calls(), 4);
    all_free(&upstreams).await;
}

#[tokio::test]
async fn before_the_first_piece_the_next_upstream_is_tried() {
    let broken = Fake::start(|mut met| async move {
        met.write(STREAM).await;
        None
    })
    .await;
    let good = Fake::start(|mut met| async move {
        met.write(STREAM).await;
        met.word("ok").await;
        met.finish().await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([openai(&broken.url()), openai(&good.url())]);
    let response = upstreams.forward(request(true)).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, event("ok") + &finish_event("stop") + "data: [DONE]\n\n");
    all_free(&upstreams).await;
}

#[tokio::test]
async fn a_stall_ends_in_a_timeout() {
    let fake = Fake::start(|mut met| async move {
        if met.number == 1 {
            met.write(STREAM).await;
            met.word("one").await;
        }
        met.closed().await;
        None
    })
    .await;
    let upstreams = upstreams([hasty(&fake.url())]);
    assert_eq!(upstreams.forward(request(true)).await.unwrap_err().code, ErrorCode::UpstreamTimeout);
    let response = upstreams.forward(request(true)).await.unwrap();
    let refusal = response.into_body().collect().await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::UpstreamTimeout);
    assert!(refusal.message.contains("did not go on with its answer within 300 ms"), "{}", refusal.message);
    all_free(&upstreams).await;
    assert_eq!(upstreams.status()[0].timeouts, 2);
}

#[tokio::test]
async fn an_answer_in_one_piece_has_the_total_timeout() {
    let fake = Fake::start(|mut met| async move {
        tokio::time::sleep(Duration::from_millis(450)).await;
        met.answer("200 OK", "content-type: application/json\r\n", "{}").await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([hasty(&fake.url())]);
    assert_eq!(upstreams.forward(request(false)).await.unwrap().status(), StatusCode::OK);
}
