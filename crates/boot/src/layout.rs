//! The machine's physical address space: where RAM, tables, windows and chips lie.
//!
//! The single source of truth: the board places devices by it, the ACPI tables describe it, the
//! loaders keep out of each other's way by it.
//!
//! ```text
//! 0000_0000  conventional memory, boot data at its start    RAM
//! 0009_f000  extended BIOS data area, with the FACS         RAM, reserved
//! 000a_0000  VGA frame buffer                               nothing, or a device
//! 000c_0000  option ROMs, ACPI and SMBIOS tables            ROM, filled by the monitor
//! 0010_0000  memory                                         RAM, up to 3 GiB
//! c000_0000  32-bit BARs                                    512 MiB
//! e000_0000  ECAM, buses 0 to 255                           256 MiB
//! fec0_0000  I/O APIC
//! fed0_0000  HPET
//! fee0_0000  local APICs, MSI
//! 1_0000_0000  the rest of memory                           RAM
//! above it   64-bit BARs                                    64 GiB, aligned to its size
//! ```

use memory::{Kind, RegionSpec};
use std::ops::Range;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The least memory a guest may have, in bytes.
pub const MEMORY_MIN: u64 = 64 * MIB;
/// The most memory a guest may have, in bytes.
pub const MEMORY_MAX: u64 = 1 << 40;
/// Memory comes in pages of this many bytes.
pub const MEMORY_GRANULE: u64 = 4 * KIB;

/// Width of a physical address, in bits: what CPUID must show at least.
pub const PHYSICAL_ADDRESS_BITS: u32 = 46;

/// End of conventional memory that a guest may use: the extended BIOS data area begins here.
pub const EBDA: u64 = 0x9_f000;
/// The firmware ACPI control structure, which the guest writes, in the EBDA.
pub const FACS: u64 = EBDA + 0x40;
/// The VGA frame buffer.
pub const VGA: Range<u64> = 0xa_0000..0xc_0000;
/// ROM that the monitor fills.
pub const ROM: Range<u64> = 0xc_0000..0x10_0000;
/// ACPI tables, in [`ROM`].
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_0000;
/// ACPI root pointer: 16-byte aligned, in the area where a guest searches for it (ACPI 6.5,
/// 5.2.5.1).
pub const RSDP: u64 = 0xf_0000;
/// SMBIOS entry points and structures, in the area where a guest searches for them (DSP0134 3.7,
/// 5.2).
pub const SMBIOS: Range<u64> = 0xf_1000..0xf_8000;

/// Where memory begins that belongs to the kernel.
pub const HIGH_MEMORY: u64 = MIB;
/// Where low RAM ends at the latest.
pub const LOW_RAM_END_MAX: u64 = 3 * GIB;
/// Where the RAM begins that does not fit below.
pub const HIGH_RAM: u64 = 4 * GIB;

/// Window of 32-bit memory BARs.
pub const BAR32_WINDOW: Range<u64> = 0xc000_0000..0xe000_0000;
/// Configuration space of PCI segment 0, buses 0 to 255 (PCI Firmware Specification 3.3, 4.1).
pub const ECAM: Range<u64> = 0xe000_0000..0xf000_0000;
/// Registers of the I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Registers of the HPET.
pub const HPET: u64 = 0xfed0_0000;
/// Registers of the local APICs, and where MSIs go.
pub const LAPIC: u64 = 0xfee0_0000;
/// Size of the window of 64-bit memory BARs, in bytes; also its alignment.
pub const BAR64_WINDOW_SIZE: u64 = 64 * GIB;
/// Window of I/O BARs.
pub const BAR_IO_WINDOW: Range<u16> = 0xc000..0xf000;

/// Ports and interrupts of the fixed ACPI hardware (ACPI 6.5, 4.8.3) and its neighbours.
pub mod pm {
    /// PM1a event block: status and enable, 2 bytes each.
    pub const PM1A_EVENT: u16 = 0x600;
    /// PM1a control, 2 bytes.
    pub const PM1A_CONTROL: u16 = 0x604;
    /// PM timer, all of its 32 bits count; 4 bytes.
    pub const TIMER: u16 = 0x608;
    /// General-purpose event block 0: status and enable, [`GPE0_LEN`] bytes together.
    pub const GPE0: u16 = 0x620;
    /// Length of GPE block 0, in bytes.
    pub const GPE0_LEN: u8 = 4;
    /// The ports from [`PM1A_EVENT`] on that belong to power management.
    pub const LEN: u8 = 0x40;
    /// The interrupt of all ACPI events: level-triggered, active high.
    pub const SCI: u8 = 9;
    /// Reset control register.
    pub const RESET_PORT: u16 = 0xcf9;
    /// What resets the machine when written to [`RESET_PORT`].
    pub const RESET_VALUE: u8 = 6;
    /// SLP_TYP of S5, soft off: with SLP_EN in PM1a control it switches the machine off.
    pub const S5_SLP_TYP: u8 = 5;
}

/// Where a loader puts what it hands to a kernel, in conventional memory. Kernels that follow one
/// of the boot protocols take a copy, or reserve it, before they use this memory.
pub(crate) mod boot_data {
    use std::ops::Range;

    /// Global descriptor table and task state segment.
    pub(crate) const GDT: u64 = 0x1000;
    /// Linux's boot parameters ("zero page").
    pub(crate) const ZERO_PAGE: u64 = 0x2000;
    /// PVH start information, modules and memory map: one page.
    pub(crate) const START_INFO: u64 = 0x3000;
    /// Linux's `setup_data` list: one page.
    pub(crate) const SETUP_DATA: u64 = 0x4000;
    /// Page tables: six pages.
    pub(crate) const PAGE_TABLES: u64 = 0x5000;
    /// The command line with its final NUL.
    pub(crate) const COMMAND_LINE: Range<u64> = 0x1_0000..0x2_0000;
}

/// Memory of a size that this machine can't have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Too little or too much.
    #[error(
        "{0} bytes of memory is out of range: give the guest between {min} MiB and {max} GiB",
        min = MEMORY_MIN / MIB,
        max = MEMORY_MAX / GIB
    )]
    Size(u64),
    /// Not a whole number of pages.
    #[error("{0} bytes of memory is not a whole number of 4096-byte pages: round it")]
    Granule(u64),
}

/// What a guest may do with a range, as E820 and the PVH memory map number it (ACPI 6.5, table
/// 15.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Free to use.
    Ram = 1,
    /// Keep off.
    Reserved = 2,
}

/// A range of the E820 map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: E820Kind,
}

/// The address space of a machine with so much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    memory: u64,
}

impl Layout {
    /// The layout of a machine with `memory` bytes of RAM. Of these, the 384 KiB under the VGA
    /// and ROM areas are lost, as they are on a PC.
    ///
    /// # Errors
    /// If `memory` is out of range or not whole pages.
    pub const fn new(memory: u64) -> Result<Self, LayoutError> {
        if memory < MEMORY_MIN || memory > MEMORY_MAX {
            return Err(LayoutError::Size(memory));
        }
        if !memory.is_multiple_of(MEMORY_GRANULE) {
            return Err(LayoutError::Granule(memory));
        }
        Ok(Self { memory })
    }

    /// The memory asked for, in bytes.
    pub const fn memory(self) -> u64 {
        self.memory
    }

    /// Where the RAM below the 32-bit devices ends.
    pub const fn low_ram_end(self) -> u64 {
        if self.memory < LOW_RAM_END_MAX {
            self.memory
        } else {
            LOW_RAM_END_MAX
        }
    }

    /// The RAM above 4 GiB; empty if all of it fits below.
    pub const fn high_ram(self) -> Range<u64> {
        HIGH_RAM..HIGH_RAM + (self.memory - self.low_ram_end())
    }

    /// Window of 64-bit memory BARs: above all RAM, aligned to its size.
    pub const fn bar64_window(self) -> Range<u64> {
        let start = self.high_ram().end.next_multiple_of(BAR64_WINDOW_SIZE);
        start..start + BAR64_WINDOW_SIZE
    }

    /// The memory regions of the machine.
    pub fn regions(self) -> Vec<RegionSpec> {
        let region = |range: Range<u64>, kind| RegionSpec {
            gpa: range.start,
            len: range.end - range.start,
            kind,
        };
        let mut regions = vec![
            region(0..VGA.start, Kind::Ram),
            region(ROM, Kind::Rom),
            region(HIGH_MEMORY..self.low_ram_end(), Kind::Ram),
        ];
        if !self.high_ram().is_empty() {
            regions.push(region(self.high_ram(), Kind::Ram));
        }
        regions
    }

    /// The memory map that the firmware of a PC reports, by ascending address.
    pub fn e820(self) -> Vec<E820Entry> {
        let entry = |range: Range<u64>, kind| E820Entry {
            start: range.start,
            len: range.end - range.start,
            kind,
        };
        let mut map = vec![
            entry(0..EBDA, E820Kind::Ram),
            entry(EBDA..VGA.start, E820Kind::Reserved),
            entry(ACPI_TABLES.start..ROM.end, E820Kind::Reserved),
            entry(HIGH_MEMORY..self.low_ram_end(), E820Kind::Ram),
            // Linux uses an ECAM area only if the memory map or the DSDT reserves it.
            entry(ECAM, E820Kind::Reserved),
        ];
        if !self.high_ram().is_empty() {
            map.push(entry(self.high_ram(), E820Kind::Ram));
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::GuestMemory;

    const SIZES: [u64; 6] = [
        MEMORY_MIN,
        MEMORY_MIN + 4 * KIB,
        3 * GIB - 4 * KIB,
        3 * GIB,
        3 * GIB + 4 * KIB,
        MEMORY_MAX,
    ];

    #[test]
    fn sizes_out_of_range_are_refused() {
        for bad in [0, MEMORY_MIN - 1, MEMORY_MAX + 1, u64::MAX] {
            assert_eq!(Layout::new(bad), Err(LayoutError::Size(bad)));
        }
        let odd = MEMORY_MIN + 1;
        assert_eq!(Layout::new(odd), Err(LayoutError::Granule(odd)));
    }

    #[test]
    fn regions_make_memory_of_the_right_size() {
        for size in SIZES {
            let memory = GuestMemory::new(&Layout::new(size).unwrap().regions()).unwrap();
            assert_eq!(memory.ram_bytes(), size - 384 * KIB, "{size:#x}");
            assert!(memory.page(VGA.start).is_none() && memory.page(VGA.end - 1).is_none());
            assert_eq!(memory.page(RSDP).unwrap().1, Kind::Rom);
            assert!(memory.page(BAR32_WINDOW.start).is_none());
        }
    }

    #[test]
    fn e820_is_sorted_and_its_ram_is_memory() {
        for size in SIZES {
            let layout = Layout::new(size).unwrap();
            let memory = GuestMemory::new(&layout.regions()).unwrap();
            let map = layout.e820();
            assert!(map.windows(2).all(|w| w[0].start + w[0].len <= w[1].start));
            for entry in map.iter().filter(|e| e.kind == E820Kind::Ram) {
                let last = entry.start + entry.len - 1;
                for gpa in [entry.start, last] {
                    assert_eq!(memory.page(gpa).unwrap().1, Kind::Ram, "{gpa:#x}");
                }
            }
        }
    }

    #[test]
    fn the_64_bit_window_is_aligned_above_ram_and_addressable() {
        for size in SIZES {
            let layout = Layout::new(size).unwrap();
            let window = layout.bar64_window();
            assert!(window.start.is_multiple_of(BAR64_WINDOW_SIZE));
            assert!(window.start >= layout.high_ram().end);
            assert!(window.end <= 1 << PHYSICAL_ADDRESS_BITS);
        }
    }

    #[test]
    fn the_facs_is_reserved_aligned_ram() {
        assert!(FACS.is_multiple_of(64) && FACS + 64 <= VGA.start);
        let layout = Layout::new(MEMORY_MIN).unwrap();
        let memory = GuestMemory::new(&layout.regions()).unwrap();
        assert_eq!(memory.page(FACS).unwrap().1, Kind::Ram);
        let ram =
            |e: &E820Entry| e.kind == E820Kind::Ram && (e.start..e.start + e.len).contains(&FACS);
        assert!(!layout.e820().iter().any(ram));
    }
}
