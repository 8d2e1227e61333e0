//! SIGFPE in a stub: an unmasked SIMD exception of the guest's instruction.
#![expect(unsafe_code, reason = "installs a signal handler")]
// UNSAFETY: the handler changes the interrupted thread's instruction pointer, only if that is
// inside our stubs, and calls the handler that was there before it otherwise.

use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t, ucontext_t};

use crate::signal::{self, Previous};

/// Where stubs are. The range's start is the common fault exit (`stub::fault_exit`).
static STUBS: (AtomicUsize, AtomicUsize) = (AtomicUsize::new(0), AtomicUsize::new(0));

/// What handled SIGFPE before.
static PREVIOUS: OnceLock<Previous> = OnceLock::new();

/// Redirects SIGFPE raised by an instruction in `stubs` to the start of that range.
///
/// Called once, for stubs that are never freed.
///
/// # Errors
/// If the handler can't be installed.
pub(crate) fn install(stubs: Range<usize>) -> io::Result<()> {
    STUBS.0.store(stubs.start, Ordering::Release);
    STUBS.1.store(stubs.end, Ordering::Release);
    // SAFETY: the handler reads atomics and writes to its context. It is installed once.
    unsafe { signal::install(libc::SIGFPE, handler, &PREVIOUS) }
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
        // SAFETY: this is the handler, and these are the pointers that the kernel passed.
        unsafe { previous.act(signal, info, context) };
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;

    #[test]
    fn only_faults_inside_stubs_are_redirected() {
        let native = crate::Native::shared().expect("stubs");
        let start = STUBS.0.load(Ordering::Acquire);
        assert_ne!(start, 0, "{native:?}");
        // SAFETY: all-zero bytes are a valid siginfo and context.
        let (mut info, mut context): (siginfo_t, ucontext_t) = unsafe {
            (
                MaybeUninit::zeroed().assume_init(),
                MaybeUninit::zeroed().assume_init(),
            )
        };
        info.si_code = 3; // FPE_FLTDIV
        context.uc_mcontext.gregs[libc::REG_RIP as usize] = start as i64 + 100;
        handler(libc::SIGFPE, &raw mut info, (&raw mut context).cast());
        assert_eq!(
            context.uc_mcontext.gregs[libc::REG_RIP as usize],
            start as i64
        );
    }
}
