//! Golden tests: what a manifest becomes, or why it does not. `UPDATE_GOLDENS=1` rewrites `plan/*.out.yaml`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use chatgateway_config::Settings;
use chatgateway_operator::manifest;
use chatgateway_operator::plan::Change;
use chatgateway_operator::plan::objects::{LiveReplicas, Observed, Planned, Release, plan};
use chatgateway_operator::validate::{Validated, validate};
use serde_json::Value;

#[path = "plan/properties.rs"]
mod properties;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan")
}

/// What was seen in the cluster: what the input's first comment says, beside a uid and a password.
fn observed(text: &str, namespace: Option<String>) -> Observed {
    let said = text.lines().next().and_then(|line| line.strip_prefix("# observed: ")).unwrap_or_default();
    let live = said.split(", ").find_map(|part| {
        let (count, whose) = part.strip_prefix("replicas ")?.split_once(' ')?;
        Some(LiveReplicas { count: count.parse().expect("a number"), ours: whose == "ours" })
    });
    Observed {
        namespace,
        uid: Some("5a3ff0a1-0000-4000-8000-000000000001".to_owned()),
        replicas: live,
        redis_password: said.contains("password").then(|| "not-a-secret".to_owned()),
        pod_monitors: said.contains("pod monitors"),
    }
}

/// What holds of every plan.
fn invariants(gateway: &Validated, planned: &Planned) {
    let object = |kind: &str, name: &str| {
        planned.objects.iter().find(|object| object.kind == kind && object.name == name).map(|object| &object.value)
    };
    let deployment = object("Deployment", gateway.name()).expect("a Deployment");
    let selector = &deployment["spec"]["selector"]["matchLabels"];
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for (label, value) in selector.as_object().expect("a selector") {
        assert_eq!(&labels[label], value, "pods have what they are selected by");
    }
    let service = object("Service", gateway.name()).expect("a Service");
    assert_eq!(&service["spec"]["selector"], selector);
    if gateway.autoscaling().is_some() {
        assert!(deployment["spec"].get("replicas").is_none(), "the autoscaler's number is its own");
        let target = &object("HorizontalPodAutoscaler", gateway.name()).expect("one")["spec"]["scaleTargetRef"];
        assert_eq!(target["name"], deployment["metadata"]["name"]);
    } else {
        assert_eq!(deployment["spec"]["replicas"], gateway.replicas());
    }
    for object in &planned.objects {
        assert_eq!(
            (&object.value["kind"], &object.value["apiVersion"]),
            (&object.kind.into(), &object.api_version.into())
        );
        assert_eq!(object.value["metadata"]["ownerReferences"][0]["name"], gateway.name(), "{}", object.kind);
        assert_eq!(object.hash().len(), 64);
        assert!(object.name.len() <= 63, "{}", object.name);
        let gone = planned.unwanted.iter().any(|gone| gone.kind == object.kind && gone.name == object.name);
        assert!(!gone, "{} {} is there and is not", object.kind, object.name);
    }
}

fn printed(planned: &Planned) -> String {
    let mut text = String::new();
    for gone in &planned.unwanted {
        writeln!(text, "# not there: {} {}", gone.kind, gone.name).expect("a string");
    }
    if let Some(count) = planned.hand_off {
        writeln!(text, "# handed to the autoscaler with {count} replicas").expect("a string");
    }
    for object in &planned.objects {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&object.value).expect("YAML"));
    }
    text
}

fn outcome(text: &str) -> String {
    let checked = manifest::read(text).and_then(|(gateway, positions)| {
        let validated = validate(&gateway).map_err(|errors| positions.locate(errors))?;
        Ok((validated, gateway.metadata.namespace))
    });
    match checked {
        Ok((validated, namespace)) => {
            let observed = observed(text, namespace);
            let planned = plan(&validated, &observed, &Release::default()).expect("what is valid can be planned");
            assert_eq!(planned, plan(&validated, &observed, &Release::default()).expect("again"), "the same again");
            let understood = Settings::parse(&planned.rendered.text).expect("the data plane reads what is rendered");
            assert_eq!(understood, planned.rendered.settings, "the data plane understands what was meant");
            invariants(&validated, &planned);
            printed(&planned)
        }
        Err(errors) => {
            let mut text = String::from("# refused:\n");
            for line in errors.to_string().lines() {
                writeln!(text, "# {line}").expect("a string");
            }
            text
        }
    }
}

#[test]
fn golden_plans() {
    let update = std::env::var_os("UPDATE_GOLDENS").is_some();
    let mut inputs: Vec<_> = std::fs::read_dir(folder())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.to_string_lossy().ends_with(".in.yaml"))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 60, "the goldens are there");
    for input in inputs {
        let text = std::fs::read_to_string(&input).expect("an input");
        let fresh = outcome(&text);
        let output = PathBuf::from(input.to_string_lossy().replace(".in.yaml", ".out.yaml"));
        if update {
            std::fs::write(&output, &fresh).expect("written");
        }
        let committed = std::fs::read_to_string(&output).unwrap_or_default();
        assert_eq!(committed, fresh, "{}", output.display());
    }
}

fn valid(spec: &str) -> Validated {
    let text = format!(
        "apiVersion: chatgateway.dev/v1alpha1\nkind: ChatGateway\nmetadata: {{name: a}}\nspec:\n\
         \x20 upstreams: [{{name: demo, type: Demo}}]\n{spec}"
    );
    validate(&manifest::read(&text).expect("its shape is right").0).expect("it is valid")
}

#[test]
fn edits_reload_roll_or_do_nothing() {
    let cases = [
        ("", "  sessions: {ttl: 1h}\n", "reloads: "),
        ("", "  drain: {timeout: 60s}\n", "no change "),
        ("", "  drain: {timeout: 90s}\n", "rolls: every process is replaced and drained, since spec.drain changed"),
        ("", "  paused: true\n", "no change "),
        ("", "  log: {level: debug}\n", "reloads: "),
        ("", "  log: {format: json}\n", "rolls: every process is replaced and drained, since spec.log.format changed"),
        (
            "",
            "  limits: {maxMessageBytes: 2048}\n",
            "rolls: every process is replaced and drained, since spec.limits.max",
        ),
        ("", "  image: other:1\n", "rolls: every process is replaced and drained, since spec.image changed"),
        ("  replicas: 1\n", "  replicas: 0\n", "scales: from 1 to 0 replicas; those that go are drained\nno change"),
    ];
    for (old, new, expected) in cases {
        let change = Change::between(&valid(old), &valid(new)).expect("both can be rendered").to_string();
        assert!(change.starts_with(expected), "{old:?} to {new:?}: {change}");
    }
}
