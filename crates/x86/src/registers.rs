//! Control, flag and debug registers, bit by bit.

use bitflags::bitflags;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// General-purpose registers by their encoding (SDM vol. 2, table 3-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Gpr {
    /// RAX.
    Rax,
    /// RCX.
    Rcx,
    /// RDX.
    Rdx,
    /// RBX.
    Rbx,
    /// RSP.
    Rsp,
    /// RBP.
    Rbp,
    /// RSI.
    Rsi,
    /// RDI.
    Rdi,
    /// R8.
    R8,
    /// R9.
    R9,
    /// R10.
    R10,
    /// R11.
    R11,
    /// R12.
    R12,
    /// R13.
    R13,
    /// R14.
    R14,
    /// R15.
    R15,
}

macro_rules! register {
    ($(#[$meta:meta])* $name:ident: $type:ty { $($(#[doc = $doc:literal])* $flag:ident = $bit:expr;)* }) => {
        bitflags! {
            $(#[$meta])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
            pub struct $name: $type {
                $($(#[doc = $doc])* const $flag = $bit;)*
                // Bits without a name are kept: what is reserved is checked where it is written.
                const _ = !0;
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.bits().serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                <$type>::deserialize(deserializer).map(Self::from_bits_retain)
            }
        }
    };
}

register! {
    /// RFLAGS (SDM vol. 1, 3.4.3).
    Rflags: u64 {
        /// Carry.
        CF = 1 << 0;
        /// Reads as 1.
        FIXED = 1 << 1;
        /// Parity of the low byte.
        PF = 1 << 2;
        /// Carry out of bit 3.
        AF = 1 << 4;
        /// Zero.
        ZF = 1 << 6;
        /// Sign.
        SF = 1 << 7;
        /// Trap: single step.
        TF = 1 << 8;
        /// Interrupts are taken.
        IF = 1 << 9;
        /// String instructions go down.
        DF = 1 << 10;
        /// Signed overflow.
        OF = 1 << 11;
        /// I/O privilege level.
        IOPL = 3 << 12;
        /// Nested task.
        NT = 1 << 14;
        /// Resume: instruction breakpoints are ignored for one instruction.
        RF = 1 << 16;
        /// Virtual-8086 mode.
        VM = 1 << 17;
        /// Alignment check, and access to user pages under SMAP.
        AC = 1 << 18;
        /// Virtual interrupt flag.
        VIF = 1 << 19;
        /// Virtual interrupt pending.
        VIP = 1 << 20;
        /// CPUID is there.
        ID = 1 << 21;
        /// The six arithmetic flags.
        STATUS = 0x8d5;
    }
}

register! {
    /// CR0 (SDM vol. 3, 2.5).
    Cr0: u64 {
        /// Protected mode.
        PE = 1 << 0;
        /// Monitor coprocessor: WAIT heeds TS.
        MP = 1 << 1;
        /// x87 instructions raise #NM.
        EM = 1 << 2;
        /// Task switched.
        TS = 1 << 3;
        /// Reads as 1.
        ET = 1 << 4;
        /// x87 errors raise #MF.
        NE = 1 << 5;
        /// Supervisor writes heed read-only pages.
        WP = 1 << 16;
        /// Alignment checks.
        AM = 1 << 18;
        /// Not write-through.
        NW = 1 << 29;
        /// Cache disable.
        CD = 1 << 30;
        /// Paging.
        PG = 1 << 31;
    }
}

register! {
    /// CR4 (SDM vol. 3, 2.5).
    Cr4: u64 {
        /// Virtual-8086 extensions.
        VME = 1 << 0;
        /// Protected-mode virtual interrupts.
        PVI = 1 << 1;
        /// RDTSC is privileged.
        TSD = 1 << 2;
        /// Debug extensions: DR4 and DR5 raise #UD.
        DE = 1 << 3;
        /// 4 MiB pages.
        PSE = 1 << 4;
        /// Physical address extension.
        PAE = 1 << 5;
        /// Machine checks.
        MCE = 1 << 6;
        /// Global pages.
        PGE = 1 << 7;
        /// RDPMC in user mode.
        PCE = 1 << 8;
        /// The system uses FXSAVE and SSE.
        OSFXSR = 1 << 9;
        /// The system handles #XM.
        OSXMMEXCPT = 1 << 10;
        /// SGDT, SIDT, SLDT, SMSW and STR are privileged.
        UMIP = 1 << 11;
        /// 57-bit linear addresses.
        LA57 = 1 << 12;
        /// VMX.
        VMXE = 1 << 13;
        /// SMX.
        SMXE = 1 << 14;
        /// RDFSBASE and its family.
        FSGSBASE = 1 << 16;
        /// Process-context identifiers.
        PCIDE = 1 << 17;
        /// XSAVE and extended states.
        OSXSAVE = 1 << 18;
        /// No supervisor execution of user pages.
        SMEP = 1 << 20;
        /// No supervisor access to user pages.
        SMAP = 1 << 21;
        /// Protection keys for user pages.
        PKE = 1 << 22;
        /// Control-flow enforcement.
        CET = 1 << 23;
        /// Protection keys for supervisor pages.
        PKS = 1 << 24;
    }
}

register! {
    /// IA32_EFER (SDM vol. 3, 2.2.1; APM vol. 2, 3.1.7).
    Efer: u64 {
        /// SYSCALL and SYSRET.
        SCE = 1 << 0;
        /// Long mode is wanted.
        LME = 1 << 8;
        /// Long mode is active.
        LMA = 1 << 10;
        /// No-execute pages.
        NXE = 1 << 11;
        /// SVM (AMD).
        SVME = 1 << 12;
        /// Segment limits in long mode (AMD).
        LMSLE = 1 << 13;
        /// Fast FXSAVE (AMD).
        FFXSR = 1 << 14;
    }
}

register! {
    /// XCR0 (SDM vol. 1, 13.3).
    Xcr0: u64 {
        /// x87; always set.
        X87 = 1 << 0;
        /// XMM and MXCSR.
        SSE = 1 << 1;
        /// Upper halves of YMM.
        AVX = 1 << 2;
    }
}

register! {
    /// MXCSR (SDM vol. 1, 10.2.3).
    Mxcsr: u32 {
        /// The six exception flags.
        FLAGS = 0x3f;
        /// Denormals are zeros.
        DAZ = 1 << 6;
        /// The six exception masks.
        MASKS = 0x1f80;
        /// Rounding control.
        RC = 3 << 13;
        /// Flush to zero.
        FTZ = 1 << 15;
    }
}

register! {
    /// DR6 (SDM vol. 3, 18.2.3).
    Dr6: u64 {
        /// The four breakpoint conditions.
        B = 0xf;
        /// A debug register was about to be accessed.
        BD = 1 << 13;
        /// Single step.
        BS = 1 << 14;
        /// Task switch.
        BT = 1 << 15;
        /// Bits that read as 1 (with RTM, bit 16, which is active low).
        FIXED = 0xffff_0ff0;
    }
}

register! {
    /// DR7 (SDM vol. 3, 18.2.4).
    Dr7: u64 {
        /// Local and global enables of the four breakpoints.
        ENABLES = 0xff;
        /// Reads as 1.
        FIXED = 1 << 10;
        /// General detect.
        GD = 1 << 13;
    }
}

impl Rflags {
    /// The I/O privilege level, 0 to 3.
    pub const fn iopl(self) -> u8 {
        (self.bits() >> 12 & 3) as u8
    }
}
