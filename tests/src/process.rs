//! Processes that tests start and stop, and what the system says of them.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::client::HttpClient;

/// Lines of a process' output that are kept.
const LINES_KEPT: usize = 2_000;

/// How long a process may take to say that it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Standard output and standard error.
const SOURCES: usize = 2;

/// Environment variable that names the data plane's program where it is not beside the running one.
pub const DATAPLANE_VARIABLE: &str = "CHATGATEWAY_DATAPLANE";

/// The program of that name beside the running one.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("the path of the running program")?;
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    beside.with_context(|| format!("no program {name} beside {}: build it first (cargo build)", own.display()))
}

/// The data plane's program.
pub fn dataplane_program() -> anyhow::Result<PathBuf> {
    match std::env::var_os(DATAPLANE_VARIABLE) {
        Some(path) => Ok(PathBuf::from(path)),
        None => program("chatgateway-dataplane"),
    }
}

/// Runs `action` with this thread on one core, and so every process it starts; nothing changes where `core` is none.
pub fn on_core<T>(core: Option<usize>, action: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let Some(core) = core else { return action() };
    let this_thread = Pid::from_raw(0);
    let before = sched_getaffinity(this_thread).context("which cores this thread may use")?;
    let mut cores = CpuSet::new();
    cores.set(core).with_context(|| format!("core {core}"))?;
    sched_setaffinity(this_thread, &cores).with_context(|| format!("pin to core {core}"))?;
    let done = action();
    sched_setaffinity(this_thread, &before).context("unpin")?;
    done
}

/// Resident memory of a process, bytes.
pub fn rss_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).with_context(|| format!("VmRSS in {path}"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim_end().parse().with_context(|| path.clone())?;
    Ok(kilobytes * 1024)
}

/// Processor time that the threads of a process have used, in user and kernel mode.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    schedstat(pid, 0)
}

/// Time that the threads of a process could have run but had to wait for a core. Where it is much, other processes were
/// busy there, and times measured meanwhile say little.
pub fn core_wait(pid: u32) -> anyhow::Result<Duration> {
    schedstat(pid, 1)
}

/// A field of the kernel's scheduling figures, summed over a process' threads.
fn schedstat(pid: u32, field: usize) -> anyhow::Result<Duration> {
    let mut total_ns = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("threads of {pid}"))? {
        // A thread may end between the listing and the reading.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total_ns += text.split_whitespace().nth(field).context("a short schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(total_ns))
}

/// The last lines a process wrote, and a way to wait for one.
#[derive(Default)]
struct Output {
    state: Mutex<OutputState>,
    changed: Condvar,
}

#[derive(Default)]
struct OutputState {
    lines: VecDeque<String>,
    /// Standard output and error that have ended.
    ended: usize,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads to the end; every line also goes into `file`.
    fn read(&self, source: impl std::io::Read, mut file: Option<File>) {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            if let Some(file) = &mut file {
                // A full disk shows elsewhere.
                drop(writeln!(file, "{line}"));
            }
            let mut state = self.lock();
            if state.lines.len() == LINES_KEPT {
                state.lines.pop_front();
            }
            state.lines.push_back(line);
            drop(state);
            self.changed.notify_all();
        }
        self.lock().ended += 1;
        self.changed.notify_all();
    }

    /// Waits for a line that `find` accepts.
    fn wait_for<T>(&self, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + START_TIMEOUT;
        let mut state = self.lock();
        loop {
            if let Some(found) = state.lines.iter().find_map(|line| find(line)) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            if state.ended == SOURCES {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A process that is killed when this is dropped.
pub struct Process {
    child: Child,
    name: String,
    output: Arc<Output>,
}

impl Process {
    /// Starts a program; its standard output and error are kept.
    pub fn start(command: Command) -> anyhow::Result<Self> {
        Self::start_logged(command, None)
    }

    /// The same; all it writes is also added to this file.
    pub fn start_logged(mut command: Command, log: Option<&Path>) -> anyhow::Result<Self> {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let output = Arc::new(Output::default());
        let sources: [Option<Box<dyn std::io::Read + Send>>; SOURCES] =
            [child.stdout.take().map(|out| Box::new(out) as _), child.stderr.take().map(|out| Box::new(out) as _)];
        for source in sources.into_iter().flatten() {
            let output = output.clone();
            let file = match log {
                Some(path) => Some(File::options().create(true).append(true).open(path)?),
                None => None,
            };
            std::thread::Builder::new().name("output".to_owned()).spawn(move || output.read(source, file))?;
        }
        Ok(Self { child, name, output })
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote last.
    pub fn output(&self) -> String {
        self.output.lock().lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Waits until it writes a line that `find` accepts.
    pub fn wait_for_line<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        self.output
            .wait_for(find)
            .with_context(|| format!("{} did not say {what}; it said:\n{}", self.name, self.output()))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).with_context(|| format!("{signal} to {} ({pid})", self.name))
    }

    /// Ends it without a farewell.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("the end of {}", self.name))?;
        Ok(())
    }

    /// Stops it in the middle of whatever it does: its connections stay, and it does nothing until [`Self::thaw`].
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> anyhow::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Waits for its exit.
    pub async fn wait(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still runs after {timeout:?}; it said:\n{}", self.name, self.output());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether it has not exited.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runs() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// A data-plane process on free ports of the loopback.
pub struct GatewayProcess {
    process: Process,
    http: SocketAddr,
    grpc: SocketAddr,
    admin: SocketAddr,
    directory: tempfile::TempDir,
}

impl GatewayProcess {
    /// Starts one with this configuration, in which ports and the form of the log are filled in, and waits until it is
    /// ready.
    pub async fn start(config: &Value) -> anyhow::Result<Self> {
        Self::start_on(None, config).await
    }

    /// The same, on one core.
    pub async fn start_on(core: Option<usize>, config: &Value) -> anyhow::Result<Self> {
        Self::start_with(core, config, None).await
    }

    /// The same; all it writes is also added to this file.
    pub async fn start_logged(config: &Value, log: &Path) -> anyhow::Result<Self> {
        Self::start_with(None, config, Some(log)).await
    }

    async fn start_with(core: Option<usize>, config: &Value, log: Option<&Path>) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("config.yaml");
        // JSON is YAML.
        std::fs::write(&file, filled_in(config).to_string())?;
        let mut command = Command::new(dataplane_program()?);
        command.arg("run").arg("--config").arg(&file);
        let process = on_core(core, || Process::start_logged(command, log))?;
        let [http, grpc, admin] = process.wait_for_line("where it listens", ready_line)?;
        let gateway = Self { process, http, grpc, admin, directory };
        gateway.wait_ready().await?;
        Ok(gateway)
    }

    /// WebSocket, SSE, REST, OpenAI API, the page.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// gRPC.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Health, figures, drain.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its resident memory, bytes.
    pub fn rss_bytes(&self) -> anyhow::Result<u64> {
        rss_bytes(self.pid())
    }

    /// Writes another configuration into its file, ports as they are; the process reads it by itself.
    pub fn write_config(&self, config: &Value) -> anyhow::Result<()> {
        let file = self.directory.path().join("config.yaml");
        let next = self.directory.path().join("config.yaml.next");
        std::fs::write(&next, filled_in(config).to_string())?;
        Ok(std::fs::rename(next, file)?)
    }

    /// Waits for `/readyz`.
    pub async fn wait_ready(&self) -> anyhow::Result<()> {
        let client = HttpClient::new(self.admin);
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if client.get("/readyz").await.is_ok_and(|reply| reply.status.is_success()) {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "not ready in {START_TIMEOUT:?}:\n{}", self.process.output());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// `/status`.
    pub async fn status(&self) -> anyhow::Result<Value> {
        HttpClient::new(self.admin).get("/status").await?.json()
    }

    /// Asks it to end in good order.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.process.signal(Signal::SIGTERM)
    }
}

/// The configuration with free ports and a log that can be read.
fn filled_in(config: &Value) -> Value {
    let mut config = config.clone();
    let defaults = json!({
        "listeners": {"bind": "127.0.0.1", "httpPort": 0, "grpcPort": 0, "adminPort": 0},
        "log": {"format": "json"},
    });
    for (section, fields) in defaults.as_object().into_iter().flatten() {
        if config[section].is_null() {
            config[section] = json!({});
        }
        for (name, value) in fields.as_object().into_iter().flatten() {
            if config[section][name].is_null() {
                config[section][name] = value.clone();
            }
        }
    }
    config
}

/// The addresses in the line of the log that says `ready`.
fn ready_line(line: &str) -> Option<[SocketAddr; 3]> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = &line["fields"];
    let address = |name: &str| fields[name].as_str()?.parse().ok();
    Some([address("http")?, address("grpc")?, address("admin")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_says_is_left() {
        let config = filled_in(&json!({"listeners": {"httpPort": 5}, "workers": 1}));
        assert_eq!(config["listeners"], json!({"bind": "127.0.0.1", "httpPort": 5, "grpcPort": 0, "adminPort": 0}));
        assert_eq!((&config["workers"], &config["log"]["format"]), (&json!(1), &json!("json")));
    }

    #[tokio::test]
    async fn a_process_is_read_measured_and_ended() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo listening on 127.0.0.1:7; echo oops >&2; exec sleep 60"]);
        let mut process = on_core(Some(0), || Process::start(command)).unwrap();
        let port = |line: &str| line.strip_prefix("listening on ")?.parse::<SocketAddr>().ok();
        assert_eq!(process.wait_for_line("its port", port).unwrap().port(), 7);
        process.wait_for_line("oops", |line| (line == "oops").then_some(())).unwrap();
        assert!(rss_bytes(process.pid()).unwrap() > 0 && cpu_time(process.pid()).unwrap() > Duration::ZERO);
        process.signal(Signal::SIGTERM).unwrap();
        assert!(!process.wait(Duration::from_secs(5)).await.unwrap().success());
        assert!(process.wait_for_line("more", |line| (line == "more").then_some(())).is_err(), "its output has ended");
    }
}
