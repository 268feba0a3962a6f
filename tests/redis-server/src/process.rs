//! One process, and how it is asked.

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;
use rand::RngExt as _;
use tempfile::TempDir;

use crate::{Certificates, LOOK_INTERVAL, READY_TIMEOUT, field};

/// What to do where the programs are missing.
const INSTALL: &str = "apt-get install redis-server redis-sentinel redis-tools";

/// How often another port is tried where one turns out to be taken.
const PORT_TRIES: usize = 10;

/// Ports are taken from here up to where the system's own choice begins: a port of that range could become the local end
/// of somebody's connection while its server is down, and a client that tries to reach it may even meet itself.
const PORTS_FROM: u16 = 10_000;

/// Seconds a command may take, as the `timeout` program wants them.
const COMMAND_TIMEOUT_S: &str = "20";

/// How a server is asked, beside its port.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    pub(crate) user: Option<(String, String)>,
    pub(crate) tls: Option<Certificates>,
}

/// A server process: its directory and port outlive a restart.
#[derive(Debug)]
pub(crate) struct Process {
    program: &'static str,
    dir: TempDir,
    port: u16,
    access: Access,
    child: Mutex<Option<Child>>,
}

impl Process {
    /// Starts one; `config` makes its configuration for a port and a directory.
    pub(crate) fn start(
        program: &'static str,
        access: Access,
        config: impl Fn(u16, &Path) -> String,
    ) -> anyhow::Result<Self> {
        let mut last = None;
        for _ in 0..PORT_TRIES {
            let dir = tempfile::Builder::new().prefix("redis-").tempdir().context("a directory for a Redis server")?;
            let port = free_port()?;
            std::fs::write(dir.path().join("redis.conf"), config(port, dir.path()))?;
            let child = spawn(program, dir.path())?;
            let process = Self { program, dir, port, access: access.clone(), child: Mutex::new(Some(child)) };
            match process.wait() {
                Ok(()) => return Ok(process),
                Err(error) if process.is_running() => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no port was tried")?)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.lock().as_ref().map(Child::id)
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().context("the server is not running")?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("send {signal} to {pid}"))
    }

    pub(crate) fn is_frozen(&self) -> bool {
        let Some(pid) = self.pid() else { return false };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    /// Ends the process and waits for its end.
    pub(crate) fn end(&self, signal: Signal) {
        let Some(mut child) = self.child.lock().take() else { return };
        if let Ok(pid) = i32::try_from(child.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
            if signal != Signal::SIGKILL {
                let deadline = Instant::now() + READY_TIMEOUT;
                while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                    std::thread::sleep(LOOK_INTERVAL);
                }
            }
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Starts the process again, where it was, with the data it left.
    pub(crate) fn start_again(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            {
                let mut child = self.child.lock();
                anyhow::ensure!(child.is_none(), "the server on port {} is running already", self.port);
                *child = Some(spawn(self.program, self.dir.path())?);
            }
            match self.wait() {
                Ok(()) => return Ok(()),
                // Somebody may hold the port for a moment.
                Err(_) if !self.is_running() && Instant::now() < deadline => self.end(Signal::SIGKILL),
                Err(error) => return Err(error),
            }
        }
    }

    fn is_running(&self) -> bool {
        self.child.lock().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Waits until this very process answers: on a port that was taken, another one might.
    fn wait(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if !self.is_running() {
                bail!("{} ended at once on port {}; its last words: {}", self.program, self.port, self.last_words());
            }
            let info = self.cli(&["INFO", "server"]);
            let answers = field(&info, "process_id").and_then(|pid| pid.parse().ok());
            if answers.is_some() && answers == self.pid() && self.cli(&["PING"]) == "PONG" {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{} on port {} does not answer: {info}; {}", self.program, self.port, self.last_words());
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("redis.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }

    /// Runs `redis-cli`. What it prints, without the last line's end; errors too, as text.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let mut command = Command::new("timeout");
        command.args([COMMAND_TIMEOUT_S, "redis-cli", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        if let Some((user, password)) = &self.access.user {
            command.args(["--user", user]).env("REDISCLI_AUTH", password);
        }
        if let Some(tls) = &self.access.tls {
            command.arg("--tls").arg("--cacert").arg(tls.ca());
            command.arg("--cert").arg(tls.client_certificate()).arg("--key").arg(tls.client_key());
        }
        match command.args(args).stdin(Stdio::null()).output() {
            Ok(output) => {
                let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
                if !output.status.success() {
                    text.push_str(&String::from_utf8_lossy(&output.stderr));
                }
                text.truncate(text.trim_end_matches('\n').len());
                text
            }
            Err(error) => format!("redis-cli could not be run: {error}"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(Signal::SIGKILL);
    }
}

fn spawn(program: &str, dir: &Path) -> anyhow::Result<Child> {
    let path = find(program)?;
    find("redis-cli")?;
    let log = File::options().create(true).append(true).open(dir.join("redis.log"))?;
    Command::new(&path)
        .arg(dir.join("redis.conf"))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {}", path.display()))
}

/// The program's path.
fn find(program: &str) -> anyhow::Result<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not on PATH, and this test needs it: {INSTALL}"))
}

/// A port of 127.0.0.1 on which nothing listens now.
pub(crate) fn free_port() -> anyhow::Result<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let below: u16 = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32_768);
    for _ in 0..1_000 {
        // Where the system's range leaves no room, its own choice must do.
        let port = if below > PORTS_FROM + 1_000 { rand::rng().random_range(PORTS_FROM..below) } else { 0 };
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(listener.local_addr()?.port());
        }
    }
    bail!("no free port on 127.0.0.1")
}
