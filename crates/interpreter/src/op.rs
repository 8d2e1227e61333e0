//! A decoded instruction, ready to execute.

use crate::cpu::{Cpu, Result};
use crate::int::ZERO;

/// Executes an instruction. On `Err`, nothing that the guest can see has changed, except where
/// the architecture says that it has.
pub(crate) type Handler = fn(&mut Cpu, &Op) -> Result;

/// A decoded instruction: its handler, and its operands in the form in which handlers want them.
#[derive(Clone, Copy)]
pub(crate) struct Op {
    pub(crate) run: Handler,
    /// Immediate operand, sign- or zero-extended to 64 bits as the instruction says; the target
    /// of a near branch relative to the block's first instruction.
    pub(crate) imm: u64,
    /// Displacement of the memory operand, sign-extended; relative to the block's first
    /// instruction if `base` is [`crate::int::PC`].
    pub(crate) disp: u64,
    /// Slot of the base register, or [`ZERO`].
    pub(crate) base: u8,
    /// Slot of the index register, or [`ZERO`].
    pub(crate) index: u8,
    /// `log2` of the index's scale.
    pub(crate) scale: u8,
    /// Effective addresses are cut to `64 - address_cut` bits.
    pub(crate) address_cut: u8,
    /// The memory operand's segment.
    pub(crate) segment: Seg,
    /// Slots of the register operands, in the order of the operands.
    pub(crate) r0: u8,
    pub(crate) r1: u8,
    pub(crate) r2: u8,
    /// Where the instruction begins, in bytes from the block's first.
    pub(crate) offset: u16,
    /// Length in bytes.
    pub(crate) len: u8,
    /// What else a handler needs to know; each says what.
    pub(crate) extra: u8,
    /// A second immediate, or whatever a handler says.
    pub(crate) aux: u32,
}

/// The segment of an access, and how it is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seg(u8);

impl Seg {
    /// Slot of [`Cpu::bases`] that is always 0: ES, CS, SS and DS in 64-bit mode.
    const FLAT_SLOT: u8 = 7;
    const CHECKED: u8 = 8;
    const STACK: u8 = 16;

    /// Segment `register` (by encoding) in 64-bit code: no limits, and a base only for FS and GS.
    pub(crate) const fn long(register: u8) -> Self {
        let slot = if register >= 4 {
            register
        } else {
            Self::FLAT_SLOT
        };
        Self(slot | if register == 2 { Self::STACK } else { 0 })
    }

    /// Segment `register` (by encoding) elsewhere: type and limit are checked.
    pub(crate) const fn legacy(register: u8) -> Self {
        Self(register | Self::CHECKED | if register == 2 { Self::STACK } else { 0 })
    }

    /// Slot of [`Cpu::bases`].
    #[inline(always)]
    pub(crate) const fn slot(self) -> usize {
        (self.0 & 7) as usize
    }

    /// Whether type and limit are checked.
    #[inline(always)]
    pub(crate) const fn is_checked(self) -> bool {
        self.0 & Self::CHECKED != 0
    }

    /// Whether faults are #SS rather than #GP.
    pub(crate) const fn is_stack(self) -> bool {
        self.0 & Self::STACK != 0
    }
}

impl Op {
    /// An operation without operands.
    pub(crate) const fn new(run: Handler) -> Self {
        Self {
            run,
            imm: 0,
            disp: 0,
            base: ZERO,
            index: ZERO,
            scale: 0,
            address_cut: 0,
            segment: Seg::long(3),
            r0: ZERO,
            r1: ZERO,
            r2: ZERO,
            offset: 0,
            len: 0,
            extra: 0,
            aux: 0,
        }
    }
}
