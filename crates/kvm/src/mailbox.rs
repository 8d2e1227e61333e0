//! What others want of a vCPU, and how they get at it while the guest runs.
//!
//! A request is a bit. Who posts it makes `KVM_RUN` return by the flag in the page that vCPU and
//! kernel share, and by a signal for the case that the guest was entered already; so it does not
//! matter whether the signal comes before or after. The signal's handler does nothing.
#![expect(unsafe_code, reason = "sends a signal to a thread of this process")]
// UNSAFETY: system calls without pointers, and the installation of a handler that returns at once.

use crate::run_page::RunPage;
use native::signal;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// [`engine::Exit::Kicked`] is wanted.
pub(crate) const KICK: u32 = 1;
/// The PIC's line has risen.
pub(crate) const EXTERNAL: u32 = 2;
/// A non-maskable interrupt.
pub(crate) const NMI: u32 = 4;

/// The requests to one vCPU.
#[derive(Debug)]
pub(crate) struct Mailbox {
    requests: AtomicU32,
    /// The level of the PIC's line, if it leads here.
    external: AtomicBool,
    /// The thread that is in [`engine::Vcpu::run`], or 0.
    thread: AtomicI32,
    page: Arc<RunPage>,
}

impl Mailbox {
    pub(crate) fn new(page: Arc<RunPage>) -> Self {
        Self {
            requests: AtomicU32::new(0),
            external: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            page,
        }
    }

    /// Asks for `request`. Called by any thread.
    pub(crate) fn post(&self, request: u32) {
        self.requests.fetch_or(request, Ordering::SeqCst);
        self.page.set_immediate_exit(true);
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            send_signal(thread);
        }
    }

    /// Takes all requests.
    pub(crate) fn take(&self) -> u32 {
        // The flag first: a request that comes in between makes the next `KVM_RUN` return for
        // nothing, but is not lost.
        self.page.set_immediate_exit(false);
        self.requests.swap(0, Ordering::SeqCst)
    }

    /// Whether there is any request.
    pub(crate) fn has_mail(&self) -> bool {
        self.requests.load(Ordering::SeqCst) != 0
    }

    /// Whether `request` waits.
    pub(crate) fn has(&self, request: u32) -> bool {
        self.requests.load(Ordering::SeqCst) & request != 0
    }

    /// Drops `request` if it waits.
    pub(crate) fn withdraw(&self, request: u32) {
        self.requests.fetch_and(!request, Ordering::SeqCst);
    }

    /// Drives the PIC's line.
    pub(crate) fn set_external(&self, high: bool) {
        let before = self.external.swap(high, Ordering::SeqCst);
        if high && !before {
            self.post(EXTERNAL);
        }
    }

    /// The level of the PIC's line.
    pub(crate) fn external(&self) -> bool {
        self.external.load(Ordering::SeqCst)
    }

    /// The calling thread runs the vCPU until what is returned is dropped.
    pub(crate) fn run_by_this_thread(self: &Arc<Self>) -> Running {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        self.thread.store(thread, Ordering::SeqCst);
        Running(self.clone())
    }
}

/// While it exists, requests are signalled to the thread that made it.
pub(crate) struct Running(Arc<Mailbox>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.thread.store(0, Ordering::SeqCst);
    }
}

/// The signal that makes `KVM_RUN` return: a real-time one, which nothing else in the monitor uses.
pub(crate) fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 6
}

/// Sends it to a thread of this process. One that is gone gets nothing; another that has its number
/// by now is interrupted for nothing.
pub(crate) fn send_signal(thread: i32) {
    let process = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: numbers only; the signal's handler is installed (`install_handler`).
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, signal()) };
}

/// Lets the signal interrupt a thread and do nothing else. Once is enough.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    extern "C" fn handler(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    // SAFETY: the handler returns at once. Installed once, here.
    let install = || unsafe { signal::install(signal(), handler, &OnceLock::new()) };
    let installed = INSTALLED
        .get_or_init(|| install().map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)));
    installed.map_err(io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mailbox() -> (Arc<Mailbox>, Arc<RunPage>) {
        let page = Arc::new(RunPage::new(None, 4096).unwrap());
        (Arc::new(Mailbox::new(page.clone())), page)
    }

    #[test]
    fn a_request_makes_the_next_entry_return_until_it_is_taken() {
        let (mailbox, page) = mailbox();
        mailbox.post(KICK);
        mailbox.post(NMI);
        assert!(page.wants_immediate_exit());
        assert_eq!(mailbox.take(), KICK | NMI);
        assert!(!page.wants_immediate_exit());
        assert_eq!(mailbox.take(), 0);
    }

    #[test]
    fn only_a_rising_line_interrupts_the_guest() {
        let (mailbox, page) = mailbox();
        mailbox.set_external(true);
        assert_eq!(mailbox.take(), EXTERNAL);
        mailbox.set_external(true);
        mailbox.set_external(false);
        assert!(!page.wants_immediate_exit());
        assert!(!mailbox.external());
    }

    #[test]
    fn a_signal_interrupts_the_thread_that_runs_the_vcpu() {
        install_handler().unwrap();
        let (mailbox, _) = mailbox();
        let sleeper = mailbox.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let _running = sleeper.run_by_this_thread();
            ready.send(()).unwrap();
            let mut calls = 0;
            // The kernel does not resume it after a signal: it returns with EINTR.
            while !sleeper.has_mail() {
                let wait = rustix::time::Timespec {
                    tv_sec: 20,
                    tv_nsec: 0,
                };
                let _ = rustix::event::poll(&mut [], Some(&wait));
                calls += 1;
            }
            calls
        });
        is_ready.recv().unwrap();
        mailbox.post(KICK);
        assert!(thread.join().unwrap() <= 1);
    }
}
