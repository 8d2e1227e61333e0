//! The order of things: all peers in turn, again and again, and what becomes of failures.

use super::boot::{Boot, Initrds};
use super::measure::{self, Finished};
use super::peer::{Pace, Peer};
use super::results::{Memory, Results};
use super::workload::{Measure, Scene, Workload};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::Duration;

/// Of the work, slow peers do one part in so many; a quick comparison, all.
pub(crate) const SLOW_DIVISOR: u32 = 20;

/// A comparison that goes on.
pub(crate) struct Runner<'a> {
    /// What is booted.
    pub(crate) initrds: &'a Initrds,
    /// What is measured.
    pub(crate) workloads: Vec<&'static Workload>,
    /// The guests' memory in MiB.
    pub(crate) memory_mib: u32,
    /// The time that may pass without a line of output.
    pub(crate) patience: Duration,
    /// Of the work, one part in so many is done.
    pub(crate) divisor: u32,
    /// What has been measured.
    pub(crate) results: Results,
    answers: BTreeMap<(&'static str, u32), Answer>,
}

/// What a workload printed, which all have to agree on.
struct Answer {
    peer: String,
    result: String,
}

impl<'a> Runner<'a> {
    pub(crate) fn new(initrds: &'a Initrds, results: Results) -> Self {
        Self {
            initrds,
            workloads: Vec::new(),
            memory_mib: 0,
            patience: Duration::ZERO,
            divisor: 1,
            results,
            answers: BTreeMap::new(),
        }
    }

    /// Runs all workloads on `peer` once, in as many boots as that takes.
    pub(crate) fn run(&mut self, peer: &dyn Peer) -> Result<()> {
        for scene in Scene::ALL.into_iter().filter(|&scene| peer.runs(scene)) {
            let results = &self.results;
            let is_due = |w: &&Workload| {
                let failed = |m: &super::results::Measurement| m.failure.is_some();
                w.scene == scene && !results.get(w.name, peer.id()).is_some_and(failed)
            };
            let mut left: Vec<_> = self.workloads.iter().copied().filter(is_due).collect();
            while !left.is_empty() {
                left = self.boot(peer, scene, &left)?;
            }
        }
        Ok(())
    }

    /// Runs `workloads` in one boot. Gives those that it did not come to: where one breaks the
    /// guest, the rest get another.
    fn boot(
        &mut self,
        peer: &dyn Peer,
        scene: Scene,
        workloads: &[&'static Workload],
    ) -> Result<Vec<&'static Workload>> {
        let divisor = match peer.pace() {
            Pace::Full => self.divisor,
            Pace::Slow => SLOW_DIVISOR,
        };
        let boot = Boot::new(self.initrds, scene, workloads, divisor, self.memory_mib);
        let scratch = tempfile::Builder::new().prefix("compare-").tempdir()?;
        let mut command = peer
            .prepare(&boot, scratch.path())
            .with_context(|| format!("can't prepare {}", peer.id()))?;
        let run = measure::run(&mut command, self.patience, scratch.path())?;
        let mut missed = Vec::new();
        for &workload in workloads {
            match run.finished.iter().find(|f| f.workload == workload.name) {
                Some(finished) => self.note(peer.id(), workload, divisor, finished),
                None => missed.push(workload),
            }
        }
        for (name, said) in &run.failed {
            if let Some(at) = missed.iter().position(|w| w.name == name) {
                let reason = format!("its program failed after '{said}'");
                self.fail(peer.id(), missed.remove(at), &reason);
            }
        }
        if let (Scene::OneCpu, true, Some(kib)) = (scene, peer.tells_memory(), run.memory_kib) {
            self.note_memory(peer.id(), kib);
        }
        let reason = run.failure.unwrap_or_else(|| "it was not run".to_owned());
        let blamed = if run.reached_init { 1 } else { missed.len() };
        let rest = missed.split_off(blamed.min(missed.len()));
        for workload in missed {
            self.fail(peer.id(), workload, &reason);
        }
        Ok(rest)
    }

    /// Notes a workload of which one part in `divisor` was done.
    fn note(&mut self, peer: &str, workload: &'static Workload, divisor: u32, done: &Finished) {
        let whole = f64::from(workload.count_of(self.divisor));
        let count = workload.count_of(divisor);
        let did = match workload.measure {
            Measure::Time => f64::from(count),
            Measure::Rate => match done.result.parse::<f64>() {
                Ok(operations) if operations > 0.0 => operations,
                _ => return self.fail(peer, workload, "it does not tell its rate"),
            },
        };
        if workload.measure == Measure::Time {
            let answer = self
                .answers
                .entry((workload.name, count))
                .or_insert(Answer {
                    peer: peer.to_owned(),
                    result: done.result.clone(),
                });
            if answer.result != done.result {
                let reason = format!(
                    "it printed '{}', on {} '{}'",
                    done.result, answer.peer, answer.result
                );
                return self.fail(peer, workload, &reason);
            }
        }
        let measurement = self.results.entry(workload.name, peer);
        measurement.add(done.time, whole / did);
        let seconds = measurement.seconds.last().copied().unwrap_or_default();
        println!("{peer}: {} {seconds:.2} s", workload.name);
    }

    fn fail(&mut self, peer: &str, workload: &'static Workload, reason: &str) {
        println!("{peer}: {} failed: {reason}", workload.name);
        self.results.entry(workload.name, peer).failure = Some(reason.to_owned());
    }

    fn note_memory(&mut self, peer: &str, kib: u64) {
        let mib = kib as f64 / 1024.0;
        match self.results.memory.iter_mut().find(|m| m.peer == peer) {
            Some(memory) => memory.mib = memory.mib.max(mib),
            None => self.results.memory.push(Memory {
                peer: peer.to_owned(),
                mib,
            }),
        }
    }
}
