//! A single server.

use std::{fmt::Write as _, path::Path};

use nix::sys::signal::Signal;

use crate::{
    Certificates, field,
    process::{Access, Process},
    wait_until,
};

/// Who the tests' own commands are from, where a server knows users.
const ADMIN: (&str, &str) = ("admin", "of-this-test-only");

/// When the append-only file is brought to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Each second.
    Everysec,
    /// Before each reply.
    Always,
}

/// Somebody who may use a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name. `default`: whoever names nobody.
    pub name: String,
    /// The password.
    pub password: String,
    /// What the user may do, as ACL rules: `~* &* +@all`.
    pub rules: String,
}

impl User {
    /// A user who may do everything.
    #[must_use]
    pub fn new(name: &str, password: &str) -> Self {
        Self { name: name.into(), password: password.into(), rules: "~* &* +@all".into() }
    }
}

/// How a server is set up. By default: nothing kept on disk, no TLS, no users.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Keeps an append-only file.
    pub appendonly: Option<Fsync>,
    /// Takes TLS connections only, with these certificates.
    pub tls: Option<Certificates>,
    /// With TLS: refuses clients without a certificate.
    pub client_certificate_required: bool,
    /// Takes this user only (and the tests' own commands).
    pub user: Option<User>,
    /// Memory for data, bytes; past it writes are refused.
    pub maxmemory: Option<u64>,
    /// Is a replica of the server on this port of 127.0.0.1, which has the same TLS and users.
    pub replica_of: Option<u16>,
    /// Further lines of the configuration file.
    pub extra: Vec<String>,
}

impl Options {
    pub(crate) fn access(&self) -> Access {
        let user = self.user.as_ref().map(|_| (ADMIN.0.to_owned(), ADMIN.1.to_owned()));
        Access { user, tls: self.tls.clone() }
    }

    /// The lines that servers and sentinels have in common.
    pub(crate) fn listen(&self, port: u16, dir: &Path) -> String {
        let mut lines = format!("bind 127.0.0.1\ndir {}\ndaemonize no\nprotected-mode no\n", dir.display());
        match &self.tls {
            None => {
                let _ = writeln!(lines, "port {port}");
            }
            Some(tls) => {
                let clients = if self.client_certificate_required { "yes" } else { "optional" };
                let _ = writeln!(lines, "port 0\ntls-port {port}\ntls-replication yes\ntls-auth-clients {clients}");
                let _ = writeln!(lines, "tls-ca-cert-file {}", tls.ca().display());
                let _ = writeln!(lines, "tls-cert-file {}", tls.server_certificate().display());
                let _ = writeln!(lines, "tls-key-file {}", tls.server_key().display());
            }
        }
        lines
    }

    fn config(&self, port: u16, dir: &Path) -> String {
        let mut lines = self.listen(port, dir);
        lines.push_str("save \"\"\nmaxmemory-policy noeviction\nrepl-diskless-sync-delay 0\n");
        match self.appendonly {
            None => lines.push_str("appendonly no\n"),
            Some(Fsync::Everysec) => lines.push_str("appendonly yes\nappendfsync everysec\n"),
            Some(Fsync::Always) => lines.push_str("appendonly yes\nappendfsync always\n"),
        }
        if let Some(user) = &self.user {
            let _ = writeln!(lines, "user {} on >{} ~* &* +@all", ADMIN.0, ADMIN.1);
            if user.name != "default" {
                lines.push_str("user default off\n");
            }
            let _ = writeln!(lines, "user {} on resetpass >{} {}", user.name, user.password, user.rules);
            let _ = writeln!(lines, "masteruser {}\nmasterauth {}", ADMIN.0, ADMIN.1);
        }
        if let Some(bytes) = self.maxmemory {
            let _ = writeln!(lines, "maxmemory {bytes}");
        }
        if let Some(primary) = self.replica_of {
            let _ = writeln!(lines, "replicaof 127.0.0.1 {primary}");
        }
        for line in &self.extra {
            let _ = writeln!(lines, "{line}");
        }
        lines
    }

    /// What a sentinel must know of the servers it watches.
    pub(crate) fn sentinel_access(&self, name: &str) -> String {
        match self.user {
            Some(_) => format!("sentinel auth-user {name} {}\nsentinel auth-pass {name} {}\n", ADMIN.0, ADMIN.1),
            None => String::new(),
        }
    }

    /// The arguments by which MIGRATE shows who it is.
    pub(crate) fn migrate_access(&self) -> &'static [&'static str] {
        if self.user.is_some() { &["AUTH2", ADMIN.0, ADMIN.1] } else { &[] }
    }
}

/// A server. It ends, without a farewell, when this is dropped.
#[derive(Debug)]
pub struct RedisServer {
    process: Process,
    options: Options,
}

impl RedisServer {
    /// Starts a server, and waits until it answers; a replica also until it has its primary's data.
    ///
    /// # Errors
    /// Where Redis is not installed, or does not start.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let process = Process::start("redis-server", options.access(), |port, dir| options.config(port, dir))?;
        let server = Self { process, options };
        if server.options.replica_of.is_some() {
            server.wait_linked()?;
        }
        Ok(server)
    }

    /// How it is set up.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The port of 127.0.0.1 on which it listens, also after a restart.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.process.port()
    }

    /// `127.0.0.1:<port>`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// Its directory, with `redis.conf` and `redis.log`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.process.dir()
    }

    /// Its process, while there is one.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Its certificates, if it has TLS.
    #[must_use]
    pub fn tls(&self) -> Option<&Certificates> {
        self.options.tls.as_ref()
    }

    /// Runs a command as an administrator, by `redis-cli`, and returns what that prints: values line by line, errors as text.
    #[must_use]
    pub fn cli(&self, args: &[&str]) -> String {
        self.process.cli(args)
    }

    /// [`Self::cli`], whose answer is only whether it was `OK`.
    ///
    /// # Errors
    /// With what it answered instead.
    pub fn expect_ok(&self, args: &[&str]) -> anyhow::Result<()> {
        let answer = self.cli(args);
        anyhow::ensure!(answer == "OK", "{} on port {}: {answer}", args.join(" "), self.port());
        Ok(())
    }

    /// A number of INFO, or whatever else it says there.
    #[must_use]
    pub fn info(&self, section: &str, name: &str) -> Option<String> {
        field(&self.cli(&["INFO", section]), name).map(str::to_owned)
    }

    /// Ends the server as an administrator would, and starts it again: same port, and the data that it keeps on disk.
    ///
    /// # Errors
    /// Where it does not come back.
    pub fn restart(&self) -> anyhow::Result<()> {
        self.process.end(Signal::SIGTERM);
        self.process.start_again()
    }

    /// Kills it.
    pub fn kill9(&self) {
        self.process.end(Signal::SIGKILL);
    }

    /// Starts it after [`Self::kill9`]: same port, and the data that is on disk.
    ///
    /// # Errors
    /// Where it does not come back.
    pub fn start_again(&self) -> anyhow::Result<()> {
        self.process.start_again()
    }

    /// Lets no client's command be carried out for so long.
    ///
    /// # Errors
    /// With the server's answer, if it refused.
    pub fn pause(&self, ms: u64) -> anyhow::Result<()> {
        self.expect_ok(&["CLIENT", "PAUSE", &ms.to_string(), "ALL"])
    }

    /// Freezes the process: connections stay, nothing is answered.
    ///
    /// # Errors
    /// Where there is no process.
    pub fn stop_process(&self) -> anyhow::Result<()> {
        self.process.signal(Signal::SIGSTOP)?;
        // The signal is sent at once and obeyed a little later.
        wait_until("the server is frozen", || self.process.is_frozen().then_some(()).ok_or("it runs".to_owned()))
    }

    /// Lets a frozen process go on.
    ///
    /// # Errors
    /// Where there is no process.
    pub fn continue_process(&self) -> anyhow::Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    fn wait_linked(&self) -> anyhow::Result<()> {
        wait_until(&format!("the replica on port {} follows its primary", self.port()), || {
            let info = self.cli(&["INFO", "replication"]);
            if field(&info, "master_link_status") == Some("up") { Ok(()) } else { Err(info) }
        })
    }
}
