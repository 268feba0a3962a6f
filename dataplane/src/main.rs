//! `chatgateway-dataplane`: the chat gateway's process, and its small tools.

use std::process::ExitCode;

use chatgateway_dataplane::{drain, run, terminal};
use clap::{Parser, Subcommand};

// Gives memory back after a peak, where the system's allocator keeps it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The chat gateway: WebSocket, SSE, long polling, OpenAI API and gRPC in front of language models.
#[derive(Parser)]
#[command(name = "chatgateway-dataplane", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve chats until a SIGTERM, then finish the answers and exit.
    Run(run::Args),
    /// Ask the process beside this one to leave, and wait until it has.
    Drain(drain::Args),
    /// Chat from the terminal.
    Chat(terminal::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Drain(args) => small_runtime().and_then(|runtime| runtime.block_on(drain::run(args))),
        Command::Chat(args) => small_runtime().and_then(|runtime| runtime.block_on(terminal::run(args))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn small_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
