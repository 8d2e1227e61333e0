//! Page-table entries and page-fault error codes (SDM vol. 3, chapter 5).

use bitflags::bitflags;

bitflags! {
    /// Bits of a page-table entry of any level and format.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Entry: u64 {
        /// Present.
        const PRESENT = 1 << 0;
        /// Writable.
        const WRITABLE = 1 << 1;
        /// For user mode.
        const USER = 1 << 2;
        /// Accessed.
        const ACCESSED = 1 << 5;
        /// Dirty.
        const DIRTY = 1 << 6;
        /// Maps a large page (not in the last level).
        const LARGE = 1 << 7;
        /// Global.
        const GLOBAL = 1 << 8;
        /// No execution.
        const NO_EXECUTE = 1 << 63;
        const _ = !0;
    }

    /// The error code of a page fault (SDM vol. 3, 5.7).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct FaultCode: u32 {
        /// A protection violation; else the page was not present.
        const PROTECTION = 1 << 0;
        /// A write.
        const WRITE = 1 << 1;
        /// In user mode.
        const USER = 1 << 2;
        /// A reserved bit was set.
        const RESERVED = 1 << 3;
        /// An instruction fetch.
        const FETCH = 1 << 4;
    }
}

/// Whether `address` is canonical for linear addresses of `bits` (48 or 57) bits.
#[inline]
pub const fn is_canonical(address: u64, bits: u32) -> bool {
    let shift = 64 - bits;
    ((address << shift) as i64 >> shift) as u64 == address
}
