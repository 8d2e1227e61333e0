//! Kernels that follow Linux's x86 boot protocol, versions 2.02 to 2.15.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst and zero-page.rst (6.12). The protected-mode
//! part of the file is loaded and entered at its 64-bit or its 32-bit entry; the real-mode part,
//! which talks to a BIOS, is not run: the loader fills in the boot parameters that it would have.

use crate::entry::{self, Mode};
use crate::layout::boot_data::{COMMAND_LINE, SETUP_DATA, ZERO_PAGE};
use crate::layout::{HIGH_MEMORY, LOW_RAM_END_MAX, RSDP};
use crate::le::{self, Fields};
use crate::{BootPlan, Entry, Error, place};
use memory::{GuestMemory, PAGE_SIZE};
use std::ops::Range;
use x86::{Gpr, VcpuState};

/// Offsets in the file; those of the setup header are the same in the boot parameters.
mod offset {
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const SYSSIZE: usize = 0x1f4;
    /// Second byte of the jump at the real-mode entry: the header's length after 0x202.
    pub(super) const JUMP: usize = 0x201;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const RELOCATABLE_KERNEL: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const SETUP_DATA: usize = 0x250;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
    /// The setup header ends here at the latest: other boot parameters follow.
    pub(super) const HEADER_END_MAX: usize = 0x290;

    // Boot parameters only.
    pub(super) const EXT_MEM_K: usize = 0x002;
    pub(super) const ACPI_RSDP_ADDR: usize = 0x070;
    pub(super) const ALT_MEM_K: usize = 0x1e0;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

/// `loadflags`: the protected-mode part goes to 1 MiB, not to 64 KiB.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// Offset of the 64-bit entry in the protected-mode part.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader`: one without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `setup_data` type: bytes for the kernel's random number generator.
const SETUP_RNG_SEED: u32 = 9;
/// Length of the head of a `setup_data` item: next, type, length.
const SETUP_DATA_HEAD: usize = 16;

/// A bzImage that can't be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BzImageError {
    /// The file ends inside of its header or its code.
    #[error("the kernel file is truncated: {have} of {need} bytes are there; fetch it anew")]
    Truncated {
        /// Length that the header tells.
        need: u64,
        /// Length of the file.
        have: u64,
    },
    /// A boot protocol from before 2.02.
    #[error(
        "the kernel speaks boot protocol {}.{:02}, 2.02 is needed: give one of Linux 2.4 or newer",
        .0 >> 8, .0 & 0xff
    )]
    OldProtocol(u16),
    /// A zImage, which must be started in real mode.
    #[error("the kernel is a zImage, which needs a BIOS: give a bzImage")]
    ZImage,
    /// The 64-bit entry is wanted and not there.
    #[error("the kernel has no 64-bit entry: use its 32-bit entry")]
    No64BitEntry,
    /// It wants to lie where kernels can't.
    #[error("the kernel's header asks for address {0:#x}, which no kernel can have: fetch it anew")]
    Address(u64),
    /// The alignment is no power of two.
    #[error("the kernel's header asks for an alignment of {0:#x}: fetch it anew")]
    Alignment(u32),
}

/// A bzImage, its header checked.
#[derive(Debug, Clone, Copy)]
pub struct BzImage<'a> {
    file: &'a [u8],
    /// Boot protocol, major version in the high byte.
    version: u16,
    /// End of the setup header in the file.
    header_end: usize,
    /// The protected-mode part.
    code: &'a [u8],
    /// Where the protected-mode part goes.
    load_address: u64,
    /// Where the memory ends that the kernel takes before it has read its memory map.
    end: u64,
    has_64_bit_entry: bool,
    /// The last address that a byte of the initrd may have.
    initrd_last: u32,
    /// The longest command line, in bytes.
    command_line_max: u32,
}

impl<'a> BzImage<'a> {
    /// Checks the header of a file that [`detect`](crate::detect) took for a bzImage.
    ///
    /// # Errors
    /// If the header is of an old version, or makes no sense.
    pub fn parse(file: &'a [u8]) -> Result<Self, BzImageError> {
        let header = Header::new(file)?;
        let version = header.u16(offset::VERSION);
        if version < 0x202 {
            return Err(BzImageError::OldProtocol(version));
        }
        if header.u8(offset::LOADFLAGS) & LOADED_HIGH == 0 {
            return Err(BzImageError::ZImage);
        }
        let header_end = 0x202 + usize::from(header.u8(offset::JUMP));
        let code = header.code(file, version)?;
        let load_address = header.load_address(version)?;
        let end = header.end(version, load_address + code.len() as u64)?;
        let from = |since, at| (version >= since).then(|| header.u32(at));
        let xloadflags = header.u16(offset::XLOADFLAGS);
        Ok(Self {
            file,
            version,
            header_end: header_end.clamp(offset::JUMP, offset::HEADER_END_MAX),
            code,
            load_address,
            end,
            has_64_bit_entry: version >= 0x20c
                && xloadflags & XLF_KERNEL_64 != 0
                && code.len() as u64 > ENTRY_64,
            initrd_last: from(0x203, offset::INITRD_ADDR_MAX).unwrap_or(0x37ff_ffff),
            command_line_max: from(0x206, offset::CMDLINE_SIZE).unwrap_or(255),
        })
    }

    /// Boot protocol version, major number in the high byte.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Whether it can be entered in 64-bit mode.
    pub fn has_64_bit_entry(&self) -> bool {
        self.has_64_bit_entry
    }

    fn mode(&self, wanted: Entry) -> Result<Mode, BzImageError> {
        match (wanted, self.has_64_bit_entry) {
            (Entry::Auto | Entry::Bits64, true) => Ok(Mode::Long),
            (Entry::Auto | Entry::Bits32, _) => Ok(Mode::Protected),
            (Entry::Bits64, false) => Err(BzImageError::No64BitEntry),
        }
    }

    /// Loads the kernel and what it is given. Returns the state in which it begins.
    pub(crate) fn load(&self, memory: &GuestMemory, plan: &BootPlan) -> Result<VcpuState, Error> {
        let mode = self.mode(plan.entry)?;
        let ram_end = plan.board.layout.low_ram_end();
        if self.end > ram_end {
            let end = self.end;
            return Err(Error::KernelDoesNotFit { end, ram_end });
        }
        let max = self.command_line_max as usize;
        place::command_line(memory, plan.command_line, max)?;
        // Not just above the code: it is unpacked in place, up to `end`.
        let room = self.end..ram_end.min(u64::from(self.initrd_last) + 1);
        let initrd = place::initrd(memory, plan.initrd, room)?;
        memory.write(self.load_address, self.code)?;
        let setup_data = self.write_setup_data(memory, plan)?;
        let parameters = self.boot_parameters(plan, initrd.unwrap_or(0..0), setup_data);
        memory.write(ZERO_PAGE, &parameters.0)?;
        let rip = match mode {
            Mode::Long => self.load_address + ENTRY_64,
            Mode::Protected => self.load_address,
        };
        entry::state(memory, mode, rip, Gpr::Rsi, ZERO_PAGE)
    }

    /// Writes the list of `setup_data`. Returns its address, 0 if it is empty.
    fn write_setup_data(&self, memory: &GuestMemory, plan: &BootPlan) -> Result<u64, Error> {
        let Some(seed) = plan.rng_seed.filter(|_| self.version >= 0x209) else {
            return Ok(0);
        };
        let mut item = Fields::<{ SETUP_DATA_HEAD + 32 }>::new();
        item.u32(8, SETUP_RNG_SEED)
            .u32(12, seed.len() as u32)
            .put(SETUP_DATA_HEAD, seed);
        memory.write(SETUP_DATA, &item.0)?;
        Ok(SETUP_DATA)
    }

    /// The boot parameters ("zero page").
    ///
    /// The screen's fields stay 0: there is no display to take over, and a kernel that sees no
    /// lines and columns leaves the VGA ports alone.
    fn boot_parameters(
        &self,
        plan: &BootPlan,
        initrd: Range<u64>,
        setup_data: u64,
    ) -> Fields<PAGE_SIZE> {
        let mut page = Fields::new();
        let header = offset::SETUP_SECTS..self.header_end;
        page.put(header.start, &self.file[header]);
        page.u8(offset::TYPE_OF_LOADER, LOADER_UNDEFINED)
            .u32(offset::CODE32_START, self.load_address as u32)
            .u32(offset::RAMDISK_IMAGE, initrd.start as u32)
            .u32(offset::RAMDISK_SIZE, (initrd.end - initrd.start) as u32)
            .u32(offset::CMD_LINE_PTR, COMMAND_LINE.start as u32);
        if self.version >= 0x209 {
            page.u64(offset::SETUP_DATA, setup_data);
        }
        page.u64(offset::ACPI_RSDP_ADDR, RSDP);

        let extended_kib = (plan.board.layout.low_ram_end() - HIGH_MEMORY) >> 10;
        page.u16(offset::EXT_MEM_K, extended_kib.min(0xffff) as u16)
            .u32(offset::ALT_MEM_K, extended_kib as u32);
        let map = plan.board.layout.e820();
        page.u8(offset::E820_ENTRIES, map.len() as u8);
        for (n, entry) in map.iter().enumerate() {
            let at = offset::E820_TABLE + n * 20;
            page.u64(at, entry.start)
                .u64(at + 8, entry.len)
                .u32(at + 16, entry.kind as u32);
        }
        page
    }
}

/// The part of the file that holds the setup header, known to be there.
struct Header<'a>(&'a [u8; offset::HEADER_END_MAX]);

impl<'a> Header<'a> {
    fn new(file: &'a [u8]) -> Result<Self, BzImageError> {
        let truncated = BzImageError::Truncated {
            need: offset::HEADER_END_MAX as u64,
            have: file.len() as u64,
        };
        file.first_chunk().map(Self).ok_or(truncated)
    }

    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn u16(&self, at: usize) -> u16 {
        le::u16(self.0, at).expect("offsets are inside the header")
    }

    fn u32(&self, at: usize) -> u32 {
        le::u32(self.0, at).expect("offsets are inside the header")
    }

    fn u64(&self, at: usize) -> u64 {
        le::u64(self.0, at).expect("offsets are inside the header")
    }

    /// The protected-mode part: what follows the real-mode sectors.
    fn code(&self, file: &'a [u8], version: u16) -> Result<&'a [u8], BzImageError> {
        // 0 stands for 4, for the oldest kernels' sake.
        let sectors = match self.u8(offset::SETUP_SECTS) {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let start = (sectors + 1) * 512;
        // Before 2.04 the field has 16 bits, which do not hold the size of a bzImage.
        let size = match version {
            0x204.. => u64::from(self.u32(offset::SYSSIZE)) * 16,
            _ => 1,
        };
        // The size is rounded up to 16 bytes; the file need not be.
        let need = (start as u64 + size)
            .saturating_sub(15)
            .max(start as u64 + 1);
        if (file.len() as u64) < need {
            let have = file.len() as u64;
            return Err(BzImageError::Truncated { need, have });
        }
        Ok(&file[start..])
    }

    /// Where the protected-mode part goes: where the kernel would like best to run, if it can
    /// choose, else where it must.
    fn load_address(&self, version: u16) -> Result<u64, BzImageError> {
        let fixed = u64::from(self.u32(offset::CODE32_START));
        let relocatable = version >= 0x20a && self.u8(offset::RELOCATABLE_KERNEL) != 0;
        let address = if relocatable {
            let alignment = self.u32(offset::KERNEL_ALIGNMENT);
            if !alignment.is_power_of_two() {
                return Err(BzImageError::Alignment(alignment));
            }
            let preferred = self.u64(offset::PREF_ADDRESS);
            let aligned = preferred.checked_next_multiple_of(u64::from(alignment));
            aligned.ok_or(BzImageError::Address(preferred))?
        } else {
            fixed
        };
        // Below lie the boot data.
        if !(HIGH_MEMORY..LOW_RAM_END_MAX).contains(&address) {
            return Err(BzImageError::Address(address));
        }
        Ok(address)
    }

    /// Where the memory ends that the kernel takes before it has read its memory map:
    /// `code_end`, or the end of what it unpacks to.
    fn end(&self, version: u16, code_end: u64) -> Result<u64, BzImageError> {
        if version < 0x20a {
            return Ok(code_end);
        }
        let preferred = self.u64(offset::PREF_ADDRESS);
        preferred
            .checked_add(u64::from(self.u32(offset::INIT_SIZE)))
            .map(|end| end.max(code_end))
            .filter(|end| *end <= LOW_RAM_END_MAX)
            .ok_or(BzImageError::Address(preferred))
    }
}
