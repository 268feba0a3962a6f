use chatgateway_api::ChatGateway;
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::plan::objects::{Observed, Release, plan};
use crate::validate::validate;

fn time(seconds: i64) -> Time {
    Time(Timestamp::from_second(seconds).expect("a time"))
}

fn gateway(spec: serde_json::Value) -> ChatGateway {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "chatgateway.dev/v1alpha1", "kind": "ChatGateway", "metadata": {"name": "a"}, "spec": spec,
    }))
    .expect("its shape is right")
}

fn planned(redis: bool) -> Planned {
    let mut spec = serde_json::json!({"upstreams": [{"name": "demo", "type": "Demo"}]});
    if redis {
        spec["sessions"] = serde_json::json!({"store": {"type": "Redis", "redis": {"managed": {}}}});
    }
    let valid = validate(&gateway(spec)).expect("it is valid");
    plan(&valid, &Observed::default(), &Release::default()).expect("it can be planned")
}

/// Everything as it should be, with two pods.
fn well(planned: &Planned) -> Seen {
    let report = PodReport {
        config_hash: planned.rendered.settings.hash.clone(),
        connections: 10,
        turns: 2,
        ..PodReport::default()
    };
    let pod =
        |name: &str| PodSeen { name: name.into(), ready: true, report: Some(report.clone()), ..PodSeen::default() };
    let deployment =
        DeploymentSeen { current: true, desired: 2, replicas: 2, updated: 2, ready: 2, available: 2, stuck: None };
    Seen {
        generation: 3,
        deployment: Some(deployment),
        redis: Some(RedisSeen { ready: true, rolls: false }),
        pods: vec![pod("a-1"), pod("a-2")],
        ..Seen::default()
    }
}

fn said(status: &ChatGatewayStatus) -> Vec<String> {
    let line = |c: &Condition| format!("{}={} {}", c.type_, c.status, c.reason);
    status.conditions.iter().map(line).collect()
}

fn judged(planned: &Planned, seen: &Seen) -> ChatGatewayStatus {
    status("a", Verdict::Planned(planned), seen, &ChatGatewayStatus::default(), &time(1))
}

#[test]
fn a_gateway_that_is_well_is_ready_and_its_pods_are_summed_up() {
    let planned = planned(true);
    let status = judged(&planned, &well(&planned));
    let expected = [
        "Accepted=True Valid",
        "ResolvedRefs=True Resolved",
        "SessionStoreReady=True Reachable",
        "Programmed=True Programmed",
        "Available=True PodsAvailable",
        "Ready=True Ready",
    ];
    assert_eq!(said(&status), expected);
    assert_eq!((status.connections, status.active_turns, status.programmed_replicas), (Some(20), Some(4), Some(2)));
    assert!(status.conditions.iter().all(|condition| condition.observed_generation == Some(3)));
    let selector =
        "app.kubernetes.io/component=gateway,app.kubernetes.io/instance=a,app.kubernetes.io/name=chatgateway";
    assert_eq!(status.selector.as_deref(), Some(selector));
}

#[test]
fn the_same_state_gives_the_same_status_and_only_flips_have_a_new_time() {
    let planned = planned(true);
    let seen = well(&planned);
    let first = judged(&planned, &seen);
    let again = status("a", Verdict::Planned(&planned), &seen, &first, &time(60));
    assert_eq!(first, again);
    let mut worse = seen;
    worse.redis = None;
    let flipped = status("a", Verdict::Planned(&planned), &worse, &again, &time(60));
    let times = |kind: &str| {
        let of = |status: &ChatGatewayStatus| {
            status.conditions.iter().find(|c| c.type_ == kind).map(|c| c.last_transition_time.clone())
        };
        (of(&again), of(&flipped))
    };
    assert_eq!(times("SessionStoreReady"), (Some(time(1)), Some(time(60))));
    assert_eq!(times("Accepted"), (Some(time(1)), Some(time(1))));
}

/// Makes something wrong.
type Fault = fn(&mut Seen);

/// Puts a fault in, and compares one of the conditions, `Ready`, and the last one.
fn faulty(name: &str, fault: Fault, expected: [&str; 3]) {
    let planned = planned(true);
    let mut seen = well(&planned);
    fault(&mut seen);
    let said = said(&judged(&planned, &seen));
    assert!(said.iter().any(|line| line == expected[0]), "{name}: {said:?}");
    assert_eq!((said[5].as_str(), said.last().map(String::as_str)), (expected[1], Some(expected[2])), "{name}");
}

/// The same where the condition, `Ready` and `Reconciling` have one reason.
fn passing(name: &str, fault: Fault, condition: &str) {
    let reason = condition.split_once(' ').expect("a reason").1;
    let [ready, last] = [format!("Ready=False {reason}"), format!("Reconciling=True {reason}")];
    faulty(name, fault, [condition, &ready, &last]);
}

#[test]
fn what_mends_itself_is_told_where_it_is() {
    passing("Redis is away", |s| s.redis = Some(RedisSeen::default()), "SessionStoreReady=False RedisNotReady");
    let trouble: fn(&mut Seen) = |s| report(s).store_trouble = Some("refused".into());
    passing("a pod cannot use its store", trouble, "SessionStoreReady=False Unreachable");
    passing("old configuration", |s| report(s).config_hash = "old".into(), "Programmed=False Pending");
    passing("refused", |s| report(s).config_error = Some("line 3".into()), "Programmed=False Refused");
    passing("a pod cannot be asked", |s| s.pods[0].report = None, "Programmed=False Pending");
    passing("no pod takes clients", |s| deployment(s).available = 0, "Available=False NoPodAvailable");
    let rolling = ["Available=True PodsAvailable", "Ready=False RollingOut", "Reconciling=True RollingOut"];
    faulty("a rollout is on its way", |s| deployment(s).updated = 1, rolling);
    faulty("old pods are still there", |s| deployment(s).replicas = 3, rolling);
}

#[test]
fn a_rollout_says_which_new_pod_does_not_start_before_it_is_given_up() {
    let planned = planned(true);
    let mut seen = well(&planned);
    deployment(&mut seen).updated = 1;
    let waiting = Some("ImagePullBackOff: no such image".to_owned());
    seen.pods.push(PodSeen { name: "a-3".into(), waiting, ..PodSeen::default() });
    let status = judged(&planned, &seen);
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").expect("it is always there");
    assert_eq!(ready.reason, "RollingOut");
    assert!(ready.message.ends_with("; a-3 does not start: ImagePullBackOff: no such image"), "{}", ready.message);
}

#[test]
fn what_somebody_must_mend_is_stalled() {
    let missing: fn(&mut Seen) = |s| s.missing.push(Violation::new("spec.x", "Secret s is not there"));
    let expected = ["ResolvedRefs=False NotFound", "Ready=False NotFound", "Stalled=True NotFound"];
    faulty("a Secret is missing", missing, expected);
    let stuck: fn(&mut Seen) = |s| {
        deployment(s).updated = 1;
        deployment(s).stuck = Some("deadline exceeded".into());
    };
    let expected = ["Available=True PodsAvailable", "Ready=False RollingOut", "Stalled=True RolloutStuck"];
    faulty("a rollout stands still", stuck, expected);
    let expected = ["Available=True PodsAvailable", "Ready=True Ready", "Stalled=True Paused"];
    faulty("it is paused", |s| s.paused = true, expected);
}

#[test]
fn a_gateway_that_is_to_have_no_pods_waits_for_nobody() {
    let zero: fn(&mut Seen) = |s| *deployment(s) = DeploymentSeen { current: true, ..DeploymentSeen::default() };
    let expected = ["Available=False ScaledToZero", "Ready=False ScaledToZero", "Ready=False ScaledToZero"];
    faulty("nobody is to be served", zero, expected);
}

#[test]
fn an_upgrade_says_who_waits_and_who_is_at_it() {
    let planned = planned(true);
    let mut seen = well(&planned);
    assert!(seen.is_whole());
    // It serves as before, with the configuration that it had, and is not done.
    seen.upgrade = Upgrade::Waits { others: 10 };
    seen.pods.iter_mut().for_each(|pod| pod.report.as_mut().expect("one").config_hash = "before".into());
    let before = ChatGatewayStatus { config_hash: Some("before".into()), ..ChatGatewayStatus::default() };
    let waits = status("a", Verdict::Planned(&planned), &seen, &before, &time(1));
    assert_eq!(waits.config_hash.as_deref(), Some("before"));
    let all = said(&waits);
    assert_eq!((all[5].as_str(), all[6].as_str()), ("Ready=True Ready", "Reconciling=True UpgradeWaits"));
    assert!(waits.conditions[6].message.contains("10 other gateways come first"), "{}", waits.conditions[6].message);
    assert!(!is_upgrading(&waits) && !is_edited(&waits, 3) && is_edited(&waits, 4));

    let mut seen = well(&planned);
    seen.upgrade = Upgrade::Begins;
    assert!(is_upgrading(&judged(&planned, &seen)), "it says so before anything is written");
    seen.upgrade = Upgrade::UnderWay;
    deployment(&mut seen).updated = 1;
    assert!(!seen.is_whole());
    let rolls = judged(&planned, &seen);
    assert_eq!(said(&rolls).last().map(String::as_str), Some("Reconciling=True Upgrading"));
    deployment(&mut seen).stuck = Some("deadline exceeded".into());
    let stuck = judged(&planned, &seen);
    assert_eq!(said(&stuck).last().map(String::as_str), Some("Stalled=True UpgradeStuck"));
    assert!(is_upgrading(&rolls) && is_upgrading(&stuck), "the next operator knows of both");
}

#[test]
fn pods_are_asked_again_soon_where_some_run_and_not_all_is_well() {
    let planned = planned(true);
    let mut seen = well(&planned);
    let asks = |seen: &Seen| asks_again(&judged(&planned, seen), seen);
    seen.pods[0].running = true;
    assert!(!asks(&seen), "all is well");
    report(&mut seen).config_hash = "old".into();
    assert!(asks(&seen));
    seen.pods[0].running = false;
    assert!(!asks(&seen), "there is nobody to ask");
}

fn report(seen: &mut Seen) -> &mut PodReport {
    seen.pods[0].report.as_mut().expect("a report")
}

fn deployment(seen: &mut Seen) -> &mut DeploymentSeen {
    seen.deployment.as_mut().expect("a Deployment")
}

#[test]
fn what_makes_no_sense_is_told_with_its_paths_and_the_old_pods_stay() {
    let errors = validate(&gateway(serde_json::json!({"upstreams": [], "replicas": 2}))).expect_err("it is wrong");
    let seen =
        Seen { deployment: Some(DeploymentSeen { current: true, ..DeploymentSeen::default() }), ..Seen::default() };
    let status = status("a", Verdict::Invalid(&errors), &seen, &ChatGatewayStatus::default(), &time(1));
    assert_eq!(status.conditions[0].reason, "Invalid");
    let message = &status.conditions[0].message;
    assert!(
        message.contains("spec.replicas: 2 replicas need a store") && message.contains("spec.upstreams: is missing")
    );
    assert!(message.ends_with("what runs stays as it was"), "{message}");
    let last = status.conditions.last().expect("some");
    assert_eq!((last.type_.as_str(), last.reason.as_str()), ("Stalled", "Invalid"));
}

#[test]
fn what_belongs_to_somebody_else_is_named() {
    let conflict = Verdict::Conflict { kind: "Service", name: "a" };
    let status = status("a", conflict, &Seen::default(), &ChatGatewayStatus::default(), &time(1));
    assert!(status.conditions[0].message.starts_with("Service a is there and belongs to somebody else"));
    assert_eq!(said(&status)[0], "Accepted=False NameConflict");
}

/// A gateway's status as others see it, kept in `tests/status`: the health checks of GitOps tools are tried on these.
fn kept(name: &str, generation: i64, status: Option<&ChatGatewayStatus>) {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/status/{name}.json"));
    let mut object = serde_json::json!({
        "apiVersion": "chatgateway.dev/v1alpha1", "kind": "ChatGateway",
        "metadata": {"name": "a", "namespace": "b", "generation": generation},
    });
    if let Some(status) = status {
        object["status"] = serde_json::to_value(status).expect("JSON");
    }
    let fresh = serde_json::to_string_pretty(&object).expect("JSON") + "\n";
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&file, &fresh).expect("written");
    }
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(golden, fresh, "{}: make goldens, and look at the difference", file.display());
}

#[test]
fn golden_statuses_are_as_they_were() {
    let planned = planned(true);
    let of = |fault: Fault| {
        let mut seen = well(&planned);
        fault(&mut seen);
        judged(&planned, &seen)
    };
    let cases: [(&str, Fault); 7] = [
        ("ready", |_| {}),
        ("redis-away", |s| s.redis = None),
        ("configuration-on-its-way", |s| report(s).config_hash = "old".into()),
        ("rolling-out", |s| deployment(s).updated = 1),
        ("rollout-stuck", |s| {
            deployment(s).updated = 1;
            deployment(s).stuck = Some("progress deadline exceeded".into());
        }),
        ("paused", |s| s.paused = true),
        ("secret-missing", |s| s.missing.push(Violation::new("spec.x", "Secret s is not there"))),
    ];
    for (name, fault) in cases {
        kept(name, 3, Some(&of(fault)));
    }
    let zero = of(|s| *deployment(s) = DeploymentSeen { current: true, ..DeploymentSeen::default() });
    kept("scaled-to-zero", 3, Some(&zero));
    kept("edited-since", 4, Some(&of(|_| {})));
    kept("new", 1, None);
    let errors = validate(&gateway(serde_json::json!({"upstreams": []}))).expect_err("it is wrong");
    let invalid = status("a", Verdict::Invalid(&errors), &Seen::default(), &ChatGatewayStatus::default(), &time(1));
    kept("invalid", 0, Some(&invalid));
}
