//! What engines count, for people.

/// The group of [`Statistic`]s that are about the time of a vCPU.
pub const TIME: &str = "time";
/// In [`TIME`]: how long [`Vcpu::run`](crate::Vcpu::run) ran, halts included.
pub const RUNNING: &str = "running";

/// What a number of a [`Statistic`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// How often something happened so far.
    Events,
    /// How many there are now.
    Level,
    /// How many bytes there are now.
    Bytes,
    /// For how long something was done so far, in microseconds.
    Micros,
}

/// One number that an engine tells of a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistic {
    /// What it belongs to. Those of a group are shown together.
    pub group: &'static str,
    /// Its name, one of a kind in its group.
    pub name: &'static str,
    /// What the number is.
    pub quantity: Quantity,
    /// The number.
    pub value: u64,
}

impl Statistic {
    /// How often something happened.
    pub const fn events(group: &'static str, name: &'static str, value: u64) -> Self {
        Self::new(group, name, Quantity::Events, value)
    }

    /// How many there are.
    pub const fn level(group: &'static str, name: &'static str, value: u64) -> Self {
        Self::new(group, name, Quantity::Level, value)
    }

    /// How many bytes there are.
    pub const fn bytes(group: &'static str, name: &'static str, value: u64) -> Self {
        Self::new(group, name, Quantity::Bytes, value)
    }

    /// For how long something was done.
    pub const fn time(name: &'static str, time: std::time::Duration) -> Self {
        Self::new(TIME, name, Quantity::Micros, time.as_micros() as u64)
    }

    const fn new(group: &'static str, name: &'static str, quantity: Quantity, value: u64) -> Self {
        Self {
            group,
            name,
            quantity,
            value,
        }
    }
}
