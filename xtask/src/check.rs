//! `cargo xtask check`: everything that a change must pass.

use crate::step::{program, step};
use crate::workspace::cargo;
use crate::{conventions, layers};
use anyhow::Result;
use std::process::{Command, Stdio};

/// Runs all checks, the quick ones first, and ends with the first that fails.
pub(crate) fn run() -> Result<()> {
    step("layers", layers::run)?;
    step("conventions", conventions::run)?;
    program("format", cargo().args(["fmt", "--all", "--check"]))?;
    program("lints", &mut lints())?;
    program("tests", &mut tests())?;
    program("two minutes of random guest code", &mut random_guest_code())?;
    program(
        "tests in the documentation",
        cargo().args(["test", "--workspace", "--doc"]),
    )?;
    program("documentation", &mut documentation())
}

fn lints() -> Command {
    let mut command = cargo();
    command.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    command
}

/// All tests but those in the documentation, which cargo-nextest does not know.
///
/// With cargo-nextest every test is a process of its own, with a time limit
/// (`.config/nextest.toml`); where it is not installed, cargo's own runner does.
fn tests() -> Command {
    let mut command = cargo();
    if has_nextest() {
        command.args(["nextest", "run", "--workspace", "--all-targets"]);
    } else {
        println!("cargo-nextest is not installed: using cargo test");
        command.args(["test", "--workspace", "--all-targets"]);
    }
    command
}

/// The CPU against code that nobody wrote; `cargo xtask fuzz` goes on for any time.
fn random_guest_code() -> Command {
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "fuzz", "--"]);
    command.args(["guest_code", "--seconds", "120"]);
    command
}

fn has_nextest() -> bool {
    let mut command = cargo();
    command
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn documentation() -> Command {
    let mut command = cargo();
    command
        .args([
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ])
        .env(
            "RUSTDOCFLAGS",
            "-D warnings -A rustdoc::private_intra_doc_links",
        );
    command
}
