//! Messages on the interrupt bus.

use crate::spec::icr;

/// What a message does where it arrives (SDM vol. 3, 11.6.1, "Delivery Mode").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The interrupt, at every destination.
    Fixed,
    /// The interrupt, at that destination which does the least urgent work.
    LowestPriority,
    /// System management interrupt: there is no SMM here, it is lost.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI; the vector is the page of the first instruction.
    StartUp,
    /// The vector is asked of the PIC.
    External,
}

impl Delivery {
    /// The mode of the three bits that an MSI, an ICR or an LVT entry has for it.
    fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            7 => Some(Self::External),
            _ => None,
        }
    }
}

/// Which local APICs a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The one with this APIC ID.
    Physical(u32),
    /// Those whose logical destination matches.
    Logical(u32),
    /// All.
    All,
    /// All but the sender.
    Others,
}

/// A message on the interrupt bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Who gets it.
    pub destination: Destination,
    /// What it does there.
    pub delivery: Delivery,
    /// The interrupt's vector.
    pub vector: u8,
    /// Level-triggered: its EOI is broadcast to the I/O APICs.
    pub level: bool,
}

/// An xAPIC destination with all bits set is a broadcast (11.6.2.1, 11.6.2.2).
const XAPIC_BROADCAST: u32 = 0xff;
/// The same in x2APIC mode (11.12.9).
const X2APIC_BROADCAST: u32 = 0xffff_ffff;

impl Message {
    /// The message that a device's write of `data` to `address` is (11.11), or `None` if
    /// `address` is not on the interrupt bus or the delivery mode is reserved.
    ///
    /// Address bits 11 to 5 extend the destination to 15 bits, as KVM, Hyper-V and Xen have it
    /// for guests without interrupt remapping. A destination of 0xff is a broadcast: software
    /// that knows nothing of the extension counts on it.
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        const BASE: u64 = 0xfee;
        const LOGICAL: u64 = 1 << 2;
        if address >> 20 != BASE {
            return None;
        }
        let low = (address >> 12 & 0xff) as u32;
        let high = (address >> 5 & 0x7f) as u32;
        let destination = match high << 8 | low {
            XAPIC_BROADCAST => Destination::All,
            id if address & LOGICAL != 0 => Destination::Logical(id),
            id => Destination::Physical(id),
        };
        let level = data & icr::LEVEL != 0;
        if level && data & icr::ASSERT == 0 {
            // A deassertion: local APICs keep nothing that it could end.
            return None;
        }
        Some(Self {
            destination,
            delivery: Delivery::from_bits(data >> 8)?,
            vector: data as u8,
            level,
        })
    }

    /// What a write of `command` to the ICR sends to other local APICs or to all (11.6.1), the
    /// shorthand "self" excluded. `None` if it sends nothing: reserved modes, combinations that
    /// table 11-3 calls invalid, the INIT de-assert.
    pub(crate) fn from_icr(command: u64, x2apic: bool) -> Option<Self> {
        let low = command as u32;
        let delivery = Delivery::from_bits(low >> 8).filter(|d| *d != Delivery::External)?;
        if delivery == Delivery::Init && low & icr::LEVEL != 0 && low & icr::ASSERT == 0 {
            return None;
        }
        let destination = match low >> icr::SHORTHAND_SHIFT & 3 {
            0 => icr_destination(command, x2apic),
            2 if delivery == Delivery::Fixed => Destination::All,
            3 => Destination::Others,
            _ => return None,
        };
        Some(Self {
            destination,
            delivery,
            vector: low as u8,
            // "Trigger Mode": interrupts between processors are edge-triggered.
            level: false,
        })
    }
}

fn icr_destination(command: u64, x2apic: bool) -> Destination {
    let (id, broadcast) = if x2apic {
        ((command >> 32) as u32, X2APIC_BROADCAST)
    } else {
        ((command >> 56) as u32, XAPIC_BROADCAST)
    };
    if id == broadcast {
        Destination::All
    } else if command as u32 & icr::LOGICAL != 0 {
        Destination::Logical(id)
    } else {
        Destination::Physical(id)
    }
}
