//! Blocks by key: a hash table of block numbers.

use super::{BlockId, Key, KeyHasher};
use std::hash::{Hash, Hasher};

/// The most blocks, as what gates are told leaves a number 24 bits, and two values mean something
/// else here.
pub(crate) const BLOCKS_MAX: usize = (1 << ID_BITS) - 2;

const ID_BITS: u32 = 24;
const ID_MASK: u32 = (1 << ID_BITS) - 1;
/// Slots that hold nothing, and whose block was removed.
const EMPTY: u32 = u32::MAX;
const REMOVED: u32 = u32::MAX - 1;
/// Slots at first, a power of two.
const SLOTS_MIN: usize = 1 << 10;

/// Open addressing with linear probing. A slot has a block's number and, above, bits of its key's
/// hash, so that hardly any other key is looked at than the one that is wanted.
pub(super) struct Index {
    slots: Vec<u32>,
    /// Slots that are not empty, and those of them that hold a block.
    used: usize,
    blocks: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            slots: vec![EMPTY; SLOTS_MIN],
            used: 0,
            blocks: 0,
        }
    }
}

/// A slot's content for block `id` with the hash `hash`.
fn slot(hash: u64, id: BlockId) -> u32 {
    (hash >> 32) as u32 & !ID_MASK | id
}

fn hash(key: &Key) -> u64 {
    let mut hasher = KeyHasher::default();
    key.hash(&mut hasher);
    hasher.finish()
}

impl Index {
    /// How many blocks there are.
    pub(super) fn len(&self) -> usize {
        self.blocks
    }

    /// The places that a hash may be in, in the order in which they are filled.
    fn probe(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.slots.len() - 1;
        // The upper bits of a product are the better ones.
        let first = (hash >> 20) as usize;
        (0..=mask).map(move |step| (first + step) & mask)
    }

    /// The block with `key`; `is_it` says whether a block's key is that.
    pub(super) fn find(&self, key: &Key, is_it: impl Fn(BlockId) -> bool) -> Option<BlockId> {
        let hash = hash(key);
        for place in self.probe(hash) {
            let content = self.slots[place];
            if content == EMPTY {
                break;
            }
            let id = content & ID_MASK;
            if content == slot(hash, id) && content != REMOVED && is_it(id) {
                return Some(id);
            }
        }
        None
    }

    /// Adds block `id` under `key`, which is not there yet; `key_of` tells the key of a block.
    pub(super) fn insert(&mut self, key: &Key, id: BlockId, key_of: impl Fn(BlockId) -> Key) {
        assert!((id as usize) < BLOCKS_MAX, "a block's number has 24 bits");
        if self.used >= self.slots.len() / 4 * 3 {
            self.rebuild(key_of);
        }
        self.put(hash(key), id);
    }

    fn put(&mut self, hash: u64, id: BlockId) {
        let place = self
            .probe(hash)
            .find(|place| self.slots[*place] == EMPTY)
            .expect("a quarter of the slots is empty");
        self.slots[place] = slot(hash, id);
        self.used += 1;
        self.blocks += 1;
    }

    /// Makes room.
    fn rebuild(&mut self, key_of: impl Fn(BlockId) -> Key) {
        let size = (2 * self.blocks).next_power_of_two().max(SLOTS_MIN);
        let slots = std::mem::replace(&mut self.slots, vec![EMPTY; size]);
        (self.used, self.blocks) = (0, 0);
        for content in slots.into_iter().filter(|s| *s != EMPTY && *s != REMOVED) {
            let id = content & ID_MASK;
            self.put(hash(&key_of(id)), id);
        }
    }

    /// Removes block `id`, which is there under `key`.
    pub(super) fn remove(&mut self, key: &Key, id: BlockId) {
        let wanted = slot(hash(key), id);
        let place = self
            .probe(hash(key))
            .find(|place| self.slots[*place] == wanted)
            .expect("the block is there");
        self.slots[place] = REMOVED;
        self.blocks -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::Mode;
    use std::collections::HashMap;

    fn key(number: usize) -> Key {
        Key {
            offset: number * 24,
            linear: 0,
            mode: Mode::USER,
        }
    }

    #[test]
    fn it_finds_what_a_map_finds() {
        let (mut index, mut map) = (Index::default(), HashMap::new());
        let mut keys = Vec::new();
        for round in 0..3 * SLOTS_MIN {
            let id = keys.len() as BlockId;
            let new = key(round);
            index.insert(&new, id, |id| keys[id as usize]);
            keys.push(new);
            map.insert(new, id);
            if round % 3 == 0 {
                let old = key(round / 2);
                if let Some(id) = map.remove(&old) {
                    index.remove(&old, id);
                }
            }
        }
        assert_eq!(index.len(), map.len());
        for number in 0..3 * SLOTS_MIN {
            let key = key(number);
            let found = index.find(&key, |id| keys[id as usize] == key);
            assert_eq!(found, map.get(&key).copied(), "{number}");
        }
    }

    #[test]
    fn what_comes_and_goes_takes_no_more_room() {
        let mut index = Index::default();
        for id in 0..64 * SLOTS_MIN {
            index.insert(&key(id), id as BlockId, |id| key(id as usize));
            index.remove(&key(id), id as BlockId);
        }
        assert_eq!((index.len(), index.slots.len()), (0, SLOTS_MIN));
    }
}
