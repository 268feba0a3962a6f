//! Clients' own text completions that share calls.

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt as _;

use super::*;

fn forward(body: &Value) -> Forward {
    Forward {
        path: ForwardPath::Completions,
        who: "p".into(),
        model: Some("qwen".into()),
        stream: body["stream"] == true,
        headers: HeaderMap::new(),
        body: Bytes::from(body.to_string()),
    }
}

async fn answer(upstreams: &Upstreams, body: Value) -> (String, String) {
    let response = tokio::time::timeout(SOON, upstreams.forward(forward(&body))).await.unwrap().unwrap();
    let kind = response.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
    let body = tokio::time::timeout(SOON, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    (kind, String::from_utf8(body.to_vec()).unwrap())
}

fn events(body: &str) -> Vec<Value> {
    let data = body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.map(|data| if data == "[DONE]" { json!("[DONE]") } else { serde_json::from_str(data).unwrap() }).collect()
}

#[tokio::test]
async fn each_client_gets_what_it_would_have_got_alone() {
    let (fake, seen) = echo().await;
    let upstreams = upstreams([completions(&fake.url(), FULL)]);
    let body = |i: usize| {
        json!({"model": "qwen", "prompt": format!("User: {i}"), "stream": true, "top_p": 0.5,
        "stream_options": {"include_usage": true}})
    };
    let answers = join_all((0..4).map(|i| answer(&upstreams, body(i)))).await;
    let mut ids = std::collections::HashSet::new();
    for (i, (kind, body)) in answers.iter().enumerate() {
        assert_eq!(kind, "text/event-stream");
        let events = events(body);
        let (done, events) = events.split_last().unwrap();
        let (usage, chunks) = events.split_last().unwrap();
        assert_eq!((done, &usage["choices"]), (&json!("[DONE]"), &json!([])));
        assert_eq!(usage["usage"], json!({"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}));
        let mut text = String::new();
        for chunk in chunks {
            assert_eq!((&chunk["choices"][0]["index"], &chunk["object"]), (&json!(0), &json!("text_completion")));
            assert_eq!(chunk["choices"].as_array().unwrap().len(), 1);
            assert_eq!(chunk["id"], usage["id"]);
            text.push_str(chunk["choices"][0]["text"].as_str().unwrap());
        }
        assert_eq!(text, format!(" re {i}"));
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
        assert!(ids.insert(usage["id"].to_string()), "an id of its own");
    }
    assert_eq!(seen.lock().len(), 1);
}

#[tokio::test]
async fn who_asked_for_no_usage_does_not_wait_for_the_others() {
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let fake = Fake::start(move |mut met| {
        let held = held.clone();
        async move {
            met.write(STREAM).await;
            met.chunk(choice(0, "short", Some("stop"))).await;
            met.chunk(choice(1, "long", None)).await;
            held.acquire().await.unwrap().forget();
            met.chunk(choice(1, "er", Some("stop"))).await;
            met.chunk("data: [DONE]\n\n").await;
            met.write("0\r\n\r\n").await;
            Some(met)
        }
    })
    .await;
    let two = BatchingSettings::Fixed { max_size: 2, max_delay: Duration::from_secs(60) };
    let upstreams = upstreams([completions(&fake.url(), two)]);
    let body = |i: usize| json!({"model": "qwen", "prompt": format!("{i}"), "stream": true});
    let short = async {
        let (_, body) = answer(&upstreams, body(0)).await;
        gate.add_permits(1);
        body
    };
    let (short, (_, long)) = tokio::join!(short, answer(&upstreams, body(1)));
    let texts = |body: &str| -> String {
        events(body).iter().filter_map(|event| event["choices"][0]["text"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!((texts(&short), texts(&long)), ("short".into(), "longer".into()));
    assert!(short.ends_with("data: [DONE]\n\n") && long.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn whole_answers_are_split_too() {
    let fake = Fake::start(|mut met| async move {
        let choices: Vec<_> = prompts(&met)
            .iter()
            .enumerate()
            .map(|(index, prompt)| json!({"index": index, "text": format!("re {prompt}"), "finish_reason": "stop"}))
            .collect();
        let usage = json!({"prompt_tokens": 8, "completion_tokens": 12, "total_tokens": 20});
        let body = json!({"id": "cmpl-7", "object": "text_completion", "choices": choices, "usage": usage});
        met.answer("200 OK", "content-type: application/json\r\n", &body.to_string()).await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([completions(&fake.url(), FULL)]);
    let answers =
        join_all((0..4).map(|i| answer(&upstreams, json!({"model": "qwen", "prompt": format!("{i}")})))).await;
    for (i, (kind, body)) in answers.iter().enumerate() {
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!((kind.as_str(), &body["id"]), ("application/json", &json!(format!("cmpl-7-{i}"))));
        let choice = json!({"index": 0, "text": format!("re {i}"), "finish_reason": "stop"});
        assert_eq!(body["choices"], json!([choice]));
        assert_eq!(body["usage"], json!({"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}));
    }
    assert_eq!(fake.calls(), 1);
}

#[tokio::test]
async fn what_is_a_batch_already_and_what_differs_goes_as_it_is() {
    let fake = Fake::start(|mut met| async move {
        let body = met.body.to_string();
        met.answer("200 OK", "content-type: application/json\r\n", &body).await;
        Some(met)
    })
    .await;
    let upstreams = upstreams([completions(&fake.url(), FULL)]);
    for body in [
        json!({"model": "qwen", "prompt": ["a", "b"]}),
        json!({"model": "qwen", "prompt": "a", "n": 2}),
        json!({"model": "qwen", "prompt": "a", "best_of": 3}),
        json!({"model": "qwen", "prompt": [1, 2, 3]}),
    ] {
        assert_eq!(serde_json::from_str::<Value>(&answer(&upstreams, body.clone()).await.1).unwrap(), body);
    }
    assert_eq!(status(&upstreams).calls, 0);
}

#[tokio::test]
async fn a_bad_prompt_of_one_client_is_that_ones_error() {
    let fake = Fake::start(|mut met| async move {
        if prompts(&met).iter().any(|prompt| prompt == "bad") {
            met.answer("422 Unprocessable Entity", "content-type: application/json\r\n", "{\"error\":\"no\"}").await;
        } else {
            let body = json!({"id": "x", "choices": [{"index": 0, "text": "good"}]});
            met.answer("200 OK", "content-type: application/json\r\n", &body.to_string()).await;
        }
        Some(met)
    })
    .await;
    let two = BatchingSettings::Fixed { max_size: 2, max_delay: Duration::from_secs(60) };
    let upstreams = upstreams([completions(&fake.url(), two)]);
    let body = |prompt: &str| json!({"model": "qwen", "prompt": prompt});
    let (good, bad) = tokio::join!(answer(&upstreams, body("good")), upstreams.forward(forward(&body("bad"))));
    assert!(good.1.contains("\"good\""));
    assert_eq!(bad.unwrap().status(), 422);
    assert_eq!(fake.calls(), 3);
}
