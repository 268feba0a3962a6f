//! The servers are what they say.

#![allow(clippy::unwrap_used, clippy::panic)]

use chatgateway_redis_server::{Certificates, Cluster, Fsync, Options, RedisServer, Sentinels, User};

#[test]
fn a_server_keeps_its_port_and_its_data() {
    let server = RedisServer::start(Options { appendonly: Some(Fsync::Always), ..Options::default() }).unwrap();
    let (pid, port) = (server.pid().unwrap(), server.port());
    server.expect_ok(&["SET", "a", "1"]).unwrap();
    server.restart().unwrap();
    assert_eq!((server.cli(&["GET", "a"]).as_str(), server.port()), ("1", port));
    assert_ne!(server.pid().unwrap(), pid);
    server.expect_ok(&["SET", "b", "2"]).unwrap();
    server.kill9();
    assert_eq!(server.pid(), None);
    assert!(server.cli(&["PING"]).contains("refused"));
    server.start_again().unwrap();
    assert_eq!(server.cli(&["GET", "b"]), "2");
    let (pid, dir) = (server.pid().unwrap(), server.dir().to_owned());
    drop(server);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert!(!dir.exists());
}

#[test]
fn a_frozen_server_goes_on() {
    let server = RedisServer::start(Options::default()).unwrap();
    server.stop_process().unwrap();
    let mut frozen = std::net::TcpStream::connect(server.endpoint()).unwrap();
    std::io::Write::write_all(&mut frozen, b"PING\r\n").unwrap();
    frozen.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    let mut reply = [0; 7];
    std::io::Read::read(&mut frozen, &mut reply).unwrap_err();
    server.continue_process().unwrap();
    frozen.set_read_timeout(None).unwrap();
    std::io::Read::read_exact(&mut frozen, &mut reply).unwrap();
    assert_eq!(&reply, b"+PONG\r\n");
    assert_eq!(server.cli(&["PING"]), "PONG");
    let before = std::time::Instant::now();
    server.pause(300).unwrap();
    assert_eq!(server.cli(&["PING"]), "PONG");
    assert!(before.elapsed().as_millis() >= 300);
}

#[test]
fn tls_users_and_memory_are_enforced() {
    let tls = Certificates::make().unwrap();
    let user = User { rules: "~ok:* +get +set +ping".into(), ..User::new("gateway", "secret") };
    let server = RedisServer::start(Options {
        tls: Some(tls.clone()),
        client_certificate_required: true,
        user: Some(user),
        maxmemory: Some(3_000_000),
        ..Options::default()
    })
    .unwrap();
    assert_eq!(server.cli(&["CONFIG", "GET", "maxmemory"]), "maxmemory\n3000000");
    assert_eq!(server.cli(&["ACL", "DRYRUN", "gateway", "GET", "ok:1"]), "OK");
    assert!(server.cli(&["ACL", "DRYRUN", "gateway", "GET", "no:1"]).contains("permissions"));
    let (port, ca) = (server.port().to_string(), tls.ca());
    let other = Certificates::make().unwrap();
    let ping = |ca: &std::path::Path, with_certificate: bool| {
        let mut command = std::process::Command::new("redis-cli");
        command.args(["-p", &port, "--user", "gateway", "--pass", "secret", "--no-auth-warning", "--tls"]);
        command.arg("--cacert").arg(ca);
        if with_certificate {
            command.arg("--cert").arg(tls.client_certificate()).arg("--key").arg(tls.client_key());
        }
        String::from_utf8(command.arg("PING").output().unwrap().stdout).unwrap().trim().to_owned()
    };
    assert_eq!(ping(&ca, true), "PONG");
    assert_ne!(ping(&ca, false), "PONG");
    assert_ne!(ping(&other.ca(), true), "PONG");
}

#[test]
fn sentinels_change_the_primary() {
    let sentinels = Sentinels::start(1, 3).unwrap();
    let before = sentinels.primary().unwrap().port();
    sentinels.primary().unwrap().expect_ok(&["SET", "a", "1"]).unwrap();
    assert_eq!(sentinels.primary().unwrap().cli(&["WAIT", "1", "5000"]), "1");
    let after = sentinels.failover().unwrap();
    assert_ne!(after.port(), before);
    assert_eq!(after.cli(&["GET", "a"]), "1");
    assert_eq!(after.cli(&["SET", "a", "2"]), "OK");
}

#[test]
fn sentinels_replace_a_dead_primary_with_users_and_tls() {
    let options = Options {
        tls: Some(Certificates::make().unwrap()),
        user: Some(User::new("gateway", "secret")),
        ..Options::default()
    };
    let sentinels = Sentinels::start_with(&options, 1, 3).unwrap();
    let before = sentinels.primary().unwrap();
    before.kill9();
    let after = sentinels.wait_primary_other_than(before.port()).unwrap();
    assert_eq!(after.cli(&["SET", "a", "2"]), "OK");
}

#[test]
fn a_slot_moves_step_by_step() {
    let cluster = Cluster::start(3).unwrap();
    let slot = cluster.slot_of("{s}a").unwrap();
    let from = cluster.owner_of(slot).unwrap();
    let to = (from + 1) % 3;
    let (old, new) = (&cluster.nodes()[from], &cluster.nodes()[to]);
    for key in ["{s}a", "{s}b"] {
        old.expect_ok(&["SET", key, "1"]).unwrap();
    }
    assert!(new.cli(&["GET", "{s}a"]).starts_with("MOVED"));
    cluster.begin_move(slot, from, to).unwrap();
    cluster.move_named(&["{s}a"], from, to).unwrap();
    assert!(old.cli(&["GET", "{s}a"]).starts_with("ASK"));
    assert!(old.cli(&["MGET", "{s}a", "{s}b"]).starts_with("TRYAGAIN"));
    assert_eq!(old.cli(&["GET", "{s}b"]), "1");
    cluster.move_keys(slot, from, to).unwrap();
    cluster.end_move(slot, from, to).unwrap();
    assert_eq!(new.cli(&["MGET", "{s}a", "{s}b"]), "1\n1");
    assert!(old.cli(&["GET", "{s}a"]).starts_with("MOVED"));
}

#[test]
fn a_replica_takes_over_in_a_cluster() {
    let cluster = Cluster::start_with(&Options::default(), 3, 1).unwrap();
    let slot = cluster.slot_of("a").unwrap();
    let owner = cluster.owner_of(slot).unwrap();
    cluster.nodes()[owner].kill9();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let successor = loop {
        assert!(std::time::Instant::now() < deadline, "nobody took over");
        match cluster.owner_of(slot) {
            Ok(successor) => break successor,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    };
    assert_ne!(successor, owner);
    cluster.wait_ok().unwrap();
    assert_eq!(cluster.nodes()[successor].cli(&["SET", "a", "1"]), "OK");
}
