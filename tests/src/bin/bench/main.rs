//! Speed and memory of the data plane, against baselines measured in the same run.

mod closed;
mod echo;
mod grpc;
mod memory;
mod open;
mod redis;
mod report;
mod setup;
mod streams;
mod upstream;
mod wire;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use chatgateway_tests::{
    process::on_core,
    simulator::{Behaviour, Settings, Simulator},
};
use clap::{Parser, Subcommand, ValueEnum};

use report::Row;
use setup::Setup;
use wire::Mode;

/// Longest one case may take.
const CASE_TIMEOUT: Duration = Duration::from_secs(1_800);

/// Measures the data plane beside this program, and prints a table. Exit code 1: a figure that must hold does not.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    run: Run<Case>,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What is run, and how.
#[derive(clap::Args)]
struct Run<C: ValueEnum + Send + Sync + 'static> {
    /// Run only this case; may be given several times
    #[arg(long, value_enum)]
    case: Vec<C>,
    /// Short runs: shows that everything works, the figures are rough
    #[arg(long)]
    quick: bool,
    /// Write the rows to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Other cases, and processes of their own that the cases start.
#[derive(Subcommand)]
enum Part {
    /// Sessions in Redis: what they cost and survive
    Redis(Run<redis::Case>),
    /// Model servers under pressure: batching, overload, a dead server, limits
    Upstream(Run<upstream::Case>),
    /// A bare WebSocket echo, a baseline
    #[command(hide = true)]
    EchoWs,
    /// A bare gRPC echo, a baseline
    #[command(hide = true)]
    EchoGrpc,
    /// A bare relay from a model server to WebSockets, a baseline
    #[command(hide = true)]
    RelayWs { model: SocketAddr },
    /// A model server whose tokens are their send times
    #[command(hide = true)]
    Model { tokens: u32, tokens_per_second: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Memory of idle connections
    Idle,
    /// Memory after large answers, JSON
    BigAnswers,
    /// Memory after large answers, plain text
    BigAnswersPlain,
    /// Turns a second, plain text
    TurnsPlain,
    /// Turns a second, JSON frames
    TurnsJson,
    /// Turns a second, gRPC
    TurnsGrpc,
    /// A thousand clients in an open loop
    Clients,
    /// What is added to tokens of 500 streams
    Streams,
    /// The baselines alone, without a gateway; runs only when named
    Baselines,
}

impl Case {
    /// Those that run where none is named.
    fn all() -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|case| *case != Self::Baselines).collect()
    }

    async fn run(self, setup: &Setup) -> anyhow::Result<Vec<Row>> {
        match self {
            Self::Idle => memory::idle(setup).await,
            Self::BigAnswers => memory::big_answers(setup, Mode::Json).await,
            Self::BigAnswersPlain => memory::big_answers(setup, Mode::Plain).await,
            Self::TurnsPlain => closed::run(setup, Mode::Plain).await,
            Self::TurnsJson => closed::run(setup, Mode::Json).await,
            Self::TurnsGrpc => grpc::run(setup).await,
            Self::Clients => open::run(setup).await,
            Self::Streams => streams::run(setup).await,
            Self::Baselines => {
                let mut rows = closed::baseline(setup).await?;
                rows.extend(streams::baseline(setup).await?);
                Ok(rows)
            }
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.part {
        Some(Part::EchoWs) => runtime.block_on(echo::websocket()).map(|()| ExitCode::SUCCESS),
        Some(Part::EchoGrpc) => runtime.block_on(grpc::serve_echo()).map(|()| ExitCode::SUCCESS),
        Some(Part::RelayWs { model }) => runtime.block_on(redis::bare::serve_relay(model)).map(|()| ExitCode::SUCCESS),
        Some(Part::Model { tokens, tokens_per_second }) => serve_model(tokens, tokens_per_second),
        Some(Part::Redis(run)) => {
            let all = redis::Case::value_variants().to_vec();
            measure(&runtime, &run, all, async |case, setup| case.run(setup).await)
        }
        Some(Part::Upstream(run)) => {
            let all = upstream::Case::value_variants().to_vec();
            measure(&runtime, &run, all, async |case, setup| case.run(setup).await)
        }
        None => measure(&runtime, &arguments.run, Case::all(), async |case, setup| case.run(setup).await),
    }
}

fn serve_model(tokens: u32, tokens_per_second: u32) -> anyhow::Result<ExitCode> {
    let behaviour = Behaviour {
        tokens,
        tokens_per_second: f64::from(tokens_per_second),
        first_token_ms: 20.0,
        stamp: true,
        ..Behaviour::default()
    };
    let simulator = Simulator::start(Settings { behaviour, ..Settings::default() })?;
    println!("listening on {}", simulator.address());
    simulator.join();
    Ok(ExitCode::SUCCESS)
}

/// Runs the cases on the generator's core, and prints their rows.
fn measure<C: ValueEnum + Copy + Send + Sync>(
    runtime: &tokio::runtime::Runtime,
    run: &Run<C>,
    all: Vec<C>,
    measured: impl AsyncFn(C, &Setup) -> anyhow::Result<Vec<Row>>,
) -> anyhow::Result<ExitCode> {
    let setup = Setup::new(run.quick);
    println!("{}\n", setup::machine(&setup)?);
    let cases = if run.case.is_empty() { all } else { run.case.clone() };
    let (mut rows, mut broken) = (Vec::new(), 0);
    for case in cases {
        let name = case.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        eprintln!("running {name} ...");
        let timed = async { tokio::time::timeout(CASE_TIMEOUT, Box::pin(measured(case, &setup))).await };
        let ran = on_core(setup.generator_core, || Ok(runtime.block_on(timed)))?;
        match ran.unwrap_or_else(|_| Err(anyhow::anyhow!("not done in {} s", CASE_TIMEOUT.as_secs()))) {
            Ok(more) => rows.extend(more),
            Err(error) => {
                broken += 1;
                eprintln!("case {name} failed: {error:#}\n");
            }
        }
    }
    println!("{}", report::table(&rows));
    if let Some(file) = &run.json {
        std::fs::write(file, serde_json::to_vec_pretty(&rows)?)?;
    }
    let failed = rows.iter().filter(|row| !row.passes()).count();
    println!("{} figures, {failed} below what must hold, {broken} cases that did not run", rows.len());
    Ok(if failed + broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
