//! Pods, a store, a model server and hundreds of clients, while everything that can break breaks: then the checker says
//! whether a turn or a token was lost or told twice.
//!
//! The seed decides the faults and their times, and of each client its transport, its turns and its choices. What the
//! clock decides is not repeated by it: which request meets which fault, and with that how often a client tries again.

mod ground;
mod schedule;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use chatgateway_tests::{
    history::{Expected, History, check},
    load::{Crowd, Mix, Transport, World, begin, read_calls, read_sessions, tell},
};
use clap::{Parser, ValueEnum};
use rand::RngExt as _;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use self::{
    ground::{Ground, Layout},
    schedule::{Planned, schedule},
};

/// How long clients wait for their last turns after the faults.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where sessions are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Store {
    /// In a Redis that all pods share.
    Redis,
    /// In the pod itself: for one pod.
    Memory,
}

/// Pods, a store and clients while everything breaks; then a check of what the clients were told.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Seconds of faults
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Decides the faults and what clients do; random if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Clients
    #[arg(long, default_value_t = 200)]
    clients: u32,
    /// Pods
    #[arg(long, default_value_t = 3)]
    pods: usize,
    /// Where sessions are kept
    #[arg(long, value_enum, default_value_t = Store::Redis)]
    store: Store,
    /// Redis keeps nothing on its disk: to see what the checker says of a store that loses turns
    #[arg(long)]
    lossy_store: bool,
    /// Whether the model continues partial answers; by the seed if not given
    #[arg(long)]
    prefill: Option<bool>,
    /// Clients of this transport only: websocket, grpc, sse, poll, post-sse or open-ai
    #[arg(long, value_parser = transport)]
    transport: Option<Transport>,
    /// The pods' log level
    #[arg(long, default_value = "info")]
    log_level: String,
    /// Where logs go; a directory that goes with a good end if not given
    #[arg(long)]
    logs: Option<PathBuf>,
}

fn transport(name: &str) -> Result<Transport, String> {
    let plain = |text: &str| text.to_lowercase().replace('-', "");
    let known = Transport::ALL.into_iter().find(|known| plain(&format!("{known:?}")) == plain(name));
    known.ok_or_else(|| format!("no such transport: {name}"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let done = runtime.context("a runtime").and_then(|runtime| runtime.block_on(run(&arguments)));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    anyhow::ensure!(arguments.pods > 0 && arguments.clients > 0, "there must be pods and clients");
    anyhow::ensure!(arguments.store == Store::Redis || arguments.pods == 1, "pods with Memory stores share nothing");
    let seed = arguments.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let (directory, temporary) = directory(arguments)?;
    let redis = arguments.store == Store::Redis;
    let prefill = arguments.prefill.unwrap_or(seed.is_multiple_of(2));
    println!("seed {seed}, prefill {prefill}, {arguments:?}\nlogs in {}", directory.display());
    let layout = Layout {
        pods: arguments.pods,
        redis,
        lossy_store: arguments.lossy_store,
        prefill,
        log_level: arguments.log_level.clone(),
        directory: directory.clone(),
    };
    let ground = Arc::new(Ground::lay(layout).await?);
    let history = History::default();
    let faults = schedule(seed, Duration::from_secs(arguments.seconds), arguments.pods, redis);

    let began = Instant::now();
    let stop = began + Duration::from_secs(arguments.seconds);
    let world = World::new(ground.clone(), history.clone(), stop, PATIENCE);
    let (clients, transport) = (arguments.clients, arguments.transport);
    let mut clients = begin(&Crowd { clients, seed, transport, sessions_after: 0, mix: Mix::default() }, &world);
    break_things(&ground, &faults, began).await;
    sleep_until(stop).await;
    if let Err(error) = ground.heal().await {
        ground.problem(format!("{error:#}"));
    }
    println!("{:7.2} s  all is healed; waiting for the last answers", began.elapsed().as_secs_f64());
    while let Some(ended) = clients.join_next().await {
        ended.context("a client")?;
    }
    let unread = read_sessions(&ground.http_addresses().await, &history).await;
    read_calls(ground.simulator().calls(), &history);
    println!("{:7.2} s  everything is read", began.elapsed().as_secs_f64());

    let records = history.take();
    let report = check(&records, &Expected::default());
    let mut problems = ground.problems();
    problems.extend(unread);
    problems.extend(ground::alarms(&directory)?);
    println!("\n{} faults", faults.len());
    let good = tell(&report, &records, &problems, &directory)?;
    match (good, temporary) {
        (true, Some(temporary)) => temporary.close()?,
        (false, Some(temporary)) => drop(temporary.keep()),
        (_, None) => {}
    }
    println!("{} seed {seed}", if good { "GOOD:" } else { "BAD:" });
    Ok(good)
}

fn directory(arguments: &Arguments) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    match &arguments.logs {
        Some(directory) => {
            std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
            Ok((directory.clone(), None))
        }
        None => {
            let temporary = tempfile::Builder::new().prefix("chaos-").tempdir()?;
            Ok((temporary.path().to_owned(), Some(temporary)))
        }
    }
}

/// Carries out the schedule, and waits until each fault has ended.
async fn break_things(ground: &Arc<Ground>, faults: &[Planned], began: Instant) {
    let mut going_on = JoinSet::new();
    for planned in faults {
        sleep_until(began + planned.at).await;
        println!("{planned}");
        let (ground, planned) = (ground.clone(), *planned);
        going_on.spawn(async move { ground.inflict(planned.slot, planned.fault).await });
    }
    while going_on.join_next().await.is_some() {}
}
