//! One direction of a connection.

use std::time::Duration;

use anyhow::bail;
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::tcp::{ReadHalf, WriteHalf},
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{Rules, Way};

/// Bytes read at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// Chunks under way: what latency and holes keep in the proxy. Past them the sender is not read.
const CHUNKS_MAX: usize = 64;

/// What is under way.
enum Piece {
    Bytes(Bytes),
    End,
    Reset,
}

/// Carries bytes to their end. An error is a connection that broke.
pub(super) async fn carry(
    reader: ReadHalf<'_>,
    writer: WriteHalf<'_>,
    way: Way,
    rules: watch::Receiver<Rules>,
) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let reading = read(reader, way, rules.clone(), sender);
    tokio::try_join!(reading, write(writer, way, rules, receiver))?;
    Ok(())
}

async fn read(
    mut reader: ReadHalf<'_>,
    way: Way,
    rules: watch::Receiver<Rules>,
    sender: mpsc::Sender<(Instant, Piece)>,
) -> anyhow::Result<()> {
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let piece = match reader.read_buf(&mut chunk).await {
            Ok(0) => Piece::End,
            Ok(_) => Piece::Bytes(chunk.freeze()),
            Err(_) => Piece::Reset,
        };
        let last = !matches!(piece, Piece::Bytes(_));
        let due = Instant::now() + rules.borrow().flow(way).latency;
        // The other half ends only with an error, which ends this one.
        if sender.send((due, piece)).await.is_err() || last {
            return Ok(());
        }
    }
}

async fn write(
    mut writer: WriteHalf<'_>,
    way: Way,
    mut rules: watch::Receiver<Rules>,
    mut receiver: mpsc::Receiver<(Instant, Piece)>,
) -> anyhow::Result<()> {
    while let Some((due, piece)) = receiver.recv().await {
        sleep_until(due).await;
        let flow = rules.wait_for(|rules| !rules.flow(way).held).await?.flow(way);
        match piece {
            Piece::Bytes(bytes) => {
                writer.write_all(&bytes).await?;
                if let Some(bytes_per_second) = flow.bytes_per_second {
                    sleep(Duration::from_secs_f64(bytes.len() as f64 / f64::from(bytes_per_second.max(1)))).await;
                }
            }
            Piece::End => writer.shutdown().await?,
            Piece::Reset => bail!("the sender's connection broke"),
        }
    }
    Ok(())
}
