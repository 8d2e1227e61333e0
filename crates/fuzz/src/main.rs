//! The program behind `cargo xtask fuzz`: runs targets in child processes, so that a panic, an
//! abort or a hang ends only a child, and keeps the inputs that failed.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    reason = "a program that reports on standard output"
)]

mod supervisor;

use clap::Parser;
use fuzz::{Campaign, LEN_MAX, TARGETS, Target};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use supervisor::Plan;

/// Runs fuzz targets.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask fuzz", max_term_width = 100)]
struct Args {
    /// Targets to run [default: all]
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,

    /// For how long to run each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,

    /// Which inputs: the same number makes the same inputs
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Processes at a time [default: as many as the host has processors]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,

    /// Run the target on one file only
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// Where inputs that fail, and what was said, are kept
    #[arg(long, value_name = "DIR", default_value = "target/fuzz")]
    out: PathBuf,

    /// Write the seeds of the targets to DIR/TARGET, as a corpus to begin with
    #[arg(long, value_name = "DIR")]
    write_seeds: Option<PathBuf>,

    /// Print the targets there are
    #[arg(long)]
    list: bool,

    /// As a child: where each input is written before it is run
    #[arg(long, value_name = "FILE", hide = true)]
    child: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether all went well.
fn run(args: &Args) -> Result<bool, String> {
    let targets = chosen(&args.targets)?;
    if args.list {
        for target in targets {
            println!("{}", target.name);
        }
        return Ok(true);
    }
    if let Some(directory) = &args.write_seeds {
        write_seeds(directory, &targets).map_err(|e| format!("{}: {e}", directory.display()))?;
        return Ok(true);
    }
    if let Some(file) = &args.input {
        let [target] = targets[..] else {
            return Err("give one target with --input".into());
        };
        let input = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
        (target.run)(&input);
        println!("{}: {} runs through", target.name, file.display());
        return Ok(true);
    }
    if let Some(current) = &args.child {
        let [target] = targets[..] else {
            return Err("a child runs one target".into());
        };
        let time = Duration::from_secs(args.seconds);
        let campaign = Campaign {
            target,
            seed: args.seed,
            time,
            current: Some(current.clone()),
        };
        println!("{}", campaign.run());
        return Ok(true);
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan {
        targets,
        seconds: args.seconds,
        seed: args.seed,
        jobs: args.jobs.unwrap_or(processors).max(1),
        out: args.out.clone(),
    };
    plan.run()
        .map_err(|error| format!("{}: {error}", args.out.display()))
}

fn chosen(names: &[String]) -> Result<Vec<&'static Target>, String> {
    if names.is_empty() {
        return Ok(TARGETS.iter().collect());
    }
    let find = |name: &String| {
        fuzz::target(name).ok_or_else(|| format!("there is no target {name}; --list prints all"))
    };
    names.iter().map(find).collect()
}

fn write_seeds(directory: &Path, targets: &[&Target]) -> std::io::Result<()> {
    for target in targets {
        let corpus = directory.join(target.name);
        std::fs::create_dir_all(&corpus)?;
        for (index, mut seed) in (target.seeds)().into_iter().enumerate() {
            seed.truncate(LEN_MAX);
            std::fs::write(corpus.join(format!("seed-{index}")), seed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn targets_are_chosen_by_name() {
        assert_eq!(chosen(&[]).unwrap().len(), TARGETS.len());
        assert_eq!(chosen(&["kernel".into()]).unwrap()[0].name, "kernel");
        assert!(chosen(&["nothing".into()]).is_err());
    }
}
