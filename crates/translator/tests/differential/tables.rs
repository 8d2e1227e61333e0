//! Page tables in an image of the lower region of memory.

use crate::layout::{SYSTEM_BYTES, TABLES};

pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITABLE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;
pub(crate) const ACCESSED: u64 = 1 << 5;
pub(crate) const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
pub(crate) const GLOBAL: u64 = 1 << 8;
pub(crate) const NO_EXECUTE: u64 = 1 << 63;

/// The page tables of one machine, while they are made.
pub(crate) struct Tables<'a> {
    memory: &'a mut [u8],
    /// 4-level tables with 8-byte entries, or 2-level ones with 4-byte entries.
    long: bool,
    next: u64,
}

impl<'a> Tables<'a> {
    /// Empty tables in `memory`, which is the lower region. The root is at [`TABLES`].
    pub(crate) fn new(memory: &'a mut [u8], long: bool) -> Self {
        Self {
            memory,
            long,
            next: TABLES + 0x1000,
        }
    }

    /// Maps the page at `linear` by an entry with `flags`, which need not be present.
    pub(crate) fn map(&mut self, linear: u64, gpa: u64, flags: u64) {
        let at = self.entry(linear, 0);
        self.set(at, gpa | flags);
    }

    /// Maps 2 MiB at `linear`, in 4-level tables.
    pub(crate) fn map_large(&mut self, linear: u64, gpa: u64, flags: u64) {
        assert!(self.long, "large pages are of 2 MiB");
        let at = self.entry(linear, 1);
        self.set(at, gpa | flags | LARGE);
    }

    /// The guest-physical address of the entry for `linear` at `level`, 0 for pages of 4 KiB.
    pub(crate) fn entry(&mut self, linear: u64, level: u32) -> u64 {
        let (levels, bits, size) = if self.long { (4, 9, 8) } else { (2, 10, 4) };
        let mut table = TABLES;
        for upper in (level..levels).rev() {
            let index = linear >> (12 + bits * upper) & ((1 << bits) - 1);
            let at = table + size * index;
            if upper == level {
                return at;
            }
            if self.get(at) == 0 {
                assert!(self.next < SYSTEM_BYTES, "the tables have room");
                self.set(at, self.next | PRESENT | WRITABLE | USER);
                self.next += 0x1000;
            }
            table = self.get(at) & !0xfff;
        }
        unreachable!("the level is one of the tables'")
    }

    fn get(&self, at: u64) -> u64 {
        let at = at as usize;
        let size = if self.long { 8 } else { 4 };
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(&self.memory[at..at + size]);
        u64::from_le_bytes(bytes)
    }

    fn set(&mut self, at: u64, value: u64) {
        let at = at as usize;
        let size = if self.long { 8 } else { 4 };
        self.memory[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
}
