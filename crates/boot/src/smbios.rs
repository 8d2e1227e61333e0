//! SMBIOS structures: what the machine calls itself.
//!
//! Source: DMTF DSP0134, System Management BIOS Reference Specification 3.7.0. Two entry points
//! lead to the same structures: the 64-bit one of SMBIOS 3 and, for older systems, the 32-bit one,
//! which claims 2.8.

use crate::firmware::{Board, Image};
use crate::layout::SMBIOS;
use crate::le::Fields;

/// Where the entry points and the structures lie; entry points are 16-byte aligned (5.2).
const ENTRY_64: u64 = SMBIOS.start;
const ENTRY_32: u64 = SMBIOS.start + 0x20;
const STRUCTURES: u64 = SMBIOS.start + 0x40;

const VENDOR: &str = "Doppel";
const PRODUCT: &str = "Doppel";
const VERSION: &str = env!("CARGO_PKG_VERSION");
const RELEASE_DATE: &str = "01/01/2026";

/// Handles of the structures that others refer to.
mod handle {
    pub(super) const BIOS: u16 = 0x0000;
    pub(super) const SYSTEM: u16 = 0x0100;
    pub(super) const CHASSIS: u16 = 0x0300;
    pub(super) const PROCESSOR: u16 = 0x0400;
    pub(super) const MEMORY_ARRAY: u16 = 0x1000;
    pub(super) const MEMORY_DEVICE: u16 = 0x1100;
    pub(super) const MAPPED: u16 = 0x1300;
    pub(super) const BOOT: u16 = 0x2000;
    pub(super) const END: u16 = 0x7f00;
    /// No such structure.
    pub(super) const NONE: u16 = 0xfffe;
}

/// The tables of `board`, each with its place.
pub fn build(board: &Board) -> Vec<Image> {
    let mut structures = Structures::default();
    bios(&mut structures);
    system(&mut structures, board.uuid);
    chassis(&mut structures);
    processor(&mut structures, board.vcpus);
    memory(&mut structures, board);
    // 7.33: no error.
    structures.add::<0x0b>(32, handle::BOOT, |_| {}, &[]);
    structures.add::<4>(127, handle::END, |_| {}, &[]);
    assert!(STRUCTURES + structures.bytes.len() as u64 <= SMBIOS.end);
    vec![
        Image {
            gpa: ENTRY_64,
            bytes: entry_64(&structures),
        },
        Image {
            gpa: ENTRY_32,
            bytes: entry_32(&structures),
        },
        Image {
            gpa: STRUCTURES,
            bytes: structures.bytes,
        },
    ]
}

/// Structures one after the other (6.1).
#[derive(Default)]
struct Structures {
    bytes: Vec<u8>,
    count: u16,
    /// The longest one, strings included.
    longest: u16,
}

impl Structures {
    /// Appends a structure of `N` bytes: type, length and handle, what `fill` puts, then the
    /// strings, which are numbered from 1.
    fn add<const N: usize>(
        &mut self,
        kind: u8,
        handle: u16,
        fill: impl FnOnce(&mut Fields<N>),
        strings: &[&str],
    ) {
        let start = self.bytes.len();
        let mut fields = Fields::<N>::new();
        fields.u8(0, kind).u8(1, N as u8).u16(2, handle);
        fill(&mut fields);
        self.bytes.extend(fields.0);
        for string in strings {
            self.bytes.extend(string.as_bytes());
            self.bytes.push(0);
        }
        // 6.1.3: an empty string ends the set; a set without strings is two NULs.
        self.bytes.push(0);
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.count += 1;
        self.longest = self.longest.max((self.bytes.len() - start) as u16);
    }
}

/// BIOS information (7.1).
fn bios(structures: &mut Structures) {
    /// Characteristics are not given.
    const CHARACTERISTICS_UNKNOWN: u64 = 1 << 3;
    /// Extension byte 1: ACPI. Byte 2: a virtual machine.
    const ACPI: u8 = 1 << 0;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    structures.add::<0x18>(
        0,
        handle::BIOS,
        |f| {
            f.u8(4, 1).u8(5, 2).u8(8, 3);
            // Segment of the tables' area; there is no code.
            f.u16(6, 0xf000).u64(0x0a, CHARACTERISTICS_UNKNOWN);
            f.u8(0x12, ACPI).u8(0x13, VIRTUAL_MACHINE);
            // No release numbers.
            f.put(0x14, [0xff; 4]);
        },
        &[VENDOR, VERSION, RELEASE_DATE],
    );
}

/// System information (7.2).
fn system(structures: &mut Structures, uuid: [u8; 16]) {
    const POWER_SWITCH: u8 = 6;
    structures.add::<0x1b>(
        1,
        handle::SYSTEM,
        |f| {
            f.u8(4, 1).u8(5, 2).u8(6, 3);
            f.put(8, wire_format(uuid)).u8(0x18, POWER_SWITCH);
        },
        &[VENDOR, PRODUCT, VERSION],
    );
}

/// The bytes of a UUID as 7.2.1 orders them: the first three fields little-endian.
fn wire_format(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[0..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}

/// System enclosure (7.4).
fn chassis(structures: &mut Structures) {
    const OTHER: u8 = 1;
    const UNKNOWN: u8 = 2;
    const SAFE: u8 = 3;
    structures.add::<0x15>(
        3,
        handle::CHASSIS,
        |f| {
            f.u8(4, 1).u8(5, OTHER);
            f.u8(9, SAFE)
                .u8(0x0a, SAFE)
                .u8(0x0b, SAFE)
                .u8(0x0c, UNKNOWN);
        },
        &[VENDOR],
    );
}

/// Processor information (7.5): one socket with a core for each vCPU.
fn processor(structures: &mut Structures, vcpus: u32) {
    const CENTRAL_PROCESSOR: u8 = 3;
    const FAMILY_OTHER: u8 = 1;
    const ENABLED_POPULATED: u8 = 0x41;
    const UPGRADE_OTHER: u8 = 1;
    /// 64-bit capable, multi-core.
    const CHARACTERISTICS: u16 = 1 << 2 | 1 << 3;
    const NO_CACHE: u16 = 0xffff;
    // 7.5.6 and on: 0xff in the byte says that the word has the number.
    let cores = vcpus.min(0xff) as u8;
    let cores_wide = vcpus.min(0xfffe) as u16;
    structures.add::<0x30>(
        4,
        handle::PROCESSOR,
        |f| {
            f.u8(4, 1)
                .u8(5, CENTRAL_PROCESSOR)
                .u8(6, FAMILY_OTHER)
                .u8(7, 2);
            f.u8(0x18, ENABLED_POPULATED).u8(0x19, UPGRADE_OTHER);
            for cache in [0x1a, 0x1c, 0x1e] {
                f.u16(cache, NO_CACHE);
            }
            for count in [0x23, 0x24, 0x25] {
                f.u8(count, cores);
            }
            f.u16(0x26, CHARACTERISTICS).u16(0x28, FAMILY_OTHER.into());
            for count in [0x2a, 0x2c, 0x2e] {
                f.u16(count, cores_wide);
            }
        },
        &["CPU 0", VENDOR],
    );
}

/// Physical memory array (7.17) with one memory device (7.18), mapped below and above the 32-bit
/// devices (7.20).
fn memory(structures: &mut Structures, board: &Board) {
    let size = board.layout.memory();
    memory_array(structures, size);
    memory_device(structures, size);
    let high = board.layout.high_ram();
    mapped_range(structures, 0, 0..board.layout.low_ram_end());
    if !high.is_empty() {
        mapped_range(structures, 1, high);
    }
}

fn memory_array(structures: &mut Structures, size: u64) {
    const OTHER: u8 = 1;
    const SYSTEM_MEMORY: u8 = 3;
    const MULTI_BIT_ECC: u8 = 6;
    /// In the 32-bit field: the size is in the 64-bit one.
    const EXTENDED: u32 = 0x8000_0000;
    let kib = size >> 10;
    structures.add::<0x17>(
        16,
        handle::MEMORY_ARRAY,
        |f| {
            f.u8(4, OTHER).u8(5, SYSTEM_MEMORY).u8(6, MULTI_BIT_ECC);
            if kib < EXTENDED.into() {
                f.u32(7, kib as u32);
            } else {
                f.u32(7, EXTENDED).u64(0x0f, size);
            }
            f.u16(0x0b, handle::NONE).u16(0x0d, 1);
        },
        &[],
    );
}

fn memory_device(structures: &mut Structures, size: u64) {
    const UNKNOWN_WIDTH: u16 = 0xffff;
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const OTHER: u16 = 1 << 1;
    /// In the 16-bit field: the size is in the 32-bit one.
    const EXTENDED: u16 = 0x7fff;
    let mib = size >> 20;
    structures.add::<0x28>(
        17,
        handle::MEMORY_DEVICE,
        |f| {
            f.u16(4, handle::MEMORY_ARRAY).u16(6, handle::NONE);
            f.u16(8, UNKNOWN_WIDTH).u16(0x0a, UNKNOWN_WIDTH);
            if mib < EXTENDED.into() {
                f.u16(0x0c, mib as u16);
            } else {
                f.u16(0x0c, EXTENDED).u32(0x1c, mib as u32);
            }
            f.u8(0x0e, DIMM).u8(0x10, 1).u8(0x12, RAM).u16(0x13, OTHER);
            f.u8(0x17, 2);
        },
        &["DIMM 0", VENDOR],
    );
}

fn mapped_range(structures: &mut Structures, number: u16, range: std::ops::Range<u64>) {
    /// In the 32-bit fields: the addresses are in the 64-bit ones.
    const EXTENDED: u32 = u32::MAX;
    let (first_kib, last_kib) = (range.start >> 10, (range.end >> 10) - 1);
    structures.add::<0x1f>(
        19,
        handle::MAPPED + number,
        |f| {
            if last_kib < EXTENDED.into() {
                f.u32(4, first_kib as u32).u32(8, last_kib as u32);
            } else {
                f.u32(4, EXTENDED).u32(8, EXTENDED);
                f.u64(0x0f, range.start).u64(0x17, range.end - 1);
            }
            f.u16(0x0c, handle::MEMORY_ARRAY).u8(0x0e, 1);
        },
        &[],
    );
}

/// The 64-bit entry point (5.2.2).
fn entry_64(structures: &Structures) -> Vec<u8> {
    const LEN: usize = 0x18;
    let mut entry = Fields::<LEN>::new();
    entry
        .put(0, b"_SM3_")
        .u8(6, LEN as u8)
        .put(7, [3, 0, 0])
        .u8(0x0a, 1)
        .u32(0x0c, structures.bytes.len() as u32)
        .u64(0x10, STRUCTURES)
        .checksum(5, 0..LEN);
    entry.0.to_vec()
}

/// The 32-bit entry point (5.2.1), with the intermediate one inside.
fn entry_32(structures: &Structures) -> Vec<u8> {
    const LEN: usize = 0x1f;
    const INTERMEDIATE: usize = 0x10;
    let mut entry = Fields::<LEN>::new();
    entry
        .put(0, b"_SM_")
        .u8(5, LEN as u8)
        .put(6, [2, 8])
        .u16(8, structures.longest)
        .put(INTERMEDIATE, b"_DMI_")
        .u16(0x16, structures.bytes.len() as u16)
        .u32(0x18, STRUCTURES as u32)
        .u16(0x1c, structures.count)
        .u8(0x1e, 0x28)
        .checksum(0x15, INTERMEDIATE..LEN)
        .checksum(4, 0..LEN);
    entry.0.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, le};

    fn images(memory: u64, vcpus: u32) -> Vec<Image> {
        build(&Board {
            layout: Layout::new(memory).unwrap(),
            vcpus,
            uuid: *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
        })
    }

    /// Walks the structures as a guest does: type, formatted part, strings.
    fn walk(mut rest: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut found = Vec::new();
        while let &[kind, len, ..] = rest {
            let (formatted, after) = rest.split_at(len.into());
            let end = after.windows(2).position(|w| w == [0, 0]).unwrap();
            let strings = after[..end].split(|b| *b == 0).filter(|s| !s.is_empty());
            let strings = strings.map(|s| String::from_utf8(s.to_vec()).unwrap());
            found.push((kind, formatted.to_vec(), strings.collect()));
            rest = &after[end + 2..];
        }
        found
    }

    #[test]
    fn dsp0134_5_2_both_entry_points_lead_to_the_structures() {
        let images = images(1 << 30, 2);
        let [wide, narrow, structures] = &images[..] else {
            panic!("three images");
        };
        assert!(
            images
                .windows(2)
                .all(|w| w[0].gpa + w[0].bytes.len() as u64 <= w[1].gpa)
        );
        assert!(wide.gpa.is_multiple_of(16) && narrow.gpa.is_multiple_of(16));
        assert_eq!(le::checksum(&wide.bytes), 0);
        assert_eq!(le::u64(&wide.bytes, 0x10), Some(structures.gpa));
        assert_eq!(
            le::u32(&wide.bytes, 0x0c),
            Some(structures.bytes.len() as u32)
        );
        assert_eq!(
            (
                le::checksum(&narrow.bytes),
                le::checksum(&narrow.bytes[16..])
            ),
            (0, 0)
        );
        assert_eq!(le::u32(&narrow.bytes, 0x18), Some(structures.gpa as u32));
        let count = walk(&structures.bytes).len() as u16;
        assert_eq!(le::u16(&narrow.bytes, 0x1c), Some(count));
    }

    #[test]
    fn dsp0134_6_2_the_required_structures_are_there_and_the_last_ends_the_table() {
        let structures = walk(&images(8 << 30, 2)[2].bytes);
        let kinds: Vec<u8> = structures.iter().map(|s| s.0).collect();
        assert_eq!(kinds, [0, 1, 3, 4, 16, 17, 19, 19, 32, 127]);
        let handles: std::collections::BTreeSet<_> = structures
            .iter()
            .map(|s| le::u16(&s.1, 2).unwrap())
            .collect();
        assert_eq!(handles.len(), structures.len(), "handles are unique");
        assert_eq!(structures[1].2, [VENDOR, PRODUCT, VERSION]);
    }

    #[test]
    fn dsp0134_7_2_1_the_uuid_has_little_endian_fields() {
        let structures = walk(&images(1 << 30, 1)[2].bytes);
        let expected = b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
        assert_eq!(&structures[1].1[8..24], expected);
    }

    #[test]
    fn dsp0134_7_18_sizes_beyond_a_field_use_the_extended_one() {
        for (memory, short, long) in [
            (1u64 << 30, 1024, 0),
            (64 << 30, 0x7fff, 64 << 10),
            (1 << 40, 0x7fff, 1 << 20),
        ] {
            let structures = walk(&images(memory, 1)[2].bytes);
            let device = structures.iter().find(|s| s.0 == 17).unwrap();
            assert_eq!(le::u16(&device.1, 0x0c), Some(short));
            assert_eq!(le::u32(&device.1, 0x1c), Some(long));
        }
    }

    #[test]
    fn dsp0134_7_5_core_counts_beyond_a_byte_use_the_word() {
        let structures = walk(&images(1 << 30, 300)[2].bytes);
        let processor = &structures.iter().find(|s| s.0 == 4).unwrap().1;
        assert_eq!(
            (processor[0x23], le::u16(processor, 0x2a)),
            (0xff, Some(300))
        );
    }
}
