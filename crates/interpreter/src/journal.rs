//! What was forgotten since somebody last asked: for an engine that keeps translations of its own
//! beside the TLB and the cache of blocks.

/// Linear pages that are told one by one: those of a large page and some more.
const PAGES_MAX: usize = 1024;
/// Pages of code that are told one by one.
const CODE_MAX: usize = 4096;

/// What whoever copies from the TLB or from code has to forget.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// All translations of linear addresses, global ones too.
    pub all: bool,
    /// Those of the lower half of the linear address space: CR3 was written, and everything in
    /// the upper half is global.
    pub lower: bool,
    /// Those that are not global: CR3 was written, and not everything in the upper half is global.
    /// What is global there may be kept.
    pub locals: bool,
    /// All permissions to write.
    pub writes: bool,
    /// Translations of the 4 KiB around each of these linear addresses.
    pub pages: Vec<u64>,
    /// What was made from code in these pages of guest memory (offset / 4096). A page may be
    /// there more than once.
    pub code: Vec<usize>,
    /// What was made from any code.
    pub all_code: bool,
}

impl Changes {
    /// Adds what `later` says.
    pub fn add(&mut self, later: &Self) {
        self.all |= later.all;
        self.lower |= later.lower;
        self.locals |= later.locals;
        self.writes |= later.writes;
        self.all_code |= later.all_code;
        self.pages.extend_from_slice(&later.pages);
        self.all |= self.pages.len() > PAGES_MAX;
        self.code.extend_from_slice(&later.code);
        self.all_code |= self.code.len() > CODE_MAX;
        if self.all {
            self.pages.clear();
        }
        if self.all_code {
            self.code.clear();
        }
    }
}

/// Records [`Changes`] once it is switched on.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    on: bool,
    any: bool,
    changes: Changes,
}

impl Journal {
    /// Records from now on.
    pub(crate) fn switch_on(&mut self) {
        self.on = true;
    }

    /// Whether anything was recorded since the last [`Journal::take`].
    #[inline(always)]
    pub(crate) fn has_any(&self) -> bool {
        self.any
    }

    /// Takes what was recorded.
    pub(crate) fn take(&mut self) -> Changes {
        self.any = false;
        std::mem::take(&mut self.changes)
    }

    #[inline(always)]
    fn record(&mut self, record: impl FnOnce(&mut Changes)) {
        if self.on {
            self.any = true;
            record(&mut self.changes);
        }
    }

    pub(crate) fn all(&mut self) {
        self.record(|c| {
            c.all = true;
            c.pages.clear();
        });
    }

    pub(crate) fn lower(&mut self) {
        self.record(|c| c.lower = true);
    }

    pub(crate) fn locals(&mut self) {
        self.record(|c| c.locals = true);
    }

    pub(crate) fn writes(&mut self) {
        self.record(|c| c.writes = true);
    }

    /// The page at `linear`.
    pub(crate) fn page(&mut self, linear: u64) {
        self.record(|c| {
            if c.pages.len() == PAGES_MAX {
                c.all = true;
                c.pages.clear();
            }
            if !c.all {
                c.pages.push(linear);
            }
        });
    }

    /// Code in `page` (offset / 4096).
    pub(crate) fn code(&mut self, page: usize) {
        self.record(|c| {
            if c.code.len() == CODE_MAX {
                c.all_code = true;
                c.code.clear();
            }
            if !c.all_code {
                c.code.push(page);
            }
        });
    }

    pub(crate) fn all_code(&mut self) {
        self.record(|c| {
            c.all_code = true;
            c.code.clear();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switched_on() -> Journal {
        let mut journal = Journal::default();
        journal.switch_on();
        journal
    }

    #[test]
    fn nothing_is_recorded_before_it_is_switched_on() {
        let mut journal = Journal::default();
        journal.all();
        journal.code(1);
        assert!(!journal.has_any());
        assert_eq!(journal.take(), Changes::default());
    }

    #[test]
    fn taking_leaves_nothing() {
        let mut journal = switched_on();
        journal.lower();
        journal.page(0x5123);
        journal.code(3);
        assert!(journal.has_any());
        let changes = journal.take();
        assert!(changes.lower && !changes.all);
        assert_eq!((changes.pages, changes.code), (vec![0x5123], vec![3]));
        assert!(!journal.has_any());
        assert_eq!(journal.take(), Changes::default());
    }

    #[test]
    fn it_is_bounded() {
        let mut journal = switched_on();
        for page in 0..=PAGES_MAX as u64 {
            assert!(!journal.changes.all);
            journal.page(page << 12);
        }
        assert!(journal.changes.all && journal.changes.pages.is_empty());
        for page in 0..3 * CODE_MAX {
            assert_eq!(journal.changes.all_code, page > CODE_MAX);
            journal.code(page);
        }
        assert!(journal.changes.code.is_empty());
    }
}
