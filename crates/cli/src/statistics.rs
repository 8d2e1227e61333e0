//! What the engine counted, as a table.

use machine::{Machine, RUNNING_TIME};

/// Columns of a terminal that a line keeps to, if one vCPU fits.
const LINE_MAX: usize = 100;

/// How the names of times end.
const TIME: &str = "(us)";

/// The counters of one vCPU, by name.
type Counters = Vec<(&'static str, u64)>;

/// The counters of all vCPUs of `machine`.
pub(crate) fn table(machine: &Machine) -> String {
    format(machine.engine_name(), &machine.statistics())
}

/// A row for each counter, two columns for each vCPU: the counter, and how much of it there was in a
/// second; a time is a part of the time that the vCPU ran. As many tables as it takes. A counter
/// that a vCPU has not is left out there.
fn format(engine: &str, vcpus: &[Counters]) -> String {
    let names = names(vcpus);
    let vcpus = vcpus.iter().enumerate();
    let columns: Vec<[Vec<String>; 2]> = vcpus.map(|(n, c)| columns(n, c, &names)).collect();
    let mut heads = vec![engine];
    heads.extend(names);
    let widest = |cells: &mut dyn Iterator<Item = &str>| cells.map(str::len).max().unwrap_or(0);
    let head_width = widest(&mut heads.iter().copied());
    let widths = [0, 1].map(|which: usize| {
        let cells = columns.iter().flat_map(|c| &c[which]);
        widest(&mut cells.map(String::as_str))
    });
    let width = widths.iter().map(|width| width + 2).sum::<usize>();
    let fitting = LINE_MAX.saturating_sub(head_width) / width;
    let mut text = String::new();
    for group in columns.chunks(fitting.max(1)) {
        for (row, head) in heads.iter().enumerate() {
            let mut line = format!("{head:<head_width$}");
            for (cells, width) in group.iter().flat_map(|columns| columns.iter().zip(widths)) {
                line += &format!("  {:>width$}", cells[row]);
            }
            text += line.trim_end();
            text += "\n";
        }
    }
    text
}

/// The columns of vCPU `index`: its head and the number of each of `names`, and how much that is.
fn columns(index: usize, counters: &Counters, names: &[&str]) -> [Vec<String>; 2] {
    let find = |name: &str| {
        let found = counters.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| *value)
    };
    let micros = find(RUNNING_TIME).filter(|micros| *micros != 0);
    let share = |name: &str, value: u64| {
        let micros = micros? as f64;
        let value = value as f64;
        Some(if name.ends_with(TIME) {
            format!("{:.1}%", 100.0 * value / micros)
        } else {
            format!("{:.0}", 1e6 * value / micros)
        })
    };
    let mut cells = [vec![format!("vCPU {index}")], vec!["per s".to_owned()]];
    for name in names {
        let value = find(name);
        let share = value.and_then(|value| share(name, value));
        cells[0].push(value.map_or_else(String::new, |value| value.to_string()));
        cells[1].push(share.unwrap_or_default());
    }
    cells
}

/// The names of all counters, each once, in their order.
fn names(vcpus: &[Counters]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for (name, _) in vcpus.iter().flatten() {
        if !names.contains(name) {
            names.push(*name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_every_counter_has_a_row() {
        let vcpus = [
            vec![
                (RUNNING_TIME, 2_000_000),
                ("time translating (us)", 25_000),
                ("blocks", 7),
                ("TLB misses", 1_234_567),
            ],
            vec![("blocks", 12), ("halts", 3)],
        ];
        let expected = "\
translator              vCPU 0   per s  vCPU 1  per s
time running (us)      2000000  100.0%
time translating (us)    25000    1.2%
blocks                       7       4      12
TLB misses             1234567  617284
halts                                        3
";
        let squeezed = |text: &str| -> Vec<Vec<String>> {
            let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
            text.lines().map(words).collect()
        };
        let text = format("translator", &vcpus);
        assert_eq!(squeezed(&text), squeezed(expected));
        let ends: Vec<_> = text.lines().take(3).map(str::len).collect();
        assert_eq!(ends[1], ends[2], "{text}");
    }

    #[test]
    fn lines_fit_a_terminal() {
        let vcpus: Vec<_> = (0..64).map(|i| vec![("interrupts", i << 40)]).collect();
        let text = format("translator", &vcpus);
        assert!(text.lines().all(|line| line.len() <= LINE_MAX), "{text}");
        let numbers = text.lines().skip(1).step_by(2).flat_map(|line| {
            let words = line.split_whitespace().skip(1);
            words.map(|word| word.parse::<u64>().unwrap())
        });
        assert!(numbers.eq((0..64).map(|i| i << 40)), "{text}");
        // What fits nowhere is one to a line.
        let name: &'static str = "a".repeat(200).leak();
        let wide = format("translator", &vec![vec![(name, 1)]; 3]);
        assert_eq!(wide.lines().count(), 6);
    }
}
