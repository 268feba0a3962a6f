//! The terminal client against real data-plane processes: a pipe in, the answers out, restarts in between.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop here")]

use std::{net::SocketAddr, process::Stdio, time::Duration};

use chatgateway_tests::{
    client::HttpClient,
    process::{GatewayProcess, dataplane_program},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(30);
const SENTENCE: &str = "This is the demo model: it says the same every time.";

/// A gateway with the Demo model, a word every `delay`, on that HTTP port (0: a free one).
async fn gateway(http_port: u16, delay: &str) -> GatewayProcess {
    let config = json!({
        "listeners": {"httpPort": http_port},
        "upstreams": [{"name": "demo", "type": "Demo", "demo": {"tokenDelay": delay}}],
        "drain": {"acceptFloor": "0s", "reconnectSpread": "0s", "timeout": "20s"},
    });
    GatewayProcess::start(&config).await.unwrap()
}

/// A terminal client with pipes for a terminal.
struct Chat {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl Chat {
    fn start(address: SocketAddr, arguments: &[&str]) -> Self {
        let mut child = Command::new(dataplane_program().unwrap())
            .arg("chat")
            .arg(format!("http://{address}"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { stdin: child.stdin.take(), child, stdout, stderr }
    }

    async fn say(&mut self, line: &str) {
        self.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// The next lines of standard output are the Demo model's answer to `text`.
    async fn expect_answer(&mut self, text: &str) {
        for expected in [format!("You said: {text}"), SENTENCE.to_owned()] {
            assert_eq!(self.printed().await, Some(expected));
        }
    }

    async fn printed(&mut self) -> Option<String> {
        timeout(PATIENCE, self.stdout.next_line()).await.expect("nothing printed").unwrap()
    }

    /// Reads standard error until a line has these words.
    async fn expect_words(&mut self, words: &str) {
        let mut heard = Vec::new();
        let found = timeout(PATIENCE, async {
            while let Some(line) = self.stderr.next_line().await.unwrap() {
                let found = line.contains(words);
                heard.push(line);
                if found {
                    return true;
                }
            }
            false
        });
        assert!(found.await.unwrap_or(false), "no {words:?} in {heard:#?}");
    }

    /// Ends the input; gives the exit code, and asserts that nothing more is printed.
    async fn end(mut self) -> Option<i32> {
        self.stdin = None;
        assert_eq!(self.printed().await, None);
        timeout(PATIENCE, self.child.wait()).await.expect("does not exit").unwrap().code()
    }

    fn interrupt(&self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    }
}

/// The session's turns as the server has them, once `fits` holds of them.
async fn turns(address: SocketAddr, session: &str, fits: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let client = HttpClient::new(address);
    let found = timeout(PATIENCE, async {
        loop {
            let reply = client.get(&format!("/v1/sessions/{session}")).await.unwrap();
            let body = reply.json().unwrap_or_default();
            if let Some(turns) = body["turns"].as_array().filter(|turns| fits(turns)) {
                return turns.clone();
            }
            sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.expect("the session never came to that")
}

fn running(turns: &[Value]) -> bool {
    turns.last().is_some_and(|turn| turn["state"] == "running")
}

#[tokio::test]
async fn a_pipe_gets_its_answers_and_nothing_else() {
    let gateway = gateway(0, "0s").await;
    let mut chat = Chat::start(gateway.http(), &["--session", "piped"]);
    chat.say("hi").await;
    chat.say("").await;
    chat.say("and Grüße").await;
    chat.expect_answer("hi").await;
    chat.expect_answer("and Grüße").await;
    assert_eq!(chat.end().await, Some(0));
    let turns = turns(gateway.http(), "piped", |turns| turns.len() == 2).await;
    assert!(turns.iter().all(|turn| turn["state"] == "done"), "{turns:?}");
}

#[tokio::test]
async fn a_server_that_is_killed_between_turns_is_met_again() {
    let first = gateway(0, "0s").await;
    let address = first.http();
    let mut chat = Chat::start(address, &["--session", "kept"]);
    chat.say("one").await;
    chat.expect_answer("one").await;
    drop(first);
    chat.expect_words("connecting again").await;
    let _second = gateway(address.port(), "0s").await;
    chat.say("two").await;
    chat.expect_words("no longer has this conversation").await;
    chat.expect_answer("two").await;
    assert_eq!(chat.end().await, Some(0));
}

#[tokio::test]
async fn an_answer_cut_off_by_a_kill_is_given_whole_and_once() {
    let first = gateway(0, "100ms").await;
    let address = first.http();
    let mut chat = Chat::start(address, &["--session", "cut"]);
    chat.say("in the middle").await;
    turns(address, "cut", running).await;
    drop(first);
    chat.expect_words("connecting again").await;
    let second = gateway(address.port(), "0s").await;
    chat.expect_answer("in the middle").await;
    let turns = turns(second.http(), "cut", |turns| !turns.is_empty()).await;
    assert_eq!(turns.len(), 1);
    assert_eq!(chat.end().await, Some(0));
}

#[tokio::test]
async fn a_server_that_drains_finishes_the_answer() {
    let mut first = gateway(0, "50ms").await;
    let address = first.http();
    let mut chat = Chat::start(address, &["--session", "drained"]);
    chat.say("before the end").await;
    turns(address, "drained", running).await;
    first.terminate().unwrap();
    chat.expect_words("about to restart").await;
    chat.expect_answer("before the end").await;
    assert!(first.process().wait(PATIENCE).await.unwrap().success());
    let _second = gateway(address.port(), "0s").await;
    chat.say("after it").await;
    chat.expect_answer("after it").await;
    assert_eq!(chat.end().await, Some(0));
}

#[tokio::test]
async fn ctrl_c_stops_the_answer_at_the_server() {
    let gateway = gateway(0, "200ms").await;
    let mut chat = Chat::start(gateway.http(), &["--session", "stopped"]);
    chat.say("stop me").await;
    turns(gateway.http(), "stopped", running).await;
    chat.interrupt();
    let turns = turns(gateway.http(), "stopped", |turns| turns.iter().all(|turn| turn["state"] != "running")).await;
    assert_eq!(turns[0]["state"], "cancelled");
    chat.expect_words("(stopped)").await;
    // What was told before is printed; it is not all of it.
    chat.stdin = None;
    let mut printed = Vec::new();
    while let Some(line) = chat.printed().await {
        printed.push(line);
    }
    assert!(!printed.join("\n").contains(SENTENCE), "{printed:?}");
    assert_eq!(chat.end().await, Some(1));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_given_up_in_time() {
    // Port 1 of the loopback: nobody listens there.
    let chat = Chat::start(SocketAddr::from(([127, 0, 0, 1], 1)), &["--patience", "1s"]);
    assert_eq!(chat.end().await, Some(1));
}
