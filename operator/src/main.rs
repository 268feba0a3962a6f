//! `chatgateway-operator`: runs `ChatGateway` resources.

use std::process::ExitCode;

use chatgateway_operator::args::Cli;
use clap::Parser;

// Gives memory back after a peak, such as the first lists of everything, where the system's allocator keeps it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
