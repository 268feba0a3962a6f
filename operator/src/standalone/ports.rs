//! Ports of the processes on this machine: found free before anything starts, and kept.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, bail};
use socket2::{Domain, Protocol, Socket, Type};

/// How many ports beyond those of the replicas an admin port is looked for.
const SPARE_PORTS: u16 = 100;

/// The ports that all processes share, held for as long as this lives.
#[derive(Debug)]
pub struct SharedPorts {
    /// Port of WebSocket, HTTP and the page.
    pub http: u16,
    /// Port of gRPC.
    pub grpc: u16,
    _held: [Socket; 2],
}

/// What was asked for on the command line. Port 0: any free one.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Address to bind.
    pub bind: IpAddr,
    /// `--http-port`.
    pub http: u16,
    /// `--grpc-port`.
    pub grpc: u16,
    /// `--admin-port`, of the first process.
    pub admin: u16,
}

impl Wanted {
    /// Takes the shared ports, and makes sure that the admin ports of so many processes are free.
    ///
    /// # Errors
    /// Where a port is in use; the message names it and its flag.
    pub fn take(&self, processes: usize) -> anyhow::Result<SharedPorts> {
        let flags = [("--http-port", self.http), ("--grpc-port", self.grpc), ("--admin-port", self.admin)];
        for (index, (flag, port)) in flags.iter().enumerate() {
            if let Some((other, _)) = flags[..index].iter().find(|(_, taken)| *port != 0 && taken == port) {
                bail!("{other} and {flag} are both {port}; give each its own port");
            }
        }
        let count = if self.admin == 0 { 0 } else { u16::try_from(processes).unwrap_or(u16::MAX) };
        for port in (self.admin..=u16::MAX).take(usize::from(count)) {
            probe(self.bind, port, "--admin-port")?;
        }
        let (http, held_http) = hold(self.bind, self.http, "--http-port")?;
        let (grpc, held_grpc) = hold(self.bind, self.grpc, "--grpc-port")?;
        Ok(SharedPorts { http, grpc, _held: [held_http, held_grpc] })
    }

    /// An admin port for one more process: the first free one from `--admin-port` on, or any.
    ///
    /// # Errors
    /// Where none is free.
    pub fn admin_port(&self, used: &BTreeSet<u16>, shared: &SharedPorts, processes: usize) -> anyhow::Result<u16> {
        if self.admin == 0 {
            return probe(self.bind, 0, "--admin-port");
        }
        let span = u16::try_from(processes).unwrap_or(u16::MAX).saturating_add(SPARE_PORTS);
        let last = self.admin.saturating_add(span);
        let mut free =
            (self.admin..=last).filter(|port| !used.contains(port) && ![shared.http, shared.grpc].contains(port));
        free.find(|port| probe(self.bind, *port, "--admin-port").is_ok())
            .with_context(|| format!("no free admin port from {} to {last}; give another --admin-port", self.admin))
    }
}

/// Finds out whether a port is free, and which one it is where any would do.
fn probe(bind: IpAddr, port: u16, flag: &str) -> anyhow::Result<u16> {
    let socket = socket(bind)?;
    // As the data plane itself does: connections that ended lately do not count.
    socket.set_reuse_address(true)?;
    listen(&socket, bind, port, flag)?;
    Ok(local_port(&socket)?)
}

/// Binds a shared port without listening: clients go to the processes that do, and no one else can take the port while they
/// come and go.
fn hold(bind: IpAddr, port: u16, flag: &str) -> anyhow::Result<(u16, Socket)> {
    // A port that others share would be shared with us too, and then clients go here and there: it must be free.
    let port = probe(bind, port, flag)?;
    let held = socket(bind)?;
    held.set_reuse_port(true)?;
    if held.bind(&SocketAddr::new(bind, port).into()).is_err() {
        // Connections of an earlier run may linger.
        held.set_reuse_address(true)?;
        held.bind(&SocketAddr::new(bind, port).into()).with_context(|| in_use(bind, port, flag))?;
    }
    Ok((port, held))
}

fn socket(bind: IpAddr) -> std::io::Result<Socket> {
    Socket::new(Domain::for_address(SocketAddr::new(bind, 0)), Type::STREAM, Some(Protocol::TCP))
}

fn listen(socket: &Socket, bind: IpAddr, port: u16, flag: &str) -> anyhow::Result<()> {
    let address = SocketAddr::new(bind, port);
    socket.bind(&address.into()).and_then(|()| socket.listen(1)).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AddrInUse {
            anyhow::anyhow!(in_use(bind, port, flag))
        } else {
            anyhow::anyhow!("cannot listen on {address} ({flag}): {error}")
        }
    })
}

fn local_port(socket: &Socket) -> std::io::Result<u16> {
    Ok(socket.local_addr()?.as_socket().map_or(0, |address| address.port()))
}

fn in_use(bind: IpAddr, port: u16, flag: &str) -> String {
    let address = SocketAddr::new(bind, port);
    format!("{address} is in use ({flag}); stop what uses it, or give another port: {flag} PORT (0 takes any free one)")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn wanted(http: u16, grpc: u16, admin: u16) -> Wanted {
        Wanted { bind: LOCAL, http, grpc, admin }
    }

    #[test]
    fn a_held_port_can_be_shared_but_not_taken() {
        let shared = wanted(0, 0, 0).take(1).expect("free ports");
        assert_ne!(shared.http, shared.grpc);
        let error = wanted(shared.http, 0, 0).take(1).expect_err("held");
        let expected = format!("127.0.0.1:{} is in use (--http-port)", shared.http);
        assert!(error.to_string().starts_with(&expected), "{error}");

        let listener = socket(LOCAL).expect("a socket");
        listener.set_reuse_port(true).expect("an option");
        listener.set_reuse_address(true).expect("an option");
        let address = SocketAddr::new(LOCAL, shared.http);
        listener.bind(&address.into()).expect("a process of ours may bind it");
        listener.listen(8).expect("and listen");
        std::net::TcpStream::connect(address).expect("clients reach the one that listens");
        assert!(wanted(shared.http, 0, 0).take(1).is_err(), "still not for others");
    }

    #[test]
    fn every_admin_port_is_looked_at() {
        let taken = std::net::TcpListener::bind((LOCAL, 0)).expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let error = wanted(0, 0, port).take(1).expect_err("in use");
        assert!(error.to_string().contains("--admin-port"), "{error}");
        let shared = wanted(0, 0, 0).take(1).expect("free ports");
        let next = wanted(0, 0, port).admin_port(&BTreeSet::new(), &shared, 1).expect("another");
        assert!(next > port);
    }

    #[test]
    fn one_port_for_two_things_is_refused() {
        let error = wanted(7, 8, 7).take(1).expect_err("twice");
        assert_eq!(error.to_string(), "--http-port and --admin-port are both 7; give each its own port");
    }
}
