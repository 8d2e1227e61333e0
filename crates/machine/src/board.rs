//! The PC: which device answers where, and which wire goes where.
//!
//! | ports | device | | memory | device |
//! |---|---|---|---|---|
//! | 0x20, 0xa0, 0x4d0 | PIC | | ECAM | PCI |
//! | 0x40, 0x61 | PIT | | BAR windows | PCI |
//! | 0x60, 0x64 | i8042 | | 0xfec00000 | I/O APIC |
//! | 0x70 | RTC | | 0xfed00000 | HPET |
//! | 0x3f8, 0x2f8, 0x3e8, 0x2e8 | COM1 to COM4 | | | |
//! | 0x600 | ACPI power management | | | |
//! | 0xcf8 | PCI configuration, reset control | | | |
//! | 0xf4 | exit status | | | |
//! | 0xe9, 0x402 | debug console | | | |
//!
//! Local APICs are the engine's.

use crate::console::{ConsoleInput, Room};
use crate::control::{Control, Requests};
use crate::interrupts::{External, Messages, ReplaceLegacy, Replaceable, Router};
use crate::trace::TraceSink;
use boot::Layout;
use boot::layout::{self, pm};
use chipset::ports::{self, DebugConsole, DmaRegisters, ExitStatus, FastA20, ResetControl};
use chipset::{
    AcpiPm, Hpet, HpetWires, IoApic, MemorySizes, Pic, Pit, PowerControl, Rtc, Uart, UartWires,
    i8042,
};
use clock::Clock;
use device::{
    Bus, Device, InterruptLine, Mmio, Msi, Overlap, PortIo, Shared, Timers, Width, lock, shared,
};
use engine::{Access, Engine, Platform, Space};
use memory::GuestMemory;
use pci::{Bridge, ConfigPorts, Ecam, IoWindow, Root};
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};

/// Interrupts of the ISA bus.
mod irq {
    pub(super) const TIMER: u32 = 0;
    pub(super) const KEYBOARD: u32 = 1;
    pub(super) const RTC: u32 = 8;
    pub(super) const MOUSE: u32 = 12;
}

/// Pins of the I/O APIC that the HPET's comparators may drive: those that nothing else has.
const HPET_PINS: [u8; 4] = [20, 21, 22, 23];

/// COM1 to COM4: first port and interrupt.
const SERIAL: [(u16, u32); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// Where the guest's output goes. What is not given goes nowhere.
#[derive(Default)]
pub struct Consoles {
    /// COM1 to COM4.
    pub serial: [Option<Box<dyn Write + Send>>; 4],
    /// The virtio console, `hvc0`.
    pub virtio: Option<Box<dyn Write + Send>>,
    /// The debug ports 0xe9 and 0x402.
    pub debug: Option<Box<dyn Write + Send>>,
}

/// The consoles' other direction.
pub struct Inputs {
    /// COM1 to COM4.
    pub serial: [ConsoleInput; 4],
    /// The virtio console.
    pub virtio: ConsoleInput,
}

impl Inputs {
    pub(crate) fn close(&self) {
        for serial in &self.serial {
            serial.close();
        }
        self.virtio.close();
    }
}

/// All devices of a machine and the buses between them and the vCPUs.
pub(crate) struct Board {
    ports: Bus<dyn PortIo>,
    mmio: Bus<dyn Mmio>,
    pub(crate) timers: Timers,
    pic: Shared<Pic>,
    ioapic: Shared<IoApic>,
    pci: Arc<Root>,
    /// Where the memory registers of PCI functions may lie. They are not on the bus: a device there
    /// has one lock, and two functions are to be accessed at the same time.
    bar_windows: [Range<u64>; 2],
    /// Every device, by its name in a saved state. Order matters on restore: interrupt
    /// controllers come after the devices whose lines they watch, so that their own state wins.
    devices: Vec<(&'static str, Shared<dyn Device>)>,
    trace: Option<Arc<TraceSink>>,
}

/// Collects what [`Board`] is made of.
struct Builder {
    ports: Bus<dyn PortIo>,
    mmio: Bus<dyn Mmio>,
    devices: Vec<(&'static str, Shared<dyn Device>)>,
}

impl Builder {
    fn ports<D>(
        &mut self,
        name: &'static str,
        device: &Shared<D>,
        ranges: &[(u16, u16)],
    ) -> Result<(), Overlap>
    where
        D: Device + PortIo + 'static,
    {
        self.devices.push((name, device.clone()));
        self.decode(device, ranges)
    }

    fn decode<D: PortIo + 'static>(
        &mut self,
        device: &Shared<D>,
        ranges: &[(u16, u16)],
    ) -> Result<(), Overlap> {
        for (first, count) in ranges {
            self.ports
                .insert((*first).into(), (*count).into(), device.clone())?;
        }
        Ok(())
    }

    fn memory<D: Mmio + 'static>(
        &mut self,
        device: &Shared<D>,
        base: u64,
        len: u64,
    ) -> Result<(), Overlap> {
        self.mmio.insert(base, len, device.clone())
    }
}

impl Board {
    pub(crate) fn new(
        layout: &Layout,
        memory: &Arc<GuestMemory>,
        clock: &Clock,
        engine: &Arc<dyn Engine>,
        control: Weak<Control>,
        consoles: Consoles,
        trace: Option<Arc<TraceSink>>,
    ) -> Result<(Arc<Self>, Inputs), Box<dyn std::error::Error + Send + Sync>> {
        let timers = Timers::new(clock.clone());
        let power: Arc<dyn PowerControl> = Arc::new(Requests(control));
        let msi = Msi::new(Arc::new(Messages(engine.clone())));
        let pic = shared(Pic::new(InterruptLine::new(
            Arc::new(External(engine.clone())),
            0,
        )));
        let ioapic = shared(IoApic::new(msi.clone()));
        let router = Arc::new(Router {
            pic: pic.clone(),
            ioapic: ioapic.clone(),
            legacy_replaced: AtomicBool::new(false),
        });
        let line = |gsi| InterruptLine::new(router.clone(), gsi);
        let replaceable = |gsi| InterruptLine::new(Arc::new(Replaceable(router.clone())), gsi);

        let mut builder = Builder {
            ports: Bus::default(),
            mmio: Bus::default(),
            devices: Vec::new(),
        };
        let pit = Pit::new(clock.clone(), &timers, replaceable(irq::TIMER));
        builder.ports("pit", &pit, &Pit::PORTS)?;
        let high = layout.high_ram();
        let sizes = MemorySizes {
            below_4g: layout.low_ram_end(),
            above_4g: high.end - high.start,
        };
        let wall = Box::new(Clock::wall_nanos);
        let rtc = Rtc::new(clock.clone(), wall, &timers, replaceable(irq::RTC), sizes);
        builder.ports("rtc", &rtc, &Rtc::PORTS)?;
        let hpet = Hpet::new(
            clock.clone(),
            &timers,
            HpetWires {
                routes: HPET_PINS.map(|pin| (pin, line(pin.into()))).to_vec(),
                legacy: [line(irq::TIMER), line(irq::RTC)],
                legacy_active: InterruptLine::new(Arc::new(ReplaceLegacy(router.clone())), 0),
                msi: msi.clone(),
            },
        );
        builder.devices.push(("hpet", hpet.clone()));
        builder.memory(&hpet, layout::HPET, Hpet::LEN)?;
        let pm = AcpiPm::new(clock.clone(), &timers, line(pm::SCI.into()), power.clone());
        builder.ports("acpi-pm", &pm, &AcpiPm::PORTS)?;
        let keyboard = shared(i8042::Controller::new(i8042::ControllerWires {
            keyboard: line(irq::KEYBOARD),
            aux: line(irq::MOUSE),
            // Address line 20 is always on.
            a20: InterruptLine::unconnected(),
            power: power.clone(),
        }));
        builder.ports("i8042", &keyboard, &[(0x60, 1), (0x64, 1)])?;
        let a20 = shared(FastA20::new(InterruptLine::unconnected(), power.clone()));
        builder.ports("fast-a20", &a20, &[(ports::FAST_A20_PORT, 1)])?;
        let exit = shared(ExitStatus::new(power.clone()));
        builder.decode(&exit, &[(ports::EXIT_STATUS_PORT, 1)])?;
        let dma = shared(DmaRegisters::new());
        // Port 0x92, among the page registers, is the A20 gate's.
        builder.ports("dma", &dma, &ports::DMA_PORTS)?;
        let debug = consoles.debug.unwrap_or_else(|| Box::new(std::io::sink()));
        let debug = shared(DebugConsole::new(debug));
        builder.decode(&debug, &ports::DEBUG_CONSOLE_PORTS.map(|port| (port, 1)))?;

        let serial = serial_ports(&mut builder, clock, &timers, &line, consoles.serial)?;
        let pci = pci_bus(&mut builder, &line, msi, power)?;
        let virtio = crate::virtio::add(&pci, memory, consoles.virtio)?;

        builder.ports("pic", &pic, &Pic::PORTS)?;
        builder.devices.push(("ioapic", ioapic.clone()));
        builder.memory(&ioapic, IoApic::BASE, IoApic::LEN)?;
        let Builder {
            ports,
            mmio,
            devices,
        } = builder;
        let board = Self {
            ports,
            mmio,
            timers,
            pic,
            ioapic,
            pci,
            bar_windows: [layout::BAR32_WINDOW, layout.bar64_window()],
            devices,
            trace,
        };
        Ok((Arc::new(board), Inputs { serial, virtio }))
    }

    /// Gives every PCI function its addresses, as firmware does.
    pub(crate) fn assign_pci(&self, layout: &Layout) -> Result<(), pci::NoRoom> {
        let io = layout::BAR_IO_WINDOW;
        self.pci.assign(&pci::Space {
            memory32: layout::BAR32_WINDOW,
            memory64: layout.bar64_window(),
            io: io.start.into()..io.end.into(),
        })
    }

    fn is_in_bar_window(&self, address: u64) -> bool {
        self.bar_windows
            .iter()
            .any(|window| window.contains(&address))
    }

    pub(crate) fn reset(&self) {
        for (_, device) in &self.devices {
            lock(device).reset();
        }
    }

    pub(crate) fn save(&self, out: &mut state::Writer) {
        for (name, device) in &self.devices {
            lock(device).save(name, out);
        }
    }

    pub(crate) fn restore(&self, from: &mut state::Reader) -> Result<(), state::Error> {
        for (name, device) in &self.devices {
            lock(device).restore(name, from)?;
        }
        Ok(())
    }
}

fn serial_ports(
    builder: &mut Builder,
    clock: &Clock,
    timers: &Timers,
    line: &dyn Fn(u32) -> InterruptLine,
    outputs: [Option<Box<dyn Write + Send>>; 4],
) -> Result<[ConsoleInput; 4], Overlap> {
    const NAMES: [&str; 4] = ["com1", "com2", "com3", "com4"];
    // COM1 and COM3 share an interrupt, as do COM2 and COM4: on this board their outputs are
    // or-ed, so that neither can pull the other's low.
    let shared_lines = [line(SERIAL[0].1), line(SERIAL[1].1)].map(crate::interrupts::wired_or);
    let mut inputs = Vec::new();
    for (index, output) in outputs.into_iter().enumerate() {
        let room = Arc::new(Room::default());
        let wires = UartWires {
            interrupt: shared_lines[index % 2][index / 2].clone(),
            output: output.unwrap_or_else(|| Box::new(std::io::sink())),
            room: room.callback(),
        };
        let uart = Uart::new(clock.clone(), timers, wires);
        builder.ports(NAMES[index], &uart, &[(SERIAL[index].0, 8)])?;
        inputs.push(ConsoleInput::new(uart, room));
    }
    Ok(inputs
        .try_into()
        .unwrap_or_else(|_| unreachable!("there are four ports")))
}

fn pci_bus(
    builder: &mut Builder,
    line: &dyn Fn(u32) -> InterruptLine,
    msi: Msi,
    power: Arc<dyn PowerControl>,
) -> Result<Arc<Root>, Box<dyn std::error::Error + Send + Sync>> {
    let root = Root::new([16, 17, 18, 19].map(line), msi);
    let host = Bridge::host(root.wires(Bridge::HOST), layout::ECAM.start);
    root.add(Bridge::HOST, shared(host))?;
    root.add(Bridge::ISA, shared(Bridge::isa(root.wires(Bridge::ISA))))?;
    let reset = shared(ResetControl::new(power));
    builder.devices.push(("reset", reset.clone()));
    let ports = shared(ConfigPorts::new(root.clone(), reset));
    builder.ports("pci", &ports, &[(0xcf8, 8)])?;
    let len = |range: &Range<u64>| range.end - range.start;
    let ecam = shared(Ecam::new(root.clone()));
    builder.memory(&ecam, layout::ECAM.start, len(&layout::ECAM))?;
    let io = layout::BAR_IO_WINDOW;
    builder.decode(
        &shared(IoWindow::new(root.clone())),
        &[(io.start, io.end - io.start)],
    )?;
    Ok(root)
}

impl Platform for Board {
    fn access(&self, access: Access) -> u64 {
        let width = Width::from_bytes(access.bytes.into()).expect("engines split odd accesses");
        let value = match (access.space, access.write) {
            (Space::Port, None) => self.ports.read(access.address as u16, width).into(),
            (Space::Port, Some(value)) => {
                self.ports.write(access.address as u16, width, value as u32);
                0
            }
            (Space::Memory, None) if self.is_in_bar_window(access.address) => {
                self.pci.memory_read(access.address, width)
            }
            (Space::Memory, Some(value)) if self.is_in_bar_window(access.address) => {
                self.pci.memory_write(access.address, width, value);
                0
            }
            (Space::Memory, None) => self.mmio.read(access.address, width),
            (Space::Memory, Some(value)) => {
                self.mmio.write(access.address, width, value);
                0
            }
        };
        if let Some(trace) = &self.trace {
            trace.access(&access, value);
        }
        value
    }

    fn end_of_interrupt(&self, vector: u8) {
        lock(&self.ioapic).end_of_interrupt(vector);
    }

    fn acknowledge_external(&self) -> u8 {
        lock(&self.pic).acknowledge()
    }
}
