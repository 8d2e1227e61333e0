//! ELF kernels with a PVH entry: Linux's `vmlinux`, Xen, the BSDs, unikernels.
//!
//! Sources: System V gABI, chapter 5 (program headers, notes); Xen, docs/misc/pvh.pandoc and
//! public/arch-x86/hvm/start_info.h (4.17) for the entry, the register state and the start
//! information.

use crate::entry::{self, Mode};
use crate::layout::boot_data::{COMMAND_LINE, START_INFO};
use crate::layout::{HIGH_MEMORY, LOW_RAM_END_MAX, RSDP};
use crate::le::Fields;
use crate::{BootPlan, Entry, Error, place};
use memory::{GuestMemory, PAGE_SIZE};
use object::LittleEndian;
use object::elf::{FileHeader32, FileHeader64, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
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
const NOTES_LEN_MAX: usize = 1 << 16;

/// Owner and type of the note that holds the entry (public/elfnote.h).
const XEN: &[u8] = b"Xen";
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// The longest command line: what is a limit to Linux, the usual guest, as a bzImage.
const COMMAND_LINE_LEN_MAX: usize = 2047;

/// What a loader needs of an ELF kernel.
#[derive(Debug, PartialEq, Eq)]
struct Kernel<'a> {
    /// The PVH entry.
    entry: u64,
    /// What to load, by ascending address.
    segments: Vec<Segment<'a>>,
}

/// A part of guest memory: bytes of the file, then zeros.
#[derive(Debug, PartialEq, Eq)]
struct Segment<'a> {
    memory: Range<u64>,
    bytes: &'a [u8],
}

/// Loads the plan's kernel and what it is given. Returns the state in which it begins.
pub(crate) fn load(memory: &GuestMemory, plan: &BootPlan) -> Result<VcpuState, Error> {
    if plan.entry == Entry::Bits64 {
        return Err(ElfError::No64BitEntry.into());
    }
    let kernel = parse(plan.kernel)?;
    let end = kernel.segments.last().map_or(0, |s| s.memory.end);
    let ram_end = plan.board.layout.low_ram_end();
    if end > ram_end {
        return Err(Error::KernelDoesNotFit { end, ram_end });
    }
    place::command_line(memory, plan.command_line, COMMAND_LINE_LEN_MAX)?;
    let initrd = place::initrd(memory, plan.initrd, end..ram_end)?;
    for segment in &kernel.segments {
        let start = segment.memory.start;
        memory.write(start, segment.bytes)?;
        place::zero(
            memory,
            start + segment.bytes.len() as u64..segment.memory.end,
        )?;
    }
    memory.write(START_INFO, &start_info(plan, initrd).0)?;
    entry::state(memory, Mode::Protected, kernel.entry, Gpr::Rbx, START_INFO)
}

fn parse(file: &[u8]) -> Result<Kernel<'_>, ElfError> {
    // Byte 4 is the class; `parse` checks the rest of the header.
    match file.get(4) {
        Some(2) => parse_class::<FileHeader64<LittleEndian>>(file),
        _ => parse_class::<FileHeader32<LittleEndian>>(file),
    }
}

fn parse_class<H: FileHeader<Endian = LittleEndian>>(file: &[u8]) -> Result<Kernel<'_>, ElfError> {
    let header = H::parse(file)?;
    let endian = header.endian()?;
    let programs = header.program_headers(endian, file)?;
    if programs.len() > PROGRAM_HEADERS_MAX {
        return Err(ElfError::ProgramHeaders(programs.len()));
    }
    let mut entry = None;
    let mut segments = Vec::new();
    for program in programs {
        let bytes = || program.data(endian, file).map_err(|()| ElfError::Truncated);
        match program.p_type(endian) {
            PT_LOAD if program.p_memsz(endian).into() != 0 => {
                let (start, len) = (
                    program.p_paddr(endian).into(),
                    program.p_memsz(endian).into(),
                );
                segments.push(segment(start, len, bytes()?)?);
            }
            PT_NOTE if entry.is_none() => {
                entry = pvh_entry::<H>(program.p_align(endian), bytes()?)?;
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

fn segment(start: u64, len: u64, bytes: &[u8]) -> Result<Segment<'_>, ElfError> {
    let end = start
        .checked_add(len)
        .filter(|end| start >= HIGH_MEMORY && *end <= LOW_RAM_END_MAX)
        .ok_or(ElfError::Segment(start))?;
    // The gABI allows no more bytes in the file than in memory; what is more would spill over.
    let bytes = &bytes[..bytes.len().min(len as usize)];
    Ok(Segment {
        memory: start..end,
        bytes,
    })
}

/// The PVH entry, if these notes have it.
fn pvh_entry<H: FileHeader<Endian = LittleEndian>>(
    align: H::Word,
    notes: &[u8],
) -> Result<Option<u64>, ElfError> {
    let notes = &notes[..notes.len().min(NOTES_LEN_MAX)];
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
