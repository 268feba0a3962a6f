use std::future::Future;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use super::*;

/// How long nothing has to come for it to count as nothing.
const NOTHING: Duration = Duration::from_millis(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.unwrap()
}

/// A server that sends back what it gets, each connection after its own greeting.
async fn echo(greeting: u8) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                stream.write_all(&[greeting]).await.unwrap();
                let (mut reader, mut writer) = stream.split();
                drop(tokio::io::copy(&mut reader, &mut writer).await);
                drop(writer.shutdown().await);
            });
        }
    });
    (address, tasks)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

async fn byte(stream: &mut TcpStream) -> std::io::Result<u8> {
    soon(stream.read_u8()).await
}

async fn greeted(proxy: &Proxy, greeting: u8) -> TcpStream {
    let mut stream = connect(proxy).await;
    assert_eq!(byte(&mut stream).await.unwrap(), greeting);
    stream
}

async fn silent(stream: &mut TcpStream) {
    assert!(timeout(NOTHING, stream.read_u8()).await.is_err(), "something came");
}

#[tokio::test]
async fn carries_bytes_and_ends_in_both_directions() {
    let (target, _server) = echo(b'a').await;
    let proxy = Proxy::start(target).await.unwrap();
    let mut stream = greeted(&proxy, b'a').await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let (mut reader, mut writer) = stream.split();
    let mut back = Vec::new();
    let send = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    soon(async { tokio::join!(send, async { reader.read_to_end(&mut back).await.unwrap() }) }).await;
    assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
    soon(async {
        while proxy.open() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn cuts_what_is_open_and_nothing_else() {
    let (target, _server) = echo(b'a').await;
    let proxy = Proxy::start(target).await.unwrap();
    let (mut one, mut two) = (greeted(&proxy, b'a').await, greeted(&proxy, b'a').await);
    assert_eq!(proxy.open(), 2);
    proxy.cut();
    for stream in [&mut one, &mut two] {
        let error = byte(stream).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    greeted(&proxy, b'a').await;
}

#[tokio::test]
async fn refuses_until_it_is_healed() {
    let (target, _server) = echo(b'a').await;
    let proxy = Proxy::start(target).await.unwrap();
    let mut open = greeted(&proxy, b'a').await;
    proxy.refuse(true);
    // The kernel may tell of the reset when connecting, or afterwards.
    let refused = match TcpStream::connect(proxy.address()).await {
        Ok(mut stream) => byte(&mut stream).await.map(drop),
        Err(error) => Err(error),
    };
    assert!(refused.is_err());
    open.write_all(b"x").await.unwrap();
    assert_eq!(byte(&mut open).await.unwrap(), b'x', "open ones go on");
    proxy.heal();
    greeted(&proxy, b'a').await;
}

#[tokio::test]
async fn a_dead_target_resets_its_clients() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let proxy = Proxy::start(nobody).await.unwrap();
    assert!(byte(&mut connect(&proxy).await).await.is_err());
}

#[tokio::test]
async fn a_new_target_is_for_new_connections() {
    let (a, _first) = echo(b'a').await;
    let (b, _second) = echo(b'b').await;
    let proxy = Proxy::start(a).await.unwrap();
    let mut before = greeted(&proxy, b'a').await;
    proxy.set_target(b);
    greeted(&proxy, b'b').await;
    before.write_all(b"x").await.unwrap();
    assert_eq!(byte(&mut before).await.unwrap(), b'x');
}

#[tokio::test]
async fn a_black_hole_holds_everything_and_loses_nothing() {
    let (target, _server) = echo(b'a').await;
    let proxy = Proxy::start(target).await.unwrap();
    let mut open = greeted(&proxy, b'a').await;
    proxy.black_hole();
    open.write_all(b"xy").await.unwrap();
    let mut new = connect(&proxy).await;
    silent(&mut open).await;
    silent(&mut new).await;
    proxy.heal();
    assert_eq!((byte(&mut open).await.unwrap(), byte(&mut open).await.unwrap()), (b'x', b'y'));
    assert_eq!(byte(&mut new).await.unwrap(), b'a');
}

#[tokio::test]
async fn a_hole_can_be_in_one_direction_and_holds_ends_too() {
    let (target, _server) = echo(b'a').await;
    let proxy = Proxy::start(target).await.unwrap();
    let mut open = greeted(&proxy, b'a').await;
    proxy.set_flow(Way::ToClient, Flow { held: true, ..Flow::default() });
    open.write_all(b"x").await.unwrap();
    open.shutdown().await.unwrap();
    silent(&mut open).await;
    proxy.heal();
    assert_eq!(byte(&mut open).await.unwrap(), b'x');
    assert!(byte(&mut open).await.is_err(), "its end");
}

#[tokio::test]
async fn latency_delays_without_mixing() {
    let (target, _server) = echo(b'a').await;
    let proxy = Proxy::start(target).await.unwrap();
    let mut open = greeted(&proxy, b'a').await;
    let latency = Duration::from_millis(200);
    proxy.set_flow(Way::ToTarget, Flow { latency, ..Flow::default() });
    proxy.set_flow(Way::ToClient, Flow { latency: latency / 2, ..Flow::default() });
    let began = Instant::now();
    open.write_all(b"x").await.unwrap();
    silent(&mut open).await;
    // What is sent later with less delay still comes later.
    proxy.set_flow(Way::ToTarget, Flow::default());
    open.write_all(b"y").await.unwrap();
    let both = (byte(&mut open).await.unwrap(), byte(&mut open).await.unwrap());
    assert_eq!(both, (b'x', b'y'));
    assert!(began.elapsed() >= latency + latency / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn bandwidth_is_bounded() {
    let (target, _server) = echo(b'a').await;
    let proxy = Proxy::start(target).await.unwrap();
    let mut open = greeted(&proxy, b'a').await;
    proxy.set_flow(Way::ToTarget, Flow { bytes_per_second: Some(100_000), ..Flow::default() });
    let began = Instant::now();
    let (mut reader, mut writer) = open.split();
    let mut back = vec![0; 30_000];
    soon(async { tokio::join!(writer.write_all(&[7; 30_000]), reader.read_exact(&mut back)) }).await.0.unwrap();
    // The last chunk is paid for after it went through.
    assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
}
