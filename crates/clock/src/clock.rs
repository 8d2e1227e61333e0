//! The clock of a machine.

use crate::counter::{Counter, TscScale};
use rustix::time::{ClockId, clock_gettime};
use std::num::NonZeroU64;
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
    /// Machine time less source time while running; of a counter, it is in its scale.
    offset: AtomicI64,
    /// Machine time at which the clock stands, or [`RUNNING`].
    stopped_at: AtomicU64,
    resumptions: AtomicU64,
}

const RUNNING: u64 = u64::MAX;

#[derive(Debug)]
enum Source {
    /// `CLOCK_MONOTONIC` of the host, one nanosecond in this many.
    Monotonic(NonZeroU64),
    Counter(Counter),
    Manual(AtomicU64),
}

impl Clock {
    /// A clock that stands at `start` nanoseconds of machine time until [`Clock::resume`], and
    /// follows `CLOCK_MONOTONIC` then.
    pub fn stopped_at(start: u64) -> Self {
        Self::with_source(Source::Monotonic(NonZeroU64::MIN), start)
    }

    /// As [`Clock::stopped_at`], but it is `slowness` times as slow: for who executes guest code as
    /// slowly, so that a guest does not spend all of its time on its timers.
    ///
    /// Who waits for as long as there is machine time left until a deadline wakes up early, and has
    /// to look and wait again. That everybody does in any case.
    pub fn slowed(slowness: NonZeroU64, start: u64) -> Self {
        Self::with_source(Source::Monotonic(slowness), start)
    }

    /// As [`Clock::stopped_at`], but it follows the host's time-stamp counter, if that can be
    /// relied on. `read` reads it once all loads before are done, so that who learns of a moment
    /// sees no earlier one.
    pub fn following_tsc(read: fn() -> u64, start: u64) -> Self {
        match Counter::of_host(read) {
            Some(counter) => Self::with_counter(counter, start),
            None => Self::stopped_at(start),
        }
    }

    pub(crate) fn with_counter(counter: Counter, start: u64) -> Self {
        Self::with_source(Source::Counter(counter), start)
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
            resumptions: AtomicU64::new(0),
        }))
    }

    /// Machine time in nanoseconds.
    #[inline]
    pub fn now(&self) -> u64 {
        match self.0.stopped_at.load(Ordering::Acquire) {
            RUNNING => self.0.running(),
            stopped => stopped,
        }
    }

    /// How machine time follows from the host's TSC; `None` if it does not, or stands.
    pub fn tsc_scale(&self) -> Option<TscScale> {
        match &self.0.source {
            Source::Counter(counter) if self.is_running() => Some(counter.scale()),
            _ => None,
        }
    }

    /// Whether time passes.
    fn is_running(&self) -> bool {
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
            self.0.tie(stopped);
            self.0.resumptions.fetch_add(1, Ordering::Release);
            self.0.stopped_at.store(RUNNING, Ordering::Release);
        }
    }

    /// How often time began to pass. For who keeps a clock of its own in step with this one, which
    /// does not stand when this one does.
    pub fn resumptions(&self) -> u64 {
        self.0.resumptions.load(Ordering::Acquire)
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
            _ => panic!("only a manual clock can be advanced"),
        };
    }

    /// Wall-clock time of the host: nanoseconds since the Unix epoch, UTC.
    pub fn wall_nanos() -> u64 {
        let t = clock_gettime(ClockId::Realtime);
        t.tv_sec.max(0) as u64 * NANOS_PER_SECOND + t.tv_nsec as u64
    }
}

impl Inner {
    /// Machine time while the clock runs.
    #[inline]
    fn running(&self) -> u64 {
        let offset = || self.offset.load(Ordering::Relaxed);
        match &self.source {
            Source::Counter(counter) => counter.now(),
            Source::Monotonic(slowness) => {
                (monotonic_nanos() / *slowness).wrapping_add_signed(offset())
            }
            Source::Manual(now) => now.load(Ordering::Acquire).wrapping_add_signed(offset()),
        }
    }

    /// Makes `machine` the machine time at which the clock goes on.
    fn tie(&self, machine: u64) {
        let source = match &self.source {
            Source::Counter(counter) => return counter.resume(machine),
            Source::Monotonic(slowness) => monotonic_nanos() / *slowness,
            Source::Manual(now) => now.load(Ordering::Acquire),
        };
        let offset = machine.wrapping_sub(source) as i64;
        self.offset.store(offset, Ordering::Relaxed);
    }
}

fn monotonic_nanos() -> u64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec as u64 * NANOS_PER_SECOND + t.tv_nsec as u64
}

/// Ticks of a counter of `hz` after `nanos` nanoseconds, rounded down, exact over centuries.
#[inline]
pub const fn ticks(nanos: u64, hz: u64) -> u64 {
    if hz == NANOS_PER_SECOND {
        // The TSC under the software engines, which guests read all the time.
        return nanos;
    }
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
        let before = clock.resumptions();
        clock.resume();
        clock.resume();
        assert_eq!(clock.resumptions(), before + 1, "it ran already");
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
    fn a_slowed_clock_is_as_slow_as_was_asked() {
        let slowness = NonZeroU64::new(1000).unwrap();
        let clock = Clock::slowed(slowness, 7);
        let begin = std::time::Instant::now();
        clock.resume();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let passed = clock.now() - 7;
        let host = begin.elapsed().as_nanos() as u64;
        // A part of a nanosecond counts for none.
        assert!((20_000 - 1..=host / 1000 + 1).contains(&passed), "{passed}");
    }

    #[test]
    fn nanos_is_the_first_moment_at_which_the_ticks_are_reached() {
        for hz in [
            1,
            1_193_182,
            3_579_545,
            14_318_180,
            NANOS_PER_SECOND,
            2_649_998_000,
        ] {
            for t in [1, 2, 999, 1_000_003, 86_400 * hz] {
                let first = nanos(t, hz);
                assert!(ticks(first, hz) >= t, "{t} ticks of {hz} Hz");
                assert!(ticks(first - 1, hz) < t, "{t} ticks of {hz} Hz");
            }
        }
    }
}
