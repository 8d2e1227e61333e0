//! The PC's chips, one target each.

use crate::bench::{Bench, Subject, access_memory, access_ports, drive};
use crate::input::Input;
use ::chipset::i8042::{self, Buttons, Controller, ControllerWires, Key};
use ::chipset::ports::{self, DebugConsole, DmaRegisters, ExitStatus, FastA20, ResetControl};
use ::chipset::{
    AcpiPm, Hpet, HpetWires, IoApic, MemorySizes, Pic, Pit, PowerControl, Rtc, Uart, UartWires,
};
use device::{Device, PortIo, Shared, lock, shared};
use std::io::Write;
use std::sync::Arc;

struct IgnoredPower;

impl PowerControl for IgnoredPower {
    fn power_off(&self) {}
    fn reset(&self) {}
    fn exit(&self, _: u8) {}
}

fn power() -> Arc<dyn PowerControl> {
    Arc::new(IgnoredPower)
}

fn sink() -> Box<dyn Write + Send> {
    Box::new(std::io::sink())
}

/// A device that is reached by ports only.
fn on_ports<D: Device + PortIo + 'static>(
    device: Shared<D>,
    ranges: &'static [(u16, u16)],
) -> Subject {
    with_outside(device, ranges, |_, _| 0)
}

/// A device with ports, to which `outside` does what comes from elsewhere: from other chips or
/// from the host.
fn with_outside<D: Device + PortIo + 'static>(
    device: Shared<D>,
    ranges: &'static [(u16, u16)],
    outside: fn(&mut D, &mut Input<'_>) -> u64,
) -> Subject {
    let access = {
        let device = device.clone();
        move |input: &mut Input<'_>| match input.below(8) {
            0 => outside(&mut lock(&device), input),
            _ => access_ports(&device, ranges, input),
        }
    };
    Subject {
        device,
        access: Box::new(access),
        memory: None,
    }
}

pub(crate) fn pic(data: &[u8]) {
    fn make(bench: &Bench) -> Subject {
        with_outside(
            shared(Pic::new(bench.line(0))),
            &Pic::PORTS,
            |pic, input| match input.below(3) {
                0 => pic.acknowledge().into(),
                _ => {
                    pic.set_irq(input.u8() % 16, input.flag());
                    pic.intr().into()
                }
            },
        )
    }
    drive(data, make);
}

pub(crate) fn pit(data: &[u8]) {
    fn make(bench: &Bench) -> Subject {
        let pit = Pit::new(bench.clock.clone(), &bench.timers, bench.line(0));
        on_ports(pit, &Pit::PORTS)
    }
    drive(data, make);
}

pub(crate) fn ioapic(data: &[u8]) {
    fn make(bench: &Bench) -> Subject {
        let ioapic = shared(IoApic::new(bench.msi()));
        let device = ioapic.clone();
        let access = move |input: &mut Input<'_>| match input.below(4) {
            0 => {
                lock(&ioapic).set_pin(input.below(IoApic::PINS), input.flag());
                0
            }
            1 => {
                lock(&ioapic).end_of_interrupt(input.u8());
                0
            }
            _ => access_memory(&ioapic, IoApic::LEN, input),
        };
        Subject {
            device,
            access: Box::new(access),
            memory: None,
        }
    }
    drive(data, make);
}

pub(crate) fn hpet(data: &[u8]) {
    fn make(bench: &Bench) -> Subject {
        let wires = HpetWires {
            routes: [2, 8, 20, 23]
                .map(|pin| (pin, bench.line(pin.into())))
                .into(),
            legacy: [bench.line(32), bench.line(33)],
            legacy_active: bench.line(34),
            msi: bench.msi(),
        };
        let hpet = Hpet::new(bench.clock.clone(), &bench.timers, wires);
        let device = hpet.clone();
        let access = move |input: &mut Input<'_>| access_memory(&hpet, Hpet::LEN, input);
        Subject {
            device,
            access: Box::new(access),
            memory: None,
        }
    }
    drive(data, make);
}

pub(crate) fn rtc(data: &[u8]) {
    /// 2026-01-01, in nanoseconds since the Unix epoch.
    const START: u64 = 1_767_225_600_000_000_000;
    fn make(bench: &Bench) -> Subject {
        let clock = bench.clock.clone();
        let wall = Box::new(move || START + clock.now());
        let memory = MemorySizes {
            below_4g: 3 << 30,
            above_4g: 5 << 30,
        };
        let rtc = Rtc::new(
            bench.clock.clone(),
            wall,
            &bench.timers,
            bench.line(0),
            memory,
        );
        on_ports(rtc, &Rtc::PORTS)
    }
    drive(data, make);
}

pub(crate) fn acpi_pm(data: &[u8]) {
    fn make(bench: &Bench) -> Subject {
        let pm = AcpiPm::new(bench.clock.clone(), &bench.timers, bench.line(0), power());
        with_outside(pm, &AcpiPm::PORTS, |pm, input| {
            match input.below(2) {
                0 => pm.press_power_button(),
                _ => pm.raise_gpe(input.u8() % 16),
            }
            0
        })
    }
    drive(data, make);
}

pub(crate) fn uart(data: &[u8]) {
    fn make(bench: &Bench) -> Subject {
        let wires = UartWires {
            interrupt: bench.line(0),
            output: sink(),
            room: Arc::new(|| {}),
        };
        let uart = Uart::new(bench.clock.clone(), &bench.timers, wires);
        with_outside(uart, &[(0x3f8, 8)], |uart, input| {
            uart.receive(input.bytes(64)) as u64
        })
    }
    drive(data, make);
}

pub(crate) fn i8042(data: &[u8]) {
    fn make(bench: &Bench) -> Subject {
        let controller = Controller::new(ControllerWires {
            keyboard: bench.line(0),
            aux: bench.line(1),
            a20: bench.line(2),
            power: power(),
        });
        let ranges = &[(i8042::DATA_PORT, 1), (i8042::COMMAND_PORT, 1)];
        with_outside(shared(controller), ranges, |controller, input| {
            if input.flag() {
                controller.key(Key(input.u16()), input.flag());
            } else {
                let [dx, dy, dz] = [(); 3].map(|()| input.value() as i32);
                let bits = input.u8();
                let buttons = Buttons {
                    left: bits & 1 != 0,
                    right: bits & 2 != 0,
                    middle: bits & 4 != 0,
                    back: bits & 8 != 0,
                    forward: bits & 16 != 0,
                };
                controller.mouse(dx, dy, dz, buttons);
            }
            0
        })
    }
    drive(data, make);
}

/// The single ports: the first byte says which.
pub(crate) fn ports(data: &[u8]) {
    let Some((which, data)) = data.split_first() else {
        return;
    };
    match which % 5 {
        0 => drive(data, |_| {
            on_ports(
                shared(ResetControl::new(power())),
                &[(ports::RESET_CONTROL_PORT, 1)],
            )
        }),
        1 => drive(data, |bench| {
            let a20 = FastA20::new(bench.line(0), power());
            on_ports(shared(a20), &[(ports::FAST_A20_PORT, 1)])
        }),
        2 => drive(data, |_| {
            on_ports(
                shared(ExitStatus::new(power())),
                &[(ports::EXIT_STATUS_PORT, 1)],
            )
        }),
        3 => drive(data, |_| {
            const PORTS: [u16; 2] = ports::DEBUG_CONSOLE_PORTS;
            on_ports(
                shared(DebugConsole::new(sink())),
                &[(PORTS[0], 1), (PORTS[1], 1)],
            )
        }),
        _ => drive(data, |_| {
            on_ports(shared(DmaRegisters::new()), &ports::DMA_PORTS)
        }),
    }
}
