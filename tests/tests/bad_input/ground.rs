//! Where abuse takes place: a gateway, a bystander who chats meanwhile, and an eye on the process's memory.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use chatgateway_tests::{
    client::{WsClient, in_time},
    process::GatewayProcess,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
};

/// How many times what the abuser sent the gateway's memory may grow by.
const ASYMMETRY: u64 = 10;

/// Growth that says nothing: the allocator's own pages, the bystander's session, the log's lines.
const FLOOR_BYTES: u64 = 16 * 1024 * 1024;

/// The longest a bystander's turn may take. Tests share the machine with others; what is meant is "not blocked".
const BYSTANDER_PATIENCE: Duration = Duration::from_secs(3);

/// Turns that make the process's memory what it is in use, before it is measured.
const WARM_UP_TURNS: usize = 50;

/// A gateway under abuse.
pub struct Ground {
    pub gateway: GatewayProcess,
    stop: watch::Sender<bool>,
    bystander: JoinHandle<anyhow::Result<Watched>>,
    rss_before: u64,
}

struct Watched {
    turns: usize,
    slowest: Duration,
}

impl Ground {
    /// The built-in model at once, a header timeout of one second.
    pub async fn new() -> Self {
        Self::with(json!({})).await
    }

    /// The same with further sections of the configuration.
    pub async fn with(further: Value) -> Self {
        let mut config = json!({
            "upstreams": [{"name": "demo", "type": "Demo", "demo": {"tokenDelay": "0s"}}],
            "limits": {"headerTimeout": "1s"},
        });
        for (name, section) in further.as_object().into_iter().flatten() {
            config[name] = section.clone();
        }
        let gateway = GatewayProcess::start(&config).await.unwrap();
        let mut client = WsClient::connect(gateway.http()).await.unwrap();
        for _ in 0..WARM_UP_TURNS {
            client.ask("bystander", "warm up").await.unwrap();
        }
        let rss_before = gateway.rss_bytes().unwrap();
        // The peak counts from here on.
        std::fs::write(format!("/proc/{}/clear_refs", gateway.pid()), "5").unwrap();
        let (stop, stopped) = watch::channel(false);
        let bystander = tokio::spawn(watch(client, stopped));
        Self { gateway, stop, bystander, rss_before }
    }

    pub fn http(&self) -> SocketAddr {
        self.gateway.http()
    }

    pub fn grpc(&self) -> SocketAddr {
        self.gateway.grpc()
    }

    /// The abuse is over; `sent_bytes` is what the abuser sent in all.
    pub async fn finish(self, sent_bytes: u64) {
        self.stop.send_replace(true);
        let watched = in_time("the bystander's last turn", self.bystander).await.unwrap().unwrap().unwrap();
        assert!(watched.turns > 0, "the bystander had no turn");
        assert!(watched.slowest < BYSTANDER_PATIENCE, "a bystander's turn took {:?}", watched.slowest);
        let grown = peak_rss(self.gateway.pid()).saturating_sub(self.rss_before);
        let allowed = FLOOR_BYTES.max(ASYMMETRY * sent_bytes);
        assert!(grown <= allowed, "memory grew by {grown} bytes for {sent_bytes} sent; {allowed} are allowed");
    }
}

/// Chats until told to stop, and once more.
async fn watch(mut client: WsClient, stopped: watch::Receiver<bool>) -> anyhow::Result<Watched> {
    let mut watched = Watched { turns: 0, slowest: Duration::ZERO };
    loop {
        let last = *stopped.borrow();
        let start = Instant::now();
        let text = format!("turn {}", watched.turns);
        let turn = client.ask("bystander", &text).await?;
        anyhow::ensure!(turn.end()?.kind() == "done", "the bystander's turn ended with {:?}", turn.end());
        anyhow::ensure!(turn.answer().starts_with(&format!("You said: {text}\n")), "answer {:?}", turn.answer());
        watched.slowest = watched.slowest.max(start.elapsed());
        watched.turns += 1;
        if last {
            return Ok(watched);
        }
        // A person's pace: a bystander who takes a whole core would disturb everyone.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The largest resident memory of a process since its peak was reset.
fn peak_rss(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim_end().parse().unwrap();
    kilobytes * 1024
}

/// A raw TCP connection.
pub struct Raw {
    pub stream: TcpStream,
    pub sent: u64,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, sent: 0 }
    }

    /// Sends bytes; the server may have closed before it took them all.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let bytes = bytes.as_ref();
        self.sent += bytes.len() as u64;
        in_time("room to write", self.stream.write_all(bytes)).await.unwrap().is_ok()
    }

    /// Sends bytes until the server takes none for a while; true when it closed the connection.
    pub async fn send_until_stuck(&mut self, bytes: &[u8], most: u64, stuck: Duration) -> bool {
        let mut rest = bytes;
        while self.sent < most {
            match tokio::time::timeout(stuck, self.stream.write(rest)).await {
                Err(_) => return false,
                Ok(Err(_)) => return true,
                Ok(Ok(n)) => {
                    self.sent += n as u64;
                    rest = if n == rest.len() { bytes } else { &rest[n..] };
                }
            }
        }
        false
    }

    /// What the server says until it closes the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        // A reset after the answer is a close as well.
        drop(in_time("the end of the connection", self.stream.read_to_end(&mut all)).await.unwrap());
        all
    }

    /// The same as text.
    pub async fn rest_text(&mut self) -> String {
        String::from_utf8_lossy(&self.rest().await).into_owned()
    }

    /// What the server says up to and including `end`.
    pub async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        while !all.ends_with(end) {
            let byte = in_time("a byte", self.stream.read_u8()).await.unwrap();
            all.push(byte.unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&all))));
        }
        all
    }
}
