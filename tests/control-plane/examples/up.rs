//! Starts a control plane and keeps it until it is interrupted: for tests that are scripts, and to try things by hand.
//! `--audit FILE`: who asked it for what is written there.

use std::path::PathBuf;

use chatgateway_control_plane::ControlPlane;

fn main() -> anyhow::Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let audit = match args.as_slice() {
        [] => None,
        [flag, file] if flag == "--audit" => Some(PathBuf::from(file)),
        _ => anyhow::bail!("up [--audit FILE]"),
    };
    let plane = ControlPlane::start_audited(audit.as_deref())?;
    println!("export KUBECONFIG={}", plane.kubeconfig().display());
    println!("Ctrl-C ends it.");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::signal::ctrl_c())?;
    Ok(())
}
