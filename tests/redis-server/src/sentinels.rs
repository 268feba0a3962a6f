//! A primary with replicas, and sentinels that watch them.

use anyhow::Context as _;

use crate::{
    Options, RedisServer, field,
    process::{Access, Process},
    wait_until,
};

/// The name by which the sentinels know the primary.
pub const PRIMARY_NAME: &str = "primary";

/// How long a server must be silent before sentinels take it for dead. Short, so that tests are; long for a busy machine.
const DOWN_AFTER_MS: u32 = 500;

/// Sentinels wait a multiple of it before they try a failed failover again.
const FAILOVER_TIMEOUT_MS: u32 = 2_000;

/// Servers under sentinels.
#[derive(Debug)]
pub struct Sentinels {
    // The sentinels end first, so that they do not act on the servers' end.
    sentinels: Vec<Process>,
    servers: Vec<RedisServer>,
}

impl Sentinels {
    /// Starts a primary, `replicas` replicas and `sentinels` sentinels, and waits until all know each other.
    ///
    /// # Errors
    /// Where Redis is not installed, or they do not come together.
    pub fn start(replicas: usize, sentinels: usize) -> anyhow::Result<Self> {
        Self::start_with(&Options::default(), replicas, sentinels)
    }

    /// The same, all servers set up alike. Sentinels share the TLS settings; they know no users.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(options: &Options, replicas: usize, sentinels: usize) -> anyhow::Result<Self> {
        let primary = RedisServer::start(Options { replica_of: None, ..options.clone() })?;
        let primary_port = primary.port();
        let mut servers = vec![primary];
        for _ in 0..replicas {
            servers.push(RedisServer::start(Options { replica_of: Some(primary_port), ..options.clone() })?);
        }
        let quorum = sentinels / 2 + 1;
        let config = |port: u16, dir: &std::path::Path| {
            let name = PRIMARY_NAME;
            format!(
                "{}sentinel monitor {name} 127.0.0.1 {primary_port} {quorum}\n\
                 sentinel down-after-milliseconds {name} {DOWN_AFTER_MS}\n\
                 sentinel failover-timeout {name} {FAILOVER_TIMEOUT_MS}\n{}",
                options.listen(port, dir),
                options.sentinel_access(name),
            )
        };
        let access = Access { user: None, tls: options.tls.clone() };
        let sentinels: anyhow::Result<Vec<_>> =
            (0..sentinels).map(|_| Process::start("redis-sentinel", access.clone(), config)).collect();
        let all = Self { sentinels: sentinels?, servers };
        all.wait_acquainted(replicas)?;
        Ok(all)
    }

    /// The servers; the first one began as the primary.
    #[must_use]
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// `127.0.0.1:<port>` of each sentinel.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect()
    }

    /// Runs a command on one of the sentinels.
    #[must_use]
    pub fn cli(&self, sentinel: usize, args: &[&str]) -> String {
        self.sentinels[sentinel].cli(args)
    }

    /// The server that the first sentinel names as the primary.
    ///
    /// # Errors
    /// Where it names none of them.
    pub fn primary(&self) -> anyhow::Result<&RedisServer> {
        let port = self.primary_port(0);
        let named = self.servers.iter().find(|server| Some(server.port()) == port);
        named.with_context(|| format!("the sentinel names a primary on port {port:?}, which is none of the servers"))
    }

    /// Orders a failover, and waits until it is over. Returns the new primary.
    ///
    /// # Errors
    /// Where it does not happen.
    pub fn failover(&self) -> anyhow::Result<&RedisServer> {
        let before = self.primary()?.port();
        wait_until("a sentinel starts the failover", || {
            // Right after another one it says INPROG or NOGOODSLAVE.
            match self.cli(0, &["SENTINEL", "FAILOVER", PRIMARY_NAME]).as_str() {
                "OK" => Ok(()),
                answer => Err(answer.to_owned()),
            }
        })?;
        self.wait_primary_other_than(before)
    }

    /// Waits until all sentinels name one and the same primary other than that, and it knows that it is. Returns it.
    ///
    /// # Errors
    /// Where that does not happen.
    pub fn wait_primary_other_than(&self, before: u16) -> anyhow::Result<&RedisServer> {
        wait_until("the sentinels agree on another primary", || {
            let ports: Vec<_> = (0..self.sentinels.len()).map(|i| self.primary_port(i)).collect();
            let agreed = ports.iter().all(|port| *port == ports[0]) && ports[0].is_some() && ports[0] != Some(before);
            let primary = self.servers.iter().find(|server| Some(server.port()) == ports[0]);
            let role = primary.map(|server| server.cli(&["ROLE"]));
            if agreed && role.as_ref().is_some_and(|role| role.starts_with("master")) {
                return Ok(());
            }
            Err(format!("they name {ports:?}, before {before}; role {role:?}"))
        })?;
        self.primary()
    }

    fn primary_port(&self, sentinel: usize) -> Option<u16> {
        let answer = self.cli(sentinel, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY_NAME]);
        answer.lines().nth(1)?.parse().ok()
    }

    fn wait_acquainted(&self, replicas: usize) -> anyhow::Result<()> {
        wait_until("the sentinels know each other and the replicas", || {
            for (i, sentinel) in self.sentinels.iter().enumerate() {
                let info = sentinel.cli(&["INFO", "sentinel"]);
                let line = field(&info, "master0").unwrap_or_default();
                let wanted = format!("status=ok,address=127.0.0.1:{}", self.servers[0].port());
                let counts = format!("slaves={replicas},sentinels={}", self.sentinels.len());
                if !line.contains(&wanted) || !line.ends_with(&counts) {
                    return Err(format!("sentinel {i} says {line:?}"));
                }
            }
            Ok(())
        })
    }
}
