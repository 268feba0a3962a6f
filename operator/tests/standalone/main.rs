//! A gateway on this machine, with real processes: started, edited, killed and stopped.

mod faults;
mod redis;
mod replicas;
mod runner;
mod takeover;

use std::net::TcpListener;

use nix::sys::signal::{Signal, kill};

use crate::runner::{Start, config_hash, running, turn};

/// A gateway whose answers take some time, and that leaves without ado.
pub const MANIFEST: &str = "\
apiVersion: chatgateway.dev/v1alpha1
kind: ChatGateway
metadata:
  name: test
spec:
  upstreams:
    - name: demo
      type: Demo
      demo: {tokenDelay: 1ms}
  log: {format: text}
  drain: {acceptFloor: 0s, reconnectSpread: 0s, timeout: 20s}
";

#[test]
fn an_edit_is_reloaded_a_typo_is_named_and_a_cold_edit_replaces_the_process() {
    let mut runner = Start::new(MANIFEST).run();
    let (http, admin) = (runner.ready().http(), runner.admin());
    assert_eq!(turn(&http, "s", "1").0, 200);
    let first = config_hash(&admin);

    runner.edit("tokenDelay: 1ms", "tokenDelay: 2ms");
    let line = runner.line("reloaded test-1: configuration ");
    runner.line("gateway.yaml is applied");
    let second = config_hash(&admin);
    assert_ne!(first, second);
    assert!(second.starts_with(line.rsplit(' ').next().expect("a hash")), "{line}");

    runner.edit("tokenDelay: 2ms", "tokenDely: 2ms");
    runner.line("gateway.yaml is not valid:");
    runner.line(
        "  line 9, column 14: spec.upstreams[0].demo.tokenDely: unknown field `tokenDely`; did you mean `tokenDelay`?",
    );
    runner.line("the gateway runs on as it is");
    assert_eq!(config_hash(&admin), second);
    assert_eq!(turn(&http, "s", "2").0, 200);

    runner.edit("tokenDely: 2ms", "tokenDelay: 2ms");
    runner.line("has changed, but nothing that it asks for");

    runner.edit("log: {format: text}", "log: {format: text, level: debug}");
    runner.line("reloaded test-1: configuration ");

    runner.edit("format: text", "format: json");
    runner.line("replacing the processes: log.format cannot change while they run");
    runner.line("test-2 takes clients; test-1 drains");
    runner.line("test-1 has drained and gone after");
    assert_eq!(turn(&http, "s", "3").0, 200, "on the same port");

    runner.signal(Signal::SIGTERM);
    assert_eq!(runner.exit_code(), Some(0), "{}", runner.text());
    runner.line("stopped");
    runner.line("test-2 has drained and gone after");
}

#[test]
fn a_ctrl_c_lets_the_running_answer_end() {
    let manifest = MANIFEST.replace("tokenDelay: 1ms", "tokenDelay: 20ms, answerBytes: 400");
    let mut runner = Start::new(&manifest).run();
    let (http, admin) = (runner.ready().http(), runner.admin());
    let asking = {
        let http = http.clone();
        std::thread::spawn(move || turn(&http, "s", "1"))
    };
    while !running(&admin) {
        std::thread::yield_now();
    }
    runner.signal(Signal::SIGINT);
    let (status, body) = asking.join().expect("an answer");
    assert_eq!(status, 200, "{body}");
    let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(answer["text"].as_str().map(str::len), Some(400), "{body}");
    assert_eq!(runner.exit_code(), Some(0));
    runner.line("draining: running answers are finished");
}

#[test]
fn a_process_that_dies_is_started_again() {
    let runner = Start::new(MANIFEST).run();
    let http = runner.ready().http();
    assert_eq!(turn(&http, "s", "1").0, 200);
    let children = runner.children();
    assert_eq!(children.len(), 1);
    kill(children[0], Signal::SIGKILL).expect("it is there");
    runner.line("test-1 died (signal 9); sessions in its memory are lost; starting another in 0.5 s");
    runner.line("test-2 takes clients");
    assert_eq!(turn(&http, "s", "1").0, 200, "on the same port");
}

#[test]
fn a_port_in_use_is_named_with_its_flag_before_anything_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    for (index, flag) in ["--http-port", "--grpc-port", "--admin-port"].into_iter().enumerate() {
        let mut ports = [0; 3];
        ports[index] = port;
        let mut runner = Start { ports, ..Start::new(MANIFEST) }.run();
        assert_eq!(runner.exit_code(), Some(1));
        runner.line(&format!("error: 127.0.0.1:{port} is in use ({flag}); stop what uses it, or give another port"));
        assert!(!runner.text().contains("started"), "{}", runner.text());
    }
}

#[test]
fn two_runners_do_not_share_a_port() {
    let first = Start::new(MANIFEST).run();
    let http = first.ready().http();
    let port = http.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    let mut second = Start { ports: [port, 0, 0], ..Start::new(MANIFEST) }.run();
    assert_eq!(second.exit_code(), Some(1));
    second.line("is in use (--http-port)");
}

#[test]
fn a_wrong_manifest_is_refused_with_every_reason_and_place() {
    let manifest = MANIFEST.replace("spec:", "spec:\n  replicas: 2").replace("20s", "x");
    let mut runner = Start::new(&manifest).run();
    assert_eq!(runner.exit_code(), Some(1));
    let text = runner.text();
    assert!(text.contains("gateway.yaml is not valid:\n  line 6"), "{text}");
    assert!(text.contains("line 6, column 3: spec.replicas: 2 replicas need a store that they share"), "{text}");
    assert!(text.contains("line 12, column 49: spec.drain.timeout: `x` is no duration"), "{text}");
}

#[test]
fn a_secret_comes_from_a_file_or_the_environment_and_is_asked_for_where_it_is_missing() {
    let manifest = MANIFEST.replace(
        "type: Demo\n      demo: {tokenDelay: 1ms}",
        "type: OpenAI\n      openAI: {url: 'http://127.0.0.1:9', model: m, apiKeySecretRef: {name: vllm, key: api-key}}",
    );
    let mut runner = Start::new(&manifest).run();
    assert_eq!(runner.exit_code(), Some(1));
    runner.line(
        "line 9, column 53: spec.upstreams[0].openAI.apiKeySecretRef: there is no value for Secret `vllm`, key \
         `api-key`; give --secret vllm/api-key=FILE or set CHATGATEWAY_SECRET_VLLM_API_KEY",
    );

    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("key.txt");
    std::fs::write(&key, "one").expect("written");
    let arg = format!("vllm/api-key={}", key.display());
    let runner = Start { args: &["--secret", &arg], ..Start::new(&manifest) }.run();
    runner.ready();
    std::fs::write(&key, "two").expect("written");
    runner.line("Secret vllm/api-key has changed and is passed on");

    let env = [("CHATGATEWAY_SECRET_VLLM_API_KEY", "one")];
    let fake = runner::fake();
    let runner = Start { env: &env, args: &["--dataplane", &fake], ..Start::new(&manifest) }.run();
    runner.ready();
    runner.line("test-1 | secrets it can see: 0");
}
