//! The root complex's doors on the machine's buses.

use crate::{Root, Slot};
use device::{Device, Mmio, PortIo, Shared, Width, lock};
use std::sync::Arc;

/// Length of the ECAM range: 256 buses (PCIe 5.0, 7.2.2).
pub const ECAM_BYTES: u64 = 256 << 20;

/// CONFIG_ADDRESS and CONFIG_DATA, ports 0xcf8 to 0xcff (PCI 3.0, 3.2.2.3.2, configuration
/// mechanism #1).
///
/// As the door that every machine has, it also stands for the whole root complex among the
/// machine's [`Device`]s: it resets, saves and restores the root and every function.
pub struct ConfigPorts {
    root: Arc<Root>,
    /// What answers at 0xcf8 to 0xcfb for accesses of less than 4 bytes, which CONFIG_ADDRESS
    /// does not.
    beneath: Shared<dyn PortIo>,
}

const CONFIG_ADDRESS: u16 = 0xcf8;
const ENABLE: u32 = 1 << 31;

impl ConfigPorts {
    /// The ports. Accesses of less than 4 bytes to CONFIG_ADDRESS are none of PCI's and go to
    /// `beneath`: the reset control register is there.
    pub fn new(root: Arc<Root>, beneath: Shared<dyn PortIo>) -> Self {
        Self { root, beneath }
    }

    /// What CONFIG_DATA at `port` refers to: slot and offset. `None` if it refers to nothing.
    fn data(&self, port: u16) -> Option<(Slot, u16)> {
        let address = self.root.address();
        let bus = address >> 16 & 0xff;
        let offset = address as u16 & 0xfc | port & 3;
        (address & ENABLE != 0 && bus == 0)
            .then(|| (Slot::from_number((address >> 8) as u8), offset))
    }
}

impl PortIo for ConfigPorts {
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        match (port, width) {
            (CONFIG_ADDRESS, Width::Dword) => self.root.address(),
            (0xcf8..=0xcfb, _) => lock(&self.beneath).port_read(port, width),
            _ => match self.data(port) {
                Some((slot, offset)) => self.root.config_read(slot, offset, width),
                None => width.ones() as u32,
            },
        }
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        match (port, width) {
            (CONFIG_ADDRESS, Width::Dword) => self.root.set_address(value),
            (0xcf8..=0xcfb, _) => lock(&self.beneath).port_write(port, width, value),
            _ => {
                if let Some((slot, offset)) = self.data(port) {
                    self.root.config_write(slot, offset, width, value);
                }
            }
        }
    }
}

impl Device for ConfigPorts {
    fn reset(&mut self) {
        self.root.reset();
    }

    fn save(&self, instance: &str, out: &mut state::Writer) {
        self.root.save(instance, out);
    }

    fn restore(&mut self, instance: &str, from: &mut state::Reader) -> Result<(), state::Error> {
        self.root.restore(instance, from)
    }
}

/// Memory-mapped configuration space (PCIe 5.0, 7.2.2), [`ECAM_BYTES`] long.
pub struct Ecam {
    root: Arc<Root>,
}

impl Ecam {
    /// The range for `root`.
    pub fn new(root: Arc<Root>) -> Self {
        Self { root }
    }

    /// Slot and register at `offset`, if it is on bus 0.
    fn register(offset: u64) -> Option<(Slot, u16)> {
        let bus = offset >> 20;
        (bus == 0).then(|| {
            (
                Slot::from_number((offset >> 12) as u8),
                offset as u16 & 0xfff,
            )
        })
    }
}

/// The two halves of an 8-byte access, which the root complex splits.
fn halves(width: Width) -> Option<Width> {
    (width == Width::Qword).then_some(Width::Dword)
}

impl Mmio for Ecam {
    fn mmio_read(&mut self, offset: u64, width: Width) -> u64 {
        if let Some(half) = halves(width) {
            return self.mmio_read(offset, half)
                | self.mmio_read(offset.saturating_add(4), half) << 32;
        }
        match Self::register(offset) {
            Some((slot, register)) => self.root.config_read(slot, register, width).into(),
            None => width.ones(),
        }
    }

    fn mmio_write(&mut self, offset: u64, width: Width, value: u64) {
        if let Some(half) = halves(width) {
            self.mmio_write(offset, half, value & half.ones());
            return self.mmio_write(offset.saturating_add(4), half, value >> 32);
        }
        if let Some((slot, register)) = Self::register(offset) {
            self.root.config_write(slot, register, width, value as u32);
        }
    }
}

/// A range of memory space in which functions' memory registers may lie.
///
/// A bus holds the door's lock during an access; a machine that wants functions to be accessed at
/// the same time calls [`Root::memory_read`] and [`Root::memory_write`] instead.
pub struct MemoryWindow {
    root: Arc<Root>,
    base: u64,
}

impl MemoryWindow {
    /// The window whose first address is `base`.
    pub fn new(root: Arc<Root>, base: u64) -> Self {
        Self { root, base }
    }
}

impl Mmio for MemoryWindow {
    fn mmio_read(&mut self, offset: u64, width: Width) -> u64 {
        self.root.memory_read(self.base.wrapping_add(offset), width)
    }

    fn mmio_write(&mut self, offset: u64, width: Width, value: u64) {
        self.root
            .memory_write(self.base.wrapping_add(offset), width, value);
    }
}

/// A range of ports in which functions' port registers may lie.
pub struct IoWindow {
    root: Arc<Root>,
}

impl IoWindow {
    /// A window of `root`.
    pub fn new(root: Arc<Root>) -> Self {
        Self { root }
    }
}

impl PortIo for IoWindow {
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        self.root.io_read(port, width)
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.root.io_write(port, width, value);
    }
}
