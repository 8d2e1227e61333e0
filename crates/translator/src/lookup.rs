//! What translated code looks up by itself: the software TLB and the jump caches, which are in
//! the [`Context`], and what it takes to forget in them quickly.
//!
//! Forgetting goes by what was filled since the last time: bits for the TLB, lists for jumps. So it
//! costs as much as filling did, however large the tables are. The TLB's second level has
//! generations instead.

use crate::context::{
    Context, FILLED_BITS, JUMP_CACHES, JUMP_ENTRIES, JumpEntry, LINE_ENTRIES, SecondEntry,
    TLB_ENTRIES, TLB_VIEWS, TlbEntry, filled_bit,
};
use crate::plan::INSTRUCTION_BYTES;
use crate::{gs_pages, refill};

/// Jumps that are listed: no more than there are entries, unless one changes halves all the time.
const JUMPS_MAX: usize = 2 * JUMP_ENTRIES;

/// By how much an address is rotated before it is added to itself, for the second jump cache.
pub(crate) const SECOND_ROTATION: u8 = 13;

/// Bits of a [`PageFilter`], a power of two: some for each page of code that a large program runs.
const FILTER_BITS: usize = 1 << 14;

/// A set of linear pages that may also have others in it. Guests forget single pages all the time,
/// of data nearly always, and should not have to wait for a look at every jump.
struct PageFilter(Box<[u64; FILTER_BITS / 64]>);

impl Default for PageFilter {
    fn default() -> Self {
        Self(Box::new([0; FILTER_BITS / 64]))
    }
}

impl PageFilter {
    /// The word and the bit of the page around `linear`.
    fn place(linear: u64) -> (usize, u64) {
        let hash = (linear >> 12 ^ linear >> 26) as usize % FILTER_BITS;
        (hash / 64, 1 << (hash % 64))
    }

    fn insert(&mut self, linear: u64) {
        let (word, bit) = Self::place(linear);
        self.0[word] |= bit;
    }

    /// Whether the page around `linear` may have been inserted.
    fn may_contain(&self, linear: u64) -> bool {
        let (word, bit) = Self::place(linear);
        self.0[word] & bit != 0
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }
}

/// The first generation that an entry of the second level can't have: it would not fit below the
/// address of a page.
const GENERATIONS: u64 = 4096;

/// A page of memory for [`Lookup::fill`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    /// An address in it.
    pub(crate) linear: u64,
    /// Where the host has it.
    pub(crate) host: u64,
    /// Whether it may be written too.
    pub(crate) writable: bool,
}

/// Lists of fills; the default is for a jail's context with nothing in it.
#[derive(Default)]
pub(crate) struct Lookup {
    /// Whether there is a TLB. Jails have none.
    has_tlb: bool,
    /// Jumps to the lower half of the linear address space, then to the upper one.
    jumps: [Vec<(u8, u16)>; 2],
    /// The pages of each list in `jumps`.
    jump_pages: [PageFilter; 2],
    pub(crate) gs_taken: gs_pages::Taken,
    pub(crate) fills: u64,
    pub(crate) jump_fills: u64,
}

/// The half of the address space that `linear` is in.
pub(crate) fn half(linear: u64) -> usize {
    (linear >> 63) as usize
}

fn index(linear: u64) -> usize {
    (linear >> 12) as usize % TLB_ENTRIES
}

/// Entry 0 of a table stands for "look up nothing" while somebody rings.
fn is_spare((_, index): (usize, usize)) -> bool {
    index == 0
}

/// The table and index of `linear` in the first and the second jump cache of `slot`.
fn places(slot: usize, linear: u64) -> [(usize, usize); 2] {
    let sum = linear.wrapping_add(linear.rotate_right(SECOND_ROTATION.into()));
    let index = |hash: u64| hash as usize % JUMP_ENTRIES;
    [(slot, index(linear)), (JUMP_CACHES + slot, index(sum))]
}

/// Where an instruction at `linear` ends at the latest: a block that ends in another page than it
/// begins in is one instruction.
fn last_byte(linear: u64) -> u64 {
    linear.wrapping_add(INSTRUCTION_BYTES as u64 - 1)
}

impl Lookup {
    /// For a vCPU's own context with nothing in it.
    pub(crate) fn with_tlb() -> Self {
        Self {
            has_tlb: true,
            ..Self::default()
        }
    }

    /// Lets `page` be read (or written, if `write`), and the second level know all that may be done
    /// with it.
    pub(crate) fn fill(&mut self, context: &mut Context, view: usize, page: Page, write: bool) {
        debug_assert!(page.writable || !write, "a page that may not be written");
        debug_assert!(self.has_tlb, "a TLB");
        self.fills += 1;
        let linear = page.linear & !0xfff;
        let (half, bias) = (half(linear), page.host.wrapping_sub(linear));
        let permission = if page.writable {
            context.write_generation
        } else {
            0
        };
        context.second.0[view][refill::index(linear)] = SecondEntry {
            tag: linear + context.generations[half],
            bias: bias + permission,
        };
        let index = index(linear);
        context.tlb[view][usize::from(write)][index] = TlbEntry::new(linear, bias);
        let bit = filled_bit(half, view, write, index);
        context.filled[bit / 64] |= 1 << (bit % 64);
    }

    /// Lets indirect jumps to `linear` go to host address `host`. What is in its place is moved to
    /// the second cache.
    pub(crate) fn fill_jump(&mut self, context: &mut Context, slot: usize, linear: u64, host: u64) {
        self.jump_fills += 1;
        let [first, _] = places(slot, linear);
        if is_spare(first) {
            return self.put_second(context, slot, linear, host);
        }
        let before = context.jumps[first.0][first.1];
        let other = before.tag.wrapping_neg();
        if before.tag != 0 && other != linear {
            self.put_second(context, slot, other, before.host);
        }
        self.put_jump(context, first, linear, host);
    }

    fn put_second(&mut self, context: &mut Context, slot: usize, linear: u64, host: u64) {
        let [_, second] = places(slot, linear);
        if !is_spare(second) {
            self.put_jump(context, second, linear, host);
        }
    }

    fn put_jump(
        &mut self,
        context: &mut Context,
        (table, index): (usize, usize),
        linear: u64,
        host: u64,
    ) {
        let tag = linear.wrapping_neg();
        let entry = &mut context.jumps[table][index];
        let before = std::mem::replace(entry, JumpEntry { tag, host });
        for byte in [linear, last_byte(linear)] {
            self.jump_pages[half(linear)].insert(byte);
        }
        // One that is in use is listed already, under the half that it was in.
        let is_listed = before.tag != 0 && half(before.tag.wrapping_neg()) == half(linear);
        if !is_listed {
            self.jumps[half(linear)].push((table as u8, index as u16));
            if self.jumps[half(linear)].len() > JUMPS_MAX {
                self.forget_jumps(context);
            }
        }
    }

    /// Where jumps to `linear` go, if that is known.
    pub(crate) fn jump(&self, context: &Context, slot: usize, linear: u64) -> Option<u64> {
        let places = places(slot, linear).into_iter();
        places.filter(|place| !is_spare(*place)).find_map(|place| {
            let entry = context.jumps[place.0][place.1];
            (entry.tag == linear.wrapping_neg()).then_some(entry.host)
        })
    }

    /// Forgets all pages and jumps.
    pub(crate) fn forget_all(&mut self, context: &mut Context) {
        for half in 0..2 {
            self.forget_half(context, half);
        }
    }

    /// Forgets those of the lower half.
    pub(crate) fn forget_lower(&mut self, context: &mut Context) {
        self.forget_half(context, 0);
    }

    fn forget_half(&mut self, context: &mut Context, half: usize) {
        self.forget_jumps_of(context, half);
        if self.has_tlb {
            for view in 0..TLB_VIEWS {
                empty(context, half, view, false);
                empty(context, half, view, true);
            }
            next_generation(context, |context| &mut context.generations[half]);
            self.forget_gs_half(context, half);
        }
    }

    fn forget_jumps_of(&mut self, context: &mut Context, half: usize) {
        if self.jumps[half].is_empty() {
            return;
        }
        for (slot, index) in self.jumps[half].drain(..) {
            context.jumps[usize::from(slot)][usize::from(index)].tag = 0;
        }
        self.jump_pages[half].clear();
    }

    /// Forgets the 4 KiB around `linear`.
    pub(crate) fn forget_page(&mut self, context: &mut Context, linear: u64) {
        if self.has_tlb {
            forget_page(context, linear);
            let page = linear & !0xfff;
            self.forget_gs_pages(context, false, |there| there == page);
        }
        if !self.jump_pages[half(linear)].may_contain(linear) {
            return;
        }
        let page = linear >> 12;
        self.jumps[half(linear)].retain(|(slot, index)| {
            let tag = &mut context.jumps[usize::from(*slot)][usize::from(*index)].tag;
            let first = tag.wrapping_neg();
            let is_there = [first, last_byte(first)].iter().any(|b| b >> 12 == page);
            if is_there {
                *tag = 0;
            }
            !is_there
        });
    }

    /// Forgets the permission to write to the page around `linear`, in both levels.
    pub(crate) fn forget_write(&mut self, context: &mut Context, view: usize, linear: u64) {
        let (page, index) = (linear & !0xfff, index(linear));
        let entry = &mut context.tlb[view][1][index];
        if entry.page() == page {
            *entry = TlbEntry::empty(index);
        }
        let second = &mut context.second.0[view][refill::index(linear)];
        if second.tag & !0xfff == page {
            // No generation is 0.
            second.bias &= !0xfff;
        }
        self.forget_gs_pages(context, true, |there| there == page);
    }

    /// Forgets every permission to write.
    pub(crate) fn forget_writes(&mut self, context: &mut Context) {
        if !self.has_tlb {
            return;
        }
        for view in 0..TLB_VIEWS {
            empty(context, 0, view, true);
            empty(context, 1, view, true);
        }
        next_generation(context, |context| &mut context.write_generation);
        self.forget_gs_pages(context, true, |_| true);
    }

    /// Forgets all jumps: host addresses are about to be given to other code.
    pub(crate) fn forget_jumps(&mut self, context: &mut Context) {
        for half in 0..2 {
            self.forget_jumps_of(context, half);
        }
    }

    /// Forgets the jumps that go to host addresses for which `is_stale`.
    pub(crate) fn forget_jumps_to(
        &mut self,
        context: &mut Context,
        is_stale: impl Fn(u64) -> bool,
    ) {
        for list in &mut self.jumps {
            list.retain(|(slot, index)| {
                let entry = &mut context.jumps[usize::from(*slot)][usize::from(*index)];
                let stale = is_stale(entry.host);
                if stale {
                    entry.tag = 0;
                }
                !stale
            });
        }
    }
}

/// Empties the entries of a table of the TLB that were filled for addresses in `half` of the address
/// space.
fn empty(context: &mut Context, half: usize, view: usize, write: bool) {
    let first = filled_bit(half, view, write, 0);
    let words = first / 64..(first + TLB_ENTRIES / LINE_ENTRIES) / 64;
    let table = &mut context.tlb[view][usize::from(write)];
    for (number, word) in context.filled[words].iter_mut().enumerate() {
        let mut lines = std::mem::take(word);
        while lines != 0 {
            let line = 64 * number + lines.trailing_zeros() as usize;
            lines &= lines - 1;
            let entries = line * LINE_ENTRIES..(line + 1) * LINE_ENTRIES;
            for (entry, index) in table[entries.clone()].iter_mut().zip(entries) {
                if self::half(entry.page()) == half {
                    *entry = TlbEntry::empty(index);
                }
            }
        }
    }
}

/// Forgets the 4 KiB around `linear` in both levels of the TLB.
fn forget_page(context: &mut Context, linear: u64) {
    let (page, index) = (linear & !0xfff, index(linear));
    for table in context.tlb.iter_mut().flatten() {
        if table[index].page() == page {
            table[index] = TlbEntry::empty(index);
        }
    }
    for view in &mut context.second.0 {
        let entry = &mut view[refill::index(linear)];
        if entry.tag & !0xfff == page {
            *entry = SecondEntry::default();
        }
    }
}

/// Makes entries of the second level that have the current `generation` match nothing any more.
fn next_generation(context: &mut Context, generation: impl Fn(&mut Context) -> &mut u64) {
    let next = generation(context);
    *next += 1;
    if *next == GENERATIONS {
        context.empty_second();
        context.generations = [1; 2];
        context.write_generation = 1;
    }
}

const _: () = assert!(
    (TLB_ENTRIES / LINE_ENTRIES).is_multiple_of(64) && FILLED_BITS.is_multiple_of(64),
    "words of bits are of one table"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::{ContextBox, REACH_PAGES};

    /// Pages of both halves, some of which share entries of the first level, and none of the second.
    const PAGES: [u64; 8] = [
        0,
        0x1000,
        0x40_0000,
        0x140_0000,
        0x7fff_ffff_d000,
        0xffff_8880_0000_0000,
        0xffff_8880_0100_0000,
        0xffff_ffff_ffff_f000,
    ];

    fn filled() -> (Lookup, ContextBox) {
        let mut context = ContextBox::new().expect("memory");
        let mut lookup = Lookup::with_tlb();
        for (n, linear) in PAGES.into_iter().enumerate() {
            for view in 0..TLB_VIEWS {
                let page = Page {
                    linear: linear + 0x123,
                    host: 0x7000_0000_0000 + ((n as u64) << 12),
                    writable: true,
                };
                lookup.fill(&mut context, view, page, false);
                lookup.fill(&mut context, view, page, true);
            }
        }
        (lookup, context)
    }

    /// In how many views the first and the second level let `linear` be accessed.
    fn views(context: &Context, linear: u64, write: bool) -> [usize; 2] {
        let tag = linear + context.generations[half(linear)];
        let first = context.tlb.iter().filter(|view| {
            let entry = view[usize::from(write)][index(linear)];
            linear.wrapping_add(entry.tag) < 4096
        });
        let second = context.second.0.iter().filter(|view| {
            let entry = view[refill::index(linear)];
            let may_write = entry.bias & 0xfff == context.write_generation;
            entry.tag == tag && (may_write || !write)
        });
        [first.count(), second.count()]
    }

    /// Whether `linear` was not pushed out of the first level by a later one of [`PAGES`].
    fn is_in_first(linear: u64) -> bool {
        let last = PAGES.into_iter().rfind(|p| index(*p) == index(linear));
        last == Some(linear)
    }

    #[test]
    fn what_was_filled_is_found_until_it_is_forgotten() {
        for forgotten_half in [None, Some(0), Some(1)] {
            let (mut lookup, mut context) = filled();
            if let Some(half) = forgotten_half {
                lookup.forget_half(&mut context, half);
            }
            for linear in PAGES {
                let second = TLB_VIEWS * usize::from(forgotten_half != Some(half(linear)));
                let first = second * usize::from(is_in_first(linear));
                for write in [false, true] {
                    assert_eq!(
                        views(&context, linear, write),
                        [first, second],
                        "{linear:#x} {write} {forgotten_half:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn permissions_to_write_are_forgotten_alone() {
        let (mut lookup, mut context) = filled();
        lookup.forget_writes(&mut context);
        for linear in PAGES {
            assert_eq!(views(&context, linear, true), [0, 0], "{linear:#x}");
            let first = TLB_VIEWS * usize::from(is_in_first(linear));
            assert_eq!(views(&context, linear, false), [first, TLB_VIEWS]);
        }
    }

    #[test]
    fn one_page_is_forgotten_alone() {
        for forgotten in PAGES {
            let (mut lookup, mut context) = filled();
            lookup.forget_page(&mut context, forgotten | 0xabc);
            for linear in PAGES {
                let second = TLB_VIEWS * usize::from(linear != forgotten);
                let first = second * usize::from(is_in_first(linear));
                assert_eq!(views(&context, linear, false), [first, second]);
                assert_eq!(views(&context, linear, true), [first, second]);
            }
        }
    }

    #[test]
    fn a_permission_to_write_is_forgotten_in_both_levels() {
        for forgotten in PAGES {
            let (mut lookup, mut context) = filled();
            lookup.forget_write(&mut context, 1, forgotten | 0xabc);
            for linear in PAGES {
                let first = TLB_VIEWS * usize::from(is_in_first(linear));
                assert_eq!(views(&context, linear, false), [first, TLB_VIEWS]);
                let less = usize::from(linear == forgotten);
                let in_first = less * usize::from(is_in_first(linear));
                assert_eq!(
                    views(&context, linear, true),
                    [first - in_first, TLB_VIEWS - less],
                );
            }
        }
    }

    #[test]
    fn no_generation_is_current_twice() {
        let (mut lookup, mut context) = filled();
        for _ in 0..2 * GENERATIONS {
            lookup.forget_lower(&mut context);
            lookup.forget_writes(&mut context);
            assert_eq!(views(&context, 0x1000, false), [0, 0]);
            assert_eq!(views(&context, PAGES[7], true), [0, 0]);
        }
    }

    /// Whether `entry`, which is number `index`, lets an access pass that it is asked about: by its
    /// first byte, while what is compared may be its last.
    fn matches_an_access(entry: TlbEntry, index: usize) -> bool {
        let pages = [index as u64, index as u64 | !(TLB_ENTRIES as u64 - 1)];
        let reach = REACH_PAGES as u64 * 4096;
        pages.into_iter().any(|page| {
            let first = page << 12;
            let mut accesses = (0..0x1000 + reach).step_by(0xfff);
            accesses.any(|on| first.wrapping_add(on).wrapping_add(entry.tag) < 4096)
        })
    }

    #[test]
    fn an_empty_entry_lets_no_access_pass() {
        let (mut lookup, mut used) = filled();
        lookup.forget_all(&mut used);
        let fresh = ContextBox::new().expect("memory");
        for context in [used, fresh] {
            for table in context.tlb.iter().flatten() {
                for (index, entry) in table.iter().enumerate() {
                    assert!(!matches_an_access(*entry, index), "{index}");
                }
            }
        }
    }
}
