//! What the engine counted, as a table.

use machine::Machine;

/// vCPUs side by side, so that a line fits a terminal.
const COLUMNS_MAX: usize = 5;

/// The counters of one vCPU, by name.
type Counters = Vec<(&'static str, u64)>;

/// The counters of all vCPUs of `machine`.
pub(crate) fn table(machine: &Machine) -> String {
    format(machine.engine_name(), &machine.statistics())
}

/// A row for each counter, a column for each vCPU. A counter that a vCPU has not is left out
/// there.
fn format(engine: &str, vcpus: &[Counters]) -> String {
    let numbered: Vec<(usize, &Counters)> = vcpus.iter().enumerate().collect();
    let mut text = String::new();
    for group in numbered.chunks(COLUMNS_MAX) {
        let heads = group.iter().map(|(index, _)| format!("vCPU {index}"));
        let mut rows = vec![(engine, heads.collect())];
        for name in names(group) {
            let values = group.iter().map(|(_, counters)| {
                let counter = counters.iter().find(|(other, _)| *other == name);
                counter.map_or_else(String::new, |(_, value)| value.to_string())
            });
            rows.push((name, values.collect()));
        }
        text += &aligned(&rows);
    }
    text
}

/// The names of all counters in `group`, each once, in their order.
fn names(group: &[(usize, &Counters)]) -> Vec<&'static str> {
    let mut names = Vec::new();
    for (name, _) in group.iter().flat_map(|(_, counters)| counters.iter()) {
        if !names.contains(name) {
            names.push(*name);
        }
    }
    names
}

/// Rows as lines: names to the left, numbers to the right of their columns.
fn aligned(rows: &[(&str, Vec<String>)]) -> String {
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
    let names = width(&mut rows.iter().map(|(name, _)| name.len()));
    let numbers = width(&mut rows.iter().flat_map(|(_, cells)| cells).map(String::len));
    let mut text = String::new();
    for (name, cells) in rows {
        let mut line = format!("{name:<names$}");
        for cell in cells {
            line += &format!("  {cell:>numbers$}");
        }
        text += line.trim_end();
        text += "\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_every_counter_has_a_row() {
        let vcpus = [
            vec![("blocks", 7), ("TLB misses", 1_234_567)],
            vec![("blocks", 12), ("halts", 3)],
        ];
        let expected = "\
translator   vCPU 0   vCPU 1
blocks            7       12
TLB misses  1234567
halts                      3
";
        assert_eq!(format("translator", &vcpus), expected);
    }

    #[test]
    fn many_vcpus_are_shown_in_groups() {
        let vcpus: Vec<_> = (0..12).map(|i| vec![("halts", i)]).collect();
        let text = format("translator", &vcpus);
        assert_eq!(text.lines().count(), 6, "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        let last = text.lines().last().unwrap();
        assert!(last.split_whitespace().eq(["halts", "10", "11"]), "{last}");
    }
}
