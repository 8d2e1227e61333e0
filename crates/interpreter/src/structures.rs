//! The paging-structure caches (SDM vol. 3, 5.10.3): where the lower tables are and what the
//! entries above them allow, so that most walks load the last entry alone.
//!
//! They hold what was reached through present entries with the accessed bit set, all in RAM. Like
//! a processor's, they may be stale until the guest invalidates them, so a walk that begins here
//! may only end in success: what looks like a fault is decided by a walk from CR3.

use x86::paging::Entry;

/// Page tables that are kept; with one for each 2 MiB of linear addresses, they reach 1 GiB.
const TABLES: usize = 512;
/// Page directories that are kept, for what the tables do not reach, and for pages of 2 MiB.
const DIRECTORIES: usize = 32;
/// Where the generation begins in a tag: above the bits of a linear address that are compared.
const GENERATION_SHIFT: u32 = 64 - 21;

/// A page table or page directory in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    /// Where it is in guest memory, at a page boundary.
    pub(crate) offset: usize,
    /// WRITABLE and USER if all entries above it have them, NO_EXECUTE if one has it.
    pub(crate) rights: Entry,
}

/// What [`Table::rights`] is made of. All of these are outside of a page's offset.
const RIGHTS: Entry = Entry::WRITABLE.union(Entry::USER).union(Entry::NO_EXECUTE);

/// The tables that a walk has passed, as far as they may be kept.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Passed {
    directory: Option<Table>,
    table: Option<Table>,
}

impl Passed {
    /// The walk has passed `table`, in which linear addresses from bit `shift` on are the index.
    #[inline]
    pub(crate) fn note(&mut self, shift: u32, table: Table) {
        match shift {
            12 => self.table = Some(table),
            21 => self.directory = Some(table),
            _ => {}
        }
    }
}

/// The caches of one vCPU.
pub(crate) struct StructureCaches {
    tables: Level<21, TABLES>,
    directories: Level<30, DIRECTORIES>,
    /// The current generation, in place in a tag. 0 is never current.
    generation: u64,
}

impl Default for StructureCaches {
    fn default() -> Self {
        Self {
            tables: Level::EMPTY,
            directories: Level::EMPTY,
            generation: 1 << GENERATION_SHIFT,
        }
    }
}

impl StructureCaches {
    /// The page table for `linear`.
    #[inline(always)]
    pub(crate) fn table(&self, linear: u64) -> Option<Table> {
        self.tables.get(linear, self.generation)
    }

    /// The page directory for `linear`.
    #[inline]
    pub(crate) fn directory(&self, linear: u64) -> Option<Table> {
        self.directories.get(linear, self.generation)
    }

    /// Keeps what a walk for `linear` has passed.
    pub(crate) fn keep(&mut self, linear: u64, passed: &Passed) {
        if let Some(directory) = passed.directory {
            self.directories.insert(linear, self.generation, directory);
        }
        if let Some(table) = passed.table {
            self.tables.insert(linear, self.generation, table);
        }
    }

    /// Forgets everything, as INVLPG at any address does too (SDM vol. 3, 5.10.4.1).
    pub(crate) fn flush(&mut self) {
        self.generation = self.generation.wrapping_add(1 << GENERATION_SHIFT);
        if self.generation == 0 {
            *self = Self::default();
        }
    }

    /// Forgets what a walk for `linear` would use.
    pub(crate) fn forget(&mut self, linear: u64) {
        self.tables.forget(linear);
        self.directories.forget(linear);
    }
}

/// The cache of one level: each entry serves `1 << SHIFT` bytes of linear addresses. Direct-mapped.
struct Level<const SHIFT: u32, const ENTRIES: usize>([Cached; ENTRIES]);

#[derive(Clone, Copy)]
struct Cached {
    /// The linear address, shifted, below the generation.
    tag: u64,
    /// Offset and rights of the table, which share no bits.
    table: u64,
}

impl<const SHIFT: u32, const ENTRIES: usize> Level<SHIFT, ENTRIES> {
    const EMPTY: Self = Self([Cached { tag: 0, table: 0 }; ENTRIES]);

    fn slot(linear: u64) -> usize {
        (linear >> SHIFT) as usize % ENTRIES
    }

    #[inline(always)]
    fn get(&self, linear: u64, generation: u64) -> Option<Table> {
        let cached = &self.0[Self::slot(linear)];
        (cached.tag == linear >> SHIFT | generation).then(|| Table {
            offset: (cached.table & !RIGHTS.bits()) as usize,
            rights: Entry::from_bits_retain(cached.table) & RIGHTS,
        })
    }

    fn insert(&mut self, linear: u64, generation: u64, table: Table) {
        debug_assert!(table.offset.is_multiple_of(memory::PAGE_SIZE));
        self.0[Self::slot(linear)] = Cached {
            tag: linear >> SHIFT | generation,
            table: table.offset as u64 | (table.rights & RIGHTS).bits(),
        };
    }

    fn forget(&mut self, linear: u64) {
        self.0[Self::slot(linear)].tag = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAR: u64 = 0xffff_8880_0000_0000;
    const TABLE: Table = Table {
        offset: 0x1_2345_6000,
        rights: Entry::WRITABLE.union(Entry::NO_EXECUTE),
    };

    #[test]
    fn each_level_answers_for_its_own_range() {
        let mut caches = StructureCaches::default();
        let mut passed = Passed::default();
        for shift in [12, 21, 30, 39] {
            passed.note(shift, TABLE);
        }
        caches.keep(LINEAR, &passed);
        assert_eq!(caches.table(LINEAR + 0x1f_ffff), Some(TABLE));
        assert_eq!(caches.table(LINEAR + 0x20_0000), None);
        assert_eq!(caches.directory(LINEAR + 0x3fff_ffff), Some(TABLE));
        assert_eq!(caches.directory(LINEAR + 0x4000_0000), None);
        let same_slot = LINEAR + ((TABLES as u64) << 21);
        assert_eq!(caches.table(same_slot), None);
        caches.forget(LINEAR + 0x12_3456);
        assert_eq!(
            (caches.table(LINEAR), caches.directory(LINEAR)),
            (None, None)
        );
    }

    #[test]
    fn generations_may_wrap() {
        let mut caches = StructureCaches::default();
        let first = caches.generation;
        caches.tables.insert(LINEAR, first, TABLE);
        for _ in 1..1u64 << (64 - GENERATION_SHIFT) {
            caches.flush();
            assert_eq!(caches.table(LINEAR), None);
            assert_eq!(caches.table(0), None, "an empty entry is none at 0");
        }
        assert_eq!(caches.generation, first);
    }
}
