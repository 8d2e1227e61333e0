//! 16550A UART (National Semiconductor PC16550D data sheet, June 1995; sections named by its
//! numbers), wired as a PC's serial port.
//!
//! `Chip` is the chip: registers and the receiver FIFO, no host. [`Uart`] solders it to an
//! interrupt line, a clock, an output and an input.
//!
//! The far end of the cable is a terminal that is always there (CTS, DSR and DCD asserted) and
//! infinitely fast, so the transmitter is always empty. What the guest sends reaches the output
//! before the guest's write completes.
//!
//! Input is never lost on the host's side: [`Uart::receive`] takes what the FIFO has room for and
//! the caller keeps the rest until it is told that there is room again. As a terminal with
//! RTS/CTS handshake does, it sends nothing while the guest does not assert RTS: an operating
//! system clears the FIFO when it opens the port, and what is typed ahead of that must survive.
//! Software that never touches RTS but polls for input is served as well
//! ([`POLLS_FOR_INPUT`]).

use crate::bytewise;
use clock::Clock;
use device::{Device, InterruptLine, PortIo, Shared, Timed, Timer, Timers, Width, shared};
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};
use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;

/// How many reads of LSR in a row, without a character sent, mean that the guest waits for input.
/// A driver that sends looks once or twice per character.
pub const POLLS_FOR_INPUT: u8 = 32;

/// The PC's UART clock, in Hz.
const CLOCK_HZ: u64 = 1_843_200;

/// Registers and their bits (8.0 Registers, table II).
mod spec {
    /// Receiver buffer (read), transmitter holding (write); divisor latch low under DLAB.
    pub(super) const RBR_THR: u16 = 0;
    /// Interrupt enable; divisor latch high under DLAB.
    pub(super) const IER: u16 = 1;
    /// Interrupt identification (read), FIFO control (write).
    pub(super) const IIR_FCR: u16 = 2;
    pub(super) const LCR: u16 = 3;
    pub(super) const MCR: u16 = 4;
    pub(super) const LSR: u16 = 5;
    pub(super) const MSR: u16 = 6;

    pub(super) const FIFO_BYTES: usize = 16;

    pub(super) const IER_RX: u8 = 1 << 0;
    pub(super) const IER_THRE: u8 = 1 << 1;
    pub(super) const IER_LINE: u8 = 1 << 2;
    pub(super) const IER_MODEM: u8 = 1 << 3;
    pub(super) const IER_MASK: u8 = 0x0f;

    pub(super) const IIR_NONE: u8 = 0x01;
    pub(super) const IIR_MODEM: u8 = 0x00;
    pub(super) const IIR_THRE: u8 = 0x02;
    pub(super) const IIR_RX: u8 = 0x04;
    pub(super) const IIR_LINE: u8 = 0x06;
    pub(super) const IIR_TIMEOUT: u8 = 0x0c;
    pub(super) const IIR_FIFOS: u8 = 0xc0;

    pub(super) const FCR_ENABLE: u8 = 1 << 0;
    pub(super) const FCR_CLEAR_RX: u8 = 1 << 1;

    pub(super) const LCR_STOP: u8 = 1 << 2;
    pub(super) const LCR_PARITY: u8 = 1 << 3;
    pub(super) const LCR_DLAB: u8 = 1 << 7;

    pub(super) const MCR_DTR: u8 = 1 << 0;
    pub(super) const MCR_RTS: u8 = 1 << 1;
    pub(super) const MCR_OUT1: u8 = 1 << 2;
    pub(super) const MCR_OUT2: u8 = 1 << 3;
    pub(super) const MCR_LOOP: u8 = 1 << 4;
    pub(super) const MCR_MASK: u8 = 0x1f;

    pub(super) const LSR_DATA: u8 = 1 << 0;
    pub(super) const LSR_OVERRUN: u8 = 1 << 1;
    pub(super) const LSR_THRE: u8 = 1 << 5;
    pub(super) const LSR_EMPTY: u8 = 1 << 6;

    pub(super) const MSR_CTS: u8 = 1 << 4;
    pub(super) const MSR_DSR: u8 = 1 << 5;
    pub(super) const MSR_RI: u8 = 1 << 6;
    pub(super) const MSR_DCD: u8 = 1 << 7;
    pub(super) const MSR_DELTAS: u8 = 0x0f;
    /// Trailing edge of RI: set only when RI goes off.
    pub(super) const MSR_RI_OFF: u8 = 1 << 2;
}

use spec::*;

/// The chip: what its registers hold and what its pins say.
#[derive(Debug, Clone)]
struct Chip {
    rx: VecDeque<u8>,
    fifos: bool,
    /// FCR bits 7:6.
    trigger: u8,
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    /// The THRE interrupt is pending: the transmitter emptied and IIR was not read since.
    thre: bool,
    /// The character timeout is pending.
    timeout: bool,
    msr_deltas: u8,
    /// Reads of LSR since a character was sent, up to [`POLLS_FOR_INPUT`].
    polls: u8,
}

impl Chip {
    /// After master reset (8.0, table III). The divisor and the scratch register keep random
    /// values there; here they have fixed ones.
    fn new() -> Self {
        Self {
            rx: VecDeque::with_capacity(FIFO_BYTES),
            fifos: false,
            trigger: 0,
            ier: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            divisor: 12,
            overrun: false,
            thre: false,
            timeout: false,
            msr_deltas: 0,
            polls: 0,
        }
    }

    fn looped(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn latch(&self) -> bool {
        self.lcr & LCR_DLAB != 0
    }

    fn capacity(&self) -> usize {
        if self.fifos { FIFO_BYTES } else { 1 }
    }

    /// How many characters raise the received-data interrupt (8.5 FCR bits 6, 7).
    fn trigger_level(&self) -> usize {
        match (self.fifos, self.trigger) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// How many characters the far end may send now.
    fn room(&self) -> usize {
        // In loop mode the receiver's input pin is disconnected (8.8).
        let ready = self.mcr & MCR_RTS != 0 || self.polls >= POLLS_FOR_INPUT;
        if self.looped() || !ready {
            return 0;
        }
        self.capacity() - self.rx.len()
    }

    /// A character arrives at the receiver. When there is no room it overruns (8.6 LSR bit 1): a
    /// full FIFO stays as it is, a full buffer register is overwritten.
    fn shift_in(&mut self, byte: u8) {
        if self.rx.len() == self.capacity() {
            self.overrun = true;
            if self.fifos {
                return;
            }
            self.rx.clear();
        }
        self.rx.push_back(byte);
    }

    /// Modem status inputs: the cable's, or in loop mode the outputs of MCR (8.8).
    fn modem_lines(&self) -> u8 {
        if !self.looped() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        let wires = [
            (MCR_RTS, MSR_CTS),
            (MCR_DTR, MSR_DSR),
            (MCR_OUT1, MSR_RI),
            (MCR_OUT2, MSR_DCD),
        ];
        wires
            .into_iter()
            .filter(|(output, _)| self.mcr & output != 0)
            .fold(0, |lines, (_, input)| lines | input)
    }

    fn set_mcr(&mut self, value: u8) {
        let before = self.modem_lines();
        self.mcr = value & MCR_MASK;
        let now = self.modem_lines();
        let changed = (before ^ now) >> 4;
        let ri_off = (before & !now & MSR_RI) >> 4;
        self.msr_deltas |= changed & !MSR_RI_OFF | ri_off;
    }

    fn set_fcr(&mut self, value: u8) {
        let enable = value & FCR_ENABLE != 0;
        if enable != self.fifos || enable && value & FCR_CLEAR_RX != 0 {
            self.rx.clear();
            self.timeout = false;
        }
        self.fifos = enable;
        // The other bits are only programmed while bit 0 is 1 (8.5).
        self.trigger = if enable { value >> 6 } else { 0 };
    }

    fn set_ier(&mut self, value: u8) {
        let enabled = value & !self.ier;
        self.ier = value & IER_MASK;
        // The transmitter is always empty, so enabling its interrupt raises it.
        self.thre |= enabled & IER_THRE != 0;
    }

    /// The interrupt of the highest priority (8.7, table IV), without the FIFO bits.
    fn interrupt(&self) -> u8 {
        let rx = self.ier & IER_RX != 0;
        if self.ier & IER_LINE != 0 && self.overrun {
            IIR_LINE
        } else if rx && self.rx.len() >= self.trigger_level() {
            IIR_RX
        } else if rx && self.timeout {
            IIR_TIMEOUT
        } else if self.ier & IER_THRE != 0 && self.thre {
            IIR_THRE
        } else if self.ier & IER_MODEM != 0 && self.msr_deltas != 0 {
            IIR_MODEM
        } else {
            IIR_NONE
        }
    }

    /// The interrupt as it leaves the board: the PC lets OUT2 gate it, and loop mode forces OUT2
    /// inactive (8.8).
    fn irq(&self) -> bool {
        self.interrupt() != IIR_NONE && self.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2
    }

    fn read(&mut self, register: u16) -> u8 {
        match register {
            RBR_THR if self.latch() => self.divisor as u8,
            RBR_THR => {
                self.timeout = false;
                self.rx.pop_front().unwrap_or(0)
            }
            IER if self.latch() => (self.divisor >> 8) as u8,
            IER => self.ier,
            IIR_FCR => {
                let interrupt = self.interrupt();
                if interrupt == IIR_THRE {
                    self.thre = false;
                }
                interrupt | if self.fifos { IIR_FIFOS } else { 0 }
            }
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => self.read_lsr(),
            MSR => self.modem_lines() | std::mem::take(&mut self.msr_deltas),
            // SCR, the seventh.
            _ => self.scratch,
        }
    }

    fn read_lsr(&mut self) -> u8 {
        self.polls = (self.polls + 1).min(POLLS_FOR_INPUT);
        let mut lsr = LSR_THRE | LSR_EMPTY;
        if !self.rx.is_empty() {
            lsr |= LSR_DATA;
        }
        if std::mem::take(&mut self.overrun) {
            lsr |= LSR_OVERRUN;
        }
        lsr
    }

    /// Returns the character that leaves on the wire, if one does.
    fn write(&mut self, register: u16, value: u8) -> Option<u8> {
        match register {
            RBR_THR if self.latch() => self.divisor = self.divisor & 0xff00 | u16::from(value),
            RBR_THR => return self.transmit(value),
            IER if self.latch() => {
                self.divisor = self.divisor & 0x00ff | u16::from(value) << 8;
            }
            IER => self.set_ier(value),
            IIR_FCR => self.set_fcr(value),
            LCR => self.lcr = value,
            MCR => self.set_mcr(value),
            // "Intended for read operations only" (8.6).
            LSR | MSR => {}
            _ => self.scratch = value,
        }
        None
    }

    /// All eight bits leave whatever the word length is: software that never set it up means
    /// eight.
    fn transmit(&mut self, byte: u8) -> Option<u8> {
        self.polls = 0;
        self.thre = true;
        if self.looped() {
            self.shift_in(byte);
            return None;
        }
        Some(byte)
    }

    /// Whether the character timeout (8.4 FIFO interrupt mode) is to run.
    fn awaits_timeout(&self) -> bool {
        self.fifos && !self.timeout && (1..self.trigger_level()).contains(&self.rx.len())
    }

    /// Four character times, in nanoseconds.
    fn timeout_nanos(&self) -> u64 {
        let data = 5 + u64::from(self.lcr & 3);
        let parity = u64::from(self.lcr & LCR_PARITY != 0);
        let stop = 1 + u64::from(self.lcr & LCR_STOP != 0);
        let bits = 1 + data + parity + stop;
        clock::nanos(4 * bits * 16 * u64::from(self.divisor.max(1)), CLOCK_HZ)
    }
}

/// Told when input is taken again.
///
/// It is called under the device's lock: it may wake a thread but must not wait for one, nor call
/// the device.
pub type Room = Arc<dyn Fn() + Send + Sync>;

/// What a serial port is connected to.
pub struct UartWires {
    /// The interrupt.
    pub interrupt: InterruptLine,
    /// Where characters go, one write each, before the guest's access completes; it should
    /// therefore not be buffered. While the output blocks, the guest's processor waits, and so
    /// does whoever wants the device; a machine that must not wait puts a queue in between. What
    /// a failing output refuses is lost, as on a cable that is pulled; the device goes on.
    pub output: Box<dyn Write + Send>,
    /// Called when [`Uart::receive`] took less than it was given and can take more now.
    pub room: Room,
}

/// A serial port: the chip on its board. Decodes eight ports from a multiple of eight on.
pub struct Uart {
    chip: Chip,
    wires: UartWires,
    clock: Clock,
    timer: Timer,
    /// When the character timeout comes, in machine time.
    deadline: Option<u64>,
    /// What the interrupt line was last driven to.
    irq: bool,
    /// A caller of [`Uart::receive`] waits for room.
    starved: bool,
}

impl Uart {
    /// A serial port after power-on.
    pub fn new(clock: Clock, timers: &Timers, wires: UartWires) -> Shared<Self> {
        let timer = timers.create();
        let uart = shared(Self {
            chip: Chip::new(),
            wires,
            clock,
            timer: timer.clone(),
            deadline: None,
            irq: false,
            starved: false,
        });
        timers.attach(&timer, &uart);
        uart
    }

    /// How many bytes [`Uart::receive`] takes now.
    pub fn room(&self) -> usize {
        self.chip.room()
    }

    /// Bytes from the far end. Returns how many were taken; the rest is the caller's to offer
    /// again, at the latest when [`UartWires::room`] is called.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        for byte in &bytes[..taken] {
            self.chip.shift_in(*byte);
        }
        self.starved |= taken < bytes.len();
        if taken > 0 {
            self.restart_timeout();
            self.drive();
        }
        taken
    }

    fn read_byte(&mut self, port: u16) -> u8 {
        let register = port & 7;
        let received = self.chip.rx.len();
        let value = self.chip.read(register);
        if self.chip.rx.len() != received {
            self.restart_timeout();
        }
        self.settle();
        value
    }

    fn write_byte(&mut self, port: u16, value: u8) {
        let received = self.chip.rx.len();
        if let Some(byte) = self.chip.write(port & 7, value) {
            // Nobody is there to tell; see `UartWires::output`.
            let _ = self.wires.output.write_all(&[byte]);
            let _ = self.wires.output.flush();
        }
        if self.chip.rx.len() != received || port & 7 == IIR_FCR {
            self.restart_timeout();
        }
        self.settle();
    }

    /// Brings everything outside the chip in line with it after an access.
    fn settle(&mut self) {
        self.drive();
        // Half a FIFO at a time: a wake per byte would cost the sender more than the byte.
        if self.starved && self.chip.room() >= self.chip.capacity().div_ceil(2) {
            self.starved = false;
            (self.wires.room)();
        }
    }

    fn drive(&mut self) {
        let irq = self.chip.irq();
        if irq != self.irq {
            self.irq = irq;
            self.wires.interrupt.set(irq);
        }
    }

    /// The timeout counts from the last character received or read.
    fn restart_timeout(&mut self) {
        let wanted = self.chip.awaits_timeout();
        let deadline = wanted.then(|| self.clock.now().saturating_add(self.chip.timeout_nanos()));
        self.set_deadline(deadline);
    }

    fn set_deadline(&mut self, deadline: Option<u64>) {
        match deadline {
            Some(deadline) => self.timer.arm(deadline),
            None if self.deadline.is_some() => self.timer.disarm(),
            None => {}
        }
        self.deadline = deadline;
    }
}

impl Timed for Uart {
    fn expired(&mut self, now: u64) {
        // The call may have been under way when the deadline was moved.
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.chip.timeout = true;
            self.drive();
        }
    }
}

impl PortIo for Uart {
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        bytewise::read(port, width, |port| self.read_byte(port))
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        bytewise::write(port, width, value, |port, value| {
            self.write_byte(port, value)
        });
    }
}

/// The saved state of a [`Uart`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartV1 {
    received: Vec<u8>,
    fifos: bool,
    trigger: u8,
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    thre: bool,
    timeout: bool,
    msr_deltas: u8,
    polls: u8,
    deadline: Option<u64>,
}

impl Saved for UartV1 {
    const KIND: &'static str = "uart16550a";
    const VERSION: u16 = 1;
}

impl Persist for Uart {
    type State = UartV1;

    fn save(&self) -> UartV1 {
        let Self {
            chip,
            wires: _,
            clock: _,
            timer: _,
            deadline,
            // Derived from the chip.
            irq: _,
            // The new machine's callers find out for themselves.
            starved: _,
        } = self;
        let Chip {
            rx,
            fifos,
            trigger,
            ier,
            lcr,
            mcr,
            scratch,
            divisor,
            overrun,
            thre,
            timeout,
            msr_deltas,
            polls,
        } = chip.clone();
        UartV1 {
            received: rx.into(),
            fifos,
            trigger,
            ier,
            lcr,
            mcr,
            scratch,
            divisor,
            overrun,
            thre,
            timeout,
            msr_deltas,
            polls,
            deadline: *deadline,
        }
    }

    fn restore(&mut self, state: UartV1) -> Result<(), Invalid> {
        let UartV1 {
            received,
            fifos,
            trigger,
            ier,
            lcr,
            mcr,
            scratch,
            divisor,
            overrun,
            thre,
            timeout,
            msr_deltas,
            polls,
            deadline,
        } = state;
        let chip = Chip {
            rx: received.into(),
            fifos,
            trigger,
            ier,
            lcr,
            mcr,
            scratch,
            divisor,
            overrun,
            thre,
            timeout,
            msr_deltas,
            polls,
        };
        let bits = [
            (trigger, 3),
            (ier, IER_MASK),
            (mcr, MCR_MASK),
            (msr_deltas, MSR_DELTAS),
        ];
        if bits.iter().any(|(value, mask)| value & !mask != 0)
            || polls > POLLS_FOR_INPUT
            || chip.rx.len() > chip.capacity()
            || deadline.is_some() && !chip.awaits_timeout()
        {
            return Err(Invalid::new("not a state of a 16550A"));
        }
        self.chip = chip;
        self.set_deadline(deadline);
        self.starved = true;
        self.irq = self.chip.irq();
        self.wires.interrupt.set(self.irq);
        self.settle();
        Ok(())
    }
}

impl Device for Uart {
    fn reset(&mut self) {
        self.chip = Chip::new();
        self.set_deadline(None);
        self.settle();
    }

    device::saved_by_persist!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use device::lock;
    use device::testing::Recorder;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const COM1: u16 = 0x3f8;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
    }

    struct Bench {
        uart: Shared<Uart>,
        clock: Clock,
        timers: Timers,
        line: Arc<Recorder>,
        sink: Sink,
        rooms: Arc<AtomicUsize>,
    }

    impl Bench {
        fn new() -> Self {
            let sink = Sink::default();
            Self::with_output(sink.clone(), Box::new(sink))
        }

        fn with_output(sink: Sink, output: Box<dyn Write + Send>) -> Self {
            let clock = Clock::manual();
            let timers = Timers::new(clock.clone());
            let line = Recorder::new();
            let rooms = Arc::new(AtomicUsize::new(0));
            let wires = UartWires {
                interrupt: InterruptLine::new(line.clone(), 4),
                output,
                room: Arc::new({
                    let rooms = rooms.clone();
                    move || {
                        rooms.fetch_add(1, Ordering::Relaxed);
                    }
                }),
            };
            let uart = Uart::new(clock.clone(), &timers, wires);
            Self {
                uart,
                clock,
                timers,
                line,
                sink,
                rooms,
            }
        }

        /// Set up as a driver does: 115200 8N1, FIFOs with trigger level 8, all interrupts.
        fn opened() -> Self {
            let bench = Self::new();
            bench.write(LCR, LCR_DLAB | 3);
            bench.write(RBR_THR, 1);
            bench.write(IER, 0);
            bench.write(LCR, 3);
            bench.write(IIR_FCR, 0x87);
            bench.write(MCR, MCR_DTR | MCR_RTS | MCR_OUT2);
            bench
        }

        fn read(&self, register: u16) -> u8 {
            lock(&self.uart).port_read(COM1 + register, Width::Byte) as u8
        }

        fn write(&self, register: u16, value: u8) {
            lock(&self.uart).port_write(COM1 + register, Width::Byte, value.into());
        }

        fn receive(&self, bytes: &[u8]) -> usize {
            lock(&self.uart).receive(bytes)
        }

        fn irq(&self) -> bool {
            self.line.level(4)
        }
    }

    #[test]
    fn output_is_there_when_the_write_completes() {
        let bench = Bench::opened();
        for byte in *b"hello" {
            assert_eq!(bench.read(LSR), LSR_THRE | LSR_EMPTY);
            bench.write(RBR_THR, byte);
        }
        assert_eq!(*bench.sink.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn a_failing_output_does_not_stop_the_device() {
        let bench = Bench::with_output(Sink::default(), Box::new(Broken));
        bench.write(RBR_THR, b'x');
        assert_eq!(bench.read(LSR), LSR_THRE | LSR_EMPTY);
    }

    #[test]
    fn table_iii_master_reset() {
        let bench = Bench::opened();
        bench.write(IER, 0xff);
        lock(&bench.uart).reset();
        let expected = [
            (IER, 0),
            (IIR_FCR, 1),
            (LCR, 0),
            (MCR, 0),
            (LSR, 0x60),
            (MSR, 0xb0),
        ];
        for (register, value) in expected {
            assert_eq!(bench.read(register), value, "register {register}");
        }
        assert!(!bench.irq());
    }

    #[test]
    fn dlab_switches_two_registers() {
        let bench = Bench::new();
        bench.write(LCR, LCR_DLAB);
        bench.write(RBR_THR, 0x34);
        bench.write(IER, 0x12);
        assert_eq!((bench.read(RBR_THR), bench.read(IER)), (0x34, 0x12));
        bench.write(LCR, 0);
        assert_eq!((bench.read(RBR_THR), bench.read(IER)), (0, 0));
        assert!(bench.sink.0.lock().unwrap().is_empty());
        bench.write(7, 0xa5);
        assert_eq!(bench.read(7), 0xa5);
    }

    #[test]
    fn the_trigger_level_raises_received_data() {
        for (fcr, level) in [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)] {
            let bench = Bench::opened();
            bench.write(IIR_FCR, fcr);
            bench.write(IER, IER_RX);
            assert_eq!(bench.receive(&vec![7; level - 1]), level - 1);
            assert!(!bench.irq(), "level {level}");
            bench.receive(&[7]);
            assert!(bench.irq(), "level {level}");
            assert_eq!(bench.read(IIR_FCR), IIR_FIFOS | IIR_RX);
            bench.read(RBR_THR);
            assert!(!bench.irq(), "level {level}");
        }
    }

    #[test]
    fn a_character_left_in_the_fifo_times_out_after_four_character_times() {
        let bench = Bench::opened();
        bench.write(IER, IER_RX);
        bench.receive(b"ab");
        let four = 4 * 10 * 1_000_000_000u64 / 115_200;
        bench.clock.advance(four);
        bench.timers.poll();
        assert!(!bench.irq());
        bench.clock.advance(1);
        bench.timers.poll();
        assert!(bench.irq());
        assert_eq!(bench.read(IIR_FCR), IIR_FIFOS | IIR_TIMEOUT);
        assert_eq!(bench.read(RBR_THR), b'a');
        assert!(!bench.irq(), "reading clears it");
        bench.clock.advance(four + 1);
        bench.timers.poll();
        assert!(bench.irq(), "and starts it again");
        bench.read(RBR_THR);
        bench.clock.advance(10 * four);
        bench.timers.poll();
        assert!(!bench.irq(), "an empty FIFO does not time out");
    }

    #[test]
    fn thre_is_raised_by_enabling_and_cleared_by_reading_iir() {
        let bench = Bench::opened();
        bench.write(IER, IER_THRE);
        assert!(bench.irq());
        assert_eq!(bench.read(IIR_FCR), IIR_FIFOS | IIR_THRE);
        assert!(!bench.irq());
        assert_eq!(bench.read(IIR_FCR), IIR_FIFOS | IIR_NONE);
        bench.write(RBR_THR, b'x');
        assert!(bench.irq());
        bench.write(IER, 0);
        assert!(!bench.irq());
    }

    #[test]
    fn table_iv_priorities() {
        let bench = Bench::opened();
        bench.write(MCR, MCR_LOOP | MCR_RTS);
        for byte in 0..=16 {
            bench.write(RBR_THR, byte);
        }
        bench.write(IER, IER_MASK);
        let mut seen = vec![bench.read(IIR_FCR) & 0x0f];
        assert_eq!(bench.read(LSR) & LSR_OVERRUN, LSR_OVERRUN);
        seen.push(bench.read(IIR_FCR) & 0x0f);
        for byte in 0..16 {
            assert_eq!(bench.read(RBR_THR), byte);
        }
        seen.push(bench.read(IIR_FCR) & 0x0f);
        seen.push(bench.read(IIR_FCR) & 0x0f);
        bench.read(MSR);
        seen.push(bench.read(IIR_FCR) & 0x0f);
        assert_eq!(seen, [IIR_LINE, IIR_RX, IIR_THRE, IIR_MODEM, IIR_NONE]);
    }

    #[test]
    fn out2_gates_the_interrupt() {
        let bench = Bench::opened();
        bench.write(MCR, MCR_RTS);
        bench.write(IER, IER_THRE);
        assert!(!bench.irq());
        bench.write(MCR, MCR_RTS | MCR_OUT2);
        assert!(bench.irq());
        bench.write(MCR, MCR_RTS | MCR_OUT2 | MCR_LOOP);
        assert!(!bench.irq());
    }

    #[test]
    fn loop_mode_connects_outputs_to_inputs() {
        let bench = Bench::new();
        bench.write(MCR, MCR_LOOP | MCR_RTS | MCR_OUT2);
        assert_eq!(bench.read(MSR) & 0xf0, MSR_CTS | MSR_DCD);
        bench.write(MCR, MCR_LOOP | MCR_OUT1);
        assert_eq!(bench.read(MSR), MSR_RI | 0b1001, "CTS and DCD changed");
        bench.write(MCR, MCR_LOOP);
        assert_eq!(bench.read(MSR), MSR_RI_OFF);
        bench.write(RBR_THR, 0x5a);
        assert_eq!(bench.read(LSR) & LSR_DATA, LSR_DATA);
        assert_eq!(bench.read(RBR_THR), 0x5a);
        assert!(bench.sink.0.lock().unwrap().is_empty());
    }

    #[test]
    fn without_fifos_an_overrun_replaces_the_character() {
        let bench = Bench::new();
        bench.write(MCR, MCR_LOOP);
        bench.write(RBR_THR, 1);
        bench.write(RBR_THR, 2);
        assert_eq!(
            bench.read(LSR),
            LSR_THRE | LSR_EMPTY | LSR_DATA | LSR_OVERRUN
        );
        assert_eq!(bench.read(LSR), LSR_THRE | LSR_EMPTY | LSR_DATA);
        assert_eq!(bench.read(RBR_THR), 2);
    }

    #[test]
    fn a_long_paste_arrives_whole_and_in_order() {
        let bench = Bench::opened();
        bench.write(IER, IER_RX);
        let paste: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let mut sent = bench.receive(&paste);
        let mut seen = Vec::new();
        while seen.len() < paste.len() {
            let rooms = bench.rooms.load(Ordering::Relaxed);
            while bench.read(LSR) & LSR_DATA != 0 {
                seen.push(bench.read(RBR_THR));
            }
            if sent < paste.len() {
                assert!(
                    bench.rooms.load(Ordering::Relaxed) > rooms,
                    "told of the room"
                );
                sent += bench.receive(&paste[sent..]);
            }
        }
        assert_eq!(seen, paste);
    }

    #[test]
    fn nothing_is_sent_before_the_guest_asserts_rts() {
        let bench = Bench::new();
        assert_eq!(bench.receive(b"typed ahead"), 0);
        bench.write(IIR_FCR, 0x07);
        assert_eq!(bench.rooms.load(Ordering::Relaxed), 0);
        bench.write(MCR, MCR_RTS);
        assert_eq!(bench.rooms.load(Ordering::Relaxed), 1);
        assert_eq!(bench.receive(b"typed ahead"), 11);
    }

    #[test]
    fn a_guest_that_polls_gets_input_without_rts() {
        let bench = Bench::new();
        assert_eq!(bench.receive(b"x"), 0);
        for _ in 0..POLLS_FOR_INPUT {
            assert_eq!(bench.read(LSR) & LSR_DATA, 0);
        }
        assert_eq!(bench.rooms.load(Ordering::Relaxed), 1);
        assert_eq!(bench.receive(b"x"), 1);
        assert_eq!(bench.read(RBR_THR), b'x');
    }

    #[test]
    fn wide_accesses_reach_successive_registers() {
        let bench = Bench::new();
        lock(&bench.uart).port_write(COM1 + LCR, Width::Word, 0x0a03);
        assert_eq!((bench.read(LCR), bench.read(MCR)), (3, 0x0a));
    }

    #[test]
    fn a_saved_port_goes_on_where_it_was() {
        let bench = Bench::opened();
        bench.write(IER, IER_RX);
        bench.receive(b"abc");
        bench.clock.advance(100);
        let state = Persist::save(&*lock(&bench.uart));
        let other = Bench::new();
        other.clock.advance(100);
        Persist::restore(&mut *lock(&other.uart), state.clone()).unwrap();
        assert_eq!(Persist::save(&*lock(&other.uart)), state);
        other.clock.advance(1_000_000);
        other.timers.poll();
        assert!(other.irq(), "the timeout still comes");
        assert_eq!(other.read(RBR_THR), b'a');
    }

    #[test]
    fn impossible_states_are_refused_whole() {
        let bench = Bench::opened();
        let good = Persist::save(&*lock(&bench.uart));
        let bad = [
            UartV1 {
                received: vec![0; 17],
                ..good.clone()
            },
            UartV1 {
                ier: 0x10,
                ..good.clone()
            },
            UartV1 {
                mcr: 0x80,
                ..good.clone()
            },
            UartV1 {
                trigger: 4,
                ..good.clone()
            },
            UartV1 {
                deadline: Some(1),
                ..good.clone()
            },
            UartV1 {
                fifos: false,
                received: vec![0; 2],
                ..good.clone()
            },
        ];
        for state in bad {
            assert!(Persist::restore(&mut *lock(&bench.uart), state).is_err());
            assert_eq!(Persist::save(&*lock(&bench.uart)), good);
        }
    }
}
