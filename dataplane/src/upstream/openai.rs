//! OpenAI's chat completions: the request made from a session, and the answer's chunks.

mod completions;

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData, sync::Arc};

use chatgateway_core::{limits::UPSTREAM_LINE_MAX_BYTES, log::Usage, sse::SseParser};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

pub(super) use self::completions::Completion;
use super::{
    Ask,
    failure::{Failure, excerpt},
};

/// Fields that are the gateway's to set, whatever a turn's options say.
const OWN_FIELDS: [&str; 5] = ["model", "messages", "stream", "stream_options", "n"];

/// What a turn says beside its text.
#[derive(Deserialize, Default)]
pub(super) struct Extra<'a> {
    #[serde(borrow, default)]
    pub(super) model: Option<Str<'a>>,
    #[serde(borrow, default)]
    pub(super) messages: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default)]
    options: Option<BTreeMap<Str<'a>, &'a RawValue>>,
}

impl<'a> Extra<'a> {
    pub(super) fn read(extra: &'a str) -> Result<Self, String> {
        if extra.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(extra).map_err(|error| format!("the turn's messages or options are malformed: {error}"))
    }
}

/// A string that is borrowed where JSON writes it plainly.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Str<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// The body of a call.
pub(super) fn request(ask: &Ask, model: &str) -> Result<Vec<u8>, String> {
    let extra = Extra::read(&ask.body.extra)?;
    let mut out = Json(Vec::with_capacity(512));
    out.raw("{\"model\":").string(model).raw(",\"messages\":[");
    let said = ask.history.iter().filter(|turn| !turn.answer.is_empty());
    for turn in said {
        out.message("user", &turn.text).message("assistant", &turn.answer);
    }
    match &extra.messages {
        Some(messages) => {
            for message in messages {
                out.raw(message.get()).raw(",");
            }
        }
        None => drop(out.message("user", &ask.body.text)),
    }
    if let Some(prefix) = &ask.prefix {
        out.message("assistant", prefix);
    }
    out.drop_comma();
    out.raw("],\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    if ask.prefix.is_some() {
        // Servers that build the prompt by a template would otherwise begin a second answer.
        out.raw(",\"continue_final_message\":true,\"add_generation_prompt\":false");
    }
    for (name, value) in extra.options.unwrap_or_default() {
        if !OWN_FIELDS.contains(&&*name.0) {
            out.raw(",").string(&name.0).raw(":").raw(value.get());
        }
    }
    out.raw("}");
    Ok(out.0)
}

/// JSON written piece by piece.
struct Json(Vec<u8>);

impl Json {
    fn raw(&mut self, json: &str) -> &mut Self {
        self.0.extend_from_slice(json.as_bytes());
        self
    }

    fn string(&mut self, text: &str) -> &mut Self {
        // A string is always written, and a Vec takes it always.
        let _ = serde_json::to_writer(&mut self.0, text);
        self
    }

    fn message(&mut self, role: &str, content: &str) -> &mut Self {
        self.raw("{\"role\":").string(role).raw(",\"content\":").string(content).raw("},")
    }

    fn drop_comma(&mut self) {
        if self.0.last() == Some(&b',') {
            self.0.pop();
        }
    }
}

/// One chunk of an answer, or a whole one: they differ in where the text stands.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    choices: First<Choice<'a>>,
    #[serde(default)]
    usage: Option<Counted>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// Token counts as servers send them: some leave the sum out, or what they did not count.
#[derive(Deserialize)]
pub(super) struct Counted {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    total_tokens: Option<u64>,
}

impl From<Counted> for Usage {
    fn from(counted: Counted) -> Self {
        let prompt_tokens = counted.prompt_tokens.unwrap_or(0);
        let completion_tokens = counted.completion_tokens.unwrap_or(0);
        let total_tokens = counted.total_tokens.unwrap_or(prompt_tokens.saturating_add(completion_tokens));
        Self { prompt_tokens, completion_tokens, total_tokens }
    }
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<Said<'a>>,
    #[serde(borrow, default)]
    message: Option<Said<'a>>,
    /// A text completion's.
    #[serde(borrow, default)]
    text: Option<Str<'a>>,
    #[serde(borrow, default)]
    finish_reason: Option<Str<'a>>,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow, default)]
    content: Option<Str<'a>>,
    #[serde(borrow, default)]
    refusal: Option<Str<'a>>,
}

/// The first of a list; the rest is not kept. A null is an empty list.
struct First<T>(Option<T>);

impl<T> Default for First<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FirstOf<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for FirstOf<T> {
            type Value = First<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_unit<E>(self) -> Result<First<T>, E> {
                Ok(First(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First<T>, A::Error> {
                let first = list.next_element()?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }
        deserializer.deserialize_any(FirstOf(PhantomData))
    }
}

/// What an answer has told so far, beside its text.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Text that was not given on.
    pub(super) text: String,
    pub(super) finish_reason: Option<Arc<str>>,
    pub(super) usage: Usage,
    /// The end mark has come.
    pub(super) done: bool,
    /// Spaces at the beginning of a text completion are not the answer's.
    pub(super) trim: bool,
}

impl Told {
    fn take(&mut self, name: &str, json: &str) -> Result<(), Failure> {
        let chunk: Chunk<'_> = serde_json::from_str(json).map_err(|error| {
            Failure::unavailable(name, &format!("sent what is no chat completion ({error}): {}", excerpt(json)))
        })?;
        if let Some(failure) = Failure::field(name, chunk.error) {
            return Err(failure);
        }
        if let Some(usage) = chunk.usage {
            self.usage = usage.into();
        }
        let Some(choice) = chunk.choices.0 else { return Ok(()) };
        if let Some(said) = choice.delta.or(choice.message) {
            for part in [said.content, said.refusal].into_iter().flatten() {
                self.text.push_str(&part.0);
            }
        }
        if let Some(text) = choice.text {
            self.text.push_str(if self.trim { text.0.trim_start_matches(' ') } else { &text.0 });
        }
        self.trim &= self.text.is_empty();
        if let Some(reason) = choice.finish_reason.filter(|reason| !reason.0.is_empty()) {
            self.finish_reason = Some(if reason.0 == "stop" { super::stop() } else { excerpt(&reason.0).into() });
        }
        Ok(())
    }
}

/// Reads a streamed answer.
pub(super) struct ChatStream {
    parser: SseParser,
}

impl ChatStream {
    pub(super) fn new() -> Self {
        Self { parser: SseParser::new(UPSTREAM_LINE_MAX_BYTES) }
    }

    /// Reads a piece of the body; whether it held any event.
    pub(super) fn read(&mut self, name: &str, mut piece: &[u8], told: &mut Told) -> Result<bool, Failure> {
        let mut progress = false;
        while !told.done {
            let event = self.parser.next(&mut piece).map_err(|error| Failure::unreadable(name, error))?;
            let Some(event) = event else { break };
            progress = true;
            if event.data == "[DONE]" {
                told.done = true;
            } else if let Some(failure) = Failure::event(name, &event) {
                return Err(failure);
            } else {
                told.take(name, event.data)?;
            }
        }
        Ok(progress)
    }
}

/// Reads an answer that came in one piece.
pub(super) fn whole(name: &str, body: &[u8], told: &mut Told) -> Result<(), Failure> {
    let text = std::str::from_utf8(body).map_err(|_| Failure::unavailable(name, "sent text that is not UTF-8"))?;
    told.take(name, text)?;
    if told.finish_reason.is_none() && told.text.is_empty() {
        return Err(Failure::unavailable(name, &format!("sent an answer without text: {}", excerpt(text))));
    }
    told.done = true;
    Ok(())
}

#[cfg(test)]
mod tests;
