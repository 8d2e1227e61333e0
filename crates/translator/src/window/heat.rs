//! Which address spaces are worth a jail.
//!
//! To go into a jail and out again takes two switches of processes; what runs there gains about
//! as much time as it takes. So a window is opened where user code was found running again and
//! again with few entries into the kernel in between, and closed when it has cost more than it gained.

use std::time::{Duration, Instant};

/// Address spaces that are remembered.
const REMEMBERED: usize = 16;
/// How long user code should run between two entries into the kernel.
const LONG: Duration = Duration::from_micros(200);
/// Finds in a row that open a window: by then the program has run for as long as that takes.
const FINDS: u32 = 8;
/// The part of the time that may go into translation: a program whose code is still new would have
/// all of that translated once more for its jail.
const NEW_CODE: u32 = 8;
/// Most finds in a row that are asked for after windows were closed.
const FINDS_MAX: u32 = 256;
/// Two finds that are further apart say nothing, nor do two that are closer.
const APART: std::ops::Range<Duration> = Duration::from_micros(500)..Duration::from_millis(50);
/// What a stop of a jail costs, in microseconds: the switches, and what the CPU's caches forget.
const STOP: i64 = 6;
/// The credit, in microseconds, that a window begins with, and the most that it can have.
const CREDIT: i64 = 10_000;
const CREDIT_MAX: i64 = 40_000;

/// What is known about an address space.
#[derive(Debug, Clone, Copy)]
struct Warmth {
    cr3: u64,
    /// Finds in a row.
    finds: u32,
    wanted: u32,
    /// When the last one was, and how often the kernel had been entered.
    last: Instant,
    entries: u64,
    /// How long code had been translated by then.
    translating: Duration,
    /// What the window has gained so far, in microseconds, if it is open.
    credit: Option<i64>,
}

/// When windows are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Where it pays.
    Auto,
    /// For all user code, however slow: for tests.
    Always,
    /// Never.
    Never,
}

/// The address spaces in which user code was found.
#[derive(Debug)]
pub(super) struct Heat {
    when: When,
    known: Vec<Warmth>,
    /// Finds so far, and windows that were closed.
    pub(super) found: u64,
    pub(super) closed: u64,
}

impl Heat {
    pub(super) fn new(when: When) -> Self {
        Self {
            when,
            known: Vec::new(),
            found: 0,
            closed: 0,
        }
    }

    /// Gives up.
    pub(super) fn end(&mut self) {
        self.when = When::Never;
    }

    /// Whether the window of `cr3` is open.
    pub(super) fn is_open(&self, cr3: u64) -> bool {
        match self.when {
            When::Always => true,
            When::Never => false,
            When::Auto => self
                .known
                .iter()
                .any(|w| w.cr3 == cr3 && w.credit.is_some()),
        }
    }

    /// User code was found running in the address space `cr3`; the kernel was entered `entries`
    /// times so far, and `translating` is how long the vCPU has translated. Returns whether that
    /// opens a window.
    pub(super) fn find(&mut self, cr3: u64, entries: u64, translating: Duration) -> bool {
        if self.when != When::Auto {
            return false;
        }
        let now = Instant::now();
        let warmth = self.warmth(cr3, now);
        let time = now.duration_since(warmth.last);
        if time < APART.start || warmth.credit.is_some() {
            return false;
        }
        let entered = entries.wrapping_sub(warmth.entries).max(1);
        let is_long = time >= LONG * u32::try_from(entered).unwrap_or(u32::MAX);
        let translated = translating.saturating_sub(warmth.translating);
        let is_known = translated * NEW_CODE <= time;
        let is_find = time < APART.end && is_long && is_known;
        if is_find {
            warmth.finds += 1;
        } else {
            warmth.finds = 0;
        }
        (warmth.last, warmth.entries) = (now, entries);
        warmth.translating = translating;
        let opens = warmth.finds >= warmth.wanted;
        if opens {
            warmth.credit = Some(CREDIT);
        }
        self.found += u64::from(is_find);
        opens
    }

    /// Another program has the address space `cr3` now.
    pub(super) fn forget(&mut self, cr3: u64) {
        self.known.retain(|warmth| warmth.cr3 != cr3);
    }

    /// A run in the jail of `cr3` took `time`, of which the jail itself ran for `inside`, with so
    /// many stops. What is done once for each page of a program is not in `time`.
    pub(super) fn ran(&mut self, cr3: u64, time: Duration, inside: Duration, stops: u64) {
        if self.when != When::Auto {
            return;
        }
        let warmth = self.warmth(cr3, Instant::now());
        let Some(credit) = warmth.credit else {
            return;
        };
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        // Behind checks, the same code would have taken about twice as long.
        let gain = micros(inside);
        let cost = micros(time.saturating_sub(inside)) + STOP * stops as i64;
        let credit = (credit + gain - cost).min(CREDIT_MAX);
        warmth.credit = Some(credit).filter(|credit| *credit > 0);
        if warmth.credit.is_none() {
            warmth.finds = 0;
            warmth.wanted = (warmth.wanted * 4).min(FINDS_MAX);
            self.closed += 1;
        }
    }

    fn warmth(&mut self, cr3: u64, now: Instant) -> &mut Warmth {
        let place = match self.known.iter().position(|w| w.cr3 == cr3) {
            Some(place) => place,
            None => {
                if self.known.len() == REMEMBERED {
                    let oldest = (0..REMEMBERED).min_by_key(|i| self.known[*i].last);
                    self.known.swap_remove(oldest.unwrap_or(0));
                }
                self.known.push(Warmth {
                    cr3,
                    finds: 0,
                    wanted: FINDS,
                    last: now,
                    entries: 0,
                    translating: Duration::ZERO,
                    credit: None,
                });
                self.known.len() - 1
            }
        };
        &mut self.known[place]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finds user code as often, with `entries` into the kernel before each.
    fn find(heat: &mut Heat, times: u32, entries: u64) -> bool {
        find_new(heat, times, entries, Duration::ZERO)
    }

    /// Likewise, after so much translation each time.
    fn find_new(heat: &mut Heat, times: u32, entries: u64, translating: Duration) -> bool {
        let mut opened = false;
        for time in 0..times {
            std::thread::sleep(Duration::from_millis(1));
            opened |= heat.find(0x1000, entries * u64::from(time), translating * time);
        }
        opened
    }

    #[test]
    fn code_that_computes_opens_a_window_and_system_calls_do_not() {
        let mut heat = Heat::new(When::Auto);
        assert!(!find(&mut heat, 20, 1_000_000));
        assert!(!heat.is_open(0x1000));
        assert!(find(&mut heat, 20, 1));
        assert!(heat.is_open(0x1000) && !heat.is_open(0x2000));
    }

    #[test]
    fn code_that_is_new_opens_no_window() {
        let mut heat = Heat::new(When::Auto);
        assert!(!find_new(&mut heat, 20, 1, APART.end));
        assert!(find(&mut heat, 20, 1));
    }

    #[test]
    fn a_window_that_costs_more_than_it_gains_is_closed() {
        let mut heat = Heat::new(When::Auto);
        assert!(find(&mut heat, 20, 1));
        for _ in 0..1000 {
            heat.ran(
                0x1000,
                Duration::from_millis(1),
                Duration::from_millis(1),
                1,
            );
        }
        assert!(heat.is_open(0x1000));
        for _ in 0..10_000 {
            heat.ran(
                0x1000,
                Duration::from_micros(20),
                Duration::from_micros(10),
                1,
            );
        }
        assert!(!heat.is_open(0x1000));
        assert!(!find(&mut heat, 9, 1), "next time takes longer");
    }

    #[test]
    fn always_and_never_ask_nobody() {
        assert!(Heat::new(When::Always).is_open(7));
        let mut never = Heat::new(When::Never);
        assert!(!find(&mut never, 20, 0) && !never.is_open(0x1000));
    }
}
