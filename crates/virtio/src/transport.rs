//! virtio over PCI (4.1), modern interface.
//!
//! Base address register 0 holds the four structures that the vendor capabilities point to;
//! register 1 the MSI-X table, with a vector for each queue and one for configuration changes.

mod registers;

use crate::device::{Queues, VirtioDevice};
use crate::queue::QueueError;
use ::device::{Device, Width};
use memory::GuestMemory;
use pci::{BarKind, ConfigSpace, Function, Identity, Wires};
use registers::{NO_VECTOR, Registers, Request};
use std::sync::Arc;

/// Features that belong to the transport and its queues (section 6).
pub mod features {
    /// Descriptors may refer to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Each side says at which index it wants to be told.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The driver knows this specification. Without it there is only the legacy interface, which
    /// is not offered.
    pub const VERSION_1: u64 = 1 << 32;
    /// A queue can be reset alone.
    pub const RING_RESET: u64 = 1 << 40;
    /// All that are offered.
    pub const OFFERED: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_RESET;
}

/// Device status (2.1).
pub mod status {
    /// The guest has seen the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// It has a driver for it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Device and driver agree on the features.
    pub const FEATURES_OK: u8 = 8;
    /// The driver broke a queue.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}

/// PCI vendor of virtio devices (4.1.2).
const VENDOR: u16 = 0x1af4;
/// PCI device id less the device type.
const DEVICE_BASE: u16 = 0x1040;

const STRUCTURES_BAR: u8 = 0;
const MSIX_BAR: u8 = 1;

/// Where the structures are in their BAR.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const STRUCTURE_BYTES: u64 = 0x1000;
const BAR_BYTES: u64 = 0x4000;
/// Distance of two queues' notification addresses.
const NOTIFY_MULTIPLIER: u32 = 4;

/// ISR status (4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Capability types (4.1.4).
mod capability {
    pub(super) const VENDOR_SPECIFIC: u8 = 0x09;
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
    /// Offsets in the capability.
    pub(super) const BAR: u16 = 4;
    pub(super) const OFFSET: u16 = 8;
    pub(super) const LENGTH: u16 = 12;
    pub(super) const DATA: u16 = 16;
}

/// A virtio device as a PCI function.
pub struct VirtioPci<D> {
    config: ConfigSpace,
    registers: Registers,
    device: D,
    memory: Arc<GuestMemory>,
    /// Where the capability for access through configuration space is (4.1.4.9).
    window: u16,
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// `device` behind a PCI function with these `wires`, with its queues in `memory`.
    pub fn new(device: D, wires: Wires, memory: Arc<GuestMemory>) -> Self {
        let identity = Identity {
            vendor: VENDOR,
            device: DEVICE_BASE + D::TYPE,
            revision: 1,
            class: D::CLASS,
            subsystem_vendor: VENDOR,
            // At least 0x40, so that legacy drivers keep away.
            subsystem: 0x1100,
        };
        let sizes = device.queue_sizes();
        let vectors = sizes.len() as u16 + 1;
        let mut config = ConfigSpace::new(identity, wires);
        config.enable_intx();
        config.add_bar(STRUCTURES_BAR, BarKind::Memory32, BAR_BYTES);
        config.add_msix(MSIX_BAR, vectors);
        let window = add_capabilities(&mut config);
        Self {
            config,
            registers: Registers::new(device.features() | features::OFFERED, sizes, vectors),
            device,
            memory,
            window,
        }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    pub(crate) fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Whether driver and device are at work.
    pub fn is_live(&self) -> bool {
        self.registers.live()
    }

    /// Lets `work` use the device and its queues, if they are at work, and does what follows from
    /// it: interrupts, or the state that needs a reset.
    pub(crate) fn with_queues(
        &mut self,
        work: impl FnOnce(&mut D, &mut Queues<'_>) -> Result<(), QueueError>,
    ) {
        if !self.registers.live() {
            return;
        }
        let mut queues = Queues {
            queues: &mut self.registers.queues,
            memory: &self.memory,
        };
        let done = work(&mut self.device, &mut queues);
        if done.and_then(|()| self.interrupt_for_queues()).is_err() {
            self.needs_reset();
        }
    }

    /// Changes the device's configuration and tells the driver (2.5, 4.1.5.4).
    pub(crate) fn change_config(&mut self, change: impl FnOnce(&mut D)) {
        change(&mut self.device);
        self.registers.generation = self.registers.generation.wrapping_add(1);
        if self.registers.status & status::DRIVER_OK != 0 {
            self.interrupt_for_config();
        }
    }

    fn interrupt_for_queues(&mut self) -> Result<(), QueueError> {
        for index in 0..self.registers.queues.len() {
            if self.registers.queues[index].interrupt_due(&self.memory)? {
                self.interrupt(self.registers.queue_vectors[index], ISR_QUEUE);
            }
        }
        Ok(())
    }

    fn interrupt_for_config(&mut self) {
        self.interrupt(self.registers.config_vector, ISR_CONFIG);
    }

    fn interrupt(&mut self, vector: u16, isr: u8) {
        if !self.config.msix_enabled() {
            self.registers.isr |= isr;
            self.config.set_intx(true);
        } else if vector != NO_VECTOR {
            self.config.trigger(vector);
        }
    }

    /// The driver broke a queue (2.1.2).
    fn needs_reset(&mut self) {
        let ready = self.registers.status & status::DRIVER_OK != 0;
        self.registers.status |= status::DEVICE_NEEDS_RESET;
        if ready {
            self.interrupt_for_config();
        }
    }

    fn read_isr(&mut self) -> u8 {
        // Reading acknowledges (4.1.4.5.1).
        self.config.set_intx(false);
        std::mem::take(&mut self.registers.isr)
    }

    fn notify(&mut self, index: u16) {
        self.with_queues(|device, queues| match queues.get(index) {
            Some(_) => device.notify(index, queues),
            None => Ok(()),
        });
    }

    fn activate(&mut self) {
        self.device.activate(self.registers.driver_features);
        // The driver may have filled queues before it was ready.
        for index in 0..self.registers.queues.len() as u16 {
            self.notify(index);
        }
    }

    fn reset_device(&mut self) {
        self.registers.reset();
        self.device.reset();
        self.config.set_intx(false);
    }

    fn write_common(&mut self, offset: u64, width: Width, value: u64) {
        match self.registers.write(offset, width, value) {
            Request::Nothing => {}
            Request::Reset => self.reset_device(),
            Request::Activate => self.activate(),
            Request::NeedsReset => self.needs_reset(),
        }
    }

    /// What the capability for access through configuration space refers to.
    fn window_target(&self) -> Option<(u64, Width)> {
        let field = |at: u16, width| self.config.read(self.window + at, width);
        let bar = field(capability::BAR, Width::Byte);
        let offset = u64::from(field(capability::OFFSET, Width::Dword));
        let length = field(capability::LENGTH, Width::Dword) as usize;
        let width = Width::from_bytes(length).filter(|width| *width != Width::Qword)?;
        let inside = offset <= BAR_BYTES - length as u64 && offset.is_multiple_of(length as u64);
        (bar == STRUCTURES_BAR.into() && inside).then_some((offset, width))
    }

    fn in_window(&self, offset: u16) -> bool {
        let data = self.window + capability::DATA;
        (data..data + 4).contains(&offset)
    }
}

/// Adds the vendor capabilities. Returns where the last one, for access through configuration
/// space, is.
fn add_capabilities(config: &mut ConfigSpace) -> u16 {
    let structures = [
        (capability::COMMON, COMMON, registers::COMMON_BYTES),
        (capability::ISR, ISR, 1),
        (capability::DEVICE, DEVICE, STRUCTURE_BYTES),
        (capability::NOTIFY, NOTIFY, STRUCTURE_BYTES),
        (capability::PCI, 0, 0),
    ];
    let mut last = 0;
    for (kind, offset, len) in structures {
        let extra = match kind {
            capability::NOTIFY => Some(NOTIFY_MULTIPLIER),
            capability::PCI => Some(0),
            _ => None,
        };
        let mut body = vec![0; 14];
        body[1] = kind;
        body[2] = STRUCTURES_BAR;
        body[6..10].copy_from_slice(&(offset as u32).to_le_bytes());
        body[10..14].copy_from_slice(&(len as u32).to_le_bytes());
        body.extend(extra.iter().flat_map(|extra: &u32| extra.to_le_bytes()));
        body[0] = body.len() as u8 + 2;
        let mut writable = vec![0; body.len()];
        if kind == capability::PCI {
            writable[2] = 0xff;
            writable[6..].fill(0xff);
        }
        last = config.add_capability(capability::VENDOR_SPECIFIC, &body, &writable) as u16;
    }
    last
}

impl<D: VirtioDevice> Function for VirtioPci<D> {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: u16, width: Width) -> u32 {
        if self.in_window(offset)
            && let Some((at, len)) = self.window_target()
        {
            let value = self.bar_read(STRUCTURES_BAR, at, len) & len.ones();
            let data = self.window + capability::DATA;
            self.config.write(data, len, value as u32);
        }
        self.config.read(offset, width)
    }

    fn config_write(&mut self, offset: u16, width: Width, value: u32) {
        self.config.write(offset, width, value);
        if self.in_window(offset)
            && let Some((at, len)) = self.window_target()
        {
            let data = self.config.read(self.window + capability::DATA, len);
            self.bar_write(STRUCTURES_BAR, at, len, data.into());
        }
    }

    fn bar_read(&mut self, bar: u8, offset: u64, width: Width) -> u64 {
        if bar != STRUCTURES_BAR {
            return width.ones();
        }
        let within = offset % STRUCTURE_BYTES;
        match offset - within {
            COMMON => self.registers.read(within, width),
            ISR if within == 0 => self.read_isr().into(),
            DEVICE => {
                let mut bytes = [0; 8];
                let bytes_wanted = &mut bytes[..width.bytes()];
                self.device.config_read(within as usize, bytes_wanted);
                u64::from_le_bytes(bytes)
            }
            _ => 0,
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, width: Width, value: u64) {
        if bar != STRUCTURES_BAR {
            return;
        }
        let within = offset % STRUCTURE_BYTES;
        match offset - within {
            COMMON => self.write_common(within, width, value),
            DEVICE => {
                let bytes = value.to_le_bytes();
                self.device
                    .config_write(within as usize, &bytes[..width.bytes()]);
            }
            NOTIFY => self.notify((within / u64::from(NOTIFY_MULTIPLIER)) as u16),
            _ => {}
        }
    }
}

impl<D: VirtioDevice> Device for VirtioPci<D> {
    fn reset(&mut self) {
        self.reset_device();
        self.config.reset();
    }

    fn save(&self, instance: &str, out: &mut state::Writer) {
        let Self {
            config,
            registers,
            device,
            // Saved by the machine.
            memory: _,
            window: _,
        } = self;
        out.save(instance, config);
        out.save(instance, registers);
        out.save(instance, device);
    }

    fn restore(&mut self, instance: &str, from: &mut state::Reader) -> Result<(), state::Error> {
        from.restore(instance, &mut self.registers)?;
        from.restore(instance, &mut self.device)?;
        from.restore(instance, &mut self.config)?;
        if self.registers.live() {
            self.device.activate(self.registers.driver_features);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
