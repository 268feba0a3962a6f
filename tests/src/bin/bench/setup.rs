//! Where things run, and the programs under test.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chatgateway_tests::process::{GatewayProcess, Process, core_wait, cpu_time, dataplane_program, on_core, program};
use serde_json::{Value, json};

/// How the benchmarks run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Core of the server under test.
    pub server_core: Option<usize>,
    /// Core of the generator and the model-server simulator.
    pub generator_core: Option<usize>,
    /// Short runs, to see that everything works.
    pub quick: bool,
}

impl Setup {
    /// Server on core 0, generator on core 1; unpinned on a machine with one core.
    pub fn new(quick: bool) -> Self {
        let two = std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= 2);
        Self { server_core: two.then_some(0), generator_core: two.then_some(1), quick }
    }

    /// One of two durations, by `--quick`.
    pub fn seconds(&self, quick: u64, full: u64) -> Duration {
        Duration::from_secs(if self.quick { quick } else { full })
    }

    /// Starts a gateway with one worker on the server's core.
    pub async fn gateway(&self, config: &Value) -> anyhow::Result<GatewayProcess> {
        let mut config = config.clone();
        config["workers"] = json!(1);
        config["log"] = json!({"level": "info", "format": "json"});
        GatewayProcess::start_on(self.server_core, &config).await
    }

    /// Starts a model-server simulator with these arguments on the generator's core, on a free port unless they name one.
    pub fn model_server(&self, arguments: &[&str]) -> anyhow::Result<(Process, SocketAddr)> {
        let mut command = Command::new(program("model-sim")?);
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.args(arguments);
        let process = on_core(self.generator_core, || Process::start(command))?;
        let address = |line: &str| line.split_once("listening on http://")?.1.parse().ok();
        let address = process.wait_for_line("where it listens", address)?;
        Ok((process, address))
    }

    /// Starts a part of this program as a process of its own; it says where it listens.
    pub fn helper(&self, core: Option<usize>, arguments: &[String]) -> anyhow::Result<(Process, SocketAddr)> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments);
        let process = on_core(core, || Process::start(command))?;
        let address = |line: &str| line.strip_prefix("listening on ")?.parse().ok();
        let address = process.wait_for_line("where it listens", address)?;
        Ok((process, address))
    }
}

/// How busy a server was over a stretch of time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Of the time it ran, percent.
    pub busy: f64,
    /// Of the time it could have run but another process had its core, percent.
    pub waited: f64,
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the gateway's core is {:.0} % busy", self.busy)?;
        if self.waited > WAIT_SUSPECT_PERCENT {
            write!(
                f,
                "; it WAITED for its core {:.0} % of the time: others ran there, rely on nothing here",
                self.waited
            )?;
        }
        Ok(())
    }
}

/// A server that waits longer than this for its core is not alone on it. Its own kernel work accounts for some.
const WAIT_SUSPECT_PERCENT: f64 = 5.0;

/// Watches a server's load from now on.
pub struct LoadMeter {
    pid: u32,
    began: Instant,
    cpu: Duration,
    waited: Duration,
}

impl LoadMeter {
    /// Starts to watch.
    pub fn start(pid: u32) -> anyhow::Result<Self> {
        Ok(Self { pid, began: Instant::now(), cpu: cpu_time(pid)?, waited: core_wait(pid)? })
    }

    /// What it was until now.
    pub fn stop(&self) -> anyhow::Result<Load> {
        let percent = |part: Duration| 100.0 * part.as_secs_f64() / self.began.elapsed().as_secs_f64();
        let cpu = cpu_time(self.pid)?.saturating_sub(self.cpu);
        let waited = core_wait(self.pid)?.saturating_sub(self.waited);
        Ok(Load { busy: percent(cpu), waited: percent(waited) })
    }
}

/// A gateway whose built-in model answers `answer_bytes` at once.
pub fn demo(answer_bytes: usize) -> Value {
    json!({"upstreams": [{
        "name": "demo",
        "type": "Demo",
        "demo": {"answerBytes": answer_bytes, "tokenDelay": "0s"},
        "pool": {"maxConcurrent": 10_000, "maxQueued": 10_000},
    }]})
}

/// A gateway in front of an OpenAI-compatible server. The history is short, so that requests do not grow as the run goes
/// on.
pub fn openai(url: &str) -> Value {
    json!({"sessions": {"history": {"maxTurns": 4}}, "upstreams": [{
        "name": "sim",
        "type": "OpenAI",
        "openAI": {"url": url, "model": "sim-model"},
        "pool": {"maxConcurrent": 10_000, "maxQueued": 10_000},
    }]})
}

/// What the figures depend on, one line each.
pub fn machine(setup: &Setup) -> anyhow::Result<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    // This process is on one core by now: the list tells how many there are.
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().unwrap_or_default().trim_start_matches("MemTotal:").trim();
    let own = if cfg!(debug_assertions) { "NOT release" } else { "release" };
    let cores_used = match (setup.server_core, setup.generator_core) {
        (Some(server), Some(generator)) => format!("server on core {server}, generator on core {generator}"),
        _ => "one core: nothing is pinned, figures of server and generator are mixed".to_owned(),
    };
    Ok(format!(
        "machine:  {}, {cores} cores, {memory}, Linux {}\nplacing:  {cores_used}\nversions: {}, generator {} ({own} \
         build)\ndate:     {}{}",
        model.trim_start_matches([' ', '\t', ':']),
        read("/proc/sys/kernel/osrelease").trim(),
        gateway_version().unwrap_or_else(|error| format!("no gateway ({error:#})")),
        env!("CARGO_PKG_VERSION"),
        today(),
        if setup.quick { "\nQUICK RUN: too short for figures to rely on" } else { "" },
    ))
}

/// The data plane's name, version and kind of build.
fn gateway_version() -> anyhow::Result<String> {
    let program = dataplane_program()?;
    let version = Command::new(&program).arg("--version").output().context("the data plane's version")?;
    let release = program.components().any(|part| part.as_os_str() == "release");
    let built = if release { "release build" } else { "NOT a release build" };
    Ok(format!("{} ({built})", String::from_utf8_lossy(&version.stdout).trim()))
}

/// Today's date, UTC.
fn today() -> String {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut days = since_epoch.as_secs() / 86_400;
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}
