//! Translated blocks, and how they are found and linked.

use crate::mode::Mode;
use crate::plan::Strings;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// A block's number.
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
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site {
    /// Offset of the instruction in the guest's page.
    pub(crate) at: u16,
    /// Bytes of the access, or of the range that a shared check covers.
    pub(crate) size: u16,
    pub(crate) write: bool,
    /// The alignment without which the access, a write, raises #GP; 1 if none.
    pub(crate) alignment: u8,
    /// Where the access is in that range.
    pub(crate) skew: u16,
    /// Whether the block has made sure that the vector registers are loaded.
    pub(crate) vectors: bool,
    /// Whether the instruction may work on vector registers.
    pub(crate) works_on_vectors: bool,
    /// Whether this is a STOS or MOVS, which looks up the pages at RDI and RSI.
    pub(crate) strings: Option<Strings>,
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
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    /// Where the displacement of the jump is, as an offset in the cache.
    pub(crate) jump: u32,
    /// Where the jump goes while it is not linked.
    pub(crate) unlinked: u32,
    /// Where the guest goes, relative to the block's page.
    pub(crate) target: i64,
    /// The mode of the target, but for [`Mode::SINGLE`].
    pub(crate) mode: Mode,
    /// Whether the target must be a block that checks every access by itself.
    pub(crate) single: bool,
    /// Whether this may close a loop, so that a poll is due.
    pub(crate) polls: bool,
    pub(crate) linked: Option<BlockId>,
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
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) key: Key,
    /// There is one if the block is one instruction with bytes in two pages.
    pub(crate) second: Option<Second>,
    /// Offset in the cache of its first byte, where it is entered with all registers the guest's.
    pub(crate) entry: u32,
    /// Where it is entered with the registers in `scratch` spilled.
    pub(crate) inner: u32,
    /// Bytes of code.
    pub(crate) len: u32,
    /// Registers that it takes for itself.
    pub(crate) scratch: u16,
    /// Whether an arithmetic flag is live at its beginning.
    pub(crate) flags_live: bool,
    /// For each instruction: where its code begins, and its offset in the guest's page.
    pub(crate) insns: Box<[(u32, u16)]>,
    pub(crate) sites: Box<[Site]>,
    pub(crate) exits: Box<[Exit]>,
    /// Exits of other blocks (and its own) that are linked to this one.
    pub(crate) incoming: Vec<(BlockId, u8)>,
}

impl Block {
    /// The offset in the guest's page of the instruction whose code holds `position`.
    pub(crate) fn guest_offset(&self, position: u32) -> u16 {
        let after = self.insns.partition_point(|(host, _)| *host <= position);
        self.insns[after.saturating_sub(1)].1
    }

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

    /// The linear pages on which it depends, by number, each with its offset in guest memory.
    fn linear_pages(&self) -> impl Iterator<Item = (u64, usize)> + use<> {
        let number = self.key.linear >> 12;
        let first = (number, self.key.offset & !0xfff);
        let second = self.second.map(|s| (number + 1, s.offset));
        let all = std::iter::once(first).chain(second);
        all.take(if self.key.linear == 0 { 0 } else { 2 })
    }
}

/// All blocks of a vCPU.
#[derive(Default)]
pub(crate) struct Blocks {
    blocks: Vec<Option<Block>>,
    free: Vec<BlockId>,
    by_key: HashMap<Key, BlockId, BuildHasherDefault<KeyHasher>>,
    /// Blocks by the page (offset / 4096) of guest memory that they are from.
    by_page: HashMap<usize, Vec<BlockId>>,
    /// Blocks that depend on their linear address, by its page.
    by_linear: HashMap<u64, Vec<BlockId>>,
    /// Those of these pages whose translation is not global.
    local: HashSet<u64>,
}

impl Blocks {
    pub(crate) fn find(&self, key: &Key) -> Option<BlockId> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn get(&self, id: BlockId) -> Option<&Block> {
        self.blocks.get(id as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: BlockId) -> Option<&mut Block> {
        self.blocks.get_mut(id as usize)?.as_mut()
    }

    /// The number that the next block gets.
    pub(crate) fn next_id(&self) -> BlockId {
        self.free
            .last()
            .copied()
            .unwrap_or(self.blocks.len() as BlockId)
    }

    /// Keeps `block` under [`Blocks::next_id`]. If it depends on its linear address, `global` says
    /// whether that is translated the same way in every address space.
    pub(crate) fn insert(&mut self, block: Block, global: bool) -> BlockId {
        let id = self.next_id();
        let key = block.key;
        self.by_key.insert(key, id);
        for page in block.pages() {
            self.by_page.entry(page).or_default().push(id);
        }
        let globals = [global, block.second.is_some_and(|s| s.global)];
        for ((page, _), global) in block.linear_pages().zip(globals) {
            self.by_linear.entry(page).or_default().push(id);
            if !global {
                self.local.insert(page);
            }
        }
        if self.free.pop().is_some() {
            self.blocks[id as usize] = Some(block);
        } else {
            self.blocks.push(Some(block));
        }
        id
    }

    /// Forgets a block and returns it.
    pub(crate) fn remove(&mut self, id: BlockId) -> Option<Block> {
        let block = self.blocks.get_mut(id as usize)?.take()?;
        self.free.push(id);
        self.by_key.remove(&block.key);
        for page in block.pages() {
            forget(&mut self.by_page, page, id);
        }
        for (page, _) in block.linear_pages() {
            forget(&mut self.by_linear, page, id);
        }
        Some(block)
    }

    /// The blocks from page `page` of guest memory.
    pub(crate) fn in_page(&self, page: usize) -> Vec<BlockId> {
        self.by_page.get(&page).cloned().unwrap_or_default()
    }

    /// The blocks that depend on being at the page of linear address `linear`.
    pub(crate) fn at_linear(&self, linear: u64) -> Vec<BlockId> {
        self.by_linear
            .get(&(linear >> 12))
            .cloned()
            .unwrap_or_default()
    }

    /// The linear pages on which blocks depend (only those that are not `global`, if so asked),
    /// each with the offset in guest memory where it was.
    pub(crate) fn linear_pages(&self, only_local: bool) -> Vec<(u64, usize)> {
        let offset = |page: &u64| Some((*page << 12, self.place_of(*page << 12)?));
        if only_local {
            self.local.iter().filter_map(offset).collect()
        } else {
            self.by_linear.keys().filter_map(offset).collect()
        }
    }

    /// Where the page of `linear` was in guest memory when a block that depends on it was made.
    pub(crate) fn place_of(&self, linear: u64) -> Option<usize> {
        let page = linear >> 12;
        let block = self.get(*self.by_linear.get(&page)?.first()?)?;
        let mut pages = block.linear_pages();
        pages.find_map(|(number, offset)| (number == page).then_some(offset))
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }
}

fn forget<K: Eq + std::hash::Hash>(map: &mut HashMap<K, Vec<BlockId>>, key: K, id: BlockId) {
    if let Some(ids) = map.get_mut(&key) {
        ids.retain(|i| *i != id);
        if ids.is_empty() {
            map.remove(&key);
        }
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
