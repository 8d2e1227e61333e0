//! Decoded blocks of one vCPU, by guest-physical place.
//!
//! A block is a run of instructions that begin in one page. It is found by its offset in guest
//! memory and the code size, so that it serves every linear address at which the page is mapped;
//! nothing in it depends on RIP (see [`crate::int::PC`]).

use crate::cpu::CodeSize;
use crate::decode::Decoded;
use crate::op::Op;
use memory::PAGE_SHIFT;
use std::collections::HashMap;

/// Hash slots for blocks: as many at first, and at most. A vCPU that another engine borrows
/// executes little, and takes little memory then.
const SLOTS_MIN: usize = 1 << 10;
const SLOTS_MAX: usize = 1 << 16;
/// Instructions that are kept; when they are used up, everything is decoded anew.
const OPS_MAX: usize = 1 << 20;
/// As many may belong to blocks that are no longer there, or are as many as those that are: then
/// everything is decoded anew too.
const OPS_DEAD_MIN: usize = 1 << 14;

/// How much a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Extent {
    /// As many instructions as may be executed without a look at anything else.
    Run = 0,
    /// One instruction.
    Instruction = 1,
}

/// A decoded run of instructions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    key: u64,
    first: u32,
    pub(crate) len: u16,
    /// Bytes of code, from the first instruction's first to the last one's last.
    pub(crate) bytes: u16,
    /// The page (offset / 4096) into which the last instruction reaches, if it is another.
    pub(crate) second_page: Option<u32>,
}

const EMPTY: Block = Block {
    key: u64::MAX,
    first: 0,
    len: 0,
    bytes: 0,
    second_page: None,
};

/// A vCPU's blocks.
pub(crate) struct Cache {
    /// A power of two of them.
    slots: Box<[Block]>,
    /// How many blocks were put into `slots` since it was made or cleared.
    inserted: usize,
    ops: Vec<Op>,
    /// How many of `ops` belong to no block that can be found.
    dead: usize,
    /// Slots of the blocks that have bytes in a page.
    by_page: HashMap<usize, Vec<u32>>,
    pub(crate) decoded: u64,
    pub(crate) invalidated: u64,
    pub(crate) flushes: u64,
}

fn key(offset: usize, size: CodeSize, extent: Extent) -> u64 {
    // The kind tells apart blocks that begin at one place.
    let kind = size as u64 | (extent as u64) << 2;
    offset as u64 | kind << KIND_SHIFT
}

/// Where the kind of a block begins in its key: above the offset.
const KIND_SHIFT: u32 = 60;

impl Block {
    /// The pages that it has bytes in.
    fn pages(&self) -> impl Iterator<Item = usize> + use<> {
        let offset = self.key & !(u64::MAX << KIND_SHIFT);
        let second = self.second_page.map(|p| p as usize);
        std::iter::once(offset as usize >> PAGE_SHIFT).chain(second)
    }
}

impl Cache {
    pub(crate) fn new() -> Self {
        Self {
            slots: vec![EMPTY; SLOTS_MIN].into(),
            inserted: 0,
            ops: Vec::new(),
            dead: 0,
            by_page: HashMap::new(),
            decoded: 0,
            invalidated: 0,
            flushes: 0,
        }
    }

    /// Where the block with `key` is, if it is there. Blocks of several kinds that begin at one
    /// place may all be kept.
    #[inline(always)]
    fn slot(&self, key: u64) -> usize {
        // The kind goes to bits 7 to 9, which are in use with the least slots too.
        let hash = key ^ key >> 16 ^ key >> KIND_SHIFT << 7;
        hash as usize & (self.slots.len() - 1)
    }

    /// The block at `offset` of guest memory.
    #[inline(always)]
    pub(crate) fn find(&self, offset: usize, size: CodeSize, extent: Extent) -> Option<&Block> {
        let key = key(offset, size, extent);
        let block = &self.slots[self.slot(key)];
        (block.key == key).then_some(block)
    }

    /// A block's instructions.
    #[inline(always)]
    pub(crate) fn ops(&self, block: &Block) -> &[Op] {
        let first = block.first as usize;
        &self.ops[first..first + block.len as usize]
    }

    /// Keeps `decoded` as the block at `offset`.
    pub(crate) fn insert(
        &mut self,
        offset: usize,
        size: CodeSize,
        extent: Extent,
        decoded: &Decoded,
    ) -> Block {
        let key = key(offset, size, extent);
        let block = self.append(key, decoded);
        if self.inserted >= self.slots.len() / 4 && self.slots.len() < SLOTS_MAX {
            self.grow();
        }
        self.place(block);
        block
    }

    fn place(&mut self, block: Block) {
        let slot = self.slot(block.key);
        self.inserted += 1;
        self.dead += usize::from(self.slots[slot].len);
        self.slots[slot] = block;
        for page in block.pages() {
            self.by_page.entry(page).or_default().push(slot as u32);
        }
    }

    /// Makes room for four times as many blocks.
    fn grow(&mut self) {
        let slots = vec![EMPTY; 4 * self.slots.len()].into();
        let blocks = std::mem::replace(&mut self.slots, slots);
        self.inserted = 0;
        self.by_page.clear();
        for block in blocks.into_iter().filter(|b| b.key != EMPTY.key) {
            self.place(block);
        }
    }

    /// Keeps `decoded` until it was executed: nobody will find it.
    pub(crate) fn insert_once(&mut self, decoded: &Decoded) -> Block {
        let block = self.append(EMPTY.key, decoded);
        self.dead += usize::from(block.len);
        block
    }

    fn append(&mut self, key: u64, decoded: &Decoded) -> Block {
        let Decoded {
            ops,
            bytes,
            second_page,
        } = decoded;
        let alive = self.ops.len() - self.dead;
        if self.ops.len() + ops.len() > OPS_MAX || self.dead > alive.max(OPS_DEAD_MIN) {
            self.clear();
        }
        let first = self.ops.len() as u32;
        self.ops.extend_from_slice(ops);
        self.decoded += ops.len() as u64;
        let len = ops.len() as u16;
        Block {
            key,
            first,
            len,
            bytes: *bytes,
            second_page: *second_page,
        }
    }

    /// Drops the blocks that have bytes in `page`.
    pub(crate) fn invalidate(&mut self, page: usize) {
        for slot in self.by_page.remove(&page).unwrap_or_default() {
            self.invalidated += 1;
            let block = std::mem::replace(&mut self.slots[slot as usize], EMPTY);
            self.dead += usize::from(block.len);
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.flushes += 1;
        self.slots.fill(EMPTY);
        self.inserted = 0;
        self.ops.clear();
        self.dead = 0;
        self.by_page.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;

    fn nothing(_: &mut Cpu, _: &Op) -> crate::cpu::Result {
        Ok(())
    }

    fn decoded(ops: usize, second_page: Option<u32>) -> Decoded {
        Decoded {
            ops: vec![Op::new(nothing); ops],
            bytes: 9,
            second_page,
        }
    }

    #[test]
    fn blocks_are_found_by_place_and_code_size() {
        let mut cache = Cache::new();
        cache.insert(0x1234, CodeSize::Bits64, Extent::Run, &decoded(3, None));
        assert_eq!(
            cache
                .find(0x1234, CodeSize::Bits64, Extent::Run)
                .unwrap()
                .len,
            3
        );
        assert!(cache.find(0x1234, CodeSize::Bits32, Extent::Run).is_none());
        assert!(cache.find(0x1235, CodeSize::Bits64, Extent::Run).is_none());
    }

    #[test]
    fn a_write_to_either_page_drops_the_block() {
        for page in [1, 2] {
            let mut cache = Cache::new();
            cache.insert(0x1ffe, CodeSize::Bits64, Extent::Run, &decoded(1, Some(2)));
            cache.insert(0x3000, CodeSize::Bits64, Extent::Run, &decoded(1, None));
            cache.invalidate(page);
            assert!(cache.find(0x1ffe, CodeSize::Bits64, Extent::Run).is_none());
            assert!(cache.find(0x3000, CodeSize::Bits64, Extent::Run).is_some());
        }
    }

    #[test]
    fn blocks_stay_while_the_table_grows() {
        let mut cache = Cache::new();
        let place = |i: usize| 0x1000 + i * 24;
        let count = SLOTS_MAX / 4;
        for i in 0..count {
            cache.insert(place(i), CodeSize::Bits64, Extent::Run, &decoded(1, None));
        }
        assert_eq!(cache.slots.len(), SLOTS_MAX);
        let found = |cache: &Cache| {
            let is_there = |i: &usize| {
                let block = cache.find(place(*i), CodeSize::Bits64, Extent::Run);
                block.is_some_and(|b| cache.ops(b).len() == 1)
            };
            (0..count).filter(is_there).count()
        };
        // Some share a slot.
        assert!(found(&cache) > count / 2);
        for page in 0..=place(count) >> PAGE_SHIFT {
            cache.invalidate(page);
        }
        assert_eq!(found(&cache), 0);
        assert_eq!(cache.dead, cache.ops.len());
    }

    #[test]
    fn what_is_dropped_again_and_again_takes_no_more_memory() {
        let mut cache = Cache::new();
        cache.insert(0x5000, CodeSize::Bits64, Extent::Run, &decoded(9, None));
        for _ in 0..OPS_MAX / 16 {
            cache.insert(0x1000, CodeSize::Bits64, Extent::Run, &decoded(16, None));
            cache.invalidate(1);
            cache.insert_once(&decoded(16, None));
        }
        assert!(cache.ops.len() <= 2 * OPS_DEAD_MIN);
    }

    #[test]
    fn the_arena_is_bounded() {
        let mut cache = Cache::new();
        for i in 0..2 * OPS_MAX / 64 {
            cache.insert(i * 64, CodeSize::Bits16, Extent::Run, &decoded(64, None));
        }
        assert!(cache.ops.len() <= OPS_MAX);
        assert!(cache.flushes > 0);
    }
}
