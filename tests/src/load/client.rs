//! A client: takes any pod, sends turns, loses connections, comes back, and writes down what it was told.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use chatgateway_core::log::EntryId;
use rand::{RngExt as _, rngs::StdRng};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    Mix, PodAddress, TurnPlan, World,
    wire::{self, Link, Posted, Streamed, Transport},
};
use crate::{
    client::Event,
    history::{Ending, Entry, Outcome, Record, ViewId, prompt},
};

/// Silence after which a client takes its connection for dead.
const SILENCE: Duration = Duration::from_secs(6);

/// How long a client waits for an answer that comes in one piece.
const WHOLE_ANSWER: Duration = Duration::from_secs(15);

/// First and longest pause before a client tries again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Who a client is.
pub struct Identity {
    /// Its number.
    pub id: u32,
    /// How it talks.
    pub transport: Transport,
    /// The session it talks in.
    pub session: Arc<str>,
    /// Which of the session's devices.
    pub device: u64,
    /// What its turns are like.
    pub mix: Mix,
    /// Its dice.
    pub rng: StdRng,
}

/// A client at work.
pub struct Client {
    who: Identity,
    world: World,
    view: ViewId,
    /// The last entry it was told.
    position: Option<EntryId>,
    link: Option<Link>,
    turns: u64,
}

/// A turn on its way.
struct Going {
    turn: Arc<str>,
    text: Arc<str>,
    plan: TurnPlan,
    attempts: u32,
    /// A send whose receipt has not come.
    outstanding: bool,
    accepted: bool,
    ended: bool,
    cancelled: bool,
    pieces: u32,
}

/// How it goes on.
enum Step {
    Ended,
    /// Once more, after a pause.
    Again,
    /// There is no use in trying.
    Hopeless,
}

impl Client {
    /// A client that has done nothing yet.
    pub fn new(who: Identity, world: World) -> Self {
        let view = world.next_view();
        Self { who, world, view, position: None, link: None, turns: 0 }
    }

    /// Sends turns until it is time to stop, and waits for the end of the last one.
    pub async fn run(mut self) {
        while Instant::now() < self.world.end().stop {
            let plan = TurnPlan::draw(&mut self.who.rng, &self.who.mix);
            sleep(plan.pause).await;
            let tally = self.world.tally.clone();
            tally.live.fetch_add(1, Relaxed);
            self.turn(plan).await;
            tally.live.fetch_sub(1, Relaxed);
        }
    }

    async fn turn(&mut self, plan: TurnPlan) {
        self.turns += 1;
        // Devices of one session never use the same number.
        let number = self.turns * 2 + self.who.device;
        let openai = self.who.transport == Transport::OpenAi;
        // A twin of another transport has another body.
        let plan = TurnPlan { fault: plan.fault && !openai, twin: plan.twin && !openai, ..plan };
        let mut going = Going {
            turn: format!("{}.t{number}", self.who.session).into(),
            text: plan.text(&self.who.session, number).into(),
            plan,
            attempts: 0,
            outstanding: false,
            accepted: false,
            ended: false,
            cancelled: false,
            pieces: 0,
        };
        let twin = going.plan.twin.then(|| self.twin(&going));
        let mut pause = BACKOFF.0;
        loop {
            if Instant::now() > self.world.end().give_up {
                if going.accepted {
                    let why = format!("{:?}, {} pieces", self.who.transport, going.pieces);
                    self.record(|client, session| Record::GaveUp { client, session, turn: going.turn.clone(), why });
                }
                break;
            }
            let before = going.pieces;
            let step = match self.who.transport {
                Transport::OpenAi => self.ask_openai(&mut going).await,
                Transport::PostSse => self.ask_post(&mut going).await,
                _ => self.converse(&mut going).await,
            };
            match step {
                Step::Ended | Step::Hopeless => break,
                Step::Again => {
                    if going.pieces > before {
                        pause = BACKOFF.0;
                    }
                    sleep(pause.mul_f64(self.who.rng.random_range(0.5..1.5))).await;
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
        if let Some(twin) = twin {
            drop(twin.await);
        }
    }

    fn record(&self, record: impl FnOnce(u32, Arc<str>) -> Record) {
        self.world.history.record(record(self.who.id, self.who.session.clone()));
    }

    fn choose(&mut self) -> PodAddress {
        self.world.pods.choose(self.who.rng.random_range(0..1_000))
    }

    /// Sends the same turn to another pod at the same time.
    fn twin(&mut self, going: &Going) -> JoinHandle<()> {
        let pod = self.choose();
        let (client, session) = (self.who.id, self.who.session.clone());
        let (turn, text) = (going.turn.clone(), going.text.clone());
        let history = self.world.history.clone();
        let sent =
            Record::Sent { client, session: session.clone(), turn: turn.clone(), text: text.clone(), attempt: 2 };
        history.record(sent);
        tokio::spawn(async move {
            let outcome = match timeout(SILENCE, wire::post_turn(pod, &session, &turn, &text)).await {
                Ok(Ok(Posted::Accepted(seq))) => Outcome::Accepted { seq },
                Ok(Ok(Posted::Refused(code))) => Outcome::Refused(code.into()),
                Ok(Err(_)) | Err(_) => Outcome::Unknown,
            };
            history.record(Record::Receipt { client, session, turn, outcome });
        })
    }

    fn sending(&self, going: &mut Going) {
        going.attempts += 1;
        going.outstanding = true;
        let (turn, text, attempt) = (going.turn.clone(), going.text.clone(), going.attempts);
        self.record(|client, session| Record::Sent { client, session, turn, text, attempt });
    }

    fn receipt(&self, going: &mut Going, outcome: Outcome) {
        if std::mem::take(&mut going.outstanding) {
            going.accepted |= matches!(outcome, Outcome::Accepted { .. });
            let turn = going.turn.clone();
            self.record(|client, session| Record::Receipt { client, session, turn, outcome });
        }
    }

    /// What a refusal means for the turn.
    fn refused(&self, going: &mut Going, code: &str) -> Step {
        self.receipt(going, Outcome::Refused(code.into()));
        match code {
            "session_busy" | "overloaded" | "draining" | "store_unavailable" => Step::Again,
            _ => Step::Hopeless,
        }
    }

    fn lose(&mut self, going: &mut Going, why: impl Into<String>) -> Step {
        self.receipt(going, Outcome::Unknown);
        if self.link.take().is_some() {
            let (view, why) = (self.view, why.into());
            self.record(|_, session| Record::Lost { view, session, why });
        }
        Step::Again
    }

    // Transports with a reader of the session.

    async fn converse(&mut self, going: &mut Going) -> Step {
        if self.link.is_none() {
            let connected = timeout(SILENCE, self.connect(going)).await;
            if !matches!(connected.map(|done| self.world.tally.note(done)), Ok(Ok(()))) {
                return Step::Again;
            }
            if going.ended {
                return Step::Ended;
            }
        }
        if !going.accepted
            && let Some(step) = self.send(going).await
        {
            return step;
        }
        loop {
            let Some(link) = &mut self.link else { return Step::Again };
            let event = match timeout(SILENCE, link.next()).await {
                Ok(Ok(event)) => event,
                Ok(Err(error)) => return self.lose(going, format!("{error:#}")),
                Err(_) => return self.lose(going, "silence"),
            };
            match self.take(going, &event) {
                Ok(None) => {}
                Ok(Some(step)) => return step,
                Err(error) => return self.lose(going, format!("{error:#}")),
            }
            if let Some(step) = self.act(going).await {
                return step;
            }
        }
    }

    async fn connect(&mut self, going: &mut Going) -> anyhow::Result<()> {
        let pod = self.choose();
        let duplex = matches!(self.who.transport, Transport::WebSocket | Transport::Grpc);
        if self.position.is_none() && !going.accepted && duplex && self.who.rng.random_bool(0.3) {
            // The send itself will attach it.
            self.link = Some(Link::connect(self.who.transport, pod).await?);
            let view = self.view;
            self.record(|_, session| Record::Attached { view, session });
            return Ok(());
        }
        let asked = self.position.unwrap_or(EntryId::ZERO);
        let (link, resumed) = Link::resume(self.who.transport, pod, &self.who.session, asked).await?;
        let (view, recovered, position) = (self.view, resumed.recovered, resumed.position);
        self.record(|_, session| Record::Resumed { view, session, asked, recovered, position });
        if recovered {
            self.position = Some(asked);
            self.link = link;
            return Ok(());
        }
        self.take_snapshot(going).await?;
        anyhow::bail!("the snapshot was taken")
    }

    async fn take_snapshot(&mut self, going: &mut Going) -> anyhow::Result<()> {
        let pod = self.choose();
        let taken = wire::snapshot(pod.http, &self.who.session).await?;
        // A session that is gone begins anew.
        let (position, turns) = taken.unwrap_or_default();
        let kept = turns.iter().find(|kept| kept.turn == going.turn);
        going.ended |= kept.is_some_and(|kept| kept.ending.is_some());
        // Nobody knows it there: it is sent again.
        going.accepted &= kept.is_some();
        self.position = Some(position);
        let view = self.view;
        self.record(|_, session| Record::Snapshot { view, session, position, turns });
        Ok(())
    }

    async fn send(&mut self, going: &mut Going) -> Option<Step> {
        self.sending(going);
        let (session, turn, text) = (self.who.session.clone(), going.turn.clone(), going.text.clone());
        match self.link.as_mut()?.send(&session, &turn, &text).await {
            Ok(true) => return None,
            Ok(false) => {}
            Err(error) => return Some(self.lose(going, format!("{error:#}"))),
        }
        let pod = self.choose();
        let posted = timeout(SILENCE, wire::post_turn(pod, &session, &turn, &text)).await;
        match posted.map(|done| self.world.tally.note(done)) {
            Ok(Ok(Posted::Accepted(seq))) => self.receipt(going, Outcome::Accepted { seq }),
            Ok(Ok(Posted::Refused(code))) => return Some(self.refused(going, &code)),
            Ok(Err(_)) | Err(_) => {
                self.receipt(going, Outcome::Unknown);
                return Some(Step::Again);
            }
        }
        None
    }

    /// Takes an event; says how to go on where that is not by waiting for the next one.
    fn take(&mut self, going: &mut Going, event: &Event) -> anyhow::Result<Option<Step>> {
        if let Some(entry) = Entry::of(event)? {
            return Ok(self.take_entry(going, entry));
        }
        let mine = event.field("turn") == &*going.turn;
        match event.kind() {
            "accepted" if mine => self.receipt(going, Outcome::Accepted { seq: event.0["seq"].as_u64() }),
            "error" if mine => {
                let code = event.field("code").to_owned();
                let step = self.refused(going, &code);
                if code == "draining" {
                    self.lose(going, "draining");
                }
                return Ok(Some(step));
            }
            "error" => return Ok(Some(self.lose(going, event.0.to_string()))),
            // Some leave at once, some stay until they are made to.
            "go_away" if self.who.rng.random_bool(0.5) => return Ok(Some(self.lose(going, "go_away"))),
            _ => {}
        }
        Ok(None)
    }

    fn take_entry(&mut self, going: &mut Going, entry: Entry) -> Option<Step> {
        self.position = Some(entry.id);
        let mine = entry.turn == going.turn;
        let ending = entry.kind.ending();
        let view = self.view;
        self.record(|_, session| Record::Seen { view, session, entry });
        if !mine {
            return None;
        }
        going.pieces += 1;
        going.ended = ending.is_some();
        if going.ended {
            // The receipt of a send may come after what it was for.
            self.receipt(going, Outcome::Unknown);
            return Some(Step::Ended);
        }
        None
    }

    /// Does what the plan says for now.
    async fn act(&mut self, going: &mut Going) -> Option<Step> {
        if going.accepted && going.plan.cancel_after.take_if(|after| going.pieces >= *after).is_some() {
            self.cancel(going).await;
        }
        going.plan.leave_after.take_if(|after| going.pieces > *after)?;
        Some(self.lose(going, "left"))
    }

    async fn cancel(&mut self, going: &mut Going) {
        let turn = going.turn.clone();
        self.record(|client, session| Record::CancelSent { client, session, turn });
        let (session, turn) = (self.who.session.clone(), going.turn.clone());
        let own = match &mut self.link {
            Some(link) => link.cancel(&session, &turn).await.unwrap_or(true),
            None => false,
        };
        if !own {
            let pod = self.choose();
            // Unheard, the turn just goes on.
            drop(timeout(SILENCE, wire::post_cancel(pod, &session, &turn)).await);
        }
    }

    // Transports that ask anew each time.

    async fn ask_post(&mut self, going: &mut Going) -> Step {
        if going.attempts == 0 {
            self.begin_view();
        }
        let pod = self.choose();
        self.sending(going);
        let opened = wire::post_stream(pod, &self.who.session, &going.turn, &going.text, self.position);
        let opened = timeout(SILENCE, opened).await.map(|done| self.world.tally.note(done));
        let (stream, position) = match opened {
            Ok(Ok(Streamed::Stream(stream, position))) => (stream, position),
            Ok(Ok(Streamed::Refused(_, true))) => {
                self.receipt(going, Outcome::Accepted { seq: None });
                return Step::Ended;
            }
            Ok(Ok(Streamed::Refused(code, false))) => return self.refused(going, &code),
            Ok(Ok(Streamed::Gone)) => {
                self.receipt(going, Outcome::Unknown);
                let (view, asked) = (self.view, self.position.unwrap_or(EntryId::ZERO));
                self.record(|_, session| Record::Resumed { view, session, asked, recovered: false, position: asked });
                self.begin_view();
                return Step::Again;
            }
            Ok(Err(_)) | Err(_) => {
                self.receipt(going, Outcome::Unknown);
                return Step::Again;
            }
        };
        if let Some(asked) = self.position {
            let view = self.view;
            self.record(|_, session| Record::Resumed { view, session, asked, recovered: true, position });
        }
        self.link = Some(Link::Sse(stream));
        going.accepted = true;
        let step = self.converse(going).await;
        // It tells this turn only.
        self.link = None;
        step
    }

    /// A view that begins where the gateway chooses.
    fn begin_view(&mut self) {
        self.view = self.world.next_view();
        self.position = None;
        let view = self.view;
        self.record(|_, session| Record::Attached { view, session });
    }

    async fn ask_openai(&mut self, going: &mut Going) -> Step {
        let pod = self.choose();
        // A stream cannot take back what it said: after a loss the whole answer is asked for.
        let stream = going.attempts == 0 && self.who.rng.random_bool(0.7);
        self.sending(going);
        let cancel = going.plan.cancel_after.take();
        going.cancelled |= cancel.is_some();
        let (session, turn, text) = (self.who.session.clone(), going.turn.clone(), going.text.clone());
        let patience = if stream { SILENCE } else { WHOLE_ANSWER };
        let asked = wire::openai(pod, &session, (&turn, &text), stream, patience);
        let told = match cancel {
            None => asked.await,
            Some(after) => {
                let cancelled = async {
                    sleep(Duration::from_millis(u64::from(after) * 100)).await;
                    self.cancel(going).await;
                };
                tokio::join!(asked, cancelled).0
            }
        };
        if told.nobody {
            self.world.tally.refused.fetch_add(1, Relaxed);
        }
        if let Some(code) = &told.refused {
            return self.refused(going, code);
        }
        let outcome = if told.accepted { Outcome::Accepted { seq: None } } else { Outcome::Unknown };
        self.receipt(going, outcome);
        let text: Arc<str> = told.text.into();
        let ending = match told.ending {
            // OpenAI's API knows no cancelled answer: this one tells by its length, or not at all.
            Some(Ending::Done) if going.cancelled => {
                (*text != *prompt::answer(&going.text)).then_some(Ending::Cancelled)
            }
            ending => ending,
        };
        if ending.is_some() || !text.is_empty() {
            self.record(|client, session| Record::Answer { client, session, turn, text, ending });
        }
        match told.lost {
            None => Step::Ended,
            Some(why) => {
                let view = self.view;
                self.record(|_, session| Record::Lost { view, session, why });
                Step::Again
            }
        }
    }
}
