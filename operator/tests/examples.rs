//! Every example is what it says it is, and what is generated is what is committed.

use std::path::{Path, PathBuf};

use chatgateway_operator::args::crds;
use chatgateway_operator::plan::{Place, render};
use chatgateway_operator::{manifest, validate::validate};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn example(name: &str) -> String {
    std::fs::read_to_string(root().join("examples").join(name)).expect("the example is there")
}

#[test]
fn every_example_is_looked_at_here() {
    let folder = std::fs::read_dir(root().join("examples")).expect("a folder");
    let mut names: Vec<_> =
        folder.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(
        names,
        ["batching.yaml", "cluster.yaml", "fallback.yaml", "full.yaml", "openai.yaml", "quickstart.yaml", "redis.yaml"]
    );
}

#[test]
fn what_runs_today_is_valid() {
    for name in
        ["quickstart.yaml", "openai.yaml", "batching.yaml", "cluster.yaml", "fallback.yaml", "redis.yaml", "full.yaml"]
    {
        let (gateway, _) = manifest::read(&example(name)).expect(name);
        let validated = validate(&gateway).expect(name);
        render(&validated, &Place::cluster()).expect(name);
    }
}

#[test]
fn the_definition_in_the_repository_is_that_of_the_types() {
    let file = root().join("crds/chatgateways.yaml");
    let fresh = crds().expect("a definition");
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::write(&file, &fresh).expect("written");
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(committed, fresh, "run `make crds`");
}
