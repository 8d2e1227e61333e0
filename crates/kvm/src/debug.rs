//! A debugger's request, by the CPU's debug registers and its trap flag (`KVM_SET_GUEST_DEBUG`).
//!
//! Watchpoints come first: they need a debug register for each aligned part, two if reads and writes
//! have to be told apart. Those beyond the fourth register are not watched. Breakpoints get what is
//! left; if that is not enough, the guest is stepped through and RIP looked at.

use engine::{DebugRequest, Stop};
use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    kvm_guest_debug,
};

/// DR6: single step.
const BS: u64 = 1 << 14;
/// R/W fields of DR7.
const CODE: u64 = 0;
const WRITES: u64 = 1;
const READS_AND_WRITES: u64 = 3;

/// What a debug register is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    address: u64,
    /// 1, 2, 4 or 8.
    len: u64,
    kind: u64,
}

/// The request, and where the debugger was told that the guest is.
#[derive(Debug, Default)]
pub(crate) struct Debug {
    request: DebugRequest,
    points: Vec<Point>,
    /// Not all breakpoints have a register.
    steps: bool,
    /// The linear address of a breakpoint that the debugger was told of: it goes on from there.
    told: Option<u64>,
    /// One instruction is executed without its breakpoint.
    over: bool,
}

impl Debug {
    pub(crate) fn set(&mut self, request: &DebugRequest) {
        self.request.clone_from(request);
        self.points = watchpoints(request);
        let room = 4 - self.points.len();
        self.steps = request.breakpoints.len() > room;
        if !self.steps {
            let code = request.breakpoints.iter().map(|address| Point {
                address: *address,
                len: 1,
                kind: CODE,
            });
            self.points.extend(code);
        }
    }

    /// Whether a debugger wants anything.
    pub(crate) fn is_active(&self) -> bool {
        !self.request.is_empty()
    }

    /// The guest is about to go on at the linear address `rip`.
    pub(crate) fn begin(&mut self, rip: u64) -> Option<Stop> {
        // It may come here more than once before anything is executed: kicks come first.
        self.told = self.told.filter(|told| *told == rip);
        self.over = self.request.breakpoints.contains(&rip);
        (self.over && self.told.is_none()).then(|| self.tell(rip))
    }

    fn tell(&mut self, rip: u64) -> Stop {
        self.told = Some(rip);
        Stop::Breakpoint
    }

    /// What the kernel is to be asked for now, if it blocks interrupts on request.
    pub(crate) fn control(&self, blocks_interrupts: bool) -> kvm_guest_debug {
        let mut to = kvm_guest_debug::default();
        if !self.is_active() {
            return to;
        }
        to.control = KVM_GUESTDBG_ENABLE;
        if self.request.single_step || self.over || self.steps {
            to.control |= KVM_GUESTDBG_SINGLESTEP;
        }
        if self.request.single_step && blocks_interrupts {
            to.control |= KVM_GUESTDBG_BLOCKIRQ;
        }
        let without_code = self.request.single_step || self.over;
        for (n, point) in self.points.iter().enumerate() {
            if point.kind == CODE && without_code {
                continue;
            }
            let len = match point.len {
                1 => 0,
                2 => 1,
                8 => 2,
                _ => 3,
            };
            to.control |= KVM_GUESTDBG_USE_HW_BP;
            to.arch.debugreg[n] = point.address;
            // Enabled globally, with exact matches (SDM vol. 3, 18.2.4).
            to.arch.debugreg[7] |=
                2 << (2 * n) | 1 << 9 | (point.kind | len << 2) << (16 + 4 * n) | 1 << 10;
        }
        to
    }

    /// The guest stands at the linear address `pc`, for what `dr6` says. Returns what the debugger
    /// is told; `None` to go on, with another [`Debug::control`].
    pub(crate) fn stopped(&mut self, pc: u64, dr6: u64) -> Option<Stop> {
        self.over = false;
        self.told = None;
        if let Some(stop) = self.data_access(dr6) {
            return Some(stop);
        }
        if self.request.single_step && dr6 & BS != 0 {
            return Some(Stop::Step);
        }
        self.request
            .breakpoints
            .contains(&pc)
            .then(|| self.tell(pc))
    }

    /// The watchpoint that was hit. A register for writes that is hit too tells a write from a read.
    fn data_access(&self, dr6: u64) -> Option<Stop> {
        let hit = |n: usize| dr6 >> n & 1 != 0;
        let data = |kind| {
            let points = self.points.iter().enumerate();
            points
                .filter(move |(n, point)| hit(*n) && point.kind == kind)
                .map(|(_, point)| point.address)
                .next()
        };
        if let Some(address) = data(WRITES) {
            // What only reads are watched for is not hit by writes.
            let wanted =
                |w: &engine::Watchpoint| w.write && address.wrapping_sub(w.address) < w.len;
            let wanted = self.request.watchpoints.iter().any(wanted);
            return wanted.then_some(Stop::Watchpoint {
                address,
                write: true,
            });
        }
        data(READS_AND_WRITES).map(|address| Stop::Watchpoint {
            address,
            write: false,
        })
    }
}

/// The registers for the watchpoints of `request`: at most four.
fn watchpoints(request: &DebugRequest) -> Vec<Point> {
    let mut points = Vec::new();
    for watch in &request.watchpoints {
        let (mut address, mut left) = (watch.address, watch.len);
        while left > 0 && points.len() < 4 {
            let aligned = 1 << address.trailing_zeros().min(3);
            let len = [8, 4, 2, 1]
                .into_iter()
                .find(|len| *len <= aligned && *len <= left)
                .unwrap_or(1);
            let point = |kind| Point { address, len, kind };
            points.push(point(WRITES));
            if watch.read {
                points.push(point(READS_AND_WRITES));
            }
            address = address.wrapping_add(len);
            left -= len;
        }
    }
    points.truncate(4);
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::Watchpoint;

    fn debug(request: DebugRequest) -> Debug {
        let mut debug = Debug::default();
        debug.set(&request);
        debug
    }

    fn breakpoints(addresses: &[u64]) -> DebugRequest {
        DebugRequest {
            breakpoints: addresses.to_vec(),
            ..DebugRequest::default()
        }
    }

    #[test]
    fn nothing_is_asked_for_without_a_request() {
        assert_eq!(Debug::default().control(true), kvm_guest_debug::default());
    }

    #[test]
    fn sdm_18_2_4_breakpoints_are_debug_registers() {
        let mut debug = debug(breakpoints(&[0x1000, 0x2000]));
        assert_eq!(debug.begin(0x500), None);
        let control = debug.control(true);
        assert_eq!(
            control.control,
            KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP
        );
        assert_eq!(control.arch.debugreg[..2], [0x1000, 0x2000]);
        assert_eq!(control.arch.debugreg[7] & 0xff, 0b1010);
        assert_eq!(control.arch.debugreg[7] >> 16, 0);
        assert_eq!(debug.stopped(0x2000, 1 << 1), Some(Stop::Breakpoint));
        // It goes on from there: over the instruction, then with the breakpoint again.
        assert_eq!(debug.begin(0x2000), None);
        assert_eq!(debug.begin(0x2000), None, "it was kicked before it went on");
        assert_eq!(
            debug.control(true).control,
            KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
        );
        assert_eq!(debug.stopped(0x2001, BS), None);
        assert_eq!(debug.control(true), control);
        // Whoever comes there by himself is told at once.
        assert_eq!(debug.begin(0x1000), Some(Stop::Breakpoint));
    }

    #[test]
    fn more_breakpoints_than_registers_are_stepped_to() {
        let mut debug = debug(breakpoints(&[1, 2, 3, 4, 5]));
        assert_eq!(debug.begin(0x100), None);
        assert_eq!(
            debug.control(true).control,
            KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
        );
        assert_eq!(debug.stopped(0x101, BS), None);
        assert_eq!(debug.stopped(5, BS), Some(Stop::Breakpoint));
    }

    #[test]
    fn a_step_holds_interrupts_off_where_the_kernel_can() {
        let mut debug = debug(DebugRequest {
            single_step: true,
            ..breakpoints(&[0x1000])
        });
        assert_eq!(debug.begin(0x100), None);
        let step = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        assert_eq!(debug.control(false).control, step);
        assert_eq!(debug.control(true).control, step | KVM_GUESTDBG_BLOCKIRQ);
        assert_eq!(debug.stopped(0x1000, BS), Some(Stop::Step));
        assert_eq!(debug.begin(0x1000), Some(Stop::Breakpoint));
    }

    #[test]
    fn reads_and_writes_are_told_apart() {
        let watch = |address, len, read, write| Watchpoint {
            address,
            len,
            read,
            write,
        };
        let request = |watchpoints| DebugRequest {
            watchpoints,
            ..DebugRequest::default()
        };
        let mut writes = debug(request(vec![watch(0x1003, 5, false, true)]));
        let control = writes.control(true);
        assert_eq!(control.arch.debugreg[..2], [0x1003, 0x1004]);
        assert_eq!(control.arch.debugreg[7] >> 16, 0b1101_0001);
        let stop = writes.stopped(0x10, 1 << 1);
        assert_eq!(
            stop,
            Some(Stop::Watchpoint {
                address: 0x1004,
                write: true
            })
        );
        let mut reads = debug(request(vec![watch(0x1000, 4, true, false)]));
        assert_eq!(reads.stopped(0x10, 0b11), None, "a write");
        let stop = reads.stopped(0x10, 0b10);
        assert_eq!(
            stop,
            Some(Stop::Watchpoint {
                address: 0x1000,
                write: false
            })
        );
    }
}
