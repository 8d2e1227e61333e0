//! Regions, and the two ways in: by guest-physical address and by offset.
#![expect(unsafe_code, reason = "bounds every access to the mapping")]
// UNSAFETY: every access to the `Mapping` below is compared with the memory's length first; `Ram`
// and `GuestMemory` keep the mapping alive by reference count.

use crate::mapping::{Backing, Mapping, Pages};
use crate::{PAGE_SHIFT, PAGE_SIZE, PageWatch, Word, raw};
use rustix::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

/// What the guest may do with a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Read and write.
    Ram,
    /// Read; the guest's writes are lost.
    Rom,
}

/// A region that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionSpec {
    /// First guest-physical address, a multiple of 4096.
    pub gpa: u64,
    /// Length in bytes, a multiple of 4096, not 0.
    pub len: u64,
    /// RAM or ROM.
    pub kind: Kind,
}

/// A region of guest-physical space that is backed by memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: usize,
    /// Where it begins in the mapping.
    pub offset: usize,
    /// RAM or ROM.
    pub kind: Kind,
}

/// Why memory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The regions are empty, unaligned, overlap or wrap.
    #[error("memory regions must be whole pages, apart from each other and below 2^52")]
    Layout,
    /// The host refuses.
    #[error("the host gives no {bytes} bytes of address space for guest memory")]
    Host {
        /// How much was asked for.
        bytes: usize,
        /// Why not.
        source: rustix::io::Errno,
    },
    /// Huge pages are wanted, and the host has none to give.
    #[error(
        "the host has no huge pages for {bytes} bytes of guest memory: reserve {pages} of 2 MiB \
         (sysctl vm.nr_hugepages={pages}), or let shared memory have them (echo advise > \
         /sys/kernel/mm/transparent_hugepage/shmem_enabled), or leave out hugepages"
    )]
    NoHugePages {
        /// How much was asked for.
        bytes: usize,
        /// In huge pages.
        pages: usize,
    },
}

/// An access to guest-physical addresses that are not memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no guest memory at {gpa:#x}")]
pub struct OutOfRange {
    /// The first address of the access.
    pub gpa: u64,
}

/// The machine's memory by offset, for engines: one compare bounds an access.
#[derive(Debug, Clone)]
pub struct Ram {
    base: NonNull<u8>,
    len: usize,
    /// Keeps the mapping alive.
    _mapping: Arc<Mapping>,
}

// SAFETY: as for `Mapping`.
unsafe impl Send for Ram {}
// SAFETY: as for `Mapping`.
unsafe impl Sync for Ram {}

impl Ram {
    /// A pointer to `size` bytes at `offset`.
    #[inline(always)]
    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        // `len` is at least a page, so this can't wrap.
        assert!(offset <= self.len - size, "an offset beyond guest memory");
        // SAFETY: the assertion keeps it inside the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// The host address of offset 0, for code that bounds its accesses by itself.
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// The length of the mapping, in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a machine has memory.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Loads a word with one instruction. `offset` needs no alignment.
    ///
    /// # Panics
    /// Here and below: if the access would leave the mapping. Callers get offsets from
    /// [`GuestMemory::page`].
    #[inline(always)]
    pub fn load<T: Word>(&self, offset: usize) -> T {
        // SAFETY: `at` bounds the access.
        unsafe { T::load(self.at(offset, T::SIZE)) }
    }

    /// Stores a word with one instruction. `offset` needs no alignment.
    #[inline(always)]
    pub fn store<T: Word>(&self, offset: usize, value: T) {
        // SAFETY: `at` bounds the access.
        unsafe { T::store(self.at(offset, T::SIZE), value) }
    }

    /// Compare-exchange with a locked instruction: stores `new` if the word is `current`, and
    /// returns what it was. A `u128` must be 16-byte aligned.
    #[inline(always)]
    pub fn compare_exchange<T: Word>(&self, offset: usize, current: T, new: T) -> T {
        // SAFETY: `at` bounds the access.
        unsafe { T::compare_exchange(self.at(offset, T::SIZE), current, new) }
    }

    /// Exchanges a word with a locked instruction, and returns what it was.
    #[inline(always)]
    pub fn exchange<T: Word>(&self, offset: usize, new: T) -> T {
        // SAFETY: `at` bounds the access.
        unsafe { T::exchange(self.at(offset, T::SIZE), new) }
    }

    /// Copies bytes out.
    #[inline]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        // SAFETY: `at` bounds the access.
        unsafe { raw::copy_from(self.at(offset, bytes.len()), bytes) }
    }

    /// Copies bytes in.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: `at` bounds the access.
        unsafe { raw::copy_to(self.at(offset, bytes.len()), bytes) }
    }

    /// Copies `len` bytes inside guest memory, ascending byte by byte as `rep movsb` does, so that
    /// overlapping ranges repeat as the architecture says.
    #[inline]
    pub fn copy_within(&self, from: usize, to: usize, len: usize) {
        let (from, to) = (self.at(from, len), self.at(to, len));
        // SAFETY: `at` bounds both ranges; they are no Rust objects.
        unsafe {
            std::arch::asm!("rep movsb", inout("rcx") len => _, inout("rsi") from => _,
                inout("rdi") to => _, options(nostack, preserves_flags));
        }
    }

    /// Sets `len` bytes to `value`.
    #[inline]
    pub fn fill(&self, offset: usize, value: u8, len: usize) {
        let to = self.at(offset, len);
        // SAFETY: `at` bounds the range; it is no Rust object.
        unsafe {
            std::arch::asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _,
                in("al") value, options(nostack, preserves_flags));
        }
    }
}

/// A machine's memory by guest-physical address, for devices, loaders and page walks.
#[derive(Debug)]
pub struct GuestMemory {
    ram: Ram,
    mapping: Arc<Mapping>,
    /// Sorted by address.
    regions: Vec<Region>,
    /// The same, the longest first: nearly every access is to one of the first two.
    by_length: Vec<Region>,
    watch: PageWatch,
}

impl GuestMemory {
    /// Memory with these regions, all zero. Host memory is taken page by page as it is touched.
    ///
    /// # Errors
    /// If the regions can't be, or the host refuses.
    pub fn new(specs: &[RegionSpec]) -> Result<Arc<Self>, SetupError> {
        Self::with_pages(specs, Pages::Plain)
    }

    /// As [`GuestMemory::new`], made of such host pages.
    ///
    /// # Errors
    /// As [`GuestMemory::new`], and if huge pages are wanted where there are none.
    pub fn with_pages(specs: &[RegionSpec], pages: Pages) -> Result<Arc<Self>, SetupError> {
        let mut regions = Vec::with_capacity(specs.len());
        let mut total = 0usize;
        for spec in specs {
            let aligned = (spec.gpa | spec.len).is_multiple_of(PAGE_SIZE as u64);
            let fits = spec.gpa < 1 << 52 && spec.len < 1 << 46;
            if !aligned || !fits || spec.len == 0 {
                return Err(SetupError::Layout);
            }
            let len = spec.len as usize;
            regions.push(Region {
                gpa: spec.gpa,
                len,
                offset: total,
                kind: spec.kind,
            });
            total += len;
        }
        regions.sort_by_key(|r| r.gpa);
        let overlap = regions
            .windows(2)
            .any(|w| w[0].gpa + w[0].len as u64 > w[1].gpa);
        if regions.is_empty() || overlap {
            return Err(SetupError::Layout);
        }
        let mapping = Arc::new(Mapping::new(total, pages)?);
        let ram = Ram {
            base: mapping.base,
            len: total,
            _mapping: mapping.clone(),
        };
        let watch = PageWatch::new(total >> PAGE_SHIFT);
        let mut by_length = regions.clone();
        by_length.sort_by_key(|r| std::cmp::Reverse(r.len));
        Ok(Arc::new(Self {
            ram,
            mapping,
            regions,
            by_length,
            watch,
        }))
    }

    /// The memory by offset.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// The file behind the memory, for sharing it with another process.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.mapping.file.as_fd()
    }

    /// What host pages it is made of.
    pub fn backing(&self) -> Backing {
        self.mapping.backing
    }

    /// All regions, by ascending address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes of RAM.
    pub fn ram_bytes(&self) -> u64 {
        self.regions
            .iter()
            .filter(|r| r.kind == Kind::Ram)
            .map(|r| r.len as u64)
            .sum()
    }

    /// The watches over its pages, by page of the mapping (offset / 4096).
    #[inline]
    pub fn watch(&self) -> &PageWatch {
        &self.watch
    }

    /// Ranges of offsets in which something was ever written; outside of them all is zero.
    ///
    /// # Errors
    /// If the host can't tell.
    pub fn written_ranges(&self) -> rustix::io::Result<Vec<std::ops::Range<usize>>> {
        use rustix::fs::{SeekFrom, seek};
        let mut ranges = Vec::new();
        let mut at = 0;
        loop {
            let start = match seek(&self.mapping.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                // There is no data behind `at`.
                Err(rustix::io::Errno::NXIO) => return Ok(ranges),
                Err(error) => return Err(error),
            };
            at = seek(&self.mapping.file, SeekFrom::Hole(start))?;
            // Behind the memory there may be the rest of a huge page.
            let end = (at as usize).min(self.ram.len);
            if (start as usize) < end {
                ranges.push(start as usize..end);
            }
        }
    }

    /// The region that holds `gpa`.
    #[inline]
    pub fn region(&self, gpa: u64) -> Option<&Region> {
        // An address below a region wraps to far beyond it.
        self.by_length
            .iter()
            .find(|region| gpa.wrapping_sub(region.gpa) < region.len as u64)
    }

    /// Offset and kind of the page that holds `gpa`; `None` where there is no memory.
    #[inline]
    pub fn page(&self, gpa: u64) -> Option<(usize, Kind)> {
        let region = self.region(gpa)?;
        let within = (gpa - region.gpa) as usize & !(PAGE_SIZE - 1);
        Some((region.offset + within, region.kind))
    }

    /// Offset of `len` bytes that lie in one region.
    ///
    /// # Errors
    /// If they don't.
    #[inline]
    pub fn offset(&self, gpa: u64, len: usize) -> Result<usize, OutOfRange> {
        let region = self.region(gpa).ok_or(OutOfRange { gpa })?;
        let within = (gpa - region.gpa) as usize;
        if region.len - within < len {
            return Err(OutOfRange { gpa });
        }
        Ok(region.offset + within)
    }

    /// Copies bytes out, across regions that follow each other.
    ///
    /// # Errors
    /// If a byte is not memory; `bytes` may then be filled in part.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        let mut done = 0;
        while done < bytes.len() {
            let (offset, len, _) = self.piece(gpa, done, bytes.len())?;
            self.ram.read(offset, &mut bytes[done..done + len]);
            done += len;
        }
        Ok(())
    }

    /// Copies bytes in as a device does: observers of watched pages are told, and a write to ROM
    /// is an error.
    ///
    /// # Errors
    /// If a byte is not RAM; the bytes before it may be written.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.write_kinds(gpa, bytes, false)
    }

    /// Copies bytes in as a loader does, into ROM too.
    ///
    /// # Errors
    /// If a byte is not memory; the bytes before it may be written.
    pub fn load_image(&self, gpa: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.write_kinds(gpa, bytes, true)
    }

    fn write_kinds(&self, gpa: u64, bytes: &[u8], rom_too: bool) -> Result<(), OutOfRange> {
        let mut done = 0;
        while done < bytes.len() {
            let (offset, len, kind) = self.piece(gpa, done, bytes.len())?;
            if kind == Kind::Rom && !rom_too {
                return Err(OutOfRange {
                    gpa: gpa + done as u64,
                });
            }
            self.ram.write(offset, &bytes[done..done + len]);
            for page in offset >> PAGE_SHIFT..=(offset + len - 1) >> PAGE_SHIFT {
                self.watch.written(page);
            }
            done += len;
        }
        Ok(())
    }

    /// What lies in one region of the bytes from `gpa + done` on: offset, length, kind.
    fn piece(&self, gpa: u64, done: usize, len: usize) -> Result<(usize, usize, Kind), OutOfRange> {
        let at = gpa.checked_add(done as u64).ok_or(OutOfRange { gpa })?;
        let region = self.region(at).ok_or(OutOfRange { gpa: at })?;
        let within = (at - region.gpa) as usize;
        Ok((
            region.offset + within,
            (len - done).min(region.len - within),
            region.kind,
        ))
    }

    /// Loads a word that lies in one region.
    ///
    /// # Errors
    /// If it doesn't.
    #[inline]
    pub fn load<T: Word>(&self, gpa: u64) -> Result<T, OutOfRange> {
        Ok(self.ram.load(self.offset(gpa, T::SIZE)?))
    }

    /// Stores a word as a device does.
    ///
    /// # Errors
    /// If it does not lie in one region of RAM.
    pub fn store<T: Word>(&self, gpa: u64, value: T) -> Result<(), OutOfRange> {
        let (offset, len, kind) = self.piece(gpa, 0, T::SIZE)?;
        if len < T::SIZE || kind == Kind::Rom {
            return Err(OutOfRange { gpa });
        }
        self.ram.store(offset, value);
        self.watch.written(offset >> PAGE_SHIFT);
        let last = (offset + T::SIZE - 1) >> PAGE_SHIFT;
        if last != offset >> PAGE_SHIFT {
            self.watch.written(last);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn memory() -> Arc<GuestMemory> {
        GuestMemory::new(&[
            RegionSpec {
                gpa: 0,
                len: 0x4000,
                kind: Kind::Ram,
            },
            RegionSpec {
                gpa: 0x4000,
                len: 0x1000,
                kind: Kind::Rom,
            },
            RegionSpec {
                gpa: 0x1_0000_0000,
                len: 0x2000,
                kind: Kind::Ram,
            },
        ])
        .unwrap()
    }

    #[test]
    fn words_of_every_size_at_every_alignment() {
        let memory = memory();
        for gpa in 0x100..0x110 {
            memory.store(gpa, 0x1122_3344_5566_7788u64).unwrap();
            assert_eq!(memory.load::<u64>(gpa), Ok(0x1122_3344_5566_7788));
            assert_eq!(memory.load::<u32>(gpa), Ok(0x5566_7788));
            assert_eq!(memory.load::<u16>(gpa + 6), Ok(0x1122));
            assert_eq!(memory.load::<u8>(gpa + 7), Ok(0x11));
        }
        memory.store(0x203, u128::MAX - 5).unwrap();
        assert_eq!(memory.load::<u128>(0x203), Ok(u128::MAX - 5));
    }

    #[test]
    fn compare_exchange_exchanges_only_on_equality() {
        let memory = memory();
        let ram = memory.ram();
        ram.store(0x41, 7u32);
        assert_eq!(ram.compare_exchange(0x41, 8u32, 9), 7);
        assert_eq!(ram.compare_exchange(0x41, 7u32, 9), 7);
        assert_eq!(ram.load::<u32>(0x41), 9);
        assert_eq!(ram.exchange(0x41, 3u32), 9);
        let wide = 1u128 << 100 | 5;
        assert_eq!(ram.compare_exchange(0x80, 0u128, wide), 0);
        assert_eq!(ram.compare_exchange(0x80, 0u128, 1), wide);
        assert_eq!(ram.exchange(0x80, 2u128), wide);
        assert_eq!(ram.load::<u128>(0x80), 2);
    }

    #[test]
    fn regions_bound_every_access() {
        let memory = memory();
        assert!(memory.store(0x4000, 1u8).is_err(), "ROM");
        memory.load_image(0x4000, &[1]).unwrap();
        assert_eq!(memory.load::<u8>(0x4000), Ok(1));
        assert!(memory.load::<u16>(0x4fff).is_err(), "the hole after ROM");
        assert!(memory.write(0x3ffe, &[1, 2, 3]).is_err(), "RAM into ROM");
        assert!(memory.read(0x1_0000_1fff, &mut [0; 2]).is_err(), "the end");
        assert!(
            memory.read(u64::MAX, &mut [0; 2]).is_err(),
            "the end of the address space"
        );
        let mut across = [0; 4];
        memory.read(0x3ffe, &mut across).unwrap();
        assert_eq!(across, [1, 2, 1, 0]);
    }

    #[test]
    #[should_panic(expected = "beyond guest memory")]
    fn an_offset_outside_stops_the_process() {
        memory().ram().load::<u64>(0x7000 - 7);
    }

    #[test]
    fn layouts_that_cannot_be_are_refused() {
        let spec = |gpa, len| RegionSpec {
            gpa,
            len,
            kind: Kind::Ram,
        };
        for bad in [
            &[][..],
            &[spec(1, 0x1000)],
            &[spec(0, 0)],
            &[spec(0, 0x2000), spec(0x1000, 0x1000)],
            &[spec(u64::MAX - 0xfff, 0x1000)],
        ] {
            assert!(
                matches!(GuestMemory::new(bad), Err(SetupError::Layout)),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn what_was_written_is_in_memory_whatever_its_pages() {
        const BYTES: usize = 0x20_3000;
        let specs = [RegionSpec {
            gpa: 0,
            len: BYTES as u64,
            kind: Kind::Ram,
        }];
        for pages in [Pages::Plain, Pages::Huge, Pages::HugeInParts] {
            let memory = match GuestMemory::with_pages(&specs, pages) {
                Ok(memory) => memory,
                Err(SetupError::NoHugePages { .. }) => {
                    eprintln!("skipped: the host has no huge pages to give ({pages:?})");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let last = BYTES - 1;
            memory.ram().write(last, &[1]);
            let ranges = memory.written_ranges().unwrap();
            assert!(ranges.iter().any(|range| range.contains(&last)));
            assert!(ranges.iter().all(|range| range.end <= BYTES), "{ranges:?}");
        }
    }

    #[test]
    fn huge_memory_is_sparse() {
        let memory = GuestMemory::new(&[RegionSpec {
            gpa: 0,
            len: 512 << 30,
            kind: Kind::Ram,
        }])
        .unwrap();
        memory.store((512 << 30) - 8, 42u64).unwrap();
        assert_eq!(memory.load::<u64>((512 << 30) - 8), Ok(42));
        let end = 512 << 30;
        let written = memory.written_ranges().unwrap();
        assert_eq!(written.len(), 1);
        assert_eq!(written[0], end - 4096..end);
    }

    #[test]
    fn device_writes_to_watched_pages_are_told() {
        struct Count(AtomicUsize);
        impl crate::WriteObserver for Count {
            fn page_written(&self, page: usize) {
                self.0.fetch_add(page, Ordering::Relaxed);
            }
        }
        let memory = memory();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let observer: std::sync::Weak<Count> = Arc::downgrade(&count);
        memory.watch().set_observer(observer);
        assert!(memory.watch().watch(2));
        assert!(!memory.watch().watch(2));
        memory.write(0x1000, &[0; 0x3000]).unwrap();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        memory.watch().unwatch(2);
        memory.store(0x2000, 1u8).unwrap();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }
}
