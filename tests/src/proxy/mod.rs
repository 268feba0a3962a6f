//! A TCP proxy that does to connections what networks do: cuts them, refuses them, swallows what they carry, slows them.
//!
//! Its address never changes, and where it leads can: so it stands for a network that breaks between two programs, and for
//! an address behind which one server gives way to another.

mod pipe;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

/// How long the target may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after a connection could not be accepted: out of descriptors, those who hang up make room.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// A direction through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From who connected to the target.
    ToTarget,
    /// From the target to who connected.
    ToClient,
}

/// What happens to bytes on their way in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Nothing goes through, neither bytes nor ends. What came meanwhile goes on afterwards, as TCP sends it again.
    pub held: bool,
    /// How long each byte is under way; the order stays.
    pub latency: Duration,
    /// Most bytes a second; none: any number.
    pub bytes_per_second: Option<u32>,
}

/// What the proxy does now.
#[derive(Clone, Debug)]
struct Rules {
    target: SocketAddr,
    refuses: bool,
    to_target: Flow,
    to_client: Flow,
    /// Changes with each cut: connections of before end.
    cuts: u64,
}

impl Rules {
    fn flow(&self, way: Way) -> Flow {
        match way {
            Way::ToTarget => self.to_target,
            Way::ToClient => self.to_client,
        }
    }
}

/// A running proxy. It ends with its connections when this is dropped.
pub struct Proxy {
    address: SocketAddr,
    rules: watch::Sender<Rules>,
    open: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts one on a free port of the loopback that leads to `target`.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a port for a proxy")?;
        let address = listener.local_addr()?;
        let rules = Rules { target, refuses: false, to_target: Flow::default(), to_client: Flow::default(), cuts: 0 };
        let (rules, seen) = watch::channel(rules);
        let open = Arc::new(AtomicUsize::new(0));
        let accepting = tokio::spawn(accept(listener, seen, open.clone()));
        Ok(Self { address, rules, open, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Leads new connections elsewhere; open ones stay where they are.
    pub fn set_target(&self, target: SocketAddr) {
        self.rules.send_modify(|rules| rules.target = target);
    }

    /// Resets every connection that is open.
    pub fn cut(&self) {
        self.rules.send_modify(|rules| rules.cuts += 1);
    }

    /// Whether new connections are reset at once. (The port stays taken, so that nobody else gets it.)
    pub fn refuse(&self, refuses: bool) {
        self.rules.send_modify(|rules| rules.refuses = refuses);
    }

    /// Swallows everything in both directions; connections stay, and new ones come to be but are not answered.
    pub fn black_hole(&self) {
        self.rules.send_modify(|rules| (rules.to_target.held, rules.to_client.held) = (true, true));
    }

    /// Changes what happens in one direction.
    pub fn set_flow(&self, way: Way, flow: Flow) {
        self.rules.send_modify(|rules| match way {
            Way::ToTarget => rules.to_target = flow,
            Way::ToClient => rules.to_client = flow,
        });
    }

    /// From now on it is a good network again.
    pub fn heal(&self) {
        self.rules.send_modify(|rules| {
            rules.refuses = false;
            rules.to_target = Flow::default();
            rules.to_client = Flow::default();
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The task owns its connections.
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, rules: watch::Receiver<Rules>, open: Arc<AtomicUsize>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) if rules.borrow().refuses => reset(client),
                Ok((client, _)) => drop(connections.spawn(connection(client, rules.clone(), Open::new(&open)))),
                Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Counts an open connection.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Closes a connection so that the other side gets a reset, as from a host that is gone.
fn reset(stream: TcpStream) {
    drop(SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
    drop(stream);
}

async fn connection(mut client: TcpStream, mut rules: watch::Receiver<Rules>, _open: Open) {
    let cuts = rules.borrow().cuts;
    let mut cut = rules.clone();
    let mut target = None;
    let carry = async {
        rules.wait_for(|rules| !rules.to_target.held).await?;
        let address = rules.borrow().target;
        let stream = target.insert(timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??);
        stream.set_nodelay(true)?;
        client.set_nodelay(true)?;
        let (client_reader, client_writer) = client.split();
        let (target_reader, target_writer) = stream.split();
        tokio::try_join!(
            pipe::carry(client_reader, target_writer, Way::ToTarget, rules.clone()),
            pipe::carry(target_reader, client_writer, Way::ToClient, rules.clone()),
        )?;
        anyhow::Ok(())
    };
    let whole = tokio::select! {
        carried = carry => carried.is_ok(),
        _ = cut.wait_for(|rules| rules.cuts != cuts) => false,
    };
    if !whole {
        reset(client);
        if let Some(target) = target {
            reset(target);
        }
    }
}

#[cfg(test)]
mod tests;
