//! Servers with `POST /chat/batch`.

use super::*;

fn simple(fake: &Fake, batching: BatchingSettings) -> UpstreamSettings {
    let kind = UpstreamKind::Simple { url: format!("http://{}", fake.address), max_tokens: 77 };
    let retries = chatgateway_config::RetrySettings { max_attempts: 1, ..Default::default() };
    UpstreamSettings { name: "m".into(), kind, batching, retries, ..UpstreamSettings::default() }
}

fn texts(met: &Met) -> Value {
    Value::from(prompts(met).iter().map(|prompt| format!("re {prompt}")).collect::<Vec<_>>())
}

#[tokio::test]
async fn one_call_answers_many_prompts() {
    let fake = Fake::start(|mut met| async move {
        assert_eq!(met.body["max_tokens"], 77);
        let body = match met.head.split(' ').nth(1).unwrap() {
            "/chat/batch" => json!({"texts": texts(&met)}),
            "/chat" => json!({"text": texts(&met)[0]}),
            other => panic!("{other}"),
        };
        met.answer("200 OK", "", &body.to_string()).await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([simple(&fake, FIXED)]);
    let answers = join_all((0..9).map(|i| read(upstreams.ask(ask_of(&format!("s{i}"), &format!("canary {i}")))))).await;
    for (i, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, (format!("re canary {i}"), end(0, 0)));
    }
    assert_eq!(fake.calls(), 3, "two batches and one alone");
    assert_eq!(status(&upstreams).calls, 3);
}

#[tokio::test]
async fn a_text_that_is_missing_fails_alone() {
    let fake = Fake::start(|mut met| async move {
        met.answer("200 OK", "", r#"{"texts":["one",null,{"error":{"message":"too long","code":400}}]}"#).await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([simple(&fake, FULL)]);
    let answers = join_all((0..4).map(|i| read(upstreams.ask(ask_of(&format!("s{i}"), "x"))))).await;
    assert_eq!(answers[0], ("one".into(), end(0, 0)));
    let codes: Vec<_> = answers[1..]
        .iter()
        .map(|(_, end)| match end {
            UpstreamEvent::Failed { code, .. } => *code,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(codes, [ErrorCode::UpstreamUnavailable, ErrorCode::InvalidRequest, ErrorCode::UpstreamUnavailable]);
}

#[tokio::test]
async fn a_server_without_batches_is_remembered() {
    let fake = Fake::start(|mut met| async move {
        if met.head.starts_with("post /chat/batch ") {
            met.answer("404 Not Found", "", "no such path").await;
        } else {
            let body = json!({"text": texts(&met)[0]});
            met.answer("200 OK", "", &body.to_string()).await;
        }
        Some(met)
    })
    .await;
    let upstreams = upstreams([simple(&fake, FULL)]);
    for round in 0..2 {
        let asks = (0..4).map(|i| read(upstreams.ask(ask_of(&format!("s{i}"), &format!("{round} {i}")))));
        for (i, (answer, _)) in join_all(asks).await.into_iter().enumerate() {
            assert_eq!(answer, format!("re {round} {i}"));
        }
    }
    assert_eq!((fake.calls(), status(&upstreams).split_alone), (1 + 4 + 4, 1));
}
