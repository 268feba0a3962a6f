//! One data-plane process.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::standalone::secrets::VARIABLE_PREFIX;
use crate::standalone::{admin, tied};

/// How long a process may take from its start until it takes clients.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a process may take until it runs a new configuration: it looks at its file twice a second.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What a process that leaves gets beyond that before it is killed.
const DRAIN_MARGIN: Duration = Duration::from_secs(10);

/// After which time a refusal is about the new file for certain.
const REFUSAL_AFTER: Duration = Duration::from_millis(1_500);

/// How often a process is asked meanwhile.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// How long the log of a process that has ended is waited for.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest log line that is passed on; what is longer comes in pieces.
const LOG_LINE_MAX_BYTES: usize = 64 * 1024;

/// A process that was started.
#[derive(Debug)]
pub struct Process {
    /// Its name, which its log lines begin with.
    pub name: String,
    /// Its admin port's address.
    pub admin: SocketAddr,
    /// Its configuration file.
    pub config: PathBuf,
    /// How long it may finish what runs when it is told to leave.
    pub drain: Duration,
    /// Since when it is to leave, and until when it may.
    pub leaving: Option<Leaving>,
    child: Child,
    logs: Vec<JoinHandle<()>>,
}

/// A process that is to leave.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    /// When it was told.
    pub since: Instant,
    /// When it is killed.
    pub until: Instant,
}

impl Process {
    /// Starts a process on a configuration file that is there. It is killed when this is dropped.
    ///
    /// # Errors
    /// Where the program cannot be started.
    pub fn start(
        program: &Path,
        name: String,
        config: PathBuf,
        admin: SocketAddr,
        drain: Duration,
    ) -> anyhow::Result<Self> {
        let mut command = command(program);
        command.arg("run").arg("--config").arg(&config);
        let (child, logs) = spawn(&name, command, program)?;
        Ok(Self { name, admin, config, drain, leaving: None, child, logs })
    }

    /// Its id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits until it takes clients and runs the configuration of this hash.
    ///
    /// # Errors
    /// Where it ends or does not get there in time.
    pub async fn ready(&mut self, hash: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if let Some(status) = self.ended() {
                last_words(self.take_logs()).await;
                bail!("{} ended before it was ready: {}", self.name, describe(status));
            }
            let runs_it = admin::status(self.admin).await.is_ok_and(|status| status.config_hash == hash);
            let ready = admin::ready(self.admin).await;
            if runs_it && ready.is_ok() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let reason = ready.err().map(|error| format!(": {error:#}")).unwrap_or_default();
                bail!("{} was not ready within {} s{reason}", self.name, READY_TIMEOUT.as_secs());
            }
            sleep(ASK_INTERVAL).await;
        }
    }

    /// Waits until it has taken the configuration of this hash over.
    ///
    /// # Errors
    /// Where it refuses it, ends, or does not get there in time.
    pub async fn reloaded(&mut self, hash: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        let deadline = start + RELOAD_TIMEOUT;
        loop {
            if let Some(status) = self.ended() {
                bail!("{} ended: {}", self.name, describe(status));
            }
            if let Ok(status) = admin::status(self.admin).await {
                if status.config_hash == hash {
                    return Ok(());
                }
                // What it says of an earlier file goes away when it looks at this one.
                if let Some(error) = status.config_error.filter(|_| start.elapsed() >= REFUSAL_AFTER) {
                    bail!("{} does not take it: {error}", self.name);
                }
            }
            if Instant::now() >= deadline {
                bail!("{} did not take it over within {} s", self.name, RELOAD_TIMEOUT.as_secs());
            }
            sleep(ASK_INTERVAL).await;
        }
    }

    /// Tells it to leave: it finishes what runs, and ends.
    pub fn leave(&mut self) {
        let now = Instant::now();
        self.leaving = Some(Leaving { since: now, until: now + self.drain + DRAIN_MARGIN });
        // Not there any more is as good as told.
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
    }

    /// The tasks that pass its log on. They end after the process.
    pub fn take_logs(&mut self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.logs)
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        // Not there any more is as good as killed.
        let _ = self.child.start_kill();
    }
}

/// A command that runs a program away from the terminal and without secrets, for as long as this process runs.
pub fn command(program: &Path) -> Command {
    let mut command = tied::command(program);
    // A Ctrl-C of the terminal is for the runner: it decides who leaves when.
    command.process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if !std::io::stderr().is_terminal() {
        command.env("NO_COLOR", "1");
    }
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with(VARIABLE_PREFIX) {
            command.env_remove(&variable);
        }
    }
    command
}

/// Starts such a command; the process, which is killed when it is dropped, and the tasks that pass its log on.
///
/// # Errors
/// Where the program cannot be started.
pub fn spawn(name: &str, mut command: Command, program: &Path) -> anyhow::Result<(Child, Vec<JoinHandle<()>>)> {
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let stdout = child.stdout.take().map(|stream| tokio::spawn(pass_on(name.to_owned(), stream)));
    let stderr = child.stderr.take().map(|stream| tokio::spawn(pass_on(name.to_owned(), stream)));
    Ok((child, stdout.into_iter().chain(stderr).collect()))
}

/// Waits for the last log lines of processes that have ended.
pub async fn last_words(logs: Vec<JoinHandle<()>>) {
    let all = async {
        for log in logs {
            // A log that broke off has no more to tell.
            let _ = log.await;
        }
    };
    // Something that the process started may hold its end of the pipe open.
    let _ = tokio::time::timeout(LAST_WORDS_TIMEOUT, all).await;
}

/// How a process ended, in words.
pub fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Passes log lines on, each with the name of its process.
async fn pass_on(name: String, stream: impl AsyncRead + Unpin) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match read_line(&mut reader, &mut line).await {
            Ok(false) | Err(_) => return,
            Ok(true) => eprint_line(&name, &line),
        }
    }
}

/// Reads up to a line's end, or a bounded piece of a line. False: nothing more comes.
async fn read_line(reader: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> std::io::Result<bool> {
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(!line.is_empty());
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(available.len());
        line.extend_from_slice(&available[..taken]);
        reader.consume(end.map_or(taken, |end| end + 1));
        if end.is_some() || line.len() >= LOG_LINE_MAX_BYTES {
            return Ok(true);
        }
    }
}

fn eprint_line(name: &str, line: &[u8]) {
    use std::io::Write;
    let line = String::from_utf8_lossy(line);
    // Where nobody reads the log, there is nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "{name} | {}", line.trim_end());
}
