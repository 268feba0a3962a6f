//! The operator as a process on a control plane.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::{ControlPlane, Process};

/// A running operator. It ends when this is dropped.
pub struct Operator {
    process: Process,
}

/// How one is started.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// Where it finds the API server.
    pub kubeconfig: &'a Path,
    /// The namespace it looks after; all, where left out.
    pub namespace: Option<&'a str>,
    /// The namespace of its Lease; it acts without one, where left out.
    pub lease_namespace: Option<&'a str>,
}

impl Operator {
    /// Starts one with all rights for all namespaces; its output goes to a file in `dir`.
    ///
    /// # Errors
    /// Where its program was not built.
    pub fn start(plane: &ControlPlane, dir: &Path) -> anyhow::Result<Self> {
        let start = Start { kubeconfig: plane.kubeconfig(), namespace: None, lease_namespace: Some("default") };
        Self::start_as(&start, dir)
    }

    /// The same, as it is told.
    ///
    /// # Errors
    /// Where its program was not built.
    pub fn start_as(start: &Start<'_>, dir: &Path) -> anyhow::Result<Self> {
        Self::start_with(start, dir, &[])
    }

    /// The same, with more arguments.
    ///
    /// # Errors
    /// Where its program was not built.
    pub fn start_with(start: &Start<'_>, dir: &Path, more: &[&str]) -> anyhow::Result<Self> {
        let mut args = vec!["run", "--listen", "127.0.0.1:0"];
        match start.lease_namespace {
            Some(namespace) => args.extend(["--lease-namespace", namespace]),
            None => args.push("--no-leader-election"),
        }
        if let Some(namespace) = start.namespace {
            args.extend(["--namespace", namespace]);
        }
        let args: Vec<_> = args.iter().chain(more).map(|arg| (*arg).to_owned()).collect();
        let env = [("KUBECONFIG", start.kubeconfig), ("RUST_LOG", Path::new("info"))];
        Ok(Self { process: Process::start_with(&program()?, &args, dir, &env)? })
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Whether it has said this.
    pub fn said(&self, words: &str) -> bool {
        self.process.log().contains(words)
    }

    /// Whether it is the one that acts.
    pub fn acts(&self) -> bool {
        self.said("this operator acts")
    }

    /// The sum of a counter over its labels.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn metric(&self, name: &str) -> anyhow::Result<u64> {
        let log = self.process.log();
        let address = log.lines().find_map(|line| line.split_once("\"address\":\"")?.1.split('"').next());
        let url = format!("http://{}/metrics", address.context("the operator has not said where it listens")?);
        let output = Command::new("curl").args(["-sf", "--max-time", "5", &url]).output().context("curl")?;
        anyhow::ensure!(output.status.success(), "{url} does not answer");
        let text = String::from_utf8(output.stdout)?;
        let counts = text.lines().filter(|line| line.starts_with(name));
        Ok(counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
    }
}

/// The operator's program beside this one.
fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside =
        own.ancestors().skip(1).take(2).map(|dir| dir.join("chatgateway-operator")).find(|path| path.is_file());
    beside.context("no chatgateway-operator beside this program: build it first (cargo build -p chatgateway-operator)")
}
