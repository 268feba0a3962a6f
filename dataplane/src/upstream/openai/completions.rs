//! OpenAI's text completions: the request made from a session's turn.

use chatgateway_config::PromptFormat;

use super::{Extra, Json};
use crate::upstream::{Ask, prompt};

/// Fields that are the gateway's to set, or that would make more or other than one answer to a turn.
const OWN_FIELDS: [&str; 9] =
    ["model", "messages", "prompt", "stream", "stream_options", "n", "best_of", "echo", "suffix"];

/// A turn as a completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct Completion {
    /// The conversation.
    pub(in crate::upstream) prompt: String,
    /// The other fields of the request, in a fixed order, without the braces.
    pub(in crate::upstream) rest: String,
    /// The answer begins with a space that belongs to the prompt.
    pub(in crate::upstream) trim: bool,
}

impl Completion {
    /// A turn in a prompt's format.
    ///
    /// # Errors
    /// Messages that are no text, options that are none.
    pub(in crate::upstream) fn new(ask: &Ask, model: &str, format: PromptFormat) -> Result<Self, String> {
        let extra = Extra::read(&ask.body.extra)?;
        let prompt = prompt::render(ask, &extra, format)?;
        let mut out = Json(Vec::with_capacity(256));
        out.raw("\"model\":").string(model).raw(",\"stream\":true,\"stream_options\":{\"include_usage\":true}");
        let options = extra.options.unwrap_or_default();
        let has = |name: &str| options.keys().any(|key| key.0 == name);
        let (has_stop, has_max_tokens) = (has("stop"), has("max_tokens"));
        for (name, value) in &options {
            match &*name.0 {
                // What chat completions call it; text completions know the older name only.
                "max_completion_tokens" if !has_max_tokens => drop(out.raw(",\"max_tokens\":").raw(value.get())),
                "max_completion_tokens" => {}
                name if OWN_FIELDS.contains(&name) => {}
                name => drop(out.raw(",").string(name).raw(":").raw(value.get())),
            }
        }
        if !has_stop {
            out.raw(",\"stop\":").string(prompt::stop(format));
        }
        let rest = String::from_utf8(out.0).map_err(|_| "the options are not UTF-8".to_owned())?;
        Ok(Self { prompt, rest, trim: format == PromptFormat::Plain && ask.prefix.is_none() })
    }

    /// The body of a call for this turn alone.
    pub(in crate::upstream) fn body(&self) -> Vec<u8> {
        let mut out = Json(Vec::with_capacity(self.prompt.len() + self.rest.len() + 32));
        out.raw("{\"prompt\":").string(&self.prompt).raw(",").raw(&self.rest).raw("}");
        out.0
    }
}

#[cfg(test)]
mod tests;
