//! A process that does what the runner asks of a data plane, and on request what it must not do. What it does wrong is said
//! by the variable `FAKE_DATAPLANE`.

use std::path::PathBuf;

use chatgateway_config::Settings;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Ends before it is ready.
    Ends,
    /// Never becomes ready.
    NeverReady,
    /// Does not take a new configuration.
    KeepsOldConfig,
    /// Does not leave when it is told to.
    Stays,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let mut args = std::env::args().skip(1);
    let (run, flag) = (args.next(), args.next());
    let file = PathBuf::from(args.next().expect("a file"));
    assert_eq!((run.as_deref(), flag.as_deref()), (Some("run"), Some("--config")));
    let fault = match std::env::var("FAKE_DATAPLANE").as_deref() {
        Ok("ends") => Fault::Ends,
        Ok("never-ready") => Fault::NeverReady,
        Ok("keeps-old-config") => Fault::KeepsOldConfig,
        Ok("stays") => Fault::Stays,
        _ => Fault::None,
    };
    let text = std::fs::read_to_string(&file).expect("a configuration");
    let settings = Settings::parse(&text).expect("a right one");
    if fault == Fault::Ends {
        eprintln!("this is why it ends");
        return std::process::ExitCode::from(3);
    }
    eprintln!("secrets it can see: {}", std::env::vars().filter(|(k, _)| k.starts_with("CHATGATEWAY_SECRET")).count());
    let listeners = &settings.listeners;
    let admin = TcpListener::bind((listeners.bind, listeners.admin_port)).await.expect("the admin port");
    let mut terminate = signal(SignalKind::terminate()).expect("a signal");
    loop {
        tokio::select! {
            client = admin.accept() => {
                let hash = current_hash(&file, &settings, fault);
                tokio::spawn(answer(client.expect("a client").0, hash, fault));
            }
            _ = terminate.recv() => {
                if fault != Fault::Stays {
                    return std::process::ExitCode::SUCCESS;
                }
            }
        }
    }
}

fn current_hash(file: &PathBuf, start: &Settings, fault: Fault) -> String {
    if fault == Fault::KeepsOldConfig {
        return start.hash.clone();
    }
    let text = std::fs::read_to_string(file).unwrap_or_default();
    Settings::parse(&text).map_or_else(|_| start.hash.clone(), |settings| settings.hash)
}

async fn answer(mut client: TcpStream, hash: String, fault: Fault) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match client.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head);
    let (status, body) = match head.split(' ').nth(1) {
        Some("/readyz") if fault == Fault::NeverReady => {
            ("503 Service Unavailable", "redis:6379 is not there\n".to_owned())
        }
        Some("/readyz") => ("200 OK", "ok\n".to_owned()),
        Some("/status") if fault == Fault::KeepsOldConfig => {
            let status =
                serde_json::json!({"config_hash": hash, "config_error": "the model server is not to be set up"});
            ("200 OK", status.to_string())
        }
        Some("/status") => ("200 OK", serde_json::json!({"config_hash": hash}).to_string()),
        _ => ("404 Not Found", String::new()),
    };
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    // A client that has gone has what it wanted.
    let _ = client.write_all(answer.as_bytes()).await;
}
