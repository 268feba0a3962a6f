//! `docs/configuration.md` is complete and its defaults are true.

use std::collections::BTreeSet;

use chatgateway_config::{Settings, file::File};
use chatgateway_operator::manifest;
use chatgateway_operator::plan::{Place, render};
use chatgateway_operator::validate::validate;
use serde_json::{Value, json};

const DOC: &str = include_str!("../../docs/configuration.md");

/// Kubernetes' own types, and maps: one row each.
const WHOLE: [&str; 5] = ["behavior", "resources", "tolerations", "topologySpreadConstraints", "overrides"];

struct Row {
    path: String,
    default: Option<Value>,
    change: String,
}

/// The rows of the table below a heading.
fn rows(heading: &str) -> Vec<Row> {
    let section = DOC.split("\n## ").find(|section| section.starts_with(heading)).expect("the section");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let code = |cell: &str| cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`')).map(str::to_owned);
        let value = |text: String| serde_saphyr::from_str::<Value>(&text).expect("a YAML value");
        Row { path: code(cells[0]).expect("a path"), default: code(cells[1]).map(value), change: cells[3].to_owned() }
    })
    .collect()
}

/// Every field of a schema that can be set.
fn fields(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    let name = path.rsplit('.').next().unwrap_or_default();
    let properties = if WHOLE.contains(&name) { None } else { schema["properties"].as_object() };
    if let Some(properties) = properties {
        for (name, property) in properties {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            fields(property, &path, found);
        }
    } else if schema["items"]["properties"].is_object() && !WHOLE.contains(&name) {
        fields(&schema["items"], &format!("{path}[]"), found);
    } else {
        found.insert(path.to_owned());
    }
}

#[test]
fn every_field_of_the_resource_has_a_row() {
    let crd = chatgateway_api::crd().expect("a definition");
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut expected = BTreeSet::new();
    fields(spec, "", &mut expected);
    let documented: BTreeSet<_> = rows("The resource").into_iter().map(|row| row.path).collect();
    let missing: Vec<_> = expected.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(&expected).collect();
    assert!(missing.is_empty() && invented.is_empty(), "missing: {missing:?}, invented: {invented:?}");
}

/// Sets a field; `[]` is the first element of a list that is there.
fn set(target: &mut Value, path: &str, value: Value) {
    let mut at = target;
    for part in path.split('.') {
        at = match part.strip_suffix("[]") {
            Some(list) => &mut at[list][0],
            None => &mut at[part],
        };
    }
    *at = value;
}

fn settings(spec: &Value) -> Settings {
    let manifest = json!({
        "apiVersion": manifest::API_VERSION, "kind": manifest::KIND, "metadata": {"name": "a"}, "spec": spec,
    });
    let (gateway, _) = manifest::read(&manifest.to_string()).expect("its shape is right");
    render(&validate(&gateway).expect("it is valid"), &Place::cluster()).expect("it can be rendered").settings
}

#[test]
fn the_defaults_of_the_resource_are_those_of_the_code() {
    let upstreams = [
        json!({"name": "a", "type": "OpenAI", "openAI": {"url": "http://h", "model": "m"}}),
        json!({"name": "a", "type": "Simple", "simple": {"url": "http://h"}}),
        json!({"name": "a", "type": "Demo"}),
    ];
    let mut checked = 0;
    for upstream in upstreams {
        let plain = json!({"upstreams": [upstream], "rateLimits": [{"per": "User", "requestsPerSecond": 1}]});
        let section = |path: &str| ["openAI", "simple", "demo"].into_iter().find(|s| path.contains(&format!("].{s}.")));
        for row in rows("The resource") {
            let Some(default) = row.default else { continue };
            let own = match upstream["type"].as_str() {
                Some("OpenAI") => "openAI",
                Some("Simple") => "simple",
                _ => "demo",
            };
            if row.path.starts_with("autoscaling") || section(&row.path).is_some_and(|section| section != own) {
                continue;
            }
            let mut written = plain.clone();
            set(&mut written, &row.path, default);
            assert_eq!(settings(&written), settings(&plain), "{}", row.path);
            checked += 1;
        }
    }
    assert!(checked > 60, "defaults were looked at: {checked}");
}

#[test]
fn the_defaults_of_the_file_are_those_of_the_code() {
    let mut checked = 0;
    for row in rows("The data plane's file") {
        let Some(default) = row.default else { continue };
        let mut written = json!({});
        set(&mut written, &row.path, default);
        let file: File = serde_json::from_value(written).expect("its shape is right");
        assert_eq!(Settings::resolve(&file).expect("it is valid"), Settings::default(), "{}", row.path);
        checked += 1;
    }
    assert!(checked >= 7, "defaults were looked at: {checked}");
}

#[test]
fn what_is_marked_later_is_refused_and_what_is_not_is_marked_hot_or_cold() {
    for row in rows("The resource").into_iter().chain(rows("The data plane's file")) {
        let line = DOC.lines().find(|line| line.starts_with(&format!("| `{}` ", row.path))).expect("the row");
        let known = ["hot", "cold", "scales"].contains(&row.change.as_str());
        assert!(known || (row.change.is_empty() && line.contains("*later*")), "{line}");
    }
}
