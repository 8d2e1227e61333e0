//! Faults in translated code: SIGFPE, SIGSEGV, SIGBUS and SIGILL become records for the vCPU.
//!
//! Handlers are installed once per process. A vCPU's thread says where its translated code is
//! by [`Thread::enter`], for as long as it runs. A signal that an instruction in there raised goes
//! into the thread's [`FaultRecord`], and the thread goes on at an address of the vCPU's choice.
//! All other signals are passed on to the handlers from before, so a fault in the monitor itself
//! ends it as ever.
//!
//! # Stacks
//! In translated code RSP is the guest's: the kernel must never write a signal's frame to where
//! it points. So the thread has an alternate stack, all signals are blocked for which a handler
//! could be installed that doesn't use it, and the stack has `SS_AUTODISARM`. Without that flag
//! the kernel takes an RSP inside of the alternate stack for a sign that the thread is there
//! already, and writes the frame below RSP: a guest could choose where. With it, the stack counts
//! as unused until a handler is on it, whatever RSP is (sigaltstack(2)).
//!
//! # What the handler may use
//! It must be async-signal-safe, at any instruction of the process. It reads one thread-local
//! pointer, which has a constant initial value and no destructor: that is a load relative to the
//! FS base, with no lazy step that could allocate, as the monitor is an executable and not a
//! library that is loaded later. The FS base is the host's, also in translated code (the guest's
//! is data). The pointer is an atomic: what the thread stored before it entered translated code
//! is what its handler sees. No lock is taken and nothing else of the process is touched.
#![expect(unsafe_code, reason = "handles signals and switches stacks")]
// UNSAFETY: the handler reads and changes the registers of the interrupted code, only if that is
// translated code of its own thread, whose owner said by an unsafe call where it may go on.

use std::arch::asm;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::{fmt, io};

use libc::{c_int, c_void, siginfo_t, stack_t, ucontext_t};
use native::signal::{self, Previous};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::timer;

/// What an instruction in translated code did, and the registers as it found them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct FaultRecord {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: as instructions number them.
    pub(crate) registers: [u64; 16],
    /// The address of the instruction.
    pub(crate) rip: u64,
    /// The flags, with RF set as by every fault (SDM vol. 3A, 17.3.1.1).
    pub(crate) rflags: u64,
    /// `si_addr`: of SIGSEGV and SIGBUS the address of the access, 0 if it was not canonical; of
    /// the others that of the instruction.
    pub(crate) address: u64,
    /// SIGFPE, SIGSEGV, SIGBUS or SIGILL.
    pub(crate) signal: i32,
    /// `si_code`.
    pub(crate) code: i32,
    /// The vector of the CPU's exception: 13 is #GP.
    pub(crate) vector: u32,
    /// Its error code.
    pub(crate) error: u32,
}

/// Where the kernel keeps [`FaultRecord::registers`].
const REGISTERS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// What CPU exceptions in translated code raise, and who handled that before.
static SIGNALS: [(c_int, OnceLock<Previous>); 4] = [
    (libc::SIGFPE, OnceLock::new()),
    (libc::SIGSEGV, OnceLock::new()),
    (libc::SIGBUS, OnceLock::new()),
    (libc::SIGILL, OnceLock::new()),
];

/// Flags (SDM vol. 1, 3.4.3) that translated code may leave as Rust code must not find them: CF,
/// PF, AF, ZF, SF, TF, DF, OF, NT, RF and AC.
const GUEST_FLAGS: i64 = 0x5_4dd5;

/// `SS_AUTODISARM` (sigaltstack(2)), which the libc crate doesn't have.
const SS_AUTODISARM: c_int = 1 << 31;

/// Bytes of the alternate stack besides the kernel's frame: for handlers that signals are passed
/// on to, which may print.
const HANDLER_STACK: usize = 64 << 10;

/// Bytes below the alternate stack that nobody may touch.
const GUARD: usize = 4096;

/// What the handler knows of the thread that it runs on.
struct Registration {
    code: Range<usize>,
    resume: usize,
    host_stack: *const u64,
    record: *mut FaultRecord,
}

thread_local! {
    /// Of the vCPU that this thread runs, or null.
    static CURRENT: AtomicPtr<Registration> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// A thread whose translated code may raise signals, until this is dropped.
pub(crate) struct Thread {
    registration: NonNull<Registration>,
    /// Kept until it is not the thread's alternate stack any more.
    _stack: Stack,
    previous_stack: stack_t,
    previous_mask: u64,
    /// Dropped by the thread that made it.
    _not_send: PhantomData<*mut ()>,
}

impl Thread {
    /// Makes signals raised by an instruction in `code` resume at `resume`, on this thread, with
    /// RSP as read from `host_stack` at the time, and the arithmetic flags, DF, TF, NT and AC
    /// clear. `*record` then says what happened. All other registers are still the guest's, and so
    /// is the vector state, in which an x87 exception may be pending.
    ///
    /// All signals are blocked but these and [`timer::signal`].
    ///
    /// # Errors
    /// If there is no memory for a stack, or the kernel refuses a handler.
    ///
    /// # Panics
    /// If the thread has entered already.
    ///
    /// # Safety
    /// Until the value is dropped, which it must be:
    /// - `code` is mapped, and what runs there never changes the FS base;
    /// - at `resume` is code that expects to be jumped to from anywhere in `code`, with the stack
    ///   that `host_stack` points to whenever an instruction in `code` can fault;
    /// - `host_stack` and `record` are valid, and while `code` runs nobody else holds a reference
    ///   to what they point to, other than by volatile or assembly code.
    pub(crate) unsafe fn enter(
        code: Range<usize>,
        resume: usize,
        host_stack: *const u64,
        record: *mut FaultRecord,
    ) -> io::Result<Self> {
        assert!(
            CURRENT.with(|current| current.load(Ordering::Relaxed).is_null()),
            "a thread runs one vCPU at a time"
        );
        install()?;
        let stack = Stack::new()?;
        // Signals first: a handler with a frame on the guest's stack is what must not happen,
        // and one less can run while the stack changes.
        let previous_mask = set_mask(mask_of_vcpus());
        let previous_stack = set_stack(&stack.as_argument()).inspect_err(|_| {
            set_mask(previous_mask);
        })?;
        let registration = NonNull::from(Box::leak(Box::new(Registration {
            code,
            resume,
            host_stack,
            record,
        })));
        CURRENT.with(|current| current.store(registration.as_ptr(), Ordering::Release));
        Ok(Self {
            registration,
            _stack: stack,
            previous_stack,
            previous_mask,
            _not_send: PhantomData,
        })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        CURRENT.with(|current| current.store(ptr::null_mut(), Ordering::Release));
        // SAFETY: leaked by `enter`. This thread's handler, which alone read it, doesn't know it
        // any more.
        drop(unsafe { Box::from_raw(self.registration.as_ptr()) });
        let result = set_stack(&self.previous_stack);
        assert!(result.is_ok(), "the kernel takes back what it gave");
        set_mask(self.previous_mask);
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").finish_non_exhaustive()
    }
}

/// Memory for an alternate stack, with a page below it that nobody may touch.
struct Stack {
    start: NonNull<c_void>,
    length: usize,
}

impl Stack {
    fn new() -> io::Result<Self> {
        // SAFETY: reads the auxiliary vector. Kernels before 5.14 don't say: 0.
        let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
        let frame = frame.max(libc::MINSIGSTKSZ);
        let length = (GUARD + frame + HANDLER_STACK).next_multiple_of(GUARD);
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place of a new mapping, so nothing is replaced.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), length, access, MapFlags::PRIVATE) }?;
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        let stack = Self { start, length };
        // SAFETY: the first bytes of the mapping, which nobody uses yet.
        unsafe { mprotect(start.as_ptr(), GUARD, MprotectFlags::empty()) }?;
        Ok(stack)
    }

    fn as_argument(&self) -> stack_t {
        stack_t {
            // SAFETY: the mapping is longer than its guard.
            ss_sp: unsafe { self.start.as_ptr().byte_add(GUARD) },
            ss_flags: SS_AUTODISARM,
            ss_size: self.length - GUARD,
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and not the alternate stack of a thread any
        // more.
        let unmapped = unsafe { munmap(self.start.as_ptr(), self.length) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// Makes `stack` the thread's alternate stack and returns the one from before.
fn set_stack(stack: &stack_t) -> io::Result<stack_t> {
    let mut previous = stack_t {
        ss_sp: ptr::null_mut(),
        ss_flags: 0,
        ss_size: 0,
    };
    // SAFETY: `stack` is memory for this purpose alone, kept by its owner until it is replaced:
    // ours by `Thread`, another by whoever set it for this thread before.
    match unsafe { libc::sigaltstack(stack, &raw mut previous) } {
        0 => Ok(previous),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The bit of `signal` in a kernel's signal set.
const fn bit(signal: c_int) -> u64 {
    1 << (signal - 1)
}

/// What is blocked while a vCPU runs.
fn mask_of_vcpus() -> u64 {
    let handled = SIGNALS
        .iter()
        .fold(0, |set, (signal, _)| set | bit(*signal));
    !(handled | bit(timer::signal()))
}

/// Makes `mask` the signals that the thread blocks, and returns those from before.
///
/// By the system call itself: the C library's function leaves signals of its own unblocked, whose
/// handlers may not use the alternate stack.
fn set_mask(mask: u64) -> u64 {
    let mut previous = 0_u64;
    // SAFETY: reads and writes sets of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut previous,
            size_of::<u64>(),
        )
    };
    assert_eq!(result, 0, "any set of signals is a valid mask");
    previous
}

/// Installs the handlers, once.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let install = || {
        for (signal, previous) in &SIGNALS {
            // SAFETY: the handler is async-signal-safe and changes translated code's registers
            // only (module documentation). Installed once, here.
            unsafe { signal::install(*signal, handler, previous) }?;
        }
        Ok(())
    };
    let installed = INSTALLED.get_or_init(|| {
        install().map_err(|error: io::Error| error.raw_os_error().unwrap_or(libc::EINVAL))
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// The handler of [`SIGNALS`].
extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    clear_alignment_check();
    let current = CURRENT.with(|current| current.load(Ordering::Acquire));
    // SAFETY: set by this thread, which frees the registration only once it isn't current.
    let current = unsafe { current.as_ref() };
    // SAFETY: the kernel passes a valid siginfo and ucontext of the interrupted thread, which
    // nobody else has.
    let is_ours = current.is_some_and(|current| unsafe {
        take(current, signal, &*info, &mut *context.cast::<ucontext_t>())
    });
    if is_ours {
        return;
    }
    let previous = SIGNALS.iter().find(|(number, _)| *number == signal);
    if let Some(previous) = previous.and_then(|(_, previous)| previous.get()) {
        // SAFETY: this is the handler, and these are the pointers that the kernel passed.
        unsafe { previous.act(signal, info, context) };
    }
}

/// Clears AC, which the kernel leaves as the guest had it: with it, Rust code that may access
/// unaligned data would fault.
pub(crate) fn clear_alignment_check() {
    // SAFETY: changes one flag, which is clear in all Rust code. Pushing is allowed without
    // `nostack`.
    unsafe { asm!("pushfq", "and dword ptr [rsp], {}", "popfq", const !(1_i32 << 18)) };
}

/// Whether a signal is translated code's. If so, records it and changes `context` to resume.
///
/// # Safety
/// `registration` is that of the thread that is interrupted.
unsafe fn take(
    registration: &Registration,
    signal: c_int,
    info: &siginfo_t,
    context: &mut ucontext_t,
) -> bool {
    // A positive code is the CPU's doing, whereas kill(2) and its like have none. Memory errors
    // of the host are no fault of the instruction.
    let is_hardware_error =
        signal == libc::SIGBUS && matches!(info.si_code, libc::BUS_MCEERR_AR | libc::BUS_MCEERR_AO);
    let from = &mut context.uc_mcontext.gregs;
    let rip = from[libc::REG_RIP as usize] as usize;
    if info.si_code <= 0 || is_hardware_error || !registration.code.contains(&rip) {
        return false;
    }
    let record = FaultRecord {
        registers: REGISTERS.map(|register| from[register as usize] as u64),
        rip: rip as u64,
        rflags: from[libc::REG_EFL as usize] as u64,
        // SAFETY: these signals have an address if an instruction raised them.
        address: unsafe { info.si_addr() } as u64,
        signal,
        code: info.si_code,
        vector: from[libc::REG_TRAPNO as usize] as u32,
        error: from[libc::REG_ERR as usize] as u32,
    };
    // SAFETY: valid while the thread is registered, and not referred to while translated code
    // runs, by the contract of `Thread::enter`. Volatile, since the code that reads and writes
    // them on the other side is assembly, or Rust that a signal interrupted.
    let host_stack = unsafe {
        registration.record.write_volatile(record);
        registration.host_stack.read_volatile()
    };
    from[libc::REG_RIP as usize] = registration.resume as i64;
    from[libc::REG_RSP as usize] = host_stack as i64;
    from[libc::REG_EFL as usize] &= !GUEST_FLAGS;
    true
}

#[cfg(test)]
mod tests;
