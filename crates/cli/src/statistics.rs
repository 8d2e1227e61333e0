//! What the engine counted, as a table.

use machine::{Machine, Quantity, RUNNING, Statistic, TIME};

/// Columns of a terminal that a line keeps to, if one vCPU fits.
const LINE_MAX: usize = 100;

/// What the engine counted for each vCPU of `machine`.
pub(crate) fn table(machine: &Machine) -> String {
    format(machine.engine_name(), &machine.statistics())
}

/// A row of a table: its name and group, and two cells for each vCPU.
struct Row {
    group: &'static str,
    name: &'static str,
    cells: Vec<[String; 2]>,
}

/// Groups of rows, with two columns for each vCPU: the number, and how many there were in a second;
/// of a time, what part of the time that the vCPU ran. As many tables as it takes. Groups that have
/// nothing but zeros are left out, and so is a number that a vCPU has not.
fn format(engine: &str, vcpus: &[Vec<Statistic>]) -> String {
    let rows = rows(vcpus);
    let heads: Vec<_> = (0..vcpus.len())
        .map(|index| [format!("vCPU {index}"), "per s".to_owned()])
        .collect();
    let all_cells = || std::iter::once(&heads).chain(rows.iter().map(|row| &row.cells));
    let widths = [0, 1].map(|which: usize| {
        let cells = all_cells().flatten().map(|pair| pair[which].len());
        cells.max().unwrap_or(0)
    });
    let names = rows.iter().map(|row| row.name.len() + INDENT.len());
    let name_width = names.chain([engine.len()]).max().unwrap_or(0);
    let width = widths.iter().map(|width| width + GAP.len()).sum::<usize>();
    let fitting = (LINE_MAX.saturating_sub(name_width) / width).max(1);
    let mut text = String::new();
    for first in (0..vcpus.len()).step_by(fitting) {
        let line = |name: &str, cells: &[[String; 2]]| {
            let mut line = format!("{name:<name_width$}");
            for (cell, width) in cells.iter().skip(first).take(fitting).flat_map(|pair| {
                let pair: [_; 2] = std::array::from_fn(|which| (&pair[which], widths[which]));
                pair
            }) {
                line += &format!("{GAP}{cell:>width$}");
            }
            line.trim_end().to_owned() + "\n"
        };
        text += &line(engine, &heads);
        let mut group = "";
        for row in &rows {
            if row.group != group {
                group = row.group;
                text += &format!("{group}\n");
            }
            text += &line(&format!("{INDENT}{}", row.name), &row.cells);
        }
    }
    text
}

/// What stands before the names of a group.
const INDENT: &str = "  ";
/// What stands between two columns.
const GAP: &str = "  ";

/// A row for each statistic that some vCPU has: group by group, both in their order.
fn rows(vcpus: &[Vec<Statistic>]) -> Vec<Row> {
    let mut groups: Vec<(&str, Vec<&'static str>)> = Vec::new();
    for Statistic { group, name, .. } in vcpus.iter().flatten() {
        let place = groups.iter().position(|(known, _)| known == group);
        let place = place.unwrap_or_else(|| {
            groups.push((group, Vec::new()));
            groups.len() - 1
        });
        if !groups[place].1.contains(name) {
            groups[place].1.push(name);
        }
    }
    let running: Vec<_> = vcpus.iter().map(|vcpu| running(vcpu)).collect();
    let mut rows = Vec::new();
    for (group, names) in groups {
        let of_group = |s: &&Statistic| s.group == group;
        if vcpus
            .iter()
            .flatten()
            .filter(of_group)
            .all(|s| s.value == 0)
        {
            continue;
        }
        for name in names {
            let mut row = Row {
                group: "",
                name,
                cells: Vec::new(),
            };
            for (vcpu, micros) in vcpus.iter().zip(&running) {
                let found = vcpu.iter().find(|s| s.group == group && s.name == name);
                row.cells.push(found.map_or_else(Default::default, |s| {
                    row.group = s.group;
                    [amount(s), share(s, *micros)]
                }));
            }
            rows.push(row);
        }
    }
    rows
}

/// For how many microseconds the vCPU ran.
fn running(vcpu: &[Statistic]) -> u64 {
    let found = vcpu.iter().find(|s| s.group == TIME && s.name == RUNNING);
    found.map_or(0, |s| s.value)
}

fn amount(statistic: &Statistic) -> String {
    let value = statistic.value;
    match statistic.quantity {
        Quantity::Events | Quantity::Level => with_commas(value),
        Quantity::Bytes if value >= 10 << 20 => format!("{} MiB", with_commas(value >> 20)),
        Quantity::Bytes => format!("{} KiB", with_commas(value >> 10)),
        Quantity::Micros => format!(
            "{}.{:03} s",
            with_commas(value / 1_000_000),
            value / 1000 % 1000
        ),
    }
}

/// How much of it there was in a second of the `micros` microseconds that the vCPU ran.
fn share(statistic: &Statistic, micros: u64) -> String {
    if micros == 0 || statistic.value == 0 {
        return String::new();
    }
    let (value, micros) = (statistic.value as f64, micros as f64);
    match statistic.quantity {
        Quantity::Events => match 1e6 * value / micros {
            few if few < 9.95 => format!("{few:.1}"),
            many => with_commas(many.round() as u64),
        },
        Quantity::Micros => format!("{:.1}%", 100.0 * value / micros),
        Quantity::Level | Quantity::Bytes => String::new(),
    }
}

/// `number` with a comma after each three digits, from the right.
fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place != 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn time(name: &'static str, millis: u64) -> Statistic {
        Statistic::time(name, Duration::from_millis(millis))
    }

    #[test]
    fn groups_are_together_and_columns_aligned() {
        let vcpus = [
            vec![
                time(RUNNING, 2_000),
                Statistic::events("code", "blocks", 7),
                time("translating", 25),
                Statistic::bytes("code", "cache", 32 << 20),
                Statistic::events("windows", "opened", 0),
                Statistic::events("TLB", "misses", 1_234_567),
            ],
            vec![
                Statistic::level("code", "blocks", 12),
                Statistic::events("TLB", "flushes", 0),
            ],
        ];
        let expected = "\
translator        vCPU 0    per s  vCPU 1  per s
time
  running        2.000 s   100.0%
  translating    0.025 s     1.2%
code
  blocks               7      3.5      12
  cache           32 MiB
TLB
  misses       1,234,567  617,284
  flushes                               0
";
        let squeezed = |text: &str| -> Vec<Vec<String>> {
            let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
            text.lines().map(words).collect()
        };
        let text = format("translator", &vcpus);
        assert_eq!(squeezed(&text), squeezed(expected), "{text}");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[2].len(), lines[8].len(), "{text}");
        assert_eq!(
            lines[8].find("1,234,567"),
            lines[2].find("2.000 s").map(|at| at - 2)
        );
    }

    #[test]
    fn lines_fit_a_terminal() {
        let all = |i: u64| vec![Statistic::level("events", "interrupts", (i + 1) << 40)];
        let vcpus: Vec<_> = (0..64).map(all).collect();
        let text = format("translator", &vcpus);
        assert!(text.lines().all(|line| line.len() <= LINE_MAX), "{text}");
        let numbers = text
            .lines()
            .filter(|l| l.contains("interrupts"))
            .flat_map(|line| {
                let words = line.split_whitespace().skip(1);
                words.map(|word| word.replace(',', "").parse::<u64>().unwrap())
            });
        assert!(numbers.eq((1..=64).map(|i| i << 40)), "{text}");
        // What fits nowhere is one to a table.
        let name: &'static str = "a".repeat(200).leak();
        let wide = vec![vec![Statistic::events("group", name, 1)]; 3];
        assert_eq!(format("translator", &wide).lines().count(), 9);
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(with_commas(0), "0");
        assert_eq!(with_commas(999), "999");
        assert_eq!(with_commas(u64::MAX), "18,446,744,073,709,551,615");
        let (kib, mib) = (20 << 10, 20 << 20);
        assert_eq!(amount(&Statistic::bytes("", "", kib)), "20 KiB");
        assert_eq!(amount(&Statistic::bytes("", "", mib)), "20 MiB");
        assert_eq!(amount(&time("", 1_234_567)), "1,234.567 s");
    }
}
