use super::*;
use crate::config::Identity;
use crate::{BarKind, Bridge, ConfigPorts, Ecam, IoWindow, MemoryWindow, Space};
use device::testing::Recorder;
use device::{Mmio, PortIo, shared};
use std::sync::Mutex;

/// A function that remembers accesses: (BAR, offset).
struct Probe {
    config: ConfigSpace,
    seen: Arc<Mutex<Vec<(u8, u64)>>>,
}

impl Function for Probe {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn bar_read(&mut self, bar: u8, offset: u64, _: Width) -> u64 {
        self.seen.lock().unwrap().push((bar, offset));
        0x1111_1111_1111_1111 * u64::from(bar + 1)
    }
    fn bar_write(&mut self, bar: u8, offset: u64, _: Width, _: u64) {
        self.seen.lock().unwrap().push((bar, offset));
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

/// Stands where the reset register is.
#[derive(Default)]
struct Beneath(Vec<(u16, Width, u32)>);

impl PortIo for Beneath {
    fn port_read(&mut self, _: u16, _: Width) -> u32 {
        0x5a
    }
    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        self.0.push((port, width, value));
    }
}

const SLOT: Slot = Slot::new(3);
const MEMORY: u64 = 0xc000_0000;
const HIGH: u64 = 0x80_0000_0000;

struct Bench {
    root: Arc<Root>,
    seen: Arc<Mutex<Vec<(u8, u64)>>>,
    ports: ConfigPorts,
    ecam: Ecam,
    beneath: Shared<Beneath>,
}

impl Bench {
    fn new() -> Self {
        let log = Recorder::new();
        let lines = [0, 1, 2, 3].map(|n| InterruptLine::new(log.clone(), n));
        let root = Root::new(lines, Msi::new(log));
        let host = Bridge::host(root.wires(Bridge::HOST), 0xe000_0000);
        root.add(Bridge::HOST, shared(host)).unwrap();
        let isa = Bridge::isa(root.wires(Bridge::ISA));
        root.add(Bridge::ISA, shared(isa)).unwrap();
        let seen = Arc::new(Mutex::default());
        let identity = Identity {
            vendor: 0x1234,
            device: 1,
            revision: 0,
            class: [0xff, 0, 0],
            subsystem_vendor: 0,
            subsystem: 0,
        };
        let mut config = ConfigSpace::new(identity, root.wires(SLOT));
        config.enable_intx();
        config.add_bar(0, BarKind::Io, 0x20);
        config.add_bar(1, BarKind::Memory32, 0x1000);
        config.add_bar(2, BarKind::Memory64, 0x200_0000);
        config.add_msix(4, 4);
        let probe = Probe {
            config,
            seen: seen.clone(),
        };
        root.add(SLOT, shared(probe)).unwrap();
        let beneath = shared(Beneath::default());
        let ports = ConfigPorts::new(root.clone(), beneath.clone());
        let ecam = Ecam::new(root.clone());
        Self {
            root,
            seen,
            ports,
            ecam,
            beneath,
        }
    }

    fn assigned() -> Self {
        let bench = Self::new();
        bench.root.assign(&space()).unwrap();
        bench
    }

    fn seen(&self) -> Vec<(u8, u64)> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    fn bar(&self, bar: u16) -> u32 {
        self.root.config_read(SLOT, 0x10 + 4 * bar, Width::Dword)
    }
}

fn space() -> Space {
    Space {
        memory32: MEMORY..MEMORY + 0x1000_0000,
        memory64: HIGH..HIGH + (1 << 30),
        io: 0xc000..0x1_0000,
    }
}

#[test]
fn mechanism_1_finds_functions() {
    let mut bench = Bench::new();
    let mut vendor = |address: u32| {
        bench.ports.port_write(0xcf8, Width::Dword, address);
        bench.ports.port_read(0xcfc, Width::Dword)
    };
    assert_eq!(vendor(0x8000_0000), 0x29c0_8086);
    assert_eq!(vendor(0x8000_f800), 0x2918_8086);
    assert_eq!(vendor(0x8000_1800), 0x0001_1234);
    assert_eq!(vendor(0x8000_1000), 0xffff_ffff, "an empty slot");
    assert_eq!(vendor(0x8001_1800), 0xffff_ffff, "another bus");
    assert_eq!(vendor(0x0000_1800), 0xffff_ffff, "not enabled");
    bench.ports.port_write(0xcf8, Width::Dword, 0xffff_ffff);
    assert_eq!(bench.ports.port_read(0xcf8, Width::Dword), 0x80ff_fffc);
    bench.ports.port_write(0xcf8, Width::Dword, 0x8000_1800);
    assert_eq!(bench.ports.port_read(0xcfe, Width::Word), 1);
    assert_eq!(bench.ports.port_read(0xcfd, Width::Byte), 0x12);
    assert_eq!(bench.ports.port_read(0xcff, Width::Word), 0xffff, "across");
}

#[test]
fn a_byte_at_0xcf9_is_not_pcis() {
    let mut bench = Bench::new();
    bench.ports.port_write(0xcf8, Width::Dword, 0x8000_1800);
    bench.ports.port_write(0xcf9, Width::Byte, 6);
    assert_eq!(lock(&bench.beneath).0, [(0xcf9, Width::Byte, 6)]);
    assert_eq!(bench.ports.port_read(0xcf9, Width::Byte), 0x5a);
    assert_eq!(bench.ports.port_read(0xcf8, Width::Dword), 0x8000_1800);
}

#[test]
fn ecam_reaches_the_same_registers() {
    let mut bench = Bench::new();
    let at = 3 << 15;
    assert_eq!(bench.ecam.mmio_read(at, Width::Dword), 0x0001_1234);
    assert_eq!(bench.ecam.mmio_read(at, Width::Qword) as u32, 0x0001_1234);
    bench.ecam.mmio_write(at + 0x3c, Width::Byte, 0x42);
    assert_eq!(bench.root.config_read(SLOT, 0x3c, Width::Byte), 0x42);
    assert_eq!(bench.ecam.mmio_read(1 << 20, Width::Dword), 0xffff_ffff);
    assert_eq!(
        bench.ecam.mmio_read(at + 2, Width::Dword),
        0xffff_ffff,
        "unaligned"
    );
    assert_eq!(
        bench.ecam.mmio_read((256 << 20) - 4, Width::Dword),
        0xffff_ffff
    );
}

#[test]
fn assigned_ranges_are_aligned_apart_and_routed() {
    let bench = Bench::assigned();
    let io = bench.bar(0) & !1;
    let memory = u64::from(bench.bar(1));
    let high = u64::from(bench.bar(2) & !0xf) | u64::from(bench.bar(3)) << 32;
    assert!((0xc000..0x1_0000).contains(&io) && io.is_multiple_of(0x20));
    assert!((MEMORY..MEMORY + 0x1000_0000).contains(&memory) && memory % 0x1000 == 0);
    assert!((HIGH..HIGH + (1 << 30)).contains(&high) && high % 0x200_0000 == 0);
    assert_eq!(bench.root.config_read(SLOT, 0x3c, Width::Byte), 19);

    let mut window = MemoryWindow::new(bench.root.clone(), MEMORY);
    window.mmio_write(memory - MEMORY + 8, Width::Dword, 1);
    assert_eq!(bench.root.memory_read(high + 0x123_4567, Width::Byte), 0x33);
    let mut ports = IoWindow::new(bench.root.clone());
    assert_eq!(ports.port_read(io as u16 + 0x1c, Width::Dword), 0x1111_1111);
    assert_eq!(bench.seen(), [(1, 8), (2, 0x123_4567), (0, 0x1c)]);
}

#[test]
fn a_register_that_moves_takes_its_accesses_along() {
    let bench = Bench::assigned();
    let old = u64::from(bench.bar(1));
    let new = old + 0x80_0000;
    bench
        .root
        .config_write(SLOT, 0x14, Width::Dword, new as u32);
    assert_eq!(bench.root.memory_read(old, Width::Dword), 0xffff_ffff);
    assert_eq!(bench.root.memory_read(new + 4, Width::Word), 0x2222);
    assert_eq!(
        bench.root.memory_read(new + 0xfff, Width::Word),
        0xffff,
        "across its end"
    );
    assert_eq!(bench.seen(), [(1, 4)]);
}

#[test]
fn a_disabled_decoder_answers_nothing() {
    let bench = Bench::assigned();
    let memory = u64::from(bench.bar(1));
    let io = (bench.bar(0) & !1) as u16;
    bench.root.config_write(SLOT, 4, Width::Word, 1);
    assert_eq!(bench.root.memory_read(memory, Width::Dword), 0xffff_ffff);
    assert_eq!(bench.root.io_read(io, Width::Dword), 0x1111_1111);
    bench.root.config_write(SLOT, 4, Width::Byte, 2);
    assert_eq!(bench.root.memory_read(memory, Width::Dword), 0x2222_2222);
    assert_eq!(bench.root.io_read(io, Width::Dword), 0xffff_ffff);
}

#[test]
fn the_msix_table_is_behind_its_register_and_not_the_functions() {
    let bench = Bench::assigned();
    let table = u64::from(bench.bar(4));
    bench.root.memory_write(table + 8, Width::Dword, 0x99);
    assert_eq!(
        bench.root.memory_read(table + 8, Width::Qword),
        0x1_0000_0099
    );
    assert_eq!(bench.seen(), []);
    bench.root.memory_read(table + 0x800, Width::Dword);
    assert_eq!(bench.seen(), [(4, 0x800)]);
}

#[test]
fn no_room_is_an_error() {
    let bench = Bench::new();
    let mut small = space();
    small.memory32 = MEMORY..MEMORY + 0x800;
    assert_eq!(bench.root.assign(&small).unwrap_err().slot, SLOT);
    let taken = shared(Bridge::isa(bench.root.wires(SLOT)));
    assert_eq!(bench.root.add(SLOT, taken), Err(SlotTaken(SLOT)));
}

#[test]
fn a_restored_bus_routes_as_the_saved_one() {
    let bench = Bench::assigned();
    bench.root.set_address(0x8000_1810);
    let mut out = state::Writer::new();
    Device::save(&bench.ports, "pci", &mut out);
    let mut from = state::Reader::from_bytes(&out.into_bytes()).unwrap();
    let mut other = Bench::new();
    Device::restore(&mut other.ports, "pci", &mut from).unwrap();
    from.finish().unwrap();
    let memory = u64::from(bench.bar(1));
    assert_eq!(other.root.memory_read(memory, Width::Dword), 0x2222_2222);
    assert_eq!(other.ports.port_read(0xcfc, Width::Dword), bench.bar(0));
    Device::reset(&mut other.ports);
    assert_eq!(other.root.memory_read(memory, Width::Dword), 0xffff_ffff);
    assert_eq!(other.ports.port_read(0xcf8, Width::Dword), 0);
}

#[test]
fn where_ranges_overlap_the_order_of_their_writes_does_not_matter() {
    let bench = Bench::assigned();
    let neighbour = Slot::new(4);
    let identity = Identity {
        vendor: 0x1234,
        device: 2,
        revision: 0,
        class: [0xff, 0, 0],
        subsystem_vendor: 0,
        subsystem: 0,
    };
    let mut config = ConfigSpace::new(identity, bench.root.wires(neighbour));
    config.add_bar(1, BarKind::Memory32, 0x1000);
    let seen = Arc::new(Mutex::default());
    let probe = Probe {
        config,
        seen: Arc::clone(&seen),
    };
    bench.root.add(neighbour, shared(probe)).unwrap();
    bench.root.assign(&space()).unwrap();
    let base = bench.root.config_read(SLOT, 0x14, Width::Dword);
    for last in [neighbour, SLOT] {
        for slot in [SLOT, neighbour, last] {
            bench.root.config_write(slot, 0x14, Width::Dword, base);
        }
        bench.root.memory_read(base.into(), Width::Dword);
    }
    assert_eq!(*bench.seen.lock().unwrap(), [(1, 0), (1, 0)]);
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn hostile_configuration_writes_break_nothing() {
    let mut bench = Bench::new();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let widths = [Width::Byte, Width::Word, Width::Dword, Width::Qword];
    for _ in 0..100_000 {
        let (place, value) = (random(), random());
        let width = widths[(value >> 8) as usize % 4];
        let function = [0, 3, 0x1f][place as usize % 3];
        let offset = function << 15 | place >> 8 & 0x1ff;
        bench.ecam.mmio_write(offset, width, value & width.ones());
        bench.ecam.mmio_read(offset, width);
        let address = u64::from(bench.bar(random() as u16 % 6)) + random() % 64;
        bench.root.memory_write(address, width, value);
        bench.root.memory_read(address, width);
        bench.root.io_read(address as u16, Width::Byte);
    }
    assert_eq!(bench.root.config_read(SLOT, 0, Width::Dword), 0x0001_1234);
    assert_eq!(
        bench.root.config_read(Bridge::HOST, 0, Width::Dword),
        0x29c0_8086
    );
    let mut out = state::Writer::new();
    bench.root.save("pci", &mut out);
    let mut from = state::Reader::new(out.into_sections());
    Bench::new().root.restore("pci", &mut from).unwrap();
}

#[test]
fn functions_and_ranges_may_be_used_from_many_threads() {
    let bench = Bench::assigned();
    let base = u64::from(bench.bar(1));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let root = &bench.root;
            scope.spawn(move || {
                for i in 0..2_000u64 {
                    let to = base + (thread * 2_000 + i) % 16 * 0x1000;
                    root.config_write(SLOT, 0x14, Width::Dword, to as u32);
                    root.memory_read(to, Width::Dword);
                }
            });
        }
    });
    let now = u64::from(bench.bar(1));
    assert_eq!(bench.root.memory_read(now, Width::Dword), 0x2222_2222);
}
