//! The Intel 8254 interval timer, and system control port B.
//!
//! Nothing ticks: each [`counter::Counter`] computes its count and its output from machine time
//! at 1.193182 MHz. OUT of counter 0 drives a line, for which a timer is armed with the next
//! rising edge. Edges are computed from where the count was loaded, never from when the last one
//! was delivered, so a late host does not make the guest's clock drift.
//!
//! Edges that the host was too late for are coalesced into one: the interrupt controller holds
//! one edge anyway, so a processor that kept interrupts off that long would have lost them too.

mod counter;
#[cfg(test)]
mod tests;

use crate::bytewise;
use clock::Clock;
use counter::{Counter, CounterV1};
use device::{Device, InterruptLine, PortIo, Shared, Timed, Timer, Timers, Width, lock, shared};
use serde::{Deserialize, Serialize};
use state::{Invalid, Persist, Saved};

/// Intel 8254 data sheet (order 231164-005); port 0x61: Intel 82371AB (PIIX4) data sheet (order
/// 290562-001), 4.2.6.1.
mod spec {
    /// Frequency of CLK: a third of the NTSC colour subcarrier, in Hz.
    pub(super) const HZ: u64 = 1_193_182;

    pub(super) const COUNTER_0: u16 = 0x40;
    pub(super) const COUNTER_2: u16 = 0x42;
    pub(super) const CONTROL: u16 = 0x43;
    pub(super) const PORT_B: u16 = 0x61;

    /// Control word: which counter in bits 7 and 6; 3 is the read-back command.
    pub(super) const READ_BACK: u8 = 3;
    /// Read-back command: clear bits latch.
    pub(super) const READ_BACK_NO_COUNT: u8 = 1 << 5;
    pub(super) const READ_BACK_NO_STATUS: u8 = 1 << 4;

    /// Port B: GATE of counter 2; bits 1 to 3 (speaker data, parity and channel check) are kept.
    pub(super) const PORT_B_GATE_2: u8 = 1 << 0;
    pub(super) const PORT_B_WRITABLE: u8 = 0x0f;
    /// Port B: toggles with each refresh request, every 18 ticks of counter 1 (15.09 us).
    pub(super) const PORT_B_REFRESH: u8 = 1 << 4;
    pub(super) const REFRESH_TICKS: u64 = 18;
    /// Port B: OUT of counter 2.
    pub(super) const PORT_B_OUT_2: u8 = 1 << 5;
}

/// Shortest time between two interrupts of the timer, in nanoseconds: a guest that counts two
/// ticks must not keep a host thread busy. No guest can serve interrupts this fast for long.
const GAP_NANOS_MIN: u64 = 50_000;

/// The interval timer of a PC.
#[derive(Debug)]
pub struct Pit {
    counters: [Counter; 3],
    /// Bits of port B that were written.
    port_b: u8,
    /// Tick up to which edges of OUT 0 were driven. The line is at OUT's level of then.
    seen: u64,
    /// Machine time before which the timer is not armed again.
    not_before: u64,
    clock: Clock,
    timer: Timer,
    irq: InterruptLine,
}

impl Pit {
    /// The ports that the device decodes: first port and length.
    pub const PORTS: [(u16, u16); 2] = [(spec::COUNTER_0, 4), (spec::PORT_B, 1)];

    /// A timer after power-on. OUT of counter 0 drives `irq`.
    pub fn new(clock: Clock, timers: &Timers, irq: InterruptLine) -> Shared<Self> {
        let timer = timers.create();
        let seen = clock::ticks(clock.now(), spec::HZ);
        let pit = shared(Self {
            counters: Self::counters_at_power_on(),
            port_b: 0,
            seen,
            not_before: 0,
            clock,
            timer: timer.clone(),
            irq,
        });
        timers.attach(&timer, &pit);
        lock(&pit).drive_and_arm();
        pit
    }

    /// Gates 0 and 1 are tied high, gate 2 is bit 0 of port B.
    fn counters_at_power_on() -> [Counter; 3] {
        [true, true, false].map(Counter::new)
    }

    fn tick(&self) -> u64 {
        clock::ticks(self.clock.now(), spec::HZ)
    }

    /// Brings counters and line up to `tick`.
    fn advance(&mut self, tick: u64) {
        let [counter, others @ ..] = &mut self.counters;
        let was_high = counter.out(self.seen);
        let rose = counter.advance(self.seen, tick);
        for other in others {
            other.advance(self.seen, tick);
        }
        self.seen = self.seen.max(tick);
        if rose {
            if was_high {
                self.irq.set(false);
            }
            self.irq.set(true);
        }
    }

    /// Drives the line to the level of OUT 0 and arms the timer for its next rising edge. The
    /// line falls when somebody looks or when it rises next: a falling edge means nothing to an
    /// edge-triggered input, and is not worth a wake-up.
    fn drive_and_arm(&mut self) {
        let counter = &self.counters[0];
        self.irq.set(counter.out(self.seen));
        match counter.next_rise(self.seen) {
            Some(tick) => {
                let deadline = clock::nanos(tick, spec::HZ);
                self.timer.arm(deadline.max(self.not_before));
            }
            None => self.timer.disarm(),
        }
    }

    fn read(&mut self, port: u16, tick: u64) -> u8 {
        match port {
            spec::COUNTER_0..=spec::COUNTER_2 => {
                self.counters[usize::from(port - spec::COUNTER_0)].read(tick)
            }
            spec::PORT_B => self.read_port_b(tick),
            // The control word can't be read: nothing drives the bus.
            _ => 0xff,
        }
    }

    fn read_port_b(&self, tick: u64) -> u8 {
        let mut value = self.port_b;
        let refreshes = tick / spec::REFRESH_TICKS;
        if refreshes & 1 != 0 {
            value |= spec::PORT_B_REFRESH;
        }
        if self.counters[2].out(tick) {
            value |= spec::PORT_B_OUT_2;
        }
        value
    }

    fn write(&mut self, port: u16, value: u8, tick: u64) {
        match port {
            spec::COUNTER_0..=spec::COUNTER_2 => {
                self.counters[usize::from(port - spec::COUNTER_0)].write(value, tick);
            }
            spec::CONTROL if value >> 6 == spec::READ_BACK => self.read_back(value, tick),
            spec::CONTROL => self.counters[usize::from(value >> 6)].control(value, tick),
            spec::PORT_B => {
                self.port_b = value & spec::PORT_B_WRITABLE;
                self.counters[2].set_gate(value & spec::PORT_B_GATE_2 != 0, tick);
            }
            _ => {}
        }
    }

    fn read_back(&mut self, command: u8, tick: u64) {
        for (index, counter) in self.counters.iter_mut().enumerate() {
            if command >> (index + 1) & 1 == 0 {
                continue;
            }
            if command & spec::READ_BACK_NO_COUNT == 0 {
                counter.latch_count(tick);
            }
            if command & spec::READ_BACK_NO_STATUS == 0 {
                counter.latch_status(tick);
            }
        }
    }
}

impl PortIo for Pit {
    fn port_read(&mut self, port: u16, width: Width) -> u32 {
        let tick = self.tick();
        self.advance(tick);
        let value = bytewise::read(port, width, |port| self.read(port, tick));
        self.drive_and_arm();
        value
    }

    fn port_write(&mut self, port: u16, width: Width, value: u32) {
        let tick = self.tick();
        self.advance(tick);
        bytewise::write(port, width, value, |port, value| {
            self.write(port, value, tick);
        });
        self.drive_and_arm();
    }
}

impl Timed for Pit {
    fn expired(&mut self, now: u64) {
        self.not_before = now.saturating_add(GAP_NANOS_MIN);
        self.advance(clock::ticks(now, spec::HZ));
        self.drive_and_arm();
    }
}

/// The saved state of a [`Pit`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitV1 {
    counters: [CounterV1; 3],
    port_b: u8,
    seen: u64,
    not_before: u64,
}

impl Saved for PitV1 {
    const KIND: &'static str = "i8254";
    const VERSION: u16 = 1;
}

impl Persist for Pit {
    type State = PitV1;

    fn save(&self) -> PitV1 {
        let Self {
            counters,
            port_b,
            seen,
            not_before,
            clock: _,
            timer: _,
            irq: _,
        } = self;
        PitV1 {
            counters: counters.each_ref().map(Counter::save),
            port_b: *port_b,
            seen: *seen,
            not_before: *not_before,
        }
    }

    fn restore(&mut self, state: PitV1) -> Result<(), Invalid> {
        let PitV1 {
            counters: [first, second, third],
            port_b,
            seen,
            not_before,
        } = state;
        if port_b & !spec::PORT_B_WRITABLE != 0 {
            return Err(Invalid::new("port B has read-only bits"));
        }
        if seen > self.tick() || not_before > self.clock.now().saturating_add(GAP_NANOS_MIN) {
            return Err(Invalid::new("the timer is ahead of the machine's time"));
        }
        let gate = port_b & spec::PORT_B_GATE_2 != 0;
        self.counters = [
            Counter::restored(first, true, seen)?,
            Counter::restored(second, true, seen)?,
            Counter::restored(third, gate, seen)?,
        ];
        (self.port_b, self.seen, self.not_before) = (port_b, seen, not_before);
        self.drive_and_arm();
        Ok(())
    }
}

impl Device for Pit {
    fn reset(&mut self) {
        self.counters = Self::counters_at_power_on();
        self.port_b = 0;
        self.seen = self.tick();
        self.not_before = 0;
        self.drive_and_arm();
    }

    device::saved_by_persist!();
}
