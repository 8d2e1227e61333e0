//! `cargo xtask compare`: Doppel beside other emulators, in one run.
//!
//! Every peer boots the same kernel, initrd and command line, with the same memory and one CPU,
//! in turn, so that a machine that gets busier or slower meets all of them. Only ratios within
//! one run mean anything.
//!
//! - `workload`: what the guest does, and which spans of time count;
//! - `boot`: the kernel and the initrd that carry it;
//! - `peer`, `doppel`, `bochs`: who runs it;
//! - `measure`: one run, timed by the lines on the guest's first serial port;
//! - `results`: what is kept of all runs; `table` and `plot` show it.

mod bochs;
mod boot;
mod doppel;
mod measure;
mod peer;
mod plot;
mod results;
mod table;
mod workload;

use crate::workspace;
use anyhow::{Context, Result, bail};
use boot::Boot;
use peer::Peer;
use results::{Measurement, Results, Setting};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use workload::{WORKLOADS, Workload};

/// Options of `cargo xtask compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Runs of every workload on every peer
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,

    /// Peers, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    peers: Vec<String>,

    /// Workloads, separated by commas [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    workloads: Vec<String>,

    /// Series of Debian's kernel, such as 6.12 [default: the newest of the host's release]
    #[arg(long, value_name = "SERIES")]
    kernel_series: Option<String>,

    /// The guest's memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u32,

    /// Seconds after which a run has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,

    /// Directory for the results [default: docs, in the workspace]
    #[arg(long, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

/// Runs the comparison, prints the table and writes the files.
pub(crate) fn run(args: &Args) -> Result<()> {
    let peers = chosen(all_peers(), |peer| peer.id(), &args.peers, "peer")?;
    let workloads = chosen(
        WORKLOADS.iter().collect(),
        |w| w.name,
        &args.workloads,
        "workload",
    )?;
    for peer in &peers {
        peer.install()?;
    }
    let guest = boot::guest(args.kernel_series.clone())?;
    let setting = Setting::now(guest.kernel_release.clone(), args.memory, command_words())?;
    let mut results = Results::new(setting);
    for peer in &peers {
        results.peers.push(peer.describe()?);
    }
    for workload in workloads {
        let measured = measure_workload(workload, &peers, &guest, args)?;
        results.measurements.extend(measured);
    }
    println!("{}", table::text(&results));
    let directory = args
        .output
        .clone()
        .unwrap_or_else(|| workspace::root().join("docs"));
    write(&directory, &results)
}

/// All peers; ratios are to the first.
fn all_peers() -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(doppel::Doppel::new("interpreter")),
        Box::new(bochs::Bochs),
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

/// Runs one workload on all peers, in turn.
fn measure_workload(
    workload: &Workload,
    peers: &[Box<dyn Peer>],
    guest: &image::Guest,
    args: &Args,
) -> Result<Vec<Measurement>> {
    let scratch = tempfile::Builder::new().prefix("compare-").tempdir()?;
    let boot = Boot::new(guest, workload, args.memory, scratch.path())?;
    let mut commands = Vec::new();
    for peer in peers {
        let directory = scratch.path().join(peer.id());
        fs::create_dir(&directory)?;
        commands.push((peer, peer.prepare(&boot, &directory)?, directory));
    }
    let mut measured = Measurement::none(workload, peers);
    for repetition in 1..=args.repetitions {
        for (peer, command, directory) in &mut commands {
            let timeout = Duration::from_secs(args.timeout);
            let times = measure::run(command, workload.last_mark(), timeout, directory)
                .with_context(|| format!("{}, workload {}", peer.id(), workload.name))?;
            for measurement in measured.iter_mut().filter(|m| m.peer == peer.id()) {
                let seconds = measurement.add(&times)?;
                let (title, peer) = (measurement.title(), &measurement.peer);
                println!("{title}: {peer} {seconds:.2} s (run {repetition})");
            }
        }
    }
    Ok(measured)
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
fn command_words() -> String {
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
    fn items_are_chosen_by_name() {
        let names = |words: &[&str]| -> Vec<String> { words.iter().map(|&w| w.into()).collect() };
        let choose = |words: &[&str]| chosen(vec!["a", "b"], |item| item, &names(words), "letter");
        assert_eq!(choose(&[]).unwrap(), ["a", "b"]);
        assert_eq!(choose(&["b"]).unwrap(), ["b"]);
        let error = choose(&["b", "c"]).unwrap_err().to_string();
        assert_eq!(error, "there is no letter c; there is a, b");
    }
}
