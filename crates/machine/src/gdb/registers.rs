//! The registers that gdb sees: those of its own x86-64 descriptions, and the system registers.
//!
//! One list says it all: the target description, the order of the `g` packet and the numbers of
//! `p` and `P` follow from it. Names and types of the standard features: "Debugging with GDB",
//! "i386 Features".

use gdbstub::arch::{Arch, RegId, Registers};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::sync::LazyLock;
use x86::{Cr0, Cr4, Efer, Gpr, Mxcsr, Rflags, SegmentRegister, VcpuState};

/// x86-64 as gdb knows it, in all modes of the CPU.
pub(super) enum Pc {}

impl Arch for Pc {
    type Usize = u64;
    type Registers = RegisterFile;
    type RegId = Register;
    type BreakpointKind = usize;

    fn target_description_xml() -> Option<&'static str> {
        Some(&DESCRIPTION)
    }
}

/// The control registers of x87 that gdb shows, 32 bits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum X87 {
    Control,
    Status,
    Tags,
    InstructionSelector,
    InstructionOffset,
    OperandSelector,
    OperandOffset,
    Opcode,
}

/// One register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Register {
    General(Gpr),
    Rip,
    Eflags,
    Selector(SegmentRegister),
    /// ST(i).
    St(u8),
    X87(X87),
    Xmm(u8),
    Mxcsr,
    /// Bits 128 to 255 of YMM.
    YmmHigh(u8),
    FsBase,
    GsBase,
    KernelGsBase,
    Cr0,
    Cr2,
    Cr3,
    Cr4,
    Cr8,
    Efer,
}

const GENERAL: [(Gpr, &str); 16] = [
    (Gpr::Rax, "rax"),
    (Gpr::Rbx, "rbx"),
    (Gpr::Rcx, "rcx"),
    (Gpr::Rdx, "rdx"),
    (Gpr::Rsi, "rsi"),
    (Gpr::Rdi, "rdi"),
    (Gpr::Rbp, "rbp"),
    (Gpr::Rsp, "rsp"),
    (Gpr::R8, "r8"),
    (Gpr::R9, "r9"),
    (Gpr::R10, "r10"),
    (Gpr::R11, "r11"),
    (Gpr::R12, "r12"),
    (Gpr::R13, "r13"),
    (Gpr::R14, "r14"),
    (Gpr::R15, "r15"),
];

const SELECTORS: [(SegmentRegister, &str); 6] = [
    (SegmentRegister::Cs, "cs"),
    (SegmentRegister::Ss, "ss"),
    (SegmentRegister::Ds, "ds"),
    (SegmentRegister::Es, "es"),
    (SegmentRegister::Fs, "fs"),
    (SegmentRegister::Gs, "gs"),
];

const X87_CONTROLS: [(X87, &str); 8] = [
    (X87::Control, "fctrl"),
    (X87::Status, "fstat"),
    (X87::Tags, "ftag"),
    (X87::InstructionSelector, "fiseg"),
    (X87::InstructionOffset, "fioff"),
    (X87::OperandSelector, "foseg"),
    (X87::OperandOffset, "fooff"),
    (X87::Opcode, "fop"),
];

const SYSTEM: [(Register, &str); 7] = [
    (Register::KernelGsBase, "k_gs_base"),
    (Register::Cr0, "cr0"),
    (Register::Cr2, "cr2"),
    (Register::Cr3, "cr3"),
    (Register::Cr4, "cr4"),
    (Register::Cr8, "cr8"),
    (Register::Efer, "efer"),
];

const EFLAGS: [(&str, u8); 16] = [
    ("CF", 0),
    ("PF", 2),
    ("AF", 4),
    ("ZF", 6),
    ("SF", 7),
    ("TF", 8),
    ("IF", 9),
    ("DF", 10),
    ("OF", 11),
    ("NT", 14),
    ("RF", 16),
    ("VM", 17),
    ("AC", 18),
    ("VIF", 19),
    ("VIP", 20),
    ("ID", 21),
];

const MXCSR: [(&str, u8); 14] = [
    ("IE", 0),
    ("DE", 1),
    ("ZE", 2),
    ("OE", 3),
    ("UE", 4),
    ("PE", 5),
    ("DAZ", 6),
    ("IM", 7),
    ("DM", 8),
    ("ZM", 9),
    ("OM", 10),
    ("UM", 11),
    ("PM", 12),
    ("FZ", 15),
];

const CR0: [(&str, u8); 11] = [
    ("PE", 0),
    ("MP", 1),
    ("EM", 2),
    ("TS", 3),
    ("ET", 4),
    ("NE", 5),
    ("WP", 16),
    ("AM", 18),
    ("NW", 29),
    ("CD", 30),
    ("PG", 31),
];

const EFER: [(&str, u8); 4] = [("SCE", 0), ("LME", 8), ("LMA", 10), ("NXE", 11)];

/// The union by which gdb shows a vector register.
const VEC128: &str = "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/>\
    <vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>\
    <vector id=\"v16i8\" type=\"int8\" count=\"16\"/>\
    <vector id=\"v8i16\" type=\"int16\" count=\"8\"/>\
    <vector id=\"v4i32\" type=\"int32\" count=\"4\"/>\
    <vector id=\"v2i64\" type=\"int64\" count=\"2\"/>\
    <union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/>\
    <field name=\"v2_double\" type=\"v2d\"/><field name=\"v16_int8\" type=\"v16i8\"/>\
    <field name=\"v8_int16\" type=\"v8i16\"/><field name=\"v4_int32\" type=\"v4i32\"/>\
    <field name=\"v2_int64\" type=\"v2i64\"/><field name=\"uint128\" type=\"uint128\"/></union>";

/// Registers that gdb knows, or does not, together.
struct Feature {
    name: &'static str,
    /// Definitions of types that the registers use.
    types: String,
    registers: Vec<(Register, String)>,
}

fn features() -> [Feature; 5] {
    let numbered = |name: &str, count: u8, register: fn(u8) -> Register, suffix: &str| {
        (0..count)
            .map(|i| (register(i), format!("{name}{i}{suffix}")))
            .collect::<Vec<_>>()
    };
    let mut core = Vec::new();
    core.extend(GENERAL.map(|(r, name)| (Register::General(r), name.to_owned())));
    core.push((Register::Rip, "rip".to_owned()));
    core.push((Register::Eflags, "eflags".to_owned()));
    core.extend(SELECTORS.map(|(r, name)| (Register::Selector(r), name.to_owned())));
    core.extend(numbered("st", 8, Register::St, ""));
    core.extend(X87_CONTROLS.map(|(r, name)| (Register::X87(r), name.to_owned())));
    let mut sse = numbered("xmm", 16, Register::Xmm, "");
    sse.push((Register::Mxcsr, "mxcsr".to_owned()));
    [
        Feature {
            name: "org.gnu.gdb.i386.core",
            types: flags("i386_eflags", 4, &EFLAGS),
            registers: core,
        },
        Feature {
            name: "org.gnu.gdb.i386.sse",
            types: VEC128.to_owned() + &flags("i386_mxcsr", 4, &MXCSR),
            registers: sse,
        },
        Feature {
            name: "org.gnu.gdb.i386.avx",
            types: String::new(),
            registers: numbered("ymm", 16, Register::YmmHigh, "h"),
        },
        Feature {
            name: "org.gnu.gdb.i386.segments",
            types: String::new(),
            registers: vec![
                (Register::FsBase, "fs_base".to_owned()),
                (Register::GsBase, "gs_base".to_owned()),
            ],
        },
        Feature {
            name: "doppel.x86.system",
            types: flags("cr0_flags", 8, &CR0) + &flags("efer_flags", 8, &EFER),
            registers: SYSTEM.map(|(r, name)| (r, name.to_owned())).to_vec(),
        },
    ]
}

/// The definition of a flags type of `size` bytes.
fn flags(id: &str, size: u8, bits: &[(&str, u8)]) -> String {
    let mut xml = format!("<flags id=\"{id}\" size=\"{size}\">");
    for (name, bit) in bits {
        // Writing to a string can't fail.
        let _ = write!(
            xml,
            "<field name=\"{name}\" start=\"{bit}\" end=\"{bit}\"/>"
        );
    }
    xml + "</flags>"
}

static DESCRIPTION: LazyLock<String> = LazyLock::new(|| {
    let mut xml = "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">\
        <target version=\"1.0\"><architecture>i386:x86-64</architecture>"
        .to_owned();
    for Feature {
        name,
        types,
        registers,
    } in features()
    {
        let _ = write!(xml, "<feature name=\"{name}\">{types}");
        for (register, name) in registers {
            let (bits, kind) = (8 * register.bytes(), register.kind());
            let _ = write!(
                xml,
                "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"/>"
            );
        }
        xml += "</feature>";
    }
    xml + "</target>"
});

/// All registers, by their numbers.
static ALL: LazyLock<Vec<Register>> = LazyLock::new(|| {
    features()
        .into_iter()
        .flat_map(|f| f.registers)
        .map(|(register, _)| register)
        .collect()
});

impl RegId for Register {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let register = *ALL.get(id)?;
        Some((register, NonZeroUsize::new(register.bytes())))
    }

    fn to_raw_id(&self) -> Option<usize> {
        ALL.iter().position(|register| register == self)
    }
}

impl Register {
    /// Its size in packets.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Eflags | Self::Selector(_) | Self::X87(_) | Self::Mxcsr => 4,
            Self::St(_) => 10,
            Self::Xmm(_) | Self::YmmHigh(_) => 16,
            _ => 8,
        }
    }

    /// Its type in the target description.
    fn kind(self) -> &'static str {
        match self {
            Self::General(Gpr::Rsp | Gpr::Rbp) => "data_ptr",
            Self::Rip => "code_ptr",
            Self::Eflags => "i386_eflags",
            Self::Selector(_) | Self::X87(_) => "int32",
            Self::St(_) => "i387_ext",
            Self::Xmm(_) => "vec128",
            Self::Mxcsr => "i386_mxcsr",
            Self::YmmHigh(_) => "uint128",
            Self::Cr0 => "cr0_flags",
            Self::Efer => "efer_flags",
            _ => "int64",
        }
    }

    /// Its value in `state`.
    pub(super) fn get(self, state: &VcpuState) -> u128 {
        let fpu = &state.fpu;
        let halves = |low: u64, high: u64| u128::from(low) | u128::from(high) << 64;
        let base = |segment: SegmentRegister| state.segments[segment as usize].base.into();
        match self {
            Self::General(register) => state.gpr[register as usize].into(),
            Self::Rip => state.rip.into(),
            Self::Eflags => state.rflags.bits().into(),
            Self::Selector(segment) => state.segments[segment as usize].selector.0.into(),
            Self::St(i) => {
                let mut bytes = [0; 16];
                bytes[..10].copy_from_slice(&fpu.st[usize::from(i)]);
                u128::from_le_bytes(bytes)
            }
            Self::X87(register) => x87(state, register).into(),
            Self::Xmm(i) => halves(fpu.ymm[usize::from(i)][0], fpu.ymm[usize::from(i)][1]),
            Self::YmmHigh(i) => halves(fpu.ymm[usize::from(i)][2], fpu.ymm[usize::from(i)][3]),
            Self::Mxcsr => fpu.mxcsr.bits().into(),
            Self::FsBase => base(SegmentRegister::Fs),
            Self::GsBase => base(SegmentRegister::Gs),
            Self::KernelGsBase => state.syscall.kernel_gs_base.into(),
            Self::Cr0 => state.cr0.bits().into(),
            Self::Cr2 => state.cr2.into(),
            Self::Cr3 => state.cr3.into(),
            Self::Cr4 => state.cr4.bits().into(),
            Self::Cr8 => u128::from(state.apic.tpr >> 4),
            Self::Efer => state.efer.bits().into(),
        }
    }

    /// Sets its value in `state`. Whether the whole is a state that can be is for the engine to
    /// say.
    pub(super) fn set(self, state: &mut VcpuState, value: u128) {
        let word = value as u64;
        let (low, high) = (value as u64, (value >> 64) as u64);
        match self {
            Self::General(register) => state.gpr[register as usize] = word,
            Self::Rip => state.rip = word,
            Self::Eflags => {
                let bits = u64::from(word as u32);
                state.rflags = Rflags::from_bits_retain(bits) | Rflags::FIXED;
            }
            Self::Selector(segment) => set_selector(state, segment, word as u16),
            Self::St(i) => {
                let bytes = &value.to_le_bytes()[..10];
                state.fpu.st[usize::from(i)].copy_from_slice(bytes);
            }
            Self::X87(register) => set_x87(state, register, word as u32),
            Self::Xmm(i) => state.fpu.ymm[usize::from(i)][..2].copy_from_slice(&[low, high]),
            Self::YmmHigh(i) => state.fpu.ymm[usize::from(i)][2..].copy_from_slice(&[low, high]),
            Self::Mxcsr => state.fpu.mxcsr = Mxcsr::from_bits_retain(word as u32),
            Self::FsBase => state.segments[SegmentRegister::Fs as usize].base = word,
            Self::GsBase => state.segments[SegmentRegister::Gs as usize].base = word,
            Self::KernelGsBase => state.syscall.kernel_gs_base = word,
            Self::Cr0 => state.cr0 = Cr0::from_bits_retain(word),
            Self::Cr2 => state.cr2 = word,
            Self::Cr3 => state.cr3 = word,
            Self::Cr4 => state.cr4 = Cr4::from_bits_retain(word),
            Self::Cr8 => state.apic.tpr = (word as u8 & 0xf) << 4,
            Self::Efer => state.efer = Efer::from_bits_retain(word),
        }
    }
}

fn x87(state: &VcpuState, register: X87) -> u32 {
    let fpu = &state.fpu;
    match register {
        X87::Control => fpu.control.into(),
        X87::Status => fpu.status.into(),
        X87::Tags => fpu.tags.into(),
        X87::InstructionSelector => fpu.instruction.1.into(),
        X87::InstructionOffset => fpu.instruction.0 as u32,
        X87::OperandSelector => fpu.operand.1.into(),
        X87::OperandOffset => fpu.operand.0 as u32,
        X87::Opcode => fpu.opcode.into(),
    }
}

fn set_x87(state: &mut VcpuState, register: X87, value: u32) {
    const LOW: u64 = 0xffff_ffff;
    let fpu = &mut state.fpu;
    match register {
        X87::Control => fpu.control = value as u16,
        X87::Status => fpu.status = value as u16,
        X87::Tags => fpu.tags = value as u16,
        X87::InstructionSelector => fpu.instruction.1 = value as u16,
        X87::InstructionOffset => {
            fpu.instruction.0 = fpu.instruction.0 & !LOW | u64::from(value);
        }
        X87::OperandSelector => fpu.operand.1 = value as u16,
        X87::OperandOffset => fpu.operand.0 = fpu.operand.0 & !LOW | u64::from(value),
        X87::Opcode => fpu.opcode = value as u16 & 0x7ff,
    }
}

/// Sets a selector. In real and virtual-8086 mode it makes the base; otherwise what the CPU holds
/// of the descriptor stays as it was loaded.
fn set_selector(state: &mut VcpuState, segment: SegmentRegister, value: u16) {
    let by_selector = !state.cr0.contains(Cr0::PE) || state.rflags.contains(Rflags::VM);
    let register = &mut state.segments[segment as usize];
    // A value that is written back unchanged leaves the base alone: after reset that of CS is
    // not what its selector says.
    if by_selector && register.selector.0 != value {
        register.base = u64::from(value) << 4;
    }
    register.selector.0 = value;
}

/// The `g` packet's content: all registers one after the other, little-endian.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct RegisterFile {
    rip: u64,
    bytes: Vec<u8>,
}

impl RegisterFile {
    pub(super) fn load(&mut self, state: &VcpuState) {
        self.rip = state.rip;
        self.bytes.clear();
        for register in ALL.iter() {
            let value = register.get(state).to_le_bytes();
            self.bytes.extend_from_slice(&value[..register.bytes()]);
        }
    }

    pub(super) fn store(&self, state: &mut VcpuState) {
        let mut rest = self.bytes.as_slice();
        for register in ALL.iter() {
            let Some((bytes, behind)) = rest.split_at_checked(register.bytes()) else {
                return;
            };
            register.set(state, from_bytes(bytes));
            rest = behind;
        }
    }
}

/// A value from up to 16 little-endian bytes.
pub(super) fn from_bytes(bytes: &[u8]) -> u128 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u128::from(*byte))
}

impl Registers for RegisterFile {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        for byte in &self.bytes {
            write_byte(Some(*byte));
        }
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let len: usize = ALL.iter().map(|register| register.bytes()).sum();
        if bytes.len() != len {
            return Err(());
        }
        self.bytes = bytes.to_vec();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state in which every register that gdb sees has a value of its own.
    fn state() -> VcpuState {
        let mut state = VcpuState::after_reset(0);
        for (number, register) in ALL.iter().enumerate() {
            register.set(
                &mut state,
                0x0101_0101_0101_0101_0101_0101_0101_0101 * number as u128,
            );
        }
        state
    }

    #[test]
    fn the_standard_registers_have_gdbs_numbers() {
        // gdb/features/i386: core has 40, sse 17, avx 16, segments 2.
        assert_eq!(Register::Rip.to_raw_id(), Some(16));
        assert_eq!(
            Register::Selector(SegmentRegister::Cs).to_raw_id(),
            Some(18)
        );
        assert_eq!(Register::St(0).to_raw_id(), Some(24));
        assert_eq!(Register::Xmm(0).to_raw_id(), Some(40));
        assert_eq!(Register::Mxcsr.to_raw_id(), Some(56));
        assert_eq!(Register::YmmHigh(0).to_raw_id(), Some(57));
        assert_eq!(Register::FsBase.to_raw_id(), Some(73));
        assert!(Register::from_raw_id(ALL.len()).is_none());
        assert!(Register::from_raw_id(usize::MAX).is_none());
    }

    #[test]
    fn the_description_lists_every_register_once() {
        assert_eq!(DESCRIPTION.matches("<reg ").count(), ALL.len());
        for (i, register) in ALL.iter().enumerate() {
            assert_eq!(register.to_raw_id(), Some(i));
        }
        for tag in ["target", "feature", "flags", "union"] {
            let open = DESCRIPTION.matches(&format!("<{tag} ")).count();
            assert_eq!(
                open,
                DESCRIPTION.matches(&format!("</{tag}>")).count(),
                "{tag}"
            );
        }
    }

    #[test]
    fn what_g_reads_g_writes() {
        let before = state();
        let mut file = RegisterFile::default();
        file.load(&before);
        let mut packet = Vec::new();
        file.gdb_serialize(|byte| packet.extend(byte));
        let mut read = RegisterFile::default();
        read.gdb_deserialize(&packet).unwrap();
        let mut after = before.clone();
        read.store(&mut after);
        assert_eq!(before, after);
        packet.pop();
        assert!(read.gdb_deserialize(&packet).is_err());
    }

    #[test]
    fn every_register_is_read_as_it_was_written() {
        for register in ALL.iter() {
            let mut state = VcpuState::after_reset(0);
            // Bits that all of them have, above the fixed one of RFLAGS.
            let value = 0x6;
            register.set(&mut state, value);
            assert_eq!(register.get(&state), value, "{register:?}");
        }
    }

    #[test]
    fn a_selector_makes_the_base_in_real_mode_only() {
        let cs = Register::Selector(SegmentRegister::Cs);
        let mut state = VcpuState::after_reset(0);
        cs.set(&mut state, 0xf000);
        assert_eq!(
            state.segments[1].base, 0xffff_0000,
            "an unchanged selector changes nothing"
        );
        cs.set(&mut state, 0x1234);
        assert_eq!(state.segments[1].base, 0x12340);
        state.cr0 |= Cr0::PE;
        cs.set(&mut state, 0x10);
        assert_eq!(state.segments[1].base, 0x12340);
        assert_eq!(state.segments[1].selector.0, 0x10);
    }
}
