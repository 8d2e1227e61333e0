//! ACPI tables that describe the board.
//!
//! Source: Advanced Configuration and Power Interface Specification 6.5, section 5.2, and, for the
//! tables that it reserves for others, the PCI Firmware Specification 3.3 (MCFG) and the IA-PC
//! HPET Specification 1.0a, section 3.2.4.
//!
//! The root pointer names an XSDT and, for systems of the ACPI 1.0 age, an RSDT; both name the
//! same tables. All lie in ROM but the FACS, which the guest writes.

use crate::Error;
use crate::dsdt;
use crate::firmware::{Board, Image};
use crate::layout::{self, pm};
use crate::le::Fields;
use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;

/// The most vCPUs that the tables have room for.
pub const VCPUS_MAX: u32 = 1024;

/// ACPI ID of the I/O APIC, as its ID register has it after reset.
const IOAPIC_ID: u8 = 0;
/// The global system interrupt that the PIT and, in legacy replacement mode, the HPET raise: the
/// I/O APIC's pin 0 has the PIC on it.
const TIMER_GSI: u32 = 2;

const OEM_ID: [u8; 6] = *b"DOPPEL";
const OEM_TABLE_ID: [u8; 8] = *b"DOPPELPC";
const OEM_REVISION: u32 = 1;
const HEADER_LEN: u32 = 36;

/// The tables of `board`, each with its place.
///
/// # Errors
/// [`Error::Vcpus`].
pub fn build(board: &Board) -> Result<Vec<Image>, Error> {
    if !(1..=VCPUS_MAX).contains(&board.vcpus) {
        return Err(Error::Vcpus(board.vcpus));
    }
    let mut area = Area::new();
    let dsdt = area.push(table(b"DSDT", 2, &dsdt::build(board)));
    let entries = [
        area.push(bytes(&fadt(dsdt))),
        area.push(madt(board.vcpus)),
        area.push(hpet()),
        area.push(bytes(&mcfg())),
    ];
    let rsdt = entries.map(u32::to_le_bytes).concat();
    let rsdt = area.push(table(b"RSDT", 1, &rsdt));
    let xsdt = entries.map(|at| u64::from(at).to_le_bytes()).concat();
    let xsdt = area.push(table(b"XSDT", 1, &xsdt));
    Ok(vec![
        Image {
            gpa: layout::ACPI_TABLES.start,
            bytes: area.bytes,
        },
        Image {
            gpa: layout::RSDP,
            bytes: rsdp(rsdt, xsdt),
        },
        Image {
            gpa: layout::FACS,
            bytes: bytes(&FACS::new()),
        },
    ])
}

/// The area of the tables, filled from its start.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    const ALIGN: usize = 16;

    fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    /// Appends a table. Returns its guest-physical address.
    fn push(&mut self, table: Vec<u8>) -> u32 {
        let at = self.bytes.len().next_multiple_of(Self::ALIGN);
        self.bytes.resize(at, 0);
        self.bytes.extend(table);
        let room = (layout::ACPI_TABLES.end - layout::ACPI_TABLES.start) as usize;
        assert!(self.bytes.len() <= room, "room for the tables of VCPUS_MAX");
        layout::ACPI_TABLES.start as u32 + at as u32
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with the standard header (5.2.6).
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(
        *signature,
        HEADER_LEN,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// Root system description pointer, revision 2 (5.2.5.3).
fn rsdp(rsdt: u32, xsdt: u32) -> Vec<u8> {
    const LEN: usize = 36;
    /// What the first checksum covers: the structure of ACPI 1.0.
    const LEN_1_0: usize = 20;
    let mut rsdp = Fields::<LEN>::new();
    rsdp.put(0, b"RSD PTR ")
        .put(9, OEM_ID)
        .u8(15, 2)
        .u32(16, rsdt)
        .u32(20, LEN as u32)
        .u64(24, xsdt.into())
        .checksum(8, 0..LEN_1_0)
        .checksum(32, 0..LEN);
    rsdp.0.to_vec()
}

/// Fixed ACPI description table (5.2.9).
///
/// The machine is in ACPI mode from the start: there is no system management mode to ask, so the
/// SMI command port is 0 and SCI_EN is always set (4.8.2.5).
fn fadt(dsdt: u32) -> impl Aml {
    /// A latency above this says that the CPU has no such state (5.2.9, P_LVL2_LAT, P_LVL3_LAT).
    const NO_C2: u16 = 0xfff;
    const NO_C3: u16 = 0xfff;
    /// CMOS address of the century.
    const CENTURY: u8 = 0x32;
    /// IA-PC boot architecture (table 5.11): legacy devices, an i8042, no VGA.
    const BOOT_ARCHITECTURE: u16 = 1 << 0 | 1 << 1 | 1 << 2;

    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Desktop)
        .firmware_ctrl_32(layout::FACS as u32)
        .gpe_info(pm::GPE0.into(), 0, pm::GPE0_LEN, 0, 0);
    // Without PwrButton the power button is fixed hardware; with SlpButton and FixRtc there is
    // no sleep button and no RTC wake-up in fixed hardware.
    for flag in [
        Flags::Wbinvd,
        Flags::ProcC1,
        Flags::SlpButton,
        Flags::FixRtc,
        Flags::TmrValExt,
        Flags::ResetRegSup,
    ] {
        fadt = fadt.flag(flag);
    }
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(pm::SCI).into();
    fadt.pm1a_evt_blk = u32::from(pm::PM1A_EVENT).into();
    fadt.pm1a_cnt_blk = u32::from(pm::PM1A_CONTROL).into();
    fadt.pm_tmr_blk = u32::from(pm::TIMER).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len) = (4, 2, 4);
    fadt.x_pm1a_evt_blk = port(pm::PM1A_EVENT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = port(pm::PM1A_CONTROL, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = port(pm::TIMER, 32, AccessSize::DwordAccess);
    fadt.x_gpe0_blk = port(pm::GPE0, pm::GPE0_LEN * 8, AccessSize::ByteAccess);
    fadt.reset_reg = port(pm::RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = pm::RESET_VALUE;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.finalize()
}

fn port(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
}

/// Multiple APIC description table (5.2.12). Built by hand: the crate's has no flags and none of
/// the structures but the first two.
fn madt(vcpus: u32) -> Vec<u8> {
    /// There are PICs too.
    const PCAT_COMPAT: u32 = 1;
    /// The first APIC ID that only an x2APIC can have.
    const X2APIC_FIRST: u32 = 255;
    const REVISION: u8 = 5;
    const LINT1: u8 = 1;

    let mut body = Vec::new();
    body.extend((layout::LAPIC as u32).to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    for id in 0..vcpus.min(X2APIC_FIRST) {
        body.extend(local_apic(id as u8));
    }
    for id in X2APIC_FIRST..vcpus {
        body.extend(local_x2apic(id));
    }
    body.extend(io_apic());
    body.extend(source_override(0, TIMER_GSI, Signal::Bus));
    body.extend(source_override(pm::SCI, pm::SCI.into(), Signal::HighLevel));
    // 5.2.12.7: on every processor, active high and edge-triggered as the bus has it.
    body.extend([4, 6, 0xff, 0, 0, LINT1]);
    if vcpus > X2APIC_FIRST {
        // 5.2.12.13.
        body.extend([10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, LINT1, 0, 0, 0]);
    }
    table(b"APIC", REVISION, &body)
}

/// Processor local APIC (5.2.12.2), enabled.
fn local_apic(id: u8) -> [u8; 8] {
    [0, 8, id, id, 1, 0, 0, 0]
}

/// Processor local x2APIC (5.2.12.12), enabled.
fn local_x2apic(id: u32) -> [u8; 16] {
    let mut entry = Fields::<16>::new();
    entry.u8(0, 9).u8(1, 16).u32(4, id).u32(8, 1).u32(12, id);
    entry.0
}

/// I/O APIC (5.2.12.3).
fn io_apic() -> [u8; 12] {
    let mut entry = Fields::<12>::new();
    entry
        .u8(0, 1)
        .u8(1, 12)
        .u8(2, IOAPIC_ID)
        .u32(4, layout::IOAPIC as u32);
    entry.0
}

/// How an interrupt is signalled: MPS INTI flags (table 5.26).
#[derive(Clone, Copy)]
#[repr(u16)]
enum Signal {
    /// As the ISA bus does: active high, edge-triggered.
    Bus = 0,
    /// Active high, level-triggered.
    HighLevel = 0b1101,
}

/// Interrupt source override (5.2.12.5) of an ISA interrupt.
fn source_override(irq: u8, gsi: u32, signal: Signal) -> [u8; 10] {
    let mut entry = Fields::<10>::new();
    entry
        .u8(0, 2)
        .u8(1, 10)
        .u8(3, irq)
        .u32(4, gsi)
        .u16(8, signal as u16);
    entry.0
}

/// HPET description table.
fn hpet() -> Vec<u8> {
    /// Low half of the capabilities register: vendor 0x8086, legacy replacement, 64 bits, three
    /// comparators, revision 1.
    const BLOCK_ID: u32 = 0x8086_a201;
    /// The shortest period without lost interrupts, in ticks.
    const MIN_TICK: u16 = 100;
    let mut body = Fields::<20>::new();
    body.u32(0, BLOCK_ID)
        // Generic address structure: memory, 64 bits wide.
        .u8(5, 64)
        .u64(8, layout::HPET)
        .u16(17, MIN_TICK);
    table(b"HPET", 1, &body.0)
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 255);
    mcfg
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Layout, le};
    use std::collections::BTreeMap;

    fn board(vcpus: u32) -> Board {
        Board {
            layout: Layout::new(8 << 30).unwrap(),
            vcpus,
            uuid: [0; 16],
        }
    }

    /// Reads guest memory as the images leave it.
    struct Placed(Vec<Image>);

    impl Placed {
        fn at(&self, gpa: u64, len: usize) -> &[u8] {
            let inside = |i: &&Image| (i.gpa..i.gpa + i.bytes.len() as u64).contains(&gpa);
            let image = self.0.iter().find(inside).expect("an image there");
            &image.bytes[(gpa - image.gpa) as usize..][..len]
        }

        /// The table at `gpa`, its length and checksum checked.
        fn table(&self, gpa: u64) -> &[u8] {
            let len = le::u32(self.at(gpa, 8), 4).unwrap();
            let table = self.at(gpa, len as usize);
            assert_eq!(le::checksum(table), 0, "{:?}", &table[..4]);
            table
        }

        /// All tables that the XSDT names, found from the root pointer as a guest does.
        fn by_signature(&self) -> BTreeMap<[u8; 4], Vec<u8>> {
            let rsdp = self.at(layout::RSDP, 36);
            assert_eq!(&rsdp[..8], b"RSD PTR ");
            assert_eq!((le::checksum(&rsdp[..20]), le::checksum(rsdp)), (0, 0));
            let xsdt = self.table(le::u64(rsdp, 24).unwrap());
            let rsdt = self.table(le::u32(rsdp, 16).unwrap().into());
            assert_eq!((&xsdt[..4], &rsdt[..4]), (&b"XSDT"[..], &b"RSDT"[..]));
            let wide = xsdt[36..].chunks_exact(8).map(|e| le::u64(e, 0).unwrap());
            let narrow = rsdt[36..].chunks_exact(4).map(|e| le::u32(e, 0).unwrap());
            let entries: Vec<u64> = wide.collect();
            assert_eq!(entries, narrow.map(u64::from).collect::<Vec<_>>());
            entries
                .into_iter()
                .map(|gpa| self.table(gpa).to_vec())
                .map(|table| (*table.first_chunk().unwrap(), table))
                .collect()
        }
    }

    fn placed(vcpus: u32) -> Placed {
        Placed(build(&board(vcpus)).unwrap())
    }

    /// Types of the MADT's structures, in order; their lengths add up to the table's.
    fn madt_structures(madt: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut rest = &madt[44..];
        let mut structures = Vec::new();
        while let &[kind, len, ..] = rest {
            structures.push((kind, rest[..len.into()].to_vec()));
            rest = &rest[len.into()..];
        }
        assert!(rest.is_empty());
        structures
    }

    #[test]
    fn acpi_5_2_5_the_root_pointer_leads_to_every_table() {
        let tables = placed(2).by_signature();
        let names: Vec<_> = tables.keys().map(|k| str::from_utf8(k).unwrap()).collect();
        assert_eq!(names, ["APIC", "FACP", "HPET", "MCFG"]);
    }

    #[test]
    fn acpi_5_2_9_the_fadt_names_dsdt_facs_and_fixed_hardware() {
        let placed = placed(1);
        let fadt = &placed.by_signature()[b"FACP"];
        assert_eq!((fadt.len(), fadt[8]), (276, 6));
        let dsdt = le::u32(fadt, 40).unwrap();
        assert_eq!(le::u64(fadt, 140), Some(dsdt.into()));
        assert_eq!(&placed.table(dsdt.into())[..4], b"DSDT");
        let facs = placed.at(le::u32(fadt, 36).unwrap().into(), 64);
        assert_eq!((&facs[..4], le::u32(facs, 4)), (&b"FACS"[..], Some(64)));
        let ports = [56, 64, 76, 80].map(|at| le::u32(fadt, at).unwrap());
        assert_eq!(ports, [0x600, 0x604, 0x608, 0x620]);
        // SCI, no SMI command, lengths, reset register and value.
        assert_eq!((le::u16(fadt, 46), le::u32(fadt, 48)), (Some(9), Some(0)));
        assert_eq!(fadt[88..94], [4, 2, 0, 4, 4, 0]);
        assert_eq!(fadt[116..129], [1, 8, 0, 1, 0xf9, 0xc, 0, 0, 0, 0, 0, 0, 6]);
        let flags = le::u32(fadt, 112).unwrap();
        assert_eq!(flags >> 4 & 1, 0, "the power button is fixed hardware");
        assert_eq!(flags >> 8 & 1, 1, "a PM timer of 32 bits");
        assert_eq!(flags >> 10 & 1, 1, "RESET_REG_SUP");
        assert_eq!(flags >> 20 & 1, 0, "not hardware-reduced");
    }

    #[test]
    fn acpi_5_2_12_the_madt_has_a_local_apic_for_each_vcpu() {
        for vcpus in [1, 4, 255, 256, VCPUS_MAX] {
            let tables = placed(vcpus).by_signature();
            let structures = madt_structures(&tables[b"APIC"]);
            let count = |kind| structures.iter().filter(|s| s.0 == kind).count() as u32;
            assert_eq!(
                (count(0), count(9)),
                (vcpus.min(255), vcpus.saturating_sub(255))
            );
            assert_eq!((count(1), count(2), count(4)), (1, 2, 1));
            assert_eq!(count(10), u32::from(vcpus > 255));
            let last = structures.iter().rfind(|s| [0, 9].contains(&s.0)).unwrap();
            let id = match last.0 {
                0 => last.1[3].into(),
                _ => le::u32(&last.1, 4).unwrap(),
            };
            assert_eq!(id, vcpus - 1);
        }
    }

    #[test]
    fn acpi_5_2_12_5_the_timer_is_on_pin_2_and_the_sci_is_level_triggered() {
        let tables = placed(1).by_signature();
        let overrides: Vec<_> = madt_structures(&tables[b"APIC"])
            .into_iter()
            .filter(|s| s.0 == 2)
            .map(|s| (s.1[3], le::u32(&s.1, 4).unwrap(), le::u16(&s.1, 8).unwrap()))
            .collect();
        assert_eq!(overrides, [(0, 2, 0), (9, 9, 0xd)]);
    }

    #[test]
    fn hpet_3_2_4_and_mcfg_name_their_registers() {
        let tables = placed(1).by_signature();
        let hpet = &tables[b"HPET"];
        assert_eq!((hpet.len(), le::u64(hpet, 44)), (56, Some(layout::HPET)));
        let mcfg = &tables[b"MCFG"];
        assert_eq!(le::u64(mcfg, 44), Some(layout::ECAM.start));
        assert_eq!((mcfg[54], mcfg[55]), (0, 255));
    }

    #[test]
    fn vcpus_that_have_no_room_are_refused() {
        for bad in [0, VCPUS_MAX + 1, u32::MAX] {
            assert!(matches!(build(&board(bad)), Err(Error::Vcpus(n)) if n == bad));
        }
    }

    /// For `iasl -d`, which is not part of the tests' world: writes each table to a file.
    #[test]
    #[ignore = "writes files for a look with iasl; set TABLES to a directory"]
    fn dump() {
        let directory = std::path::PathBuf::from(std::env::var_os("TABLES").expect("TABLES"));
        let placed = placed(300);
        let mut tables = placed.by_signature();
        let dsdt = le::u32(&tables[b"FACP"], 40).unwrap();
        tables.insert(*b"DSDT", placed.table(dsdt.into()).to_vec());
        for (name, table) in tables {
            let name = format!("{}.aml", str::from_utf8(&name).unwrap());
            std::fs::write(directory.join(name), table).unwrap();
        }
    }
}
