//! SYSCALL and SYSRET without help.

use crate::code::Code;
use crate::guest::{End, Guest, KERNEL, USER};
use x86::Rflags;

/// Guest-physical pages: the program, what it calls, and the kernel's stack.
const PROGRAM: u64 = 0x11_0000;
const HANDLER: u64 = 0x14_0000;
const STACK: u64 = 0x15_0000;
/// Where the program is.
const LINEAR: u64 = 0x40_0000;
const CALLS: u32 = 1000;

/// What Linux has SYSCALL clear.
const MASK: u64 = 0x25_7fd5;
/// `mov r15, rcx` and back, around what needs RCX.
const SAVE: &[u8] = &[0x49, 0x89, 0xcf];
const RESTORE: &[u8] = &[0x4c, 0x89, 0xf9];
const WRMSR: &[u8] = &[0x0f, 0x30];

/// Goes back to the program, but the last time ends with result 1. R12 counts.
fn go_back(code: Code) -> Code {
    // inc r12; cmp r12d, CALLS; je end; sysretq
    code.raw(&[0x49, 0xff, 0xc4, 0x41, 0x81, 0xfc])
        .raw(&CALLS.to_le_bytes())
        .raw(&[0x74, 0x03, 0x48, 0x0f, 0x07])
        .end(1)
}

/// `mov ecx, number; mov eax, low; mov edx, high`
fn msr(code: Code, number: u32, value: u64) -> Code {
    code.raw(&[0xb9])
        .raw(&number.to_le_bytes())
        .raw(&[0xb8])
        .raw(&(value as u32).to_le_bytes())
        .raw(&[0xba])
        .raw(&((value >> 32) as u32).to_le_bytes())
}

/// A program that calls `handler` again and again, with CF, PF and ZF set. It leaves its CS in
/// R13 and its SS in R14, and in bits 15:8 of RSI the flags with which it was returned to.
fn guest(handler: Code) -> Guest {
    set_up(Guest::new(1), handler)
}

/// A guest in lock-step whose program makes [`CALLS`] calls that do nothing.
pub(crate) fn in_lock_step() -> (Guest, u64) {
    let guest = set_up(Guest::in_lock_step(), go_back(Code::new()));
    (guest, CALLS.into())
}

fn set_up(mut guest: Guest, handler: Code) -> Guest {
    let space = guest.space();
    // again: mov r13d, cs; mov r14d, ss; xor eax, eax; stc; syscall; lahf; mov esi, eax; jmp again
    let code = Code::new()
        .label("again")
        .raw(&[0x41, 0x8c, 0xcd, 0x41, 0x8c, 0xd6])
        .raw(&[0x31, 0xc0, 0xf9, 0x0f, 0x05, 0x9f, 0x89, 0xc6])
        .branch(&[0xe9], "again");
    guest.write(PROGRAM, &code.finish());
    guest.write(HANDLER, &handler.finish());
    guest.map(space, LINEAR, PROGRAM, USER);
    guest.start(0, space, 3, LINEAR);
    guest.change(0, |state| {
        state.syscall.lstar = KERNEL + HANDLER;
        state.syscall.fmask = MASK;
        state.gpr[4] = KERNEL + STACK + 0x800;
        state.rflags = Rflags::FIXED | Rflags::IF;
    });
    guest
}

fn helped(guest: &Guest) -> u64 {
    guest.count(
        0,
        "translated code asks for: an instruction for the interpreter",
    )
}

#[test]
fn nobody_helps_in_a_loop() {
    // mov r8d, cs; mov r9d, ss; pushfq; pop rdi
    let code = Code::new().raw(&[0x41, 0x8c, 0xc8, 0x41, 0x8c, 0xd1, 0x9c, 0x5f]);
    let mut guest = guest(go_back(code));
    assert_eq!(guest.run(), End::Result(1));
    let state = guest.state(0);
    assert_eq!(
        (state.gpr[13], state.gpr[14]),
        (0x2b, 0x23),
        "in the program"
    );
    assert_eq!((state.gpr[8], state.gpr[9]), (0x08, 0x10), "in the handler");
    assert_eq!(state.gpr[7], 2, "the handler's flags");
    assert_eq!(state.gpr[11], 0x247, "the program's flags");
    assert_eq!(state.gpr[6] >> 8, 0x47, "the flags after the call");
    assert_eq!(state.segments[1].selector.0, 0x08);
    assert_eq!(state.segments[2].selector.0, 0x10);
    assert_eq!(state.segments[1].dpl(), 0);
    assert!(helped(&guest) < 10, "{} callouts", helped(&guest));
}

/// The kernel writes the MSRs in the first call.
#[test]
fn writes_of_the_msrs_count_from_the_next_call_on() {
    const SECOND: usize = 0x80;
    let mut code = msr(
        Code::new().raw(SAVE),
        x86::msr::IA32_LSTAR,
        KERNEL + HANDLER + SECOND as u64,
    );
    let kept = Rflags::ZF | Rflags::PF;
    code = msr(code.raw(WRMSR), x86::msr::IA32_FMASK, MASK & !kept.bits());
    let star = 0x08 << 32 | 0x33 << 48;
    code = msr(code.raw(WRMSR), x86::msr::IA32_STAR, star);
    code = go_back(code.raw(WRMSR).raw(RESTORE)).fill_to(SECOND, 0xcc);
    // inc rbx; pushfq; pop rdi, with the flags as they were
    code = code.raw(&[0x9c, 0x5f, 0x48, 0xff, 0xc3]);
    let mut guest = guest(go_back(code));
    assert_eq!(guest.run(), End::Result(1));
    let state = guest.state(0);
    assert_eq!(state.gpr[3], u64::from(CALLS) - 1);
    assert_eq!(state.gpr[7], (Rflags::FIXED | kept).bits());
    assert_eq!((state.gpr[13], state.gpr[14]), (0x43, 0x3b));
    assert!(helped(&guest) < 10, "{} callouts", helped(&guest));
}

/// SYSCALL and SYSRET raise #UD while EFER.SCE is clear.
#[test]
fn sdm_2_sysret_without_sce_is_undefined() {
    // rdmsr; btr eax, 0; wrmsr
    let code = msr(Code::new().raw(SAVE), x86::msr::IA32_EFER, 0)
        .raw(&[0x0f, 0x32, 0x0f, 0xba, 0xf0, 0x00])
        .raw(WRMSR)
        .raw(RESTORE);
    let mut guest = guest(go_back(code));
    assert_eq!(guest.run(), End::Exception);
    let state = guest.state(0);
    assert_eq!((state.gpr[12], state.segments[1].dpl()), (1, 0));
}

/// The end of user space, where the return address is not canonical.
#[test]
fn sdm_2_sysret_to_an_address_that_is_not_canonical_faults_in_the_kernel_or_at_the_fetch() {
    // bts rcx, 47
    let code = Code::new().raw(&[0x48, 0x0f, 0xba, 0xe9, 47]);
    let mut guest = guest(go_back(code));
    assert_eq!(guest.run(), End::Exception);
    let is_amd = interpreter::cpuid::table(0, 1, 1_000_000).get(0, 0).ecx == 0x444d_4163;
    let dpl = if is_amd { 3 } else { 0 };
    assert_eq!(guest.state(0).segments[1].dpl(), dpl);
}
