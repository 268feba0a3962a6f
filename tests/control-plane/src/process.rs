//! A process that ends with this value.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a process may take to end when it is asked to.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two looks whether it has.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// See the module.
pub struct Process {
    child: Mutex<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts a program; its output goes to a file in `dir`.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(program: &Path, args: &[String], dir: &Path) -> anyhow::Result<Self> {
        Self::start_with(program, args, dir, &[])
    }

    /// The same, with variables in its environment.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start_with(program: &Path, args: &[String], dir: &Path, env: &[(&str, &Path)]) -> anyhow::Result<Self> {
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let log = dir.join(format!("{name}-{:08x}.log", rand::random::<u32>()));
        let file = File::create(&log)?;
        let child = Command::new(program)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn();
        let child = child.with_context(|| format!("{} could not be started", program.display()))?;
        Ok(Self { child: Mutex::new(child), log })
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child().id()
    }

    /// Whether it has not ended.
    pub fn is_running(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// Where the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child().id())?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }

    /// Waits for its end. None: it has not ended in that time.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn wait(&self, timeout: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.child().try_wait()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// The end of what it wrote.
    pub fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.signal(Signal::SIGTERM);
        let _ = self.wait(END_TIMEOUT);
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}
