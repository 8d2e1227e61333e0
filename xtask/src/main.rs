//! `cargo xtask`: the project's own commands.
//!
//! - `check`: everything that must pass before a change goes in; CI runs this;
//! - `layers`, `conventions`: two parts of it, on their own;
//! - `long`: the tests that take too long, or need too much, for every change;
//! - `fuzz`: hostile bytes against every parser, device and engine, for any time;
//! - `compare`: Doppel beside other emulators, in one run;
//! - `exits`: what an access to a device, a start and the monitor itself cost, by engine.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    reason = "a program that reports on standard output"
)]

mod check;
mod compare;
mod conventions;
mod exits;
mod fuzz;
mod host;
mod layers;
mod long;
mod step;
mod workspace;

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
enum Xtask {
    /// Run every check that a change must pass: layers, conventions, format, lints, tests, docs
    Check,
    /// Check that in-tree dependencies go strictly down a layer
    Layers,
    /// Check the conventions that neither the compiler nor clippy knows
    Conventions,
    /// Run the long tests
    Long(long::Args),
    /// Run fuzz targets; inputs that fail are kept
    Fuzz(fuzz::Args),
    /// Measure Doppel beside other emulators and write docs/comparison.{md,svg,json}
    Compare(compare::Args),
    /// Measure accesses to devices, start-up and memory under each engine, and write docs/exits.md
    Exits(exits::Args),
}

fn main() -> ExitCode {
    match run(Xtask::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Xtask) -> Result<()> {
    match command {
        Xtask::Check => check::run(),
        Xtask::Layers => layers::run(),
        Xtask::Conventions => conventions::run(),
        Xtask::Long(args) => long::run(&args),
        Xtask::Fuzz(args) => fuzz::run(&args),
        Xtask::Compare(args) => compare::run(&args),
        Xtask::Exits(args) => exits::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Xtask::command().debug_assert();
    }
}
