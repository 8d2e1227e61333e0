//! The project's bars for the translator, and what was measured of them.

use super::results::{Measurement, Results};
use super::workloads::{BOOT, COMPUTE, INTERRUPTS, NULL_CALL, ON_ONE_CPU, ON_TWO_CPUS};

/// The software CPU that bars are about.
const QEMU: &str = "qemu";
/// The measure of what can be reached.
const NATIVE: &str = "native";

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bound {
    AtLeast,
    AtMost,
}

/// What must be reached, and what is aimed at.
#[derive(Debug)]
pub(crate) struct Bar {
    /// What it is about.
    pub(crate) about: &'static str,
    bound: Bound,
    must: f64,
    aim: f64,
    unit: &'static str,
    measured: Option<Value>,
}

/// A measured value, and what is to be said of it.
#[derive(Debug, Clone, PartialEq)]
struct Value {
    value: f64,
    remark: String,
}

impl Bar {
    /// Its row in a table: about, must, aim, measured, verdict.
    pub(crate) fn cells(&self) -> [String; 5] {
        let sign = match self.bound {
            Bound::AtLeast => "≥",
            Bound::AtMost => "≤",
        };
        let limit = |value: f64| format!("{sign} {value}{}", self.unit);
        let (measured, verdict) = match &self.measured {
            Some(Value { value, remark }) => {
                let verdict = match (
                    self.is_met(*value, self.must),
                    self.is_met(*value, self.aim),
                ) {
                    (_, true) => "aim met",
                    (true, false) => "must met",
                    (false, false) => "missed",
                };
                (format!("{value:.2}{}{remark}", self.unit), verdict)
            }
            None => ("not measured".to_owned(), ""),
        };
        [
            self.about.to_owned(),
            limit(self.must),
            limit(self.aim),
            measured,
            verdict.to_owned(),
        ]
    }

    fn is_met(&self, value: f64, limit: f64) -> bool {
        match self.bound {
            Bound::AtLeast => value >= limit,
            Bound::AtMost => value <= limit,
        }
    }
}

/// All bars, for the first peer of `results`.
pub(crate) fn all(results: &Results) -> Vec<Bar> {
    let Some(subject) = results.peers.first().map(|peer| peer.id.as_str()) else {
        return Vec::new();
    };
    let bar = |about, bound, [must, aim]: [f64; 2], unit, measured| Bar {
        about,
        bound,
        must,
        aim,
        unit,
        measured,
    };
    let plain = |value: Option<f64>| {
        value.map(|value| Value {
            value,
            remark: String::new(),
        })
    };
    let memory = results.memory.iter().find(|m| m.peer == subject);
    let scaling = results
        .median(ON_ONE_CPU, subject)
        .zip(results.median(ON_TWO_CPUS, subject))
        .map(|(one, two)| one / two);
    let interrupts = results.get(INTERRUPTS, subject);
    let p99 = interrupts
        .and_then(Measurement::delays)
        .map(|delays| delays.micros()[1]);
    vec![
        bar(
            "geometric mean against QEMU",
            Bound::AtLeast,
            [4.0, 8.0],
            "x",
            geometric_mean(results, QEMU, subject),
        ),
        bar(
            "worst workload against QEMU",
            Bound::AtLeast,
            [1.0, 2.0],
            "x",
            extreme(results, QEMU, subject, |a, b| a < b, |_| true),
        ),
        bar(
            "user-mode compute, time against native (the worst of sha256, openssl, nbody, gzip)",
            Bound::AtMost,
            [2.0, 1.15],
            "x",
            extreme(
                results,
                subject,
                NATIVE,
                |a, b| a > b,
                |name| COMPUTE.contains(&name),
            ),
        ),
        bar(
            "boot against QEMU",
            Bound::AtLeast,
            [2.0, 4.0],
            "x",
            plain(results.ratio(BOOT, QEMU, subject)),
        ),
        bar(
            "null system call, time against native",
            Bound::AtMost,
            [2.0, 1.0],
            "x",
            plain(results.ratio(NULL_CALL, subject, NATIVE)),
        ),
        bar(
            "2 CPUs against 1",
            Bound::AtLeast,
            [1.8, 1.95],
            "x",
            plain(scaling),
        ),
        bar(
            "interrupts while spinning in user code, 99th percentile of their delay",
            Bound::AtMost,
            [200.0, 200.0],
            " us",
            plain(p99),
        ),
        bar(
            "monitor's memory beyond guest memory and translated code",
            Bound::AtMost,
            [16.0, 5.0],
            " MiB",
            plain(memory.map(|memory| memory.mib)),
        ),
    ]
}

/// How many times as long `peer` takes as `than`, by workload.
fn ratios<'a>(
    results: &'a Results,
    peer: &'a str,
    than: &'a str,
) -> impl Iterator<Item = (&'static str, f64)> {
    let ratio = move |name| Some((name, results.ratio(name, peer, than)?));
    let counted = results.workloads().filter(|w| w.is_in_mean);
    counted.filter_map(move |workload| ratio(workload.name))
}

/// The geometric mean of those ratios.
fn geometric_mean(results: &Results, peer: &str, than: &str) -> Option<Value> {
    let logarithms: Vec<f64> = ratios(results, peer, than).map(|(_, r)| r.ln()).collect();
    let count = logarithms.len();
    let mean = logarithms.iter().sum::<f64>() / count as f64;
    (count > 0).then(|| Value {
        value: mean.exp(),
        remark: format!(" ({count} workloads)"),
    })
}

/// The worst of those ratios for which `which` holds, by its workload's name.
fn extreme(
    results: &Results,
    peer: &str,
    than: &str,
    is_worse: impl Fn(f64, f64) -> bool,
    which: impl Fn(&str) -> bool,
) -> Option<Value> {
    let chosen = ratios(results, peer, than).filter(|(name, _)| which(name));
    let worst = chosen.reduce(|worst, next| {
        if is_worse(next.1, worst.1) {
            next
        } else {
            worst
        }
    });
    worst.map(|(name, value)| Value {
        value,
        remark: format!(" ({name})"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::sample;
    use super::super::results::{Delays, Memory};
    use super::*;

    #[test]
    fn bars_are_met_or_missed() {
        let mut results = sample();
        results.entry(NULL_CALL, "qemu").seconds = vec![4.0];
        results.entry(ON_ONE_CPU, "doppel-translator").seconds = vec![1.8];
        results.entry(ON_TWO_CPUS, "doppel-translator").seconds = vec![1.0];
        let peer = "doppel-translator".to_owned();
        let delays = &mut results.entry(INTERRUPTS, &peer).delays;
        delays.extend(Delays::parse("1000 150000 300000"));
        results.memory.push(Memory { peer, mib: 17.5 });
        let cells: Vec<_> = all(&results).iter().map(Bar::cells).collect();
        let measured: Vec<_> = cells.iter().map(|c| [c[3].as_str(), &c[4]]).collect();
        assert_eq!(
            measured,
            [
                ["2.83x (2 workloads)", "missed"],
                ["2.00x (syscall)", "aim met"],
                ["not measured", ""],
                ["4.00x", "aim met"],
                ["2.00x", "must met"],
                ["1.80x", "must met"],
                ["150.00 us", "aim met"],
                ["17.50 MiB", "missed"],
            ]
        );
        assert_eq!(cells[0][1..3], ["≥ 4x", "≥ 8x"]);
    }
}
