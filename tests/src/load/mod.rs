//! Clients that talk to pods while something goes wrong there, and write down what they were told for
//! [`crate::history::check`]: every transport, devices that share a session, connections that are lost and resumed.

mod client;
mod crowd;
mod finish;
mod plan;
mod tell;
mod wire;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::history::History;

pub use client::{Client, Identity};
pub use crowd::{Crowd, begin};
pub use finish::{read_calls, read_sessions};
pub use plan::{Mix, TurnPlan};
pub use tell::tell;
pub use wire::Transport;

/// Where a pod is reached, or a Service of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAddress {
    /// Everything but gRPC.
    pub http: SocketAddr,
    /// gRPC.
    pub grpc: SocketAddr,
}

/// How clients find a pod.
pub trait Pods: Send + Sync {
    /// One to go to, by a number of the caller's choice.
    fn choose(&self, choice: usize) -> PodAddress;
}

/// A Service: who chooses the pod is the network.
impl Pods for PodAddress {
    fn choose(&self, _choice: usize) -> PodAddress {
        *self
    }
}

/// What all clients share.
#[derive(Clone)]
pub struct World {
    /// Where they go.
    pub pods: Arc<dyn Pods>,
    /// What they were told.
    pub history: History,
    /// What they see of the network.
    pub tally: Arc<Tally>,
    views: Arc<AtomicU32>,
    end: Arc<Mutex<End>>,
}

/// When it ends.
#[derive(Clone, Copy)]
struct End {
    /// No new turns from then on.
    stop: Instant,
    /// Nobody waits for anything any longer.
    give_up: Instant,
}

impl World {
    /// A world that ends at `stop`; answers that run then are waited for, for so long.
    pub fn new(pods: Arc<dyn Pods>, history: History, stop: Instant, patience: Duration) -> Self {
        let end = End { stop, give_up: stop + patience };
        let views = Arc::new(AtomicU32::new(1));
        Self { pods, history, tally: Arc::default(), views, end: Arc::new(Mutex::new(end)) }
    }

    /// Lets it end now.
    pub fn stop(&self, patience: Duration) {
        let now = Instant::now();
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = End { stop: now, give_up: now + patience };
    }

    fn end(&self) -> End {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_view(&self) -> u32 {
        self.views.fetch_add(1, Relaxed)
    }
}

/// Counts of what clients see of the network, and of what they do.
#[derive(Debug, Default)]
pub struct Tally {
    /// Turns that are under way now.
    pub live: AtomicUsize,
    /// Connections and requests that nobody took.
    pub refused: AtomicUsize,
}

impl Tally {
    /// Notes what a connection or a request came to.
    fn note<T>(&self, done: anyhow::Result<T>) -> anyhow::Result<T> {
        if done.as_ref().is_err_and(is_refusal) {
            self.refused.fetch_add(1, Relaxed);
        }
        done
    }
}

/// Whether nobody listened, or nobody could be reached.
fn is_refusal(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    let of =
        |cause: &(dyn std::error::Error + 'static)| cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    error.chain().filter_map(of).any(|kind| matches!(kind, ConnectionRefused | HostUnreachable | NetworkUnreachable))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{GrpcChat, HttpClient, WsClient};

    #[tokio::test]
    async fn a_connection_that_nobody_takes_is_counted_on_every_transport() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
        let tally = Tally::default();
        tally.note(WsClient::connect(port).await.map(drop)).expect_err("nobody listens");
        tally.note(HttpClient::new(port).get("/").await.map(drop)).expect_err("nobody listens");
        tally.note(GrpcChat::connect(port).await.map(drop)).expect_err("nobody listens");
        assert_eq!(tally.refused.load(Relaxed), 3);
        tally.note::<()>(Err(anyhow::anyhow!("the stream ended"))).expect_err("it is an error");
        assert_eq!(tally.refused.load(Relaxed), 3);
    }
}
