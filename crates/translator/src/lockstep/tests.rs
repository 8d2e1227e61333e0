//! Translations that are wrong, because a test has changed them, are found and named; right ones
//! pass.

use super::Page;
use super::report::Differences;
use super::{End, Trial};
use crate::store::PAGE;
use crate::translator::Options;
use crate::vcpu::TranslatorVcpu;
use engine::{Access, Exit, Platform, Setup, Vcpu};
use interpreter::{Effects, Interpreter, Snapshot};
use memory::{GuestMemory, Kind, RegionSpec};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use x86::{Activity, Cr0, Rflags, Segment, SegmentRegister, Selector, VcpuState};

const PROGRAM: u64 = 0x1000;
const DATA: u64 = 0x3000;
/// `out 0xf4, al`: [`Guest::run`] returns.
const OUT: &[u8] = &[0xe6, 0xf4];

/// Interrupts the vCPU at each access.
struct Port {
    engine: Arc<Interpreter>,
    seen: Mutex<Vec<Access>>,
}

impl Platform for Port {
    fn access(&self, access: Access) -> u64 {
        self.seen.lock().unwrap().push(access);
        engine::Engine::kick(&*self.engine, 0);
        0
    }

    fn end_of_interrupt(&self, _: u8) {}

    fn acknowledge_external(&self) -> u8 {
        0
    }
}

/// A vCPU in flat 32-bit code without paging, and what it is connected to.
struct Guest {
    vcpu: TranslatorVcpu,
    memory: Arc<GuestMemory>,
    port: Arc<dyn Platform>,
}

impl Guest {
    /// Repeats `code` and [`OUT`] for ever.
    fn new(code: &[u8], every: u32) -> Self {
        let memory = GuestMemory::new(&[RegionSpec {
            gpa: 0,
            len: 1 << 20,
            kind: Kind::Ram,
        }])
        .unwrap();
        let clock = clock::Clock::manual();
        let setup = Setup {
            memory: memory.clone(),
            clock,
            cpuid: vec![interpreter::cpuid::table(0, 1, 1_000_000)],
            tsc_khz: 1_000_000,
            tracer: None,
        };
        let (engine, mut cores) = Interpreter::create_vcpus(&setup).unwrap();
        let options = Options {
            lockstep: NonZeroU32::new(every),
            ..Options::default()
        };
        let mut vcpu = TranslatorVcpu::new(cores.remove(0), &options).unwrap();
        vcpu.set_state(&flat_state()).unwrap();
        let mut program = code.to_vec();
        program.extend_from_slice(OUT);
        let back = -(program.len() as i32 + 5);
        program.push(0xe9);
        program.extend_from_slice(&back.to_le_bytes());
        memory.write(PROGRAM, &program).unwrap();
        let port = Arc::new(Port {
            engine,
            seen: Mutex::default(),
        });
        Self { vcpu, memory, port }
    }

    /// Runs until the end of `code`, or until something is wrong.
    fn run(&mut self) -> Exit {
        self.vcpu.run(&self.port.clone())
    }

    /// Replaces `old` by `new` in the translation of the block at [`PROGRAM`].
    fn corrupt(&mut self, old: &[u8], new: &[u8]) {
        let store = &mut self.vcpu.store;
        let ids = store.blocks.in_page(&store.memory, PROGRAM as usize / PAGE);
        let first = ids.iter().filter_map(|id| store.block(*id));
        let block = first.min_by_key(|b| b.key.offset).unwrap();
        assert_eq!(block.key.offset as u64, PROGRAM);
        let (entry, mut code) = (block.entry as usize, vec![0; block.len as usize]);
        store.memory.read(entry, &mut code);
        let at = code.windows(old.len()).position(|w| w == old);
        store
            .memory
            .write(entry + at.expect("the code to change"), new);
    }
}

fn flat_state() -> VcpuState {
    let mut state = VcpuState::after_reset(0);
    let segment = |selector, access| Segment {
        selector: Selector(selector),
        limit: u32::MAX,
        access,
        ..Segment::default()
    };
    state.segments = [segment(0x10, 0xc093); 6];
    state.segments[SegmentRegister::Cs as usize] = segment(0x08, 0xc09b);
    state.cr0 = Cr0::PE | Cr0::ET | Cr0::NE;
    state.rflags = Rflags::FIXED;
    state.gpr = [0; 16];
    state.gpr[3] = DATA;
    state.rip = PROGRAM;
    state.activity = Activity::Running;
    state
}

/// What is said about `code` after `old` became `new` in its translation.
fn said_of(code: &[u8], old: &[u8], new: &[u8]) -> String {
    let mut guest = Guest::new(code, 1);
    for _ in 0..3 {
        assert_eq!(guest.run(), Exit::Kicked);
    }
    guest.corrupt(old, new);
    match guest.run() {
        Exit::Failed(text) => text,
        other => panic!("{other:?}"),
    }
}

/// `add eax, 5; mov [ebx], eax`.
const SUM: &[u8] = &[0x83, 0xc0, 0x05, 0x89, 0x03];

#[test]
fn right_translations_pass() {
    // inc ecx; push ecx; pop edx; the sum; cmp eax, ecx; sete dl; mov edi, DATA; mov ecx, 8;
    // rep stosd; mov ecx, eax
    let mut code = vec![0x41, 0x51, 0x5a];
    code.extend_from_slice(SUM);
    code.extend_from_slice(&[0x39, 0xc8, 0x0f, 0x94, 0xc2, 0xbf, 0x20, 0x30, 0, 0]);
    code.extend_from_slice(&[0xb9, 8, 0, 0, 0, 0xf3, 0xab, 0x89, 0xc1]);
    let mut guest = Guest::new(&code, 1);
    guest.vcpu.core.gpr_mut()[4] = 0x8000;
    for round in 1..=100u64 {
        assert_eq!(guest.run(), Exit::Kicked, "round {round}");
        assert_eq!(guest.vcpu.core.gpr()[0], 5 * round);
        for at in [DATA, DATA + 0x20, DATA + 0x3c] {
            assert_eq!(guest.memory.load::<u32>(at).unwrap(), 5 * round as u32);
        }
    }
    let lockstep = guest.vcpu.lockstep.as_ref().unwrap();
    assert!(lockstep.checked >= 200, "{}", lockstep.checked);
    assert!(lockstep.checked_instructions >= 900);
    assert_eq!(lockstep.unchecked, 0);
}

#[test]
fn a_wrong_register_is_named_with_the_block() {
    let said = said_of(SUM, &[0x83, 0xc0, 0x05], &[0x83, 0xc0, 0x06]);
    let first = said.lines().next().unwrap();
    assert!(first.contains("the block at 0x1000"), "{said}");
    assert!(
        said.contains("rax: translated 0x15, interpreted 0x14"),
        "{said}"
    );
    assert!(
        said.contains("memory at 0x3000: translated 15, interpreted 14"),
        "{said}"
    );
    // The guest's code, its bytes, and what it was made into.
    assert!(said.contains("1000  83c005"), "{said}");
    assert!(said.contains("add eax,6"), "{said}");
}

#[test]
fn a_wrong_byte_in_memory_is_found() {
    // mov dword [ebx], 0x11223344
    let code = [0xc7, 0x03, 0x44, 0x33, 0x22, 0x11];
    let said = said_of(&code, &[0x44, 0x33, 0x22, 0x11], &[0x44, 0x33, 0x23, 0x11]);
    let line = "memory at 0x3002: translated 23, interpreted 22";
    assert!(said.contains(line), "{said}");
}

#[test]
fn a_wrong_flag_is_found() {
    // stc
    let said = said_of(&[0xf9], &[0xf9], &[0xf8]);
    assert!(
        said.contains("rflags: translated 0x2, interpreted 0x3"),
        "{said}"
    );
}

/// What is undefined where the block is left counts, not what is at its end.
#[test]
fn undefined_flags_are_not_compared() {
    // xor edx, edx; inc ecx; div ecx; bt eax, 0; jc +2; cmp eax, edx
    let code = [
        0x31, 0xd2, 0x41, 0xf7, 0xf1, 0x0f, 0xba, 0xe0, 0, 0x72, 2, 0x39, 0xd0,
    ];
    let mut guest = Guest::new(&code, 1);
    for start in 0..200u64 {
        guest.vcpu.core.gpr_mut()[0] = start.wrapping_mul(0x9e37_79b9) & 0xffff_ffff;
        assert_eq!(guest.run(), Exit::Kicked);
    }
}

#[test]
fn a_wrong_branch_is_found() {
    // inc ecx; jnz +1; nop
    let code = [0x41, 0x75, 1, 0x90];
    let mut guest = Guest::new(&code, 1);
    assert_eq!(guest.run(), Exit::Kicked);
    guest.corrupt(&[0x0f, 0x85], &[0x0f, 0x84]);
    let Exit::Failed(said) = guest.run() else {
        panic!("it goes the wrong way");
    };
    assert!(said.contains("the block at 0x1000"), "{said}");
    assert!(said.contains("rip: translated"), "{said}");
}

#[test]
fn only_some_executions_are_checked_if_so_asked() {
    let mut guest = Guest::new(SUM, 50);
    for _ in 0..20 {
        assert_eq!(guest.run(), Exit::Kicked);
    }
    let lockstep = guest.vcpu.lockstep.as_ref().unwrap();
    assert!(lockstep.unchecked > lockstep.checked);
    guest.corrupt(&[0x83, 0xc0, 0x05], &[0x83, 0xc0, 0x06]);
    let failed = (0..50).any(|_| matches!(guest.run(), Exit::Failed(_)));
    assert!(failed, "one in 50 is checked");
}

/// Translated code that writes somewhere else in a page, or not at all.
#[test]
fn every_byte_of_a_page_counts() {
    let mut guest = Guest::new(SUM, 1);
    let ram = guest.vcpu.core.ram().clone();
    let registers: Snapshot = guest.vcpu.core.snapshot();
    let page = || {
        let mut before = Box::new([0; PAGE]);
        ram.read(DATA as usize, &mut before[..]);
        Page {
            offset: DATA as usize,
            before,
        }
    };
    let trial = |effects| Trial {
        end: End::Exit,
        executed: 0,
        registers: registers.clone(),
        effects,
        raises: None,
    };
    let differs = |pages: &[Page], trial: &Trial| {
        !Differences::find(&ram, pages, &registers, trial, true, 0, &[]).is_empty()
    };
    let pages = [page()];
    let nothing = trial(Effects::default());
    assert!(!differs(&pages, &nothing));
    ram.store(DATA as usize + 0xfff, 1u8);
    assert!(differs(&pages, &nothing));

    let core = &mut guest.vcpu.core;
    core.begin_trial();
    assert_eq!(core.try_instruction(), interpreter::Tried::Done);
    assert_eq!(core.try_instruction(), interpreter::Tried::Done);
    let (_, effects) = core.end_trial();
    let stored = trial(effects);
    for pages in [vec![page()], Vec::new()] {
        assert!(differs(&pages, &stored), "it was not written");
    }
    let pages = [page()];
    ram.store(DATA as usize, 5u32);
    assert!(!differs(&pages, &stored));
    assert!(!differs(&[], &stored));
}
