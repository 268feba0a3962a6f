//! Between the operator and the API server things go wrong, or nothing goes at all.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use chatgateway_api::ChatGateway;
use chatgateway_control_plane::{Call, End, Fate, Operator, Refusal, Start};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::api::{DeleteParams, Patch, PatchParams};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use super::super::support::{Namespace, until};
use super::course::{Course, Step};

/// Of a hundred writes, how many come to grief in a storm.
const STORM_PERCENT: u32 = 30;

/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(60);

/// How long a Lease is valid that is not renewed: by then its holder must have ended.
const LEASE: Duration = Duration::from_secs(15);

/// Connections that an operator may try in [`AWAY`]: a dozen watches, each with pauses that grow, and the Lease every 2 s.
const ATTEMPTS_MAX: u64 = 150;

/// Nothing but looks at the Lease for so long: nobody is in a loop.
const QUIET: Duration = Duration::from_secs(5);

/// An operator that is started again whenever it ends, as a kubelet does.
struct Kept<'a> {
    course: &'a Course,
    operator: Operator,
    starts: u32,
}

impl<'a> Kept<'a> {
    fn start(course: &'a Course) -> anyhow::Result<Self> {
        Ok(Self { course, operator: course.operator()?, starts: 1 })
    }

    fn look(&mut self) -> anyhow::Result<()> {
        if !self.operator.process().is_running() {
            println!("        it ended: {}", self.operator.process().last_words().lines().last().unwrap_or_default());
            self.operator = self.course.operator()?;
            self.starts += 1;
        }
        Ok(())
    }
}

fn demo(rest: Value) -> Value {
    let mut spec = json!({"upstreams": [{"name": "demo", "type": "Demo"}]});
    for (name, value) in rest.as_object().cloned().unwrap_or_default() {
        spec[name] = value;
    }
    spec
}

fn has_image(image: &'static str) -> impl Fn(&Value) -> bool {
    move |deployment| deployment["spec"]["template"]["spec"]["containers"][0]["image"] == image
}

/// Waits until no calls are made but about the Lease.
async fn quiet(course: &Course) -> anyhow::Result<()> {
    let before = Mutex::new((course.proxy.calls("all"), Instant::now()));
    until("no calls without a reason", || async {
        let calls = course.proxy.calls("all");
        let Ok(mut before) = before.lock() else { return false };
        if before.0 != calls {
            *before = (calls, Instant::now());
        }
        before.1.elapsed() >= QUIET
    })
    .await
}

/// Many writes are refused, cut or done without an answer.
pub async fn storm(ns: Namespace, seed: u64) -> anyhow::Result<()> {
    let course = Course::begin(ns, true).await?;
    let reference = course.undisturbed().await?;
    let calm = course.proxy.calls("all");
    let dice = Mutex::new(StdRng::seed_from_u64(seed));
    course.proxy.follow(move |call: &Call| {
        let Ok(mut dice) = dice.lock() else { return Fate::Pass };
        if !call.writes() || dice.random_range(0..100) >= STORM_PERCENT {
            return Fate::Pass;
        }
        match dice.random_range(0..5) {
            0 => Fate::Refuse(Refusal::Conflict),
            1 => Fate::Refuse(Refusal::TooManyRequests(1)),
            2 => Fate::Refuse(Refusal::InternalError),
            3 => Fate::Cut,
            _ => Fate::Lose,
        }
    });
    let mut kept = Kept::start(&course)?;
    for (step, expected) in &reference {
        course.take(*step).await?;
        while !course
            .becomes(expected, || !kept.operator.process().is_running())
            .await
            .with_context(|| format!("{step:?}"))?
        {
            kept.look()?;
        }
    }
    let calls = course.proxy.calls("all") - calm;
    println!("        {calls} calls in the storm, {calm} in the calm, {} starts", kept.starts);
    // As many again for what had to be repeated, as many for looks at what came of it, and for each operator: a new one looks at all.
    ensure!(calls <= calm * u64::from(2 + kept.starts), "{calls} calls, and {calm} without a storm");
    course.proxy.follow(|_: &Call| Fate::Pass);
    quiet(&course).await
}

/// Nothing can be written: it is tried again at growing intervals.
pub async fn refused(ns: Namespace) -> anyhow::Result<()> {
    let course = Course::begin(ns, false).await?;
    course.proxy.follow(|call: &Call| match call.writes() && call.path.ends_with("/configmaps/a-config") {
        true => Fate::Refuse(Refusal::InternalError),
        false => Fate::Pass,
    });
    let _operator = course.operator()?;
    course.take(Step::Make).await?;
    until("it is tried thrice", || async { course.proxy.calls("patch") >= 4 }).await?;
    let (before, began) = (course.proxy.calls("patch"), Instant::now());
    until("it is tried again", || async { course.proxy.calls("patch") > before }).await?;
    // 1 s, 2 s, then 4 s.
    ensure!(began.elapsed() >= Duration::from_secs(2), "again after {:?}", began.elapsed());
    // Who says when to come back is heeded.
    course.proxy.follow(|call: &Call| match call.writes() && call.path.ends_with("/configmaps/a-config") {
        true => Fate::Refuse(Refusal::TooManyRequests(20)),
        false => Fate::Pass,
    });
    let before = course.proxy.calls("patch");
    until("it is tried again", || async { course.proxy.calls("patch") > before }).await?;
    course.proxy.follow(|_: &Call| Fate::Pass);
    let began = Instant::now();
    course.ns.see::<Deployment>("a Deployment", "a", |deployment| !deployment.is_null()).await?;
    ensure!(began.elapsed() >= Duration::from_secs(15), "again after {:?}", began.elapsed());
    Ok(())
}

/// The API server is not there for a minute, for the operator; its gateways are changed meanwhile.
pub async fn away(ns: Namespace) -> anyhow::Result<()> {
    let course = Course::begin(ns, true).await?;
    let ns = course.ns.clone();
    let mut kept = Kept::start(&course)?;
    for name in ["a", "b", "c"] {
        ns.apply(name, demo(json!({}))).await?;
        ns.condition(name, "Available", "False", "NoPodAvailable").await?;
    }
    let began = Instant::now();
    let before = course.proxy.connections();
    course.proxy.away(true);
    // It acts for as long as its Lease, and no longer.
    until("it gives up", || async { !kept.operator.process().is_running() }).await?;
    let lasted = began.elapsed();
    ensure!(lasted < LEASE, "it went on for {lasted:?} with a Lease of {LEASE:?}");
    let status = kept.operator.process().wait(Duration::from_secs(1))?;
    ensure!(status.is_some_and(|status| status.code() == Some(1)), "it ended with {status:?}");
    ensure!(kept.operator.said("the lease is lost"), "it does not say why it ended");
    // Meanwhile: an edit, an object that goes, a new gateway and one that is to go.
    ns.apply("a", demo(json!({"image": "other:2"}))).await?;
    ns.api::<Service>().delete("b", &DeleteParams::default()).await?;
    ns.delete("c").await?;
    ns.apply("d", demo(json!({}))).await?;
    while began.elapsed() < AWAY {
        kept.look()?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(kept.starts == 2, "it was started {} times: it should wait for the API server", kept.starts);
    ensure!(kept.operator.metric("chatgateway_operator_crd_missing")? == 1, "it does not tell that it waits");
    let tried = course.proxy.connections() - before;
    println!("        tried {tried} times in {AWAY:?}; ended after {lasted:?}");
    ensure!((5..=ATTEMPTS_MAX).contains(&tried), "it tried {tried} times in {AWAY:?}");
    course.proxy.away(false);
    ns.see::<Deployment>("the edit", "a", has_image("other:2")).await?;
    ns.see::<Service>("the Service", "b", |service| !service.is_null()).await?;
    ns.see::<ChatGateway>("no gateway", "c", Value::is_null).await?;
    ns.see::<Deployment>("no Deployment", "c", Value::is_null).await?;
    ns.see::<Deployment>("a new one", "d", |deployment| !deployment.is_null()).await?;
    quiet(&course).await
}

/// The one that acts is cut off; another one is not. Never do both act.
pub async fn cut_off(ns: Namespace) -> anyhow::Result<()> {
    let course = Course::begin(ns, true).await?;
    let ns = course.ns.clone();
    let first = course.operator()?;
    until("the first one acts", || async { first.acts() }).await?;
    let kubeconfig = ns.plane.kubeconfig();
    let start = Start { kubeconfig, namespace: Some(&ns.name), lease_namespace: Some(&ns.name) };
    let other = Operator::start_as(&start, ns.logs.path())?;
    until("the other one waits", || async { other.said("another operator acts; this one waits") }).await?;
    ns.apply("a", demo(json!({}))).await?;
    ns.condition("a", "Accepted", "True", "Valid").await?;
    course.proxy.away(true);
    let ended = Mutex::new(None);
    until("the other one acts", || async {
        let acts = other.acts();
        if let Ok(mut ended) = ended.lock()
            && ended.is_none()
            && !first.process().is_running()
        {
            *ended = Some(Instant::now());
        }
        acts
    })
    .await?;
    let ended = ended.into_inner().unwrap_or_default().context("the first one still acts")?;
    // Of two clocks, one may be slow.
    ensure!(ended.elapsed() > Duration::from_secs(1), "the first one ended only {:?} before", ended.elapsed());
    ns.apply("a", demo(json!({"image": "other:2"}))).await?;
    ns.see::<Deployment>("the edit", "a", has_image("other:2")).await?;
    Ok(())
}

/// Watches end, and cannot be begun again for a while in which things change.
pub async fn watches(ns: Namespace) -> anyhow::Result<()> {
    let course = Course::begin(ns, false).await?;
    let (ns, proxy) = (course.ns.clone(), &course.proxy);
    let _operator = course.operator()?;
    for (how, image) in [(End::Expired, "other:1"), (End::Cut, "other:2")] {
        ns.apply(
            "a",
            demo(json!({"autoscaling": {"maxReplicas": 3}, "sessions": {"store": {
            "type": "Redis", "redis": {"external": {"endpoints": ["redis:6379"]}}}}})),
        )
        .await?;
        ns.see::<HorizontalPodAutoscaler>("an autoscaler", "a", |autoscaler| !autoscaler.is_null()).await?;
        ns.condition("a", "Accepted", "True", "Valid").await?;
        let (lists, begun) = (proxy.calls("list"), proxy.calls("watch"));
        proxy.follow(|call: &Call| if call.writes() { Fate::Pass } else { Fate::Cut });
        proxy.end_watches(how);
        // The author edits, others put their hands on what is the operator's.
        ns.apply("a", demo(json!({"image": image}))).await?;
        ns.api::<Service>().delete("a", &DeleteParams::default()).await?;
        let edit = Patch::Merge(json!({"data": {"config.yaml": "upstreams: []"}}));
        ns.api::<ConfigMap>().patch("a-config", &PatchParams::default(), &edit).await?;
        until("it tries to begin again", || async { proxy.calls("watch") + proxy.calls("list") > lists + begun })
            .await?;
        proxy.follow(|_: &Call| Fate::Pass);
        ns.see::<Deployment>("the edit", "a", has_image(image)).await?;
        ns.see::<Service>("the Service", "a", |service| !service.is_null()).await?;
        ns.see::<ConfigMap>("the configuration", "a-config", |c| c["data"]["config.yaml"].to_string().contains("demo"))
            .await?;
        ns.see::<HorizontalPodAutoscaler>("no autoscaler", "a", Value::is_null).await?;
        if how == End::Expired {
            ensure!(proxy.calls("list") > lists, "nothing was listed again");
        }
    }
    quiet(&course).await
}

/// Watches are there and tell nothing: what the operator has just made, it does not see.
pub async fn silence(ns: Namespace) -> anyhow::Result<()> {
    let course = Course::begin(ns, false).await?;
    let (ns, proxy) = (course.ns.clone(), &course.proxy);
    let operator = course.operator()?;
    // It has seen everything that is there: nothing.
    ns.apply("first", demo(json!({}))).await?;
    ns.condition("first", "Accepted", "True", "Valid").await?;
    proxy.silence(Some("/secrets"));
    course.take(Step::Make).await?;
    let secret = ns.see::<Secret>("a password", "a-redis", |secret| secret["data"]["password"].is_string()).await?;
    ns.condition("a", "Accepted", "True", "Valid").await?;
    // Some looks at it, each since something has changed.
    let looked = || operator.metric("chatgateway_operator_reconcile_total");
    for look in 0..6 {
        let before = looked()?;
        let change = Patch::Merge(json!({"metadata": {"annotations": {"example.com/look": look.to_string()}}}));
        ns.api::<ConfigMap>().patch("a-config", &PatchParams::default(), &change).await?;
        until("it has looked again", || async { looked().is_ok_and(|now| now > before) }).await?;
    }
    ensure!(ns.get::<Secret>("a-redis").await["data"] == secret["data"], "the password was made anew");
    // A Deployment it does not see is drained all the same before the gateway goes.
    proxy.silence(Some("/deployments"));
    ns.apply("late", demo(json!({}))).await?;
    ns.see::<Deployment>("a Deployment", "late", |deployment| !deployment.is_null()).await?;
    let hold = Patch::Merge(json!({"metadata": {"finalizers": ["example.com/hold"]}}));
    ns.api::<Deployment>().patch("late", &PatchParams::default(), &hold).await?;
    ns.delete("late").await?;
    let going = |deployment: &Value| deployment["metadata"]["deletionTimestamp"].is_string();
    ns.see::<Deployment>("its Deployment goes", "late", going).await?;
    ensure!(!ns.get::<ChatGateway>("late").await.is_null(), "the gateway was gone before its pods");
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    ns.api::<Deployment>().patch("late", &PatchParams::default(), &free).await?;
    ns.see::<ChatGateway>("no gateway", "late", Value::is_null).await?;
    proxy.silence(None);
    Ok(())
}
