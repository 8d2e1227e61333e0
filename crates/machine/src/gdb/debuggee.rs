//! The machine as a gdb target: its vCPUs are threads 1 to n.

use super::registers::{Pc, Register, RegisterFile, from_bytes};
use crate::Machine;
use crate::control::Event;
use engine::{DebugRequest, Statistic, Stop, Watchpoint};
use gdbstub::common::{Signal, Tid};
use gdbstub::outputln;
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{
    SingleRegisterAccess, SingleRegisterAccessOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use memory::{OutOfRange, PAGE_SIZE};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::fmt::Write;
use x86::VcpuState;

/// Breakpoints and watchpoints of each kind that a debugger may set.
const POINTS_MAX: usize = 1024;

/// Errors that gdb is told, by the numbers of the C library.
mod errno {
    pub(super) const ESRCH: u8 = 3;
    pub(super) const EFAULT: u8 = 14;
    pub(super) const EINVAL: u8 = 22;
}

const HELP: &str = "\
registers   where each CPU stands, with its system registers
stats       what the engine counted
reset       press the reset button; gdb's view of the registers is stale then:
            `maintenance flush register-cache`
help        this";

/// Why the guest stopped, in gdb's words.
pub(super) type Reason = MultiThreadStopReason<u64>;

/// A machine under a debugger.
pub(super) struct Debuggee<'m> {
    pub(super) machine: &'m mut Machine,
    software: BTreeSet<u64>,
    hardware: BTreeSet<u64>,
    watchpoints: Vec<(Watchpoint, WatchKind)>,
    /// The vCPU that steps when the guest is next resumed; the others stand.
    step: Option<usize>,
    /// What happened and was not reported yet: gdb is told of one stop at a time.
    pub(super) pending: VecDeque<Event>,
    /// vCPUs that can't go on, which gdb was told, and why.
    pub(super) dead: BTreeMap<usize, Event>,
}

impl<'m> Debuggee<'m> {
    pub(super) fn new(machine: &'m mut Machine) -> Self {
        Self {
            machine,
            software: BTreeSet::new(),
            hardware: BTreeSet::new(),
            watchpoints: Vec::new(),
            step: None,
            pending: VecDeque::new(),
            dead: BTreeMap::new(),
        }
    }

    /// Lets the guest run as gdb wants it to.
    pub(super) fn go(&mut self) {
        let breakpoints = self.software.union(&self.hardware).copied().collect();
        let watchpoints = self
            .watchpoints
            .iter()
            .map(|(watchpoint, _)| *watchpoint)
            .collect();
        let mut request = DebugRequest {
            single_step: false,
            breakpoints,
            watchpoints,
        };
        for index in 0..self.machine.vcpus() {
            request.single_step = self.step == Some(index);
            self.machine
                .with_vcpu(index, |vcpu| vcpu.set_debug(&request));
        }
        self.machine.resume_only(self.step);
    }

    /// Takes the first thing that gdb or the owner is to know now. While a vCPU steps, what the
    /// others stopped for waits until they run.
    pub(super) fn take_due(&mut self) -> Option<Event> {
        let due = |event: &Event| match event {
            Event::Debug { vcpu, .. } => self.step.is_none_or(|step| step == *vcpu),
            _ => true,
        };
        let at = self.pending.iter().position(due)?;
        self.pending.remove(at)
    }

    /// Drops what was pending, because the machine starts anew.
    pub(super) fn start_anew(&mut self) {
        self.pending.clear();
        self.dead.clear();
        self.step = None;
    }

    /// What the guest did and nobody was told but the debugger that leaves.
    pub(super) fn into_unheard(self) -> impl Iterator<Item = Event> + use<> {
        let pending = self.pending.into_iter();
        pending
            .filter(|event| !matches!(event, Event::Debug { .. }))
            .chain(self.dead.into_values())
    }

    /// What gdb is told of `stop`; `None` if it does not want to know any more.
    pub(super) fn reason(&self, index: usize, stop: Stop) -> Option<Reason> {
        let tid = tid(index);
        match stop {
            Stop::Step if self.step == Some(index) => Some(signal(index, Signal::SIGTRAP)),
            Stop::Step => None,
            Stop::Breakpoint => {
                let state = self.machine.with_vcpu(index, |vcpu| vcpu.state());
                let linear = linear_rip(&state);
                match (
                    self.software.contains(&linear),
                    self.hardware.contains(&linear),
                ) {
                    (false, false) => None,
                    // Where RIP is not a linear address, gdb does not see its breakpoint there.
                    _ if linear != state.rip => Some(signal(index, Signal::SIGTRAP)),
                    (true, _) => Some(Reason::SwBreak(tid)),
                    (false, true) => Some(Reason::HwBreak(tid)),
                }
            }
            Stop::Watchpoint { address, write } => {
                let (watchpoint, kind) = self
                    .watchpoints
                    .iter()
                    .filter(|(w, _)| if write { w.write } else { w.read })
                    .min_by_key(|(w, _)| distance(address, w))?;
                let within = address.max(watchpoint.address);
                Some(Reason::Watch {
                    tid,
                    kind: *kind,
                    addr: within,
                })
            }
        }
    }

    fn state(&self, tid: Tid) -> TargetResult<(usize, VcpuState), Self> {
        let index = tid.get() - 1;
        if index >= self.machine.vcpus() {
            return Err(TargetError::Errno(errno::ESRCH));
        }
        Ok((index, self.machine.with_vcpu(index, |vcpu| vcpu.state())))
    }

    fn set_state(&mut self, index: usize, state: &VcpuState) -> TargetResult<(), Self> {
        let set = self.machine.with_vcpu(index, |vcpu| vcpu.set_state(state));
        set.map_err(|_| TargetError::Errno(errno::EINVAL))
    }

    /// Calls `copy` with each piece of a linear range that lies in one page: its guest-physical
    /// address and its place in the range. Returns the number of bytes before the first that is
    /// not memory.
    fn pieces(
        &self,
        tid: Tid,
        linear: u64,
        len: usize,
        mut copy: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), OutOfRange>,
    ) -> usize {
        let mut done = 0;
        while done < len {
            let at = linear.wrapping_add(done as u64);
            let left_in_page = PAGE_SIZE - at as usize % PAGE_SIZE;
            let end = len.min(done + left_in_page);
            let index = tid.get() - 1;
            let gpa = self.machine.with_vcpu(index, |vcpu| vcpu.translate(at));
            if gpa.is_none_or(|gpa| copy(gpa, done..end).is_err()) {
                break;
            }
            done = end;
        }
        done
    }

    fn monitor(&mut self, command: &str) -> String {
        match command {
            "" | "help" => HELP.to_owned(),
            "registers" => {
                let reports = self.machine.reports();
                let texts: Vec<String> = reports.iter().map(ToString::to_string).collect();
                texts.join("\n").trim_end().to_owned()
            }
            "stats" => self.statistics(),
            "reset" => {
                self.start_anew();
                match self.machine.reset() {
                    Ok(()) => "the machine was reset".to_owned(),
                    Err(error) => error.to_string(),
                }
            }
            _ => format!("'{command}' is no command; try help"),
        }
    }

    fn statistics(&self) -> String {
        let mut text = self.machine.engine_name().to_owned();
        for (index, counters) in self.machine.statistics().iter().enumerate() {
            for Statistic {
                group, name, value, ..
            } in counters
            {
                let name = format_args!("{group}: {name}").to_string();
                // Writing to a string can't fail.
                let _ = write!(text, "\nvCPU {index}  {name:<45} {value:>15}");
            }
        }
        text
    }
}

/// The thread that is vCPU `index`.
fn tid(index: usize) -> Tid {
    Tid::MIN.saturating_add(index)
}

/// `signal` on vCPU `index`.
pub(super) fn signal(index: usize, signal: Signal) -> Reason {
    Reason::SignalWithThread {
        tid: tid(index),
        signal,
    }
}

/// How far before `watchpoint` an access at `address` begins, or 0 if inside.
fn distance(address: u64, watchpoint: &Watchpoint) -> u64 {
    match address.wrapping_sub(watchpoint.address) < watchpoint.len {
        true => 0,
        false => watchpoint.address.wrapping_sub(address),
    }
}

/// The linear address of the next instruction.
fn linear_rip(state: &VcpuState) -> u64 {
    match crate::report::is_64bit(state) {
        true => state.rip,
        false => state.segments[1].base.wrapping_add(state.rip) & 0xffff_ffff,
    }
}

impl Target for Debuggee<'_> {
    type Arch = Pc;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, Pc, Infallible> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debuggee<'_> {
    fn read_registers(&mut self, regs: &mut RegisterFile, tid: Tid) -> TargetResult<(), Self> {
        let (_, state) = self.state(tid)?;
        regs.load(&state);
        Ok(())
    }

    fn write_registers(&mut self, regs: &RegisterFile, tid: Tid) -> TargetResult<(), Self> {
        let (index, mut state) = self.state(tid)?;
        regs.store(&mut state);
        self.set_state(index, &state)
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        self.state(tid)?;
        let memory = self.machine.memory().clone();
        let read = self.pieces(tid, start, data.len(), |gpa, at| {
            memory.read(gpa, &mut data[at])
        });
        if read == 0 && !data.is_empty() {
            return Err(TargetError::Errno(errno::EFAULT));
        }
        Ok(read)
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        self.state(tid)?;
        let memory = self.machine.memory().clone();
        // As a device would, so that engines learn of changed code.
        let written = self.pieces(tid, start, data.len(), |gpa, at| {
            memory.write(gpa, &data[at])
        });
        if written < data.len() {
            return Err(TargetError::Errno(errno::EFAULT));
        }
        Ok(())
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), Infallible> {
        (0..self.machine.vcpus()).for_each(|index| active(tid(index)));
        Ok(())
    }

    fn is_thread_alive(&mut self, tid: Tid) -> Result<bool, Infallible> {
        Ok(tid.get() <= self.machine.vcpus())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Debuggee<'_> {
    fn read_register(
        &mut self,
        tid: Tid,
        register: Register,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let (_, state) = self.state(tid)?;
        let value = register.get(&state).to_le_bytes();
        let bytes = register.bytes().min(buf.len());
        buf[..bytes].copy_from_slice(&value[..bytes]);
        Ok(bytes)
    }

    fn write_register(
        &mut self,
        tid: Tid,
        register: Register,
        value: &[u8],
    ) -> TargetResult<(), Self> {
        if value.len() != register.bytes() {
            return Err(TargetError::Errno(errno::EINVAL));
        }
        let (index, mut state) = self.state(tid)?;
        register.set(&mut state, from_bytes(value));
        self.set_state(index, &state)
    }
}

impl ThreadExtraInfo for Debuggee<'_> {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, Infallible> {
        let text = match self.state(tid) {
            Ok((index, state)) => format!("CPU {index}, {:?}", state.activity),
            Err(_) => String::new(),
        };
        let len = text.len().min(buf.len());
        buf[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok(len)
    }
}

impl MultiThreadResume for Debuggee<'_> {
    fn resume(&mut self) -> Result<(), Infallible> {
        let step = self.step;
        // A step that was interrupted when it was done already, and what a vCPU stopped for where
        // it now steps on from, are history.
        self.pending.retain(|event| match event {
            Event::Debug { vcpu, stop } => *stop != Stop::Step && step != Some(*vcpu),
            _ => true,
        });
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Infallible> {
        self.step = None;
        Ok(())
    }

    fn set_resume_action_continue(
        &mut self,
        _tid: Tid,
        _signal: Option<Signal>,
    ) -> Result<(), Infallible> {
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debuggee<'_> {
    /// While one vCPU steps, the others stand, whatever gdb says of them: nothing moves under the
    /// eyes of the person who steps.
    fn set_resume_action_step(
        &mut self,
        tid: Tid,
        _signal: Option<Signal>,
    ) -> Result<(), Infallible> {
        let index = tid.get() - 1;
        if index < self.machine.vcpus() {
            self.step.get_or_insert(index);
        }
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Debuggee<'_> {
    /// Only stepping is exclusive; it is so without being asked.
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Breakpoints for Debuggee<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

fn add(points: &mut BTreeSet<u64>, address: u64) -> bool {
    let room = points.len() < POINTS_MAX;
    if room {
        points.insert(address);
    }
    room
}

/// Software breakpoints are the engine's too: the guest's code is not changed.
impl SwBreakpoint for Debuggee<'_> {
    fn add_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(add(&mut self.software, addr))
    }

    fn remove_sw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.software.remove(&addr))
    }
}

impl HwBreakpoint for Debuggee<'_> {
    fn add_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(add(&mut self.hardware, addr))
    }

    fn remove_hw_breakpoint(&mut self, addr: u64, _kind: usize) -> TargetResult<bool, Self> {
        Ok(self.hardware.remove(&addr))
    }
}

fn watchpoint(address: u64, len: u64, kind: WatchKind) -> (Watchpoint, WatchKind) {
    let read = kind != WatchKind::Write;
    let write = kind != WatchKind::Read;
    (
        Watchpoint {
            address,
            len,
            read,
            write,
        },
        kind,
    )
}

impl HwWatchpoint for Debuggee<'_> {
    fn add_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let room = self.watchpoints.len() < POINTS_MAX;
        if room && len > 0 {
            self.watchpoints.push(watchpoint(addr, len, kind));
        }
        Ok(room && len > 0)
    }

    fn remove_hw_watchpoint(
        &mut self,
        addr: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        let wanted = watchpoint(addr, len, kind);
        let at = self.watchpoints.iter().position(|point| *point == wanted);
        Ok(at.map(|at| self.watchpoints.swap_remove(at)).is_some())
    }
}

impl MonitorCmd for Debuggee<'_> {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), Infallible> {
        let command = String::from_utf8_lossy(command);
        outputln!(out, "{}", self.monitor(command.trim()));
        Ok(())
    }
}
