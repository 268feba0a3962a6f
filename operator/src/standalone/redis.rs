//! The managed Redis on this machine: a `redis-server` of its own, started again when it dies, for as long as the gateway
//! runs.

use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::plan::ManagedAt;
use crate::standalone::files::{private_dir, replace};
use crate::standalone::process::{self, describe, last_words};
use crate::standalone::say;

/// The server's program.
const PROGRAM: &str = "redis-server";

/// What is said where it is missing or too old.
const INSTALL: &str = "install it (Debian, Ubuntu: apt-get install redis-server; Fedora: dnf install redis; Homebrew: \
                       brew install redis), or use a Redis that is there already: `external` in place of `managed`";

/// The oldest version that keeps sessions: sharded channels came with it.
const VERSION_MIN: (u32, u32) = (7, 0);

/// How long the program may take to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server may take from its start until it answers. A few gigabytes of data take half a minute to load.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How often it is asked meanwhile.
const ASK_INTERVAL: Duration = Duration::from_millis(50);

/// How long one answer may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take to leave: it writes what is left to its disk.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause before a server that died is started again; each further one is twice as long. Short: everybody waits for it.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(100);

/// Longest such pause.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);

/// A server that stayed up for so long starts with the shortest pause again.
const STEADY_AFTER: Duration = Duration::from_secs(60);

/// Length of the password before it is written as text.
const PASSWORD_BYTES: usize = 32;

/// A server that runs. It is killed when this is dropped.
#[derive(Debug)]
pub struct ManagedRedis {
    /// Where it is.
    pub at: ManagedAt,
    orders: watch::Sender<Order>,
    task: JoinHandle<()>,
}

/// What the server is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    Stop,
    Kill,
}

impl ManagedRedis {
    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// Where there is no program, it is too old, its data is in use, or the server does not answer.
    pub async fn start(work: &Path, data: &Path) -> anyhow::Result<Self> {
        let program = find(PROGRAM).with_context(|| {
            format!(
                "a managed Redis needs {PROGRAM} {}.{}, and it is not on the PATH; {INSTALL}",
                VERSION_MIN.0, VERSION_MIN.1
            )
        })?;
        check_version(&program).await?;
        let mut server = Server::prepare(program, work, data)?;
        server.launch()?;
        let answers = timeout(START_TIMEOUT, answers(server.address, &server.password));
        let ended = tokio::select! {
            answered = answers => match answered {
                Ok(()) => None,
                Err(_) => bail!("{PROGRAM} did not answer within {} s", START_TIMEOUT.as_secs()),
            },
            status = ended(&mut server.child) => Some(status),
        };
        if let Some(status) = ended {
            last_words(std::mem::take(&mut server.logs)).await;
            bail!("{PROGRAM} ended before it answered: {status}");
        }
        let at = ManagedAt { endpoint: server.address.to_string(), password_file: server.password_file.clone() };
        let (orders, receiver) = watch::channel(Order::Run);
        let task = tokio::spawn(server.supervise(receiver));
        Ok(Self { at, orders, task })
    }

    /// Tells it to leave.
    pub fn leave(&self) {
        // Where it has ended, there is nobody to tell.
        let _ = self.orders.send(Order::Stop);
    }

    /// Ends it at once.
    pub fn kill(&self) {
        let _ = self.orders.send(Order::Kill);
    }

    /// Waits until it has left. May be dropped and called again.
    pub async fn gone(&mut self) {
        if !self.task.is_finished() {
            // However its task ended: the server has ended with it.
            let _ = (&mut self.task).await;
        }
    }
}

impl Drop for ManagedRedis {
    fn drop(&mut self) {
        // The process is killed with its task.
        self.task.abort();
    }
}

/// The server's process, and what it takes to start it again.
struct Server {
    program: PathBuf,
    config: PathBuf,
    data: PathBuf,
    address: SocketAddr,
    password: String,
    password_file: PathBuf,
    child: Option<Child>,
    logs: Vec<JoinHandle<()>>,
    /// Keeps the port while no server has it.
    _port: Option<Socket>,
    /// Keeps other runs away from the data.
    _lock: File,
}

impl Server {
    /// Everything but the process.
    fn prepare(program: PathBuf, work: &Path, data: &Path) -> anyhow::Result<Self> {
        private_dir(work)?;
        private_dir(data)?;
        let lock = lock(data)?;
        let (port, held) = port()?;
        let password: String =
            rand::random::<[u8; PASSWORD_BYTES]>().iter().map(|byte| format!("{byte:02x}")).collect();
        let password_file = work.join("password");
        replace(&password_file, password.as_bytes())?;
        // In a file, since everybody on this machine can read arguments.
        let config = work.join("redis.conf");
        replace(&config, configuration(port, &password).as_bytes())?;
        Ok(Self {
            program,
            config,
            data: data.to_owned(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            password,
            password_file,
            child: None,
            logs: Vec::new(),
            _port: held,
            _lock: lock,
        })
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let mut command = process::command(&self.program);
        // Its data goes to the folder it is in.
        command.arg(&self.config).current_dir(&self.data);
        let (child, logs) = process::spawn("redis", command, &self.program)?;
        self.child = Some(child);
        self.logs.extend(logs);
        self.logs.retain(|log| !log.is_finished());
        Ok(())
    }

    /// Starts it again whenever it dies, until it is told to leave.
    async fn supervise(mut self, mut orders: watch::Receiver<Order>) {
        let mut answered = true;
        let mut since = Instant::now();
        let mut pause = RESTART_PAUSE_MIN;
        loop {
            let status = tokio::select! {
                status = ended(&mut self.child) => status,
                () = answers(self.address, &self.password), if !answered => {
                    answered = true;
                    say(&format!("redis answers again on {}", self.address));
                    continue;
                }
                _ = orders.changed() => return self.end(orders).await,
            };
            if since.elapsed() >= STEADY_AFTER {
                pause = RESTART_PAUSE_MIN;
            }
            say(&format!("redis died ({status}); it is started again with its data in {:.1} s", pause.as_secs_f64()));
            tokio::select! {
                () = sleep(pause) => {}
                _ = orders.changed() => return,
            }
            pause = (pause * 2).min(RESTART_PAUSE_MAX);
            (answered, since) = (false, Instant::now());
            if let Err(error) = self.launch() {
                say(&format!("error: {error:#}"));
            }
        }
    }

    /// Lets it leave, or ends it at once.
    async fn end(mut self, mut orders: watch::Receiver<Order>) {
        let Some(child) = &mut self.child else { return };
        if *orders.borrow_and_update() == Order::Stop {
            // Not there any more is as good as told.
            if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
                let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
            }
            tokio::select! {
                _ = child.wait() => {}
                _ = orders.changed() => {}
                () = sleep(STOP_TIMEOUT) => say("redis did not end in time and is killed"),
            }
        }
        // One that has ended is not killed again.
        let _ = child.kill().await;
        last_words(std::mem::take(&mut self.logs)).await;
    }
}

/// Waits until the process ends; how it did. One that could not be started has ended.
async fn ended(child: &mut Option<Child>) -> String {
    let Some(process) = child else { return "it could not be started".to_owned() };
    let status: std::io::Result<ExitStatus> = process.wait().await;
    *child = None;
    status.map_or_else(|error| error.to_string(), describe)
}

/// What the server is told. It keeps every write, evicts nothing, and is reached from this machine only.
fn configuration(port: u16, password: &str) -> String {
    format!(
        "bind {}\nport {port}\nprotected-mode yes\nrequirepass {password}\ndaemonize no\nlogfile \"\"\nloglevel warning\n\
         databases 1\ndir ./\nsave \"\"\nappendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\n",
        Ipv4Addr::LOCALHOST
    )
}

/// Waits until the server takes commands.
async fn answers(address: SocketAddr, password: &str) {
    while !matches!(timeout(CALL_TIMEOUT, ping(address, password)).await, Ok(Ok(true))) {
        sleep(ASK_INTERVAL).await;
    }
}

/// Whether the server is the one with this password, and has loaded its data.
async fn ping(address: SocketAddr, password: &str) -> std::io::Result<bool> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    stream.write_all(format!("AUTH {password}\r\nPING\r\n").as_bytes()).await?;
    let mut lines = stream.lines();
    for expected in ["+OK", "+PONG"] {
        if lines.next_line().await?.as_deref() != Some(expected) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A free port, and what keeps it free between two servers.
fn port() -> anyhow::Result<(u16, Option<Socket>)> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let bind = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        // As the server does it: on Linux both may bind it, since only one of them listens.
        socket.set_reuse_address(true)?;
        socket.bind(&any.into())?;
        let port = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
        std::io::Result::Ok((port, cfg!(target_os = "linux").then_some(socket)))
    };
    bind().context("cannot find a free port for redis")
}

/// Two servers on the same data would destroy it.
fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("{} is in use by another run; end that one, or give another --data-dir", data.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// The program of that name on the PATH.
fn find(name: &str) -> Option<PathBuf> {
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    let folders = std::env::var_os("PATH")?;
    // An empty element is the folder one happens to be in.
    let folders = std::env::split_paths(&folders).filter(|folder| folder.is_absolute());
    folders.map(|folder| folder.join(name)).find(runs)
}

async fn check_version(program: &Path) -> anyhow::Result<()> {
    let asking = Command::new(program).arg("--version").kill_on_drop(true).output();
    let unknown = || format!("cannot find out the version of {}", program.display());
    let output = timeout(VERSION_TIMEOUT, asking).await.with_context(unknown)?.with_context(unknown)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = version(&text).with_context(unknown)?;
    if version < VERSION_MIN {
        let ((major, minor), (least, least_minor)) = (version, VERSION_MIN);
        bail!(
            "{} is version {major}.{minor}, and sessions need {least}.{least_minor} or later; {INSTALL}",
            program.display()
        );
    }
    Ok(())
}

/// Major and minor version in what `redis-server --version` says.
fn version(text: &str) -> Option<(u32, u32)> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let text = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c971a948f0\n";
        assert_eq!(version(text), Some((7, 0)));
        assert_eq!(version("Valkey server v=8.1.3 sha=0"), Some((8, 1)));
        assert!(version("Redis server v=6.2.14 sha=0") < Some(VERSION_MIN));
        for wrong in ["", "v=", "v=7", "v=a.b", "7.0.15"] {
            assert_eq!(version(wrong), None, "{wrong}");
        }
    }
}
