//! Pages at a constant distance from the base of GS.
//!
//! There kernels keep what belongs to a CPU, and look at it in nearly every function. Their TLB
//! entry would be found by way of the base; but the distance is known when code is translated, so
//! that each such page has a place of its own in the context, where nothing has to be computed: a
//! copy of a TLB entry, for one value of the base. It is forgotten with what it was copied from.

use crate::context::Context;
use crate::lookup::{Lookup, Page, half};

/// Pages that have a place, from the base on. Linux has some 50.
pub(crate) const GS_PAGES: usize = 64;
/// Views of kernel code: those whose numbers are lower.
pub(crate) const GS_VIEWS: usize = 2;

/// A page, for accesses with a constant offset from the base of GS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub(crate) struct GsPage {
    /// Minus the base for which it is there.
    pub(crate) tag: u64,
    /// The host address of the page.
    pub(crate) host: u64,
}

impl GsPage {
    /// There for no base: none is this one, which is not canonical.
    pub(crate) const EMPTY: Self = Self {
        tag: 1 << 63,
        host: 0,
    };

    /// The linear address of the page, which has place `number`; `None` if there is none.
    fn linear(&self, number: usize) -> Option<u64> {
        let base = self.tag.wrapping_neg();
        (*self != Self::EMPTY).then(|| base.wrapping_add((number as u64) << 12))
    }
}

/// The number of the page that has all `size` bytes at `distance` from a base that is a page's
/// address, and where they are in it; `None` if there is no place for it.
pub(crate) fn place(distance: i32, size: u16) -> Option<(usize, i32)> {
    let number = usize::try_from(distance >> 12).ok()?;
    let offset = distance & 0xfff;
    let fits = number < GS_PAGES && offset + i32::from(size) <= 4096;
    fits.then_some((number, offset))
}

/// Displacements of the tag and the host address of page `number` in `view`.
pub(crate) const fn gs_page_fields(view: usize, write: bool, number: usize) -> (i32, i32) {
    use std::mem::{offset_of, size_of};
    let entry = (2 * view + write as usize) * GS_PAGES + number;
    let first = offset_of!(Context, gs_pages) + entry * size_of::<GsPage>();
    (
        (first + offset_of!(GsPage, tag)) as i32,
        (first + offset_of!(GsPage, host)) as i32,
    )
}

/// Which places are taken: bits by number, for each view for reads and for writes.
pub(crate) type Taken = [[u64; 2]; GS_VIEWS];

impl Lookup {
    /// Lets `page` be accessed by its distance from the context's base of GS. Returns whether there
    /// is a place for it.
    pub(crate) fn fill_gs_page(
        &mut self,
        context: &mut Context,
        view: usize,
        page: Page,
        write: bool,
    ) -> bool {
        debug_assert!(page.writable || !write, "a page that may not be written");
        let base = context.gs_base;
        let number = page.linear.wrapping_sub(base) >> 12;
        if base & 0xfff != 0 || number >= GS_PAGES as u64 || view >= GS_VIEWS {
            return false;
        }
        context.gs_pages[view][usize::from(write)][number as usize] = GsPage {
            tag: base.wrapping_neg(),
            host: page.host & !0xfff,
        };
        self.gs_taken[view][usize::from(write)] |= 1 << number;
        true
    }

    /// Forgets pages, of those that may be read and those that may be written, or only of the
    /// latter, by their linear address.
    pub(crate) fn forget_gs_pages(
        &mut self,
        context: &mut Context,
        only_writes: bool,
        is_stale: impl Fn(u64) -> bool,
    ) {
        let views = context.gs_pages.iter_mut().zip(&mut self.gs_taken);
        for (table, taken) in views.flat_map(|(tables, taken)| {
            let both = tables.iter_mut().zip(taken);
            both.skip(usize::from(only_writes))
        }) {
            let mut left = *taken;
            while left != 0 {
                let number = left.trailing_zeros() as usize;
                left &= left - 1;
                if table[number].linear(number).is_none_or(&is_stale) {
                    table[number] = GsPage::EMPTY;
                    *taken &= !(1 << number);
                }
            }
        }
    }

    /// Forgets those in `half` of the address space.
    pub(crate) fn forget_gs_half(&mut self, context: &mut Context, of: usize) {
        self.forget_gs_pages(context, false, |linear| half(linear) == of);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::ContextBox;

    const BASE: u64 = 0xffff_8880_3e00_0000;

    /// A page that may be read and written in both views.
    fn filled(base: u64, number: u64) -> (Lookup, ContextBox) {
        let mut context = ContextBox::new().expect("memory");
        let mut lookup = Lookup::with_tlb();
        context.gs_base = base;
        for view in 0..GS_VIEWS {
            for write in [false, true] {
                let page = Page {
                    linear: base + (number << 12) + 0x123,
                    host: 0x7000_0000_0123,
                    writable: true,
                };
                assert!(lookup.fill_gs_page(&mut context, view, page, write));
            }
        }
        (lookup, context)
    }

    /// How many places there are for reads and for writes.
    fn taken(context: &Context) -> [usize; 2] {
        [false, true].map(|write| {
            let tables = context.gs_pages.iter().map(|view| view[usize::from(write)]);
            let all = tables.flatten();
            all.filter(|page| *page != GsPage::EMPTY).count()
        })
    }

    #[test]
    fn pages_have_places_if_all_bytes_are_in_them() {
        assert_eq!(place(0, 8), Some((0, 0)));
        assert_eq!(place(0x1_fb80, 8), Some((0x1f, 0xb80)));
        assert_eq!(place(0x3_fff8, 8), Some((0x3f, 0xff8)));
        for (distance, size) in [(0x3_fff9, 8), (0x4_0000, 1), (-1, 1), (0xffc, 8)] {
            assert_eq!(place(distance, size), None, "{distance:#x}");
        }
    }

    #[test]
    fn nothing_is_there_at_first_and_no_base_is_that_of_an_empty_place() {
        let context = ContextBox::new().expect("memory");
        assert_eq!(taken(&context), [0, 0]);
        assert!(!x86::paging::is_canonical(
            GsPage::EMPTY.tag.wrapping_neg(),
            57
        ));
    }

    #[test]
    fn bases_that_are_no_pages_and_pages_far_away_have_no_place() {
        let (mut lookup, mut context) = filled(BASE, 3);
        let page = |linear| Page {
            linear,
            host: 0,
            writable: false,
        };
        for linear in [BASE - 1, BASE + ((GS_PAGES as u64) << 12)] {
            assert!(!lookup.fill_gs_page(&mut context, 0, page(linear), false));
        }
        assert!(!lookup.fill_gs_page(&mut context, GS_VIEWS, page(BASE), false));
        context.gs_base += 8;
        assert!(!lookup.fill_gs_page(&mut context, 0, page(BASE + 8), false));
        assert_eq!(taken(&context), [2, 2]);
    }

    #[test]
    fn what_the_tlb_forgets_is_forgotten() {
        let linear = BASE + 0x3000;
        type Forget = fn(&mut Lookup, &mut Context, u64);
        let forget: [(&str, [usize; 2], Forget); 7] = [
            ("all", [0, 0], |l, c, _| l.forget_all(c)),
            ("lower", [2, 2], |l, c, _| l.forget_lower(c)),
            ("page", [0, 0], |l, c, at| l.forget_page(c, at + 0xabc)),
            ("other", [2, 2], |l, c, at| l.forget_page(c, at + 0x1000)),
            ("writes", [2, 0], |l, c, _| l.forget_writes(c)),
            ("write", [2, 0], |l, c, at| l.forget_write(c, 0, at + 5)),
            ("other's", [2, 2], |l, c, at| l.forget_write(c, 0, at - 1)),
        ];
        for (name, left, forget) in forget {
            let (mut lookup, mut context) = filled(BASE, 3);
            forget(&mut lookup, &mut context, linear);
            assert_eq!(taken(&context), left, "{name}");
        }
        let (mut lookup, mut context) = filled(0x5000, 3);
        lookup.forget_lower(&mut context);
        assert_eq!(taken(&context), [0, 0]);
    }
}
