//! Starts a control plane and keeps it until it is interrupted: to try things by hand.

use chatgateway_control_plane::ControlPlane;

fn main() -> anyhow::Result<()> {
    let plane = ControlPlane::start()?;
    println!("export KUBECONFIG={}", plane.kubeconfig().display());
    println!("Ctrl-C ends it.");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::signal::ctrl_c())?;
    Ok(())
}
