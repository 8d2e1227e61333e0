//! Faults in little programs, which run as translated code does: on a stack that isn't one.

use super::*;
use crate::code_memory::CodeMemory;
use crate::timer::{Ring, Timer};
use std::arch::naked_asm;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

/// Calls `code` with RSP = `guest_stack` and R15 = `argument`, and returns RAX of [`resume`]; the
/// stack pointer to resume with goes to `host_stack`.
#[unsafe(naked)]
unsafe extern "C" fn run(
    code: usize,
    host_stack: *mut u64,
    guest_stack: u64,
    argument: u64,
) -> u64 {
    naked_asm!(
        "push rbx
         push rbp
         push r12
         push r13
         push r14
         push r15
         mov [rsi], rsp
         mov rsp, rdx
         mov r15, rcx
         jmp rdi",
    )
}

/// Where programs go on after a fault: returns the flags from [`run`].
#[unsafe(naked)]
unsafe extern "C" fn resume() {
    naked_asm!(
        "pushfq
         pop rax
         pop r15
         pop r14
         pop r13
         pop r12
         pop rbp
         pop rbx
         ret",
    )
}

/// A program that is entered like translated code, and the record of its fault.
struct Program {
    memory: CodeMemory,
    host_stack: Box<u64>,
    record: Box<FaultRecord>,
    /// RFLAGS as [`resume`] saw them.
    flags_after: u64,
}

/// A stack pointer that is not canonical.
const NO_STACK: u64 = 0x1234_5678_9abc_def0;

impl Program {
    fn new(code: &[u8]) -> Self {
        let mut memory = CodeMemory::new(4096).expect("memory for code");
        memory.write(OFFSET, code);
        memory.publish();
        Self {
            memory,
            host_stack: Box::new(0),
            record: Box::default(),
            flags_after: 0,
        }
    }

    fn enter(&mut self) -> Thread {
        // SAFETY: the memory and the boxes outlive the guards of these tests, programs leave the
        // FS base alone, and `resume` undoes what `run` did.
        unsafe {
            Thread::enter(
                self.memory.range(),
                resume as *const () as usize,
                &raw const *self.host_stack,
                &raw mut *self.record,
            )
        }
        .expect("a registered thread")
    }

    /// Runs the program until it faults.
    fn run(&mut self, guest_stack: u64, argument: u64) {
        let thread = self.enter();
        let address = self.memory.address(OFFSET);
        // SAFETY: entered above. The program ends by a fault.
        self.flags_after =
            unsafe { run(address, &raw mut *self.host_stack, guest_stack, argument) };
        drop(thread);
    }

    /// How far into the program the fault was.
    fn fault_offset(&self) -> usize {
        self.memory
            .offset_of(self.record.rip as usize)
            .expect("in the program")
            - OFFSET
    }
}

/// Where programs begin: not at the edge of their memory.
const OFFSET: usize = 64;

#[test]
fn a_division_by_zero_is_recorded_with_all_registers() {
    // Moves 1 to 14 to the registers in the order of their numbers (but RSP and R15), then
    // `std; stc; xor eax, eax; xor edx, edx; div edx`.
    let mut code = Vec::new();
    for number in (1..15_u8).filter(|&number| number != 4) {
        let rex = if number >= 8 { 0x41 } else { 0x40 };
        code.extend([rex, 0xb8 + number % 8, number, 0, 0, 0]);
    }
    let moves = code.len();
    code.extend([0x31, 0xc0, 0x31, 0xd2, 0xfd, 0xf9, 0xf7, 0xf2]);
    let mut program = Program::new(&code);
    program.run(NO_STACK, 15);
    let record = *program.record;
    let mut expected: [u64; 16] = std::array::from_fn(|number| number as u64);
    expected[0] = 0;
    expected[2] = 0;
    expected[4] = NO_STACK;
    assert_eq!(record.registers, expected);
    assert_eq!((record.signal, record.vector), (libc::SIGFPE, 0));
    assert_eq!(record.code, 1, "FPE_INTDIV");
    assert_eq!(record.address, record.rip);
    assert_eq!(program.fault_offset(), moves + 6);
    assert_eq!(record.rflags & 0x401, 0x401, "DF and CF were set");
    assert_eq!(program.flags_after & 0x401, 0, "and are clear in Rust");
}

#[test]
fn a_load_from_nowhere_is_recorded_with_its_address() {
    // `mov rax, [r15]`.
    let mut program = Program::new(&[0x49, 0x8b, 0x07]);
    program.run(NO_STACK, 0x10);
    let record = *program.record;
    assert_eq!((record.signal, record.vector), (libc::SIGSEGV, 14));
    assert_eq!(record.address, 0x10);
    assert_eq!(record.error, 4, "a read, by user code, of no page");
    assert_eq!(program.fault_offset(), 0);
}

#[test]
fn a_load_from_an_address_that_is_not_canonical_is_recorded() {
    // `nop; mov rax, [r15]`.
    let mut program = Program::new(&[0x90, 0x49, 0x8b, 0x07]);
    program.run(NO_STACK, 1 << 63);
    let record = *program.record;
    assert_eq!((record.signal, record.vector), (libc::SIGSEGV, 13));
    assert_eq!((record.code, record.address), (0x80, 0), "SI_KERNEL");
    assert_eq!(record.registers[15], 1 << 63);
    assert_eq!(program.fault_offset(), 1);
}

#[test]
fn a_push_to_a_stack_that_is_not_canonical_is_a_bus_error() {
    // `push rax`.
    let mut program = Program::new(&[0x50]);
    program.run(NO_STACK, 0);
    assert_eq!(
        (program.record.signal, program.record.vector),
        (libc::SIGBUS, 12)
    );
    assert_eq!(program.record.registers[4], NO_STACK);
}

#[test]
fn an_undefined_instruction_is_recorded() {
    // `ud2`.
    let mut program = Program::new(&[0x0f, 0x0b]);
    program.run(NO_STACK, 0);
    assert_eq!(
        (program.record.signal, program.record.vector),
        (libc::SIGILL, 6)
    );
}

#[test]
fn an_access_that_is_not_aligned_is_recorded_and_the_check_is_off_afterwards() {
    const AC: u64 = 1 << 18;
    // Sets AC by way of a stack at R15 (`push 0x40002; popfq`), then `mov rax, [r15 - 5]`.
    let mut program = Program::new(&[0x68, 0x02, 0x00, 0x04, 0x00, 0x9d, 0x49, 0x8b, 0x47, 0xfb]);
    let stack = [0_u64; 8];
    let top = (&raw const stack[7]) as u64;
    program.run(top, top);
    assert_eq!(
        (program.record.signal, program.record.vector),
        (libc::SIGBUS, 17)
    );
    assert_eq!(program.record.rflags & AC, AC);
    assert_eq!(program.flags_after & AC, 0);
}

/// A guest that points its stack into the alternate stack must not choose where the kernel
/// writes.
#[test]
fn a_stack_pointer_into_the_alternate_stack_is_no_trick() {
    let mut program = Program::new(&[0x0f, 0x0b]);
    let thread = program.enter();
    let stack = thread._stack.as_argument();
    // Near the bottom, but above the red zone: a frame below this would hit the guard, which
    // kills the process.
    let guest_stack = stack.ss_sp as u64 + 1024;
    let address = program.memory.address(OFFSET);
    // SAFETY: entered above. The program ends by a fault.
    unsafe { run(address, &raw mut *program.host_stack, guest_stack, 0) };
    assert_eq!(program.record.registers[4], guest_stack);
    drop(thread);
}

#[test]
fn faults_can_follow_one_another() {
    let mut program = Program::new(&[0x0f, 0x0b]);
    let thread = program.enter();
    let address = program.memory.address(OFFSET);
    for argument in 0..1000 {
        // SAFETY: entered above. The program ends by a fault.
        unsafe { run(address, &raw mut *program.host_stack, NO_STACK, argument) };
        assert_eq!(program.record.registers[15], argument);
    }
    drop(thread);
}

#[test]
fn the_thread_is_afterwards_as_it_was() {
    let state = || {
        let mut stack = Stack::new().expect("a stack").as_argument();
        // SAFETY: asks for the stack and the mask.
        unsafe {
            let mut mask = 0_u64;
            assert_eq!(libc::sigaltstack(ptr::null(), &raw mut stack), 0);
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                ptr::null::<u64>(),
                &raw mut mask,
                size_of::<u64>(),
            );
            (stack.ss_sp as usize, stack.ss_size, stack.ss_flags, mask)
        }
    };
    let before = state();
    let mut program = Program::new(&[0x0f, 0x0b]);
    let thread = program.enter();
    let during = state();
    assert_ne!(during, before);
    assert_eq!(during.2, SS_AUTODISARM);
    // SIGKILL and SIGSTOP can't be blocked.
    let unblockable = bit(libc::SIGKILL) | bit(libc::SIGSTOP);
    assert_eq!(during.3, mask_of_vcpus() & !unblockable);
    drop(thread);
    assert_eq!(state(), before);
}

#[test]
#[should_panic(expected = "one vCPU at a time")]
fn a_thread_runs_one_vcpu() {
    let mut programs = [0; 2].map(|_| Program::new(&[0x0f, 0x0b]));
    let _threads = programs.each_mut().map(Program::enter);
}

/// Threads at the same time, each with its own record.
#[test]
fn each_thread_has_its_own_record() {
    let threads: Vec<_> = (0..4)
        .map(|argument| {
            std::thread::spawn(move || {
                let mut program = Program::new(&[0x0f, 0x0b]);
                for _ in 0..100 {
                    program.run(NO_STACK, argument);
                    assert_eq!(program.record.registers[15], argument);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
}

#[derive(Default)]
struct Bell(AtomicU64);

// SAFETY: one atomic addition.
unsafe impl Ring for Bell {
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The timer's signal arrives while RSP is no stack, and the code goes on.
#[test]
fn a_timer_rings_in_translated_code() {
    // `l: cmp qword ptr [r15], 0; je l; ud2`: waits for the ring.
    let mut program = Program::new(&[0x49, 0x83, 0x3f, 0x00, 0x74, 0xfa, 0x0f, 0x0b]);
    let bell = Arc::new(Bell::default());
    let mut timer = Timer::new(bell.clone()).expect("a timer");
    timer.arm(Duration::from_millis(5));
    program.run(NO_STACK, bell.0.as_ptr() as u64);
    assert_eq!(program.fault_offset(), 6);
    assert_eq!(program.record.registers[4], NO_STACK);
    assert_eq!(bell.0.load(Ordering::SeqCst), 1);
}

/// Keeps the flags that it is called with.
#[derive(Default)]
struct Flags(AtomicU64);

// SAFETY: one atomic store.
unsafe impl Ring for Flags {
    fn ring(&self) {
        let flags: u64;
        // SAFETY: reads the flags.
        unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
        self.0.store(flags, Ordering::SeqCst);
    }
}

#[test]
fn handlers_run_without_the_alignment_check_of_the_guest() {
    // `push 0x40002; popfq`, and waits for the ring as above.
    let mut program = Program::new(&[
        0x68, 0x02, 0x00, 0x04, 0x00, 0x9d, // sets AC
        0x49, 0x83, 0x3f, 0x00, 0x74, 0xfa, 0x0f, 0x0b,
    ]);
    let stack = [0_u64; 8];
    let flags = Arc::new(Flags::default());
    let mut timer = Timer::new(flags.clone()).expect("a timer");
    timer.arm(Duration::from_millis(5));
    program.run((&raw const stack[7]) as u64, flags.0.as_ptr() as u64);
    assert_eq!(program.fault_offset(), 12);
    assert_eq!(program.record.rflags & 1 << 18, 1 << 18);
    let flags = flags.0.load(Ordering::SeqCst);
    assert!(flags != 0 && flags & 1 << 18 == 0, "{flags:#x}");
}

static SEEN_BEFORE: AtomicUsize = AtomicUsize::new(0);

/// Somebody else's handler, who steps over `ud2`.
extern "C" fn step_over(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    SEEN_BEFORE.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the kernel's context.
    let context = unsafe { &mut *context.cast::<ucontext_t>() };
    context.uc_mcontext.gregs[libc::REG_RIP as usize] += 2;
}

/// Needs a process of its own, which nextest gives it: under `cargo test` the handlers from
/// another test may be installed before this one's.
#[test]
fn a_fault_elsewhere_reaches_the_handler_from_before() {
    if SIGNALS.iter().any(|(_, previous)| previous.get().is_some()) {
        return;
    }
    static UNUSED: OnceLock<Previous> = OnceLock::new();
    // SAFETY: `step_over` is for the `ud2` below.
    unsafe { signal::install(libc::SIGILL, step_over, &UNUSED) }.expect("a handler");
    let mut program = Program::new(&[0x0f, 0x0b]);
    program.run(NO_STACK, 0);
    assert_eq!(SEEN_BEFORE.load(Ordering::SeqCst), 0);
    let thread = program.enter();
    // SAFETY: its handler steps over it.
    unsafe { asm!("ud2") };
    assert_eq!(SEEN_BEFORE.load(Ordering::SeqCst), 1);
    drop(thread);
    // SAFETY: as above.
    unsafe { asm!("ud2") };
    assert_eq!(SEEN_BEFORE.load(Ordering::SeqCst), 2);
}

/// A fault of the monitor itself ends it, with the signal that says why.
#[test]
fn a_fault_elsewhere_kills() {
    let mut program = Program::new(&[0x0f, 0x0b]);
    program.run(NO_STACK, 0);
    let thread = program.enter();
    // SAFETY: the child, which is a copy of this thread, does nothing but to fault.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: reads what isn't there: that is the point. Exits with a status if it can.
        unsafe {
            asm!("mov {0}, [{0}]", inout(reg) 8_u64 => _);
            libc::_exit(0);
        }
    }
    drop(thread);
    let mut status = 0;
    // SAFETY: waits for the child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status), "{status:#x}");
    assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
}

/// A signal that somebody sends is none of the guest's, even if it arrives in translated code.
#[test]
fn only_the_cpu_can_raise_a_fault() {
    let mut program = Program::new(&[0x0f, 0x0b]);
    let code = program.memory.range();
    let registration = Registration {
        code: code.clone(),
        resume: 1,
        host_stack: &raw const *program.host_stack,
        record: &raw mut *program.record,
    };
    // SAFETY: all-zero bytes are a valid siginfo and context.
    let (mut info, mut context): (siginfo_t, ucontext_t) = unsafe {
        use std::mem::MaybeUninit;
        (
            MaybeUninit::zeroed().assume_init(),
            MaybeUninit::zeroed().assume_init(),
        )
    };
    let mut is_taken = |signal, code, rip| {
        info.si_code = code;
        context.uc_mcontext.gregs[libc::REG_RIP as usize] = rip as i64;
        // SAFETY: pretends that this thread is interrupted.
        unsafe { take(&registration, signal, &info, &mut context) }
    };
    assert!(!is_taken(libc::SIGSEGV, libc::SI_USER, code.start));
    assert!(!is_taken(libc::SIGSEGV, libc::SI_TKILL, code.start));
    assert!(!is_taken(libc::SIGBUS, libc::BUS_MCEERR_AR, code.start));
    assert!(!is_taken(libc::SIGSEGV, 1, code.start - 1));
    assert!(!is_taken(libc::SIGSEGV, 1, code.end));
    assert!(is_taken(libc::SIGSEGV, 1, code.start));
    assert!(is_taken(libc::SIGBUS, 0x80, code.end - 1));
}
