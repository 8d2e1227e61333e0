//! Events that a person may want to see when a guest does not do what it should.

use bitflags::bitflags;

bitflags! {
    /// Which events are reported.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Kinds: u32 {
        /// Every instruction, before it executes.
        const INSTRUCTIONS = 1 << 0;
        /// Exceptions.
        const EXCEPTIONS = 1 << 1;
        /// Interrupts, NMIs, INIT and start-up IPIs.
        const INTERRUPTS = 1 << 2;
        /// Reads and writes of MSRs.
        const MSRS = 1 << 3;
        /// Writes of control registers.
        const CONTROL = 1 << 4;
        /// CPUID.
        const CPUID = 1 << 5;
        /// Port accesses.
        const PORTS = 1 << 6;
        /// Memory-mapped accesses to devices.
        const MMIO = 1 << 7;
    }
}

/// Something that happened on a vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An instruction is about to execute.
    Instruction {
        /// Its linear address.
        linear: u64,
        /// Its text, Intel syntax.
        text: String,
    },
    /// An exception is delivered.
    Exception {
        /// Which.
        exception: x86::Exception,
        /// RIP of the instruction.
        rip: u64,
    },
    /// An interrupt is delivered.
    Interrupt {
        /// Its vector.
        vector: u8,
        /// RIP that is interrupted.
        rip: u64,
    },
    /// NMI, INIT or a start-up IPI.
    Signal(&'static str),
    /// RDMSR or WRMSR.
    Msr {
        /// The register.
        number: u32,
        /// Its value.
        value: u64,
        /// Whether it was written.
        write: bool,
        /// Whether it raised #GP.
        refused: bool,
        /// RIP of the instruction.
        rip: u64,
    },
    /// A control register is written.
    Control {
        /// 0, 2, 3, 4 or 8.
        register: u8,
        /// The new value.
        value: u64,
        /// RIP of the instruction.
        rip: u64,
    },
    /// CPUID.
    Cpuid {
        /// EAX and ECX of the question.
        question: (u32, u32),
        /// The answer.
        answer: x86::cpuid::Answer,
    },
}

/// Where events go.
pub trait Tracer: Send + Sync {
    /// `event` happened on vCPU `index`.
    fn event(&self, index: usize, event: &Event);
}
