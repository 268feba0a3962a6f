//! A port that another process has.

use std::{net::TcpListener, process::Command, time::Duration};

use chatgateway_tests::process::{Process, dataplane_program};
use serde_json::json;

#[tokio::test]
async fn a_port_in_use_is_named_with_its_field_and_the_process_ends() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for field in ["httpPort", "grpcPort", "adminPort"] {
        let mut listeners = json!({"bind": "127.0.0.1", "httpPort": 0, "grpcPort": 0, "adminPort": 0});
        listeners[field] = json!(port);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        std::fs::write(&file, json!({"listeners": listeners}).to_string()).unwrap();
        let mut command = Command::new(dataplane_program().unwrap());
        command.arg("run").arg("--config").arg(&file);
        let mut process = Process::start(command).unwrap();
        let status = process.wait(Duration::from_secs(10)).await.unwrap();
        assert_eq!(status.code(), Some(1), "{field}: {}", process.output());
        let line =
            process.wait_for_line("why", |line| line.contains(&port.to_string()).then(|| line.to_owned())).unwrap();
        for part in [&format!("127.0.0.1:{port}"), &format!("listeners.{field}"), "another process"] {
            assert!(line.contains(part), "no {part:?} in {line:?}");
        }
    }
}
