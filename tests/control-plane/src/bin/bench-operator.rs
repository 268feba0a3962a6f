//! The operator at a thousand gateways: memory, writes while nothing happens, and how soon an edit is done.
//!
//! Everything runs on this machine at once (API server, controllers, etcd, operator), so times are upper bounds.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use chatgateway_api::{ChatGateway, ChatGatewaySpec};
use chatgateway_control_plane::pods::{Admin, well};
use chatgateway_control_plane::{ControlPlane, Operator};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client, ResourceExt};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::sleep;

/// Gateways, unless the first argument says how many.
const GATEWAYS: usize = 1_000;

/// Namespaces they are spread over.
const NAMESPACES: usize = 20;

/// Secrets of other people, and the size of each.
const FOREIGN_SECRETS: usize = 300;
const FOREIGN_SECRET_BYTES: usize = 1_000_000;

/// Edits whose time is measured, one after the other.
const EDITS: usize = 300;

/// How long a watch waits for what comes of an edit.
const WATCH: Duration = Duration::from_secs(60);

/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// How long anything may take.
const WAIT: Duration = Duration::from_secs(600);

/// Requests of this program at a time.
const AT_ONCE: usize = 16;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let gateways = std::env::args().nth(1).map_or(Ok(GATEWAYS), |text| text.parse())?;
    println!("starting a control plane ...");
    let plane = Arc::new(tokio::task::spawn_blocking(ControlPlane::start).await??);
    plane.kubectl(&["apply", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/../../crds/chatgateways.yaml")])?;
    let client = plane.client().await?;
    let dir = tempfile::tempdir()?;
    let mut bench = Bench { client, gateways, table: Table::default() };
    bench.namespaces().await?;

    println!("making {gateways} gateways ...");
    bench.create().await?;
    let began = Instant::now();
    let operator = Operator::start(&plane, dir.path())?;
    bench.all_told().await?;
    bench.table.row(
        "from the start of the operator until every gateway is reconciled",
        began.elapsed().as_secs_f64(),
        "s",
        60.0,
        30.0,
    );

    println!("their pods run ...");
    let _admins = bench.pods_run().await?;

    println!("nothing happens ...");
    let (written, tries) = quiet(&operator).await?;
    bench.table.row(
        &format!("API writes in {} s in which nothing happens (after {tries} s)", IDLE.as_secs()),
        written as f64,
        "",
        0.0,
        0.0,
    );
    let before = rss_mib(&operator)?;
    bench.table.row("RSS", before, "MiB", 96.0, 64.0);

    println!("{FOREIGN_SECRETS} Secrets of other people ...");
    bench.foreign_secrets().await?;
    sleep(Duration::from_secs(10)).await;
    bench.table.row("RSS more with 300 foreign Secrets of 1 MB", rss_mib(&operator)? - before, "MiB", 10.0, 2.0);

    println!("{EDITS} edits ...");
    let mut times_ms = bench.edits().await?;
    times_ms.sort_by(f64::total_cmp);
    let quantile = |share: f64| times_ms[((times_ms.len() - 1) as f64 * share).round() as usize];
    bench.table.row("from an edit to the ConfigMap: p50", quantile(0.5), "ms", 50.0, 50.0);
    bench.table.row("from an edit to the ConfigMap: p99", quantile(0.99), "ms", 500.0, 200.0);

    println!("another operator ...");
    let next = Operator::start(&plane, dir.path())?;
    wait("the other operator waits", || next.said("another operator acts")).await?;
    operator.process().signal(Signal::SIGKILL)?;
    let killed = Instant::now();
    wait("the other operator acts", || next.acts()).await?;
    bench.table.row("from the leader's kill to the next one's acting", killed.elapsed().as_secs_f64(), "s", 20.0, 15.0);
    Ok(bench.table.print())
}

async fn wait(what: &str, is_so: impl Fn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + WAIT;
    while !is_so() {
        ensure!(Instant::now() < deadline, "not within {} s: {what}", WAIT.as_secs());
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Writes in a time in which nothing happens, once the pods' own news have come to an end; and how long that took.
async fn quiet(operator: &Operator) -> anyhow::Result<(u64, u64)> {
    let began = Instant::now();
    loop {
        let before = operator.metric("chatgateway_operator_writes_total")?;
        sleep(IDLE).await;
        let written = operator.metric("chatgateway_operator_writes_total")? - before;
        if written == 0 || began.elapsed() > 4 * IDLE {
            return Ok((written, (began.elapsed() - IDLE).as_secs()));
        }
    }
}

fn rss_mib(operator: &Operator) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", operator.process().id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim_end().parse()?;
    Ok(kib / 1_024.0)
}

struct Bench {
    client: Client,
    gateways: usize,
    table: Table,
}

impl Bench {
    fn namespace(index: usize) -> String {
        format!("bench-{}", index % NAMESPACES)
    }

    async fn namespaces(&self) -> anyhow::Result<()> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        for index in 0..NAMESPACES {
            let object = serde_json::from_value(json!({"metadata": {"name": Self::namespace(index)}}))?;
            namespaces.create(&PostParams::default(), &object).await?;
        }
        Ok(())
    }

    async fn create(&self) -> anyhow::Result<()> {
        stream::iter(0..self.gateways)
            .map(|index| async move {
                let spec: ChatGatewaySpec =
                    serde_json::from_value(json!({"upstreams": [{"name": "demo", "type": "Demo"}]}))?;
                let gateway = ChatGateway::new(&format!("g{index}"), spec);
                let api = Api::<ChatGateway>::namespaced(self.client.clone(), &Self::namespace(index));
                api.create(&PostParams::default(), &gateway).await?;
                anyhow::Ok(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// Waits until every gateway has a status that says that its Deployment is there.
    async fn all_told(&self) -> anyhow::Result<()> {
        let gateways = Api::<ChatGateway>::all(self.client.clone());
        let deadline = Instant::now() + WAIT;
        loop {
            let all = gateways.list(&ListParams::default()).await?;
            let told = all.items.iter().filter(|gateway| {
                let conditions = gateway.status.iter().flat_map(|status| &status.conditions);
                conditions.into_iter().any(|c| c.type_ == "Available" && c.reason != "NoDeployment")
            });
            let told = told.count();
            if told == self.gateways {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{told} of {} gateways after {} s", self.gateways, WAIT.as_secs());
            sleep(Duration::from_millis(250)).await;
        }
    }

    /// Lets all pods seem to run, each with an admin port that says that all is well. Waits until every gateway is ready.
    async fn pods_run(&self) -> anyhow::Result<Vec<Admin>> {
        let all = Api::<Pod>::all(self.client.clone());
        let gateways = Api::<ChatGateway>::all(self.client.clone());
        let deadline = Instant::now() + WAIT;
        let pods = loop {
            let pods = all.list_metadata(&ListParams::default()).await?.items;
            if pods.len() == self.gateways {
                break pods;
            }
            ensure!(Instant::now() < deadline, "{} of {} pods after {} s", pods.len(), self.gateways, WAIT.as_secs());
            sleep(Duration::from_millis(250)).await;
        };
        let told = gateways.list(&ListParams::default()).await?.items.into_iter();
        let hash = |gateway: &ChatGateway| gateway.status.as_ref()?.config_hash.clone();
        let hashes: HashMap<_, _> = told.map(|gateway| (gateway.name_any(), hash(&gateway))).collect();
        let admins = stream::iter(pods)
            .map(|pod| {
                let name = pod.labels().get("app.kubernetes.io/instance").cloned().unwrap_or_default();
                let hash = hashes.get(&name).cloned().flatten().unwrap_or_default();
                let pods = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
                async move {
                    let admin = Admin::open(Some(well(&hash, 100, 10))).await?;
                    admin.belongs_to(&pods, &pod.name_any(), true).await?;
                    anyhow::Ok(admin)
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        loop {
            let list = gateways.list(&ListParams::default()).await?.items;
            let is_ready = |gateway: &&ChatGateway| {
                let conditions = gateway.status.iter().flat_map(|status| &status.conditions);
                conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
            };
            let ready = list.iter().filter(is_ready).count();
            if ready == self.gateways {
                return Ok(admins);
            }
            ensure!(Instant::now() < deadline, "{ready} of {} gateways are ready", self.gateways);
            sleep(Duration::from_millis(250)).await;
        }
    }

    async fn foreign_secrets(&self) -> anyhow::Result<()> {
        let secrets = Api::<Secret>::namespaced(self.client.clone(), &Self::namespace(0));
        let text = "x".repeat(FOREIGN_SECRET_BYTES);
        for index in 0..FOREIGN_SECRETS {
            let secret = json!({"metadata": {"name": format!("foreign-{index}")}, "stringData": {"data": text}});
            secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
        }
        Ok(())
    }

    /// Edits one gateway after the other; from the API server's answer until a watch tells that its ConfigMap has changed.
    async fn edits(&self) -> anyhow::Result<Vec<f64>> {
        let mut times = Vec::new();
        for edit in 0..EDITS {
            let index = (edit * 7) % self.gateways;
            let (namespace, name) = (Self::namespace(index), format!("g{index}"));
            let configs = Api::<ConfigMap>::namespaced(self.client.clone(), &namespace);
            let only = format!("metadata.name={name}-config");
            // The list's version, not the object's: that may be older than what the API server still remembers.
            let list = configs.list_metadata(&ListParams::default().fields(&only)).await?;
            ensure!(list.items.len() == 1, "there is no ConfigMap {name}-config");
            let version = list.metadata.resource_version.unwrap_or_default();
            let watch = WatchParams::default().fields(&only).timeout(WATCH.as_secs() as u32);
            let mut changes = configs.watch_metadata(&watch, &version).await?.boxed();
            let gateways = Api::<ChatGateway>::namespaced(self.client.clone(), &namespace);
            let patch = Patch::Merge(json!({"spec": {"keepalive": {"pingInterval": format!("{}s", 20 + edit % 30)}}}));
            let began = Instant::now();
            gateways.patch(&name, &PatchParams::default(), &patch).await?;
            while let Some(change) = changes.try_next().await? {
                match change {
                    WatchEvent::Modified(_) => {
                        times.push(began.elapsed().as_secs_f64() * 1_000.0);
                        break;
                    }
                    WatchEvent::Error(error) => bail!("the watch of {name}-config: {error}"),
                    _ => {}
                }
            }
            ensure!(times.len() == edit + 1, "{name}-config did not change within {} s", WATCH.as_secs());
        }
        Ok(times)
    }
}

/// What was measured.
#[derive(Default)]
struct Table {
    rows: Vec<(String, f64, &'static str, f64, f64)>,
}

impl Table {
    fn row(&mut self, case: &str, figure: f64, unit: &'static str, must: f64, goal: f64) {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or_default();
        println!("  {case}: {figure:.1} {unit} (load average {load})");
        self.rows.push((case.to_owned(), figure, unit, must, goal));
    }

    fn print(&self) -> ExitCode {
        println!("\n| case | figure | must | goal | |\n| --- | --- | --- | --- | --- |");
        let mut all = true;
        for (case, figure, unit, must, goal) in &self.rows {
            let verdict = if figure <= goal {
                "goal"
            } else if figure <= must {
                "ok"
            } else {
                all = false;
                "FAIL"
            };
            println!("| {case} | {figure:.1} {unit} | ≤ {must} | ≤ {goal} | {verdict} |");
        }
        if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
