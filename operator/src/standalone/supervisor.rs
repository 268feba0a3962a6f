//! The data-plane processes of one gateway: started, watched, replaced and drained.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use chatgateway_config::needs_restart;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::plan::{ManagedAt, Place, Rendered, render};
use crate::standalone::files::replace;
use crate::standalone::ports::{SharedPorts, Wanted};
use crate::standalone::process::{Process, describe, last_words};
use crate::standalone::{TEND_INTERVAL, interval, say};
use crate::validate::Validated;

/// Pause before a process that died is started again; each further one is twice as long.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(500);

/// Longest such pause.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Who stayed up for so long starts with the shortest pause again.
const STEADY_AFTER: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    /// The data plane's program.
    pub program: PathBuf,
    /// Where configuration files go.
    pub folder: PathBuf,
    /// Where Secrets are.
    pub secrets: PathBuf,
    /// What the command line asks for.
    pub wanted: Wanted,
    /// Ports that all processes share.
    pub shared: SharedPorts,
    /// Where the managed Redis is, once it runs.
    pub redis: Option<ManagedAt>,
    gateway: Validated,
    processes: Vec<Process>,
    started: usize,
    revision: usize,
    restart: Restart,
    /// Logs of processes that have ended.
    logs: Vec<JoinHandle<()>>,
}

/// When the next process may be started after one died.
#[derive(Debug)]
struct Restart {
    pause: Duration,
    not_before: Option<Instant>,
    last_death: Option<Instant>,
}

impl Supervisor {
    /// A supervisor of a gateway of which nothing runs yet.
    pub fn new(
        gateway: Validated,
        program: PathBuf,
        folder: PathBuf,
        secrets: PathBuf,
        wanted: Wanted,
        shared: SharedPorts,
    ) -> Self {
        let restart = Restart { pause: RESTART_PAUSE_MIN, not_before: None, last_death: None };
        Self {
            program,
            folder,
            secrets,
            wanted,
            shared,
            redis: None,
            gateway,
            processes: Vec::new(),
            started: 0,
            revision: 1,
            restart,
            logs: Vec::new(),
        }
    }

    /// The gateway that is to run.
    pub fn gateway(&self) -> &Validated {
        &self.gateway
    }

    /// Processes that are not told to leave.
    pub fn serving(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().filter(|process| process.leaving.is_none())
    }

    /// Whether some processes are told to leave and have not gone yet.
    pub fn some_leave(&self) -> bool {
        self.processes.iter().any(|process| process.leaving.is_some())
    }

    /// Whether no process is left.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// Starts what is missing, and waits until all of it takes clients.
    ///
    /// # Errors
    /// Where a process does not get there.
    pub async fn fill(&mut self) -> anyhow::Result<()> {
        while self.serving().count() < self.gateway.replicas() {
            self.start().await?;
        }
        Ok(())
    }

    /// Brings the processes to another gateway: by a reload where that is enough, else by replacing them one by one.
    ///
    /// # Errors
    /// Where a process does not take it. Then those that run go on as they were.
    pub async fn apply(&mut self, new: Validated) -> anyhow::Result<()> {
        let (before, after) = (self.render(&self.gateway, 0)?, self.render(&new, 0)?);
        let cold = needs_restart(&before.settings, &after.settings);
        let changed = before.settings.hash != after.settings.hash;
        let old = std::mem::replace(&mut self.gateway, new);
        let applied = if !cold.is_empty() {
            say(&format!("replacing the processes: {} cannot change while they run", cold.join(", ")));
            self.roll(old.uses_redis() && self.gateway.uses_redis()).await
        } else if changed {
            self.reload().await
        } else {
            Ok(())
        };
        if let Err(error) = applied {
            self.gateway = old;
            return Err(error);
        }
        self.trim().await;
        self.fill().await
    }

    /// Writes the new configuration into the file of each process, and waits until each runs it.
    async fn reload(&mut self) -> anyhow::Result<()> {
        let mut done = Vec::new();
        let mut failed = None;
        for index in 0..self.processes.len() {
            if self.processes[index].leaving.is_some() {
                continue;
            }
            let rendered = self.render(&self.gateway, self.processes[index].admin.port())?;
            let process = &mut self.processes[index];
            let old = std::fs::read(&process.config).context("cannot read a configuration file")?;
            replace(&process.config, rendered.text.as_bytes())?;
            done.push((index, old));
            if let Err(error) = process.reloaded(&rendered.settings.hash).await {
                failed = Some(error);
                break;
            }
            process.drain = rendered.settings.drain.timeout;
            say(&format!("reloaded {}: configuration {}", process.name, short(&rendered.settings.hash)));
        }
        let Some(error) = failed else { return Ok(()) };
        for (index, old) in done {
            replace(&self.processes[index].config, &old)?;
        }
        Err(error)
    }

    /// Replaces the processes one by one: the new one takes clients before the old one is told to leave, and the old one has
    /// gone before the next one's turn comes. `kept`: whether sessions outlive them.
    async fn roll(&mut self, kept: bool) -> anyhow::Result<()> {
        let old: Vec<_> = self.serving().map(|process| process.name.clone()).collect();
        self.revision += 1;
        let mut before: Option<String> = None;
        for name in old {
            if let Some(before) = before.take() {
                self.gone(&before).await;
            }
            if !self.serving().any(|process| process.name == name) {
                continue;
            }
            let replacement = self.start().await?;
            let fate = if kept { "" } else { ", and its sessions end with it" };
            let Some(process) = self.processes.iter_mut().find(|process| process.name == name) else { continue };
            let most = process.drain.as_secs();
            say(&format!("{replacement} takes clients; {name} drains, {most} s at most{fate}"));
            process.leave();
            before = Some(name);
        }
        Ok(())
    }

    /// Tells those to leave that are more than asked for, the newest first and one by one.
    async fn trim(&mut self) {
        let want = self.gateway.replicas();
        let mut before: Option<String> = None;
        loop {
            if let Some(before) = before.take() {
                self.gone(&before).await;
            }
            if self.serving().count() <= want {
                return;
            }
            let newest = self.processes.iter_mut().rev().find(|process| process.leaving.is_none());
            let Some(process) = newest else { return };
            say(&format!("{} drains: {want} replicas are asked for", process.name));
            process.leave();
            before = Some(process.name.clone());
        }
    }

    /// Waits until a process that was told to leave has gone, and looks after the others meanwhile.
    async fn gone(&mut self, name: &str) {
        let mut ticks = interval(TEND_INTERVAL);
        while self.processes.iter().any(|process| process.name == name) {
            ticks.tick().await;
            self.tend().await;
        }
    }

    /// Starts one more process and waits until it takes clients; its name.
    async fn start(&mut self) -> anyhow::Result<String> {
        let used: BTreeSet<_> = self.processes.iter().map(|process| process.admin.port()).collect();
        let port = self.wanted.admin_port(&used, &self.shared, self.gateway.replicas())?;
        let rendered = self.render(&self.gateway, port)?;
        self.started += 1;
        let name = format!("{}-{}", self.gateway.name(), self.started);
        let config = self.folder.join(format!("{name}.yaml"));
        replace(&config, rendered.text.as_bytes())?;
        let admin = SocketAddr::new(reachable(self.wanted.bind), port);
        let drain = rendered.settings.drain.timeout;
        let mut process = Process::start(&self.program, name.clone(), config, admin, drain)?;
        let id = process.id().unwrap_or_default();
        say(&format!("started {name}: process {id}, admin http://{admin}/status"));
        // Where this is dropped meanwhile, the process is killed: nobody was told of it.
        process.ready(&rendered.settings.hash).await?;
        self.processes.push(process);
        Ok(name)
    }

    /// Looks after the processes: says who has gone, kills who stays too long, starts again who died.
    pub async fn tend(&mut self) {
        let now = Instant::now();
        self.reap(now);
        let restart = &mut self.restart;
        if restart.last_death.is_some_and(|death| now >= death + STEADY_AFTER) {
            *restart = Restart { pause: RESTART_PAUSE_MIN, not_before: None, last_death: None };
        }
        if self.serving().count() >= self.gateway.replicas() || restart_pending(&self.restart, now) {
            return;
        }
        match self.start().await {
            Ok(name) => say(&format!("{name} takes clients")),
            Err(error) => {
                say(&format!("error: {error:#}"));
                self.died();
            }
        }
    }

    fn died(&mut self) -> Duration {
        let now = Instant::now();
        let pause = self.restart.pause;
        self.restart =
            Restart { pause: (pause * 2).min(RESTART_PAUSE_MAX), not_before: Some(now + pause), last_death: Some(now) };
        pause
    }

    /// Takes those off the list that have ended, and kills those whose time is up.
    pub fn reap(&mut self, now: Instant) {
        let mut index = 0;
        while index < self.processes.len() {
            let process = &mut self.processes[index];
            let Some(status) = process.ended() else {
                if process.leaving.is_some_and(|leaving| now >= leaving.until) {
                    say(&format!("{} did not end in time and is killed", process.name));
                    process.kill();
                }
                index += 1;
                continue;
            };
            let mut process = self.processes.remove(index);
            self.logs.retain(|log| !log.is_finished());
            self.logs.extend(process.take_logs());
            // Only a leftover in a folder that goes anyway.
            let _ = std::fs::remove_file(&process.config);
            match process.leaving {
                Some(leaving) => {
                    let took = leaving.since.elapsed().as_secs_f64();
                    say(&format!("{} has drained and gone after {took:.1} s ({})", process.name, describe(status)));
                }
                None => {
                    let pause = self.died().as_secs_f64();
                    let lost = match self.gateway.uses_redis() {
                        true => "others take its sessions over",
                        false => "sessions in its memory are lost",
                    };
                    let name = &process.name;
                    say(&format!("{name} died ({}); {lost}; starting another in {pause:.1} s", describe(status)));
                }
            }
        }
    }

    /// Waits for the last log lines of those that have gone.
    pub async fn last_words(&mut self) {
        last_words(std::mem::take(&mut self.logs)).await;
    }

    /// Tells all to leave.
    pub fn leave(&mut self) {
        for process in self.processes.iter_mut().filter(|process| process.leaving.is_none()) {
            process.leave();
        }
    }

    /// Ends all at once.
    pub fn kill(&mut self) {
        for process in &mut self.processes {
            process.kill();
        }
    }

    /// How long the processes may finish what runs when they are told to leave.
    pub fn drain_time(&self) -> Duration {
        self.processes.iter().map(|process| process.drain).max().unwrap_or_default()
    }

    fn render(&self, gateway: &Validated, admin_port: u16) -> anyhow::Result<Rendered> {
        let place = Place {
            bind: self.wanted.bind,
            http_port: self.shared.http,
            grpc_port: self.shared.grpc,
            admin_port,
            // Also with one replica: its successor takes clients before it leaves.
            reuse_port: true,
            secrets: self.secrets.clone(),
            managed_redis: self.redis.clone(),
            revision: Some(self.revision.to_string()),
        };
        Ok(render(gateway, &place)?)
    }
}

fn restart_pending(restart: &Restart, now: Instant) -> bool {
    restart.not_before.is_some_and(|not_before| now < not_before)
}

/// The beginning of a hash, as people compare them.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// An address at which what is bound to `bind` is reached from this machine.
pub fn reachable(bind: IpAddr) -> IpAddr {
    match bind {
        IpAddr::V4(address) if address.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(address) if address.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        address => address,
    }
}
