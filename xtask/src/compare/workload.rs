//! What is compared: a boot, and work that a guest does. `workloads` has them all.

/// In which machine a workload runs. Workloads of one scene run in one boot, in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scene {
    /// Debian's guest with nothing added but a process 1 that says that it runs.
    Boot,
    /// One CPU, and all the programs that workloads need.
    OneCpu,
    /// The same with two CPUs.
    TwoCpus,
}

impl Scene {
    /// All, in the order in which they are run.
    pub(crate) const ALL: [Self; 3] = [Self::Boot, Self::OneCpu, Self::TwoCpus];

    /// The number of CPUs.
    pub(crate) fn cpus(self) -> u32 {
        match self {
            Self::Boot | Self::OneCpu => 1,
            Self::TwoCpus => 2,
        }
    }
}

/// What the time of a workload says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// How long it took.
    Time,
    /// How long its count would have taken: it worked for a while and says how often it did what
    /// it does.
    Rate,
    /// Nothing: it says how late something came, as [`Delays`](super::results::Delays).
    Delay,
}

/// Something to measure.
#[derive(Debug)]
pub(crate) struct Workload {
    /// Its name, on the command line and in tables.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) about: &'static str,
    /// Where it runs.
    pub(crate) scene: Scene,
    /// What its time says.
    pub(crate) measure: Measure,
    /// How much it does, in units of its own; the time is in proportion.
    pub(crate) count: u32,
    /// Lines of shell that are not measured, run before.
    pub(crate) prepare: &'static str,
    /// Lines of shell that do the work `$n` times and print what came out.
    pub(crate) work: &'static str,
    /// Whether it is one of those whose geometric mean is taken: what is also part of another
    /// counts once.
    pub(crate) is_in_mean: bool,
}

impl Workload {
    /// The count where only one part in `divisor` is to be done: at least one.
    pub(crate) fn count_of(&self, divisor: u32) -> u32 {
        (self.count / divisor).max(1)
    }
}
