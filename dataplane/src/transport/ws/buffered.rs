//! A socket whose writes are gathered, and whose buffer is given back when it is empty: an idle connection holds nothing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use chatgateway_core::limits::{WS_WRITE_BUFFER_BYTES, WS_WRITE_BUFFER_KEPT_BYTES};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// See the module.
pub struct Buffered<S> {
    socket: S,
    buffer: Vec<u8>,
    written: usize,
}

impl<S: AsyncWrite + Unpin> Buffered<S> {
    /// Wraps a socket.
    pub fn new(socket: S) -> Self {
        Self { socket, buffer: Vec::new(), written: 0 }
    }

    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.buffer.len() {
            let n = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.buffer[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.written = 0;
        if self.buffer.capacity() > WS_WRITE_BUFFER_KEPT_BYTES {
            self.buffer = Vec::new();
        } else {
            self.buffer.clear();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Buffered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.buffer.len() + data.len() > WS_WRITE_BUFFER_BYTES {
            ready!(self.poll_empty(cx))?;
        }
        let n = data.len().min(WS_WRITE_BUFFER_BYTES);
        self.buffer.extend_from_slice(&data[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Buffered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn writes_reach_the_socket_in_order_when_flushed_and_the_buffer_goes() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let mut buffered = Buffered::new(near);
        let data: Vec<u8> = (0..40_000_u32).flat_map(u32::to_be_bytes).collect();
        let reader = tokio::spawn(async move {
            let mut all = vec![0; 160_000];
            far.read_exact(&mut all).await.map(|_| all)
        });
        for piece in data.chunks(777) {
            buffered.write_all(piece).await.unwrap();
        }
        buffered.flush().await.unwrap();
        assert_eq!(reader.await.unwrap().unwrap(), data);
        assert_eq!(buffered.buffer.capacity(), 0);
    }

    #[tokio::test]
    async fn nothing_is_written_before_the_flush() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut buffered = Buffered::new(near);
        buffered.write_all(b"abc").await.unwrap();
        let mut one = [0];
        let read = std::future::poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut one);
            Poll::Ready(Pin::new(&mut far).poll_read(cx, &mut buf).is_pending())
        });
        assert!(read.await);
    }
}
