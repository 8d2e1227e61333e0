//! The host's time-stamp counter as a source of time.

use crate::NANOS_PER_SECOND;
use rustix::time::{ClockId, clock_gettime};
use std::arch::x86_64::__cpuid;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How far CPUs' counters may be apart, in ticks, before one counts as restarted.
const SKEW_MAX: u64 = 1 << 20;
/// How long the counter is watched for a first estimate of its frequency.
const FIRST_BASELINE: Duration = Duration::from_millis(2);
/// The most by which a longer watch may correct the first estimate: 1 / this. More means that the
/// host slept meanwhile, or moved.
const CORRECTION_MAX: u64 = 1000;

/// Machine time as a function of the host's TSC, in a form that generated code can compute:
/// `((tsc * mult) >> 62) + offset`, the product having 128 bits and the sum 64.
///
/// It holds from [`crate::Clock::resume`] to the next [`crate::Clock::pause`], so an engine takes
/// it whenever a vCPU begins to run. Who sees a counter below `floor` asks
/// [`crate::Clock::now`] instead, and takes a new scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscScale {
    /// Nanoseconds in a tick, times 2^62.
    pub mult: u64,
    /// Machine time at counter 0, modulo 2^64.
    pub offset: u64,
    /// The counter when the clock was resumed.
    pub floor: u64,
}

impl TscScale {
    /// By how many bits the product is shifted. With it, a tick may take up to 4 ns.
    pub const SHIFT: u32 = 62;

    /// Machine time when the counter is `tsc`, which is not below `floor`.
    #[inline]
    pub const fn nanos(&self, tsc: u64) -> u64 {
        scale(tsc, self.mult).wrapping_add(self.offset)
    }
}

#[inline]
const fn scale(ticks: u64, mult: u64) -> u64 {
    ((ticks as u128 * mult as u128) >> TscScale::SHIFT) as u64
}

/// A counter that ticks at one rate, the same on all CPUs.
#[derive(Debug)]
pub(crate) struct Counter {
    clocks: Clocks,
    /// What the frequency is measured from.
    first: Sample,
    mult: AtomicU64,
    floor: AtomicU64,
    offset: AtomicU64,
    anchor: Mutex<Anchor>,
}

/// Two clocks that are to be compared.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    /// The counter.
    tsc: fn() -> u64,
    /// `CLOCK_MONOTONIC_RAW`: the kernel's view of the same counter, which nobody slews, and which
    /// stands while the host sleeps.
    raw: fn() -> u64,
}

/// One moment by both clocks.
#[derive(Debug, Clone, Copy)]
struct Sample {
    tsc: u64,
    raw: u64,
}

/// The last moment at which machine time was tied to the counter.
#[derive(Debug, Clone, Copy, Default)]
struct Anchor {
    raw: u64,
    machine: u64,
}

impl Sample {
    /// The best of some tries: a host that interrupts us makes the others vague.
    fn take(clocks: Clocks) -> Self {
        let tries = (0..16).map(|_| {
            let before = (clocks.tsc)();
            let raw = (clocks.raw)();
            let width = (clocks.tsc)().wrapping_sub(before);
            let tsc = before.wrapping_add(width / 2);
            (width, Self { tsc, raw })
        });
        let best = tries.min_by_key(|(width, _)| *width);
        best.expect("there are tries").1
    }

    /// Nanoseconds in a tick since `first`, times 2^62; `None` outside 250 MHz to 16 GHz.
    fn mult(self, first: Self) -> Option<u64> {
        let ticks = self.tsc.checked_sub(first.tsc).filter(|ticks| *ticks > 0)?;
        let nanos = self.raw.checked_sub(first.raw)?;
        let mult = (u128::from(nanos) << TscScale::SHIFT) / u128::from(ticks);
        u64::try_from(mult).ok().filter(|mult| *mult >= 1 << 58)
    }
}

impl Counter {
    /// The host's TSC, read by `read`; `None` if it can't be relied on as a clock.
    pub(crate) fn of_host(read: fn() -> u64) -> Option<Self> {
        if !is_invariant() || !is_trusted_by_kernel() {
            return None;
        }
        let clocks = Clocks {
            tsc: read,
            raw: raw_nanos,
        };
        let first = Sample::take(clocks);
        std::thread::sleep(FIRST_BASELINE);
        Self::new(clocks, first)
    }

    /// A counter whose rate is measured from `first` on.
    fn new(clocks: Clocks, first: Sample) -> Option<Self> {
        let mult = Sample::take(clocks).mult(first)?;
        Some(Self {
            clocks,
            first,
            mult: AtomicU64::new(mult),
            floor: AtomicU64::new(0),
            offset: AtomicU64::new(0),
            anchor: Mutex::default(),
        })
    }

    /// Machine time of a clock that runs.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        // The counter is read last: if it was restarted since, the floor shows it.
        let scale = self.scale();
        let tsc = (self.clocks.tsc)();
        if tsc < scale.floor {
            return self.below_floor();
        }
        scale.nanos(tsc)
    }

    /// The function from the counter to machine time.
    pub(crate) fn scale(&self) -> TscScale {
        // Acquire: who sees the new floor sees the new offset.
        let floor = self.floor.load(Ordering::Acquire);
        TscScale {
            mult: self.mult.load(Ordering::Relaxed),
            offset: self.offset.load(Ordering::Relaxed),
            floor,
        }
    }

    /// Ties machine time `machine` to the counter as it is now.
    pub(crate) fn resume(&self, machine: u64) {
        let mut anchor = self.lock_anchor();
        if anchor.raw == 0 {
            // Nobody has seen time pass. The rate is known better by now, and stays.
            self.refine();
        }
        *anchor = Anchor {
            raw: (self.clocks.raw)(),
            machine,
        };
        self.tie((self.clocks.tsc)(), machine);
    }

    fn tie(&self, tsc: u64, machine: u64) {
        let passed = scale(tsc, self.mult.load(Ordering::Relaxed));
        self.offset
            .store(machine.wrapping_sub(passed), Ordering::Relaxed);
        self.floor.store(tsc, Ordering::Release);
    }

    fn refine(&self) {
        let estimate = self.mult.load(Ordering::Relaxed);
        let better = Sample::take(self.clocks).mult(self.first);
        if let Some(better) = better
            && better.abs_diff(estimate) <= estimate / CORRECTION_MAX
        {
            self.mult.store(better, Ordering::Relaxed);
        }
    }

    /// The counter is behind where it was when the clock was resumed: hardly, because CPUs differ,
    /// or by far, because the host slept and its counter was restarted. Machine time goes on from
    /// where it was then.
    #[cold]
    fn below_floor(&self) -> u64 {
        let mut anchor = self.lock_anchor();
        let scale = self.scale();
        let tsc = (self.clocks.tsc)();
        if tsc.saturating_add(SKEW_MAX) < scale.floor {
            let raw = (self.clocks.raw)();
            let passed = raw.saturating_sub(anchor.raw);
            // 15 ppm more, so that what the rate is wrong by does not make time go back.
            let machine = anchor.machine + passed + (passed >> 16);
            *anchor = Anchor { raw, machine };
            self.tie(tsc, machine);
            return machine;
        }
        scale.nanos(tsc.max(scale.floor))
    }

    fn lock_anchor(&self) -> std::sync::MutexGuard<'_, Anchor> {
        self.anchor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the counter ticks at one rate in all power states: CPUID 8000_0007H, EDX bit 8 (SDM
/// vol. 3, 18.17.1; APM vol. 3, E.4.7).
fn is_invariant() -> bool {
    const ADVANCED_POWER: u32 = 0x8000_0007;
    __cpuid(0x8000_0000).eax >= ADVANCED_POWER && __cpuid(ADVANCED_POWER).edx & 1 << 8 != 0
}

/// Whether the kernel keeps its own time by the counter. It has checked then that all CPUs show
/// the same, and goes on comparing it with other clocks.
fn is_trusted_by_kernel() -> bool {
    std::fs::read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        .is_ok_and(|name| name.trim_ascii() == b"tsc")
}

fn raw_nanos() -> u64 {
    let t = clock_gettime(ClockId::MonotonicRaw);
    t.tv_sec as u64 * NANOS_PER_SECOND + t.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Clock;
    use std::cell::Cell;

    const SECOND: u64 = NANOS_PER_SECOND;
    /// Ticks in a nanosecond.
    const RATE: u64 = 3;

    thread_local! {
        static RAW: Cell<u64> = const { Cell::new(SECOND) };
        /// The counter when RAW was 0.
        static START: Cell<u64> = const { Cell::new(3600 * SECOND * RATE) };
    }

    fn tsc() -> u64 {
        START.get() + RAW.get() * RATE
    }

    fn wait(nanos: u64) {
        RAW.set(RAW.get() + nanos);
    }

    fn counter() -> Counter {
        let clocks = Clocks {
            tsc,
            raw: || RAW.get(),
        };
        let first = Sample::take(clocks);
        wait(SECOND / 500);
        Counter::new(clocks, first).unwrap()
    }

    /// A clock that runs since machine time `start`.
    fn running(start: u64) -> Clock {
        let clock = Clock::with_counter(counter(), start);
        clock.resume();
        clock
    }

    #[test]
    fn the_first_resume_knows_the_rate_better() {
        let counter = counter();
        let exact = (1 << TscScale::SHIFT) / RATE;
        assert_eq!(counter.scale().mult, exact);
        // The estimate is a little wrong, the better one is taken; by far, the host has slept.
        for (wrong, taken) in [(exact + exact / 2000, exact), (exact * 2, exact * 2)] {
            counter.mult.store(wrong, Ordering::Relaxed);
            *counter.lock_anchor() = Anchor::default();
            counter.resume(0);
            assert_eq!(counter.scale().mult, taken);
        }
    }

    #[test]
    fn generated_code_and_the_clock_agree() {
        let clock = Clock::with_counter(counter(), 1 << 50);
        assert_eq!(clock.tsc_scale(), None, "it stands");
        clock.resume();
        for nanos in [0, 1, 999, SECOND, 86400 * SECOND, 1000 * 86400 * SECOND] {
            wait(nanos);
            let now = clock.now();
            assert_eq!(clock.tsc_scale().unwrap().nanos(tsc()), now);
        }
        let passed = clock.now() - (1 << 50);
        let expected = 1001 * 86400 * SECOND + SECOND + 1000;
        assert!(passed.abs_diff(expected) <= 1, "{passed} ns");
    }

    #[test]
    fn a_pause_takes_no_time_and_the_rate_stays() {
        let clock = running(7);
        assert_eq!(clock.now(), 7);
        wait(100 * RATE);
        let before = clock.tsc_scale().unwrap();
        clock.pause();
        let stopped = clock.now();
        wait(SECOND);
        assert_eq!(clock.now(), stopped);
        clock.resume();
        assert_eq!(clock.now(), stopped);
        let after = clock.tsc_scale().unwrap();
        assert_eq!(after.mult, before.mult);
        assert_eq!(after.floor, tsc());
    }

    #[test]
    fn a_restarted_counter_takes_time_neither_back_nor_far_on() {
        let clock = running(1000);
        wait(1000 * SECOND);
        let before = clock.now();
        let scale = clock.tsc_scale();
        START.set(0);
        let after = clock.now();
        assert!(after >= before, "{before} {after}");
        assert!(after - before < SECOND / 10, "{before} {after}");
        assert_ne!(clock.tsc_scale(), scale);
        wait(3);
        assert_eq!(clock.now(), after + 3);
    }

    #[test]
    fn a_cpu_that_is_a_little_behind_does_not_take_time_back() {
        let clock = running(1000);
        let scale = clock.tsc_scale();
        START.set(START.get() - 10);
        assert_eq!(clock.now(), 1000);
        assert_eq!(clock.tsc_scale(), scale);
    }

    #[test]
    fn a_counter_that_stands_or_goes_back_is_no_clock() {
        let raw = || RAW.get();
        for tsc in [|| 1, || u64::MAX - RAW.get()] as [fn() -> u64; 2] {
            let clocks = Clocks { tsc, raw };
            let first = Sample::take(clocks);
            wait(SECOND / 500);
            assert!(Counter::new(clocks, first).is_none());
        }
    }

    #[test]
    fn centuries_do_not_overflow() {
        let scale = TscScale {
            mult: (1 << TscScale::SHIFT) / 3,
            offset: 0,
            floor: 0,
        };
        let century = 100 * 365 * 86400 * SECOND;
        assert!(scale.nanos(century * 3).abs_diff(century) <= 4);
        assert!(scale.nanos(u64::MAX) > century);
    }
}
