//! A real Kubernetes control plane on free ports of the loopback: etcd, kube-apiserver and kube-controller-manager. There is no
//! node, so pods are made and never run.

mod operator;
pub mod pods;
mod process;
mod proxy;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

pub use operator::{Operator, Start};
pub use process::Process;
pub use proxy::{Call, End, Fate, Proxy, Refusal, Script};

/// How long the API server may take to be ready. It makes its own resources first.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How often it is started until that is given up.
const ATTEMPTS: u32 = 3;

/// Pause between two looks whether it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A running control plane. It ends when this is dropped.
pub struct ControlPlane {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    // Ended in this order.
    _processes: Vec<Process>,
    dir: Option<TempDir>,
}

impl ControlPlane {
    /// Starts one; or takes that of the environment's `KUBECONFIG`. Programs that are missing are built first.
    ///
    /// # Errors
    /// Where a program is missing and cannot be built, or does not get ready.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_audited(None)
    }

    /// The same; one that is started here writes who asked for what, and whether they might, into a file.
    ///
    /// # Errors
    /// As above.
    pub fn start_audited(audit: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(kubeconfig) = std::env::var_os("KUBECONFIG") {
            let (kubeconfig, kubectl) = (PathBuf::from(kubeconfig), PathBuf::from("kubectl"));
            return Ok(Self { kubeconfig, kubectl, _processes: Vec::new(), dir: None });
        }
        let programs = programs()?;
        let mut attempts = 0;
        loop {
            let dir = tempfile::tempdir()?;
            attempts += 1;
            match (Starting { programs: &programs, dir: dir.path(), audit }).start() {
                Ok(processes) => {
                    let (kubeconfig, kubectl) = (dir.path().join("admin.kubeconfig"), programs.join("kubectl"));
                    return Ok(Self { kubeconfig, kubectl, _processes: processes, dir: Some(dir) });
                }
                // Somebody else may have taken a port since it was found free.
                Err(error) if attempts < ATTEMPTS => eprintln!("control plane: {error:#}; trying again"),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether it was started here, and is new and empty.
    pub fn is_own(&self) -> bool {
        self.dir.is_some()
    }

    /// Where clients find it, with all rights.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A client with all rights.
    ///
    /// # Errors
    /// Where the kubeconfig makes no sense.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        let kubeconfig = Kubeconfig::read_from(&self.kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        chatgateway_operator::controller::client(config)
    }

    /// Runs kubectl. What it prints.
    ///
    /// # Errors
    /// Where it does not exit with 0; with what it said.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.kubectl).args(args).env("KUBECONFIG", &self.kubeconfig).output();
        let output = output.context("kubectl could not be run")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "kubectl {}: {said}{errors}", args.join(" "));
        Ok(said)
    }
}

/// The folder with the programs.
fn programs() -> anyhow::Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.sh");
    let output = Command::new(&script).stderr(std::process::Stdio::inherit()).output();
    let output = output.with_context(|| format!("{} could not be run", script.display()))?;
    anyhow::ensure!(output.status.success(), "{} failed; its words are above", script.display());
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}

/// A port that is free now.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

struct Starting<'a> {
    programs: &'a Path,
    dir: &'a Path,
    audit: Option<&'a Path>,
}

impl Starting<'_> {
    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    fn start(&self) -> anyhow::Result<Vec<Process>> {
        self.write_keys()?;
        let [etcd_port, peer_port, port] = [free_port()?, free_port()?, free_port()?];
        self.write_kubeconfig("admin", "system:masters", port)?;
        self.write_kubeconfig("system:kube-controller-manager", "", port)?;
        let tokens: Vec<_> = [("admin", "system:masters"), ("system:kube-controller-manager", "")]
            .iter()
            .map(|(user, group)| format!("{},{user},{user},\"{group}\"", token_of(user)))
            .collect();
        fs::write(self.dir.join("tokens.csv"), tokens.join("\n") + "\n")?;
        let etcd = self.etcd(etcd_port, peer_port)?;
        let api_server = self.api_server(etcd_port, port)?;
        self.wait_ready(&api_server)?;
        let controllers = self.controller_manager()?;
        Ok(vec![controllers, api_server, etcd])
    }

    fn etcd(&self, port: u16, peer_port: u16) -> anyhow::Result<Process> {
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
        let args = [
            ("--data-dir", self.path("etcd")),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer.clone()),
            ("--initial-cluster", format!("default={peer}")),
        ];
        Process::start(Path::new("etcd"), &flags(&args), self.dir)
    }

    fn api_server(&self, etcd_port: u16, port: u16) -> anyhow::Result<Process> {
        let args = [
            ("--etcd-servers", format!("http://127.0.0.1:{etcd_port}")),
            ("--bind-address", "127.0.0.1".to_owned()),
            ("--secure-port", port.to_string()),
            ("--tls-cert-file", self.path("server.crt")),
            ("--tls-private-key-file", self.path("server.key")),
            ("--token-auth-file", self.path("tokens.csv")),
            ("--authorization-mode", "RBAC".to_owned()),
            ("--service-cluster-ip-range", "10.96.0.0/16".to_owned()),
            ("--service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("--service-account-key-file", self.path("accounts.pub")),
            ("--service-account-signing-key-file", self.path("accounts.key")),
            ("--cert-dir", self.path("apiserver")),
        ];
        let args = [&args[..], &self.audit()?].concat();
        Process::start(&self.programs.join("kube-apiserver"), &flags(&args), self.dir)
    }

    /// What makes the API server write an audit log, where one is wanted: one line for each request that was answered.
    fn audit(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let Some(log) = self.audit else { return Ok(Vec::new()) };
        let policy = serde_json::json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
            "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}],
        });
        fs::write(self.dir.join("audit-policy.yaml"), policy.to_string())?;
        let log = log.to_string_lossy().into_owned();
        Ok(vec![("--audit-policy-file", self.path("audit-policy.yaml")), ("--audit-log-path", log)])
    }

    fn controller_manager(&self) -> anyhow::Result<Process> {
        let args = [
            ("--kubeconfig", self.path("system:kube-controller-manager.kubeconfig")),
            ("--service-account-private-key-file", self.path("accounts.key")),
            ("--root-ca-file", self.path("ca.crt")),
            ("--use-service-account-credentials", "true".to_owned()),
            ("--leader-elect", "false".to_owned()),
            ("--bind-address", "127.0.0.1".to_owned()),
            ("--secure-port", free_port()?.to_string()),
            ("--cert-dir", self.path("controllers")),
            // Pods that seem to run have addresses of the loopback, which these refuse again and again.
            (
                "--controllers",
                "*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller".to_owned(),
            ),
            // 20 calls a second are what it allows itself otherwise: minutes, where there are many gateways.
            ("--kube-api-qps", "1000".to_owned()),
            ("--kube-api-burst", "2000".to_owned()),
            // Figures of pods that never run are not to be had.
            ("--horizontal-pod-autoscaler-sync-period", "2s".to_owned()),
        ];
        Process::start(&self.programs.join("kube-controller-manager"), &flags(&args), self.dir)
    }

    fn wait_ready(&self, api_server: &Process) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let mut look = Command::new(self.programs.join("kubectl"));
            look.args(["get", "--raw", "/readyz", "--request-timeout=5s"]);
            let output = look.env("KUBECONFIG", self.path("admin.kubeconfig")).output()?;
            if output.status.success() {
                return Ok(());
            }
            anyhow::ensure!(api_server.is_running(), "kube-apiserver ended: {}", api_server.last_words());
            anyhow::ensure!(
                Instant::now() < deadline,
                "kube-apiserver is not ready after {} s: {}",
                READY_TIMEOUT.as_secs(),
                api_server.last_words()
            );
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// An authority, the API server's certificate, and the key that signs service accounts' tokens.
    fn write_keys(&self) -> anyhow::Result<()> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "tests");
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names = ["localhost", "kubernetes.default.svc", "127.0.0.1", "10.96.0.1"].map(str::to_owned);
        let server = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        let accounts = KeyPair::generate()?;
        for (name, text) in [
            ("ca.crt", authority.pem()),
            ("server.crt", server.pem()),
            ("server.key", key.serialize_pem()),
            ("accounts.key", accounts.serialize_pem()),
            ("accounts.pub", accounts.public_key_pem()),
        ] {
            fs::write(self.dir.join(name), text)?;
        }
        Ok(())
    }

    fn write_kubeconfig(&self, user: &str, _group: &str, port: u16) -> anyhow::Result<()> {
        let text = format!(
            "apiVersion: v1\nkind: Config\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority: '{}'}}}}]\n\
             users: [{{name: u, user: {{token: '{}'}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n",
            self.path("ca.crt"),
            token_of(user)
        );
        Ok(fs::write(self.dir.join(format!("{user}.kubeconfig")), text)?)
    }
}

/// The token of a user, the same in one process.
fn token_of(user: &str) -> String {
    use std::sync::LazyLock;
    static SECRET: LazyLock<u128> = LazyLock::new(rand::random);
    format!("{}-{:032x}", user.replace(':', "-"), *SECRET)
}

fn flags(args: &[(&str, String)]) -> Vec<String> {
    args.iter().map(|(flag, value)| format!("{flag}={value}")).collect()
}
