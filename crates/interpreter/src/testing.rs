//! Tests of one instruction at a time: a vCPU with a little memory, and random operands.

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
use x86::cpuid::Table;
use x86::{Cr0, Cr4, Efer, Exception, Rflags, Segment, Selector, Vector, Xcr0};

/// Where the page tables and the pages they map are in guest-physical memory.
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x10000;
const DATA: [u64; 2] = [0x11000, 0x12000];
const MEMORY_BYTES: u64 = 0x20000;
/// Bits of page-table entries: present, writable, user.
const READABLE: u64 = 0b101;
const WRITABLE: u64 = 0b111;
/// INT3, which the code page is full of, as the oracle's is.
const INT3: u8 = 0xcc;

/// How instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 64-bit code at CPL 3. Three pages are mapped, where the oracle has them.
    User64,
    /// 64-bit code at CPL 0, with the same pages.
    Kernel64,
    /// 32-bit code at CPL 0, without paging.
    Protected32,
    /// 16-bit code in real mode; all segments begin at 0.
    Real,
}

/// A vCPU with a little memory.
pub(crate) struct Bench {
    pub(crate) cpu: Cpu,
    /// Where the instruction is.
    pub(crate) code: u64,
    /// Where the data is, two pages.
    pub(crate) data: u64,
}

impl Bench {
    pub(crate) fn new(mode: Mode) -> Self {
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
        let mut bench = Self {
            cpu: Cpu::new(&setup, shared, lapic, 0),
            code: CODE,
            data: DATA[0],
        };
        bench.cpu.model.features = crate::cpuid::features();
        bench.store(CODE, &[INT3; 4096]);
        match mode {
            Mode::User64 => {
                bench.enter_long_mode(Layout::default(), 3);
                bench.set_segments(0xa0fb, 0xc0f3, u32::MAX);
            }
            Mode::Kernel64 => {
                bench.enter_long_mode(Layout::default(), 0);
                bench.set_segments(0xa09b, 0xc093, u32::MAX);
            }
            Mode::Protected32 => {
                bench.cpu.cr0 = Cr0::PE | Cr0::ET;
                bench.set_segments(0xc09b, 0xc093, u32::MAX);
            }
            Mode::Real => {
                (bench.code, bench.data) = (0x1000, 0x2000);
                bench.set_segments(0x9b, 0x93, 0xffff);
            }
        }
        bench
    }

    /// As [`Bench::new`], with x87, SSE and AVX enabled and the x87 FPU as FNINIT leaves it.
    pub(crate) fn with_vectors(mode: Mode) -> Self {
        let mut bench = Self::new(mode);
        let cpu = &mut bench.cpu;
        cpu.cr0 |= Cr0::NE | Cr0::MP;
        cpu.cr4 |= Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
        cpu.xcr0 = Xcr0::X87 | Xcr0::SSE | Xcr0::AVX;
        cpu.fpu.state.fpu = native::Fpu::init();
        bench
    }

    /// Follows the rules of the host's vendor; [`Bench::new`] follows Intel's.
    pub(crate) fn follow_host(&mut self) {
        self.cpu.model.vendor = native::host_vendor();
    }

    fn enter_long_mode(&mut self, layout: Layout, cpl: u8) {
        let index = |linear: u64, level: u32| linear >> (12 + 9 * level) & 0x1ff;
        let table = |level: u32| TABLES + u64::from(3 - level) * 0x1000;
        for level in 1..=3 {
            let entry = table(level) + 8 * index(layout.code, level);
            self.store(entry, &(table(level - 1) | WRITABLE).to_le_bytes());
        }
        for (linear, page) in [
            (layout.code, CODE | READABLE),
            (layout.data[0], DATA[0] | WRITABLE),
            (layout.data[1], DATA[1] | WRITABLE),
        ] {
            self.store(table(0) + 8 * index(linear, 0), &page.to_le_bytes());
        }
        let cpu = &mut self.cpu;
        cpu.cr0 = Cr0::PE | Cr0::PG | Cr0::ET | Cr0::WP;
        cpu.cr3 = TABLES;
        cpu.cr4 = Cr4::PAE;
        cpu.efer = Efer::LME | Efer::LMA;
        cpu.cpl = cpl;
        self.code = layout.code + u64::from(layout.offset);
        self.data = layout.data[0];
    }

    /// Loads CS with the access rights `code` and the other segment registers with `data`. Each
    /// selector's RPL is its segment's DPL; in real mode, selectors are 0 as the bases are.
    fn set_segments(&mut self, code: u16, data: u16, limit: u32) {
        let protected = self.cpu.cr0.contains(Cr0::PE);
        let segment = |index: u16, access: u16| Segment {
            selector: Selector(if protected {
                index << 3 | access >> 5 & 3
            } else {
                0
            }),
            base: 0,
            limit,
            access,
            unusable: false,
        };
        self.cpu.segments = [segment(3, data); 6];
        self.cpu.segments[1] = segment(2, code);
        self.cpu.tlb.flush();
        self.cpu.segments_changed();
    }

    /// The guest-physical address of `linear`, which is mapped.
    fn physical(&self, linear: u64) -> u64 {
        self.cpu.peek(linear).expect("a mapped address")
    }

    fn store(&self, gpa: u64, bytes: &[u8]) {
        self.cpu.memory.write(gpa, bytes).expect("memory");
    }

    /// Stores to the data pages, `offset` from their start.
    pub(crate) fn set_data(&self, offset: u64, bytes: &[u8]) {
        self.store(self.physical(self.data) + offset, bytes);
    }

    /// Loads from the data pages, `offset` from their start.
    pub(crate) fn data<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let gpa = self.physical(self.data) + offset;
        self.cpu.memory.read(gpa, &mut bytes).expect("memory");
        bytes
    }

    /// Loads a word from the data pages.
    pub(crate) fn word(&self, offset: u64) -> u64 {
        u64::from_le_bytes(self.data(offset))
    }

    /// Executes the one instruction `bytes`. On an error, [`Cpu::rip`] is that of the instruction.
    pub(crate) fn run(&mut self, bytes: &[u8]) -> Result<(), Exception> {
        let code = self.physical(self.code);
        self.store(code, bytes);
        let cpu = &mut self.cpu;
        cpu.rip = self.code;
        cpu.exception = None;
        let raised = cpu.decode(self.code, Purpose::Once).and_then(|decoded| {
            cpu.gpr[usize::from(PC)] = self.code;
            assert!(
                decoded.ops.len() <= 2,
                "an instruction and what ends its block"
            );
            decoded.ops.iter().try_for_each(|op| (op.run)(cpu, op))
        });
        let result = raised.map_err(|_| {
            cpu.rip = self.code;
            cpu.exception.take().expect("the exception was recorded")
        });
        self.store(code, &[INT3; 16][..bytes.len()]);
        result
    }

    /// The vector of the exception that the instruction `bytes` raises.
    ///
    /// # Panics
    ///
    /// If it raises none and [`Cpu::rip`] is then not that of the instruction after it.
    pub(crate) fn raised(&mut self, bytes: &[u8]) -> Option<Vector> {
        let result = self.run(bytes);
        if result.is_ok() {
            assert_eq!(self.cpu.rip, self.code + bytes.len() as u64);
        }
        result.err().map(|exception| exception.vector)
    }

    /// Sets the status flags and DF.
    pub(crate) fn set_flags(&mut self, flags: u64) {
        self.cpu
            .flags
            .set(Rflags::from_bits_retain(flags) | Rflags::FIXED);
    }
}

/// Pseudo-random numbers, the same in each run: xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 32) % n
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    /// An integer operand: small, near a power of two, sparse or dense.
    pub(crate) fn operand(&mut self) -> u64 {
        let near = self.below(3).wrapping_sub(1);
        let value = match self.below(6) {
            0 => self.below(4).wrapping_sub(1),
            1 => (1u64 << self.below(64)).wrapping_add(near),
            2 => (self.next() & self.next() & self.next()) >> self.below(64),
            3 => self.next() >> self.below(64),
            _ => self.next(),
        };
        if self.one_in(4) { !value } else { value }
    }
}
