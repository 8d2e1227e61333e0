//! The results as text, and as `docs/comparison.md`.

use super::bars::{self, Bar};
use super::results::{Measurement, Results};
use super::runner::SLOW_DIVISOR;
use super::workloads::INTERRUPTS;
use std::fmt::Write;

/// What stands where nothing was measured.
const NOTHING: &str = "–";

/// The tables for a terminal.
pub(crate) fn text(results: &Results) -> String {
    let tables = [times(results), delays(results), bars(results)];
    let tables = tables.iter().filter(|rows| rows.len() > 1);
    tables
        .map(|rows| aligned(rows))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Rows of cells in columns.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// The document.
pub(crate) fn document(results: &Results) -> String {
    let setting = &results.setting;
    let subject = results.peers.first().map_or("", |peer| peer.id.as_str());
    let mut text = String::from("# Comparison\n\n");
    let _ = writeln!(
        text,
        "Seconds by the host's clock: the median of all runs, in brackets the shortest and the \
         longest. All guests have the same kernel, initrd and workloads, in turn; native runs the \
         same programs on the host. {subject} is compared: a ratio A / B says how many times \
         as long as B A takes. This file is written by `{}`.\n",
        setting.command
    );
    if setting.divisor > 1 {
        let _ = writeln!(
            text,
            "Only one part in {} of the work was done, which says little: for a test of the \
             comparison itself.\n",
            setting.divisor
        );
    }
    let _ = writeln!(text, "{}", markdown(&times(results)));
    let delays = delays(results);
    if delays.len() > 1 {
        let _ = writeln!(
            text,
            "How late interrupts come to a program that spins, the medians of all runs:\n\n{}",
            markdown(&delays)
        );
    }
    let _ = writeln!(text, "## Bars\n\n{}", markdown(&bars(results)));
    text += "![How many times as long as others](comparison.svg)\n\n";
    let failures: Vec<_> = results.failures().collect();
    if !failures.is_empty() {
        let _ = writeln!(text, "## Failures\n\n- {}\n", failures.join("\n- "));
    }
    text += "## Workloads\n\nWhere there is no count, it is done once. Those without a star are \
             not in the geometric mean.\n\n";
    for workload in results.workloads() {
        let star = if workload.is_in_mean { "\\*" } else { "" };
        let count = match workload.count_of(setting.divisor) {
            1 => String::new(),
            count => format!(" ({count})"),
        };
        let _ = writeln!(
            text,
            "- **{}**{star}: {}{count}.",
            workload.name, workload.about
        );
    }
    text += "\n## Peers\n\n";
    for peer in &results.peers {
        let name = format!("**{}** {}", peer.id, peer.version);
        let _ = writeln!(text, "- {}: {}.", name.trim_end(), peer.settings);
    }
    let _ = writeln!(
        text,
        "\nThe interpreter and Bochs are given one part in {SLOW_DIVISOR} of the work, once; \
         their times are scaled to the whole.\n\n## Setting\n"
    );
    let _ = writeln!(
        text,
        "- Date: {}.\n- Host: {}, {} CPUs, {} MiB of memory, Linux {}, load average {} before.\n\
         - Guest: Linux {}, {} MiB of memory, 1 CPU where nothing else is said.",
        setting.date,
        setting.host_cpu,
        setting.host_cpus,
        setting.host_memory_mib,
        setting.host_kernel,
        setting.host_load,
        setting.guest_kernel,
        setting.guest_memory_mib,
    );
    text
}

pub(crate) fn markdown(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if index == 0 {
            let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
        }
    }
    text
}

/// The table of times, the head first: those of all peers, and the ratios between the first and
/// each other; native's is to the host, the others' to the first.
fn times(results: &Results) -> Vec<Vec<String>> {
    let Some((subject, others)) = results.peers.split_first() else {
        return Vec::new();
    };
    let pairs: Vec<(&str, &str)> = others
        .iter()
        .map(|other| match other.id.as_str() {
            "native" => (subject.id.as_str(), "native"),
            id => (id, subject.id.as_str()),
        })
        .collect();
    let mut head = vec!["workload".to_owned()];
    head.extend(results.peers.iter().map(|peer| format!("{} (s)", peer.id)));
    let short = |id: &str| id.trim_start_matches("doppel-").to_owned();
    head.extend(
        pairs
            .iter()
            .map(|(a, b)| format!("{} / {}", short(a), short(b))),
    );
    let mut rows = vec![head];
    for workload in results.timed() {
        let mut row = vec![workload.name.to_owned()];
        row.extend(
            results
                .peers
                .iter()
                .map(|peer| seconds(results, workload.name, &peer.id)),
        );
        row.extend(pairs.iter().map(|(a, b)| {
            let ratio = results.ratio(workload.name, a, b);
            ratio.map_or(NOTHING.to_owned(), |ratio| format!("{ratio:.2}"))
        }));
        rows.push(row);
    }
    rows
}

fn seconds(results: &Results, workload: &str, peer: &str) -> String {
    let Some(measurement) = results.get(workload, peer) else {
        return NOTHING.to_owned();
    };
    let (min, max) = measurement.range();
    match measurement.median() {
        None => "failed".to_owned(),
        Some(median) if measurement.seconds.len() == 1 => format!("{median:.2}"),
        Some(median) => format!("{median:.2} [{min:.2}, {max:.2}]"),
    }
}

/// The table of delays, the head first.
fn delays(results: &Results) -> Vec<Vec<String>> {
    let head = [
        "interrupts",
        "median (us)",
        "99th percentile (us)",
        "longest (us)",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for peer in &results.peers {
        let measurement = results.get(INTERRUPTS, &peer.id);
        if let Some(delays) = measurement.and_then(Measurement::delays) {
            let mut row = vec![peer.id.clone()];
            row.extend(delays.micros().map(|micros| format!("{micros:.1}")));
            rows.push(row);
        }
    }
    rows
}

fn bars(results: &Results) -> Vec<Vec<String>> {
    let mut rows = vec![
        ["bar", "must", "aim", "measured", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(
        bars::all(results)
            .iter()
            .map(|bar: &Bar| bar.cells().to_vec()),
    );
    rows
}

#[cfg(test)]
mod tests {
    use super::super::results::Delays;
    use super::super::results::tests::sample;
    use super::*;

    #[test]
    fn ratios_are_between_the_first_and_the_others() {
        let text = text(&sample());
        let lines: Vec<_> = text.lines().take(4).collect();
        assert_eq!(
            lines,
            [
                "workload    doppel-translator (s)  qemu (s)           native (s)  \
                 qemu / translator  translator / native",
                "boot        2.00 [1.00, 3.00]      8.00 [7.00, 9.00]  –           \
                 4.00               –",
                "boot-whole  2.00 [1.00, 3.00]      8.00 [7.00, 9.00]  –           \
                 4.00               –",
                "syscall     2.00 [1.00, 3.00]      8.00 [7.00, 9.00]  1.00        \
                 4.00               2.00",
            ]
        );
    }

    #[test]
    fn delays_have_a_table_if_there_are_any() {
        let mut results = sample();
        assert!(!text(&results).contains("median (us)"));
        let entry = results.entry(INTERRUPTS, "qemu");
        entry.delays.extend(Delays::parse("12000 345678 1000000"));
        let row = "qemu        12.0         345.7                 1000.0";
        assert!(
            text(&results).lines().any(|line| line == row),
            "{}",
            text(&results)
        );
        let row = "| qemu | 12.0 | 345.7 | 1000.0 |";
        assert!(document(&results).contains(row));
    }

    #[test]
    fn the_document_says_who_and_where() {
        let mut results = sample();
        results.entry("syscall", "native").failure = Some("it ended".into());
        let text = document(&results);
        for part in [
            "| syscall | 2.00 [1.00, 3.00] | 8.00 [7.00, 9.00] | failed | 4.00 | – |",
            "| boot against QEMU | ≥ 2x | ≥ 4x | 4.00x | aim met |",
            "- syscall on native: it ended",
            "2026-01-02",
            "Linux 6.1.0, 512 MiB",
            "- **qemu** 1: none.",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
