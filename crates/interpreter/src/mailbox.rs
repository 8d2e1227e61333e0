//! What others want of a vCPU, and how it waits.

use lapic::Inbox;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// The APIC inbox holds something.
pub(crate) const INTERRUPT: u32 = 1 << 0;
/// [`engine::Engine::kick`].
pub(crate) const KICK: u32 = 1 << 1;
/// [`Mailbox::take_pages`] has pages whose code is stale.
pub(crate) const CODE_WRITTEN: u32 = 1 << 2;
/// No page may be written through the TLB without a fresh look.
pub(crate) const FORGET_WRITES: u32 = 1 << 3;

/// Time has passed: the clock is to be read.
pub(crate) const TIMER: u32 = 1 << 4;

/// What is rung when a vCPU has mail, for an engine whose code looks at a word of its own and not
/// into the mailbox.
pub trait Doorbell: Send + Sync {
    /// The mailbox holds something. Called by any thread, after the request is there: a vCPU that
    /// silences its bell and then attends misses nothing.
    fn ring(&self);
}

/// A handle to one vCPU for its timer.
#[derive(Clone)]
pub struct Remote {
    mailbox: Arc<Mailbox>,
}

impl Remote {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox }
    }

    /// Makes the vCPU attend, so that it reads its clock. May be called by a signal handler: it is
    /// one atomic operation. So it neither rings the [`Doorbell`] nor wakes a vCPU that sleeps,
    /// which has a timeout of its own.
    pub fn post_timer(&self) {
        self.mailbox.requests.fetch_or(TIMER, Ordering::SeqCst);
    }
}

/// Requests to one vCPU. Written by anybody, read by its thread.
pub(crate) struct Mailbox {
    /// Interrupts on their way to the local APIC.
    pub(crate) inbox: Arc<Inbox>,
    requests: AtomicU32,
    /// Whether guest instructions may be executing, so that requests are only seen later.
    running: AtomicBool,
    pages: Mutex<Vec<usize>>,
    sleep: Mutex<()>,
    wake: Condvar,
    doorbell: OnceLock<Arc<dyn Doorbell>>,
}

impl Mailbox {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        Self {
            inbox,
            requests: AtomicU32::new(0),
            running: AtomicBool::new(false),
            pages: Mutex::default(),
            sleep: Mutex::default(),
            wake: Condvar::new(),
            doorbell: OnceLock::new(),
        }
    }

    /// Rings `doorbell` at each request from now on.
    ///
    /// # Panics
    /// If there is one already.
    pub(crate) fn set_doorbell(&self, doorbell: Arc<dyn Doorbell>) {
        let is_first = self.doorbell.set(doorbell).is_ok();
        assert!(is_first, "a vCPU has one doorbell");
    }

    /// All requests that wait.
    pub(crate) fn requests(&self) -> u32 {
        self.requests.load(Ordering::SeqCst)
    }

    /// Whether there is any request.
    #[inline(always)]
    pub(crate) fn has_mail(&self) -> bool {
        self.requests.load(Ordering::Relaxed) != 0
    }

    /// Whether one of `requests` waits.
    pub(crate) fn has(&self, requests: u32) -> bool {
        self.requests.load(Ordering::SeqCst) & requests != 0
    }

    /// Takes all requests.
    pub(crate) fn take(&self) -> u32 {
        self.requests.swap(0, Ordering::SeqCst)
    }

    /// Takes `request` alone; whether it was there.
    pub(crate) fn take_one(&self, request: u32) -> bool {
        self.requests.fetch_and(!request, Ordering::SeqCst) & request != 0
    }

    /// Asks for `request` and wakes the vCPU if it sleeps.
    pub(crate) fn post(&self, request: u32) {
        let before = self.requests.fetch_or(request, Ordering::SeqCst);
        if before & request == 0 {
            // A sleeper looks at the requests under the lock, so this can't fall in between.
            drop(self.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
        // Also if the request was there before: its vCPU may have silenced the bell since.
        if let Some(doorbell) = self.doorbell.get() {
            doorbell.ring();
        }
    }

    /// Says that the code in `page` is stale.
    pub(crate) fn post_page(&self, page: usize) {
        self.pages
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(page);
        self.post(CODE_WRITTEN);
    }

    /// Takes the pages whose code is stale.
    pub(crate) fn take_pages(&self) -> Vec<usize> {
        std::mem::take(&mut self.pages.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sleeps until a request comes or `timeout` has passed.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) {
        let guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        if self.has(u32::MAX) {
            return;
        }
        match timeout {
            Some(timeout) => drop(self.wake.wait_timeout(guard, timeout)),
            None => drop(self.wake.wait(guard)),
        }
    }

    /// Says whether guest instructions may execute from now on.
    pub(crate) fn set_running(&self, running: bool) {
        self.running.store(running, Ordering::SeqCst);
    }

    /// Says that no guest instructions execute once the returned guard is dropped, also by a
    /// panic: other vCPUs wait for one that runs.
    pub(crate) fn stands_after(self: &Arc<Self>) -> impl Drop + use<> {
        struct Stands(Arc<Mailbox>);
        impl Drop for Stands {
            fn drop(&mut self) {
                self.0.set_running(false);
            }
        }
        Stands(self.clone())
    }

    /// Whether guest instructions may be executing.
    pub(crate) fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }
}
