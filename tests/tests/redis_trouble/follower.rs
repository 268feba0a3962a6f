//! Clients that do what clients should, and what they saw.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use chatgateway_tests::client::{Event, HttpClient, Incoming, Turn, WsClient};
use serde_json::json;
use tokio::{task::JoinHandle, time::timeout};

use crate::support::{DEADLINE, until};

/// The same pods, another one first.
pub fn rotated(addresses: &[SocketAddr], by: usize) -> Vec<SocketAddr> {
    let mut rotated = addresses.to_vec();
    rotated.rotate_left(by % addresses.len());
    rotated
}

/// What a client saw of a turn.
#[derive(Debug, Default)]
pub struct Story {
    pub session: String,
    /// Its entries. After a lost position: from where the snapshot said that the log tells the rest.
    pub turn: Turn,
    /// When each of them came.
    pub times: Vec<Instant>,
    /// How often its position was not one of the log any more.
    pub lost: usize,
    /// How often it was told that the session is gone.
    pub gone: usize,
    /// Connections it took.
    pub connections: usize,
    /// The answer, where the turn had ended when a snapshot was taken.
    pub in_snapshot: Option<String>,
}

impl Story {
    /// The answer as the client has it.
    pub fn answer(&self) -> String {
        self.in_snapshot.clone().unwrap_or_else(|| self.turn.answer())
    }

    pub fn count(&self, kind: &str) -> usize {
        self.turn.kinds().iter().filter(|known| **known == kind).count()
    }

    /// Whether nothing came between two moments.
    pub fn is_silent(&self, from: Instant, to: Instant) -> bool {
        !self.times.iter().any(|time| (from..to).contains(time))
    }

    /// Holds that the turn was told once, from one epoch, without a word of trouble.
    pub fn undisturbed(&self) {
        assert_eq!((self.lost, self.gone, self.connections), (0, 0, 1), "{}", self.session);
        assert_eq!((self.count("takeover"), self.count("reset")), (0, 0), "{}", self.session);
    }

    /// Takes an entry if it is the next one: within an epoch numbers count up by one, and each epoch begins at 0.
    fn take(&mut self, event: Event) {
        let id = numbers(event.id().unwrap());
        if let Some(before) = self.turn.ids().last().map(|id| numbers(id)) {
            let follows = if id.0 == before.0 { id.1 == before.1 + 1 } else { id.1 == 0 };
            assert!(follows, "{}: {id:?} came after {before:?}", self.session);
        }
        self.times.push(Instant::now());
        self.turn.events.push(event);
    }
}

/// An id's epoch and number.
pub fn numbers(id: &str) -> (u64, u64) {
    let (epoch, n) = id.split_once('-').unwrap();
    (epoch.parse().unwrap(), n.parse().unwrap())
}

/// A client that reads one turn to its end. It does what clients should: sends again what was refused for now, connects
/// anew (to the next pod) when it is sent away, and takes the snapshot when its position is lost.
pub struct Follower {
    seen: Arc<AtomicUsize>,
    task: JoinHandle<Story>,
}

impl Follower {
    /// Sends the turn at the first of the pods and reads it.
    pub fn send(pods: Vec<SocketAddr>, session: &str, turn: &str) -> Self {
        Self::start(pods, session, turn, true)
    }

    /// Reads the turn from the log's beginning.
    pub fn resume(pods: Vec<SocketAddr>, session: &str, turn: &str) -> Self {
        Self::start(pods, session, turn, false)
    }

    fn start(pods: Vec<SocketAddr>, session: &str, turn: &str, sends: bool) -> Self {
        let seen = Arc::<AtomicUsize>::default();
        let client = Reading {
            pods,
            turn: turn.to_owned(),
            sends,
            seen: seen.clone(),
            story: Story { session: session.to_owned(), ..Story::default() },
        };
        Self { seen, task: tokio::spawn(client.run()) }
    }

    /// Waits until so many pieces of text have come.
    pub async fn has_seen(&self, deltas: usize) {
        until("some text", || async {
            assert!(!self.task.is_finished() || self.seen.load(Relaxed) >= deltas, "the client has ended");
            self.seen.load(Relaxed) >= deltas
        })
        .await;
    }

    /// Pieces of text that have come.
    pub fn deltas(&self) -> usize {
        self.seen.load(Relaxed)
    }

    /// What it saw, when the turn has ended.
    pub async fn story(self) -> Story {
        let story = timeout(2 * DEADLINE, self.task).await.expect("a turn's end in time");
        match story {
            Ok(story) => story,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

struct Reading {
    pods: Vec<SocketAddr>,
    turn: String,
    /// The turn is not known to be accepted yet.
    sends: bool,
    seen: Arc<AtomicUsize>,
    story: Story,
}

impl Reading {
    async fn run(mut self) -> Story {
        loop {
            let pod = self.pods[self.story.connections % self.pods.len()];
            self.story.connections += 1;
            let Ok(mut client) = WsClient::connect(pod).await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            self.ask(&mut client).await;
            if self.read(&mut client, pod).await {
                return self.story;
            }
        }
    }

    async fn ask(&self, client: &mut WsClient) {
        let session = &self.story.session;
        // A connection that breaks meanwhile shows when it is read.
        drop(if self.sends {
            client.send(session, &self.turn, "hello").await
        } else {
            client.resume(session, self.story.turn.ids().last().unwrap_or(&"0")).await
        });
    }

    /// Whether the turn has ended; otherwise another connection is needed.
    async fn read(&mut self, client: &mut WsClient, pod: SocketAddr) -> bool {
        loop {
            let text = match timeout(DEADLINE, client.incoming()).await.expect("a word of the gateway").unwrap() {
                Incoming::Text(text) => text,
                Incoming::Closed(_) => return false,
            };
            let event = Event(serde_json::from_str(&text).unwrap());
            if event.kind() == "resumed" && event.0["recovered"] == json!(false) {
                if self.start_again(client, pod).await {
                    return true;
                }
                continue;
            }
            match event.kind() {
                "accepted" => self.sends = false,
                "error" if event.id().is_none() => {
                    if event.field("code") == "not_found" {
                        self.story.gone += 1;
                        return true;
                    }
                    assert_eq!(event.field("code"), "store_unavailable", "{event:?}");
                    let pause = event.0["retry_after_ms"].as_u64().unwrap();
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                    self.ask(client).await;
                }
                _ if event.id().is_some() && event.field("turn") == self.turn => {
                    self.seen.fetch_add(usize::from(event.kind() == "delta"), Relaxed);
                    let ends = event.ends(&self.turn);
                    self.story.take(event);
                    if ends {
                        return true;
                    }
                }
                _ => {}
            }
        }
    }

    /// Forgets what it has, and takes the snapshot: the turn has ended in it, or the log tells it from the snapshot's position.
    async fn start_again(&mut self, client: &mut WsClient, pod: SocketAddr) -> bool {
        self.story.lost += 1;
        assert!(self.story.lost < 10, "{}: sent in circles", self.story.session);
        self.story.turn.events.clear();
        self.story.times.clear();
        let path = format!("/v1/sessions/{}", self.story.session);
        loop {
            let reply = HttpClient::new(pod).get(&path).await.unwrap();
            if reply.status == 200 {
                let snapshot = reply.json().unwrap();
                let ours = snapshot["turns"].as_array().unwrap().iter().find(|turn| turn["turn"] == self.turn);
                if let Some(ended) = ours.filter(|turn| turn["state"] == "done") {
                    self.story.in_snapshot = Some(ended["answer"].as_str().unwrap().to_owned());
                    return true;
                }
                client.resume(&self.story.session, snapshot["position"].as_str().unwrap()).await.unwrap();
                return false;
            }
            assert_eq!(reply.status, 503, "{}", reply.text());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
