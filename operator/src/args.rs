//! The command line.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use chatgateway_config::ConfigErrors;
use clap::{Args, Parser, Subcommand};

use crate::plan::Change;
use crate::plan::objects::{self, Observed, Release};
use crate::validate::{Validated, validate};
use crate::{controller, manifest, standalone, standalone::tied};

const AFTER_HELP: &str = "\
Start here:
  chatgateway-operator standalone -f examples/quickstart.yaml   run a gateway on this machine
  chatgateway-operator plan -f FILE                             check a manifest, see what it would run
  chatgateway-operator crds                                     print the resource's definition for a cluster";

/// Runs ChatGateway resources: a chat edge in front of language models.
#[derive(Debug, Parser)]
#[command(name = "chatgateway-operator", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a ChatGateway on this machine, and follow the edits of its file
    Standalone(standalone::Args),
    /// Look after the ChatGateways of a cluster
    Run(controller::Args),
    /// Check a ChatGateway and print what would be run
    Plan(PlanArgs),
    /// Print the CustomResourceDefinition
    Crds,
    /// Become a program that ends with the process that starts it: what `standalone` runs its processes with
    #[command(hide = true)]
    Tied(tied::Args),
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
struct PlanArgs {
    /// The manifest
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// The manifest before the edit: says whether the edit reloads, rolls, scales or drains
    #[arg(long, alias = "from", value_name = "OLD")]
    against: Option<PathBuf>,
    /// Also print the PodMonitor, as in a cluster with the Prometheus operator
    #[arg(long)]
    pod_monitor: bool,
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// What went wrong, for people to read.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Standalone(args) => standalone::run(args),
            Command::Run(args) => controller::run(args),
            Command::Plan(args) => print(&plan(&args)?),
            Command::Crds => print(&crds()?),
            Command::Tied(args) => tied::run(args),
        }
    }
}

/// Writes to standard output. A reader that has gone, such as `head`, is no error.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The definition of the resource, as `crds/` has it.
///
/// # Errors
/// Where it cannot be written as YAML.
pub fn crds() -> anyhow::Result<String> {
    let yaml = serde_saphyr::to_string(&chatgateway_api::crd()?)?;
    Ok(format!("# Written by `make crds`. Edit operator/api instead.\n{yaml}"))
}

/// Reads and checks a manifest file; the gateway and its namespace.
///
/// # Errors
/// Everything that is wrong with it, with the file's name, the paths and the places.
pub fn load(file: &Path) -> anyhow::Result<(Validated, Option<String>)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    check(&text).map_err(|errors| not_valid(file, &errors))
}

/// Reads and checks a manifest; the gateway and its namespace.
pub(crate) fn check(text: &str) -> Result<(Validated, Option<String>), ConfigErrors> {
    let (gateway, positions) = manifest::read(text)?;
    let validated = validate(&gateway).map_err(|errors| positions.locate(errors))?;
    Ok((validated, gateway.metadata.namespace))
}

/// What is wrong with a file, one violation a line.
pub(crate) fn not_valid(file: &Path, errors: &ConfigErrors) -> anyhow::Error {
    let lines: String = errors.violations().iter().map(|violation| format!("\n  {violation}")).collect();
    anyhow::anyhow!("{} is not valid:{lines}", file.display())
}

fn plan(args: &PlanArgs) -> anyhow::Result<String> {
    let (gateway, namespace) = load(&args.file)?;
    let mut text = String::new();
    if let Some(old) = &args.against {
        let change = Change::between(&load(old)?.0, &gateway)?;
        for line in change.to_string().lines() {
            text.push_str(&format!("# {line}\n"));
        }
    }
    let observed = Observed { namespace, pod_monitors: args.pod_monitor, ..Observed::default() };
    let planned = objects::plan(&gateway, &observed, &Release::default())?;
    for object in planned.objects {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&object.value)?);
    }
    Ok(text)
}
