//! Execution of an instruction on a frame.
#![expect(unsafe_code, reason = "calls generated code")]
// UNSAFETY: one `call` to a stub. Its contract is `stub`'s table; that the instruction inside
// keeps to it is `policy`'s argument.

use std::arch::asm;
use std::ffi::c_void;
use std::ptr::NonNull;

use crate::frame::Frame;
use crate::policy::{Binding, GprSlot, Memory, STATUS_FLAGS, Unit};
use crate::state::MXCSR_MASK;

/// What became of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// It completed.
    Done,
    /// It completed, but an unmasked x87 exception kept it from storing its memory operand:
    /// do not copy [`Frame::scratch`] out. The exception is pending in FSW.
    DoneWithoutStore,
    /// It raised `#XM` (`#UD` if CR4.OSXMMEXCPT is clear). Only the exception flags of MXCSR
    /// have changed; a conversion to or from MMX registers may have entered MMX mode.
    SimdException,
    /// It is a waiting x87 or MMX instruction and an unmasked x87 exception is pending: raise
    /// `#MF` (or FERR#, with CR0.NE clear). Nothing has changed.
    X87Pending,
}

/// A stub and what the interpreter must know of it. Lives for ever.
#[derive(Debug)]
pub(crate) struct Stub {
    pub(crate) entry: NonNull<c_void>,
    pub(crate) unit: Unit,
    pub(crate) memory: Option<Memory>,
    pub(crate) mxcsr: bool,
    pub(crate) kind: Kind,
    pub(crate) waiting: bool,
    pub(crate) flags_read: u32,
    pub(crate) flags_written: u32,
    pub(crate) any_gpr: bool,
    pub(crate) gprs: [GprSlot; 4],
}

// SAFETY: `entry` is the address of code that is never changed or unmapped.
unsafe impl Send for Stub {}
// SAFETY: as above.
unsafe impl Sync for Stub {}

/// How the x87 state is handled around a stub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not at all.
    Plain,
    /// Loaded and stored whole.
    Fx,
    /// Single registers; the instruction switches to MMX mode. `writes` if vector slot 0 is
    /// an MM register that is written.
    Mmx { writes: bool },
}

/// A guest instruction, ready to execute on any [`Frame`].
///
/// Cheap to copy and valid for ever; keep it with the decoded instruction.
#[derive(Debug, Clone, Copy)]
pub struct Routine {
    pub(crate) stub: &'static Stub,
    pub(crate) binding: Binding,
}

impl Routine {
    /// What executes the instruction.
    pub fn unit(&self) -> Unit {
        self.stub.unit
    }

    /// The memory operand, if there is one.
    pub fn memory(&self) -> Option<Memory> {
        self.stub.memory
    }

    /// Whether MXCSR matters, so that [`Outcome::SimdException`] is possible.
    pub fn uses_mxcsr(&self) -> bool {
        self.stub.mxcsr
    }

    /// Whether a pending x87 exception is raised before the instruction.
    pub fn is_waiting(&self) -> bool {
        self.stub.waiting
    }

    /// The status flags that the instruction reads, at their places in EFLAGS.
    pub fn flags_read(&self) -> u32 {
        self.stub.flags_read
    }

    /// The status flags that the instruction changes, undefined ones included.
    pub fn flags_written(&self) -> u32 {
        self.stub.flags_written
    }

    /// General-purpose registers read, a bit each. Those written are included if only a part
    /// of them is.
    pub fn gprs_read(&self) -> u16 {
        self.gpr_set(|slot| slot.used)
    }

    /// General-purpose registers written, a bit each.
    pub fn gprs_written(&self) -> u16 {
        self.gpr_set(|slot| slot.written)
    }

    fn gpr_set(&self, member: impl Fn(GprSlot) -> bool) -> u16 {
        let slots = self.stub.gprs.iter().zip(self.binding.gprs);
        slots
            .filter(|(slot, _)| member(**slot))
            .fold(0, |set, (_, number)| set | 1 << number)
    }

    /// Executes the instruction on `frame` and `gprs`, which are indexed as encoded (RAX, RCX,
    /// RDX, RBX, RSP, ...).
    ///
    /// The memory operand is [`Frame::scratch`]; the caller has filled in as much of it as is
    /// read. Status flags are in [`Frame::flags`]. A 32-bit result clears the upper half of
    /// its register, in every mode.
    #[inline]
    pub fn run(self, frame: &mut Frame, gprs: &mut [u64; 16]) -> Outcome {
        let outcome = match self.stub.kind {
            Kind::Plain => self.call_with_gprs(frame, gprs),
            Kind::Fx => return self.run_fx(frame, gprs),
            Kind::Mmx { writes } => return self.run_mmx(frame, gprs, writes),
        };
        if outcome {
            Outcome::SimdException
        } else {
            Outcome::Done
        }
    }

    /// Executes an instruction with all of the x87 state loaded.
    #[cold]
    fn run_fx(self, frame: &mut Frame, gprs: &mut [u64; 16]) -> Outcome {
        let pending = frame.state.fpu.pending();
        if self.stub.waiting && pending {
            return Outcome::X87Pending;
        }
        // In case the memory operand is not stored, it must be seen that it is not.
        let stores = self.stub.memory.filter(|memory| memory.write);
        if let Some(memory) = stores {
            frame.scratch[..usize::from(memory.bytes)].fill(0);
        }
        frame.stage_fpu();
        if self.call_with_gprs(frame, gprs) {
            if pending {
                // This processor waits where not all do; `#MF` comes before `#XM`.
                return Outcome::X87Pending;
            }
            frame.commit_fpu();
            return Outcome::SimdException;
        }
        if let Some(memory) = stores
            && frame.fx.fsw & !frame.fx.fcw & 0x3f != 0
            && !self.stores(frame, usize::from(memory.bytes))
        {
            frame.commit_fpu();
            return Outcome::DoneWithoutStore;
        }
        frame.commit_fpu();
        Outcome::Done
    }

    /// Whether the instruction that was just run with zeros in its `bytes` bytes of scratch
    /// stored them. If they are still zeros, only a second run with something else there can
    /// tell; it starts from the same state and so has the same result.
    fn stores(self, frame: &mut Frame, bytes: usize) -> bool {
        if frame.scratch[..bytes].iter().any(|&byte| byte != 0) {
            return true;
        }
        frame.scratch[..bytes].fill(0xff);
        frame.stage_fpu();
        self.call(frame);
        frame.scratch[..bytes].iter().any(|&byte| byte != 0xff)
    }

    /// Executes an instruction on MMX registers, which switches the FPU to MMX mode: TOP is 0,
    /// all registers valid, and a written register has an exponent of all ones (Intel SDM
    /// vol. 1, 9.6.2 and 9.5.1).
    #[cold]
    fn run_mmx(self, frame: &mut Frame, gprs: &mut [u64; 16], writes: bool) -> Outcome {
        if frame.state.fpu.pending() {
            return Outcome::X87Pending;
        }
        frame.state.fpu.set_top(0);
        let raised = self.call_with_gprs(frame, gprs);
        assert!(!raised, "MMX instructions raise no SIMD exceptions");
        let fpu = &mut frame.state.fpu;
        fpu.ftw = 0xff;
        if writes {
            let first = std::mem::offset_of!(Frame, state.fpu.st);
            let number = (usize::from(self.binding.vectors[0]) - first) / 10;
            fpu.st[number & 7][8..].fill(0xff);
        }
        Outcome::Done
    }

    /// Calls the stub with the guest's general-purpose registers, and takes over what it wrote.
    /// True after a SIMD exception.
    #[inline]
    fn call_with_gprs(self, frame: &mut Frame, gprs: &mut [u64; 16]) -> bool {
        let stub = self.stub;
        if stub.any_gpr {
            for (to, number) in frame.gpr.iter_mut().zip(self.binding.gprs) {
                *to = gprs[usize::from(number & 15)];
            }
        }
        if stub.mxcsr {
            frame.state.mxcsr &= MXCSR_MASK;
        }
        let before = frame.flags as u32 & STATUS_FLAGS;
        frame.flags = before.into();
        if self.call(frame) {
            return true;
        }
        if stub.flags_written != 0 {
            let after = frame.flags as u32 & stub.flags_written;
            frame.flags = (before & !stub.flags_written | after).into();
        }
        if stub.any_gpr {
            for (n, slot) in stub.gprs.iter().enumerate() {
                // Only what was stored: a wider load would wait for the store.
                if slot.written {
                    gprs[usize::from(self.binding.gprs[n] & 15)] = frame.gpr[n];
                }
            }
        }
        false
    }

    /// Calls the stub. True after a SIMD exception.
    #[inline]
    fn call(self, frame: &mut Frame) -> bool {
        let frame: *mut Frame = frame;
        let [v0, v1, v2, v3] = self.binding.vectors.map(usize::from);
        let outcome: u64;
        // SAFETY: `entry` is a stub (only the pool makes them), and `policy` argues that a stub
        // accesses only the frame: its constant parts, and vector registers at the offsets in
        // `binding`, which lie in `frame.state`. Registers are as in `stub`'s table: all that
        // it clobbers are caller-saved. It uses the stack only between its own instructions.
        // When it returns, MXCSR and the x87 state are initial and DF is clear.
        unsafe {
            let base = frame.cast::<u8>();
            asm!(
                "call rax",
                inlateout("rax") self.stub.entry.as_ptr() as u64 => outcome,
                in("rdi") frame,
                in("r8") base.add(v0),
                in("r9") base.add(v1),
                in("r10") base.add(v2),
                in("r11") base.add(v3),
                clobber_abi("sysv64"),
            );
        }
        outcome as u32 != 0
    }
}
