//! A relay before Redis that counts the commands clients send. Redis itself does not tell them from those that scripts run:
//! both are in `total_commands_processed` and in its commandstats.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

/// Bytes carried at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Longest name of a command.
const NAME_BYTES_MAX: usize = 64;

/// Commands by name.
pub type Counts = BTreeMap<String, u64>;

/// A running relay. It ends with its connections when this is dropped.
pub struct Relay {
    address: SocketAddr,
    counts: Arc<Mutex<Counts>>,
    accepting: JoinHandle<()>,
}

impl Relay {
    /// Starts one on a free port of the loopback.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a port for a relay")?;
        let address = listener.local_addr()?;
        let counts = Arc::<Mutex<Counts>>::default();
        let accepting = tokio::spawn(accept(listener, target, counts.clone()));
        Ok(Self { address, counts, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Commands that were sent until now.
    pub fn counts(&self) -> Counts {
        self.counts.lock().clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // The task owns its connections.
        self.accepting.abort();
    }
}

/// What came after `before`.
pub fn since(before: &Counts, now: &Counts) -> Counts {
    let more = |(name, count): (&String, &u64)| (name.clone(), count - before.get(name).copied().unwrap_or(0));
    now.iter().map(more).filter(|(_, count)| *count > 0).collect()
}

async fn accept(listener: TcpListener, target: SocketAddr, counts: Arc<Mutex<Counts>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((client, _)) = accepted {
                connections.spawn(connection(client, target, counts.clone()));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, target: SocketAddr, counts: Arc<Mutex<Counts>>) -> anyhow::Result<()> {
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asking = async {
        let mut reader = CommandReader::default();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = from_client.read(&mut chunk).await?;
            let bytes = chunk.get(..read).filter(|bytes| !bytes.is_empty()).context("the client is gone")?;
            to_server.write_all(bytes).await?;
            reader.read(bytes, |name| *counts.lock().entry(name.to_owned()).or_default() += 1)?;
        }
    };
    let answering = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        anyhow::Ok(())
    };
    // Either way ends both.
    tokio::select! {
        asked = asking => asked,
        answered = answering => answered,
    }
}

/// Finds the commands in bytes that arrive in pieces: arrays of strings, the first of which is the name.
#[derive(Default)]
struct CommandReader {
    /// Strings of the command that have not begun.
    strings: u64,
    /// Bytes of the string and its line's end that have not come.
    bytes: u64,
    /// Whether the string is the command's name.
    named: bool,
    line: Vec<u8>,
    name: Vec<u8>,
}

impl CommandReader {
    fn read(&mut self, mut bytes: &[u8], mut found: impl FnMut(&str)) -> anyhow::Result<()> {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.bytes > 0 {
                let take = bytes.len().min(usize::try_from(self.bytes)?);
                let (text, more) = bytes.split_at(take);
                if !self.named && self.name.len() < NAME_BYTES_MAX {
                    self.name.extend_from_slice(text);
                }
                self.bytes -= take as u64;
                bytes = more;
                if self.bytes == 0 && !std::mem::replace(&mut self.named, true) {
                    found(&String::from_utf8_lossy(&self.name).trim_end().to_ascii_lowercase());
                }
                continue;
            }
            bytes = rest;
            if first != b'\n' {
                self.line.push(first);
                continue;
            }
            self.header()?;
        }
        Ok(())
    }

    /// A whole line outside strings: how many strings, or how long the next one is.
    fn header(&mut self) -> anyhow::Result<()> {
        let line = String::from_utf8_lossy(&self.line).trim_end().to_owned();
        self.line.clear();
        let number = |digits: &str| digits.parse::<u64>().with_context(|| format!("no command: {line:?}"));
        match (line.as_bytes().first(), self.strings) {
            (Some(b'*'), 0) => {
                self.strings = number(&line[1..])?;
                self.named = false;
                self.name.clear();
            }
            (Some(b'$'), 1..) => {
                self.strings -= 1;
                self.bytes = number(&line[1..])? + 2;
            }
            _ => anyhow::bail!("no command: {line:?}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_counted_however_they_are_cut() {
        let command = |strings: &[&str]| {
            let texts: String = strings.iter().map(|text| format!("${}\r\n{text}\r\n", text.len())).collect();
            format!("*{}\r\n{texts}", strings.len())
        };
        let bytes = [
            command(&["XADD", "log", "7-1", "k", "*1\r\n$4\r\nPING\r\n"]),
            command(&["ping"]),
            command(&["evalsha", "", "1"]),
            command(&["xadd", &"x".repeat(300)]),
        ]
        .concat();
        for size in 1..40 {
            let mut names = Vec::new();
            let mut reader = CommandReader::default();
            for piece in bytes.as_bytes().chunks(size) {
                reader.read(piece, |name| names.push(name.to_owned())).unwrap();
            }
            assert_eq!(names, ["xadd", "ping", "evalsha", "xadd"], "pieces of {size}");
        }
        assert!(CommandReader::default().read(b"PING\r\n", |_| {}).is_err(), "an inline command is none of ours");
    }

    #[test]
    fn only_what_is_new_is_told() {
        let counts =
            |list: &[(&str, u64)]| list.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect::<Counts>();
        let new = since(&counts(&[("a", 2), ("b", 1)]), &counts(&[("a", 5), ("b", 1), ("c", 4)]));
        assert_eq!(new, counts(&[("a", 3), ("c", 4)]));
    }
}
