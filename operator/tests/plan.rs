//! Golden tests: what a manifest becomes, or why it does not. `UPDATE_GOLDENS=1` rewrites `plan/*.out.yaml`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use chatgateway_config::Settings;
use chatgateway_operator::manifest;
use chatgateway_operator::plan::{Change, Place, config_map, render};
use chatgateway_operator::validate::{Validated, validate};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan")
}

fn outcome(text: &str) -> String {
    let checked = manifest::read(text).and_then(|(gateway, positions)| {
        let validated = validate(&gateway).map_err(|errors| positions.locate(errors))?;
        Ok((validated, gateway.metadata.namespace))
    });
    match checked {
        Ok((validated, namespace)) => {
            let rendered = render(&validated, &Place::cluster()).expect("what is valid can be rendered");
            let understood = Settings::parse(&rendered.text).expect("the data plane reads what is rendered");
            assert_eq!(understood, rendered.settings, "the data plane understands what was meant");
            serde_saphyr::to_string(&config_map(&validated, namespace.as_deref(), &rendered)).expect("YAML")
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
    assert!(inputs.len() >= 10, "the goldens are there");
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
        ("", "  log: {level: debug}\n", "rolls: every process is replaced and drained, since spec.log changed"),
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
