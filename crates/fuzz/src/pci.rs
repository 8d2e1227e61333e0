//! A PCI bus with all kinds of functions, through all of its doors.

use crate::bench::{Bench, Subject, access_memory, access_ports, drive};
use crate::input::Input;
use crate::virtio::{new_console, new_rng, queue_memory};
use ::pci::{
    BarKind, Bridge, ConfigPorts, ConfigSpace, Ecam, Function, Identity, IoWindow, MemoryWindow,
    Root, Slot, Space, Wires,
};
use ::virtio::VirtioPci;
use chipset::ports::DmaRegisters;
use device::{Device, Shared, Width, shared};
use std::ops::Range;
use std::sync::Arc;

/// Where base addresses are given out.
const MEMORY: Range<u64> = 0xc000_0000..0xc010_0000;
const MEMORY_HIGH: Range<u64> = 0x1_0000_0000..0x2_0000_0000;
const PORTS: Range<u16> = 0xc000..0xd000;
/// Bus 0 and a little of bus 1 in the ECAM range.
const ECAM_BYTES: u64 = 0x10_2000;
/// The first four devices of the bus are there.
const ECAM_USED_BYTES: u64 = 5 << 15;

/// An empty bus whose pins and messages end at `bench`.
pub(crate) fn new_root(bench: &Bench) -> Arc<Root> {
    Root::new([0, 1, 2, 3].map(|line| bench.line(line)), bench.msi())
}

/// The legacy ports of `root`, which stand for it in a snapshot.
pub(crate) fn config_ports(root: &Arc<Root>) -> Shared<ConfigPorts> {
    shared(ConfigPorts::new(root.clone(), shared(DmaRegisters::new())))
}

/// Gives every function its addresses.
pub(crate) fn assign(root: &Root) {
    let space = Space {
        memory32: MEMORY,
        memory64: MEMORY_HIGH,
        io: PORTS.start.into()..PORTS.end.into(),
    };
    root.assign(&space).expect("room for all functions");
}

pub(crate) fn run(data: &[u8]) {
    drive(data, make);
}

fn make(bench: &Bench) -> Subject {
    let root = new_root(bench);
    let memory = queue_memory();
    let wires = |slot| root.wires(Slot::new(slot));
    let functions: [Shared<dyn Function>; 5] = [
        shared(Bridge::host(wires(0), MEMORY.end)),
        shared(Bridge::isa(wires(1))),
        shared(VirtioPci::new(new_console(), wires(2), memory.clone())),
        shared(VirtioPci::new(new_rng(), wires(3), memory.clone())),
        shared(Probe::new(wires(4))),
    ];
    for (slot, function) in functions.into_iter().enumerate() {
        root.add(Slot::new(slot as u8), function)
            .expect("a free slot");
    }
    assign(&root);
    let ports = config_ports(&root);
    let device = ports.clone();
    let ecam = shared(Ecam::new(root.clone()));
    let windows = [MEMORY, MEMORY_HIGH].map(|range| {
        let window = shared(MemoryWindow::new(root.clone(), range.start));
        (window, range.end - range.start)
    });
    let io = shared(IoWindow::new(root.clone()));
    let access = move |input: &mut Input<'_>| match input.below(8) {
        0 => access_ports(&ports, &[(0xcf8, 8)], input),
        1 => access_memory(&ecam, ECAM_BYTES, input),
        2 => move_range(&root, input),
        3 | 4 => access_memory(&ecam, ECAM_USED_BYTES, input),
        5 => access_ports(&io, &[(PORTS.start, PORTS.end - PORTS.start)], input),
        _ => {
            let (window, len) = &windows[input.below(2)];
            // Where base addresses begin.
            let len = if input.flag() { *len } else { 0x1_0000 };
            access_memory(window, len, input)
        }
    };
    Subject {
        device,
        access: Box::new(access),
        memory: Some(memory),
    }
}

/// Writes a base address register, so that ranges come to lie over each other.
fn move_range(root: &Root, input: &mut Input<'_>) -> u64 {
    let slot = Slot::new(2 + input.u8() % 3);
    let register = 0x10 + 4 * (u16::from(input.u8()) % 6);
    let base = MEMORY.start + 0x1000 * u64::from(input.u8() % 8);
    root.config_write(slot, register, Width::Dword, base as u32);
    0
}

/// A function with what no real one here has: MSI, and registers in ports and above 4 GiB.
struct Probe {
    config: ConfigSpace,
}

impl Probe {
    fn new(wires: Wires) -> Self {
        let identity = Identity {
            vendor: 0x1234,
            device: 1,
            revision: 0,
            class: [0xff, 0, 0],
            subsystem_vendor: 0,
            subsystem: 0,
        };
        let mut config = ConfigSpace::new(identity, wires);
        config.enable_intx();
        config.add_bar(0, BarKind::Io, 16);
        config.add_bar(2, BarKind::Memory64, 32 << 20);
        config.add_msi(3);
        Self { config }
    }
}

impl Function for Probe {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, bar: u8, offset: u64, _: Width) -> u64 {
        u64::from(bar) << 56 | offset
    }

    /// Interrupts, in one way or the other.
    fn bar_write(&mut self, _: u8, offset: u64, _: Width, value: u64) {
        if offset.is_multiple_of(2) {
            self.config.set_intx(value & 1 != 0);
        } else {
            self.config.trigger(value as u16);
        }
    }
}

impl Device for Probe {
    fn reset(&mut self) {
        self.config.reset();
    }

    fn save(&self, instance: &str, out: &mut state::Writer) {
        out.save(instance, &self.config);
    }

    fn restore(&mut self, instance: &str, from: &mut state::Reader) -> Result<(), state::Error> {
        from.restore(instance, &mut self.config)
    }
}
