//! What was measured.

use super::guest::Kind;
use crate::compare::setting::Setting;
use std::time::Duration;

/// All of it.
pub(super) struct Results {
    /// The version of the program.
    pub(super) version: String,
    /// Rounds of each kind, and starts.
    pub(super) repetitions: u32,
    pub(super) engines: Vec<Engine>,
    pub(super) setting: Setting,
}

/// An engine, and what it did, or why not.
pub(super) struct Engine {
    pub(super) name: String,
    pub(super) outcome: Result<Measured, String>,
}

/// What an engine did.
pub(super) struct Measured {
    /// From the monitor's start to the guest's first words.
    pub(super) starts: Vec<Duration>,
    /// Nanoseconds of an access, by kind and round.
    pub(super) nanos: [Vec<f64>; Kind::ALL.len()],
    /// The monitor's own memory, but for translated code, in KiB.
    pub(super) own_kib: u64,
    /// What of it is pages of files, in KiB.
    pub(super) file_kib: u64,
    /// Translated code in KiB.
    pub(super) code_kib: u64,
}

impl Results {
    /// The engines that could be measured.
    pub(super) fn measured(&self) -> impl Iterator<Item = (&str, &Measured)> {
        let engines = self.engines.iter();
        engines.filter_map(|engine| Some((engine.name.as_str(), engine.outcome.as_ref().ok()?)))
    }

    /// The others, and why.
    pub(super) fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        let engines = self.engines.iter();
        engines.filter_map(|engine| {
            let problem = engine.outcome.as_ref().err()?;
            Some((engine.name.as_str(), problem.as_str()))
        })
    }
}

impl Measured {
    /// Milliseconds of each start.
    pub(super) fn start_millis(&self) -> Vec<f64> {
        self.starts
            .iter()
            .map(|start| start.as_secs_f64() * 1e3)
            .collect()
    }
}

/// MiB of so many KiB.
pub(super) fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// The median of `values`, the least and the greatest; `None` of none.
pub(super) fn spread(values: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len().checked_sub(1)? / 2;
    let median = f64::midpoint(sorted[middle], sorted[sorted.len() / 2]);
    Some([median, sorted[0], sorted[sorted.len() - 1]])
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn a_spread_is_median_least_and_greatest() {
        assert_eq!(spread(&[3.0, 1.0, 9.0]), Some([3.0, 1.0, 9.0]));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 9.0]), Some([3.0, 1.0, 9.0]));
        assert_eq!(spread(&[5.0]), Some([5.0, 5.0, 5.0]));
        assert_eq!(spread(&[]), None);
    }
}
