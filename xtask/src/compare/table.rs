//! The results as text, and as `docs/comparison.md`.

use super::results::{Measurement, Results};
use std::fmt::Write;

/// The table for a terminal.
pub(crate) fn text(results: &Results) -> String {
    let rows = cells(results);
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
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
    let mut text = String::from("# Comparison\n\n");
    let _ = writeln!(
        text,
        "Seconds, of wall time and of the emulator's CPU time: the median of all runs, in brackets the shortest and the longest. \
         All peers boot the same kernel, initrd and command line, in turn. Ratios are to {}; \
         above 1, the peer takes longer. This file is written by `{}`.\n",
        results.peers[0].id, setting.command
    );
    let _ = writeln!(
        text,
        "{}\n![The same as a plot](comparison.svg)\n",
        markdown(results)
    );
    text += "## Workloads\n\n";
    for workload in results.workloads() {
        let _ = writeln!(text, "- **{}**: {}", workload.name, workload.about);
    }
    text += "\n## Peers\n\n";
    for peer in &results.peers {
        let _ = writeln!(
            text,
            "- **{}** {}: {}.",
            peer.id, peer.version, peer.settings
        );
    }
    text += "\n## Setting\n\n";
    let _ = writeln!(
        text,
        "- Date: {}.\n- Host: {}, {} CPUs, {} MiB of memory, Linux {}, load average {} before.\n\
         - Guest: Linux {}, {} CPU, {} MiB of memory.",
        setting.date,
        setting.host_cpu,
        setting.host_cpus,
        setting.host_memory_mib,
        setting.host_kernel,
        setting.host_load,
        setting.guest_kernel,
        setting.guest_cpus,
        setting.guest_memory_mib,
    );
    text
}

fn markdown(results: &Results) -> String {
    let mut text = String::new();
    for (index, row) in cells(results).iter().enumerate() {
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if index == 0 {
            let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
        }
    }
    text
}

/// The table's cells, the head first.
fn cells(results: &Results) -> Vec<Vec<String>> {
    let mut head = ["workload", "span", "time"].map(str::to_owned).to_vec();
    head.extend(results.peers.iter().map(|peer| format!("{} (s)", peer.id)));
    head.extend(
        results
            .peers
            .iter()
            .skip(1)
            .map(|peer| format!("{} ratio", peer.id)),
    );
    let mut rows = vec![head];
    for row in results.rows() {
        let first = &row[0];
        let words = [first.workload, first.span, first.quantity.name()];
        let mut cells = words.map(str::to_owned).to_vec();
        cells.extend(row.iter().map(seconds));
        let ratios = row.iter().skip(1).map(|m| m.median() / row[0].median());
        cells.extend(ratios.map(|ratio| format!("{ratio:.2}")));
        rows.push(cells);
    }
    rows
}

fn seconds(measurement: &Measurement) -> String {
    let (min, max) = measurement.range();
    format!("{:.2} [{min:.2}, {max:.2}]", measurement.median())
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::sample;
    use super::*;

    #[test]
    fn ratios_are_to_the_first_peer() {
        assert_eq!(
            text(&sample()),
            "workload  span    time  a (s)              b (s)              b ratio\n\
             boot      kernel  wall  2.00 [1.00, 3.00]  4.00 [3.00, 5.00]  2.00\n\
             boot      whole   wall  2.00 [1.00, 3.00]  4.00 [3.00, 5.00]  2.00\n"
        );
    }

    #[test]
    fn the_document_says_who_and_where() {
        let text = document(&sample());
        let row = "| boot | kernel | wall | 2.00 [1.00, 3.00] | 4.00 [3.00, 5.00] | 2.00 |";
        for part in [row, "2026-01-02", "Linux 6.1.0, 1 CPU", "- **b** 1: none."] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
