//! What API servers and people ask of the definition.

use serde_json::Value;

/// Kubernetes' own types, whose bounds are Kubernetes' affair.
const FOREIGN: [&str; 5] = ["behavior", "conditions", "resources", "tolerations", "topologySpreadConstraints"];

fn schema() -> Value {
    let crd = chatgateway_api::crd().expect("a definition");
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Calls a function with each schema and its path.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            walk(property, &format!("{path}.{name}"), visit);
        }
    }
    for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[key].is_object() {
            walk(&schema[key], &format!("{path}{suffix}"), visit);
        }
    }
}

#[test]
fn it_fits_where_small_definitions_fit() {
    let text = serde_saphyr::to_string(&chatgateway_api::crd().expect("a definition")).expect("YAML");
    assert!(text.len() < 64 * 1024, "{} bytes", text.len());
}

#[test]
fn numbers_have_formats_that_every_api_server_knows() {
    let mut seen = 0;
    walk(&schema(), "", &mut |path, schema| {
        if let Some(format) = schema["format"].as_str() {
            assert!(matches!(format, "int32" | "int64" | "date-time"), "{path}: {format}");
            seen += 1;
        }
    });
    assert!(seen > 20, "formats were looked at");
}

#[test]
fn every_list_and_string_of_ours_is_bounded() {
    let mut seen = 0;
    walk(&schema(), "", &mut |path, schema| {
        if FOREIGN.iter().any(|field| path.contains(&format!(".{field}"))) || path.ends_with(".status") {
            return;
        }
        let bounded = match schema["type"].as_str() {
            Some("array") => schema["maxItems"].is_u64(),
            Some("string") => {
                let quantity = schema["x-kubernetes-int-or-string"] == true;
                quantity || schema["maxLength"].is_u64() || schema["enum"].is_array()
            }
            Some("object") => {
                schema["properties"].is_object()
                    || schema["maxProperties"].is_u64()
                    || [".metadata", ""].contains(&path)
            }
            _ => true,
        };
        assert!(bounded, "{path}: {schema}");
        seen += 1;
    });
    assert!(seen > 80, "fields were looked at");
}

#[test]
fn it_is_a_structural_schema() {
    walk(&schema(), "", &mut |path, schema| {
        assert_ne!(schema["additionalProperties"], Value::Bool(false), "{path}: excludes properties");
        assert!(schema["properties"].is_null() || schema["additionalProperties"].is_null(), "{path}: both");
        assert!(schema["$ref"].is_null(), "{path}: a reference");
        assert!(schema["anyOf"].is_null() || schema["x-kubernetes-int-or-string"] == true, "{path}: a choice");
    });
}

#[test]
fn subresources_names_and_rules() {
    let crd = chatgateway_api::crd().expect("a definition");
    assert_eq!(crd["spec"]["names"]["shortNames"], serde_json::json!(["cgw"]));
    let version = &crd["spec"]["versions"][0];
    assert!(version["subresources"]["status"].is_object());
    assert_eq!(version["subresources"]["scale"]["labelSelectorPath"], ".status.selector");
    let mut rules = Vec::new();
    walk(&schema(), "", &mut |path, schema| {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            rules.push((path.to_owned(), rule["rule"].as_str().expect("a rule").to_owned()));
        }
    });
    let paths: Vec<_> = rules.iter().map(|(path, _)| path.as_str()).collect();
    let upstream = ".spec.upstreams[]";
    let sessions = ".spec.sessions";
    let store = ".spec.sessions.store";
    let redis = ".spec.sessions.store.redis";
    assert_eq!(paths, [".spec", ".spec.autoscaling", sessions, store, redis, upstream, upstream, upstream]);
}

#[test]
fn upstreams_are_merged_by_name() {
    let schema = schema();
    let upstreams = &schema["properties"]["spec"]["properties"]["upstreams"];
    assert_eq!(upstreams["x-kubernetes-list-type"], "map");
    assert_eq!(upstreams["x-kubernetes-list-map-keys"], serde_json::json!(["name"]));
}

#[test]
fn a_resource_survives_being_written_and_read() {
    let text = include_str!("../../../examples/full.yaml");
    let gateway: chatgateway_api::ChatGateway = serde_saphyr::from_str(text).expect("it is read");
    let json = serde_json::to_value(&gateway).expect("it is written");
    let again: chatgateway_api::ChatGateway = serde_json::from_value(json.clone()).expect("it is read again");
    assert_eq!(gateway, again);
    assert_eq!(json["spec"]["upstreams"][0]["openAI"]["apiKeySecretRef"]["key"], "api-key");
    assert_eq!(json["spec"]["sessions"]["store"]["redis"]["managed"]["storage"], "1Gi");
    assert_eq!(json["spec"]["rateLimits"][0]["onStoreFailure"], "LocalShare");
}
