//! `cargo xtask fuzz`: the fuzz targets, for any time.
//!
//! The work is done by the program of the crate `fuzz`, so that `xtask` need not be built with
//! everything that is fuzzed. It is built with debug assertions and overflow checks.

use crate::step::program;
use crate::workspace::cargo;
use anyhow::Result;
use std::ffi::OsString;

/// Options of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Targets and options; `--help` shows them
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    words: Vec<OsString>,
}

/// Builds the program and runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "fuzz", "--"]);
    command.args(&args.words);
    program("fuzz", &mut command)
}
