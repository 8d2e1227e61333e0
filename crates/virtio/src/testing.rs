//! A driver's side of a device, for the tests of devices.

use crate::device::VirtioDevice;
use crate::transport::{VirtioPci, features, status};
use ::device::testing::Recorder;
use ::device::{InterruptLine, Msi, Width};
use memory::{GuestMemory, Kind, RegionSpec};
use pci::{Function, Wires};
use std::sync::Arc;

/// Bytes of guest memory that the tests have, from address 0.
pub const MEMORY_BYTES: u64 = 1 << 20;
/// Where tests may put buffers; below are the queues.
pub const BUFFERS: u64 = 0x4_0000;
/// The interrupt line of [`wires`].
pub const LINE: u32 = 0;

/// 1 MiB of guest memory.
pub fn memory() -> Arc<GuestMemory> {
    let region = RegionSpec {
        gpa: 0,
        len: MEMORY_BYTES,
        kind: Kind::Ram,
    };
    GuestMemory::new(&[region]).expect("1 MiB of memory")
}

/// Wires that end in `log`.
pub fn wires(log: &Arc<Recorder>) -> Wires {
    Wires {
        intx: InterruptLine::new(log.clone(), LINE),
        msi: Msi::new(log.clone()),
    }
}

/// A part of a request: address, length, and whether the device writes it.
pub type Part = (u64, u32, bool);

/// A queue as its driver sees it. It uses descriptors in turn and never takes them back, so at
/// most `size` of them may be with the device at a time.
#[derive(Debug, Clone)]
pub struct DriverQueue {
    memory: Arc<GuestMemory>,
    /// Number of descriptors.
    pub size: u16,
    /// Where the descriptor table is.
    pub descriptors: u64,
    /// Where the available ring is.
    pub available: u64,
    /// Where the used ring is.
    pub used: u64,
    next_descriptor: u16,
    added: u16,
    seen: u16,
}

impl DriverQueue {
    /// A queue of `size` descriptors in 0x1_0000 bytes from `base` on.
    pub fn new(memory: &Arc<GuestMemory>, base: u64, size: u16) -> Self {
        Self {
            memory: memory.clone(),
            size,
            descriptors: base,
            available: base + 0x8000,
            used: base + 0xc000,
            next_descriptor: 0,
            added: 0,
            seen: 0,
        }
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn write_descriptor(
        &self,
        table: u64,
        index: u16,
        (gpa, len): (u64, u32),
        (flags, next): (u16, u16),
    ) {
        let at = table + 16 * u64::from(index);
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory.store(at, gpa).expect("a descriptor in memory");
        self.memory
            .store(at + 8, rest)
            .expect("a descriptor in memory");
    }

    /// Makes a request of `parts` available and returns its head.
    pub fn add(&mut self, parts: &[Part]) -> u16 {
        let head = self.next_descriptor;
        for (i, (gpa, len, writable)) in parts.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let more = i + 1 < parts.len();
            let flags = u16::from(more) | u16::from(*writable) << 1;
            let link = (flags, self.next_descriptor);
            self.write_descriptor(self.descriptors, index, (*gpa, *len), link);
        }
        self.make_available(head);
        head
    }

    /// Makes the request that begins with descriptor `head` available.
    pub fn make_available(&mut self, head: u16) {
        let slot = self.available + 4 + 2 * u64::from(self.added % self.size);
        self.memory
            .store(slot, head)
            .expect("the ring is in memory");
        self.added = self.added.wrapping_add(1);
        self.memory
            .store(self.available + 2, self.added)
            .expect("the ring is in memory");
    }

    /// Asks for an interrupt when the device has used `count` more requests (EVENT_IDX).
    pub fn interrupt_after(&self, count: u16) {
        let event = self.available + 4 + 2 * u64::from(self.size);
        let index = self.seen.wrapping_add(count).wrapping_sub(1);
        self.memory
            .store(event, index)
            .expect("the ring is in memory");
    }

    /// Asks for no interrupts, or for all (without EVENT_IDX).
    pub fn set_no_interrupt(&self, none: bool) {
        let flags = u16::from(none);
        self.memory
            .store(self.available, flags)
            .expect("the ring is in memory");
    }

    /// The index at which the device wants to be notified (EVENT_IDX).
    pub fn notify_at(&self) -> u16 {
        let event = self.used + 4 + 8 * u64::from(self.size);
        self.memory.load(event).expect("the ring is in memory")
    }

    /// The next request that the device is done with: head and bytes written.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self
            .memory
            .load(self.used + 2)
            .expect("the ring is in memory");
        if index == self.seen {
            return None;
        }
        let slot = self.used + 4 + 8 * u64::from(self.seen % self.size);
        let element: u64 = self.memory.load(slot).expect("the ring is in memory");
        self.seen = self.seen.wrapping_add(1);
        Some((element as u16, (element >> 32) as u32))
    }
}

/// The structures of a device (4.1.4), found through its capabilities.
#[derive(Debug, Clone, Copy, Default)]
pub struct Structures {
    /// Common configuration.
    pub common: u64,
    /// Interrupt status.
    pub isr: u64,
    /// Device configuration.
    pub device: u64,
    /// Notifications.
    pub notify: u64,
    /// Distance of the queues' notifications.
    pub multiplier: u64,
    /// Where in configuration space the access capability is.
    pub window: u16,
}

/// A driver of a device.
pub struct Driver<D> {
    /// The device, with nothing between it and the driver.
    pub pci: VirtioPci<D>,
    /// Its interrupts.
    pub log: Arc<Recorder>,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Where its structures are.
    pub structures: Structures,
    /// Its queues, once set up.
    pub queues: Vec<DriverQueue>,
}

impl<D: VirtioDevice> Driver<D> {
    /// A driver that has found `device` but not touched it.
    pub fn new(device: D) -> Self {
        Self::with_memory(device, memory())
    }

    /// Likewise, over `memory`.
    pub fn with_memory(device: D, memory: Arc<GuestMemory>) -> Self {
        let log = Recorder::new();
        let pci = VirtioPci::new(device, wires(&log), memory.clone());
        let structures = find_structures(&pci);
        Self {
            pci,
            log,
            memory,
            structures,
            queues: Vec::new(),
        }
    }

    /// A driver that has accepted `wanted` and VERSION_1 and is ready.
    pub fn ready(device: D, wanted: u64) -> Self {
        let mut driver = Self::new(device);
        driver.start(wanted);
        driver
    }

    /// Initialises the device (3.1.1), with queues of 16 descriptors.
    pub fn start(&mut self, wanted: u64) {
        self.set_status(0);
        self.set_status(status::ACKNOWLEDGE);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        self.accept(wanted | features::VERSION_1);
        let agreed = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set_status(agreed);
        assert_eq!(self.status(), agreed, "the device agrees");
        self.queues.clear();
        for index in 0..self.common(0x12, Width::Word) as u16 {
            let base = u64::from(index) * 0x1_0000;
            let queue = DriverQueue::new(&self.memory, base, 16);
            self.enable_queue(index, &queue);
            self.queues.push(queue);
        }
        self.set_status(agreed | status::DRIVER_OK);
    }

    /// Writes the accepted features.
    pub fn accept(&mut self, features: u64) {
        for half in 0..2 {
            self.set_common(0x08, Width::Dword, half);
            self.set_common(0x0c, Width::Dword, features >> (32 * half) & 0xffff_ffff);
        }
    }

    /// Puts `queue` into service as queue `index`, with MSI-X vector `index + 1`.
    pub fn enable_queue(&mut self, index: u16, queue: &DriverQueue) {
        // Rings begin empty.
        for at in [queue.available, queue.used] {
            self.memory
                .store(at, 0u32)
                .expect("the rings are in memory");
        }
        self.set_common(0x16, Width::Word, index.into());
        self.set_common(0x18, Width::Word, queue.size.into());
        self.set_common(0x1a, Width::Word, u64::from(index) + 1);
        for (at, address) in [
            (0x20, queue.descriptors),
            (0x28, queue.available),
            (0x30, queue.used),
        ] {
            self.set_common(at, Width::Dword, address & 0xffff_ffff);
            self.set_common(at + 4, Width::Dword, address >> 32);
        }
        self.set_common(0x1c, Width::Word, 1);
    }

    /// Reads the common configuration.
    pub fn common(&mut self, at: u64, width: Width) -> u64 {
        self.pci.bar_read(0, self.structures.common + at, width)
    }

    /// Writes the common configuration.
    pub fn set_common(&mut self, at: u64, width: Width, value: u64) {
        self.pci
            .bar_write(0, self.structures.common + at, width, value);
    }

    /// Reads the device status.
    pub fn status(&mut self) -> u8 {
        self.common(0x14, Width::Byte) as u8
    }

    /// Writes the device status.
    pub fn set_status(&mut self, value: u8) {
        self.set_common(0x14, Width::Byte, value.into());
    }

    /// Notifies queue `index`.
    pub fn notify(&mut self, index: u16) {
        let at = self.structures.notify + u64::from(index) * self.structures.multiplier;
        self.pci.bar_write(0, at, Width::Word, index.into());
    }

    /// Reads and so acknowledges the interrupt status.
    pub fn isr(&mut self) -> u8 {
        self.pci.bar_read(0, self.structures.isr, Width::Byte) as u8
    }

    /// Makes a request of `parts` available in queue `index` and notifies the device.
    pub fn request(&mut self, index: u16, parts: &[Part]) -> u16 {
        let head = self.queues[usize::from(index)].add(parts);
        self.notify(index);
        head
    }
}

fn find_structures<D: VirtioDevice>(pci: &VirtioPci<D>) -> Structures {
    let config = pci.config();
    let mut found = Structures::default();
    let mut at = config.read(0x34, Width::Byte) as u16;
    while at != 0 {
        if config.read(at, Width::Byte) == 0x09 {
            let offset = u64::from(config.read(at + 8, Width::Dword));
            match config.read(at + 3, Width::Byte) {
                1 => found.common = offset,
                2 => {
                    found.notify = offset;
                    found.multiplier = config.read(at + 16, Width::Dword).into();
                }
                3 => found.isr = offset,
                4 => found.device = offset,
                _ => found.window = at,
            }
        }
        at = config.read(at + 1, Width::Byte) as u16;
    }
    found
}
