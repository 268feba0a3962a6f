//! What is said of a gateway: a pure function of what was decided and what was seen.
//!
//! Conditions have a fixed order, and say what is at fault and what to do. They follow kstatus: `Reconciling` and `Stalled` are
//! there only while they are true, so that `kubectl wait`, Argo CD and Flux understand them. A condition's time changes
//! only when its status does: the same state gives the same status, and nothing is written.

use chatgateway_api::ChatGatewayStatus;
use chatgateway_config::{ConfigErrors, Violation};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::plan::objects::{Names, Planned};

/// Most violations that a message lists.
const VIOLATIONS_TOLD: usize = 5;

/// Longest message of a condition; the API takes 32 KiB.
const MESSAGE_MAX_CHARS: usize = 1_024;

/// What was decided about a gateway.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'a> {
    /// It makes no sense; nothing of it was applied.
    Invalid(&'a ConfigErrors),
    /// An object that it needs belongs to somebody else.
    Conflict {
        /// Its kind.
        kind: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// This is to be there.
    Planned(&'a Planned),
}

/// What was seen of a gateway in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The generation of the resource that all of this is about.
    pub generation: i64,
    /// Whether the resource asks that nothing be changed.
    pub paused: bool,
    /// Objects that the resource names and that are not there, each with the path of the field.
    pub missing: Vec<Violation>,
    /// The Deployment, where it is there.
    pub deployment: Option<DeploymentSeen>,
    /// The managed Redis, where there is one.
    pub redis: Option<RedisSeen>,
    /// The gateway's pods.
    pub pods: Vec<PodSeen>,
    /// What a new release of the operator means for it.
    pub upgrade: Upgrade,
}

/// What a new release of the operator means for a gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Upgrade {
    /// Nothing, or it is done.
    #[default]
    None,
    /// It has just got a place among those whose pods are replaced; nothing is written yet.
    Begins,
    /// It has a place.
    UnderWay,
    /// It waits for one, unchanged.
    Waits {
        /// How many others have one.
        others: usize,
    },
}

/// Reasons that say that a gateway has a place among those that are upgraded.
const UPGRADING: &str = "Upgrading";
const UPGRADE_STUCK: &str = "UpgradeStuck";

/// Whether a status says that its gateway has a place among those that are upgraded.
#[must_use]
pub fn is_upgrading(status: &ChatGatewayStatus) -> bool {
    status.conditions.iter().any(|condition| condition.reason == UPGRADING || condition.reason == UPGRADE_STUCK)
}

/// Whether the gateway's author may be why something is to change: the resource has been edited, or was held back, since this was
/// said of it.
#[must_use]
pub fn is_edited(status: &ChatGatewayStatus, generation: i64) -> bool {
    let held = |condition: &Condition| condition.type_ == "ResolvedRefs" && condition.status != "True";
    status.observed_generation != Some(generation) || status.conditions.iter().any(held)
}

impl Seen {
    /// Whether all pods are of the newest template and take clients, and Redis is there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.deployment.is_some() && rollout(self).is_none() && self.redis.as_ref().is_none_or(|r| r.ready && !r.rolls)
    }
}

/// A Deployment, as its controller tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeploymentSeen {
    /// Whether what it tells is about what was asked for last.
    pub current: bool,
    /// How many pods it should have.
    pub desired: i32,
    /// How many it has.
    pub replicas: i32,
    /// Those of the newest template.
    pub updated: i32,
    /// Those that take clients.
    pub ready: i32,
    /// Those that have taken clients for a while.
    pub available: i32,
    /// Why it does not get on, where it does not.
    pub stuck: Option<String>,
}

/// A managed Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedisSeen {
    /// Whether it answers.
    pub ready: bool,
    /// Whether it is about to be replaced.
    pub rolls: bool,
}

/// One of the gateway's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSeen {
    /// Its name.
    pub name: String,
    /// Whether it takes clients.
    pub ready: bool,
    /// Whether its processes run, so that it can be asked.
    pub running: bool,
    /// Whether it is to go.
    pub leaving: bool,
    /// Why its container does not run, where it does not.
    pub waiting: Option<String>,
    /// What it says of itself. None: it could not be asked.
    pub report: Option<PodReport>,
}

/// What a pod says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodReport {
    /// The hash of the configuration that it runs.
    pub config_hash: String,
    /// Why it does not take over the newest.
    pub config_error: Option<String>,
    /// Why it cannot use its store.
    pub store_trouble: Option<String>,
    /// Client connections.
    pub connections: i64,
    /// Turns that run.
    pub turns: i64,
    /// Whether it drains.
    pub draining: bool,
}

/// One condition before its time is known.
struct Said {
    kind: &'static str,
    status: Truth,
    reason: &'static str,
    message: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Truth {
    True,
    False,
    Unknown,
}

impl Said {
    fn new(kind: &'static str, status: Truth, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status, reason, message: message.into() }
    }

    fn yes(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(kind, Truth::True, reason, message)
    }

    fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(kind, Truth::False, reason, message)
    }

    fn is_true(&self) -> bool {
        self.status == Truth::True
    }
}

/// What is said of a gateway.
#[must_use]
pub fn status(
    gateway: &str,
    verdict: Verdict<'_>,
    seen: &Seen,
    previous: &ChatGatewayStatus,
    now: &Time,
) -> ChatGatewayStatus {
    let accepted = accepted(verdict, seen);
    let refs = resolved_refs(seen);
    let planned = match verdict {
        Verdict::Planned(planned) => Some(planned),
        _ => None,
    };
    let store = session_store(planned, seen);
    // Who is not at it yet runs what was planned for it before.
    let hash = match seen.upgrade {
        Upgrade::Begins | Upgrade::Waits { .. } => previous.config_hash.clone(),
        _ => planned.map(|planned| planned.rendered.settings.hash.clone()),
    };
    let programmed = programmed(hash.as_deref(), seen);
    let available = available(seen);
    let parts = [accepted, refs, store, programmed, available];
    let ready = ready(&parts, seen);
    let (reconciling, stalled) = motion(&parts, &ready, seen);
    let said = parts.into_iter().chain([ready]).chain(reconciling).chain(stalled);
    let conditions = said.map(|said| dated(said, seen.generation, &previous.conditions, now)).collect();
    let deployment = seen.deployment.clone().unwrap_or_default();
    let reports = || seen.pods.iter().filter_map(|pod| pod.report.as_ref());
    let told = reports().next().is_some();
    ChatGatewayStatus {
        observed_generation: Some(seen.generation),
        replicas: Some(deployment.replicas),
        ready_replicas: Some(deployment.ready),
        updated_replicas: Some(deployment.updated),
        draining_replicas: Some(count(&seen.pods, |pod| {
            pod.leaving || pod.report.as_ref().is_some_and(|r| r.draining)
        })),
        programmed_replicas: Some(count(&seen.pods, |pod| runs(pod, hash.as_deref()))),
        connections: told.then(|| reports().map(|report| report.connections).sum()),
        active_turns: told.then(|| reports().map(|report| report.turns).sum()),
        selector: Some(Names::new(gateway).selector_text()),
        config_hash: hash.or_else(|| previous.config_hash.clone()),
        conditions,
    }
}

/// Whether the gateway is as it should be.
#[must_use]
pub fn is_ready(status: &ChatGatewayStatus) -> bool {
    status.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether the pods are to be asked again soon: there are some, and not all is as it should be. Everything else is watched,
/// and tells of itself.
#[must_use]
pub fn asks_again(status: &ChatGatewayStatus, seen: &Seen) -> bool {
    !is_ready(status) && seen.pods.iter().any(|pod| pod.running)
}

fn count(pods: &[PodSeen], which: impl Fn(&PodSeen) -> bool) -> i32 {
    i32::try_from(pods.iter().filter(|pod| which(pod)).count()).unwrap_or(i32::MAX)
}

/// Whether a pod takes clients and runs this configuration.
fn runs(pod: &PodSeen, hash: Option<&str>) -> bool {
    pod.ready && !pod.leaving && pod.report.as_ref().is_some_and(|report| Some(report.config_hash.as_str()) == hash)
}

/// The condition with its time: that of the last change of its status.
fn dated(said: Said, generation: i64, previous: &[Condition], now: &Time) -> Condition {
    let status = match said.status {
        Truth::True => "True",
        Truth::False => "False",
        Truth::Unknown => "Unknown",
    };
    let before = previous.iter().find(|condition| condition.type_ == said.kind && condition.status == status);
    let mut message = said.message;
    if let Some((cut, _)) = message.char_indices().nth(MESSAGE_MAX_CHARS) {
        message.truncate(cut);
        message.push('…');
    }
    Condition {
        type_: said.kind.to_owned(),
        status: status.to_owned(),
        reason: said.reason.to_owned(),
        message,
        observed_generation: Some(generation),
        last_transition_time: before.map_or_else(|| now.clone(), |before| before.last_transition_time.clone()),
    }
}

fn listed(violations: &[Violation]) -> String {
    let mut text: Vec<_> = violations.iter().take(VIOLATIONS_TOLD).map(ToString::to_string).collect();
    if violations.len() > VIOLATIONS_TOLD {
        text.push(format!("and {} more", violations.len() - VIOLATIONS_TOLD));
    }
    text.join("; ")
}

fn accepted(verdict: Verdict<'_>, seen: &Seen) -> Said {
    const KIND: &str = "Accepted";
    match verdict {
        Verdict::Invalid(errors) => {
            let running = unchanged(seen);
            Said::no(KIND, "Invalid", format!("{}{running}", listed(errors.violations())))
        }
        Verdict::Conflict { kind, name } => {
            let message = format!(
                "{kind} {name} is there and belongs to somebody else: delete or rename it, or give the gateway another name"
            );
            Said::no(KIND, "NameConflict", message)
        }
        Verdict::Planned(_) => Said::yes(KIND, "Valid", "the specification makes sense"),
    }
}

fn resolved_refs(seen: &Seen) -> Said {
    const KIND: &str = "ResolvedRefs";
    if seen.missing.is_empty() {
        return Said::yes(KIND, "Resolved", "everything that is named is there");
    }
    let running = unchanged(seen);
    Said::no(KIND, "NotFound", format!("{}{running}", listed(&seen.missing)))
}

fn session_store(planned: Option<&Planned>, seen: &Seen) -> Said {
    const KIND: &str = "SessionStoreReady";
    let troubles =
        || seen.pods.iter().filter_map(|pod| Some((&pod.name, pod.report.as_ref()?.store_trouble.as_ref()?)));
    let managed = planned.is_some_and(|planned| planned.objects.iter().any(|object| object.kind == "StatefulSet"));
    if managed && !seen.redis.as_ref().is_some_and(|redis| redis.ready) {
        let message =
            "the managed Redis is not ready: see the StatefulSet of the name `…-redis`, its pod and its volume";
        return Said::no(KIND, "RedisNotReady", message);
    }
    if let Some((pod, trouble)) = troubles().next() {
        let pods = troubles().count();
        return Said::no(KIND, "Unreachable", format!("{pods} pods cannot use the store; {pod} says: {trouble}"));
    }
    if seen.pods.iter().all(|pod| pod.report.is_none()) {
        return Said::new(KIND, Truth::Unknown, "NoPods", "no pod that uses the store could be asked");
    }
    Said::yes(KIND, "Reachable", "the pods that could be asked use it")
}

fn programmed(hash: Option<&str>, seen: &Seen) -> Said {
    const KIND: &str = "Programmed";
    let Some(hash) = hash else {
        return Said::new(KIND, Truth::Unknown, "NotPlanned", "there is no configuration to run; see Accepted");
    };
    let ready = || seen.pods.iter().filter(|pod| pod.ready && !pod.leaving);
    let refusing = ready().find_map(|pod| Some((&pod.name, pod.report.as_ref()?.config_error.as_ref()?)));
    if let Some((pod, error)) = refusing {
        return Said::no(KIND, "Refused", format!("{pod} does not take the configuration over: {error}"));
    }
    let (all, done) = (ready().count(), ready().filter(|pod| runs(pod, Some(hash))).count());
    if all == 0 {
        return Said::new(KIND, Truth::Unknown, "NoPods", "no pod is ready");
    }
    if done < all {
        let unasked = ready().filter(|pod| pod.report.is_none()).count();
        let message = format!(
            "{done} of {all} ready pods run the newest configuration ({unasked} could not be asked); a ConfigMap reaches pods \
             within some 90 s"
        );
        return Said::no(KIND, "Pending", message);
    }
    Said::yes(KIND, "Programmed", format!("all {all} ready pods run the newest configuration"))
}

fn available(seen: &Seen) -> Said {
    const KIND: &str = "Available";
    let Some(deployment) = &seen.deployment else {
        return Said::no(KIND, "NoDeployment", "there are no pods yet");
    };
    if deployment.desired == 0 {
        return Said::no(KIND, "ScaledToZero", "replicas is 0: nobody is served");
    }
    let told = format!("{} of {} pods take clients", deployment.available, deployment.desired);
    if deployment.available > 0 {
        return Said::yes(KIND, "PodsAvailable", told);
    }
    Said::no(KIND, "NoPodAvailable", told + &why_not(seen))
}

/// What becomes of what runs while nothing is changed.
fn unchanged(seen: &Seen) -> &'static str {
    if seen.deployment.is_some() { "; what runs stays as it was" } else { "" }
}

/// Which pod does not start, and why, if one does not.
fn why_not(seen: &Seen) -> String {
    let waiting = seen.pods.iter().find_map(|pod| Some((&pod.name, pod.waiting.as_ref()?)));
    waiting.map_or_else(String::new, |(pod, why)| format!("; {pod} does not start: {why}"))
}

fn ready(parts: &[Said], seen: &Seen) -> Said {
    const KIND: &str = "Ready";
    if let Some(part) = parts.iter().find(|part| !part.is_true()) {
        let status = if part.status == Truth::Unknown { Truth::Unknown } else { Truth::False };
        return Said::new(KIND, status, part.reason, format!("{}: {}", part.kind, part.message));
    }
    match rollout(seen) {
        Some(message) => Said::no(KIND, "RollingOut", message),
        None => Said::yes(KIND, "Ready", "the gateway serves clients as specified"),
    }
}

/// What is left to do of a rollout.
fn rollout(seen: &Seen) -> Option<String> {
    let deployment = seen.deployment.as_ref()?;
    let (desired, updated) = (deployment.desired, deployment.updated);
    if !deployment.current {
        return Some("the newest specification is on its way to the pods".to_owned());
    }
    if updated < desired || deployment.available < desired {
        return Some(format!(
            "{updated} of {desired} pods are new, {} of {desired} take clients{}",
            deployment.available,
            why_not(seen)
        ));
    }
    let old = deployment.replicas - updated;
    (old > 0).then(|| format!("{old} old pods are still to go"))
}

/// `Reconciling` while it gets on by itself, `Stalled` while somebody must do something.
fn motion(parts: &[Said], ready: &Said, seen: &Seen) -> (Option<Said>, Option<Said>) {
    if seen.paused {
        let message = "spec.paused is true: nothing is changed until it is false";
        return (None, Some(Said::yes("Stalled", "Paused", message)));
    }
    if let Some(part) =
        parts.iter().find(|part| part.status == Truth::False && matches!(part.kind, "Accepted" | "ResolvedRefs"))
    {
        return (None, Some(Said::yes("Stalled", part.reason, part.message.clone())));
    }
    if let Some(stuck) = seen.deployment.as_ref().and_then(|deployment| deployment.stuck.as_ref()) {
        let reason = if seen.upgrade == Upgrade::UnderWay { UPGRADE_STUCK } else { "RolloutStuck" };
        return (None, Some(Said::yes("Stalled", reason, format!("{stuck}{}", why_not(seen)))));
    }
    match seen.upgrade {
        Upgrade::None => {}
        Upgrade::Begins | Upgrade::UnderWay => {
            let rest = rollout(seen).map_or_else(String::new, |rest| format!(": {rest}"));
            let message = format!("a new release of the operator replaces the pods{rest}");
            return (Some(Said::yes("Reconciling", UPGRADING, message)), None);
        }
        Upgrade::Waits { others } => {
            let message = format!(
                "a new release of the operator would replace the pods; {others} other gateways come first, and this one runs \
                 as it was"
            );
            return (Some(Said::yes("Reconciling", "UpgradeWaits", message)), None);
        }
    }
    if ready.is_true() || ready.reason == "ScaledToZero" {
        return (None, None);
    }
    (Some(Said::yes("Reconciling", ready.reason, ready.message.clone())), None)
}

#[cfg(test)]
mod tests;
