//! The definition's rules, evaluated here as an API server does. The same table is applied to a real one elsewhere.

use kube_cel::Validator;
use serde_json::{Value, json};

/// What a rule is tried with.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    at: String,
    says: String,
    good: Vec<Value>,
    bad: Vec<Value>,
}

fn cases() -> Vec<Case> {
    serde_saphyr::from_str(include_str!("rules.yaml")).expect("a table")
}

fn schema() -> Value {
    let crd = chatgateway_api::crd().expect("a definition");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// What is wrong with a resource of this specification.
fn broken(schema: &Value, spec: &Value) -> Vec<String> {
    let object = json!({
        "apiVersion": "chatgateway.dev/v1alpha1", "kind": "ChatGateway", "metadata": {"name": "a"}, "spec": spec,
    });
    let errors = Validator::new().validate(schema, &object, None).err();
    errors.iter().flat_map(|errors| errors.as_slice()).map(|error| error.message.clone()).collect()
}

#[test]
fn each_rule_lets_pass_what_it_should_and_nothing_else() {
    let schema = schema();
    for case in cases() {
        assert!(!case.good.is_empty() && !case.bad.is_empty(), "{}: one that is good, and one that is not", case.says);
        for spec in &case.good {
            assert_eq!(broken(&schema, spec), Vec::<String>::new(), "{}: {spec}", case.says);
        }
        for spec in &case.bad {
            let broken = broken(&schema, spec);
            assert!(broken.len() == 1 && broken[0].starts_with(&case.says), "{}: {spec}: {broken:?}", case.says);
        }
    }
}

#[test]
fn every_rule_is_in_the_table() {
    fn walk(schema: &Value, path: &str, rules: &mut Vec<(String, String)>) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            rules.push((path.to_owned(), rule["message"].as_str().expect("a message").to_owned()));
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(property, &format!("{path}.{name}"), rules);
        }
        if schema["items"].is_object() {
            walk(&schema["items"], &format!("{path}[]"), rules);
        }
    }
    let mut rules = Vec::new();
    walk(&schema(), "", &mut rules);
    let cases = cases();
    assert_eq!(rules.len(), cases.len(), "each rule once");
    for (path, message) in rules {
        let tried = cases.iter().any(|case| case.at == path && message.starts_with(&case.says));
        assert!(tried, "{path}: `{message}` is not in rules.yaml");
    }
}
