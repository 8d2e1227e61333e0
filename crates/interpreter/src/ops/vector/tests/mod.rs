//! Tests of one instruction at a time on a vCPU of their own.

mod exceptions;
mod host;
mod random;
mod x87;
mod xsave;

use crate::cpu::Cpu;
use crate::decode::Purpose;
use crate::int::PC;
use crate::mailbox::Mailbox;
use crate::paging::PHYSICAL_BITS;
use crate::shared::Shared;
use lapic::Lapic;
use memory::{GuestMemory, Kind, RegionSpec};
use native::oracle::Layout;
use std::sync::Arc;
use x86::{Cr0, Cr4, Efer, Exception, Rflags, Segment, Selector, Vector, Xcr0, cpuid::Table};

/// Where the page tables and the pages they map are in guest-physical memory.
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x10000;
const DATA: [u64; 2] = [0x11000, 0x12000];
const MEMORY_BYTES: u64 = 0x20000;

/// How the instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// 64-bit code at CPL 3. Three pages are mapped, where the oracle has them.
    User64,
    /// 64-bit code at CPL 0, with the same pages.
    Kernel64,
    /// 32-bit code at CPL 0 without paging.
    Protected32,
    /// Real mode; all segments begin at 0.
    Real,
}

/// A vCPU with a little memory.
struct Bench {
    cpu: Cpu,
    /// Where instructions are, as linear address.
    code: u64,
    /// Where the data pages are; they are adjacent.
    data: u64,
}

impl Bench {
    fn new(mode: Mode) -> Self {
        let region = RegionSpec {
            gpa: 0,
            len: MEMORY_BYTES,
            kind: Kind::Ram,
        };
        let setup = engine::Setup {
            memory: GuestMemory::new(&[region]).expect("memory"),
            clock: clock::Clock::manual(),
            cpuid: vec![Table::new()],
            tsc_khz: 1_000_000,
            tracer: None,
        };
        let lapic = Lapic::new(0, PHYSICAL_BITS);
        let native = native::Native::shared().expect("executable memory");
        let mailbox = Arc::new(Mailbox::new(lapic.inbox().clone()));
        let shared = Arc::new(Shared::new(&setup, native, [mailbox].into()));
        let mut cpu = Cpu::new(&setup, shared, lapic, 0);
        cpu.cr4 = Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
        cpu.xcr0 = Xcr0::X87 | Xcr0::SSE | Xcr0::AVX;
        cpu.fpu.state.fpu = native::Fpu::init();
        let layout = Layout::default();
        let mut bench = Self {
            cpu,
            code: CODE,
            data: DATA[0],
        };
        match mode {
            Mode::User64 => bench.enter_long_mode(layout, 3),
            Mode::Kernel64 => bench.enter_long_mode(layout, 0),
            Mode::Protected32 => {
                bench.cpu.cr0 = Cr0::PE | Cr0::ET | Cr0::NE | Cr0::MP;
                bench.set_segments(0xc093, 0xc09b);
            }
            Mode::Real => {
                bench.cpu.cr0 = Cr0::ET | Cr0::NE | Cr0::MP;
                bench.set_segments(0x93, 0x9b);
                bench.code = 0x1000;
                bench.data = 0x2000;
            }
        }
        bench
    }

    fn enter_long_mode(&mut self, layout: Layout, cpl: u8) {
        let present = 7;
        let index = |linear: u64, level: u32| linear >> (12 + 9 * level) & 0x1ff;
        let table = |level: u32| TABLES + u64::from(3 - level) * 0x1000;
        for level in (1..=3).rev() {
            let entry = table(level) + 8 * index(layout.code, level);
            self.store(entry, &(table(level - 1) | present).to_le_bytes());
        }
        for (linear, gpa) in [
            (layout.code, CODE),
            (layout.data[0], DATA[0]),
            (layout.data[1], DATA[1]),
        ] {
            let entry = table(0) + 8 * index(linear, 0);
            self.store(entry, &(gpa | present).to_le_bytes());
        }
        self.cpu.cr0 = Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::MP | Cr0::WP;
        self.cpu.cr3 = TABLES;
        self.cpu.cr4 |= Cr4::PAE;
        self.cpu.efer = Efer::LME | Efer::LMA;
        self.cpu.cpl = cpl;
        self.code = layout.code + u64::from(layout.offset);
        self.data = layout.data[0];
        self.set_segments(0xc093, 0xa09b);
    }

    fn set_segments(&mut self, data: u16, code: u16) {
        let big = data & 0x8000 != 0;
        let segment = |selector, access| Segment {
            selector: Selector(selector),
            base: 0,
            limit: if big { u32::MAX } else { 0xffff },
            access,
            unusable: false,
        };
        self.cpu.segments = [segment(0x18, data); 6];
        self.cpu.segments[1] = segment(0x10, code);
        self.cpu.tlb.flush();
        self.cpu.segments_changed();
    }

    /// Where in guest memory `linear` is.
    fn place(&self, linear: u64) -> u64 {
        self.cpu.peek(linear).expect("a mapped address")
    }

    fn store(&self, gpa: u64, bytes: &[u8]) {
        self.cpu.memory.write(gpa, bytes).expect("memory");
    }

    /// Stores to the data pages, `offset` from their start.
    fn set_data(&self, offset: u64, bytes: &[u8]) {
        self.store(self.place(self.data) + offset, bytes);
    }

    /// Loads from the data pages.
    fn data<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let gpa = self.place(self.data) + offset;
        self.cpu.memory.read(gpa, &mut bytes).expect("memory");
        bytes
    }

    /// Executes the one instruction `code`.
    fn run(&mut self, code: &[u8]) -> Result<(), Exception> {
        self.store(self.place(self.code), code);
        let cpu = &mut self.cpu;
        cpu.rip = self.code;
        cpu.exception = None;
        let raised = cpu.decode(self.code, Purpose::Once).and_then(|decoded| {
            cpu.gpr[usize::from(PC)] = self.code;
            assert_eq!(
                decoded.ops.len(),
                2,
                "an instruction and what ends its block"
            );
            decoded.ops.iter().try_for_each(|op| (op.run)(cpu, op))
        });
        match raised {
            Ok(()) => {
                assert_eq!(cpu.rip, self.code + code.len() as u64);
                Ok(())
            }
            Err(_) => Err(cpu.exception.take().expect("the exception was recorded")),
        }
    }

    /// The vector of the exception that `code` raises.
    fn raised(&mut self, code: &[u8]) -> Option<Vector> {
        self.run(code).err().map(|exception| exception.vector)
    }

    fn set_status(&mut self, flags: u64) {
        self.cpu.flags.set_status(Rflags::from_bits_retain(flags));
    }
}
