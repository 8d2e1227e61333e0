//! SIGFPE in a stub: an unmasked SIMD exception of the guest's instruction.
#![expect(unsafe_code, reason = "installs a signal handler")]
// UNSAFETY: the handler changes the interrupted thread's instruction pointer, only if that is
// inside our stubs, and calls the handler that was there before it otherwise.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{io, ptr};

use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};

/// Where stubs are. The range's start is the common fault exit (`stub::fault_exit`).
static STUBS: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));

/// What handled SIGFPE before.
static PREVIOUS: OnceLock<sigaction> = OnceLock::new();

/// Redirects SIGFPE raised by an instruction in `stubs` to the start of that range.
///
/// Called once, for stubs that are never freed.
///
/// # Errors
/// If the handler can't be installed.
pub(crate) fn install(stubs: Range<usize>) -> io::Result<()> {
    STUBS.0.store(stubs.start, Ordering::Release);
    STUBS.1.store(stubs.end, Ordering::Release);
    // The previous action must be known before the handler can run.
    PREVIOUS.get_or_init(|| {
        let mut previous = MaybeUninit::<sigaction>::zeroed();
        // SAFETY: asks only; a zeroed sigaction (SIG_DFL) is valid if the call fails, which
        // it can't for SIGFPE.
        unsafe {
            libc::sigaction(libc::SIGFPE, ptr::null(), previous.as_mut_ptr());
            previous.assume_init()
        }
    });
    // SAFETY: all-zero bytes are a valid sigaction.
    let mut action: sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: `action` names a handler of the type that SA_SIGINFO demands, which is
    // async-signal-safe: it reads two atomics and writes to its context.
    match unsafe { libc::sigaction(libc::SIGFPE, &action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The handler of SIGFPE.
extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo and ucontext of the interrupted thread, which
    // nobody else has.
    let (code, rip) = unsafe {
        let context = &mut *context.cast::<ucontext_t>();
        (
            (*info).si_code,
            &mut context.uc_mcontext.gregs[libc::REG_RIP as usize],
        )
    };
    let stubs = STUBS.0.load(Ordering::Acquire)..STUBS.1.load(Ordering::Acquire);
    // A positive code is the CPU's doing; kill(2) and its like have none.
    if code > 0 && stubs.contains(&(*rip as usize)) {
        *rip = stubs.start as i64;
        return;
    }
    if let Some(previous) = PREVIOUS.get() {
        chain(previous, signal, info, context);
    }
}

/// Does what would have happened without us.
fn chain(previous: &sigaction, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    match previous.sa_sigaction {
        // An ignored signal that an instruction raises kills, so let it be raised again.
        // SAFETY: `info` is the kernel's.
        libc::SIG_IGN if unsafe { (*info).si_code } <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: sets the default action; the signal, blocked while this handler runs,
            // is raised anew on return.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
        }
        address if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: installed by somebody as a three-argument handler at this address.
            let handler = unsafe {
                std::mem::transmute::<usize, extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(
                    address,
                )
            };
            handler(signal, info, context);
        }
        address => {
            // SAFETY: installed by somebody as a one-argument handler at this address.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(address) };
            handler(signal);
        }
    }
}
