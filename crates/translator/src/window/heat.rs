//! Which address spaces are worth a jail.

use std::time::{Duration, Instant};

/// Address spaces that are remembered.
const REMEMBERED: usize = 16;
/// Finding an address space in user mode this often, each time soon after the last, opens its
/// window.
const FINDS: u32 = 2;
/// How soon.
const SOON: Duration = Duration::from_millis(50);
/// A run in a jail that is shorter costs more than it gains.
const SHORT: Duration = Duration::from_micros(60);
/// So many short runs, less the long ones, close a window.
const SHORT_MAX: u32 = 12;
/// Most finds that are asked for after windows were closed.
const FINDS_MAX: u32 = 64;

/// What is known about an address space.
#[derive(Debug, Clone, Copy)]
struct Warmth {
    cr3: u64,
    finds: u32,
    wanted: u32,
    last: Instant,
    short: u32,
    is_open: bool,
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

/// The address spaces in which user code was seen.
#[derive(Debug)]
pub(super) struct Heat {
    when: When,
    known: Vec<Warmth>,
}

impl Heat {
    pub(super) fn new(when: When) -> Self {
        Self {
            when,
            known: Vec::new(),
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
            When::Auto => self.known.iter().any(|w| w.cr3 == cr3 && w.is_open),
        }
    }

    /// User code was found running in the address space `cr3`. Returns whether that opens a
    /// window.
    pub(super) fn find(&mut self, cr3: u64) -> bool {
        if self.when != When::Auto {
            return false;
        }
        let now = Instant::now();
        let warmth = self.warmth(cr3, now);
        if now.duration_since(warmth.last) > SOON {
            warmth.finds = 0;
        }
        warmth.last = now;
        warmth.finds += 1;
        let opens = !warmth.is_open && warmth.finds >= warmth.wanted;
        if opens {
            warmth.is_open = true;
            warmth.short = 0;
        }
        opens
    }

    /// A run in the jail of `cr3` took `time`.
    pub(super) fn ran(&mut self, cr3: u64, time: Duration) {
        if self.when != When::Auto {
            return;
        }
        let warmth = self.warmth(cr3, Instant::now());
        if time >= SHORT {
            warmth.short = warmth.short.saturating_sub(2);
            return;
        }
        warmth.short += 1;
        if warmth.short > SHORT_MAX {
            warmth.is_open = false;
            warmth.finds = 0;
            warmth.wanted = (warmth.wanted * 2).min(FINDS_MAX);
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
                    short: 0,
                    is_open: false,
                });
                self.known.len() - 1
            }
        };
        &mut self.known[place]
    }
}
