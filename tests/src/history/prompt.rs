//! Prompts that name their session and turn in every word, and answers that repeat them word by word.
//!
//! A word is `<session>.<turn number>.<word number>`, so no answer has a word twice or shares one with another answer: what
//! is doubled, missing or someone else's shows.

use std::fmt::Write as _;

use serde_json::Value;

/// A prompt of so many words. `behaviour` tells the simulator how to answer this one.
pub fn prompt(session: &str, number: u64, words: u64, behaviour: Option<&Value>) -> String {
    let mut text = behaviour.map(|behaviour| format!("sim:{behaviour} ")).unwrap_or_default();
    for word in 0..words {
        let blank = if word > 0 { " " } else { "" };
        // A string takes everything.
        let _infallible = write!(text, "{blank}{session}.{number}.{word}");
    }
    text
}

/// What a simulator whose answer is `{text}` says to a prompt: the prompt without what is meant for the simulator.
pub fn answer(prompt: &str) -> &str {
    let Some(rest) = prompt.strip_prefix("sim:") else { return prompt };
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    match values.next() {
        Some(Ok(_)) => rest.get(values.byte_offset()..).unwrap_or_default().trim_start(),
        _ => prompt,
    }
}

/// The session that a prompt names.
pub fn session_of(prompt: &str) -> Option<&str> {
    answer(prompt).split('.').next().filter(|session| !session.is_empty())
}

/// A whole word of another session in a text. Sessions of these prompts are named by a letter and a number: what is left of
/// a mangled word is not taken for one.
pub fn foreign_word<'a>(text: &'a str, session: &str) -> Option<&'a str> {
    text.split(' ').find(|word| {
        let mut parts = word.split('.');
        let of = parts.next().unwrap_or_default();
        let named = of.strip_prefix(|c: char| c.is_ascii_lowercase()).is_some_and(is_number);
        named && of != session && parts.clone().count() == 2 && parts.all(is_number)
    })
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
