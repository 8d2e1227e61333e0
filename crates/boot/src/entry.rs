//! The registers, descriptor table and page tables with which a kernel is entered.

use crate::Error;
use crate::firmware;
use crate::layout::boot_data::{GDT, PAGE_TABLES};
use memory::GuestMemory;
use x86::{
    Cr0, Cr4, Descriptor, DescriptorTable, Efer, Gpr, Rflags, Segment, SegmentRegister, Selector,
    VcpuState,
};

/// The mode in which a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 64-bit code, the first 4 GiB mapped one to one.
    Long,
    /// 32-bit code, flat segments, no paging.
    Protected,
}

/// Selectors of the flat segments: Linux's `__BOOT_CS` and `__BOOT_DS`
/// (Documentation/arch/x86/boot.rst, "32-bit Boot Protocol").
const CODE: Selector = Selector(0x10);
const DATA: Selector = Selector(0x18);
const TASK: Selector = Selector(0x20);

/// Flat 4 GiB code, 64 bits.
const CODE64: Descriptor = Descriptor(0x00af_9b00_0000_ffff);
/// Flat 4 GiB code, 32 bits.
const CODE32: Descriptor = Descriptor(0x00cf_9b00_0000_ffff);
/// Flat 4 GiB data.
const FLAT_DATA: Descriptor = Descriptor(0x00cf_9300_0000_ffff);
/// Busy task state segment of 0x68 bytes, base 0 so far.
const TASK_STATE: Descriptor = Descriptor(0x0000_8b00_0000_0067);

/// Where the task state segment lies, in the page of the descriptor table.
const TASK_STATE_BASE: u64 = GDT + 0x80;

/// Builds what `mode` needs in guest memory, and returns the boot processor's state with RIP at
/// `rip` and `argument` in register `register`.
pub(crate) fn state(
    memory: &GuestMemory,
    mode: Mode,
    rip: u64,
    register: Gpr,
    argument: u64,
) -> Result<VcpuState, Error> {
    let code = match mode {
        Mode::Long => CODE64,
        Mode::Protected => CODE32,
    };
    let mut state = firmware::boot_processor();
    load_segments(memory, &mut state, code)?;
    state.cr0 = Cr0::PE | Cr0::ET;
    if mode == Mode::Long {
        write_identity_map(memory)?;
        state.cr0 |= Cr0::PG;
        state.cr3 = PAGE_TABLES;
        state.cr4 = Cr4::PAE;
        state.efer = Efer::LME | Efer::LMA;
    }
    // Interrupts stay off until the kernel wants them.
    state.rflags = Rflags::FIXED;
    state.gpr = [0; 16];
    state.gpr[register as usize] = argument;
    state.rip = rip;
    Ok(state)
}

fn load_segments(
    memory: &GuestMemory,
    state: &mut VcpuState,
    code: Descriptor,
) -> Result<(), Error> {
    let task = Descriptor(TASK_STATE.0 | TASK_STATE_BASE << 16);
    // The last one is the upper half of the TSS descriptor in long mode.
    let table = [0, 0, code.0, FLAT_DATA.0, task.0, 0];
    let mut page = [0; memory::PAGE_SIZE];
    for (at, descriptor) in table.into_iter().enumerate() {
        page[at * 8..][..8].copy_from_slice(&descriptor.to_le_bytes());
    }
    memory.write(GDT, &page)?;

    state.gdtr = DescriptorTable {
        base: GDT,
        limit: (table.len() * 8 - 1) as u16,
    };
    state.idtr = DescriptorTable::default();
    state.segments = [Segment::from_descriptor(DATA, FLAT_DATA); 6];
    state.segments[SegmentRegister::Cs as usize] = Segment::from_descriptor(CODE, code);
    state.tr = Segment::from_descriptor(TASK, task);
    state.ldtr = Segment {
        unusable: true,
        ..Segment::default()
    };
    Ok(())
}

/// Maps the first 4 GiB one to one with 2 MiB pages, which every CPU with long mode has: all that
/// is loaded lies there.
fn write_identity_map(memory: &GuestMemory) -> Result<(), Error> {
    const TABLE: u64 = memory::PAGE_SIZE as u64;
    const DIRECTORIES: u64 = 4;
    const ENTRIES: u64 = 512;
    // SDM vol. 3, tables 4-15 to 4-18.
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    const LARGE_SIZE: u64 = 2 << 20;

    let pointers = PAGE_TABLES + TABLE;
    let directories = pointers + TABLE;
    write_table(memory, PAGE_TABLES, [pointers | PRESENT_WRITABLE])?;
    let of_directory = |n| (directories + n * TABLE) | PRESENT_WRITABLE;
    write_table(memory, pointers, (0..DIRECTORIES).map(of_directory))?;
    for directory in 0..DIRECTORIES {
        let first = directory * ENTRIES;
        let pages = (first..first + ENTRIES).map(|n| (n * LARGE_SIZE) | LARGE | PRESENT_WRITABLE);
        write_table(memory, directories + directory * TABLE, pages)?;
    }
    Ok(())
}

/// Writes a page table: `entries`, then not-present ones.
fn write_table(
    memory: &GuestMemory,
    gpa: u64,
    entries: impl IntoIterator<Item = u64>,
) -> Result<(), Error> {
    let mut page = [0; memory::PAGE_SIZE];
    for (field, entry) in page.chunks_exact_mut(8).zip(entries) {
        field.copy_from_slice(&entry.to_le_bytes());
    }
    Ok(memory.write(gpa, &page)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layout;
    use std::sync::Arc;

    fn memory() -> Arc<GuestMemory> {
        GuestMemory::new(&Layout::new(64 << 20).unwrap().regions()).unwrap()
    }

    /// The physical address of `linear` by a walk of 4-level tables with 2 MiB pages.
    fn walk(memory: &GuestMemory, cr3: u64, linear: u64) -> Option<u64> {
        let mut table = cr3;
        for shift in [39, 30, 21] {
            let entry: u64 = memory.load(table + (linear >> shift & 511) * 8).unwrap();
            if entry & 1 == 0 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            if shift == 21 {
                assert_ne!(entry & 1 << 7, 0, "a 2 MiB page");
            }
        }
        Some(table | linear & 0x1f_ffff)
    }

    #[test]
    fn long_mode_maps_the_first_4_gib_one_to_one() {
        let memory = memory();
        let state = state(&memory, Mode::Long, 0x10_0200, Gpr::Rsi, 0x2000).unwrap();
        for linear in [
            0,
            0x1f_ffff,
            0x20_0000,
            0x3fff_ffff,
            0x4000_0000,
            0xffff_ffff,
        ] {
            assert_eq!(walk(&memory, state.cr3, linear), Some(linear));
        }
        assert_eq!(walk(&memory, state.cr3, 1 << 32), None);
        assert!(state.cr4.contains(Cr4::PAE) && state.cr0.contains(Cr0::PG | Cr0::PE));
        assert!(state.efer.contains(Efer::LME | Efer::LMA));
        assert_eq!(
            (state.rip, state.gpr[Gpr::Rsi as usize]),
            (0x10_0200, 0x2000)
        );
    }

    #[test]
    fn segments_agree_with_the_descriptor_table() {
        for (mode, long) in [(Mode::Long, true), (Mode::Protected, false)] {
            let memory = memory();
            let state = state(&memory, mode, 0x10_0000, Gpr::Rbx, 1).unwrap();
            let cs = state.segments[SegmentRegister::Cs as usize];
            assert_eq!((cs.is_long(), cs.is_big()), (long, !long));
            for segment in state.segments.iter().chain([&state.tr]) {
                let at = u64::from(segment.selector.offset());
                assert!(at + 7 <= u64::from(state.gdtr.limit));
                let raw = Descriptor(memory.load(state.gdtr.base + at).unwrap());
                let reloaded = Segment::from_descriptor(segment.selector, raw);
                assert_eq!(reloaded, *segment);
            }
            assert_eq!(state.tr.base, TASK_STATE_BASE);
            assert_eq!(state.tr.limit, 0x67);
        }
    }

    #[test]
    fn protected_mode_has_no_paging_and_interrupts_are_off() {
        let state = state(&memory(), Mode::Protected, 0x10_0000, Gpr::Rsi, 0x2000).unwrap();
        assert_eq!(state.cr0, Cr0::PE | Cr0::ET);
        assert_eq!(
            (state.cr3, state.cr4, state.efer),
            (0, Cr4::empty(), Efer::empty())
        );
        assert_eq!(state.rflags, Rflags::FIXED);
        let base_and_limit = state.segments.map(|s| (s.base, s.limit));
        assert_eq!(base_and_limit, [(0, u32::MAX); 6]);
    }
}
