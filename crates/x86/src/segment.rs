//! Selectors, descriptors and what a segment register holds of them.

use serde::{Deserialize, Serialize};

/// A segment selector (SDM vol. 3, 3.4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Selector(pub u16);

impl Selector {
    /// Requested privilege level.
    pub const fn rpl(self) -> u8 {
        (self.0 & 3) as u8
    }

    /// Whether it selects from the LDT.
    pub const fn is_local(self) -> bool {
        self.0 & 4 != 0
    }

    /// Offset of the descriptor in its table.
    pub const fn offset(self) -> u16 {
        self.0 & !7
    }

    /// Whether it is a null selector, whatever its RPL.
    pub const fn is_null(self) -> bool {
        self.0 & !3 == 0
    }

    /// The selector as an error code: without the RPL.
    pub const fn error_code(self) -> u32 {
        (self.0 & !3) as u32
    }

    /// The same selector with another RPL.
    pub const fn with_rpl(self, rpl: u8) -> Self {
        Self(self.0 & !3 | rpl as u16 & 3)
    }
}

/// Segment registers by their encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SegmentRegister {
    /// ES.
    Es,
    /// CS.
    Cs,
    /// SS.
    Ss,
    /// DS.
    Ds,
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// Types of system descriptors (SDM vol. 3, table 3-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SystemType {
    /// Available 16-bit TSS.
    Tss16 = 1,
    /// LDT.
    Ldt = 2,
    /// Busy 16-bit TSS.
    BusyTss16 = 3,
    /// 16-bit call gate.
    CallGate16 = 4,
    /// Task gate.
    TaskGate = 5,
    /// 16-bit interrupt gate.
    InterruptGate16 = 6,
    /// 16-bit trap gate.
    TrapGate16 = 7,
    /// Available TSS, 32 or 64 bits.
    Tss = 9,
    /// Busy TSS, 32 or 64 bits.
    BusyTss = 11,
    /// Call gate, 32 or 64 bits.
    CallGate = 12,
    /// Interrupt gate, 32 or 64 bits.
    InterruptGate = 14,
    /// Trap gate, 32 or 64 bits.
    TrapGate = 15,
}

impl SystemType {
    /// The type of a descriptor whose S bit is 0; `None` where it is reserved.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            1 => Self::Tss16,
            2 => Self::Ldt,
            3 => Self::BusyTss16,
            4 => Self::CallGate16,
            5 => Self::TaskGate,
            6 => Self::InterruptGate16,
            7 => Self::TrapGate16,
            9 => Self::Tss,
            11 => Self::BusyTss,
            12 => Self::CallGate,
            14 => Self::InterruptGate,
            15 => Self::TrapGate,
            _ => return None,
        })
    }
}

/// An 8-byte descriptor as it stands in memory (SDM vol. 3, 3.4.5 and 7.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// Segment base, bits 31 to 0.
    pub const fn base(self) -> u32 {
        (self.0 >> 16 & 0xff_ffff) as u32 | (self.0 >> 32) as u32 & 0xff00_0000
    }

    /// Segment limit in bytes, granularity applied.
    pub const fn limit(self) -> u32 {
        let raw = (self.0 & 0xffff) as u32 | (self.0 >> 32) as u32 & 0xf_0000;
        if self.0 >> 55 & 1 != 0 {
            raw << 12 | 0xfff
        } else {
            raw
        }
    }

    /// Access rights in the form of [`Segment::access`].
    pub const fn access(self) -> u16 {
        (self.0 >> 40) as u16 & 0xf0ff
    }

    /// The four type bits.
    pub const fn kind(self) -> u8 {
        (self.0 >> 40 & 15) as u8
    }

    /// Whether it is a code or data segment.
    pub const fn is_segment(self) -> bool {
        self.0 >> 44 & 1 != 0
    }

    /// Whether it is a code segment.
    pub const fn is_code(self) -> bool {
        self.is_segment() && self.0 >> 43 & 1 != 0
    }

    /// Whether it is a code segment that may be entered from less privileged code.
    pub const fn is_conforming(self) -> bool {
        self.is_code() && self.0 >> 42 & 1 != 0
    }

    /// Whether it is a data segment that may be written.
    pub const fn is_writable_data(self) -> bool {
        self.is_segment() && !self.is_code() && self.0 >> 41 & 1 != 0
    }

    /// Whether it may be read through: data, or readable code.
    pub const fn is_readable(self) -> bool {
        self.is_segment() && (!self.is_code() || self.0 >> 41 & 1 != 0)
    }

    /// The system type, if it is a system descriptor and the type is not reserved.
    pub const fn system_type(self) -> Option<SystemType> {
        if self.is_segment() {
            None
        } else {
            SystemType::from_bits(self.kind())
        }
    }

    /// Descriptor privilege level.
    pub const fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }

    /// Whether the segment is present.
    pub const fn is_present(self) -> bool {
        self.0 >> 47 & 1 != 0
    }

    /// L: 64-bit code.
    pub const fn is_long(self) -> bool {
        self.0 >> 53 & 1 != 0
    }

    /// D/B: 32-bit default size, or upper bound.
    pub const fn is_big(self) -> bool {
        self.0 >> 54 & 1 != 0
    }

    /// A gate's target selector.
    pub const fn gate_selector(self) -> Selector {
        Selector((self.0 >> 16) as u16)
    }

    /// A gate's target offset, bits 31 to 0.
    pub const fn gate_offset(self) -> u32 {
        (self.0 & 0xffff) as u32 | (self.0 >> 32) as u32 & 0xffff_0000
    }
}

/// A segment register: the selector and what was cached of the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: Selector,
    /// Base address; 64 bits for FS, GS, LDTR and TR in long mode.
    pub base: u64,
    /// Limit in bytes, granularity applied: the last valid offset (the last invalid one for a
    /// segment that expands down).
    pub limit: u32,
    /// Access rights: type in bits 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15.
    pub access: u16,
    /// Loaded with a null selector, or never: any use is refused.
    pub unusable: bool,
}

impl Segment {
    /// A real-mode segment.
    pub const fn real_mode(selector: u16, access: u16) -> Self {
        Self {
            selector: Selector(selector),
            base: (selector as u64) << 4,
            limit: 0xffff,
            access,
            unusable: false,
        }
    }

    /// A segment loaded with `selector` from `descriptor`.
    pub const fn from_descriptor(selector: Selector, descriptor: Descriptor) -> Self {
        Self {
            selector,
            base: descriptor.base() as u64,
            limit: descriptor.limit(),
            access: descriptor.access(),
            unusable: false,
        }
    }

    /// The four type bits.
    pub const fn kind(&self) -> u8 {
        (self.access & 15) as u8
    }

    /// Descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        (self.access >> 5 & 3) as u8
    }

    /// Whether it is a code segment.
    pub const fn is_code(&self) -> bool {
        self.access & 0x18 == 0x18
    }

    /// L: 64-bit code.
    pub const fn is_long(&self) -> bool {
        self.access >> 13 & 1 != 0
    }

    /// D/B.
    pub const fn is_big(&self) -> bool {
        self.access >> 14 & 1 != 0
    }

    /// Whether it is a data segment that expands down.
    pub const fn expands_down(&self) -> bool {
        self.access & 0x1c == 0x14
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// The last valid offset.
    pub limit: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sdm_3_4_5_flat_descriptors() {
        let code64 = Descriptor(0x00af_9a00_0000_ffff);
        assert!(code64.is_code() && code64.is_long() && !code64.is_big() && code64.is_present());
        assert_eq!(
            (code64.limit(), code64.dpl(), code64.access()),
            (0xffff_ffff, 0, 0xa09a)
        );
        let data = Descriptor(0x12cf_f234_5678_ffff);
        assert!(data.is_writable_data() && data.is_big());
        assert_eq!((data.base(), data.dpl()), (0x1234_5678, 3));
        let small = Descriptor(0x0040_9612_3456_0fff);
        assert_eq!(small.limit(), 0xfff);
        assert!(Segment::from_descriptor(Selector(8), small).expands_down());
    }

    #[test]
    fn sdm_7_11_gates() {
        let gate = Descriptor(0x1122_ee00_0010_3344);
        assert_eq!(gate.system_type(), Some(SystemType::InterruptGate));
        assert_eq!(
            (gate.gate_selector().0, gate.gate_offset()),
            (0x10, 0x1122_3344)
        );
        assert_eq!(gate.dpl(), 3);
    }
}
