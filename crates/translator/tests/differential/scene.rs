//! What a program finds: memory behind its windows, page tables, registers.

use crate::handlers::{Handlers, handlers};
use crate::layout::*;
use crate::random::Random;
use crate::tables::{ACCESSED, DIRTY, GLOBAL, NO_EXECUTE, PRESENT, Tables, USER, WRITABLE};
use std::sync::OnceLock;
use x86::{
    Cr0, Cr4, Descriptor, DescriptorTable, Efer, Rflags, Segment, Selector, VcpuState, Xcr0,
};

/// A page of a window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    /// What is behind it: memory, or a device.
    pub(crate) gpa: u64,
    /// Bits of the page-table entry.
    pub(crate) flags: u64,
}

/// Linear addresses that a program uses for data.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    pub(crate) linear: u64,
    pub(crate) pages: Vec<Page>,
}

/// What a program finds.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    pub(crate) mode: Mode,
    pub(crate) windows: Vec<Window>,
    /// 2 MiB that begin with the upper region, for CPL 0.
    pub(crate) large: Option<u64>,
    code: Vec<u64>,
    stack: Vec<u64>,
    /// Of memory behind windows, code and stack.
    contents: Vec<u8>,
    pub(crate) gpr: [u64; 16],
    pub(crate) fs_base: u64,
    pub(crate) gs_base: u64,
    fpu: x86::FpuState,
    pub(crate) cr0: Cr0,
    pub(crate) cr4: Cr4,
    /// The flags that SYSCALL clears.
    pub(crate) syscall_mask: u64,
    /// Whether exceptions at CPL 0 change the stack.
    pub(crate) own_fault_stack: bool,
    /// Whether the program runs with IF set.
    pub(crate) interruptible: bool,
}

/// Linear address and number of pages of the windows.
const WINDOWS64: [(u64, u64); 7] = [
    (0, 3),
    (0x40_0000, 12),
    (0x7fff_ffff_d000, 3),
    (0xffff_8000_0000_0000, 3),
    (0xffff_c900_0012_3000, 6),
    (0xffff_ffff_8200_0000, 12),
    (0xffff_ffff_ffff_d000, 3),
];
const WINDOWS32: [(u64, u64); 5] = [
    (0, 3),
    (0x40_0000, 12),
    (0x7fff_d000, 6),
    (0xd012_3000, 6),
    (0xffff_d000, 3),
];
/// Flags that SYSCALL clears, TF always: what is least, what was here from the beginning, what
/// Linux clears, and some of the arithmetic ones.
const SYSCALL_MASKS: [u64; 4] = [0x4_0300, 0x4_4700, 0x25_7fd5, 0x4_4741];
/// Where [`Scene::large`] is.
const LARGE: u64 = 0xffff_8880_0020_0000;

impl Scene {
    /// A random scene for programs of `mode`.
    pub(crate) fn random(mode: Mode, random: &mut Random) -> Self {
        let mut frames: Vec<u64> = (0..PROGRAM_MEMORY_BYTES / PAGE)
            .map(|n| PROGRAM_MEMORY + PAGE * n)
            .collect();
        random.shuffle(&mut frames);
        let code = frames.split_off(frames.len() - CODE_PAGES as usize);
        let stack = frames.split_off(frames.len() - STACK_PAGES as usize);
        let long = mode.bits() == 64;
        let places: &[(u64, u64)] = if long { &WINDOWS64 } else { &WINDOWS32 };
        let windows = places
            .iter()
            .map(|&(linear, count)| Window {
                linear,
                pages: (0..count).map(|_| page(mode, &frames, random)).collect(),
            })
            .collect();
        let mut contents = vec![0; PROGRAM_MEMORY_BYTES as usize];
        random.fill(&mut contents);
        let mut cr0 = Cr0::PE | Cr0::PG | Cr0::ET | Cr0::NE | Cr0::MP;
        cr0.set(Cr0::WP, random.percent(75));
        cr0.set(Cr0::AM, random.percent(50));
        let mut cr4 = Cr4::OSFXSR | Cr4::OSXMMEXCPT | Cr4::OSXSAVE;
        cr4.set(Cr4::PGE, random.percent(75));
        if mode.is_long() {
            cr4 |= Cr4::PAE;
            cr4.set(Cr4::SMEP, random.percent(50));
            cr4.set(Cr4::SMAP, random.percent(50));
            cr4.set(Cr4::FSGSBASE, random.percent(75));
        }
        let mut fpu = x86::FpuState {
            control: 0x37f,
            tags: 0xffff,
            ..x86::FpuState::default()
        };
        for register in &mut fpu.ymm {
            random.fill_words(register);
        }
        let near = |random: &mut Random| 0x40_0000 + random.below(0x2_0000) - 0x1_0000;
        Self {
            mode,
            windows,
            large: (long && random.percent(50)).then_some(LARGE),
            code,
            stack,
            contents,
            gpr: std::array::from_fn(|_| match long {
                true => random.operand(),
                false => random.operand() & 0xffff_ffff,
            }),
            fs_base: if long { near(random) } else { 0 },
            gs_base: match (long, random.percent(50)) {
                (false, _) => 0,
                (true, false) => near(random),
                (true, true) => 0xffff_ffff_8200_0000 - random.below(0x4000),
            },
            fpu,
            cr0,
            cr4,
            syscall_mask: random.one_of(&SYSCALL_MASKS),
            own_fault_stack: mode.is_user() || mode == Mode::Kernel64 && random.percent(60),
            interruptible: false,
        }
    }

    /// The two regions of memory with `code` at `offset` in the code window; `successors` are those
    /// of its bytes.
    pub(crate) fn memory(&self, code: &[u8], offset: u64, successors: &[u16]) -> [Vec<u8>; 2] {
        let mut lower = vec![0; SYSTEM_BYTES as usize];
        self.descriptors(&mut lower);
        let handlers = self.handlers();
        put(&mut lower, ENTRIES, &handlers.entries);
        put(&mut lower, HANDLERS, &handlers.code);
        put_word(&mut lower, LOG_POINTER, self.mode.system(LOG));
        // Bytes around the program count as behind it: there is its end.
        let last = offset + successors.last().map_or(0, |&n| u64::from(n));
        for at in 0..CODE_PAGES * PAGE {
            let within = at
                .checked_sub(offset)
                .and_then(|n| successors.get(n as usize));
            let next = within.map_or(last, |&n| offset + u64::from(n));
            put(
                &mut lower,
                SUCCESSORS + 2 * at,
                &(next as u16).to_le_bytes(),
            );
        }
        self.map(&mut lower);
        let mut upper = self.contents.clone();
        let mut window = vec![0xcc; (CODE_PAGES * PAGE) as usize];
        window[offset as usize..][..code.len()].copy_from_slice(code);
        for (page, gpa) in window.chunks(PAGE as usize).zip(&self.code) {
            put(&mut upper, gpa - PROGRAM_MEMORY, page);
        }
        [lower, upper]
    }

    fn handlers(&self) -> &'static Handlers {
        static HANDLERS64: OnceLock<Handlers> = OnceLock::new();
        static HANDLERS32: OnceLock<Handlers> = OnceLock::new();
        static COMPATIBILITY: OnceLock<Handlers> = OnceLock::new();
        static KERNEL64: OnceLock<Handlers> = OnceLock::new();
        let cell = match self.mode {
            Mode::Kernel64 => &KERNEL64,
            Mode::User64 => &HANDLERS64,
            Mode::Compatibility => &COMPATIBILITY,
            Mode::Kernel32 | Mode::User32 => &HANDLERS32,
        };
        cell.get_or_init(|| handlers(self.mode))
    }

    /// GDT, IDT and TSS.
    fn descriptors(&self, lower: &mut [u8]) {
        const CODE: u64 = 0x9b << 40;
        const DATA: u64 = 0x93 << 40;
        const DPL3: u64 = 0x60 << 40;
        const FLAT32: u64 = 0x00cf_0000_0000_ffff;
        const FLAT64: u64 = 0x00af_0000_0000_ffff;
        let mode = self.mode;
        for (selector, descriptor) in [
            (KERNEL_CODE64, FLAT64 | CODE),
            (KERNEL_DATA, FLAT32 | DATA),
            (USER_CODE32, FLAT32 | CODE | DPL3),
            (USER_DATA, FLAT32 | DATA | DPL3),
            (USER_CODE64, FLAT64 | CODE | DPL3),
            (KERNEL_CODE32, FLAT32 | CODE),
        ] {
            put_word(lower, GDT + u64::from(selector & !7), descriptor);
        }
        let base = mode.system(TSS);
        let low = 0x8b << 40 | 0x67 | (base & 0xff_ffff) << 16 | (base >> 24 & 0xff) << 56;
        put_word(lower, GDT + u64::from(TASK), low);
        if mode.is_long() {
            put_word(lower, GDT + u64::from(TASK) + 8, base >> 32);
            put_word(lower, TSS + 4, mode.system(KERNEL_STACK));
            for (n, stack) in [FAULT_STACK, DOUBLE_FAULT_STACK, INTERRUPT_STACK]
                .into_iter()
                .enumerate()
            {
                put_word(lower, TSS + 0x24 + 8 * n as u64, mode.system(stack));
            }
        } else {
            let stack = mode.system(KERNEL_STACK) | u64::from(KERNEL_DATA) << 32;
            put_word(lower, TSS + 4, stack);
        }
        for vector in 0..256 {
            self.gate(lower, vector);
        }
    }

    fn gate(&self, lower: &mut [u8], vector: u64) {
        let mode = self.mode;
        let target = mode.system(ENTRIES) + crate::handlers::ENTRY_BYTES * vector;
        let for_all = [3, 4, CALL_VECTOR.into(), END_VECTOR.into()].contains(&vector);
        let kind: u64 = if for_all { 0xee } else { 0x8e };
        let (selector, stack) = match (mode.is_long(), vector) {
            (false, _) => (KERNEL_CODE32, 0),
            (true, 8) => (KERNEL_CODE64, 2),
            (true, v) if v == u64::from(INTERRUPT_VECTOR) => (KERNEL_CODE64, 3),
            (true, _) => (KERNEL_CODE64, self.own_fault_stack.into()),
        };
        let low = target & 0xffff
            | u64::from(selector) << 16
            | stack << 32
            | kind << 40
            | (target >> 16 & 0xffff) << 48;
        if mode.is_long() {
            put_word(lower, IDT + 16 * vector, low);
            put_word(lower, IDT + 16 * vector + 8, target >> 32);
        } else {
            put_word(lower, IDT + 8 * vector, low);
        }
    }

    /// The guest-physical address of the page-table entry for `linear`.
    pub(crate) fn entry(&self, linear: u64) -> u64 {
        let mut lower = vec![0; SYSTEM_BYTES as usize];
        self.map(&mut lower).entry(linear, 0)
    }

    fn map<'a>(&self, lower: &'a mut [u8]) -> Tables<'a> {
        let mode = self.mode;
        let own = PRESENT | WRITABLE | if mode.is_user() { USER } else { 0 };
        // What an interrupt uses must not tell whether there was one.
        let used = if self.interruptible {
            ACCESSED | DIRTY
        } else {
            0
        };
        let mut tables = Tables::new(lower, mode.is_long());
        for gpa in (0x1000..SYSTEM_BYTES).step_by(PAGE as usize) {
            tables.map(mode.system(gpa), gpa, PRESENT | WRITABLE | GLOBAL | used);
        }
        tables.map(mode.apic(), APIC, PRESENT | WRITABLE | used);
        tables.map(mode.control(CONTROL), CONTROL, own);
        for (n, &gpa) in (0..).zip(&self.code) {
            tables.map(mode.code() + PAGE * n, gpa, own);
            let alias = if mode.is_long() { NO_EXECUTE } else { 0 };
            tables.map(mode.code_alias() + PAGE * n, gpa, own | alias);
        }
        for (n, &gpa) in (0..).zip(&self.stack) {
            tables.map(mode.stack() + PAGE * n, gpa, own);
        }
        for window in &self.windows {
            for (n, page) in (0..).zip(&window.pages) {
                tables.map(window.linear + PAGE * n, page.gpa, page.flags);
            }
        }
        if let Some(large) = self.large {
            tables.map_large(large, PROGRAM_MEMORY, PRESENT | WRITABLE);
        }
        tables
    }

    /// Brings a vCPU's state after reset, but for RIP, to where the program begins.
    pub(crate) fn enter(&self, state: &mut VcpuState, lower: &[u8]) {
        let mode = self.mode;
        let segment = |selector: u16| {
            let at = (GDT + u64::from(selector & !7)) as usize;
            let bytes = lower[at..at + 8].try_into().expect("8 bytes");
            Segment::from_descriptor(Selector(selector), Descriptor(u64::from_le_bytes(bytes)))
        };
        let (code, data) = match mode {
            Mode::Kernel64 => (KERNEL_CODE64, KERNEL_DATA),
            Mode::User64 => (USER_CODE64, USER_DATA),
            Mode::Compatibility | Mode::User32 => (USER_CODE32, USER_DATA),
            Mode::Kernel32 => (KERNEL_CODE32, KERNEL_DATA),
        };
        state.segments = [segment(data); 6];
        state.segments[1] = segment(code);
        state.segments[4].base = self.fs_base;
        state.segments[5].base = self.gs_base;
        state.tr = Segment {
            base: mode.system(TSS),
            ..segment(TASK)
        };
        state.ldtr = Segment {
            unusable: true,
            ..Segment::default()
        };
        state.gdtr = DescriptorTable {
            base: mode.system(GDT),
            limit: 0x47,
        };
        state.idtr = DescriptorTable {
            base: mode.system(IDT),
            limit: 0xfff,
        };
        (state.cr0, state.cr3, state.cr4) = (self.cr0, TABLES, self.cr4);
        state.xcr0 = Xcr0::X87 | Xcr0::SSE | Xcr0::AVX;
        if mode.is_long() {
            state.efer = Efer::LME | Efer::LMA | Efer::SCE | Efer::NXE;
            state.syscall.star = u64::from(KERNEL_CODE64) << 32 | u64::from(USER_CODE32) << 48;
            state.syscall.lstar = self.handlers().syscall;
            state.syscall.fmask = self.syscall_mask;
        }
        state.gpr = self.gpr;
        state.gpr[4] = self.stack_top();
        state.rflags = Rflags::FIXED;
        state.rflags.set(Rflags::IF, self.interruptible);
        state.fpu = self.fpu.clone();
        state.apic.svr = 0x1ff;
    }

    /// Guest-physical address of `offset` in the code window.
    pub(crate) fn code_gpa(&self, offset: u64) -> u64 {
        self.code[(offset / PAGE) as usize] + offset % PAGE
    }

    /// Whether the page at `gpa` is neither code nor stack.
    pub(crate) fn is_data(&self, gpa: u64) -> bool {
        !self.code.contains(&gpa) && !self.stack.contains(&gpa)
    }

    /// What guest-physical `gpa` is, for people.
    pub(crate) fn place(&self, gpa: u64) -> String {
        let page = gpa & !(PAGE - 1);
        let mut names: Vec<String> = Vec::new();
        let mut name = |what: &str, linear: u64| names.push(format!("{what} {linear:#x}"));
        if gpa < SYSTEM_BYTES {
            let what = if gpa >= TABLES {
                "page tables"
            } else {
                "system"
            };
            name(what, self.mode.system(gpa));
        }
        for (n, _) in (0..).zip(&self.code).filter(|(_, frame)| **frame == page) {
            name("code", self.mode.code() + PAGE * n + gpa % PAGE);
        }
        for (n, _) in (0..).zip(&self.stack).filter(|(_, frame)| **frame == page) {
            name("stack", self.mode.stack() + PAGE * n + gpa % PAGE);
        }
        for window in &self.windows {
            for (n, _) in (0..).zip(&window.pages).filter(|(_, p)| p.gpa == page) {
                name("window", window.linear + PAGE * n + gpa % PAGE);
            }
        }
        format!(" ({})", names.join(", "))
    }

    /// RSP where the program begins: in the middle of its stack.
    pub(crate) fn stack_top(&self) -> u64 {
        self.mode.stack() + STACK_PAGES * PAGE / 2 + 0x808
    }
}

/// A page of a window: mostly usable.
fn page(mode: Mode, frames: &[u64], random: &mut Random) -> Page {
    let gpa = match random.below(24) {
        0 => DEVICE + PAGE * random.below(2),
        1 => PROGRAM_MEMORY + PROGRAM_MEMORY_BYTES,
        // Some frames are behind several pages.
        2..8 => frames[random.below(4) as usize],
        _ => random.one_of(frames),
    };
    let own = mode.is_user() != random.percent(8);
    let mut flags = if own { USER } else { 0 };
    for (bit, percent) in [
        (PRESENT, 92),
        (WRITABLE, 85),
        (ACCESSED, 50),
        (DIRTY, 40),
        (GLOBAL, 20),
    ] {
        if random.percent(percent) {
            flags |= bit;
        }
    }
    if mode.is_long() && random.percent(50) {
        flags |= NO_EXECUTE;
    }
    Page { gpa, flags }
}

fn put(memory: &mut [u8], at: u64, bytes: &[u8]) {
    memory[at as usize..][..bytes.len()].copy_from_slice(bytes);
}

fn put_word(memory: &mut [u8], at: u64, value: u64) {
    put(memory, at, &value.to_le_bytes());
}
