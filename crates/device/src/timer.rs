//! Timers of devices, in machine time.
//!
//! A device holds a [`Timer`] and arms it with a deadline; the machine runs one thread in
//! [`Timers::run`] that calls [`Timed::expired`] of the device behind it. A deadline is never
//! early; it is late by what the host's scheduler takes. While the machine is paused, nothing
//! expires.

use crate::{Shared, lock};
use clock::Clock;
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::Duration;

/// A device that acts at points in time.
pub trait Timed: Send {
    /// The deadline of one of the device's timers has passed; the timer is disarmed. It is
    /// machine time `now`.
    fn expired(&mut self, now: u64);
}

/// All timers of a machine.
#[derive(Clone)]
pub struct Timers(Arc<Inner>);

struct Inner {
    clock: Clock,
    table: Mutex<Table>,
    changed: Condvar,
    /// Held while devices are called.
    calls: Mutex<()>,
}

#[derive(Default)]
struct Table {
    slots: Vec<Slot>,
    running: bool,
    stopped: bool,
}

#[derive(Default)]
struct Slot {
    deadline: Option<u64>,
    device: Option<Weak<Mutex<dyn Timed>>>,
}

/// One timer, held by its device.
#[derive(Clone)]
pub struct Timer {
    timers: Timers,
    slot: usize,
}

impl Timers {
    /// Timers in the time of `clock`, paused.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner {
            clock,
            table: Mutex::default(),
            changed: Condvar::new(),
            calls: Mutex::default(),
        }))
    }

    /// A new timer, disarmed and attached to no device.
    pub fn create(&self) -> Timer {
        let mut table = lock(&self.0.table);
        table.slots.push(Slot::default());
        Timer {
            timers: self.clone(),
            slot: table.slots.len() - 1,
        }
    }

    /// Says whose [`Timed::expired`] `timer` calls.
    pub fn attach<T: Timed + 'static>(&self, timer: &Timer, device: &Shared<T>) {
        let device: Weak<Mutex<T>> = Arc::downgrade(device);
        lock(&self.0.table).slots[timer.slot].device = Some(device);
    }

    /// Waits for deadlines and calls devices, until [`Timers::stop`].
    pub fn run(&self) {
        let mut table = lock(&self.0.table);
        while !table.stopped {
            let now = self.0.clock.now();
            let deadline = next_deadline(&table).filter(|_| table.running);
            if deadline.is_some_and(|deadline| deadline <= now) {
                let due = take_due(&mut table, now);
                let calls = lock(&self.0.calls);
                // A device arms its timers under its own lock: never call it under the table's.
                drop(table);
                call(&due, now);
                drop(calls);
                table = lock(&self.0.table);
                continue;
            }
            table = match deadline {
                Some(deadline) => {
                    let wait = Duration::from_nanos(deadline - now);
                    let woken = self.0.changed.wait_timeout(table, wait);
                    woken.unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
                None => {
                    let woken = self.0.changed.wait(table);
                    woken.unwrap_or_else(std::sync::PoisonError::into_inner)
                }
            };
        }
    }

    /// Calls the devices whose deadlines have passed, once. For tests with a manual clock.
    pub fn poll(&self) {
        let now = self.0.clock.now();
        let due = take_due(&mut lock(&self.0.table), now);
        call(&due, now);
    }

    /// The earliest deadline that is armed.
    pub fn next_deadline(&self) -> Option<u64> {
        next_deadline(&lock(&self.0.table))
    }

    /// Lets timers expire, after the clock was resumed.
    pub fn resume(&self) {
        lock(&self.0.table).running = true;
        self.0.changed.notify_all();
    }

    /// Nothing expires any more, not even what is overdue; no device is being called when this
    /// returns. Not to be called under a device's lock.
    pub fn pause(&self) {
        lock(&self.0.table).running = false;
        drop(lock(&self.0.calls));
    }

    /// Ends [`Timers::run`].
    pub fn stop(&self) {
        lock(&self.0.table).stopped = true;
        self.0.changed.notify_all();
    }
}

fn next_deadline(table: &Table) -> Option<u64> {
    table.slots.iter().filter_map(|s| s.deadline).min()
}

fn take_due(table: &mut Table, now: u64) -> Vec<Weak<Mutex<dyn Timed>>> {
    let mut due = Vec::new();
    for slot in &mut table.slots {
        if slot.deadline.is_some_and(|d| d <= now) {
            slot.deadline = None;
            due.extend(slot.device.clone());
        }
    }
    due
}

fn call(due: &[Weak<Mutex<dyn Timed>>], now: u64) {
    for device in due.iter().filter_map(Weak::upgrade) {
        lock(&device).expired(now);
    }
}

impl Timer {
    /// Expires at `deadline` (machine time, nanoseconds) instead of when it was to before.
    pub fn arm(&self, deadline: u64) {
        self.set(Some(deadline));
    }

    /// Does not expire any more. A call that is under way may still arrive.
    pub fn disarm(&self) {
        self.set(None);
    }

    fn set(&self, deadline: Option<u64>) {
        let mut table = lock(&self.timers.0.table);
        let earlier = deadline.is_some_and(|d| next_deadline(&table).is_none_or(|n| d < n));
        table.slots[self.slot].deadline = deadline;
        drop(table);
        if earlier {
            self.timers.0.changed.notify_all();
        }
    }
}

impl std::fmt::Debug for Timer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Timer").field(&self.slot).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared;

    struct Periodic {
        timer: Timer,
        period: u64,
        seen: Vec<u64>,
    }

    impl Timed for Periodic {
        fn expired(&mut self, now: u64) {
            self.seen.push(now);
            self.timer.arm(now + self.period);
        }
    }

    fn periodic(timers: &Timers, period: u64) -> Shared<Periodic> {
        let timer = timers.create();
        let device = shared(Periodic {
            timer: timer.clone(),
            period,
            seen: Vec::new(),
        });
        timers.attach(&timer, &device);
        timer.arm(period);
        device
    }

    #[test]
    fn a_deadline_is_never_early_and_comes_once() {
        let clock = Clock::manual();
        let timers = Timers::new(clock.clone());
        let device = periodic(&timers, 10);
        clock.advance(9);
        timers.poll();
        assert!(lock(&device).seen.is_empty());
        clock.advance(1);
        timers.poll();
        timers.poll();
        assert_eq!(lock(&device).seen, [10]);
        assert_eq!(timers.next_deadline(), Some(20));
    }

    #[test]
    fn disarmed_timers_and_dropped_devices_stay_quiet() {
        let clock = Clock::manual();
        let timers = Timers::new(clock.clone());
        let device = periodic(&timers, 10);
        let gone = periodic(&timers, 10);
        drop(gone);
        lock(&device).timer.disarm();
        clock.advance(100);
        timers.poll();
        assert!(lock(&device).seen.is_empty());
    }

    #[test]
    fn the_thread_follows_the_clock() {
        let clock = Clock::stopped_at(0);
        let timers = Timers::new(clock.clone());
        let device = periodic(&timers, 1000);
        let thread = std::thread::spawn({
            let timers = timers.clone();
            move || timers.run()
        });
        clock.resume();
        timers.resume();
        while lock(&device).seen.len() < 3 {
            std::thread::yield_now();
        }
        timers.stop();
        thread.join().unwrap();
        assert!(lock(&device).seen.is_sorted());
    }

    #[test]
    fn while_paused_nothing_expires_that_is_overdue() {
        let clock = Clock::manual();
        let timers = Timers::new(clock.clone());
        let device = periodic(&timers, 10);
        clock.advance(1000);
        std::thread::scope(|scope| {
            scope.spawn(|| timers.run());
            std::thread::sleep(Duration::from_millis(20));
            assert!(lock(&device).seen.is_empty(), "before the first resume");
            timers.resume();
            while lock(&device).seen.is_empty() {
                std::thread::yield_now();
            }
            timers.pause();
            clock.advance(1000);
            // Looks at the table again.
            timers.0.changed.notify_all();
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(lock(&device).seen.len(), 1);
            timers.stop();
        });
    }

    #[test]
    fn no_device_is_called_after_a_pause() {
        /// Takes its time in a call.
        struct Slow {
            began: bool,
            ended: bool,
        }
        impl Timed for Slow {
            fn expired(&mut self, _: u64) {
                self.began = true;
                std::thread::sleep(Duration::from_millis(20));
                self.ended = true;
            }
        }
        let clock = Clock::manual();
        let timers = Timers::new(clock.clone());
        let timer = timers.create();
        let device = shared(Slow {
            began: false,
            ended: false,
        });
        timers.attach(&timer, &device);
        timer.arm(0);
        std::thread::scope(|scope| {
            scope.spawn(|| timers.run());
            timers.resume();
            while timers.next_deadline().is_some() {
                std::thread::yield_now();
            }
            timers.pause();
            let device = device.try_lock().unwrap();
            assert!(device.began && device.ended);
            timers.stop();
        });
    }
}
