//! The local APIC's timer (SDM vol. 3, 11.5.4).
//!
//! Nothing ticks: the count is computed from machine time, and the owner asks for the next
//! deadline.

use crate::spec::{BUS_HZ, lvt};
use x86::ApicState;

/// The guest's time-stamp counter as a function of machine time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tsc {
    /// Frequency in kHz.
    pub khz: u64,
    /// The counter at machine time 0.
    pub offset: u64,
}

impl Tsc {
    fn hz(self) -> u64 {
        self.khz.saturating_mul(1000).max(1)
    }

    /// The counter at machine time `now`.
    pub fn at(self, now: u64) -> u64 {
        clock::ticks(now, self.hz()).wrapping_add(self.offset)
    }

    /// The first machine time, not before `now`, at which the counter has reached `value`.
    fn time_of(self, value: u64, now: u64) -> u64 {
        let ahead = value.saturating_sub(self.at(now));
        if ahead == 0 {
            return now;
        }
        let ticks = clock::ticks(now, self.hz()).saturating_add(ahead);
        clock::nanos(ticks, self.hz())
    }
}

/// Bits 18:17 of the timer's LVT entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl Mode {
    pub(crate) fn of(registers: &ApicState) -> Self {
        Self::of_entry(registers.lvt[lvt::TIMER])
    }

    pub(crate) fn of_entry(entry: u32) -> Self {
        match entry >> lvt::TIMER_MODE_SHIFT & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    pub(crate) fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

/// Nanoseconds of one count.
fn count_nanos(divide: u32) -> u64 {
    let divisor = match divide >> 1 & 4 | divide & 3 {
        0b111 => 1,
        code => 2 << code,
    };
    divisor * (1_000_000_000 / BUS_HZ)
}

/// Nanoseconds from the initial count to 0; a u32 times at most 128.
fn period(registers: &ApicState) -> u64 {
    u64::from(registers.initial_count) * count_nanos(registers.divide)
}

/// The current count at `now`.
pub(crate) fn current_count(registers: &ApicState, now: u64) -> u32 {
    let Some(deadline) = registers.timer_deadline else {
        return 0;
    };
    let left = deadline
        .saturating_sub(now)
        .div_ceil(count_nanos(registers.divide));
    left.min(registers.initial_count.into()) as u32
}

/// A write to the initial count starts the count, or stops it by 0.
pub(crate) fn start(registers: &mut ApicState, initial_count: u32, now: u64) {
    if !Mode::of(registers).counts() {
        return;
    }
    registers.initial_count = initial_count;
    registers.timer_deadline = (initial_count != 0).then(|| now.saturating_add(period(registers)));
}

/// A write to the divide configuration: what is left of the count goes on at the new rate.
pub(crate) fn set_divide(registers: &mut ApicState, divide: u32, now: u64) {
    let left = current_count(registers, now);
    registers.divide = divide;
    if registers.timer_deadline.is_some() {
        let rest = u64::from(left) * count_nanos(divide);
        registers.timer_deadline = Some(now.saturating_add(rest));
    }
}

/// A write to the timer's LVT entry. The timer is disarmed by a change to or from TSC-deadline
/// mode; between the other two, the count goes on.
pub(crate) fn set_entry(registers: &mut ApicState, entry: u32) {
    let (before, after) = (Mode::of(registers), Mode::of_entry(entry));
    registers.lvt[lvt::TIMER] = entry;
    if before != after && !(before.counts() && after.counts()) {
        registers.initial_count = 0;
        registers.timer_deadline = None;
        registers.tsc_deadline = 0;
    }
}

/// Machine time of the next expiry.
pub(crate) fn next_deadline(registers: &ApicState, now: u64, tsc: Tsc) -> Option<u64> {
    match registers.tsc_deadline {
        0 => registers.timer_deadline,
        deadline => Some(tsc.time_of(deadline, now)),
    }
}

/// Moves the timer on to `now`. Returns whether it expired. A periodic timer that missed periods
/// expires once for all of them: its interrupt has one bit in the IRR, so that a processor which
/// did not look would not have seen more either. The next period stays on the grid of the first.
pub(crate) fn advance(registers: &mut ApicState, now: u64, tsc: Tsc) -> bool {
    if registers.tsc_deadline != 0 {
        let expired = tsc.at(now) >= registers.tsc_deadline;
        if expired {
            registers.tsc_deadline = 0;
        }
        return expired;
    }
    let Some(deadline) = registers.timer_deadline.filter(|d| *d <= now) else {
        return false;
    };
    registers.timer_deadline = if Mode::of(registers) == Mode::Periodic {
        let period = period(registers);
        let missed = (now - deadline) / period;
        Some(deadline.saturating_add(period.saturating_mul(missed + 1)))
    } else {
        None
    };
    true
}
