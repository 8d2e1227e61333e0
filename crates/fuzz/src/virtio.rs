//! virtio devices on a PCI bus, behind a driver that keeps no rule.

use crate::bench::{Bench, Subject, drive};
use crate::input::Input;
use crate::pci::{assign, config_ports, new_root};
use ::pci::{Root, Slot};
use ::virtio::{Console, Rng, VirtioDevice, VirtioPci};
use device::{Shared, Width, lock, shared};
use memory::{GuestMemory, Kind, RegionSpec};
use std::sync::Arc;

/// Two queues of a page, then buffers: small, because every twin gets a copy.
const MEMORY_BYTES: u64 = 0x4000;
const BUFFERS: u64 = 0x2000;
const QUEUE_BYTES: u64 = 0x1000;
const QUEUES: u64 = 2;
const QUEUE_SIZE: u16 = 16;
/// Where the rings are in a queue's page.
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;

const SLOT: Slot = Slot::new(1);

/// Memory for queues and buffers.
pub(crate) fn queue_memory() -> Arc<GuestMemory> {
    let region = RegionSpec {
        gpa: 0,
        len: MEMORY_BYTES,
        kind: Kind::Ram,
    };
    GuestMemory::new(&[region]).expect("a few pages of memory")
}

pub(crate) fn new_console() -> Console {
    Console::new(Box::new(std::io::sink()), Arc::new(|| {}))
}

/// An entropy device whose entropy is none, so that twins see the same.
pub(crate) fn new_rng() -> Rng {
    Rng::new(Box::new(|bytes| {
        bytes.fill(0xa5);
        Ok(())
    }))
}

pub(crate) fn console(data: &[u8]) {
    drive(data, |bench| {
        subject(bench, new_console(), |console, input| {
            if input.flag() {
                return console.receive(input.bytes(300)) as u64;
            }
            console.resize(input.u16(), input.u16());
            0
        })
    });
}

pub(crate) fn rng(data: &[u8]) {
    drive(data, |bench| {
        subject(bench, new_rng(), |rng, _| rng.is_live().into())
    });
}

fn subject<D: VirtioDevice + 'static>(
    bench: &Bench,
    device: D,
    outside: fn(&mut VirtioPci<D>, &mut Input<'_>) -> u64,
) -> Subject {
    let memory = queue_memory();
    let root = new_root(bench);
    let function: Shared<VirtioPci<D>> =
        shared(VirtioPci::new(device, root.wires(SLOT), memory.clone()));
    root.add(SLOT, function.clone()).expect("a free slot");
    assign(&root);
    let device = config_ports(&root);
    let driver = Driver {
        root,
        memory: memory.clone(),
    };
    let access = move |input: &mut Input<'_>| match input.below(10) {
        0 => outside(&mut lock(&function), input),
        1 if input.below(4) == 0 => driver.start(input),
        1 | 2 => driver.configure(input),
        3 => driver.common(input),
        4 => driver.registers(input),
        5 | 6 => driver.scribble(input),
        7 => driver.notify(input.u16() % 4),
        _ => driver.request(input),
    };
    Subject {
        device,
        access: Box::new(access),
        memory: Some(memory),
    }
}

/// A driver that remembers nothing: what it knows it reads from the device and from memory.
struct Driver {
    root: Arc<Root>,
    memory: Arc<GuestMemory>,
}

impl Driver {
    /// Where base address register `bar` is now.
    fn base(&self, bar: u16) -> u64 {
        u64::from(self.root.config_read(SLOT, 0x10 + 4 * bar, Width::Dword)) & !0xf
    }

    fn write_common(&self, at: u64, width: Width, value: u64) -> u64 {
        self.root
            .memory_write(self.base(0) + at, width, value & width.ones());
        0
    }

    /// Initialises the device as section 3.1.1 says, but with any features.
    fn start(&self, input: &mut Input<'_>) -> u64 {
        const FEATURES_OK: u64 = 11;
        const DRIVER_OK: u64 = 15;
        for status in [0, 1, 3] {
            self.write_common(0x14, Width::Byte, status);
        }
        // Device-specific ones and the rings'; VERSION_1 nearly always.
        let features = [input.u32().into(), u64::from(input.below(16) != 0)];
        for (half, bits) in features.into_iter().enumerate() {
            self.write_common(0x08, Width::Dword, half as u64);
            self.write_common(0x0c, Width::Dword, bits);
        }
        self.write_common(0x14, Width::Byte, FEATURES_OK);
        for index in 0..QUEUES {
            self.start_queue(index);
        }
        // Messages or the pin.
        let messages = if input.flag() { 0x8000 } else { 0 };
        self.root.config_write(SLOT, 0x42, Width::Word, messages);
        self.write_common(0x14, Width::Byte, DRIVER_OK)
    }

    fn start_queue(&self, index: u64) {
        let base = index * QUEUE_BYTES;
        for ring in [AVAILABLE, USED] {
            self.store(base + ring, 0);
        }
        self.write_common(0x16, Width::Word, index);
        self.write_common(0x18, Width::Word, QUEUE_SIZE.into());
        self.write_common(0x1a, Width::Word, index + 1);
        for (at, part) in [(0x20, 0), (0x28, AVAILABLE), (0x30, USED)] {
            self.write_common(at, Width::Qword, base + part);
        }
        self.write_common(0x1c, Width::Word, 1);
    }

    /// Any access to configuration space.
    fn configure(&self, input: &mut Input<'_>) -> u64 {
        let width = input.width(Width::Dword);
        let offset = u16::from(input.u8());
        if input.flag() {
            self.root
                .config_write(SLOT, offset, width, input.value() as u32);
            return 0;
        }
        self.root.config_read(SLOT, offset, width).into()
    }

    /// Any access to the common configuration.
    fn common(&self, input: &mut Input<'_>) -> u64 {
        let width = input.width(Width::Qword);
        let at = input.below(0x3c) as u64;
        if input.flag() {
            return self.write_common(at, width, input.value());
        }
        self.root.memory_read(self.base(0) + at, width)
    }

    /// Any access to registers and to the MSI-X table.
    fn registers(&self, input: &mut Input<'_>) -> u64 {
        let width = input.width(Width::Qword);
        let at = self.base(input.u16() % 2) + u64::from(input.u16());
        if input.flag() {
            self.root.memory_write(at, width, input.value());
            return 0;
        }
        self.root.memory_read(at, width)
    }

    /// Writes anything to descriptors or rings.
    fn scribble(&self, input: &mut Input<'_>) -> u64 {
        let part = input.pick(&[0, AVAILABLE, USED]);
        let at = input.u64() % QUEUES * QUEUE_BYTES + part + u64::from(input.u8() & 0xf8);
        self.store(at, input.value());
        0
    }

    fn store(&self, at: u64, value: u64) {
        self.memory.store(at, value).expect("queues are in memory");
    }

    fn notify(&self, index: u16) -> u64 {
        const NOTIFY: u64 = 0x3000;
        self.write_common(NOTIFY + 4 * u64::from(index), Width::Word, index.into())
    }

    /// Makes one or several buffers available.
    fn request(&self, input: &mut Input<'_>) -> u64 {
        let index = input.u16() % QUEUES as u16;
        let base = u64::from(index) * QUEUE_BYTES;
        let head = input.u16() % QUEUE_SIZE;
        let parts = 1 + input.u16() % 4;
        for part in 0..parts {
            let at = (head + part) % QUEUE_SIZE;
            // The last one ends behind memory.
            let gpa = BUFFERS + u64::from(input.u16() % 0x2001);
            let len = u64::from(input.u16() >> input.below(16));
            let more = u64::from(part + 1 < parts);
            let flags = more | (u64::from(input.u8()) & 6 & !(4 * more));
            let next = u64::from((at + 1) % QUEUE_SIZE);
            self.store(base + 16 * u64::from(at), gpa);
            self.store(
                base + 16 * u64::from(at) + 8,
                len | flags << 32 | next << 48,
            );
        }
        let ring = base + AVAILABLE;
        let added: u16 = self.memory.load(ring + 2).expect("queues are in memory");
        let slot = ring + 4 + 2 * u64::from(added % QUEUE_SIZE);
        self.memory.store(slot, head).expect("queues are in memory");
        let added = added.wrapping_add(1);
        self.memory
            .store(ring + 2, added)
            .expect("queues are in memory");
        self.notify(index);
        self.memory
            .load::<u16>(base + USED + 2)
            .expect("queues are in memory")
            .into()
    }
}
