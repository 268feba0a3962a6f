//! Several pods on one real Redis: reading, resuming, cancelling and retrying elsewhere, takeover, drain.
#![cfg(test)]

mod anywhere;
mod doubt;
mod drain;
mod support;
mod takeover;
mod upstreams;
