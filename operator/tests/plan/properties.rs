//! What holds of every plan: of gateways put together from the goldens' parts, with figures and patches at random.

use std::collections::BTreeMap;

use chatgateway_api::ChatGateway;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree;
use serde_json::{Map, json};

use super::*;

/// The values that the goldens have for each field of the specification.
fn parts() -> BTreeMap<String, Vec<Value>> {
    let mut parts = BTreeMap::<String, Vec<Value>>::new();
    for entry in std::fs::read_dir(folder()).expect("a folder") {
        let path = entry.expect("an entry").path();
        if !path.to_string_lossy().ends_with(".in.yaml") {
            continue;
        }
        let text = std::fs::read_to_string(path).expect("an input");
        let Ok(manifest) = serde_saphyr::from_str::<Value>(&text) else { continue };
        for (field, value) in manifest["spec"].as_object().into_iter().flatten() {
            parts.entry(field.clone()).or_default().push(value.clone());
        }
    }
    parts
}

/// A specification of some of the parts. Most have a store that replicas can share, and what that takes.
fn spec() -> impl Strategy<Value = Value> {
    let parts = parts();
    let names: Vec<_> = parts.keys().cloned().collect();
    let picks = prop::collection::vec(prop::option::weighted(0.3, any::<Index>()), names.len());
    let figures = prop::option::weighted(0.5, figures());
    let store =
        prop::option::weighted(0.7, select(vec![json!({"managed": {}}), json!({"external": {"endpoints": ["r:1"]}})]));
    let patch = prop::option::weighted(0.3, (kind(), patch()));
    (picks, figures, store, patch).prop_map(move |(picks, figures, store, patch)| {
        let mut spec = Map::new();
        for (name, pick) in names.iter().zip(picks) {
            if let Some(pick) = pick {
                spec.insert(name.clone(), pick.get(&parts[name]).clone());
            }
        }
        spec.entry("upstreams").or_insert_with(|| json!([{"name": "demo", "type": "Demo"}]));
        if let Some(redis) = store {
            spec.insert("sessions".to_owned(), json!({"store": {"type": "Redis", "redis": redis}}));
        }
        for (name, value) in figures.into_iter().flatten() {
            spec.insert(name.to_owned(), value);
        }
        if let Some((kind, patch)) = patch {
            spec.insert("overrides".to_owned(), json!({kind: patch}));
        }
        Value::Object(spec)
    })
}

/// How many pods, by the author or by an autoscaler; and how long a drain is.
fn figures() -> impl Strategy<Value = Vec<(&'static str, Value)>> {
    let replicas = (0..1_200_i32).prop_map(|count| ("replicas", json!(count)));
    let autoscaling = (1..40_i32, 1..40_i32, 1..200_i32).prop_map(|(min, max, target)| {
        let metrics = json!([{"type": "CPU", "target": target}]);
        ("autoscaling", json!({"minReplicas": min, "maxReplicas": max, "metrics": metrics}))
    });
    let drain = (0..4_000_u32).prop_map(|seconds| ("drain", json!({"timeout": format!("{seconds}s")})));
    (prop_oneof![replicas, autoscaling], drain).prop_map(|(pods, drain)| vec![pods, drain])
}

fn kind() -> impl Strategy<Value = &'static str> {
    select(vec!["ConfigMap", "Deployment", "HorizontalPodAutoscaler", "PodMonitor", "Service", "StatefulSet", "Secret"])
}

/// A patch that touches what objects are found by, or near it: a value somewhere along a path.
fn patch() -> impl Strategy<Value = Value> {
    let path = select(vec![
        "metadata/name",
        "metadata/labels/app.kubernetes.io~1instance",
        "metadata/annotations/team",
        "spec/replicas",
        "spec/selector/matchLabels",
        "spec/scaleTargetRef/name",
        "spec/template/metadata/labels/app.kubernetes.io~1name",
        "spec/template/metadata/labels/team",
        "spec/template/metadata/annotations/team",
        "spec/template/spec/nodeSelector/disk",
        "data/more",
    ]);
    let value = select(vec![json!("x"), json!(3), json!(null), json!({}), json!([])]);
    (path, 0..6_usize, value).prop_map(|(path, depth, value)| {
        let parts: Vec<_> = path.split('/').map(|part| part.replace("~1", "/")).collect();
        let depth = depth.min(parts.len());
        parts[..depth].iter().rev().fold(value, |inner, part| json!({part: inner}))
    })
}

fn seen() -> impl Strategy<Value = Observed> {
    let replicas = prop::option::of((0..50_i32, any::<bool>()).prop_map(|(count, ours)| LiveReplicas { count, ours }));
    (prop::option::of("[a-z]{1,9}"), replicas, prop::option::of("[a-zA-Z0-9]{32}"), any::<bool>()).prop_map(
        |(namespace, replicas, redis_password, pod_monitors)| Observed {
            namespace,
            uid: Some("5a3ff0a1-0000-4000-8000-000000000001".to_owned()),
            replicas,
            redis_password,
            pod_monitors,
        },
    )
}

/// Whoever selects pods selects those that are there.
fn selectors_match(planned: &Planned) {
    let labels = |kind: &str| {
        let object = planned.objects.iter().find(|object| object.kind == kind)?;
        object.value.pointer("/spec/template/metadata/labels")
    };
    let pods: Vec<_> = ["Deployment", "StatefulSet"].into_iter().filter_map(labels).collect();
    for object in &planned.objects {
        let spec = &object.value["spec"];
        let selector = match object.kind {
            "Service" => &spec["selector"],
            "NetworkPolicy" => &spec["podSelector"]["matchLabels"],
            "Deployment" | "StatefulSet" | "PodDisruptionBudget" | "PodMonitor" => &spec["selector"]["matchLabels"],
            _ => continue,
        };
        let selector = selector.as_object().expect("a selector");
        let selected = |labels: &&Value| selector.iter().all(|(label, value)| labels[label] == *value);
        let count = pods.iter().copied().filter(selected).count();
        assert_eq!(count, 1, "{} {} selects the pods of one component", object.kind, object.name);
    }
}

fn gateway(name: &str, spec: &Value) -> Option<ChatGateway> {
    let object = json!({
        "apiVersion": manifest::API_VERSION, "kind": manifest::KIND, "metadata": {"name": name}, "spec": spec,
    });
    serde_json::from_value(object).ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_are_total_and_the_same_and_fit_together(name in "[a-z][a-z0-9-]{0,50}", spec in spec(), observed in seen()) {
        let Some(gateway) = gateway(&name, &spec) else { return Ok(()) };
        let valid = match validate(&gateway) {
            Ok(valid) => valid,
            Err(errors) => {
                prop_assert!(errors.violations().iter().all(|violation| !violation.message.is_empty()));
                return Ok(());
            }
        };
        let planned = plan(&valid, &observed, &Release::default()).expect("what is valid can be planned");
        // The same from a copy that went through text, as the API server's do.
        let text = serde_json::to_string(&gateway).expect("JSON");
        let copy = validate(&serde_json::from_str(&text).expect("a gateway")).expect("it is as valid");
        prop_assert_eq!(&planned, &plan(&copy, &observed, &Release::default()).expect("again"));
        let understood = Settings::parse(&planned.rendered.text).expect("the data plane reads what is rendered");
        prop_assert_eq!(&understood, &planned.rendered.settings);
        invariants(&valid, &planned);
        selectors_match(&planned);
        if valid.autoscaling().is_none() {
            prop_assert_eq!(planned.hand_off, None);
        }
    }
}

/// The property looks at gateways of each sort, and not only at what is refused.
#[test]
fn the_parts_make_gateways_of_every_sort() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (specs, mut counts) = (spec(), BTreeMap::<&str, usize>::new());
    for _ in 0..4_000 {
        let spec = specs.new_tree(&mut runner).expect("a value").current();
        let Some(gateway) = gateway("a", &spec) else { continue };
        let Ok(valid) = validate(&gateway) else {
            *counts.entry("refused").or_default() += 1;
            continue;
        };
        let sorts = [
            ("autoscaled", valid.autoscaling().is_some()),
            ("with a managed Redis", valid.managed_redis().is_some()),
            ("with Secrets", !valid.secrets().is_empty()),
            ("with patches", !valid.spec().overrides.is_empty()),
            ("with many pods", valid.replicas() > 1),
        ];
        for (sort, _) in sorts.into_iter().filter(|(_, is)| *is) {
            *counts.entry(sort).or_default() += 1;
        }
    }
    assert!(counts.len() == 6 && counts.values().all(|count| *count >= 20), "{counts:?}");
}
