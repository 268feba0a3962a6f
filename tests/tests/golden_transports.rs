//! The same turns, read on all four transports, give the same list of events: while they happen and afterwards. The list
//! itself is a golden file; UPDATE_GOLDENS=1 writes it anew.
#![cfg(test)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use chatgateway_tests::{
    client::{Event, GrpcChat, HttpClient, WsClient, in_time},
    process::GatewayProcess,
    simulator::{Settings, Simulator},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinHandle};

const SESSION: &str = "golden";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    turn: String,
    text: String,
    model: String,
    #[serde(default)]
    cancel: bool,
}

#[tokio::test]
async fn golden_all_transports_tell_the_same_events() {
    let input = std::fs::read_to_string(golden("transports.in.yaml")).unwrap();
    let turns: Vec<Asked> = serde_saphyr::from_str(&input).unwrap();
    let last = turns.last().unwrap().turn.clone();
    let simulator = Simulator::start(Settings { models: vec!["sim-model".to_owned()], ..Settings::default() }).unwrap();
    let gateway = GatewayProcess::start(&json!({"upstreams": [
        {"name": "demo", "type": "Demo", "demo": {"tokenDelay": "0s"}},
        {"name": "sim", "type": "OpenAI", "openAI": {"url": simulator.openai_url(), "model": "sim-model"}},
    ]}))
    .await
    .unwrap();

    let live = readers(&gateway, &last).await;
    let mut sender = WsClient::connect(gateway.http()).await.unwrap();
    for asked in &turns {
        send(&mut sender, asked).await;
    }
    let later = readers(&gateway, &last).await;

    let mut lists: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    for (when, readers) in [("live", live), ("later", later)] {
        for (transport, reader) in readers {
            let events = in_time("a reader's last event", reader).await.unwrap().unwrap();
            lists.insert(format!("{transport}, {when}"), events);
        }
    }
    let first = lists.values().next().unwrap();
    for (name, events) in &lists {
        assert_eq!(events, first, "{name} differs from {}", lists.keys().next().unwrap());
    }
    compare("transports.out.json", &normal(first, &simulator.url()));
}

async fn send(sender: &mut WsClient, asked: &Asked) {
    let frame =
        json!({"type": "send", "session": SESSION, "turn": asked.turn, "text": asked.text, "model": asked.model});
    sender.send_frame(&frame).await.unwrap();
    if asked.cancel {
        sender.next_of("delta").await.unwrap();
        sender.cancel(SESSION, &asked.turn).await.unwrap();
    }
    let seen = sender.turn(&asked.turn).await.unwrap();
    assert!(seen.end().unwrap().ends(&asked.turn), "{:?}", seen.end());
}

type Reader = JoinHandle<Vec<Event>>;

/// A reader from the beginning on each transport, attached, that ends with the last turn.
async fn readers(gateway: &GatewayProcess, last: &str) -> Vec<(&'static str, Reader)> {
    let (http, grpc) = (gateway.http(), gateway.grpc());
    vec![
        ("WebSocket", websocket(http, last.to_owned()).await),
        ("SSE", sse(http, last.to_owned()).await),
        ("long poll", long_poll(http, last.to_owned()).await),
        ("gRPC", chat(grpc, last.to_owned()).await),
    ]
}

async fn websocket(address: SocketAddr, last: String) -> Reader {
    let mut client = WsClient::connect(address).await.unwrap();
    client.resume(SESSION, "0").await.unwrap();
    assert_eq!(client.next().await.unwrap().0["recovered"], true);
    tokio::spawn(async move {
        let mut events = Vec::new();
        while !events.last().is_some_and(|event: &Event| event.ends(&last)) {
            events.push(client.next().await.unwrap());
        }
        events
    })
}

async fn sse(address: SocketAddr, last: String) -> Reader {
    let path = format!("/v1/sessions/{SESSION}/events");
    let mut stream = HttpClient::new(address).get_sse(&path, Some("0")).await.unwrap();
    let priming = stream.next().await.unwrap().unwrap();
    assert!(priming.retry_ms.is_some() && priming.data.is_empty(), "{priming:?}");
    tokio::spawn(async move {
        let mut events = Vec::new();
        while !events.last().is_some_and(|event: &Event| event.ends(&last)) {
            let event = stream.next().await.unwrap().unwrap();
            let json = event.json().unwrap();
            assert_eq!((event.event.as_str(), event.id.as_deref()), (json.kind(), json.id()), "{event:?}");
            events.push(json);
        }
        events
    })
}

async fn long_poll(address: SocketAddr, last: String) -> Reader {
    let client = HttpClient::new(address);
    let (begun, mut beginning) = mpsc::channel(1);
    let reader = tokio::spawn(async move {
        let mut events: Vec<Event> = Vec::new();
        let mut position = "0".to_owned();
        let mut wait = "0s";
        while !events.last().is_some_and(|event| event.ends(&last)) {
            let polled = client.poll(SESSION, &position, wait).await.unwrap();
            wait = "10s";
            // One poll has been answered: this reader is there.
            let _ = begun.try_send(());
            assert_eq!(polled.events.last().and_then(Event::id).unwrap_or(&position), polled.position);
            position = polled.position;
            events.extend(polled.events);
        }
        events
    });
    beginning.recv().await.unwrap();
    reader
}

async fn chat(address: SocketAddr, last: String) -> Reader {
    let mut client = GrpcChat::connect(address).await.unwrap();
    client.resume(SESSION, "0").await.unwrap();
    assert_eq!(client.next().await.unwrap().0["recovered"], true);
    tokio::spawn(async move {
        let mut events = Vec::new();
        while !events.last().is_some_and(|event: &Event| event.ends(&last)) {
            events.push(client.next().await.unwrap());
        }
        events
    })
}

/// The events without what differs from run to run: epochs are numbered, deltas in a row joined, the model server's address
/// is named.
fn normal(events: &[Event], model_server: &str) -> Value {
    let epoch = |event: &Event| event.id().unwrap().split_once('-').unwrap().0.parse::<u64>().unwrap();
    let epochs: Vec<u64> = events.iter().map(epoch).collect::<BTreeSet<_>>().into_iter().collect();
    let mut list: Vec<Value> = Vec::new();
    for event in events {
        let mut frame = event.0.clone();
        let number = epochs.binary_search(&epoch(event)).unwrap() + 1;
        frame["id"] = json!(format!("epoch {number}"));
        if let Some(before) = list.last_mut()
            && (&before["type"], &frame["type"]) == (&json!("delta"), &json!("delta"))
        {
            before["text"] = json!(format!("{}{}", before["text"].as_str().unwrap(), event.field("text")));
            continue;
        }
        if event.kind() == "error" {
            let address = model_server.trim_start_matches("http://");
            frame["message"] = json!(event.field("message").replace(address, "MODEL-SERVER"));
        }
        list.push(frame);
    }
    json!(list)
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn compare(name: &str, value: &Value) {
    let text = format!("{}\n", serde_json::to_string_pretty(value).unwrap());
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(golden(name), text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(golden(name)).unwrap();
    assert_eq!(text, expected, "{name} differs; UPDATE_GOLDENS=1 writes it anew, then look at the difference");
}
