//! Machine time: nanoseconds that pass only while the virtual machine runs.
//!
//! Every clock that a guest can see (TSC, kvmclock, HPET, PIT, PM timer, APIC timer) is a linear
//! function of the one [`Clock`] of its machine, so they can't drift against each other. The host
//! side is `CLOCK_MONOTONIC`, which NTP slews, so that guest time follows the host's.
//! While the machine is paused, machine time stands still.
#![forbid(unsafe_code)]

use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Nanoseconds in a second.
pub const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The clock of one machine. Clones show the same time.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: Source,
    /// Machine time less source time while running.
    offset: AtomicI64,
    /// Machine time at which the clock stands, or [`RUNNING`].
    stopped_at: AtomicU64,
}

const RUNNING: u64 = u64::MAX;

#[derive(Debug)]
enum Source {
    Host,
    Manual(AtomicU64),
}

impl Source {
    fn now(&self) -> u64 {
        match self {
            Source::Host => {
                let t = clock_gettime(ClockId::Monotonic);
                t.tv_sec as u64 * NANOS_PER_SECOND + t.tv_nsec as u64
            }
            Source::Manual(now) => now.load(Ordering::Acquire),
        }
    }
}

impl Clock {
    /// A clock that stands at `start` nanoseconds of machine time until [`Clock::resume`].
    pub fn stopped_at(start: u64) -> Self {
        Self::with_source(Source::Host, start)
    }

    /// A clock for tests, running from 0, that moves only by [`Clock::advance`].
    pub fn manual() -> Self {
        let clock = Self::with_source(Source::Manual(AtomicU64::new(0)), 0);
        clock.resume();
        clock
    }

    fn with_source(source: Source, start: u64) -> Self {
        Self(Arc::new(Inner {
            source,
            offset: AtomicI64::new(0),
            stopped_at: AtomicU64::new(start),
        }))
    }

    /// Machine time in nanoseconds.
    #[inline]
    pub fn now(&self) -> u64 {
        match self.0.stopped_at.load(Ordering::Acquire) {
            RUNNING => self
                .0
                .source
                .now()
                .wrapping_add_signed(self.0.offset.load(Ordering::Relaxed)),
            stopped => stopped,
        }
    }

    /// Whether time passes.
    pub fn is_running(&self) -> bool {
        self.0.stopped_at.load(Ordering::Acquire) == RUNNING
    }

    /// Stops time. Called by the machine's owner alone, once all vCPUs stand.
    pub fn pause(&self) {
        let now = self.now();
        self.0.stopped_at.store(now, Ordering::Release);
    }

    /// Lets time pass again from where it stopped. Called by the machine's owner alone.
    pub fn resume(&self) {
        let stopped = self.0.stopped_at.load(Ordering::Acquire);
        if stopped != RUNNING {
            let offset = stopped.wrapping_sub(self.0.source.now()) as i64;
            self.0.offset.store(offset, Ordering::Relaxed);
            self.0.stopped_at.store(RUNNING, Ordering::Release);
        }
    }

    /// Sets a stopped clock, when a saved machine is restored.
    ///
    /// # Panics
    /// If the clock runs: guest time never jumps.
    pub fn set(&self, now: u64) {
        assert!(!self.is_running(), "a running clock can't be set");
        self.0.stopped_at.store(now, Ordering::Release);
    }

    /// Moves a [`Clock::manual`] clock on by `nanos`.
    ///
    /// # Panics
    /// On a clock that follows the host.
    pub fn advance(&self, nanos: u64) {
        match &self.0.source {
            Source::Manual(now) => now.fetch_add(nanos, Ordering::AcqRel),
            Source::Host => panic!("only a manual clock can be advanced"),
        };
    }

    /// Wall-clock time of the host: nanoseconds since the Unix epoch, UTC.
    pub fn wall_nanos() -> u64 {
        let t = clock_gettime(ClockId::Realtime);
        t.tv_sec.max(0) as u64 * NANOS_PER_SECOND + t.tv_nsec as u64
    }
}

/// Ticks of a counter of `hz` after `nanos` nanoseconds, rounded down, exact over centuries.
#[inline]
pub const fn ticks(nanos: u64, hz: u64) -> u64 {
    (nanos as u128 * hz as u128 / NANOS_PER_SECOND as u128) as u64
}

/// The first nanosecond at which a counter of `hz` has reached `ticks`.
#[inline]
pub const fn nanos(ticks: u64, hz: u64) -> u64 {
    let nanos = (ticks as u128 * NANOS_PER_SECOND as u128).div_ceil(hz as u128);
    if nanos > u64::MAX as u128 {
        u64::MAX
    } else {
        nanos as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_while_paused() {
        let clock = Clock::manual();
        clock.advance(5);
        clock.pause();
        clock.advance(100);
        assert_eq!(clock.now(), 5);
        clock.resume();
        clock.advance(1);
        assert_eq!(clock.now(), 6);
    }

    #[test]
    fn a_restored_clock_goes_on_from_its_time() {
        let clock = Clock::stopped_at(0);
        clock.set(1 << 40);
        clock.resume();
        assert!(clock.now() >= 1 << 40 && clock.now() < (1 << 40) + NANOS_PER_SECOND);
    }

    #[test]
    fn nanos_is_the_first_moment_at_which_the_ticks_are_reached() {
        for hz in [1, 1_193_182, 3_579_545, 14_318_180, 2_649_998_000] {
            for t in [1, 2, 999, 1_000_003, 86_400 * hz] {
                let first = nanos(t, hz);
                assert!(ticks(first, hz) >= t, "{t} ticks of {hz} Hz");
                assert!(ticks(first - 1, hz) < t, "{t} ticks of {hz} Hz");
            }
        }
    }
}
