//! Processes that end with the one that started them, also where that one is killed.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context;

/// The name of the command that ties a process.
const COMMAND: &str = "tied";

/// Arguments of `tied`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The process to be tied to: the one that starts this one
    parent: i32,
    /// The program to become
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<std::ffi::OsString>,
}

/// A command that runs a program tied to this process and the thread that starts it. Where the system cannot do that, it
/// runs the program alone.
pub fn command(program: &Path) -> tokio::process::Command {
    if !cfg!(target_os = "linux") {
        return tokio::process::Command::new(program);
    }
    // This very program, also where its file was replaced meanwhile.
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.arg(COMMAND).arg(std::process::id().to_string()).arg(program);
    command
}

/// Ties this process to its parent, and becomes the program. The process' id stays.
///
/// # Errors
/// Where the program cannot be started.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).context("cannot be tied to the parent")?;
    // It may have gone before that.
    if nix::unistd::getppid().as_raw() != args.parent {
        return Ok(ExitCode::FAILURE);
    }
    let error = Command::new(&args.program).args(&args.args).exec();
    Err(error).with_context(|| format!("cannot start {}", args.program.display()))
}
