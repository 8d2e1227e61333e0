//! The bases of FS and GS, read and written without help.

use crate::code::Code;
use crate::guest::{End, Guest, KERNEL, PAGE, USER};
use x86::Cr4;

/// Guest-physical pages: the program, and two of data.
const PROGRAM: u64 = 0x11_0000;
const DATA: [u64; 2] = [0x12_0000, 0x13_0000];
/// Where the program is; the data follow it.
const LINEAR: u64 = 0x40_0000;
const ROUNDS: u32 = 1000;
/// Where operands relative to RIP are as near to address 0 as to RIP.
const TOP: u64 = 0xffff_ffff_8100_0000;

/// Accesses before and behind a write of a base, which one check would serve if the base stayed.
#[test]
fn what_follows_a_write_uses_the_new_base() {
    // prefix 0x64: FS, 0x65: GS; WRFSBASE rdi is /2, WRGSBASE rdi /3, RDFSBASE rsi /0, RDGSBASE /1.
    for (prefix, write, read) in [(0x64, 0xd7, 0xc6), (0x65, 0xdf, 0xce)] {
        let mut guest = Guest::new(1);
        let space = guest.space();
        // mov ebp, ROUNDS; again: mov rax, fs:[8]; mov rbx, fs:[16]; wrfsbase rdi;
        // mov r8, fs:[8]; mov r9, fs:[16]; rdfsbase rsi; wrfsbase r10; dec ebp; jnz again
        let code = Code::new()
            .raw(&[0xbd])
            .raw(&ROUNDS.to_le_bytes())
            .label("again")
            .raw(&[prefix, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0])
            .raw(&[prefix, 0x48, 0x8b, 0x1c, 0x25, 16, 0, 0, 0])
            .raw(&[0xf3, 0x48, 0x0f, 0xae, write])
            .raw(&[prefix, 0x4c, 0x8b, 0x04, 0x25, 8, 0, 0, 0])
            .raw(&[prefix, 0x4c, 0x8b, 0x0c, 0x25, 16, 0, 0, 0])
            .raw(&[0xf3, 0x48, 0x0f, 0xae, read])
            .raw(&[0xf3, 0x49, 0x0f, 0xae, write & 0xf8 | 2])
            .raw(&[0xff, 0xcd])
            .branch(&[0x0f, 0x85], "again")
            .end(1);
        guest.write(PROGRAM, &code.finish());
        guest.map(space, LINEAR, PROGRAM, USER);
        for (n, gpa) in (1..).zip(DATA) {
            guest.map(space, LINEAR + n * PAGE, gpa, USER);
            guest.write(gpa + 8, &(10 * n).to_le_bytes());
            guest.write(gpa + 16, &(10 * n + 1).to_le_bytes());
        }
        guest.start(0, space, 3, LINEAR);
        guest.change(0, |state| {
            state.cr4 |= Cr4::FSGSBASE;
            state.segments[4].base = LINEAR + PAGE;
            state.segments[5].base = LINEAR + PAGE;
            state.gpr[7] = LINEAR + 2 * PAGE;
            state.gpr[10] = LINEAR + PAGE;
        });
        assert_eq!(guest.run(), End::Result(1));
        let state = guest.state(0);
        // The end's result is in AL.
        assert_eq!((state.gpr[0], state.gpr[3]), (1, 11), "before the write");
        assert_eq!((state.gpr[8], state.gpr[9]), (20, 21), "behind it");
        assert_eq!(state.gpr[6], LINEAR + 2 * PAGE);
        assert_eq!(state.segments[4].base, LINEAR + PAGE);
        assert_eq!(state.segments[5].base, LINEAR + PAGE);
        let helped = guest.count(
            0,
            "translated code asks for: an instruction for the interpreter",
        );
        assert!(helped < 10, "{helped} callouts");
    }
}

/// LEA leaves the segment's base out, also of an address relative to RIP.
#[test]
fn sdm_2_lea_has_no_segment() {
    let mut guest = Guest::new(1);
    let space = guest.space();
    // lea r9d, gs:[rip + 10h]; lea rbx, fs:[rip + 10h]; lea rdi, gs:[rip - 20h]
    let code = Code::new()
        .raw(&[0x65, 0x44, 0x8d, 0x0d, 0x10, 0, 0, 0])
        .raw(&[0x64, 0x48, 0x8d, 0x1d, 0x10, 0, 0, 0])
        .raw(&[0x65, 0x48, 0x8d, 0x3d, 0xe0, 0xff, 0xff, 0xff])
        .end(1);
    guest.write(PROGRAM, &code.finish());
    guest.map(space, LINEAR, PROGRAM, USER);
    guest.map(space, TOP, PROGRAM, 0);
    for (cpl, at) in [(0, KERNEL + PROGRAM), (0, TOP), (3, LINEAR)] {
        guest.start(0, space, cpl, at);
        guest.change(0, |state| {
            state.segments[4].base = LINEAR + PAGE;
            state.segments[5].base = KERNEL;
        });
        assert_eq!(guest.run(), End::Result(1));
        let state = guest.state(0);
        assert_eq!(state.gpr[9], (at + 0x18) & 0xffff_ffff);
        assert_eq!((state.gpr[3], state.gpr[7]), (at + 0x20, at - 8));
    }
}
