//! Delivery of exceptions and interrupts.

use crate::cpu::Cpu;
use x86::Exception;

/// Something that is delivered through the IDT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// An exception of the instruction at RIP (for traps: of the one before).
    Exception(Exception),
    /// An interrupt from the APIC or the PIC.
    Interrupt(u8),
    Nmi,
}

/// An exception while a double fault was delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("triple fault")]
pub(crate) struct TripleFault;

impl Cpu {
    /// Delivers `event`; exceptions on the way become double and triple faults.
    pub(crate) fn deliver(&mut self, _event: Event) -> std::result::Result<(), TripleFault> {
        todo!()
    }

    pub(crate) fn trace_instruction(&mut self, _linear: u64) {}
}
