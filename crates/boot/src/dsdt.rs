//! The differentiated system description table: the board's devices, in AML (ACPI 6.5, chapters
//! 6, 19 and 20).

use crate::firmware::Board;
use crate::layout::{self, pm};
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal,
    IO, If, Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, Or, PackageBuilder, Path,
    ResourceTemplate, Return, Scope, Store, Uuid,
};
use acpi_tables::aml::{ONE, ZERO};

/// GSI of PCI's first interrupt line: INTA to INTD of the slots go to four pins of the I/O APIC
/// in turn.
const PCI_GSI_FIRST: u32 = 16;
const PCI_PINS: u32 = 4;
const PCI_DEVICES: u32 = 32;

/// The body of the DSDT.
pub(crate) fn build(board: &Board) -> Vec<u8> {
    let mut devices = Vec::new();
    pci_root(board).to(&mut devices);
    for device in legacy_devices() {
        device.to(&mut devices);
    }
    for id in 0..board.vcpus {
        processor(id).to(&mut devices);
    }
    let mut body = Scope::raw(Path::new("\\_SB_"), devices);
    soft_off().to_aml_bytes(&mut body);
    body
}

/// A device under `\_SB`: its name and the bytes of what is in it.
struct Node {
    name: String,
    children: Vec<u8>,
}

impl Node {
    fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            children: Vec::new(),
        }
    }

    fn add(mut self, child: &dyn Aml) -> Self {
        child.to_aml_bytes(&mut self.children);
        self
    }

    /// Names an object of the device.
    fn name(self, name: &str, value: &dyn Aml) -> Self {
        self.add(&Name::new(name.into(), value))
    }

    /// Current resources.
    fn resources(self, resources: Vec<&dyn Aml>) -> Self {
        self.name("_CRS", &ResourceTemplate::new(resources))
    }

    fn to(&self, sink: &mut Vec<u8>) {
        Device::new(self.name.as_str().into(), vec![&Raw(&self.children)]).to_aml_bytes(sink);
    }
}

/// AML that is there already.
struct Raw<'a>(&'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(self.0);
    }
}

/// The PCI root bridge: what it decodes and where its interrupt lines go.
fn pci_root(board: &Board) -> Node {
    const CONFIG_ADDRESS: u16 = 0xcf8;
    let bar64 = board.layout.bar64_window();
    let memory32 = |range: std::ops::Range<u64>, cacheable| {
        let (first, last) = (range.start as u32, (range.end - 1) as u32);
        AddressSpace::<u32>::new_memory(cacheable, true, first, last, None)
    };
    let plain = AddressSpaceCacheable::NotCacheable;
    Node::new("PCI0")
        .name("_HID", &EISAName::new("PNP0A08"))
        .name("_CID", &EISAName::new("PNP0A03"))
        .name("_UID", &ZERO)
        .name("_SEG", &ZERO)
        .name("_BBN", &ZERO)
        .resources(vec![
            &AddressSpace::<u16>::new_bus_number(0, 255),
            &IO::new(CONFIG_ADDRESS, CONFIG_ADDRESS, 1, 8),
            // Fixed legacy ports; BARs go to a window of their own.
            &AddressSpace::<u16>::new_io(0, CONFIG_ADDRESS - 1, None),
            &AddressSpace::<u16>::new_io(
                layout::BAR_IO_WINDOW.start,
                layout::BAR_IO_WINDOW.end - 1,
                None,
            ),
            &memory32(layout::VGA, AddressSpaceCacheable::Cacheable),
            &memory32(layout::BAR32_WINDOW, plain),
            &AddressSpace::<u64>::new_memory(plain, true, bar64.start, bar64.end - 1, None),
        ])
        .name("_PRT", &interrupt_routing())
        .add(&Raw(&operating_system_capabilities()))
}

/// `_PRT` (6.2.13): pin `p` of device `d` is wired to GSI 16 + (d + p) mod 4, so that devices
/// with one interrupt each, all on INTA, do not share one line.
fn interrupt_routing() -> PackageBuilder {
    /// Every function of the device.
    const ANY_FUNCTION: u32 = 0xffff;
    let mut table = PackageBuilder::new();
    for device in 0..PCI_DEVICES {
        for pin in 0..PCI_PINS {
            let mut entry = PackageBuilder::new();
            entry.add_element(&(device << 16 | ANY_FUNCTION));
            entry.add_element(&pin);
            // No link device: the next element is a GSI.
            entry.add_element(&ZERO);
            entry.add_element(&(PCI_GSI_FIRST + (device + pin) % PCI_PINS));
            table.add_element(&entry);
        }
    }
    table
}

/// `_OSC` (6.2.11, PCI Firmware Specification 3.3, 4.5.1): the system may control the PCI Express
/// capability structures; there is no hot-plug, PME or error hardware to give away.
fn operating_system_capabilities() -> Vec<u8> {
    const PCI_HOST_BRIDGE: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
    const GRANTED: u8 = 1 << 4;
    const UNKNOWN_UUID: u8 = 1 << 2;
    const UNKNOWN_REVISION: u8 = 1 << 3;
    const CAPABILITIES_MASKED: u8 = 1 << 4;

    let (uuid, revision, buffer) = (Arg(0), Arg(1), Arg(3));
    let granted = Local(0);
    let status = Path::new("CDW1");
    let control = Path::new("CDW3");
    let mut method = Vec::new();
    // One expression, for its parts are borrowed until the bytes are written.
    Method::new(
        "_OSC".into(),
        4,
        true,
        vec![
            &CreateDWordField::new(&status, &buffer, &0u8),
            &If::new(
                &Equal::new(&uuid, &Uuid::new(PCI_HOST_BRIDGE)),
                vec![
                    &CreateDWordField::new(&control, &buffer, &8u8),
                    &If::new(
                        &NotEqual::new(&revision, &ONE),
                        vec![&Or::new(&status, &status, &UNKNOWN_REVISION)],
                    ),
                    &And::new(&granted, &control, &GRANTED),
                    &If::new(
                        &NotEqual::new(&granted, &control),
                        vec![&Or::new(&status, &status, &CAPABILITIES_MASKED)],
                    ),
                    &Store::new(&control, &granted),
                ],
            ),
            &Else::new(vec![&Or::new(&status, &status, &UNKNOWN_UUID)]),
            &Return::new(&buffer),
        ],
    )
    .to_aml_bytes(&mut method);
    method
}

/// Devices that are found by their description, not on a bus.
fn legacy_devices() -> Vec<Node> {
    vec![
        serial_port(1, 0x3f8, 4),
        serial_port(2, 0x2f8, 3),
        serial_port(3, 0x3e8, 4),
        serial_port(4, 0x2e8, 3),
        Node::new("RTC_")
            .name("_HID", &EISAName::new("PNP0B00"))
            .resources(vec![&IO::new(0x70, 0x70, 1, 2), &isa_interrupt(8)]),
        Node::new("KBD_")
            .name("_HID", &EISAName::new("PNP0303"))
            .resources(vec![
                &IO::new(0x60, 0x60, 1, 1),
                &IO::new(0x64, 0x64, 1, 1),
                &isa_interrupt(1),
            ]),
        Node::new("MOU_")
            .name("_HID", &EISAName::new("PNP0F13"))
            .resources(vec![&isa_interrupt(12)]),
        Node::new("HPET")
            .name("_HID", &EISAName::new("PNP0103"))
            .name("_UID", &ZERO)
            .resources(vec![&Memory32Fixed::new(true, layout::HPET as u32, 0x400)]),
        motherboard(),
    ]
}

/// What the board itself takes: the ECAM area must be here or it is not used (PCI Firmware
/// Specification 3.3, 4.1.2).
fn motherboard() -> Node {
    let ecam = layout::ECAM;
    Node::new("MBRD")
        .name("_HID", &EISAName::new("PNP0C02"))
        .name("_UID", &ZERO)
        .resources(vec![
            &Memory32Fixed::new(true, ecam.start as u32, (ecam.end - ecam.start) as u32),
            &IO::new(pm::PM1A_EVENT, pm::PM1A_EVENT, 1, pm::LEN),
        ])
}

fn serial_port(number: u8, port: u16, irq: u8) -> Node {
    Node::new(format!("COM{number}"))
        .name("_HID", &EISAName::new("PNP0501"))
        .name("_UID", &number)
        .resources(vec![&IO::new(port, port, 1, 8), &isa_interrupt(irq)])
}

/// An interrupt of the ISA bus: edge-triggered, active high, not shared.
fn isa_interrupt(irq: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, irq.into())
}

/// A processor (8.4); `_UID` is what the MADT calls it.
fn processor(id: u32) -> Node {
    Node::new(format!("C{id:03X}"))
        .name("_HID", &"ACPI0007")
        .name("_UID", &id)
}

/// `\_S5` (7.4.2.6): the values of SLP_TYP for PM1a and PM1b, and two that are reserved.
fn soft_off() -> Name {
    let mut package = PackageBuilder::new();
    for value in [pm::S5_SLP_TYP, 0, 0, 0] {
        package.add_element(&value);
    }
    Name::new("_S5_".into(), &package)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layout;

    fn body(vcpus: u32) -> Vec<u8> {
        build(&Board {
            layout: Layout::new(8 << 30).unwrap(),
            vcpus,
            uuid: [0; 16],
        })
    }

    fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
        haystack.windows(needle.len()).position(|w| w == needle)
    }

    #[test]
    fn acpi_6_2_13_pins_are_swizzled_over_four_interrupts() {
        let mut table = Vec::new();
        interrupt_routing().to_aml_bytes(&mut table);
        // Device 3: its address, pin, no link, GSI. 0xc: DWordPrefix, 0xa: BytePrefix; a package
        // of four elements.
        for (pin, gsi) in [19u8, 16, 17, 18].into_iter().enumerate() {
            let mut entry = vec![4, 0xc, 0xff, 0xff, 3, 0];
            match pin {
                0 | 1 => entry.push(pin as u8),
                _ => entry.extend([0xa, pin as u8]),
            }
            entry.extend([0, 0xa, gsi]);
            assert!(position(&table, &entry).is_some(), "pin {pin}");
        }
    }

    #[test]
    fn the_windows_of_the_root_bridge_are_the_layouts() {
        let body = body(1);
        let window = Layout::new(8 << 30).unwrap().bar64_window();
        let mut descriptor = vec![0x8a, 43, 0, 0, 0xc, 1];
        for field in [
            0,
            window.start,
            window.end - 1,
            0,
            layout::BAR64_WINDOW_SIZE,
        ] {
            descriptor.extend(field.to_le_bytes());
        }
        assert!(position(&body, &descriptor).is_some());
        let mut ports = vec![0x88, 13, 0, 1, 0xc, 3];
        for field in [0u16, 0xc000, 0xefff, 0, 0x3000] {
            ports.extend(field.to_le_bytes());
        }
        assert!(position(&body, &ports).is_some());
    }

    #[test]
    fn every_vcpu_is_a_processor_device() {
        let body = body(17);
        for id in 0..17 {
            assert!(position(&body, format!("C{id:03X}").as_bytes()).is_some());
        }
        assert!(position(&body, b"C011").is_none());
    }

    #[test]
    fn acpi_7_4_2_soft_off_has_the_boards_sleep_type() {
        let expected = [0x08, b'_', b'S', b'5', b'_', 0x12, 0x07, 4, 0xa, 5, 0, 0, 0];
        assert!(body(1).ends_with(&expected));
    }
}
