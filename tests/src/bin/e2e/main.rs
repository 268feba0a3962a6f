//! A gateway on a real cluster, with crowds of clients, while what happens to clusters happens to it: then the checker says whether
//! a turn or a token was lost or told twice.
//!
//! It runs where addresses of Services are reached, with the operator and the model server in place: tests/e2e/run.sh does that.

mod cluster;
mod crowd;
mod diagnose;
mod disturb;
mod edits;
mod rows;
mod scaling;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::Context as _;
use clap::Parser;

use self::{
    cluster::Cluster,
    rows::{ROWS, Row},
};

/// Runs a gateway on a cluster through what happens to clusters, with clients and a checker of what they were told.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// What to do, by name; everything if none is given
    #[arg(value_parser = row)]
    rows: Vec<&'static Row>,
    /// The gateway's namespace; the model server is there, too
    #[arg(long, default_value = "chat")]
    namespace: String,
    /// The gateway
    #[arg(long, default_value = "assistant")]
    gateway: String,
    /// The model server's Service
    #[arg(long, default_value = "model-server")]
    model: String,
    /// The namespace of the operator
    #[arg(long, default_value = "chatgateway-system")]
    system: String,
    /// Another image of the data plane than the one that the gateway has, for the rolling update
    #[arg(long, env = "E2E_OTHER_IMAGE")]
    other_image: Option<String>,
    /// Clients; each has an answer under way nearly all of the time
    #[arg(long, default_value_t = 330)]
    clients: u32,
    /// Where logs go
    #[arg(long, default_value = "target/e2e")]
    logs: PathBuf,
}

fn row(name: &str) -> Result<&'static Row, String> {
    let known = || ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
    ROWS.iter().find(|row| row.name == name).ok_or_else(|| format!("not one of {}", known()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.context("a runtime").and_then(|runtime| runtime.block_on(run(arguments))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    std::fs::create_dir_all(&arguments.logs).with_context(|| arguments.logs.display().to_string())?;
    let rows = if arguments.rows.is_empty() { ROWS.iter().collect() } else { arguments.rows.clone() };
    let cluster = Cluster::find(arguments).await?;
    let mut bad = Vec::new();
    for row in rows {
        println!("\n== {}: {}", row.name, row.what);
        let began = Instant::now();
        match (row.run)(&cluster).await {
            Ok(()) => println!("   good, {:.0} s", began.elapsed().as_secs_f64()),
            Err(error) => {
                println!("   BAD, {:.0} s: {error:#}", began.elapsed().as_secs_f64());
                diagnose::print(&cluster).await;
                bad.push(row.name);
                // The next one is not to suffer for it.
                cluster.settled().await.context("the gateway did not recover; the other rows are left out")?;
            }
        }
    }
    anyhow::ensure!(bad.is_empty(), "bad: {}", bad.join(", "));
    println!("\neverything is good");
    Ok(())
}
