//! Steps of a longer command: each says what it does, and how long it took.

use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::Instant;

/// Does one step.
pub(crate) fn step(title: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {title}");
    let start = Instant::now();
    work().with_context(|| format!("failed: {title}"))?;
    println!("== {title}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Does one step that is a program.
pub(crate) fn program(title: &str, command: &mut Command) -> Result<()> {
    step(title, || run(command))
}

/// Runs a program to its end; that it fails is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("can't run {name}"))?;
    if !status.success() {
        bail!("{name} ended with {status}");
    }
    Ok(())
}
