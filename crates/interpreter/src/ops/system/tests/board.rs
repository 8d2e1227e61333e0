//! vCPUs with tables in memory, in the modes that tests begin in.

use crate::{Interpreter, InterpreterVcpu};
use clock::Clock;
use engine::{Access, DebugRequest, Engine, Exit, Platform, Setup, Space, Stop, Vcpu};
use memory::{GuestMemory, Kind, RegionSpec};
use std::sync::{Arc, Mutex};
use x86::cpuid::FeatureSet;
use x86::{Cr0, Cr4, Descriptor, DescriptorTable, Efer, Rflags, Segment, Selector, VcpuState};

/// Where things are, linear and physical.
pub(super) const GDT: u64 = 0x1000;
pub(super) const IDT: u64 = 0x2000;
pub(super) const TSS: u64 = 0x3000;
pub(super) const KERNEL_STACK: u64 = 0x5000;
/// Handler of vector n: 16 bytes each, all NOP.
pub(super) const HANDLERS: u64 = 0x6000;
pub(super) const CODE: u64 = 0x8000;
pub(super) const DATA: u64 = 0x9000;
pub(super) const STACK: u64 = 0xb000;
/// Page tables: PML4, PDPT, PD, and a table for the first 2 MiB.
pub(super) const TABLES: u64 = 0x10000;
pub(super) const PAGE_TABLE: u64 = TABLES + 0x3000;
const MEMORY: u64 = 4 << 20;

/// Selectors of the GDT.
pub(super) const CODE0: u16 = 0x08;
pub(super) const DATA0: u16 = 0x10;
pub(super) const CODE3: u16 = 0x1b;
pub(super) const DATA3: u16 = 0x23;
pub(super) const TSS_SELECTOR: u16 = 0x28;
/// The first free entry.
pub(super) const FREE: u16 = 0x40;

/// Access bytes of descriptors.
pub(super) const TYPE_CODE: u64 = 0x9b;
pub(super) const TYPE_DATA: u64 = 0x93;
const DPL3: u64 = 0x60;
const FLAT32: u64 = 0x00cf_0000_0000_ffff;
const FLAT64: u64 = 0x00af_0000_0000_ffff;

pub(super) const fn flat32(kind: u64) -> u64 {
    FLAT32 | kind << 40
}

/// A machine that answers port reads with the port's number and notes writes.
#[derive(Default)]
pub(super) struct Ports {
    pub(super) writes: Mutex<Vec<(u16, u64)>>,
    pub(super) ended: Mutex<Vec<u8>>,
}

impl Platform for Ports {
    fn access(&self, access: Access) -> u64 {
        let mask = u64::MAX >> (64 - 8 * u32::from(access.bytes));
        match (access.space, access.write) {
            (Space::Port, None) => access.address & mask,
            (Space::Port, Some(value)) => {
                self.writes
                    .lock()
                    .unwrap()
                    .push((access.address as u16, value));
                0
            }
            (Space::Memory, _) => mask,
        }
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.ended.lock().unwrap().push(vector);
    }

    fn acknowledge_external(&self) -> u8 {
        0x55
    }
}

pub(super) struct Board {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) clock: Clock,
    pub(super) engine: Arc<Interpreter>,
    pub(super) vcpus: Vec<InterpreterVcpu>,
    pub(super) ports: Arc<Ports>,
}

impl Board {
    pub(super) fn with(vcpus: u32, clock: Clock) -> Self {
        Self::with_memory(vcpus, clock, MEMORY)
    }

    /// With `bytes` of memory.
    pub(super) fn with_memory(vcpus: u32, clock: Clock, bytes: u64) -> Self {
        Self::made(vcpus, clock, bytes, crate::cpuid::features())
    }

    /// One vCPU that has only these features.
    pub(super) fn with_features(features: FeatureSet) -> Self {
        Self::made(1, Clock::manual(), MEMORY, features)
    }

    fn made(vcpus: u32, clock: Clock, bytes: u64, features: FeatureSet) -> Self {
        let region = RegionSpec {
            gpa: 0,
            len: bytes,
            kind: Kind::Ram,
        };
        let memory = GuestMemory::new(&[region]).unwrap();
        let setup = Setup {
            memory: memory.clone(),
            clock: clock.clone(),
            cpuid: (0..vcpus)
                .map(|i| crate::cpuid::table_with(i, vcpus, 1_000_000, features))
                .collect(),
            tsc_khz: 1_000_000,
            tracer: None,
        };
        let (engine, vcpus) = Interpreter::create_vcpus(&setup).unwrap();
        let board = Self {
            memory,
            clock,
            engine,
            vcpus,
            ports: Arc::default(),
        };
        board.memory.write(HANDLERS, &[0x90; 0x1000]).unwrap();
        board
    }

    /// One vCPU with a clock that only tests move.
    pub(super) fn new() -> Self {
        Self::with(1, Clock::manual())
    }

    pub(super) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.memory.write(gpa, bytes).unwrap();
    }

    pub(super) fn set(&self, gpa: u64, value: u64) {
        self.memory.store(gpa, value).unwrap();
    }

    pub(super) fn word(&self, gpa: u64) -> u64 {
        self.memory.load(gpa).unwrap()
    }

    pub(super) fn double(&self, gpa: u64) -> u32 {
        self.memory.load(gpa).unwrap()
    }

    pub(super) fn set_descriptor(&self, selector: u16, descriptor: u64) {
        self.set(GDT + u64::from(selector & !7), descriptor);
    }

    pub(super) fn state(&self) -> VcpuState {
        self.vcpus[0].state()
    }

    pub(super) fn set_state(&mut self, state: &VcpuState) {
        self.vcpus[0].set_state(state).unwrap();
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut VcpuState)) {
        let mut state = self.state();
        change(&mut state);
        self.set_state(&state);
    }

    /// Puts `code` at [`CODE`].
    pub(super) fn code(&mut self, code: &[u8]) -> &mut Self {
        self.write(CODE, code);
        self
    }

    pub(super) fn run(&mut self) -> Exit {
        let platform: Arc<dyn Platform> = self.ports.clone();
        self.vcpus[0].run(&platform)
    }

    /// Runs to a breakpoint at one of `addresses`, linear.
    #[track_caller]
    pub(super) fn run_to(&mut self, addresses: &[u64]) -> VcpuState {
        self.vcpus[0].set_debug(&DebugRequest {
            breakpoints: addresses.to_vec(),
            ..DebugRequest::default()
        });
        let exit = self.run();
        assert_eq!(exit, Exit::Debug(Stop::Breakpoint));
        self.vcpus[0].set_debug(&DebugRequest::default());
        self.state()
    }

    /// Runs until a handler is entered. Returns its vector and the state there.
    #[track_caller]
    pub(super) fn run_to_handler(&mut self) -> (u8, VcpuState) {
        let all: Vec<u64> = (0..256).map(|v| HANDLERS + 16 * v).collect();
        let state = self.run_to(&all);
        (((state.rip - HANDLERS) / 16) as u8, state)
    }

    /// Executes one instruction.
    #[track_caller]
    pub(super) fn step(&mut self) -> VcpuState {
        self.vcpus[0].set_debug(&DebugRequest {
            single_step: true,
            ..DebugRequest::default()
        });
        assert_eq!(self.run(), Exit::Debug(Stop::Step));
        self.vcpus[0].set_debug(&DebugRequest::default());
        self.state()
    }

    /// Runs `code` at [`CODE`] to a handler: vector, error code on its stack.
    #[track_caller]
    pub(super) fn fault(&mut self, code: &[u8]) -> (u8, u64) {
        self.code(code);
        self.change(|s| s.rip = CODE);
        let (vector, state) = self.run_to_handler();
        let top = self.word(state.gpr[4]);
        let wide = state.efer.contains(Efer::LMA);
        (vector, if wide { top } else { top & 0xffff_ffff })
    }

    fn tables(&self, gate_kind: u64, size: u64) {
        for vector in 0..256 {
            let offset = HANDLERS + 16 * vector;
            let gate = offset & 0xffff | u64::from(CODE0) << 16 | gate_kind << 40;
            self.set(IDT + size * vector, gate);
        }
    }

    fn load(&mut self, segments: [Segment; 6], tss: Segment, cpl3: bool) {
        self.change(|s| {
            s.segments = segments;
            s.tr = tss;
            s.ldtr = Segment {
                unusable: true,
                ..Segment::default()
            };
            s.gdtr = DescriptorTable {
                base: GDT,
                limit: 0xfff,
            };
            s.idtr = DescriptorTable {
                base: IDT,
                limit: 0xfff,
            };
            s.rip = CODE;
            s.gpr[4] = STACK;
            s.rflags = Rflags::FIXED;
            if cpl3 {
                s.rflags |= Rflags::IF;
            }
        });
    }

    fn segment(&self, selector: u16) -> Segment {
        let descriptor = Descriptor(self.word(GDT + u64::from(selector & !7)));
        Segment::from_descriptor(Selector(selector), descriptor)
    }

    /// 32-bit protected mode without paging; gates are of DPL 0.
    pub(super) fn protected(cpl: u8) -> Self {
        let mut board = Self::new();
        board.set_descriptor(CODE0, flat32(TYPE_CODE));
        board.set_descriptor(DATA0, flat32(TYPE_DATA));
        board.set_descriptor(CODE3, flat32(TYPE_CODE | DPL3));
        board.set_descriptor(DATA3, flat32(TYPE_DATA | DPL3));
        board.set_descriptor(TSS_SELECTOR, 0x0000_8b00_0000_0067 | TSS << 16);
        board.set(TSS + 4, KERNEL_STACK | u64::from(DATA0) << 32);
        board.tables(0x8e, 8);
        board.change(|s| s.cr0 = Cr0::PE | Cr0::ET);
        let (code, data) = if cpl == 3 {
            (CODE3, DATA3)
        } else {
            (CODE0, DATA0)
        };
        let mut segments = [board.segment(data); 6];
        segments[1] = board.segment(code);
        let tss = board.segment(TSS_SELECTOR);
        board.load(segments, tss, cpl == 3);
        board
    }

    /// 64-bit mode. The first 2 MiB are mapped by 4 KiB pages, to themselves, for everybody.
    pub(super) fn long(cpl: u8) -> Self {
        Self::new().in_long_mode(cpl)
    }

    /// Its first vCPU in 64-bit mode, as [`Board::long`] says.
    pub(super) fn in_long_mode(self, cpl: u8) -> Self {
        let mut board = self;
        board.set_descriptor(CODE0, FLAT64 | TYPE_CODE << 40);
        board.set_descriptor(DATA0, flat32(TYPE_DATA));
        board.set_descriptor(CODE3, FLAT64 | (TYPE_CODE | DPL3) << 40);
        board.set_descriptor(DATA3, flat32(TYPE_DATA | DPL3));
        board.set_descriptor(TSS_SELECTOR, 0x0000_8b00_0000_0067 | TSS << 16);
        board.set(TSS + 4, KERNEL_STACK);
        board.tables(0x8e, 16);
        for level in 0..3 {
            let table = TABLES + 0x1000 * level;
            board.set(table, (table + 0x1000) | 7);
        }
        for page in 0..512 {
            board.set(PAGE_TABLE + 8 * page, page << 12 | 7);
        }
        board.change(|s| {
            s.cr0 = Cr0::PE | Cr0::PG | Cr0::WP | Cr0::ET;
            s.cr3 = TABLES;
            s.cr4 = Cr4::PAE;
            s.efer = Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE;
            s.tr.access = 0x8b;
        });
        let (code, data) = if cpl == 3 {
            (CODE3, DATA3)
        } else {
            (CODE0, DATA0)
        };
        let mut segments = [board.segment(data); 6];
        segments[1] = board.segment(code);
        let tss = board.segment(TSS_SELECTOR);
        board.load(segments, tss, cpl == 3);
        board
    }

    /// Real mode: all segments at 0, the interrupt vector table points to the handlers.
    pub(super) fn real() -> Self {
        let mut board = Self::new();
        for vector in 0..256u64 {
            board
                .memory
                .store(4 * vector, (HANDLERS + 16 * vector) as u32)
                .unwrap();
        }
        board.change(|s| {
            s.segments = [Segment::real_mode(0, 0x93); 6];
            s.segments[1] = Segment::real_mode(0, 0x9b);
            s.idtr = DescriptorTable {
                base: 0,
                limit: 0x3ff,
            };
            s.rip = CODE;
            s.gpr[4] = STACK;
        });
        board
    }

    /// Sets bits of a gate's high half: DPL, IST.
    pub(super) fn set_gate(&self, vector: u64, change: impl FnOnce(u64) -> u64) {
        let wide = self.state().efer.contains(Efer::LMA);
        let at = IDT + vector * if wide { 16 } else { 8 };
        self.set(at, change(self.word(at)));
    }

    pub(super) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }
}
