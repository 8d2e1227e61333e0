//! A machine without firmware, descriptor tables or devices, in 64-bit mode. A program ends by a
//! write to [`END_PORT`]; an exception ends it too, since nothing handles it.

use clock::Clock;
use engine::{Access, Engine, Exit, Platform, Setup, Space, Vcpu};
use memory::{GuestMemory, Kind, RegionSpec};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use translator::{Options, Translator};
use x86::{Activity, Cr0, Cr4, Efer, Rflags, Segment, SegmentRegister, Selector, VcpuState, Xcr0};

/// A write to this port ends the program, with the byte as its result.
const END_PORT: u64 = 0xf4;
pub(crate) const PAGE: u64 = 0x1000;
const MEMORY_BYTES: u64 = 4 << 20;
/// Page tables grow from here on.
const TABLES: u64 = 0x1000;
const TABLES_END: u64 = 0x10_0000;
/// Memory as a whole, for CPL 0.
pub(crate) const KERNEL: u64 = 0xffff_8000_0000_0000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;
pub(crate) const GLOBAL: u64 = 1 << 8;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With this result.
    Result(u8),
    /// By an exception.
    Exception,
}

/// Ends programs.
struct Port {
    engine: OnceLock<Weak<dyn Engine>>,
    vcpus: usize,
    /// The result, or [`NONE`].
    result: AtomicU32,
}

const NONE: u32 = u32::MAX;

impl Platform for Port {
    fn access(&self, access: Access) -> u64 {
        let Some(value) = access.write else {
            return u64::MAX;
        };
        if access.space == Space::Port && access.address == END_PORT {
            // The first one tells, if there are more.
            let result = value as u32 & 0xff;
            let _ = self
                .result
                .compare_exchange(NONE, result, Ordering::AcqRel, Ordering::Acquire);
            let engine = self.engine.get().and_then(Weak::upgrade);
            let engine = engine.expect("an engine that runs");
            (0..self.vcpus).for_each(|index| engine.kick(index));
        }
        0
    }

    fn end_of_interrupt(&self, _: u8) {}

    fn acknowledge_external(&self) -> u8 {
        0
    }
}

/// The machine.
pub(crate) struct Guest {
    memory: Arc<GuestMemory>,
    pub(crate) clock: Clock,
    pub(crate) engine: Arc<Translator>,
    pub(crate) vcpus: Vec<Box<dyn Vcpu>>,
    port: Arc<Port>,
    next_table: u64,
}

impl Guest {
    /// With the clock that machines have, which runs. Memory is mapped at [`KERNEL`], in an
    /// address space that can be told by the return value of [`Guest::space`], the first.
    pub(crate) fn new(vcpus: u32) -> Self {
        Self::with(vcpus, &Options::default())
    }

    /// As [`Guest::new`], with one vCPU of which every block is held against the interpreter.
    pub(crate) fn in_lock_step() -> Self {
        let options = Options {
            lockstep: Some(NonZeroU32::MIN),
            ..Options::default()
        };
        Self::with(1, &options)
    }

    /// As [`Guest::new`].
    pub(crate) fn with(vcpus: u32, options: &Options) -> Self {
        let memory = GuestMemory::new(&[RegionSpec {
            gpa: 0,
            len: MEMORY_BYTES,
            kind: Kind::Ram,
        }])
        .expect("memory");
        let clock = Clock::following_tsc(native::time_stamp, 1 << 40);
        clock.resume();
        let setup = Setup {
            memory: memory.clone(),
            clock: clock.clone(),
            cpuid: (0..vcpus)
                .map(|index| interpreter::cpuid::table(index, vcpus, 1_000_000))
                .collect(),
            tsc_khz: 1_000_000,
            tracer: None,
        };
        let (engine, vcpus) = Translator::create(&setup, options).expect("a translator");
        let port = Arc::new(Port {
            engine: OnceLock::new(),
            vcpus: vcpus.len(),
            result: AtomicU32::new(NONE),
        });
        let weak: Weak<dyn Engine> = Arc::downgrade(&(engine.clone() as Arc<dyn Engine>));
        assert!(port.engine.set(weak).is_ok(), "it is set once");
        Self {
            memory,
            clock,
            engine,
            vcpus,
            port,
            next_table: TABLES,
        }
    }

    /// A new address space: the value for CR3. It has all memory at [`KERNEL`].
    pub(crate) fn space(&mut self) -> u64 {
        let root = self.table();
        for gpa in (0..MEMORY_BYTES).step_by(PAGE as usize) {
            self.map(root, KERNEL + gpa, gpa, GLOBAL);
        }
        root
    }

    fn table(&mut self) -> u64 {
        let table = self.next_table;
        self.next_table += PAGE;
        assert!(self.next_table <= TABLES_END, "there is room for tables");
        table
    }

    /// Maps a page, writable. Returns the guest-physical address of the entry, and what it holds.
    pub(crate) fn map(&mut self, space: u64, linear: u64, gpa: u64, flags: u64) -> (u64, u64) {
        let mut table = space;
        for level in (0..4).rev() {
            let at = table + 8 * (linear >> (12 + 9 * level) & 0x1ff);
            if level == 0 {
                let entry = gpa | PRESENT | WRITABLE | flags;
                self.write(at, &entry.to_le_bytes());
                return (at, entry);
            }
            let mut entry = [0; 8];
            self.memory.read(at, &mut entry).expect("a table");
            table = u64::from_le_bytes(entry) & !0xfff;
            if table == 0 {
                table = self.table();
                let entry = table | PRESENT | WRITABLE | USER;
                self.write(at, &entry.to_le_bytes());
            }
        }
        unreachable!("level 0 ends the walk")
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.memory.write(gpa, bytes).expect("memory");
    }

    /// The 8 bytes at `gpa`.
    pub(crate) fn read(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(gpa, &mut bytes).expect("memory");
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn state(&self, index: usize) -> VcpuState {
        self.vcpus[index].state()
    }

    /// Brings a vCPU to `rip` in an address space, at this privilege level.
    pub(crate) fn start(&mut self, index: usize, space: u64, cpl: u8, rip: u64) {
        let mut state = VcpuState::after_reset(index as u32);
        let (code, data) = if cpl == 0 { (0x08, 0x10) } else { (0x2b, 0x23) };
        let dpl = u16::from(cpl) << 5;
        let segment = |selector: u16, access: u16| Segment {
            selector: Selector(selector),
            limit: u32::MAX,
            access: access | dpl,
            ..Segment::default()
        };
        state.segments = [segment(data, 0xc093); 6];
        state.segments[SegmentRegister::Cs as usize] = segment(code, 0xa09b);
        state.ldtr = Segment {
            unusable: true,
            ..Segment::default()
        };
        state.cr0 = Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::MP | Cr0::WP;
        state.cr4 = Cr4::PAE | Cr4::PGE | Cr4::OSFXSR | Cr4::OSXSAVE;
        state.cr3 = space;
        state.xcr0 = Xcr0::X87 | Xcr0::SSE | Xcr0::AVX;
        state.efer = Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE;
        state.syscall.star = 0x08 << 32 | 0x1b << 48;
        // IOPL 3, so that each level may end the program.
        state.rflags = Rflags::FIXED | Rflags::from_bits_retain(3 << 12);
        state.rip = rip;
        state.activity = Activity::Running;
        self.set(index, &state);
    }

    /// Changes the state of a vCPU.
    pub(crate) fn change(&mut self, index: usize, change: impl FnOnce(&mut VcpuState)) {
        let mut state = self.state(index);
        change(&mut state);
        self.set(index, &state);
    }

    fn set(&mut self, index: usize, state: &VcpuState) {
        self.vcpus[index]
            .set_state(state)
            .expect("a possible state");
    }

    /// Runs all vCPUs until one ends the program.
    pub(crate) fn run(&mut self) -> End {
        self.port.result.store(NONE, Ordering::Release);
        let platform: Arc<dyn Platform> = self.port.clone();
        let exits: Vec<Exit> = std::thread::scope(|scope| {
            let platform = &platform;
            let threads: Vec<_> = self
                .vcpus
                .iter_mut()
                .map(|vcpu| scope.spawn(|| vcpu.run(platform)))
                .collect();
            let ends = threads.into_iter().map(|t| t.join().expect("no panic"));
            ends.collect()
        });
        for exit in exits {
            match exit {
                Exit::Kicked => {}
                Exit::Shutdown(_) => return End::Exception,
                other => panic!("{other:?}"),
            }
        }
        End::Result(self.port.result.load(Ordering::Acquire) as u8)
    }

    /// What a vCPU has counted under this name, which begins with its group.
    pub(crate) fn count(&self, index: usize, name: &str) -> u64 {
        let all = self.vcpus[index].statistics();
        let found = all
            .iter()
            .find(|s| format!("{}: {}", s.group, s.name) == name);
        found.expect("there is such a number").value
    }
}
