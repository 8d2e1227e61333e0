//! Which pages must not be written behind an engine's back.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Told of writes to watched pages: a software engine that keeps decoded or translated code.
pub trait WriteObserver: Send + Sync {
    /// The page at `page` (an index: offset / 4096) was written. The bytes are there already.
    fn page_written(&self, page: usize);
}

/// One bit per page of a machine's memory: set while somebody keeps something derived from it.
pub struct PageWatch {
    bits: Box<[AtomicU64]>,
    observer: OnceLock<std::sync::Weak<dyn WriteObserver>>,
}

impl PageWatch {
    pub(crate) fn new(pages: usize) -> Self {
        let bits = std::iter::repeat_with(AtomicU64::default)
            .take(pages.div_ceil(64))
            .collect();
        Self {
            bits,
            observer: OnceLock::new(),
        }
    }

    /// Names who is told of writes; once, by the engine, before the machine runs.
    ///
    /// # Panics
    /// If there is an observer already.
    pub fn set_observer(&self, observer: std::sync::Weak<dyn WriteObserver>) {
        assert!(
            self.observer.set(observer).is_ok(),
            "one engine observes a machine's memory"
        );
    }

    /// Whether `page` is watched.
    #[inline]
    pub fn is_watched(&self, page: usize) -> bool {
        self.bits[page / 64].load(Ordering::Acquire) >> (page % 64) & 1 != 0
    }

    /// Watches `page`. Returns whether it was not watched before.
    pub fn watch(&self, page: usize) -> bool {
        let bit = 1 << (page % 64);
        self.bits[page / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Ends the watch over `page`.
    pub fn unwatch(&self, page: usize) {
        self.bits[page / 64].fetch_and(!(1 << (page % 64)), Ordering::AcqRel);
    }

    /// Tells the observer of a write to `page`, if it is watched.
    #[inline]
    pub fn written(&self, page: usize) {
        // A store may be delayed past a later load, even on TSO hosts. Who begins to watch now
        // must see the bytes, or be seen here.
        fence(Ordering::SeqCst);
        if self.is_watched(page)
            && let Some(observer) = self.observer.get().and_then(std::sync::Weak::upgrade)
        {
            observer.page_written(page);
        }
    }
}

impl std::fmt::Debug for PageWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageWatch")
            .field("pages", &(self.bits.len() * 64))
            .finish()
    }
}
