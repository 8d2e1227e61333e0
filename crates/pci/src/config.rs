//! A function's configuration space (PCI 3.0, chapter 6): header type 0, capabilities, and the
//! interrupts that it controls.

use crate::bar::{Bar, BarKind, Decoded, Decoder};
use crate::msi::{self, MsiState};
use crate::msix::{self, Msix, MsixState};
use device::{InterruptLine, Msi, Width};
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};

/// Bytes of configuration space with something in them. The rest of PCI Express's 4096 reads as
/// 0, which says that there are no extended capabilities (PCIe 5.0, 7.6.1).
pub const CONFIG_BYTES: usize = 256;

/// Registers of the header (6.1, figure 6-1) and their bits.
pub(crate) mod spec {
    pub(crate) const VENDOR: usize = 0x00;
    pub(crate) const DEVICE: usize = 0x02;
    pub(crate) const COMMAND: usize = 0x04;
    pub(crate) const STATUS: usize = 0x06;
    pub(crate) const REVISION: usize = 0x08;
    pub(crate) const CLASS: usize = 0x09;
    pub(crate) const HEADER_TYPE: usize = 0x0e;
    pub(crate) const BARS: usize = 0x10;
    pub(crate) const SUBSYSTEM_VENDOR: usize = 0x2c;
    pub(crate) const SUBSYSTEM: usize = 0x2e;
    pub(crate) const CAPABILITIES: usize = 0x34;
    pub(crate) const INTERRUPT_LINE: usize = 0x3c;
    pub(crate) const INTERRUPT_PIN: usize = 0x3d;
    /// The first byte after the header.
    pub(crate) const HEADER_END: usize = 0x40;

    pub(crate) const COMMAND_IO: u16 = 1 << 0;
    pub(crate) const COMMAND_MEMORY: u16 = 1 << 1;
    pub(crate) const COMMAND_MASTER: u16 = 1 << 2;
    pub(crate) const COMMAND_PARITY: u16 = 1 << 6;
    pub(crate) const COMMAND_SERR: u16 = 1 << 8;
    pub(crate) const COMMAND_INTX_DISABLE: u16 = 1 << 10;

    pub(crate) const STATUS_INTERRUPT: u16 = 1 << 3;
    pub(crate) const STATUS_CAPABILITIES: u16 = 1 << 4;

    /// More than one function in this device.
    pub(crate) const MULTI_FUNCTION: u8 = 1 << 7;
}

use spec::*;

/// What a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Base class, sub-class, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// A function's ways to interrupt.
#[derive(Debug, Clone)]
pub struct Wires {
    /// Pin INTA#.
    pub intx: InterruptLine,
    /// Messages.
    pub msi: Msi,
}

/// Configuration space of a function, and the interrupt state that belongs to it.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    /// Bits that software may write.
    writable: [u8; CONFIG_BYTES],
    /// What the registers hold after power-on.
    initial: [u8; CONFIG_BYTES],
    bars: [Option<Bar>; 6],
    wires: Wires,
    /// The function's own wish, before what disables INTx.
    intx: bool,
    msi: Option<MsiState>,
    msix: Option<Msix>,
    /// The last capability, where the next one is linked in.
    last_capability: usize,
    free: usize,
}

impl ConfigSpace {
    /// A function without base address registers, capabilities and interrupt pin.
    pub fn new(identity: Identity, wires: Wires) -> Self {
        let mut config = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            initial: [0; CONFIG_BYTES],
            bars: [None; 6],
            wires,
            intx: false,
            msi: None,
            msix: None,
            last_capability: CAPABILITIES,
            free: HEADER_END,
        };
        let [base, sub, interface] = identity.class;
        config.define(VENDOR, &identity.vendor.to_le_bytes(), &[0; 2]);
        config.define(DEVICE, &identity.device.to_le_bytes(), &[0; 2]);
        config.define(REVISION, &[identity.revision], &[0]);
        config.define(CLASS, &[interface, sub, base], &[0; 3]);
        let subsystem_vendor = identity.subsystem_vendor.to_le_bytes();
        config.define(SUBSYSTEM_VENDOR, &subsystem_vendor, &[0; 2]);
        config.define(SUBSYSTEM, &identity.subsystem.to_le_bytes(), &[0; 2]);
        let command = COMMAND_IO
            | COMMAND_MEMORY
            | COMMAND_MASTER
            | COMMAND_PARITY
            | COMMAND_SERR
            | COMMAND_INTX_DISABLE;
        config.define(COMMAND, &[0; 2], &command.to_le_bytes());
        config.define(INTERRUPT_LINE, &[0], &[0xff]);
        config
    }

    /// Sets registers from `at` on to `value` after power-on, with these bits `writable`.
    pub fn define(&mut self, at: usize, value: &[u8], writable: &[u8]) {
        assert_eq!(value.len(), writable.len());
        let range = at..at + value.len();
        self.initial[range.clone()].copy_from_slice(value);
        self.bytes[range.clone()].copy_from_slice(value);
        self.writable[range].copy_from_slice(writable);
    }

    /// Makes the function one of several of its device.
    pub fn set_multi_function(&mut self) {
        self.define(HEADER_TYPE, &[MULTI_FUNCTION], &[0]);
    }

    /// Connects interrupt pin INTA#.
    pub fn enable_intx(&mut self) {
        self.define(INTERRUPT_PIN, &[1], &[0]);
    }

    /// Implements base address register `bar` (0 to 5) of `size` bytes, a power of two, at least
    /// 16 for memory and 4 for ports.
    pub fn add_bar(&mut self, bar: u8, kind: BarKind, size: u64) {
        let slot = usize::from(bar);
        let least = if kind == BarKind::Io { 4 } else { 16 };
        assert!(size.is_power_of_two() && size >= least);
        assert!(kind == BarKind::Memory64 || size <= 1 << 31);
        let taken_by_upper_half =
            slot > 0 && self.bars[slot - 1].is_some_and(|before| before.kind == BarKind::Memory64);
        assert!(self.bars[slot].is_none() && !taken_by_upper_half);
        let new = Bar { kind, size };
        self.bars[slot] = Some(new);
        let at = BARS + 4 * slot;
        let mask = new.mask();
        let type_bits = kind.type_bits().to_le_bytes();
        self.define(at, &type_bits, &(mask as u32).to_le_bytes());
        if kind == BarKind::Memory64 {
            assert!(slot < 5 && self.bars[slot + 1].is_none());
            let high = (mask >> 32) as u32;
            self.define(at + 4, &[0; 4], &high.to_le_bytes());
        }
    }

    /// Adds capability `id` with `body` after its id and next pointer. Returns where it begins.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.free;
        assert!(
            at + 2 + body.len() <= CONFIG_BYTES,
            "room for the capability"
        );
        self.define(at, &[id, 0], &[0; 2]);
        self.define(at + 2, body, writable);
        let link = match self.last_capability {
            CAPABILITIES => CAPABILITIES,
            last => last + 1,
        };
        self.define(link, &[at as u8], &[0]);
        self.define(STATUS, &STATUS_CAPABILITIES.to_le_bytes(), &[0; 2]);
        self.last_capability = at;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Adds MSI with `1 << log2_vectors` vectors (`log2_vectors` at most 5).
    pub fn add_msi(&mut self, log2_vectors: u8) {
        let (body, writable) = msi::body(log2_vectors);
        let at = self.add_capability(msi::ID, &body, &writable);
        self.msi = Some(MsiState { at, pending: 0 });
    }

    /// Adds MSI-X with `vectors` (1 to 2048) and the memory register `bar` that holds them.
    pub fn add_msix(&mut self, bar: u8, vectors: u16) {
        let size = Msix::bytes(vectors).next_power_of_two().max(4096);
        self.add_bar(bar, BarKind::Memory32, size);
        let body = Msix::new(0, bar, vectors).body();
        let mut writable = [0; 10];
        writable[1] = msix::CONTROL_HIGH_WRITABLE;
        let at = self.add_capability(msix::ID, &body, &writable);
        self.msix = Some(Msix::new(at, bar, vectors));
    }

    /// Reads; `offset + width` must not cross 4 bytes.
    pub fn read(&self, offset: u16, width: Width) -> u32 {
        let at = usize::from(offset);
        if at >= CONFIG_BYTES {
            return 0;
        }
        let dword = self.dword(at & !3);
        dword >> (at % 4 * 8) & width.ones() as u32
    }

    fn dword(&self, at: usize) -> u32 {
        let stored = self.u32_at(at);
        match at {
            COMMAND if self.intx => stored | u32::from(STATUS_INTERRUPT) << 16,
            _ => match self.msi {
                Some(msi) if at == msi.at + msi::PENDING => msi.pending,
                _ => stored,
            },
        }
    }

    fn u32_at(&self, at: usize) -> u32 {
        let bytes = self.bytes[at..at + 4].try_into();
        u32::from_le_bytes(bytes.expect("4 bytes"))
    }

    /// Writes; `offset + width` must not cross 4 bytes. Read-only bits stay.
    pub fn write(&mut self, offset: u16, width: Width, value: u32) {
        let at = usize::from(offset);
        if at >= CONFIG_BYTES {
            return;
        }
        let bytes = value.to_le_bytes();
        for (i, value) in bytes.into_iter().enumerate().take(width.bytes()) {
            let writable = self.writable[at + i];
            self.bytes[at + i] = self.bytes[at + i] & !writable | value & writable;
        }
        self.drive_intx();
        self.deliver();
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// Whether the function may access memory by itself (6.2.2, bit 2).
    pub fn bus_master(&self) -> bool {
        self.command() & COMMAND_MASTER != 0
    }

    /// The implemented base address registers: number, kind, size in bytes.
    pub fn bars(&self) -> impl Iterator<Item = (u8, BarKind, u64)> + '_ {
        let bars = self.bars.iter().enumerate();
        bars.filter_map(|(i, bar)| bar.map(|bar| (i as u8, bar.kind, bar.size)))
    }

    /// What the function decodes now.
    pub fn decoded(&self) -> Vec<Decoded> {
        let command = self.command();
        let enabled = |decoder| match decoder {
            Decoder::Io => command & COMMAND_IO != 0,
            Decoder::Memory => command & COMMAND_MEMORY != 0,
        };
        let bars = self.bars.iter().enumerate();
        bars.filter_map(|(i, bar)| bar.map(|bar| (i, bar)))
            .filter(|(_, bar)| enabled(bar.decoder()))
            .map(|(i, bar)| Decoded {
                bar: i as u8,
                decoder: bar.decoder(),
                base: self.bar_address(i, bar),
                len: bar.size,
            })
            .collect()
    }

    fn bar_address(&self, slot: usize, bar: Bar) -> u64 {
        let at = BARS + 4 * slot;
        let low = u64::from(self.u32_at(at));
        let high = match bar.kind {
            BarKind::Memory64 => u64::from(self.u32_at(at + 4)) << 32,
            BarKind::Io | BarKind::Memory32 => 0,
        };
        (high | low) & bar.mask()
    }

    /// Drives the function's interrupt pin, as far as software lets it through.
    pub fn set_intx(&mut self, high: bool) {
        if self.intx != high {
            self.intx = high;
            self.drive_intx();
        }
    }

    fn drive_intx(&self) {
        if self.bytes[INTERRUPT_PIN] == 0 {
            return;
        }
        // A function with messages enabled must not use its pin (6.8.1.3, 6.8.2.3).
        let disabled =
            self.command() & COMMAND_INTX_DISABLE != 0 || self.msi_enabled() || self.msix_enabled();
        self.wires.intx.set(self.intx && !disabled);
    }

    /// Whether software enabled MSI.
    pub fn msi_enabled(&self) -> bool {
        self.msi.is_some_and(|msi| msi.enabled(&self.bytes))
    }

    /// Whether software enabled MSI-X.
    pub fn msix_enabled(&self) -> bool {
        self.msix
            .as_ref()
            .is_some_and(|msix| msix.enabled(&self.bytes))
    }

    /// How many MSI-X vectors there are.
    pub fn msix_vectors(&self) -> u16 {
        self.msix.as_ref().map_or(0, Msix::vectors)
    }

    /// Sends the message of `vector` by MSI-X or MSI, whichever is enabled; nothing if neither is.
    pub fn trigger(&mut self, vector: u16) {
        if self.msix_enabled() {
            if let Some(msix) = &mut self.msix {
                msix.trigger(&self.bytes, &self.wires.msi, vector);
            }
        } else if self.msi_enabled()
            && let Some(msi) = &mut self.msi
        {
            msi.trigger(&self.bytes, &self.wires.msi, vector);
        }
    }

    fn deliver(&mut self) {
        if let Some(msix) = &mut self.msix {
            msix.deliver(&self.bytes, &self.wires.msi);
        }
        if let Some(msi) = &mut self.msi {
            msi.deliver(&self.bytes, &self.wires.msi);
        }
    }

    /// Reads the MSI-X structures, if they are at `offset` of `bar`.
    pub(crate) fn msix_read(&self, bar: u8, offset: u64, width: Width) -> Option<u64> {
        let msix = self.msix.as_ref().filter(|msix| msix.covers(bar, offset))?;
        Some(msix.read(offset, width))
    }

    /// Writes the MSI-X structures, if they are at `offset` of `bar`, and says whether they are.
    pub(crate) fn msix_write(&mut self, bar: u8, offset: u64, width: Width, value: u64) -> bool {
        match &mut self.msix {
            Some(msix) if msix.covers(bar, offset) => {
                msix.write(offset, width, value);
                self.deliver();
                true
            }
            _ => false,
        }
    }

    /// Returns to the state after power-on.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
        self.intx = false;
        if let Some(msi) = &mut self.msi {
            msi.pending = 0;
        }
        if let Some(msix) = &mut self.msix {
            msix.reset();
        }
        self.drive_intx();
    }
}

/// The saved state of a [`ConfigSpace`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpaceV1 {
    bytes: Vec<u8>,
    intx: bool,
    msi_pending: u32,
    msix: Option<MsixState>,
}

impl Saved for ConfigSpaceV1 {
    const KIND: &'static str = "pci-config";
    const VERSION: u16 = 1;
}

impl Persist for ConfigSpace {
    type State = ConfigSpaceV1;

    fn save(&self) -> ConfigSpaceV1 {
        let Self {
            bytes,
            // What the function is; the same in every machine that has it.
            writable: _,
            initial: _,
            bars: _,
            wires: _,
            intx,
            msi,
            msix,
            last_capability: _,
            free: _,
        } = self;
        ConfigSpaceV1 {
            bytes: bytes.to_vec(),
            intx: *intx,
            msi_pending: msi.map_or(0, |msi| msi.pending),
            msix: msix.as_ref().map(Msix::save),
        }
    }

    fn restore(&mut self, state: ConfigSpaceV1) -> Result<(), Invalid> {
        let ConfigSpaceV1 {
            bytes,
            intx,
            msi_pending,
            msix,
        } = state;
        let wrong = |_| Invalid::new("not the length of a configuration space");
        let bytes: [u8; CONFIG_BYTES] = bytes.try_into().map_err(wrong)?;
        let fixed = |at: &usize| (bytes[*at] ^ self.initial[*at]) & !self.writable[*at] != 0;
        if let Some(at) = (0..CONFIG_BYTES).find(fixed) {
            return Err(Invalid::new(format!(
                "another PCI function: read-only register {at:#04x} differs"
            )));
        }
        if self.msi.is_none() && msi_pending != 0 {
            return Err(Invalid::new("pending MSI of a function without MSI"));
        }
        match (&mut self.msix, msix) {
            (None, None) => {}
            (Some(here), Some(saved)) => {
                here.check(&saved)?;
                here.set(saved);
            }
            _ => return Err(Invalid::new("MSI-X on one side only")),
        }
        self.bytes = bytes;
        self.intx = intx;
        if let Some(msi) = &mut self.msi {
            msi.pending = msi_pending;
        }
        self.drive_intx();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
