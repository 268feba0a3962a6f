//! A gateway on this machine: the same checks and the same plan as in a cluster, run as processes behind local ports.

mod admin;
mod files;
mod ports;
mod process;
mod redis;
mod secrets;
mod supervisor;
pub mod tied;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use chatgateway_config::ConfigErrors;
use chatgateway_config::yaml::Positions;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::args::{check, not_valid};
use crate::standalone::ports::Wanted;
use crate::standalone::redis::ManagedRedis;
use crate::standalone::secrets::{SecretArg, Secrets};
use crate::standalone::supervisor::{Supervisor, reachable};
use crate::validate::Validated;

/// How often the processes are looked at.
const TEND_INTERVAL: Duration = Duration::from_millis(100);

/// How often the manifest is read.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// The data plane's program.
const PROGRAM: &str = "chatgateway-dataplane";

/// What a process ended by a second Ctrl-C answers, by convention.
const EXIT_INTERRUPTED: u8 = 130;

/// Arguments of `standalone`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The manifest: one ChatGateway
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Port of WebSocket, HTTP and the chat page. 0: any free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    http_port: u16,
    /// Port of gRPC. 0: any free one
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    grpc_port: u16,
    /// Port of health, metrics and status of the first process; others take the next free ones. 0: any free one
    #[arg(long, value_name = "PORT", default_value_t = 8081)]
    admin_port: u16,
    /// Address to listen on. Without authentication in front, think before you open it to others
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: IpAddr,
    /// A Secret's value from a file. Or set CHATGATEWAY_SECRET_<NAME>_<KEY> in the environment
    #[arg(long = "secret", value_name = "NAME/KEY=FILE")]
    secrets: Vec<SecretArg>,
    /// Where a managed Redis keeps its data between runs. By default it goes when this ends
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The data plane's program. By default the one beside this program
    #[arg(long, value_name = "PATH")]
    dataplane: Option<PathBuf>,
}

/// Tells the user something.
pub(crate) fn say(text: &str) {
    // Where nobody reads, there is nobody to tell.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Runs a gateway until a Ctrl-C or SIGTERM, then drains it.
///
/// # Errors
/// Where it cannot be started: the manifest is wrong, a port is in use, a Secret or the program is missing.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Runner::start(args))
}

/// A gateway that runs.
struct Runner {
    file: PathBuf,
    /// What was read of the file last, right or wrong.
    text: String,
    /// Why the file could not be read, when it was tried last.
    unreadable: Option<String>,
    secrets: Secrets,
    supervisor: Supervisor,
    /// The managed Redis, while the gateway has one.
    redis: Option<ManagedRedis>,
    /// Where its data goes.
    data: PathBuf,
    /// Whether the data stays.
    data_stays: bool,
}

impl Runner {
    async fn start(args: Args) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::new()?;
        let text = read(&args.file)?;
        // The folder goes when this ends, so it must outlive the processes.
        let work = tempfile::Builder::new().prefix("chatgateway-").tempdir().context("cannot make a work folder")?;
        let mut secrets = Secrets::new(args.secrets, work.path().join("secrets"));
        let gateway = accept(&text, &secrets).map_err(|errors| not_valid(&args.file, &errors))?;
        if gateway.replicas() == 0 {
            bail!("{}: spec.replicas is 0, so there is nothing to run", args.file.display());
        }
        let program = program(args.dataplane)?;
        let wanted = Wanted { bind: args.bind, http: args.http_port, grpc: args.grpc_port, admin: args.admin_port };
        let shared = wanted.take(gateway.replicas())?;
        secrets.write(&gateway)?;
        let folder = work.path().to_owned();
        let in_folder = secrets.folder().to_owned();
        let data_stays = args.data_dir.is_some();
        let data = match args.data_dir {
            // The server works in it, so it must be found from there.
            Some(folder) => std::path::absolute(folder).context("--data-dir")?.join("redis"),
            None => work.path().join("data"),
        };
        let supervisor = Supervisor::new(gateway, program, folder, in_folder, wanted, shared);
        let file = args.file;
        let mut runner = Self { file, text, unreadable: None, secrets, supervisor, redis: None, data, data_stays };
        let managed = runner.supervisor.gateway().managed_redis().is_some();
        tokio::select! {
            started = runner.begin(managed) => started?,
            () = signals.next() => return Ok(runner.stop(&mut signals).await),
        }
        runner.greet();
        tokio::select! {
            () = runner.follow() => {}
            () = signals.next() => {}
        }
        Ok(runner.stop(&mut signals).await)
    }

    /// Starts everything, and waits until it takes clients.
    async fn begin(&mut self, managed: bool) -> anyhow::Result<()> {
        if managed {
            self.start_redis().await?;
        }
        self.supervisor.fill().await
    }

    /// Starts the managed Redis, unless it runs.
    async fn start_redis(&mut self) -> anyhow::Result<()> {
        if self.redis.is_some() {
            return Ok(());
        }
        let redis = ManagedRedis::start(&self.supervisor.folder.join("redis"), &self.data).await?;
        say(&format!("started redis on {}", redis.at.endpoint));
        self.supervisor.redis = Some(redis.at.clone());
        self.redis = Some(redis);
        Ok(())
    }

    /// Ends a managed Redis that the gateway no longer asks for, once the last process that uses it has gone.
    async fn spare_redis(&mut self) {
        let wanted = self.supervisor.gateway().managed_redis().is_some() || self.supervisor.some_leave();
        if let Some(redis) = self.redis.as_mut().filter(|_| !wanted) {
            redis.leave();
            redis.gone().await;
            say("redis has gone: it is not asked for any more");
            self.redis = None;
            self.supervisor.redis = None;
        }
    }

    /// Follows the file, the secrets and the processes, for ever. May be dropped at any point: every process is known.
    async fn follow(&mut self) {
        let mut tend = interval(TEND_INTERVAL);
        let mut watch = interval(WATCH_INTERVAL);
        loop {
            tokio::select! {
                _ = tend.tick() => {
                    self.supervisor.tend().await;
                    self.spare_redis().await;
                }
                _ = watch.tick() => {
                    self.look_at_file().await;
                    self.look_at_secrets();
                }
            }
        }
    }

    async fn look_at_file(&mut self) {
        let text = match read(&self.file) {
            Ok(text) => text,
            Err(error) => {
                let reason = format!("{error:#}");
                if self.unreadable.as_ref() != Some(&reason) {
                    say(&format!("{reason}; the gateway runs on as it is"));
                    self.unreadable = Some(reason);
                }
                return;
            }
        };
        self.unreadable = None;
        if text == self.text {
            return;
        }
        self.text = text;
        let gateway = match accept(&self.text, &self.secrets) {
            Ok(gateway) => gateway,
            Err(errors) => {
                say(&format!("{}", not_valid(&self.file, &errors)));
                return say("the gateway runs on as it is");
            }
        };
        if gateway == *self.supervisor.gateway() {
            return say(&format!("{} has changed, but nothing that it asks for", self.file.display()));
        }
        match self.apply(gateway).await {
            Ok(()) => say(&format!("{} is applied", self.file.display())),
            Err(error) => say(&format!("the edit is not applied; the gateway runs on as it was: {error:#}")),
        }
    }

    async fn apply(&mut self, gateway: Validated) -> anyhow::Result<()> {
        self.secrets.write(&gateway)?;
        if gateway.managed_redis().is_some() {
            self.start_redis().await?;
        }
        self.supervisor.apply(gateway).await
    }

    fn look_at_secrets(&mut self) {
        // A file that is away for a moment, while it is rotated, is no news.
        for secret in self.secrets.write(self.supervisor.gateway()).unwrap_or_default() {
            say(&format!("Secret {}/{} has changed and is passed on", secret.name, secret.key));
        }
    }

    /// Drains all processes, and then ends what they needed. A second signal kills them.
    async fn stop(&mut self, signals: &mut Signals) -> ExitCode {
        self.supervisor.reap(Instant::now());
        self.supervisor.leave();
        if !self.supervisor.is_empty() {
            let most = self.supervisor.drain_time().as_secs();
            say(&format!("draining: running answers are finished, {most} s at most; Ctrl-C again stops at once"));
        }
        let mut tend = interval(TEND_INTERVAL);
        let mut code = ExitCode::SUCCESS;
        while !self.supervisor.is_empty() {
            tokio::select! {
                _ = tend.tick() => self.supervisor.reap(Instant::now()),
                () = signals.next() => {
                    self.supervisor.kill();
                    code = ExitCode::from(EXIT_INTERRUPTED);
                }
            }
        }
        self.supervisor.last_words().await;
        if let Some(mut redis) = self.redis.take() {
            if code == ExitCode::SUCCESS {
                redis.leave()
            } else {
                redis.kill()
            }
            loop {
                tokio::select! {
                    () = redis.gone() => break,
                    () = signals.next() => {
                        redis.kill();
                        code = ExitCode::from(EXIT_INTERRUPTED);
                    }
                }
            }
        }
        say("stopped");
        code
    }

    /// What runs, and how to reach it.
    fn greet(&self) {
        let supervisor = &self.supervisor;
        let gateway = supervisor.gateway();
        let bind = supervisor.wanted.bind;
        let http = SocketAddr::new(reachable(bind), supervisor.shared.http);
        let grpc = SocketAddr::new(reachable(bind), supervisor.shared.grpc);
        let count = match gateway.replicas() {
            1 => "one process".to_owned(),
            count => format!("{count} processes"),
        };
        let everywhere = if bind.is_unspecified() { ", on all addresses of this machine" } else { "" };
        let store = if gateway.uses_redis() { "Redis" } else { "memory" };
        say(&format!("\n{} is ready: {count}, sessions in {store}{everywhere}", gateway.name()));
        say(&format!("  page       http://{http}/"));
        say(&format!("  WebSocket  ws://{http}/ws"));
        say(&format!("  gRPC       {grpc}"));
        for process in supervisor.serving() {
            let id = process.id().unwrap_or_default();
            say(&format!("  admin      http://{}/status  ({}, process {id})", process.admin, process.name));
        }
        if let Some(ManagedRedis { at, .. }) = &self.redis {
            let data = match self.data_stays {
                true => format!("its data stays in {}", self.data.display()),
                false => "its data goes with this run, --data-dir DIR keeps it".to_owned(),
            };
            say(&format!("  redis      {}  (password in {}; {data})", at.endpoint, at.password_file.display()));
        } else if self.data_stays {
            say("--data-dir is not used: the gateway has no managed Redis");
        }
        say(&format!(
            "  try        curl -N http://{http}/v1/sessions/hello/turns -H 'content-type: application/json' \
             -H 'accept: text/event-stream' -d '{{\"turn\": \"'$(date +%s)'\", \"text\": \"Hello\"}}'"
        ));
        let only_in_clusters = only_in_clusters(gateway);
        if !only_in_clusters.is_empty() {
            say(&format!("Not used here, only in a cluster: {}", only_in_clusters.join(", ")));
        }
        say(&format!("Edit {} and it is applied. Ctrl-C drains and stops.\n", self.file.display()));
    }
}

/// Fields that are set and that mean nothing on this machine.
fn only_in_clusters(gateway: &Validated) -> Vec<&'static str> {
    let spec = gateway.spec();
    let pod = spec.pod.as_ref().is_some_and(|pod| *pod != chatgateway_api::Pod::default());
    let fields = [
        ("spec.image", spec.image.is_some()),
        ("spec.service", spec.service.is_some()),
        ("spec.pod", pod),
        (
            "spec.sessions.store.redis.managed.storage",
            gateway.managed_redis().is_some_and(|redis| redis.storage.is_some()),
        ),
        ("spec.overrides", !spec.overrides.is_empty()),
    ];
    fields.into_iter().filter_map(|(name, set)| set.then_some(name)).collect()
}

/// Reads, checks, and makes sure that every Secret has a value.
fn accept(text: &str, secrets: &Secrets) -> Result<Validated, ConfigErrors> {
    let (gateway, _) = check(text)?;
    secrets.check(&gateway).map_err(|errors| Positions::of(text).locate(errors))?;
    Ok(gateway)
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The data plane's program: as given, or beside this one.
fn program(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let program = match given {
        Some(path) => path,
        None => std::env::current_exe().context("cannot find this program's folder")?.with_file_name(PROGRAM),
    };
    if !program.is_file() {
        bail!("{} is not there; build it (cargo build -p {PROGRAM}) or give --dataplane PATH", program.display());
    }
    Ok(program)
}

/// Ticks that do not catch up on those that were missed.
fn interval(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The signals that end the runner.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let hear = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: hear(SignalKind::interrupt())?,
            terminate: hear(SignalKind::terminate())?,
            hangup: hear(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
