//! Trials: instructions are executed for a look at what they do, and then nothing of it has
//! happened.
//!
//! That is for an engine that is held against this one block by block. A trial writes to guest
//! memory, notes what was there, and puts it back. Nobody else may use the memory meanwhile: there
//! is one vCPU, and a device that reads what a trial has just written sees it a little early.
//!
//! While a trial goes on, every data access takes the path of [`View::Checked`]: page tables are
//! walked each time, and neither the TLB nor the caches of page tables learn from what will not
//! have happened. The accessed and dirty bits that a walk sets stay; a processor may set the former
//! early (SDM vol. 3, 5.8), and the latter follow when the write is made for good.
//!
//! [`View::Checked`]: crate::tlb::View::Checked

use crate::access::{Part, Place};
use crate::cache::Extent;
use crate::cpu::{Cpu, Raised, Result};
use crate::paging::Intent;
use crate::vcpu::{Counters, InterpreterVcpu};
use memory::{PAGE_SHIFT, Ram};
use native::VectorState;
use std::cell::RefCell;
use x86::{Exception, Rflags, Segment, SegmentRegister};

/// Bytes that a trial may write; it ends before the instruction that writes more.
const WRITTEN_MAX: usize = 64 << 10;

/// The registers that a trial's instructions may change.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// General-purpose registers by number, RAX to R15.
    pub gpr: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// The base of FS.
    pub fs_base: u64,
    /// The base of GS.
    pub gs_base: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// CPL, which SYSCALL and SYSRET change.
    pub cpl: u8,
    /// Segment registers, without FS's and GS's bases.
    pub segments: [Segment; 6],
    /// x87, MMX and vector registers.
    pub vectors: VectorState,
}

/// What became of an instruction in a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// It was executed. A repeated string instruction may have stopped in its middle, with RIP
    /// still at it.
    Done,
    /// It raises this, which was not delivered. RIP is still at it.
    Raises(Exception),
    /// It can't be tried: it accesses a device, writes to code, or writes too much. RIP is still
    /// at it.
    Outside,
}

/// What a trial wrote to guest memory.
#[derive(Debug, Clone, Default)]
pub struct Effects {
    /// Offsets in guest memory, with the number of bytes there; later ones may overlap with
    /// earlier ones.
    places: Vec<(usize, u8)>,
    /// For each place, what its bytes were at the end.
    bytes: Vec<u8>,
    /// Offsets of page-table entries whose accessed or dirty bit a walk has set.
    marks: Vec<usize>,
}

impl Effects {
    /// Offsets in guest memory with the bytes that were there at the end. All that overlap agree.
    pub fn written(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let mut rest = &self.bytes[..];
        self.places.iter().map(move |(offset, len)| {
            let (bytes, others) = rest.split_at((*len).into());
            rest = others;
            (*offset, bytes)
        })
    }

    /// Offsets in guest memory of page-table entries of which walks have set accessed or dirty
    /// bits: for whoever compares memory, these bits are neither right nor wrong.
    pub fn marked(&self) -> &[usize] {
        &self.marks
    }
}

/// A trial that goes on.
pub(crate) struct Trial {
    start: Snapshot,
    /// What else is put back at the end.
    aside: Aside,
    /// What was written, with the bytes from before each write.
    places: Vec<(usize, u8)>,
    before: Vec<u8>,
    marks: RefCell<Vec<usize>>,
    /// The running instruction can't be tried.
    outside: bool,
}

/// State of the vCPU that an instruction may touch, though it is no register.
struct Aside {
    exception: Option<Exception>,
    stop: bool,
    budget: u32,
    debug_trap: u64,
    sti_shadow: bool,
    ss_shadow: bool,
    skip_step_trap: bool,
    counters: Counters,
}

impl Trial {
    /// Notes what is at `offset`, where `len` bytes are about to be written. `false` if that is too
    /// much.
    fn note(&mut self, ram: &Ram, offset: usize, len: usize) -> bool {
        let used = self.before.len();
        if used + len > WRITTEN_MAX {
            return false;
        }
        self.places.push((offset, len as u8));
        self.before.resize(used + len, 0);
        ram.read(offset, &mut self.before[used..]);
        true
    }

    /// A walk has set bits of the entry at `offset`.
    pub(crate) fn marked(&self, offset: usize) {
        self.marks.borrow_mut().push(offset);
    }
}

impl InterpreterVcpu {
    /// The registers as they are.
    pub fn snapshot(&self) -> Snapshot {
        let cpu = &self.cpu;
        let mut segments = cpu.segments;
        segments[SegmentRegister::Fs as usize].base = 0;
        segments[SegmentRegister::Gs as usize].base = 0;
        Snapshot {
            gpr: *self.gpr(),
            rip: cpu.rip,
            rflags: cpu.flags.get().bits(),
            fs_base: cpu.segments[SegmentRegister::Fs as usize].base,
            gs_base: cpu.segments[SegmentRegister::Gs as usize].base,
            kernel_gs_base: cpu.syscall.kernel_gs_base,
            cpl: cpu.cpl,
            segments,
            vectors: cpu.fpu.state.clone(),
        }
    }

    /// Sets the registers to what they were at `snapshot`. The system flags are taken over too, so
    /// what follows from RFLAGS.IF is the caller's business.
    pub fn set_snapshot(&mut self, snapshot: &Snapshot) {
        let Snapshot {
            gpr,
            rip,
            rflags,
            fs_base,
            gs_base,
            kernel_gs_base,
            cpl,
            segments,
            vectors,
        } = snapshot;
        *self.gpr_mut() = *gpr;
        let cpu = &mut self.cpu;
        cpu.rip = *rip;
        cpu.flags.set(Rflags::from_bits_retain(*rflags));
        cpu.segments = *segments;
        cpu.segments[SegmentRegister::Fs as usize].base = *fs_base;
        cpu.segments[SegmentRegister::Gs as usize].base = *gs_base;
        cpu.cpl = *cpl;
        cpu.syscall.kernel_gs_base = *kernel_gs_base;
        cpu.fpu.state.clone_from(vectors);
        cpu.segments_changed();
    }

    /// Begins a trial. Until [`InterpreterVcpu::end_trial`], only
    /// [`InterpreterVcpu::try_instruction`] is to be called.
    ///
    /// # Panics
    /// If one has begun already.
    pub fn begin_trial(&mut self) {
        assert!(self.cpu.trial.is_none(), "one trial at a time");
        let start = self.snapshot();
        let cpu = &mut self.cpu;
        cpu.trial = Some(Box::new(Trial {
            start,
            aside: Aside {
                exception: cpu.exception,
                stop: cpu.stop,
                budget: cpu.budget,
                debug_trap: cpu.debug_trap,
                sti_shadow: cpu.sti_shadow,
                ss_shadow: cpu.ss_shadow,
                skip_step_trap: cpu.skip_step_trap,
                counters: cpu.counters,
            },
            places: Vec::new(),
            before: Vec::new(),
            marks: RefCell::default(),
            outside: false,
        }));
        cpu.update_view();
    }

    /// Executes the instruction at RIP. It must be one that changes nothing but what a [`Snapshot`]
    /// has, and memory: no system instruction and no access to a port.
    ///
    /// # Panics
    /// If no trial has begun.
    pub fn try_instruction(&mut self) -> Tried {
        let done = self.execute(Extent::Instruction);
        let cpu = &mut self.cpu;
        cpu.stop = false;
        let trial = cpu.trial.as_mut().expect("a trial has begun");
        match done {
            Ok(()) => Tried::Done,
            Err(Raised) if std::mem::take(&mut trial.outside) => {
                cpu.exception = None;
                Tried::Outside
            }
            Err(Raised) => Tried::Raises(cpu.exception.take().expect("an exception was recorded")),
        }
    }

    /// Ends the trial: everything is as it was before. Returns the registers at its end, and what
    /// it wrote.
    ///
    /// # Panics
    /// If no trial has begun.
    pub fn end_trial(&mut self) -> (Snapshot, Effects) {
        let end = self.snapshot();
        let cpu = &mut self.cpu;
        let trial = cpu.trial.take().expect("a trial has begun");
        let mut effects = Effects {
            bytes: vec![0; trial.before.len()],
            marks: trial.marks.into_inner(),
            places: trial.places,
        };
        let mut at = 0;
        for (offset, len) in &effects.places {
            let next = at + usize::from(*len);
            cpu.ram.read(*offset, &mut effects.bytes[at..next]);
            at = next;
        }
        // Backwards, so that the oldest bytes of a place that was written twice win.
        for (offset, len) in effects.places.iter().rev() {
            let first = at - usize::from(*len);
            cpu.ram.write(*offset, &trial.before[first..at]);
            at = first;
        }
        let Aside {
            exception,
            stop,
            budget,
            debug_trap,
            sti_shadow,
            ss_shadow,
            skip_step_trap,
            counters,
        } = trial.aside;
        (cpu.exception, cpu.stop, cpu.budget) = (exception, stop, budget);
        (cpu.debug_trap, cpu.skip_step_trap) = (debug_trap, skip_step_trap);
        (cpu.sti_shadow, cpu.ss_shadow) = (sti_shadow, ss_shadow);
        cpu.counters = counters;
        self.set_snapshot(&trial.start);
        (end, effects)
    }
}

impl Cpu {
    /// Notes what an access in a trial is about to change.
    ///
    /// # Errors
    /// If it can't be tried. No exception is recorded.
    #[cold]
    pub(crate) fn try_access(
        &mut self,
        place: Place,
        size: usize,
        intent: Intent,
    ) -> Result<Place> {
        let watch = self.memory.watch();
        let is_code = |at: usize| watch.is_watched(at >> PAGE_SHIFT);
        let (first, second) = match place {
            Place::Ram(at) | Place::Code(at) => ((Part::Ram(at), size), None),
            Place::Device(gpa) => ((Part::Device(gpa), size), None),
            Place::Split {
                first,
                second,
                first_bytes,
            } => {
                let first_bytes = usize::from(first_bytes);
                ((first, first_bytes), Some((second, size - first_bytes)))
            }
        };
        let is_write = intent == Intent::Write;
        let parts = || std::iter::once(first).chain(second);
        let mut possible = parts().all(|(part, _)| match part {
            Part::Ram(at) => !(is_write && is_code(at)),
            Part::Device(_) => false,
        });
        let trial = self.trial.as_mut().expect("a trial has begun");
        if possible && is_write {
            possible = parts().all(|(part, bytes)| match part {
                Part::Ram(at) => trial.note(&self.ram, at, bytes),
                Part::Device(_) => false,
            });
        }
        if possible {
            return Ok(place);
        }
        trial.outside = true;
        Err(Raised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpreter::Interpreter;
    use engine::Vcpu;
    use memory::{GuestMemory, Kind, RegionSpec};
    use std::sync::Arc;
    use x86::{Activity, VcpuState, Vector};

    const CODE: u64 = 0x1000;
    const DATA: u64 = 0x2000;
    /// In 16-bit code: `mov [bx], ax`, `inc word [bx]`, `stc`, `div cl`.
    const STORE: &[u8] = &[0x89, 0x07];
    const INCREMENT: &[u8] = &[0xff, 0x07];
    const SET_CARRY: &[u8] = &[0xf9];
    const DIVIDE: &[u8] = &[0xf6, 0xf1];

    /// A vCPU in real mode, all segments at 0, at `code`.
    fn vcpu(code: &[&[u8]]) -> (InterpreterVcpu, Arc<GuestMemory>) {
        let memory = GuestMemory::new(&[RegionSpec {
            gpa: 0,
            len: 0x8000,
            kind: Kind::Ram,
        }])
        .unwrap();
        let setup = engine::Setup {
            memory: memory.clone(),
            clock: clock::Clock::manual(),
            cpuid: vec![crate::cpuid::table(0, 1, 1_000_000)],
            tsc_khz: 1_000_000,
            tracer: None,
        };
        let (_, mut vcpus) = Interpreter::create_vcpus(&setup).unwrap();
        let mut vcpu = vcpus.remove(0);
        let mut state = VcpuState::after_reset(0);
        let access = |segment: &Segment| Segment {
            base: 0,
            selector: x86::Selector(0),
            ..*segment
        };
        state.segments = state.segments.each_ref().map(access);
        state.gpr = [0; 16];
        (state.gpr[0], state.gpr[3]) = (0x1234, DATA);
        state.rip = CODE;
        state.activity = Activity::Running;
        vcpu.set_state(&state).unwrap();
        memory.write(CODE, &code.concat()).unwrap();
        (vcpu, memory)
    }

    fn word(memory: &GuestMemory) -> u16 {
        memory.load(DATA).unwrap()
    }

    #[test]
    fn what_was_tried_has_not_happened() {
        let (mut vcpu, memory) = vcpu(&[STORE, INCREMENT, SET_CARRY]);
        memory.write(DATA, &[0xaa; 4]).unwrap();
        let before = vcpu.state();
        vcpu.begin_trial();
        for _ in 0..3 {
            assert_eq!(vcpu.try_instruction(), Tried::Done);
        }
        let (end, effects) = vcpu.end_trial();
        assert_eq!(end.rip, CODE + 5);
        assert_eq!(end.rflags & 1, 1);
        let written: Vec<_> = effects.written().collect();
        // Both places have the bytes of the end.
        let bytes: &[u8] = &[0x35, 0x12];
        assert_eq!(written, [(DATA as usize, bytes); 2]);
        assert_eq!(word(&memory), 0xaaaa);
        assert_eq!(vcpu.state(), before);
        // And now for good.
        for _ in 0..3 {
            assert_eq!(vcpu.run_instruction(), Ok(()));
        }
        assert_eq!(word(&memory), 0x1235);
        assert_eq!(vcpu.rip(), CODE + 5);
    }

    #[test]
    fn an_exception_is_told_and_not_delivered() {
        let (mut vcpu, memory) = vcpu(&[STORE, DIVIDE]);
        let before = vcpu.state();
        vcpu.begin_trial();
        assert_eq!(vcpu.try_instruction(), Tried::Done);
        let raised = vcpu.try_instruction();
        let Tried::Raises(exception) = raised else {
            panic!("{raised:?}");
        };
        assert_eq!(exception.vector, Vector::DivideError);
        let (end, _) = vcpu.end_trial();
        assert_eq!(end.rip, CODE + 2);
        assert_eq!((vcpu.state(), word(&memory)), (before, 0));
    }

    #[test]
    fn neither_devices_nor_code_are_touched() {
        for place in [0x9000, CODE] {
            let (mut vcpu, _) = vcpu(&[STORE]);
            vcpu.gpr_mut()[3] = place;
            let before = vcpu.state();
            vcpu.begin_trial();
            assert_eq!(vcpu.try_instruction(), Tried::Outside);
            let (end, effects) = vcpu.end_trial();
            assert_eq!(end.rip, CODE);
            assert_eq!(effects.written().count(), 0);
            assert_eq!(vcpu.state(), before);
        }
    }
}
