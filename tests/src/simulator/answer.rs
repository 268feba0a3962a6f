//! An answer under way: which token is due when, and how it is written in each protocol.

use std::{fmt::Write as _, io};

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::{
    behaviour::{Behaviour, Fault},
    record::{CallGuard, Outcome},
    request::{Ask, Protocol},
    stamps::stamped,
    workers::{Turnstile, WorkerPermit},
};

/// Text gathered into one write at most.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// An answer under way. Dropping it before its end counts the call as cancelled.
pub struct Answer {
    ask: Ask,
    behaviour: Behaviour,
    guard: CallGuard,
    arrived_ns: u64,
    phase: Phase,
    /// One list of tokens for each answer, in order of `index`.
    texts: Vec<Vec<String>>,
    /// Whether `max_tokens` cut that answer.
    cut: Vec<bool>,
    /// Whether that answer fails alone.
    failing: Vec<bool>,
    /// Tokens sent of each answer.
    next: usize,
    started: Instant,
    permit: Option<WorkerPermit>,
    /// The start of each chunk, up to the value of `index`.
    head: String,
    /// Written byte by byte.
    pending: Bytes,
    huge_line_left: usize,
    faulted: bool,
}

enum Phase {
    Queued(Turnstile),
    Tokens,
    Tail,
    Ended,
}

impl Answer {
    /// Plans the answer to a call that waits for a worker at `turnstile`.
    pub fn new(ask: Ask, behaviour: Behaviour, guard: CallGuard, arrived_ns: u64, turnstile: Turnstile) -> Self {
        let per_prompt = ask.answers;
        let texts = ask.prompts.iter().flat_map(|prompt| {
            std::iter::repeat_with(|| tokens(&behaviour, &ask, prompt)).take(per_prompt).collect::<Vec<_>>()
        });
        let (mut texts, cut): (Vec<_>, Vec<_>) = texts.unzip();
        let fails = |prompt: &String| behaviour.failing.as_ref().is_some_and(|mark| prompt.contains(mark.as_str()));
        let failing: Vec<bool> =
            ask.prompts.iter().flat_map(|prompt| std::iter::repeat_n(fails(prompt), per_prompt)).collect();
        for (texts, _) in texts.iter_mut().zip(&failing).filter(|(_, fails)| **fails) {
            texts.truncate(behaviour.fault_after as usize);
        }
        let (id, object) = match ask.protocol {
            Protocol::Chat => ("chatcmpl", "chat.completion.chunk"),
            _ => ("cmpl", "text_completion"),
        };
        let usage = if ask.include_usage { "\"usage\":null," } else { "" };
        let head = format!(
            "data: {{\"id\":\"{id}-sim{}\",\"object\":\"{object}\",\"created\":1,\"model\":{},{usage}\"choices\":[{{\"index\":",
            guard.number(),
            Value::from(ask.model.as_str()),
        );
        Self {
            ask,
            behaviour,
            guard,
            arrived_ns,
            phase: Phase::Queued(turnstile),
            texts,
            cut,
            failing,
            next: 0,
            started: Instant::now(),
            permit: None,
            head,
            pending: Bytes::new(),
            huge_line_left: 0,
            faulted: false,
        }
    }

    /// Media type of the answer.
    pub fn content_type(&self) -> &'static str {
        if self.ask.stream { "text/event-stream; charset=utf-8" } else { "application/json" }
    }

    /// The next piece of a stream.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if !self.behaviour.one_byte {
            return self.next_piece().await;
        }
        if self.pending.is_empty() {
            match self.next_piece().await? {
                Ok(piece) => self.pending = piece,
                Err(error) => return Some(Err(error)),
            }
        } else {
            // The body pends once, so the byte before this one is written alone.
            tokio::task::yield_now().await;
        }
        Some(Ok(self.pending.split_to(1.min(self.pending.len()))))
    }

    async fn next_piece(&mut self) -> Option<io::Result<Bytes>> {
        if let Phase::Queued(turnstile) = &mut self.phase {
            self.permit = Some(turnstile.pass().await);
            self.started = Instant::now();
            self.phase = Phase::Tokens;
        }
        if self.huge_line_left > 0 {
            return Some(Ok(self.huge_line_piece()));
        }
        match self.phase {
            Phase::Tokens if self.fault_due() => self.fault().await,
            Phase::Tokens => {
                self.token_due().await;
                let piece = self.due_tokens();
                if self.next >= self.steps() && !self.fault_due() {
                    self.phase = Phase::Tail;
                }
                Some(Ok(piece))
            }
            Phase::Tail => {
                sleep_until(self.started + self.behaviour.total(self.ask.prompts.len())).await;
                let tail = self.tail();
                self.end(Outcome::Completed);
                Some(Ok(tail))
            }
            Phase::Queued(_) | Phase::Ended => None,
        }
    }

    fn steps(&self) -> usize {
        self.behaviour.raw.as_ref().map_or_else(|| self.texts.iter().map(Vec::len).max().unwrap_or(0), Vec::len)
    }

    fn fault_due(&self) -> bool {
        let after = (self.behaviour.fault_after as usize).min(self.steps());
        self.behaviour.fault.is_some() && !self.faulted && self.next >= after
    }

    fn due(&self, index: usize) -> Instant {
        self.started + self.behaviour.due(index, self.steps(), self.ask.prompts.len())
    }

    async fn token_due(&self) {
        let due = self.due(self.next);
        if due > Instant::now() {
            sleep_until(due).await;
        }
    }

    /// Every token that is due by now, as one piece.
    fn due_tokens(&mut self) -> Bytes {
        let mut piece = String::new();
        if self.next == 0 && self.ask.protocol == Protocol::Chat && self.behaviour.raw.is_none() {
            for index in 0..self.texts.len() {
                let role = "},\"finish_reason\":null}]}\n\n";
                let _infallible =
                    write!(piece, "{}{index},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"{role}", self.head);
            }
        }
        let now = Instant::now();
        loop {
            self.write_step(&mut piece);
            self.next += 1;
            let more = self.next < self.steps() && !self.fault_due() && piece.len() < FRAME_BYTES_MAX;
            if !more || self.due(self.next) > now {
                return Bytes::from(piece);
            }
        }
    }

    /// Token `next` of every answer that has one.
    fn write_step(&mut self, piece: &mut String) {
        if let Some(raw) = &self.behaviour.raw {
            piece.push_str(raw.get(self.next).map_or("", String::as_str));
            self.guard.tokens += 1;
            return;
        }
        for (index, texts) in self.texts.iter().enumerate() {
            let Some(text) = texts.get(self.next) else { continue };
            let stamp;
            let text = if self.behaviour.stamp {
                stamp = stamped(self.next, self.arrived_ns);
                &stamp
            } else {
                text
            };
            self.guard.tokens += 1;
            write_chunk(piece, &self.head, index, self.ask.protocol, text);
        }
    }

    fn tail(&self) -> Bytes {
        let mut tail = String::new();
        if self.behaviour.raw.is_some() {
            return Bytes::new();
        }
        for index in 0..self.texts.len() {
            let reason = self.finish_reason(index);
            let reason = Value::from(reason);
            let end = match self.ask.protocol {
                Protocol::Chat => format!("\"delta\":{{}},\"finish_reason\":{reason}}}]}}\n\n"),
                _ => format!("\"text\":\"\",\"logprobs\":null,\"finish_reason\":{reason}}}]}}\n\n"),
            };
            let _infallible = write!(tail, "{}{index},{end}", self.head);
        }
        if self.ask.include_usage {
            let (start, _) = self.head.split_once("\"usage\":null,").unwrap_or_default();
            let _infallible = write!(tail, "{start}\"choices\":[],\"usage\":{}}}\n\n", self.usage());
        }
        tail.push_str("data: [DONE]\n\n");
        Bytes::from(tail)
    }

    fn finish_reason(&self, index: usize) -> &str {
        if self.failing.get(index).copied().unwrap_or(false) {
            return &self.behaviour.failing_reason;
        }
        if self.cut.get(index).copied().unwrap_or(false) { "length" } else { "stop" }
    }

    fn usage(&self) -> Value {
        let completion_tokens: usize = self.texts.iter().map(Vec::len).sum();
        let total_tokens = self.ask.prompt_tokens + completion_tokens;
        json!({"prompt_tokens": self.ask.prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total_tokens})
    }

    fn end(&mut self, outcome: Outcome) {
        self.guard.ended(outcome);
        self.permit = None;
        self.phase = Phase::Ended;
    }

    async fn fault(&mut self) -> Option<io::Result<Bytes>> {
        self.faulted = true;
        match self.behaviour.fault? {
            Fault::Stall => std::future::pending().await,
            Fault::Refuse | Fault::Die => {
                // The body pends once, so what was said before is written first.
                tokio::task::yield_now().await;
                self.end(Outcome::Failed);
                Some(Err(io::Error::other("the simulator dies as it was told to")))
            }
            Fault::Garbage => {
                self.end(Outcome::Failed);
                Some(Ok(Bytes::from_static(b"\xff\xfe{{{ \x00 not an event\n\ndata: {\"choices\": [\n\n\xc3\x28\n\n")))
            }
            Fault::HugeLine => {
                self.huge_line_left = self.behaviour.huge_line_bytes.max(1);
                let text =
                    if self.ask.protocol == Protocol::Chat { "\"delta\":{\"content\":\"" } else { "\"text\":\"" };
                Some(Ok(Bytes::from(format!("{}0,{text}", self.head))))
            }
            Fault::Truncate => {
                self.end(Outcome::Failed);
                None
            }
            Fault::ErrorEvent => {
                self.end(Outcome::Failed);
                let error = json!({"error": {"message": "the engine died", "type": "server_error", "code": 500}});
                Some(Ok(Bytes::from(format!("data: {error}\n\ndata: [DONE]\n\n"))))
            }
        }
    }

    fn huge_line_piece(&mut self) -> Bytes {
        let bytes = self.huge_line_left.min(FRAME_BYTES_MAX);
        self.huge_line_left -= bytes;
        let mut piece = BytesMut::zeroed(bytes);
        piece.fill(b'x');
        if self.huge_line_left == 0 {
            let end = if self.ask.protocol == Protocol::Chat { "\"}" } else { "\",\"logprobs\":null" };
            piece.extend_from_slice(end.as_bytes());
            piece.extend_from_slice(b",\"finish_reason\":null}]}\n\n");
            if self.next >= self.steps() {
                self.phase = Phase::Tail;
            }
        }
        piece.freeze()
    }

    /// The whole answer as one JSON body, for a call that asked for no stream.
    pub async fn whole(mut self) -> io::Result<Bytes> {
        if let Phase::Queued(turnstile) = &mut self.phase {
            self.permit = Some(turnstile.pass().await);
            self.started = Instant::now();
        }
        if self.behaviour.fault.is_some() {
            self.next = (self.behaviour.fault_after as usize).min(self.steps());
            sleep_until(self.due(self.next)).await;
            if self.behaviour.fault != Some(Fault::HugeLine) {
                return self.fault().await.unwrap_or_else(|| Ok(Bytes::from_static(b"{\"id\": \"chatcmpl-")));
            }
        }
        let last = self.due(self.steps().saturating_sub(1));
        sleep_until(last.max(self.started + self.behaviour.total(self.ask.prompts.len()))).await;
        let body = self.whole_body();
        self.guard.tokens = self.texts.iter().map(|texts| texts.len() as u64).sum();
        self.end(Outcome::Completed);
        Ok(body)
    }

    fn whole_body(&self) -> Bytes {
        if let Some(raw) = &self.behaviour.raw {
            return Bytes::from(raw.concat());
        }
        let mut answers: Vec<String> = self.texts.iter().map(|texts| self.joined(texts)).collect();
        if self.behaviour.fault == Some(Fault::HugeLine) {
            answers.iter_mut().for_each(|answer| *answer = "x".repeat(self.behaviour.huge_line_bytes));
        }
        let number = self.guard.number();
        let choices = |text: &dyn Fn(&str) -> (&'static str, Value)| -> Vec<Value> {
            let choice = |(index, answer): (usize, &String)| {
                let (name, value) = text(answer);
                let reason = self.finish_reason(index);
                json!({"index": index, name: value, "logprobs": null, "finish_reason": reason})
            };
            answers.iter().enumerate().map(choice).collect()
        };
        let body = match self.ask.protocol {
            Protocol::Chat => json!({"id": format!("chatcmpl-sim{number}"), "object": "chat.completion", "created": 1,
                "model": self.ask.model, "usage": self.usage(),
                "choices": choices(&|text| ("message", json!({"role": "assistant", "content": text})))}),
            Protocol::Completions => {
                json!({"id": format!("cmpl-sim{number}"), "object": "text_completion", "created": 1,
                "model": self.ask.model, "usage": self.usage(), "choices": choices(&|text| ("text", text.into()))})
            }
            Protocol::Simple => json!({"text": answers.first()}),
            Protocol::SimpleBatch => json!({"texts": answers}),
        };
        Bytes::from(body.to_string())
    }

    fn joined(&self, texts: &[String]) -> String {
        if !self.behaviour.stamp {
            return texts.concat();
        }
        (0..texts.len()).map(|index| stamped(index, self.arrived_ns)).collect()
    }
}

fn write_chunk(piece: &mut String, head: &str, index: usize, protocol: Protocol, text: &str) {
    let text = Value::from(text);
    let _infallible = match protocol {
        Protocol::Chat => {
            write!(piece, "{head}{index},\"delta\":{{\"content\":{text}}},\"finish_reason\":null}}]}}\n\n")
        }
        _ => write!(piece, "{head}{index},\"text\":{text},\"logprobs\":null,\"finish_reason\":null}}]}}\n\n"),
    };
}

/// The tokens of one answer, without those that the call says it has already, and whether `max_tokens` cut it.
fn tokens(behaviour: &Behaviour, ask: &Ask, prompt: &str) -> (Vec<String>, bool) {
    let max_tokens = ask.max_tokens.map_or(usize::MAX, |tokens| tokens as usize);
    let mut tokens: Vec<String> = match &behaviour.answer {
        Some(answer) => answer.replace("{text}", prompt).split_inclusive(' ').map(str::to_owned).collect(),
        None => (0..behaviour.tokens as usize)
            .map(|index| format!("{:x<width$} ", index, width = behaviour.token_bytes.saturating_sub(1)))
            .collect(),
    };
    let has = ask.prefix.as_str();
    if !has.is_empty() && tokens.concat().starts_with(has) {
        let mut skip = has.len();
        tokens.retain_mut(|token| {
            let gone = skip.min(token.len());
            skip -= gone;
            *token = token.get(gone..).unwrap_or_default().to_owned();
            !token.is_empty()
        });
    }
    let cut = tokens.len() > max_tokens;
    tokens.truncate(max_tokens);
    (tokens, cut)
}
