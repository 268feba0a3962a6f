//! The controller: what `ChatGateway` resources in a cluster ask for, made true.
//!
//! Only this module holds a client. What is to be there is decided by [`crate::plan`] and what is said of it by
//! [`crate::status`]; here things are seen, written and watched, each call within its time.

mod apply;
mod client;
mod health;
mod lease;
mod optional;
mod pods;
mod reconcile;
mod refs;
mod retry;
mod watch;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use chatgateway_api::ChatGateway;
use futures_util::StreamExt;
use kube::runtime::controller::{self, Action, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use self::client::client;
use crate::plan::objects::Release;
use crate::plan::pace::{UPGRADES_AT_ONCE, Upgrades};
use crate::status::is_upgrading;

/// The name under which the operator writes fields.
pub const FIELD_MANAGER: &str = "chatgateway-operator";

/// Threads. It mostly waits; one for each core of a large machine would only cost memory.
const WORKERS: usize = 2;

/// Longest time one call to the API server may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long after a change further ones are waited for, so that one edit of several objects is one reconciliation.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// How long the CRD may be missing until it is looked for again.
const CRD_LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// HTTP statuses that are no failures everywhere.
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// Arguments of `run`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Look after the gateways of this namespace only; of all, where left out
    #[arg(long, env = "WATCH_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Address of /livez, /readyz and /metrics
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Gateways that are reconciled at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256), value_name = "N")]
    concurrency: u16,
    /// Gateways whose pods are replaced at a time where only a new release of the operator asks for it
    #[arg(long, default_value_t = UPGRADES_AT_ONCE, value_parser = clap::value_parser!(u16).range(1..), value_name = "N")]
    upgrades_at_once: u16,
    /// The data plane's image where a gateway names none
    #[arg(long, env = "DATAPLANE_IMAGE", value_name = "IMAGE")]
    dataplane_image: Option<String>,
    /// The image of a managed Redis where a gateway names none
    #[arg(long, env = "REDIS_IMAGE", value_name = "IMAGE")]
    redis_image: Option<String>,
    /// Namespace of the Lease by which one of several operators is chosen; the operator's own, where left out
    #[arg(long, env = "POD_NAMESPACE", default_value = "default", value_name = "NAMESPACE")]
    lease_namespace: String,
    /// Act without a Lease: only where no second operator can be
    #[arg(long)]
    no_leader_election: bool,
}

/// What is not well with a reconciliation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("{what}: {source}")]
    Api {
        /// What was asked.
        what: String,
        /// What it said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not answer.
    #[error("{what}: no answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout {
        /// What was asked.
        what: String,
    },
}

impl Error {
    /// The HTTP status with which the API server refused, if it did.
    fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(said) => Some(said.code),
                _ => None,
            },
            Self::Timeout { .. } => None,
        }
    }
}

/// A call to the API server, within its time.
async fn call<T>(what: &str, call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Error::Api { what: what.to_owned(), source: Box::new(source) }),
        Err(_) => Err(Error::Timeout { what: what.to_owned() }),
    }
}

/// What every reconciliation needs.
struct Shared {
    client: Client,
    release: Release,
    stores: watch::Stores,
    secrets: refs::Secrets,
    written: apply::Written,
    pods: pods::Asker,
    optional: Arc<optional::Optional>,
    events: Recorder,
    health: Arc<health::Health>,
    retries: retry::Retries,
    upgrades: OnceLock<Mutex<Upgrades>>,
    upgrades_at_once: u16,
}

impl Shared {
    /// Who is being upgraded; at first those of whom the last operator said so. Only once the gateways are known.
    fn upgrades(&self) -> &Mutex<Upgrades> {
        self.upgrades.get_or_init(|| {
            let mut upgrades = Upgrades::new(self.upgrades_at_once);
            let gateways = self.stores.gateways.state();
            let told = gateways.iter().filter(|gateway| gateway.status.as_ref().is_some_and(is_upgrading));
            upgrades.resume(told.filter_map(|gateway| gateway.uid()));
            Mutex::new(upgrades)
        })
    }
}

/// Runs the controller until the process is told to end.
///
/// # Errors
/// Where no API server can be found, the lease is lost, or the health port is taken.
pub fn run(args: Args) -> anyhow::Result<std::process::ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).json();
    logs.try_init().map_err(|error| anyhow::anyhow!("cannot set up logging: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    runtime.block_on(serve(args))?;
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(std::process::ExitCode::SUCCESS)
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let stop = stopped()?;
    let health = Arc::new(health::Health::default());
    let listener = tokio::net::TcpListener::bind(args.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {} (--listen)", args.listen))?;
    tracing::info!(address = %listener.local_addr()?, "health and metrics");
    tokio::spawn(health::serve(listener, health.clone()));
    let mut config = kube::Config::infer().await.context("no API server: give KUBECONFIG, or run in a cluster")?;
    // A failed call is tried again by the next reconciliation, which first looks whether it is still to be made.
    config.default_retry = false;
    let client = client(config)?;
    if stop.run_until_cancelled(installed(&client, &args, &health)).await.is_none() {
        return Ok(());
    }
    // Who waits for the lease watches already: its successor acts at once.
    let watched = watch::start(&client, args.namespace.as_deref());
    let lease = if args.no_leader_election {
        None
    } else {
        let Some(lease) = stop.run_until_cancelled(lease::acquire(&client, &args.lease_namespace)).await else {
            return Ok(());
        };
        Some(lease)
    };
    health.leads();
    tracing::info!("this operator acts");
    let acting = act(client.clone(), &args, watched, health, stop.clone());
    match lease {
        None => acting.await,
        Some(lease) => tokio::select! {
            () = acting => lease::release(&client, &args.lease_namespace).await,
            why = lease.keep() => anyhow::bail!("the lease is lost ({why:#}): another operator may act"),
        },
    }
    Ok(())
}

/// Cancelled once the process is told to end.
fn stopped() -> anyhow::Result<CancellationToken> {
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}

/// Waits until the cluster knows the resource.
async fn installed(client: &Client, args: &Args, health: &health::Health) {
    let gateways = watch::api::<ChatGateway>(client, args.namespace.as_deref());
    loop {
        let few = kube::api::ListParams::default().limit(1);
        match call("list ChatGateways", gateways.list_metadata(&few)).await {
            Ok(_) => return health.installed(),
            Err(error) => {
                let why = format!("{error}; is the definition installed (kubectl apply -f crds/)?");
                tracing::warn!("{why}");
                health.waits(why);
            }
        }
        tokio::time::sleep(CRD_LOOK_INTERVAL).await;
    }
}

async fn act(
    client: Client,
    args: &Args,
    watched: watch::Watched,
    health: Arc<health::Health>,
    stop: CancellationToken,
) {
    let default = Release::default();
    let release = Release {
        image: args.dataplane_image.clone().unwrap_or(default.image),
        redis_image: args.redis_image.clone().unwrap_or(default.redis_image),
    };
    let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(lease::identity()) };
    let shared = Arc::new(Shared {
        secrets: refs::Secrets::new(client.clone(), watched.stores.secrets.clone()),
        events: Recorder::new(client.clone(), reporter),
        written: apply::Written::default(),
        pods: pods::Asker::new(),
        optional: optional::Optional::follow(client.clone()).await,
        stores: watched.stores,
        retries: retry::Retries::default(),
        upgrades: OnceLock::new(),
        upgrades_at_once: args.upgrades_at_once,
        health,
        release,
        client: client.clone(),
    });
    let (index, of_pods) = (shared.clone(), watch::gateway_of_pod);
    let controller = Controller::for_stream(watched.gateways, shared.stores.gateways.clone())
        .with_config(controller::Config::default().concurrency(args.concurrency).debounce(DEBOUNCE))
        .graceful_shutdown_on(stop.cancelled_owned())
        .watches_stream(watched.pods, of_pods)
        .watches_stream(watched.secrets, move |secret| index.secrets.users(&secret));
    let controller = watched
        .children
        .into_iter()
        .fold(controller, |controller, children| controller.watches_stream(children, watch::owner));
    controller
        .run(reconcile::reconcile, failed, shared)
        .for_each(|result| async move {
            match result {
                // It is gone, and a trigger came after it.
                Ok(_) | Err(controller::Error::ObjectNotFound(_)) => {}
                Err(error) => tracing::warn!("{error}"),
            }
        })
        .await;
}

/// When a gateway whose reconciliation failed is tried again.
fn failed(gateway: Arc<ChatGateway>, error: &Error, shared: Arc<Shared>) -> Action {
    let pause = shared.retries.pause(&gateway.uid().unwrap_or_default(), error);
    tracing::warn!(gateway = %ObjectRef::from_obj(&*gateway), ?pause, "{error}");
    shared.health.count("failed");
    Action::requeue(pause.mul_f64(1.0 + rand::random::<f64>() / 4.0))
}
