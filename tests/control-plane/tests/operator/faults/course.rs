//! A gateway's life, first undisturbed, then with faults: made, changed in every way there is, changed back and deleted. After each
//! step exactly the same must be there.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::ensure;
use chatgateway_api::ChatGateway;
use chatgateway_control_plane::{Operator, Proxy, Start};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use super::super::snapshot::{self, Snapshot};
use super::super::support::{LOOK_INTERVAL, Namespace};

/// How long an undisturbed namespace must not change to be taken for settled: longer than any controller's own pause here.
const SETTLED: Duration = Duration::from_secs(3);

/// How long a step may take with faults.
const STEP_MAX: Duration = Duration::from_secs(120);

/// A step of a gateway's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// With a managed Redis and a number of replicas.
    Make,
    /// Hot and cold settings, and an autoscaler takes over.
    Change,
    /// Its own number again, and a Redis of somebody else.
    ChangeBack,
    Delete,
}

pub const STEPS: [Step; 4] = [Step::Make, Step::Change, Step::ChangeBack, Step::Delete];

impl Step {
    /// What the author asks for; nothing, once it is to go.
    fn spec(self) -> Option<Value> {
        let upstreams = json!([{"name": "demo", "type": "Demo"}]);
        let managed = json!({"store": {"type": "Redis", "redis": {"managed": {}}}});
        let external = json!({"store": {"type": "Redis", "redis": {"external": {"endpoints": ["redis:6379"]}}}});
        match self {
            Self::Make => Some(json!({"upstreams": upstreams, "replicas": 3, "sessions": managed})),
            Self::Change => Some(json!({
                "upstreams": upstreams, "sessions": managed, "image": "other:2",
                "autoscaling": {"minReplicas": 2, "maxReplicas": 5}, "keepalive": {"pingInterval": "20s"},
            })),
            Self::ChangeBack => Some(json!({"upstreams": upstreams, "replicas": 2, "sessions": external})),
            Self::Delete => None,
        }
    }
}

impl Step {
    /// How many pods come of it where none ever runs, and how many of them are new: a rollout does not get on.
    fn pods(self) -> Option<(i32, i32)> {
        match self {
            Self::Make => Some((3, 3)),
            // The autoscaler knows no figures: the number stays.
            Self::Change => Some((4, 1)),
            Self::ChangeBack => Some((3, 1)),
            Self::Delete => None,
        }
    }

    /// Whether other controllers have done their part.
    fn has_what_others_make(self, all: &Snapshot) -> bool {
        let has = |key: &str| all.contains_key(key);
        let volume = has("PersistentVolumeClaim data-a-redis-0");
        let rollout = |number: u32| has(&format!("ReplicaSet of revision {number}"));
        match self {
            Self::Make => volume && rollout(1),
            Self::Change => volume && rollout(2),
            Self::ChangeBack => {
                volume && rollout(3) && !has("StatefulSet a-redis") && !has("HorizontalPodAutoscaler a")
            }
            Self::Delete => volume && all.len() == 1,
        }
    }
}

/// What is there after each step.
pub type Reference = Vec<(Step, Snapshot)>;

/// Where a gateway lives, behind a proxy.
pub struct Course {
    pub ns: Namespace,
    pub proxy: Proxy,
    /// Without a Lease a new operator acts at once.
    pub with_lease: bool,
    /// The password, from when it was first seen.
    password: Mutex<Option<Value>>,
}

impl Course {
    pub async fn begin(ns: Namespace, with_lease: bool) -> anyhow::Result<Self> {
        let proxy = Proxy::start(ns.plane.kubeconfig(), ns.logs.path()).await?;
        Ok(Self { ns, proxy, with_lease, password: Mutex::default() })
    }

    /// An operator of this namespace, behind the proxy.
    pub fn operator(&self) -> anyhow::Result<Operator> {
        let lease_namespace = self.with_lease.then_some(self.ns.name.as_str());
        let kubeconfig = self.proxy.kubeconfig();
        let start = Start { kubeconfig, namespace: Some(&self.ns.name), lease_namespace };
        Operator::start_as(&start, self.ns.logs.path())
    }

    pub async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        snapshot::take(&self.ns.client, &self.ns.name).await
    }

    /// What the author does.
    pub async fn take(&self, step: Step) -> anyhow::Result<()> {
        match step.spec() {
            Some(spec) => self.ns.apply("a", spec).await.map(drop),
            None => self.ns.delete("a").await,
        }
    }

    /// Everything with nothing in its way.
    pub async fn undisturbed(&self) -> anyhow::Result<Reference> {
        let operator = self.operator()?;
        let mut reference = Vec::new();
        for step in STEPS {
            self.take(step).await?;
            if let Some((pods, new)) = step.pods() {
                self.ns.condition("a", "Accepted", "True", "Valid").await?;
                // What other controllers do begins late on a busy machine.
                let running = !self.ns.plane.is_own();
                let made = |gateway: &Value| {
                    let status = &gateway["status"];
                    running || status["replicas"] == pods && status["updatedReplicas"] == new
                };
                let what = format!("{pods} pods, {new} of them new");
                self.ns.see::<ChatGateway>(&what, "a", made).await?;
            }
            let (mut last, mut since) = (self.snapshot().await?, Instant::now());
            let began = Instant::now();
            while since.elapsed() < SETTLED || !step.has_what_others_make(&last) {
                let keys = last.keys();
                ensure!(began.elapsed() < STEP_MAX, "undisturbed, {step:?} does not come to an end: {keys:?}");
                tokio::time::sleep(LOOK_INTERVAL).await;
                let now = self.snapshot().await?;
                if now != last {
                    (last, since) = (now, Instant::now());
                }
            }
            reference.push((step, last));
        }
        drop(operator);
        Ok(reference)
    }

    /// Whether all is as it was undisturbed; the password is always the first one.
    pub async fn is(&self, expected: &Snapshot) -> anyhow::Result<bool> {
        let now = self.ns.get::<Secret>("a-redis").await["data"]["password"].take();
        if let Ok(mut password) = self.password.lock() {
            match (&*password, now.is_string()) {
                (Some(first), true) => ensure!(*first == now, "there is another password"),
                (None, true) => *password = Some(now),
                (_, false) => {}
            }
        }
        Ok(self.snapshot().await? == *expected)
    }

    /// Waits until it is, or something else ends the wait. Whether it is.
    pub async fn becomes(&self, expected: &Snapshot, or: impl Fn() -> bool) -> anyhow::Result<bool> {
        let deadline = Instant::now() + STEP_MAX;
        loop {
            if self.is(expected).await? {
                return Ok(true);
            }
            if or() {
                return Ok(false);
            }
            if Instant::now() >= deadline {
                anyhow::bail!("{}", snapshot::difference(expected, &self.snapshot().await?));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}
