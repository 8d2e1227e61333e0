//! The software TLB: linear page to offset in guest memory.
//!
//! Direct-mapped, one array for each [`View`]: what a data access may touch depends on privilege
//! and on RFLAGS.AC, and a view holds only entries that its accesses may use, so that one compare
//! decides. The compare is with the page of the access's *last* byte, in the slot of its first:
//! it also fails for an access that crosses into the next page.
//!
//! A tag holds a *generation* above the page number. A flush just takes the next generation, one
//! for each half of the linear address space, so that a CR3 write keeps the upper half when
//! everything in it is global, as it is for most kernels.

use crate::journal::Journal;
use crate::structures::StructureCaches;
use memory::{PAGE_SHIFT, PAGE_SIZE};
use x86::paging::is_canonical;

const ENTRIES: usize = 1024;
const CODE_ENTRIES: usize = 512;
const VIEWS: usize = 4;
/// Words of a set of [`Regions`].
const REGION_WORDS: usize = 256;
/// Where the generation begins in a tag: above the 52 bits of a page number.
const GENERATION_SHIFT: u32 = 64 - PAGE_SHIFT;
const GENERATIONS: u64 = 1 << PAGE_SHIFT;
/// The tag of an entry that matches nothing: generation 0 is never current.
const EMPTY: u64 = 0;

/// Who accesses data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum View {
    /// CPL 0 to 2, user pages too (no SMAP, or AC is set).
    Supervisor = 0,
    /// CPL 0 to 2 under SMAP: supervisor pages only.
    SupervisorOnly = 1,
    /// CPL 3.
    User = 2,
    /// Never filled: each access is looked at (alignment checks, breakpoints on data).
    Checked = 3,
}

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    read: u64,
    write: u64,
    /// Added to the linear address: the offset in guest memory.
    bias: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct CodeEntry {
    tag: u64,
    /// Offset of the page in guest memory.
    page: usize,
}

/// The TLB of one vCPU.
pub(crate) struct Tlb {
    data: [Entry; ENTRIES * VIEWS],
    code: [[CodeEntry; CODE_ENTRIES]; 2],
    /// For each entry of `code`, whether its page stays over CR3 writes.
    code_global: [[bool; CODE_ENTRIES]; 2],
    /// Current generation for the lower and the upper half, in place in a tag.
    generation: [u64; 2],
    /// Whether the upper half holds entries that are not global.
    upper_local: bool,
    next_generation: u64,
    /// Regions, hashed, from which an entry was filled that is part of a page of 2 MiB, or of a
    /// larger one: INVLPG anywhere in such a page forgets all of it (SDM vol. 3, 5.10.4.1).
    large: Regions<21>,
    huge: Regions<30>,
    /// Where page tables are. Forgotten with the entries that were found through them.
    pub(crate) structures: StructureCaches,
    /// What is forgotten, for copies of entries that are kept elsewhere.
    pub(crate) journal: Journal,
    pub(crate) misses: u64,
    pub(crate) flushes: u64,
}

impl Tlb {
    pub(crate) fn new() -> Box<Self> {
        let mut tlb = Box::new(Self {
            data: [Entry::default(); ENTRIES * VIEWS],
            code: [[CodeEntry::default(); CODE_ENTRIES]; 2],
            code_global: [[false; CODE_ENTRIES]; 2],
            generation: [0; 2],
            upper_local: false,
            next_generation: 1,
            large: Regions::default(),
            huge: Regions::default(),
            structures: StructureCaches::default(),
            journal: Journal::default(),
            misses: 0,
            flushes: 0,
        });
        tlb.flush();
        tlb
    }

    #[inline(always)]
    fn tag(&self, linear: u64) -> u64 {
        (linear >> PAGE_SHIFT) | self.generation[(linear >> 63) as usize]
    }

    #[inline(always)]
    fn slot(view: View, linear: u64) -> usize {
        // Source and destination of a copy are often apart by a large power of two. Neighbours never
        // share an entry: an access that begins in one and ends in the other must find neither.
        let page = (linear >> PAGE_SHIFT) as usize;
        view as usize * ENTRIES + (page + (page >> 10)) % ENTRIES
    }

    /// The offset in guest memory of `size` bytes at `linear` that may be read.
    #[inline(always)]
    pub(crate) fn read(&self, view: View, linear: u64, size: usize) -> Option<usize> {
        let entry = &self.data[Self::slot(view, linear)];
        let last = linear.wrapping_add(size as u64 - 1);
        (entry.read == self.tag(last)).then(|| linear.wrapping_add(entry.bias) as usize)
    }

    /// The offset in guest memory of `size` bytes at `linear` that may be written.
    #[inline(always)]
    pub(crate) fn write(&self, view: View, linear: u64, size: usize) -> Option<usize> {
        let entry = &self.data[Self::slot(view, linear)];
        let last = linear.wrapping_add(size as u64 - 1);
        (entry.write == self.tag(last)).then(|| linear.wrapping_add(entry.bias) as usize)
    }

    /// The offset in guest memory of the byte at `linear` if it may be read, and whether it may be
    /// written too.
    #[inline(always)]
    pub(crate) fn probe(&self, view: View, linear: u64) -> Option<(usize, bool)> {
        let entry = &self.data[Self::slot(view, linear)];
        let tag = self.tag(linear);
        (entry.read == tag).then(|| {
            let at = linear.wrapping_add(entry.bias) as usize;
            (at, entry.write == tag)
        })
    }

    /// Lets `view` read (and, where `writable`, write) the page at `linear`, which is at `page`.
    #[inline]
    pub(crate) fn fill(
        &mut self,
        view: View,
        linear: u64,
        page: usize,
        writable: bool,
        global: bool,
    ) {
        debug_assert!(view != View::Checked && is_canonical(linear, 57));
        self.note_filled(linear, global);
        let tag = self.tag(linear);
        let base = linear & !(PAGE_SIZE as u64 - 1);
        self.data[Self::slot(view, linear)] = Entry {
            read: tag,
            write: if writable { tag } else { EMPTY },
            bias: (page as u64).wrapping_sub(base),
        };
    }

    /// The offset of the page that holds code at `linear`, for the privilege `user`.
    #[inline(always)]
    pub(crate) fn code(&self, user: bool, linear: u64) -> Option<usize> {
        let slot = (linear >> PAGE_SHIFT) as usize % CODE_ENTRIES;
        let entry = &self.code[usize::from(user)][slot];
        (entry.tag == self.tag(linear)).then_some(entry.page)
    }

    /// Whether the page for which [`Tlb::code`] answers stays over CR3 writes.
    pub(crate) fn code_is_global(&self, user: bool, linear: u64) -> bool {
        self.code_global[usize::from(user)][(linear >> PAGE_SHIFT) as usize % CODE_ENTRIES]
    }

    /// Lets code be fetched from the page at `linear`, which is at `page`.
    pub(crate) fn fill_code(&mut self, user: bool, linear: u64, page: usize, global: bool) {
        self.note_filled(linear, global);
        let slot = (linear >> PAGE_SHIFT) as usize % CODE_ENTRIES;
        self.code[usize::from(user)][slot] = CodeEntry {
            tag: self.tag(linear),
            page,
        };
        self.code_global[usize::from(user)][slot] = global;
    }

    #[inline]
    fn note_filled(&mut self, linear: u64, global: bool) {
        self.misses += 1;
        self.upper_local |= linear >> 63 != 0 && !global;
    }

    /// The page at `linear` is part of one of `1 << shift` bytes.
    pub(crate) fn note_large(&mut self, linear: u64, shift: u32) {
        if shift == 21 {
            self.large.insert(linear);
        } else {
            self.huge.insert(linear);
        }
    }

    /// Forgets everything, global pages too.
    pub(crate) fn flush(&mut self) {
        self.journal.all();
        self.forget_all();
    }

    fn forget_all(&mut self) {
        self.flushes += 1;
        self.structures.flush();
        self.large = Regions::default();
        self.huge = Regions::default();
        self.upper_local = false;
        self.generation = [self.fresh_generation(); 2];
    }

    /// Forgets everything but global pages: a CR3 write.
    pub(crate) fn flush_local(&mut self) {
        if self.upper_local {
            self.forget_all();
            self.journal.locals();
        } else {
            self.flushes += 1;
            self.structures.flush();
            self.journal.lower();
            // A fresh generation may have emptied the table and restarted both halves.
            let generation = self.fresh_generation();
            self.generation[0] = generation;
        }
    }

    /// Forgets the page at `linear`, whatever its size.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        if self.huge.contains(linear) {
            return self.flush();
        }
        self.structures.flush();
        if self.large.contains(linear) {
            let first = linear >> 21 << 21;
            for page in 0..512 {
                self.forget(first + (page << PAGE_SHIFT));
            }
        }
        self.forget(linear);
    }

    /// Forgets the 4 KiB around `linear`, and the tables that a walk for it would use.
    pub(crate) fn forget(&mut self, linear: u64) {
        self.journal.page(linear);
        self.structures.forget(linear);
        for view in [View::Supervisor, View::SupervisorOnly, View::User] {
            self.data[Self::slot(view, linear)] = Entry::default();
        }
        let slot = (linear >> PAGE_SHIFT) as usize % CODE_ENTRIES;
        for code in &mut self.code {
            code[slot] = CodeEntry::default();
        }
    }

    /// Takes all permissions to write away: a page became code.
    pub(crate) fn forget_writes(&mut self) {
        self.journal.writes();
        for entry in &mut self.data {
            entry.write = EMPTY;
        }
    }

    fn fresh_generation(&mut self) -> u64 {
        if self.next_generation == GENERATIONS {
            self.data.fill(Entry::default());
            self.code = [[CodeEntry::default(); CODE_ENTRIES]; 2];
            // Entries of the upper half are gone too, so its generation may be reused.
            self.next_generation = 1;
            self.generation = [1 << GENERATION_SHIFT; 2];
            self.next_generation += 1;
        }
        let generation = self.next_generation << GENERATION_SHIFT;
        self.next_generation += 1;
        generation
    }
}

/// A set of regions of `1 << SHIFT` bytes of the linear address space. It may answer that it has a
/// region which it has not, never the other way round.
#[derive(Debug, Clone, Copy)]
struct Regions<const SHIFT: u32>([u64; REGION_WORDS]);

impl<const SHIFT: u32> Default for Regions<SHIFT> {
    fn default() -> Self {
        Self([0; REGION_WORDS])
    }
}

impl<const SHIFT: u32> Regions<SHIFT> {
    fn place(linear: u64) -> (usize, u64) {
        // Multiplicative hashing: 2^64 divided by the golden ratio. Twice, since once leaves the
        // distance of two runs of regions as it is, so that most may coincide.
        const RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
        let once = (linear >> SHIFT).wrapping_mul(RATIO);
        let hash = (once ^ once >> 32).wrapping_mul(RATIO);
        ((hash >> 56) as usize % REGION_WORDS, 1 << (hash >> 50 & 63))
    }

    fn insert(&mut self, linear: u64) {
        let (word, bit) = Self::place(linear);
        self.0[word] |= bit;
    }

    fn contains(&self, linear: u64) -> bool {
        let (word, bit) = Self::place(linear);
        self.0[word] & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: u64 = 0xffff_8880_0000_1000;

    #[test]
    fn an_access_across_two_pages_matches_neither() {
        let mut tlb = Tlb::new();
        // The second page's number ends in zeros: all lower bits change.
        for shift in 12..47 {
            let second = 1u64 << shift;
            tlb.fill(View::User, second, 0x5000, true, false);
            let linear = second - 2;
            assert_eq!(tlb.read(View::User, linear, 4), None, "{linear:#x}");
            assert_eq!(tlb.write(View::User, linear, 4), None, "{linear:#x}");
            tlb.flush();
        }
        tlb.fill(View::User, 0xffff_8000_0000_0000, 0x5000, true, false);
        assert_eq!(tlb.read(View::User, 0xffff_7fff_ffff_ffff, 4), None);
    }

    #[test]
    fn one_compare_covers_presence_permission_and_page_end() {
        let mut tlb = Tlb::new();
        tlb.fill(View::User, 0x5000, 0x9000, false, false);
        assert_eq!(tlb.read(View::User, 0x5ff8, 8), Some(0x9ff8));
        assert_eq!(tlb.read(View::User, 0x5ff9, 8), None, "crosses the page");
        assert_eq!(tlb.write(View::User, 0x5000, 1), None, "read only");
        assert_eq!(tlb.read(View::Supervisor, 0x5000, 1), None, "another view");
        assert_eq!(
            tlb.read(View::User, 0x5000 + (ENTRIES << 12) as u64, 1),
            None,
            "same slot"
        );
    }

    #[test]
    fn sdm_5_10_4_1_cr3_write_keeps_global_pages() {
        let mut tlb = Tlb::new();
        tlb.fill(View::Supervisor, KERNEL, 0x1000, true, true);
        tlb.fill(View::Supervisor, 0x7000, 0x2000, true, false);
        tlb.flush_local();
        assert_eq!(tlb.write(View::Supervisor, KERNEL, 8), Some(0x1000));
        assert_eq!(tlb.read(View::Supervisor, 0x7000, 8), None);
        tlb.fill(View::Supervisor, KERNEL + 0x1000, 0x3000, true, false);
        tlb.flush_local();
        assert_eq!(
            tlb.read(View::Supervisor, KERNEL + 0x1000, 8),
            None,
            "not global"
        );
    }

    #[test]
    fn generations_may_wrap() {
        let mut tlb = Tlb::new();
        for _ in 0..3 * GENERATIONS {
            tlb.fill(View::User, 0x5000, 0x9000, true, false);
            tlb.fill(View::User, KERNEL, 0x9000, true, false);
            tlb.flush_local();
            assert_eq!(tlb.read(View::User, 0x5000, 1), None);
            assert_eq!(tlb.read(View::User, KERNEL, 1), None);
        }
    }

    #[test]
    fn sdm_5_10_4_1_invlpg_forgets_all_of_a_large_page() {
        let mut tlb = Tlb::new();
        for shift in [21, 22, 30] {
            tlb.fill(View::Supervisor, 0x20_5000, 0x9000, true, true);
            tlb.note_large(0x20_5000, shift);
            tlb.flush_page(0x3f_f000);
            assert_eq!(tlb.read(View::Supervisor, 0x20_5000, 1), None, "{shift}");
        }
    }

    #[test]
    fn a_small_page_is_rarely_taken_for_part_of_a_large_one() {
        let mut regions = Regions::<21>::default();
        // A kernel's map of 2 GiB of memory.
        let mapped = (0..1024).map(|n| 0xffff_8880_0000_0000 + (n << 21));
        mapped.clone().for_each(|linear| regions.insert(linear));
        assert!(mapped.clone().all(|linear| regions.contains(linear)));
        let others = (0..1024u64).map(|n| 0x7f00_0000_0000 + (n << 21));
        let wrong = others.filter(|linear| regions.contains(*linear)).count();
        assert!(wrong < 100, "{wrong} of 1024");
    }

    #[test]
    fn invlpg_forgets_one_page_in_all_views() {
        let mut tlb = Tlb::new();
        tlb.fill(View::User, 0x5000, 0x9000, true, false);
        tlb.fill(View::Supervisor, 0x5000, 0x9000, true, false);
        tlb.fill_code(true, 0x5000, 0x9000, false);
        tlb.fill(View::User, 0x6000, 0xa000, true, false);
        tlb.flush_page(0x5123);
        assert_eq!(tlb.read(View::User, 0x5000, 1), None);
        assert_eq!(tlb.read(View::Supervisor, 0x5000, 1), None);
        assert_eq!(tlb.code(true, 0x5000), None);
        assert_eq!(tlb.read(View::User, 0x6000, 1), Some(0xa000));
    }
}
