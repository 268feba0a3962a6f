//! A crowd of clients around a disturbance.

use std::{
    future::Future,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context as _;
use chatgateway_tests::{
    history::{Expected, Figures, History, check},
    load::{Crowd, Mix, Transport, World, begin, read_calls, read_sessions, tell},
};
use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, wait_until};

/// How long a crowd may take to have its answers under way.
const LIVE: Duration = Duration::from_secs(60);

/// The part of the clients that must have an answer under way before something happens.
const LIVE_PART: f64 = 0.85;

/// How long answers go on after a disturbance, so that what it left behind shows.
const AFTERMATH: Duration = Duration::from_secs(5);

/// How long clients wait for their last turns.
const PATIENCE: Duration = Duration::from_secs(60);

/// A crowd lasts no longer than this: no disturbance does.
const LONGEST: Duration = Duration::from_secs(1_800);

/// What a crowd must not see, beyond what the checker looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Nobody is refused a connection.
    NoRefusedConnection,
    /// A pod that dies may refuse some until the network knows.
    Lossless,
}

/// What a crowd saw.
#[derive(Debug)]
pub struct Seen {
    /// The checker's counts.
    pub figures: Figures,
}

/// Each crowd has sessions of its own, also on a gateway that remembers those of a run before.
fn sessions_after() -> u32 {
    rand::rng().random_range(1..100_000) * 10_000
}

/// Answers of some ten seconds, so that nearly every client has one under way.
fn mix() -> Mix {
    Mix { words: (20, 50), more_words: 30, pace: (3.0, 6.0), faults: 0.0, pause: Duration::from_millis(800) }
}

/// Does something to the gateway under live answers on all transports, and checks what the clients were told.
pub async fn under_load<F>(cluster: &Cluster, demand: Demand, disturb: impl FnOnce() -> F) -> anyhow::Result<Seen>
where
    F: Future<Output = anyhow::Result<()>>,
{
    under(cluster, cluster.arguments.clients, demand, disturb).await
}

/// The same under the answers of so many clients.
pub async fn under<F>(
    cluster: &Cluster,
    clients: u32,
    demand: Demand,
    disturb: impl FnOnce() -> F,
) -> anyhow::Result<Seen>
where
    F: Future<Output = anyhow::Result<()>>,
{
    cluster.forget_calls().await.context("the model server")?;
    let history = History::default();
    let world = World::new(Arc::new(cluster.address), history.clone(), Instant::now() + LONGEST, PATIENCE);
    let mut crowd = begin(
        &Crowd { clients, seed: rand::random(), transport: None, sessions_after: sessions_after(), mix: mix() },
        &world,
    );
    let wanted = (f64::from(clients) * LIVE_PART) as usize;
    let live = || world.tally.live.load(Relaxed);
    wait_until(LIVE, &format!("{wanted} live answers"), async || Ok(live() >= wanted)).await?;
    let (began, before) = (Instant::now(), live());
    let disturbed = disturb().await;
    println!(
        "   {before} live answers when it began, {} when it ended, {:.1} s later",
        live(),
        began.elapsed().as_secs_f64()
    );
    sleep(AFTERMATH).await;
    world.stop(PATIENCE);
    while let Some(ended) = crowd.join_next().await {
        ended.context("a client")?;
    }
    disturbed?;
    let mut problems = read_sessions(&[cluster.address.http], &history).await;
    read_calls(cluster.calls().await?, &history);
    let records = history.take();
    let report = check(&records, &Expected::default());
    let refused = world.tally.refused.load(Relaxed);
    println!("   {refused} refused connections");
    if demand == Demand::NoRefusedConnection && refused > 0 {
        problems.push(format!("{refused} connections were refused"));
    }
    if report.figures.failed > 0 {
        problems.push(format!("{} turns failed", report.figures.failed));
    }
    if report.figures.done == 0 {
        problems.push("no turn was done: this proves nothing".to_owned());
    }
    let directory: &Path = &cluster.arguments.logs;
    anyhow::ensure!(
        tell(&report, &records, &problems, directory)?,
        "the clients were not told what they should have been"
    );
    Ok(Seen { figures: report.figures })
}

/// One after the other, clients of each transport talk through the Service.
pub async fn every_transport(cluster: &Cluster) -> anyhow::Result<()> {
    for transport in Transport::ALL {
        cluster.forget_calls().await.context("the model server")?;
        let history = History::default();
        let world =
            World::new(Arc::new(cluster.address), history.clone(), Instant::now() + Duration::from_secs(3), PATIENCE);
        let mix = Mix { words: (4, 20), more_words: 0, pace: (15.0, 25.0), faults: 0.0, ..Mix::default() };
        let mut crowd = begin(
            &Crowd {
                clients: 6,
                seed: rand::random(),
                transport: Some(transport),
                sessions_after: sessions_after(),
                mix,
            },
            &world,
        );
        while let Some(ended) = crowd.join_next().await {
            ended.context("a client")?;
        }
        let problems = read_sessions(&[cluster.address.http], &history).await;
        read_calls(cluster.calls().await?, &history);
        let records = history.take();
        let report = check(&records, &Expected::default());
        let figures = &report.figures;
        println!(
            "   {transport:?}: {} turns done, {} cancelled, {} failed",
            figures.done, figures.cancelled, figures.failed
        );
        let right = report.violations.is_empty() && problems.is_empty() && figures.done > 0 && figures.failed == 0;
        if !right {
            tell(&report, &records, &problems, &cluster.arguments.logs)?;
            anyhow::bail!("{transport:?} does not work as it should");
        }
    }
    Ok(())
}
