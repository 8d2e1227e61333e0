//! Signals that CPU exceptions raise, shared with the handlers that were there before.
#![expect(unsafe_code, reason = "installs signal handlers")]
// UNSAFETY: changes the process's actions for signals, to handlers whose installers vouch for
// them, and calls the functions that the kernel said it would have called before.

use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::{io, ptr};

use libc::{c_int, c_void, sigaction, siginfo_t};

/// A handler as `SA_SIGINFO` wants it: signal, its cause, and the interrupted `ucontext_t`.
pub type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// What was done about a signal before a handler of ours came.
pub struct Previous(sigaction);

impl Previous {
    /// Asks for the action of `signal`.
    fn of(signal: c_int) -> io::Result<Self> {
        let mut action = MaybeUninit::<sigaction>::zeroed();
        // SAFETY: only asks. All-zero bytes are a valid sigaction too.
        unsafe {
            match libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) {
                0 => Ok(Self(action.assume_init())),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

    /// Does what would have happened without our handler.
    ///
    /// # Safety
    /// Called from a handler of `signal`, with the pointers that the kernel passed to it.
    pub unsafe fn act(&self, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: the kernel's.
        let is_exception = unsafe { (*info).si_code } > 0;
        match self.0.sa_sigaction {
            // An ignored signal that an instruction raises kills, so let it be raised again.
            libc::SIG_IGN if !is_exception => {}
            libc::SIG_DFL | libc::SIG_IGN => {
                // SAFETY: sets the default action; the signal, blocked while its handler runs,
                // is raised anew on return.
                unsafe {
                    libc::signal(signal, libc::SIG_DFL);
                    if !is_exception {
                        libc::raise(signal);
                    }
                }
            }
            address if self.0.sa_flags & libc::SA_SIGINFO != 0 => {
                // SAFETY: installed by somebody as a three-argument handler at this address.
                let handler = unsafe { std::mem::transmute::<usize, Handler>(address) };
                handler(signal, info, context);
            }
            address => {
                // SAFETY: installed by somebody as a one-argument handler at this address.
                let handler =
                    unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(address) };
                handler(signal);
            }
        }
    }
}

/// Lets `handler` handle `signal`: on the thread's alternate stack if it has one, with all other
/// signals blocked meanwhile. `previous` holds what it may pass the signal on to before it can
/// run.
///
/// # Errors
/// If the handler can't be installed.
///
/// # Safety
/// `handler` is async-signal-safe and sound in whatever code of the process a signal interrupts.
/// Installed once per signal and handler: a handler that is its own previous one never returns.
pub unsafe fn install(
    signal: c_int,
    handler: Handler,
    previous: &OnceLock<Previous>,
) -> io::Result<()> {
    let before = Previous::of(signal)?;
    previous.get_or_init(|| before);
    // SAFETY: all-zero bytes are a valid sigaction, with a set of signals to fill.
    let action = unsafe {
        let mut action: sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigfillset(&raw mut action.sa_mask);
        action
    };
    // SAFETY: `action` names a handler of the type that SA_SIGINFO demands.
    match unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static SEEN: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn earlier(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
        SEEN.fetch_add(1, Ordering::SeqCst);
    }

    extern "C" fn earlier_without_information(_: c_int) {
        SEEN.fetch_add(100, Ordering::SeqCst);
    }

    #[test]
    fn a_signal_is_passed_on_as_its_handler_wants_it() {
        // SAFETY: all-zero bytes are a valid sigaction.
        let action: sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut previous = Previous(action);
        // SAFETY: all-zero bytes are a valid siginfo, of a signal that kill(2) sent.
        let mut info: siginfo_t = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut seen_after = |address: usize, flags: c_int| {
            previous.0.sa_sigaction = address;
            previous.0.sa_flags = flags;
            // SAFETY: a valid siginfo, and a context that no handler here looks at.
            unsafe { previous.act(libc::SIGFPE, &raw mut info, ptr::null_mut()) };
            SEEN.load(Ordering::SeqCst)
        };
        assert_eq!(
            seen_after(earlier as *const () as usize, libc::SA_SIGINFO),
            1
        );
        assert_eq!(
            seen_after(earlier_without_information as *const () as usize, 0),
            101
        );
        assert_eq!(seen_after(libc::SIG_IGN, 0), 101);
    }
}
