//! The only code in a jail besides translated code: copied to the beginning of its code memory,
//! at whatever address that is.
//!
//! The jail's process begins as a copy of the monitor. It unmaps all of that, makes a second
//! thread, and then each thread gets a filter of system calls:
//! - the *runner* executes the guest's code. One system call it may make: to set its own timer,
//!   by which it interrupts itself when an interrupt of the guest's is due, however busy its CPU
//!   is. Each other one, whichever it is, waits for the monitor: its one use is to say that it has
//!   stopped. While the monitor does not answer, the host's kernel keeps the runner from running,
//!   and not the runner's good will.
//! - the *mapper* maps and unmaps what the monitor writes to a page that the jail can only read.
//!   It keeps everything in registers, so nothing that the runner writes can mislead it.
#![expect(unsafe_code, reason = "assembly, copied by its addresses")]
// UNSAFETY: `global_asm`, and symbols in it of which only the addresses are used.

use super::orders::order;
use crate::context::{XSAVE_BYTES, field};
use crate::gate::{load_registers, save_registers};
use std::arch::global_asm;
use x86::Rflags;

/// XSAVE components: x87, SSE, AVX (SDM vol. 1, 13.1).
const COMPONENTS: u32 = 7;
/// What the monitor answers when the runner is to go on.
pub(super) const GO: i64 = 1;
/// The system call by which the runner says that it has stopped.
pub(super) const STOP_CALL: i32 = libc::SYS_getpid as i32;

/// [`Context::stopped_by`](crate::context::Context::stopped_by) of a runner that asks the monitor
/// for what [`Context::reason`](crate::context::Context::reason) says. No signal has this number.
pub(super) const ASKED: u32 = 1 << 16;
/// The signal by which a runner is interrupted, by the monitor or by its own timer. To a process
/// that does not expect it, as another one that has got a jail's number, it means nothing.
pub(super) const INTERRUPT: i32 = libc::SIGURG;

/// The runner's timer: Linux numbers the timers of a process from 0.
pub(super) const TIMER: i32 = 0;

/// The runner shares everything with the mapper but, soon, its table of descriptors.
const THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

global_asm!(
    ".pushsection .rodata.doppel_jail, \"a\"
    .balign 16
    .globl doppel_jail_begin, doppel_jail_start, doppel_jail_ask, doppel_jail_signal
    .globl doppel_jail_end
    .hidden doppel_jail_begin, doppel_jail_start, doppel_jail_ask, doppel_jail_signal
    .hidden doppel_jail_end
    doppel_jail_begin:",
    // The jail's first thread. RDI is the page of orders, R12 from here on.
    "doppel_jail_start:
    mov r12, rdi
    lea rbx, [r12 + {gaps}]
    mov ebp, [r12 + {gap_count}]
    2: mov rdi, [rbx]
    mov rsi, [rbx + 8]
    mov eax, {munmap}
    syscall
    test rax, rax
    jnz 9f
    add rbx, 16
    dec ebp
    jnz 2b
    mov edi, {thread}
    mov rsi, [r12 + {stack}]
    xor edx, edx
    xor r10d, r10d
    xor r8d, r8d
    mov eax, {clone}
    syscall
    test rax, rax
    js 9f
    jz 6f",
    // The mapper keeps two descriptors: 0, guest memory, and 1, by which it says that it is done.
    "mov edi, {files}
    mov eax, {unshare}
    syscall
    mov edi, [r12 + {memory}]
    xor esi, esi
    mov eax, {dup2}
    syscall
    mov edi, [r12 + {event}]
    mov esi, 1
    mov eax, {dup2}
    syscall
    mov edi, 2
    mov esi, -1
    xor edx, edx
    mov eax, {close_range}
    syscall
    test rax, rax
    jnz 9f
    mov edi, 1
    xor esi, esi
    lea rdx, [r12 + {mapper_filter}]
    mov eax, {seccomp}
    syscall
    test rax, rax
    jnz 9f
    xor r13d, r13d
    2: mov eax, [r12 + {sequence}]
    cmp eax, r13d
    jne 3f
    lea rdi, [r12 + {sequence}]
    xor esi, esi
    mov edx, r13d
    xor r10d, r10d
    mov eax, {futex}
    syscall
    jmp 2b
    3: mov r13d, eax
    mov ebp, [r12 + {count}]
    lea rbx, [r12 + {list}]
    lea r14, [r12 + {done}]
    test ebp, ebp
    jz 5f
    4: mov rdi, [rbx]
    mov rsi, [rbx + 8]
    mov r9, [rbx + 16]
    mov edx, [rbx + 24]
    cmp edx, -1
    je 7f
    mov r10d, {map_flags}
    xor r8d, r8d
    mov eax, {mmap}
    syscall
    cmp rax, [rbx]
    je 8f
    lea r14, [r12 + {failed}]
    jmp 8f
    7: mov eax, {munmap}
    syscall
    test rax, rax
    jz 8f
    lea r14, [r12 + {failed}]
    8: add rbx, 32
    dec ebp
    jnz 4b
    5: mov edi, 1
    mov rsi, r14
    mov edx, 8
    mov eax, {write}
    syscall
    jmp 2b
    9: mov edi, 1
    mov eax, {exit_group}
    syscall
    ud2",
    // The runner: from its filter on, all of its calls wait for the monitor.
    "6: mov edi, {set_gs}
    mov rsi, [r12 + {context}]
    mov eax, {arch_prctl}
    syscall
    lea rdi, [r12 + {signal_stack}]
    xor esi, esi
    mov eax, {sigaltstack}
    syscall
    test rax, rax
    jnz 9b
    mov eax, {gettid}
    syscall
    sub rsp, 80
    mov qword ptr [rsp], 0
    mov dword ptr [rsp + 8], {interrupt}
    mov dword ptr [rsp + 12], {to_thread}
    mov [rsp + 16], eax
    mov dword ptr [rsp + 64], -1
    mov edi, {monotonic}
    mov rsi, rsp
    lea rdx, [rsp + 64]
    mov eax, {timer_create}
    syscall
    cmp dword ptr [rsp + 64], {timer}
    jne 9b
    mov edi, 1
    mov esi, {new_listener}
    lea rdx, [r12 + {runner_filter}]
    mov eax, {seccomp}
    syscall
    test eax, eax
    js 9b
    mov gs:[{listener}], eax
    mov edi, {files}
    mov eax, {unshare}
    syscall
    xor edi, edi
    mov esi, -1
    xor edx, edx
    mov eax, {close_range}
    syscall
    jmp doppel_jail_wait",
    // Where translated code jumps when it wants something of the monitor.
    "doppel_jail_ask:",
    save_registers!(),
    "cld
    mov dword ptr gs:[{stopped_by}], {asked}
    mov eax, {components}
    xor edx, edx
    xsave64 gs:[{xsave}]
    doppel_jail_wait:
    mov eax, {stop}
    syscall
    cmp rax, {go}
    jne doppel_jail_wait
    cmp dword ptr gs:[{alarm_is_new}], 0
    je 2f
    mov edi, {timer}
    mov esi, {absolute}
    mov rdx, gs:[{alarm_address}]
    xor r10d, r10d
    mov eax, {timer_settime}
    syscall
    mov dword ptr gs:[{alarm_is_new}], 0
    2: mov eax, {components}
    xor edx, edx
    xrstor64 gs:[{xsave}]
    mov rax, gs:[{fs_base}]
    wrfsbase rax
    mov rsp, gs:[{host_rsp}]
    mov eax, ss
    push rax
    push qword ptr gs:[{host} + 32]
    push qword ptr gs:[{flags}]
    mov eax, cs
    push rax
    push qword ptr gs:[{resume}]",
    load_registers!(),
    // With TF set, the first trap comes behind one instruction of translated code.
    "iretq",
    // The handler of signals: EDI is the signal, RDX the ucontext. From what came in translated
    // code the runner does not return; the monitor says where it goes on.
    //
    // The signal that interrupts may come in the code here. On the way to the monitor, or in this
    // handler, all goes on as if it had not come: what rt_sigreturn(2) does, which is a system
    // call. On the way back nothing has changed yet, so the runner waits once more instead.
    //
    // Traps of single steps are counted. On the way to the monitor there are no more of them.
    "doppel_jail_signal:
    cmp edi, {trap}
    je 2f
    cmp edi, {interrupt}
    jne 5f
    2: mov rax, [rdx + {greg} + 8 * 16]
    lea rcx, [rip + doppel_jail_ask]
    cmp rax, rcx
    jb 3f
    lea rcx, [rip + doppel_jail_end]
    cmp rax, rcx
    jae 3f
    and qword ptr [rdx + {greg} + 8 * 17], {no_trap}
    lea rcx, [rip + doppel_jail_signal]
    cmp rax, rcx
    jae 4f
    lea rcx, [rip + doppel_jail_wait]
    cmp rax, rcx
    jb 4f
    mov rsp, gs:[{host_rsp}]
    jmp doppel_jail_wait
    3: cmp edi, {trap}
    jne 5f
    sub dword ptr gs:[{steps}], 1
    jbe 5f
    4: mov rbx, rdx
    mov rsi, [rbx + {greg} + 8 * 23]
    mov eax, {components}
    xor edx, edx
    xrstor64 [rsi]
    mov eax, ss
    push rax
    push qword ptr [rbx + {greg} + 8 * 15]
    push qword ptr [rbx + {greg} + 8 * 17]
    mov eax, cs
    push rax
    push qword ptr [rbx + {greg} + 8 * 16]
    mov r8, [rbx + {greg} + 8 * 0]
    mov r9, [rbx + {greg} + 8 * 1]
    mov r10, [rbx + {greg} + 8 * 2]
    mov r11, [rbx + {greg} + 8 * 3]
    mov r12, [rbx + {greg} + 8 * 4]
    mov r13, [rbx + {greg} + 8 * 5]
    mov r14, [rbx + {greg} + 8 * 6]
    mov r15, [rbx + {greg} + 8 * 7]
    mov rdi, [rbx + {greg} + 8 * 8]
    mov rsi, [rbx + {greg} + 8 * 9]
    mov rbp, [rbx + {greg} + 8 * 10]
    mov rdx, [rbx + {greg} + 8 * 12]
    mov rax, [rbx + {greg} + 8 * 13]
    mov rcx, [rbx + {greg} + 8 * 14]
    mov rbx, [rbx + {greg} + 8 * 11]
    iretq
    5: mov gs:[{stopped_by}], edi
    mov rax, [rdx + {greg} + 8 * 13]
    mov gs:[{host} + 0], rax
    mov rax, [rdx + {greg} + 8 * 14]
    mov gs:[{host} + 8], rax
    mov rax, [rdx + {greg} + 8 * 12]
    mov gs:[{host} + 16], rax
    mov rax, [rdx + {greg} + 8 * 11]
    mov gs:[{host} + 24], rax
    mov rax, [rdx + {greg} + 8 * 15]
    mov gs:[{host} + 32], rax
    mov rax, [rdx + {greg} + 8 * 10]
    mov gs:[{host} + 40], rax
    mov rax, [rdx + {greg} + 8 * 9]
    mov gs:[{host} + 48], rax
    mov rax, [rdx + {greg} + 8 * 8]
    mov gs:[{host} + 56], rax
    mov rax, [rdx + {greg} + 8 * 0]
    mov gs:[{host} + 64], rax
    mov rax, [rdx + {greg} + 8 * 1]
    mov gs:[{host} + 72], rax
    mov rax, [rdx + {greg} + 8 * 2]
    mov gs:[{host} + 80], rax
    mov rax, [rdx + {greg} + 8 * 3]
    mov gs:[{host} + 88], rax
    mov rax, [rdx + {greg} + 8 * 4]
    mov gs:[{host} + 96], rax
    mov rax, [rdx + {greg} + 8 * 5]
    mov gs:[{host} + 104], rax
    mov rax, [rdx + {greg} + 8 * 6]
    mov gs:[{host} + 112], rax
    mov rax, [rdx + {greg} + 8 * 7]
    mov gs:[{host} + 120], rax
    mov rax, [rdx + {greg} + 8 * 16]
    mov gs:[{resume}], rax
    mov rax, [rdx + {greg} + 8 * 17]
    mov gs:[{flags}], rax
    mov rax, [rdx + {greg} + 8 * 19]
    mov gs:[{fault_error}], eax
    mov rax, [rdx + {greg} + 8 * 20]
    mov gs:[{fault_vector}], eax
    mov rax, [rdx + {greg} + 8 * 22]
    mov gs:[{fault_address}], rax
    mov rsi, [rdx + {greg} + 8 * 23]
    mov rdi, gs:[{xsave_address}]
    mov ecx, {xsave_bytes} / 8
    cld
    rep movsq
    mov rsp, gs:[{host_rsp}]
    jmp doppel_jail_wait
    doppel_jail_end:
    .popsection",
    gaps = const order!(gaps),
    gap_count = const order!(gap_count),
    stack = const order!(stack),
    memory = const order!(memory),
    event = const order!(event),
    context = const order!(context),
    signal_stack = const order!(signal_stack),
    mapper_filter = const order!(mapper_filter),
    runner_filter = const order!(runner_filter),
    sequence = const order!(sequence),
    count = const order!(count),
    list = const order!(list),
    done = const order!(done),
    failed = const order!(failed),
    munmap = const libc::SYS_munmap,
    mmap = const libc::SYS_mmap,
    clone = const libc::SYS_clone,
    unshare = const libc::SYS_unshare,
    dup2 = const libc::SYS_dup2,
    close_range = const libc::SYS_close_range,
    seccomp = const libc::SYS_seccomp,
    futex = const libc::SYS_futex,
    write = const libc::SYS_write,
    exit_group = const libc::SYS_exit_group,
    arch_prctl = const libc::SYS_arch_prctl,
    sigaltstack = const libc::SYS_sigaltstack,
    thread = const THREAD,
    files = const libc::CLONE_FILES,
    map_flags = const libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE,
    set_gs = const 0x1001,
    gettid = const libc::SYS_gettid,
    timer_create = const libc::SYS_timer_create,
    timer_settime = const libc::SYS_timer_settime,
    to_thread = const libc::SIGEV_THREAD_ID,
    monotonic = const libc::CLOCK_MONOTONIC,
    absolute = const libc::TIMER_ABSTIME,
    timer = const TIMER,
    alarm_is_new = const field!(alarm_is_new),
    alarm_address = const field!(alarm_address),
    new_listener = const libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
    listener = const field!(jail_listener),
    host = const field!(host),
    host_rsp = const field!(host_rsp),
    flags = const field!(flags),
    xsave = const field!(xsave),
    xsave_address = const field!(xsave_address),
    xsave_bytes = const XSAVE_BYTES,
    fs_base = const field!(fs_base),
    resume = const field!(resume),
    steps = const field!(steps),
    trap = const libc::SIGTRAP,
    no_trap = const !(Rflags::TF.bits() as i32),
    stopped_by = const field!(stopped_by),
    asked = const ASKED,
    interrupt = const INTERRUPT,
    fault_error = const field!(fault_error),
    fault_vector = const field!(fault_vector),
    fault_address = const field!(fault_address),
    components = const COMPONENTS,
    stop = const STOP_CALL,
    go = const GO,
    greg = const 40,
);

unsafe extern "C" {
    static doppel_jail_begin: u8;
    static doppel_jail_start: u8;
    static doppel_jail_ask: u8;
    static doppel_jail_signal: u8;
    static doppel_jail_end: u8;
}

/// The code, and where in it things are.
pub(super) struct Stub {
    pub(super) code: &'static [u8],
    /// Where the jail's process begins, with the address of its orders in RDI.
    pub(super) start: usize,
    /// Where translated code asks the monitor.
    pub(super) ask: usize,
    /// The handler of signals.
    pub(super) signal: usize,
}

impl Stub {
    pub(super) fn get() -> Self {
        let begin = &raw const doppel_jail_begin;
        let offset = |place: *const u8| place as usize - begin as usize;
        let len = offset(&raw const doppel_jail_end);
        Self {
            // SAFETY: the assembly above, between its first and its last label.
            code: unsafe { std::slice::from_raw_parts(begin, len) },
            start: offset(&raw const doppel_jail_start),
            ask: offset(&raw const doppel_jail_ask),
            signal: offset(&raw const doppel_jail_signal),
        }
    }
}
