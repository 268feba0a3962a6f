//! One data-plane process, from its configuration file to its exit.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use chatgateway_config::Settings;
use chatgateway_core::{drain::Phase, limits::DRAIN_LOOK_INTERVAL};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{admin, clock, gateway::Gateway, logging, peers, reload, server};

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file. Without one: the Demo upstream on the embedded store.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The listeners of one process, bound.
pub struct Listeners {
    /// WebSocket, SSE, REST, OpenAI API, the page.
    pub http: TcpListener,
    /// gRPC.
    pub grpc: TcpListener,
    /// Health, figures, drain.
    pub admin: TcpListener,
}

impl Listeners {
    /// Binds what the settings ask for.
    ///
    /// # Errors
    /// Where a port is not to be had; the message names it.
    pub fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let listeners = &settings.listeners;
        let bind = |port: u16, reuse: bool, field: &str| {
            server::bind(listeners.bind, port, reuse).with_context(|| in_use(listeners.bind, port, field))
        };
        Ok(Self {
            http: bind(listeners.http_port, listeners.reuse_port, "httpPort")?,
            grpc: bind(listeners.grpc_port, listeners.reuse_port, "grpcPort")?,
            // Each process answers for itself here, so this port is never shared.
            admin: bind(listeners.admin_port, false, "adminPort")?,
        })
    }

    /// Where they listen: HTTP, gRPC, admin.
    ///
    /// # Errors
    /// Where the system does not say.
    pub fn addresses(&self) -> std::io::Result<[SocketAddr; 3]> {
        Ok([self.http.local_addr()?, self.grpc.local_addr()?, self.admin.local_addr()?])
    }
}

fn in_use(address: IpAddr, port: u16, field: &str) -> String {
    format!("cannot listen on {address}:{port} (listeners.{field}); is another process using the port?")
}

/// Runs one process until it was drained.
///
/// # Errors
/// Where the configuration is wrong or a port is not to be had.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (settings, text) = match &args.config {
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            let settings = Settings::parse(&text).with_context(|| format!("{} is not valid", file.display()))?;
            (settings, text)
        }
        None => (Settings::default(), String::new()),
    };
    logging::init(&settings)?;
    let mut builder = if settings.worker_threads() == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(settings.worker_threads());
        builder
    };
    let runtime = builder.enable_all().build().context("cannot start the runtime")?;
    let done = runtime.block_on(async move {
        let listeners = Listeners::bind(&settings)?;
        let [http, grpc, admin] = listeners.addresses()?;
        let gateway = Gateway::start(settings)?;
        if let Some(file) = args.config {
            tokio::spawn(reload::follow(gateway.clone(), file, text));
        }
        tracing::info!(%http, %grpc, %admin, pod = %gateway.pod, "ready");
        tokio::spawn(drain_on_signal(gateway.clone()));
        serve(&gateway, listeners).await;
        Ok(())
    });
    // What is left was given its time.
    runtime.shutdown_timeout(Duration::from_millis(100));
    done
}

/// Serves until the pod was drained.
pub async fn serve(gateway: &Arc<Gateway>, listeners: Listeners) {
    let departure = gateway.clone();
    tokio::spawn(async move { departure.departure.run(departure.drain_watch()).await });
    tokio::spawn(server::serve_http(gateway.clone(), listeners.http));
    tokio::spawn(server::serve_grpc(gateway.clone(), listeners.grpc));
    let admin = axum::serve(listeners.admin, admin::router(gateway.clone()));
    tokio::select! {
        _ = admin.into_future() => {}
        () = drained(gateway) => {}
    }
    peers::depart(gateway).await;
}

/// Waits until a drain has begun and nothing is left, or its time is up.
async fn drained(gateway: &Arc<Gateway>) {
    let mut drain = gateway.drain_watch();
    let plan = loop {
        if let Some(plan) = *drain.borrow_and_update() {
            break plan;
        }
        if drain.changed().await.is_err() {
            return;
        }
    };
    tracing::info!(left = ?gateway.left(), "draining");
    loop {
        match plan.phase(clock::now(), gateway.left()) {
            Phase::Accepting | Phase::Leaving => tokio::time::sleep(DRAIN_LOOK_INTERVAL).await,
            Phase::Done => {
                tracing::info!("drained: nothing is left");
                return;
            }
            Phase::Expired => {
                tracing::warn!(left = ?gateway.left(), "the drain's time is up; what is left is cut off");
                return;
            }
        }
    }
}

async fn drain_on_signal(gateway: Arc<Gateway>) {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals cannot be heard; stop this process by POST /drain");
        return;
    };
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        gateway.start_drain();
    }
}
