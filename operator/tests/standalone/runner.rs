//! `chatgateway-operator standalone` as a test sees it: a process, its lines, its ports.

#![allow(clippy::panic)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Far more than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

type Lines = Arc<(Mutex<Vec<String>>, Condvar)>;

/// A runner that was started. Ended with all its processes when dropped.
pub struct Runner {
    child: Child,
    lines: Lines,
    pub manifest: PathBuf,
    _folder: tempfile::TempDir,
}

/// How to start a runner.
pub struct Start<'a> {
    pub manifest: &'a str,
    pub ports: [u16; 3],
    pub args: &'a [&'a str],
    pub env: &'a [(&'a str, &'a str)],
}

impl<'a> Start<'a> {
    /// With the real data plane, on any free ports.
    pub fn new(manifest: &'a str) -> Self {
        Self { manifest, ports: [0; 3], args: &[], env: &[] }
    }

    pub fn run(self) -> Runner {
        let folder = tempfile::tempdir().expect("a folder");
        let manifest = folder.path().join("gateway.yaml");
        std::fs::write(&manifest, self.manifest).expect("written");
        let ports = self.ports.map(|port| port.to_string());
        let mut child = Command::new(env!("CARGO_BIN_EXE_chatgateway-operator"))
            .args(["standalone", "-f"])
            .arg(&manifest)
            .args(["--http-port", &ports[0], "--grpc-port", &ports[1], "--admin-port", &ports[2]])
            .args(self.args)
            // A runner that is killed leaves its folder behind.
            .env("TMPDIR", folder.path())
            .envs(self.env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the operator starts");
        let lines = Lines::default();
        follow(child.stdout.take().expect("piped"), lines.clone());
        follow(child.stderr.take().expect("piped"), lines.clone());
        Runner { child, lines, manifest, _folder: folder }
    }
}

fn follow(stream: impl Read + Send + 'static, lines: Lines) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            lines.0.lock().expect("not poisoned").push(line);
            lines.1.notify_all();
        }
    });
}

impl Runner {
    /// Waits for a line that contains a text; the whole line.
    pub fn line(&self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines.0.lock().expect("not poisoned");
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(part)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no line with {part:?} in:\n{}", lines.join("\n"));
            lines = self.lines.1.wait_timeout(lines, left).expect("not poisoned").0;
        }
    }

    /// All lines so far.
    pub fn text(&self) -> String {
        self.lines.0.lock().expect("not poisoned").join("\n")
    }

    /// Waits until it tells that it runs.
    pub fn ready(&self) -> &Self {
        self.line("Ctrl-C drains and stops");
        self
    }

    /// `host:port` of its HTTP port.
    pub fn http(&self) -> String {
        let line = self.line("  page  ");
        line.rsplit_once("http://").expect("a URL").1.trim_end_matches('/').to_owned()
    }

    /// `host:port` of the admin port of its first process.
    pub fn admin(&self) -> String {
        let line = self.line("  admin  ");
        let url = line.split_once("http://").expect("a URL").1;
        url.split_once('/').expect("a path").0.to_owned()
    }

    /// `host:port` of the admin ports of the processes that ran when it was ready.
    pub fn admins(&self) -> Vec<String> {
        let text = self.text();
        let lines = text.lines().filter_map(|line| line.strip_prefix("  admin      http://"));
        lines.map(|line| line.split_once('/').expect("a path").0.to_owned()).collect()
    }

    /// How many lines contain a text.
    pub fn count(&self, part: &str) -> usize {
        self.text().lines().filter(|line| line.contains(part)).count()
    }

    /// Edits the manifest.
    pub fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(&self.manifest).expect("the manifest");
        assert!(text.contains(from), "{from} is in the manifest");
        std::fs::write(&self.manifest, text.replace(from, to)).expect("written");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it is there");
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("an id"))
    }

    /// The ids of its processes.
    pub fn children(&self) -> Vec<Pid> {
        let pid = self.child.id();
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        text.split_whitespace().map(|id| Pid::from_raw(id.parse().expect("an id"))).collect()
    }

    /// Waits until it ends; its exit code.
    pub fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be asked") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The name of a process' program.
pub fn program(pid: Pid) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Waits for something with no line to wait for.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come to pass");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        for child in self.children() {
            // What is gone is gone.
            let _ = kill(child, Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One HTTP request on a connection of its own; status and body.
pub fn http(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    try_http(address, method, path, body).expect("an answer")
}

/// The same, none where the connection breaks.
pub fn try_http(address: &str, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok())?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let whole = length.is_none_or(|length| length.parse() == Ok(body.len()));
    whole.then(|| (status, body.to_owned()))
}

/// Sends a turn and waits for its answer; status and body.
pub fn turn(address: &str, session: &str, turn: &str) -> (u16, String) {
    try_turn(address, session, turn).expect("an answer")
}

fn try_turn(address: &str, session: &str, turn: &str) -> Option<(u16, String)> {
    let body = format!(r#"{{"turn": "{turn}", "text": "Hello"}}"#);
    try_http(address, "POST", &format!("/v1/sessions/{session}/turns"), &body)
}

/// Sends a turn as a client does that is not put off: again, with the same id, until it has its answer.
pub fn persistent_turn(address: &str, session: &str, turn: &str) -> serde_json::Value {
    eventually("an answer", || match try_turn(address, session, turn)? {
        (200, body) => Some(serde_json::from_str(&body).expect("JSON")),
        (502..=504, _) => None,
        (status, body) => panic!("{status}: {body}"),
    })
}

/// What a process says of itself.
fn status(admin: &str) -> serde_json::Value {
    let (status, body) = http(admin, "GET", "/status", "");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).expect("JSON")
}

/// The hash of the configuration that a process runs.
pub fn config_hash(admin: &str) -> String {
    status(admin)["config_hash"].as_str().expect("a hash").to_owned()
}

/// Whether a turn runs in a process.
pub fn running(admin: &str) -> bool {
    status(admin)["leases"].as_u64().expect("a number") > 0
}

/// The program of the fake data plane, which is built with the tests.
pub fn fake() -> String {
    let operator = Path::new(env!("CARGO_BIN_EXE_chatgateway-operator"));
    let path = operator.with_file_name("examples").join("fake_dataplane");
    assert!(path.is_file(), "{} is missing: `cargo build --examples` makes it", path.display());
    path.to_string_lossy().into_owned()
}
