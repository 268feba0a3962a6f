//! The model-server simulator as a program.

use std::net::SocketAddr;

use anyhow::Context as _;
use chatgateway_tests::simulator::{Behaviour, Settings, Simulator};
use clap::Parser;

/// A model server that answers at a set pace and fails as told: OpenAI's API at /v1, the Simple protocol at /chat.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address to listen on; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// Tokens of an answer
    #[arg(long, default_value_t = 50)]
    tokens: u32,
    /// Tokens a second after the first; 0 sends all at once
    #[arg(long, default_value_t = 50.0)]
    tokens_per_second: f64,
    /// Milliseconds to the first token
    #[arg(long, default_value_t = 100.0)]
    first_token_ms: f64,
    /// Tokens are send times (CLOCK_MONOTONIC, ns)
    #[arg(long)]
    stamp: bool,
    /// Time calls as a server that gains by batching does: 80/200 ms alone, 140/348 ms for four
    #[arg(long)]
    batching: bool,
    /// Further fields of the behaviour as a JSON object, for example {"fault": "die", "fault_after": 3}
    #[arg(long, default_value = "{}")]
    behaviour: String,
    /// Calls that run at a time; 0 for any number
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Calls that wait for a worker before others are refused with 503
    #[arg(long, default_value_t = 1_000)]
    max_queued: usize,
    /// Blocks of 64 bytes of prompts that are remembered; see prefix_saving of the behaviour
    #[arg(long, default_value_t = 0)]
    prefix_blocks: usize,
    /// Calls that are remembered one by one at /sim/calls; older ones are only counted
    #[arg(long, default_value_t = 1_000)]
    calls_remembered: usize,
    /// A model to list; may be given several times
    #[arg(long, default_value = "sim-model")]
    model: Vec<String>,
    /// Refuse models that are not listed with 404
    #[arg(long)]
    strict_models: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let base = if arguments.batching {
        Behaviour { tokens: arguments.tokens, ..Behaviour::batching_server() }
    } else {
        Behaviour {
            tokens: arguments.tokens,
            tokens_per_second: arguments.tokens_per_second,
            first_token_ms: arguments.first_token_ms,
            stamp: arguments.stamp,
            ..Behaviour::default()
        }
    };
    let changes = serde_json::from_str(&arguments.behaviour).context("--behaviour is not JSON")?;
    let simulator = Simulator::start(Settings {
        bind: arguments.listen,
        behaviour: base.with(&changes).context("--behaviour")?,
        workers: arguments.workers,
        max_queued: arguments.max_queued,
        calls_remembered: arguments.calls_remembered,
        prefix_blocks: arguments.prefix_blocks,
        models: arguments.model,
        strict_models: arguments.strict_models,
    })?;
    println!("model-sim listening on {}", simulator.url());
    simulator.join();
    Ok(())
}
