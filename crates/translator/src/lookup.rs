//! What translated code looks up by itself: the software TLB and the jump caches, which are in
//! the [`Context`], and what it takes to forget in them quickly.
//!
//! Forgetting goes by lists of what was filled, so that it costs as much as filling did, however
//! large the tables are.

use crate::context::{
    Context, JUMP_CACHES, JUMP_ENTRIES, JumpEntry, TLB_ENTRIES, TLB_VIEWS, TlbEntry,
};

use crate::plan::INSTRUCTION_BYTES;

/// Fills that are listed; when there are more, whole tables are emptied.
const LISTED_MAX: usize = 4 * TLB_ENTRIES;

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

/// Lists of fills.
pub(crate) struct Lookup {
    /// Entries for the lower half of the linear address space, then for the upper one.
    pages: [Vec<(u8, u16)>; 2],
    jumps: [Vec<(u8, u16)>; 2],
    /// The pages of each list in `jumps`.
    jump_pages: [PageFilter; 2],
    /// Tables that a jump cache is made of.
    tables: usize,
    pub(crate) fills: u64,
    pub(crate) jump_fills: u64,
}

fn half(linear: u64) -> usize {
    (linear >> 63) as usize
}

fn index(linear: u64) -> usize {
    (linear >> 12) as usize % TLB_ENTRIES
}

/// Entry 0 of a table stands for "look up nothing" while somebody rings.
fn is_spare((_, index): (usize, usize)) -> bool {
    index == 0
}

/// Where an instruction at `linear` ends at the latest: a block that ends in another page than it
/// begins in is one instruction.
fn last_byte(linear: u64) -> u64 {
    linear.wrapping_add(INSTRUCTION_BYTES as u64 - 1)
}

impl Lookup {
    /// For a context with nothing in it, whose jump caches are of so many `tables` each: 1, or all.
    pub(crate) fn new(tables: usize) -> Self {
        debug_assert!(tables == 1 || tables == JUMP_CACHES);
        Self {
            pages: Default::default(),
            jumps: Default::default(),
            jump_pages: Default::default(),
            tables,
            fills: 0,
            jump_fills: 0,
        }
    }

    /// Lets the page around `linear` be read, and perhaps written, at host address `host`.
    pub(crate) fn fill(
        &mut self,
        context: &mut Context,
        view: usize,
        linear: u64,
        host: u64,
        writable: bool,
    ) {
        let (page, index) = (linear & !0xfff, index(linear));
        let tag = page.wrapping_neg();
        let write = if writable {
            tag
        } else {
            TlbEntry::no_tag(index)
        };
        context.tlb[view][index] = TlbEntry::new(tag, write, page, host);
        self.fills += 1;
        let list = &mut self.pages[half(linear)];
        if list.len() == LISTED_MAX {
            self.forget_pages(context);
        } else {
            list.push((view as u8, index as u16));
        }
    }

    /// Lets indirect jumps to `linear` go to host address `host`. What is in its place is moved to
    /// the second cache.
    pub(crate) fn fill_jump(&mut self, context: &mut Context, slot: usize, linear: u64, host: u64) {
        self.jump_fills += 1;
        let [first, _] = self.places(slot, linear);
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
        let [_, second] = self.places(slot, linear);
        if !is_spare(second) {
            self.put_jump(context, second, linear, host);
        }
    }

    /// The table and index of `linear` in the first and the second jump cache of `slot`. In a jail,
    /// each is all tables in a row.
    fn places(&self, slot: usize, linear: u64) -> [(usize, usize); 2] {
        let sum = linear.wrapping_add(linear.rotate_right(SECOND_ROTATION.into()));
        let place = |first: usize, hash: u64| {
            let index = hash as usize % (JUMP_ENTRIES * self.tables);
            (first + slot + index / JUMP_ENTRIES, index % JUMP_ENTRIES)
        };
        [place(0, linear), place(JUMP_CACHES, sum)]
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
        let places = self.places(slot, linear).into_iter();
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
        for (view, index) in self.pages[half].drain(..) {
            context.tlb[usize::from(view)][usize::from(index)] = TlbEntry::empty(index.into());
        }
        self.forget_jumps_of(context, half);
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
        let index = index(linear);
        for view in &mut context.tlb {
            view[index] = TlbEntry::empty(index);
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

    /// Forgets every permission to write.
    pub(crate) fn forget_writes(&mut self, context: &mut Context) {
        for (view, index) in self.pages.iter().flatten() {
            let index = usize::from(*index);
            context.tlb[usize::from(*view)][index].write = TlbEntry::no_tag(index);
        }
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

    fn forget_pages(&mut self, context: &mut Context) {
        for view in context.tlb.iter_mut().take(TLB_VIEWS) {
            for (index, entry) in view.iter_mut().enumerate() {
                *entry = TlbEntry::empty(index);
            }
        }
        self.pages = Default::default();
    }
}
