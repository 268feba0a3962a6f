//! A connection that is given up when its client takes nothing for too long. TCP's own keepalive does not help there: such
//! a client is alive, it only does not read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use chatgateway_core::limits::WRITE_STALL;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// See the module. Costs nothing while bytes go out.
pub struct Patient<T> {
    io: T,
    /// Runs while bytes wait and none goes out.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<T> Patient<T> {
    /// Watches a connection.
    pub fn new(io: T) -> Self {
        Self { io, stalled: None }
    }

    /// The connection, no longer watched.
    pub fn into_inner(self) -> T {
        self.io
    }

    fn watch<R>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if result.is_ready() {
            self.stalled = None;
            return result;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_STALL)));
        std::task::ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.watch(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, pieces);
        self.watch(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::{Duration, Instant, sleep},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let start = Instant::now();
        let (_client, server) = duplex(64);
        let mut server = Patient::new(server);
        let error = server.write_all(&[0; 1_000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed(), WRITE_STALL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_only_slow_is_waited_for() {
        let (mut client, server) = duplex(64);
        let mut server = Patient::new(server);
        let reading = tokio::spawn(async move {
            let mut buffer = [0; 8];
            for _ in 0..25 {
                sleep(WRITE_STALL - Duration::from_secs(1)).await;
                client.read_exact(&mut buffer).await.unwrap();
            }
        });
        server.write_all(&[0; 200]).await.unwrap();
        reading.await.unwrap();
    }
}
