//! Several equal servers behind one upstream.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::AtomicBool,
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::*;

/// A server that says its number, and closes without an answer while it is ill.
async fn numbered(number: usize, ill: Arc<AtomicBool>) -> Fake {
    Fake::start(move |met| {
        let ill = ill.clone();
        async move { if ill.load(SeqCst) { None } else { say(met, &number.to_string()).await } }
    })
    .await
}

async fn three() -> (Vec<Fake>, Arc<AtomicBool>, UpstreamSettings) {
    let ill = Arc::<AtomicBool>::default();
    let mut fakes = Vec::new();
    for number in 0..3 {
        fakes.push(numbered(number, if number == 1 { ill.clone() } else { Arc::default() }).await);
    }
    let urls: Vec<_> = fakes.iter().map(Fake::url).collect();
    let mut settings = equal(&urls);
    settings.breaker.open_for = Duration::from_millis(300);
    (fakes, ill, settings)
}

#[tokio::test]
async fn calls_go_to_all_endpoints_and_each_keeps_its_connections() {
    let (fakes, _, settings) = three().await;
    let upstreams = upstreams([settings]);
    for _ in 0..60 {
        assert_eq!(read(upstreams.ask(ask())).await.1, done("stop"));
        all_free(&upstreams).await;
    }
    for fake in &fakes {
        assert!(fake.calls() >= 5, "{}", fake.calls());
        assert!(fake.connections.load(SeqCst) < fake.calls(), "connections are used again");
    }
}

#[tokio::test]
async fn an_endpoint_that_dies_fails_no_turn_and_gets_its_calls_back_when_it_is_well() {
    let (fakes, ill, settings) = three().await;
    let upstreams = upstreams([settings]);
    for _ in 0..30 {
        assert_eq!(read(upstreams.ask(ask())).await.1, done("stop"));
    }
    ill.store(true, SeqCst);
    let before = fakes[1].calls();
    let mut asked = 0;
    while upstreams.status()[0].endpoints[1].opened == 0 {
        asked += 1;
        assert!(asked < 500, "its breaker never opened");
        let (text, end) = read(upstreams.ask(ask())).await;
        assert_eq!((text == "1", end), (false, done("stop")));
    }
    // With the calls before it has made more than 20 by then, of which it looks at the failures' share.
    let status = &upstreams.status()[0];
    assert!((8..=20).contains(&status.failures), "{}", status.failures);
    assert_eq!((status.retries, status.budget_refusals), (status.failures, 0));
    // A call over a connection that the server has just closed is made once more at the same endpoint.
    assert!(fakes[1].calls() - before <= 2 * 20);
    ill.store(false, SeqCst);
    let back = async {
        while breakers(&upstreams) != ["closed"; 3] {
            assert_eq!(read(upstreams.ask(ask())).await.1, done("stop"));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, back).await.expect("it gets its calls back");
    let before = fakes[1].calls();
    for _ in 0..30 {
        assert_eq!(read(upstreams.ask(ask())).await.1, done("stop"));
    }
    assert!(fakes[1].calls() > before);
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_costs_no_budget() {
    let (fakes, _, mut settings) = three().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    settings.endpoints.further[0] = format!("http://{nobody}/v1");
    settings.breaker = chatgateway_config::BreakerSettings { window: 1_000, min_calls: 1_000, ..settings.breaker };
    settings.retries.budget_percent = 0;
    let upstreams = upstreams([settings]);
    for _ in 0..100 {
        assert_eq!(read(upstreams.ask(ask())).await.1, done("stop"));
    }
    assert!(upstreams.status()[0].retries > 10);
    assert_eq!((fakes[0].calls() + fakes[2].calls(), upstreams.status()[0].budget_refusals), (100, 0));
}

#[tokio::test]
async fn where_no_endpoint_can_be_called_the_next_upstream_answers_at_once() {
    let (_, ill) = ((), Arc::new(AtomicBool::new(true)));
    let fake = numbered(1, ill).await;
    let mut settings = openai(&fake.url());
    settings.breaker.min_calls = 4;
    let alone = upstreams([settings.clone()]);
    for _ in 0..4 {
        assert_eq!(failure(alone.ask(ask())).await.0, ErrorCode::UpstreamUnavailable);
    }
    let calls = fake.calls();
    let (_, end) = read(alone.ask(ask())).await;
    let UpstreamEvent::Failed { code, message, retry_after_ms } = end else { panic!("{end:?}") };
    assert_eq!(message, "the model server m failed too often of late; try again later");
    assert!(code == ErrorCode::CircuitOpen && retry_after_ms.is_some_and(|ms| (4_000..=5_000).contains(&ms)));
    assert_eq!((fake.calls(), alone.status()[0].circuit_refusals), (calls, 1));
    assert_eq!(alone.door("s", None).err().unwrap().code, ErrorCode::CircuitOpen);
    let well = numbered(2, Arc::default()).await;
    let mut second = openai(&well.url());
    second.name = "second".into();
    let both = alone.renewed(&Settings { upstreams: vec![settings, second], ..Settings::default() }).unwrap();
    assert_eq!(read(both.ask(ask())).await.0, "2");
    assert!(both.door("s", None).is_ok());
    assert_eq!(fake.calls(), calls);
}

#[tokio::test]
async fn a_session_with_affinity_stays_at_its_endpoint() {
    let (_fakes, _, mut settings) = three().await;
    settings.endpoints.session_affinity = true;
    let upstreams = upstreams([settings]);
    let mut homes: HashMap<String, String> = HashMap::new();
    for _ in 0..3 {
        for session in 0..12 {
            let session = format!("s{session}");
            let (home, _) = read(upstreams.ask(ask_of(&session, "hello"))).await;
            assert_eq!(*homes.entry(session).or_insert_with(|| home.clone()), home);
        }
    }
    let used: std::collections::HashSet<_> = homes.values().collect();
    assert!(used.len() > 1, "{homes:?}");
}

/// Answers as the test says.
#[derive(Default)]
struct Names(Mutex<Vec<IpAddr>>);

impl Resolve for Names {
    fn lookup(&self, host: &str, _: u16) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        assert_eq!(host, "model.test");
        let found = self.0.lock().clone();
        let answer = if found.is_empty() { Err(io::Error::other("no such name")) } else { Ok(found) };
        Box::pin(std::future::ready(answer))
    }
}

/// A server at 127.0.0.`last` that says that number and the host it was called by, the second word when it is let to.
async fn at(last: u8, port: u16, hold: Arc<tokio::sync::Semaphore>) -> Fake {
    let serve = move |mut met: Met| {
        let hold = hold.clone();
        async move {
            let host = met.head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or("none").to_owned();
            met.write(STREAM).await;
            met.word(&format!("{last} {host}")).await;
            hold.acquire().await.unwrap().forget();
            met.finish().await;
            Some(met)
        }
    };
    Fake::start_at((Ipv4Addr::new(127, 0, 0, last), port).into(), serve).await
}

#[tokio::test]
async fn each_address_of_a_name_is_an_endpoint_and_addresses_come_and_go() {
    let hold = Arc::new(tokio::sync::Semaphore::new(0));
    let one = at(1, 0, hold.clone()).await;
    let port = one.address.port();
    let two = at(2, port, hold.clone()).await;
    let address = |last| IpAddr::from(Ipv4Addr::new(127, 0, 0, last));
    let names = Arc::new(Names::default());
    *names.0.lock() = vec![address(1)];
    let settings = Settings { upstreams: vec![openai(&format!("http://model.test:{port}/v1"))], ..Settings::default() };
    let upstreams = Upstreams::with_resolver(&settings, names.clone()).unwrap();
    let server = upstreams.list[0].server().unwrap().clone();
    let endpoints = || -> Vec<_> { server.endpoints().into_iter().map(|e| (e.endpoint, e.leaving)).collect() };
    let named = |last: u8| format!("http://model.test:{port}/v1 at 127.0.0.{last}");
    server.look().await;
    assert_eq!(endpoints(), [(named(1), false)]);
    let mut running = upstreams.ask(ask());
    assert_eq!(text(&mut running).await, format!("1 model.test:{port}"), "the name stays in the request");

    // Another one comes.
    *names.0.lock() = vec![address(2), address(1)];
    server.look().await;
    assert_eq!(endpoints(), [(named(1), false), (named(2), false)]);
    let mut second = upstreams.ask(ask());
    let mut third = upstreams.ask(ask());
    let mut said = [text(&mut second).await, text(&mut third).await];
    said.sort();
    assert!(said[1].starts_with('2'), "least in flight of two: {said:?}");

    // The first one goes. It ends what it has, and gets nothing more.
    *names.0.lock() = vec![address(2)];
    server.look().await;
    assert_eq!(endpoints(), [(named(1), true), (named(2), false)]);
    let calls = one.calls();
    hold.add_permits(100);
    assert_eq!(read(running).await.1, done("stop"));
    assert_eq!((read(second).await.1, read(third).await.1), (done("stop"), done("stop")));
    for _ in 0..10 {
        assert!(read(upstreams.ask(ask())).await.0.starts_with('2'));
    }
    assert_eq!((one.calls(), endpoints()), (calls, vec![(named(2), false)]));

    // A name service that is away changes nothing.
    names.0.lock().clear();
    server.look().await;
    assert_eq!(endpoints(), [(named(2), false)]);
    assert!(two.calls() >= 11);
}

#[tokio::test]
async fn a_host_is_one_endpoint_where_that_is_meant() {
    let fake = numbered(7, Arc::default()).await;
    let port = fake.address.port();
    for (url, discovery) in [
        (format!("http://127.0.0.1:{port}/v1"), None),
        (format!("http://localhost:{port}/v1"), None),
        (format!("http://localhost:{port}/v1"), Some(chatgateway_config::Discovery::Host)),
    ] {
        let mut settings = openai(&url);
        settings.endpoints.discovery = discovery;
        // This one would panic, were it asked.
        let settings = Settings { upstreams: vec![settings], ..Settings::default() };
        let upstreams = Upstreams::with_resolver(&settings, Arc::new(Names::default())).unwrap();
        let server = upstreams.list[0].server().unwrap().clone();
        server.look().await;
        assert_eq!(read(upstreams.ask(ask())).await.0, "7");
        assert_eq!(server.endpoints().len(), 1);
        assert_eq!(server.endpoints()[0].endpoint, url);
    }
}
