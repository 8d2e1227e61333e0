//! The one mapping of a machine's memory, and what host pages it is made of.
#![expect(unsafe_code, reason = "owns the mapping")]
// UNSAFETY: one mapping, made in `Mapping::new` and unmapped in `Drop`. What is inside is accessed
// by its owners, `Ram` and `GuestMemory`, which keep it alive by reference count.

use crate::SetupError;
use rustix::fd::OwnedFd;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::fs;
use std::ptr::NonNull;

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Where the kernel says whether shared memory may be made of huge pages: for those of 2 MiB, and
/// for all sizes that inherit it (Linux, Documentation/admin-guide/mm/transhuge.rst).
const SHARED_MEMORY: [&str; 2] = [
    "/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled",
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
];

/// What host pages are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pages {
    /// As they come.
    #[default]
    Plain,
    /// Huge ones: those that the host has reserved, or else transparent ones.
    Huge,
    /// Huge ones: transparent ones, which can be mapped in parts, or else reserved ones.
    HugeInParts,
}

/// What host pages there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// As they come.
    Plain,
    /// Pages of 2 MiB that the host has reserved (hugetlb). All of the memory has its pages from
    /// the start. The file can only be mapped by whole ones.
    Reserved,
    /// The host makes pages of 2 MiB where it can (transparent huge pages).
    Transparent,
}

#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) base: NonNull<u8>,
    /// Whole pages of the backing.
    len: usize,
    pub(crate) file: OwnedFd,
    pub(crate) backing: Backing,
}

// SAFETY: the mapping is plain shared memory, accessed only through `raw`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// At least `bytes` of zeros.
    pub(crate) fn new(bytes: usize, pages: Pages) -> Result<Self, SetupError> {
        let order: &[Backing] = match pages {
            Pages::Plain => &[Backing::Plain],
            Pages::Huge => &[Backing::Reserved, Backing::Transparent],
            Pages::HugeInParts => &[Backing::Transparent, Backing::Reserved],
        };
        for backing in order {
            if *backing == Backing::Transparent && !transparent_pages(SHARED_MEMORY.map(setting)) {
                continue;
            }
            match (Self::backed(bytes, *backing), backing) {
                (Ok(mapping), _) => return Ok(mapping),
                // No pages, or a kernel without.
                (Err(_), Backing::Reserved) => {}
                (Err(source), _) => return Err(SetupError::Host { bytes, source }),
            }
        }
        Err(SetupError::NoHugePages {
            bytes,
            pages: bytes.div_ceil(HUGE_PAGE),
        })
    }

    fn backed(bytes: usize, backing: Backing) -> Result<Self, Errno> {
        let (len, file_flags, map_flags) = match backing {
            Backing::Reserved => {
                let huge = MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
                // Mapping reserves, so that no access finds the host without a page.
                let len = bytes.next_multiple_of(HUGE_PAGE);
                (len, huge, MapFlags::empty())
            }
            Backing::Plain | Backing::Transparent => {
                (bytes, MemfdFlags::empty(), MapFlags::NORESERVE)
            }
        };
        let file = rustix::fs::memfd_create("guest-memory", MemfdFlags::CLOEXEC | file_flags)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        let flags = MapFlags::SHARED | map_flags;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, &file, 0)? };
        let mapping = Self {
            base: NonNull::new(base.cast()).expect("not null"),
            len,
            file,
            backing,
        };
        if backing == Backing::Transparent {
            // SAFETY: our mapping; the advice changes no content.
            unsafe { rustix::mm::madvise(base, len, Advice::LinuxHugepage)? };
        }
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody holds a reference to it any more. It can only
        // fail for a range that is not a mapping.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The word in brackets of a setting such as `always [advise] never`.
fn setting(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (_, rest) = text.split_once('[')?;
    let (word, _) = rest.split_once(']')?;
    Some(word.to_owned())
}

/// Whether shared memory gets huge pages where it is advised to, by the settings for pages of
/// 2 MiB and for those that inherit.
fn transparent_pages(settings: [Option<String>; 2]) -> bool {
    let [own, inherited] = settings;
    let word = match own.as_deref() {
        None | Some("inherit") => inherited.as_deref(),
        own => own,
    };
    matches!(word, Some("always" | "within_size" | "advise" | "force"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transparent_pages_follow_the_hosts_settings() {
        let pages = |own: Option<&str>, inherited: Option<&str>| {
            transparent_pages([own, inherited].map(|word| word.map(str::to_owned)))
        };
        for (own, inherited, there) in [
            (None, None, false),
            (None, Some("never"), false),
            (None, Some("deny"), false),
            (None, Some("advise"), true),
            (None, Some("always"), true),
            (Some("inherit"), Some("within_size"), true),
            (Some("inherit"), Some("never"), false),
            (Some("advise"), Some("never"), true),
            (Some("never"), Some("always"), false),
        ] {
            assert_eq!(pages(own, inherited), there, "{own:?}, {inherited:?}");
        }
    }

    /// A line of this process's `/proc/self/smaps` for the mapping, in KiB.
    fn smaps(mapping: &Mapping, name: &str) -> u64 {
        let text = fs::read_to_string("/proc/self/smaps").unwrap();
        let first = format!("{:x}-", mapping.base.as_ptr() as usize);
        let mut lines = text.lines().skip_while(|line| !line.starts_with(&first));
        let line = lines.find(|line| line.starts_with(name)).unwrap();
        let number = line.split_whitespace().nth(1).unwrap();
        number.parse().unwrap()
    }

    /// Writes to the first byte of each page of 4 KiB, which must all be there.
    fn touch(mapping: &Mapping) {
        for offset in (0..mapping.len).step_by(4096) {
            // SAFETY: inside the mapping.
            unsafe { mapping.base.as_ptr().add(offset).write_volatile(1) };
        }
    }

    #[test]
    fn plain_memory_is_taken_as_it_is_touched() {
        let mapping = Mapping::new(64 << 20, Pages::Plain).unwrap();
        assert_eq!((mapping.backing, mapping.len), (Backing::Plain, 64 << 20));
        assert_eq!(smaps(&mapping, "Rss:"), 0);
    }

    #[test]
    fn huge_pages_are_used_or_missed() {
        const BYTES: usize = (8 << 20) + 4096;
        for pages in [Pages::Huge, Pages::HugeInParts] {
            match Mapping::new(BYTES, pages) {
                Ok(mapping) => {
                    touch(&mapping);
                    let huge = match mapping.backing {
                        Backing::Reserved => {
                            assert_eq!(mapping.len, 10 << 20);
                            assert_eq!(smaps(&mapping, "KernelPageSize:"), 2048);
                            smaps(&mapping, "Shared_Hugetlb:") + smaps(&mapping, "Private_Hugetlb:")
                        }
                        Backing::Transparent => smaps(&mapping, "ShmemPmdMapped:"),
                        Backing::Plain => 0,
                    };
                    assert!(
                        huge >= 2048,
                        "{pages:?}: {huge} KiB of {:?}",
                        mapping.backing
                    );
                }
                Err(SetupError::NoHugePages { bytes, pages: 5 }) => {
                    assert_eq!(bytes, BYTES);
                    assert!(!transparent_pages(SHARED_MEMORY.map(setting)));
                    eprintln!("skipped: the host has no huge pages to give ({pages:?})");
                }
                Err(other) => panic!("{pages:?}: {other}"),
            }
        }
    }

    #[test]
    fn more_than_the_host_has_is_refused_or_transparent() {
        // 64 TiB, more than any host reserves.
        match Mapping::new(1 << 46, Pages::Huge) {
            Ok(mapping) => assert_eq!(mapping.backing, Backing::Transparent),
            Err(error) => assert!(error.to_string().contains("guest memory"), "{error}"),
        }
    }
}
