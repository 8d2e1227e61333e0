//! What is kept of a comparison: `docs/comparison.json`.

use super::measure::Moment;
use super::setting::Setting;
use super::workload::{Measure, Workload};
use super::workloads::WORKLOADS;
use serde::Serialize;

/// A whole comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// Where and how it was made.
    pub(crate) setting: Setting,
    /// Who took part; ratios are to the first.
    pub(crate) peers: Vec<PeerDescription>,
    /// What was measured: at most one for each workload and peer.
    pub(crate) measurements: Vec<Measurement>,
    /// Monitors' own memory.
    pub(crate) memory: Vec<Memory>,
}

impl Results {
    pub(crate) fn new(setting: Setting) -> Self {
        Self {
            setting,
            peers: Vec::new(),
            measurements: Vec::new(),
            memory: Vec::new(),
        }
    }

    /// The workloads that were to be measured.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = &'static Workload> {
        let measured = |w: &&Workload| self.measurements.iter().any(|m| m.workload == w.name);
        WORKLOADS.iter().filter(measured)
    }

    /// Those of them that have a time.
    pub(crate) fn timed(&self) -> impl Iterator<Item = &'static Workload> {
        self.workloads().filter(|w| w.measure != Measure::Delay)
    }

    /// The measurement of a workload on a peer.
    pub(crate) fn get(&self, workload: &str, peer: &str) -> Option<&Measurement> {
        let is = |m: &&Measurement| m.workload == workload && m.peer == peer;
        self.measurements.iter().find(is)
    }

    /// The measurement of a workload on a peer, made if there is none.
    pub(crate) fn entry(&mut self, workload: &'static str, peer: &str) -> &mut Measurement {
        let is = |m: &Measurement| m.workload == workload && m.peer == peer;
        let at = self.measurements.iter().position(is).unwrap_or_else(|| {
            self.measurements.push(Measurement::new(workload, peer));
            self.measurements.len() - 1
        });
        &mut self.measurements[at]
    }

    /// The median of a workload on a peer, in seconds.
    pub(crate) fn median(&self, workload: &str, peer: &str) -> Option<f64> {
        self.get(workload, peer)?.median()
    }

    /// How many times as long as on `than` a workload takes on `peer`.
    pub(crate) fn ratio(&self, workload: &str, peer: &str, than: &str) -> Option<f64> {
        Some(self.median(workload, peer)? / self.median(workload, than)?)
    }

    /// What went wrong, a line each.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> {
        self.measurements.iter().filter_map(|m| {
            let failure = m.failure.as_ref()?;
            Some(format!("{} on {}: {failure}", m.workload, m.peer))
        })
    }
}

/// Who took part.
#[derive(Debug, Serialize)]
pub(crate) struct PeerDescription {
    /// The name in this comparison.
    pub(crate) id: String,
    /// The version.
    pub(crate) version: String,
    /// How it was run.
    pub(crate) settings: String,
}

/// Resident memory of a monitor beyond the guest's and translated code.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    /// The peer's name.
    pub(crate) peer: String,
    /// In MiB, after all workloads on one CPU: the most of all runs.
    pub(crate) mib: f64,
}

/// All runs of one workload on one peer.
#[derive(Debug, Serialize)]
pub(crate) struct Measurement {
    /// The workload's name.
    pub(crate) workload: &'static str,
    /// The peer's name.
    pub(crate) peer: String,
    /// The time of each run. Where a part of the work was done, what all would have taken.
    pub(crate) seconds: Vec<f64>,
    /// The CPU time of each run, likewise. It waits for nobody, and so says more on a host with
    /// other work; but who waits uses none.
    pub(crate) cpu_seconds: Vec<f64>,
    /// Of each run of a workload that is about delays and has no time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) delays: Vec<Delays>,
    /// Why there are fewer runs than there should be.
    pub(crate) failure: Option<String>,
}

/// How late something came in one run, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Delays {
    pub(crate) median: u64,
    /// The 99th percentile.
    pub(crate) p99: u64,
    pub(crate) longest: u64,
}

impl Delays {
    /// From three numbers, as `bench.c` prints them.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[median, p99, longest]) => Some(Self {
                median,
                p99,
                longest,
            }),
            _ => None,
        }
    }

    /// In microseconds, in this order.
    pub(crate) fn micros(&self) -> [f64; 3] {
        [self.median, self.p99, self.longest].map(|nanos| nanos as f64 / 1000.0)
    }
}

impl Measurement {
    fn new(workload: &'static str, peer: &str) -> Self {
        Self {
            workload,
            peer: peer.to_owned(),
            seconds: Vec::new(),
            cpu_seconds: Vec::new(),
            delays: Vec::new(),
            failure: None,
        }
    }

    /// Adds a run that took `time` for one part in `parts` of the work.
    pub(crate) fn add(&mut self, time: Moment, parts: f64) {
        self.seconds.push(time.wall.as_secs_f64() * parts);
        self.cpu_seconds.push(time.cpu.as_secs_f64() * parts);
    }

    /// The median of all runs, in seconds; none if one failed, or there is none.
    pub(crate) fn median(&self) -> Option<f64> {
        if self.failure.is_some() {
            return None;
        }
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            n if n % 2 == 1 => Some(sorted[middle]),
            _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        }
    }

    /// Of all runs, the medians of the delays; none if one failed, or there is none.
    pub(crate) fn delays(&self) -> Option<Delays> {
        if self.failure.is_some() || self.delays.is_empty() {
            return None;
        }
        let middle = |which: fn(&Delays) -> u64| {
            let mut all: Vec<_> = self.delays.iter().map(which).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        Some(Delays {
            median: middle(|d| d.median),
            p99: middle(|d| d.p99),
            longest: middle(|d| d.longest),
        })
    }

    /// The shortest and the longest run, in seconds.
    pub(crate) fn range(&self) -> (f64, f64) {
        let min = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        (min, self.seconds.iter().copied().fold(0.0, f64::max))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::workloads::{BOOT, BOOT_WHOLE, NULL_CALL};
    use super::*;
    use std::time::Duration;

    /// A translator that takes 2 s, QEMU that takes 8 s, and a host that takes 1 s.
    pub(crate) fn sample() -> Results {
        let mut results = Results::new(Setting {
            date: "2026-01-02".into(),
            command: "cargo xtask compare".into(),
            host_cpu: "A <fast> CPU".into(),
            host_cpus: 2,
            host_memory_mib: 1024,
            host_kernel: "6.0".into(),
            host_load: 0.5,
            guest_kernel: "6.1.0".into(),
            guest_memory_mib: 512,
            divisor: 1,
        });
        for (id, runs) in [
            ("doppel-translator", &[1.0, 3.0, 2.0][..]),
            ("qemu", &[9.0, 7.0]),
            ("native", &[1.0]),
        ] {
            let (version, settings) = ("1".into(), "none".into());
            let id = id.to_owned();
            results.peers.push(PeerDescription {
                id: id.clone(),
                version,
                settings,
            });
            for workload in [BOOT, BOOT_WHOLE, NULL_CALL] {
                if id != "native" || workload == NULL_CALL {
                    results.entry(workload, &id).seconds = runs.to_vec();
                }
            }
        }
        results
    }

    #[test]
    fn medians_and_ranges() {
        let results = sample();
        let qemu = results.get(BOOT, "qemu").unwrap();
        assert_eq!((qemu.median(), qemu.range()), (Some(8.0), (7.0, 9.0)));
        assert_eq!(results.median(BOOT, "native"), None);
        assert_eq!(results.ratio(BOOT, "qemu", "doppel-translator"), Some(4.0));
    }

    #[test]
    fn delays_are_three_numbers_and_have_medians() {
        assert_eq!(Delays::parse("1 2"), None);
        assert_eq!(Delays::parse("1 2 x"), None);
        let mut measurement = Measurement::new(BOOT, "a");
        assert_eq!(measurement.delays(), None);
        for text in ["1 9 30", "3 8 20", "2 7 90"] {
            measurement.delays.push(Delays::parse(text).unwrap());
        }
        assert_eq!(measurement.delays(), Delays::parse("2 8 30"));
    }

    #[test]
    fn a_part_of_the_work_stands_for_all() {
        let mut measurement = Measurement::new(BOOT, "a");
        let (wall, cpu) = (Duration::from_secs(2), Duration::from_secs(1));
        measurement.add(Moment { wall, cpu }, 20.0);
        assert_eq!(
            (&*measurement.seconds, &*measurement.cpu_seconds),
            (&[40.0][..], &[20.0][..])
        );
    }

    #[test]
    fn what_failed_has_no_time() {
        let mut results = sample();
        results.entry(BOOT, "qemu").failure = Some("it ended".into());
        assert_eq!(results.median(BOOT, "qemu"), None);
        assert_eq!(
            results.failures().collect::<Vec<_>>(),
            ["boot on qemu: it ended"]
        );
    }
}
