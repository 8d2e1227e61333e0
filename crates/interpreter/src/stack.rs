//! Stacks other than SS:RSP as it is now: those of gates, and of transfers that may still fault.
//!
//! Pushes and pops move only the [`Stack`]'s own pointer, so that a transfer takes effect as a
//! whole when it [commits](Cpu::commit_stack), or not at all.

use crate::access::allows;
use crate::cpu::{Cpu, Result};
use crate::paging::{Intent, Privilege};
use x86::{Exception, Segment, SegmentRegister, Vector};

/// Operand size of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Word,
    Double,
    Quad,
}

impl Width {
    /// In bytes.
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::Word => 2,
            Self::Double => 4,
            Self::Quad => 8,
        }
    }

    /// Cuts `value`.
    pub(crate) const fn cut(self, value: u64) -> u64 {
        match self {
            Self::Word => value & 0xffff,
            Self::Double => value & 0xffff_ffff,
            Self::Quad => value,
        }
    }
}

/// A stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stack {
    segment: Segment,
    /// In 64-bit mode, SS has no base and no limit.
    flat: bool,
    by: Privilege,
    /// Error code of #SS.
    error_code: u32,
    /// The pointer, within `mask`.
    pub(crate) pointer: u64,
    mask: u64,
}

fn by(cpl: u8) -> Privilege {
    if cpl == 3 {
        Privilege::User
    } else {
        Privilege::Supervisor
    }
}

impl Stack {
    /// The stack of `segment`, for code of privilege `cpl` outside 64-bit mode.
    pub(crate) fn new(segment: Segment, pointer: u64, cpl: u8, error_code: u32) -> Self {
        let mask = if segment.is_big() {
            0xffff_ffff
        } else {
            0xffff
        };
        Self {
            segment,
            flat: false,
            by: by(cpl),
            error_code,
            pointer: pointer & mask,
            mask,
        }
    }

    /// A stack in 64-bit mode, for code of privilege `cpl`.
    pub(crate) fn long(pointer: u64, cpl: u8) -> Self {
        Self {
            segment: Segment::default(),
            flat: true,
            by: by(cpl),
            error_code: 0,
            pointer,
            mask: u64::MAX,
        }
    }
}

impl Cpu {
    /// SS:RSP.
    pub(crate) fn stack(&self) -> Stack {
        if self.is_64bit() {
            return Stack::long(self.gpr[4], self.cpl);
        }
        Stack::new(*self.segment(SegmentRegister::Ss), self.gpr[4], self.cpl, 0)
    }

    /// Sets RSP to what `stack` has come to. SS must be its segment by now.
    pub(crate) fn commit_stack(&mut self, stack: &Stack) {
        self.gpr[4] = if stack.mask == 0xffff {
            self.gpr[4] & !0xffff | stack.pointer
        } else {
            stack.pointer
        };
    }

    fn stack_linear(
        &mut self,
        stack: &Stack,
        offset: u64,
        size: u64,
        intent: Intent,
    ) -> Result<u64> {
        let size = size as usize;
        let last = offset.wrapping_add(size as u64 - 1);
        let allowed = if stack.flat {
            self.canonical(offset) && self.canonical(last)
        } else {
            allows(&stack.segment, offset, size, intent, self.real_addressing())
        };
        if !allowed {
            return self.raise(Exception::with_code(Vector::StackFault, stack.error_code));
        }
        if stack.flat {
            Ok(offset)
        } else {
            Ok(stack.segment.base.wrapping_add(offset) & 0xffff_ffff)
        }
    }

    /// Pushes `value`, cut to `width`.
    pub(crate) fn push_on(&mut self, stack: &mut Stack, width: Width, value: u64) -> Result {
        let offset = stack.pointer.wrapping_sub(width.bytes()) & stack.mask;
        let linear = self.stack_linear(stack, offset, width.bytes(), Intent::Write)?;
        match width {
            Width::Word => self.store_as(linear, value as u16, stack.by)?,
            Width::Double => self.store_as(linear, value as u32, stack.by)?,
            Width::Quad => self.store_as(linear, value, stack.by)?,
        }
        stack.pointer = offset;
        Ok(())
    }

    /// Pops a value of `width`.
    pub(crate) fn pop_off(&mut self, stack: &mut Stack, width: Width) -> Result<u64> {
        let value = self.peek_stack(stack, width, 0)?;
        self.drop_off(stack, width.bytes());
        Ok(value)
    }

    /// Reads the value of `width` that is `bytes` above the top.
    pub(crate) fn peek_stack(&mut self, stack: &Stack, width: Width, bytes: u64) -> Result<u64> {
        let offset = stack.pointer.wrapping_add(bytes) & stack.mask;
        let linear = self.stack_linear(stack, offset, width.bytes(), Intent::Read)?;
        Ok(match width {
            Width::Word => self.load_as::<u16>(linear, stack.by)?.into(),
            Width::Double => self.load_as::<u32>(linear, stack.by)?.into(),
            Width::Quad => self.load_as(linear, stack.by)?,
        })
    }

    /// Drops `bytes`.
    pub(crate) fn drop_off(&self, stack: &mut Stack, bytes: u64) {
        stack.pointer = stack.pointer.wrapping_add(bytes) & stack.mask;
    }
}
