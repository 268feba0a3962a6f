//! The first bytes of a connection. A client that sends none is let go of in time, which the HTTP server itself does not do
//! before it knows the version; and what is no HTTP at all (TLS, a broken HTTP/2 preface) is closed without an HTTP answer
//! that its sender could not read.

use std::time::Duration;

use chatgateway_core::limits::{OPENING_LOOK_INTERVAL, OVERSIZED_READ_ON};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};

/// How every HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How an HTTP/1 request begins. A server knows no others.
const METHODS: [&[u8]; 9] =
    [b"GET ", b"POST ", b"DELETE ", b"OPTIONS ", b"HEAD ", b"PUT ", b"PATCH ", b"CONNECT ", b"TRACE "];

#[derive(Debug, PartialEq, Eq)]
enum Opening {
    Http,
    Other,
    /// Too few bytes to say.
    Open,
}

fn look(bytes: &[u8]) -> Opening {
    if bytes.starts_with(PREFACE) || METHODS.iter().any(|method| bytes.starts_with(method)) {
        return Opening::Http;
    }
    // Empty lines before a request are passed over, as HTTP asks.
    if let Some(rest) = bytes.strip_prefix(b"\r\n").or_else(|| bytes.strip_prefix(b"\n")) {
        return look(rest);
    }
    let may_become = |whole: &[u8]| whole.starts_with(bytes);
    if may_become(PREFACE) || may_become(b"\r\n") || METHODS.into_iter().any(may_become) {
        Opening::Open
    } else {
        Opening::Other
    }
}

/// Waits for a connection's first bytes, which stay unread. None where they begin no request: it is closed then.
pub async fn http(stream: TcpStream, patience: Duration) -> Option<TcpStream> {
    if begins(&stream, patience).await {
        return Some(stream);
    }
    close(stream).await;
    None
}

/// Closes in good order: what was sent is read for a moment, or the client would see a reset.
async fn close(mut stream: TcpStream) {
    let closing = async {
        let _ = stream.shutdown().await;
        let mut sink = [0; 1024];
        while let Ok(1..) = stream.read(&mut sink).await {}
    };
    let _ = timeout(OVERSIZED_READ_ON, closing).await;
}

async fn begins(stream: &TcpStream, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let mut bytes = [0; 32];
    loop {
        match timeout_at(deadline, stream.peek(&mut bytes)).await {
            Ok(Ok(n @ 1..)) => match look(&bytes[..n]) {
                Opening::Http => return true,
                // So many line ends and no request.
                Opening::Open if n == bytes.len() => return false,
                Opening::Open => {}
                Opening::Other => return false,
            },
            // It closed, broke, or said nothing in time.
            Ok(Ok(0) | Err(_)) | Err(_) => return false,
        }
        // The bytes that are there would wake this task again at once.
        if timeout_at(deadline, sleep(OPENING_LOOK_INTERVAL)).await.is_err() {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_known_by_their_first_bytes() {
        for http in ["GET / HTTP/1.1", "PATCH x", "\r\n\nPOST /", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0"] {
            assert_eq!(look(http.as_bytes()), Opening::Http, "{http:?}");
        }
        for open in ["", "G", "DELET", "\r", "\r\nGE", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
            assert_eq!(look(open.as_bytes()), Opening::Open, "{open:?}");
        }
        for other in [&b"\x16\x03\x01\x02"[..], b"INVALID", b"PRI * HTTP/1.0", b"GETS", b"get /", b"\0"] {
            assert_eq!(look(other), Opening::Other, "{other:?}");
        }
    }
}
