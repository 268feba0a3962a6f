//! Rate limits that pods share in a real Redis, and what they do while it is away.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use axum::body::Body;
use chatgateway_config::{RedisMode, RedisSettings, Settings, StoreSettings};
use chatgateway_dataplane::{
    gateway::{Caller, Gateway},
    limiter::Limiter,
    metrics::LimitCounts,
    store::{Store, redis::RedisStore},
    transport::http::router,
};
use chatgateway_redis_server::{Cluster, Fsync, Options, RedisServer};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::settings::{PATIENCE, connected, settings, until};

fn limits(text: &str) -> Settings {
    Settings::parse(&format!("rateLimits: {text}")).unwrap()
}

async fn limiter(redis: &RedisSettings, text: &str) -> (Arc<Limiter>, Arc<RedisStore>) {
    let (store, events) = connected(redis, chatgateway_core::log::PodId(rand::random())).await;
    tokio::spawn(async move {
        let mut events = events;
        while events.recv().await.is_some() {}
    });
    let shared: Arc<dyn Store> = store.clone();
    (Limiter::new(&limits(text), &shared, LimitCounts::default()), store)
}

async fn admitted(limiter: &Arc<Limiter>) -> bool {
    let caller = Caller::anonymous(IpAddr::V4(Ipv4Addr::LOCALHOST));
    limiter.request(&caller, b"{}", 1).await.is_ok()
}

/// Asks for as much as pods can, for so long; returns how many were admitted, and how many were asked for.
async fn flood(limiters: &[Arc<Limiter>], length: Duration, each: usize) -> (u64, u64) {
    let counts = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let until = Instant::now() + length;
    let mut tasks = Vec::new();
    for limiter in limiters {
        for _ in 0..each {
            let (limiter, counts) = (limiter.clone(), counts.clone());
            tasks.push(tokio::spawn(async move {
                while Instant::now() < until {
                    counts.0.fetch_add(u64::from(admitted(&limiter).await), Relaxed);
                    counts.1.fetch_add(1, Relaxed);
                    tokio::task::yield_now().await;
                }
            }));
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    (counts.0.load(Relaxed), counts.1.load(Relaxed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_limit_over_four_pods_is_one_limit() {
    let server = RedisServer::start(Options::default()).unwrap();
    let redis = settings(RedisMode::Standalone, &[server.endpoint()]);
    let limit = "[{per: Gateway, requestsPerSecond: 500, burst: 200}]";
    let mut pods = Vec::new();
    for _ in 0..4 {
        pods.push(limiter(&redis, limit).await);
    }
    let limiters: Vec<_> = pods.iter().map(|(limiter, _)| limiter.clone()).collect();
    let began = Instant::now();
    let (admitted, asked) = flood(&limiters, Duration::from_secs(2), 16).await;
    let most = 200.0 + 500.0 * began.elapsed().as_secs_f64();
    assert!((admitted as f64) <= most, "{admitted} of at most {most}");
    assert!(admitted as f64 >= 0.97 * (200.0 + 1_000.0), "{admitted} admitted, {asked} asked for");
    assert!(asked > 2 * admitted, "not many were refused: {asked} asked for");
    // What gathers while a call is under way goes with the next one.
    let commands: u64 = pods.iter().map(|(_, store)| store.stats().commands).sum();
    assert!(commands < asked / 2, "{commands} commands for {asked} decisions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_four_pods_admit_as_much_together() {
    let server = RedisServer::start(Options { appendonly: Some(Fsync::Always), ..Options::default() }).unwrap();
    let redis = settings(RedisMode::Standalone, &[server.endpoint()]);
    let mut pods = Vec::new();
    for _ in 0..4 {
        let (limiter, store) = limiter(&redis, "[{per: Gateway, requestsPerSecond: 400, burst: 400}]").await;
        limiter.set_pods(4);
        pods.push((limiter, store));
    }
    let limiters: Vec<_> = pods.iter().map(|(limiter, _)| limiter.clone()).collect();
    let began = Instant::now();
    let (before, _) = flood(&limiters, Duration::from_secs(1), 4).await;
    server.kill9();
    let (during, _) = flood(&limiters, Duration::from_secs(3), 4).await;
    let most = 400.0 * 1.05 + 1.05 * 400.0 * began.elapsed().as_secs_f64();
    let all = (before + during) as f64;
    assert!(all <= most && all >= 0.95 * (400.0 + 1_600.0), "{before} + {during} of {most}");
    // And when it is back: nothing is admitted twice since its buckets have filled meanwhile.
    server.start_again().unwrap();
    for (_, store) in &pods {
        until("the store is connected again", || store.trouble().is_none()).await;
    }
    let (after, _) = flood(&limiters, Duration::from_secs(1), 4).await;
    let most = 400.0 * 1.05 + 1.05 * 400.0 * began.elapsed().as_secs_f64();
    let all = all + after as f64;
    assert!(all <= most, "{before} + {during} + {after} of {most}");
    assert!(after > 200, "{after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_the_limits_of_a_gateway_together() {
    let cluster = Cluster::start(3).unwrap();
    let redis = settings(RedisMode::Cluster, &cluster.endpoints());
    let limit = "[{per: Gateway, requestsPerMinute: 1, burst: 5}, {per: User, tokensPerMinute: 1, burst: 100000}]";
    let (one, first) = limiter(&redis, limit).await;
    let (other, second) = limiter(&redis, limit).await;
    assert!(first.trouble().is_none() && second.trouble().is_none());
    let mut count = 0;
    for limiter in [&one, &other].into_iter().cycle().take(20) {
        count += u32::from(admitted(limiter).await);
    }
    assert_eq!(count, 5);
}

/// A pod of a gateway on this Redis.
struct Pod {
    gateway: Arc<Gateway>,
}

impl Pod {
    fn start(redis: &RedisServer, limits: &str) -> Self {
        let text = format!(
            "{{upstreams: [{{name: demo, type: Demo, demo: {{tokenDelay: 50ms, answerBytes: 4000}}}}], rateLimits: {limits}, \
             drain: {{acceptFloor: 0s, reconnectSpread: 0s, timeout: 10s}}}}"
        );
        let mut config = Settings::parse(&text).unwrap();
        config.sessions.store = StoreSettings::Redis(settings(RedisMode::Standalone, &[redis.endpoint()]));
        Self { gateway: Gateway::start(config).unwrap() }
    }

    async fn ready(&self) {
        until("the store is connected", || self.gateway.store().trouble().is_none()).await;
    }

    async fn post(&self, path: &str, body: Value) -> http::Response<Body> {
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .header("prefer", "wait=0")
            .body(Body::from(body.to_string()))
            .unwrap();
        router(self.gateway.clone()).oneshot(request).await.unwrap()
    }

    async fn turn(&self, session: &str, turn: &str, max_tokens: u32) -> http::Response<Body> {
        let body = json!({"turn": turn, "text": "hello", "options": {"max_tokens": max_tokens}});
        self.post(&format!("/v1/sessions/{session}/turns"), body).await
    }
}

fn left(response: &http::Response<Body>, unit: &str) -> u64 {
    let header = response.headers().get(format!("x-ratelimit-remaining-{unit}")).expect("limits are told");
    header.to_str().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_is_counted_once_whichever_pods_it_reaches() {
    let redis = RedisServer::start(Options::default()).unwrap();
    let limits = "[{per: User, requestsPerMinute: 1, burst: 3}, {per: User, tokensPerMinute: 1, burst: 10000}]";
    let (a, b) = (Pod::start(&redis, limits), Pod::start(&redis, limits));
    a.ready().await;
    b.ready().await;
    let first = a.turn("s", "t", 1_000).await;
    assert_eq!((first.status().as_u16(), left(&first, "requests"), left(&first, "tokens")), (202, 2, 8_998));
    for pod in [&b, &a, &b] {
        let again = pod.turn("s", "t", 1_000).await;
        assert_eq!((again.status().as_u16(), left(&again, "requests"), left(&again, "tokens")), (202, 2, 8_998));
    }
    // Another one waits behind it, reserved at the other pod; then both are cancelled.
    assert_eq!(left(&b.turn("s", "waits", 2_000).await, "tokens"), 6_996);
    for turn in ["waits", "t"] {
        let cancelled = b.post(&format!("/v1/sessions/s/turns/{turn}/cancel"), json!({})).await;
        assert_eq!(cancelled.status(), 202);
    }
    until("both have ended", || a.gateway.running_turns() + b.gateway.running_turns() == 0).await;
    let last = a.turn("u", "x", 100).await;
    assert_eq!(left(&last, "requests"), 0);
    assert!((9_700..9_898).contains(&left(&last, "tokens")), "{}", left(&last, "tokens"));
    let refused = b.turn("u", "y", 100).await;
    assert_eq!(refused.status(), 429);
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["code"], "rate_limited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_a_turn_over_settles_what_it_took() {
    let redis = RedisServer::start(Options::default()).unwrap();
    let limits = "[{per: User, tokensPerMinute: 1, burst: 10000}]";
    let (a, b) = (Pod::start(&redis, limits), Pod::start(&redis, limits));
    a.ready().await;
    b.ready().await;
    assert_eq!(left(&a.turn("s", "t", 5_000).await, "tokens"), 4_998);
    until("the turn runs", || a.gateway.running_turns() == 1).await;
    // The drain hands it over as soon as the other one is known.
    a.gateway.start_drain();
    until("the other pod goes on", || b.gateway.running_turns() == 1).await;
    assert!(left(&b.turn("ask", "1", 1).await, "tokens") < 5_000, "handing over gives nothing back");
    assert_eq!(b.post("/v1/sessions/s/turns/t/cancel", json!({})).await.status(), 202);
    let deadline = Instant::now() + PATIENCE;
    for n in 2.. {
        let left = left(&b.turn(&format!("ask{n}"), "t", 1).await, "tokens");
        if left > 9_000 {
            break;
        }
        assert!(Instant::now() < deadline, "{left} are left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
