//! Which pages of guest memory are in a jail, and where.

use crate::store::PAGE;
use std::collections::BTreeMap;

/// Pages that one page table maps. Programs use them side by side.
const TABLE_PAGES: usize = 512;
const TABLE_BYTES: u64 = (TABLE_PAGES * PAGE) as u64;

/// A page of guest memory in a jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    /// Where it is in guest memory.
    pub(super) offset: usize,
    pub(super) writable: bool,
}

/// A [`Page`], or none: bit 0 says that it is there, bit 1 that it is writable, the others are its
/// number in guest memory.
#[derive(Debug, Clone, Copy, Default)]
struct Packed(u32);

impl Packed {
    fn new(page: Page) -> Self {
        let number = u32::try_from(page.offset / PAGE).unwrap_or(u32::MAX);
        assert!(number < 1 << 30, "guest memory has 4 TiB at most");
        Self(number << 2 | u32::from(page.writable) << 1 | 1)
    }

    fn page(self) -> Option<Page> {
        (self.0 != 0).then_some(Page {
            offset: (self.0 >> 2) as usize * PAGE,
            writable: self.0 & 2 != 0,
        })
    }
}

/// The pages of a jail by their linear address. Four bytes for each where they are close together.
#[derive(Debug, Default)]
pub(super) struct Pages {
    tables: BTreeMap<u64, Box<[Packed; TABLE_PAGES]>>,
    len: usize,
    most: usize,
}

/// The number of the table of `linear`, and the index there.
fn place(linear: u64) -> (u64, usize) {
    let index = linear % TABLE_BYTES / PAGE as u64;
    (linear / TABLE_BYTES, index as usize)
}

impl Pages {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many there were at most.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// The page at `linear`.
    pub(super) fn get(&self, linear: u64) -> Option<Page> {
        let (table, index) = place(linear);
        self.tables.get(&table)?[index].page()
    }

    /// Puts `page` at `linear`, in the place of what is there.
    pub(super) fn insert(&mut self, linear: u64, page: Page) {
        let (table, index) = place(linear);
        let table = self.tables.entry(table);
        let table = table.or_insert_with(|| Box::new([Packed::default(); TABLE_PAGES]));
        let before = std::mem::replace(&mut table[index], Packed::new(page));
        self.len += usize::from(before.page().is_none());
        self.most = self.most.max(self.len);
    }

    /// Takes the page at `linear` out. A table that has become empty is kept: it is filled again.
    pub(super) fn remove(&mut self, linear: u64) {
        let (table, index) = place(linear);
        if let Some(table) = self.tables.get_mut(&table) {
            let before = std::mem::take(&mut table[index]);
            self.len -= usize::from(before.page().is_some());
        }
    }

    /// All pages with their linear addresses, in ascending order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Page)> {
        self.tables.iter().flat_map(|(table, pages)| {
            let first = table * TABLE_BYTES;
            let pages = pages.iter().enumerate();
            pages.filter_map(move |(index, packed)| {
                Some((first + (index * PAGE) as u64, packed.page()?))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_what_a_map_of_them_would_be() {
        let mut pages = Pages::default();
        let mut map = BTreeMap::new();
        let mut state = 1u64;
        for _ in 0..10_000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            // Places on both sides of the ends of tables, and at the end of the lower half.
            let linear = [0x1f_0000, 0x5555_5000_0000, 0x7fff_ffff_0000]
                [(state >> 60) as usize % 3]
                + (((state >> 40) % 16) << 12)
                + (((state >> 50) % 2) << 16);
            if state >> 33 & 1 == 0 {
                pages.remove(linear);
                map.remove(&linear);
            } else {
                let page = Page {
                    offset: ((state >> 20) as usize % 0x1000_0000) * PAGE,
                    writable: state >> 34 & 1 != 0,
                };
                pages.insert(linear, page);
                map.insert(linear, page);
            }
            assert_eq!(pages.len(), map.len());
            assert_eq!(pages.get(linear), map.get(&linear).copied());
        }
        assert!(pages.iter().eq(map.into_iter()));
    }
}
