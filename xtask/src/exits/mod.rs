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
/// How long a round takes, about: a mark's way through a pipe is nothing against it.
const ROUND: Duration = Duration::from_millis(20);
/// Rounds of each kind by which is found how many accesses take that time.
const TRIAL_ROUNDS: u32 = 3;
/// The least and the most loops of a round.
const LOOPS_MIN: u32 = 20;
const LOOPS_MAX: u32 = 1 << 23;

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
    let loops = loops(guest)?;
    let run = guest.accesses(loops, repetitions)?;
    let nanos = |kind: Kind| {
        let accesses = f64::from(loops[kind as usize] * UNROLLED);
        let rounds = run.rounds[kind as usize].iter();
        rounds
            .map(|round| round.as_secs_f64() * 1e9 / accesses)
            .collect()
    };
    Ok(Measured {
        starts,
        nanos: Kind::ALL.map(nanos),
        own_kib: run.own_kib,
        file_kib: run.file_kib,
        code_kib: run.code_kib,
    })
}

/// How many loops of each kind take about as long as [`ROUND`]: more are tried until they take time.
fn loops(guest: &Guest<'_>) -> Result<[u32; Kind::ALL.len()]> {
    let mut loops = [LOOPS_MIN; Kind::ALL.len()];
    loop {
        let trial = guest.accesses(loops, TRIAL_ROUNDS)?;
        let next = Kind::ALL.map(|kind| {
            let took = trial.rounds[kind as usize].iter().sum();
            next_loops(loops[kind as usize], took)
        });
        loops = next.map(|(loops, _)| loops);
        if next.iter().all(|(_, is_enough)| *is_enough) {
            return Ok(loops);
        }
    }
}

/// What to try after [`TRIAL_ROUNDS`] of `loops`, which `took` so long, and whether it will do.
fn next_loops(loops: u32, took: Duration) -> (u32, bool) {
    if took < ROUND && loops < LOOPS_MAX {
        // Too short to tell more than that.
        return ((loops * 8).min(LOOPS_MAX), false);
    }
    let wanted = ROUND.as_secs_f64() * f64::from(TRIAL_ROUNDS) / took.as_secs_f64().max(1e-6);
    let wanted = f64::from(loops) * wanted;
    (wanted.clamp(1.0, LOOPS_MAX.into()) as u32, true)
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
    fn rounds_take_about_as_long_as_they_shall() {
        let trial = TRIAL_ROUNDS * ROUND;
        assert_eq!(next_loops(20, ROUND / 2), (160, false));
        assert_eq!(next_loops(160, trial), (160, true));
        assert_eq!(next_loops(160, trial / 2), (320, true));
        assert_eq!(next_loops(160, trial * 1000), (1, true));
        assert_eq!(next_loops(LOOPS_MAX, Duration::ZERO), (LOOPS_MAX, true));
    }
}
