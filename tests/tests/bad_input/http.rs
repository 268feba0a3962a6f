//! Requests that are malformed, too large, of the wrong kind, or never end.

use std::time::{Duration, Instant};

use chatgateway_tests::client::HttpClient;
use serde_json::{Value, json};

use super::ground::{Ground, Raw};

/// The default of `limits.maxBodyBytes`.
const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;

/// Sends bytes on a connection of their own; the status line and everything after it.
async fn answer(ground: &Ground, bytes: impl AsRef<[u8]>) -> (String, u64) {
    let mut raw = Raw::connect(ground.http()).await;
    raw.send(bytes).await;
    (raw.rest_text().await, raw.sent)
}

fn post(path: &str, content_type: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: {content_type}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The JSON body of an answer.
fn body(answer: &str) -> Value {
    let body = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no body in {answer:?}")).1;
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e} in {answer:?}"))
}

fn assert_problem(answer: &str, status: u16, code: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    let problem = body(answer);
    assert_eq!((&problem["status"], &problem["code"]), (&json!(status), &json!(code)), "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{problem}");
}

#[tokio::test]
async fn a_header_that_never_ends_is_cut_off_in_time_or_in_size() {
    let ground = Ground::new().await;
    let mut sent = 0;
    // In time: nothing, the beginning of either protocol, a request line, one header after the other.
    let start = Instant::now();
    let mut waiting = tokio::task::JoinSet::new();
    for (port, opening) in [
        (ground.http(), ""),
        (ground.http(), "G"),
        (ground.http(), "\r\n"),
        (ground.http(), "PRI * HTTP"),
        (ground.http(), "GET / HTTP/1.1\r\n"),
        (ground.http(), "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A:"),
        (ground.grpc(), ""),
        (ground.grpc(), "PRI * HTTP/2.0\r\n\r\n"),
    ] {
        let mut raw = Raw::connect(port).await;
        raw.send(opening).await;
        sent += raw.sent;
        waiting.spawn(async move {
            raw.rest().await;
            opening
        });
    }
    let mut dribble = Raw::connect(ground.http()).await;
    dribble.send("GET / HTTP/1.1\r\n").await;
    while dribble.send("X-A: b\r\n").await {
        assert!(start.elapsed() < Duration::from_secs(5), "a header is read for {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    while let Some(opening) = waiting.join_next().await {
        let opening = opening.unwrap();
        assert!(start.elapsed() < Duration::from_secs(6), "{opening:?} was kept for {:?}", start.elapsed());
    }
    // In size.
    let long = format!("GET / HTTP/1.1\r\nX-A: {}\r\n\r\n", "x".repeat(100_000));
    let (answer_to_long, n) = answer(&ground, &long).await;
    assert!(answer_to_long.starts_with("HTTP/1.1 431 "), "{answer_to_long}");
    sent += n;
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X-A: b\r\n".repeat(1_000));
    let (answer_to_many, n) = answer(&ground, &many).await;
    assert!(answer_to_many.starts_with("HTTP/1.1 431 "), "{answer_to_many}");
    sent += n;
    let uri = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(70_000));
    let (answer_to_uri, n) = answer(&ground, &uri).await;
    assert!(
        answer_to_uri.starts_with("HTTP/1.1 414 ") || answer_to_uri.starts_with("HTTP/1.1 431 "),
        "{answer_to_uri}"
    );
    ground.finish(sent + n + dribble.sent).await;
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let ground = Ground::new().await;
    let mut sent = 0;
    let malformed = [
        "GET / HTTP/7.1\r\n\r\n",
        "GET /\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\nX-A : b\r\n\r\n",
        "GET / HTTP/1.1\r\nX-A: \0\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        // Two proxies that disagree on where this ends would be smuggled past.
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n",
    ];
    for request in malformed {
        let (answer, n) = answer(&ground, request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer:?}");
        sent += n;
    }
    // What is no HTTP at all could not read an answer: it is closed.
    for other in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"SSH-2.0-OpenSSH_9.2\r\n", b"\0\0\0\0\0\0\0\0"]
    {
        for port in [ground.http(), ground.grpc()] {
            let mut raw = Raw::connect(port).await;
            raw.send(other).await;
            assert_eq!(raw.rest_text().await, "", "{other:?}");
            sent += raw.sent;
        }
    }
    ground.finish(sent).await;
}

#[tokio::test]
async fn a_body_of_the_wrong_kind_is_refused_with_what_is_wrong() {
    let ground = Ground::new().await;
    let mut sent = 0;
    let path = "/v1/sessions/s/turns";
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
        let (answer, n) = answer(&ground, post(path, content_type, "{\"turn\":\"t\",\"text\":\"x\"}")).await;
        assert_problem(&answer, 415, "invalid_request");
        assert!(answer.contains(content_type), "{answer}");
        sent += n;
    }
    let deep = format!("{{\"turn\":\"t\",\"text\":\"x\",\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_options =
        format!("{{\"turn\":\"t\",\"text\":\"x\",\"options\":{}1{}}}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let bodies = [
        ("", "empty"),
        ("{", "EOF"),
        ("[]", ""),
        ("\"x\"", ""),
        ("{\"text\":\"x\"}", "turn"),
        ("{\"turn\":\"t\"}", "text"),
        ("{\"turn\":7,\"text\":\"x\"}", ""),
        ("{\"turn\":\"t\",\"text\":[]}", ""),
        ("{\"turn\":\"t\",\"text\":\"x\",\"seq\":\"one\"}", ""),
        ("{\"turn\":\"t\",\"text\":\"x\",\"seq\":18446744073709551616}", ""),
        ("{\"turn\":\"t\",\"text\":\"x\",\"messages\":[]}", ""),
        ("{\"turn\":\"\",\"text\":\"x\"}", "turn"),
        (&deep, "nested"),
        (&deep_options, "nested"),
    ];
    for (json, named) in bodies {
        let (answer, n) = answer(&ground, post(path, "application/json", json)).await;
        assert_problem(&answer, 400, "invalid_request");
        let detail = body(&answer)["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(named), "{}: {detail}", &json[..json.len().min(60)]);
        sent += n;
    }
    let mut raw = Raw::connect(ground.http()).await;
    raw.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"))
        .await;
    raw.send(b"Content-Length: 24\r\n\r\n{\"turn\":\"t\",\"text\":\"\xff\xfe\"}").await;
    assert_problem(&raw.rest_text().await, 400, "invalid_request");
    // The same on OpenAI's paths, in OpenAI's form.
    for json in ["{", "[]", &deep, "{\"messages\":{}}", "{\"model\":7,\"messages\":[]}"] {
        let (answer, n) = answer(&ground, post("/v1/chat/completions", "application/json", json)).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let error = &body(&answer)["error"];
        assert_eq!((&error["code"], &error["type"]), (&json!("invalid_request"), &json!("invalid_request_error")));
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{error}");
        sent += n;
    }
    // What is unknown in a request is passed over.
    let (answer, n) =
        answer(&ground, post(path, "application/json", "{\"turn\":\"u\",\"text\":\"x\",\"unknown\":[1]}")).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    ground.finish(sent + n + raw.sent).await;
}

#[tokio::test]
async fn an_oversized_body_is_413_announced_or_not() {
    let ground = Ground::new().await;
    let mut sent = 0;
    for path in ["/v1/sessions/s/turns", "/v1/chat/completions", "/chat.Stream/chat"] {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n");
        // Announced: refused before it comes.
        let (told, n) = answer(&ground, format!("{head}Content-Length: {}\r\n\r\n", 1_u64 << 40)).await;
        assert!(told.starts_with("HTTP/1.1 413 ") && told.contains("too_large"), "{told}");
        sent += n;
        // Sent without end: refused when the bound is passed.
        let mut raw = Raw::connect(ground.http()).await;
        raw.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n")).await;
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        let most = 4 * MAX_BODY_BYTES as u64;
        while raw.sent < most && raw.send(&chunk).await {}
        let told = raw.rest_text().await;
        // Who goes on sending may see a reset in place of the answer.
        assert!(told.is_empty() || told.starts_with("HTTP/1.1 413 "), "{told}");
        sent += raw.sent;
    }
    // A client that stops at the bound and looks sees the answer.
    let mut raw = Raw::connect(ground.http()).await;
    raw.send("POST /v1/sessions/s/turns HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n").await;
    raw.send(format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", MAX_BODY_BYTES + 1)).await;
    raw.send(vec![b' '; MAX_BODY_BYTES + 1]).await;
    let head = String::from_utf8(raw.until(b"\r\n\r\n").await).unwrap();
    assert!(head.starts_with("HTTP/1.1 413 "), "{head}");
    ground.finish(sent + raw.sent).await;
}

#[tokio::test]
async fn a_body_that_breaks_off_harms_nobody() {
    let ground = Ground::new().await;
    let mut sent = 0;
    let head = "POST /v1/sessions/s/turns HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    let cut = [
        format!("{head}Content-Length: 100\r\n\r\n{{\"turn\":\"t\""),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n10\r\n{{\"turn\""),
        format!("{head}Transfer-Encoding: chunked\r\n\r\nnot a length\r\n"),
    ];
    for request in cut {
        let mut raw = Raw::connect(ground.http()).await;
        raw.send(&request).await;
        tokio::io::AsyncWriteExt::shutdown(&mut raw.stream).await.unwrap();
        let answer = raw.rest_text().await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
        sent += raw.sent;
    }
    let snapshot = HttpClient::new(ground.http()).get("/v1/sessions/s").await.unwrap();
    assert_eq!(snapshot.status, 404, "half a request became a turn: {}", snapshot.text());
    ground.finish(sent).await;
}

#[tokio::test]
async fn unknown_sessions_paths_and_methods_are_said_to_be_unknown() {
    let ground = Ground::new().await;
    let client = HttpClient::new(ground.http());
    let reply = client.get("/v1/sessions/nobody").await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.json().unwrap()["code"]), (404, &json!("not_found")));
    let reply = client.post("/v1/sessions/nobody/turns/nothing/cancel", &json!({})).await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.json().unwrap()["code"]), (404, &json!("not_found")));
    let reply = client.get("/v1/sessions/nobody/events?after=7-7").await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.json().unwrap()["code"]), (410, &json!("not_resumable")));
    for after in ["now", "7", "-1-1", "7-7-7"] {
        let reply = client.get(&format!("/v1/sessions/nobody/events?after={after}")).await.unwrap();
        assert_eq!(
            (reply.status.as_u16(), &reply.json().unwrap()["code"]),
            (400, &json!("invalid_request")),
            "{after}"
        );
    }
    for session in ["%2E%2E", "%00", "a%0Ab", &"x".repeat(257), "%FF"] {
        let reply = client.get(&format!("/v1/sessions/{session}")).await.unwrap();
        assert_eq!(
            (reply.status.as_u16(), &reply.json().unwrap()["code"]),
            (400, &json!("invalid_request")),
            "{session}"
        );
    }
    let reply = client.get("/v1/nothing").await.unwrap();
    assert_eq!(reply.status, 404, "{}", reply.text());
    let reply = client.delete("/v1/models").await.unwrap();
    assert_eq!(reply.status, 405, "{}", reply.text());
    let reply = client.get("/v1/models/no-such-model").await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.json().unwrap()["error"]["code"]), (404, &json!("not_found")));
    ground.finish(1_000).await;
}
