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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    static SEEN: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn earlier(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
        SEEN.fetch_add(1, Ordering::SeqCst);
    }

    /// Each test is its own process under nextest; under `cargo test` the handler may already
    /// be installed, so the one before it is set for the chain itself.
    #[test]
    fn a_foreign_sigfpe_reaches_the_handler_before_ours() {
        // SAFETY: all-zero bytes are a valid sigaction.
        let mut previous: sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        previous.sa_sigaction = earlier as *const () as usize;
        previous.sa_flags = libc::SA_SIGINFO;
        // SAFETY: all-zero bytes are a valid siginfo and context, which `earlier` ignores.
        let (mut info, mut context): (siginfo_t, ucontext_t) = unsafe {
            (
                MaybeUninit::zeroed().assume_init(),
                MaybeUninit::zeroed().assume_init(),
            )
        };
        chain(
            &previous,
            libc::SIGFPE,
            &raw mut info,
            (&raw mut context).cast(),
        );
        assert_eq!(SEEN.load(Ordering::SeqCst), 1);
        previous.sa_sigaction = libc::SIG_IGN;
        chain(
            &previous,
            libc::SIGFPE,
            &raw mut info,
            (&raw mut context).cast(),
        );
        assert_eq!(SEEN.load(Ordering::SeqCst), 1);
    }

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
