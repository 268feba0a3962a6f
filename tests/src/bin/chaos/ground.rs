//! What runs: pods, each behind proxies, a store, a model server; and what is done to them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use chatgateway_redis_server::{Fsync, Options, RedisServer};
use chatgateway_tests::{
    load::{PodAddress, Pods},
    process::GatewayProcess,
    proxy::{Flow, Proxy, Way},
    simulator::{Behaviour, Settings, Simulator},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::schedule::Fault;

/// How long a pod that drains may take: its `drain.timeout`, and some more.
const DRAIN_LIMIT: Duration = Duration::from_secs(25);

/// Calls of the model that are remembered: more than a run has.
const CALLS_REMEMBERED: usize = 1_000_000;

/// How the ground is laid.
pub struct Layout {
    /// Pods.
    pub pods: usize,
    /// Whether they share a Redis.
    pub redis: bool,
    /// Whether that Redis keeps nothing on its disk.
    pub lossy_store: bool,
    /// Whether the model server continues partial answers.
    pub prefill: bool,
    /// The pods' log level.
    pub log_level: String,
    /// Where logs go.
    pub directory: PathBuf,
}

/// A pod's place: its addresses stay when the pod is replaced.
pub struct Slot {
    http: Proxy,
    grpc: Proxy,
    store: Option<Proxy>,
    ready: AtomicBool,
    generation: AtomicU32,
    /// Held by a fault that ends or stops the process: one that comes before the last one is over waits for it.
    process_faults: tokio::sync::Mutex<()>,
    /// Taken out by who ends it.
    pod: tokio::sync::Mutex<Option<GatewayProcess>>,
}

/// Everything that runs.
pub struct Ground {
    layout: Layout,
    slots: Vec<Slot>,
    store: Option<Arc<RedisServer>>,
    /// Held by a fault of the store.
    store_faults: tokio::sync::Mutex<()>,
    simulator: Simulator,
    problems: Mutex<Vec<String>>,
}

impl Ground {
    /// Starts everything.
    pub async fn lay(layout: Layout) -> anyhow::Result<Self> {
        let behaviour = Behaviour {
            answer: Some("{text}".to_owned()),
            first_token_ms: 40.0,
            tokens_per_second: 15.0,
            ..Behaviour::default()
        };
        let simulator =
            Simulator::start(Settings { behaviour, calls_remembered: CALLS_REMEMBERED, ..Settings::default() })?;
        let store = if layout.redis {
            let options = Options { appendonly: (!layout.lossy_store).then_some(Fsync::Always), ..Options::default() };
            Some(Arc::new(blocking(move || RedisServer::start(options)).await??))
        } else {
            None
        };
        let mut slots = Vec::new();
        for _ in 0..layout.pods {
            slots.push(Slot::new(store.as_deref()).await?);
        }
        let ground = Self {
            layout,
            slots,
            store,
            store_faults: tokio::sync::Mutex::default(),
            simulator,
            problems: Mutex::default(),
        };
        for slot in 0..ground.slots.len() {
            let pod = ground.start_pod(slot).await?;
            ground.install(slot, pod).await;
        }
        Ok(ground)
    }

    /// What went wrong that nobody did.
    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes something that went wrong and that nobody did.
    pub fn problem(&self, what: String) {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// The model server.
    pub fn simulator(&self) -> &Simulator {
        &self.simulator
    }

    /// The addresses of the pods themselves, without a network in between.
    pub async fn http_addresses(&self) -> Vec<SocketAddr> {
        let mut addresses = Vec::new();
        for slot in &self.slots {
            addresses.extend(slot.pod.lock().await.as_ref().map(GatewayProcess::http));
        }
        addresses
    }

    fn config(&self, slot: usize) -> Value {
        let mut config = json!({
            "workers": 1,
            "log": {"level": self.layout.log_level},
            "drain": {"acceptFloor": "300ms", "reconnectSpread": "1s", "timeout": "15s"},
            "sessions": {"history": {"maxTurns": 1_000}},
            "upstreams": [{
                "name": "sim",
                "type": "OpenAI",
                "openAI": {"url": self.simulator.openai_url(), "model": "sim-model", "prefill": self.layout.prefill},
                "pool": {"maxConcurrent": 10_000, "maxQueued": 10_000},
                // Each takeover may ask the model once more, and nothing else may: that is what the checker counts.
                "retries": {"maxAttempts": 1, "budgetPercent": 0},
                // A frozen pod and a store that is away must not look like a slow model.
                "timeouts": {"connect": "10s", "firstToken": "30s", "betweenTokens": "30s", "total": "120s"},
            }],
        });
        if let Some(store) = &self.slots[slot].store {
            config["sessions"]["store"] =
                json!({"type": "Redis", "redis": {"endpoints": [store.address().to_string()]}});
        }
        config
    }

    async fn start_pod(&self, slot: usize) -> anyhow::Result<GatewayProcess> {
        let generation = self.slots[slot].generation.fetch_add(1, Relaxed) + 1;
        let log = self.layout.directory.join(format!("pod-{slot}.{generation}.log"));
        let config = self.config(slot);
        let runtime = tokio::runtime::Handle::current();
        let started = blocking(move || runtime.block_on(GatewayProcess::start_logged(&config, &log))).await?;
        started.with_context(|| format!("pod {slot}, number {generation}"))
    }

    /// Puts a pod into its place; returns the one that was there.
    async fn install(&self, slot: usize, pod: GatewayProcess) -> Option<GatewayProcess> {
        let slot = &self.slots[slot];
        slot.http.set_target(pod.http());
        slot.grpc.set_target(pod.grpc());
        let before = slot.pod.lock().await.replace(pod);
        slot.ready.store(true, Relaxed);
        before
    }

    /// Does one fault, to its end.
    pub async fn inflict(&self, slot: Option<usize>, fault: Fault) {
        let done = match slot {
            Some(slot) => self.inflict_pod(slot, fault).await,
            None => self.inflict_store(fault).await,
        };
        if let Err(error) = done {
            self.problem(format!("{fault:?} of {slot:?}: {error:#}"));
        }
    }

    async fn inflict_store(&self, fault: Fault) -> anyhow::Result<()> {
        let store = self.store.clone().context("there is no shared store")?;
        // One that begins before the last one is over waits for it.
        let _alone = self.store_faults.lock().await;
        match fault {
            Fault::StoreKill { down_ms } => {
                let killed = store.clone();
                blocking(move || killed.kill9()).await?;
                sleep(Duration::from_millis(down_ms)).await;
                blocking(move || store.start_again()).await?
            }
            _ => blocking(move || store.restart()).await?,
        }
    }

    async fn inflict_pod(&self, number: usize, fault: Fault) -> anyhow::Result<()> {
        let slot = &self.slots[number];
        let held = Flow { held: true, ..Flow::default() };
        let slow = |ms| Flow { latency: Duration::from_millis(ms), ..Flow::default() };
        let _alone = match fault {
            Fault::Kill { .. } | Fault::Freeze { .. } | Fault::Drain => Some(slot.process_faults.lock().await),
            _ => None,
        };
        match fault {
            Fault::Kill { down_ms } => {
                let mut pod = slot.pod.lock().await.take().context("there is no pod to kill")?;
                self.watch(number, &mut pod);
                slot.ready.store(false, Relaxed);
                blocking(move || pod.process().kill()).await??;
                sleep(Duration::from_millis(down_ms)).await;
                self.install(number, self.start_pod(number).await?).await;
            }
            Fault::Freeze { ms } => {
                let mut pod = slot.pod.lock().await;
                let process = pod.as_mut().context("there is no pod to freeze")?.process();
                process.freeze()?;
                // The pod stays in the clients' list for a while: nobody knows yet.
                sleep(Duration::from_millis(ms)).await;
                process.thaw()?;
            }
            Fault::Drain => self.roll(number).await?,
            Fault::StoreCut { ms } => {
                let store = slot.store()?;
                store.refuse(true);
                store.cut();
                sleep(Duration::from_millis(ms)).await;
                store.heal();
            }
            Fault::StoreHole { ms } => during(slot.store()?, ms, Proxy::black_hole).await,
            Fault::StoreDeaf { ms } => {
                during(slot.store()?, ms, |proxy| proxy.set_flow(Way::ToClient, held)).await;
            }
            Fault::StoreSlow { latency_ms, ms } => {
                during(slot.store()?, ms, |proxy| proxy.set_flow(Way::ToTarget, slow(latency_ms))).await;
            }
            Fault::ClientCut => {
                slot.http.cut();
                slot.grpc.cut();
            }
            Fault::ClientHole { ms } => {
                tokio::join!(during(&slot.http, ms, Proxy::black_hole), during(&slot.grpc, ms, Proxy::black_hole));
            }
            Fault::ClientSlow { latency_ms, ms } => {
                let slower = |proxy: &Proxy| proxy.set_flow(Way::ToClient, slow(latency_ms));
                tokio::join!(during(&slot.http, ms, slower), during(&slot.grpc, ms, slower));
            }
            Fault::StoreRestart | Fault::StoreKill { .. } => anyhow::bail!("this is about the store"),
        }
        Ok(())
    }

    /// Replaces a pod: the new one takes clients first, then the old one drains.
    async fn roll(&self, number: usize) -> anyhow::Result<()> {
        let new = self.start_pod(number).await?;
        let mut old = self.install(number, new).await.context("there was no pod to drain")?;
        self.watch(number, &mut old);
        old.terminate()?;
        let status = old.process().wait(DRAIN_LIMIT).await.context("a drain")?;
        anyhow::ensure!(status.success(), "a pod that drained exited with {status}:\n{}", old.process().output());
        Ok(())
    }

    /// A pod that has ended by itself is a problem.
    fn watch(&self, number: usize, pod: &mut GatewayProcess) {
        if !pod.process().runs() {
            self.problem(format!("pod {number} had ended by itself:\n{}", pod.process().output()));
        }
    }

    /// Ends every fault, and waits until all pods are ready.
    pub async fn heal(&self) -> anyhow::Result<()> {
        for (number, slot) in self.slots.iter().enumerate() {
            for proxy in [Some(&slot.http), Some(&slot.grpc), slot.store.as_ref()].into_iter().flatten() {
                proxy.heal();
            }
            let mut pod = slot.pod.lock().await;
            let pod = pod.as_mut().with_context(|| format!("pod {number} did not come back"))?;
            self.watch(number, pod);
            pod.wait_ready().await.with_context(|| format!("pod {number}"))?;
        }
        Ok(())
    }
}

impl Slot {
    async fn new(store: Option<&RedisServer>) -> anyhow::Result<Self> {
        // Nobody listens there until the pod does.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        let store = match store {
            Some(store) => Some(Proxy::start(SocketAddr::from(([127, 0, 0, 1], store.port()))).await?),
            None => None,
        };
        Ok(Self {
            http: Proxy::start(nowhere).await?,
            grpc: Proxy::start(nowhere).await?,
            store,
            ready: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            process_faults: tokio::sync::Mutex::default(),
            pod: tokio::sync::Mutex::new(None),
        })
    }

    fn store(&self) -> anyhow::Result<&Proxy> {
        self.store.as_ref().context("this pod's store is its own")
    }
}

/// A trouble of the network for a while.
async fn during(proxy: &Proxy, ms: u64, trouble: impl Fn(&Proxy)) {
    trouble(proxy);
    sleep(Duration::from_millis(ms)).await;
    proxy.heal();
}

/// Runs what blocks on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("a task that blocks")
}

/// The pods as a Service knows them: those that were ready when it looked; any, where none is.
impl Pods for Ground {
    fn choose(&self, choice: usize) -> PodAddress {
        let ready: Vec<&Slot> = self.slots.iter().filter(|slot| slot.ready.load(Relaxed)).collect();
        let slot = if ready.is_empty() { &self.slots[choice % self.slots.len()] } else { ready[choice % ready.len()] };
        PodAddress { http: slot.http.address(), grpc: slot.grpc.address() }
    }
}

/// Lines of the pods' logs that must not be there.
pub fn alarms(directory: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(directory)? {
        let path = file?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("pod-") {
            let text = std::fs::read_to_string(&path)?;
            let bad = text.lines().filter(|line| line.contains("panicked at"));
            found.extend(bad.map(|line| format!("{name}: {line}")));
        }
    }
    Ok(found)
}
