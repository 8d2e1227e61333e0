//! Translated blocks, and how they are found and linked.

mod index;
mod record;

pub(crate) use index::BLOCKS_MAX;
pub(crate) use record::{ALIGNMENT as RECORD_ALIGNMENT, RECORD_MAX, Record};

use crate::code_memory::CodeMemory;
use crate::mode::Mode;
use index::Index;
use record::Chain;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// A block's number: the least that no block had since the cache was emptied.
pub(crate) type BlockId = u32;

/// The argument of a gate that has none.
pub(crate) const NO_SITE: u32 = u32::MAX;

/// Where a block's code is, and for which state of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Offset in guest memory.
    pub(crate) offset: usize,
    /// Linear address, in modes whose blocks depend on it; else 0.
    pub(crate) linear: u64,
    pub(crate) mode: Mode,
}

/// A place in a block where the interpreter or the TLB may have to help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Site {
    /// Offset of the instruction in the guest's page.
    pub(crate) at: u16,
    /// Bytes of the access, or of the range that a shared check covers.
    pub(crate) size: u16,
    pub(crate) write: bool,
    /// Whether only a page that is dirty already passes: a check for writes that may not be made.
    pub(crate) if_dirty: bool,
    /// The alignment without which the access, a write, raises #GP; 1 if none.
    pub(crate) alignment: u8,
    /// Where the access is in that range.
    pub(crate) skew: u16,
    /// Whether the block has made sure that the vector registers are loaded.
    pub(crate) vectors: bool,
    /// Whether the instruction may work on vector registers.
    pub(crate) works_on_vectors: bool,
    /// Whether the access looks for its page among those behind the base of GS.
    pub(crate) gs_page: bool,
    /// The exit to take if a shared check fails: nothing behind it may run without it.
    pub(crate) single: Option<u8>,
    /// By how much the instruction has moved RSP already.
    pub(crate) moved: i32,
    /// Where the check begins, as an offset in the cache.
    pub(crate) retry: u32,
    /// Where the next instruction begins; `None` if the block ends here.
    pub(crate) next: Option<u32>,
}

/// A place where a block is left for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Where the displacement of the jump is, as an offset in the cache.
    pub(crate) jump: u32,
    /// Where the jump goes while it is not linked: behind it.
    pub(crate) unlinked: u32,
    /// Where the guest goes, relative to the block's page.
    pub(crate) target: i64,
    /// The mode of the target, but for [`Mode::SINGLE`].
    pub(crate) mode: Mode,
    /// Whether the target must be a block that checks every access by itself.
    pub(crate) single: bool,
    /// Whether this may close a loop, so that a poll is due.
    pub(crate) polls: bool,
    /// Whether it goes to another block without a detour.
    pub(crate) linked: bool,
}

/// The page behind that of a block, for the block of an instruction that ends there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Second {
    /// Where the page is in guest memory.
    pub(crate) offset: usize,
    /// Whether it is there in every address space.
    pub(crate) global: bool,
}

/// A translated block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) key: Key,
    /// There is one if the block is one instruction with bytes in two pages.
    pub(crate) second: Option<Second>,
    /// Offset in the cache of its first byte, where it is entered with the registers spilled that
    /// [`Mode::landing`] says.
    pub(crate) entry: u32,
    /// Where it is entered with the registers in `scratch` spilled.
    pub(crate) inner: u32,
    /// Bytes of code.
    pub(crate) len: u32,
    /// Registers that it takes for itself.
    pub(crate) scratch: u16,
    /// In a window: what one of its instructions has taken besides when it faults in its middle.
    pub(crate) held: u16,
    /// Whether an arithmetic flag is live at its beginning.
    pub(crate) flags_live: bool,
    /// Its instructions, sites and exits.
    pub(crate) record: Record,
}

impl Block {
    /// Whether it may only be entered after a look whether its second page is still the next one:
    /// by way of a jump cache, which forgets it when that may have changed. In the upper half of
    /// a kernel, [`crate::vcpu`] watches over the pages instead.
    pub(crate) fn is_guarded(&self) -> bool {
        self.second.is_some() && self.key.linear >> 63 == 0
    }

    /// The pages (offset / 4096) of guest memory that it is from.
    fn pages(&self) -> impl Iterator<Item = usize> + use<> {
        let first = self.key.offset >> 12;
        let second = self.second.map(|s| s.offset >> 12);
        std::iter::once(first).chain(second.filter(|s| *s != first))
    }

    /// The linear pages on which it depends.
    fn linear_pages(&self) -> impl Iterator<Item = LinearPage> + use<> {
        let number = self.key.linear >> 12;
        let first = LinearPage {
            number,
            offset: self.key.offset & !0xfff,
        };
        let second = self.second.map(|s| LinearPage {
            number: number + 1,
            offset: s.offset,
        });
        let all = std::iter::once(first).chain(second);
        all.take(if self.key.linear == 0 { 0 } else { 2 })
    }
}

/// A page of the linear address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LinearPage {
    /// Its address / 4096.
    number: u64,
    /// Where it was in guest memory.
    offset: usize,
}

/// The blocks that depend on being at a linear page.
#[derive(Debug, Clone, Copy)]
struct Dependent {
    first: BlockId,
    /// Where the page was in guest memory; `None` if they do not agree about it.
    offset: Option<usize>,
    /// Whether the page may be elsewhere in other address spaces.
    is_local: bool,
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// All blocks of a vCPU. What is known about each is in the code cache, so that hardly anything is
/// here.
#[derive(Default)]
pub(crate) struct Blocks {
    /// For each block that was made, dropped ones too: where its record is. Records lie in the
    /// order of the blocks' code.
    records: Vec<u32>,
    by_key: Index,
    /// The first block from each page (offset / 4096) of guest memory.
    by_page: Map<usize, BlockId>,
    /// By page (address / 4096) of the linear address space.
    by_linear: Map<u64, Dependent>,
}

impl Blocks {
    pub(crate) fn find(&self, memory: &CodeMemory, key: &Key) -> Option<BlockId> {
        let is_it = |id| self.get(memory, id).is_some_and(|b| b.key == *key);
        self.by_key.find(key, is_it)
    }

    pub(crate) fn get(&self, memory: &CodeMemory, id: BlockId) -> Option<Block> {
        record::block(memory, *self.records.get(id as usize)?)
    }

    /// The block whose code is at `position` of the cache.
    pub(crate) fn at(&self, memory: &CodeMemory, position: u32) -> Option<Block> {
        let begins = |record: &u32| record::entry(memory, *record) <= position;
        let after = self.records.partition_point(begins);
        let block = record::block(memory, self.records[after.checked_sub(1)?])?;
        (position < block.entry + block.len).then_some(block)
    }

    /// The number that the next block gets.
    pub(crate) fn next_id(&self) -> BlockId {
        self.records.len() as BlockId
    }

    /// Packs what is known about `block` into `room`, which is empty: its record, to be written
    /// where [`Blocks::insert`] is told. `insns` are as [`crate::emit::Emitted`] has them.
    pub(crate) fn pack(
        room: &mut Vec<u8>,
        block: &Block,
        insns: &[(u32, u16)],
        sites: &[Site],
        exits: &[Exit],
    ) {
        record::pack(room, block, insns, sites, exits);
    }

    /// Adds the block whose record is at `position`, as [`Blocks::next_id`]. If it depends on its
    /// linear address, `global` says whether that is translated the same way in every address
    /// space.
    pub(crate) fn insert(&mut self, memory: &mut CodeMemory, position: u32, global: bool) {
        let id = self.next_id();
        self.records.push(position);
        let block = record::block(memory, position).expect("a new block was not dropped");
        let records = &self.records;
        self.by_key.insert(&block.key, id, |id| {
            let block = record::block(memory, records[id as usize]);
            block.expect("dropped blocks are removed").key
        });
        for page in block.pages() {
            let next = self.by_page.insert(page, id);
            block.set_next(memory, Chain::Page(page), next);
        }
        let globals = [global, block.second.is_some_and(|s| s.global)];
        for (page, global) in block.linear_pages().zip(globals) {
            let before = self.by_linear.get(&page.number).copied();
            let is_same = before.is_none_or(|b| b.offset == Some(page.offset));
            let dependent = Dependent {
                first: id,
                offset: is_same.then_some(page.offset),
                is_local: !global || before.is_some_and(|b| b.is_local),
            };
            self.by_linear.insert(page.number, dependent);
            let next = before.map(|b| b.first);
            block.set_next(memory, Chain::Linear(page.number), next);
        }
    }

    /// Forgets a block and returns it.
    pub(crate) fn remove(&mut self, memory: &mut CodeMemory, id: BlockId) -> Option<Block> {
        let block = self.get(memory, id)?;
        self.by_key.remove(&block.key, id);
        for page in block.pages() {
            let chain = Chain::Page(page);
            let next = block.next(memory, chain);
            if self.by_page.get(&page) != Some(&id) {
                self.unchain(memory, chain, self.by_page[&page], id, next);
            } else if let Some(next) = next {
                self.by_page.insert(page, next);
            } else {
                self.by_page.remove(&page);
            }
        }
        for LinearPage { number, .. } in block.linear_pages() {
            let chain = Chain::Linear(number);
            let next = block.next(memory, chain);
            let before = self.by_linear[&number];
            if before.first != id {
                self.unchain(memory, chain, before.first, id, next);
            } else if let Some(first) = next {
                let dependent = Dependent { first, ..before };
                self.by_linear.insert(number, dependent);
            } else {
                self.by_linear.remove(&number);
            }
        }
        block.set_dropped(memory);
        Some(block)
    }

    /// Takes block `id`, before `next`, out of `chain`, which begins with `first`.
    fn unchain(
        &self,
        memory: &mut CodeMemory,
        chain: Chain,
        first: BlockId,
        id: BlockId,
        next: Option<BlockId>,
    ) {
        let is_before = |b: &BlockId| self.following(memory, chain, *b) == Some(id);
        let before = self.chain(memory, chain, Some(first)).find(is_before);
        let before = before.and_then(|b| self.get(memory, b));
        let before = before.expect("a block is in its chains");
        before.set_next(memory, chain, next);
    }

    fn following(&self, memory: &CodeMemory, chain: Chain, id: BlockId) -> Option<BlockId> {
        self.get(memory, id)?.next(memory, chain)
    }

    fn chain<'a>(
        &'a self,
        memory: &'a CodeMemory,
        chain: Chain,
        first: Option<BlockId>,
    ) -> impl Iterator<Item = BlockId> + 'a {
        std::iter::successors(first, move |id| self.following(memory, chain, *id))
    }

    /// The blocks from page `page` of guest memory.
    pub(crate) fn in_page(&self, memory: &CodeMemory, page: usize) -> Vec<BlockId> {
        let first = self.by_page.get(&page).copied();
        self.chain(memory, Chain::Page(page), first).collect()
    }

    /// The linear pages on which blocks depend (only those that may be elsewhere in other address
    /// spaces, if so asked), by address.
    pub(crate) fn linear_pages(&self, only_local: bool) -> Vec<u64> {
        let wanted = |d: &Dependent| d.is_local || !only_local;
        let pages = self.by_linear.iter().filter(|(_, d)| wanted(d));
        pages.map(|(number, _)| number << 12).collect()
    }

    /// Whether a block depends on being at the page of `linear`.
    pub(crate) fn depend_on(&self, linear: u64) -> bool {
        self.by_linear.contains_key(&(linear >> 12))
    }

    /// The blocks that depend on the page of `linear` and were made when it was elsewhere than at
    /// `offset` of guest memory, where it is now.
    pub(crate) fn displaced(
        &mut self,
        memory: &CodeMemory,
        linear: u64,
        offset: Option<usize>,
    ) -> Vec<BlockId> {
        let number = linear >> 12;
        let Some(dependent) = self.by_linear.get(&number).copied() else {
            return Vec::new();
        };
        if dependent.offset.is_some() && dependent.offset == offset {
            return Vec::new();
        }
        let is_displaced = |id: &BlockId| {
            let block = self.get(memory, *id).expect("chained blocks are there");
            let mut pages = block.linear_pages();
            pages.any(|page| page.number == number && Some(page.offset) != offset)
        };
        let chain = self.chain(memory, Chain::Linear(number), Some(dependent.first));
        let displaced: Vec<BlockId> = chain.filter(is_displaced).collect();
        // Those that stay agree.
        self.by_linear.insert(
            number,
            Dependent {
                offset,
                ..dependent
            },
        );
        displaced
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }
}

/// Multiplies and rotates: keys are addresses, which need no protection from collisions that a
/// guest provokes, as they only slow down its own vCPU.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(value.into());
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(GOLDEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of which each is 16 bytes of code.
    struct Scene {
        memory: CodeMemory,
        blocks: Blocks,
        records: usize,
    }

    impl Scene {
        fn new() -> Self {
            let memory = CodeMemory::new(16 << 12).expect("memory for code");
            Self {
                records: memory.capacity(),
                memory,
                blocks: Blocks::default(),
            }
        }

        /// A block at `offset` of guest memory, at `linear`, with an exit.
        fn insert(&mut self, offset: usize, linear: u64, second: Option<Second>) -> BlockId {
            let id = self.blocks.next_id();
            let entry = id * 16;
            let key = Key {
                offset,
                linear,
                mode: Mode::empty(),
            };
            let block = Block {
                key,
                second,
                entry,
                inner: entry,
                len: 16,
                scratch: 0,
                held: 0,
                flags_live: false,
                record: Record::NONE,
            };
            let exit = Exit {
                jump: entry + 4,
                unlinked: entry + 8,
                target: 0,
                mode: key.mode,
                single: false,
                polls: false,
                linked: false,
            };
            let insns = [(entry, (offset & 0xfff) as u16), (entry + 8, u16::MAX)];
            let mut record = Vec::new();
            Blocks::pack(&mut record, &block, &insns, &[], &[exit]);
            self.records = (self.records - record.len()) & !(RECORD_ALIGNMENT - 1);
            self.memory.write_data(self.records, &record);
            let position = self.records as u32;
            self.blocks.insert(&mut self.memory, position, false);
            assert_eq!(self.blocks.find(&self.memory, &key), Some(id));
            id
        }

        fn remove(&mut self, id: BlockId) -> Block {
            let removed = self.blocks.remove(&mut self.memory, id);
            let block = removed.expect("it is there");
            assert_eq!(self.blocks.get(&self.memory, id), None);
            assert_eq!(self.blocks.find(&self.memory, &block.key), None);
            block
        }

        fn block(&self, id: BlockId) -> Block {
            self.blocks.get(&self.memory, id).expect("it is there")
        }

        fn in_page(&self, page: usize) -> Vec<BlockId> {
            let mut ids = self.blocks.in_page(&self.memory, page);
            ids.sort_unstable();
            ids
        }

        fn displaced(&mut self, linear: u64, offset: usize) -> Vec<BlockId> {
            let blocks = &mut self.blocks;
            let mut ids = blocks.displaced(&self.memory, linear, Some(offset));
            ids.sort_unstable();
            ids
        }
    }

    const KERNEL: u64 = 0xffff_ffff_8100_0000;

    #[test]
    fn blocks_are_found_by_page_until_they_are_removed() {
        for removed in 0..4 {
            let mut scene = Scene::new();
            let second = Some(Second {
                offset: 0x7000,
                global: false,
            });
            scene.insert(0x3010, KERNEL, None);
            scene.insert(0x3ffe, KERNEL, second);
            scene.insert(0x7020, KERNEL + 0x1020, None);
            scene.insert(0x3030, KERNEL + 0x30, None);
            scene.remove(removed);
            let there = |all: &[BlockId]| {
                let there = all.iter().copied().filter(|id| *id != removed);
                there.collect::<Vec<_>>()
            };
            assert_eq!(scene.in_page(3), there(&[0, 1, 3]));
            assert_eq!(scene.in_page(7), there(&[1, 2]));
            assert_eq!(scene.in_page(4), []);
            assert_eq!(scene.blocks.len(), 3);
            for id in there(&[0, 1, 2, 3]) {
                scene.remove(id);
            }
            assert!(scene.in_page(3).is_empty() && scene.in_page(7).is_empty());
            assert!(scene.blocks.linear_pages(false).is_empty());
        }
    }

    #[test]
    fn a_page_with_itself_behind_it_has_its_block_once() {
        let mut scene = Scene::new();
        let second = Some(Second {
            offset: 0x3000,
            global: false,
        });
        let id = scene.insert(0x3ffe, KERNEL, second);
        assert_eq!(scene.in_page(3), [id]);
        let mut pages = scene.blocks.linear_pages(true);
        pages.sort_unstable();
        assert_eq!(pages, [KERNEL, KERNEL + 0x1000]);
        scene.remove(id);
        assert_eq!(scene.in_page(3), []);
    }

    #[test]
    fn blocks_that_were_made_elsewhere_are_displaced() {
        let mut scene = Scene::new();
        scene.insert(0x3010, KERNEL, None);
        scene.insert(0x3020, KERNEL + 0x20, None);
        assert_eq!(scene.displaced(KERNEL, 0x3000), []);
        // The page moves, and nobody looks.
        scene.insert(0x5010, KERNEL, None);
        assert_eq!(scene.displaced(KERNEL, 0x5000), [0, 1]);
        scene.remove(0);
        scene.remove(1);
        assert_eq!(scene.displaced(KERNEL, 0x5000), []);
        assert_eq!(scene.displaced(KERNEL, 0x3000), [2]);
        assert!(scene.blocks.depend_on(KERNEL + 0xfff));
        scene.remove(2);
        assert!(!scene.blocks.depend_on(KERNEL));
    }

    #[test]
    fn incoming_exits_are_told_once() {
        let mut scene = Scene::new();
        let ids = [0x10, 0x20, 0x30].map(|offset| scene.insert(0x3000 + offset, KERNEL, None));
        let target = scene.block(ids[2]);
        for id in ids {
            let source = scene.block(id);
            source.set_linked(&mut scene.memory, 0, &target);
            assert!(source.exit(&scene.memory, 0).linked);
        }
        // A link from a block that is no longer there stays.
        scene.remove(ids[0]);
        let taken = std::iter::from_fn(|| target.take_incoming(&mut scene.memory));
        let jumps: Vec<u32> = taken.map(|exit| exit.jump).collect();
        assert_eq!(jumps, [2 * 16 + 4, 16 + 4, 4]);
        assert!(!scene.block(ids[1]).exit(&scene.memory, 0).linked);
    }

    #[test]
    fn code_belongs_to_the_block_that_was_made_there_last() {
        let mut scene = Scene::new();
        for number in 0..3 {
            scene.insert(0x3000 + number, 0, None);
        }
        scene.remove(1);
        let at = |scene: &Scene, position| {
            let block = scene.blocks.at(&scene.memory, position);
            block.map(|b| b.entry)
        };
        let found = [15, 16, 31, 32, 47, 48].map(|position| at(&scene, position));
        assert_eq!(found, [Some(0), None, None, Some(32), Some(32), None]);
    }
}
