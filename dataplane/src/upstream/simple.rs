//! Servers with `POST /chat`: a prompt in, a text out.

use serde::{Deserialize, Serialize};

use super::{
    failure::{Failure, excerpt},
    openai::Told,
};

#[derive(Serialize)]
struct Request<'a> {
    prompt: &'a str,
    max_tokens: u32,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

/// The body of a call.
pub(super) fn request(prompt: &str, max_tokens: u32) -> Vec<u8> {
    serde_json::to_vec(&Request { prompt, max_tokens }).unwrap_or_default()
}

/// Reads an answer.
pub(super) fn whole(name: &str, body: &[u8], told: &mut Told) -> Result<(), Failure> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| {
        let body = excerpt(&String::from_utf8_lossy(&body[..body.len().min(1_024)]));
        Failure::unavailable(name, &format!("sent what is no answer with a text ({error}): {body}"))
    })?;
    told.text = answer.text;
    told.finish_reason = Some(super::stop());
    told.done = true;
    Ok(())
}
