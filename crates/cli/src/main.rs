//! The `doppel` command.
//!
//! Exit status: see [`status`]. What a user did wrong is one line on standard error and status 2.
#![forbid(unsafe_code)]

mod args;
mod console;
mod cpu;
mod debian;
mod ending;
mod engines;
mod keys;
mod kvm_speed;
mod monitor;
mod payload;
mod progress;
mod run;
mod statistics;
mod status;
mod terminal;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command = match args::Doppel::try_parse() {
        Ok(doppel) => doppel.command,
        Err(error) if error.use_stderr() => {
            eprintln!(
                "doppel: {} (see doppel --help)",
                one_line(&error.to_string())
            );
            return ExitCode::from(status::USAGE);
        }
        // Help and version, which were asked for.
        Err(error) => error.exit(),
    };
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

/// What is wrong with the command line, out of clap's page about it: its first paragraph.
fn one_line(page: &str) -> String {
    let paragraph = page.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = paragraph
        .trim_start_matches("error: ")
        .split_whitespace()
        .collect();
    words.join(" ")
}
