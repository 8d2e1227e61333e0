//! The order of things: all peers in turn, again and again, and what becomes of failures.

use super::boot::{Boot, Initrds};
use super::measure::{self, Finished};
use super::peer::{Pace, Peer};
use super::results::{Delays, Memory, Results};
use super::workload::{Measure, Scene, Workload};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::Duration;

/// Of the work, slow peers do one part in so many; a quick comparison, all.
pub(crate) const SLOW_DIVISOR: u32 = 20;

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What is measured, in the order of [`WORKLOADS`](super::workloads::WORKLOADS).
    pub(crate) workloads: Vec<&'static Workload>,
    /// The guests' memory in MiB.
    pub(crate) memory_mib: u32,
    /// The time that may pass without a line of output.
    pub(crate) patience: Duration,
    /// Of the work, one part in so many is done.
    pub(crate) divisor: u32,
}

/// A comparison that goes on.
pub(crate) struct Runner<'a> {
    plan: Plan,
    initrds: &'a Initrds,
    answers: BTreeMap<(&'static str, u32), Answer>,
    /// What has been measured.
    pub(crate) results: Results,
}

/// What a workload printed, which all have to agree on.
struct Answer {
    peer: String,
    result: String,
}

impl<'a> Runner<'a> {
    /// One that measures into `results`.
    pub(crate) fn new(plan: Plan, initrds: &'a Initrds, results: Results) -> Self {
        Self {
            plan,
            initrds,
            answers: BTreeMap::new(),
            results,
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
            let mut left: Vec<_> = self.plan.workloads.iter().copied().filter(is_due).collect();
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
            Pace::Full => self.plan.divisor,
            Pace::Slow => SLOW_DIVISOR,
        };
        let boot = Boot::new(
            self.initrds,
            scene,
            workloads,
            divisor,
            self.plan.memory_mib,
        );
        let scratch = tempfile::Builder::new().prefix("compare-").tempdir()?;
        let mut command = peer
            .prepare(&boot, scratch.path())
            .with_context(|| format!("can't prepare {}", peer.id()))?;
        let run = measure::run(&mut command, self.plan.patience, scratch.path())?;
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
        let whole = f64::from(workload.count_of(self.plan.divisor));
        let count = workload.count_of(divisor);
        let did = match workload.measure {
            Measure::Delay => return self.note_delays(peer, workload, &done.result),
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

    fn note_delays(&mut self, peer: &str, workload: &'static Workload, result: &str) {
        let Some(delays) = Delays::parse(result) else {
            return self.fail(peer, workload, "it does not tell its delays");
        };
        let [median, p99, longest] = delays.micros();
        println!(
            "{peer}: {} {median:.1} us, 99th percentile {p99:.1} us, longest {longest:.1} us",
            workload.name
        );
        self.results.entry(workload.name, peer).delays.push(delays);
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

#[cfg(test)]
mod tests {
    use super::super::boot::tests::initrds;
    use super::super::results::PeerDescription;
    use super::super::results::tests::sample;
    use super::super::workloads::{INTERRUPTS, WORKLOADS};
    use super::*;
    use std::path::Path;
    use std::process::Command;

    /// A peer that is a script, with the workloads that are due as its environment.
    struct Script(&'static str);

    impl Peer for Script {
        fn id(&self) -> &str {
            "script"
        }

        fn install(&self) -> Result<()> {
            Ok(())
        }

        fn describe(&self) -> Result<PeerDescription> {
            unreachable!("the runner does not ask")
        }

        fn prepare(&self, boot: &Boot<'_>, _: &Path) -> Result<Command> {
            let mut command = Command::new("sh");
            command.args(["-c", self.0]).envs(boot.environment());
            Ok(command)
        }
    }

    fn plan(names: &[&str]) -> Plan {
        Plan {
            workloads: WORKLOADS
                .iter()
                .filter(|w| names.contains(&w.name))
                .collect(),
            memory_mib: 0,
            patience: Duration::from_secs(60),
            divisor: 1,
        }
    }

    /// What became of `names` on `script`, after `repetitions`: the number of times measured, or
    /// the failure.
    fn outcome(script: &'static str, names: &[&str], repetitions: u32) -> Vec<String> {
        let initrds = initrds();
        let mut results = sample();
        results.measurements.clear();
        let mut runner = Runner::new(plan(names), &initrds, results);
        for _ in 0..repetitions {
            runner.run(&Script(script)).unwrap();
        }
        let measurements = runner.results.measurements.iter();
        let tell = |m: &super::super::results::Measurement| match &m.failure {
            Some(failure) => format!("{}: {failure}", m.workload),
            None => format!("{}: {}", m.workload, m.seconds.len()),
        };
        let mut told: Vec<_> = measurements.map(tell).collect();
        told.sort();
        told
    }

    #[test]
    fn after_a_workload_that_breaks_the_guest_the_others_get_another() {
        let script = "echo compare: init
for name in $(echo $WORKLOADS | tr , ' '); do
    [ $name != sort ] || exit 1
    echo compare: begin $name
    echo compare: end $name same
done
echo compare: done";
        assert_eq!(
            outcome(script, &["gzip", "sort", "pipe"], 2),
            [
                "gzip: 2",
                "pipe: 2",
                "sort: it ended after the line 'compare: end gzip same', with exit status: 1"
            ]
        );
    }

    #[test]
    fn a_guest_that_does_not_boot_is_tried_once() {
        let told = outcome("echo panic", &["gzip", "pipe"], 1);
        let failure = "it ended after the line 'panic', with exit status: 0";
        assert_eq!(
            told,
            [format!("gzip: {failure}"), format!("pipe: {failure}")]
        );
    }

    #[test]
    fn different_results_are_a_failure() {
        let script = "echo compare: init; echo compare: end pipe $$; echo compare: done";
        let told = outcome(script, &["pipe"], 2);
        assert!(told[0].starts_with("pipe: it printed '"), "{told:?}");
    }

    #[test]
    fn a_program_that_fails_is_a_failure_with_its_words() {
        let script = "echo compare: init; echo no; echo compare: failed pipe; echo compare: done";
        let told = outcome(script, &["pipe"], 1);
        assert_eq!(told, ["pipe: its program failed after 'no'"]);
    }

    #[test]
    fn a_rate_is_the_time_of_the_count() {
        let initrds = initrds();
        let mut runner = Runner::new(plan(&[]), &initrds, sample());
        let find = |name| WORKLOADS.iter().find(|w| w.name == name).unwrap();
        let done = |seconds, result: &str| Finished {
            workload: String::new(),
            time: measure::Moment {
                wall: Duration::from_secs(seconds),
                cpu: Duration::ZERO,
            },
            result: result.to_owned(),
        };
        let interrupts = find(INTERRUPTS);
        runner.note("a", interrupts, 1, &done(2, "5 7 9"));
        runner.note("b", interrupts, 1, &done(2, "5"));
        let delays = |peer| runner.results.get(INTERRUPTS, peer).unwrap().delays();
        assert_eq!((delays("a").unwrap().p99, delays("b")), (7, None));
        let (aes, shell) = (find("openssl-aes"), find("shell"));
        runner.note("a", aes, 20, &done(2, &(aes.count * 4).to_string()));
        runner.note("a", shell, 20, &done(2, "x"));
        assert_eq!(runner.results.median(aes.name, "a"), Some(0.5));
        assert_eq!(runner.results.median(shell.name, "a"), Some(40.0));
        runner.note("b", aes, 1, &done(2, ""));
        assert!(runner.results.get(aes.name, "b").unwrap().failure.is_some());
    }
}
