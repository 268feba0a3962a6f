//! Gateways in front of one model server, and a look at their Redis.

use std::{
    future::Future,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use chatgateway_proto::v1::SendRequest;
use chatgateway_redis_server::RedisServer;
use chatgateway_tests::{
    client::{Event, HttpClient, WsClient, grpc},
    process::{GatewayProcess, Process, dataplane_program},
    simulator::{Behaviour, Simulator},
};
use serde_json::{Value, json};

pub use crate::follower::{Follower, Story, numbers, rotated};

/// How long anything may take that a test waits for. Generous: tests share few cores.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Within what a turn that the store cannot take is refused: three tries of a second, and what a busy machine adds.
pub const REFUSAL: Duration = Duration::from_secs(6);

/// The settings for one server.
pub fn standalone(endpoint: impl ToString) -> Value {
    json!({"endpoints": [endpoint.to_string()]})
}

/// What the model server answers with so many tokens.
pub fn answer(tokens: u32) -> String {
    (0..tokens).map(|token| format!("{token} ")).collect()
}

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Gateway processes in front of one model server.
pub struct Gateways {
    pub simulator: Simulator,
    pub pods: Vec<GatewayProcess>,
    pub tokens: u32,
    /// The rate limits of each process.
    pub limits: Value,
    prefill: bool,
}

impl Gateways {
    /// No process yet. Answers have so many tokens, a hundred a second; the model server cannot continue partial ones.
    pub fn new(tokens: u32) -> Self {
        Self::with(tokens, false)
    }

    /// The same; whether the model server can continue partial answers.
    pub fn with(tokens: u32, prefill: bool) -> Self {
        let behaviour = Behaviour { tokens, tokens_per_second: 100.0, ..Behaviour::default() };
        Self { simulator: Simulator::with(behaviour).unwrap(), pods: Vec::new(), tokens, limits: json!([]), prefill }
    }

    /// As many processes on one store.
    pub async fn start(tokens: u32, count: usize, redis: &Value) -> Self {
        let mut all = Self::new(tokens);
        for _ in 0..count {
            all.add(redis).await;
        }
        all.acquainted().await;
        all
    }

    fn config(&self, redis: &Value) -> Value {
        json!({
            "upstreams": [{"name": "sim", "type": "OpenAI", "openAI": {
                "url": self.simulator.openai_url(), "model": "sim", "prefill": self.prefill,
            }, "pool": {"maxConcurrent": 100}}],
            "sessions": {"store": {"type": "Redis", "redis": redis}},
            "rateLimits": self.limits,
        })
    }

    /// One more process.
    pub async fn add(&mut self, redis: &Value) {
        self.pods.push(GatewayProcess::start(&self.config(redis)).await.unwrap());
    }

    /// One that is not waited for.
    pub fn add_unready(&self, redis: &Value) -> Unready {
        Unready::start(&self.config(redis))
    }

    /// Waits until each process knows of the others.
    pub async fn acquainted(&self) {
        for pod in &self.pods {
            until("the pods know each other", || async {
                pod.status().await.unwrap()["peers"].as_u64() == Some(self.pods.len() as u64 - 1)
            })
            .await;
        }
    }

    /// Where they serve HTTP.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.pods.iter().map(GatewayProcess::http).collect()
    }

    /// An HTTP client of one.
    pub fn http(&self, pod: usize) -> HttpClient {
        HttpClient::new(self.pods[pod].http())
    }

    /// An HTTP client of the admin port of one.
    pub fn http_admin(&self, pod: usize) -> HttpClient {
        HttpClient::new(self.pods[pod].admin())
    }

    /// The whole answer.
    pub fn answer(&self) -> String {
        answer(self.tokens)
    }

    /// Begins the turn `t` in each of the sessions `s0`, `s1`…, each by its own client, the pods in turn; waits until each
    /// has seen some text.
    pub async fn talk(&self, sessions: usize) -> Vec<Follower> {
        let addresses = self.addresses();
        let followers: Vec<_> =
            (0..sessions).map(|n| Follower::send(rotated(&addresses, n), &format!("s{n}"), "t")).collect();
        for follower in &followers {
            follower.has_seen(10).await;
        }
        followers
    }

    /// Waits for the ends, and holds that each client saw the whole answer once, as the log and the history have it.
    pub async fn all_whole(&self, followers: Vec<Follower>) -> Vec<Story> {
        let mut stories = Vec::new();
        for follower in followers {
            let story = follower.story().await;
            self.whole(&story).await;
            stories.push(story);
        }
        stories
    }

    /// Holds that what a client saw is the whole answer, and that others who ask are told the same.
    pub async fn whole(&self, story: &Story) {
        let session = &story.session;
        let end = story.turn.events.last().map(Event::kind);
        assert!(end == Some("done") || story.in_snapshot.is_some(), "{session}: {end:?}");
        assert_eq!(story.answer(), self.answer(), "{session}: what a client read");
        // None where the log was lost with the turn's beginning.
        assert!(story.count("turn") <= 1, "{session}: begun twice");
        let pod = story.turn.events.len() % self.pods.len();
        let told = self.http(pod).get(&format!("/v1/sessions/{session}")).await.unwrap().json().unwrap();
        let turns: Vec<_> = told["turns"].as_array().unwrap().iter().filter(|turn| turn["turn"] == "t").collect();
        assert_eq!(turns.len(), 1, "{session}: {told}");
        assert_eq!(turns[0]["answer"], json!(self.answer()), "{session}: the history");
        let again = Follower::resume(rotated(&self.addresses(), pod), session, "t").story().await;
        assert_eq!(again.answer(), self.answer(), "{session}: who reads it afterwards");
        if again.in_snapshot.is_none() && story.in_snapshot.is_none() {
            assert_eq!(again.turn.ids().last(), story.turn.ids().last(), "{session}: one end");
        }
    }

    /// Holds that a new turn is refused, soon and clearly, on every transport.
    pub async fn refuses(&self, pod: usize, session: &str) {
        let started = Instant::now();
        let by_http = async {
            let body = json!({"turn": "h", "text": "hello"});
            let reply = self.http(pod).post(&format!("/v1/sessions/{session}-h/turns"), &body).await.unwrap();
            assert_eq!(reply.status, 503, "{}", reply.text());
            assert!(reply.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
            assert_eq!(reply.json().unwrap()["code"], "store_unavailable");
        };
        let by_ws = async {
            let mut client = WsClient::connect(self.pods[pod].http()).await.unwrap();
            client.send(&format!("{session}-w"), "w", "hello").await.unwrap();
            let error = client.next_of("error").await.unwrap();
            assert_eq!((error.field("code"), error.id()), ("store_unavailable", None));
            assert_eq!(error.0["retryable"], json!(true));
            assert!(error.0["retry_after_ms"].as_u64().unwrap() > 0);
        };
        let by_grpc = async {
            let mut client = grpc(self.pods[pod].grpc()).await.unwrap();
            let request = SendRequest {
                session: format!("{session}-g"),
                turn: "g".to_owned(),
                text: Some("hello".to_owned()),
                ..SendRequest::default()
            };
            let refused = match client.send(request).await {
                Err(status) => status,
                Ok(answer) => answer.into_inner().message().await.unwrap_err(),
            };
            assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
        };
        tokio::join!(by_http, by_ws, by_grpc);
        assert!(started.elapsed() < REFUSAL, "refused only after {:?}", started.elapsed());
    }

    /// Sends a turn until it is taken, as a client does that was told to try again, and reads it to its end.
    pub async fn is_taken(&self, pod: usize, session: &str, turn: &str) -> Story {
        let mut addresses = self.addresses();
        addresses.rotate_left(pod);
        Follower::send(addresses, session, turn).story().await
    }
}

/// A gateway process that is not expected to be ready.
pub struct Unready {
    pub process: Process,
    admin: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Unready {
    fn start(config: &Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        let mut config = config.clone();
        config["listeners"] = json!({"bind": "127.0.0.1", "httpPort": 0, "grpcPort": 0, "adminPort": 0});
        config["log"] = json!({"format": "json"});
        std::fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(dataplane_program().unwrap());
        command.arg("run").arg("--config").arg(&file);
        let process = Process::start(command).unwrap();
        let admin = process.wait_for_line("its admin port", |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            line["fields"]["admin"].as_str()?.parse().ok()
        });
        Self { process, admin: admin.unwrap(), _directory: directory }
    }

    /// `/readyz`: whether it is ready, and its words.
    pub async fn ready(&self) -> (bool, String) {
        let reply = HttpClient::new(self.admin).get("/readyz").await.unwrap();
        (reply.status.is_success(), reply.text())
    }

    /// Waits until it is not ready and says why in these words.
    pub async fn says(&self, words: &str) {
        until(&format!("it says {words:?}"), || async {
            let (ready, said) = self.ready().await;
            assert!(!ready, "it is ready: {said}");
            said.contains(words)
        })
        .await;
    }
}

/// A counter of a server's INFO.
pub fn counter(server: &RedisServer, name: &str) -> u64 {
    server.info("stats", name).and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}

/// How often a command was carried out or refused.
pub fn calls(server: &RedisServer, command: &str) -> u64 {
    let stats = server.info("commandstats", &format!("cmdstat_{command}")).unwrap_or_default();
    let named = |part: &str| part.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let counted = stats.split(',').filter_map(named).filter(|(name, _)| name == "calls" || name == "rejected_calls");
    counted.filter_map(|(_, value)| value.trim().parse::<u64>().ok()).sum()
}

/// The ids of a session's log in Redis; each follows the one before, the first one of an epoch by its own word.
pub fn chain(server: &RedisServer, session: &str) -> Vec<String> {
    let script = "local out = {} for _, e in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do local p = '' \
                  for i = 1, #e[2], 2 do if e[2][i] == 'p' then p = e[2][i + 1] end end \
                  out[#out + 1] = e[1] .. ' ' .. p end return out";
    let lines = server.cli(&["EVAL", script, "1", &key("log", session)]);
    let mut ids: Vec<String> = Vec::new();
    for line in lines.lines() {
        let (id, follows) = line.split_once(' ').unwrap_or((line, ""));
        let (epoch, n) = numbers(id);
        if let Some(before) = ids.last() {
            let expected = if n == 0 { follows.to_owned() } else { format!("{epoch}-{}", n - 1) };
            assert_eq!(&expected, before, "{session}: what {id} follows");
        }
        ids.push(id.to_owned());
    }
    ids
}

/// One of a session's keys.
pub fn key(kind: &str, session: &str) -> String {
    format!("{kind}:{{default/anonymous/{session}}}")
}

/// A file that a test writes and a gateway reads.
pub struct Secret {
    pub path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Secret {
    pub fn new(content: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, content).unwrap();
        Self { path, _directory: directory }
    }

    /// Replaces it as a whole, as a cluster does with mounted secrets.
    pub fn replace(&self, content: &str) {
        let next = self.path.with_extension("next");
        std::fs::write(&next, content).unwrap();
        std::fs::rename(next, &self.path).unwrap();
    }
}
