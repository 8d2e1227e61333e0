//! A timer of a vCPU's thread: when it expires, a signal interrupts translated code.
//!
//! # Life of a signal
//! The kernel sends the signal to the thread that made the timer (`SIGEV_THREAD_ID`), and only
//! to that. Its handler finds what to ring through a thread-local pointer, not through the
//! signal's value: a signal may still be on its way when the timer is deleted, and is then taken
//! by a thread that knows of no timer any more. As making, ringing and dropping all happen on one
//! thread, nothing is freed while a handler uses it.
#![expect(unsafe_code, reason = "makes a POSIX timer and handles its signal")]
// UNSAFETY: system calls, and a handler that follows one pointer, whose target the same thread
// frees after it has cleared the pointer.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, io};

use libc::{c_int, c_void, itimerspec, sigevent, siginfo_t, timer_t, timespec};
use native::signal;
use rustix::time::{ClockId, clock_gettime};

use crate::signals;

/// What a timer does when it expires.
///
/// # Safety
/// [`Ring::ring`] is async-signal-safe: it interrupts any code of the thread. It may do little more
/// than to store to atomics: no locks, no allocation, no panic.
pub(crate) unsafe trait Ring: Send + Sync {
    /// The time has come, or something else wants attention: may be called at any time.
    fn ring(&self);
}

/// The [`Armed::deadline`] of a timer that is not armed.
const NEVER: u64 = u64::MAX;

/// What the handler knows.
struct Armed {
    target: Arc<dyn Ring>,
    /// When the timer expires, in nanoseconds of `CLOCK_MONOTONIC`, or [`NEVER`].
    deadline: AtomicU64,
}

thread_local! {
    /// Of this thread's timer, or null. Safe in a handler, as the one in [`crate::signals`].
    static CURRENT: AtomicPtr<Armed> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// The timer of the thread that made it.
pub(crate) struct Timer {
    id: timer_t,
    armed: NonNull<Armed>,
    /// Dropped by the thread that made it.
    _not_send: PhantomData<*mut ()>,
}

impl Timer {
    /// A timer that will ring `target`, on this thread. It is not armed.
    ///
    /// # Errors
    /// If the user has too many timers (`RLIMIT_SIGPENDING`).
    ///
    /// # Panics
    /// If the thread has a timer already.
    pub(crate) fn new(target: Arc<dyn Ring>) -> io::Result<Self> {
        assert!(
            CURRENT.with(|current| current.load(Ordering::Relaxed).is_null()),
            "a thread has one timer"
        );
        install()?;
        let id = create()?;
        let armed = NonNull::from(Box::leak(Box::new(Armed {
            target,
            deadline: AtomicU64::new(NEVER),
        })));
        CURRENT.with(|current| current.store(armed.as_ptr(), Ordering::Release));
        Ok(Self {
            id,
            armed,
            _not_send: PhantomData,
        })
    }

    /// Makes sure that the timer rings within `delay`: once, and if it was to ring earlier, then.
    /// So whoever is rung sees what is due, if anything, and arms the timer again.
    ///
    /// Costs a system call only if the timer was not to ring as early already.
    pub(crate) fn arm(&mut self, delay: Duration) {
        let now = now();
        let delay = u64::try_from(delay.as_nanos()).unwrap_or(NEVER);
        // The kernel's times are signed. It is some 292 years till then.
        let deadline = now.saturating_add(delay).min(i64::MAX as u64);
        if self.armed().deadline.load(Ordering::Relaxed) <= deadline {
            return;
        }
        // Stored before the kernel knows: if it rings at once, it is not armed any more, and
        // that must be stored last. If an earlier arming rings between the two, the timer only
        // seems not to be armed, which costs a system call at the next arming.
        self.armed().deadline.store(deadline, Ordering::SeqCst);
        self.set(deadline);
    }

    /// Makes sure that the timer does not ring, but for a signal that is on its way.
    pub(crate) fn disarm(&mut self) {
        if self.armed().deadline.swap(NEVER, Ordering::SeqCst) != NEVER {
            self.set(0);
        }
    }

    /// When it expires, in nanoseconds of `CLOCK_MONOTONIC`, if it is armed.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let deadline = self.armed().deadline.load(Ordering::Relaxed);
        (deadline != NEVER).then_some(deadline)
    }

    fn armed(&self) -> &Armed {
        // SAFETY: leaked by `new`, freed by `drop`. All that changes is atomic.
        unsafe { self.armed.as_ref() }
    }

    /// Lets the timer expire at `deadline`, at once if that has passed, and never if it is 0.
    fn set(&self, deadline: u64) {
        let value = once_at(deadline);
        // SAFETY: a timer that exists, and a valid time.
        let result = unsafe {
            libc::timer_settime(
                self.id,
                libc::TIMER_ABSTIME,
                &raw const value,
                ptr::null_mut(),
            )
        };
        assert_eq!(result, 0, "an existing timer takes any time");
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // From here on a signal finds nothing.
        CURRENT.with(|current| current.store(ptr::null_mut(), Ordering::Release));
        // SAFETY: made by `new`, deleted once.
        let deleted = unsafe { libc::timer_delete(self.id) };
        debug_assert_eq!(deleted, 0, "an existing timer");
        // SAFETY: leaked by `new`. Only this thread's handler knew it besides, and it isn't
        // running, since this is.
        drop(unsafe { Box::from_raw(self.armed.as_ptr()) });
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").finish_non_exhaustive()
    }
}

/// The signal by which timers ring: a real-time one, which nothing else in the monitor uses.
/// Whatever runs translated code leaves it unblocked.
pub(crate) fn signal() -> c_int {
    libc::SIGRTMIN() + 7
}

const NANOSECONDS: u64 = 1_000_000_000;

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * NANOSECONDS + time.tv_nsec as u64
}

/// `deadline`, in nanoseconds, as timer_settime(2) takes it.
pub(crate) fn once_at(deadline: u64) -> itimerspec {
    itimerspec {
        it_interval: timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: timespec {
            tv_sec: (deadline / NANOSECONDS) as i64,
            tv_nsec: (deadline % NANOSECONDS) as i64,
        },
    }
}

/// A timer for the calling thread.
fn create() -> io::Result<timer_t> {
    // SAFETY: all-zero bytes are a valid sigevent.
    let mut event: sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = signal();
    event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
    let mut id: timer_t = ptr::null_mut();
    // SAFETY: reads `event` and writes `id`.
    match unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id) } {
        0 => Ok(id),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Installs the handler, once.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let install = || {
        // SAFETY: the handler is async-signal-safe: it reads a thread-local atomic, without a
        // lazy step, and does what `Ring` promises to be safe. Installed once, here.
        unsafe { signal::install(signal(), handler, &OnceLock::new()) }
    };
    let installed = INSTALLED
        .get_or_init(|| install().map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)));
    installed.map_err(io::Error::from_raw_os_error)
}

/// The handler of [`signal()`].
extern "C" fn handler(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    signals::clear_alignment_check();
    let armed = CURRENT.with(|current| current.load(Ordering::Acquire));
    // SAFETY: this thread set it, and clears it before it frees what it points to.
    if let Some(armed) = unsafe { armed.as_ref() } {
        armed.deadline.store(NEVER, Ordering::SeqCst);
        armed.target.ring();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    use super::*;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    // SAFETY: one atomic addition.
    unsafe impl Ring for Bell {
        fn ring(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Bell {
        fn rings(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }

        /// Waits for ring number `count`, without a system call, as translated code does.
        fn wait(&self, count: usize) {
            let start = Instant::now();
            while self.rings() < count {
                assert!(start.elapsed() < Duration::from_secs(20), "it never rang");
                std::hint::spin_loop();
            }
        }
    }

    fn bell_and_timer() -> (Arc<Bell>, Timer) {
        let bell = Arc::new(Bell::default());
        let timer = Timer::new(bell.clone()).expect("a timer");
        (bell, timer)
    }

    /// Whether the kernel's timer is armed, and how long it has to go.
    fn remaining(timer: &Timer) -> Duration {
        // SAFETY: all-zero bytes are a valid itimerspec; a timer that exists.
        let value = unsafe {
            let mut value: itimerspec = MaybeUninit::zeroed().assume_init();
            assert_eq!(libc::timer_gettime(timer.id, &raw mut value), 0);
            value.it_value
        };
        Duration::new(value.tv_sec as u64, value.tv_nsec as u32)
    }

    const LONG: Duration = Duration::from_secs(1000);
    const SHORT: Duration = Duration::from_millis(2);

    #[test]
    fn it_rings_once_and_not_early() {
        let (bell, mut timer) = bell_and_timer();
        let start = Instant::now();
        timer.arm(SHORT);
        bell.wait(1);
        assert!(start.elapsed() >= SHORT);
        std::thread::sleep(3 * SHORT);
        assert_eq!(bell.rings(), 1);
    }

    #[test]
    fn it_rings_again_after_every_arming() {
        let (bell, mut timer) = bell_and_timer();
        for count in 1..=100 {
            timer.arm(Duration::from_micros(20));
            bell.wait(count);
        }
    }

    #[test]
    fn no_delay_rings_at_once() {
        let (bell, mut timer) = bell_and_timer();
        timer.arm(Duration::ZERO);
        bell.wait(1);
    }

    #[test]
    fn of_two_armings_the_earlier_counts() {
        let (bell, mut timer) = bell_and_timer();
        timer.arm(LONG);
        assert!(remaining(&timer) > LONG / 2);
        timer.arm(LONG / 10);
        assert!(remaining(&timer) <= LONG / 10);
        // The kernel is not asked for a later one.
        timer.arm(LONG);
        assert!(remaining(&timer) <= LONG / 10);
        timer.arm(SHORT);
        bell.wait(1);
        assert_eq!(remaining(&timer), Duration::ZERO);
    }

    #[test]
    fn a_disarmed_timer_does_not_ring_and_can_be_armed_again() {
        let (bell, mut timer) = bell_and_timer();
        timer.arm(SHORT);
        timer.disarm();
        let disarmed_at = bell.rings();
        assert_eq!(remaining(&timer), Duration::ZERO);
        std::thread::sleep(3 * SHORT);
        assert_eq!(bell.rings(), disarmed_at);
        timer.arm(SHORT);
        bell.wait(disarmed_at + 1);
    }

    #[test]
    fn a_time_that_never_comes_is_accepted() {
        let (bell, mut timer) = bell_and_timer();
        timer.arm(Duration::MAX);
        assert!(remaining(&timer) > LONG);
        timer.arm(SHORT);
        bell.wait(1);
    }

    #[test]
    fn a_signal_that_outlives_its_timer_rings_nothing() {
        let (bell, timer) = bell_and_timer();
        drop(timer);
        assert_eq!(Arc::strong_count(&bell), 1, "the timer let go of it");
        // SAFETY: raises a signal that is handled.
        unsafe { libc::raise(signal()) };
        assert_eq!(bell.rings(), 0);
        // The thread can have another.
        let (bell, _timer) = bell_and_timer();
        // SAFETY: as above.
        unsafe { libc::raise(signal()) };
        assert_eq!(bell.rings(), 1);
    }

    #[test]
    fn each_thread_has_its_own() {
        let (ours, mut timer) = bell_and_timer();
        timer.arm(LONG);
        let theirs = std::thread::spawn(|| {
            let (bell, mut timer) = bell_and_timer();
            timer.arm(SHORT);
            bell.wait(1);
            bell.rings()
        });
        assert_eq!(theirs.join().expect("a thread"), 1);
        assert_eq!(ours.rings(), 0);
    }

    #[test]
    #[should_panic(expected = "a thread has one timer")]
    fn a_second_timer_of_a_thread_is_refused() {
        let _timers = [bell_and_timer(), bell_and_timer()];
    }
}
