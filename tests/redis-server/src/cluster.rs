//! A cluster.

use anyhow::Context as _;

use crate::{Options, RedisServer, process::free_port, wait_until};

/// Slots of a cluster.
pub const CLUSTER_SLOTS: u16 = 16_384;

/// How long a node must be silent before the others take it for dead. Short, so that tests are; long for a busy machine.
const NODE_TIMEOUT_MS: u32 = 1_000;

/// Keys that MIGRATE moves at a time.
const MIGRATE_KEYS: &str = "100";

/// How often another bus port is tried where one turns out to be taken.
const BUS_PORT_TRIES: usize = 5;

/// The nodes of a cluster: first the primaries, each with its share of the slots in order, then their replicas.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<RedisServer>,
    primaries: usize,
}

impl Cluster {
    /// Starts primaries, and waits until all know each other and the cluster is in order.
    ///
    /// # Errors
    /// Where Redis is not installed, or they do not come together.
    pub fn start(primaries: usize) -> anyhow::Result<Self> {
        Self::start_with(&Options::default(), primaries, 0)
    }

    /// The same, all nodes set up alike, and with so many replicas of each primary.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(options: &Options, primaries: usize, replicas_each: usize) -> anyhow::Result<Self> {
        let nodes: anyhow::Result<Vec<_>> = (0..primaries * (1 + replicas_each)).map(|_| node(options)).collect();
        let cluster = Self { nodes: nodes?, primaries };
        for (i, node) in cluster.nodes[..primaries].iter().enumerate() {
            let bound = |i: usize| usize::from(CLUSTER_SLOTS) * i / primaries;
            let (first, last) = (bound(i).to_string(), (bound(i + 1) - 1).to_string());
            node.expect_ok(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])?;
            node.expect_ok(&["CLUSTER", "SET-CONFIG-EPOCH", &(i + 1).to_string()])?;
        }
        for node in &cluster.nodes[1..] {
            let (port, bus) = (cluster.nodes[0].port().to_string(), cluster.bus_port(0)?.to_string());
            node.expect_ok(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])?;
        }
        cluster.wait_acquainted()?;
        for i in primaries..cluster.nodes.len() {
            let primary = cluster.id((i - primaries) % primaries);
            cluster.nodes[i].expect_ok(&["CLUSTER", "REPLICATE", &primary])?;
        }
        cluster.wait_replicated(replicas_each)?;
        cluster.wait_ok()?;
        Ok(cluster)
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// How many of the nodes began as primaries.
    #[must_use]
    pub fn primaries(&self) -> usize {
        self.primaries
    }

    /// `127.0.0.1:<port>` of each node.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::endpoint).collect()
    }

    /// The slot of a key.
    ///
    /// # Errors
    /// Where no node answers.
    pub fn slot_of(&self, key: &str) -> anyhow::Result<u16> {
        let node = self.nodes.iter().find(|node| node.pid().is_some()).context("no node is running")?;
        let answer = node.cli(&["CLUSTER", "KEYSLOT", key]);
        answer.parse().with_context(|| format!("CLUSTER KEYSLOT: {answer}"))
    }

    /// The node that takes itself for the owner of a slot, by its place among the nodes.
    ///
    /// # Errors
    /// Where none does.
    pub fn owner_of(&self, slot: u16) -> anyhow::Result<usize> {
        let owns = |node: &RedisServer| {
            let nodes = node.cli(&["CLUSTER", "NODES"]);
            let myself = nodes.lines().find(|line| line.contains("myself,master")).unwrap_or_default();
            // id address flags primary ping pong epoch link slot…
            myself.split(' ').skip(8).any(|range| {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(a), Ok(b)) if (a..=b).contains(&slot))
            })
        };
        let owner = self.nodes.iter().position(|node| node.pid().is_some() && owns(node));
        owner.with_context(|| format!("no running node owns slot {slot}"))
    }

    /// A node's id.
    #[must_use]
    pub fn id(&self, node: usize) -> String {
        self.nodes[node].cli(&["CLUSTER", "MYID"])
    }

    /// Moves a slot, with its keys, from one primary to another.
    ///
    /// # Errors
    /// With the answer of a node that refused.
    pub fn move_slot(&self, slot: u16, from: usize, to: usize) -> anyhow::Result<()> {
        self.begin_move(slot, from, to)?;
        self.move_keys(slot, from, to)?;
        self.end_move(slot, from, to)
    }

    /// The first step of a move: from now on both nodes know of it. Keys that are still there are served where they are; for
    /// those that are not, the old owner answers ASK.
    ///
    /// # Errors
    /// With the answer of a node that refused.
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) -> anyhow::Result<()> {
        let slot = slot.to_string();
        self.nodes[to].expect_ok(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.id(from)])?;
        self.nodes[from].expect_ok(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.id(to)])
    }

    /// The second step: moves all keys of the slot.
    ///
    /// # Errors
    /// With the answer of a node that refused.
    pub fn move_keys(&self, slot: u16, from: usize, to: usize) -> anyhow::Result<()> {
        loop {
            let keys = self.nodes[from].cli(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), MIGRATE_KEYS]);
            if keys.is_empty() {
                return Ok(());
            }
            self.move_named(&keys.lines().collect::<Vec<_>>(), from, to)?;
        }
    }

    /// A part of the second step: moves these keys only.
    ///
    /// # Errors
    /// With the answer of a node that refused.
    pub fn move_named(&self, keys: &[&str], from: usize, to: usize) -> anyhow::Result<()> {
        let source = &self.nodes[from];
        let port = self.nodes[to].port().to_string();
        let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000"];
        command.extend(source.options().migrate_access());
        command.push("KEYS");
        command.extend(keys);
        let answer = source.cli(&command);
        anyhow::ensure!(answer == "OK" || answer == "NOKEY", "MIGRATE to port {port}: {answer}");
        Ok(())
    }

    /// The last step: the new owner has the slot, and all nodes know.
    ///
    /// # Errors
    /// With the answer of a node that refused.
    pub fn end_move(&self, slot: u16, from: usize, to: usize) -> anyhow::Result<()> {
        let id = self.id(to);
        let others = (0..self.primaries).filter(|i| *i != from && *i != to);
        for node in [to, from].into_iter().chain(others) {
            self.nodes[node].expect_ok(&["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &id])?;
        }
        wait_until("the slot has one owner", || match self.owner_of(slot) {
            Ok(owner) if owner == to => Ok(()),
            other => Err(format!("{other:?}")),
        })
    }

    /// Waits until every running node says that the cluster is in order.
    ///
    /// # Errors
    /// With what one says instead.
    pub fn wait_ok(&self) -> anyhow::Result<()> {
        wait_until("the cluster is in order", || {
            for node in self.nodes.iter().filter(|node| node.pid().is_some()) {
                let info = node.cli(&["CLUSTER", "INFO"]);
                if !info.starts_with("cluster_state:ok") {
                    return Err(info);
                }
            }
            Ok(())
        })
    }

    fn bus_port(&self, node: usize) -> anyhow::Result<u16> {
        let answer = self.nodes[node].cli(&["CONFIG", "GET", "cluster-port"]);
        let port = answer.lines().nth(1).and_then(|port| port.parse().ok());
        port.with_context(|| format!("the bus port of a node: {answer}"))
    }

    fn wait_acquainted(&self) -> anyhow::Result<()> {
        wait_until("the nodes know each other", || {
            for node in &self.nodes {
                let nodes = node.cli(&["CLUSTER", "NODES"]);
                let connected = nodes.lines().filter(|line| line.contains(" connected") && !line.contains("handshake"));
                if connected.count() != self.nodes.len() {
                    return Err(nodes);
                }
            }
            Ok(())
        })
    }

    fn wait_replicated(&self, replicas_each: usize) -> anyhow::Result<()> {
        wait_until("the primaries have their replicas", || {
            for node in &self.nodes[..self.primaries] {
                let role = node.info("replication", "connected_slaves").unwrap_or_default();
                if role != replicas_each.to_string() {
                    return Err(format!("{} of {replicas_each}", role));
                }
            }
            for node in &self.nodes {
                // Every node knows of every replica, or a failover would not be offered everywhere.
                let nodes = node.cli(&["CLUSTER", "NODES"]);
                if nodes.lines().filter(|line| line.contains("slave")).count() != self.nodes.len() - self.primaries {
                    return Err(nodes);
                }
            }
            Ok(())
        })
    }
}

fn node(options: &Options) -> anyhow::Result<RedisServer> {
    let mut last = None;
    for _ in 0..BUS_PORT_TRIES {
        let mut options = options.clone();
        options.extra.extend([
            "cluster-enabled yes".to_owned(),
            format!("cluster-port {}", free_port()?),
            format!("cluster-node-timeout {NODE_TIMEOUT_MS}"),
            "cluster-replica-validity-factor 0".to_owned(),
        ]);
        if options.tls.is_some() {
            options.extra.push("tls-cluster yes".to_owned());
        }
        match RedisServer::start(options) {
            Ok(server) => return Ok(server),
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("no node was tried")?)
}
