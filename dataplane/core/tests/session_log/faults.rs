//! What goes wrong.

use chatgateway_core::log::{Leave, OwnerInput, ReaderInput, Reply, Request, StoreTime, Unknown};

use crate::{
    rules::Rule,
    world::{By, Kind, World},
};

impl World {
    /// One random fault of those that this kind of run has.
    pub fn fault(&mut self) {
        let special = self.kind != Kind::Network && self.random.chance(35);
        match self.kind {
            Kind::Cancel if special => self.cancel(),
            Kind::Delete if special => {
                self.lost = true;
                let pod = self.random.below(self.pods.len());
                self.call(pod, By::Client, Request::Delete);
                (0..self.clients.len()).for_each(|i| self.tell_reader(i, ReaderInput::Suspect));
            }
            Kind::Expire if special => {
                self.note(|| "all keys expire".into());
                self.lost = true;
                self.store.slot = None;
            }
            Kind::Evict if special => {
                self.note(|| "the log is lost".into());
                self.lost = true;
                if let Some(session) = self.store.slot.as_mut() {
                    session.log = None;
                }
            }
            Kind::Failover | Kind::Proxy if special || self.kind == Kind::Proxy && self.random.chance(50) => {
                self.fail_over();
            }
            _ => self.network_fault(),
        }
    }

    fn cancel(&mut self) {
        let pod = self.random.below(self.pods.len());
        let turn = self.senders[self.random.below(self.senders.len())].turn.clone();
        self.call(pod, By::Client, Request::Cancel { turn });
        if self.random.chance(50) {
            self.hint();
        }
    }

    /// A notice reaches some owner; it may be late, or about nothing.
    fn hint(&mut self) {
        let pod = self.random.below(self.pods.len());
        (0..self.pods[pod].runners.len()).rev().for_each(|r| self.tell_owner(pod, r, OwnerInput::Cancel));
    }

    fn network_fault(&mut self) {
        let pod = self.random.below(self.pods.len());
        let reader = self.random.below(self.clients.len());
        match self.random.below(11) {
            0 if self.kind != Kind::Proxy => self.crash(pod),
            1 if self.kind != Kind::Proxy => self.reconnect(pod, true),
            2 => {
                self.note(|| "the lease ends early".into());
                let now = self.store.clock_us;
                if let Some(session) = self.store.slot.as_mut() {
                    session.root.lease_until = StoreTime(now);
                }
            }
            3 => {
                let leave = if self.random.chance(50) { Leave::Now } else { Leave::AfterThisTurn };
                self.note(|| format!("pod {pod} drains: {leave:?}"));
                (0..self.pods[pod].runners.len()).rev().for_each(|r| self.tell_owner(pod, r, OwnerInput::Drain(leave)));
            }
            4 => {
                self.clients[reader].live.clear();
                self.tell_reader(reader, ReaderInput::Overflow);
            }
            5 => self.clients[reader].disconnect(pod),
            6 => self.hint(),
            _ => self.flight_fault(),
        }
    }

    /// Something happens to one request that is on its way.
    fn flight_fault(&mut self) {
        let hit: Vec<_> = (0..self.flights.len()).filter(|i| self.flights[*i].by != By::Client).collect();
        if hit.is_empty() {
            return;
        }
        let i = hit[self.random.below(hit.len())];
        let (choice, proxy) = (self.random.below(4), self.kind == Kind::Proxy);
        let flight = &mut self.flights[i];
        let writes = !matches!(flight.request, Request::Read { .. } | Request::Snapshot);
        if flight.result.is_none() {
            match (choice, &flight.request) {
                // Full memory, a server that is loading, …: no, and no more is known.
                (0, Request::Append(_)) => flight.result = Some(Ok(Reply::Append(false))),
                (1, request) if writes && !proxy => {
                    self.late.push((self.pods[flight.pod].id, request.clone()));
                    flight.result = Some(Err(Unknown));
                }
                _ => flight.result = Some(Err(Unknown)),
            }
        } else {
            flight.result = Some(Err(Unknown));
        }
        self.note(|| format!("lost, or its reply is: {:?}", self.flights[i].request));
    }

    /// The process is gone with all it knew; another one is in its place.
    fn crash(&mut self, pod: usize) {
        self.note(|| format!("pod {pod} crashes"));
        let id = self.pods[pod].id;
        for flight in std::mem::take(&mut self.flights) {
            if flight.pod != pod {
                self.flights.push(flight);
                continue;
            }
            if let By::Begin(turn) = flight.by {
                self.senders[turn].outstanding -= 1;
            }
            if flight.result.is_none() && self.random.chance(50) && flight.by != By::Client {
                self.late.push((id, flight.request));
            }
        }
        self.store.unwritten.retain(|(by, _)| *by != id);
        self.store.releases.retain(|by| *by != id);
        self.pods[pod] = self.new_pod();
        for i in 0..self.clients.len() {
            if self.clients[i].pod == pod {
                let other = self.random.below(self.pods.len());
                self.clients[i].disconnect(other);
            }
        }
    }

    /// The pod's connection to the store is cut, and there is a new one.
    fn reconnect(&mut self, pod: usize, late: bool) {
        self.note(|| format!("pod {pod} has a new connection"));
        self.pods[pod].connection += 1;
        for i in 0..self.flights.len() {
            if self.flights[i].pod != pod || self.flights[i].by == By::Client {
                continue;
            }
            let luck = self.random.chance(50);
            let flight = &mut self.flights[i];
            if flight.result.is_none() {
                if luck && late {
                    self.late.push((self.pods[pod].id, flight.request.clone()));
                }
                flight.result = Some(Err(Unknown));
            } else if luck {
                flight.result = Some(Err(Unknown));
            }
        }
        if self.without != Some(Rule::CheckAfterReconnect) {
            let connection = self.pods[pod].connection;
            (0..self.pods[pod].runners.len())
                .rev()
                .for_each(|r| self.tell_owner(pod, r, OwnerInput::Connection(connection)));
        }
        for i in 0..self.clients.len() {
            if self.clients[i].pod == pod {
                self.clients[i].live.clear();
                self.tell_reader(i, ReaderInput::Suspect);
            }
        }
    }

    /// The replica falls behind; later it is the store.
    fn fail_over(&mut self) {
        let Some(behind) = self.replica.take() else {
            self.note(|| "the replica falls behind".into());
            self.replica = Some(self.store.slot.clone());
            // There is a point in it only if a failover follows.
            self.faults_left += 1;
            return;
        };
        self.note(|| "failover".into());
        self.lost = true;
        self.store.slot = behind;
        if self.random.chance(50) {
            self.store.clock_us -= self.random.below(3_000_000) as u64;
        }
        if self.kind != Kind::Proxy {
            self.late.clear();
            (0..self.pods.len()).for_each(|pod| self.reconnect(pod, false));
        }
    }
}
