//! What pods and their clients do with what they are told.

use std::{sync::Arc, time::Duration};

use chatgateway_core::{
    error::ErrorCode,
    log::{
        BeginReply, Entry, EntryKind, Link, Owner, OwnerConfig, OwnerEffect, OwnerInput, Ownership, ReaderEffect,
        ReaderInput, Reply, Request, Unknown, Usage,
    },
};

use crate::{
    reader::Wants,
    rules::Rule,
    world::{By, Flight, Kind, Runner, Speech, World},
};

impl World {
    pub fn begun(
        &mut self,
        turn: usize,
        request: &Request,
        pod: usize,
        connection: u64,
        result: Result<Reply, Unknown>,
    ) {
        let Ok(reply) = result else {
            // The pod sends the very same request again, or the client gives up on it and sends its own.
            if self.random.chance(70) {
                return self.call_again(pod, By::Begin(turn), request.clone());
            }
            self.senders[turn].outstanding -= 1;
            return;
        };
        self.senders[turn].outstanding -= 1;
        match reply {
            Reply::Begin(BeginReply::Owner { own, from }) => {
                self.senders[turn].accepted = true;
                if self.random.chance(30) {
                    let reader = self.random.below(self.clients.len());
                    let now = self.now;
                    self.clients[reader].attach(pod, from, now);
                }
                self.start_owner(pod, connection, own);
            }
            Reply::Begin(BeginReply::Queued { lease_left_ms, .. }) => {
                self.senders[turn].accepted = true;
                if lease_left_ms == 0 {
                    self.claim(pod);
                }
            }
            Reply::Begin(BeginReply::Known(_) | BeginReply::Gone) => self.senders[turn].accepted = true,
            other => self.fail(format!("a turn that is as it should be gets {other:?}")),
        }
    }

    pub fn start_owner(&mut self, pod: usize, connection: u64, own: Ownership) {
        self.keys += 1;
        let key = self.keys;
        let config = OwnerConfig {
            pod: self.pods[pod].id,
            terms: self.terms,
            prefill: self.prefill,
            turn_deadline: Duration::from_secs(120),
        };
        let present = self.pods[pod].connection;
        let link = match self.without {
            Some(Rule::CheckAfterReconnect) => Link { connection: 0, verified: true },
            Some(Rule::OldRepliesVerifyNothing) => Link { connection: present, verified: true },
            _ => Link { connection: present, verified: connection == present },
        };
        let mut out = Vec::new();
        let owner = Owner::new(own, config, link, self.random.number(), self.now, &mut out);
        self.pods[pod].runners.push(Runner { key, owner, speech: None });
        self.owner_effects(pod, key, out);
    }

    pub fn tell_owner(&mut self, pod: usize, runner: usize, input: OwnerInput) {
        let mut out = Vec::new();
        let runner = &mut self.pods[pod].runners[runner];
        let key = runner.key;
        runner.owner.handle(input, self.now, &mut out);
        self.owner_effects(pod, key, out);
    }

    fn owner_effects(&mut self, pod: usize, key: u64, effects: Vec<OwnerEffect>) {
        for effect in effects {
            let Some(at) = self.pods[pod].runners.iter().position(|runner| runner.key == key) else { return };
            match effect {
                OwnerEffect::Call(request) => {
                    if self.flights.iter().any(|flight| matches!(flight.by, By::Owner(by) | By::Look(by) if by == key))
                    {
                        self.fail("an owner has two calls outstanding");
                    }
                    if self.without == Some(Rule::CommitThenDeliver)
                        && let Request::Append(entry) = &request
                    {
                        self.deliver(entry);
                    }
                    self.call(pod, By::Owner(key), request);
                }
                OwnerEffect::Look(check) => {
                    if !matches!(self.flights.last(), Some(Flight { by: By::Owner(by), request: Request::Append(_), .. }) if *by == key)
                    {
                        self.fail("an owner looks, and not behind an append");
                    }
                    self.outcome.looks += 1;
                    self.call(pod, By::Look(key), Request::Check(check));
                }
                OwnerEffect::Deliver(entry) => {
                    let early = self.without == Some(Rule::CommitThenDeliver);
                    if !early || !matches!(entry.kind, EntryKind::Delta { .. }) {
                        self.deliver(&entry);
                    }
                }
                OwnerEffect::Reread => {
                    (0..self.clients.len()).for_each(|i| self.tell_reader(i, ReaderInput::Suspect));
                }
                OwnerEffect::Ask { prefix, .. } => {
                    self.asks += 1;
                    self.outcome.continued += usize::from(prefix.is_some());
                    let next = prefix.map_or(0, |text| text.split_whitespace().count());
                    self.pods[pod].runners[at].speech = Some(Speech { ask: self.asks, next, paused: false });
                }
                OwnerEffect::StopUpstream => self.pods[pod].runners[at].speech = None,
                OwnerEffect::PauseUpstream | OwnerEffect::ResumeUpstream => {
                    if let Some(speech) = &mut self.pods[pod].runners[at].speech {
                        speech.paused = effect == OwnerEffect::PauseUpstream;
                    }
                }
                OwnerEffect::Released(why) => {
                    self.note(|| format!("pod {pod} releases the session: {why:?}"));
                    self.pods[pod].runners.remove(at);
                }
            }
        }
    }

    fn deliver(&mut self, entry: &Arc<Entry>) {
        let entry = self.store.as_written(entry);
        self.note(|| format!("delivered: {} {:?}", entry.id, entry.kind));
        self.clients.iter_mut().for_each(|client| client.live.push_back(Arc::clone(&entry)));
    }

    /// The model says the next tokens, each told apart by the request and its place: `request.place`.
    pub fn speak(&mut self, pod: usize, r: usize) {
        let Some(speech) = &mut self.pods[pod].runners[r].speech else { return };
        let upto = (speech.next + 1 + self.random.below(2)).min(self.tokens);
        let text: String = (speech.next..upto).map(|k| format!("{}.{k} ", speech.ask)).collect();
        let fails = self.random.below(100) == 0;
        let breaks_off = self.random.below(20) == 0;
        let again = self.random.below(4) != 0;
        let input = if breaks_off {
            self.pods[pod].runners[r].speech = None;
            OwnerInput::UpstreamFailed { code: ErrorCode::UpstreamUnavailable, message: "broke off".into(), again }
        } else if speech.next < self.tokens {
            speech.next = upto;
            OwnerInput::Text(text)
        } else {
            self.pods[pod].runners[r].speech = None;
            if fails {
                let code = ErrorCode::UpstreamUnavailable;
                OwnerInput::UpstreamFailed { code, message: "gone".into(), again }
            } else {
                OwnerInput::UpstreamEnd { finish_reason: "stop".into(), usage: Usage::default() }
            }
        };
        self.tell_owner(pod, r, input);
    }

    pub fn tell_reader(&mut self, i: usize, input: ReaderInput) {
        let mut out = Vec::new();
        if self.without == Some(Rule::ReadersCheckTheChain) && self.clients[i].reader.is_some() {
            self.clients[i].handle_carelessly(input, &mut out);
        } else {
            let now = self.now;
            self.clients[i].handle(input, now, &mut out);
        }
        self.reader_effects(i, out);
    }

    pub fn reader_effects(&mut self, i: usize, effects: Vec<ReaderEffect>) {
        for effect in effects {
            let pod = self.clients[i].pod;
            match effect {
                ReaderEffect::Read { after, count } => {
                    let by = By::Read(i, self.clients[i].generation);
                    if self.without != Some(Rule::ReadersCheckTheChain) && self.flights.iter().any(|f| f.by == by) {
                        self.fail("a reader has two reads outstanding");
                    }
                    self.call(pod, by, Request::Read { after, count: count.min(3) });
                }
                ReaderEffect::Resumed { position } => {
                    if position != self.clients[i].position {
                        self.fail("a reader resumes elsewhere than it stands");
                    }
                }
                ReaderEffect::Entry(entry) => self.take(i, entry),
                ReaderEffect::NotRecovered | ReaderEffect::Slow => self.told(i),
                ReaderEffect::Gone => {
                    if !self.lost {
                        self.fail("a reader is told that its session is gone, and it is not");
                    }
                    self.told(i);
                }
                ReaderEffect::OwnerSilent { lease_over } => {
                    if self.without == Some(Rule::ReadersWaitForTheRepair) && !lease_over {
                        self.told(i);
                    } else if lease_over {
                        self.claim(pod);
                    } else if let Some(p) = self.pods.iter().position(|p| Some(p.id) == self.store.owner()) {
                        (0..self.pods[p].runners.len()).rev().for_each(|r| self.tell_owner(p, r, OwnerInput::Cancel));
                    }
                }
            }
        }
    }

    fn told(&mut self, i: usize) {
        self.note(|| format!("reader {i} is told of a loss at {}", self.clients[i].position));
        let client = &mut self.clients[i];
        client.reader = None;
        client.live.clear();
        client.wants = Wants::Snapshot;
        client.told += 1;
        self.outcome.told += 1;
        if client.told > 15 {
            self.fail("a reader is told of a loss again and again");
        }
        if !self.lost && self.kind != Kind::Trim {
            self.fail("a reader is told of a loss, and nothing was lost");
        }
    }
}
