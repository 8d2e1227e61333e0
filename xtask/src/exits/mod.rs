//! `cargo xtask exits`: what an access to a device costs under each engine, how long it takes from
//! the monitor's start to the guest's first instruction, and how much memory the monitor has of its
//! own. It runs the program that is shipped, with a guest of a few instructions.
//!
//! - `guest`: that guest;
//! - `run`: one run of it, timed by its marks on the debug console;
//! - `results`: what is kept of all runs; `table` shows it, beside its bars.

// The guest is also that of a test of `machine`, which shows that its accesses allocate nothing.
#[path = "../../../crates/machine/tests/exits/guest.rs"]
mod guest;
mod results;
mod run;
mod table;

use crate::compare::doppel::Doppel;
use crate::compare::peer::{Pace, Peer};
use crate::compare::setting::Setting;
use crate::compare::{command_words, doppel};
use crate::workspace;
use anyhow::{Context, Result, bail};
use guest::{Kind, UNROLLED};
use results::{Engine, Measured, Results};
use run::Guest;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The guest's memory.
const MEMORY_MIB: u32 = 128;
/// Accesses of a round that tells how many there must be in one that is measured.
const TRIAL_ACCESSES: u32 = 100 * UNROLLED;
/// How long a round takes, about: a mark's way through a pipe is nothing against it.
const ROUND: Duration = Duration::from_millis(25);
/// The most accesses of a round.
const ACCESSES_MAX: u32 = 1 << 24;

/// Options of `cargo xtask exits`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rounds of each kind of access, and starts
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,

    /// Directory for the results [default: docs, in the workspace]
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

/// Measures, prints the tables and writes the file.
pub(crate) fn run(args: &Args) -> Result<()> {
    let subject = Doppel::new("auto", Pace::Full);
    subject.install()?;
    let version = subject.describe()?.version;
    let setting = Setting::now(String::new(), MEMORY_MIB, 1, command_words())?;
    let scratch = tempfile::Builder::new().prefix("exits-").tempdir()?;
    let program = doppel::program();
    let mut engines = Vec::new();
    for name in engine_names(&program)? {
        println!("measuring the engine {name}");
        let guest = Guest {
            program: &program,
            engine: &name,
            memory_mib: MEMORY_MIB,
            directory: scratch.path(),
        };
        let outcome = measure(&guest, args.repetitions).map_err(|error| format!("{error:#}"));
        engines.push(Engine { name, outcome });
    }
    let results = Results {
        version,
        repetitions: args.repetitions,
        engines,
        setting,
    };
    println!("\n{}", table::text(&results));
    let directory = args.output.clone();
    let directory = directory.unwrap_or_else(|| workspace::root().join("docs"));
    fs::create_dir_all(&directory)?;
    let path = directory.join("exits.md");
    fs::write(&path, table::document(&results))
        .with_context(|| format!("can't write {}", path.display()))?;
    if results.measured().next().is_none() {
        bail!("no engine could be measured");
    }
    Ok(())
}

/// All of one engine.
fn measure(guest: &Guest<'_>, repetitions: u32) -> Result<Measured> {
    let mut starts = Vec::new();
    for _ in 0..repetitions {
        starts.push(guest.start()?);
    }
    let accesses = accesses(&guest.accesses(TRIAL_ACCESSES, 3)?.rounds);
    let run = guest.accesses(accesses, repetitions)?;
    let nanos = |round: &Duration| round.as_secs_f64() * 1e9 / f64::from(accesses);
    Ok(Measured {
        starts,
        nanos: run.rounds.map(|rounds| rounds.iter().map(nanos).collect()),
        own_kib: run.own_kib,
        file_kib: run.file_kib,
        code_kib: run.code_kib,
    })
}

/// How many accesses make a round of the slowest kind about as long as [`ROUND`], given the rounds
/// of a trial.
fn accesses(trial: &[Vec<Duration>; Kind::ALL.len()]) -> u32 {
    let best = trial.iter().filter_map(|rounds| rounds.iter().min());
    let slowest = best.max().copied().unwrap_or_default();
    let factor = ROUND.as_secs_f64() / slowest.as_secs_f64().max(1e-6);
    let accesses = f64::from(TRIAL_ACCESSES) * factor;
    let loops = accesses.min(ACCESSES_MAX.into()) as u32 / UNROLLED;
    loops.max(1) * UNROLLED
}

/// The engines that `program` has, as it lists them: a head, a line for each, what `auto` takes.
fn engine_names(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program).arg("engines").output();
    let output = output.with_context(|| format!("can't run {}", program.display()))?;
    let names = names(&String::from_utf8_lossy(&output.stdout));
    if names.is_empty() {
        bail!("doppel engines lists none");
    }
    Ok(names)
}

fn names(list: &str) -> Vec<String> {
    let lines = list.lines().skip(1);
    let first = lines.filter_map(|line| line.split_whitespace().next());
    let engines = first.take_while(|word| *word != "auto");
    engines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_those_that_are_listed() {
        let list = "ENGINE  STATE\nkvm  slow  so it is\ninterpreter  ready\nauto takes  kvm\n";
        assert_eq!(names(list), ["kvm", "interpreter"]);
        assert_eq!(names(""), [""; 0]);
    }

    #[test]
    fn the_slowest_kind_takes_a_round() {
        let trial = |slowest| {
            let mut rounds: [Vec<Duration>; 6] = Default::default();
            rounds.fill(vec![Duration::from_micros(3); 2]);
            rounds[1] = vec![slowest * 2, slowest];
            rounds
        };
        assert_eq!(accesses(&trial(ROUND)), TRIAL_ACCESSES);
        assert_eq!(accesses(&trial(ROUND / 2)), 2 * TRIAL_ACCESSES);
        assert_eq!(accesses(&trial(ROUND * 10_000)), UNROLLED);
        assert_eq!(accesses(&trial(Duration::ZERO)) % UNROLLED, 0);
    }
}
