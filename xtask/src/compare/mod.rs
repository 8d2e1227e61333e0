//! `cargo xtask compare`: Doppel beside other emulators, and beside the host, in one run.
//!
//! Every guest has the same kernel, initrd and command line, and the same memory and CPUs. Peers
//! take turns, so that a machine that gets busier or slower meets all of them. Only ratios within
//! one run mean anything.
//!
//! - `workload`, `workloads`: what is done, and where;
//! - `guest/`: its programs, which `packages` and `userland` gather;
//! - `boot`: the kernel and the initrds that carry them;
//! - `peer`: who runs them: `doppel`, `qemu`, `native`, `bochs`;
//! - `runner`: all of them in order;
//! - `measure`: one run, timed by the guest's serial lines (`line`), with a look at the monitor's
//!   processes (`processes`);
//! - `results`, `setting`: what is kept; `bars`, `table` and `plot` show it.

mod bars;
mod bochs;
mod boot;
pub(crate) mod doppel;
mod line;
mod measure;
mod native;
mod packages;
pub(crate) mod peer;
mod plot;
pub(crate) mod processes;
mod qemu;
mod results;
mod runner;
pub(crate) mod setting;
pub(crate) mod table;
mod userland;
mod workload;
mod workloads;

use crate::workspace;
use anyhow::{Context, Result, bail};
use boot::Initrds;
use peer::{Pace, Peer};
use results::Results;
use runner::{Plan, Runner, SLOW_DIVISOR};
use setting::Setting;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use userland::Userland;
use workloads::WORKLOADS;

/// Options of `cargo xtask compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Runs of every workload on every peer
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,

    /// Peers, separated by commas; ratios are to the first [default: all but bochs]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    peers: Vec<String>,

    /// Workloads, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    workloads: Vec<String>,

    /// Do a twentieth of the work: for a test of the comparison, not of the peers
    #[arg(long)]
    quick: bool,

    /// Series of Debian's kernel, such as 6.12 [default: the newest of the host's release]
    #[arg(long, value_name = "SERIES")]
    kernel_series: Option<String>,

    /// The guest's memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,

    /// Seconds without a line of output after which a workload has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,

    /// Directory for the results [default: docs, in the workspace]
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

/// Runs the comparison, prints the tables and writes the files.
pub(crate) fn run(args: &Args) -> Result<()> {
    let peers = chosen_peers(&args.peers)?;
    let all = WORKLOADS.iter().collect();
    let workloads = chosen(all, |w| w.name, &args.workloads, "workload")?;
    for peer in &peers {
        peer.install()?;
    }
    let scratch = tempfile::Builder::new().prefix("compare-").tempdir()?;
    let userland = Userland::new(&scratch.path().join("root"))?;
    let guest = boot::guest(args.kernel_series.clone())?;
    let initrds = Initrds::new(&guest, &userland, scratch.path())?;
    let divisor = if args.quick { SLOW_DIVISOR } else { 1 };
    let release = guest.kernel_release.clone();
    let setting = Setting::now(release, args.memory, divisor, command_words())?;
    let mut results = Results::new(setting);
    for peer in &peers {
        results.peers.push(peer.describe()?);
    }
    let plan = Plan {
        workloads,
        memory_mib: args.memory,
        patience: Duration::from_secs(args.timeout),
        divisor,
    };
    let mut runner = Runner::new(plan, &initrds, results);
    for repetition in 0..args.repetitions {
        for peer in &peers {
            if peer.pace() == Pace::Full || repetition == 0 {
                runner.run(peer.as_ref())?;
            }
        }
    }
    let results = runner.results;
    println!("\n{}", table::text(&results));
    let directory = args
        .output
        .clone()
        .unwrap_or_else(|| workspace::root().join("docs"));
    write(&directory, &results)?;
    match results.failures().count() {
        0 => Ok(()),
        count => bail!("{count} measurements failed; the table tells which"),
    }
}

/// The peers that are named, in that order, or those that take part by default.
fn chosen_peers(names: &[String]) -> Result<Vec<Box<dyn Peer>>> {
    if names.is_empty() {
        return Ok(default_peers());
    }
    let mut peers = chosen(all_peers(), |peer| peer.id(), names, "peer")?;
    peers.sort_by_key(|peer| names.iter().position(|name| name == peer.id()));
    Ok(peers)
}

/// All peers.
fn all_peers() -> Vec<Box<dyn Peer>> {
    let mut peers = default_peers();
    peers.push(Box::new(bochs::Bochs));
    peers
}

/// The peers that take part if none is named; ratios are to the first.
fn default_peers() -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(doppel::Doppel::new("translator", Pace::Full)),
        Box::new(qemu::Qemu::new()),
        Box::new(native::Native),
        Box::new(doppel::Doppel::new("interpreter", Pace::Slow)),
    ]
}

/// Those of `all` that are named, or all if none is.
fn chosen<T>(
    all: Vec<T>,
    name: impl Fn(&T) -> &str,
    names: &[String],
    what: &str,
) -> Result<Vec<T>> {
    for wanted in names {
        if !all.iter().any(|item| name(item) == wanted) {
            let known: Vec<_> = all.iter().map(&name).collect();
            bail!("there is no {what} {wanted}; there is {}", known.join(", "));
        }
    }
    let is_chosen = |item: &T| names.is_empty() || names.iter().any(|n| n == name(item));
    Ok(all.into_iter().filter(is_chosen).collect())
}

fn write(directory: &Path, results: &Results) -> Result<()> {
    fs::create_dir_all(directory)?;
    let json = serde_json::to_string_pretty(results)? + "\n";
    let files = [
        ("json", json),
        ("md", table::document(results)),
        ("svg", plot::document(results)),
    ];
    for (extension, text) in files {
        let path = directory.join("comparison").with_extension(extension);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

/// The command line that was given, to be repeated by a reader. Paths of this host stay out.
pub(crate) fn command_words() -> String {
    let words = std::env::args().skip(1);
    let public = words.map(|word| {
        if word.contains('/') {
            "...".to_owned()
        } else {
            word
        }
    });
    format!("cargo xtask {}", public.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_peer_named_is_the_first() {
        let ids = |words: &[&str]| -> Vec<String> {
            let names: Vec<_> = words.iter().map(|&w| w.to_owned()).collect();
            let peers = chosen_peers(&names).unwrap();
            peers.iter().map(|peer| peer.id().to_owned()).collect()
        };
        assert_eq!(
            ids(&["qemu", "doppel-interpreter"]),
            ["qemu", "doppel-interpreter"]
        );
        assert_eq!(ids(&[])[0], "doppel-translator");
        assert!(!ids(&[]).contains(&"bochs".to_owned()));
    }

    #[test]
    fn items_are_chosen_by_name() {
        let names = |words: &[&str]| -> Vec<String> { words.iter().map(|&w| w.into()).collect() };
        let choose = |words: &[&str]| chosen(vec!["a", "b"], |item| item, &names(words), "letter");
        assert_eq!(choose(&[]).unwrap(), ["a", "b"]);
        assert_eq!(choose(&["b"]).unwrap(), ["b"]);
        let error = choose(&["b", "c"]).unwrap_err().to_string();
        assert_eq!(error, "there is no letter c; there is a, b");
    }
}
