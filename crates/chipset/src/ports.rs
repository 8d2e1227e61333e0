//! Small things in port space: reset control, fast A20, exit status, debug consoles, and the
//! legacy DMA controllers' registers.

use crate::{PowerControl, bytewise};
use device::{Device, InterruptLine, PortIo, Width};
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};
use std::io::Write;
use std::sync::Arc;

/// Where the [`ResetControl`] register is.
pub const RESET_CONTROL_PORT: u16 = 0xcf9;
/// Where [`FastA20`] is.
pub const FAST_A20_PORT: u16 = 0x92;
/// Where [`ExitStatus`] is.
pub const EXIT_STATUS_PORT: u16 = 0xf4;
/// Where [`DebugConsole`] is: Bochs' port and SeaBIOS' and OVMF's.
pub const DEBUG_CONSOLE_PORTS: [u16; 2] = [0xe9, 0x402];
/// What the [`DmaRegisters`] decode: (first port, number). Port 0x80, the page register of no
/// channel, is where firmware puts its POST codes.
pub const DMA_PORTS: [(u16, u16); 3] = [(0x00, 0x10), (0x80, 0x10), (0xc0, 0x20)];
/// The number of registers in [`DMA_PORTS`].
const DMA_REGISTERS: usize = 0x40;

/// Implements [`Device`]'s saving by [`Persist`].
macro_rules! device_by_persist {
    ($type:ty) => {
        impl Device for $type {
            fn reset(&mut self) {
                self.power_on();
            }

            device::saved_by_persist!();
        }
    };
}

/// The reset control register (Intel ICH9 datasheet, 13.7.5 RST_CNT).
///
/// Its byte at 0xcf9 lies among the PCI configuration ports, so those pass accesses on to it.
pub struct ResetControl {
    value: u8,
    power: Arc<dyn PowerControl>,
}

/// Hard rather than soft reset.
const SYS_RST: u8 = 1 << 1;
/// A change from 0 to 1 resets.
const RST_CPU: u8 = 1 << 2;
/// With a power cycle.
const FULL_RST: u8 = 1 << 3;

impl ResetControl {
    /// The register, which asks `power` for resets. A soft reset (of the processors alone) is one
    /// of the whole machine too: firmware of today makes no difference.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self { value: 0, power }
    }

    fn power_on(&mut self) {
        self.value = 0;
    }
}

impl PortIo for ResetControl {
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        bytewise::read(port, width, |port| match port {
            RESET_CONTROL_PORT => self.value,
            _ => 0xff,
        })
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        bytewise::write(port, width, value, |port, value| {
            if port == RESET_CONTROL_PORT {
                let rises = value & !self.value & RST_CPU != 0;
                self.value = value & (SYS_RST | RST_CPU | FULL_RST);
                if rises {
                    self.power.reset();
                }
            }
        });
    }
}

/// The saved state of a [`ResetControl`].
#[derive(Debug, Serialize, Deserialize)]
pub struct ResetControlV1 {
    value: u8,
}

impl Saved for ResetControlV1 {
    const KIND: &'static str = "reset-control";
    const VERSION: u16 = 1;
}

impl Persist for ResetControl {
    type State = ResetControlV1;

    fn save(&self) -> ResetControlV1 {
        let Self { value, power: _ } = self;
        ResetControlV1 { value: *value }
    }

    fn restore(&mut self, state: ResetControlV1) -> Result<(), Invalid> {
        if state.value & !(SYS_RST | RST_CPU | FULL_RST) != 0 {
            return Err(Invalid::new("reserved bits of the reset control register"));
        }
        self.value = state.value;
        Ok(())
    }
}

device_by_persist!(ResetControl);

/// Port 0x92, "fast A20 and INIT" (Intel ICH9 datasheet, 13.7.3 PORT92).
///
/// Its A20 output and the keyboard controller's are separate wires; address line 20 is let
/// through while either is high.
pub struct FastA20 {
    a20_high: bool,
    a20: InterruptLine,
    power: Arc<dyn PowerControl>,
}

impl FastA20 {
    /// The port, which drives `a20` and asks `power` for resets.
    pub fn new(a20: InterruptLine, power: Arc<dyn PowerControl>) -> Self {
        Self {
            a20_high: false,
            a20,
            power,
        }
    }

    fn power_on(&mut self) {
        self.set_a20(false);
    }

    fn set_a20(&mut self, high: bool) {
        self.a20_high = high;
        self.a20.set(high);
    }
}

impl PortIo for FastA20 {
    fn port_read(&mut self, _: u16, width: Width) -> u32 {
        // INIT_NOW reads 0; the ports beside it are nobody's.
        u32::from(self.a20_high) << 1 | width.ones() as u32 & !0xff
    }

    fn port_write(&mut self, _: u16, _: Width, value: u32) {
        self.set_a20(value & 2 != 0);
        if value & 1 != 0 {
            self.power.reset();
        }
    }
}

/// The saved state of a [`FastA20`].
#[derive(Debug, Serialize, Deserialize)]
pub struct FastA20V1 {
    a20_high: bool,
}

impl Saved for FastA20V1 {
    const KIND: &'static str = "fast-a20";
    const VERSION: u16 = 1;
}

impl Persist for FastA20 {
    type State = FastA20V1;

    fn save(&self) -> FastA20V1 {
        let Self {
            a20_high,
            a20: _,
            power: _,
        } = self;
        FastA20V1 {
            a20_high: *a20_high,
        }
    }

    fn restore(&mut self, state: FastA20V1) -> Result<(), Invalid> {
        self.set_a20(state.a20_high);
        Ok(())
    }
}

device_by_persist!(FastA20);

/// A port through which a guest ends its machine with a status: the byte written is the status.
pub struct ExitStatus {
    power: Arc<dyn PowerControl>,
}

impl ExitStatus {
    /// The port, which hands the status to `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self { power }
    }
}

impl PortIo for ExitStatus {
    fn port_read(&mut self, _: u16, width: Width) -> u32 {
        width.ones() as u32
    }

    fn port_write(&mut self, _: u16, _: Width, value: u32) {
        self.power.exit(value as u8);
    }
}

impl Device for ExitStatus {
    fn reset(&mut self) {}
    fn save(&self, _: &str, _: &mut state::Writer) {}
    fn restore(&mut self, _: &str, _: &mut state::Reader) -> Result<(), state::Error> {
        Ok(())
    }
}

/// A console that firmware writes its log to, a byte at a time.
pub struct DebugConsole {
    output: Box<dyn Write + Send>,
}

impl DebugConsole {
    /// A console that writes to `output`, under the terms of [`crate::UartWires::output`].
    pub fn new(output: Box<dyn Write + Send>) -> Self {
        Self { output }
    }
}

impl PortIo for DebugConsole {
    /// Both kinds of console read as 0xe9, by which software finds them.
    fn port_read(&mut self, _: u16, width: Width) -> u32 {
        0xe9 | width.ones() as u32 & !0xff
    }

    fn port_write(&mut self, _: u16, _: Width, value: u32) {
        // Nobody is there to tell of a failure.
        let _ = self.output.write_all(&[value as u8]);
        let _ = self.output.flush();
    }
}

impl Device for DebugConsole {
    fn reset(&mut self) {}
    fn save(&self, _: &str, _: &mut state::Writer) {}
    fn restore(&mut self, _: &str, _: &mut state::Reader) -> Result<(), state::Error> {
        Ok(())
    }
}

/// The registers of the two 8237 DMA controllers and their page registers, without a transfer
/// behind them: this machine has no device on the ISA bus that asks for DMA. Each holds what was
/// last written.
pub struct DmaRegisters {
    values: [u8; DMA_REGISTERS],
}

impl DmaRegisters {
    /// All registers 0.
    pub fn new() -> Self {
        Self {
            values: [0; DMA_REGISTERS],
        }
    }

    fn power_on(&mut self) {
        self.values.fill(0);
    }

    /// The register at `port`, one of [`DMA_PORTS`].
    fn register(&mut self, port: u16) -> Option<&mut u8> {
        let mut start = 0;
        for (base, len) in DMA_PORTS {
            if (base..base + len).contains(&port) {
                return Some(&mut self.values[start + usize::from(port - base)]);
            }
            start += usize::from(len);
        }
        None
    }
}

impl Default for DmaRegisters {
    fn default() -> Self {
        Self::new()
    }
}

impl PortIo for DmaRegisters {
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        bytewise::read(port, width, |port| {
            self.register(port).map_or(0xff, |value| *value)
        })
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        bytewise::write(port, width, value, |port, value| {
            if let Some(register) = self.register(port) {
                *register = value;
            }
        });
    }
}

/// The saved state of [`DmaRegisters`], in the order of [`DMA_PORTS`].
#[derive(Debug, Serialize, Deserialize)]
pub struct DmaRegistersV1 {
    values: Vec<u8>,
}

impl Saved for DmaRegistersV1 {
    const KIND: &'static str = "dma-registers";
    const VERSION: u16 = 1;
}

impl Persist for DmaRegisters {
    type State = DmaRegistersV1;

    fn save(&self) -> DmaRegistersV1 {
        let Self { values } = self;
        DmaRegistersV1 {
            values: values.to_vec(),
        }
    }

    fn restore(&mut self, state: DmaRegistersV1) -> Result<(), Invalid> {
        let wrong = |_| Invalid::new("not the number of DMA registers");
        self.values = state.values.try_into().map_err(wrong)?;
        Ok(())
    }
}

device_by_persist!(DmaRegisters);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PowerRequest;
    use crate::power::testing::Requests;
    use device::testing::Recorder;

    #[test]
    fn rst_cnt_resets_on_the_rising_bit_2_only() {
        let requests = Requests::new();
        let mut port = ResetControl::new(requests.clone());
        port.port_write(0xcf9, Width::Byte, 0x02);
        assert!(requests.take().is_empty());
        port.port_write(0xcf9, Width::Byte, 0x06);
        assert_eq!(requests.take(), [PowerRequest::Reset]);
        assert_eq!(port.port_read(0xcf9, Width::Byte), 0x06);
        port.port_write(0xcf9, Width::Byte, 0x0e);
        assert!(requests.take().is_empty(), "already 1");
        port.port_write(0xcf8, Width::Dword, 0);
        port.port_write(0xcf8, Width::Word, 0xff00);
        assert_eq!(requests.take(), [PowerRequest::Reset]);
    }

    #[test]
    fn port_92_drives_a20_and_resets() {
        let requests = Requests::new();
        let line = Recorder::new();
        let mut port = FastA20::new(InterruptLine::new(line.clone(), 1), requests.clone());
        port.port_write(0x92, Width::Byte, 2);
        assert!(line.level(1));
        assert_eq!(port.port_read(0x92, Width::Byte), 2);
        port.reset();
        assert!(!line.level(1));
        port.port_write(0x92, Width::Byte, 1);
        assert_eq!(requests.take(), [PowerRequest::Reset]);
    }

    #[test]
    fn the_exit_port_carries_the_status() {
        let requests = Requests::new();
        ExitStatus::new(requests.clone()).port_write(0xf4, Width::Dword, 0x107);
        assert_eq!(requests.take(), [PowerRequest::Exit(7)]);
    }

    #[test]
    fn the_debug_console_is_found_by_its_value() {
        let mut console = DebugConsole::new(Box::new(std::io::sink()));
        assert_eq!(console.port_read(0xe9, Width::Byte), 0xe9);
        console.port_write(0x402, Width::Byte, b'x'.into());
    }

    #[test]
    fn dma_registers_hold_what_was_written_through_a_save() {
        let mut dma = DmaRegisters::new();
        for (i, port) in [0x00u16, 0x0f, 0x80, 0x8f, 0xc0, 0xdf]
            .into_iter()
            .enumerate()
        {
            dma.port_write(port, Width::Byte, i as u32 + 1);
        }
        let state = Persist::save(&dma);
        let mut other = DmaRegisters::new();
        Persist::restore(&mut other, state).unwrap();
        for (i, port) in [0x00u16, 0x0f, 0x80, 0x8f, 0xc0, 0xdf]
            .into_iter()
            .enumerate()
        {
            assert_eq!(other.port_read(port, Width::Byte), i as u32 + 1);
        }
        assert_eq!(other.port_read(0x92, Width::Byte), 0xff);
        let short = DmaRegistersV1 { values: vec![0; 3] };
        assert!(Persist::restore(&mut other, short).is_err());
    }
}
