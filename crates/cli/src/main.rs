//! The `doppel` command.
//!
//! Exit status: see [`status`]. What a user did wrong is one line on standard error and status 2.
#![forbid(unsafe_code)]

mod args;
mod console;
mod debian;
mod engines;
mod keys;
mod monitor;
mod progress;
mod run;
mod status;
mod terminal;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = args::Doppel::parse().command;
    let result = match command {
        args::Command::Run(args) => run::run(&args),
        args::Command::Engines => engines::print(),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("doppel: {error:#}");
            ExitCode::from(status::USAGE)
        }
    }
}
