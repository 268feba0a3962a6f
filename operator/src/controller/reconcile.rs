//! One gateway: observe, validate, plan, apply, tell.

use std::sync::Arc;
use std::time::Duration;

use chatgateway_api::{ChatGateway, ChatGatewayStatus};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use rand::distr::{Alphanumeric, SampleString};
use serde_json::{Value, json};

use super::apply::Applied;
use super::{Error, FIELD_MANAGER, Shared, apply, call};
use crate::manifest;
use crate::plan::objects::{COLD_HASH, CONFIG_HASH, LiveReplicas, Names, Object, Observed, Planned, plan};
use crate::plan::pace::{Candidate, Turn};
use crate::status::{DeploymentSeen, RedisSeen, Seen, Upgrade, Verdict, asks_again, is_edited, is_upgrading, status};
use crate::validate::{Validated, validate};

/// Keeps a gateway until its pods have drained.
const FINALIZER: &str = "chatgateway.dev/drain";

/// How soon one is looked at again of which not everything is known yet, at the start.
const LOOK_SOON: Duration = Duration::from_millis(200);

/// How often a gateway is looked at whose pods are to be asked again soon: they tell nobody when they have taken a configuration
/// over. And one that another's object is in the way of, since that is not watched.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How often one that waits for its upgrade looks whether there is a place.
const LOOK_FOR_PLACE: Duration = Duration::from_secs(10);

/// How often any other one is looked at, for the figures in its status.
const LOOK_SOMETIMES: Duration = Duration::from_secs(30);

/// Length of a managed Redis' password: 190 bits.
const PASSWORD_CHARS: usize = 32;

/// Reconciles one gateway.
pub(super) async fn reconcile(gateway: Arc<ChatGateway>, shared: Arc<Shared>) -> Result<Action, Error> {
    let _running = shared.health.begin();
    if !shared.stores.are_filled() {
        return Ok(Action::requeue(LOOK_SOON));
    }
    let one = One::of(&gateway);
    if gateway.metadata.deletion_timestamp.is_some() {
        return leave(&gateway, &one, &shared).await;
    }
    keep(&gateway, &one, &shared).await?;
    let validated = validate(&gateway);
    shared.secrets.note(&one.namespace, &one.name, validated.as_ref().ok());
    let mut seen = Seen {
        generation: gateway.metadata.generation.unwrap_or(0),
        paused: gateway.spec.paused.unwrap_or(false),
        ..Seen::default()
    };
    let (planned, conflict) = match &validated {
        Ok(valid) => {
            seen.missing = shared.secrets.missing(&one.namespace, valid).await?;
            let planned = plan_of(valid, &one, &shared).await?;
            let held = seen.paused || !seen.missing.is_empty();
            let conflict = match &planned {
                Ok(planned) => {
                    seen.upgrade = upgrade(&gateway, &one, planned, held, &shared);
                    let waits = held || matches!(seen.upgrade, Upgrade::Begins | Upgrade::Waits { .. });
                    if waits { None } else { make(&gateway, &one, planned, &shared).await? }
                }
                Err(_) => None,
            };
            (Some(planned), conflict)
        }
        Err(_) => (None, None),
    };
    look(&one, &shared, &mut seen).await;
    let verdict = match (&validated, &planned, &conflict) {
        (Err(errors), _, _) | (_, Some(Err(errors)), _) => Verdict::Invalid(errors),
        (_, _, Some((kind, name))) => Verdict::Conflict { kind, name },
        (_, Some(Ok(planned)), _) => Verdict::Planned(planned),
        // What is valid was planned.
        (Ok(_), None, _) => return Ok(Action::requeue(LOOK_AGAIN)),
    };
    let soon = tell(&gateway, &one, verdict, &seen, &shared).await? || conflict.is_some();
    shared.retries.progress(&one.uid);
    shared.health.count("done");
    let pause = match seen.upgrade {
        Upgrade::Begins => LOOK_SOON,
        Upgrade::Waits { .. } => LOOK_FOR_PLACE,
        Upgrade::None | Upgrade::UnderWay if soon => LOOK_AGAIN,
        Upgrade::None | Upgrade::UnderWay => LOOK_SOMETIMES,
    };
    Ok(Action::requeue(pause.mul_f64(1.0 + rand::random::<f64>() / 4.0)))
}

/// Which gateway.
struct One {
    namespace: String,
    name: String,
    uid: String,
}

impl One {
    fn of(gateway: &ChatGateway) -> Self {
        Self {
            namespace: gateway.namespace().unwrap_or_default(),
            name: gateway.name_any(),
            uid: gateway.uid().unwrap_or_default(),
        }
    }

    fn api(&self, shared: &Shared) -> Api<ChatGateway> {
        Api::namespaced(shared.client.clone(), &self.namespace)
    }
}

/// Makes sure that the gateway is not gone before its pods have drained.
async fn keep(gateway: &ChatGateway, one: &One, shared: &Shared) -> Result<(), Error> {
    if gateway.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(());
    }
    let mut finalizers = gateway.finalizers().to_vec();
    finalizers.push(FINALIZER.to_owned());
    set_finalizers(gateway, one, shared, finalizers).await
}

/// The version is part of it: whoever else has changed them meanwhile is not overwritten.
async fn set_finalizers(
    gateway: &ChatGateway,
    one: &One,
    shared: &Shared,
    finalizers: Vec<String>,
) -> Result<(), Error> {
    let patch = json!({"metadata": {"resourceVersion": gateway.resource_version(), "finalizers": finalizers}});
    let params = PatchParams::default();
    let what = format!("set the finalizers of {}/{}", one.namespace, one.name);
    call(&what, one.api(shared).patch_metadata(&one.name, &params, &Patch::Merge(&patch))).await.map(drop)
}

/// The gateway is to go: first its pods, each with its drain, while their Redis is still there; then everything else, which
/// the cluster itself removes after it.
async fn leave(gateway: &ChatGateway, one: &One, shared: &Shared) -> Result<Action, Error> {
    if !gateway.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(Action::await_change());
    }
    let foreground = DeleteParams::foreground();
    for (kind, api_version) in [("HorizontalPodAutoscaler", "autoscaling/v2"), ("Deployment", "apps/v1")] {
        let meta = shared.stores.meta(kind, &one.namespace, &one.name);
        if meta.is_some_and(|meta| meta.deletion_timestamp.is_none() && apply::is_owned(&meta, &one.uid)) {
            apply::delete(&shared.client, kind, api_version, &one.namespace, &one.name, &foreground).await?;
        }
    }
    let reference = ObjectRef::<Deployment>::new(&one.name).within(&one.namespace);
    let pods = shared.stores.pods_of(&one.namespace, &one.name).len();
    if shared.stores.deployments.get(&reference).is_some() || unseen(one, shared).await? || pods > 0 {
        tracing::info!(namespace = one.namespace, gateway = one.name, pods, "waits for the drains of its pods");
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    let others = gateway.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    set_finalizers(gateway, one, shared, others).await?;
    shared.secrets.note(&one.namespace, &one.name, None);
    let names = Names::new(&one.name);
    shared.written.forget(&one.namespace, &[&one.name, &names.config, &names.headless, &names.redis]);
    shared.upgrades().lock().leave(&one.uid);
    shared.retries.progress(&one.uid);
    Ok(Action::await_change())
}

/// Whether there is a Deployment that its watch has not told of. It is deleted.
async fn unseen(one: &One, shared: &Shared) -> Result<bool, Error> {
    let (kind, api_version) = ("Deployment", "apps/v1");
    let seen = apply::seen(&shared.client, kind, api_version, &one.namespace, &one.name).await?;
    let Some(meta) = seen.filter(|meta| apply::is_owned(meta, &one.uid)) else { return Ok(false) };
    if meta.deletion_timestamp.is_none() {
        let foreground = DeleteParams::foreground();
        apply::delete(&shared.client, kind, api_version, &one.namespace, &one.name, &foreground).await?;
    }
    Ok(true)
}

type Plan = Result<Planned, chatgateway_config::ConfigErrors>;

async fn plan_of(valid: &Validated, one: &One, shared: &Shared) -> Result<Plan, Error> {
    // Made once: what is there stays, though its watch may not have told of it yet.
    let secret = Names::new(&one.name).redis;
    let redis_password = if valid.managed_redis().is_some()
        && shared.stores.meta("Secret", &one.namespace, &secret).is_none()
        && apply::seen(&shared.client, "Secret", "v1", &one.namespace, &secret).await?.is_none()
    {
        Some(Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_CHARS))
    } else {
        None
    };
    let autoscaled = shared.stores.meta("HorizontalPodAutoscaler", &one.namespace, &one.name).is_some();
    let replicas = if valid.autoscaling().is_some() && !autoscaled {
        let deployment = apply::deployment(&shared.client, &one.namespace, &one.name).await?;
        deployment.and_then(|deployment| {
            let count = i32::try_from(deployment.data["spec"]["replicas"].as_i64()?).ok()?;
            Some(LiveReplicas { count, ours: apply::wrote_replicas(&deployment) })
        })
    } else {
        None
    };
    let observed = Observed {
        namespace: Some(one.namespace.clone()),
        uid: Some(one.uid.clone()),
        replicas,
        redis_password,
        pod_monitors: shared.optional.pod_monitors(),
    };
    Ok(plan(valid, &observed, &shared.release))
}

/// What a new release of the operator means for the gateway now.
fn upgrade(gateway: &ChatGateway, one: &One, planned: &Planned, held: bool, shared: &Shared) -> Upgrade {
    let mut seen = Seen::default();
    look_at_objects(one, shared, &mut seen);
    let differs = planned.objects.iter().any(|object| {
        let known = shared.stores.meta(object.kind, &one.namespace, &object.name);
        known.and_then(|known| known.annotations).is_some_and(|annotations| object.replaces_pods(&annotations))
    });
    let status = gateway.status.as_ref();
    let candidate = Candidate {
        uid: &one.uid,
        differs,
        edited: status.is_none_or(|status| is_edited(status, gateway.metadata.generation.unwrap_or(0))),
        whole: seen.is_whole(),
        told: status.is_some_and(is_upgrading),
        held,
    };
    match shared.upgrades().lock().turn(&candidate) {
        Turn::Free => Upgrade::None,
        Turn::Begin => Upgrade::Begins,
        Turn::Go => Upgrade::UnderWay,
        Turn::Wait { others } => Upgrade::Waits { others },
    }
}

/// Makes what is planned. An object that belongs to somebody else, if there is one; then nothing was changed.
async fn make(
    gateway: &ChatGateway,
    one: &One,
    planned: &Planned,
    shared: &Shared,
) -> Result<Option<(&'static str, String)>, Error> {
    if let Some(count) = planned.hand_off {
        apply::hand_off(&shared.client, &one.namespace, &one.name, count).await?;
    }
    for gone in &planned.unwanted {
        if apply::remove(&shared.client, &shared.stores, &one.namespace, &one.uid, gone).await? {
            shared.health.wrote(gone.kind);
            shared.retries.progress(&one.uid);
        }
    }
    for object in &planned.objects {
        let news = news(one, object, shared);
        match shared.written.apply(&shared.client, &shared.stores, &one.namespace, &one.uid, object).await? {
            Applied::Foreign => return Ok(Some((object.kind, object.name.clone()))),
            Applied::Same => {}
            Applied::Written => {
                shared.health.wrote(object.kind);
                shared.retries.progress(&one.uid);
                if let Some(news) = news {
                    publish(gateway, news, shared).await;
                }
            }
        }
    }
    Ok(None)
}

/// What an event tells.
struct News {
    reason: &'static str,
    /// Events of one reason and one action are one event with a count: what differs must differ here.
    action: String,
    note: String,
}

/// What an object that is about to be written means for the pods, where it means anything.
fn news(one: &One, object: &Object, shared: &Shared) -> Option<News> {
    let known = shared.stores.meta(object.kind, &one.namespace, &object.name)?;
    match object.kind {
        "ConfigMap" => {
            let was = known.annotations.as_ref()?.get(CONFIG_HASH)?;
            let is = object.value["metadata"]["annotations"][CONFIG_HASH].as_str()?;
            let note = "pods take the changed configuration over without a restart".to_owned();
            (was != is).then(|| News { reason: "ConfigReloaded", action: "Reload".to_owned(), note })
        }
        "Deployment" => {
            let reference = ObjectRef::<Deployment>::new(&object.name).within(&one.namespace);
            let live = serde_json::to_value(shared.stores.deployments.get(&reference)?.spec.as_ref()?).ok()?;
            rollout(&live["template"], &object.value["spec"]["template"])
        }
        _ => None,
    }
}

/// Why pods are replaced, where they are.
fn rollout(was: &Value, is: &Value) -> Option<News> {
    let cold = format!("/metadata/annotations/{}", COLD_HASH.replace('/', "~1"));
    let reasons = [
        ("Image", "the image changed", "/spec/containers/0/image"),
        ("Settings", "settings changed that only new processes take over", &cold),
        ("Resources", "resources changed", "/spec/containers/0/resources"),
        ("Drain", "the time for drains changed", "/spec/terminationGracePeriodSeconds"),
        ("Secrets", "the Secrets changed", "/spec/containers/0/volumeMounts"),
    ];
    let differing = reasons.iter().filter(|(_, _, pointer)| was.pointer(pointer) != is.pointer(pointer));
    let (names, why): (Vec<_>, Vec<_>) = differing.map(|(name, why, _)| (*name, *why)).unzip();
    (!names.is_empty()).then(|| News {
        reason: "RolloutStarted",
        action: format!("Roll{}", names.concat()),
        note: format!("pods are replaced one after the other, each with its drain: {}", why.join(", ")),
    })
}

/// Tells people. Unheard, nothing is lost.
async fn publish(gateway: &ChatGateway, news: News, shared: &Shared) {
    let event = Event {
        type_: EventType::Normal,
        reason: news.reason.to_owned(),
        note: Some(news.note),
        action: news.action,
        secondary: None,
    };
    if let Err(error) = call("publish an event", shared.events.publish(&event, &gateway.object_ref(&()))).await {
        tracing::debug!("{error}");
    }
}

/// Looks at what is there.
async fn look(one: &One, shared: &Shared, seen: &mut Seen) {
    look_at_objects(one, shared, seen);
    seen.pods = shared.pods.look(shared.stores.pods_of(&one.namespace, &one.name)).await;
}

fn look_at_objects(one: &One, shared: &Shared, seen: &mut Seen) {
    let reference = ObjectRef::new(&one.name).within(&one.namespace);
    seen.deployment = shared.stores.deployments.get(&reference).map(|deployment| deployment_seen(&deployment));
    let redis = ObjectRef::new(&Names::new(&one.name).redis).within(&one.namespace);
    seen.redis = shared.stores.stateful_sets.get(&redis).map(|set| redis_seen(&set));
}

fn redis_seen(set: &StatefulSet) -> RedisSeen {
    let Some(status) = &set.status else { return RedisSeen { ready: false, rolls: true } };
    let current = status.observed_generation >= set.metadata.generation;
    RedisSeen {
        ready: status.ready_replicas.unwrap_or(0) > 0,
        rolls: !current || status.update_revision != status.current_revision,
    }
}

fn deployment_seen(deployment: &Deployment) -> DeploymentSeen {
    let status = deployment.status.clone().unwrap_or_default();
    let stuck = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "Progressing" && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
    });
    DeploymentSeen {
        current: status.observed_generation >= deployment.metadata.generation,
        desired: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        replicas: status.replicas.unwrap_or(0),
        updated: status.updated_replicas.unwrap_or(0),
        ready: status.ready_replicas.unwrap_or(0),
        available: status.available_replicas.unwrap_or(0),
        stuck: stuck.map(|condition| condition.message.clone().unwrap_or_default()),
    }
}

/// Writes the status if it differs. Whether the pods are to be asked again soon.
async fn tell(
    gateway: &ChatGateway,
    one: &One,
    verdict: Verdict<'_>,
    seen: &Seen,
    shared: &Shared,
) -> Result<bool, Error> {
    let previous = gateway.status.clone().unwrap_or_default();
    let fresh = status(&one.name, verdict, seen, &previous, &Time(Timestamp::now()));
    let soon = asks_again(&fresh, seen);
    if fresh == previous {
        return Ok(soon);
    }
    let body = StatusPatch { api_version: manifest::API_VERSION, kind: manifest::KIND, status: &fresh };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let what = format!("write the status of {}/{}", one.namespace, one.name);
    call(&what, one.api(shared).patch_status(&one.name, &params, &Patch::Apply(&body))).await?;
    shared.health.wrote("ChatGateway");
    Ok(soon)
}

#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusPatch<'a> {
    api_version: &'static str,
    kind: &'static str,
    status: &'a ChatGatewayStatus,
}
