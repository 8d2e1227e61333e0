//! Two CPUs on the same memory.

use crate::layout::*;
use crate::machine::{Create, Machine, interpreter, translator};
use crate::random::Random;
use crate::scene::Scene;
use crate::tables::{ACCESSED, DIRTY, PRESENT, WRITABLE};
use engine::{Exit, Platform};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What both CPUs share, in quadwords from [`SHARED`]; RSI points to it.
const SHARED: u64 = CONTROL + 0x800;
const BAD: u64 = SHARED + 0x30;
const DONE: u64 = SHARED + 0x40;
/// Where each CPU's code begins in the code window.
const STARTS: [u64; 2] = [0, 0x400];
/// A function whose immediate is at a multiple of 4.
const FUNCTION: u64 = 0x803;
/// Passes of each loop.
const PASSES: u64 = 20_000;
const PATIENCE: Duration = Duration::from_secs(40);

/// Waits at [rsi + 38h] for the other CPU.
const MEET: &[u8] = &[
    0xf0, 0x48, 0xff, 0x46, 0x38, // lock inc qword [rsi + 38h]
    0x48, 0x83, 0x7e, 0x38, 2, // l: cmp qword [rsi + 38h], 2
    0x72, 0xf9, // jb l
];

/// Says at [rsi + 40h] or [rsi + 48h] that all is done.
fn finish(cpu: u8) -> [u8; 10] {
    // mov qword [rsi + 40h + 8 * cpu], 1; jmp $
    [0x48, 0xc7, 0x46, 0x40 + 8 * cpu, 1, 0, 0, 0, 0xeb, 0xfe]
}

/// Two programs for CPL 0, and the registers RCX, RDX, RDI, R8, R9, R10 with which they begin.
struct Duet {
    scene: Scene,
    code: [&'static [u8]; 2],
    registers: [[u64; 6]; 2],
    /// Guest-physical addresses and what is there.
    words: Vec<(u64, u64)>,
}

impl Duet {
    fn new(code: [&'static [u8]; 2], registers: [[u64; 6]; 2]) -> Self {
        let mut scene = Scene::random(Mode::Kernel64, &mut Random::new(1));
        scene.own_fault_stack = true;
        Self {
            scene,
            code,
            registers,
            words: Vec::new(),
        }
    }

    /// Runs both until they are done.
    fn run(&self, create: Create) -> Machine {
        let mut machine = Machine::new(create, 2);
        let mut code = vec![0xcc; 0x810];
        for (cpu, start) in (0..).zip(STARTS) {
            let body = self.code[usize::from(cpu)];
            let bytes = [MEET, body, &finish(cpu)].concat();
            code[start as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        // mov eax, 0; ret
        code[FUNCTION as usize..][..6].copy_from_slice(&[0xb8, 0, 0, 0, 0, 0xc3]);
        let memory = self.scene.memory(&code, 0, &[]);
        machine.fill(&memory);
        for (gpa, word) in &self.words {
            machine
                .memory
                .write(*gpa, &word.to_le_bytes())
                .expect("memory");
        }
        for (cpu, start) in STARTS.into_iter().enumerate() {
            let mut state = machine.reset[cpu].clone();
            self.scene.enter(&mut state, &memory[0]);
            state.activity = machine.reset[0].activity;
            let names = [1, 2, 7, 8, 9, 10];
            for (number, value) in names.into_iter().zip(self.registers[cpu]) {
                state.gpr[number] = value;
            }
            state.gpr[6] = self.scene.mode.control(SHARED);
            state.gpr[4] -= PAGE * cpu as u64;
            state.rip = self.scene.mode.code() + start;
            machine.vcpus[cpu]
                .set_state(&state)
                .expect("a possible state");
        }
        let platform: Arc<dyn Platform> = machine.devices.clone();
        let (engine, memory) = (machine.engine.clone(), machine.memory.clone());
        let word = |gpa: u64| {
            let mut bytes = [0; 8];
            memory.read(gpa, &mut bytes).expect("memory");
            u64::from_le_bytes(bytes)
        };
        thread::scope(|scope| {
            let platform = &platform;
            let runs = machine.vcpus.iter_mut();
            let runs: Vec<_> = runs
                .map(|vcpu| scope.spawn(move || vcpu.run(platform)))
                .collect();
            let began = Instant::now();
            let done = || word(DONE) == 1 && word(DONE + 8) == 1;
            while !done() && began.elapsed() < PATIENCE {
                thread::sleep(Duration::from_millis(2));
            }
            let in_time = done();
            for (cpu, run) in runs.into_iter().enumerate() {
                while !run.is_finished() {
                    engine.kick(cpu);
                    thread::sleep(Duration::from_millis(2));
                }
                assert_eq!(run.join().expect("no panic"), Exit::Kicked, "CPU {cpu}");
            }
            assert!(in_time, "not done in {PATIENCE:?}");
        });
        machine
    }
}

fn word(machine: &Machine, gpa: u64) -> u64 {
    let mut bytes = [0; 8];
    machine.memory.read(gpa, &mut bytes).expect("memory");
    u64::from_le_bytes(bytes)
}

/// LOCK INC, LOCK XADD and a loop with LOCK CMPXCHG.
fn locked_increments(create: Create) {
    const CODE: &[u8] = &[
        0xf0, 0x48, 0xff, 0x06, // loop: lock inc qword [rsi]
        0xb8, 1, 0, 0, 0, // mov eax, 1
        0xf0, 0x48, 0x0f, 0xc1, 0x46, 0x08, // lock xadd [rsi + 8], rax
        0x48, 0x8b, 0x46, 0x10, // retry: mov rax, [rsi + 10h]
        0x48, 0x8d, 0x58, 0x01, // lea rbx, [rax + 1]
        0xf0, 0x48, 0x0f, 0xb1, 0x5e, 0x10, // lock cmpxchg [rsi + 10h], rbx
        0x75, 0xf0, // jne retry
        0x48, 0xff, 0xc9, // dec rcx
        0x75, 0xdc, // jne loop
    ];
    let passes = 20 * PASSES;
    let machine = Duet::new([CODE; 2], [[passes, 0, 0, 0, 0, 0]; 2]).run(create);
    let sums = [0, 8, 16].map(|offset| word(&machine, SHARED + offset));
    assert_eq!(sums, [2 * passes; 3]);
}

/// Who sees a flag sees what was written before it (SDM vol. 3, 10.2.3.2).
fn message_passing(create: Create) {
    const WRITER: &[u8] = &[
        0x48, 0x89, 0x4e, 0x28, // loop: mov [rsi + 28h], rcx
        0x48, 0x89, 0x4e, 0x20, // mov [rsi + 20h], rcx
        0x48, 0xff, 0xc1, // inc rcx
        0x48, 0x39, 0xf9, // cmp rcx, rdi
        0x75, 0xf0, // jne loop
    ];
    const READER: &[u8] = &[
        0x48, 0x8b, 0x46, 0x20, // loop: mov rax, [rsi + 20h]
        0x48, 0x8b, 0x5e, 0x28, // mov rbx, [rsi + 28h]
        0x48, 0x39, 0xc3, // cmp rbx, rax
        0x73, 0x04, // jae good
        0x48, 0xff, 0x46, 0x30, // inc qword [rsi + 30h]
        0x48, 0x8d, 0x57, 0xff, // good: lea rdx, [rdi - 1]
        0x48, 0x39, 0xd0, // cmp rax, rdx
        0x75, 0xe6, // jne loop
    ];
    let registers = [1, 0, 20 * PASSES, 0, 0, 0];
    let machine = Duet::new([WRITER, READER], [registers; 2]).run(create);
    assert_eq!(word(&machine, BAD), 0);
}

/// Code that another CPU has changed is what runs after a serializing instruction (SDM vol. 3,
/// 10.1.3).
fn code_modification(create: Create) {
    const CALLER: &[u8] = &[
        0x48, 0x8b, 0x6e, 0x20, // loop: mov rbp, [rsi + 20h]
        0x31, 0xc0, // xor eax, eax
        0x0f, 0xa2, // cpuid
        0xff, 0xd7, // call rdi
        0x48, 0x39, 0xe8, // cmp rax, rbp
        0x73, 0x04, // jae good
        0x48, 0xff, 0x46, 0x30, // inc qword [rsi + 30h]
        0x48, 0x89, 0x46, 0x50, // good: mov [rsi + 50h], rax
        0x4c, 0x39, 0xc5, // cmp rbp, r8
        0x75, 0xe4, // jne loop
    ];
    const WRITER: &[u8] = &[
        0x89, 0x0f, // loop: mov [rdi], ecx
        0x48, 0x89, 0x4e, 0x20, // mov [rsi + 20h], rcx
        0x48, 0x39, 0x4e, 0x50, // wait: cmp [rsi + 50h], rcx
        0x75, 0xfa, // jne wait
        0x48, 0xff, 0xc1, // inc rcx
        0x48, 0x39, 0xd1, // cmp rcx, rdx
        0x75, 0xec, // jne loop
    ];
    let passes = PASSES / 20;
    let function = Mode::Kernel64.code() + FUNCTION;
    let immediate = Mode::Kernel64.code_alias() + FUNCTION + 1;
    let registers = [
        [0, 0, function, passes - 1, 0, 0],
        [1, passes, immediate, 0, 0, 0],
    ];
    let machine = Duet::new([CALLER, WRITER], registers).run(create);
    assert_eq!(word(&machine, BAD), 0);
}

/// A page that another CPU has moved is where it says, after INVLPG.
fn shoot_down(create: Create) {
    const USER: &[u8] = &[
        0x48, 0x8b, 0x6e, 0x20, // loop: mov rbp, [rsi + 20h]
        0x48, 0x39, 0x6e, 0x50, // cmp [rsi + 50h], rbp
        0x74, 0xf6, // je loop
        0x0f, 0x01, 0x3f, // invlpg [rdi]
        0x48, 0x8b, 0x07, // mov rax, [rdi]
        0x89, 0xeb, // mov ebx, ebp
        0x83, 0xe3, 0x01, // and ebx, 1
        0x48, 0x39, 0xd8, // cmp rax, rbx
        0x74, 0x04, // je good
        0x48, 0xff, 0x46, 0x30, // inc qword [rsi + 30h]
        0x48, 0x89, 0x6e, 0x50, // good: mov [rsi + 50h], rbp
        0x4c, 0x39, 0xc5, // cmp rbp, r8
        0x75, 0xd9, // jne loop
    ];
    const MOVER: &[u8] = &[
        0x4c, 0x89, 0x0f, // loop: mov [rdi], r9
        0x4d, 0x87, 0xd1, // xchg r9, r10
        0x48, 0x89, 0x4e, 0x20, // mov [rsi + 20h], rcx
        0x48, 0x39, 0x4e, 0x50, // wait: cmp [rsi + 50h], rcx
        0x75, 0xfa, // jne wait
        0x48, 0xff, 0xc1, // inc rcx
        0x48, 0x39, 0xd1, // cmp rcx, rdx
        0x75, 0xe8, // jne loop
    ];
    let passes = PASSES / 4;
    let mut duet = Duet::new([USER, MOVER], [[0; 6]; 2]);
    let scene = &mut duet.scene;
    let page = scene.windows[1].linear;
    let entry = Mode::Kernel64.system(scene.entry(page));
    let data = (0..PROGRAM_MEMORY_BYTES / PAGE).map(|n| PROGRAM_MEMORY + PAGE * n);
    let frames: Vec<u64> = data.filter(|gpa| scene.is_data(*gpa)).take(2).collect();
    let flags = PRESENT | WRITABLE | ACCESSED | DIRTY;
    duet.words = vec![(frames[0], 1), (frames[1], 0)];
    duet.registers = [
        [0, 0, page, passes - 1, 0, 0],
        [1, passes, entry, 0, frames[0] | flags, frames[1] | flags],
    ];
    let machine = duet.run(create);
    assert_eq!(word(&machine, BAD), 0);
}

macro_rules! under_both_engines {
    ($($name:ident),*) => {
        mod under_the_translator {
            $(#[test]
            fn $name() {
                super::$name(super::translator);
            })*
        }

        mod under_the_interpreter {
            $(#[test]
            fn $name() {
                super::$name(super::interpreter);
            })*
        }
    };
}

under_both_engines!(
    locked_increments,
    message_passing,
    code_modification,
    shoot_down
);
