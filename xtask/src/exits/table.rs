//! The results as text, and as `docs/exits.md`.

use super::guest::Kind;
use super::results::{Measured, Results, mib, spread};
use crate::compare::table::{aligned, markdown};
use std::fmt::Write;

/// What must be kept to: from the monitor's start to the guest's first words, in milliseconds.
const START_MILLIS_MAX: f64 = 20.0;
/// The monitor's memory beyond the guest's and beyond translated code, in MiB.
const OWN_MIB_MAX: f64 = 5.0;

type Rows = Vec<Vec<String>>;

/// The tables for a terminal.
pub(super) fn text(results: &Results) -> String {
    let mut text = [accesses(results), bars(results)]
        .map(|rows| aligned(&rows))
        .join("\n");
    text += &failures(results);
    text
}

/// The document.
pub(super) fn document(results: &Results) -> String {
    let setting = &results.setting;
    let mut text = String::from("# Exits, start and memory\n\n");
    let _ = writeln!(
        text,
        "What an access to a device costs, how long a start takes, and how much memory the monitor \
         has of its own, under each engine that this host can run. This file is written by `{}`.\n",
        setting.command
    );
    let _ = writeln!(
        text,
        "## Accesses\n\nNanoseconds from one access to the next, by the host's clock: the median \
         of {} rounds of about {} ms, in brackets the best. The first row is \
         the same loop with an instruction that leaves the guest's CPU alone: what its engine \
         takes for an instruction.\n\n{}",
        results.repetitions,
        super::ROUND.as_millis(),
        markdown(&accesses(results))
    );
    text += PATH;
    let _ = writeln!(
        text,
        "## Start and memory\n\nOf a machine with {} MiB and one vCPU, medians of {} starts, in \
         brackets the shortest and the longest. A start is from the moment before the program is \
         executed until another process has read the first byte that the guest writes, with its \
         second instruction. Memory is what the monitor's processes have resident beyond the \
         guest's memory, pages of the program's and the libraries' files included, which all monitors \
         on a host share, once the guest has made all of these \
         accesses and halts; what engines have translated or decoded grows with the guest's code, \
         of which there is little here (`cargo xtask compare` boots Linux). What the host's kernel \
         keeps for a virtual machine is in no process.\n\n{}",
        setting.guest_memory_mib,
        results.repetitions,
        markdown(&bars(results))
    );
    let failures = failures(results);
    if !failures.is_empty() {
        let _ = writeln!(text, "{failures}");
    }
    let _ = writeln!(
        text,
        "## Setting\n\n- Doppel {}, built with profile `dist`.\n- Date: {}.\n- Host: {}, {} CPUs, \
         Linux {}, load average {:.2} before.",
        results.version,
        setting.date,
        setting.host_cpu,
        setting.host_cpus,
        setting.host_kernel,
        setting.host_load
    );
    text
}

/// What stands behind the numbers.
const PATH: &str = "\
Every access goes from the engine as plain data to the board (`machine::board`), which finds the \
device in a table that never changes, or a PCI function in one that changes with its registers and \
has a lock that readers share, and on under the device's own lock. Nobody else wants either \
meanwhile, so they cost an atomic instruction each and never a system call. No access allocates: a test of `machine` (`tests/exits`) runs this \
guest under each engine with an allocator that counts.

The doorbell is the notification of a virtio queue in service. Under KVM it leaves the guest like \
any other access: there are no ioeventfds yet, as no device works in a thread of its own. Where the \
host's KVM emulates the guest's instructions, as one without hardware virtualization does, the \
first row is part of every other.

";

fn accesses(results: &Results) -> Rows {
    let names = results.measured().map(|(name, _)| format!("{name} (ns)"));
    let mut rows = vec![
        std::iter::once("access".to_owned())
            .chain(names)
            .collect::<Vec<_>>(),
    ];
    for kind in Kind::ALL {
        let cells =
            results.measured().map(
                |(_, measured)| match spread(&measured.nanos[kind as usize]) {
                    Some([median, best, _]) => format!("{} [{}]", nanos(median), nanos(best)),
                    None => String::new(),
                },
            );
        rows.push(
            std::iter::once(name(kind).to_owned())
                .chain(cells)
                .collect(),
        );
    }
    rows
}

/// Three digits are as many as mean something.
fn nanos(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.2}"),
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Nothing => "none",
        Kind::PortWrite => "port, write",
        Kind::PortRead => "port, read",
        Kind::MemoryWrite => "memory, write",
        Kind::MemoryRead => "memory, read",
        Kind::Doorbell => "virtio doorbell",
    }
}

fn bars(results: &Results) -> Rows {
    let head = ["", "must"].into_iter().map(str::to_owned);
    let names = results.measured().map(|(name, _)| name.to_owned());
    let row = |about: &str, must: String, cell: &dyn Fn(&Measured) -> String| {
        let cells = results.measured().map(|(_, measured)| cell(measured));
        [about.to_owned(), must].into_iter().chain(cells).collect()
    };
    vec![
        head.chain(names).collect(),
        row(
            "start to the guest's first word (ms)",
            format!("≤ {START_MILLIS_MAX}"),
            &|measured| match spread(&measured.start_millis()) {
                Some([median, best, worst]) => {
                    let verdict = verdict(median, START_MILLIS_MAX);
                    format!("{median:.1} [{best:.1}, {worst:.1}], {verdict}")
                }
                None => String::new(),
            },
        ),
        row(
            "monitor's own memory (MiB)",
            format!("≤ {OWN_MIB_MAX}"),
            &|measured| {
                let own = mib(measured.own_kib);
                format!("{own:.2}, {}", verdict(own, OWN_MIB_MAX))
            },
        ),
        row("of it, pages of files (MiB)", String::new(), &|measured| {
            format!("{:.2}", mib(measured.file_kib))
        }),
        row(
            "translated code beside it (MiB)",
            String::new(),
            &|measured| format!("{:.2}", mib(measured.code_kib)),
        ),
    ]
}

fn verdict(value: f64, max: f64) -> &'static str {
    if value <= max { "met" } else { "missed" }
}

/// A line for each engine that could not be measured.
fn failures(results: &Results) -> String {
    let lines = results.failures();
    let lines = lines.map(|(name, problem)| format!("{name} was not measured: {problem}\n"));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::super::results::Engine;
    use super::*;
    use crate::compare::setting::Setting;
    use std::time::Duration;

    fn sample() -> Results {
        let measured = Measured {
            starts: [30, 10, 21].map(Duration::from_millis).to_vec(),
            nanos: [1.234, 12.34, 123.4, 1234.0, 5.0, 6.0].map(|ns| vec![ns, ns / 2.0, ns]),
            own_kib: 4608,
            file_kib: 2048,
            code_kib: 512,
        };
        let engine = |name: &str, outcome| Engine {
            name: name.to_owned(),
            outcome,
        };
        Results {
            version: "1".to_owned(),
            repetitions: 3,
            engines: vec![
                engine("kvm", Err("no /dev/kvm".to_owned())),
                engine("translator", Ok(measured)),
            ],
            setting: Setting::now(String::new(), 128, 1, "cargo xtask exits".to_owned()).unwrap(),
        }
    }

    #[test]
    fn accesses_are_medians_and_bests() {
        let rows = accesses(&sample());
        assert_eq!(rows[0], ["access", "translator (ns)"]);
        let cells: Vec<_> = rows[1..5].iter().map(|row| row[1].as_str()).collect();
        let expected = ["1.23 [0.62]", "12.3 [6.17]", "123 [61.7]", "1234 [617]"];
        assert_eq!(cells, expected);
    }

    #[test]
    fn bars_are_met_or_missed() {
        let rows = bars(&sample());
        assert_eq!(rows[1][2], "21.0 [10.0, 30.0], missed");
        assert_eq!(rows[2][2], "4.50, met");
        assert_eq!((&*rows[3][2], &*rows[4][2]), ("2.00", "0.50"));
    }

    #[test]
    fn the_document_names_who_is_missing() {
        let document = document(&sample());
        assert!(document.contains("kvm was not measured: no /dev/kvm"));
        assert!(document.contains("`cargo xtask exits`"));
    }
}
