//! What a PC's firmware leaves behind for a system that is loaded without it: tables, BIOS data,
//! and processors that are set up.

use crate::layout::{self, EBDA, HIGH_RAM, Layout, PHYSICAL_ADDRESS_BITS};
use crate::le::Fields;
use crate::{Error, acpi, smbios};
use memory::GuestMemory;
use x86::{ApicState, Cr0, MtrrState, VcpuState};

/// What the tables describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Board {
    /// The address space.
    pub layout: Layout,
    /// How many vCPUs there are; their APIC IDs count from 0.
    pub vcpus: u32,
    /// The machine's identity, as the 16 bytes of RFC 9562.
    pub uuid: [u8; 16],
}

/// Writes the BIOS data area, the ACPI and the SMBIOS tables.
///
/// # Errors
/// If the number of vCPUs can't be described, or memory has another layout.
pub fn write_tables(memory: &GuestMemory, board: &Board) -> Result<(), Error> {
    write_bios_data(memory)?;
    for image in acpi::build(board)?.into_iter().chain(smbios::build(board)) {
        memory.load_image(image.gpa, &image.bytes)?;
    }
    Ok(())
}

/// Bytes that go to a place in guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// The fields of the BIOS data area, at 0x400, that systems still look at (Phoenix System BIOS
/// for IBM PCs, chapter 3), and the extended one's size.
fn write_bios_data(memory: &GuestMemory) -> Result<(), Error> {
    const BDA: u64 = 0x400;
    let mut data = Fields::<0x100>::new();
    for (at, port) in [0x3f8u16, 0x2f8, 0x3e8, 0x2e8].into_iter().enumerate() {
        data.u16(at * 2, port);
    }
    data.u16(0x0e, (EBDA >> 4) as u16);
    // Equipment: four serial ports, a PS/2 mouse, a coprocessor.
    data.u16(0x10, 4 << 9 | 1 << 2 | 1 << 1);
    data.u16(0x13, (EBDA >> 10) as u16);
    memory.write(BDA, &data.0)?;
    let ebda_kib = ((layout::VGA.start - EBDA) >> 10) as u8;
    Ok(memory.write(EBDA, &[ebda_kib])?)
}

/// The state in which firmware leaves the boot processor, but for what an entry sets.
pub(crate) fn boot_processor() -> VcpuState {
    let mut state = processor(0);
    state.cr0 -= Cr0::CD | Cr0::NW;
    virtual_wire(&mut state.apic);
    state
}

/// The state of the vCPU with APIC ID `id` before it is started: after reset, with what firmware
/// sets up on every processor, and which INIT keeps.
pub fn processor(id: u32) -> VcpuState {
    VcpuState {
        mtrr: memory_types(),
        ..VcpuState::after_reset(id)
    }
}

/// Memory types of the layout: write-back, but for the VGA area and the 32-bit devices
/// (uncacheable) and ROM (write-protected). A system that finds MTRRs off may do without PAT too.
fn memory_types() -> MtrrState {
    const UNCACHEABLE: u64 = 0;
    const WRITE_PROTECTED: u64 = 0x0505_0505_0505_0505;
    const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
    /// IA32_MTRR_DEF_TYPE: enabled, fixed ranges enabled, write-back.
    const DEFAULT: u64 = 1 << 11 | 1 << 10 | 6;
    const VALID: u64 = 1 << 11;

    // SDM vol. 3, table 12-9: to 0x80000, to 0xa0000, VGA, then eight of 32 KiB.
    let mut fixed = [WRITE_PROTECTED; 11];
    fixed[..3].copy_from_slice(&[WRITE_BACK, WRITE_BACK, UNCACHEABLE]);
    let devices = layout::BAR32_WINDOW.start;
    let mask = (1u64 << PHYSICAL_ADDRESS_BITS) - (HIGH_RAM - devices);
    let mut variable = [(0, 0); 8];
    variable[0] = (devices | UNCACHEABLE, mask | VALID);
    MtrrState {
        default_type: DEFAULT,
        fixed,
        variable,
    }
}

/// Virtual wire mode (MultiProcessor Specification 1.4, 3.6.2.2): the PIC's INTR comes through
/// LINT0 and NMI through LINT1, so that a system that knows no APIC gets its interrupts.
fn virtual_wire(apic: &mut ApicState) {
    const LINT0: usize = 3;
    const LINT1: usize = 4;
    apic.svr = 0x1ff;
    apic.lvt[LINT0] = 0x700;
    apic.lvt[LINT1] = 0x400;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mp_3_6_2_2_the_boot_processor_is_in_virtual_wire_mode() {
        let apic = boot_processor().apic;
        assert_eq!(apic.lvt[3] >> 8 & 7, 7, "ExtINT");
        assert_eq!(apic.lvt[4] >> 8 & 7, 4, "NMI");
        assert!(apic.lvt[3..5].iter().all(|lvt| lvt & 1 << 16 == 0));
        assert_ne!(apic.svr & 1 << 8, 0);
    }

    #[test]
    fn memory_types_follow_the_layout() {
        let mtrr = processor(1).mtrr;
        let (base, mask) = mtrr.variable[0];
        let matches = |gpa: u64| gpa & mask & !0xfff == base & mask & !0xfff;
        for gpa in [0xc000_0000, layout::LAPIC, 0xffff_f000] {
            assert!(matches(gpa), "{gpa:#x}");
        }
        for gpa in [0, 0xbfff_f000, 1 << 32, 0x1_c000_0000] {
            assert!(!matches(gpa), "{gpa:#x}");
        }
        assert_eq!(mtrr.default_type & 0xff, 6);
        assert_eq!(mtrr.fixed[2], 0, "VGA");
    }

    #[test]
    fn bios_data_agrees_with_the_memory_map() {
        let layout = Layout::new(64 << 20).unwrap();
        let memory = GuestMemory::new(&layout.regions()).unwrap();
        let board = Board {
            layout,
            vcpus: 1,
            uuid: [0; 16],
        };
        write_tables(&memory, &board).unwrap();
        assert_eq!(u64::from(memory.load::<u16>(0x40e).unwrap()) << 4, EBDA);
        assert_eq!(u64::from(memory.load::<u16>(0x413).unwrap()) << 10, EBDA);
        assert_eq!(memory.load::<u16>(0x400), Ok(0x3f8));
        assert_eq!(memory.load::<u8>(EBDA), Ok(4));
    }
}
