//! What random code finds: a mode, tables, handlers, memory, registers.

use super::instructions::code;
use crate::input::Input;
use memory::{GuestMemory, Kind, RegionSpec};
use std::sync::Arc;
use x86::{
    Cr0, Cr4, DescriptorTable, Efer, Mxcsr, Rflags, Segment, SegmentRegister, Selector, VcpuState,
    Xcr0,
};

/// RAM with a page of ROM in it; what is above is devices.
const REGIONS: [(u64, u64, Kind); 3] = [
    (0, 0xf_0000, Kind::Ram),
    (0xf_0000, 0x1000, Kind::Rom),
    (0x10_0000, 0x10_0000, Kind::Ram),
];
const MEMORY_END: u64 = 0x20_0000;

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const OTHER_TSS: u64 = 0x4000;
const LDT: u64 = 0x4800;
/// Handlers for exceptions without an error code, and with one at [`WITH_ERROR_CODE`] behind.
const HANDLERS: u64 = 0x5000;
const WITH_ERROR_CODE: u64 = 0x20;
/// The root of the page tables, then the levels below.
const TABLES: u64 = 0x8000;
const PAGE_TABLE: u64 = 0x9000;
const DIRECTORY: u64 = 0xa000;
const POINTERS: u64 = 0xb000;
const STACK: u64 = 0x2_0000;
pub(super) const CODE: u64 = 0x3_0000;
pub(super) const CODE_BYTES_MAX: usize = 0x800;
pub(super) const DATA: u64 = 0x4_0000;

/// Selectors in the table that is written for it.
mod selector {
    pub(super) const CODE64: u16 = 0x08;
    pub(super) const DATA: u16 = 0x10;
    pub(super) const CODE32: u16 = 0x18;
    pub(super) const USER_CODE32: u16 = 0x23;
    pub(super) const USER_DATA: u16 = 0x2b;
    pub(super) const USER_CODE64: u16 = 0x33;
    pub(super) const CODE16: u16 = 0x38;
    pub(super) const TASK: u16 = 0x48;
    pub(super) const LOCAL: u16 = 0x58;
    pub(super) const OTHER_TASK: u16 = 0x78;
}

/// How the processor runs at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Real,
    Virtual8086,
    Protected16,
    Protected32,
    Compatibility,
    Long,
}

impl Mode {
    fn bits(self) -> u32 {
        match self {
            Self::Real | Self::Virtual8086 | Self::Protected16 => 16,
            Self::Protected32 | Self::Compatibility => 32,
            Self::Long => 64,
        }
    }

    fn is_ia32e(self) -> bool {
        matches!(self, Self::Compatibility | Self::Long)
    }
}

/// Formats of page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paging {
    None,
    TwoLevels,
    Pae,
    FourLevels,
}

/// Memory for a scene.
pub(super) fn memory() -> Arc<GuestMemory> {
    let regions = REGIONS.map(|(gpa, len, kind)| RegionSpec { gpa, len, kind });
    GuestMemory::new(&regions).expect("two megabytes of memory")
}

/// Fills `memory` and returns the registers with which the code begins.
pub(super) fn set(memory: &GuestMemory, input: &mut Input<'_>) -> VcpuState {
    let mode = input.pick(&[
        Mode::Real,
        Mode::Virtual8086,
        Mode::Protected16,
        Mode::Protected32,
        Mode::Compatibility,
        Mode::Long,
        Mode::Long,
        Mode::Long,
    ]);
    let paging = match mode {
        Mode::Real => Paging::None,
        _ if mode.is_ia32e() => Paging::FourLevels,
        _ => input.pick(&[Paging::None, Paging::TwoLevels, Paging::Pae]),
    };
    let scene = Scene {
        memory,
        mode,
        paging,
        user: input.flag(),
    };
    scene.write_gdt();
    scene.write_handlers(input);
    scene.write_tasks();
    scene.write_page_tables();
    scene.damage(input);
    let mut state = scene.registers(input);
    scene.general_registers(&mut state, input);
    scene.write(CODE, &code(input, mode.bits(), CODE_BYTES_MAX));
    state
}

struct Scene<'a> {
    memory: &'a GuestMemory,
    mode: Mode,
    paging: Paging,
    /// At privilege level 3, where the mode has it.
    user: bool,
}

impl Scene<'_> {
    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory
            .load_image(at, bytes)
            .expect("all of a scene is in memory");
    }

    fn store(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    fn write_gdt(&self) {
        let task = |base: u64, limit: u64, kind: u64| limit | base << 16 | kind << 40;
        let gate = u64::from(selector::CODE32) << 16 | HANDLERS | 0xec << 40;
        let entries = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x0000_9b00_0000_ffff | CODE << 16,
            0x0000_9300_0000_ffff | DATA << 16,
            // Busy; the upper half of its 64-bit form.
            task(TSS, 0x2067, 0x8b),
            0,
            task(LDT, 0xff, 0x82),
            0,
            // A call gate, and the upper half of its 64-bit form.
            gate,
            0,
            task(OTHER_TSS, 0x67, 0x89),
            // A task gate.
            u64::from(selector::OTHER_TASK) << 16 | 0xe5 << 40,
        ];
        for (index, entry) in entries.into_iter().enumerate() {
            self.store(GDT + 8 * index as u64, entry);
        }
        // A local code and a data segment.
        self.store(LDT, 0x00cf_fb00_0000_ffff);
        self.store(LDT + 8, 0x00cf_f300_0000_ffff);
    }

    /// Handlers that skip a byte and go on; for some vectors, random code instead.
    fn write_handlers(&self, input: &mut Input<'_>) {
        let (plain, with_error): (&[u8], &[u8]) = match self.mode {
            // push bp; mov bp, sp; inc word [bp+2]; pop bp; iret
            Mode::Real => (&[0x55, 0x89, 0xe5, 0xff, 0x46, 0x02, 0x5d, 0xcf], &[0xcf]),
            // [add rsp, 8]; inc qword [rsp]; iretq
            mode if mode.is_ia32e() => (
                &[0x48, 0xff, 0x04, 0x24, 0x48, 0xcf],
                &[0x48, 0x83, 0xc4, 0x08, 0x48, 0xff, 0x04, 0x24, 0x48, 0xcf],
            ),
            // [add esp, 4]; inc dword [esp]; iret
            _ => (
                &[0xff, 0x04, 0x24, 0xcf],
                &[0x83, 0xc4, 0x04, 0xff, 0x04, 0x24, 0xcf],
            ),
        };
        self.write(HANDLERS, plain);
        self.write(HANDLERS + WITH_ERROR_CODE, with_error);
        for vector in 0..=255 {
            self.write_gate(vector, HANDLERS + error_code_offset(vector));
        }
        for _ in 0..input.below(4) {
            self.write_gate(input.u8(), CODE + u64::from(input.u8()));
        }
    }

    fn write_gate(&self, vector: u8, handler: u64) {
        // DPL 3, so that INT reaches it.
        const INTERRUPT_GATE: u64 = 0xee << 40;
        let vector = u64::from(vector);
        let low = handler & 0xffff | handler >> 16 << 48 | INTERRUPT_GATE;
        match self.mode {
            Mode::Real => {
                // Segment and offset.
                let far = (handler >> 4) << 16 | handler & 0xf;
                self.write(vector * 4, &(far as u32).to_le_bytes());
            }
            mode if mode.is_ia32e() => {
                self.store(IDT + vector * 16, low | u64::from(selector::CODE64) << 16);
                self.store(IDT + vector * 16 + 8, 0);
            }
            _ => self.store(IDT + vector * 8, low | u64::from(selector::CODE32) << 16),
        }
    }

    /// A TSS of the mode's format with stacks, and a 32-bit one to switch to.
    fn write_tasks(&self) {
        if self.mode.is_ia32e() {
            for stack in 0..3 {
                self.store(TSS + 4 + 8 * stack, STACK - 0x1000 * stack);
            }
        } else {
            for stack in 0..3 {
                self.store(TSS + 4 + 8 * stack, STACK | u64::from(selector::DATA) << 32);
            }
        }
        // The I/O permission bitmap follows, all allowed; its last byte must be ones.
        self.write(TSS + 0x66, &0x68_u16.to_le_bytes());
        let field = |at: u64, value: u64| self.write(OTHER_TSS + at, &(value as u32).to_le_bytes());
        field(0x1c, TABLES);
        field(0x20, CODE);
        field(0x24, 2);
        field(0x38, STACK);
        let data = selector::DATA.into();
        for (at, selector) in [(0x48, data), (0x4c, selector::CODE32.into()), (0x50, data)] {
            field(at, selector);
        }
        field(0x54, data);
    }

    /// Maps memory one to one, by small pages as far as there is memory.
    fn write_page_tables(&self) {
        const USER_WRITABLE: u64 = 7;
        const LARGE: u64 = 1 << 7;
        match self.paging {
            Paging::None => {}
            Paging::TwoLevels => {
                for page in 0..1024u64 {
                    let entry = page << 12 | USER_WRITABLE;
                    self.write(PAGE_TABLE + 4 * page, &(entry as u32).to_le_bytes());
                }
                for part in 0..1024u64 {
                    let entry = match part {
                        0 => PAGE_TABLE | USER_WRITABLE,
                        part => part << 22 | LARGE | USER_WRITABLE,
                    };
                    self.write(TABLES + 4 * part, &(entry as u32).to_le_bytes());
                }
            }
            Paging::Pae | Paging::FourLevels => {
                for page in 0..512 {
                    self.store(PAGE_TABLE + 8 * page, page << 12 | USER_WRITABLE);
                    self.store(DIRECTORY + 8 * page, page << 21 | LARGE | USER_WRITABLE);
                }
                self.store(DIRECTORY, PAGE_TABLE | USER_WRITABLE);
                if self.paging == Paging::FourLevels {
                    self.store(TABLES, POINTERS | USER_WRITABLE);
                    self.store(POINTERS, DIRECTORY | USER_WRITABLE);
                    // The second gigabyte as one page.
                    self.store(POINTERS + 8, 1 << 30 | LARGE | USER_WRITABLE);
                } else {
                    self.store(TABLES, DIRECTORY | 1);
                }
            }
        }
    }

    /// Changes entries of tables: read-only, absent, no-execute pages, wrong descriptors.
    fn damage(&self, input: &mut Input<'_>) {
        let size = if self.paging == Paging::TwoLevels {
            4
        } else {
            8
        };
        for _ in 0..input.below(6) {
            let page = match input.below(3) {
                0 => CODE >> 12,
                1 => DATA >> 12,
                _ => input.below(512) as u64,
            };
            let no_execute = u64::from(input.flag()) << 63;
            let entry = page << 12 | u64::from(input.u16()) & 0xfff | no_execute;
            let bytes = entry.to_le_bytes();
            self.write(PAGE_TABLE + size * page, &bytes[..size as usize]);
        }
        for _ in 0..input.below(4) {
            let table = input.pick(&[0, GDT, IDT, TSS, OTHER_TSS, LDT, HANDLERS, TABLES]);
            let at = table + 8 * u64::from(input.u8());
            self.store(at, input.value());
        }
    }

    fn registers(&self, input: &mut Input<'_>) -> VcpuState {
        let mut state = VcpuState::after_reset(0);
        self.system_registers(&mut state, input);
        self.segments(&mut state);
        let within_segment =
            matches!(self.mode, Mode::Real | Mode::Virtual8086) || self.mode == Mode::Protected16;
        state.rip = if within_segment { 0 } else { CODE };
        state.rflags = self.flags(input);
        state.fpu.mxcsr = Mxcsr::from_bits_retain(input.pick(&[0x1f80, 0x1f80, 0, 0x9fc0]));
        state.fpu.control = input.pick(&[0x37f, 0x40, 0, 0x1f7f]);
        for (register, fill) in state.fpu.ymm.iter_mut().zip(input.bytes(64)) {
            *register = [u64::from_ne_bytes([*fill; 8]); 4];
        }
        if input.below(8) == 0 {
            state.dr = [CODE, DATA, CODE + input.u64() % 64, DATA + 8];
            state.dr7 = input.u32() as u64 & 0xffff_03ff | 0x400;
        }
        state
    }

    fn system_registers(&self, state: &mut VcpuState, input: &mut Input<'_>) {
        let chance = input.u16();
        state.cr0 = Cr0::ET
            | Cr0::from_bits_retain(
                u64::from(chance) & (Cr0::MP | Cr0::NE).bits()
                    | if chance & 0x70 == 0 {
                        (Cr0::EM | Cr0::TS).bits() & u64::from(chance)
                    } else {
                        0
                    },
            );
        state.cr0.set(Cr0::WP, chance & 0x100 != 0);
        state.cr0.set(Cr0::AM, chance & 0x200 != 0);
        state.cr0.set(Cr0::PE, self.mode != Mode::Real);
        state.cr0.set(Cr0::PG, self.paging != Paging::None);
        let wanted = Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
        let possible = Cr4::TSD | Cr4::DE | Cr4::PGE | Cr4::UMIP | Cr4::FSGSBASE;
        let protection = Cr4::SMEP | Cr4::SMAP;
        state.cr4 = if input.below(8) == 0 {
            Cr4::empty()
        } else {
            wanted
        };
        state.cr4 |= possible & Cr4::from_bits_retain(input.u32().into());
        if !self.user && input.below(4) == 0 {
            state.cr4 |= protection & Cr4::from_bits_retain(input.u32().into());
        }
        state.cr4.set(Cr4::PSE, self.paging == Paging::TwoLevels);
        state.cr4.set(
            Cr4::PAE,
            matches!(self.paging, Paging::Pae | Paging::FourLevels),
        );
        state
            .cr4
            .set(Cr4::PCIDE, self.mode.is_ia32e() && input.below(4) == 0);
        if self.paging != Paging::None {
            state.cr3 = TABLES;
        }
        if self.paging == Paging::Pae {
            state.pdpte = [DIRECTORY | 1, 0, 0, 0];
        }
        state.efer = Efer::SCE;
        state.efer.set(Efer::NXE, input.flag());
        if self.mode.is_ia32e() {
            state.efer |= Efer::LME | Efer::LMA;
        }
        state.xcr0 = input.pick(&[
            Xcr0::X87 | Xcr0::SSE | Xcr0::AVX,
            Xcr0::X87 | Xcr0::SSE,
            Xcr0::X87,
        ]);
        if self.mode != Mode::Real {
            state.gdtr = DescriptorTable {
                base: GDT,
                limit: 17 * 8 - 1,
            };
            let entry_bytes = if self.mode.is_ia32e() { 16 } else { 8 };
            state.idtr = DescriptorTable {
                base: IDT,
                limit: 256 * entry_bytes - 1,
            };
        }
        let syscall = &mut state.syscall;
        syscall.star = u64::from(selector::CODE64) << 32 | u64::from(selector::USER_CODE32) << 48;
        (syscall.lstar, syscall.cstar) = (CODE, CODE);
        syscall.sysenter_cs = selector::CODE64.into();
        (syscall.sysenter_eip, syscall.sysenter_esp) = (CODE, STACK);
        syscall.kernel_gs_base = DATA;
    }

    fn segments(&self, state: &mut VcpuState) {
        let from_table = |selector: u16| {
            let at = GDT + u64::from(selector & !7);
            let descriptor = self.memory.load(at).unwrap_or(0);
            Segment::from_descriptor(Selector(selector), x86::Descriptor(descriptor))
        };
        let privileged = !self.user;
        let (cs, data) = match self.mode {
            Mode::Real => {
                self.flat_real(state, 0x93, 0x9b);
                return;
            }
            Mode::Virtual8086 => {
                self.flat_real(state, 0xf3, 0xf3);
                state.tr = from_table(selector::TASK);
                state.ldtr = from_table(selector::LOCAL);
                return;
            }
            Mode::Protected16 => (selector::CODE16, selector::DATA),
            Mode::Protected32 | Mode::Compatibility if privileged => {
                (selector::CODE32, selector::DATA)
            }
            Mode::Protected32 | Mode::Compatibility => (selector::USER_CODE32, selector::USER_DATA),
            Mode::Long if privileged => (selector::CODE64, selector::DATA),
            Mode::Long => (selector::USER_CODE64, selector::USER_DATA),
        };
        state.segments = [from_table(data); 6];
        state.segments[SegmentRegister::Cs as usize] = from_table(cs);
        state.tr = from_table(selector::TASK);
        state.ldtr = from_table(selector::LOCAL);
    }

    /// Segments as real mode and virtual-8086 mode have them.
    fn flat_real(&self, state: &mut VcpuState, data: u16, code: u16) {
        let selector = |address: u64| (address >> 4) as u16;
        state.segments = [Segment::real_mode(selector(DATA), data); 6];
        let [cs, ss] = [SegmentRegister::Cs, SegmentRegister::Ss].map(|register| register as usize);
        state.segments[cs] = Segment::real_mode(selector(CODE), code);
        state.segments[ss] = Segment::real_mode(selector(STACK - 0x1_0000), data);
    }

    fn flags(&self, input: &mut Input<'_>) -> Rflags {
        let possible = Rflags::STATUS
            | Rflags::IF
            | Rflags::DF
            | Rflags::IOPL
            | Rflags::NT
            | Rflags::AC
            | Rflags::ID;
        let mut flags = possible & Rflags::from_bits_retain(input.u32().into()) | Rflags::FIXED;
        if input.below(8) == 0 {
            flags |= (Rflags::TF | Rflags::RF) & Rflags::from_bits_retain(input.u32().into());
        }
        flags.set(Rflags::VM, self.mode == Mode::Virtual8086);
        flags
    }

    /// Registers point to where something is, more often than not.
    fn general_registers(&self, state: &mut VcpuState, input: &mut Input<'_>) {
        for register in &mut state.gpr {
            *register = match input.below(8) {
                0 => input.value(),
                1 => CODE + u64::from(input.u8()),
                2 => input.u8().into(),
                // Near the end of a page, of memory, of ROM.
                3 => DATA + 0x1000 - u64::from(input.u8() & 15),
                4 => MEMORY_END - u64::from(input.u8() & 15),
                5 => 0xf_1000 - u64::from(input.u8()),
                _ => DATA + u64::from(input.u16()),
            };
        }
        let sixteen_bits = matches!(self.mode, Mode::Real | Mode::Virtual8086);
        if input.below(8) != 0 {
            state.gpr[x86::Gpr::Rsp as usize] = if sixteen_bits { 0xff00 } else { STACK - 0x100 };
        }
        if !self.mode.is_ia32e() {
            for register in &mut state.gpr {
                *register &= 0xffff_ffff;
            }
        }
    }
}

/// Exceptions that push an error code (SDM vol. 3, table 7-1).
fn error_code_offset(vector: u8) -> u64 {
    match vector {
        8 | 10..=14 | 17 | 21 | 29 | 30 => WITH_ERROR_CODE,
        _ => 0,
    }
}
