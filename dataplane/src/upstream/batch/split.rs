//! One answer for many asks: what of it is whose.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use chatgateway_core::{batch::split, log::Usage};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{recipe::Dialect, seat::Piece};
use crate::upstream::{
    failure::{Failure, excerpt},
    openai::{Counted, Str},
};

/// An object whose fields are passed on as they are.
type Fields<'a> = BTreeMap<String, &'a RawValue>;

/// The end mark of a stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// What one ask has got so far.
#[derive(Debug, Default)]
struct Part {
    prompt_bytes: u64,
    /// Pieces of text in a stream, bytes of a whole text: what its share of the tokens goes by.
    got: u64,
    finish_reason: Option<Arc<str>>,
    trim: bool,
    /// It has had its last piece, or nobody reads it.
    over: bool,
}

/// Splits one answer.
pub(super) struct Split {
    name: Arc<str>,
    dialect: Dialect,
    parts: Vec<Part>,
    usage: Option<Usage>,
    /// The event that told the usage of a stream that passes through, without its choices and its usage.
    usage_event: BTreeMap<String, Value>,
    /// The end mark has come.
    done: bool,
    /// The answer has come in one piece.
    whole: bool,
    /// What is to be given out, each to its ask.
    out: Vec<(usize, Piece)>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default)]
    choices: Option<Vec<Choice<'a>>>,
    #[serde(default)]
    usage: Option<Counted>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(default)]
    index: Option<usize>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: usize,
    #[serde(borrow, default)]
    text: Option<Str<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Str<'a>>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Texts<'a> {
    #[serde(borrow)]
    texts: Vec<Option<&'a RawValue>>,
}

impl Split {
    /// `prompts`: the bytes of each, and whether spaces at the beginning of its answer are not its own.
    pub(super) fn new(name: Arc<str>, dialect: Dialect, prompts: impl IntoIterator<Item = (usize, bool)>) -> Self {
        let part = |(bytes, trim)| Part { prompt_bytes: bytes as u64, trim, ..Part::default() };
        Self {
            name,
            dialect,
            parts: prompts.into_iter().map(part).collect(),
            usage: None,
            usage_event: BTreeMap::new(),
            done: false,
            whole: false,
            out: Vec::new(),
        }
    }

    pub(super) fn take(&mut self) -> Vec<(usize, Piece)> {
        std::mem::take(&mut self.out)
    }

    /// Nobody reads that one any more.
    pub(super) fn left(&mut self, index: usize) {
        if let Some(part) = self.parts.get_mut(index) {
            part.over = true;
        }
    }

    /// Nothing more is to come.
    pub(super) fn is_done(&self) -> bool {
        self.done || self.parts.iter().all(|part| part.over)
    }

    /// Every answer has told its end; only words about them all may be missing.
    pub(super) fn is_finished(&self) -> bool {
        self.parts.iter().all(|part| part.over || part.finish_reason.is_some())
    }

    /// One event of a stream.
    ///
    /// # Errors
    /// One that fails the whole call.
    pub(super) fn event(&mut self, data: &str) -> Result<(), Failure> {
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let event: Event<'_> = serde_json::from_str(data).map_err(|error| {
            Failure::unavailable(&self.name, &format!("sent what is no completion ({error}): {}", excerpt(data)))
        })?;
        if let Some(failure) = Failure::field(&self.name, event.error) {
            return match event.index.filter(|index| *index < self.parts.len()) {
                Some(index) => {
                    self.fail(index, failure);
                    Ok(())
                }
                None => Err(failure),
            };
        }
        let usage = event.usage.map(Usage::from);
        if matches!(self.dialect, Dialect::Pass { .. }) {
            self.pass(data, usage.is_some())?;
        }
        for choice in event.choices.into_iter().flatten() {
            self.choice(&choice);
        }
        self.usage = usage.or(self.usage);
        self.done |= self.dialect == Dialect::Turns && self.usage.is_some() && self.is_finished();
        Ok(())
    }

    fn choice(&mut self, choice: &Choice<'_>) {
        let reason = choice.finish_reason.as_ref().map(|reason| &*reason.0).filter(|reason| !reason.is_empty());
        let unnamed = || (reason == Some("error")).then(|| Failure::told(&self.name, &Value::Null));
        if let Some(failure) = Failure::field(&self.name, choice.error).or_else(unnamed) {
            return self.fail(choice.index, failure);
        }
        let Some(part) = self.parts.get_mut(choice.index).filter(|part| !part.over) else { return };
        let text = choice.text.as_ref().map_or("", |text| &*text.0);
        if self.whole && choice.text.is_none() {
            // Told at the end.
            return;
        }
        part.got += if self.whole { text.len() as u64 } else { u64::from(!text.is_empty()) };
        if self.dialect == Dialect::Turns {
            let text = if part.trim { text.trim_start_matches(' ') } else { text };
            if !text.is_empty() {
                part.trim = false;
                self.out.push((choice.index, Piece::Text(text.to_owned())));
            }
        }
        if let Some(reason) = reason {
            part.finish_reason = Some(if reason == "stop" { super::super::stop() } else { excerpt(reason).into() });
            if self.dialect == (Dialect::Pass { stream: true, usage: false }) {
                // It need not wait for the others.
                part.over = true;
                self.out.push((choice.index, Piece::Bytes(Bytes::from_static(DONE))));
                self.out.push((choice.index, Piece::Done));
            }
        }
    }

    /// An event of a stream that passes through: each ask gets one with its own choices.
    fn pass(&mut self, data: &str, has_usage: bool) -> Result<(), Failure> {
        let mut fields: Fields<'_> = self.read(data)?;
        let choices: Vec<&RawValue> = match fields.remove("choices") {
            Some(choices) => self.read(choices.get())?,
            None => Vec::new(),
        };
        if has_usage {
            // It comes once more, with each one's share.
            fields.remove("usage");
            let value = |value: &RawValue| serde_json::from_str(value.get()).unwrap_or_default();
            self.usage_event = fields.iter().map(|(name, raw)| (name.clone(), value(raw))).collect();
        }
        for choice in choices {
            let (index, choice) = self.own_choice(choice)?;
            if self.parts.get(index).is_some_and(|part| !part.over) {
                let body = own_body(&fields, index, &choice, None);
                self.out.push((index, Piece::Bytes(format!("data: {body}\n\n").into())));
            }
        }
        Ok(())
    }

    /// A choice as its ask alone would have got it, and whose it is.
    fn own_choice(&self, choice: &RawValue) -> Result<(usize, String), Failure> {
        let mut fields: Fields<'_> = self.read(choice.get())?;
        let index = fields.remove("index").and_then(|index| index.get().parse().ok()).unwrap_or(0);
        let mut own = String::with_capacity(choice.get().len() + 16);
        own.push_str("{\"index\":0");
        for (name, value) in fields {
            push_field(&mut own, &name, value.get());
        }
        own.push('}');
        Ok((index, own))
    }

    /// An answer in one piece.
    ///
    /// # Errors
    /// One that is none for anybody.
    pub(super) fn whole(&mut self, body: &[u8]) -> Result<(), Failure> {
        let text =
            std::str::from_utf8(body).map_err(|_| Failure::unavailable(&self.name, "sent text that is not UTF-8"))?;
        (self.done, self.whole) = (true, true);
        match self.dialect {
            Dialect::Simple => self.texts(text),
            Dialect::Turns => self.event(text),
            Dialect::Pass { .. } => self.bodies(text),
        }
    }

    fn texts(&mut self, body: &str) -> Result<(), Failure> {
        let Texts { texts } = self.read(body)?;
        for (index, text) in texts.into_iter().enumerate().take(self.parts.len()) {
            let Some(text) = text else { continue };
            if let Ok(text) = serde_json::from_str::<String>(text.get()) {
                self.parts[index].finish_reason = Some(super::super::stop());
                if !text.is_empty() {
                    self.out.push((index, Piece::Text(text)));
                }
            } else {
                let value: Value = serde_json::from_str(text.get()).unwrap_or_default();
                let failure = Failure::told(&self.name, value.get("error").unwrap_or(&value));
                self.fail(index, failure);
            }
        }
        Ok(())
    }

    fn bodies(&mut self, body: &str) -> Result<(), Failure> {
        let event: Event<'_> = self.read(body)?;
        if let Some(failure) = Failure::field(&self.name, event.error) {
            return Err(failure);
        }
        let mut fields: Fields<'_> = self.read(body)?;
        let choices: Vec<&RawValue> = match fields.remove("choices") {
            Some(choices) => self.read(choices.get())?,
            None => Vec::new(),
        };
        for choice in event.choices.into_iter().flatten() {
            if let Some(part) = self.parts.get_mut(choice.index) {
                part.got = choice.text.map_or(0, |text| text.0.len() as u64);
            }
        }
        let shares = event.usage.map(|usage| self.shares(usage.into()));
        fields.remove("usage");
        for choice in choices {
            let (index, choice) = self.own_choice(choice)?;
            let Some(part) = self.parts.get_mut(index).filter(|part| !part.over) else { continue };
            part.over = true;
            let share = shares.as_ref().and_then(|shares| shares.get(index)).map(usage_json);
            let body = own_body(&fields, index, &choice, share.as_deref());
            self.out.push((index, Piece::Bytes(body.into())));
            self.out.push((index, Piece::Done));
        }
        Ok(())
    }

    /// The answer is over: each gets its end, with its share of the usage.
    pub(super) fn finish(&mut self) {
        let shares = self.usage.map(|usage| self.shares(usage));
        for index in 0..self.parts.len() {
            let part = &mut self.parts[index];
            if part.over {
                continue;
            }
            let complete = part.finish_reason.is_some() || self.done && part.got > 0;
            if !complete {
                let failure = match self.done {
                    true => Failure::unavailable(&self.name, "sent no answer to one prompt of a batch"),
                    false => Failure::incomplete(&self.name),
                };
                self.fail(index, failure);
                continue;
            }
            part.over = true;
            let share = shares.as_ref().and_then(|shares| shares.get(index)).copied();
            if matches!(self.dialect, Dialect::Pass { .. }) {
                if let Some(share) = share {
                    let event = self.own_usage(index, &share);
                    self.out.push((index, Piece::Bytes(event)));
                }
                if self.done {
                    self.out.push((index, Piece::Bytes(Bytes::from_static(DONE))));
                }
                self.out.push((index, Piece::Done));
            } else {
                let finish_reason = part.finish_reason.take().unwrap_or_else(super::super::stop);
                self.out.push((index, Piece::End { finish_reason, usage: share.unwrap_or_default() }));
            }
        }
    }

    fn own_usage(&self, index: usize, share: &Usage) -> Bytes {
        let mut body = String::from("{\"choices\":[]");
        for (name, value) in &self.usage_event {
            push_field(&mut body, name, &own_id(name, &value.to_string(), index));
        }
        push_field(&mut body, "usage", &usage_json(share));
        format!("data: {body}}}\n\n").into()
    }

    /// Each one's share of what all cost: tokens of the answers by how much of them each got, tokens of the prompts by their
    /// lengths.
    fn shares(&self, usage: Usage) -> Vec<Usage> {
        let by = |total, weight: fn(&Part) -> u64| split(total, &self.parts.iter().map(weight).collect::<Vec<_>>());
        let prompts = by(usage.prompt_tokens, |part| part.prompt_bytes);
        let completions = by(usage.completion_tokens, |part| part.got);
        let share = |(prompt_tokens, completion_tokens)| Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        };
        prompts.into_iter().zip(completions).map(share).collect()
    }

    fn fail(&mut self, index: usize, failure: Failure) {
        if let Some(part) = self.parts.get_mut(index).filter(|part| !part.over) {
            part.over = true;
            self.out.push((index, Piece::Failed(failure)));
        }
    }

    fn read<'a, T: Deserialize<'a>>(&self, json: &'a str) -> Result<T, Failure> {
        serde_json::from_str(json).map_err(|error| {
            let what = format!("sent what is no answer to a batch ({error}): {}", excerpt(json));
            Failure::unavailable(&self.name, &what)
        })
    }
}

/// An object with one choice, as its ask alone would have got it.
fn own_body(fields: &Fields<'_>, index: usize, choice: &str, usage: Option<&str>) -> String {
    let mut body = String::with_capacity(choice.len() + 256);
    body.push('{');
    for (name, value) in fields {
        push_field(&mut body, name, &own_id(name, value.get(), index));
    }
    push_field(&mut body, "choices", &format!("[{choice}]"));
    if let Some(usage) = usage {
        push_field(&mut body, "usage", usage);
    }
    body.push('}');
    body
}

/// The id of the batch's answer, told apart for each ask; other fields as they are.
fn own_id(name: &str, value: &str, index: usize) -> String {
    match value.strip_suffix('"').filter(|_| name == "id") {
        Some(id) => format!("{id}-{index}\""),
        None => value.to_owned(),
    }
}

fn push_field(out: &mut String, name: &str, value: &str) {
    if !out.ends_with('{') {
        out.push(',');
    }
    out.push_str(&Value::from(name).to_string());
    out.push(':');
    out.push_str(value);
}

fn usage_json(usage: &Usage) -> String {
    let Usage { prompt_tokens, completion_tokens, total_tokens } = usage;
    format!(
        "{{\"prompt_tokens\":{prompt_tokens},\"completion_tokens\":{completion_tokens},\"total_tokens\":{total_tokens}}}"
    )
}

#[cfg(test)]
mod tests;
