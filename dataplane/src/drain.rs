//! `drain`: ask the pod beside this command to leave, and wait until it has. A preStop hook's command.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Arguments of `drain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The admin port of the process to drain.
    #[arg(long, default_value_t = 8081, env = "CHATGATEWAY_ADMIN_PORT")]
    admin_port: u16,
    /// Its address.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Wait at most so many seconds.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
}

const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks, and waits until the process is gone.
///
/// # Errors
/// Where no data plane answers there, or it is not gone in time.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let address = format!("{}:{}", args.host, args.admin_port);
    let status = call(&address, "POST /drain").await.with_context(|| format!("no data plane answers on {address}"))?;
    if status != 202 {
        bail!("{address} answered POST /drain with {status}");
    }
    let gone = async {
        while call(&address, "GET /livez").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(args.timeout), gone)
        .await
        .with_context(|| format!("the data plane on {address} still runs after {} s", args.timeout))
}

/// One request without a body, to our own admin port; its status.
async fn call(address: &str, request: &str) -> anyhow::Result<u16> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let head = format!("{request} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split_ascii_whitespace().nth(1).and_then(|s| s.parse().ok());
        status.context("not an HTTP answer")
    };
    tokio::time::timeout(CALL_TIMEOUT, exchange).await.context("no answer in time")?
}
