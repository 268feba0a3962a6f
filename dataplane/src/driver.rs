//! Runs the turns of one ownership: joins the owner's decisions to the store, the model server, the clock and the readers.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use chatgateway_core::{
    error::ErrorCode,
    log::{
        Entry, EntryKind, HistoryTurn, Link, Owner, OwnerConfig, OwnerEffect, OwnerInput, Ownership, Release, Reply,
        Request, TurnBody, TurnId, TurnState, Unknown,
    },
};
use tokio::time::Sleep;

use crate::{
    clock,
    gateway::{Gateway, RunningTurn},
    hub::{Channel, Notice, OwnerHandle},
    limiter::Account,
    store::{Call, News},
    upstream::{Ask, BrokeOff, UpstreamEvent, UpstreamStream},
};

/// Inputs taken in a row before other tasks get their turn.
const BURST: usize = 64;

/// The model server's part of a turn.
enum Model {
    /// Nothing is asked.
    Off,
    /// The history is read first; then this is asked.
    Recalling { history: Call, body: Arc<TurnBody>, prefix: Option<String> },
    /// The answer comes.
    Answering(UpstreamStream),
}

/// An ownership that the store gave just now.
pub struct Given {
    /// What is owned.
    pub own: Ownership,
    /// The connection over which the reply came.
    pub connection: u64,
    /// How many other pods follow the session.
    pub followers: Option<u32>,
}

/// One ownership at work.
struct Driver {
    gateway: Arc<Gateway>,
    channel: Arc<Channel>,
    handle: Arc<OwnerHandle>,
    owner: Owner,
    effects: Vec<OwnerEffect>,
    /// The store connection that the owner knows of.
    connection: u64,
    /// Whether other pods follow the session, as far as is known.
    followed: bool,
    call: Option<Call>,
    /// The check behind it.
    look: Option<Call>,
    model: Model,
    /// Where the last answer broke off, if it is asked for again.
    broke_off: Option<BrokeOff>,
    paused: bool,
    timer: Option<Pin<Box<Sleep>>>,
    /// When the running turn began here; taken at its first text.
    asked_at: Option<Instant>,
    /// The tokens of the turn that is asked, where they are limited.
    account: Option<(TurnId, Account)>,
    /// The turn that began last, and in this ownership.
    begun: Option<TurnId>,
    released: Option<Release>,
    _running: RunningTurn,
}

/// Starts to run an ownership. As much of it as can be done at once is done before this returns; the rest in a task.
pub async fn run(gateway: &Arc<Gateway>, channel: &Arc<Channel>, given: Given) {
    let mut driver = Box::pin(Driver::new(gateway, channel, given).run());
    // A turn that needs nobody to wait for ends here, without a task of its own.
    let first = std::future::poll_fn(|cx| Poll::Ready(driver.as_mut().poll(cx))).await;
    if first.is_pending() {
        tokio::spawn(driver);
    }
}

impl Driver {
    fn new(gateway: &Arc<Gateway>, channel: &Arc<Channel>, given: Given) -> Self {
        let handle = Arc::new(OwnerHandle::default());
        channel.set_owner(&handle);
        let upstreams = gateway.upstreams();
        let config = OwnerConfig {
            pod: gateway.pod,
            terms: gateway.terms(),
            prefill: upstreams.prefill(),
            turn_deadline: upstreams.turn_deadline(),
        };
        let now = clock::now();
        let current = gateway.store().connection(&channel.key);
        let link = Link { connection: current, verified: given.connection == current };
        let mut effects = Vec::new();
        let owner = Owner::new(given.own, config, link, rand::random(), now, &mut effects);
        Self {
            gateway: gateway.clone(),
            channel: channel.clone(),
            handle,
            owner,
            effects,
            connection: current,
            followed: given.followers.is_some_and(|followers| followers > 0),
            call: None,
            look: None,
            model: Model::Off,
            broke_off: None,
            paused: false,
            timer: None,
            asked_at: None,
            account: None,
            begun: None,
            released: None,
            _running: gateway.turn_runs(),
        }
    }

    async fn run(mut self) {
        let mut inputs = 0;
        loop {
            self.carry_out();
            if let Some(why) = self.released {
                self.gateway.released(&self.channel, &self.handle, why);
                break;
            }
            let input = std::future::poll_fn(|cx| self.poll_input(cx)).await;
            let current = self.gateway.store().connection(&self.channel.key);
            if current != self.connection {
                self.connection = current;
                self.owner.handle(OwnerInput::Connection(current), clock::now(), &mut self.effects);
            }
            self.owner.handle(input, clock::now(), &mut self.effects);
            inputs += 1;
            if inputs % BURST == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Does what the owner decided.
    fn carry_out(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                OwnerEffect::Call(request) => {
                    self.call = Some(self.gateway.store().call(&self.channel.key, request));
                }
                OwnerEffect::Look(check) => {
                    self.look = Some(self.gateway.store().call(&self.channel.key, Request::Check(check)));
                }
                OwnerEffect::Deliver(entry) => self.deliver(entry),
                OwnerEffect::Reread => {
                    self.channel.reread();
                    self.publish(News::Reread);
                }
                OwnerEffect::Ask { turn, body, prefix } => self.ask(turn, body, prefix),
                OwnerEffect::StopUpstream => self.model = Model::Off,
                OwnerEffect::PauseUpstream => self.paused = true,
                OwnerEffect::ResumeUpstream => self.paused = false,
                OwnerEffect::Released(why) => {
                    if why == Release::Idle {
                        self.account = None;
                    }
                    self.released = Some(why);
                }
            }
        }
        self.effects = effects;
    }

    fn deliver(&mut self, entry: Arc<Entry>) {
        match &entry.kind {
            EntryKind::Delta { .. } => {
                if let Some(began) = self.asked_at.take() {
                    self.gateway.metrics.first_token.observe((clock::now() - began).as_secs_f64());
                }
                // What a script of the store appends it also tells; a plain append does not.
                if self.followed {
                    self.publish(News::Entry(entry.clone()));
                }
            }
            EntryKind::Turn { .. } => self.begun = Some(entry.turn.clone()),
            kind => {
                if let Some(end) = kind.end() {
                    self.gateway.metrics.turn_ended(TurnState::Ended(end).as_str());
                    self.settle(&entry);
                }
            }
        }
        self.channel.deliver(entry);
    }

    /// A turn has ended: the tokens that it did not use come back. Where another pod asked for it, nobody here knows how many
    /// those are.
    fn settle(&mut self, entry: &Entry) {
        match self.account.take() {
            Some((turn, mut account)) if turn == entry.turn => {
                if matches!(entry.kind, EntryKind::Failed { .. }) {
                    account.call_failed();
                }
            }
            _ if self.begun.as_ref() == Some(&entry.turn) => {
                self.gateway.limiter.not_carried_out(&self.channel.key, &entry.turn);
            }
            _ => {}
        }
    }

    /// Tells the pods that follow the session. Only what is committed may come here.
    fn publish(&self, news: News) {
        if let Some(peers) = self.gateway.store().peers() {
            peers.publish(&self.channel.key, news);
        }
    }

    fn ask(&mut self, turn: TurnId, body: Arc<TurnBody>, prefix: Option<String>) {
        self.paused = false;
        self.asked_at = Some(clock::now());
        // One that has ended is settled; one that is asked for anew counts from the beginning.
        if self.account.as_ref().is_some_and(|(asked, _)| *asked == turn) {
            self.leave_account();
        }
        self.account = self.gateway.limiter.account(&self.channel.key, &turn, &body).map(|account| (turn, account));
        if self.gateway.upstreams().wants_history() {
            let history = self.gateway.recall(&self.channel.key);
            self.model = Model::Recalling { history, body, prefix };
        } else {
            self.answer(Vec::new(), body, prefix);
        }
    }

    fn answer(&mut self, mut history: Vec<HistoryTurn>, body: Arc<TurnBody>, prefix: Option<String>) {
        history.retain(|turn| matches!(turn.state, TurnState::Ended(_)));
        if let Some((_, account)) = &mut self.account {
            let before: usize = history.iter().map(|turn| turn.text.len() + turn.answer.len()).sum();
            account.add_prompt(before + prefix.as_ref().map_or(0, String::len));
        }
        let ask = Ask { session: self.channel.key.clone(), history, body, prefix };
        self.model = Model::Answering(self.gateway.upstreams().ask_after(ask, self.broke_off.take()));
    }

    /// What happens next: the store's word first, then hints, then the model's, then time.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<OwnerInput> {
        if let Poll::Ready((result, connection)) = poll_store(&mut self.call, &mut self.followed, cx) {
            return Poll::Ready(OwnerInput::Reply { result, connection });
        }
        if self.call.is_none()
            && let Poll::Ready((result, connection)) = poll_store(&mut self.look, &mut self.followed, cx)
        {
            return Poll::Ready(OwnerInput::Looked { result, connection });
        }
        if let Poll::Ready(notice) = self.handle.poll_notice(cx) {
            return Poll::Ready(match notice {
                Notice::Look => OwnerInput::Cancel,
                Notice::Leave(leave) => OwnerInput::Drain(leave),
            });
        }
        if !self.paused
            && let Poll::Ready(input) = self.poll_model(cx)
        {
            return Poll::Ready(input);
        }
        self.poll_timer(cx)
    }

    fn poll_model(&mut self, cx: &mut Context<'_>) -> Poll<OwnerInput> {
        if let Model::Recalling { history, .. } = &mut self.model
            && let Poll::Ready(answer) = Pin::new(history).poll(cx)
            && let Model::Recalling { body, prefix, .. } = std::mem::replace(&mut self.model, Model::Off)
        {
            let turns = match answer.result {
                Ok(Reply::Snapshot(snapshot)) => snapshot.turns,
                _ => Vec::new(),
            };
            self.answer(turns, body, prefix);
        }
        let Model::Answering(stream) = &mut self.model else { return Poll::Pending };
        if let Some((_, account)) = &mut self.account {
            if let Poll::Ready(message) = account.poll_stop(cx) {
                self.model = Model::Off;
                return Poll::Ready(OwnerInput::UpstreamFailed { code: ErrorCode::RateLimited, message, again: false });
            }
            if account.waits() {
                return Poll::Pending;
            }
        }
        let event = std::task::ready!(stream.poll_next(cx)).unwrap_or_else(|| UpstreamEvent::Failed {
            code: ErrorCode::UpstreamUnavailable,
            message: "the model server's answer ended before it was complete".into(),
            retry_after_ms: None,
        });
        if matches!(event, UpstreamEvent::Failed { .. }) {
            self.broke_off = stream.may_be_asked_again();
        }
        if !matches!(event, UpstreamEvent::Text(_)) {
            self.model = Model::Off;
        }
        match (&mut self.account, &event) {
            (Some((_, account)), UpstreamEvent::Text(text)) => account.text(text.len()),
            (Some((_, account)), UpstreamEvent::End { usage, .. }) => account.end(*usage),
            _ => {}
        }
        Poll::Ready(match event {
            UpstreamEvent::Text(text) => OwnerInput::Text(text),
            UpstreamEvent::End { finish_reason, usage } => OwnerInput::UpstreamEnd { finish_reason, usage },
            UpstreamEvent::Failed { code, message, .. } => {
                OwnerInput::UpstreamFailed { code, message, again: self.broke_off.is_some() }
            }
        })
    }

    /// Whoever goes on with the turn settles what it took.
    fn leave_account(&mut self) {
        if let Some((_, account)) = self.account.take() {
            account.leave();
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<OwnerInput> {
        let Some(deadline) = self.owner.timeout() else { return Poll::Pending };
        let at = tokio::time::Instant::from_std(deadline);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx).map(|()| OwnerInput::Tick)
    }
}

/// The outcome of a call to the store, if there is one, and the connection it was sent over. Notes whether other pods follow.
fn poll_store(
    call: &mut Option<Call>,
    followed: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<(Result<Reply, Unknown>, u64)> {
    let Some(pending) = call else { return Poll::Pending };
    let answer = std::task::ready!(Pin::new(pending).poll(cx));
    *call = None;
    if let Some(followers) = answer.followers {
        *followed = followers > 0;
    }
    Poll::Ready((answer.result.map_err(|_| Unknown), answer.connection))
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.leave_account();
        self.channel.clear_owner(&self.handle);
    }
}
