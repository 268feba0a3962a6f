//! A gateway with a Redis that is run for it: started, killed, kept and ended.

#![allow(clippy::panic)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chatgateway_config::{Settings, StoreSettings};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::MANIFEST;
use crate::runner::{Runner, Start, eventually, fake, program};

/// The gateway of the other tests, with three replicas and a Redis of its own.
pub fn with_redis() -> String {
    MANIFEST.replace("spec:", "spec:\n  replicas: 3\n  sessions: {store: {type: Redis, redis: {managed: {}}}}")
}

/// A managed Redis as a client sees it.
pub struct Redis {
    pub address: String,
    pub password_file: String,
}

impl Redis {
    pub fn of(runner: &Runner) -> Self {
        let line = runner.line("  redis  ");
        let (address, rest) = line.trim_start().strip_prefix("redis").expect("it").split_once("  (").expect("more");
        let password_file = rest.strip_prefix("password in ").expect("a file").split_once(';').expect("more").0;
        Self { address: address.trim().to_owned(), password_file: password_file.to_owned() }
    }

    /// The lines of a command's reply; none where the server does not answer.
    fn ask(&self, command: &str) -> Option<Vec<String>> {
        let password = std::fs::read_to_string(&self.password_file).expect("a password");
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("an option");
        write!(stream, "AUTH {password}\r\n{command}\r\nQUIT\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        // The replies to AUTH and QUIT are around it.
        let reply = text.strip_prefix("+OK\r\n").and_then(|rest| rest.strip_suffix("+OK\r\n")).expect("it may ask");
        Some(reply.lines().map(str::to_owned).collect())
    }

    fn setting(&self, name: &str) -> String {
        self.ask(&format!("CONFIG GET {name}")).expect("an answer").pop().expect("a value")
    }
}

/// The id of a runner's redis-server.
pub fn server(runner: &Runner) -> Option<Pid> {
    runner.children().into_iter().find(|pid| program(*pid) == "redis-server")
}

fn is_gone(pid: Pid) -> Option<()> {
    (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
}

fn start(manifest: &str, args: &[&str]) -> Runner {
    let fake = fake();
    Start { args: &[&["--dataplane", &fake], args].concat(), ..Start::new(manifest) }.run()
}

#[test]
fn it_keeps_every_write_evicts_nothing_and_is_for_this_user_only() {
    let runner = start(&with_redis(), &[]);
    runner.ready().line("test is ready: 3 processes, sessions in Redis");
    let redis = Redis::of(&runner);
    for (name, value) in [
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("maxmemory-policy", "noeviction"),
        ("save", ""),
        ("bind", "127.0.0.1"),
    ] {
        assert_eq!(redis.setting(name), value, "{name}");
    }
    let mode = std::fs::metadata(&redis.password_file).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let password = std::fs::read_to_string(&redis.password_file).expect("a password");
    let pid = server(&runner).expect("it runs");
    let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("its arguments");
    assert!(password.len() >= 32 && !arguments.contains(&password), "{arguments}");
}

#[test]
fn one_that_is_killed_comes_back_on_its_port_with_its_data() {
    let runner = start(&with_redis(), &[]);
    let redis = Redis::of(runner.ready());
    assert_eq!(redis.ask("SET key kept").expect("an answer"), ["+OK"]);
    let first = server(&runner).expect("it runs");
    let dataplanes: Vec<_> = runner.children().into_iter().filter(|pid| *pid != first).collect();
    assert_eq!(dataplanes.len(), 3);
    kill(first, Signal::SIGKILL).expect("it is there");
    runner.line("redis died (signal 9); it is started again with its data in 0.1 s");
    runner.line(&format!("redis answers again on {}", redis.address));
    assert_eq!(redis.ask("GET key").expect("an answer"), ["$4", "kept"]);
    let second = server(&runner).expect("it runs again");
    assert_ne!(second, first);
    let mut expected = dataplanes;
    expected.push(second);
    assert_eq!(runner.children(), expected, "the gateway's processes live on");
}

#[test]
fn it_ends_after_the_processes_that_use_it_and_nothing_is_left() {
    let mut runner = start(&with_redis(), &[]);
    let pid = server(runner.ready()).expect("it runs");
    let folder = Path::new(&Redis::of(&runner).password_file).ancestors().nth(2).expect("a folder").to_owned();
    runner.signal(Signal::SIGTERM);
    assert_eq!(runner.exit_code(), Some(0), "{}", runner.text());
    runner.line("stopped");
    assert_eq!((runner.count("has drained and gone after"), runner.count("redis died")), (3, 0));
    assert!(is_gone(pid).is_some() && !folder.exists(), "nothing is left");
}

#[test]
fn a_second_ctrl_c_leaves_nothing_behind() {
    let fake = fake();
    let manifest = with_redis();
    let env = [("FAKE_DATAPLANE", "stays")];
    let mut runner = Start { env: &env, args: &["--dataplane", &fake], ..Start::new(&manifest) }.run();
    let children = runner.ready().children();
    assert_eq!(children.len(), 4);
    runner.signal(Signal::SIGINT);
    runner.line("Ctrl-C again stops at once");
    runner.signal(Signal::SIGINT);
    assert_eq!(runner.exit_code(), Some(130));
    assert!(children.into_iter().all(|pid| is_gone(pid).is_some()), "nothing is left");
}

#[test]
fn nothing_outlives_a_runner_that_is_killed() {
    let mut runner = start(&with_redis(), &[]);
    let children = runner.ready().children();
    assert_eq!(children.len(), 4);
    runner.signal(Signal::SIGKILL);
    assert_eq!(runner.exit_code(), None);
    for pid in children {
        eventually("the end of a process", || is_gone(pid));
    }
}

#[test]
fn data_is_kept_between_runs_where_a_folder_is_given_for_it_and_never_shared() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("data of mine").to_string_lossy().into_owned();
    let args = ["--data-dir", &folder];
    let mut first = start(&with_redis(), &args);
    let redis = Redis::of(first.ready());
    assert!(first.line("  redis  ").ends_with(&format!("its data stays in {folder}/redis)")));
    assert_eq!(redis.ask("SET key kept").expect("an answer"), ["+OK"]);

    let mut second = start(&with_redis(), &args);
    assert_eq!(second.exit_code(), Some(1));
    second.line(&format!("error: {folder}/redis is in use by another run; end that one, or give another --data-dir"));

    first.signal(Signal::SIGTERM);
    assert_eq!(first.exit_code(), Some(0));
    let third = start(&with_redis(), &args);
    assert_eq!(Redis::of(third.ready()).ask("GET key").expect("an answer"), ["$4", "kept"]);
}

#[test]
fn it_comes_and_goes_with_the_manifest() {
    let one = with_redis().replace("replicas: 3", "replicas: 1");
    let memory = "store: {type: Memory}";
    let managed = "store: {type: Redis, redis: {managed: {}}}";
    let runner = start(&one.replace(managed, memory), &[]);
    assert_eq!(server(runner.ready()), None);
    runner.edit(memory, managed);
    runner.line("started redis on 127.0.0.1:");
    runner.line("replacing the processes: sessions.store cannot change while they run");
    runner.line("test-2 takes clients; test-1 drains, 20 s at most, and its sessions end with it");
    let pid = server(&runner).expect("it runs");
    runner.edit(managed, memory);
    runner.line("test-3 takes clients; test-2 drains");
    runner.line("redis has gone: it is not asked for any more");
    assert!(is_gone(pid).is_some());
}

/// A folder with a redis-server that says this version.
fn fake_server(version: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("redis-server");
    std::fs::write(&file, format!("#!/bin/sh\necho '{version}'\n")).expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("executable");
    folder
}

#[test]
fn without_a_server_that_will_do_it_is_said_where_to_get_one() {
    let (old, odd) = (fake_server("Redis server v=6.2.14 sha=0"), fake_server("hello"));
    let folder = |folder: &tempfile::TempDir| folder.path().to_string_lossy().into_owned();
    let install = "install it (Debian, Ubuntu: apt-get install redis-server; Fedora: dnf install redis; Homebrew: brew \
                   install redis), or use a Redis that is there already: `external` in place of `managed`";
    for (path, expected) in [
        (String::new(), format!("a managed Redis needs redis-server 7.0, and it is not on the PATH; {install}")),
        (
            folder(&old),
            format!("{}/redis-server is version 6.2, and sessions need 7.0 or later; {install}", folder(&old)),
        ),
        (folder(&odd), format!("cannot find out the version of {}/redis-server", folder(&odd))),
    ] {
        let (fake, manifest) = (fake(), with_redis());
        let env = [("PATH", path.as_str())];
        let mut runner = Start { env: &env, args: &["--dataplane", &fake], ..Start::new(&manifest) }.run();
        assert_eq!(runner.exit_code(), Some(1));
        runner.line(&format!("error: {expected}"));
        assert!(!runner.text().contains("started"), "{}", runner.text());
    }
}

#[test]
fn the_secrets_of_a_redis_that_is_there_already_reach_the_processes() {
    let external = "external: {endpoints: ['127.0.0.1:9'], auth: {secretRef: {name: cache, usernameKey: user}}, \
                    tls: {caSecretRef: {name: ca, key: ca.crt}}}";
    let manifest = with_redis().replace("managed: {}", external);
    let mut runner = start(&manifest, &[]);
    assert_eq!(runner.exit_code(), Some(1));
    let at = "spec.sessions.store.redis.external";
    for (field, name, key, variable) in [
        ("auth.secretRef", "cache", "password", "CACHE_PASSWORD"),
        ("auth.secretRef", "cache", "user", "CACHE_USER"),
        ("tls.caSecretRef", "ca", "ca.crt", "CA_CA_CRT"),
    ] {
        runner.line(&format!(
            "{at}.{field}: there is no value for Secret `{name}`, key `{key}`; give --secret {name}/{key}=FILE or set \
             CHATGATEWAY_SECRET_{variable}"
        ));
    }

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password.txt");
    std::fs::write(&file, "one").expect("written");
    let password = format!("cache/password={}", file.display());
    let (fake, env) = (fake(), [("CHATGATEWAY_SECRET_CACHE_USER", "me"), ("CHATGATEWAY_SECRET_CA_CA_CRT", "PEM")]);
    let args = ["--dataplane", &fake, "--secret", &password];
    let runner = Start { env: &env, args: &args, ..Start::new(&manifest) }.run();
    let pid = runner.ready().children().pop().expect("a process");
    let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("its arguments");
    let config = arguments.trim_end_matches('\0').rsplit('\0').next().expect("the configuration's path");
    let settings = Settings::parse(&std::fs::read_to_string(config).expect("the configuration")).expect("it is right");
    let StoreSettings::Redis(redis) = settings.sessions.store else { panic!("it is Redis") };
    let content = |path: Option<PathBuf>| std::fs::read_to_string(path.expect("a path")).expect("a file");
    assert_eq!(content(redis.username_file), "me");
    assert_eq!(content(redis.tls.expect("TLS").ca_file), "PEM");
    assert_eq!(content(redis.password_file.clone()), "one");
    std::fs::write(&file, "two").expect("written");
    runner.line("Secret cache/password has changed and is passed on");
    assert_eq!(content(redis.password_file), "two");
    assert_eq!((server(&runner), runner.count("replacing")), (None, 0), "nothing is started or restarted for it");
}
