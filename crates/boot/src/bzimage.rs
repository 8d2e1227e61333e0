//! Kernels that follow Linux's x86 boot protocol, versions 2.02 to 2.15.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst and zero-page.rst (6.12). The protected-mode
//! part of the file is loaded and entered at its 64-bit or its 32-bit entry; the real-mode part,
//! which talks to a BIOS, is not run: the loader fills in the boot parameters that it would have.

use crate::entry::{self, Mode};
use crate::layout::boot_data::{COMMAND_LINE, SETUP_DATA, ZERO_PAGE};
use crate::layout::{HIGH_MEMORY, LOW_RAM_END_MAX, RSDP};
use crate::le::{self, Fields};
use crate::{BootPlan, Entry, Error, content, place};
use memory::{GuestMemory, PAGE_SIZE};
use std::fmt;
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
#[derive(Clone, Copy)]
pub struct BzImage {
    header: Header,
    /// Boot protocol, major version in the high byte.
    version: u16,
    /// End of the setup header in the file.
    header_end: usize,
    /// Where the protected-mode part is in the file.
    code: Code,
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

impl fmt::Debug for BzImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BzImage")
            .field("version", &format_args!("{:#x}", self.version))
            .field("load_address", &format_args!("{:#x}", self.load_address))
            .field("end", &format_args!("{:#x}", self.end))
            .finish_non_exhaustive()
    }
}

impl BzImage {
    /// Checks the header of a file of `len` bytes that begins with `head`, and that
    /// [`detect`](crate::detect) took for a bzImage.
    ///
    /// # Errors
    /// If the header is of an old version, or makes no sense.
    pub fn parse(head: &[u8], len: u64) -> Result<Self, BzImageError> {
        let header = Header::new(head, len)?;
        let version = header.u16(offset::VERSION);
        if version < 0x202 {
            return Err(BzImageError::OldProtocol(version));
        }
        if header.u8(offset::LOADFLAGS) & LOADED_HIGH == 0 {
            return Err(BzImageError::ZImage);
        }
        let header_end = 0x202 + usize::from(header.u8(offset::JUMP));
        let code = header.code(len, version)?;
        let load_address = header.load_address(version)?;
        let end = header.end(version, load_address, code.len)?;
        let from = |since, at| (version >= since).then(|| header.u32(at));
        let xloadflags = header.u16(offset::XLOADFLAGS);
        Ok(Self {
            header,
            version,
            header_end: header_end.clamp(offset::JUMP, offset::HEADER_END_MAX),
            code,
            load_address,
            end,
            has_64_bit_entry: version >= 0x20c
                && xloadflags & XLF_KERNEL_64 != 0
                && code.len > ENTRY_64,
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
        let Code { start, len } = self.code;
        content::copy(plan.kernel, start, memory, self.load_address, len)
            .map_err(Error::in_kernel)?;
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
        page.put(header.start, &self.header.0[header]);
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

/// A part of the file, known to be there.
#[derive(Clone, Copy)]
struct Code {
    start: u64,
    len: u64,
}

/// The part of the file that holds the setup header.
#[derive(Clone, Copy)]
struct Header([u8; offset::HEADER_END_MAX]);

impl Header {
    fn new(head: &[u8], len: u64) -> Result<Self, BzImageError> {
        let truncated = BzImageError::Truncated {
            need: offset::HEADER_END_MAX as u64,
            have: len,
        };
        head.first_chunk().copied().map(Self).ok_or(truncated)
    }

    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn u16(&self, at: usize) -> u16 {
        le::u16(&self.0, at).expect("offsets are inside the header")
    }

    fn u32(&self, at: usize) -> u32 {
        le::u32(&self.0, at).expect("offsets are inside the header")
    }

    fn u64(&self, at: usize) -> u64 {
        le::u64(&self.0, at).expect("offsets are inside the header")
    }

    /// The protected-mode part: what follows the real-mode sectors in a file of `have` bytes.
    fn code(&self, have: u64, version: u16) -> Result<Code, BzImageError> {
        // 0 stands for 4, for the oldest kernels' sake.
        let sectors = match self.u8(offset::SETUP_SECTS) {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let start = (sectors + 1) * 512;
        // Before 2.04 the field has 16 bits, which do not hold the size of a bzImage.
        let size = match version {
            0x204.. => u64::from(self.u32(offset::SYSSIZE)) * 16,
            _ => 1,
        };
        // The size is rounded up to 16 bytes; the file need not be.
        let need = (start + size).saturating_sub(15).max(start + 1);
        if have < need {
            return Err(BzImageError::Truncated { need, have });
        }
        let len = have - start;
        Ok(Code { start, len })
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

    /// Where the memory ends that the kernel takes before it has read its memory map: behind its
    /// code, and behind what it unpacks to.
    fn end(&self, version: u16, load_address: u64, code_len: u64) -> Result<u64, BzImageError> {
        let code_end = load_address + code_len;
        if version < 0x20a {
            return Ok(code_end);
        }
        // A kernel that can't be relocated moves itself to where it prefers to run.
        let run_address = self.u64(offset::PREF_ADDRESS).max(load_address);
        run_address
            .checked_add(u64::from(self.u32(offset::INIT_SIZE)))
            .map(|end| end.max(code_end))
            .filter(|end| *end <= LOW_RAM_END_MAX)
            .ok_or(BzImageError::Address(run_address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CODE_LEN, bzimage, machine, plan};
    use crate::{Content, load};
    use x86::{Cr0, Efer};

    const PREFERRED: u64 = 0x100_0000;
    const END: u64 = 0x140_0000;

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = bzimage();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    }

    fn parse(file: &[u8]) -> Result<BzImage, BzImageError> {
        BzImage::parse(file, file.len() as u64)
    }

    fn parse_error(file: &[u8]) -> BzImageError {
        parse(file).unwrap_err()
    }

    #[test]
    fn a_relocatable_kernel_goes_where_it_prefers_and_starts_in_long_mode() {
        let (memory, board) = machine(128).unwrap();
        let state = load(&memory, &plan(board, &bzimage())).unwrap();
        assert_eq!(state.rip, PREFERRED + 0x200);
        assert!(state.efer.contains(Efer::LMA));
        assert_eq!(state.gpr[Gpr::Rsi as usize], ZERO_PAGE);
        let mut code = [0; CODE_LEN + 1];
        memory.read(PREFERRED, &mut code).unwrap();
        assert!(code[..CODE_LEN].iter().all(|b| *b == 0x90) && code[CODE_LEN] == 0);
    }

    #[test]
    fn a_preferred_address_is_rounded_up_to_the_alignment() {
        let file = with(offset::PREF_ADDRESS, &0x100_1000u64.to_le_bytes());
        let kernel = parse(&file).unwrap();
        assert_eq!(kernel.load_address, 0x120_0000);
        assert_eq!(kernel.end, 0x160_0000);
    }

    #[test]
    fn a_kernel_that_is_not_relocatable_goes_to_code32_start() {
        let (memory, board) = machine(128).unwrap();
        let state = load(
            &memory,
            &plan(board, &with(offset::RELOCATABLE_KERNEL, &[0])),
        )
        .unwrap();
        assert_eq!(state.rip, 0x10_0200);
        assert_eq!(memory.load::<u8>(0x10_0000), Ok(0x90));
    }

    #[test]
    fn the_entry_follows_the_plan_and_what_the_kernel_has() {
        let (memory, board) = machine(128).unwrap();
        let without = with(offset::XLOADFLAGS, &[0, 0]);
        for (file, entry, expected) in [
            (bzimage(), Entry::Auto, PREFERRED + 0x200),
            (bzimage(), Entry::Bits64, PREFERRED + 0x200),
            (bzimage(), Entry::Bits32, PREFERRED),
            (without.clone(), Entry::Auto, PREFERRED),
            (without.clone(), Entry::Bits32, PREFERRED),
        ] {
            let plan = BootPlan {
                entry,
                ..plan(board, &file)
            };
            let state = load(&memory, &plan).unwrap();
            assert_eq!(state.rip, expected);
            assert_eq!(state.cr0.contains(Cr0::PG), expected != PREFERRED);
        }
        let plan = BootPlan {
            entry: Entry::Bits64,
            ..plan(board, &without)
        };
        let error = load(&memory, &plan).unwrap_err();
        assert!(matches!(error, Error::BzImage(BzImageError::No64BitEntry)));
    }

    #[test]
    fn boot_parameters_say_what_was_loaded() {
        let (memory, board) = machine(4096).unwrap();
        let file = bzimage();
        let initrd: [&dyn Content; 2] = [&[1u8; 10], &[2u8; 20]];
        let plan = BootPlan {
            initrd: &initrd,
            command_line: "console=ttyS0",
            rng_seed: Some([9; 32]),
            ..plan(board, &file)
        };
        load(&memory, &plan).unwrap();
        let mut page = [0; PAGE_SIZE];
        memory.read(ZERO_PAGE, &mut page).unwrap();
        let field = |at| le::u32(&page, at).unwrap();

        assert_eq!(page[0x1f1..0x210], file[0x1f1..0x210], "the setup header");
        assert_eq!(page[offset::TYPE_OF_LOADER], 0xff);
        assert_eq!(field(offset::CODE32_START), PREFERRED as u32);
        assert_eq!(field(offset::RAMDISK_SIZE), 32);
        // 2 GiB is the kernel's limit, though there are 3 GiB below the devices.
        assert_eq!(field(offset::RAMDISK_IMAGE), 0x7fff_f000);
        assert_eq!(memory.load::<u8>(0x7fff_f000 + 12), Ok(2));
        assert_eq!(le::u64(&page, offset::ACPI_RSDP_ADDR), Some(RSDP));
        let mut line = [0; 14];
        memory
            .read(field(offset::CMD_LINE_PTR).into(), &mut line)
            .unwrap();
        assert_eq!(&line, b"console=ttyS0\0");
        assert_eq!(page[offset::EXT_MEM_K..][..2], [0xff, 0xff]);
        assert_eq!(field(offset::ALT_MEM_K), (3 << 20) - 1024);

        let map = board.layout.e820();
        assert_eq!(usize::from(page[offset::E820_ENTRIES]), map.len());
        let last = offset::E820_TABLE + (map.len() - 1) * 20;
        assert_eq!(le::u64(&page, last), Some(1 << 32));
        assert_eq!(le::u64(&page, last + 8), Some(1 << 30));
        assert_eq!(field(last + 16), 1);

        let item = le::u64(&page, offset::SETUP_DATA).unwrap();
        assert_eq!(memory.load::<u64>(item), Ok(0), "the last of the list");
        assert_eq!(memory.load::<u32>(item + 8), Ok(SETUP_RNG_SEED));
        assert_eq!(memory.load::<u32>(item + 12), Ok(32));
        assert_eq!(memory.load::<u8>(item + 16 + 31), Ok(9));
    }

    #[test]
    fn fields_of_other_boot_parameters_are_not_taken_from_the_file() {
        let (memory, board) = machine(128).unwrap();
        let mut file = bzimage();
        file[..0x1f1].fill(0xee);
        file[offset::HEADER_END_MAX..0x400].fill(0xee);
        // The longest header that the jump can tell.
        file[offset::JUMP] = 0xff;
        load(&memory, &plan(board, &file)).unwrap();
        let mut page = [0; PAGE_SIZE];
        memory.read(ZERO_PAGE, &mut page).unwrap();
        assert!(!page.contains(&0xee));
    }

    #[test]
    fn the_initrd_lies_above_all_that_the_kernel_unpacks_to() {
        let (memory, board) = machine(64).unwrap();
        let file = bzimage();
        let room = (64 << 20) - END;
        for (len, fits) in [(room, true), (room + 1, false)] {
            let part = vec![3; len as usize];
            let plan = BootPlan {
                initrd: &[&part],
                ..plan(board, &file)
            };
            match load(&memory, &plan) {
                Ok(_) => assert!(fits),
                Err(Error::InitrdDoesNotFit { room: told, .. }) => assert!(!fits && told == room),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(memory.load::<u8>(END), Ok(3));
    }

    #[test]
    fn a_kernel_without_room_to_unpack_says_how_much_memory_it_needs() {
        let (memory, board) = machine(64).unwrap();
        let file = with(offset::INIT_SIZE, &0x337_8000u32.to_le_bytes());
        let error = load(&memory, &plan(board, &file)).unwrap_err();
        assert!(matches!(
            error,
            Error::KernelDoesNotFit {
                end: 0x437_8000,
                ..
            }
        ));
        assert!(
            error
                .to_string()
                .ends_with("give the guest at least 68 MiB")
        );
    }

    #[test]
    fn old_protocols_are_named_and_their_fields_not_used() {
        let error = parse_error(&with(offset::VERSION, &0x201u16.to_le_bytes()));
        assert_eq!(error, BzImageError::OldProtocol(0x201));
        assert!(error.to_string().contains("2.01"));
        assert_eq!(
            parse_error(&with(offset::LOADFLAGS, &[0])),
            BzImageError::ZImage
        );

        // 2.02: no relocation, no 64-bit entry, no limits of its own.
        let file = with(offset::VERSION, &0x202u16.to_le_bytes());
        let old = parse(&file).unwrap();
        assert_eq!(old.load_address, 0x10_0000);
        assert_eq!(old.end, 0x10_0000 + CODE_LEN as u64);
        assert!(!old.has_64_bit_entry());
        assert_eq!((old.command_line_max, old.initrd_last), (255, 0x37ff_ffff));
    }

    #[test]
    fn a_truncated_file_is_named() {
        let file = bzimage();
        for len in [0x206, 0x28f, 0x300, 0x400, file.len() - 16] {
            let error = parse_error(&file[..len]);
            assert!(matches!(error, BzImageError::Truncated { have, .. } if have == len as u64));
        }
        // The size is in units of 16 bytes; the last one need not be whole.
        assert!(parse(&file[..file.len() - 15]).is_ok());
    }

    #[test]
    fn addresses_that_no_kernel_can_have_are_refused() {
        for bad in [0u64, 0xc000_0000, 1 << 40, u64::MAX] {
            let file = with(offset::PREF_ADDRESS, &bad.to_le_bytes());
            assert!(
                matches!(parse_error(&file), BzImageError::Address(_)),
                "{bad:#x}"
            );
        }
        for bad in [0u32, 3, u32::MAX] {
            let file = with(offset::KERNEL_ALIGNMENT, &bad.to_le_bytes());
            assert_eq!(parse_error(&file), BzImageError::Alignment(bad));
        }
        let huge = with(offset::INIT_SIZE, &u32::MAX.to_le_bytes());
        assert_eq!(parse_error(&huge), BzImageError::Address(PREFERRED));
    }

    #[test]
    fn the_command_line_has_the_kernels_limit() {
        let (memory, board) = machine(128).unwrap();
        let file = with(offset::CMDLINE_SIZE, &4u32.to_le_bytes());
        let with_line = |command_line| BootPlan {
            command_line,
            ..plan(board, &file)
        };
        assert!(load(&memory, &with_line("1234")).is_ok());
        assert!(matches!(
            load(&memory, &with_line("12345")),
            Err(Error::CommandLineTooLong { len: 5, max: 4 })
        ));
    }
}
