//! The cluster, by kubectl: what people have, and what they see.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use chatgateway_tests::{client::HttpClient, load::PodAddress, simulator::Calls};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

use crate::Arguments;

/// How long one kubectl may take that waits for nothing.
const KUBECTL: Duration = Duration::from_secs(60);

/// Pause between two looks at the cluster.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a gateway may take to be ready, with every pod replaced on the way.
pub const READY: Duration = Duration::from_secs(300);

/// The gateway's cluster.
pub struct Cluster {
    /// What was asked for.
    pub arguments: Arguments,
    /// The gateway's Service.
    pub address: PodAddress,
    model: SocketAddr,
}

/// A pod of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its identity: a new pod of the same name has another one.
    pub uid: String,
    /// Whether it takes clients.
    pub ready: bool,
    /// Whether it was told to end.
    pub leaving: bool,
    /// How often its container was started again.
    pub restarts: u64,
    /// Its container, as the node knows it.
    pub container: String,
}

impl Cluster {
    /// Finds the gateway and the model server.
    pub async fn find(arguments: Arguments) -> anyhow::Result<Self> {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut found = Self { arguments, address: PodAddress { http: nowhere, grpc: nowhere }, model: nowhere };
        let gateway = found.service(&found.arguments.gateway).await?;
        found.address = PodAddress { http: port_of(&gateway, "http")?, grpc: port_of(&gateway, "grpc")? };
        let model = found.service(&found.arguments.model).await?;
        found.model = port_of(&model, "http")?;
        Ok(found)
    }

    async fn service(&self, name: &str) -> anyhow::Result<Value> {
        self.json(&["get", "service", name]).await
    }

    /// Runs kubectl in the gateway's namespace. What it prints.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.kubectl_for(KUBECTL, args, None).await
    }

    /// The same with something that waits, and with input.
    pub async fn kubectl_for(&self, limit: Duration, args: &[&str], input: Option<&Value>) -> anyhow::Result<String> {
        let mut command = Command::new("kubectl");
        command.args(["--namespace", &self.arguments.namespace]).args(args).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("kubectl could not be run")?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            tokio::io::AsyncWriteExt::write_all(&mut stdin, input.to_string().as_bytes()).await?;
        }
        let what = || format!("kubectl {}", args.join(" "));
        let output = timeout(limit, child.wait_with_output()).await;
        let output = output.with_context(|| format!("{}: not in {} s", what(), limit.as_secs()))??;
        let errors = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{}: {}", what(), errors.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs kubectl for JSON.
    pub async fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
        Ok(serde_json::from_str(&self.kubectl(&args).await?)?)
    }

    /// The gateway.
    pub async fn gateway(&self) -> anyhow::Result<Value> {
        self.json(&["get", "cgw", &self.arguments.gateway]).await
    }

    /// Edits the gateway by a merge patch.
    pub async fn edit(&self, patch: &Value) -> anyhow::Result<()> {
        let name = &self.arguments.gateway;
        self.kubectl(&["patch", "cgw", name, "--type", "merge", "--patch", &patch.to_string()]).await.map(drop)
    }

    /// The gateway's pods.
    pub async fn pods(&self) -> anyhow::Result<Vec<Pod>> {
        let selector =
            format!("app.kubernetes.io/instance={},app.kubernetes.io/component=gateway", self.arguments.gateway);
        let list = self.json(&["get", "pods", "--selector", &selector]).await?;
        Ok(list["items"].as_array().context("no items")?.iter().map(Pod::of).collect())
    }

    /// The pods that take clients and stay.
    pub async fn serving(&self) -> anyhow::Result<Vec<Pod>> {
        Ok(self.pods().await?.into_iter().filter(|pod| pod.ready && !pod.leaving).collect())
    }

    /// Waits until so many pods take clients, nothing else is there, and the gateway is ready.
    pub async fn ready(&self, replicas: usize) -> anyhow::Result<()> {
        wait_until(READY, &format!("{replicas} pods, all ready, and none besides"), async || {
            let pods = self.pods().await?;
            let right = pods.len() == replicas && pods.iter().all(|pod| pod.ready && !pod.leaving);
            Ok(right && self.condition("Ready").await?.is_true())
        })
        .await
    }

    /// Waits until the gateway is as its specification says.
    pub async fn settled(&self) -> anyhow::Result<()> {
        let replicas = self.gateway().await?["spec"]["replicas"].as_u64().unwrap_or(1);
        self.ready(usize::try_from(replicas)?).await
    }

    /// A condition of the gateway, as far as it is about its newest specification.
    pub async fn condition(&self, kind: &str) -> anyhow::Result<Condition> {
        let gateway = self.gateway().await?;
        let generation = &gateway["metadata"]["generation"];
        let conditions = gateway["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|c| c["type"] == kind && c["observedGeneration"] == *generation);
        Ok(Condition(found.unwrap_or_default()))
    }

    /// What the model server was asked since its record was emptied.
    pub async fn calls(&self) -> anyhow::Result<Calls> {
        Ok(serde_json::from_value(HttpClient::new(self.model).get("/sim/calls").await?.json()?)?)
    }

    /// Empties the model server's record.
    pub async fn forget_calls(&self) -> anyhow::Result<()> {
        HttpClient::new(self.model).post("/sim/reset", &json!({})).await.map(drop)
    }
}

/// A condition; one that is not there is neither true nor false.
#[derive(Debug)]
pub struct Condition(Value);

impl Condition {
    /// Whether it is true.
    pub fn is_true(&self) -> bool {
        self.0["status"] == "True"
    }

    /// Whether it is false.
    pub fn is_false(&self) -> bool {
        self.0["status"] == "False"
    }

    /// Its reason and message.
    pub fn says(&self) -> String {
        let text = |field: &str| self.0[field].as_str().unwrap_or_default().to_owned();
        format!("{}: {}", text("reason"), text("message"))
    }
}

impl Pod {
    fn of(pod: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let status = &pod["status"];
        let container = &status["containerStatuses"][0];
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let id = text(&container["containerID"]);
        Self {
            name: text(&pod["metadata"]["name"]),
            uid: text(&pod["metadata"]["uid"]),
            ready: conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"),
            leaving: !pod["metadata"]["deletionTimestamp"].is_null(),
            restarts: container["restartCount"].as_u64().unwrap_or(0),
            container: id.rsplit('/').next().unwrap_or_default().to_owned(),
        }
    }
}

/// The address of a Service's port.
fn port_of(service: &Value, name: &str) -> anyhow::Result<SocketAddr> {
    let spec = &service["spec"];
    let address: IpAddr =
        spec["clusterIP"].as_str().unwrap_or_default().parse().context("a Service without address")?;
    let ports = spec["ports"].as_array().context("a Service without ports")?;
    let port = ports.iter().find(|port| port["name"] == name).with_context(|| format!("no port {name}"))?;
    Ok(SocketAddr::new(address, u16::try_from(port["port"].as_u64().unwrap_or_default())?))
}

/// Looks until it is so. An error while looking counts as not so, and is told if that is how it ends.
pub async fn wait_until<F>(limit: Duration, what: &str, mut look: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<bool>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let seen = look().await;
        if matches!(seen, Ok(true)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let why = seen.err().map(|error| format!(" ({error:#})")).unwrap_or_default();
            anyhow::bail!("not in {} s: {what}{why}", limit.as_secs());
        }
        sleep(LOOK_INTERVAL).await;
    }
}
