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

/// Hash slots for blocks.
const SLOTS: usize = 1 << 16;
/// Instructions that are kept; when they are used up, everything is decoded anew.
const OPS_MAX: usize = 1 << 20;

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
    slots: Box<[Block]>,
    ops: Vec<Op>,
    /// Slots of the blocks that have bytes in a page.
    by_page: HashMap<usize, Vec<u32>>,
    pub(crate) decoded: u64,
    pub(crate) invalidated: u64,
    pub(crate) flushes: u64,
}

fn key(offset: usize, size: CodeSize, extent: Extent) -> u64 {
    offset as u64 | kind(size, extent) << 60
}

/// Tells apart blocks that begin at one place.
fn kind(size: CodeSize, extent: Extent) -> u64 {
    size as u64 | (extent as u64) << 2
}

/// Blocks of several kinds that begin at one place may all be kept.
fn slot(offset: usize, size: CodeSize, extent: Extent) -> usize {
    (offset ^ offset >> 16 ^ (kind(size, extent) as usize) << 13) % SLOTS
}

impl Cache {
    pub(crate) fn new() -> Self {
        Self {
            slots: vec![EMPTY; SLOTS].into(),
            ops: Vec::new(),
            by_page: HashMap::new(),
            decoded: 0,
            invalidated: 0,
            flushes: 0,
        }
    }

    /// The block at `offset` of guest memory.
    #[inline(always)]
    pub(crate) fn find(&self, offset: usize, size: CodeSize, extent: Extent) -> Option<&Block> {
        let key = key(offset, size, extent);
        let block = &self.slots[slot(offset, size, extent)];
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
        let slot = slot(offset, size, extent);
        self.slots[slot] = block;
        let second = block.second_page.map(|p| p as usize);
        for page in std::iter::once(offset >> PAGE_SHIFT).chain(second) {
            self.by_page.entry(page).or_default().push(slot as u32);
        }
        block
    }

    /// Keeps `decoded` until it was executed: nobody will find it.
    pub(crate) fn insert_once(&mut self, decoded: &Decoded) -> Block {
        self.append(EMPTY.key, decoded)
    }

    fn append(&mut self, key: u64, decoded: &Decoded) -> Block {
        let Decoded {
            ops,
            bytes,
            second_page,
        } = decoded;
        if self.ops.len() + ops.len() > OPS_MAX {
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
            self.slots[slot as usize] = EMPTY;
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.flushes += 1;
        self.slots.fill(EMPTY);
        self.ops.clear();
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
    fn the_arena_is_bounded() {
        let mut cache = Cache::new();
        for i in 0..2 * OPS_MAX / 64 {
            cache.insert(i * 64, CodeSize::Bits16, Extent::Run, &decoded(64, None));
        }
        assert!(cache.ops.len() <= OPS_MAX);
        assert!(cache.flushes > 0);
    }
}
