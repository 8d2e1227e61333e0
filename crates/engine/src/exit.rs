//! What a vCPU wants of the machine.

/// An address space of the machine outside memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// I/O ports, 0 to 0xffff.
    Port,
    /// Guest-physical addresses that are not RAM.
    Memory,
}

/// One access to a device, as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Ports or memory.
    pub space: Space,
    /// The first port or guest-physical address.
    pub address: u64,
    /// Bytes: 1, 2 or 4; in memory also 8. The access may be unaligned.
    pub bytes: u8,
    /// The value that is written, 0 above `bytes`; `None` for a read.
    pub write: Option<u64>,
}

/// What a running vCPU calls: the machine around it.
pub trait Platform: Send + Sync {
    /// Makes an access. Returns the value read (0 above the width), or 0 for a write.
    fn access(&self, access: Access) -> u64;

    /// The guest ended a level-triggered interrupt with `vector`: the EOI broadcast to I/O APICs.
    fn end_of_interrupt(&self, vector: u8);

    /// The interrupt acknowledge cycle: the PIC's vector. Called on an external interrupt only.
    fn acknowledge_external(&self) -> u8;
}

/// Why [`crate::Vcpu::run`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// Somebody called [`crate::Engine::kick`].
    Kicked,
    /// Triple fault: the vCPU is in [`x86::Activity::Shutdown`]. The text tells the three faults.
    Shutdown(String),
    /// The debugger's request was met.
    Debug(Stop),
    /// The engine can't go on; the text says why.
    Failed(String),
}

/// What a debugger is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// One instruction was executed, or raised an exception.
    Step,
    /// The next instruction has a breakpoint.
    Breakpoint,
    /// An access hit a watchpoint at this linear address; the instruction is complete.
    Watchpoint {
        /// The linear address that was accessed.
        address: u64,
        /// Whether it was a write.
        write: bool,
    },
}
