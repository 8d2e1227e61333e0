//! Where things are in the tests' machines.
//!
//! Guest-physical memory has two regions. The lower holds what is the same for all programs:
//! descriptor tables, handlers, their stacks and log, page tables. The upper holds what belongs to
//! the program: code, stack, data. After each region and between them is nothing but the platform.

/// Length of the lower region, which begins at 0.
pub(crate) const SYSTEM_BYTES: u64 = 0x4_0000;
pub(crate) const GDT: u64 = 0x1000;
pub(crate) const IDT: u64 = 0x2000;
pub(crate) const TSS: u64 = 0x3000;
/// Entry of vector n: 16 bytes each.
pub(crate) const ENTRIES: u64 = 0x4000;
pub(crate) const HANDLERS: u64 = 0x5000;
/// Page that the program may use beside its data: counters of loops.
pub(crate) const CONTROL: u64 = 0x6000;
/// Page of the handlers' variables.
pub(crate) const VARIABLES: u64 = 0x7000;
/// Events, [`LOG_ENTRY`] bytes each.
pub(crate) const LOG: u64 = 0x8000;
pub(crate) const LOG_END: u64 = 0xc000;
/// A vector, error code, RIP, CS, RFLAGS, RSP, SS as pushed, and CR2; 8 bytes each (4 of them used
/// in 32-bit mode).
pub(crate) const LOG_ENTRY: u64 = 64;
/// Tops of the stacks for exceptions, double faults, interrupts, and of CPL 0.
pub(crate) const FAULT_STACK: u64 = 0xd000;
pub(crate) const DOUBLE_FAULT_STACK: u64 = 0xe000;
pub(crate) const INTERRUPT_STACK: u64 = 0xf000;
pub(crate) const KERNEL_STACK: u64 = 0x1_0000;
/// For each byte of the program, where execution goes on after a fault there: 16-bit offsets.
pub(crate) const SUCCESSORS: u64 = 0x1_0000;
pub(crate) const TABLES: u64 = 0x1_8000;

/// Variables of the handlers.
pub(crate) const LOG_POINTER: u64 = VARIABLES;
pub(crate) const USER_STACK_POINTER: u64 = VARIABLES + 8;
pub(crate) const INTERRUPTS: u64 = VARIABLES + 16;

/// Where execution goes on after a fault outside the program; 0 ends it.
pub(crate) const RECOVERY: u64 = CONTROL;
/// Counters of loops.
pub(crate) const COUNTERS: u64 = CONTROL + 0x100;

/// The upper region.
pub(crate) const PROGRAM_MEMORY: u64 = 0x20_0000;
pub(crate) const PROGRAM_MEMORY_BYTES: u64 = 0x8_0000;
pub(crate) const PAGE: u64 = 0x1000;
/// Pages of it that are code and stack; the others are data.
pub(crate) const CODE_PAGES: u64 = 4;
pub(crate) const STACK_PAGES: u64 = 4;

/// The local APIC's page.
pub(crate) const APIC: u64 = 0xfee0_0000;
/// Guest-physical page of a device.
pub(crate) const DEVICE: u64 = 0x1000_0000;

/// Selectors of the GDT.
pub(crate) const KERNEL_CODE64: u16 = 0x08;
pub(crate) const KERNEL_DATA: u16 = 0x10;
pub(crate) const USER_CODE32: u16 = 0x1b;
pub(crate) const USER_DATA: u16 = 0x23;
pub(crate) const USER_CODE64: u16 = 0x2b;
pub(crate) const TASK: u16 = 0x30;
pub(crate) const KERNEL_CODE32: u16 = 0x40;

/// A write to this port ends the program.
pub(crate) const END_PORT: u8 = 0xf4;
/// INT n from CPL 3 that returns, and that ends the program.
pub(crate) const CALL_VECTOR: u8 = 0x80;
pub(crate) const END_VECTOR: u8 = 0x81;
/// The vector of interrupts from outside.
pub(crate) const INTERRUPT_VECTOR: u8 = 0xf1;
/// What SYSCALL is logged as.
pub(crate) const SYSCALL_VECTOR: u64 = 0x100;
/// RAX with which SYSCALL ends the program.
pub(crate) const SYSCALL_END: u32 = 0x0e0d;
/// RAX with which SYSCALL logs nothing.
pub(crate) const SYSCALL_UNLOGGED: u32 = 0x0e0e;

/// How a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 64-bit code at CPL 0.
    Kernel64,
    /// 64-bit code at CPL 3.
    User64,
    /// 32-bit code at CPL 3 of a 64-bit kernel.
    Compatibility,
    /// 32-bit code at CPL 0, two-level page tables.
    Kernel32,
    /// 32-bit code at CPL 3 of a 32-bit kernel.
    User32,
}

impl Mode {
    pub(crate) const ALL: [Self; 5] = [
        Self::Kernel64,
        Self::User64,
        Self::Compatibility,
        Self::Kernel32,
        Self::User32,
    ];

    pub(crate) fn is_user(self) -> bool {
        !matches!(self, Self::Kernel64 | Self::Kernel32)
    }

    /// Whether the kernel is a 64-bit one.
    pub(crate) fn is_long(self) -> bool {
        !matches!(self, Self::Kernel32 | Self::User32)
    }

    /// 64 or 32: of the program's code.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Kernel64 | Self::User64 => 64,
            _ => 32,
        }
    }

    /// 64 or 32: of the handlers' code.
    pub(crate) fn kernel_bits(self) -> u32 {
        if self.is_long() { 64 } else { 32 }
    }

    /// The linear address of guest-physical `address` of the lower region, for CPL 0.
    pub(crate) fn system(self, address: u64) -> u64 {
        address
            + if self.is_long() {
                0xffff_ffff_8000_0000
            } else {
                0xc000_0000
            }
    }

    /// The linear address of the local APIC's page.
    pub(crate) fn apic(self) -> u64 {
        self.system(0xf0_0000)
    }

    /// The linear address of [`CONTROL`], for the program.
    pub(crate) fn control(self, address: u64) -> u64 {
        address - CONTROL + 0x10_0000
    }

    /// Where the program's code window begins.
    pub(crate) fn code(self) -> u64 {
        match self {
            Self::Kernel64 => 0xffff_ffff_8100_0000,
            _ => 0x50_0000,
        }
    }

    /// The code's pages again, writable but not executable where the paging mode knows that.
    pub(crate) fn code_alias(self) -> u64 {
        match self {
            Self::Kernel64 => 0xffff_ffff_8140_0000,
            _ => 0x5f_0000,
        }
    }

    /// Where the program's stack begins.
    pub(crate) fn stack(self) -> u64 {
        match self {
            Self::Kernel64 => 0xffff_ffff_8300_0000,
            _ => 0x60_0000,
        }
    }
}
