//! The I/O APIC: 24 inputs, each with an entry that says which message it sends.

#[cfg(test)]
mod tests;

use device::{Device, Mmio, Msi, Width};
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};

/// Intel 82093AA data sheet (order 290566-001), 3.0; EOI register and version 0x20: Intel 82801EB
/// (ICH5) data sheet (order 252516-001), 9.5.
mod spec {
    /// 3.1: memory-mapped registers.
    pub(super) const IOREGSEL: u64 = 0x00;
    pub(super) const IOWIN: u64 = 0x10;
    pub(super) const EOI: u64 = 0x40;

    /// 3.2: registers behind the window.
    pub(super) const ID: u8 = 0x00;
    pub(super) const VERSION: u8 = 0x01;
    pub(super) const ARBITRATION: u8 = 0x02;
    pub(super) const REDIRECTION: u8 = 0x10;
    pub(super) const REDIRECTION_LAST: u8 = 0x3f;

    /// The I/O APIC's ID is in bits 27 to 24.
    pub(super) const ID_MASK: u32 = 0x0f00_0000;
    /// Version with an EOI register; bits 23 to 16 name the last redirection entry.
    pub(super) const VERSION_VALUE: u32 = 0x20 | 23 << 16;

    /// 3.2.4: redirection table entry.
    pub(super) const VECTOR: u64 = 0xff;
    pub(super) const DELIVERY_SHIFT: u32 = 8;
    pub(super) const DELIVERY_FIXED: u64 = 0;
    pub(super) const DELIVERY_LOWEST: u64 = 1;
    pub(super) const DELIVERY_EXTINT: u64 = 7;
    pub(super) const LOGICAL: u64 = 1 << 11;
    pub(super) const REMOTE_IRR: u64 = 1 << 14;
    pub(super) const LEVEL: u64 = 1 << 15;
    pub(super) const MASKED: u64 = 1 << 16;
    pub(super) const DESTINATION_SHIFT: u32 = 56;
    /// Destination bits 14 to 8, reserved in the data sheet: where KVM, Hyper-V and Xen extend
    /// the destination for guests without interrupt remapping.
    pub(super) const EXTENDED_SHIFT: u32 = 49;
    /// Vector, delivery mode, destination mode, polarity, trigger mode, mask; destinations.
    /// Delivery status and remote IRR are read-only.
    pub(super) const WRITABLE: u64 = 0xfffe_0000_0001_afff;

    /// Intel SDM vol. 3, 11.11: message address and data.
    pub(super) const MESSAGE_ADDRESS: u64 = 0xfee0_0000;
    pub(super) const MESSAGE_DESTINATION_SHIFT: u32 = 12;
    pub(super) const MESSAGE_EXTENDED_SHIFT: u32 = 5;
    pub(super) const MESSAGE_LOGICAL: u64 = 1 << 2;
    pub(super) const MESSAGE_ASSERT: u32 = 1 << 14;
    pub(super) const MESSAGE_LEVEL: u32 = 1 << 15;
}

/// One redirection table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry(u64);

impl Entry {
    /// After reset: masked.
    const RESET: Self = Self(spec::MASKED);

    fn delivery(self) -> u64 {
        self.0 >> spec::DELIVERY_SHIFT & 7
    }

    fn is_masked(self) -> bool {
        self.0 & spec::MASKED != 0
    }

    /// Level-triggered. The other delivery modes are edge-triggered, whatever the entry says
    /// (82093AA, 3.2.4, "Delivery Mode").
    fn is_level(self) -> bool {
        self.0 & spec::LEVEL != 0
            && matches!(
                self.delivery(),
                spec::DELIVERY_FIXED | spec::DELIVERY_LOWEST
            )
    }

    fn is_in_service(self) -> bool {
        self.0 & spec::REMOTE_IRR != 0
    }

    /// The message as a write of data to an address.
    fn message(self) -> (u64, u32) {
        let destination = self.0 >> spec::DESTINATION_SHIFT;
        let extended = self.0 >> spec::EXTENDED_SHIFT & 0x7f;
        let mut address = spec::MESSAGE_ADDRESS
            | destination << spec::MESSAGE_DESTINATION_SHIFT
            | extended << spec::MESSAGE_EXTENDED_SHIFT;
        if self.0 & spec::LOGICAL != 0 {
            address |= spec::MESSAGE_LOGICAL;
        }
        let mut data = (self.0 & spec::VECTOR) as u32 | (self.delivery() as u32) << 8;
        if self.is_level() {
            data |= spec::MESSAGE_LEVEL | spec::MESSAGE_ASSERT;
        }
        (address, data)
    }
}

/// An I/O APIC.
///
/// A line that is high asserts its input, whatever the polarity bit of its entry: on this board
/// no line is inverted, and firmware tables that say otherwise mean the wire, not the request.
#[derive(Debug)]
pub struct IoApic {
    id: u32,
    select: u8,
    entries: [Entry; IoApic::PINS],
    /// Levels of the inputs.
    inputs: u32,
    msi: Msi,
}

impl IoApic {
    /// Number of inputs.
    pub const PINS: usize = 24;
    /// Where a PC has the registers.
    pub const BASE: u64 = 0xfec0_0000;
    /// Length of the register range in bytes.
    pub const LEN: u64 = 0x1000;

    /// An I/O APIC after power-on that sends to `msi`.
    pub fn new(msi: Msi) -> Self {
        Self {
            id: 0,
            select: 0,
            entries: [Entry::RESET; Self::PINS],
            inputs: 0,
            msi,
        }
    }

    /// Drives input `pin`.
    ///
    /// # Panics
    /// If there is no such input.
    pub fn set_pin(&mut self, pin: usize, high: bool) {
        assert!(pin < Self::PINS, "the I/O APIC has 24 inputs");
        let bit = 1 << pin;
        let rises = high && self.inputs & bit == 0;
        if high {
            self.inputs |= bit;
        } else {
            self.inputs &= !bit;
        }
        let entry = self.entries[pin];
        if entry.is_level() {
            self.serve_level(pin);
        } else if rises && !entry.is_masked() {
            // An edge at a masked input is lost (82093AA, 3.2.4, "Interrupt Mask").
            self.send(entry);
        }
    }

    /// The end of the level-triggered interrupt with `vector`, from a local APIC: inputs that are
    /// still high ask again.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..Self::PINS {
            let entry = &mut self.entries[pin];
            if entry.is_in_service() && entry.0 & spec::VECTOR == u64::from(vector) {
                entry.0 &= !spec::REMOTE_IRR;
                self.serve_level(pin);
            }
        }
    }

    /// Sends a level-triggered request that is high, unmasked and not in service.
    fn serve_level(&mut self, pin: usize) {
        let entry = self.entries[pin];
        let high = self.inputs >> pin & 1 != 0;
        if high && entry.is_level() && !entry.is_masked() && !entry.is_in_service() {
            self.entries[pin].0 |= spec::REMOTE_IRR;
            self.send(entry);
        }
    }

    fn send(&self, entry: Entry) {
        // ExtINT asks for the PIC's vector. The PIC is wired to LINT0 of the boot processor, to
        // no input of this chip: there is nothing to ask for.
        if entry.delivery() != spec::DELIVERY_EXTINT {
            let (address, data) = entry.message();
            self.msi.send(address, data);
        }
    }

    fn read_window(&self) -> u32 {
        match self.select {
            spec::ID | spec::ARBITRATION => self.id,
            spec::VERSION => spec::VERSION_VALUE,
            spec::REDIRECTION..=spec::REDIRECTION_LAST => {
                let (pin, shift) = self.selected_entry();
                (self.entries[pin].0 >> shift) as u32
            }
            _ => 0,
        }
    }

    fn write_window(&mut self, value: u32) {
        match self.select {
            spec::ID => self.id = value & spec::ID_MASK,
            spec::REDIRECTION..=spec::REDIRECTION_LAST => {
                let (pin, shift) = self.selected_entry();
                self.write_entry(pin, shift, value);
            }
            _ => {}
        }
    }

    /// Input and bit offset of the selected half of an entry.
    fn selected_entry(&self) -> (usize, u32) {
        let index = self.select - spec::REDIRECTION;
        (usize::from(index / 2), u32::from(index % 2) * 32)
    }

    fn write_entry(&mut self, pin: usize, shift: u32, value: u32) {
        let written = spec::WRITABLE & 0xffff_ffff << shift;
        let entry = &mut self.entries[pin];
        entry.0 = entry.0 & !written | u64::from(value) << shift & written;
        if !entry.is_level() {
            // Software that has no EOI register ends an interrupt by switching the entry to edge
            // and back.
            entry.0 &= !spec::REMOTE_IRR;
        }
        self.serve_level(pin);
    }
}

impl Mmio for IoApic {
    fn mmio_read(&mut self, offset: u64, _: Width) -> u64 {
        match offset {
            spec::IOREGSEL => self.select.into(),
            spec::IOWIN => self.read_window().into(),
            _ => 0,
        }
    }

    fn mmio_write(&mut self, offset: u64, _: Width, value: u64) {
        match offset {
            spec::IOREGSEL => self.select = value as u8,
            spec::IOWIN => self.write_window(value as u32),
            spec::EOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }
}

/// The saved state of an [`IoApic`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicV1 {
    id: u32,
    select: u8,
    entries: [Entry; IoApic::PINS],
    inputs: u32,
}

impl Saved for IoApicV1 {
    const KIND: &'static str = "ioapic";
    const VERSION: u16 = 1;
}

impl Persist for IoApic {
    type State = IoApicV1;

    fn save(&self) -> IoApicV1 {
        let Self {
            id,
            select,
            entries,
            inputs,
            msi: _,
        } = self;
        IoApicV1 {
            id: *id,
            select: *select,
            entries: *entries,
            inputs: *inputs,
        }
    }

    fn restore(&mut self, state: IoApicV1) -> Result<(), Invalid> {
        let IoApicV1 {
            id,
            select,
            entries,
            inputs,
        } = state;
        if id & !spec::ID_MASK != 0 {
            return Err(Invalid::new("the ID has more than four bits"));
        }
        if inputs >> Self::PINS != 0 {
            return Err(Invalid::new("an input that there is not"));
        }
        for (pin, entry) in entries.iter().enumerate() {
            let in_service = entry.is_in_service();
            if entry.0 & !(spec::WRITABLE | spec::REMOTE_IRR) != 0 {
                return Err(Invalid::new(format!("entry {pin} has reserved bits")));
            }
            if in_service && !entry.is_level() {
                return Err(Invalid::new(format!("entry {pin} waits for no EOI")));
            }
            if inputs >> pin & 1 != 0 && entry.is_level() && !entry.is_masked() && !in_service {
                return Err(Invalid::new(format!(
                    "entry {pin} has not sent its request"
                )));
            }
        }
        (self.id, self.select, self.entries, self.inputs) = (id, select, entries, inputs);
        Ok(())
    }
}

impl Device for IoApic {
    fn reset(&mut self) {
        // The devices reset their lines themselves.
        let Self {
            id,
            select,
            entries,
            inputs: _,
            msi: _,
        } = self;
        (*id, *select, *entries) = (0, 0, [Entry::RESET; Self::PINS]);
    }

    device::saved_by_persist!();
}
