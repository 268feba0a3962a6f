//! `chatgateway-operator`: runs `ChatGateway` resources.

use std::process::ExitCode;

use chatgateway_operator::args::Cli;
use clap::Parser;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
