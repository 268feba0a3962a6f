//! A model server that does what it is told: OpenAI's chat completions and completions, the `Simple` protocol, at any pace,
//! with any fault, and with a record of what it was asked.
//!
//! A call can change the [`Behaviour`] it meets: by the header `x-sim`, by a field `sim` of its body, by a model named
//! `sim:{…}`, or by a text that begins with `sim:{…}`, each with a JSON object of the behaviour's fields. Besides the
//! protocols' own paths there are `GET /sim/calls`, `POST /sim/reset`, `POST /sim/behaviour` (changes the default),
//! `POST /sim/next` (an array: changes for the next calls, one each) and `POST /sim/die` (`{"for_ms": N}`: its connections
//! break, and others are refused for so long).

mod answer;
mod behaviour;
mod prefix;
mod record;
mod request;
mod server;
pub mod stamps;
mod workers;

pub use behaviour::{Behaviour, Fault};
pub use record::{CALLS_REMEMBERED, CallRecord, Calls, Outcome};
pub use server::{Settings, Simulator};
