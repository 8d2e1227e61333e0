//! Guest time: the TSC, kvmclock and the local APICs' timers.
//!
//! To the guest no time passes while the machine's clock stands; but the kernel's clocks and timers
//! run on host time. So they are all set when the first vCPU runs after the clock was resumed,
//! before any guest code does: for the vCPUs of a machine at once, since to set a local APIC's
//! timer its whole state has to be written back, and no interrupt may come in between. Messages
//! wait at a gate meanwhile, and other vCPUs at a lock.
//!
//! The guest's TSC is the host's, scaled, plus an offset; the machine's clock follows the same
//! counter by a scale of its own. The two rates are apart by some millionths. What has come together
//! when the clock stops is kept (*drift*), so that the guest's counter does not go back by it.

use crate::apic;
use crate::calls::{VcpuCalls, VmCalls};
use clock::{Clock, TscScale};
use std::io::Result;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use x86::{ApicState, msr};

/// What of a vCPU depends on time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct VcpuTime {
    /// IA32_TSC at machine time 0.
    pub(crate) tsc_offset: u64,
    /// The offset that the kernel has for that, if it was told.
    kernel_offset: Option<u64>,
    /// The APIC timer's initial count.
    pub(crate) initial_count: u32,
    /// When the count is 0, in machine time.
    pub(crate) deadline: Option<u64>,
    /// IA32_TSC_DEADLINE.
    pub(crate) tsc_deadline: u64,
    /// Not written to the kernel since the clock was resumed, or since it was taken over.
    stale: bool,
}

impl VcpuTime {
    /// As saved.
    pub(crate) fn new(tsc_offset: u64, apic: &ApicState) -> Self {
        Self {
            tsc_offset,
            kernel_offset: None,
            initial_count: apic.initial_count,
            deadline: apic.timer_deadline,
            tsc_deadline: apic.tsc_deadline,
            stale: true,
        }
    }
}

/// A vCPU, as far as its time goes.
pub(crate) struct Timed {
    pub(crate) calls: Arc<dyn VcpuCalls>,
    time: Mutex<VcpuTime>,
}

impl Timed {
    pub(crate) fn new(calls: Arc<dyn VcpuCalls>, tsc_offset: u64, apic: &ApicState) -> Self {
        Self {
            calls,
            time: Mutex::new(VcpuTime::new(tsc_offset, apic)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VcpuTime> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clocks of host and guest at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    /// Machine time.
    machine: u64,
    /// The host's TSC in the guest's scale: the guest's less its offset.
    scaled: u64,
    /// kvmclock.
    kvmclock: u64,
}

impl Moment {
    /// By how much the guest's TSC and kvmclock have come away from the machine's clock at machine
    /// time `stop`, if they go evenly and `self` and `later` are two moments of one run.
    fn drift(&self, later: &Self, stop: u64, khz: u64) -> (i64, i64) {
        let passed = later.machine.saturating_sub(self.machine);
        if passed == 0 {
            return (0, 0);
        }
        let run = stop.saturating_sub(self.machine).min(passed);
        let part = |drift: i64| (i128::from(drift) * i128::from(run) / i128::from(passed)) as i64;
        let ticks = clock::ticks(later.machine, khz * 1000)
            .wrapping_sub(clock::ticks(self.machine, khz * 1000));
        let tsc = later.scaled.wrapping_sub(self.scaled).wrapping_sub(ticks) as i64;
        let kvmclock = later
            .kvmclock
            .wrapping_sub(self.kvmclock)
            .wrapping_sub(passed) as i64;
        (part(tsc), part(kvmclock))
    }
}

/// What is known of the time since the clock was last resumed.
#[derive(Debug, Default)]
struct Run {
    start: Option<(Moment, TscScale)>,
    /// The drift of this run, once somebody has asked for it.
    drift: Option<(i64, i64)>,
    /// kvmclock less machine time at the start.
    kvmclock_ahead: i64,
}

/// The time of a machine's vCPUs.
pub(crate) struct GuestTime {
    clock: Clock,
    tsc_khz: u64,
    vm: Arc<dyn VmCalls>,
    vcpus: Vec<Timed>,
    gate: Gate,
    /// The resumption of the clock for which all is set.
    set_for: AtomicU64,
    run: Mutex<Run>,
}

/// [`GuestTime::set_for`]: for none.
const NEVER: u64 = u64::MAX;

impl GuestTime {
    pub(crate) fn new(clock: Clock, tsc_khz: u64, vm: Arc<dyn VmCalls>, vcpus: Vec<Timed>) -> Self {
        Self {
            clock,
            tsc_khz,
            vm,
            vcpus,
            gate: Gate::default(),
            set_for: AtomicU64::new(NEVER),
            run: Mutex::default(),
        }
    }

    /// Where messages to local APICs pass.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Called by a vCPU before it enters the guest: one load and one compare, but after the clock
    /// was resumed or a state was taken over.
    pub(crate) fn begin(&self) -> Result<()> {
        if self.set_for.load(Ordering::Acquire) == self.clock.resumptions() {
            return Ok(());
        }
        self.set_all()
    }

    #[cold]
    fn set_all(&self) -> Result<()> {
        let mut run = self.lock_run();
        let resumption = self.clock.resumptions();
        let before = self.set_for.load(Ordering::Acquire);
        if before == resumption {
            return Ok(());
        }
        if before != NEVER || run.start.is_some() {
            self.keep_drift(&mut run, self.clock.now());
        }
        let start = self.moment(None)?;
        let clock = start.machine.wrapping_add_signed(run.kvmclock_ahead);
        self.vm.set_clock(clock)?;
        let moment = Moment {
            kvmclock: clock,
            ..start
        };
        run.start = self.clock.tsc_scale().map(|scale| (moment, scale));
        run.drift = None;
        let _closed = self.gate.close();
        for vcpu in &self.vcpus {
            self.set(vcpu, &moment)?;
        }
        self.set_for.store(resumption, Ordering::Release);
        Ok(())
    }

    /// Writes the time of `vcpu` to the kernel.
    fn set(&self, vcpu: &Timed, start: &Moment) -> Result<()> {
        let mut time = vcpu.lock();
        let calls = &vcpu.calls;
        let now = start.machine;
        let ticks = clock::ticks(now, self.tsc_khz * 1000);
        let offset = time
            .tsc_offset
            .wrapping_add(ticks)
            .wrapping_sub(start.scaled);
        calls.set_tsc_offset(offset)?;
        time.kernel_offset = Some(offset);
        let left = time.deadline.map(|deadline| deadline.saturating_sub(now));
        // A timer that stands in the kernel too needs no write.
        let mut page = calls.lapic()?;
        if left.is_some() || apic::time_left(&page).is_some() {
            apic::set_time_left(&mut page, time.initial_count, left);
            calls.set_lapic(&page)?;
        }
        if time.tsc_deadline != 0 || time.stale {
            // The kernel takes a deadline in TSC-deadline mode only, and 0 always.
            let _ = calls.set_msr(msr::IA32_TSC_DEADLINE, time.tsc_deadline);
        }
        time.stale = false;
        Ok(())
    }

    /// A moment now; its machine time by `scale`, which may be one of a clock that stands by now.
    fn moment(&self, scale: Option<&TscScale>) -> Result<Moment> {
        let calls = &self.vcpus[0].calls;
        let offset = calls.tsc_offset()?;
        // The best of some tries: a host that interrupts us makes the others vague.
        let mut best: Option<(u64, Moment)> = None;
        for _ in 0..4 {
            let before = native::time_stamp();
            let tsc = calls.msr(msr::IA32_TSC)?;
            let machine = match scale {
                Some(scale) => scale.nanos(native::time_stamp()),
                None => self.clock.now(),
            };
            let width = native::time_stamp().wrapping_sub(before);
            let moment = Moment {
                machine,
                scaled: tsc.wrapping_sub(offset),
                kvmclock: 0,
            };
            if best.as_ref().is_none_or(|(least, _)| width < *least) {
                best = Some((width, moment));
            }
        }
        let (_, moment) = best.expect("there are tries");
        Ok(Moment {
            kvmclock: self.vm.clock()?,
            ..moment
        })
    }

    /// The clock stopped at machine time `stop`: lets the guest's counters go on from where they
    /// have come to. Once for each run.
    fn keep_drift(&self, run: &mut Run, stop: u64) {
        let Some((start, scale)) = run.start.filter(|_| run.drift.is_none()) else {
            return;
        };
        let Ok(later) = self.moment(Some(&scale)) else {
            return;
        };
        let drift = start.drift(&later, stop, self.tsc_khz);
        for vcpu in &self.vcpus {
            let mut time = vcpu.lock();
            if time.kernel_offset.is_some() {
                time.tsc_offset = time.tsc_offset.wrapping_add_signed(drift.0);
            }
        }
        run.kvmclock_ahead = run.kvmclock_ahead.wrapping_add(drift.1);
        run.drift = Some(drift);
    }

    /// vCPU `index` has left the guest and its owner may want to look at it, or to stop the clock:
    /// notes what the guest has made of its TSC and timer.
    pub(crate) fn leave(&self, index: usize) {
        let vcpu = &self.vcpus[index];
        let mut time = vcpu.lock();
        let Ok(page) = vcpu.calls.lapic() else {
            return;
        };
        let now = self.clock.now();
        let left = apic::time_left(&page);
        let mut apic = ApicState::default();
        apic::read(&mut apic, &page);
        // A one-shot count that has run down is not in the kernel's page if it had before.
        if left.is_some() || apic.initial_count != 0 {
            time.initial_count = apic.initial_count;
        }
        time.deadline = left.map(|left| now.saturating_add(left));
        time.tsc_deadline = if apic::has_tsc_deadline(&apic) {
            vcpu.calls.msr(msr::IA32_TSC_DEADLINE).unwrap_or(0)
        } else {
            0
        };
        // WRMSR to IA32_TSC moves the offset.
        if let (Some(set), Ok(offset)) = (time.kernel_offset, vcpu.calls.tsc_offset()) {
            let moved = offset.wrapping_sub(set);
            time.tsc_offset = time.tsc_offset.wrapping_add(moved);
            time.kernel_offset = Some(offset);
        }
    }

    /// What of vCPU `index`, which stands, depends on time.
    pub(crate) fn of(&self, index: usize) -> VcpuTime {
        self.keep_drift(&mut self.lock_run(), self.clock.now());
        self.vcpus[index].lock().clone()
    }

    /// Takes over what of vCPU `index` depends on time. It is told to the kernel when a vCPU runs.
    pub(crate) fn take(&self, index: usize, time: VcpuTime) {
        let mut run = self.lock_run();
        self.keep_drift(&mut run, self.clock.now());
        *self.vcpus[index].lock() = time;
        self.set_for.store(NEVER, Ordering::Release);
    }

    fn lock_run(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds messages to local APICs up while their state is written back, which would lose them. Who
/// passes takes no lock.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    passing: AtomicU32,
    closed: AtomicBool,
    closing: Mutex<()>,
}

impl Gate {
    /// Does `what` while the gate is open.
    pub(crate) fn pass<T>(&self, what: impl FnOnce() -> T) -> T {
        loop {
            self.passing.fetch_add(1, Ordering::SeqCst);
            if !self.closed.load(Ordering::SeqCst) {
                break;
            }
            self.passing.fetch_sub(1, Ordering::SeqCst);
            while self.closed.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
        let result = what();
        self.passing.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Closes the gate until what is returned is dropped, once all that pass are through.
    pub(crate) fn close(&self) -> impl Drop + use<'_> {
        struct Closed<'a>(
            &'a Gate,
            #[expect(dead_code, reason = "held")] MutexGuard<'a, ()>,
        );
        impl Drop for Closed<'_> {
            fn drop(&mut self) {
                self.0.closed.store(false, Ordering::SeqCst);
            }
        }
        let turn = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        self.closed.store(true, Ordering::SeqCst);
        while self.passing.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
        Closed(self, turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Recorder, VmRecorder};
    use std::time::Duration;

    const SECOND: u64 = 1_000_000_000;

    fn moment(machine: u64, scaled: u64, kvmclock: u64) -> Moment {
        Moment {
            machine,
            scaled,
            kvmclock,
        }
    }

    #[test]
    fn drift_is_that_of_the_time_in_which_the_guest_ran() {
        // 2 GHz; the guest's counter gains a tick in a thousand, kvmclock loses a millionth.
        let start = moment(SECOND, 500, SECOND);
        let later = moment(5 * SECOND, 500 + 8_008_000_000, 5 * SECOND - 4_000);
        assert_eq!(
            start.drift(&later, 5 * SECOND, 2_000_000),
            (8_000_000, -4_000)
        );
        // It stood for three of the four seconds.
        assert_eq!(
            start.drift(&later, 2 * SECOND, 2_000_000),
            (2_000_000, -1_000)
        );
        assert_eq!(start.drift(&start, SECOND, 2_000_000), (0, 0));
    }

    #[test]
    fn messages_wait_while_the_gate_is_closed() {
        let gate = Arc::new(Gate::default());
        let closed = gate.close();
        let passed = Arc::new(AtomicBool::new(false));
        let sender = {
            let (gate, passed) = (gate.clone(), passed.clone());
            std::thread::spawn(move || gate.pass(|| passed.store(true, Ordering::SeqCst)))
        };
        std::thread::sleep(Duration::from_millis(5));
        assert!(!passed.load(Ordering::SeqCst));
        drop(closed);
        sender.join().unwrap();
        assert!(passed.load(Ordering::SeqCst));
        assert_eq!(gate.pass(|| 7), 7);
    }

    #[test]
    fn the_guests_counter_and_timer_stand_with_the_clock() {
        let kernel = Arc::new(Recorder::new());
        kernel.put_msr(msr::IA32_TSC, 1_000);
        kernel.put_msr(msr::IA32_TSC_DEADLINE, 0);
        let calls: Arc<dyn VcpuCalls> = kernel.clone();
        let mut apic = ApicState::after_reset(0);
        apic.lvt[0] = 0x2_0030;
        apic.divide = 0b1011;
        (apic.initial_count, apic.timer_deadline) = (5_000, Some(4_000));
        let mut page = calls.lapic().unwrap();
        apic::write(&mut page, &apic);
        calls.set_lapic(&page).unwrap();
        let vcpu = Timed::new(calls.clone(), 7_000, &apic);
        let clock = Clock::manual();
        let vm = Arc::new(VmRecorder::new());
        let time = GuestTime::new(clock.clone(), 1_000_000, vm, vec![vcpu]);
        clock.advance(1_000);
        time.begin().unwrap();
        // 8000 is to be seen at machine time 1000, when the host's counter is 1000.
        assert_eq!(calls.tsc_offset().unwrap(), 7_000);
        assert_eq!(apic::time_left(&calls.lapic().unwrap()), Some(3_000));
        clock.pause();
        time.leave(0);
        clock.advance(SECOND);
        assert_eq!(time.of(0).deadline, Some(4_000));
        clock.resume();
        // The host's counter has gone on meanwhile.
        kernel.put_msr(msr::IA32_TSC, 7_000 + 1_000_000);
        time.begin().unwrap();
        assert_eq!(
            calls.tsc_offset().unwrap(),
            8_000_u64.wrapping_sub(1_000_000)
        );
        assert_eq!(apic::time_left(&calls.lapic().unwrap()), Some(3_000));
    }
}
