//! Asking a data-plane process how it is.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

/// How long one answer may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// What is read of an answer.
const ANSWER_MAX_BYTES: usize = 256 * 1024;

/// What matters here of `/status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The hash of the configuration that is applied.
    pub config_hash: String,
    /// Why the newest file is not applied, if it is not.
    pub config_error: Option<String>,
    /// Client connections.
    pub connections: u64,
    /// Turns that run.
    pub leases: u64,
}

/// Makes sure that the process takes clients.
///
/// # Errors
/// Where it does not answer, or why it does not take them.
pub async fn ready(admin: SocketAddr) -> anyhow::Result<()> {
    let (status, body) = get(admin, "/readyz").await?;
    anyhow::ensure!(status == StatusCode::OK, "{}", String::from_utf8_lossy(&body).trim());
    Ok(())
}

/// How the process is.
///
/// # Errors
/// Where it does not answer, or with something else.
pub async fn status(admin: SocketAddr) -> anyhow::Result<Status> {
    let (status, body) = get(admin, "/status").await?;
    anyhow::ensure!(status == StatusCode::OK, "/status answered {status}");
    serde_json::from_slice(&body).context("/status is not what it should be")
}

async fn get(admin: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    tokio::time::timeout(CALL_TIMEOUT, exchange(admin, path)).await.context("no answer in time")?
}

async fn exchange(admin: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(admin).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header(http::header::HOST, admin.to_string()).body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(answer);
    tokio::select! {
        result = &mut answer => result,
        ended = connection => {
            ended?;
            answer.await
        }
    }
}
