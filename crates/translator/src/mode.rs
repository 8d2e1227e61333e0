//! What a translation depends on besides the code bytes.

use crate::asm::RCX;
use bitflags::bitflags;
use interpreter::View;

bitflags! {
    /// The state of the CPU for which a block was translated.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub(crate) struct Mode: u16 {
        /// CPL 3.
        const USER = 1 << 0;
        /// Supervisor code may access user pages (no SMAP, or RFLAGS.AC).
        const USER_PAGES = 1 << 1;
        /// 32-bit code in flat segments.
        const BITS32 = 1 << 2;
        /// x87 instructions execute.
        const X87 = 1 << 3;
        /// SSE instructions execute.
        const SSE = 1 << 4;
        /// AVX instructions execute.
        const AVX = 1 << 5;
        /// CR4.SMAP is set: RFLAGS.AC decides about [`Mode::USER_PAGES`].
        const SMAP = 1 << 7;
        /// Every access is checked by itself. Chosen where a shared check meets a page's end.
        const SINGLE = 1 << 6;
        /// CR4.TSD is set: the interpreter decides who may read the time-stamp counter.
        const TSD = 1 << 8;
        /// The CPU has RDTSCP.
        const RDTSCP = 1 << 9;
        /// In a jail, where the guest's addresses are the host's ([`crate::window`]).
        const WINDOW = 1 << 10;
        /// CR4.FSGSBASE is set.
        const FSGSBASE = 1 << 11;
    }
}

/// [`Mode::landing`] outside of windows: RCX, R14 and R15.
pub(crate) const LANDING: u16 = 1 << RCX | 1 << 14 | 1 << 15;

impl Mode {
    /// The mode in which code runs now; `None` if it must be interpreted.
    pub(crate) fn now(mode: &interpreter::Mode) -> Option<Self> {
        if mode.bits == 16 || !mode.flat || mode.view == View::Checked {
            return None;
        }
        let mut now = Self::empty();
        now.set(Self::USER, mode.user);
        now.set(
            Self::USER_PAGES,
            !mode.user && mode.view == View::Supervisor,
        );
        now.set(Self::SMAP, mode.smap);
        now.set(Self::BITS32, mode.bits == 32);
        now.set(Self::X87, mode.x87);
        now.set(Self::SSE, mode.sse);
        now.set(Self::AVX, mode.avx);
        now.set(Self::TSD, mode.tsd);
        now.set(Self::RDTSCP, mode.rdtscp);
        now.set(Self::FSGSBASE, mode.fsgsbase);
        Some(now)
    }

    /// The TLB view that accesses use.
    pub(crate) fn view(self) -> usize {
        if self.contains(Self::USER) {
            2
        } else {
            usize::from(!self.contains(Self::USER_PAGES))
        }
    }

    /// The jump cache for code in this mode. The units' bits have no part in it: when they
    /// change, the caches are emptied.
    pub(crate) const fn slot(self) -> usize {
        if self.contains(Self::WINDOW) {
            return 0;
        }
        (self.bits() & 7) as usize
    }

    /// 64-bit code at CPL 0 with RFLAGS.AC clear, but for the units' bits.
    pub(crate) fn kernel64(smap: bool) -> Self {
        let mut mode = Self::empty();
        mode.set(Self::USER_PAGES, !smap);
        mode
    }

    /// The bits that seldom change, and that no jump cache tells apart.
    pub(crate) fn units(self) -> Self {
        self & (Self::X87
            | Self::SSE
            | Self::AVX
            | Self::SMAP
            | Self::TSD
            | Self::RDTSCP
            | Self::FSGSBASE)
    }

    /// The mode after STAC (`on`) or CLAC in supervisor code.
    pub(crate) fn with_ac(self, on: bool) -> Self {
        let mut mode = self;
        if self.contains(Self::SMAP) {
            mode.set(Self::USER_PAGES, on);
        }
        mode
    }

    /// Whether blocks of this mode do not depend on the linear address of their page. User code
    /// is mapped at many addresses, and often only one process has it there; kernels stay where
    /// they are.
    pub(crate) fn is_relocatable(self) -> bool {
        self.contains(Self::USER) && !self.is_windowed()
    }

    /// Whether accesses are made at the guest's own addresses.
    pub(crate) fn is_windowed(self) -> bool {
        self.contains(Self::WINDOW)
    }

    /// Registers that are spilled where a block is entered, one bit each: of little use to a
    /// guest, or taken by nearly every block.
    pub(crate) const fn landing(self) -> u16 {
        if self.contains(Self::WINDOW) {
            0
        } else {
            LANDING
        }
    }

    /// Whether this is 32-bit code.
    pub(crate) fn is_32bit(self) -> bool {
        self.contains(Self::BITS32)
    }
}
