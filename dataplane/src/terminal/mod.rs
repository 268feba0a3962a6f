//! A chat from the terminal: `chatgateway-dataplane chat`. Type a line, see the answer stream. It survives restarts of the
//! server as the page does: resume after the last entry, hand in what was not accepted under the same id.
//!
//! [`machine`] decides everything and does no I/O; this module and [`wire`] and [`input`] around it do.

use std::{
    io::{IsTerminal, Write},
    pin::pin,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use chatgateway_core::log::SessionId;
use http::Uri;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use self::{
    input::Input,
    machine::{Effect, Event, Machine, Settings},
    wire::{End, Wire},
};
use crate::clock::millis;

mod heard;
mod input;
pub mod machine;
mod wire;

/// Chat from the terminal.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The gateway: host:port, ws(s)://… or http(s)://…
    #[arg(default_value = "ws://127.0.0.1:8080/ws")]
    pub url: String,
    /// The session to talk in. Without it a new one is begun.
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// With piped input: give up when the server was not reached for this long.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub patience: Duration,
}

/// Chats until the input ends or the user leaves.
///
/// # Errors
/// A wrong address or session id, a server that turns the client away; with piped input also a server that is not reached
/// and a turn without a complete answer.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let address = wire::address(&args.url)?;
    let session = args.session.unwrap_or_else(|| Uuid::new_v4().to_string());
    SessionId::parse(&session).context("--session")?;
    let interactive = std::io::stdin().is_terminal();
    let input = if interactive { Input::prompt()? } else { Input::pipe()? };
    let settings = Settings {
        session,
        live: std::io::stdout().is_terminal(),
        interactive,
        patience_ms: (!interactive).then(|| millis(args.patience)),
    };
    Chat::new(address, settings, input)?.run().await
}

/// The connection's side of the loop.
enum Line {
    /// Nothing until the time comes to dial.
    Waiting(Instant),
    /// A connection, and since when.
    Open(Box<Wire>, Instant),
}

struct Chat {
    address: Uri,
    machine: Machine,
    input: Input,
    line: Line,
    retry_at: Option<Instant>,
    interrupts: Signal,
    began: Instant,
    mid_line: bool,
}

impl Chat {
    fn new(address: Uri, settings: Settings, input: Input) -> anyhow::Result<Self> {
        let began = Instant::now();
        let machine = Machine::new(settings, 0);
        let interrupts = signal(SignalKind::interrupt()).context("Ctrl-C cannot be heard")?;
        Ok(Self {
            address,
            machine,
            input,
            line: Line::Waiting(began),
            retry_at: None,
            interrupts,
            began,
            mid_line: false,
        })
    }

    async fn run(mut self) -> anyhow::Result<()> {
        loop {
            let event = self.next_event().await;
            let effects = self.machine.handle(event, millis(self.began.elapsed()), rand::random());
            for effect in effects {
                if let Some(outcome) = self.perform(effect).await {
                    if let Line::Open(wire, _) = self.line {
                        wire.close().await;
                    }
                    return outcome;
                }
            }
        }
    }

    async fn next_event(&mut self) -> Event {
        let retry_at = self.retry_at;
        tokio::select! {
            event = next_on(&mut self.line, &self.address) => event,
            line = self.input.next() => match line {
                Some(text) => Event::Line { turn: Uuid::new_v4().to_string(), text },
                None => Event::InputEnded,
            },
            () = async {
                match retry_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => {
                self.retry_at = None;
                Event::RetryNow
            }
            _ = self.interrupts.recv() => Event::Interrupt,
        }
    }

    /// Does what the machine asks for; an outcome ends the chat.
    async fn perform(&mut self, effect: Effect) -> Option<anyhow::Result<()>> {
        match effect {
            Effect::Send(frame) => {
                if let Line::Open(wire, _) = &mut self.line {
                    // A broken connection says so at the next read, too.
                    let _ = wire.send(frame).await;
                }
            }
            Effect::Print(text) => {
                let mut stdout = std::io::stdout().lock();
                if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
                    // Nobody reads any more.
                    return Some(Ok(()));
                }
                self.mid_line = !text.ends_with('\n');
            }
            Effect::Say(words) => {
                let open_line = std::mem::take(&mut self.mid_line) && std::io::stdout().is_terminal();
                self.input.say(&format!("{}({words})", if open_line { "\n" } else { "" }));
            }
            Effect::Ask => self.input.ask(),
            Effect::Redial(wait_ms) => {
                let next = Line::Waiting(Instant::now() + Duration::from_millis(wait_ms));
                if let Line::Open(wire, _) = std::mem::replace(&mut self.line, next) {
                    wire.close().await;
                }
            }
            Effect::RetryIn(wait_ms) => self.retry_at = Some(Instant::now() + Duration::from_millis(wait_ms)),
            Effect::Leave(None) => return Some(Ok(())),
            Effect::Leave(Some(problem)) => return Some(Err(anyhow!(problem))),
        }
        None
    }
}

/// What happens next on the connection. Dialling starts anew when it is interrupted by another event.
async fn next_on(line: &mut Line, address: &Uri) -> Event {
    let (end, since) = loop {
        match line {
            Line::Waiting(at) => {
                sleep_until(*at).await;
                let dialled = pin!(Wire::dial(address)).await;
                match dialled {
                    Ok(wire) => *line = Line::Open(Box::new(wire), Instant::now()),
                    Err(end) => break (end, Instant::now()),
                }
            }
            Line::Open(wire, since) => match wire.next().await {
                Ok(heard) => return Event::Heard(heard),
                Err(end) => break (end, *since),
            },
        }
    };
    // Until the machine says when to dial again.
    *line = Line::Waiting(Instant::now() + Duration::from_secs(3_600));
    let End { code, reason } = end;
    Event::Lost { code, reason, lived_ms: millis(since.elapsed()) }
}
