//! RDTSC and RDTSCP, which translated code executes by itself where the host's counter allows it,
//! against reads of the same counter by the interpreter: RDMSR.

use crate::code::Code;
use crate::guest::{End, GLOBAL, Guest, KERNEL, USER};
use x86::Cr4;

const PROGRAM: u64 = 0x10_0000;
const HANDLER: u64 = 0x10_1000;
const OTHER_PROGRAM: u64 = 0x10_2000;
const SHARED: u64 = 0x10_3000;
/// Where [`PROGRAM`] is for CPL 3.
const USER_PROGRAM: u64 = 0x40_0000;
const ROUNDS: u32 = 20_000;

const RDTSC: &[u8] = &[0x0f, 0x31];
const RDTSCP: &[u8] = &[0x0f, 0x01, 0xf9];
/// `mov ecx, IA32_TSC; rdmsr`.
const INTERPRETED: &[u8] = &[0xb9, 0x10, 0, 0, 0, 0x0f, 0x32];
/// `stc; rdtsc; setnc bl; test bl, bl; jz +2; ud2`: the carry flag is live.
const WITH_FLAGS: &[u8] = &[
    0xf9, 0x0f, 0x31, 0x0f, 0x93, 0xc3, 0x84, 0xdb, 0x74, 2, 0x0f, 0x0b,
];
/// `shl rdx, 32; or rax, rdx`.
const JOIN: &[u8] = &[0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0];
/// `mov r8, rax`.
const KEEP: &[u8] = &[0x49, 0x89, 0xc0];
const JB: &[u8] = &[0x0f, 0x82];
const JNE: &[u8] = &[0x0f, 0x85];

impl Code {
    /// Reads the counter into RAX. It must not be below R8, which it replaces.
    fn later(self, read: &[u8]) -> Self {
        self.raw(read)
            .raw(JOIN)
            // cmp rax, r8
            .raw(&[0x4c, 0x39, 0xc0])
            .branch(JB, "earlier")
            .raw(KEEP)
    }

    /// `ecx: msr = rax: value`.
    fn write_msr(self, msr: u64, value: u64) -> Self {
        self.set(1, msr)
            .set(0, value & 0xffff_ffff)
            .set(2, value >> 32)
            .raw(&[0x0f, 0x30])
    }

    /// Both ends of a program that uses [`Code::later`].
    fn ends(self) -> Self {
        self.end(0).label("earlier").end(1)
    }
}

/// Whether the host's counter is one that machine time follows.
fn is_inline(guest: &Guest) -> bool {
    let scale = guest.clock.tsc_scale();
    scale.is_some_and(|scale| scale.mult >> 62 == 0)
}

fn kernel_program(code: Code) -> Guest {
    let mut guest = Guest::new(1);
    let space = guest.space();
    guest.write(PROGRAM, &code.finish());
    guest.start(0, space, 0, KERNEL + PROGRAM);
    guest
}

#[test]
fn the_counter_never_goes_back_whoever_reads_it() {
    // mov r9d, ROUNDS
    let code = Code::new()
        .raw(&[0x41, 0xb9])
        .raw(&ROUNDS.to_le_bytes())
        .label("again")
        .later(RDTSC)
        .later(INTERPRETED)
        .later(WITH_FLAGS)
        .later(RDTSCP)
        .later(RDTSC)
        .later(INTERPRETED)
        // dec r9d
        .raw(&[0x41, 0xff, 0xc9])
        .branch(JNE, "again")
        .ends();
    let mut guest = kernel_program(code);
    guest.change(0, |state| state.gpr[8] = 0);
    assert_eq!(guest.run(), End::Result(0));
    if is_inline(&guest) {
        let callouts = guest.count(
            0,
            "translated code asks for: an instruction for the interpreter",
        );
        let expected = 2 * u64::from(ROUNDS);
        assert!(
            (expected..expected + 1000).contains(&callouts),
            "{callouts} instructions were interpreted"
        );
    }
}

/// Each vCPU reads a time that the other has published, then the counter.
#[test]
fn the_counter_is_the_same_for_all_vcpus() {
    let program = |read: &[u8], rounds: u32| {
        // mov r9d, rounds
        Code::new()
            .raw(&[0x41, 0xb9])
            .raw(&rounds.to_le_bytes())
            .set(6, KERNEL + SHARED)
            .label("again")
            // mov r8, [rsi]; lfence
            .raw(&[0x4c, 0x8b, 0x06, 0x0f, 0xae, 0xe8])
            .later(read)
            // mov [rsi], rax
            .raw(&[0x48, 0x89, 0x06])
            // dec r9d
            .raw(&[0x41, 0xff, 0xc9])
            .branch(JNE, "again")
            .ends()
            .finish()
    };
    for (one, other) in [(RDTSC, INTERPRETED), (RDTSCP, RDTSC), (INTERPRETED, RDTSCP)] {
        let mut guest = Guest::new(2);
        let space = guest.space();
        guest.write(PROGRAM, &program(one, 10 * ROUNDS));
        guest.write(OTHER_PROGRAM, &program(other, u32::MAX));
        guest.start(0, space, 0, KERNEL + PROGRAM);
        guest.start(1, space, 0, KERNEL + OTHER_PROGRAM);
        assert_eq!(guest.run(), End::Result(0));
    }
}

#[test]
fn results_fill_whole_registers() {
    // mov rax, -1; mov rdx, -1; rdtsc; mov r8, rax; mov r9, rdx; mov rax, -1; mov rdx, -1;
    // mov rcx, -1; rdtscp; mov r10, rax; mov r11, rdx; mov r12, rcx
    let code = Code::new()
        .write_msr(0xc000_0103, 0x89ab_cdef)
        .set(0, u64::MAX)
        .set(2, u64::MAX)
        .raw(RDTSC)
        .raw(&[0x49, 0x89, 0xc0, 0x49, 0x89, 0xd1])
        .set(0, u64::MAX)
        .set(2, u64::MAX)
        .set(1, u64::MAX)
        .raw(RDTSCP)
        .raw(&[0x49, 0x89, 0xc2, 0x49, 0x89, 0xd3, 0x49, 0x89, 0xcc])
        .end(0);
    let mut guest = kernel_program(code);
    let before = guest.clock.now();
    assert_eq!(guest.run(), End::Result(0));
    let after = guest.clock.now();
    let gpr = guest.state(0).gpr;
    for half in [gpr[8], gpr[9], gpr[10], gpr[11]] {
        assert_eq!(half >> 32, 0);
    }
    let (first, second) = (gpr[9] << 32 | gpr[8], gpr[11] << 32 | gpr[10]);
    assert!(before <= first && first <= second && second <= after);
    assert_eq!(gpr[12], 0x89ab_cdef);
}

#[test]
fn sdm_18_17_3_writes_of_the_counter_and_of_its_adjustment_are_seen_at_once() {
    const FAR: u64 = 1 << 50;
    // mov r9, r8 and so on between reads.
    let code = Code::new()
        .later(RDTSC)
        .raw(&[0x4d, 0x89, 0xc1])
        .write_msr(0x3b, FAR)
        .later(RDTSC)
        .raw(&[0x4d, 0x89, 0xc2])
        .write_msr(0x10, 2 * FAR)
        .later(RDTSC)
        .raw(&[0x4d, 0x89, 0xc3])
        .ends();
    let mut guest = kernel_program(code);
    guest.change(0, |state| state.gpr[8] = 0);
    let before = guest.clock.now();
    assert_eq!(guest.run(), End::Result(0));
    let passed = guest.clock.now() - before;
    let gpr = guest.state(0).gpr;
    assert!((FAR..=FAR + passed).contains(&(gpr[10] - gpr[9])));
    assert!((2 * FAR..=2 * FAR + passed).contains(&gpr[11]));
}

/// CPL 3 reads the counter, lets SYSCALL change CR4, and reads it again with the same code.
fn user_program(cr4: Cr4) -> Guest {
    let mut guest = Guest::new(1);
    let space = guest.space();
    // xor ebx, ebx; again: rdtsc; inc ebx; cmp ebx, 2; je done; syscall; jmp again
    let program = Code::new()
        .raw(&[0x31, 0xdb])
        .label("again")
        .raw(RDTSC)
        .raw(RDTSCP)
        .raw(&[0xff, 0xc3, 0x83, 0xfb, 2])
        .branch(&[0x0f, 0x84], "done")
        .raw(&[0x0f, 0x05])
        .branch(&[0xe9], "again")
        .label("done")
        .end(0);
    // rdtsc: CPL 0 may always; mov cr4, rdi; sysretq
    let handler = Code::new()
        .raw(RDTSC)
        .raw(&[0x0f, 0x22, 0xe7])
        .raw(RDTSC)
        .raw(&[0x48, 0x0f, 0x07]);
    guest.write(PROGRAM, &program.finish());
    guest.write(HANDLER, &handler.finish());
    guest.map(space, USER_PROGRAM, PROGRAM, USER);
    guest.map(space, KERNEL + HANDLER, HANDLER, GLOBAL);
    guest.start(0, space, 3, USER_PROGRAM);
    guest.change(0, |state| {
        state.syscall.lstar = KERNEL + HANDLER;
        state.gpr[7] = (state.cr4 | cr4).bits();
    });
    guest
}

#[test]
fn sdm_2_5_tsd_forbids_the_counter_outside_cpl_0() {
    let mut allowed = user_program(Cr4::empty());
    assert_eq!(allowed.run(), End::Result(0));
    let mut forbidden = user_program(Cr4::TSD);
    assert_eq!(forbidden.run(), End::Exception);
    assert_eq!(
        forbidden.state(0).gpr[3],
        1,
        "the first time, it was allowed"
    );
}

#[test]
fn a_pause_takes_no_time() {
    // again: rdtsc; join; mov r8, rax; out 0xf4, al; jmp again
    let code = Code::new()
        .label("again")
        .raw(RDTSC)
        .raw(JOIN)
        .raw(KEEP)
        .raw(&[0xe6, 0xf4])
        .branch(&[0xe9], "again");
    let mut guest = kernel_program(code);
    for _ in 0..5 {
        guest.clock.pause();
        let paused = guest.clock.now();
        std::thread::sleep(std::time::Duration::from_millis(20));
        guest.clock.resume();
        guest.run();
        guest.clock.pause();
        let read = guest.state(0).gpr[8];
        assert!((paused..=guest.clock.now()).contains(&read));
    }
}
