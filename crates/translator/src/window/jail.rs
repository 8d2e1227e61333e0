//! A process in which guest user code runs without checks, because there is nothing to steal.
//!
//! It has three things besides windows to the pages of one guest address space: the translated
//! code, which it can't write; a context, with what the guest's registers are; and a page of
//! orders, which it can't write either. Its runner can make no system call (see
//! [`super::stub`]). So whatever the code in it does, by way of a bug in the translator or of an
//! address that hits the context, it can't do more than the guest's program: change its own
//! registers and its own memory. The monitor believes nothing else that it finds in the context.
#![expect(unsafe_code, reason = "makes processes and filters of system calls")]
// UNSAFETY: raw system calls. The new process, a copy of this one, runs nothing but raw system
// calls until it has left all of that behind.

use super::orders::{Board, ORDERS_MAX, Order, Orders, order};
use super::stub::{GO, INTERRUPT, STOP_CALL, Stub, TIMER};
use crate::context::Context;
use crate::timer;
use libc::c_long;
use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// For how much of its own CPU time a jail may go on that was asked to stop.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a jail may take to begin, and how long one may go on that was asked to stop: on a host
/// with too much to do, that is how long it may have to wait for its turn to run.
const PATIENCE_WAITING: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });
/// How often the monitor looks whether a jail that runs was asked to stop. It is interrupted when
/// it is asked; this is in case that does not help.
const LOOK: Duration = Duration::from_millis(50);
/// So many calls in a row may be withdrawn. One is, by a signal that comes late.
const WITHDRAWN_MAX: u32 = 100;
const TASK_END: u64 = 0x7fff_ffff_f000;

/// Why a jail is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

/// `struct seccomp_notif` of seccomp_unotify(2).
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    call: i32,
    arch: u32,
    rip: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Answer {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

const RECEIVE: libc::Ioctl = 0xc050_2100;
const SEND: libc::Ioctl = 0xc018_2101;
const SET_FLAGS: libc::Ioctl = 0x4008_2104;
const CONTINUE: u32 = 1;
/// Whoever is woken runs on the CPU of who wakes it (Linux 6.6).
const ON_ONE_CPU: u64 = 1;

/// `struct sigaction` of the kernel.
#[repr(C)]
struct Action {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// Signals that instructions raise, and [`INTERRUPT`].
const HANDLED: [i32; 6] = [
    INTERRUPT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
];

/// The jail's process, its runner stopped.
pub(crate) struct Jail {
    board: Board,
    listener: OwnedFd,
    event: OwnedFd,
    /// Ends with this.
    process: Process,
    runner: u32,
    /// The call in which the runner waits.
    waiting: u64,
    /// The runner and the monitor's thread wake each other on one CPU, wherever that is.
    is_on_one_cpu: bool,
    /// The CPU that the runner may use, if that is one.
    cpu: Option<usize>,
    /// When its timer expires or has expired, in nanoseconds of `CLOCK_MONOTONIC`.
    alarm: u64,
}

/// This thread is on one CPU while this lives.
pub(super) struct Pinned {
    all: CpuSet,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = sched_setaffinity(None, &self.all);
    }
}

impl Jail {
    /// A jail for the code in `code`, at the beginning of which is the stub's, and for `context`,
    /// which is shared memory at `place`. `memory` is the guest's.
    ///
    /// # Errors
    /// If the host refuses a process, or a filter of system calls.
    pub(crate) fn new(
        code: Range<usize>,
        context: &Context,
        place: Range<usize>,
        memory: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        let mut board = Board::new()?;
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        let stub = Stub::get();
        let kept = [code.clone(), place.clone(), board.range()];
        let address = board.address();
        let orders = board.orders();
        fill(orders, address, kept);
        orders.memory = memory.as_raw_fd();
        orders.event = event.as_raw_fd();
        orders.context = place.start as u64;
        let stack = &raw const context.stack as u64;
        let len = size_of_val(&context.stack) as u64 / 2;
        orders.signal_stack = [stack, 0, len];
        orders.stack = stack + 2 * len;
        let child = Child {
            orders: address,
            start: code.start + stub.start,
            handler: code.start + stub.signal,
            rseq: restartable_sequences(),
        };
        let pid = fork(&child)?;
        let mut process = Process(pid);
        let listener = process.listener(&context.jail_listener)?;
        // SAFETY: the argument is a number.
        let flagged = unsafe { libc::ioctl(listener.as_raw_fd(), SET_FLAGS, ON_ONE_CPU) };
        let mut jail = Self {
            board,
            listener,
            event,
            process,
            runner: 0,
            waiting: 0,
            is_on_one_cpu: flagged == 0,
            cpu: None,
            alarm: 0,
        };
        jail.begin()?;
        Ok(jail)
    }

    /// Takes everything of the guest's out of it.
    ///
    /// # Errors
    /// If it is gone.
    pub(super) fn empty(&mut self) -> Result<(), Broken> {
        let orders = self.board.orders();
        let gaps = orders.gaps[..orders.gap_count as usize].iter();
        let orders: Vec<Order> = gaps.map(|[at, len]| Order::unmap(*at, *len)).collect();
        // Its context, which says whether the timer is still to be set, goes too.
        self.alarm = 0;
        self.apply(&orders)
    }

    /// The addresses that its orders take.
    pub(super) fn orders(&self) -> Range<usize> {
        self.board.range()
    }

    /// Lets the runner leave the monitor's descriptors behind, and stop.
    fn begin(&mut self) -> io::Result<()> {
        let failed = |_| io::Error::other("a jail did not begin");
        for expected in [libc::SYS_unshare, libc::SYS_close_range] {
            let call = self.next(&mut || true).map_err(failed)?;
            if c_long::from(call.call) != expected {
                return Err(failed(Broken));
            }
            let answered = self.answer(call.id, 0, CONTINUE).map_err(failed)?;
            if !answered {
                return Err(failed(Broken));
            }
        }
        let call = self.next(&mut || true).map_err(failed)?;
        self.runner = call.pid;
        self.waiting = call.id;
        // What it maps next is mapped by now or never: one round tells that it works.
        self.apply(&[]).map_err(failed)
    }

    /// Lets the runner go on as the context says, until it stops again. `is_called` tells whether
    /// it is asked to stop: then it does not go on at all, unless it `steps`, and so stops soon.
    /// Whoever asks later has to [`interrupt`] it.
    ///
    /// # Errors
    /// If it is gone, or does not stop.
    pub(crate) fn run(
        &mut self,
        steps: bool,
        is_called: &mut dyn FnMut() -> bool,
    ) -> Result<(), Broken> {
        let mut withdrawn = 0;
        loop {
            if !steps && is_called() {
                return Ok(());
            }
            if self.answer(self.waiting, GO, 0)? {
                break;
            }
            // A signal ended the call in which it waited, and it waits in another.
            self.waiting = self.stop(&mut || true)?;
            withdrawn += 1;
            if withdrawn == WITHDRAWN_MAX {
                return Err(Broken);
            }
        }
        let (pid, runner) = self.runner();
        let mut interrupts = || {
            let called = is_called();
            if called {
                interrupt(pid, runner);
            }
            called
        };
        self.waiting = self.stop(&mut interrupts)?;
        Ok(())
    }

    /// Has the runner interrupted at `deadline`, nanoseconds of `CLOCK_MONOTONIC`, from when it goes
    /// on. `context` is its. This thread, woken at that time, might have to wait for the CPU that
    /// the runner has; the runner's own timer needs nobody else to run.
    pub(crate) fn set_alarm(&mut self, deadline: u64, context: &mut Context) {
        if self.alarm != deadline {
            self.alarm = deadline;
            context.alarm = timer::once_at(deadline);
            context.alarm_is_new = 1;
        }
    }

    /// The call by which the runner says that it has stopped.
    fn stop(&self, is_called: &mut dyn FnMut() -> bool) -> Result<u64, Broken> {
        let call = self.next(is_called)?;
        if call.call == STOP_CALL {
            Ok(call.id)
        } else {
            Err(Broken)
        }
    }

    /// The ID of its process.
    pub(super) fn pid(&self) -> u32 {
        self.process.0.unsigned_abs()
    }

    /// Its process and its thread that runs, for [`interrupt`].
    pub(super) fn runner(&self) -> (i32, i32) {
        (self.process.0, self.runner as i32)
    }

    /// Lets the mapper follow `orders`.
    ///
    /// # Errors
    /// If the host has no room for another mapping.
    pub(crate) fn apply(&mut self, orders: &[Order]) -> Result<(), Broken> {
        let mut lists = orders.chunks(ORDERS_MAX);
        let mut list = lists.next().unwrap_or(&[]);
        loop {
            self.board.give(list);
            let mut answer = [0; 8];
            let mut is_called = || true;
            self.wait(&self.event, &mut is_called)?;
            rustix::io::read(&self.event, &mut answer).map_err(|_| Broken)?;
            if u64::from_ne_bytes(answer) != 1 {
                return Err(Broken);
            }
            match lists.next() {
                Some(next) => list = next,
                None => return Ok(()),
            }
        }
    }

    /// Keeps the runner and this thread on one CPU, if the kernel does not: a change of CPUs costs
    /// more than a change of processes. Ends when what is returned is dropped.
    pub(super) fn on_one_cpu(&mut self) -> Option<Pinned> {
        if self.is_on_one_cpu {
            return None;
        }
        let all = sched_getaffinity(None).ok()?;
        let cpu = sched_getcpu();
        let mut one = CpuSet::new();
        if cpu >= CpuSet::MAX_CPU {
            return None;
        }
        one.set(cpu);
        // It is a matter of speed only.
        sched_setaffinity(None, &one).ok()?;
        let pinned = Pinned { all };
        if self.cpu != Some(cpu) {
            let runner = rustix::process::Pid::from_raw(self.runner as i32);
            sched_setaffinity(runner, &one).ok()?;
            self.cpu = Some(cpu);
        }
        Some(pinned)
    }

    /// The next call of the runner.
    fn next(&self, is_called: &mut dyn FnMut() -> bool) -> Result<Notification, Broken> {
        loop {
            self.wait(&self.listener, is_called)?;
            let mut call = Notification::default();
            // SAFETY: the kernel fills a zeroed structure of this size.
            let result = unsafe { libc::ioctl(self.listener.as_raw_fd(), RECEIVE, &raw mut call) };
            if result == 0 {
                return Ok(call);
            }
            // A signal to the runner may have withdrawn the call meanwhile.
            let error = io::Error::last_os_error().raw_os_error();
            if !matches!(error, Some(libc::EINTR | libc::ENOENT)) {
                return Err(Broken);
            }
        }
    }

    /// Waits until `file` has something. Looks at `is_called` now and then.
    fn wait(&self, file: &OwnedFd, is_called: &mut dyn FnMut() -> bool) -> Result<(), Broken> {
        let mut called = None;
        loop {
            if has_something(file).map_err(|_| Broken)? {
                return Ok(());
            }
            if !is_called() {
                called = None;
                continue;
            }
            let used = self.process.cpu_time().ok_or(Broken)?;
            let (since, used_then) = *called.get_or_insert_with(|| (Instant::now(), used));
            let goes_on = used.saturating_sub(used_then) > PATIENCE;
            if goes_on || since.elapsed() > PATIENCE_WAITING {
                return Err(Broken);
            }
        }
    }

    /// Answers call `id`. Returns whether somebody waited for that.
    fn answer(&self, id: u64, value: i64, flags: u32) -> Result<bool, Broken> {
        let answer = Answer {
            id,
            value,
            error: 0,
            flags,
        };
        loop {
            // SAFETY: the kernel reads a structure of this size.
            let result = unsafe { libc::ioctl(self.listener.as_raw_fd(), SEND, &raw const answer) };
            match io::Error::last_os_error().raw_os_error() {
                _ if result == 0 => return Ok(true),
                // A signal has come to this thread while the runner, interrupted, left its call.
                Some(libc::EINTR) => {}
                Some(libc::ENOENT) => return Ok(false),
                _ => return Err(Broken),
            }
        }
    }
}

/// Waits for [`LOOK`] at most until `file` has something, and says whether it has.
///
/// No signal comes to this thread meanwhile: that of its timer would take the CPU from the runner,
/// which at that time is interrupted by its own.
fn has_something(file: &OwnedFd) -> io::Result<bool> {
    let all = u64::MAX;
    let mut look = libc::timespec {
        tv_sec: LOOK.as_secs() as i64,
        tv_nsec: LOOK.subsec_nanos().into(),
    };
    let mut files = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one descriptor, a time, and a set of signals of the kernel's size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ppoll,
            &raw mut files,
            1,
            &raw mut look,
            &raw const all,
            size_of_val(&all),
        )
    };
    match result {
        0 => Ok(false),
        1 if files.revents & libc::POLLIN != 0 => Ok(true),
        1 => Err(io::ErrorKind::BrokenPipe.into()),
        _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Interrupts thread `runner` of jail `pid`. From any thread, and from signal handlers.
pub(crate) fn interrupt(pid: i32, runner: i32) {
    // SAFETY: sends a signal that whoever does not expect it ignores, and leaves what the thread
    // that is perhaps in a signal handler takes for its last error as it was.
    unsafe {
        let error = *libc::__errno_location();
        libc::syscall(libc::SYS_tgkill, pid, runner, INTERRUPT);
        *libc::__errno_location() = error;
    }
}

/// A child process, or 0. Dropping it ends it.
struct Process(i32);

impl Process {
    /// The CPU time that it has used, if it is there.
    fn cpu_time(&self) -> Option<Duration> {
        let mut clock = 0;
        let mut time = MaybeUninit::<libc::timespec>::uninit();
        // SAFETY: both calls fill what they are given, and the time is used if they did.
        let time = unsafe {
            let is_there = libc::clock_getcpuclockid(self.0, &raw mut clock) == 0
                && libc::clock_gettime(clock, time.as_mut_ptr()) == 0;
            is_there.then(|| time.assume_init())
        }?;
        Some(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    /// The descriptor that the runner puts down in `place`.
    fn listener(&mut self, place: &AtomicI32) -> io::Result<OwnedFd> {
        let begin = Instant::now();
        loop {
            let listener = place.load(Ordering::Acquire);
            if listener > 0 {
                // SAFETY: the jail opened it in the table that it still shared with this process,
                // and told only us.
                return Ok(unsafe { OwnedFd::from_raw_fd(listener) });
            }
            let mut status = 0;
            // SAFETY: asks for the state of a child.
            let ended = unsafe { libc::waitpid(self.0, &raw mut status, libc::WNOHANG) };
            if ended != 0 {
                self.0 = 0;
                return Err(io::Error::other("a jail ended as it began"));
            }
            if begin.elapsed() > PATIENCE_WAITING {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.0 > 0 {
            // SAFETY: ends a child of ours that was not waited for, and waits for it.
            unsafe {
                libc::kill(self.0, libc::SIGKILL);
                libc::waitpid(self.0, std::ptr::null_mut(), 0);
            }
        }
    }
}

/// Everything but what depends on a descriptor or a context. The jail keeps `kept`.
fn fill(orders: &mut Orders, address: usize, mut kept: [Range<usize>; 3]) {
    kept.sort_by_key(|range| range.start);
    let mut end = 0;
    let mut count = 0;
    for range in kept {
        orders.gaps[count] = [end, range.start as u64 - end];
        end = range.end as u64;
        count += 1;
    }
    orders.gaps[count] = [end, TASK_END - end];
    orders.gap_count = count as u32 + 1;
    orders.done = 1;
    orders.failed = 1 << 32;
    let [mapper, runner] = &mut orders.programs;
    // Load, compare, return: see seccomp(2) and BPF_STMT, BPF_JUMP of bpf(4).
    let step = |code: u16, equal: u8, other: u8, k: u32| {
        u64::from(code) | u64::from(equal) << 16 | u64::from(other) << 24 | u64::from(k) << 32
    };
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const X86_64: u32 = 0xc000_003e;
    // Offsets in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    let argument = |number: u32| 16 + 8 * number;
    let call = |number: c_long, steps: u8| step(EQUAL, steps, 0, number as u32);
    let mapper_program = [
        step(LOAD, 0, 0, ARCHITECTURE),
        step(EQUAL, 0, 5, X86_64),
        step(LOAD, 0, 0, NUMBER),
        call(libc::SYS_mmap, 4),
        call(libc::SYS_munmap, 3),
        call(libc::SYS_futex, 2),
        call(libc::SYS_write, 1),
        step(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    mapper[..mapper_program.len()].copy_from_slice(&mapper_program);
    // Its timer, at an absolute time, and nothing is written to its memory.
    let runner_program = [
        step(LOAD, 0, 0, ARCHITECTURE),
        step(EQUAL, 0, 11, X86_64),
        step(LOAD, 0, 0, NUMBER),
        step(EQUAL, 0, 9, libc::SYS_timer_settime as u32),
        step(LOAD, 0, 0, argument(0)),
        step(EQUAL, 0, 7, TIMER as u32),
        step(LOAD, 0, 0, argument(1)),
        step(EQUAL, 0, 5, libc::TIMER_ABSTIME as u32),
        step(LOAD, 0, 0, argument(3)),
        step(EQUAL, 0, 3, 0),
        step(LOAD, 0, 0, argument(3) + 4),
        step(EQUAL, 0, 1, 0),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
    ];
    runner[..runner_program.len()].copy_from_slice(&runner_program);
    let at = (address + order!(programs)) as u64;
    orders.mapper_filter.len = mapper_program.len() as u16;
    orders.mapper_filter.program = at;
    orders.runner_filter.len = runner_program.len() as u16;
    orders.runner_filter.program = at + size_of_val(&orders.programs[0]) as u64;
}

/// What the new process needs to know.
struct Child {
    orders: usize,
    start: usize,
    handler: usize,
    rseq: Option<(usize, u32)>,
}

/// Where the C library has told the kernel to note preemption (rseq(2)): memory that the jail
/// is going to unmap.
fn restartable_sequences() -> Option<(usize, u32)> {
    // SAFETY: looks symbols up by name; where the C library has them, they are an `isize` and a
    // `u32` that don't change. FS:0 is the thread's own address (x86-64 psABI, TLS).
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>();
        if offset.is_null() || size.is_null() || *size == 0 {
            return None;
        }
        let thread: usize;
        std::arch::asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, readonly));
        Some((thread.wrapping_add_signed(*offset), *size))
    }
}

/// Begins the process. It shares this one's table of descriptors at first, so that its listener
/// is ours too.
fn fork(child: &Child) -> io::Result<i32> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: a mask of all signals, so that no handler of ours runs in the child, and the mask
    // from before afterwards. The child never returns.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let parent = libc::getpid();
        let flags = libc::CLONE_FILES | libc::SIGCHLD;
        let pid = libc::syscall(libc::SYS_clone, c_long::from(flags), 0, 0, 0, 0);
        if pid == 0 {
            begin(child, parent);
        }
        let error = io::Error::last_os_error();
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut());
        if pid < 0 { Err(error) } else { Ok(pid as i32) }
    }
}

/// The new process: makes itself what the stub expects, and goes there.
///
/// # Safety
/// Only in a process of its own.
unsafe fn begin(child: &Child, parent: i32) -> ! {
    /// As the C library registers itself.
    const SIGNATURE: u32 = 0x5305_3053;
    const UNREGISTER: c_long = 1;
    // SAFETY: system calls that change this process alone, which has one thread, and then a jump
    // to code that needs nothing of it.
    unsafe {
        let mut is_well = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
            && libc::getppid() == parent
            && libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
        if let Some((address, size)) = child.rseq {
            let end = |size: u32| {
                libc::syscall(libc::SYS_rseq, address, size, UNREGISTER, SIGNATURE) == 0
            };
            is_well &= end(32) || end(size);
        }
        let action = Action {
            handler: child.handler,
            flags: (libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER) as u64 | 0x0400_0000,
            restorer: child.handler,
            mask: 0,
        };
        let mut blocked = !0u64;
        for signal in HANDLED {
            blocked &= !(1 << (signal - 1));
            let result = libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, 0, 8);
            is_well &= result == 0;
        }
        let set = libc::SIG_SETMASK;
        let result = libc::syscall(libc::SYS_rt_sigprocmask, set, &raw const blocked, 0, 8);
        if !is_well || result != 0 {
            libc::_exit(1);
        }
        std::arch::asm!(
            "jmp {start}",
            start = in(reg) child.start,
            in("rdi") child.orders,
            options(noreturn),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::stub::ASKED;
    use super::*;
    use crate::context::ContextBox;
    use crate::store::Store;
    use memory::{GuestMemory, Kind, RegionSpec};
    use std::fs;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use x86::Rflags;

    /// Where the tests' programs have a page.
    const LINEAR: u64 = 0x55_5555_5000;
    /// Where they have code, in the code memory.
    const CODE: usize = 0x10000;

    struct Fixture {
        context: ContextBox,
        store: Store,
        memory: Arc<GuestMemory>,
        jail: Jail,
    }

    fn fixture() -> Fixture {
        let region = RegionSpec {
            gpa: 0,
            len: 0x10000,
            kind: Kind::Ram,
        };
        let memory = GuestMemory::new(&[region]).expect("memory");
        let mut context = ContextBox::in_jail().expect("a context");
        let stub = Stub::get();
        let store = Store::in_jail(1 << 20, stub.code, stub.ask, &mut context).expect("a store");
        let place = context.range();
        let jail = Jail::new(store.memory.range(), &context, place, memory.file());
        Fixture {
            context,
            store,
            memory,
            jail: jail.expect("a jail"),
        }
    }

    impl Fixture {
        /// Runs `code` until it stops.
        fn run(&mut self, code: &[u8]) -> Result<(), Broken> {
            self.store.memory.write(CODE, code);
            self.context.resume = self.begin();
            self.go(0)
        }

        /// Lets it go on, for so many instructions if that is not 0.
        fn go(&mut self, steps: u32) -> Result<(), Broken> {
            self.context.stopped_by = 0;
            self.context.steps = steps;
            let is_stepped = steps != 0;
            let trap = if is_stepped { Rflags::TF.bits() } else { 0 };
            self.context.flags = Rflags::FIXED.bits() | trap;
            self.jail.run(is_stepped, &mut || is_stepped)
        }

        /// Where the code begins.
        fn begin(&self) -> u64 {
            self.store.memory.address(CODE) as u64
        }

        /// The mapping of page 2 of guest memory at [`LINEAR`].
        fn map(&mut self, writable: bool) {
            let order = Order::map(LINEAR, 0x1000, 0x2000, writable);
            self.jail.apply(&[order]).expect("it is mapped");
        }
    }

    /// Does `work` while another thread interrupts the runner again and again.
    fn interrupting<T>(runner: (i32, i32), every: Duration, work: impl FnOnce() -> T) -> T {
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    std::thread::sleep(every);
                    interrupt(runner.0, runner.1);
                }
            });
            let result = work();
            ended.store(true, Ordering::Relaxed);
            result
        })
    }

    /// `mov rax, [LINEAR]; ud2`, with another opcode to store.
    fn access(opcode: u8) -> Vec<u8> {
        let mut code = vec![0x48, opcode];
        code.extend(LINEAR.to_le_bytes());
        code.extend([0x0f, 0x0b]);
        code
    }
    const LOAD: u8 = 0xa1;
    const STORE: u8 = 0xa3;

    #[test]
    fn it_has_nothing_of_the_monitor() {
        let fixture = fixture();
        let path = |name: &str| format!("/proc/{}/{name}", fixture.jail.process.0);
        let maps = fs::read_to_string(path("maps")).expect("maps");
        let of = |line: &str| {
            ["/dev/zero", "jail-orders", "[vsyscall]"]
                .into_iter()
                .find(|name| line.contains(name))
        };
        assert!(maps.lines().all(|line| of(line).is_some()), "{maps}");
        assert!(!maps.contains("wx"), "{maps}");
        let files = |task: u32| fs::read_dir(path(&format!("task/{task}/fd"))).map(Iterator::count);
        assert_eq!(files(fixture.jail.runner).ok(), Some(0));
        assert_eq!(files(fixture.jail.process.0 as u32).ok(), Some(2));
        for task in [fixture.jail.runner, fixture.jail.process.0 as u32] {
            let status = fs::read_to_string(path(&format!("task/{task}/status"))).expect("status");
            assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"));
        }
    }

    #[test]
    fn what_is_mapped_is_the_guests_memory_and_nothing_else_is() {
        let mut fixture = fixture();
        fixture.memory.ram().store(0x2000, 0x1234_5678_u64);
        assert_eq!(fixture.run(&access(LOAD)), Ok(()));
        assert_eq!(fixture.context.stopped_by, libc::SIGSEGV as u32);
        assert_eq!(fixture.context.fault_address, LINEAR);
        fixture.map(false);
        assert_eq!(fixture.run(&access(LOAD)), Ok(()));
        assert_eq!(fixture.context.stopped_by, libc::SIGILL as u32);
        assert_eq!(fixture.context.host[0], 0x1234_5678);
        assert_eq!(fixture.run(&access(STORE)), Ok(()));
        assert_eq!(fixture.context.stopped_by, libc::SIGSEGV as u32);
        fixture.map(true);
        fixture.context.host[0] = 77;
        assert_eq!(fixture.run(&access(STORE)), Ok(()));
        assert_eq!(fixture.memory.ram().load::<u64>(0x2000), 77);
        fixture.jail.empty().expect("it is emptied");
        assert_eq!(fixture.run(&access(LOAD)), Ok(()));
        assert_eq!(fixture.context.stopped_by, libc::SIGSEGV as u32);
    }

    #[test]
    fn no_system_call_is_made() {
        // mov eax, call; syscall; ud2
        let calls = |call: i64| {
            let mut code = vec![0xb8];
            code.extend((call as u32).to_le_bytes());
            code.extend([0x0f, 0x05, 0x0f, 0x0b]);
            code
        };
        for call in [libc::SYS_mmap, libc::SYS_exit_group, libc::SYS_rt_sigreturn] {
            assert_eq!(fixture().run(&calls(call)), Err(Broken), "call {call}");
        }
        // Another timer, relative time, and places for what was set before: RDI, RSI and R10.
        for [id, flags, old] in [[1, 1, 0], [0, 0, 0], [0, 1, 16], [0, 1, 1 << 32]] {
            let mut fixture = fixture();
            (fixture.context.host[7], fixture.context.host[6]) = (id, flags);
            fixture.context.host[10] = old;
            fixture.context.host[2] = fixture.context.alarm_address;
            let result = fixture.run(&calls(libc::SYS_timer_settime));
            assert_eq!(result, Err(Broken), "timer {id}, flags {flags}, {old:x}");
        }
    }

    #[test]
    fn its_own_timer_interrupts_it() {
        let mut fixture = fixture();
        // jmp to itself
        let code = [0xeb, 0xfe];
        for mut delay in [3_000_000, 0, 100_000, 1_000_000] {
            loop {
                let deadline = timer::now() + delay;
                fixture.jail.set_alarm(deadline, &mut fixture.context);
                assert_eq!(fixture.run(&code), Ok(()));
                assert!(timer::now() >= deadline, "after {delay} ns");
                if fixture.context.stopped_by == INTERRUPT as u32 {
                    break;
                }
                // It came on the way to the code.
                assert_eq!(fixture.context.stopped_by, 0);
                delay = 2 * delay + 1000;
            }
        }
    }

    #[test]
    fn one_that_is_asked_to_stop_does_not_go_on() {
        let mut fixture = fixture();
        assert_eq!(fixture.jail.run(false, &mut || true), Ok(()));
        assert_eq!(fixture.context.stopped_by, 0);
    }

    #[test]
    fn one_that_does_not_stop_is_interrupted_where_it_is() {
        let mut fixture = fixture();
        let runner = fixture.jail.runner();
        // jmp to itself
        let code = [0xeb, 0xfe];
        for round in 0..100 {
            let registers = std::array::from_fn(|n| round + 0x1111 * n as u64);
            fixture.context.host = registers;
            while fixture.context.stopped_by != INTERRUPT as u32 {
                // The first may come before it runs.
                let result =
                    interrupting(runner, Duration::from_micros(300), || fixture.run(&code));
                assert_eq!(result, Ok(()));
            }
            assert_eq!(fixture.context.host, registers);
            assert_eq!(fixture.context.resume, fixture.begin());
            fixture.context.stopped_by = 0;
        }
    }

    #[test]
    fn one_that_steps_stops_after_so_many_instructions_or_when_it_asks() {
        let mut fixture = fixture();
        // Eight times inc eax; then jmp gs:[assist_gate]
        let mut code = [0xff, 0xc0].repeat(8);
        code.extend([0x65, 0xff, 0x24, 0x25]);
        code.extend(crate::context::field!(assist_gate).to_le_bytes());
        fixture.store.memory.write(CODE, &code);
        for steps in 1..8 {
            (fixture.context.host[0], fixture.context.resume) = (0, fixture.begin());
            assert_eq!(fixture.go(steps), Ok(()));
            assert_eq!(fixture.context.stopped_by, libc::SIGTRAP as u32);
            assert_eq!(fixture.context.host[0], steps.into());
            assert_eq!(
                fixture.context.resume,
                fixture.begin() + u64::from(2 * steps)
            );
            // The rest of it, and some more.
            assert_eq!(fixture.go(10), Ok(()));
            assert_eq!(fixture.context.stopped_by, ASKED);
            assert_eq!(fixture.context.host[0], 8);
            assert!(!Rflags::from_bits_retain(fixture.context.flags).contains(Rflags::TF));
        }
    }

    #[test]
    fn one_that_can_not_be_interrupted_is_given_up() {
        let mut fixture = fixture();
        let (pid, _) = fixture.jail.runner();
        // SAFETY: stops a child of this process.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
        assert_eq!(fixture.go(1), Err(Broken));
        drop(fixture);
        assert!(!fs::exists(format!("/proc/{pid}")).expect("proc"));
    }

    /// Wherever signals come, in the program or in the stub, nothing is done twice or not at all.
    #[test]
    fn interrupts_change_nothing() {
        use crate::context::field;
        /// Rounds of the program's loop before it asks, and how often it does at least, and at most
        /// until interrupts of both kinds have come: on a busy host they are rare.
        const ROUNDS: u64 = 20_000;
        const ASKS: u64 = 5000;
        const ASKS_MAX: u64 = 40 * ASKS;
        /// Interrupts of each kind.
        const ENOUGH: u32 = 5;
        let mut fixture = fixture();
        // inc rax; mov gs:[jump], rbx; jmp gs:[jump], which goes behind itself as translated jumps
        // do; dec rcx; jnz to the beginning; jmp gs:[assist_gate]
        let jump = field!(jump).to_le_bytes();
        let mut code = vec![0x48, 0xff, 0xc0, 0x65, 0x48, 0x89, 0x1c, 0x25];
        code.extend(jump);
        code.extend([0x65, 0xff, 0x24, 0x25]);
        code.extend(jump);
        let target = fixture.begin() + code.len() as u64;
        code.extend([0x48, 0xff, 0xc9, 0x75]);
        code.push(-(code.len() as i8 + 1) as u8);
        code.extend([0x65, 0xff, 0x24, 0x25]);
        code.extend(field!(assist_gate).to_le_bytes());
        fixture.store.memory.write(CODE, &code);
        let runner = fixture.jail.runner();
        let mut interrupts = [0; 2];
        interrupting(runner, Duration::from_micros(20), || {
            let mut registers: [u64; 16] = std::array::from_fn(|n| 0x1111 * n as u64);
            (registers[0], registers[3]) = (0, target);
            fixture.context.host = registers;
            for ask in 1..=ASKS_MAX {
                if ask > ASKS && interrupts.iter().all(|n| *n > ENOUGH) {
                    break;
                }
                fixture.context.host[1] = ROUNDS;
                fixture.context.resume = fixture.begin();
                while fixture.go(0) == Ok(()) && fixture.context.stopped_by != ASKED {
                    let by = fixture.context.stopped_by;
                    assert!(by == 0 || by == INTERRUPT as u32, "by {by}");
                    interrupts[usize::from(by != 0)] += 1;
                }
                (registers[0], registers[1]) = (ask * ROUNDS, 0);
                assert_eq!(fixture.context.host, registers);
            }
        });
        let enough = interrupts.iter().all(|n| *n > ENOUGH);
        assert!(enough, "only {interrupts:?}");
    }

    #[test]
    fn one_that_dies_is_noticed() {
        let mut fixture = fixture();
        // SAFETY: ends a child of this process.
        unsafe { libc::kill(fixture.jail.process.0, libc::SIGKILL) };
        assert_eq!(fixture.run(&[0xeb, 0xfe]), Err(Broken));
    }
}
