//! ELF kernels with a PVH entry: Linux's `vmlinux`, Xen, the BSDs, unikernels.
//!
//! Sources: System V gABI, chapter 5 (program headers, notes); Xen, docs/misc/pvh.pandoc and
//! public/arch-x86/hvm/start_info.h (4.17) for the entry, the register state and the start
//! information.

use crate::entry::{self, Mode};
use crate::layout::boot_data::{COMMAND_LINE, START_INFO};
use crate::layout::{HIGH_MEMORY, LOW_RAM_END_MAX, RSDP};
use crate::le::Fields;
use crate::{BootPlan, Content, Entry, Error, content, place};
use memory::{GuestMemory, PAGE_SIZE};
use object::LittleEndian;
use object::elf::{FileHeader32, FileHeader64, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
use object::{ReadCache, ReadCacheOps, ReadRef};
use std::io;
use std::ops::Range;
use x86::{Gpr, VcpuState};

/// An ELF kernel that can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Headers or segments do not make sense.
    #[error("the kernel file is a damaged ELF file: fetch it anew")]
    Malformed(#[from] object::read::Error),
    /// A segment lies beyond the end of the file.
    #[error("the kernel file is truncated: a segment lies beyond its end; fetch it anew")]
    Truncated,
    /// More program headers than any kernel has.
    #[error("the kernel file has {0} program headers, more than {max}: fetch it anew",
        max = PROGRAM_HEADERS_MAX)]
    ProgramHeaders(usize),
    /// No PVH entry.
    #[error(
        "the ELF kernel has no PVH entry (Xen note PHYS32_ENTRY): give the bzImage (vmlinuz), \
         or build it with CONFIG_PVH"
    )]
    NoPvhEntry,
    /// The entry is in no segment.
    #[error("the ELF kernel's PVH entry {0:#x} is in none of its segments: fetch it anew")]
    Entry(u64),
    /// A segment where the machine's own data are, or no low RAM can be.
    #[error("the ELF kernel has a segment at {0:#x}: link it between 1 MiB and 3 GiB")]
    Segment(u64),
    /// Two segments share memory.
    #[error("the ELF kernel has segments that overlap at {0:#x}: fetch it anew")]
    Overlap(u64),
    /// The 64-bit entry is wanted.
    #[error("an ELF kernel is entered in 32-bit mode: do not ask for the 64-bit entry")]
    No64BitEntry,
}

/// The most program headers, and the most bytes in a note segment, that are looked at: kernels
/// have a dozen and some hundred.
const PROGRAM_HEADERS_MAX: usize = 128;
const NOTES_LEN_MAX: u64 = 1 << 16;

/// Owner and type of the note that holds the entry (public/elfnote.h).
const XEN: &[u8] = b"Xen";
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// The longest command line: what is a limit to Linux, the usual guest, as a bzImage.
const COMMAND_LINE_LEN_MAX: usize = 2047;

/// What a loader needs of an ELF kernel.
#[derive(Debug, PartialEq, Eq)]
struct Kernel {
    /// The PVH entry.
    entry: u64,
    /// What to load, by ascending address.
    segments: Vec<Segment>,
}

/// A part of guest memory: bytes of the file, then zeros.
#[derive(Debug, PartialEq, Eq)]
struct Segment {
    memory: Range<u64>,
    /// Where the bytes are in the file, and how many there are.
    at: u64,
    bytes: u64,
}

/// Loads the plan's kernel and what it is given. Returns the state in which it begins.
pub(crate) fn load(memory: &GuestMemory, plan: &BootPlan) -> Result<VcpuState, Error> {
    if plan.entry == Entry::Bits64 {
        return Err(ElfError::No64BitEntry.into());
    }
    let kernel = read(plan.kernel)?;
    let end = kernel.segments.last().map_or(0, |s| s.memory.end);
    let ram_end = plan.board.layout.low_ram_end();
    if end > ram_end {
        return Err(Error::KernelDoesNotFit { end, ram_end });
    }
    place::command_line(memory, plan.command_line, COMMAND_LINE_LEN_MAX)?;
    let initrd = place::initrd(memory, plan.initrd, end..ram_end)?;
    for segment in &kernel.segments {
        let start = segment.memory.start;
        content::copy(plan.kernel, segment.at, memory, start, segment.bytes)
            .map_err(Error::in_kernel)?;
        place::zero(memory, start + segment.bytes..segment.memory.end)?;
    }
    memory.write(START_INFO, &start_info(plan, initrd).0)?;
    entry::state(memory, Mode::Protected, kernel.entry, Gpr::Rbx, START_INFO)
}

/// A file as `object` reads it. It says only that reading failed; why is kept here.
struct Reader<'a> {
    content: &'a dyn Content,
    at: u64,
    failure: Option<io::Error>,
}

impl ReadCacheOps for Reader<'_> {
    fn len(&mut self) -> Result<u64, ()> {
        Ok(self.content.size())
    }

    fn seek(&mut self, at: u64) -> Result<u64, ()> {
        self.at = at;
        Ok(at)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, ()> {
        self.read_exact(bytes).map(|()| bytes.len())
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<(), ()> {
        let result = self.content.read(self.at, bytes);
        result.map_err(|error| self.failure = Some(error))
    }
}

fn read(file: &dyn Content) -> Result<Kernel, Error> {
    let cache = ReadCache::new(Reader {
        content: file,
        at: 0,
        failure: None,
    });
    let kernel = parse(&cache);
    match cache.into_inner().failure {
        Some(error) => Err(Error::Kernel(error)),
        None => Ok(kernel?),
    }
}

fn parse<'a>(file: impl ReadRef<'a>) -> Result<Kernel, ElfError> {
    // Byte 4 is the class; `parse` checks the rest of the header.
    match file.read_bytes_at(4, 1) {
        Ok([2]) => parse_class::<FileHeader64<LittleEndian>>(file),
        _ => parse_class::<FileHeader32<LittleEndian>>(file),
    }
}

fn parse_class<'a, H>(file: impl ReadRef<'a>) -> Result<Kernel, ElfError>
where
    H: FileHeader<Endian = LittleEndian>,
{
    let header = H::parse(file)?;
    let endian = header.endian()?;
    let count = header.phnum(endian, file)? as usize;
    if count > PROGRAM_HEADERS_MAX {
        return Err(ElfError::ProgramHeaders(count));
    }
    let file_len = file.len().map_err(|()| ElfError::Truncated)?;
    let mut entry = None;
    let mut segments = Vec::new();
    for program in header.program_headers(endian, file)? {
        let (at, len) = program.file_range(endian);
        let is_there = at.checked_add(len).is_some_and(|end| end <= file_len);
        match program.p_type(endian) {
            PT_LOAD if program.p_memsz(endian).into() != 0 => {
                if !is_there {
                    return Err(ElfError::Truncated);
                }
                let memory = memory(
                    program.p_paddr(endian).into(),
                    program.p_memsz(endian).into(),
                )?;
                // The gABI allows no more bytes in the file than in memory; what is more would
                // spill over.
                let bytes = len.min(memory.end - memory.start);
                segments.push(Segment { memory, at, bytes });
            }
            PT_NOTE if entry.is_none() => {
                let notes = file
                    .read_bytes_at(at, len.min(NOTES_LEN_MAX))
                    .ok()
                    .filter(|_| is_there)
                    .ok_or(ElfError::Truncated)?;
                entry = pvh_entry::<H>(program.p_align(endian), notes)?;
            }
            _ => {}
        }
    }
    let entry = entry.ok_or(ElfError::NoPvhEntry)?;
    segments.sort_by_key(|s| s.memory.start);
    if let Some(pair) = segments
        .windows(2)
        .find(|w| w[0].memory.end > w[1].memory.start)
    {
        return Err(ElfError::Overlap(pair[1].memory.start));
    }
    if !segments.iter().any(|s| s.memory.contains(&entry)) {
        return Err(ElfError::Entry(entry));
    }
    Ok(Kernel { entry, segments })
}

/// Where a segment of `len` bytes goes.
fn memory(start: u64, len: u64) -> Result<Range<u64>, ElfError> {
    let end = start
        .checked_add(len)
        .filter(|end| start >= HIGH_MEMORY && *end <= LOW_RAM_END_MAX)
        .ok_or(ElfError::Segment(start))?;
    Ok(start..end)
}

/// The PVH entry, if these notes have it.
fn pvh_entry<H: FileHeader<Endian = LittleEndian>>(
    align: H::Word,
    notes: &[u8],
) -> Result<Option<u64>, ElfError> {
    let mut notes = NoteIterator::<H>::new(LittleEndian, align, notes)?;
    while let Some(note) = notes.next()? {
        if note.name() == XEN && note.n_type(LittleEndian).0 == XEN_ELFNOTE_PHYS32_ENTRY {
            return Ok(match note.desc() {
                &[a, b, c, d] | &[a, b, c, d, 0, 0, 0, 0] => {
                    Some(u32::from_le_bytes([a, b, c, d]).into())
                }
                _ => None,
            });
        }
    }
    Ok(None)
}

/// `hvm_start_info`, version 1, with the module list and the memory map behind it in one page.
fn start_info(plan: &BootPlan, initrd: Option<Range<u64>>) -> Fields<PAGE_SIZE> {
    const MAGIC: u32 = 0x336e_c578;
    const VERSION: u32 = 1;
    /// `hvm_modlist_entry`, at this offset in the page: address, size, command line, reserved.
    const MODULE: usize = 0x40;
    /// `hvm_memmap_table_entry`s: address, size, type, reserved.
    const MAP: usize = 0x80;
    const MAP_ENTRY_LEN: usize = 24;

    let mut page = Fields::new();
    let map = plan.board.layout.e820();
    page.u32(0, MAGIC)
        .u32(4, VERSION)
        .u64(24, COMMAND_LINE.start)
        .u64(32, RSDP)
        .u64(40, START_INFO + MAP as u64)
        .u32(48, map.len() as u32);
    if let Some(initrd) = initrd {
        page.u32(12, 1)
            .u64(16, START_INFO + MODULE as u64)
            .u64(MODULE, initrd.start)
            .u64(MODULE + 8, initrd.end - initrd.start);
    }
    for (n, entry) in map.iter().enumerate() {
        let at = MAP + n * MAP_ENTRY_LEN;
        page.u64(at, entry.start)
            .u64(at + 8, entry.len)
            .u32(at + 16, entry.kind as u32);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Segment as Part, elf32, elf64, machine, plan};
    use crate::{le, load};
    use x86::Cr0;

    const BASE: u64 = 0x100_0000;

    fn part(address: u64, bytes: &'static [u8], memory: u64) -> Part {
        Part {
            address,
            bytes,
            memory,
        }
    }

    fn two_parts() -> [Part; 2] {
        [part(BASE, b"code", 4), part(BASE + 0x1000, b"data", 0x3000)]
    }

    #[test]
    fn both_classes_are_loaded_and_entered_in_protected_mode() {
        let files = [
            elf64(BASE + 1, &two_parts()),
            elf32(BASE as u32 + 1, &two_parts()),
        ];
        for file in files {
            let (memory, board) = machine(64).unwrap();
            memory.write(BASE + 0x1000, &[0xff; 0x4000]).unwrap();
            let state = load(&memory, &plan(board, &file)).unwrap();
            assert_eq!(
                (state.rip, state.gpr[Gpr::Rbx as usize]),
                (BASE + 1, START_INFO)
            );
            assert!(!state.cr0.contains(Cr0::PG));
            let mut segment = vec![0; 0x3001];
            memory.read(BASE + 0x1000, &mut segment).unwrap();
            assert_eq!(&segment[..4], b"data");
            assert!(segment[4..0x3000].iter().all(|b| *b == 0), "cleared");
            assert_eq!(segment[0x3000], 0xff, "and no more");
        }
    }

    #[test]
    fn start_info_says_what_was_loaded() {
        let (memory, board) = machine(4096).unwrap();
        let file = elf64(BASE, &two_parts());
        let plan = BootPlan {
            initrd: &[&[5u8; 100]],
            command_line: "root=/dev/vda",
            ..plan(board, &file)
        };
        load(&memory, &plan).unwrap();
        let mut page = [0; PAGE_SIZE];
        memory.read(START_INFO, &mut page).unwrap();
        let inside = |at: usize| (le::u64(&page, at).unwrap() - START_INFO) as usize;
        assert_eq!(
            (le::u32(&page, 0), le::u32(&page, 4)),
            (Some(0x336e_c578), Some(1))
        );
        assert_eq!(le::u64(&page, 32), Some(RSDP));
        let mut line = [0; 14];
        memory.read(le::u64(&page, 24).unwrap(), &mut line).unwrap();
        assert_eq!(&line, b"root=/dev/vda\0");

        assert_eq!(le::u32(&page, 12), Some(1));
        let module = inside(16);
        let initrd = le::u64(&page, module).unwrap();
        assert_eq!((initrd % 4096, le::u64(&page, module + 8)), (0, Some(100)));
        assert_eq!(memory.load::<u8>(initrd + 99), Ok(5));

        let map = inside(40);
        let count = le::u32(&page, 48).unwrap() as usize;
        let entries: Vec<_> = (0..count).map(|n| map + n * 24).collect();
        let ram: u64 = entries
            .iter()
            .filter(|at| le::u32(&page, **at + 16) == Some(1))
            .map(|at| le::u64(&page, at + 8).unwrap())
            .sum();
        assert_eq!(ram, memory.ram_bytes() - 0x1000, "all RAM but the EBDA");
    }

    #[test]
    fn segments_must_lie_in_low_ram_apart_from_each_other() {
        let (memory, board) = machine(64).unwrap();
        let refused = |file: &[u8]| load(&memory, &plan(board, &file)).unwrap_err();
        for bad in [0, 0xf_f000, 0xbfff_fffd, u64::MAX - 1] {
            let file = elf64(bad, &[part(bad, b"code", 4)]);
            let error = refused(&file);
            assert!(
                matches!(error, Error::Elf(ElfError::Segment(at)) if at == bad),
                "{error}"
            );
        }
        let overlapping = elf64(BASE, &[part(BASE, b"code", 5), part(BASE + 4, b"data", 4)]);
        let error = refused(&overlapping);
        assert!(matches!(error, Error::Elf(ElfError::Overlap(at)) if at == BASE + 4));
        let beyond = elf64(BASE, &[part(BASE, b"code", 64 << 20)]);
        assert!(matches!(refused(&beyond), Error::KernelDoesNotFit { .. }));
    }

    #[test]
    fn the_entry_must_be_there_and_inside() {
        let (memory, board) = machine(64).unwrap();
        let refused = |file: &[u8]| load(&memory, &plan(board, &file)).unwrap_err();
        let outside = elf64(BASE + 4, &[part(BASE, b"code", 4)]);
        assert!(matches!(refused(&outside), Error::Elf(ElfError::Entry(_))));
        // An address beyond 32 bits is no PVH entry.
        let wide = elf64(1 << 32 | BASE, &two_parts());
        assert!(matches!(refused(&wide), Error::Elf(ElfError::NoPvhEntry)));
        let mut nameless = elf64(BASE, &two_parts());
        let name = nameless.windows(4).position(|w| w == b"Xen\0").unwrap();
        nameless[name] = b'Y';
        assert!(matches!(
            refused(&nameless),
            Error::Elf(ElfError::NoPvhEntry)
        ));
    }

    #[test]
    fn damaged_files_and_the_wrong_entry_are_named() {
        let (memory, board) = machine(64).unwrap();
        let file = elf64(BASE, &two_parts());
        let short = &file[..file.len() - 1];
        let error = load(&memory, &plan(board, &short)).unwrap_err();
        assert!(matches!(error, Error::Elf(ElfError::Truncated)), "{error}");
        let error = load(&memory, &plan(board, &&file[..60])).unwrap_err();
        assert!(
            matches!(error, Error::Elf(ElfError::Malformed(_))),
            "{error}"
        );
        let mut many = file.clone();
        many[56..58].copy_from_slice(&200u16.to_le_bytes());
        many.resize(64 + 200 * 56, 0);
        let error = load(&memory, &plan(board, &many)).unwrap_err();
        assert!(matches!(error, Error::Elf(ElfError::ProgramHeaders(200))));
        let plan = BootPlan {
            entry: Entry::Bits64,
            ..plan(board, &file)
        };
        let error = load(&memory, &plan).unwrap_err();
        assert!(matches!(error, Error::Elf(ElfError::No64BitEntry)));
    }
}
