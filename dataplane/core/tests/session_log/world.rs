//! The world of one run: pods, clients, requests on their way, and a random choice of what happens next.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chatgateway_core::log::{
    Begin, Claim, ClaimReason, ClaimReply, EntryId, Nonce, Owner, OwnerInput, PodId, ReaderInput, Reply, Request,
    Terms, TurnBody, TurnId, Unknown,
};

use crate::{
    random::Random,
    reader::{Client, Wants},
    rules::Rule,
    store::Store,
};

/// What can go wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Crashes, drains, lost connections, requests and replies, late copies, refused appends, leases that end early.
    Network,
    /// That, and clients cancel.
    Cancel,
    /// That, and the log keeps only the last turn.
    Trim,
    /// That, and the session is deleted.
    Delete,
    /// That, and all keys of the session expire.
    Expire,
    /// That, and the log is lost alone.
    Evict,
    /// That, and the store loses what it last took.
    Failover,
    /// The store loses what it last took, and nobody notices: a proxy keeps the connections.
    Proxy,
}

impl Kind {
    /// Whether the store loses anything in such a run.
    pub fn loses(self) -> bool {
        matches!(self, Self::Delete | Self::Expire | Self::Evict | Self::Failover | Self::Proxy)
    }
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    pub steps: usize,
    pub done: usize,
    pub cancelled: usize,
    pub takeovers: usize,
    pub resets: usize,
    pub continued: usize,
    pub told: usize,
    pub looks: usize,
}

/// Who waits for a reply.
#[derive(Clone, Debug, PartialEq)]
pub enum By {
    Owner(u64),
    /// An owner, of the check behind its append.
    Look(u64),
    Begin(usize),
    Claim,
    Read(usize, u64),
    Snapshot(usize, u64),
    Client,
}

/// A request, or its reply, on its way.
pub struct Flight {
    pub pod: usize,
    pub by: By,
    pub request: Request,
    pub connection: u64,
    pub result: Option<Result<Reply, Unknown>>,
    /// The first of two steps is done (only without [`Rule::AcceptIsOneStep`]).
    pub looked: bool,
}

/// The model's answer to one turn, being spoken.
pub struct Speech {
    pub ask: usize,
    pub next: usize,
    pub paused: bool,
}

pub struct Runner {
    pub key: u64,
    pub owner: Owner,
    pub speech: Option<Speech>,
}

pub struct Pod {
    pub id: PodId,
    pub connection: u64,
    pub runners: Vec<Runner>,
}

/// A turn that a client sends.
pub struct Sender {
    pub turn: TurnId,
    pub outstanding: usize,
    pub sends_left: usize,
    pub accepted: bool,
}

/// What may happen next.
enum Act {
    Execute(usize),
    Receive(usize),
    Late(usize),
    Send(usize),
    Speak(usize, usize),
    WakeOwner(usize, usize),
    WakeReader(usize),
    Hear(usize),
    Resume(usize),
    TakeSnapshot(usize),
    Sweep(usize),
    WriteHistory(usize),
    Release(usize),
}

pub struct World {
    pub kind: Kind,
    pub without: Option<Rule>,
    pub random: Random,
    pub now: Instant,
    pub store: Store,
    /// What the replica has, from the moment it falls behind.
    pub replica: Option<Option<chatgateway_core::log::store::SessionState>>,
    pub pods: Vec<Pod>,
    pub clients: Vec<Client>,
    pub senders: Vec<Sender>,
    pub flights: Vec<Flight>,
    pub late: Vec<(PodId, Request)>,
    pub faults_left: usize,
    /// The store has forgotten something it had taken.
    pub lost: bool,
    pub prefill: bool,
    pub tokens: usize,
    pub terms: Terms,
    pub failure: Option<String>,
    pub outcome: Outcome,
    pub keys: u64,
    pub asks: usize,
    trace: bool,
}

impl World {
    pub fn new(kind: Kind, without: Option<Rule>, seed: u64, trace: bool) -> Self {
        let mut random = Random::new(seed);
        let keep_turns = if kind == Kind::Trim { 1 } else { 40 };
        let turns = 1 + random.below(if kind == Kind::Trim { 5 } else { 3 });
        let sender = |i| Sender {
            turn: TurnId::parse(&format!("t{i}")).unwrap(),
            outstanding: 0,
            sends_left: 2,
            accepted: false,
        };
        let mut world = Self {
            kind,
            without,
            now: Instant::now(),
            store: Store::new(without),
            replica: None,
            pods: Vec::new(),
            clients: (0..3).map(|i| Client::new(i % 2)).collect(),
            senders: (0..turns).map(sender).collect(),
            flights: Vec::new(),
            late: Vec::new(),
            faults_left: random.below(9),
            lost: false,
            prefill: random.chance(50),
            tokens: 1 + random.below(8),
            terms: Terms { ttl_ms: 900_000, lease_ms: 4_000, keep_turns },
            failure: None,
            outcome: Outcome::default(),
            keys: 0,
            asks: 0,
            trace,
            random,
        };
        world.pods = (0..2).map(|_| world.new_pod()).collect();
        world
    }

    pub fn new_pod(&mut self) -> Pod {
        let id = PodId(u128::from(self.random.number()));
        Pod { id, connection: self.random.number() % 1_000, runners: Vec::new() }
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>5} {}", self.outcome.steps, what());
        }
    }

    pub fn fail(&mut self, why: impl Into<String>) {
        self.failure.get_or_insert(why.into());
    }

    /// Runs until everything has come to rest.
    pub fn run(mut self) -> Result<Outcome, String> {
        let mut suspected = false;
        let mut waits = 0;
        loop {
            self.outcome.steps += 1;
            let moment = self.random.below(4_000) as u64;
            self.pass(Duration::from_micros(moment));
            let acts = self.acts();
            if self.faults_left > 0 && self.random.chance(8) {
                self.faults_left -= 1;
                self.fault();
            } else if acts.is_empty() || self.random.chance(1) {
                if acts.is_empty() && self.at_rest() {
                    if suspected || !self.kind.loses() {
                        break;
                    }
                    // Whoever reads an idle session is not told of a loss before the next entry, or a new connection.
                    suspected = true;
                    self.faults_left = 0;
                    (0..self.clients.len()).for_each(|i| self.tell_reader(i, ReaderInput::Suspect));
                } else {
                    waits += 1;
                    self.wait();
                }
            } else if !acts.is_empty() {
                let act = self.random.below(acts.len());
                self.act(&acts[act]);
            }
            if self.outcome.steps > 20_000 || waits > 2_000 {
                self.fail("it does not come to rest: a turn or a reader waits for ever");
            }
            if let Some(why) = self.failure.take().or_else(|| self.store.failure.take()) {
                return Err(why);
            }
        }
        self.check_rest();
        match self.failure {
            Some(why) => Err(why),
            None => Ok(self.outcome),
        }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.store.clock_us += time.as_micros() as u64;
    }

    /// Lets time pass until somebody wants to be woken.
    fn wait(&mut self) {
        let owners = self.pods.iter().flat_map(|pod| &pod.runners).filter_map(|runner| runner.owner.timeout());
        let readers = self.clients.iter().filter_map(|client| client.reader.as_ref()?.timeout());
        let next = owners.chain(readers).min().unwrap_or(self.now + Duration::from_secs(1));
        let next = next.clamp(self.now, self.now + Duration::from_secs(1));
        self.pass(next - self.now + Duration::from_micros(1));
    }

    fn at_rest(&self) -> bool {
        let reading = |client: &Client| client.reader.as_ref().is_none_or(|reader| reader.timeout().is_none());
        !self.store.unfinished()
            && self.store.owner().is_none()
            && self.pods.iter().all(|pod| pod.runners.is_empty())
            && self.senders.iter().all(|sender| sender.accepted)
            && self.clients.iter().all(reading)
    }

    fn acts(&self) -> Vec<Act> {
        let mut acts = Vec::new();
        for (i, flight) in self.flights.iter().enumerate() {
            if !self.waits_for_its_append(flight) {
                acts.push(if flight.result.is_some() { Act::Receive(i) } else { Act::Execute(i) });
            }
        }
        acts.extend((0..self.late.len()).map(Act::Late));
        for (i, sender) in self.senders.iter().enumerate() {
            let wants = if sender.accepted { sender.sends_left > 0 && self.faults_left > 0 } else { true };
            if wants && sender.outstanding < 2 && (sender.sends_left > 0 || sender.outstanding == 0) {
                acts.push(Act::Send(i));
            }
        }
        for (p, pod) in self.pods.iter().enumerate() {
            for (r, runner) in pod.runners.iter().enumerate() {
                if runner.speech.as_ref().is_some_and(|speech| !speech.paused) {
                    acts.push(Act::Speak(p, r));
                }
                if runner.owner.timeout().is_some_and(|at| at <= self.now) {
                    acts.push(Act::WakeOwner(p, r));
                }
            }
            if self.store.lease_over() && self.looks_for_leases() && !self.claims(p) {
                acts.push(Act::Sweep(p));
            }
        }
        for (i, client) in self.clients.iter().enumerate() {
            match (client.wants, &client.reader) {
                (Wants::Resume, _) => acts.push(Act::Resume(i)),
                (Wants::Snapshot, _) if !self.flights.iter().any(|f| f.by == By::Snapshot(i, client.generation)) => {
                    acts.push(Act::TakeSnapshot(i));
                }
                (Wants::Nothing, Some(reader)) => {
                    if !client.live.is_empty() {
                        acts.push(Act::Hear(i));
                    }
                    if reader.timeout().is_some_and(|at| at <= self.now) {
                        acts.push(Act::WakeReader(i));
                    }
                }
                _ => {}
            }
        }
        acts.extend((0..self.store.unwritten.len()).map(Act::WriteHistory));
        acts.extend((0..self.store.releases.len()).map(Act::Release));
        acts
    }

    /// Whether it is a check that is carried out after the append it was sent behind, and told of after it.
    fn waits_for_its_append(&self, flight: &Flight) -> bool {
        let By::Look(key) = flight.by else { return false };
        let append = self.flights.iter().find(|other| other.by == By::Owner(key));
        append.is_some_and(|append| append.result.is_none() || flight.result.is_some())
    }

    fn looks_for_leases(&self) -> bool {
        self.without != Some(Rule::EndedLeasesAreClaimed)
    }

    fn claims(&self, pod: usize) -> bool {
        self.flights.iter().any(|flight| flight.pod == pod && flight.by == By::Claim)
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Execute(i) => self.execute(i),
            Act::Receive(i) => self.receive(i),
            Act::Late(i) => {
                let (pod, request) = self.late.swap_remove(i);
                self.note(|| format!("a late copy arrives: {request:?}"));
                self.store.execute(pod, &request);
                self.check_store();
            }
            Act::Send(i) => {
                let pod = self.random.below(self.pods.len());
                self.send_turn(i, pod);
            }
            Act::Speak(p, r) => self.speak(p, r),
            Act::WakeOwner(p, r) => self.tell_owner(p, r, OwnerInput::Tick),
            Act::WakeReader(i) => self.tell_reader(i, ReaderInput::Tick),
            Act::Hear(i) => {
                if let Some(entry) = self.clients[i].live.pop_front() {
                    self.tell_reader(i, ReaderInput::Live(entry));
                }
            }
            Act::Resume(i) => {
                let mut out = Vec::new();
                self.note(|| format!("reader {i} resumes after {}", self.clients[i].position));
                let now = self.now;
                self.clients[i].resume(now, &mut out);
                self.reader_effects(i, out);
            }
            Act::TakeSnapshot(i) => {
                let client = &self.clients[i];
                self.call(client.pod, By::Snapshot(i, client.generation), Request::Snapshot);
            }
            Act::Sweep(p) => self.claim(p),
            Act::WriteHistory(i) => {
                let (_, row) = self.store.unwritten.swap_remove(i);
                if let Some(session) = self.store.slot.as_mut() {
                    session.history.push_back(row);
                }
            }
            Act::Release(i) => {
                let pod = self.store.releases.swap_remove(i);
                if let Some(root) = self.store.slot.as_mut().map(|s| &mut s.root).filter(|r| r.owner == Some(pod)) {
                    root.owner = None;
                }
            }
        }
    }

    pub fn call(&mut self, pod: usize, by: By, request: Request) {
        self.note(|| format!("pod {pod} sends {request:?}"));
        let connection = self.pods[pod].connection;
        self.flights.push(Flight { pod, by, request, connection, result: None, looked: false });
    }

    /// The same request once more.
    pub fn call_again(&mut self, pod: usize, by: By, request: Request) {
        let jump = (self.random.number() >> 44) as u32;
        self.call(pod, by, request.again(jump));
    }

    fn send_turn(&mut self, i: usize, pod: usize) {
        let sender = &mut self.senders[i];
        sender.outstanding += 1;
        sender.sends_left = sender.sends_left.saturating_sub(1);
        let text: Arc<str> = sender.turn.as_str().into();
        let begin = Begin {
            pod: self.pods[pod].id,
            nonce: Nonce(self.random.number()),
            turn: sender.turn.clone(),
            seq: None,
            body: Arc::new(TurnBody::new(text, "".into())),
            jump: (self.random.number() >> 44) as u32,
            terms: self.terms,
        };
        self.call(pod, By::Begin(i), Request::Begin(begin));
    }

    pub fn claim(&mut self, pod: usize) {
        if !self.looks_for_leases() || self.claims(pod) {
            return;
        }
        let claim = Claim {
            pod: self.pods[pod].id,
            nonce: Nonce(self.random.number()),
            why: ClaimReason::Expired,
            jump: (self.random.number() >> 44) as u32,
            terms: self.terms,
        };
        self.call(pod, By::Claim, Request::Claim(claim));
    }

    fn execute(&mut self, i: usize) {
        let flight = &mut self.flights[i];
        let pod = self.pods[flight.pod].id;
        if self.without == Some(Rule::AcceptIsOneStep)
            && let Request::Begin(begin) = &flight.request
        {
            let known = self.store.slot.as_ref().and_then(|s| s.state_of(&begin.turn)).is_some();
            if !known && !flight.looked {
                flight.looked = true;
                return;
            }
            if flight.looked
                && let Some(session) = self.store.slot.as_mut()
            {
                session.root.turns.remove(&begin.turn);
            }
        }
        let request = flight.request.clone();
        let reply = self.store.execute(pod, &request);
        self.note(|| format!("the store answers {reply:?}"));
        self.flights[i].result = Some(Ok(reply));
        self.check_store();
    }

    /// The connection that a pod takes an answer for having come over.
    fn as_heard(&self, pod: usize, connection: u64) -> u64 {
        match self.without {
            Some(Rule::CheckAfterReconnect) => 0,
            Some(Rule::OldRepliesVerifyNothing) => self.pods[pod].connection,
            _ => connection,
        }
    }

    fn receive(&mut self, i: usize) {
        let flight = self.flights.swap_remove(i);
        let (pod, connection) = (flight.pod, flight.connection);
        let Some(result) = flight.result else { return };
        match flight.by {
            By::Look(key) => {
                let connection = self.as_heard(pod, connection);
                if let Some(r) = self.pods[pod].runners.iter().position(|runner| runner.key == key) {
                    self.tell_owner(pod, r, OwnerInput::Looked { result, connection });
                }
            }
            By::Owner(key) => {
                let lost = result.is_err();
                if lost
                    && self.without == Some(Rule::RetryKeepsTheId)
                    && let Request::Append(entry) = &flight.request
                {
                    let id = EntryId::new(entry.id.epoch, entry.id.n + 1);
                    let again = Arc::new(chatgateway_core::log::Entry { id, ..(**entry).clone() });
                    return self.call(pod, By::Owner(key), Request::Append(again));
                }
                let connection = self.as_heard(pod, connection);
                if let Some(r) = self.pods[pod].runners.iter().position(|runner| runner.key == key) {
                    self.tell_owner(pod, r, OwnerInput::Reply { result, connection });
                }
            }
            By::Begin(turn) => self.begun(turn, &flight.request, pod, connection, result),
            By::Claim => match result {
                Ok(Reply::Claim(ClaimReply::Owner(own))) => self.start_owner(pod, connection, own),
                Ok(_) => {}
                Err(_) => self.call_again(pod, By::Claim, flight.request),
            },
            By::Read(reader, generation) => {
                if self.clients[reader].generation == generation {
                    let page = result.and_then(|reply| match reply {
                        Reply::Read(page) => Ok(page),
                        _ => Err(Unknown),
                    });
                    self.tell_reader(reader, ReaderInput::Page(page));
                }
            }
            By::Snapshot(reader, generation) => {
                let client = &mut self.clients[reader];
                if let (Ok(Reply::Snapshot(snapshot)), true) = (result, client.generation == generation) {
                    client.position = snapshot.position;
                    client.view.clear();
                    client.wants = Wants::Resume;
                }
            }
            By::Client => {}
        }
    }
}
