//! Register numbers and bits. Intel SDM vol. 3 (order 325462-084), chapter 11.

/// Frequency of the timer's clock before division. A round number of nanoseconds, so that one
/// count is never rounded.
pub const BUS_HZ: u64 = 1_000_000_000;

/// Registers by number: the offset in the page divided by 16 (table 11-1), and the MSR less
/// 0x800 (table 11-6).
pub(crate) mod register {
    pub(crate) const ID: u32 = 0x02;
    pub(crate) const VERSION: u32 = 0x03;
    pub(crate) const TPR: u32 = 0x08;
    pub(crate) const APR: u32 = 0x09;
    pub(crate) const PPR: u32 = 0x0a;
    pub(crate) const EOI: u32 = 0x0b;
    pub(crate) const RRD: u32 = 0x0c;
    pub(crate) const LDR: u32 = 0x0d;
    pub(crate) const DFR: u32 = 0x0e;
    pub(crate) const SVR: u32 = 0x0f;
    pub(crate) const ISR: u32 = 0x10;
    pub(crate) const ISR_LAST: u32 = 0x17;
    pub(crate) const TMR: u32 = 0x18;
    pub(crate) const TMR_LAST: u32 = 0x1f;
    pub(crate) const IRR: u32 = 0x20;
    pub(crate) const IRR_LAST: u32 = 0x27;
    pub(crate) const ESR: u32 = 0x28;
    pub(crate) const ICR: u32 = 0x30;
    pub(crate) const ICR_HIGH: u32 = 0x31;
    pub(crate) const LVT: u32 = 0x32;
    pub(crate) const LVT_LAST: u32 = 0x37;
    pub(crate) const INITIAL_COUNT: u32 = 0x38;
    pub(crate) const CURRENT_COUNT: u32 = 0x39;
    pub(crate) const DIVIDE: u32 = 0x3e;
    pub(crate) const SELF_IPI: u32 = 0x3f;
}

/// Local APIC version register (11.4.8): version 0x14, six LVT entries, and the suppression of
/// EOI broadcasts.
pub(crate) const VERSION: u32 = 0x14 | 5 << 16 | 1 << 24;

/// IA32_APIC_BASE (11.4.4, 11.12.1).
pub(crate) mod base {
    pub(crate) const BOOT_PROCESSOR: u64 = 1 << 8;
    pub(crate) const X2APIC: u64 = 1 << 10;
    pub(crate) const ENABLE: u64 = 1 << 11;
    /// Lowest bit of the page's address.
    pub(crate) const ADDRESS_SHIFT: u32 = 12;
}

/// Spurious-interrupt vector register (11.9).
pub(crate) mod svr {
    pub(crate) const ENABLE: u32 = 1 << 8;
    pub(crate) const SUPPRESS_BROADCAST: u32 = 1 << 12;
    pub(crate) const WRITABLE: u32 = 0xff | ENABLE | SUPPRESS_BROADCAST;
}

/// Local vector table (11.5.1).
pub(crate) mod lvt {
    pub(crate) const TIMER: usize = 0;
    pub(crate) const LINT0: usize = 3;
    pub(crate) const LINT1: usize = 4;
    pub(crate) const ERROR: usize = 5;

    pub(crate) const MASKED: u32 = 1 << 16;
    pub(crate) const MODE_SHIFT: u32 = 8;
    pub(crate) const MODE_FIXED: u32 = 0;
    pub(crate) const MODE_NMI: u32 = 4;
    pub(crate) const MODE_EXTINT: u32 = 7;
    pub(crate) const TIMER_MODE_SHIFT: u32 = 17;
    /// Delivery status and remote IRR: writes leave them alone.
    pub(crate) const READ_ONLY: u32 = 1 << 12 | 1 << 14;

    /// Bits of each entry that software may set (figure 11-8).
    pub(crate) const WRITABLE: [u32; 6] = [
        0x0007_00ff,
        0x0001_07ff,
        0x0001_07ff,
        0x0001_a7ff,
        0x0001_a7ff,
        0x0001_00ff,
    ];
}

/// Interrupt command register (11.6.1, 11.12.9).
pub(crate) mod icr {
    /// All but the reserved bits and the delivery status.
    pub(crate) const WRITABLE_LOW: u32 = 0x000c_cfff;
    pub(crate) const LOGICAL: u32 = 1 << 11;
    pub(crate) const ASSERT: u32 = 1 << 14;
    pub(crate) const LEVEL: u32 = 1 << 15;
    pub(crate) const SHORTHAND_SHIFT: u32 = 18;
}

/// Error status register (11.5.3).
pub(crate) mod esr {
    pub(crate) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub(crate) const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub(crate) const ILLEGAL_REGISTER: u32 = 1 << 7;
    pub(crate) const ALL: u32 = SEND_ILLEGAL_VECTOR | RECEIVE_ILLEGAL_VECTOR | ILLEGAL_REGISTER;
}

/// Vectors below are illegal to send and to receive (11.5.2).
pub(crate) const VECTOR_MIN: u8 = 16;

/// Bits of the divide configuration register (11.5.4).
pub(crate) const DIVIDE_WRITABLE: u32 = 0b1011;

/// Bits of the destination format register that are always set (11.6.2.2).
pub(crate) const DFR_ONES: u32 = 0x0fff_ffff;

/// Bits of the logical destination register that software may set in xAPIC mode (11.6.2.2).
pub(crate) const LDR_WRITABLE: u32 = 0xff00_0000;
