//! What the engine counted, as a table.

use machine::Machine;

/// Columns of a terminal that a line keeps to, if one vCPU fits.
const LINE_MAX: usize = 100;

/// The counters of one vCPU, by name.
type Counters = Vec<(&'static str, u64)>;

/// The counters of all vCPUs of `machine`.
pub(crate) fn table(machine: &Machine) -> String {
    format(machine.engine_name(), &machine.statistics())
}

/// A row for each counter, a column for each vCPU; as many tables as it takes. A counter that a
/// vCPU has not is left out there.
fn format(engine: &str, vcpus: &[Counters]) -> String {
    let columns: Vec<Vec<String>> = vcpus
        .iter()
        .enumerate()
        .map(column(&names(vcpus)))
        .collect();
    let mut heads = vec![engine];
    heads.extend(names(vcpus));
    let head_width = heads.iter().map(|head| head.len()).max().unwrap_or(0);
    let width = columns.iter().flatten().map(String::len).max().unwrap_or(0);
    let fitting = LINE_MAX.saturating_sub(head_width) / (width + 2);
    let mut text = String::new();
    for group in columns.chunks(fitting.max(1)) {
        for (row, head) in heads.iter().enumerate() {
            let mut line = format!("{head:<head_width$}");
            for column in group {
                line += &format!("  {:>width$}", column[row]);
            }
            text += line.trim_end();
            text += "\n";
        }
    }
    text
}

/// What makes a column out of a vCPU's counters: its head, and the number of each of `names`.
fn column(names: &[&str]) -> impl Fn((usize, &Counters)) -> Vec<String> {
    move |(index, counters)| {
        let number = |name: &&str| {
            let counter = counters.iter().find(|(other, _)| other == name);
            counter.map_or_else(String::new, |(_, value)| value.to_string())
        };
        let mut cells = vec![format!("vCPU {index}")];
        cells.extend(names.iter().map(number));
        cells
    }
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
