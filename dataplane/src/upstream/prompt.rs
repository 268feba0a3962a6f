//! A conversation as one prompt, for servers that continue text.

use chatgateway_config::PromptFormat;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Ask,
    openai::{Extra, Str},
};

/// The names that ChatML gives its marks: the gateway's to write, so that no text can end a message.
const MARKS: [(&str, &str); 2] = [("<|im_start|>", "<im_start>"), ("<|im_end|>", "<im_end>")];

/// Who says something, and what.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Str<'a>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Option<Str<'a>>,
}

/// The prompt that asks for the next answer, or for the rest of one.
///
/// # Errors
/// Messages that are no text.
pub(super) fn render(ask: &Ask, extra: &Extra<'_>, format: PromptFormat) -> Result<String, String> {
    let mut out = Prompt { text: String::new(), format };
    for turn in ask.history.iter().filter(|turn| !turn.answer.is_empty()) {
        out.message("user", &turn.text);
        out.message("assistant", &turn.answer);
    }
    match &extra.messages {
        None => out.message("user", &ask.body.text),
        Some(messages) => {
            for message in messages {
                let message: Message<'_> = serde_json::from_str(message.get())
                    .map_err(|error| format!("messages: one of them is no message: {error}"))?;
                out.message(role(&message.role.0)?, &content(message.content)?);
            }
        }
    }
    out.answer(ask.prefix.as_deref());
    Ok(out.text)
}

/// Where an answer ends, unless the turn says so.
pub(super) fn stop(format: PromptFormat) -> &'static str {
    match format {
        PromptFormat::Plain => "\nUser:",
        PromptFormat::ChatML => "<|im_end|>",
    }
}

struct Prompt {
    text: String,
    format: PromptFormat,
}

impl Prompt {
    fn message(&mut self, role: &str, content: &str) {
        self.begin(role);
        if self.format == PromptFormat::Plain {
            self.text.push(' ');
        }
        self.content(content);
        self.text.push_str(match self.format {
            PromptFormat::Plain => "\n",
            PromptFormat::ChatML => "<|im_end|>\n",
        });
    }

    fn answer(&mut self, prefix: Option<&str>) {
        self.begin("assistant");
        if let Some(prefix) = prefix {
            if self.format == PromptFormat::Plain {
                self.text.push(' ');
            }
            self.content(prefix);
        }
    }

    fn begin(&mut self, role: &str) {
        match self.format {
            PromptFormat::Plain => {
                let name = match role {
                    "system" => "System:",
                    "assistant" => "Assistant:",
                    _ => "User:",
                };
                self.text.push_str(name);
            }
            PromptFormat::ChatML => {
                for part in ["<|im_start|>", role, "\n"] {
                    self.text.push_str(part);
                }
            }
        }
    }

    fn content(&mut self, content: &str) {
        if self.format == PromptFormat::ChatML && content.contains("<|im_") {
            let plain = MARKS.iter().fold(content.to_owned(), |text, (mark, plain)| text.replace(mark, plain));
            self.text.push_str(&plain);
        } else {
            self.text.push_str(content);
        }
    }
}

/// The roles that a prompt knows.
fn role(role: &str) -> Result<&'static str, String> {
    match role {
        "system" | "developer" => Ok("system"),
        "user" => Ok("user"),
        "assistant" => Ok("assistant"),
        other => {
            Err(format!("messages: the role {other:?} cannot be written as text; there are system, user and assistant"))
        }
    }
}

fn content(content: Option<&RawValue>) -> Result<String, String> {
    let Some(content) = content else { return Ok(String::new()) };
    if let Ok(text) = serde_json::from_str::<Option<Str<'_>>>(content.get()) {
        return Ok(text.map_or_else(String::new, |text| text.0.into_owned()));
    }
    let parts: Vec<Part<'_>> = serde_json::from_str(content.get())
        .map_err(|_| "messages: a content is neither a text nor a list of texts".to_owned())?;
    let mut texts = String::new();
    for part in parts {
        let none = "messages: this model reads texts only, and a part of a content is none";
        texts.push_str(&part.text.ok_or(none)?.0);
    }
    Ok(texts)
}

#[cfg(test)]
mod tests;
