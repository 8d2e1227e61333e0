//! What is kept of a comparison: `docs/comparison.json`.

use super::measure::{Moment, Times};
use super::peer::Peer;
use super::workload::{Mark, Span, WORKLOADS, Workload};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::process::Command;
use std::time::Duration;

/// A whole comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// Where and how it was made.
    pub(crate) setting: Setting,
    /// Who took part; ratios are to the first.
    pub(crate) peers: Vec<PeerDescription>,
    /// What was measured: for every workload, span and quantity, one for each peer, in their order.
    pub(crate) measurements: Vec<Measurement>,
}

impl Results {
    pub(crate) fn new(setting: Setting) -> Self {
        Self {
            setting,
            peers: Vec::new(),
            measurements: Vec::new(),
        }
    }

    /// The measurements by workload, span and quantity.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[Measurement]> {
        self.measurements.chunk_by(|a, b| a.key() == b.key())
    }

    /// The workloads that were measured.
    pub(crate) fn workloads(&self) -> impl Iterator<Item = &'static Workload> {
        let measured = |w: &&Workload| self.measurements.iter().any(|m| m.workload == w.name);
        WORKLOADS.iter().filter(measured)
    }
}

/// Where and how a comparison was made.
#[derive(Debug, Serialize)]
pub(crate) struct Setting {
    /// The day, in UTC: YYYY-MM-DD.
    pub(crate) date: String,
    /// The command that repeats it.
    pub(crate) command: String,
    /// The host's processor.
    pub(crate) host_cpu: String,
    /// The host's number of CPUs.
    pub(crate) host_cpus: usize,
    /// The host's memory in MiB.
    pub(crate) host_memory_mib: u64,
    /// The version of the host's kernel.
    pub(crate) host_kernel: String,
    /// The host's load average over the minute before.
    pub(crate) host_load: f64,
    /// The release of the guest's kernel.
    pub(crate) guest_kernel: String,
    /// The guest's memory in MiB.
    pub(crate) guest_memory_mib: u32,
    /// The guest's number of CPUs.
    pub(crate) guest_cpus: u32,
}

impl Setting {
    /// The setting of a comparison that begins now.
    pub(crate) fn now(
        guest_kernel: String,
        guest_memory_mib: u32,
        command: String,
    ) -> Result<Self> {
        let read =
            |path: &str| fs::read_to_string(path).with_context(|| format!("can't read {path}"));
        let date = Command::new("date")
            .args(["-u", "+%F"])
            .output()
            .context("can't run date")?;
        let memory_kib = field(&read("/proc/meminfo")?, "MemTotal").and_then(|v| v.parse().ok());
        let load = read("/proc/loadavg")?;
        Ok(Self {
            date: String::from_utf8_lossy(&date.stdout).trim().to_owned(),
            command,
            host_cpu: model(&read("/proc/cpuinfo")?),
            host_cpus: std::thread::available_parallelism()?.get(),
            host_memory_mib: memory_kib.unwrap_or(0) / 1024,
            host_kernel: version(&read("/proc/sys/kernel/osrelease")?).to_owned(),
            host_load: load
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or(0.0),
            guest_kernel,
            guest_memory_mib,
            guest_cpus: 1,
        })
    }
}

/// The first word of the value of `name` in the style of proc(5): `NAME : VALUE UNIT`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    value(text, name)?.split(' ').next()
}

fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

/// The version in a kernel's release, without what its builder added.
fn version(release: &str) -> &str {
    release.trim().split(['-', '+']).next().unwrap_or_default()
}

/// The processor's name, with the numbers that tell it where hosts hide the name.
fn model(cpuinfo: &str) -> String {
    let get = |name| value(cpuinfo, name).unwrap_or("unknown");
    let (name, family, model) = (get("model name"), get("cpu family"), get("model"));
    format!("{name} (family {family}, model {model})")
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

/// What is measured of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Quantity {
    /// The time that passed.
    Wall,
    /// The CPU time that the emulator used. It waits for nobody, and so says more on a host with
    /// other work; but a guest that waits uses none.
    Cpu,
}

impl Quantity {
    const ALL: [Self; 2] = [Self::Wall, Self::Cpu];

    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wall => "wall",
            Self::Cpu => "CPU",
        }
    }

    fn of(self, moment: &Moment) -> Duration {
        match self {
            Self::Wall => moment.wall,
            Self::Cpu => moment.cpu,
        }
    }
}

/// All runs of one span of one workload on one peer.
#[derive(Debug, Serialize)]
pub(crate) struct Measurement {
    /// The workload's name.
    pub(crate) workload: &'static str,
    /// The span's name.
    pub(crate) span: &'static str,
    /// What is measured.
    pub(crate) quantity: Quantity,
    /// The peer's name.
    pub(crate) peer: String,
    /// The span of each run.
    pub(crate) seconds: Vec<f64>,
    #[serde(skip)]
    marks: (Mark, Mark),
}

impl Measurement {
    /// Room for all that `workload` measures on `peers`.
    pub(crate) fn none(workload: &Workload, peers: &[Box<dyn Peer>]) -> Vec<Self> {
        let of_peer = |span: &Span, quantity, peer: &str| Self {
            workload: workload.name,
            span: span.name,
            quantity,
            peer: peer.to_owned(),
            seconds: Vec::new(),
            marks: (span.from, span.to),
        };
        let mut all = Vec::new();
        for span in workload.spans {
            for quantity in Quantity::ALL {
                all.extend(peers.iter().map(|peer| of_peer(span, quantity, peer.id())));
            }
        }
        all
    }

    /// What peers are compared in.
    fn key(&self) -> (&'static str, &'static str, Quantity) {
        (self.workload, self.span, self.quantity)
    }

    /// What is measured, for people.
    pub(crate) fn title(&self) -> String {
        format!("{}, {}, {}", self.workload, self.span, self.quantity.name())
    }

    /// Adds a run. Gives its seconds.
    pub(crate) fn add(&mut self, times: &Times) -> Result<f64> {
        let time = |mark: Mark| {
            times
                .get(&mark)
                .with_context(|| format!("there was no line '{}'", mark.text()))
        };
        let (from, to) = self.marks;
        let (from, to) = (self.quantity.of(time(from)?), self.quantity.of(time(to)?));
        let seconds = to.saturating_sub(from).as_secs_f64();
        self.seconds.push(seconds);
        Ok(seconds)
    }

    /// The median of all runs, in seconds.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[middle],
            _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
        }
    }

    /// The shortest and the longest run, in seconds.
    pub(crate) fn range(&self) -> (f64, f64) {
        let min = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        (min, self.seconds.iter().copied().fold(0.0, f64::max))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::time::Duration;

    /// Two peers, of which `b` takes twice as long.
    pub(crate) fn sample() -> Results {
        let setting = Setting {
            date: "2026-01-02".into(),
            command: "cargo xtask compare".into(),
            host_cpu: "A <fast> CPU".into(),
            host_cpus: 2,
            host_memory_mib: 1024,
            host_kernel: "6.0".into(),
            host_load: 0.5,
            guest_kernel: "6.1.0".into(),
            guest_memory_mib: 512,
            guest_cpus: 1,
        };
        let mut results = Results::new(setting);
        for id in ["a", "b"] {
            let (version, settings) = ("1".into(), "none".into());
            results.peers.push(PeerDescription {
                id: id.into(),
                version,
                settings,
            });
        }
        for span in ["kernel", "whole"] {
            results
                .measurements
                .push(measurement(span, "a", &[1.0, 3.0, 2.0]));
            results
                .measurements
                .push(measurement(span, "b", &[4.0, 5.0, 3.0]));
        }
        results
    }

    fn measurement(span: &'static str, peer: &str, seconds: &[f64]) -> Measurement {
        let marks = (Mark::Kernel, Mark::Init);
        Measurement {
            workload: "boot",
            span,
            quantity: Quantity::Wall,
            peer: peer.into(),
            seconds: seconds.into(),
            marks,
        }
    }

    #[test]
    fn medians_and_ranges() {
        assert_eq!(measurement("x", "a", &[3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(measurement("x", "a", &[4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert_eq!(measurement("x", "a", &[3.0, 1.0, 2.0]).range(), (1.0, 3.0));
    }

    #[test]
    fn a_span_is_the_time_between_its_marks() {
        let mut measurement = measurement("kernel", "a", &[]);
        let times = [(Mark::Kernel, 2), (Mark::Init, 5)];
        let times = times.map(|(mark, seconds)| {
            let wall = Duration::from_secs(seconds);
            (
                mark,
                Moment {
                    wall,
                    cpu: wall / 2,
                },
            )
        });
        assert_eq!(measurement.add(&Times::from(times)).unwrap(), 3.0);
        measurement.quantity = Quantity::Cpu;
        assert_eq!(measurement.add(&Times::from(times)).unwrap(), 1.5);
        let error = measurement.add(&Times::from([times[0]])).unwrap_err();
        assert_eq!(error.to_string(), "there was no line 'compare: init'");
        assert_eq!(measurement.seconds, [3.0, 1.5]);
    }

    #[test]
    fn rows_have_every_peer() {
        let results = sample();
        let rows: Vec<_> = results.rows().map(|row| (row[0].span, row.len())).collect();
        assert_eq!(rows, [("kernel", 2), ("whole", 2)]);
    }

    #[test]
    fn the_host_is_described_by_proc() {
        let cpuinfo = "processor\t: 0\nmodel\t\t: 17\ncpu family\t: 25\nmodel name\t: X Y\n";
        assert_eq!(model(cpuinfo), "X Y (family 25, model 17)");
        assert_eq!(version("6.18.1-custom\n"), "6.18.1");
        assert_eq!(field("MemTotal:       24 kB\n", "MemTotal"), Some("24"));
    }
}
