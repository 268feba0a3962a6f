//! What the asks of one call have in common, and the call that is made of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::upstream::{openai::Completion, server::Call};

/// How a call is asked and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::upstream) enum Dialect {
    /// A Simple server's texts.
    Simple,
    /// Turns of sessions as text completions, streamed.
    Turns,
    /// Clients' own text completions, whose answers go back as they are.
    Pass {
        /// As events.
        stream: bool,
        /// With what it cost, at the end of the events.
        usage: bool,
    },
}

/// All that a call says beside its prompts. Asks with equal recipes may share a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::upstream) struct Recipe {
    pub(in crate::upstream) dialect: Dialect,
    /// The other fields of the request, in a fixed order, without the braces.
    rest: String,
    /// Headers that say what the request means.
    headers: Vec<(HeaderName, HeaderValue)>,
    own_model: bool,
}

/// Headers that clients of one call must have in common.
const COMMON_HEADERS: [HeaderName; 1] = [HeaderName::from_static("openai-beta")];

/// Fields of a text completion that concern the batch as a whole: such requests go alone.
#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    n: Option<u64>,
    #[serde(default)]
    best_of: Option<u64>,
    #[serde(default)]
    stream_options: Option<BTreeMap<String, Box<RawValue>>>,
}

impl Recipe {
    pub(in crate::upstream) fn simple(max_tokens: u32) -> Self {
        let rest = format!("\"max_tokens\":{max_tokens}");
        Self { dialect: Dialect::Simple, rest, headers: Vec::new(), own_model: false }
    }

    pub(in crate::upstream) fn turns(completion: &Completion, own_model: bool) -> Self {
        Self { dialect: Dialect::Turns, rest: completion.rest.clone(), headers: Vec::new(), own_model }
    }

    /// That of a client's request for a text completion, and its prompt. None where it must go alone: several prompts or
    /// several answers, or a body that the model server had better see as it is.
    pub(in crate::upstream) fn pass(call: &Call) -> Option<(Self, String)> {
        let asked: Asked = serde_json::from_slice(&call.body).ok()?;
        let one = |number: Option<u64>| number.is_none_or(|number| number == 1);
        let known = |options: &BTreeMap<String, Box<RawValue>>| options.keys().all(|option| option == "include_usage");
        if !one(asked.n) || !one(asked.best_of) || !asked.stream_options.as_ref().is_none_or(known) {
            return None;
        }
        let mut fields: BTreeMap<String, &RawValue> = serde_json::from_slice(&call.body).ok()?;
        let prompt = serde_json::from_str(fields.remove("prompt")?.get()).ok()?;
        let mut rest = String::with_capacity(call.body.len());
        for (name, value) in fields {
            if !rest.is_empty() {
                rest.push(',');
            }
            rest.push_str(&serde_json::to_string(&name).ok()?);
            rest.push(':');
            rest.push_str(value.get());
        }
        let common = |name: HeaderName| Some((name.clone(), call.headers.get(name)?.clone()));
        let headers = COMMON_HEADERS.into_iter().filter_map(common).collect();
        let usage = asked.stream_options.is_some_and(|options| options.values().any(|value| value.get() == "true"));
        let dialect = Dialect::Pass { stream: !call.whole, usage };
        Some((Self { dialect, rest, headers, own_model: call.own_model }, prompt))
    }

    /// The call for these prompts. Its errors are for the caller to read.
    pub(in crate::upstream) fn call(&self, prompts: &[&str]) -> Call {
        let (path, field) = match self.dialect {
            Dialect::Simple => ("/chat/batch", "prompts"),
            Dialect::Turns | Dialect::Pass { .. } => ("/completions", "prompt"),
        };
        let bytes = prompts.iter().map(|prompt| prompt.len() + 8).sum::<usize>() + self.rest.len() + 32;
        let mut body = Vec::with_capacity(bytes);
        body.extend_from_slice(format!("{{\"{field}\":").as_bytes());
        // Strings are always written, and a Vec takes them always.
        let _ = serde_json::to_writer(&mut body, prompts);
        if !self.rest.is_empty() {
            body.push(b',');
            body.extend_from_slice(self.rest.as_bytes());
        }
        body.push(b'}');
        let mut headers: HeaderMap = self.headers.iter().cloned().collect();
        if self.is_stream() {
            headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        }
        Call {
            path,
            body: Bytes::from(body),
            headers,
            // Its place is there already.
            who: "".into(),
            own_model: self.own_model,
            pass_errors: true,
            whole: !self.is_stream(),
        }
    }

    fn is_stream(&self) -> bool {
        matches!(self.dialect, Dialect::Turns | Dialect::Pass { stream: true, .. })
    }
}

#[cfg(test)]
mod tests;
