//! A discrete-event simulation of a gateway in front of a model server without continuous batching.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use chatgateway_core::batch::{AskId, Batch, BatchLimits, BatchPolicy, BatchView, Batcher, CallId, Step, Take};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub policy: BatchPolicy,
    /// Calls at once that the gateway makes.
    pub max_concurrent: usize,
    /// Calls at once that the model server does; more wait in it, first come, first served.
    pub workers: usize,
    /// How much the times of calls vary: each is multiplied by a number between 1 - this and 1 + this.
    pub jitter: f64,
    /// Asks a second, coming independently of each other.
    pub rate: f64,
    pub asks: usize,
    pub seed: u64,
}

/// What came of it. Times in ms.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// From each ask to its first token.
    pub first_tokens: Vec<f64>,
    /// Asks answered a second.
    pub throughput: f64,
    pub refused: usize,
    pub view: BatchView,
}

impl Outcome {
    pub fn percentile(&self, percent: f64) -> f64 {
        let mut sorted = self.first_tokens.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
        sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::INFINITY)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ask,
    FirstTokens(CallId),
    End(CallId),
    Timer,
}

struct Sim {
    world: World,
    rng: StdRng,
    start: Instant,
    now: Instant,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    next_event: u64,
    batcher: Batcher<usize, ()>,
    places: usize,
    held: bool,
    came: HashMap<AskId, Instant>,
    running: HashMap<CallId, Vec<AskId>>,
    /// Calls inside the server that wait for a worker.
    line: VecDeque<CallId>,
    busy: usize,
    outcome: Outcome,
    asked: usize,
}

/// Runs a world until its asks are answered.
pub fn run(world: World) -> Outcome {
    let start = Instant::now();
    let limits =
        BatchLimits { max_concurrent: world.max_concurrent, max_queued: 100_000, timeout: Duration::from_secs(3_600) };
    let batcher = Batcher::new(world.policy, limits);
    let mut sim = Sim {
        world,
        rng: StdRng::seed_from_u64(world.seed),
        start,
        now: start,
        events: BinaryHeap::new(),
        next_event: 0,
        places: world.max_concurrent,
        held: false,
        came: HashMap::new(),
        running: HashMap::new(),
        line: VecDeque::new(),
        busy: 0,
        outcome: Outcome { first_tokens: Vec::new(), throughput: 0.0, refused: 0, view: batcher.view() },
        asked: 0,
        batcher,
    };
    sim.at(Duration::ZERO, Event::Ask);
    while let Some(Reverse((at, _, event))) = sim.events.pop() {
        sim.now = at;
        sim.happens(event);
    }
    sim.outcome.throughput = sim.outcome.first_tokens.len() as f64 / (sim.now - sim.start).as_secs_f64();
    sim.outcome.view = sim.batcher.view();
    sim.outcome
}

impl Sim {
    fn at(&mut self, delay: Duration, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((self.now + delay, self.next_event, event)));
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Ask => self.ask(),
            Event::FirstTokens(call) => {
                for ask in self.running.get(&call).cloned().unwrap_or_default() {
                    self.batcher.first_token(call, ask, self.now);
                    let came = self.came.remove(&ask).expect("it came");
                    self.outcome.first_tokens.push((self.now - came).as_secs_f64() * 1_000.0);
                }
            }
            Event::End(call) => {
                self.running.remove(&call);
                self.batcher.ended(call);
                self.places += 1;
                self.busy -= 1;
                if let Some(next) = self.line.pop_front() {
                    self.work(next);
                }
            }
            Event::Timer => {}
        }
        self.pump();
    }

    fn ask(&mut self) {
        self.asked += 1;
        let session = self.asked;
        match self.batcher.ask(&session, &(), self.now) {
            Ok(taken) => drop(self.came.insert(taken.ask, self.now)),
            Err(_) => self.outcome.refused += 1,
        }
        if self.asked < self.world.asks {
            let gap = -self.rng.random::<f64>().max(1e-12).ln() / self.world.rate;
            self.at(Duration::from_secs_f64(gap), Event::Ask);
        }
    }

    /// Does what the batcher wants, as the shell does.
    fn pump(&mut self) {
        loop {
            if !self.held {
                match self.batcher.step(self.now) {
                    Step::Idle | Step::Wait(None) => return,
                    Step::Wait(Some(until)) => return self.at(until.saturating_duration_since(self.now), Event::Timer),
                    Step::Place if self.places == 0 => return,
                    Step::Place => self.places -= 1,
                }
                self.held = true;
            }
            match self.batcher.take(self.places, self.now) {
                Take::Hold(until) => return self.at(until.saturating_duration_since(self.now), Event::Timer),
                Take::Nothing => self.places += 1,
                Take::Send(Batch { call, asks, .. }) => {
                    self.running.insert(call, asks);
                    if self.busy < self.world.workers { self.work(call) } else { self.line.push_back(call) }
                }
            }
            self.held = false;
        }
    }

    /// A call alone has its first token after 80 ms and ends after 200; a batch of four after 140 and 348.
    fn work(&mut self, call: CallId) {
        self.busy += 1;
        let extra = (self.running[&call].len() - 1) as f64;
        let jitter = 1.0 + self.world.jitter * (2.0 * self.rng.random::<f64>() - 1.0);
        let ms = |ms: f64| Duration::from_secs_f64(ms * jitter / 1_000.0);
        self.at(ms(80.0 + 20.0 * extra), Event::FirstTokens(call));
        self.at(ms(200.0 + 148.0 / 3.0 * extra), Event::End(call));
    }
}
